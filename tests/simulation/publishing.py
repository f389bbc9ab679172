"""The messages that one node publishes, driven as fanout/publisher.py drives them, without a loop."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.envelope import Envelope
from fanout.core.holds import Holds
from fanout.core.outbox import Outbox, Outgoing, Step
from fanout.core.records import fingerprint, message_to_envelope, receipt_from_stored
from fanout.core.scripts import outgoing_args
from fanout.errors import BusTimeout, FanoutError, RegionUnreachable
from fanout.messages import Message, Receipt, Status

if TYPE_CHECKING:
    from tests.simulation.node import Node

Answer = Receipt | FanoutError


class Put:
    """A caller that waits."""

    __slots__ = ("is_over", "outgoing", "tell", "wait")

    def __init__(self, outgoing: Outgoing, wait: Status, tell: Callable[[Answer], None]) -> None:
        self.outgoing = outgoing
        self.wait = wait
        self.tell = tell
        self.is_over = False


class Line:
    """An outbox and who waits on it."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.puts: list[Put] = []
        self.asks_at = -1.0


class Publishing:
    """All of them."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        settings = node.scripts.settings
        self.holds = Holds(settings.hold_seconds, settings.holds_max, settings.holds_max_bytes)
        self.lines: dict[str, Line] = {}
        self._beats = False

    def put(
        self, call_id: str, tenant: str, message: Message, wait: Status, timeout: float, tell: Callable[[Answer], None]
    ) -> None:
        """As Publisher.put; the answer comes by `tell`."""
        line = self._line(call_id, tenant)
        outgoing = line.outbox.get(message.id)
        if outgoing is None:
            outgoing = self._outgoing(call_id, message)
            line.outbox.add(outgoing)
        outgoing.waiters += 1
        put = Put(outgoing, wait, tell)
        line.puts.append(put)
        self._node.later(self._node.world.now + timeout, self._time_out, line, put)
        self._look(line)

    def _outgoing(self, call_id: str, message: Message) -> Outgoing:
        envelope = message_to_envelope(
            msgspec.structs.replace(message, item_id=f"item_{message.id}"), call_id, self._node.name
        )
        packed, print_ = envelope.pack(), fingerprint(envelope)
        args = outgoing_args(
            call_id, message.id, print_, packed, f"item_{message.id}", wants_response=message.wants_response
        )
        return Outgoing(message.id, print_, args, len(packed), message.expires_at)

    def on_receipt(self, envelope: Envelope) -> None:
        """A reply on this node's channel."""
        line = self.lines.get(envelope.call)
        if line is not None and line.outbox.get(envelope.id) is not None:
            receipt = receipt_from_stored(envelope.call, envelope.id, envelope.body)
            self._node.facts.sent[receipt.id].tell(receipt)
            self._on_done(line, line.outbox.on_receipt(receipt, self._node.world.now))
            self._look(line)

    def on_new_server(self, tags: frozenset[str]) -> None:
        """Another Redis."""
        for line in self.lines.values():
            line.outbox.on_new_server()
        for held in self.holds.take(tags):
            line = self._line(held.outbox.call_id, held.outbox.tenant)
            line.outbox.add_again(held.outgoing, self._node.world.now)
        for line in list(self.lines.values()):
            self._look(line)

    def _line(self, call_id: str, tenant: str) -> Line:
        line = self.lines.get(call_id)
        if line is None:
            line = self.lines[call_id] = Line(Outbox(call_id, tenant, self._node.scripts))
        return line

    def _look(self, line: Line) -> None:
        """Tell who waits what is known, and see when there is something to publish."""
        now = self._node.world.now
        for put in list(line.puts):
            if put.outgoing.refusal is not None:
                self._tell(line, put, put.outgoing.refusal)
            elif put.outgoing.has_reached(put.wait) and put.outgoing.receipt is not None:
                self._tell(line, put, put.outgoing.receipt)
        if line.outbox.is_empty:
            return
        due = line.outbox.due(now)
        if due is None:
            return
        due = max(due, now)
        if not now <= line.asks_at <= due:
            line.asks_at = due
            self._node.later(due, self._ask, line, due)

    def _ask(self, line: Line, due: float) -> None:
        if line.asks_at != due:
            return
        node = self._node
        line.asks_at = -1.0
        line.outbox.expire(node.wall())
        step = line.outbox.step(node.world.now)
        if step is None:
            self._look(line)
            return
        if node.world.trace is not None:
            node.world.note(node.name, "publishes", step.outgoing.message_id, "after", step.run.args[5] or "-")
        node.link.run([step.run], partial(self._on_outcome, line, step))

    def _on_outcome(self, line: Line, step: Step, outcomes: list[Any]) -> None:
        world = self._node.world
        (outcome,) = outcomes
        if world.trace is not None:
            word = "unreachable" if isinstance(outcome, RegionUnreachable) else outcome[0].decode()
            world.note(self._node.name, "gets for", step.outgoing.message_id, word)
        done = line.outbox.on_outcome(step, outcome, world.now)
        if step.outgoing.receipt is not None:
            self._node.facts.sent[step.outgoing.message_id].tell(step.outgoing.receipt)
        self._on_done(line, done)
        self._look(line)

    def _on_done(self, line: Line, outgoing: Outgoing | None) -> None:
        if outgoing is None:
            return
        node = self._node
        if node.world.trace is not None and outgoing.receipt is not None:
            node.world.note(node.name, "knows the end of", outgoing.message_id, outgoing.receipt.status.value)
        self.holds.add(line.outbox, outgoing, node.world.now)
        if not self._beats:
            self._beats = True
            node.later(node.world.now + self.holds_seconds, self._beat)

    @property
    def holds_seconds(self) -> float:
        """How long a message is held."""
        return self._node.scripts.settings.hold_seconds

    def _beat(self) -> None:
        """As long as something is held: does Redis answer?"""
        if not self.holds:
            self._beats = False
            return
        self._node.link.run([self._node.beat()], self._on_beat)

    def _on_beat(self, outcomes: list[Any]) -> None:
        now = self._node.world.now
        if not isinstance(outcomes[0], RegionUnreachable):
            self.holds.release(now)
        self._node.later(now + self._node.scripts.settings.heartbeat_seconds, self._beat)

    def _time_out(self, line: Line, put: Put) -> None:
        if put.is_over:
            return
        outgoing = put.outgoing
        if outgoing.receipt is not None:
            self._tell(line, put, outgoing.receipt)
        elif outgoing.trouble is not None:
            self._tell(line, put, outgoing.trouble)
        elif outgoing.attempts:
            self._tell(line, put, RegionUnreachable("home"))
        else:
            self._tell(line, put, BusTimeout(line.outbox.call_id, outgoing.message_id))
        self._look(line)

    def _tell(self, line: Line, put: Put, answer: Answer) -> None:
        put.is_over = True
        line.puts.remove(put)
        outgoing = put.outgoing
        outgoing.waiters -= 1
        if not outgoing.waiters and outgoing.receipt is None and outgoing.refusal is None:
            line.outbox.give_up(outgoing)
        put.tell(answer)
