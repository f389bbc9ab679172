"""A publisher for backends in Python: puts messages into live calls, and asks for receipts, with no node in between.

It speaks to the homes' Redises as a node does, and owns no call. It needs neither aiohttp nor picows.

    async with Publisher.from_env() as publisher:
        receipt = await publisher.put(
            call_id,
            {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "Lunch is ready."}]},
            wait="applied",
        )
        print(receipt.status.value, receipt.error)
"""

import os
import secrets
import socket
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from fanout.errors import InvalidItem
from fanout.items import read_message
from fanout.messages import CallRecord, Message, Receipt, Status, Tombstone
from fanout.node import Fanout
from fanout.regions import read_regions
from fanout.settings import BusSettings

_TENANT: Final = "dev"  # what `relay token` signs for, unless told otherwise
_WAITS: Final = (Status.ACCEPTED, Status.DELIVERED, Status.APPLIED, Status.ANSWERED)
_RENAMED: Final = {"expires_in_ms": "expires_in"}  # fields that have another name here than in the JSON body


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
    ) -> None:
        """Args:
            regions: every home with the URL of its Redis, as the nodes have it: a call's id names its home.
            tenant: whose calls it sees; another tenant's look as if they were not there.
            prefix: of keys and channels, as the nodes have it.
            name: shown in receipts; default the host's. The process's id and a random part follow it: no two share one.
            node_ttl_seconds: as the nodes have it: it says for how long a new Redis is not believed to lack a call.

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
        )
        self._stack = AsyncExitStack()
        self._bus: Fanout | None = None

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Self:
        """As the nodes' variables say: RELAY_REGIONS, RELAY_PREFIX, RELAY_BUS_NODE_TTL_SECONDS; RELAY_NODE is the name.

        RELAY_TENANT says whose calls; default "dev".

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
        return cls(
            regions,
            tenant=given.get("RELAY_TENANT", _TENANT),
            prefix=given.get("RELAY_PREFIX", BusSettings.prefix),
            name=given.get("RELAY_NODE"),
            node_ttl_seconds=ttl,
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
        when: str = "now",
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
            when: "now"; other moments are not available yet.
            visible: other values are not available yet.
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
        status = Status(wait)
        if status not in _WAITS:
            raise ValueError(f"wait: must be one of {', '.join(each.value for each in _WAITS)}")
        fields = {"item": item, "response": response, "when": when, "visible": visible, "id": id}
        message = _message({**fields, "expires_in_ms": round(expires_in * 1000)})
        return await self._running().put(call_id, self._tenant, message, wait=status, timeout=timeout)

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

    def _running(self) -> Fanout:
        if self._bus is None:
            raise RuntimeError("use it within its block: async with Publisher(…) as publisher")
        return self._bus


def _message(fields: dict[str, Any]) -> Message:
    """Through the same JSON as the HTTP surface's, so that both take and refuse the same."""
    try:
        body = msgspec.json.encode(fields)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidItem(None, f"cannot be written as JSON: {error}") from None
    try:
        return read_message(body, wall=time.time())
    except InvalidItem as error:
        if error.param not in _RENAMED:
            raise
        raise InvalidItem(_RENAMED[error.param], str(error)) from None
