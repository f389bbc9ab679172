"""A node's place on the bus, and the whole of what the rest of the relay calls: put, read, own."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import structlog

from fanout.core.envelope import Envelope, EnvelopeError
from fanout.core.keys import Keys
from fanout.directory import Directory
from fanout.errors import CallNotFound, RegionUnreachable
from fanout.ids import home_region
from fanout.link import Link
from fanout.messages import CallPage, CallRecord, Message, Receipt, Status, Tombstone
from fanout.owned import OwnedCall
from fanout.owner import Owner
from fanout.publisher import Publisher
from fanout.settings import BusSettings
from fanout.subscriber import Subscriber
from fanout.tasks import Tasks

_log = structlog.get_logger("fanout")
_ENVELOPE_OVERHEAD = 64 * 1024  # of a receipt with the model's error in it


class RegionBus:
    """All that a node has to do with one region's Redis."""

    def __init__(self, name: str, url: str, settings: BusSettings, *, clock: Callable[[], float], tasks: Tasks) -> None:
        self.name = name
        self._settings = settings
        self._keys = Keys(settings.prefix)
        self._channel = self._keys.node_channel(settings.node)
        self._changed = asyncio.Event()
        self._unreadable = 0
        self.link = Link(name, url, settings)
        self.subscriber = Subscriber(
            self.link, settings, on_message=self._on_message, on_subscribed=self._on_subscribed
        )
        self.owner = Owner(self.link, self._keys, settings, clock=clock, subscriber=self.subscriber)
        self.publisher = Publisher(self.link, self._keys, settings, clock=clock, tasks=tasks)
        self.directory = Directory(self.link, self._keys)
        self.subscriber.want(self._channel)
        tasks.keep(self.subscriber.work, name=f"subscriber {name}")
        tasks.keep(self.owner.work, name=f"owner {name}")
        tasks.keep(self._beat, name=f"heartbeat {name}")

    @property
    def is_connected(self) -> bool:
        """Whether replies and our own heartbeat can reach this node."""
        return self.subscriber.holds(self._channel)

    async def wait_connected(self) -> None:
        """Until they can."""
        while not self.is_connected:
            await self._changed.wait()

    def _on_subscribed(self, channel: str) -> None:
        if channel == self._channel:
            self.owner.on_reconnected()
            self._changed.set()
            self._changed.clear()
        else:
            self.owner.on_subscribed(channel)

    def _on_message(self, channel: str, data: bytes) -> None:
        if channel != self._channel:
            self.owner.on_bell(channel, data)
            return
        try:
            envelope = Envelope.unpack(data, max_bytes=self._settings.message_max_bytes + _ENVELOPE_OVERHEAD)
        except EnvelopeError as exc:
            self._unreadable += 1
            if self._unreadable == 1:
                _log.warning("unreadable_envelope", region=self.name, error=str(exc))
            return
        if envelope.kind == "receipt":
            self.publisher.on_receipt(envelope)

    async def _beat(self) -> None:
        """Say that the node lives, to all by a key and to our own subscription by a message."""
        settings = self._settings
        key, ttl_ms = self._keys.node_alive(settings.node), int(settings.node_ttl_seconds * 1000)
        beat = Envelope("heartbeat", "", "", settings.node, 0.0, "", b"").pack()
        while True:
            self.subscriber.check_silence()
            started = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(settings.heartbeat_seconds):
                    await self.link.commands(
                        [("SET", key, settings.region, "PX", ttl_ms), ("PUBLISH", self._channel, beat)]
                    )
            except (RegionUnreachable, TimeoutError):
                pass  # counted by the link; the silence it leaves is what check_silence sees
            spent = asyncio.get_running_loop().time() - started
            await asyncio.sleep(max(0.0, settings.heartbeat_seconds - spent))

    async def finish(self) -> None:
        """The last words, if Redis takes them in time."""
        try:
            async with asyncio.timeout(self._settings.close_seconds):
                while not self.owner.is_idle:
                    await self.owner.wait_written()
                await self.link.commands([("DEL", self._keys.node_alive(self._settings.node))])
        except (RegionUnreachable, TimeoutError):
            pass

    def status(self) -> dict[str, int]:
        """Plain numbers, for the status page and the metrics."""
        return {
            "connected": int(self.is_connected),
            "connects": self.subscriber.connects,
            "redis_errors": self.link.errors,
            "wanted": self.subscriber.wanted,
            "held": self.subscriber.held,
            "messages": self.subscriber.messages,
            "unreadable_envelopes": self._unreadable,
            **self.owner.counts,
            **self.publisher.counts,
        }


class Fanout:
    """Get one from `Fanout.running`."""

    def __init__(self, settings: BusSettings, *, clock: Callable[[], float], tasks: Tasks) -> None:
        self._settings = settings
        self._tasks = tasks
        self._regions = {
            name: RegionBus(name, url, settings, clock=clock, tasks=tasks) for name, url in settings.regions.items()
        }

    @classmethod
    @asynccontextmanager
    async def running(cls, settings: BusSettings, *, clock: Callable[[], float]) -> AsyncIterator["Fanout"]:
        """The bus, working, for the length of the block. Doesn't wait for Redis: a node starts without it.

        `clock` is wall time in seconds since the epoch. At the end what is still to be written has `close_seconds`.
        """
        pauses = {"first_pause": settings.backoff_seconds, "longest_pause": settings.backoff_max_seconds}
        async with AsyncExitStack() as links, Tasks(**pauses) as tasks:
            bus = cls(settings, clock=clock, tasks=tasks)
            for region in bus._regions.values():
                links.push_async_callback(region.link.close)
            try:
                yield bus
            finally:
                async with asyncio.TaskGroup() as group:
                    for region in bus._regions.values():
                        group.create_task(region.finish())

    async def put(self, call_id: str, tenant: str, message: Message, *, wait: Status, timeout: float) -> Receipt:
        """Put a message into a call, wherever it lives; returns once its receipt reached `wait`, or at the timeout.

        At the timeout the receipt so far is returned and the message goes on by itself. The same id again is the same
        message and gets the same receipt. Raises CallNotFound, CallNotStarted, CallEnded, InboxFull,
        IdempotencyConflict, MessageTooLarge, BusFull, BusTimeout (not written), RegionUnreachable (unknown whether
        written; a repeat with the same id is safe).
        """
        return await self._home(call_id).publisher.put(call_id, tenant, message, wait=wait, timeout=timeout)

    async def receipt(self, call_id: str, tenant: str, message_id: str) -> Receipt | None:
        """What became of a message. Raises CallNotFound, RegionUnreachable."""
        return await self._home(call_id).directory.receipt(call_id, tenant, message_id)

    async def call(self, call_id: str, tenant: str) -> CallRecord | Tombstone | None:
        """A live call, an ended one within the hour, or None; another tenant's is None. Raises RegionUnreachable."""
        region = self._regions.get(home_region(call_id) or "")
        return None if region is None else await region.directory.call(call_id, tenant)

    async def calls(self, tenant: str, *, limit: int = 20, after: str | None = None) -> CallPage:
        """Live calls of a tenant in all regions, newest first; `after` is the last id of the page before.

        Raises CallNotFound if `after` is unknown, RegionUnreachable if its region is away.
        """
        start: tuple[float, str] | None = None
        if after is not None:
            known = await self.call(after, tenant)
            if known is None:
                raise CallNotFound(after)
            start = (known.started_at, after)
        found: list[CallRecord] = []
        unreachable: list[str] = []

        async def ask(region: RegionBus) -> None:
            try:
                found.extend(await region.directory.calls(tenant, limit + 1, start))
            except RegionUnreachable:
                unreachable.append(region.name)

        async with asyncio.TaskGroup() as group:
            for region in self._regions.values():
                group.create_task(ask(region))
        found.sort(key=lambda record: (record.started_at, record.id), reverse=True)
        return CallPage(calls=found[:limit], has_more=len(found) > limit, unreachable_regions=sorted(unreachable))

    async def reserve(self, call_id: str, tenant: str, *, seconds: float) -> None:
        """Hold a call id for a client that will come: until then a message to it is CallNotStarted.

        Raises CallTaken if the id is in use, RegionUnreachable.
        """
        await self._home(call_id).directory.reserve(call_id, tenant, seconds)

    def own(self, record: CallRecord, deliver: Callable[[Message], None]) -> OwnedCall:
        """This node holds the call. Never waits: it registers when Redis allows (`OwnedCall.wait_registered`).

        `deliver` gets each message once, in order, in the bus's reader: it must return at once. Raises ValueError for a
        call whose home is no configured region, or that this node owns already.
        """
        region = self._regions.get(home_region(record.id) or "")
        if region is None:
            raise ValueError(f"{record.id}: its home is no configured region")
        return region.owner.own(record, deliver)

    async def wait_connected(self) -> None:
        """Until every region has acknowledged this node's own channel. For tests and logs; not for readiness."""
        for region in self._regions.values():
            await region.wait_connected()

    def status(self) -> dict[str, Any]:
        """What this node sees of each region: plain integers, no URL."""
        return {
            "node": self._settings.node,
            "task_failures": self._tasks.failures,
            "regions": {name: region.status() for name, region in self._regions.items()},
        }

    def _home(self, call_id: str) -> RegionBus:
        region = self._regions.get(home_region(call_id) or "")
        if region is None:
            raise CallNotFound(call_id)
        return region
