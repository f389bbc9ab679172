"""The owner's side of one call's inbox: what to deliver, in order and once, when to read, what to write back.

Pure: no clock, no Redis. The stream is the truth and its bell only a hint: a ring is believed if the entry before it is
the one that was seen last, else the stream is read. What was seen is known by message id, since entry ids can recur
after a fail-over took some back.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fanout.messages import Message, Status

KNOWN_MAX = 1024  # remembered messages of a call; the oldest that are settled and written go first


class Position(NamedTuple):
    """The last entry seen, by both of its names."""

    entry_id: str = ""
    message_id: str = ""


class Entry(NamedTuple):
    """One entry of the stream; `message` is None where it cannot be read."""

    entry_id: str
    message_id: str
    message: Message | None


class ReadTicket(NamedTuple):
    """What a read was asked for, so that its result is not taken for more than it is."""

    asked: int
    position: Position


@dataclass(slots=True)
class Verdict:
    """What this owner says of one message. Only climbs."""

    status: Status
    wants_response: bool
    item_id: str = ""
    reached: dict[str, float] = field(default_factory=dict)
    error: dict[str, Any] | None = None

    @property
    def is_terminal(self) -> bool:
        """Nothing follows."""
        return self.status.is_terminal or (self.status is Status.APPLIED and not self.wants_response)


class Inbox:
    """A caller hands every delivery on at once, and writes `unwritten` verdicts until they are confirmed."""

    def __init__(self, *, known_max: int = KNOWN_MAX) -> None:
        self._known_max = known_max
        self._known: dict[str, Verdict] = {}
        self._unwritten: dict[str, None] = {}
        self._position = Position()
        self._asked = 0
        self._read = 0
        self.gaps = 0

    # -- what comes in

    def on_bell(self, entry: Entry, previous: Position, now: float) -> list[Message]:
        """A ring. It is a delivery if it follows what was seen last; if not, a reason to read."""
        here = Position(entry.entry_id, entry.message_id)
        follows = previous == self._position
        if entry.message_id in self._known:
            # A publisher repeats: it may have missed the answer, or Redis may have lost it.
            self._unwritten[entry.message_id] = None
            if follows and here != self._position:
                self._position = here
            return []
        if not follows or entry.message is None:
            self.gaps += 1
            self.ask_read()
            return []
        self._position = here
        return self._take(entry, now)

    def begin_read(self) -> ReadTicket:
        """The stream is about to be read; hand the ticket to `on_entries` with what was there."""
        return ReadTicket(self._asked, self._position)

    def on_entries(self, entries: Iterable[Entry], last: Position, ticket: ReadTicket, now: float) -> list[Message]:
        """What the stream holds, oldest first, and the last entry ever put in: what was not yet seen is a delivery."""
        deliveries: list[Message] = []
        for entry in entries:
            if entry.message_id not in self._known:
                deliveries += self._take(entry, now)
        if self._position == ticket.position:  # else a bell overtook the read, and knows better
            self._position = last
        self._read = ticket.asked
        return deliveries

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
        verdict = Verdict(Status.DELIVERED, message.wants_response, message.item_id, {"delivered": now})
        self._note(message.id, verdict)
        if message.expires_at <= now:
            del verdict.reached["delivered"]
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
    ) -> bool:
        """The session's verdict. False if there is nothing to say: unknown, or it said as much before."""
        verdict = self._known.get(message_id)
        if verdict is None or verdict.is_terminal or status.rank <= verdict.status.rank:
            return False
        verdict.status = status
        verdict.reached[status.value] = now
        verdict.item_id = item_id or verdict.item_id
        verdict.error = error
        self._unwritten[message_id] = None
        return True

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

    def unwritten(self) -> list[tuple[str, Verdict]]:
        """Verdicts that Redis doesn't have, oldest first."""
        return [(message_id, self._known[message_id]) for message_id in self._unwritten]

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
