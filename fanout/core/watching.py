"""One watch of a call's log: what to hand out, in order and once, when to read the log, what is missing. Pure.

Batches come twice: on a channel, at once, and out of the log, a stream, where they are kept for a while. The channel is
believed as long as its numbers follow each other; if not, the log is read from the last number that was handed out.
What isn't there either is a gap, and is said. Numbers start at 1 with each owner of the call, whose epoch is above the
one before; audio has no number and is in no log.
"""

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from fanout.core.envelope import Batch, EnvelopeError, LogKind
from fanout.core.records import tombstone_from_stored
from fanout.messages import LogEntry, Tombstone, WatchEnd
from fanout.settings import MIB

HELD_MAX: Final = 256  # batches that came while the log was being read: beyond it they are let go, and read
HELD_MAX_BYTES: Final = 1 * MIB
_PLACE: Final = re.compile(r"(\d{1,15})-(\d{1,15})")  # Redis takes no more than 64 bits

GAP: Final = LogEntry(position="", kind="gap")


class Place(NamedTuple):
    """A number of an epoch: what was handed out last. The first of all is before every log."""

    epoch: int = 0
    number: int = 0

    def __str__(self) -> str:
        return f"{self.epoch}-{self.number}"

    @classmethod
    def read(cls, text: str) -> "Place | None":
        """From its text; None if it is none."""
        match = _PLACE.fullmatch(text)
        return cls(int(match[1]), int(match[2])) if match else None


class View(NamedTuple):
    """What the watch script said: how the call stands, and what its log has."""

    state: str  # live, reserved, ended, absent, unknown
    first: Place = Place()  # the first id that the log keeps, and the last; before all if it is empty
    last: Place = Place()
    session: bytes = b""
    tombstone: Tombstone | None = None
    batches: tuple[Batch, ...] = ()
    has_more: bool = False
    unreadable: int = 0  # batches of another version, or none at all


def read_view(answer: Sequence[Any], *, max_bytes: int) -> View:
    """The answer of fanout/lua/watch.lua."""
    state = answer[0].decode()
    if state not in {"live", "reserved", "ended"}:
        return View(state)
    tombstone = None
    if state == "ended":
        _, record, first, last, session, *packed = answer
        tombstone = tombstone_from_stored(record)
    else:
        _, first, last, session, _, *packed = answer
    batches = []
    for each in packed:
        try:
            batches.append(Batch.unpack(each, max_bytes=max_bytes))
        except EnvelopeError:
            continue
    end = Place.read(last.decode()) or Place()
    return View(
        state=state,
        first=Place.read(first.decode()) or Place(),
        last=end,
        session=session,
        tombstone=tombstone,
        batches=tuple(batches),
        has_more=bool(batches) and Place(batches[-1].epoch, batches[-1].last) < end,
        unreadable=len(packed) - len(batches),
    )


@dataclass(slots=True)
class WatchCounts:
    """What happened, over all watches that share it."""

    watch_entries: int = 0  # handed out, audio too
    watch_gaps: int = 0  # said
    watch_reads: int = 0  # of logs


class Cursor:
    """Made with the position to go on from, or None to begin at the end of the log.

    Whatever returns entries: they are to be handed out now, in this order. A position that is none counts as one that
    no log has any more.
    """

    def __init__(self, after: str | None, *, wants_sound: bool, counts: WatchCounts | None = None) -> None:
        self.counts = counts or WatchCounts()
        self.place = Place()  # what was handed out last
        self.is_open = False  # from the first view on
        self.end: WatchEnd | None = None
        self._begins_at_end = after is None
        self._is_fresh = after is None  # has nothing yet that something could be missing after
        self._wants_sound = wants_sound
        self._owes_gap = False
        self._has_said_gap = False  # and nothing since
        self._must_read = False
        self._is_reading = False
        self._held: deque[Batch] = deque()
        self._held_bytes = 0
        self._held_before = 0  # of them, those that came before the read that is under way was asked
        self._looked = Place()  # the last id of the log at the look before: by the next one it must have come
        if after is not None:
            given = Place.read(after)
            self.place, self._owes_gap = given or Place(), given is None

    # -- what to read

    @property
    def after(self) -> str:
        """The position to read after; empty where only the end of the log is to be known."""
        return "" if self._begins_at_end and not self.is_open else str(self.place)

    @property
    def needs_read(self) -> bool:
        """Whether the log is to be read once more; the first view of all is its maker's to ask for."""
        return self.is_open and self._must_read and not self._is_reading and self.end is None

    def ask_read(self) -> None:
        """Something may have been missed: the channel was acknowledged anew."""
        self._must_read = True

    def begin_read(self) -> None:
        """The log is about to be read, after this place or an earlier one."""
        self._is_reading, self._must_read = True, False
        self._held_before = len(self._held)
        self.counts.watch_reads += 1

    def fail_read(self) -> None:
        """There was no answer."""
        self._is_reading, self._must_read = False, True

    # -- what comes in

    def on_batch(self, batch: Batch) -> list[LogEntry]:
        """A batch on the channel."""
        entries: list[LogEntry] = []
        if self.end is not None:
            return entries
        if not self.is_open or self._is_reading or self._must_read:
            self._hold(batch)
        elif self._is_beyond(batch):
            self._hold(batch)
            self._must_read = True
        else:
            self._pass(batch, entries)
        return entries

    def on_view(self, view: View) -> list[LogEntry]:
        """What was read: all that the log has after this cursor's place, or the first part of it."""
        self._is_reading = False
        entries: list[LogEntry] = []
        if self.end is not None:
            return entries
        if not self.is_open:
            self._open(view)
        for batch in view.batches:
            is_other_epoch = self.place.number > 0 and batch.epoch > self.place.epoch
            self._pass(batch, entries, has_hole=is_other_epoch and view.first > self.place)
        if view.has_more:
            self._must_read = True
            return entries
        if view.last > self.place:  # what is there cannot be read
            self._owes_gap, self.place = True, view.last
        self._release(entries)
        if not self._must_read:
            self._say_gap(entries)
            if view.state == "ended":
                self.end = WatchEnd(tombstone=view.tombstone, lost=False)
        return entries

    def on_look(self, last: Place) -> bool:
        """The last id of the log, as a renewal of the lease tells it; says whether to look again soon.

        What came with it may still be under way on the channel. What was there at the look before is not.
        """
        if self._looked > self.place:
            self._must_read = True
        self._looked = last
        return last > self.place and self.end is None

    def on_ended(self, tombstone: Tombstone) -> None:
        """The call is over, says the channel, after all that was logged; it is, unless some of that was missed."""
        if self.is_open and not (self._is_reading or self._must_read):
            self.end = self.end or WatchEnd(tombstone=tombstone, lost=False)
        self._must_read = True

    def on_lost(self) -> None:
        """The call is gone, and nobody knows how."""
        self.end = self.end or WatchEnd(tombstone=None, lost=True)

    def _open(self, view: View) -> None:
        self.is_open = True
        if self._begins_at_end:
            self.place = view.last
        elif self.place > view.last:
            # Redis lost that part of the log, or it never was. Nothing that the log has now is above it.
            self._owes_gap, self.place = True, view.last

    def _hold(self, batch: Batch) -> None:
        self._held.append(batch)
        self._held_bytes += batch.size
        if len(self._held) > HELD_MAX or self._held_bytes > HELD_MAX_BYTES:
            self._held.clear()
            self._held_bytes = self._held_before = 0
            self._must_read = True

    def _release(self, entries: list[LogEntry]) -> None:
        """All was read: what is missing before a batch that came before the read was asked will not come any more."""
        held, self._held, self._held_bytes = self._held, deque(), 0
        for index, batch in enumerate(held):
            if self._held or (index >= self._held_before and self._is_beyond(batch)):
                self._hold(batch)
                self._must_read = True
            else:
                self._pass(batch, entries)

    def _is_beyond(self, batch: Batch) -> bool:
        """Whether something may lie between what was handed out and this."""
        if self._is_fresh and batch.begins_with_snapshot:
            return False  # the owner begins to log, because of us
        if batch.epoch > self.place.epoch:
            return self.place.number > 0 or batch.first > 1  # what the owner before has left comes first
        return batch.epoch == self.place.epoch and batch.first > self.place.number + 1

    def _pass(self, batch: Batch, entries: list[LogEntry], *, has_hole: bool = False) -> None:
        """Hand out what is new in a batch before which nothing more will come."""
        if batch.epoch < self.place.epoch:
            return
        seen, last = self.place.number if batch.epoch == self.place.epoch else 0, batch.last
        if max(batch.first, last) <= seen:
            return  # a repeat, or sound that was overtaken by a read
        if (has_hole or batch.first > seen + 1) and not (self._is_fresh and batch.begins_with_snapshot):
            self._owes_gap = True
        number = batch.first
        for kind, body in batch.entries:
            if kind is LogKind.AUDIO:
                if self._wants_sound and number > seen:
                    self._say(LogEntry("", "audio", body), entries)
                continue
            if number > seen:
                name = "session" if kind is LogKind.SNAPSHOT else "event"
                self._say(LogEntry(f"{batch.epoch}-{number}", name, body), entries)
                self._is_fresh = False
            number += 1
        self.place = Place(batch.epoch, max(seen, last))

    def _say(self, entry: LogEntry, entries: list[LogEntry]) -> None:
        self._say_gap(entries)
        self._has_said_gap = False
        self.counts.watch_entries += 1
        entries.append(entry)

    def _say_gap(self, entries: list[LogEntry]) -> None:
        if self._owes_gap and not self._has_said_gap:
            self._has_said_gap = True
            self.counts.watch_gaps += 1
            entries.append(GAP)
        self._owes_gap = False
