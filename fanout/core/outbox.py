"""One node's messages to one call: which to publish now, which again, and when one is done. Pure.

A message stays until it has its end. The next one waits until the owner has the one before, or for a while; each names
those before it that have no end, so that a Redis that lost one of them says so instead of breaking the order. `now` is
any steady clock, `wall` is seconds since the epoch.
"""

import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

from fanout.core.envelope import EnvelopeError
from fanout.core.keys import CallKeys
from fanout.core.records import receipt_from_stored, tombstone_from_stored
from fanout.core.runs import Arg, Run
from fanout.core.scripts import Scripts
from fanout.errors import (
    CallEnded,
    CallNotFound,
    CallNotStarted,
    CallStateUnknown,
    FanoutError,
    IdempotencyConflict,
    InboxFull,
    RegionUnreachable,
)
from fanout.messages import Receipt, Status

_BEFORE_MAX = 32  # of the messages that a publication names


@dataclass(slots=True, eq=False)
class Outgoing:
    """A message under way, and what is known of it."""

    message_id: str
    fingerprint: str
    args: tuple[Arg, ...]  # of the publish script
    size: int
    expires_at: float
    receipt: Receipt | None = None  # the highest that came
    refusal: FanoutError | None = None
    trouble: FanoutError | None = None  # why nothing is known yet
    is_done: bool = False  # has its end, as far as this Redis goes
    is_pending: bool = True  # to be published before anything after it
    published_at: float = 0.0  # when it was first known to be accepted
    next_at: float = 0.0
    pause: float = 0.0
    attempts: int = 0
    waiters: int = 0

    def has_reached(self, status: Status) -> bool:
        """Whether the receipt is there, or whatever ended first."""
        return self.receipt is not None and self.receipt.has_reached(status)


class Step(NamedTuple):
    """A publication to carry out."""

    outgoing: Outgoing
    run: Run


@dataclass(slots=True)
class OutboxCounts:
    """What happened, over all outboxes that share it."""

    published: int = 0
    repeated: int = 0
    abandoned: int = 0


class Outbox:
    """A caller asks for the `step` that is due, carries it out, and gives the answer back before it asks again."""

    def __init__(self, call_id: str, tenant: str, scripts: Scripts, counts: OutboxCounts | None = None) -> None:
        self.call_id = call_id
        self.tenant = tenant
        self._scripts = scripts
        self._settings = scripts.settings
        self._keys: CallKeys = scripts.keys.call(call_id, tenant)
        self._queue: dict[str, Outgoing] = {}
        self._is_busy = False
        self._wait_until = 0.0  # after trouble
        self._pause = scripts.settings.backoff_seconds
        self.counts = counts or OutboxCounts()

    @property
    def tag(self) -> str:
        """Of the call's partition."""
        return self._keys.tag

    @property
    def is_empty(self) -> bool:
        """Nothing is under way."""
        return not self._queue

    def get(self, message_id: str) -> Outgoing | None:
        """A message under way."""
        return self._queue.get(message_id)

    # -- what happens here

    def add(self, outgoing: Outgoing) -> None:
        """Put one more at the end."""
        self._queue[outgoing.message_id] = outgoing

    def add_again(self, outgoing: Outgoing, now: float) -> bool:
        """One that had its end, which another Redis may not know: say it once more.

        Before that Redis has settled, so that no new owner takes it for a message without an end; but spread, since
        there may be thousands. False if somebody repeats it just now: that one goes out with what is known of the end.
        """
        known = self._queue.get(outgoing.message_id)
        if known is not None:
            if known.receipt is None:
                known.receipt, known.is_done = outgoing.receipt, outgoing.is_done
            return False
        outgoing.next_at = now + self._settings.settling_seconds / 2 * zlib.crc32(outgoing.message_id.encode()) / 2**32
        self._queue[outgoing.message_id] = outgoing
        return True

    def give_up(self, outgoing: Outgoing) -> None:
        """Nobody waits any more for one that was never accepted: leave it."""
        if outgoing.receipt is None:
            self._queue.pop(outgoing.message_id, None)

    def on_receipt(self, receipt: Receipt, now: float) -> Outgoing | None:
        """A reply of the owner; replies may come twice and out of order. Returns the message if it is done now."""
        outgoing = self._queue.get(receipt.id)
        if outgoing is None:
            return None
        return self._note(outgoing, receipt, now)

    def on_new_server(self) -> None:
        """This Redis is another one: what is under way may be gone from it, and goes out again in its order."""
        self._pause = self._settings.backoff_seconds
        for outgoing in self._queue.values():
            if outgoing.receipt is not None and not outgoing.is_done:
                outgoing.is_pending, outgoing.pause, outgoing.next_at = True, 0.0, 0.0

    # -- what to do

    def due(self, now: float) -> float | None:
        """When `step` has something, None if only on an event."""
        if self._is_busy or not self._queue:
            return None
        at = self._next(now)[1]
        return None if at is None else max(at, self._wait_until)

    def step(self, now: float) -> Step | None:
        """What to publish now."""
        if self._is_busy or now < self._wait_until:
            return None
        outgoing, at = self._next(now)
        if outgoing is None or at is None or at > now:
            return None
        self._is_busy = True
        self.counts.published += 1
        self.counts.repeated += outgoing.attempts > 0
        outgoing.attempts += 1
        receipt = outgoing.receipt
        run = self._scripts.publish(
            self._keys,
            self.tenant,
            outgoing.args,
            self._before(outgoing),
            again=receipt is not None,
            told=receipt if outgoing.is_done else None,
        )
        return Step(outgoing, run)

    def expire(self, wall: float) -> list[Outgoing]:
        """Let go of those whose owner will not answer any more: it would have said by now that they expired."""
        settings = self._settings
        grace = settings.settling_seconds + settings.rewrite_seconds + settings.keep_seconds
        late = [o for o in self._queue.values() if o.expires_at + grace < wall]
        for outgoing in late:
            del self._queue[outgoing.message_id]
        self.counts.abandoned += len(late)
        return late

    def _next(self, now: float) -> tuple[Outgoing | None, float | None]:
        """The message to publish next, and when: the first pending one, or the repeat that is due first."""
        first_repeat: Outgoing | None = None
        flight_ends = 0.0
        for outgoing in self._queue.values():
            if outgoing.is_pending:
                at = max(outgoing.next_at, flight_ends)
                if first_repeat is not None and first_repeat.next_at < at:
                    return first_repeat, first_repeat.next_at
                return outgoing, at
            if not outgoing.has_reached(Status.DELIVERED):
                flight_ends = max(flight_ends, outgoing.published_at + self._settings.in_flight_seconds)
            if first_repeat is None or outgoing.next_at < first_repeat.next_at:
                first_repeat = outgoing
        return first_repeat, first_repeat.next_at if first_repeat else None

    def _before(self, outgoing: Outgoing) -> list[str]:
        """Those before this one that Redis must know; not the last alone, which somebody else may have put in."""
        before: list[str] = []
        for other in self._queue.values():
            if other is outgoing:
                break
            if other.receipt is not None and not other.is_done:
                before.append(other.message_id)
        return before[-_BEFORE_MAX:]

    # -- what the answers mean

    def on_outcome(self, step: Step, outcome: Any, now: float) -> Outgoing | None:
        """The script's answer, or RegionUnreachable. Returns the message if it is done now."""
        self._is_busy = False
        outgoing = step.outgoing
        if isinstance(outcome, RegionUnreachable):
            self._on_trouble(outgoing, outcome, now)
            return None
        self._pause = self._settings.backoff_seconds
        word = outcome[0].decode()
        if word == "receipt":
            return self._on_stored(outgoing, outcome[1], now)
        if word == "behind":
            self._on_behind(outgoing)
        elif word == "unknown":
            self._on_trouble(outgoing, CallStateUnknown(self.call_id), now)
        else:
            self._on_refusal(outgoing, self._refusal(outgoing, word, outcome), now)
        return None

    def _on_stored(self, outgoing: Outgoing, packed: bytes, now: float) -> Outgoing | None:
        outgoing.is_pending = False
        outgoing.published_at = outgoing.published_at or now
        outgoing.pause = min(outgoing.pause * 2, self._settings.repeat_max_seconds) or self._settings.repeat_seconds
        outgoing.next_at = now + outgoing.pause * _jitter(outgoing)
        try:
            receipt = receipt_from_stored(self.call_id, outgoing.message_id, packed)
        except EnvelopeError:
            # A node of a newer version wrote it. Redis has the message: that much is sure.
            if outgoing.receipt is None:
                outgoing.receipt = _accepted(self.call_id, outgoing, self._settings.node, self._settings.region)
            return None
        return self._note(outgoing, receipt, now)

    def _note(self, outgoing: Outgoing, receipt: Receipt, now: float) -> Outgoing | None:
        if outgoing.receipt is None or receipt.status.rank > outgoing.receipt.status.rank:
            outgoing.receipt = receipt
        if outgoing.is_pending and outgoing.published_at == 0.0:
            outgoing.is_pending, outgoing.published_at = False, now  # the answer is late, but it is there
        outgoing.is_done = receipt.is_terminal and not outgoing.is_pending
        if not outgoing.is_done:
            return None
        self._queue.pop(outgoing.message_id, None)
        return outgoing

    def _on_behind(self, outgoing: Outgoing) -> None:
        for other in self._queue.values():
            if other is outgoing:
                break
            if not other.is_done:
                other.is_pending, other.next_at = True, 0.0

    def _on_trouble(self, outgoing: Outgoing, trouble: FanoutError, now: float) -> None:
        outgoing.trouble = trouble
        outgoing.next_at = now
        self._wait_until = now + self._pause * _jitter(outgoing)
        self._pause = min(self._pause * 2, self._settings.backoff_max_seconds)

    def _on_refusal(self, outgoing: Outgoing, refusal: FanoutError, now: float) -> None:
        if outgoing.receipt is not None:
            # Accepted before: Redis has lost the call or the message, and its owner may not have restored it yet.
            self._on_trouble(outgoing, refusal, now)
            return
        outgoing.refusal = refusal
        self._queue.pop(outgoing.message_id, None)

    def _refusal(self, outgoing: Outgoing, word: str, outcome: list[Any]) -> FanoutError:
        match word:
            case "ended":
                return CallEnded(tombstone_from_stored(outcome[1]))
            case "reserved":
                return CallNotStarted(self.call_id)
            case "conflict":
                return IdempotencyConflict(self.call_id, outgoing.message_id)
            case "full":
                return InboxFull(self.call_id)
            case _:
                return CallNotFound(self.call_id)


def _jitter(outgoing: Outgoing) -> float:
    """Three quarters to the whole of a pause, so that a fleet doesn't return to a recovered Redis in step."""
    return 0.75 + zlib.crc32(f"{outgoing.message_id} {outgoing.attempts}".encode()) / 2**34


def _accepted(call_id: str, outgoing: Outgoing, node: str, region: str) -> Receipt:
    return Receipt(
        id=outgoing.message_id,
        call_id=call_id,
        item_id="",
        status=Status.ACCEPTED,
        wants_response=True,
        reached={},
        node=node,
        region=region,
    )
