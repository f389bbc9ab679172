"""Keeps Redis in step with the calls that this node owns. What to ask is each call's own decision (core/ownership.py).

A few workers ask in batches, so that one slow answer holds up few calls. While Redis is away everything waits in the
calls, bounded by what calls there are; no session notices.
"""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice

import structlog

from fanout.chronicler import Chronicler
from fanout.core.envelope import EnvelopeError, Look, Ring, unpack_ring
from fanout.core.inbox import InboxCounts
from fanout.core.phases import Expected, Phase, Step
from fanout.core.scripts import Scripts
from fanout.errors import RegionUnreachable
from fanout.messages import CallRecord, Message
from fanout.owned import OwnedCall
from fanout.schedule import Schedule
from fanout.store import Store
from fanout.tasks import Backoff

_log = structlog.get_logger("fanout")

WORKERS = 4
_BATCH = 64  # calls in one go: a few milliseconds of the loop
_BELL_OVERHEAD = 1024  # of ids around the largest message


class Owner:
    """The calls of this node whose home is one region or shard."""

    def __init__(self, store: Store, scripts: Scripts, boot: str, *, clock: Callable[[], float]) -> None:
        self._store = store
        self._scripts = scripts
        self._settings = scripts.settings
        self._boot = boot
        self._clock = clock
        self.chronicler = Chronicler(store, scripts)
        self._by_id: dict[str, OwnedCall] = {}
        self._by_channel: dict[str, OwnedCall] = {}
        self._kept: dict[OwnedCall, float] = {}  # over here, until when: a new Redis may want to know of them
        self._unended: dict[OwnedCall, None] = {}
        self._schedule: Schedule[OwnedCall] = Schedule()
        self._unregistered: set[OwnedCall] = set()
        self._unwritten: set[OwnedCall] = set()
        self._strangers: dict[OwnedCall, None] = {}  # to be told that their Redis is another one, oldest first
        self._sweep_at = 0.0
        self._inbox_counts = InboxCounts()
        self.delivered = 0
        self.restored = 0
        self.lost = 0
        self.handed_over = 0
        self.endings_dropped = 0
        self.unreadable = 0
        self.unheard_bells = 0

    # -- for the node

    def own(
        self, record: CallRecord, deliver: Callable[[Message], None], expected: Expected | None = None
    ) -> OwnedCall:
        """Take a call; the claim and the subscription follow as soon as Redis allows."""
        if record.id in self._by_id:
            raise ValueError(f"{record.id} is owned here already")
        call = OwnedCall(
            record,
            deliver,
            scripts=self._scripts,
            new_claim=lambda: f"{self._boot}.{secrets.token_hex(8)}",
            agenda=self,
            clock=self._clock,
            counts=self._inbox_counts,
            log_counts=self.chronicler.log_counts,
            expected=expected,
        )
        self._unregistered.add(call)
        self._by_id[call.id] = call
        self._by_channel[call.keys.channel] = call
        self._store.want(call.keys.channel)
        self.on_changed(call)
        return call

    async def wait_given_up(self, call_id: str) -> None:
        """Until a call that was to be given up here is: a node makes one claim of a call at a time."""
        call = self._by_id.get(call_id)
        if call is not None and call.protocol.is_given_up:
            await call.wait_handed_over()

    def on_bell(self, channel: str, data: bytes) -> None:
        """A ring on a call's channel."""
        call = self._by_channel.get(channel)
        if call is None:
            return  # it ended while the ring was under way
        try:
            bell = unpack_ring(data, max_bytes=self._settings.message_max_bytes + _BELL_OVERHEAD)
        except EnvelopeError as exc:
            self.on_unreadable(str(exc))
            return
        if isinstance(bell, Ring):
            call.on_ring(bell)
        elif isinstance(bell, Look):
            call.on_look()
        else:
            call.on_bell(bell)

    def on_subscribed(self, channel: str) -> None:
        """A channel was acknowledged: what rang before is in the stream only."""
        call = self._by_channel.get(channel)
        if call is not None:
            call.is_subscribed = True
            call.protocol.on_subscribed()
            self.on_changed(call)

    def on_new_server(self, tags: frozenset[str]) -> None:
        """Another Redis serves these partitions: tell it what it may not know.

        The workers tell the calls, some at a time: thousands in one go held the loop for tens of milliseconds. What a
        call was answered before its turn, by the old server or the new one, is said again with all the rest.
        """
        for call in (*self._by_id.values(), *self._kept):
            if call.keys.tag in tags:
                self._strangers[call] = None
        self._schedule.wake()

    def sweep_soon(self) -> None:
        """Redis may have missed us: look at every call at once instead of at the next sweep."""
        self._sweep_at = 0.0
        self._schedule.wake()

    @property
    def counts(self) -> dict[str, int]:
        """What is owned and what waits for Redis."""
        return {
            "owned": len(self._by_id),
            "unregistered": len(self._unregistered),
            "unwritten": len(self._unwritten),
            "ending": len(self._unended),
            "kept": len(self._kept),
            "unheard_bells": self.unheard_bells,
            "lost": self.lost,
            "handed_over": self.handed_over,
            "endings_dropped": self.endings_dropped,
            "unreadable": self.unreadable,
            "delivered": self.delivered,
            "restored": self.restored,
            **asdict(self._inbox_counts),
            **self.chronicler.counts,
        }

    # -- Agenda, for the calls

    def on_changed(self, call: OwnedCall) -> None:
        """Look what the call's state means here, and when it has something to ask."""
        protocol = call.protocol
        if protocol.is_held and call.is_subscribed and not call.is_registered:
            call.is_registered = True
            self._unregistered.discard(call)
            call.changed()
        if protocol.inbox.has_unwritten and self._by_id.get(call.id) is call:
            self._unwritten.add(call)
        else:
            self._unwritten.discard(call)
        if protocol.phase in {Phase.ENDING, Phase.HANDING_OVER}:
            self._on_ending(call)
        elif protocol.is_kept_only:
            self._on_over(call)
        if protocol.is_bell_unheard:
            protocol.is_bell_unheard = False
            if protocol.is_held and self._store.holds(call.keys.channel):
                self.unheard_bells += 1
                self._store.renew(call.keys.channel)
        due = protocol.due(self._now())
        if due is not None:
            self._schedule.put(call, due)

    def on_noted(self, call: OwnedCall) -> None:
        """There may be something to write for those who watch."""
        self.chronicler.on_changed(call)

    def on_unreadable(self, error: str) -> None:
        """A bell or message of another version, or no message at all: counted, and said once."""
        self.unreadable += 1
        if self.unreadable == 1:
            _log.warning("unreadable_message", home=self._store.name, error=error)

    def on_delivery(self) -> None:
        """A message is handed over."""
        self.delivered += 1

    def _on_ending(self, call: OwnedCall) -> None:
        self._leave(call)
        self._unended[call] = None
        if len(self._unended) > self._settings.endings_max:
            self.endings_dropped += 1
            self._forget(next(iter(self._unended)))

    def _on_over(self, call: OwnedCall) -> None:
        self._leave(call)
        if call in self._kept:
            self._unended.pop(call, None)
            return
        if call.protocol.phase is Phase.HANDED_OVER:
            self.handed_over += 1
        else:
            self.lost += call.is_lost
        self._forget(call)
        self._kept[call] = self._now() + self._settings.keep_seconds
        while len(self._kept) > self._settings.endings_max:
            del self._kept[next(iter(self._kept))]

    def _leave(self, call: OwnedCall) -> None:
        """No more bells."""
        call.let_go()
        if self._by_channel.get(call.keys.channel) is call:
            del self._by_channel[call.keys.channel]
            self._store.unwant(call.keys.channel)

    def _forget(self, call: OwnedCall) -> None:
        self._unended.pop(call, None)
        self._schedule.drop(call)
        if self._by_id.get(call.id) is call:
            del self._by_id[call.id]
        self._unregistered.discard(call)
        self._unwritten.discard(call)
        call.changed()

    # -- the workers

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def work(self) -> None:
        """Ask what is to be asked, for ever. Several may run."""
        backoff = Backoff(self._settings.backoff_seconds, self._settings.backoff_max_seconds)
        while True:
            batch = self._take_batch()
            if not batch:
                await self._schedule.wait(0.0 if self._strangers else self._sweep_at)
            elif await self._ask(batch):
                backoff.reset()
            else:
                await backoff.wait()

    @property
    def is_idle(self) -> bool:
        """Nothing is left that somebody would miss."""
        return not (self._unended or self._unwritten or self._strangers)

    def _take_batch(self) -> list[tuple[OwnedCall, list[Step]]]:
        now, wall = self._schedule.now(), self._clock()
        if now >= self._sweep_at:
            self._begin_sweep(now)
        self._introduce()
        return [(call, steps) for call in self._schedule.take(now, _BATCH) if (steps := call.protocol.steps(now, wall))]

    def _introduce(self) -> None:
        for call in list(islice(self._strangers, _BATCH)):
            del self._strangers[call]
            call.protocol.on_new_server()
            call.chronicle.on_lost(self._now())
            self.on_changed(call)
            self.on_noted(call)

    async def _ask(self, batch: list[tuple[OwnedCall, list[Step]]]) -> bool:
        """One batch; false if Redis answered nothing."""
        outcomes = await self._store.run([step.run for _, steps in batch for step in steps])
        answers = iter(outcomes)
        for call, steps in batch:
            before = call.protocol.restores
            call.on_outcomes(steps, [next(answers) for _ in steps])
            self.restored += call.protocol.restores - before
        return not all(isinstance(outcome, RegionUnreachable) for outcome in outcomes)

    def _begin_sweep(self, now: float) -> None:
        """Every call asks whether it is still ours and whether a bell was lost; what was kept long enough goes."""
        self._sweep_at = now + self._settings.sweep_seconds
        for call in self._by_id.values():
            call.protocol.ask_refresh()
            self._schedule.put(call, now)
        for call in [call for call, until in self._kept.items() if until <= now and call.protocol.is_kept_only]:
            del self._kept[call]
