"""Keeps Redis in step with the calls that this node owns: claims, reads, verdicts, ends, and the sweep over all.

One task per region writes everything, in batches and in this order, so that per call a claim comes before a verdict and
a verdict before the end. While Redis is away it all waits here, bounded by what calls there are; no session notices.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterable
from itertools import islice

import structlog

from fanout.core.envelope import Bell, EnvelopeError
from fanout.core.inbox import Position, Verdict
from fanout.core.keys import Keys
from fanout.core.records import tombstone_from_stored
from fanout.errors import RegionUnreachable
from fanout.link import Link
from fanout.messages import CallRecord, Message, Tombstone
from fanout.owned import OwnedCall
from fanout.owner_scripts import call_ttl_ms, claim, end, read, refresh, settle
from fanout.settings import BusSettings
from fanout.subscriber import Subscriber
from fanout.tasks import Backoff

_log = structlog.get_logger("fanout")

_BATCH = 200  # calls in one go: a few milliseconds of the loop and of Redis
_BELL_OVERHEAD = 1024  # of ids around the largest message
_VERDICTS = 1000  # about as much, for calls with many verdicts after Redis lost them


class Owner:
    """The calls of this node whose home is one region."""

    def __init__(
        self, link: Link, keys: Keys, settings: BusSettings, *, clock: Callable[[], float], subscriber: Subscriber
    ) -> None:
        self._link = link
        self._keys = keys
        self._settings = settings
        self._clock = clock
        self._subscriber = subscriber
        self._by_id: dict[str, OwnedCall] = {}
        self._by_channel: dict[str, OwnedCall] = {}
        # Ordered sets of what is to be done; a call leaves one only when Redis has answered.
        self._unclaimed: dict[OwnedCall, None] = {}
        self._unread: dict[OwnedCall, None] = {}
        self._unwritten: dict[OwnedCall, None] = {}
        self._ending: dict[OwnedCall, None] = {}
        self._wake = asyncio.Event()
        self._written = asyncio.Event()
        self._sweep_at = 0.0
        self.lost = 0
        self.endings_dropped = 0
        self.unreadable = 0
        self.delivered = 0  # of calls that are gone
        self.gaps = 0

    # -- for the node

    def own(self, record: CallRecord, deliver: Callable[[Message], None]) -> OwnedCall:
        """Take a call; the claim and the subscription follow as soon as Redis allows."""
        if record.id in self._by_id:
            raise ValueError(f"{record.id} is owned here already")
        call = OwnedCall(
            record,
            deliver,
            keys=self._keys.call(record.id),
            claim=secrets.token_hex(12),
            agenda=self,
            clock=self._clock,
            message_max_bytes=self._settings.message_max_bytes,
        )
        self._by_id[call.id] = call
        self._by_channel[call.keys.channel] = call
        self._unclaimed[call] = None
        self._subscriber.want(call.keys.channel)
        self._wake.set()
        return call

    def on_bell(self, channel: str, data: bytes) -> None:
        """A ring on a call's channel."""
        call = self._by_channel.get(channel)
        if call is None:
            return  # it ended while the ring was under way
        try:
            bell = Bell.unpack(data, max_bytes=self._settings.message_max_bytes + _BELL_OVERHEAD)
        except EnvelopeError as exc:
            self.on_unreadable(str(exc))
            return
        call.on_bell(bell)

    def on_subscribed(self, channel: str) -> None:
        """A channel was acknowledged: what rang before is in the stream only."""
        call = self._by_channel.get(channel)
        if call is not None:
            call.is_subscribed = True
            call.inbox.ask_read()
            self.on_unread(call)
            self._note_registered(call)

    def on_reconnected(self) -> None:
        """Redis may be another one now: look at every call at once instead of at the next sweep."""
        self._sweep_at = 0.0
        self._wake.set()

    @property
    def counts(self) -> dict[str, int]:
        """What is owned and what waits for Redis."""
        return {
            "owned": len(self._by_id),
            "unregistered": sum(not call.is_registered for call in self._by_id.values()),
            "unwritten": len(self._unwritten),
            "ending": len(self._ending),
            "lost": self.lost,
            "endings_dropped": self.endings_dropped,
            "delivered": self.delivered + sum(call.delivered for call in self._by_id.values()),
            "gaps": self.gaps + sum(call.inbox.gaps for call in self._by_id.values()),
            "unreadable": self.unreadable,
        }

    # -- Agenda, for the calls

    def on_unwritten(self, call: OwnedCall) -> None:
        """There are verdicts to write."""
        self._unwritten[call] = None
        self._wake.set()

    def on_unread(self, call: OwnedCall) -> None:
        """The stream is to be read."""
        self._unread[call] = None
        self._wake.set()

    def on_ending(self, call: OwnedCall) -> None:
        """The tombstone is to be written."""
        self._subscriber.unwant(call.keys.channel)
        self._by_channel.pop(call.keys.channel, None)
        self._unclaimed.pop(call, None)
        self._unread.pop(call, None)
        if call.inbox.has_unwritten:
            self._unwritten[call] = None
        self._ending[call] = None
        if len(self._ending) > self._settings.endings_max:
            self.endings_dropped += 1
            self._forget(next(iter(self._ending)))
        call.changed()
        self._wake.set()

    def on_unreadable(self, error: str) -> None:
        """A bell or message of another version, or no message at all: counted, and said once."""
        self.unreadable += 1
        if self.unreadable == 1:
            _log.warning("unreadable_message", region=self._link.region, error=error)

    # -- the task

    async def work(self) -> None:
        """Do what is to be done, for ever."""
        backoff = Backoff(self._settings.backoff_seconds, self._settings.backoff_max_seconds)
        while True:
            try:
                await self.write()
            except RegionUnreachable:
                await backoff.wait()
            else:
                backoff.reset()
                await self._wait_for_work()

    async def write(self) -> None:
        """Everything that is due; raises RegionUnreachable with the rest still to be done."""
        done = False
        try:
            self._wake.clear()
            await self._claim()
            await self._read()
            await self._settle()
            await self._end()
            if asyncio.get_running_loop().time() >= self._sweep_at:
                await self._sweep()
            done = True
            self._written.set()
            self._written.clear()
        finally:
            if not done:
                self._wake.set()

    async def wait_written(self) -> None:
        """Until something more was written."""
        await self._written.wait()

    @property
    def is_idle(self) -> bool:
        """Nothing is left that somebody would miss."""
        return not self._unwritten and not self._ending

    async def _wait_for_work(self) -> None:
        try:
            async with asyncio.timeout_at(self._sweep_at):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _batch(self, of: Iterable[OwnedCall]) -> list[OwnedCall]:
        """The oldest of them; if there may be more, the task comes round again."""
        batch = list(islice(of, _BATCH))
        if len(batch) == _BATCH:
            self._wake.set()
        return batch

    async def _claim(self) -> None:
        batch = self._batch(self._unclaimed)
        if not batch:
            return
        answers = await self._link.run_many([claim(call, self._settings) for call in batch])
        held: list[OwnedCall] = []
        for call, (answer, *detail) in zip(batch, answers, strict=True):
            if answer == b"held":
                self._on_held(call, int(detail[0]))
                held.append(call)
            else:
                self._lose(call, tombstone_from_stored(detail[0]) if answer == b"ended" else None)
        await self._index(held)
        for call in held:
            self._unclaimed.pop(call, None)
            self._note_registered(call)

    def _on_held(self, call: OwnedCall, epoch: int) -> None:
        if call.epoch:
            call.inbox.rewrite()  # the record was gone, so the rest may be, too
        call.epoch = epoch
        if call.tombstone is None:
            self._unread[call] = None
        if call.inbox.has_unwritten:
            self._unwritten[call] = None

    async def _index(self, calls: list[OwnedCall]) -> None:
        """The tenant's list of live calls: for people to read, so it may lag; each sweep writes it again."""
        if not calls:
            return
        keys = {self._keys.tenant_calls(call.record.tenant) for call in calls}
        await self._link.commands(
            [("ZADD", self._keys.tenant_calls(c.record.tenant), c.record.started_at, c.id) for c in calls]
            + [("PEXPIRE", key, call_ttl_ms(self._settings)) for key in keys]
        )

    async def _read(self) -> None:
        batch = [call for call in self._batch(self._unread) if call.epoch]
        if not batch:
            return
        tickets = [call.inbox.begin_read() for call in batch]
        answers = await self._link.run_many([read(call, self._settings) for call in batch])
        for call, ticket, (last_entry, last_message, entries) in zip(batch, tickets, answers, strict=True):
            if call.tombstone is None and not call.is_lost:
                last = Position(last_entry.decode(), last_message.decode())
                call.on_entries([(e[0].decode(), e[1][1].decode(), e[1][3]) for e in entries], last, ticket)
            if not call.inbox.needs_read:
                self._unread.pop(call, None)

    async def _settle(self) -> None:
        todo: list[tuple[OwnedCall, str, Verdict]] = []
        for call in self._batch(self._unwritten):
            if call.epoch and call not in self._unclaimed:
                todo += [(call, message_id, verdict) for message_id, verdict in call.inbox.unwritten()]
            if len(todo) >= _VERDICTS:
                self._wake.set()
                break
        if not todo:
            return
        said = [verdict.status for _, _, verdict in todo]  # more may be said while Redis answers
        answers = await self._link.run_many([settle(*one, self._settings) for one in todo])
        for (call, message_id, _), status, (answer,) in zip(todo, said, answers, strict=True):
            match answer:
                case b"held":
                    call.inbox.on_written(message_id, status)
                case b"missing" | b"behind":
                    self._unclaimed[call] = None
                    self._wake.set()
                case _:
                    self._lose(call, None)
        for call in {call: None for call, _, _ in todo}:
            if not call.inbox.has_unwritten:
                self._unwritten.pop(call, None)
            call.changed()

    async def _end(self) -> None:
        # A call whose verdicts are still to be written waits; one that was never claimed has none.
        batch = [c for c in self._batch(self._ending) if not c.epoch or not c.inbox.has_unwritten]
        ends = [(call, call.tombstone) for call in batch if call.tombstone is not None]
        if not ends:
            return
        answers = await self._link.run_many([end(call, tombstone, self._settings) for call, tombstone in ends])
        await self._link.commands([("ZREM", self._keys.tenant_calls(c.record.tenant), c.id) for c, _ in ends])
        for (call, _), (answer,) in zip(ends, answers, strict=True):
            call.is_ended = answer == b"held"
            call.is_lost = not call.is_ended
            self._forget(call)

    async def _sweep(self) -> None:
        """Ask after every call: is it still ours, was a bell lost; and keep its keys alive."""
        calls = [call for call in self._by_id.values() if call.epoch and call.tombstone is None]
        for start in range(0, len(calls), _BATCH):
            batch = calls[start : start + _BATCH]
            answers = await self._link.run_many([refresh(call, self._settings) for call in batch])
            for call, (answer, last_entry, last_message) in zip(batch, answers, strict=True):
                if call.tombstone is not None:
                    continue
                match answer:
                    case b"held":
                        call.inbox.on_last_entry(Position(last_entry.decode(), last_message.decode()))
                        if call.inbox.needs_read:
                            self.on_unread(call)
                    case b"missing" | b"behind":
                        self._unclaimed[call] = None
                        self._wake.set()
                    case _:
                        self._lose(call, None)
            await self._index([call for call in batch if call.tombstone is None and not call.is_lost])
        self._sweep_at = asyncio.get_running_loop().time() + self._settings.sweep_seconds

    # -- what becomes of a call

    def _note_registered(self, call: OwnedCall) -> None:
        if call.epoch and call.is_subscribed and not call.is_registered:
            call.is_registered = True
            call.changed()

    def _lose(self, call: OwnedCall, tombstone: Tombstone | None) -> None:
        """Somebody else has it: stop at once, write nothing more."""
        self.lost += 1
        call.is_lost = True
        if call.tombstone is None:
            call.tombstone = tombstone
        self._forget(call)

    def _forget(self, call: OwnedCall) -> None:
        for todo in (self._unclaimed, self._unread, self._unwritten, self._ending):
            todo.pop(call, None)
        if self._by_id.get(call.id) is call:
            del self._by_id[call.id]
            self.delivered += call.delivered
            self.gaps += call.inbox.gaps
        if self._by_channel.get(call.keys.channel) is call:
            del self._by_channel[call.keys.channel]
            self._subscriber.unwant(call.keys.channel)
        call.changed()
