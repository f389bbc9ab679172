"""What has passed through a call's legs, those that are no longer in use among them. Only counts."""

from relay.core.actions import Passed, Side
from relay.legs import Leg
from relay.tally import Tally


class Traffic:
    """The legs of one call, one on each side at a time."""

    __slots__ = ("_before", "_counted", "_largest_buffer", "_legs")

    def __init__(self, client: Leg, model: Leg) -> None:
        self._legs = {Side.CLIENT: client, Side.MODEL: model}
        self._before = dict.fromkeys(self._legs, (0, 0, 0, 0))  # of legs that were in use before
        self._counted = dict.fromkeys(self._legs, (0, 0))  # frames and bytes that the tally has
        self._largest_buffer = 0

    def use(self, leg: Leg) -> None:
        """This leg is in use from now on."""
        side = leg.side
        if self._legs[side] is leg:
            return
        self._before[side] = self._sum(side)
        self._largest_buffer = self.largest_buffer
        self._legs[side] = leg

    def _sum(self, side: Side) -> tuple[int, int, int, int]:
        frames, size, handled, handled_size = self._before[side]
        leg = self._legs[side]
        return (
            frames + leg.frames_in,
            size + leg.bytes_in,
            handled + leg.handled_frames,
            handled_size + leg.handled_bytes,
        )

    def passed(self) -> Passed:
        """Count what went straight from leg to leg."""
        client, model = self._sum(Side.CLIENT), self._sum(Side.MODEL)
        return Passed(client[0] - client[2], client[1] - client[3], model[0] - model[2], model[1] - model[3])

    def received(self, side: Side) -> tuple[int, int]:
        """Frames and bytes that came from one side."""
        return self._sum(side)[:2]

    @property
    def largest_buffer(self) -> int:
        """The most bytes that ever waited for one of the legs."""
        return max(self._largest_buffer, *(leg.largest_buffer for leg in self._legs.values()))

    def count(self, tally: Tally) -> None:
        """Add what came since last time to the node's tally."""
        for side, name in ((Side.CLIENT, "client"), (Side.MODEL, "model")):
            now, before = self.received(side), self._counted[side]
            self._counted[side] = now
            tally.frames[name] += now[0] - before[0]
            tally.bytes[name] += now[1] - before[1]
