"""The facts of one call at one node, written as fanout/chronicler.py writes them, without a loop."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fanout.core.chronicle import Chronicle
from fanout.core.ownership import Ownership
from fanout.core.phases import Phase
from fanout.errors import RegionUnreachable

if TYPE_CHECKING:
    from tests.simulation.node import Node


class Noting:
    """`look` is called where the call itself may have something to do."""

    def __init__(self, node: "Node", protocol: Ownership, look: Callable[[], None], *, is_taken: bool) -> None:
        self.chronicle = Chronicle(protocol.keys, node.scripts, is_taken=is_taken)
        self._node = node
        self._protocol = protocol
        self._look = look
        self._asks_at = -1.0
        self._not_before = 0.0
        self._failures = 0

    @property
    def facts(self) -> dict[str, bytes]:
        """As they are here."""
        return dict(sorted(self.chronicle._facts.items()))

    def note(self, name: str, value: bytes | None) -> None:
        """See `OwnedCall.note`."""
        self.chronicle.note(name, value, self._node.world.now)
        self.on_changed()

    def begin(self, known: list[bytes]) -> None:
        """What came with a take-over."""
        values = {name.decode(): value for name, value in zip(known[::2], known[1::2], strict=True)}
        self.chronicle.begin(values, self._node.world.now)

    def on_lost(self) -> None:
        """Redis may lack them."""
        self.chronicle.on_lost(self._node.world.now)
        self.on_changed()

    def on_changed(self) -> None:
        """Look when there is something to write."""
        now = self._node.world.now
        due = self.chronicle.due(now, can_write=self._protocol.may_write)
        if due is None:
            return
        due = max(due, self._not_before, now)
        if not now <= self._asks_at <= due:
            self._asks_at = due
            self._node.later(due, self._flush, due)

    def _flush(self, due: float) -> None:
        if self._asks_at != due:
            return  # it was sooner
        self._asks_at = -1.0
        protocol, now = self._protocol, self._node.world.now
        run = self.chronicle.flush(now, protocol.epoch, protocol.claim) if protocol.may_write else None
        if run is None:
            self.on_changed()
        else:
            self._node.link.run([run], self._on_outcome)

    def _on_outcome(self, outcomes: list[Any]) -> None:
        (outcome,) = outcomes
        world, settings = self._node.world, self._node.scripts.settings
        self.chronicle.on_outcome(outcome, world.now)
        if isinstance(outcome, RegionUnreachable):
            longest = min(settings.backoff_max_seconds, settings.backoff_seconds * 2**self._failures)
            self._not_before = world.now + world.between(0, longest)
            self._failures += 1
        else:
            self._not_before, self._failures = 0.0, 0
            if outcome[0] != b"held":
                self._protocol.ask_refresh()
                self._look()
            elif self._protocol.phase is Phase.HANDING_OVER:
                self._look()
        self.on_changed()
