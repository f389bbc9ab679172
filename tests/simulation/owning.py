"""The calls of one node, driven as fanout/owner.py and fanout/owned.py drive them, without a loop."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from fanout.core.envelope import Envelope, Look, Ring, unpack_ring
from fanout.core.inbox import Entry, Position
from fanout.core.ownership import Ownership
from fanout.core.phases import Expected, Phase, Step
from fanout.core.records import message_from_envelope
from fanout.errors import RegionUnreachable
from fanout.messages import CallRecord, Message, Status, Tombstone
from tests.simulation.facts import Yielded
from tests.simulation.noting import Noting
from tests.simulation.session import Session

if TYPE_CHECKING:
    from tests.simulation.client import Client
    from tests.simulation.node import Node


def _readable(packed: bytes) -> Message:
    return message_from_envelope(Envelope.unpack(packed, max_bytes=1 << 20))


def _read_entry(entry_id: str, message_id: str, packed: bytes) -> Entry:
    return Entry(entry_id, message_id, _readable(packed))


class Owned:
    """One call at one node."""

    def __init__(self, node: "Node", agenda: "Owning", record: CallRecord, client: "Client", expected: Expected | None):
        self.node = node
        self.node_name = node.name
        self.record = record
        self.client: Client | None = client
        self.protocol = Ownership(
            record,
            node.scripts,
            new_claim=node.new_claim,
            read_entry=_read_entry,
            expected=expected,
            is_noted=lambda: self.noting.chronicle.is_written,
        )
        self.noting = Noting(node, self.protocol, lambda: agenda.look(self), is_taken=expected is not None)
        self.expected = expected
        self.session = Session(node.world, node.facts, self, refuses=node.refuses)
        self.is_registered = False
        self.is_subscribed = False
        self.asks_at = -1.0  # when it next asks; -1 for never
        self.not_before = 0.0
        self.failures = 0
        self._agenda = agenda

    def later(self, when: float, act: Callable[..., None], *args: Any) -> None:
        """See `Place`."""
        self.node.later(when, act, *args)

    def wall(self) -> float:
        """See `Place`."""
        return self.node.wall()

    def settle(self, message_id: str, status: Status, **details: Any) -> None:
        """See `Place`."""
        if self.protocol.settle(message_id, status, self.wall(), **details):
            if self.node.world.trace is not None:
                self.node.world.note(self.node_name, "says", message_id, status.value)
            self._agenda.look(self)

    def note(self, name: str, value: bytes | None) -> None:
        """See `Place`."""
        self.noting.note(name, value)

    def hand_over(self) -> None:
        """The node wants to be rid of the call."""
        if self.protocol.hand_over():
            self.node.world.note(self.node_name, "hands over", self.record.id)
            self.session.close()
            self.noting.chronicle.leave()
            self.noting.on_changed()
            self._agenda.look(self)

    def on_outcomes(self, steps: list[Step], outcomes: list[Any]) -> None:
        """As in OwnedCall."""
        protocol, restores, world = self.protocol, self.protocol.restores, self.node.world
        messages = protocol.on_outcomes(steps, outcomes, world.now, self.wall())
        if protocol.known is not None:
            self.noting.begin(protocol.known)
            protocol.known = None
            if self.expected is not None and not self.expected.claim:
                self.node.facts.compare_with_handed(self.record.id, self.expected.epoch, self.noting.facts)
        if protocol.restores != restores:
            self.noting.on_lost()
        if protocol.phase is Phase.HANDED_OVER:
            self.node.facts.handed[self.record.id, protocol.epoch] = self.noting.facts
        self.give(messages)

    def end(self, tombstone: Tombstone) -> None:
        """The call is over."""
        if self.protocol.end(tombstone, self.wall()):
            self.session.close()
            self._agenda.look(self)

    def give(self, messages: list[Message]) -> None:
        """Deliver, in order."""
        for message in messages:
            if self.protocol.phase is not Phase.HELD:
                break
            if self.node.world.trace is not None:
                self.node.world.note(self.node_name, "delivers", message.id)
            self.session.deliver(message)
        self._agenda.look(self)


class Owning:
    """All of them."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._settings = node.scripts.settings
        self.by_id: dict[str, Owned] = {}
        self.by_channel: dict[str, Owned] = {}
        self.kept: dict[Owned, float] = {}

    def own(self, record: CallRecord, client: "Client", expected: Expected | None = None) -> Owned:
        """Take a call."""
        call = Owned(self._node, self, record, client, expected)
        self.by_id[record.id] = call
        self.by_channel[call.protocol.keys.channel] = call
        self._node.link.subscribe([call.protocol.keys.channel])
        if expected is None:
            call.session.build()
        self.look(call)
        return call

    def on_bell(self, channel: str, payload: bytes) -> None:
        """A ring on a call's channel."""
        call = self.by_channel.get(channel)
        if call is None:
            return
        bell = unpack_ring(payload, max_bytes=1 << 20)
        if isinstance(bell, Ring | Look):
            call.protocol.ask_refresh()
            self.look(call)
            return
        entry = Entry(bell.entry_id, bell.message_id, _readable(bell.envelope) if bell.envelope else None)
        previous = Position(bell.previous_entry_id, bell.previous_message_id)
        call.give(call.protocol.on_bell(entry, previous, self._node.wall()))

    def on_subscribed(self, channel: str) -> None:
        """A call's channel was acknowledged."""
        call = self.by_channel.get(channel)
        if call is not None:
            call.is_subscribed = True
            call.protocol.on_subscribed()
            self.look(call)

    def on_new_server(self) -> None:
        """Another Redis: each call is told in its turn, which with thousands of calls comes a little later."""
        world = self._node.world
        for call in (*self.by_id.values(), *self.kept):
            self._node.later(world.now + world.random.choice((0.0, 0.0, 0.05)), self._introduce, call)

    def _introduce(self, call: Owned) -> None:
        call.protocol.on_new_server()
        call.noting.on_lost()
        self.look(call)

    def sweep(self) -> None:
        """Look at every call; forget what was kept long enough."""
        for call in list(self.by_id.values()):
            call.protocol.ask_refresh()
            self.look(call)
        now = self._node.world.now
        for call in [call for call, until in self.kept.items() if until <= now and call.protocol.is_kept_only]:
            del self.kept[call]

    def look(self, call: Owned) -> None:
        """What the call's state means here, and when it has something to ask."""
        protocol, world = call.protocol, self._node.world
        if protocol.is_held and call.is_subscribed and not call.is_registered:
            call.is_registered = True
            if call.session.leg == 0:
                call.session.build()
            if call.client is not None:
                call.client.on_registered(call)
        call.noting.on_changed()
        if protocol.phase in {Phase.ENDING, Phase.HANDING_OVER}:
            self._leave(call)
        elif protocol.is_kept_only:
            self._on_over(call)
        if protocol.is_bell_unheard:
            protocol.is_bell_unheard = False
            self._node.link.subscribe([protocol.keys.channel])
        due = protocol.due(world.now)
        if due is None:
            return
        due = max(due, call.not_before, world.now)
        if not world.now <= call.asks_at <= due:
            call.asks_at = due
            self._node.later(due, self._ask, call, due)

    def _leave(self, call: Owned) -> None:
        if call.protocol.phase not in {Phase.HANDING_OVER, Phase.HANDED_OVER}:
            call.noting.chronicle.close()
        channel = call.protocol.keys.channel
        if self.by_channel.get(channel) is call:
            del self.by_channel[channel]
            self._node.link.unsubscribe(channel)

    def _on_over(self, call: Owned) -> None:
        self._leave(call)
        if call in self.kept:
            return
        protocol, node = call.protocol, self._node
        node.world.note(node.name, "is done with", call.record.id, protocol.phase.value, protocol.refusal)
        if self.by_id.get(call.record.id) is call:
            del self.by_id[call.record.id]
        self.kept[call] = node.world.now + self._settings.keep_seconds
        call.session.close()
        if protocol.phase is Phase.LOST:
            node.facts.yielded.append(
                Yielded(protocol.keys.call, node.name, protocol.epoch, protocol.claim, protocol.refusal)
            )
            if call.client is not None:
                call.client.on_lost(call)

    def _ask(self, call: Owned, due: float) -> None:
        if call.asks_at != due:
            return  # it was sooner
        world = self._node.world
        call.asks_at = -1.0
        steps = call.protocol.steps(world.now, self._node.wall())
        if steps:
            if world.trace is not None:
                world.note(self._node.name, "asks", " ".join(step.kind for step in steps))
            self._node.link.run([step.run for step in steps], partial(self._on_outcomes, call, steps))

    def _on_outcomes(self, call: Owned, steps: list[Step], outcomes: list[Any]) -> None:
        world, settings = self._node.world, self._settings
        if world.trace is not None:
            words = ["-" if isinstance(one, RegionUnreachable) else one[0].decode() for one in outcomes]
            world.note(self._node.name, "gets", *(f"{s.kind}={w}" for s, w in zip(steps, words, strict=True)))
        if all(isinstance(outcome, RegionUnreachable) for outcome in outcomes):
            longest = min(settings.backoff_max_seconds, settings.backoff_seconds * 2**call.failures)
            call.not_before = world.now + world.between(0, longest)  # another worker may take it at once
            call.failures += 1
        else:
            call.not_before, call.failures = 0.0, 0
        call.on_outcomes(steps, outcomes)
