"""A call that this node owns, as its session sees it: settle messages, end it. Nothing here waits for Redis."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import structlog

from fanout.core.chronicle import Chronicle, LogCounts
from fanout.core.envelope import Bell, Envelope, EnvelopeError, Ring
from fanout.core.inbox import Entry, InboxCounts, Position
from fanout.core.ownership import Ownership
from fanout.core.phases import Expected, Phase, Step
from fanout.core.records import message_from_envelope
from fanout.core.scripts import Scripts
from fanout.core.seals import open_facts
from fanout.errors import CallEnded, CallTaken, RegionUnreachable
from fanout.messages import CallRecord, Message, Status, Tombstone

_log = structlog.get_logger("fanout")
_DELIVERY_FAILED = {"code": "delivery_failed", "message": "The node could not take the message."}


class Agenda(Protocol):
    """What a call asks of the bus; each returns at once."""

    def on_changed(self, call: "OwnedCall") -> None:
        """There may be something to ask of Redis."""

    def on_noted(self, call: "OwnedCall") -> None:
        """There may be something to write for those who watch."""

    def on_unreadable(self, error: str) -> None:
        """Something was there that this version cannot read."""

    def on_delivery(self) -> None:
        """A message is handed over."""


def _nobody(_: Message) -> None:
    """Takes what a call that is over would get."""


class OwnedCall:
    """`settle` and `end` note what happened and return at once; the bus writes it, again and again while Redis is away.

    `log`, `sound` and `note` do the same for those who look on, as far as there is room, and `note` for the next owner:
    see `fanout.core.chronicle`. `on_interest`, if set, is called whenever `is_watched` or `is_heard` changed; it must
    return at once.

    Sync, so that a session may call them from a socket callback. Made by `Fanout.own`, never directly.
    """

    def __init__(
        self,
        record: CallRecord,
        deliver: Callable[[Message], None],
        *,
        scripts: Scripts,
        new_claim: Callable[[], str],
        agenda: Agenda,
        clock: Callable[[], float],
        counts: InboxCounts,
        log_counts: LogCounts,
        expected: Expected | None = None,
    ) -> None:
        self.id = record.id
        self.record = record
        self.protocol = Ownership(
            record,
            scripts,
            new_claim=new_claim,
            read_entry=self._read_entry,
            expected=expected,
            counts=counts,
            is_noted=lambda: self.chronicle.is_written,
        )
        self.keys = self.protocol.keys
        self.chronicle = Chronicle(self.keys, scripts, log_counts, is_taken=expected is not None)
        self.known: dict[str, bytes] = {}
        self.on_interest: Callable[[], None] | None = None
        self.is_registered = False  # claimed and subscribed, once: from then on the call can be reached
        self.is_subscribed = False
        self._deliver = deliver
        self._early: list[Message] | None = None if expected is None else []  # until who takes the call has it in hand
        self._agenda = agenda
        self._seal = scripts.seals.of(record.id)
        self._clock = clock
        self._message_max_bytes = scripts.settings.message_max_bytes
        self._changed = asyncio.Event()
        self._waits_logged = 0
        self._is_handed_over = False

    # -- for the session

    @property
    def epoch(self) -> int:
        """Of the claim; 0 until it is written."""
        return self.protocol.epoch

    @property
    def is_lost(self) -> bool:
        """Whether it belongs to somebody else or, given up, to nobody; or was ended by somebody else."""
        return self._is_handed_over or self.protocol.phase in {Phase.LOST, Phase.OFFERING}

    @property
    def is_ended(self) -> bool:
        """Whether Redis has the tombstone."""
        return self.protocol.phase is Phase.ENDED

    @property
    def tombstone(self) -> Tombstone | None:
        """Set by `end`, or found in Redis."""
        return self.protocol.tombstone

    @property
    def memory(self) -> list[bytes]:
        """What the call remembers of messages that were applied, oldest first."""
        return self.protocol.memory.entries

    def settle(
        self,
        message_id: str,
        status: Status,
        *,
        item_id: str | None = None,
        error: dict[str, Any] | None = None,
        memory: bytes | None = None,
    ) -> None:
        """Say what became of a delivered message: applied, answered, failed, rejected or expired.

        A verdict only climbs; a lower one, a second end, or one on a message that was never delivered is ignored.
        `memory` is what a later owner must know of it: it is written in the same step as the receipt.
        """
        if self.protocol.settle(message_id, status, self._clock(), item_id=item_id, error=error, memory=memory):
            self._agenda.on_changed(self)

    def end(self, tombstone: Tombstone) -> None:
        """Stop receiving and write the tombstone; what has no terminal receipt gets `failed`, code `call_ended`.

        The first one holds; on a call that is lost it does nothing, since the call goes on elsewhere.
        """
        if self.protocol.end(tombstone, self._clock()):
            self._agenda.on_changed(self)
            self.changed()

    def hand_over(self) -> None:
        """Stop receiving and give the call up, for a client that comes back elsewhere.

        What was said and noted until now is written first; then Redis has the call as `moving`, and it is lost here.
        What was delivered and has no end yet is the next owner's. A call that isn't claimed yet is given up as soon as
        that is known. On one that is ended or lost it does nothing, and after it `end` does nothing.
        """
        if self.protocol.hand_over():
            self.chronicle.leave()
            self._agenda.on_noted(self)
            self._agenda.on_changed(self)
            self.changed()

    @property
    def is_watched(self) -> bool:
        """Whether somebody watches, so that `log` does something."""
        return self.chronicle.is_watched

    @property
    def is_heard(self) -> bool:
        """Whether somebody listens, so that `sound` does something."""
        return self.chronicle.is_heard

    def log(self, event: bytes) -> None:
        """An event of the call, JSON, for those who watch."""
        self.chronicle.log(event)
        self._agenda.on_noted(self)

    def sound(self, event: bytes) -> None:
        """Audio, an event of either side as JSON, for those who listen. It is kept nowhere."""
        self.chronicle.sound(event)
        self._agenda.on_noted(self)

    def note(self, name: str, value: bytes | None) -> bool:
        """What is known of the call under a name, as of now; None for nothing any more.

        `session` is the one that whoever begins to watch gets first. False where there was no room: nothing is known
        under that name then, and something else must go before it can be noted.
        """
        has_room = self.chronicle.note(name, value, self._now())
        self._agenda.on_noted(self)
        return has_room

    def hurry(self) -> None:
        """Write what was logged and noted so far as soon as Redis allows."""
        self.chronicle.hurry()
        self._agenda.on_noted(self)

    async def wait_logged(self) -> None:
        """Until what was logged and noted so far is in Redis, or never will be because the call is over or lost.

        Waits as long as Redis is away: give it a timeout. `end` drops what is not written by then.
        """
        self.hurry()
        self._waits_logged += 1
        try:
            await self._wait(lambda: self.chronicle.is_written)
        finally:
            self._waits_logged -= 1

    async def wait_registered(self) -> None:
        """Until the claim is written and the subscription acknowledged: from then on the call can be reached.

        Raises CallTaken or CallEnded where that will never be. Waits as long as Redis is away: give it a timeout.
        """
        await self._wait(lambda: self.is_registered or self.is_lost or self.tombstone is not None)
        if self.tombstone is not None:
            raise CallEnded(self.tombstone)
        if self.is_lost:
            raise CallTaken(self.id)

    async def wait_confirmed(self) -> None:
        """Until Redis, asked now, has said whose the call is: still ours, or it is lost.

        Waits as long as Redis is away: give it a timeout.
        """
        look = self.protocol.ask_look()
        self._agenda.on_changed(self)
        await self._wait(lambda: self.protocol.looked >= look or self.is_lost or self.is_ended)

    async def wait_settled(self) -> None:
        """Until every verdict given so far is in Redis, or never will be because the call is lost."""
        await self._wait(lambda: self.is_lost or self.is_ended or not self.protocol.inbox.has_unwritten)

    async def wait_ended(self) -> None:
        """Until Redis has the tombstone, or never will because the call is lost."""
        await self._wait(lambda: self.is_ended or self.is_lost)

    async def wait_handed_over(self) -> None:
        """Until Redis has it as nobody's, or never will because it is somebody else's, or over.

        Waits as long as Redis is away: give it a timeout.
        """
        await self._wait(lambda: self.is_lost or self.is_ended)

    async def wait_lost(self) -> None:
        """Until the call belongs to somebody else, or nobody: its owner here must yield and close its legs."""
        await self._wait(lambda: self.is_lost)

    async def _wait(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    # -- for the bus

    def let_go(self) -> None:
        """Nothing more is delivered. What is kept of the call for a new Redis must not keep its session.

        Of its facts nothing is kept but of a call that is handed over: if they are lost now, nobody else has them.
        """
        self._deliver = _nobody
        self.on_interest = None
        if self.protocol.phase not in {Phase.HANDING_OVER, Phase.HANDED_OVER}:
            self.chronicle.close()
        self._agenda.on_noted(self)

    def begin(self) -> None:
        """Deliver what came while the call was being taken, once whoever takes it has had time to keep hold of it."""
        asyncio.get_running_loop().call_soon(self._deliver_early)

    def _deliver_early(self) -> None:
        early, self._early = self._early, None
        self.give(early or [])

    def changed(self) -> None:
        """Wake who waits, to look again."""
        self._changed.set()
        self._changed.clear()

    def on_bell(self, bell: Bell) -> None:
        """The reader's hand-over: deliver or ask for a read, now, without waiting."""
        message = self._readable(bell.envelope) if bell.envelope else None
        entry = Entry(bell.entry_id, bell.message_id, message)
        previous = Position(bell.previous_entry_id, bell.previous_message_id)
        self.give(self.protocol.on_bell(entry, previous, self._clock()))

    def on_look(self) -> None:
        """Somebody has taken the call, or is about to: reading decides, and what is noted is written."""
        self.hurry()
        self.protocol.ask_look()
        self._agenda.on_changed(self)

    def on_outcomes(self, steps: Sequence[Step], outcomes: Sequence[Any]) -> None:
        """The answers of Redis, as far as they came."""
        protocol, restores = self.protocol, self.protocol.restores
        messages = protocol.on_outcomes(steps, outcomes, self._now(), self._clock())
        self._is_handed_over |= protocol.phase is Phase.HANDED_OVER
        if protocol.known is not None:
            names, values = protocol.known[::2], protocol.known[1::2]
            self.known = open_facts(self._seal, zip(names, values, strict=True))
            self.chronicle.begin(self.known, self._now())
            protocol.known = None
        if protocol.restores != restores:
            self.chronicle.on_lost(self._now())
            self._agenda.on_noted(self)
        if (interest := protocol.interest) is not None:
            protocol.interest = None
            self.on_ring(interest)
        self.give(messages)
        self.changed()

    def on_ring(self, ring: Ring) -> None:
        """For how long somebody watches, and listens, as Redis says."""
        self._tell_interest(self.chronicle.on_interest(ring, self._now()))
        self._agenda.on_noted(self)

    def on_tick(self) -> None:
        """Their time may be over."""
        self._tell_interest(self.chronicle.on_tick(self._now()))

    def on_written(self, outcome: Any) -> None:
        """The answer to a flush of the log, or RegionUnreachable."""
        self._tell_interest(self.chronicle.on_outcome(outcome, self._now()))
        if not isinstance(outcome, RegionUnreachable) and outcome[0] != b"held":
            self.on_look()
        elif self.protocol.phase is Phase.HANDING_OVER:
            self._agenda.on_changed(self)  # it may have waited for this
        if self._waits_logged:  # nobody else waits for this, which happens fifty times a second
            self.changed()

    def _tell_interest(self, has_changed: bool) -> None:
        if not has_changed or self.on_interest is None:
            return
        try:
            self.on_interest()
        except Exception:  # noqa: BLE001 - as in `give`
            _log.exception("interest_failed", call=self.id)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def give(self, messages: list[Message]) -> None:
        """Deliver, in order; one session's bug must not deafen every call of the node."""
        if self._early is not None:
            self._early += messages
            messages = []
        for message in messages:
            if self.protocol.phase is not Phase.HELD:
                break  # ended by the delivery before; end() has given the rest their verdict
            self._agenda.on_delivery()
            try:
                self._deliver(message)
            except Exception:  # noqa: BLE001 - see above
                _log.exception("delivery_failed", call=self.id)
                self.protocol.settle(message.id, Status.FAILED, self._clock(), error=_DELIVERY_FAILED)
        self._agenda.on_changed(self)

    def _read_entry(self, entry_id: str, message_id: str, packed: bytes) -> Entry:
        return Entry(entry_id, message_id, self._readable(packed))

    def _readable(self, packed: bytes) -> Message | None:
        try:
            return message_from_envelope(Envelope.unpack(packed, max_bytes=self._message_max_bytes))
        except EnvelopeError as exc:
            self._agenda.on_unreadable(str(exc))
            return None
