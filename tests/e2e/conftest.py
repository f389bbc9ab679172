"""Nodes for end-to-end tests on a Redis that has settled: no test waits for a new one to be trusted."""

import pytest

from relay.demo import declare_settled
from tests.support.fleet import Nodes
from tests.support.redis_server import RedisServer


@pytest.fixture
async def nodes(nodes: Nodes, redis_server: RedisServer) -> Nodes:
    """The nodes of tests/conftest.py; the keys of their prefix are new, the Redis is not."""
    await declare_settled(redis_server.url, nodes.prefix)
    return nodes
