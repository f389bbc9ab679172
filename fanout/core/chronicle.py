"""What one call writes for those who look on: its log, its sound, its facts; and whether anybody looks. Pure.

Log and sound are best effort and bounded: what doesn't fit is left out. An event is numbered before that is known, so
whoever watches sees a gap. The log is written only while somebody watches; facts, the latest of each name, always: a
later owner builds the conversation from them. They wait for a Redis that is away, and whoever notes one for which there
is no room is told. A caller asks for a `flush`, carries it out, and gives its answer back. `now` is any steady clock.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, NamedTuple

from fanout.core.envelope import Batch, LogKind, Ring
from fanout.core.keys import CallKeys
from fanout.core.runs import Run
from fanout.core.scripts import Scripts
from fanout.errors import RegionUnreachable

SESSION: Final = "session"  # the fact that a watcher is given first
_PAUSE_SECONDS: Final = 0.25  # until its owner has restored a record that Redis lost, or knows that it isn't its owner


@dataclass(slots=True)
class LogCounts:
    """What happened, over all calls that share it."""

    logged: int = 0  # events written
    logged_bytes: int = 0
    log_dropped: int = 0
    sounds: int = 0  # sent
    sounds_dropped: int = 0
    facts_written: int = 0
    facts_dropped: int = 0


class _Entry(NamedTuple):
    """What waits to be written. Sound bears the number that comes next."""

    kind: LogKind
    number: int
    body: bytes


class _Kept(NamedTuple):
    """A batch in the log."""

    last: int
    events: int
    size: int


@dataclass(slots=True)
class _Flight:
    """What was asked and not confirmed; of a repeat the events must be the same, since they have one id together."""

    entries: list[_Entry]
    facts: dict[str, bytes | None] = field(default_factory=dict)
    are_all: bool = False  # Redis is to forget every other fact


class Chronicle:
    """One call's. `is_watched` and `is_heard` say whether `log` and `sound` do something.

    `is_taken`: the call had an owner before.
    """

    def __init__(
        self, keys: CallKeys, scripts: Scripts, counts: LogCounts | None = None, *, is_taken: bool = False
    ) -> None:
        self.counts = counts or LogCounts()
        self.is_watched = False
        self.is_heard = False
        self.is_closed = False
        self._keys = keys
        self._scripts = scripts
        self._settings = scripts.settings
        self._watched_until = self._heard_until = 0.0
        self._is_taken = is_taken
        self._next = 1  # number of the next event
        self._stood_still = False  # events may have passed unwritten after the last that was
        self._owes_snapshot = False
        self._order = 0
        self._pending: dict[int, _Entry] = {}  # oldest first
        self._pending_bytes = 0
        self._sounds: dict[int, None] = {}  # the places of sound among them, oldest first
        self._sound_bytes = 0
        self._kept: list[_Kept] = []  # in the log, as far as this owner wrote it, oldest first
        self._kept_events = self._kept_bytes = 0
        self._is_trimmed = False  # before that the log may still have what an earlier owner wrote
        self._facts: dict[str, bytes] = {}
        self._facts_bytes = 0
        self._dirty: dict[str, None] = {}  # facts that Redis doesn't have as they are
        self._dirty_since = 0.0
        self._owes_all = False  # Redis may have facts that are none any more; all of ours are dirty then
        self._number = 0  # of the last flush with facts
        self._facts_not_before = 0.0
        self._flight: _Flight | None = None
        self._is_asked = False
        self._not_before = 0.0  # the next flush
        self._is_urgent = False
        self._is_leaving = False

    # -- what happens here

    def begin(self, known: Mapping[str, bytes], now: float) -> None:
        """What Redis had of a call that was taken over: it takes its room, and is written again if Redis loses it."""
        if self._owes_all:
            self._soil(list(known), now)  # it may have come from a Redis that is gone
        self._facts = {**known, **self._facts}
        self._facts_bytes = sum(_size(name, value) for name, value in self._facts.items())

    def log(self, event: bytes) -> None:
        """An event; ignored while nobody watches."""
        if self.is_watched:
            self._enter(LogKind.EVENT, event)

    def sound(self, event: bytes) -> None:
        """Audio; ignored while nobody listens. Of too much the oldest is let go: nobody wants to hear it late."""
        size = len(event)
        if not self.is_heard:
            return
        if size > self._settings.sound_pending_max_bytes:
            self.counts.sounds_dropped += 1
            return
        while self._sounds and (self._sound_bytes + size > self._settings.sound_pending_max_bytes or self._is_full):
            self._drop_sound()
        if self._is_full:
            self.counts.sounds_dropped += 1
            return
        self._sounds[self._order] = None
        self._sound_bytes += size
        self._add(_Entry(LogKind.AUDIO, self._next, event))

    def note(self, name: str, value: bytes | None, now: float) -> bool:
        """A fact; None deletes it. False where there is no room: it is left out, and what it was before goes, too."""
        if self.is_closed or self._is_leaving:
            return True
        before = self._facts.pop(name, None)
        self._facts_bytes -= _size(name, before) if before is not None else 0
        has_room = value is None or self._has_room(name, value)
        if not has_room:
            self.counts.facts_dropped += 1
            value = None
        if value is not None:
            self._facts[name] = value
            self._facts_bytes += _size(name, value)
        if value is not None and value == before:
            return True
        if name in self._dirty or len(self._dirty) < 2 * self._settings.facts_max:
            self._soil([name], now)
        else:
            self.counts.facts_dropped += 1  # one of very many that go
            has_room = False
        if name == SESSION and self._owes_snapshot:
            self._snapshot()
        return has_room

    def _has_room(self, name: str, value: bytes) -> bool:
        settings = self._settings
        return (
            len(self._facts) < settings.facts_max
            and self._facts_bytes + _size(name, value) <= settings.facts_max_bytes
            and (name in self._dirty or len(self._dirty) < 2 * settings.facts_max)
        )

    def hurry(self) -> None:
        """Write what there is as soon as Redis allows."""
        self._is_urgent = not self.is_written

    def leave(self) -> None:
        """The call is to be somebody else's: nothing more is noted. What there is is written, now.

        Facts stay, for a Redis that loses them before there is another owner.
        """
        self._is_leaving = True
        self.is_watched = self.is_heard = False
        while self._sounds:
            self._drop_sound()
        self.hurry()

    def close(self) -> None:
        """The call is over, or somebody else's: nothing more is written, and nothing is kept."""
        self.is_closed = True
        self.is_watched = self.is_heard = False
        self._pending.clear()
        self._sounds.clear()
        self._kept.clear()
        self._facts.clear()
        self._dirty.clear()
        self._owes_all = False
        self._flight = None

    def _enter(self, kind: LogKind, body: bytes) -> None:
        number, self._next = self._next, self._next + 1
        while self._is_full and self._sounds:
            self._drop_sound()
        settings = self._settings
        if (
            len(body) > settings.log_max_bytes
            or self._is_full
            or self._pending_bytes + len(body) > settings.log_pending_max_bytes
        ):
            self.counts.log_dropped += 1
            return
        self._add(_Entry(kind, number, body))

    @property
    def _is_full(self) -> bool:
        settings = self._settings
        return len(self._pending) >= settings.log_pending_max or self._pending_bytes >= settings.log_pending_max_bytes

    def _add(self, entry: _Entry) -> None:
        self._pending[self._order] = entry
        self._order += 1
        self._pending_bytes += len(entry.body)

    def _drop_sound(self) -> None:
        self._pop(next(iter(self._sounds)))
        self.counts.sounds_dropped += 1

    def _snapshot(self) -> None:
        session = self._facts.get(SESSION)
        if session is not None:
            self._owes_snapshot = False
            self._enter(LogKind.SNAPSHOT, session)

    def _soil(self, names: list[str], now: float) -> None:
        if not (self._dirty or self._owes_all):
            self._dirty_since = now
        self._dirty.update(dict.fromkeys(names))

    # -- who looks

    def on_interest(self, ring: Ring, now: float) -> bool:
        """For how long somebody watches, and listens. Says whether one of the two began or ended.

        A shorter time than was said before is a Redis that lost leases, since nobody revokes one.
        """
        self._watched_until = max(self._watched_until, now + ring.events_ms / 1000)
        self._heard_until = max(self._heard_until, now + ring.sound_ms / 1000)
        return self.on_tick(now)

    def on_tick(self, now: float) -> bool:
        """Leases end. Says whether anything changed."""
        before = self.is_watched, self.is_heard
        self.is_watched = not (self.is_closed or self._is_leaving) and now < self._watched_until
        self.is_heard = self.is_watched and now < self._heard_until
        if self.is_watched and not before[0]:
            if self._stood_still:
                self._next += 1  # for those who come back with a position
            self._owes_snapshot = True
            self._snapshot()
        self._stood_still = not self.is_watched and (self._is_taken or self._next > 1)
        if not self.is_heard:
            while self._sounds:
                self._drop_sound()
        return (self.is_watched, self.is_heard) != before

    def on_lost(self, now: float) -> None:
        """Redis may lack every fact, or have what is none any more. What it lacks of the log is a gap."""
        if self.is_closed:
            return
        self._soil(sorted(self._facts, key=lambda name: name != SESSION), now)
        self._owes_all = True

    # -- what to write

    @property
    def is_written(self) -> bool:
        """Whether Redis has all that happened so far, or never will because the call is over."""
        return not (self._pending or self._dirty or self._flight or self._owes_all)

    def due(self, now: float, *, can_write: bool) -> float | None:
        """When there is something to do: a flush, if the owner may write at all, or a lease that ends."""
        if self.is_closed:
            return None
        moments = []
        if self.is_watched:
            moments.append(self._watched_until)
        if self.is_heard:
            moments.append(self._heard_until)
        if can_write and (flush_due := self._flush_due(now)) is not None:
            moments.append(flush_due)
        return min(moments, default=None)

    def _flush_due(self, now: float) -> float | None:
        if self._is_asked or self.is_written:
            return None
        if self._pending or self._flight or self._is_urgent:
            return max(self._not_before, now)
        # On a grid that all calls share, so that many are written in one go: it halves what one of them costs.
        step = self._settings.facts_grid_seconds
        wanted = max(self._dirty_since, self._facts_not_before)
        return max(self._not_before, (math.floor(wanted / step) + 1) * step)

    def flush(self, now: float, epoch: int, claim: str) -> Run | None:
        """What to write now, if it is time; until its answer is given back there is nothing more.

        Facts go with the events that came with them, as far as one flush has room.
        """
        due = self._flush_due(now)
        if due is None or due > now:
            return None
        is_repeat = self._flight is not None
        flight = self._flight or _Flight(self._take())
        flight.facts = self._take_facts()
        flight.are_all, self._owes_all = self._owes_all, False
        changes_facts = bool(flight.facts) or flight.are_all
        if changes_facts:
            self._number += 1
            # What had no room in this flush doesn't wait.
            self._facts_not_before = now if self._dirty else now + self._settings.facts_seconds
        self._flight, self._is_asked = flight, True
        self._not_before = now + self._settings.flush_seconds
        entries = flight.entries
        first = entries[0].number if entries else 0
        told = [(entry.kind, entry.body) for entry in entries]
        events = [(kind, body) for kind, body in told if kind is not LogKind.AUDIO]
        batch = Batch(epoch, first, events) if events else None
        if batch is not None and not is_repeat:
            self._keep(batch)
        return self._scripts.log(
            self._keys,
            epoch,
            claim,
            batch=batch,
            lowest=f"{epoch}-{self._kept[0].last}" if self._is_trimmed and self._kept else "0-0",
            sound=Batch(epoch, first, told) if told and self.is_heard else None,
            facts=flight.facts,
            number=self._number if changes_facts else 0,
            are_all=flight.are_all,
        )

    def _take(self) -> list[_Entry]:
        """The oldest entries that have numbers without a gap, as many as one flush may carry, and at least one."""
        taken: list[_Entry] = []
        size, number = 0, 0
        for entry in self._pending.values():
            size += len(entry.body)
            if taken and (entry.number != number or size > self._settings.flush_max_bytes):
                break
            number = entry.number + (entry.kind is not LogKind.AUDIO)
            taken.append(entry)
        for place in list(islice(self._pending, len(taken))):
            self._pop(place)
        return taken

    def _pop(self, place: int) -> None:
        entry = self._pending.pop(place)
        self._pending_bytes -= len(entry.body)
        if entry.kind is LogKind.AUDIO:
            del self._sounds[place]
            self._sound_bytes -= len(entry.body)

    def _take_facts(self) -> dict[str, bytes | None]:
        taken: dict[str, bytes | None] = {}
        size = 0
        for name in list(self._dirty):
            value = self._facts.get(name)
            size += _size(name, value or b"")
            if taken and size > self._settings.flush_max_bytes:
                break
            del self._dirty[name]
            taken[name] = value
        return taken

    def _keep(self, batch: Batch) -> None:
        self._kept.append(_Kept(batch.last, len(batch.entries), batch.size))
        self._kept_events += len(batch.entries)
        self._kept_bytes += batch.size
        settings = self._settings
        while len(self._kept) > 1 and (
            self._kept_events > settings.log_max or self._kept_bytes > settings.log_max_bytes
        ):
            gone = self._kept.pop(0)
            self._kept_events -= gone.events
            self._kept_bytes -= gone.size
            self._is_trimmed = True

    # -- what the answers mean

    def on_outcome(self, outcome: Any, now: float) -> bool:
        """The answer to the flush, or RegionUnreachable. Says whether somebody began or ceased to look."""
        flight, self._is_asked = self._flight, False
        if flight is None:
            return False  # closed meanwhile
        word = b"" if isinstance(outcome, RegionUnreachable) else outcome[0]
        match word:
            case b"held":
                self._flight = None
                self._is_urgent &= not self.is_written
                self._count(flight)
                return self.on_interest(Ring(outcome[1], outcome[2]), now)
            case _:
                self._soil(list(flight.facts), now)
                self._owes_all |= flight.are_all
                # It may have been heard already, and it is late.
                heard = [entry for entry in flight.entries if entry.kind is LogKind.AUDIO]
                self.counts.sounds_dropped += len(heard)
                flight.entries = [entry for entry in flight.entries if entry.kind is not LogKind.AUDIO]
                if not flight.entries:
                    self._flight = None
                if word:
                    self._not_before = now + _PAUSE_SECONDS
                return False

    def _count(self, flight: _Flight) -> None:
        counts = self.counts
        events = [entry for entry in flight.entries if entry.kind is not LogKind.AUDIO]
        counts.logged += len(events)
        counts.logged_bytes += sum(len(entry.body) for entry in events)
        counts.sounds += len(flight.entries) - len(events)
        counts.facts_written += len(flight.facts)


def _size(name: str, value: bytes) -> int:
    return len(name) + len(value)
