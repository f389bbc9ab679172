"""A call that this node owns, as its session sees it: settle messages, end it. Nothing here waits for Redis."""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import structlog

from fanout.core.envelope import Bell, Envelope, EnvelopeError
from fanout.core.inbox import Entry, Inbox, Position, ReadTicket
from fanout.core.keys import CallKeys
from fanout.core.records import message_from_envelope
from fanout.errors import CallEnded, CallTaken
from fanout.messages import CallRecord, Message, Status, Tombstone

_log = structlog.get_logger("fanout")
CALL_ENDED = {"code": "call_ended", "message": "The call ended before the message was done."}
_DELIVERY_FAILED = {"code": "delivery_failed", "message": "The node could not take the message."}


class Agenda(Protocol):
    """What a call asks of the bus; each returns at once."""

    def on_unwritten(self, call: "OwnedCall") -> None:
        """There are verdicts to write."""

    def on_unread(self, call: "OwnedCall") -> None:
        """The stream is to be read."""

    def on_ending(self, call: "OwnedCall") -> None:
        """The tombstone is to be written."""

    def on_unreadable(self, error: str) -> None:
        """Something was there that this version cannot read."""


class OwnedCall:
    """`settle` and `end` note what happened and return at once; the bus writes it, again and again while Redis is away.

    Sync, so that a session may call them from a socket callback. Made by `Fanout.own`, never directly.
    """

    def __init__(
        self,
        record: CallRecord,
        deliver: Callable[[Message], None],
        *,
        keys: CallKeys,
        claim: str,
        agenda: Agenda,
        clock: Callable[[], float],
        message_max_bytes: int,
    ) -> None:
        self.id = record.id
        self.record = record
        self.keys = keys
        self.claim = claim
        self.epoch = 0  # until the claim is written
        self.is_subscribed = False
        self.is_registered = False  # claimed and subscribed, once: from then on the call can be reached
        self.is_lost = False  # it belongs to somebody else, or was ended by somebody else
        self.is_ended = False  # Redis has the tombstone
        self.tombstone: Tombstone | None = None  # set by end(), or found in Redis
        self.delivered = 0
        self.inbox = Inbox()
        self._deliver = deliver
        self._agenda = agenda
        self._clock = clock
        self._message_max_bytes = message_max_bytes
        self._changed = asyncio.Event()

    # -- for the session

    def settle(
        self, message_id: str, status: Status, *, item_id: str | None = None, error: dict[str, Any] | None = None
    ) -> None:
        """Say what became of a delivered message: applied, answered, failed, rejected or expired.

        A verdict only climbs; a lower one, a second end, or one on a message that was never delivered is ignored.
        """
        if self.inbox.settle(message_id, status, self._clock(), item_id=item_id, error=error):
            self._agenda.on_unwritten(self)

    def end(self, tombstone: Tombstone) -> None:
        """Stop receiving and write the tombstone; what has no terminal receipt gets `failed`, code `call_ended`.

        The first one holds; on a call that is lost it does nothing, since the call goes on elsewhere.
        """
        if self.tombstone is not None or self.is_lost:
            return
        self.tombstone = tombstone
        self.inbox.settle_open(self._clock(), CALL_ENDED)
        self._agenda.on_ending(self)

    async def wait_registered(self) -> None:
        """Until the claim is written and the subscription acknowledged: from then on the call can be reached.

        Raises CallTaken or CallEnded where that will never be. Waits as long as Redis is away: give it a timeout.
        """
        await self._wait(lambda: self.is_registered or self.is_lost or self.tombstone is not None)
        if self.tombstone is not None:
            raise CallEnded(self.tombstone)
        if self.is_lost:
            raise CallTaken(self.id)

    async def wait_settled(self) -> None:
        """Until every verdict given so far is in Redis, or never will be because the call is lost."""
        await self._wait(lambda: self.is_lost or self.is_ended or not self.inbox.has_unwritten)

    async def wait_ended(self) -> None:
        """Until Redis has the tombstone, or never will because the call is lost."""
        await self._wait(lambda: self.is_ended or self.is_lost)

    async def wait_lost(self) -> None:
        """Until the call belongs to somebody else: its owner here must yield and close its legs."""
        await self._wait(lambda: self.is_lost)

    async def _wait(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    # -- for the bus

    def changed(self) -> None:
        """Wake who waits, to look again."""
        self._changed.set()
        self._changed.clear()

    def on_bell(self, bell: Bell) -> None:
        """The reader's hand-over: deliver or ask for a read, now, without waiting."""
        message = self._readable(bell.envelope) if bell.envelope else None
        entry = Entry(bell.entry_id, bell.message_id, message)
        previous = Position(bell.previous_entry_id, bell.previous_message_id)
        self._hand_over(self.inbox.on_bell(entry, previous, self._clock()))

    def on_entries(self, entries: list[tuple[str, str, bytes]], last: Position, ticket: ReadTicket) -> None:
        """What a read of the stream brought: entry id, message id, envelope."""
        readable = [Entry(entry_id, message_id, self._readable(packed)) for entry_id, message_id, packed in entries]
        self._hand_over(self.inbox.on_entries(readable, last, ticket, self._clock()))

    def _readable(self, packed: bytes) -> Message | None:
        try:
            return message_from_envelope(Envelope.unpack(packed, max_bytes=self._message_max_bytes))
        except EnvelopeError as exc:
            self._agenda.on_unreadable(str(exc))
            return None

    def _hand_over(self, messages: list[Message]) -> None:
        for message in messages:
            if self.tombstone is not None or self.is_lost:
                break  # ended by the delivery before; end() has given the rest their verdict
            self.delivered += 1
            try:
                self._deliver(message)
            except Exception:  # noqa: BLE001 - one session's bug must not deafen every call of the node
                _log.exception("delivery_failed", call=self.id)
                self.inbox.settle(message.id, Status.FAILED, self._clock(), error=_DELIVERY_FAILED)
        if self.inbox.has_unwritten:
            self._agenda.on_unwritten(self)
        if self.inbox.needs_read:
            self._agenda.on_unread(self)
