"""What travels and what is kept: messages, receipts, call records, tombstones. Plain values, no I/O, no clock."""

from enum import Enum
from typing import Any, NamedTuple

import msgspec


class Status(Enum):
    """How far a message came. It only climbs; the last four are ends, and so is `applied` where no answer was asked."""

    ACCEPTED = "accepted"  # written to the call's inbox
    DELIVERED = "delivered"  # the owner has it
    APPLIED = "applied"  # the model took the item
    ANSWERED = "answered"  # the response that it asked for is done
    FAILED = "failed"
    EXPIRED = "expired"
    REJECTED = "rejected"

    @property
    def rank(self) -> int:
        """Place on the climb; the four ends share the highest."""
        return _RANKS[self]

    @property
    def is_terminal(self) -> bool:
        """Nothing follows. `applied` is not among them: see `Receipt.is_terminal`."""
        return self.rank == _TERMINAL_RANK


_TERMINAL_RANK = 3
_RANKS = {
    Status.ACCEPTED: 0,
    Status.DELIVERED: 1,
    Status.APPLIED: 2,
    Status.ANSWERED: _TERMINAL_RANK,
    Status.FAILED: _TERMINAL_RANK,
    Status.EXPIRED: _TERMINAL_RANK,
    Status.REJECTED: _TERMINAL_RANK,
}


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend puts into a call, already validated by the HTTP layer.

    `item` is JSON and is carried as it is. `response` is False, True, or JSON with the fields of a `response.create`.
    `kind` tells the owner what to do with it: an item, a raw client event, or a hangup. `item_id` may be empty in what
    is given to `put`: then it is derived from call and message id.
    """

    id: str
    item: bytes
    response: bytes | bool = False
    expires_at: float  # seconds since the epoch
    traceparent: str | None = None  # stays on the bus; never sent to the model
    item_id: str = ""
    when: str = "now"  # now, turn_end, interrupt
    visible: bool = True
    kind: str = "item"  # item, event, hangup

    @property
    def wants_response(self) -> bool:
        """Whether `applied` is not yet the end."""
        return self.response is not False


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a message so far.

    `reached` has the time of each step in seconds since the epoch, `by` the node and region that took it there.
    """

    id: str
    call_id: str
    item_id: str
    status: Status
    wants_response: bool
    reached: dict[str, float]
    node: str  # who said so last: the publishing node, then the owner
    region: str
    error: dict[str, Any] | None = None  # {code, message, …}; the model's own words where it failed there
    by: dict[str, tuple[str, str]] = {}

    @property
    def is_terminal(self) -> bool:
        """Nothing follows any more."""
        return self.status.is_terminal or (self.status is Status.APPLIED and not self.wants_response)

    def has_reached(self, status: Status) -> bool:
        """Whether a caller that waits for `status` has its answer; an end answers every wait."""
        return self.is_terminal or self.status.rank >= status.rank

    def to_public(self) -> dict[str, Any]:
        """The JSON shape of the HTTP surface."""
        return {
            "object": "realtime.call.receipt",
            "id": self.id,
            "call_id": self.call_id,
            "item_id": self.item_id,
            "status": self.status.value,
            "reached": self.reached,
            "by": {step: {"node": node, "region": region} for step, (node, region) in self.by.items()},
            "node": self.node,
            "region": self.region,
            "error": self.error,
        }


class CallRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A call as its home Redis lists it. `epoch` is given by the claim, not by the caller of `own`."""

    id: str
    tenant: str
    node: str
    region: str  # of the owning node; the home region is in the id
    agent: str
    model: str
    started_at: float
    epoch: int = 0
    state: str = "live"  # reserved, live, moving

    def to_public(self) -> dict[str, Any]:
        """The JSON shape of the HTTP surface."""
        return {
            "object": "realtime.call",
            "id": self.id,
            "state": self.state,
            "region": self.region,
            "node": self.node,
            "agent": self.agent,
            "model": self.model,
            "started_at": self.started_at,
        }


class Tombstone(msgspec.Struct, frozen=True, kw_only=True):
    """Why a call ended, kept for an hour so that the question has an answer by id."""

    id: str
    tenant: str
    node: str
    region: str
    started_at: float
    ended_at: float
    why: str
    fault: str  # client, model, bus, node, policy
    close_code: int | None = None
    upstream_close_code: int | None = None

    def to_public(self) -> dict[str, Any]:
        """The JSON shape of the HTTP surface: the call, with state `ended`."""
        public = msgspec.structs.asdict(self)
        del public["tenant"]
        return {"object": "realtime.call", "state": "ended", **public}


class CallFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which calls of a list; empty for any."""

    region: str = ""  # of the owning node
    node: str = ""
    agent: str = ""
    state: str = ""  # live, moving

    def matches(self, record: CallRecord) -> bool:
        """Whether the call is one of them."""
        return self.matches_but_for_state(record) and self.state in {"", record.state}

    def matches_but_for_state(self, record: CallRecord) -> bool:
        """The same of a record whose owner has not been looked for yet."""
        return (
            self.region in {"", record.region} and self.node in {"", record.node} and self.agent in {"", record.agent}
        )


class CallPage(msgspec.Struct, frozen=True, kw_only=True):
    """One page of a tenant's live calls, newest first; what could not be asked is named, never left out silently.

    `last_id` is what to give as `after` for the next page. With a filter that few calls match, a page may have fewer
    calls than asked for, even none, and there may be more all the same: what one question looks at is bounded.
    """

    calls: list[CallRecord]
    has_more: bool
    unreachable_regions: list[str]
    last_id: str | None = None


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """A call id that is held for a client; `session` is what was kept with it, opaque here."""

    call_id: str
    session: bytes


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a call now, or was at its end: the latest value of each name."""

    state: str  # reserved, live, ended
    values: dict[str, bytes]

    @property
    def entries(self) -> list[bytes]:
        """The transcript's, oldest first, each as JSON."""
        return [self.values[name] for name in sorted(self.values) if name.startswith("item.")]


class LogEntry(NamedTuple):
    """What a watch is given: an event, audio, the session as it is now, or a gap.

    A gap says that something is missing here. `position` is what to give as `after` to go on behind the entry: empty
    for audio and gaps.
    """

    position: str
    kind: str  # event, audio, session, gap
    body: bytes = b""  # JSON; empty for a gap


class WatchEnd(msgspec.Struct, frozen=True, kw_only=True):
    """Why a watch is over: the call ended, or nothing is known of it any more (`lost`)."""

    tombstone: Tombstone | None
    lost: bool
