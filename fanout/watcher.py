"""Watches calls of one home, from this node: what to read and what to hand out is core/watching.py's decision.

However many watch a call here, there is one lease for the node, one subscription (another for those who want audio),
and one task for each that renews the lease and reads the log where something is missing. While Redis is away it waits.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, Final, NamedTuple

import structlog

from fanout.core.chronicle import SESSION
from fanout.core.circuit import Circuit
from fanout.core.envelope import Batch, EnvelopeError, unpack_feed
from fanout.core.keys import CallKeys
from fanout.core.records import tombstone_from_stored
from fanout.core.runs import Run
from fanout.core.scripts import Scripts
from fanout.core.watching import GAP, Cursor, View, WatchCounts, read_view
from fanout.errors import CallEnded, CallNotFound, CallStateUnknown, RegionUnreachable, Unsealable
from fanout.messages import LogEntry, WatchEnd
from fanout.settings import KIB
from fanout.store import Store, run_one
from fanout.tasks import Backoff, Signal, Tasks

_log = structlog.get_logger("fanout")

_READS: Final = 64  # of logs at a time, each of some hundred KiB: after a reconnect every watched call is read
_SOON: Final = 1.0  # seconds until the next look at a log whose end has not come on the channel yet
_OVERHEAD: Final = 64 * KIB  # of a batch around its events


class Watch:
    """One watch of a call. Made by `Fanout.watch`, never directly."""

    def __init__(self, call_id: str, deliver: Callable[[LogEntry], None], cursor: Cursor) -> None:
        self.call_id = call_id
        self.state = ""  # at the start: live, reserved, or ended, where there is only the rest of the log to come
        self.position = ""  # at the start: `after` it comes what is delivered
        self.session: bytes | None = None  # the fact at the start; later ones are entries
        self.on_end: Callable[[], None] | None = None  # called once, when `end` is set; never raises
        self.cursor = cursor
        self.failures = 0
        self._deliver = deliver
        self._owes_gap = False
        self._ended = asyncio.Event()

    @property
    def end(self) -> WatchEnd | None:
        """Set when there will be no further entry: the call has ended, or is gone and nobody knows how."""
        return self.cursor.end

    async def wait_ended(self) -> WatchEnd:
        """Until `end` is set."""
        while (end := self.end) is None:
            await self._ended.wait()
        return end

    def hand_out(self, entries: Iterable[LogEntry]) -> None:
        """Deliver, and notice the end. What a delivery raises is its own loss, told to it as a gap."""
        for entry in entries:
            try:
                if self._owes_gap and entry is not GAP:
                    self._deliver(GAP)
                self._deliver(entry)
            except Exception:  # noqa: BLE001 - one watch's bug must not harm the others
                self.failures += 1
                self._owes_gap = True
                if self.failures == 1:
                    _log.exception("watch_delivery_failed", call=self.call_id)
            else:
                self._owes_gap = False
        if self.end is not None:
            self._ended.set()
            if self.on_end is not None:
                self.on_end()
                self.on_end = None


class _Subject(NamedTuple):
    """What one lease and one subscription are for."""

    call_id: str
    tenant: str
    with_sound: bool


class _Line(Signal):
    """All watches of a subject; it is woken when there may be something to do."""

    def __init__(self, subject: _Subject, keys: CallKeys) -> None:
        super().__init__()
        self.subject = subject
        self.keys = keys
        self.channel = keys.sound if subject.with_sound else keys.feed
        self.watches: dict[Watch, None] = {}
        self.look_at = 0.0
        self.is_followed = False

    @property
    def open(self) -> list[Watch]:
        """Those that have begun and not ended."""
        return [watch for watch in self.watches if watch.cursor.is_open and watch.cursor.end is None]

    @property
    def readers(self) -> list[Watch]:
        """Those that lack something."""
        return [watch for watch in self.watches if watch.cursor.needs_read]


class Watcher:
    """This node's watches of the calls of one region or shard."""

    def __init__(self, store: Store, scripts: Scripts, circuit: Circuit, *, tasks: Tasks) -> None:
        settings = scripts.settings
        self._store = store
        self._scripts = scripts
        self._settings = settings
        self._circuit = circuit
        self._tasks = tasks
        self._batch_max_bytes = settings.log_pending_max_bytes + _OVERHEAD
        self._soon = min(_SOON, settings.renew_seconds)
        self._lines: dict[_Subject, _Line] = {}
        self._by_channel: dict[str, dict[_Line, None]] = {}
        self._slots = asyncio.Semaphore(_READS)
        self._cursor_counts = WatchCounts()
        self._renewals = 0
        self._failures = 0
        self._unheard = 0
        self._unreadable = 0
        self.watches = 0

    @property
    def counts(self) -> dict[str, int]:
        """What is watched from here."""
        return {
            "watches": self.watches,
            "watched_channels": len(self._by_channel),
            "lease_renewals": self._renewals,
            **asdict(self._cursor_counts),
            "watch_failures": self._failures,
            "watch_unheard": self._unheard,
            "watch_unreadable": self._unreadable,
        }

    @asynccontextmanager
    async def watch(
        self, call_id: str, tenant: str, deliver: Callable[[LogEntry], None], *, after: str | None, audio: bool
    ) -> AsyncIterator[Watch]:
        """See `Fanout.watch`."""
        if self._circuit.is_open(self._now()):
            raise RegionUnreachable(self._store.name)
        watch = Watch(call_id, deliver, Cursor(after, wants_sound=audio, counts=self._cursor_counts))
        line = self._enter(_Subject(call_id, tenant, audio), watch)
        try:
            view = await self._start(line, watch)
            watch.state, watch.session = view.state, self._session(call_id, view.session)
            watch.position = after or str(view.last)
            # In the loop's next turn, and so within the block: its code has the watch before its first entry.
            begin = asyncio.get_running_loop().call_soon(self._begin, line, watch, view)
            try:
                yield watch
            finally:
                begin.cancel()
        finally:
            self._leave(line, watch)

    def _session(self, call_id: str, kept: bytes) -> bytes | None:
        try:
            return self._scripts.seals.of(call_id).open(SESSION, kept) or None
        except Unsealable:
            return None

    # -- what the home hears

    def has(self, channel: str) -> bool:
        """Whether a channel is one of ours."""
        return channel in self._by_channel

    def on_subscribed(self, channel: str) -> None:
        """A channel was acknowledged: what was published before is in the log only."""
        for line in self._by_channel.get(channel, ()):
            for watch in line.watches:
                watch.cursor.ask_read()
            line.wake()

    def on_message(self, channel: str, data: bytes) -> None:
        """A batch of a call's log, or the call's end."""
        try:
            heard = unpack_feed(data, max_bytes=self._batch_max_bytes)
            tombstone = None if isinstance(heard, Batch) else tombstone_from_stored(heard.tombstone)
        except EnvelopeError as exc:
            self._on_unreadable(str(exc))
            return
        for line in list(self._by_channel.get(channel, ())):
            for watch in list(line.watches):
                entries: list[LogEntry] = []
                if isinstance(heard, Batch):
                    entries = watch.cursor.on_batch(heard)
                elif tombstone is not None:
                    watch.cursor.on_ended(tombstone)
                self._hand_out(watch, entries)
            if line.readers:
                line.wake()

    # -- one watch

    def _enter(self, subject: _Subject, watch: Watch) -> _Line:
        line = self._lines.get(subject)
        if line is None:
            line = self._lines[subject] = _Line(subject, self._scripts.keys.call(subject.call_id, subject.tenant))
            if line.channel not in self._by_channel:
                self._store.want(line.channel)
            self._by_channel.setdefault(line.channel, {})[line] = None
        line.watches[watch] = None
        self.watches += 1
        return line

    async def _start(self, line: _Line, watch: Watch) -> View:
        """The first look: by then the channel is heard, so that nothing is between the log and it."""
        try:
            async with asyncio.timeout(2 * self._settings.socket_timeout):
                while not self._store.holds(line.channel):
                    await line.wait(None)
        except TimeoutError:
            raise RegionUnreachable(self._store.name) from None
        watch.cursor.begin_read()
        answer = await run_one(self._store, self._run(line, watch.cursor.after))
        view = self._read(answer)
        match view.state:
            case "absent":
                raise CallNotFound(watch.call_id)
            case "unknown":
                raise CallStateUnknown(watch.call_id)
            case "ended" if view.tombstone is not None and not watch.cursor.after:
                raise CallEnded(view.tombstone)
        return view

    def _begin(self, line: _Line, watch: Watch, view: View) -> None:
        self._hand_out(watch, watch.cursor.on_view(view))
        watch.cursor.on_look(view.last)
        soon = self._now() + self._soon
        line.look_at = min(line.look_at or soon, soon)
        if not line.is_followed:
            line.is_followed = True
            self._tasks.start(self._follow(line), name=f"watch {watch.call_id}")
        line.wake()

    def _leave(self, line: _Line, watch: Watch) -> None:
        del line.watches[watch]
        self.watches -= 1
        if line.watches:
            return
        del self._lines[line.subject]
        del self._by_channel[line.channel][line]
        if not self._by_channel[line.channel]:
            del self._by_channel[line.channel]
            self._store.unwant(line.channel)
        line.wake()

    # -- a line's task

    async def _follow(self, line: _Line) -> None:
        """Renew the lease and read what is missing, for as long as somebody watches."""
        backoff = Backoff(self._settings.backoff_seconds, self._settings.backoff_max_seconds)
        try:
            while line.watches:
                pause = line.look_at - self._now()
                if not line.open:
                    await line.wait(None)
                elif pause > 0 and not (line.readers and self._store.holds(line.channel)):
                    await line.wait(pause)
                elif await self._look(line):
                    backoff.reset()
                else:
                    await backoff.wait()
        finally:
            # The node stops, or this has a bug: either way nobody will say more to these.
            line.is_followed = False
            for watch in line.open:
                watch.cursor.on_lost()
                self._hand_out(watch, [])

    async def _look(self, line: _Line) -> bool:
        """Ask once, for all that lack something; false if there was no answer, or none that says anything."""
        async with self._slots:
            readers = line.readers
            after = min((watch.cursor.place for watch in readers), default=None)
            for watch in readers:
                watch.cursor.begin_read()
            (outcome,) = await self._store.run([self._run(line, "" if after is None else str(after))])
        view = None if isinstance(outcome, RegionUnreachable) else self._read(outcome)
        if view is None or view.state == "unknown":
            for watch in readers:
                watch.cursor.fail_read()
            return False
        self._renewals += 1
        is_behind = self._on_view(line, view, readers)
        line.look_at = self._now() + (self._soon if is_behind else self._settings.renew_seconds)
        return True

    def _on_view(self, line: _Line, view: View, readers: list[Watch]) -> bool:
        """Says whether somebody has not got yet what the log has."""
        is_behind = is_unheard = False
        for watch in line.open:
            entries: list[LogEntry] = []
            if view.state == "absent":
                watch.cursor.on_lost()
            elif watch in readers:
                entries = watch.cursor.on_view(view)
            elif view.state == "ended":
                watch.cursor.ask_read()
            self._hand_out(watch, entries)
            was_complete = not watch.cursor.needs_read
            is_behind |= watch.cursor.on_look(view.last)
            is_unheard |= was_complete and watch.cursor.needs_read
        if is_unheard and self._store.holds(line.channel):
            self._unheard += 1
            self._store.renew(line.channel)  # the server doesn't have it, whatever we believe
        return is_behind

    def _run(self, line: _Line, after: str) -> Run:
        subject = line.subject
        return self._scripts.watch(line.keys, subject.tenant, sound=subject.with_sound, after=after)

    def _read(self, answer: list[Any]) -> View:
        view = read_view(answer, max_bytes=self._batch_max_bytes)
        if view.unreadable:
            self._on_unreadable("in a log")
        return view

    def _hand_out(self, watch: Watch, entries: list[LogEntry]) -> None:
        before = watch.failures
        watch.hand_out(entries)
        self._failures += watch.failures - before

    def _on_unreadable(self, error: str) -> None:
        """A batch of another version, or none at all: who watches is told that something is missing."""
        self._unreadable += 1
        if self._unreadable == 1:
            _log.warning("unreadable_batch", home=self._store.name, error=error)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
