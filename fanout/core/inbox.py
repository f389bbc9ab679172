"""The owner's side of one call's inbox: what to deliver, in order and once, when to read, what to write back.

Pure: no clock, no Redis. The stream is the truth and its bell only a hint: a ring is believed if the entry before it is
the one that was seen last, else the stream is read. What was seen is known by message id, since entry ids can recur
after a fail-over took some back.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from fanout.core.memory import MemoryEntry
from fanout.core.verdicts import Verdict
from fanout.messages import Message, Status

KNOWN_MAX = 1024  # remembered messages of a call; the oldest that are settled and written go first


class Position(NamedTuple):
    """The last entry seen, by both of its names."""

    entry_id: str = ""
    message_id: str = ""


class Entry(NamedTuple):
    """One entry of the stream; `message` is None where it cannot be read.

    Its receipt may say that it was applied, or answered, under an earlier owner.
    """

    entry_id: str
    message_id: str
    message: Message | None
    is_applied: bool = False
    is_answered: bool = False


class ReadTicket(NamedTuple):
    """What a read was asked for, so that its result is not taken for more than it is."""

    asked: int
    position: Position


@dataclass(slots=True)
class InboxCounts:
    """What happened, over all inboxes that share it."""

    gaps: int = 0  # in the chain of rings, closed by a read
    recovered: int = 0  # deliveries that no ring brought
    duplicates: int = 0  # rings for what was known
    expired: int = 0


class Inbox:
    """A caller hands every delivery on at once, and writes `unwritten` verdicts until they are confirmed."""

    def __init__(self, counts: "InboxCounts | None" = None, *, known_max: int = KNOWN_MAX) -> None:
        self._known_max = known_max
        self._known: dict[str, Verdict] = {}
        self._unwritten: dict[str, None] = {}
        self._position = Position()
        self._asked = 0
        self._read = 0
        self.counts = counts or InboxCounts()

    # -- what comes in

    def on_bell(self, entry: Entry, previous: Position, now: float) -> list[Message]:
        """A ring. It is a delivery if it follows what was seen last; if not, a reason to read."""
        here = Position(entry.entry_id, entry.message_id)
        follows = previous == self._position
        if entry.message_id in self._known:
            # A publisher repeats: it may have missed the answer, or Redis may have lost it.
            self.counts.duplicates += 1
            self._unwritten[entry.message_id] = None
            if follows and here != self._position:
                self._position = here
            return []
        if not follows or entry.message is None:
            self.counts.gaps += 1
            self.ask_read()
            return []
        self._position = here
        return self._take(entry, now)

    def begin_read(self) -> ReadTicket:
        """The stream is about to be read; hand the ticket to `end_read` when all of it was."""
        return ReadTicket(self._asked, self._position)

    def on_entries(self, entries: Iterable[Entry], now: float) -> list[Message]:
        """A part of what the stream holds, in its order: what was not yet seen is a delivery."""
        deliveries: list[Message] = []
        for entry in entries:
            if entry.message_id not in self._known:
                deliveries += self._take(entry, now)
        self.counts.recovered += len(deliveries)
        return deliveries

    def end_read(self, last: Position, ticket: ReadTicket) -> None:
        """All was read; `last` is the last entry ever put in."""
        if self._position == ticket.position:  # else a bell overtook the read, and knows better
            self._position = last
        self._read = ticket.asked

    def on_last_entry(self, last: Position) -> None:
        """The sweep's look at the last entry: if it isn't the one seen last, bells were lost."""
        if last != self._position:
            self.ask_read()

    def ask_read(self) -> None:
        """Something may have been missed: read the stream, even if a read is under way."""
        self._asked += 1

    @property
    def needs_read(self) -> bool:
        """Whether the stream is to be read."""
        return self._asked > self._read

    def _take(self, entry: Entry, now: float) -> list[Message]:
        message = entry.message
        if message is None:
            self._note(entry.message_id, Verdict(Status.DELIVERED, wants_response=False, reached={"delivered": now}))
            self.settle(entry.message_id, Status.FAILED, now, error=_UNREADABLE)
            return []
        if entry.is_answered:
            message = msgspec.structs.replace(message, response=False)  # it was given; only the item may be missing
        verdict = Verdict(Status.DELIVERED, message.wants_response, message.item_id, {"delivered": now})
        self._note(message.id, verdict)
        if message.expires_at <= now and not (entry.is_applied or entry.is_answered):
            del verdict.reached["delivered"]
            self.counts.expired += 1
            self.settle(message.id, Status.EXPIRED, now, error=_EXPIRED)
            return []
        return [message]

    def _note(self, message_id: str, verdict: Verdict) -> None:
        self._known[message_id] = verdict
        self._unwritten[message_id] = None
        if len(self._known) > self._known_max:
            for old, its_verdict in self._known.items():
                if its_verdict.is_terminal and old not in self._unwritten:
                    del self._known[old]
                    break

    # -- what the session says

    def settle(
        self,
        message_id: str,
        status: Status,
        now: float,
        *,
        item_id: str | None = None,
        error: dict[str, Any] | None = None,
        memory: MemoryEntry | None = None,
    ) -> bool:
        """The session's verdict. False if there is nothing to say: unknown, or it said as much before."""
        if not self.can_settle(message_id, status):
            return False
        verdict = self._known[message_id]
        verdict.status = status
        verdict.reached[status.value] = now
        verdict.item_id = item_id or verdict.item_id
        verdict.error = error
        verdict.memory = memory or verdict.memory
        # To the end of what is to be written: entries of the memory are written in the order of their positions.
        self._unwritten.pop(message_id, None)
        self._unwritten[message_id] = None
        return True

    def can_settle(self, message_id: str, status: Status) -> bool:
        """Whether `settle` would take this."""
        verdict = self._known.get(message_id)
        return verdict is not None and not verdict.is_terminal and status.rank > verdict.status.rank

    def settle_open(self, now: float, error: dict[str, Any]) -> None:
        """The call ends: what has no terminal verdict has failed."""
        for message_id, verdict in self._known.items():
            if not verdict.is_terminal:
                self.settle(message_id, Status.FAILED, now, error=error)

    # -- what is to be written

    @property
    def has_unwritten(self) -> bool:
        """Whether Redis is behind what was said here."""
        return bool(self._unwritten)

    def verdict(self, message_id: str) -> Verdict | None:
        """What was said of a message so far."""
        return self._known.get(message_id)

    def unwritten(self) -> list[tuple[str, Verdict]]:
        """Verdicts that Redis doesn't have, oldest first."""
        return [(message_id, self._known[message_id]) for message_id in self._unwritten]

    def untold(self) -> list[tuple[str, Verdict]]:
        """Those whose publishers don't know yet that they arrived."""
        return [
            (message_id, verdict)
            for message_id, verdict in self.unwritten()
            if not verdict.is_told and "delivered" in verdict.reached
        ]

    def on_told(self, message_id: str) -> None:
        """They know."""
        verdict = self._known.get(message_id)
        if verdict is not None:
            verdict.is_told = True

    def on_written(self, message_id: str, status: Status) -> None:
        """Redis has this much; if more was said meanwhile, that is still to be written."""
        verdict = self._known.get(message_id)
        if verdict is None or verdict.status is status:
            self._unwritten.pop(message_id, None)

    def rewrite(self) -> None:
        """Redis lost what it had: everything said is to be said again, and the stream is another one."""
        self._unwritten = dict.fromkeys(self._known)
        self.ask_read()


_UNREADABLE = {"code": "unreadable_message", "message": "The owning node cannot read this version of a message."}
_EXPIRED = {"code": "message_expired", "message": "The message reached the call's node after its deadline."}
