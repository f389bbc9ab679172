"""Nodes for end-to-end tests on a Redis that has settled: no test waits for a new one to be trusted."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.demo import declare_settled
from tests.support.fleet import Nodes
from tests.support.redis_server import RedisServer


@pytest.fixture
async def nodes(nodes: Nodes, redis_server: RedisServer) -> Nodes:
    """The nodes of tests/conftest.py; the keys of their prefix are new, the Redis is not."""
    await declare_settled(redis_server.url, nodes.prefix)
    return nodes


@pytest.fixture
async def doomed(tmp_path: Path) -> AsyncIterator[tuple[RedisServer, Nodes]]:
    """A Redis that the test may break, and nodes on it."""
    server = RedisServer().start()
    try:
        async with Nodes.running(server.url, tmp_path) as nodes:
            await declare_settled(server.url, nodes.prefix)
            yield server, nodes
    finally:
        await asyncio.to_thread(server.stop)
