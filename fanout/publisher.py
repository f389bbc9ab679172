"""Puts messages into calls of one home, from this node: what to publish and when again is core/outbox.py's decision.

One task per call that has messages under way carries them out. A message goes on after its caller stopped waiting,
until it has its end; and is kept a while longer, since a Redis that takes over may not know of it.
"""

import asyncio
from collections.abc import Callable
from dataclasses import asdict

import msgspec
import structlog

from fanout.core.circuit import Circuit
from fanout.core.envelope import Envelope, EnvelopeError
from fanout.core.holds import Holds
from fanout.core.outbox import Outbox, OutboxCounts, Outgoing
from fanout.core.records import fingerprint, message_to_envelope, receipt_from_stored
from fanout.core.scripts import Scripts, outgoing_args
from fanout.errors import BusFull, BusTimeout, IdempotencyConflict, MessageTooLarge, RegionUnreachable
from fanout.ids import item_id_for
from fanout.messages import Message, Receipt, Status
from fanout.store import Store
from fanout.tasks import Signal, Tasks

_log = structlog.get_logger("fanout")


class _Line(Signal):
    """An outbox and who waits on it, woken when something new is known or to be done."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__()
        self.outbox = outbox
        self.is_carried = False


class Publisher:
    """This node's way into the calls of one region or shard."""

    def __init__(
        self, store: Store, scripts: Scripts, circuit: Circuit, *, clock: Callable[[], float], tasks: Tasks
    ) -> None:
        settings = scripts.settings
        self._store = store
        self._scripts = scripts
        self._settings = settings
        self._circuit = circuit
        self._clock = clock
        self._tasks = tasks
        self._lines: dict[tuple[str, str], _Line] = {}
        self._by_call: dict[str, list[_Line]] = {}
        self._holds = Holds(settings.hold_seconds, settings.holds_max, settings.holds_max_bytes)
        self._under_way: set[Outgoing] = set()
        self._bytes = 0
        self._unreadable = 0
        self._counts = OutboxCounts()

    @property
    def counts(self) -> dict[str, int]:
        """What is under way and what went out."""
        return {
            "outgoing": len(self._under_way),
            "outgoing_bytes": self._bytes,
            "outgoing_held": len(self._holds),
            "holds_dropped": self._holds.dropped,
            **asdict(self._counts),
            "unreadable_receipts": self._unreadable,
        }

    async def put(self, call_id: str, tenant: str, message: Message, *, wait: Status, timeout: float) -> Receipt:
        """See `Fanout.put`."""
        line, outgoing = self._add(call_id, tenant, message)
        try:
            async with asyncio.timeout(timeout):
                while outgoing.refusal is None and not outgoing.has_reached(wait):
                    await line.wait(None)
        except TimeoutError:
            pass
        finally:
            outgoing.waiters -= 1
            if not outgoing.waiters and outgoing.receipt is None and outgoing.refusal is None:
                line.outbox.give_up(outgoing)
                self._leave(outgoing)
                line.wake()
        if outgoing.refusal is not None:
            raise outgoing.refusal
        if outgoing.receipt is not None:
            return outgoing.receipt
        if outgoing.trouble is not None:
            raise outgoing.trouble
        if outgoing.attempts:
            raise RegionUnreachable(self._store.name)
        raise BusTimeout(call_id, message.id)

    def on_receipt(self, envelope: Envelope) -> None:
        """A reply on this node's channel."""
        lines = self._by_call.get(envelope.call, ())
        waiting = [line for line in lines if line.outbox.get(envelope.id) is not None]
        if not waiting:
            return
        try:
            receipt = receipt_from_stored(envelope.call, envelope.id, envelope.body)
        except EnvelopeError as exc:
            self._unreadable += 1
            if self._unreadable == 1:
                _log.warning("unreadable_receipt", call=envelope.call, error=str(exc))
            return
        for line in waiting:
            self._on_done(line, line.outbox.on_receipt(receipt, self._now()))
            line.wake()

    def on_new_server(self, tags: frozenset[str]) -> None:
        """Another Redis serves these partitions: what it may have lost is published once more."""
        for line in self._lines.values():
            if line.outbox.tag in tags:
                line.outbox.on_new_server()
                line.wake()
        for held in self._holds.take(tags):
            line = self._line(held.outbox.call_id, held.outbox.tenant)
            if line.outbox.add_again(held.outgoing, self._now()):
                self._enter(held.outgoing)
            self._carry(line)

    def on_beat(self) -> None:
        """Redis answered: what was held long enough is on its replicas."""
        self._holds.release(self._now())

    def _add(self, call_id: str, tenant: str, message: Message) -> tuple[_Line, Outgoing]:
        settings = self._settings
        item_id = message.item_id or item_id_for(call_id, message.id)
        envelope = message_to_envelope(msgspec.structs.replace(message, item_id=item_id), call_id, settings.node)
        packed, print_ = envelope.pack(), fingerprint(envelope)
        if len(packed) > settings.message_max_bytes:
            raise MessageTooLarge(len(packed), settings.message_max_bytes)
        line = self._lines.get((call_id, tenant))
        known = line.outbox.get(message.id) if line else None
        if line is not None and known is not None:
            if known.fingerprint != print_:
                raise IdempotencyConflict(call_id, message.id)
            known.waiters += 1
            return line, known
        if self._circuit.is_open(self._now()):
            raise RegionUnreachable(self._store.name)
        items = len(self._under_way)
        if items >= settings.outgoing_max or self._bytes + len(packed) > settings.outgoing_max_bytes:
            raise BusFull(items, self._bytes)
        args = outgoing_args(call_id, message.id, print_, packed, item_id, wants_response=message.wants_response)
        outgoing = Outgoing(message.id, print_, args, len(packed), message.expires_at, waiters=1)
        line = self._line(call_id, tenant)
        line.outbox.add(outgoing)
        self._enter(outgoing)
        self._carry(line)
        return line, outgoing

    def _line(self, call_id: str, tenant: str) -> _Line:
        line = self._lines.get((call_id, tenant))
        if line is None:
            line = self._lines[call_id, tenant] = _Line(Outbox(call_id, tenant, self._scripts, self._counts))
            self._by_call.setdefault(call_id, []).append(line)
        return line

    def _carry(self, line: _Line) -> None:
        if not line.is_carried:
            line.is_carried = True
            self._tasks.start(self._work(line), name=f"outbox {line.outbox.call_id}")
        line.wake()

    async def _work(self, line: _Line) -> None:
        """Carry out what the outbox decides, until it is empty."""
        outbox = line.outbox
        try:
            while not outbox.is_empty:
                step = outbox.step(self._now())
                if step is None:
                    due = outbox.due(self._now())
                    await line.wait(None if due is None else max(0.0, due - self._now()))
                    for outgoing in outbox.expire(self._clock()):
                        self._leave(outgoing)
                    continue
                (outcome,) = await self._store.run([step.run])
                done = outbox.on_outcome(step, outcome, self._now())
                if step.outgoing.refusal is not None:
                    self._leave(step.outgoing)
                self._on_done(line, done)
                line.wake()
        finally:
            line.is_carried = False
            self._drop(line)

    def _drop(self, line: _Line) -> None:
        outbox = line.outbox
        del self._lines[outbox.call_id, outbox.tenant]
        siblings = self._by_call[outbox.call_id]
        siblings.remove(line)
        if not siblings:
            del self._by_call[outbox.call_id]

    def _on_done(self, line: _Line, outgoing: Outgoing | None) -> None:
        if outgoing is not None:
            self._leave(outgoing)
            self._holds.add(line.outbox, outgoing, self._now())

    def _enter(self, outgoing: Outgoing) -> None:
        self._under_way.add(outgoing)
        self._bytes += outgoing.size

    def _leave(self, outgoing: Outgoing) -> None:
        if outgoing in self._under_way:
            self._under_way.discard(outgoing)
            self._bytes -= outgoing.size

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
