"""What the bus tests share: nodes on a Redis of their own, a stand-in for a call's session, ways to put and wait."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fanout import BusSettings, CallRecord, Fanout, Message, OwnedCall, Receipt, Status, Tombstone, new_call_id
from fanout.redis import open_store
from fanout.store import Listener, Store
from tests.support.memory_store import MemoryHome
from tests.support.redis_server import RedisServer
from tests.support.redis_sets import ClusterSet, SentinelSet

# Everything faster than in production, so that no test waits for a period.
QUICK: dict[str, Any] = {
    "sweep_seconds": 0.2,
    "heartbeat_seconds": 0.1,
    "silence_seconds": 0.5,
    "socket_timeout": 0.4,
    "backoff_seconds": 0.02,
    "backoff_max_seconds": 0.1,
    "repeat_seconds": 0.1,
    "close_seconds": 1.0,
    "node_ttl_seconds": 0.6,
    "margin_seconds": 0.1,
    "rewrite_seconds": 0.1,
    "circuit_seconds": 1.0,
}


class Bus(ABC):
    """Nodes on something that holds their keys."""

    url: str

    @asynccontextmanager
    async def nodes(self, *names: str, **changes: Any) -> AsyncIterator[list[Fanout]]:
        """Nodes by name, connected; when they are gone, neither a task nor a subscription of theirs is left."""
        settings = {"region": "iad", "regions": {"iad": self.url}, "prefix": "test", **QUICK, **changes}
        tasks_before, channels_before = asyncio.all_tasks(), set(self.channels())
        async with AsyncExitStack() as stack:
            nodes = [
                await stack.enter_async_context(
                    Fanout.running(BusSettings(node=name, **settings), clock=time.time, open_store=self.open_store)
                )
                for name in names
            ]
            if "regions" not in changes:
                async with asyncio.timeout(10):
                    for node in nodes:
                        await node.wait_connected()
            yield nodes
            assert [node.status()["task_failures"] for node in nodes] == [0] * len(nodes)
        assert asyncio.all_tasks() <= tasks_before
        await eventually(lambda: set(self.channels()) <= channels_before)

    async def settle(self) -> None:
        """Until Redis has been there for so long that what it doesn't know is known not to be."""
        async with self.nodes("settling") as (node,):
            await eventually(lambda: node.status()["regions"]["iad"]["phase"] == "normal")

    def open_store(self, name: str, url: str, settings: BusSettings, listener: Listener) -> Store:
        """What `Fanout.running` is given."""
        return open_store(name, url, settings, listener)

    @abstractmethod
    def keys(self) -> dict[str, float]:
        """Every key of a call or a node with its time to live in seconds, negative for none."""

    @abstractmethod
    def channels(self) -> list[str]:
        """What anybody is subscribed to."""

    @abstractmethod
    def clean(self) -> None:
        """Remove what a test left, but not the knowledge that this Redis is an old one."""

    @abstractmethod
    def stop(self) -> None:
        """End of the tests."""


class RedisBus(Bus):
    """On real servers: one, a Sentinel set or a cluster."""

    def __init__(self, stands_on: RedisServer | SentinelSet | ClusterSet) -> None:
        self.server = stands_on
        self.url = stands_on.url

    def primaries(self) -> list[RedisServer]:
        """The servers that hold the keys now."""
        match self.server:
            case SentinelSet():
                return [self.server.master]
            case ClusterSet():
                return self.server.primaries()
            case server:
                return [server] if server.is_running else []

    def keys(self) -> dict[str, float]:
        found = {key: server.command("PTTL", key) for server in self.primaries() for key in server.command("KEYS", "*")}
        return {key: ttl / 1000 for key, ttl in found.items() if not key.endswith(":generation")}

    def channels(self) -> list[str]:
        return [channel for server in self.primaries() for channel in server.command("PUBSUB", "SHARDCHANNELS")]

    def drop_subscribers(self) -> None:
        """Close every connection that carries channels, but those of sentinels: they would take it for a failure."""
        for server in self.primaries():
            for client in server.command("CLIENT", "LIST", "TYPE", "pubsub").splitlines():
                fields = dict(field.split("=", 1) for field in client.split(" "))
                if not fields["name"].startswith("sentinel-"):
                    server.command("CLIENT", "KILL", "ID", fields["id"])

    def clean(self) -> None:
        for server in self.primaries():
            for key in server.command("KEYS", "*"):
                if not key.endswith(":generation"):
                    server.command("DEL", key)

    def stop(self) -> None:
        self.server.stop()


class MemoryBus(Bus):
    """On the double."""

    url = "memory"

    def __init__(self) -> None:
        self.home = MemoryHome()

    def open_store(self, name: str, url: str, settings: BusSettings, listener: Listener) -> Store:
        if url != self.url:
            return super().open_store(name, url, settings, listener)
        return self.home.open_store(name, url, settings, listener)

    def keys(self) -> dict[str, float]:
        return {key: ttl for key, ttl in self.home.keys().items() if not key.endswith(":generation")}

    def channels(self) -> list[str]:
        return self.home.channels()

    def clean(self) -> None:
        for key in self.keys():
            self.home.model.delete(key)

    def stop(self) -> None:
        pass


class Session:
    """Stands for a call's session on its owner: keeps what it is given and, if told to, applies it at once."""

    call: OwnedCall

    def __init__(
        self,
        node: Fanout,
        *,
        call_id: str | None = None,
        applies: bool = True,
        started_at: float = 1.0,
        takes: bool = False,
    ):
        self.id = call_id or new_call_id("iad")
        self.applies = applies
        self.got: list[Message] = []
        self.record = CallRecord(
            id=self.id,
            tenant="acme",
            node=node.status()["node"],
            region="iad",
            agent="default",
            model="gpt",
            started_at=started_at,
        )
        if not takes:
            self.call = node.own(self.record, self._deliver)

    def _deliver(self, message: Message) -> None:
        self.got.append(message)
        if self.applies:
            self.call.settle(message.id, Status.APPLIED, memory=message.id.encode())

    @property
    def ids(self) -> list[str]:
        return [message.id for message in self.got]

    def end(self, why: str = "client_left") -> None:
        record = self.record
        self.call.end(
            Tombstone(
                id=self.id,
                tenant=record.tenant,
                node=record.node,
                region=record.region,
                started_at=record.started_at,
                ended_at=record.started_at + 1,
                why=why,
                fault="client",
            )
        )


async def live(node: Fanout, **changes: Any) -> Session:
    session = Session(node, **changes)
    async with asyncio.timeout(5):
        await session.call.wait_registered()
    return session


async def taken(node: Fanout, call_id: str, **changes: Any) -> Session:
    """The call, taken over from whoever has it."""
    session = Session(node, call_id=call_id, takes=True, **changes)
    async with asyncio.timeout(5):
        session.call = await node.take(session.record, session._deliver)
    return session


def message(message_id: str, **changes: Any) -> Message:
    return Message(**{"id": message_id, "item": b'{"type":"message"}', "expires_at": time.time() + 60, **changes})


async def put(
    node: Fanout, call_id: str, sent: Message, wait: Status = Status.APPLIED, timeout: float = 5.0, tenant: str = "acme"
) -> Receipt:
    return await node.put(call_id, tenant, sent, wait=wait, timeout=timeout)


async def eventually(condition: Callable[[], bool]) -> None:
    """For what happens in another process, or without anybody's being told."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)
