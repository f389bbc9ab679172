"""For backends in Python: puts messages into live calls, reads what happens in them, with no node in between.

It speaks to the homes' Redises as a node does, and owns no call. It needs neither aiohttp nor picows.

    async with Publisher.from_env() as publisher:
        receipt = await publisher.put(
            call_id,
            {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "Lunch is ready."}]},
            wait="applied",
        )
        print(receipt.status.value, receipt.error)
        async for event in publisher.events(call_id):
            print(event.kind, event.data)
"""

import asyncio
import os
import secrets
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import msgspec

from fanout.errors import CallNotFound, InvalidItem, ReaderTooSlow
from fanout.items import Lifetime, MessageId, decode, event_message, hangup_message, read_message
from fanout.messages import CallFilter, CallPage, CallRecord, Facts, LogEntry, Message, Receipt, Status, Tombstone
from fanout.node import Fanout
from fanout.regions import read_regions
from fanout.sealing import read_memory_keys
from fanout.settings import MIB, BusSettings

_TENANT: Final = "dev"  # what `relay token` signs for, unless told otherwise
_WAITS: Final = (Status.ACCEPTED, Status.DELIVERED, Status.APPLIED, Status.ANSWERED)
_RENAMED: Final = {"expires_in_ms": "expires_in"}  # fields that have another name here than in the JSON body
_WAITING_MAX: Final = 1000  # events of one call that wait to be taken: beyond it the reader is told that it is too slow
_WAITING_MAX_BYTES: Final = 4 * MIB


class Event(NamedTuple):
    """Something that happened in a call.

    `kind` is event (of the Realtime API), audio (an append or a delta, the same), session (as it is now), gap (events
    are missing here), or ended (the last one: the call, with why it ended). `position` is what to give as `after` to go
    on behind it; empty where there is nothing to go on behind.
    """

    position: str
    kind: str
    body: bytes  # JSON

    @property
    def data(self) -> dict[str, Any]:
        """The body, decoded."""
        decoded: dict[str, Any] = msgspec.json.decode(self.body or b"{}")
        return decoded


class _EventBody(msgspec.Struct, frozen=True):
    """What makes an event a message; the rest of it is the model's to judge."""

    type: str
    expires_in_ms: Lifetime
    id: MessageId | None


class Publisher:
    """One tenant's way into its calls, of any home; an async context manager, entered and left in one task.

    Keep one for the life of the process: it holds a few connections per Redis, and repeats what is under way until its
    receipt says how it ended. Leaving the block doesn't wait for that: what was accepted is in the call's inbox. Any
    number of tasks may `put` at once; messages of one publisher to one call arrive in the order of their `put`s.
    """

    def __init__(
        self,
        regions: Mapping[str, str],
        *,
        tenant: str = _TENANT,
        prefix: str = BusSettings.prefix,
        name: str | None = None,
        node_ttl_seconds: float = BusSettings.node_ttl_seconds,
        memory_keys: Mapping[str, bytes] | None = None,
    ) -> None:
        """Args:
            regions: every home with the URL of its Redis, as the nodes have it: a call's id names its home.
            tenant: whose calls it sees; another tenant's look as if they were not there.
            prefix: of keys and channels, as the nodes have it.
            name: shown in receipts; default the host's. The process's id and a random part follow it: no two share one.
            node_ttl_seconds: as the nodes have it: it says for how long a new Redis is not believed to lack a call.
            memory_keys: by id, 32 bytes each, as the nodes have them: what is sealed with another is left out.

        Raises:
            ValueError: a setting cannot be used.
        """
        self._tenant = tenant
        self._settings = BusSettings(
            node=f"publisher-{name or socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}",
            region="",
            regions=dict(regions),
            prefix=prefix,
            node_ttl_seconds=node_ttl_seconds,
            memory_keys=memory_keys or {},
        )
        self._stack = AsyncExitStack()
        self._bus: Fanout | None = None

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Self:
        """As the nodes' variables say: RELAY_REGIONS, RELAY_PREFIX, RELAY_BUS_NODE_TTL_SECONDS; RELAY_NODE is the name.

        RELAY_MEMORY_KEYS too, where transcripts are read. RELAY_TENANT says whose calls; default "dev".

        Raises:
            ValueError: a bad or a missing value; it names the variable and shows no URL.
        """
        given = {key: value.strip() for key, value in env.items() if value.strip()}
        try:
            regions = read_regions(given.get("RELAY_REGIONS", ""))
        except ValueError as error:
            raise ValueError(f"RELAY_REGIONS: {error}") from None
        if not regions:
            raise ValueError("RELAY_REGIONS: must be set: iad=redis://…,lhr=redis://…")
        try:
            ttl = float(given.get("RELAY_BUS_NODE_TTL_SECONDS", BusSettings.node_ttl_seconds))
        except ValueError as error:
            raise ValueError(f"RELAY_BUS_NODE_TTL_SECONDS: {error}") from None
        try:
            memory_keys = read_memory_keys(given.get("RELAY_MEMORY_KEYS", ""))
        except ValueError as error:
            raise ValueError(f"RELAY_MEMORY_KEYS: {error}") from None
        return cls(
            regions,
            tenant=given.get("RELAY_TENANT", _TENANT),
            prefix=given.get("RELAY_PREFIX", BusSettings.prefix),
            name=given.get("RELAY_NODE"),
            node_ttl_seconds=ttl,
            memory_keys=memory_keys,
        )

    async def __aenter__(self) -> Self:
        """Begin to connect. Waits for no Redis: the first `put` does, and says if none is there."""
        self._bus = await self._stack.enter_async_context(Fanout.running(self._settings, clock=time.time))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bus = None
        await self._stack.aclose()

    async def put(
        self,
        call_id: str,
        item: Mapping[str, Any],
        *,
        wait: str | Status = "accepted",
        timeout: float = 5.0,
        response: bool | Mapping[str, Any] | None = None,
        when: str | None = None,
        visible: bool = True,
        expires_in: float = 60.0,
        id: str | None = None,  # noqa: A002  # its name in the HTTP surface
    ) -> Receipt:
        """Put an item into a live call; returns once its receipt has reached `wait`, or ended otherwise, or in time.

        Args:
            call_id: names the call, and its home.
            item: a message or a tool result of the Realtime API.
            wait: accepted (written), delivered (its owner has it), applied (the model took it), or answered.
            timeout: seconds. When they are over the receipt so far is returned, and the message goes on by itself.
            response: whether the model shall answer, or the fields of its `response.create`. Default: to a tool result.
            when: "now", "turn_end" (nobody speaks, no response is under way) or "interrupt" (cuts the model off).
                Default: turn_end where a response is asked for, else now.
            visible: whether the call's client sees the item and its events.
            expires_in: seconds, up to an hour, after which it is never given to the model.
            id: the same id twice is one message with one receipt. Give one if you may repeat it in another process.

        Raises:
            InvalidItem: a field is wrong; `param` names it.
            CallNotFound, CallNotStarted, CallEnded: no such call, not yet, no longer.
            IdempotencyConflict: the id was used for another body.
            InboxFull, BusFull, MessageTooLarge: the call, or this publisher, has no room for it.
            BusTimeout: earlier messages to the call were in the way; nothing was written.
            CallStateUnknown: the home's Redis is new and does not know; nothing was written. Ask again in some seconds.
            RegionUnreachable: the home's Redis did not answer. Whether it was written is unknown: repeat with the same
                `id`, and it is one message all the same. Without an `id` of yours a repeat may be a second message.
        """
        fields = {"item": item, "response": response, "when": when, "visible": visible, "id": id}
        message = _message({**fields, "expires_in_ms": round(expires_in * 1000)})
        return await self._put(call_id, message, wait, timeout)

    async def send_event(
        self,
        call_id: str,
        event: Mapping[str, Any],
        *,
        wait: str | Status = "accepted",
        timeout: float = 5.0,
        expires_in: float = 60.0,
        id: str | None = None,  # noqa: A002  # as for `put`
    ) -> Receipt:
        """Send the model what the call's client could send it: `session.update`, `response.create` and so on.

        Args:
            call_id: names the call, and its home.
            event: a client event of the Realtime API. Not `input_audio_buffer.append`: audio comes from the client.
            wait: as for `put`; answered is the response to a `response.create`.
            timeout: as for `put`.
            expires_in: as for `put`.
            id: as for `put`. It is not the event's `event_id`, which the model's error names.

        Raises:
            InvalidItem and all others: as for `put`.
        """
        return await self._put(call_id, _event_message(event, expires_in, id), wait, timeout)

    async def hangup(self, call_id: str, *, wait: str | Status = "applied", timeout: float = 5.0) -> Receipt:
        """End a live call; returns the receipt: applied, or failed with the code `call_ended` if it ended by itself.

        Raises:
            CallNotFound, CallNotStarted, CallEnded and the others: as for `put`. To repeat it is safe.
        """
        return await self._put(call_id, hangup_message(wall=time.time()), wait, timeout)

    async def receipt(self, call_id: str, message_id: str) -> Receipt | None:
        """What became of a message, whoever put it in; None if the call never had it, or had it too long ago.

        Raises:
            CallNotFound, CallStateUnknown, RegionUnreachable: as for `put`.
            fanout.core.envelope.EnvelopeError: a newer version wrote it.
        """
        return await self._running().receipt(call_id, self._tenant, message_id)

    async def call(self, call_id: str) -> CallRecord | Tombstone | None:
        """A live call, one that ended within the hour, or None.

        Raises:
            CallStateUnknown, RegionUnreachable: as for `put`.
        """
        return await self._running().call(call_id, self._tenant)

    async def calls(
        self,
        limit: int = 20,
        after: str | None = None,
        *,
        region: str = "",
        node: str = "",
        agent: str = "",
        state: str = "",
    ) -> CallPage:
        """Live calls in all regions, newest first; only those for which all that is given holds.

        Args:
            limit: at most so many.
            after: the `last_id` of the page before.
            region: of the node that has the call; the call's home is in its id.
            node: that has the call.
            agent: of the call.
            state: live, or moving (its node is gone; its client may bring it back).

        Raises:
            CallNotFound: `after` is unknown.
            CallStateUnknown, RegionUnreachable: that is not known, as for `put`. Other regions that are away are no
                error: the page names them.
        """
        where = CallFilter(region=region, node=node, agent=agent, state=state)
        return await self._running().calls(self._tenant, limit=limit, after=after, where=where)

    async def facts(self, call_id: str) -> Facts:
        """What is known of a call now, or was at its end within the hour: JSON by name.

        `session` is the effective session, `usage` what it used, `item.<number>` an entry of the transcript.

        Raises:
            CallNotFound, CallStateUnknown, RegionUnreachable: as for `put`.
        """
        return await self._running().facts(call_id, self._tenant)

    async def transcript(self, call_id: str) -> list[dict[str, Any]]:
        """The conversation so far, or of a call that ended within the hour: its items in order, without audio.

        Each has what applies of id, type, role, text, name, call_id, arguments, output, status and at. Of a very long
        call the oldest are gone; the fact `dropped` says how many.

        Raises:
            CallNotFound, CallStateUnknown, RegionUnreachable: as for `put`.
        """
        return [msgspec.json.decode(entry) for entry in (await self.facts(call_id)).entries]

    async def events(self, call_id: str, after: str | None = None, audio: bool = False) -> AsyncIterator[Event]:
        """What happens in a call from now on, in order, until it ends; also in one that is only reserved.

        First comes the session, if there is one, last the end. While Redis is away it waits. Who leaves the loop early
        should close the iterator (`contextlib.aclosing`), which ends the subscription at once.

        Args:
            call_id: names the call, and its home.
            after: a position to go on behind, as far as it is still kept; what is missing is an event of kind gap.
            audio: whether to hear the call, too. It is never kept: there is none of the time before.

        Raises:
            CallNotFound: no such call, or nothing is known of it any more.
            CallEnded: it is over. With `after` the rest of its events comes instead, then its end.
            ReaderTooSlow: a thousand events, or 4 MiB of them, wait to be taken. Its `position` is where to go on.
            BusFull: this publisher reads as many calls as it may.
            CallStateUnknown, RegionUnreachable: as for `put`, and only at the start.
        """
        waiting = _Waiting()
        position = after
        async with self._running().watch(call_id, self._tenant, waiting.add, after=after, audio=audio) as watch:
            watch.on_end = waiting.wake
            if watch.session is not None:
                yield Event("", "session", watch.session)
            while True:
                while waiting.entries:
                    event = Event(*waiting.take())
                    position = event.position or position
                    yield event
                if waiting.is_over:
                    raise ReaderTooSlow(call_id, _WAITING_MAX, position)
                if watch.end is not None:
                    break
                await waiting.wait()
        if watch.end.tombstone is None:
            raise CallNotFound(call_id)
        yield Event("", "ended", msgspec.json.encode(watch.end.tombstone.to_public()))

    async def _put(self, call_id: str, message: Message, wait: str | Status, timeout: float) -> Receipt:
        status = Status(wait)
        if status not in _WAITS:
            raise ValueError(f"wait: must be one of {', '.join(each.value for each in _WAITS)}")
        return await self._running().put(call_id, self._tenant, message, wait=status, timeout=timeout)

    def _running(self) -> Fanout:
        if self._bus is None:
            raise RuntimeError("use it within its block: async with Publisher(…) as publisher")
        return self._bus


class _Waiting:
    """Entries that nobody has taken yet. Beyond its bound no further one is kept."""

    def __init__(self) -> None:
        self.entries: deque[LogEntry] = deque()
        self.is_over = False
        self._bytes = 0
        self._changed = asyncio.Event()

    def add(self, entry: LogEntry) -> None:
        """The watch's delivery."""
        size = self._bytes + len(entry.body)
        self.is_over = self.is_over or len(self.entries) >= _WAITING_MAX or size > _WAITING_MAX_BYTES
        if not self.is_over:
            self.entries.append(entry)
            self._bytes = size
        self.wake()

    def take(self) -> LogEntry:
        """The oldest."""
        entry = self.entries.popleft()
        self._bytes -= len(entry.body)
        return entry

    def wake(self) -> None:
        """There is something to look at."""
        self._changed.set()

    async def wait(self) -> None:
        """Until there is."""
        await self._changed.wait()
        self._changed.clear()


def _message(fields: dict[str, Any]) -> Message:
    """Through the same JSON as the HTTP surface's, so that both take and refuse the same."""
    body = _encode(fields)
    try:
        return read_message(body, wall=time.time())
    except InvalidItem as error:
        raise _as_named_here(error) from None


def _event_message(event: Mapping[str, Any], expires_in: float, message_id: str | None) -> Message:
    if not isinstance(event, Mapping):
        raise InvalidItem("event", "must be a mapping with the fields of a client event")
    fields = {"type": event.get("type"), "expires_in_ms": round(expires_in * 1000), "id": message_id}
    item = _encode(event)
    try:
        body = decode(_encode(fields), _EventBody)
    except InvalidItem as error:
        raise _as_named_here(error) from None
    return event_message(item, body.type, message_id=body.id, expires_at=time.time() + body.expires_in_ms / 1000)


def _encode(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidItem(None, f"cannot be written as JSON: {error}.") from None


def _as_named_here(error: InvalidItem) -> InvalidItem:
    return InvalidItem(_RENAMED.get(error.param or "", error.param), str(error), code=error.code)
