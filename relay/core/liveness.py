"""Whether a leg's peer is there: pings when nothing comes, the stall clock when nothing goes.

Pure: the session asks once a second and says what it sees of the leg.
"""

from enum import Enum, auto


class Pulse(Enum):
    """What a look at a leg asks for."""

    FINE = auto()
    PING = auto()
    SILENT = auto()  # a ping went unanswered
    STALLED = auto()  # the peer takes nothing


class Liveness:
    """The clocks of one leg, all in seconds of the loop's time.

    ``stall_seconds`` must be below ``ping_seconds + pong_seconds``: a leg whose reading is paused, because its peer
    leg is blocked, cannot see pongs, and must not be called silent for that.
    """

    __slots__ = (
        "_moved_at",
        "_pinged_at",
        "_pong_seconds",
        "_received",
        "_seen_at",
        "_stall_seconds",
        "_taken",
        "_ping_seconds",
    )

    def __init__(self, *, stall_seconds: float, ping_seconds: float, pong_seconds: float, now: float) -> None:
        self._stall_seconds = stall_seconds
        self._ping_seconds = ping_seconds
        self._pong_seconds = pong_seconds
        self._received = 0
        self._taken: int | None = None  # None: nothing has to be taken
        self._seen_at = self._moved_at = now
        self._pinged_at: float | None = None

    def look(self, now: float, *, received: int, reading: bool, blocked: bool, taken: int) -> Pulse:
        """Judge the leg.

        Args:
            now: the loop's time.
            received: frames received so far.
            reading: whether the leg is being read; while it is not, silence proves nothing.
            blocked: whether more waits to be written than the buffers should hold.
            taken: bytes that the peer has taken so far; any growth is progress, however slow the link.
        """
        if not blocked:
            self._taken, self._moved_at = None, now
        elif self._taken is None:
            self._taken = taken
        elif taken > self._taken:
            self._taken, self._moved_at = taken, now
        if now - self._moved_at > self._stall_seconds:
            return Pulse.STALLED
        if received != self._received or not reading:
            self._received, self._seen_at, self._pinged_at = received, now, None
            return Pulse.FINE
        if self._pinged_at is not None:
            return Pulse.SILENT if now - self._pinged_at > self._pong_seconds else Pulse.FINE
        if now - self._seen_at >= self._ping_seconds:
            self._pinged_at = now
            return Pulse.PING
        return Pulse.FINE
