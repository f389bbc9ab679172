"""Puts messages into calls of one region, from this node: publish, wait for the receipt to climb, repeat until it does.

One message at a time is under way per call, until the owner has it: that keeps this publisher's order. A message goes
on being repeated after its caller stopped waiting, as long as it is accepted, not delivered, and not past its deadline.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
import structlog

from fanout.core.envelope import Envelope, EnvelopeError
from fanout.core.keys import Keys
from fanout.core.records import fingerprint, message_to_envelope, receipt_from_stored, tombstone_from_stored
from fanout.errors import (
    BusFull,
    BusTimeout,
    CallEnded,
    CallNotFound,
    CallNotStarted,
    FanoutError,
    IdempotencyConflict,
    InboxFull,
    MessageTooLarge,
    RegionUnreachable,
)
from fanout.ids import item_id_for
from fanout.link import Link, Run, Script
from fanout.messages import Message, Receipt, Status
from fanout.settings import BusSettings
from fanout.tasks import Backoff, Tasks

_log = structlog.get_logger("fanout")
_PUBLISH = Script("publish")


class _Outgoing:
    """A message under way, and what is known of it."""

    def __init__(self, call_id: str, message_id: str, run: Run, size: int) -> None:
        self.key = (call_id, message_id)
        self.run = run
        self.size = size
        self.receipt: Receipt | None = None
        self.refusal: FanoutError | None = None
        self.is_tried = False
        self.is_awaited = True
        self._changed = asyncio.Event()

    def on_receipt(self, receipt: Receipt) -> None:
        """A reply; replies may come twice and out of order, so only a step up counts."""
        if self.receipt is None or receipt.status.rank > self.receipt.status.rank:
            self.receipt = receipt
            self._wake()

    def refuse(self, refusal: FanoutError) -> None:
        """Nothing was written, and nothing will be."""
        self.refusal = refusal
        self._wake()

    def has_reached(self, status: Status) -> bool:
        """Whether the receipt is there, or whatever ended first."""
        return self.receipt is not None and self.receipt.has_reached(status)

    async def wait_changed(self) -> None:
        """Until something new is known."""
        await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed.clear()


@dataclass
class _Turn:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # first come, first served
    users: int = 0


class Publisher:
    """This node's way into the calls of one region."""

    def __init__(
        self, link: Link, keys: Keys, settings: BusSettings, *, clock: Callable[[], float], tasks: Tasks
    ) -> None:
        self._link = link
        self._keys = keys
        self._settings = settings
        self._clock = clock
        self._tasks = tasks
        self._outgoing: dict[tuple[str, str], list[_Outgoing]] = {}
        self._turns: dict[str, _Turn] = {}
        self._items = 0
        self._bytes = 0
        self._unreadable = 0
        self.published = 0
        self.repeated = 0

    @property
    def counts(self) -> dict[str, int]:
        """What is under way and what went out."""
        return {
            "outgoing": self._items,
            "outgoing_bytes": self._bytes,
            "published": self.published,
            "repeated": self.repeated,
            "unreadable_receipts": self._unreadable,
        }

    async def put(self, call_id: str, tenant: str, message: Message, *, wait: Status, timeout: float) -> Receipt:
        """See `Fanout.put`."""
        outgoing = self._outgoing_for(call_id, tenant, message)
        task = self._tasks.start(self._carry(outgoing, message.expires_at), name=f"put {message.id}")
        try:
            async with asyncio.timeout(timeout):
                while outgoing.refusal is None and not outgoing.has_reached(wait):
                    await outgoing.wait_changed()
        except TimeoutError:
            pass
        finally:
            outgoing.is_awaited = False
            if outgoing.receipt is None or outgoing.has_reached(Status.DELIVERED):
                task.cancel()
        if outgoing.refusal is not None:
            raise outgoing.refusal
        if outgoing.receipt is not None:
            return outgoing.receipt
        if outgoing.is_tried:
            raise RegionUnreachable(self._link.region)
        raise BusTimeout(call_id, message.id)

    def on_receipt(self, envelope: Envelope) -> None:
        """A reply on this node's channel."""
        waiting = self._outgoing.get((envelope.call, envelope.id))
        if not waiting:
            return
        try:
            receipt = receipt_from_stored(envelope.call, envelope.id, envelope.body)
        except EnvelopeError as exc:
            self._unreadable += 1
            if self._unreadable == 1:
                _log.warning("unreadable_receipt", call=envelope.call, error=str(exc))
            return
        for outgoing in waiting:
            outgoing.on_receipt(receipt)

    def _outgoing_for(self, call_id: str, tenant: str, message: Message) -> _Outgoing:
        settings = self._settings
        item_id = message.item_id or item_id_for(call_id, message.id)
        envelope = message_to_envelope(msgspec.structs.replace(message, item_id=item_id), call_id, settings.node)
        packed = envelope.pack()
        if len(packed) > settings.message_max_bytes:
            raise MessageTooLarge(len(packed), settings.message_max_bytes)
        if self._items >= settings.outgoing_max or self._bytes + len(packed) > settings.outgoing_max_bytes:
            raise BusFull(self._items, self._bytes)
        keys = self._keys.call(call_id)
        run = Run(
            _PUBLISH,
            (keys.call, keys.inbox, keys.receipts, keys.tombstone, keys.channel),
            (
                call_id,
                tenant,
                message.id,
                fingerprint(envelope),
                packed,
                item_id,
                int(message.wants_response),
                settings.node,
                settings.region,
                self._keys.node_channel(settings.node),
                settings.inbox_max,
                settings.inbox_max_bytes,
                int(settings.call_ttl_seconds * 1000),
            ),
        )
        return _Outgoing(call_id, message.id, run, len(packed))

    async def _carry(self, outgoing: _Outgoing, expires_at: float) -> None:
        """The message's whole way, from its turn to its end or to nobody's caring any more."""
        self._items += 1
        self._bytes += outgoing.size
        self._outgoing.setdefault(outgoing.key, []).append(outgoing)
        try:
            async with self._turn(outgoing.key[0]):
                await self._accept(outgoing)
                async with _no_longer_than(self._settings.in_flight_seconds):
                    await self._follow(outgoing, lambda: outgoing.has_reached(Status.DELIVERED))
            async with _no_longer_than(max(0.0, expires_at - self._clock())):
                await self._follow(outgoing, lambda: outgoing.has_reached(Status.DELIVERED))
            await self._follow(outgoing, lambda: not outgoing.is_awaited or outgoing.has_reached(Status.ANSWERED))
        finally:
            self._items -= 1
            self._bytes -= outgoing.size
            siblings = self._outgoing[outgoing.key]
            siblings.remove(outgoing)
            if not siblings:
                del self._outgoing[outgoing.key]

    async def _accept(self, outgoing: _Outgoing) -> None:
        """Publish until Redis answers; the caller's timeout is the end of it."""
        backoff = Backoff(self._settings.backoff_seconds, self._settings.backoff_max_seconds)
        while outgoing.receipt is None and outgoing.refusal is None:
            try:
                self.published += 1
                await self._publish(outgoing)
            except RegionUnreachable:
                await backoff.wait()
            except FanoutError as refusal:
                outgoing.refuse(refusal)

    async def _follow(self, outgoing: _Outgoing, is_done: Callable[[], bool]) -> None:
        """Until done: wait for replies, and repeat now and then, since a reply or the ring may have been lost."""
        pause = self._settings.repeat_seconds
        while outgoing.refusal is None and not is_done():
            try:
                async with asyncio.timeout(pause):
                    await outgoing.wait_changed()
            except TimeoutError:
                pause = min(pause * 2, self._settings.repeat_max_seconds)
                self.repeated += 1
                try:
                    await self._publish(outgoing)
                except FanoutError:
                    # Accepted before: a refusal now means that Redis is away, or that it lost the call and its owner
                    # has not yet restored it.
                    continue

    async def _publish(self, outgoing: _Outgoing) -> None:
        call_id, message_id = outgoing.key
        outgoing.is_tried = True
        answer, *detail = await self._link.run(outgoing.run)
        match answer:
            case b"receipt":
                outgoing.on_receipt(receipt_from_stored(call_id, message_id, detail[0]))
            case b"ended":
                raise CallEnded(tombstone_from_stored(detail[0]))
            case b"reserved":
                raise CallNotStarted(call_id)
            case b"conflict":
                raise IdempotencyConflict(call_id, message_id)
            case b"full":
                raise InboxFull(call_id)
            case _:
                raise CallNotFound(call_id)

    @asynccontextmanager
    async def _turn(self, call_id: str) -> AsyncIterator[None]:
        turn = self._turns.setdefault(call_id, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[call_id]


@asynccontextmanager
async def _no_longer_than(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        pass
