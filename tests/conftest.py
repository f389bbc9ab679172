"""What all tests share: uvloop as in production, a Redis, nodes in this process, the demo fleet as processes."""

import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest
import structlog
import uvloop

from tests.support.fleet import DemoFleet, Nodes
from tests.support.redis_server import RedisServer


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, Callable[[], object]]:
    """Run every test on the loop that nodes run on."""
    return {"uvloop": uvloop.new_event_loop}


def pytest_configure(config: pytest.Config) -> None:
    """Name the markers."""
    config.addinivalue_line(
        "markers", "needs(*parts): optional parts of the machine: node, chromium, prometheus, speech"
    )
    # Its own choice, a picture of every frame with its variables, holds the loop for most of a second.
    plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], plain])


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose optional part is missing; with RELAY_TEST_REQUIRE=1 (as in CI) that is a failure."""
    from tests.support.parts import missing

    for marker in item.iter_markers("needs"):
        for part in marker.args:
            reason = missing(part)
            if reason is not None and os.environ.get("RELAY_TEST_REQUIRE"):
                pytest.fail(f"required but missing: {reason}", pytrace=False)
            if reason is not None:
                pytest.skip(reason)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One Redis for all tests that do it no harm."""
    server = RedisServer().start()
    yield server
    server.stop()


@pytest.fixture
async def nodes(redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[Nodes]:
    """Start nodes and a model simulator in this process, on demand."""
    async with Nodes.running(redis_server.url, tmp_path) as running:
        yield running


@pytest.fixture(scope="session")
def demo_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoFleet]:
    """The demo as a person starts it: two regions with two nodes each, as processes."""
    fleet = DemoFleet.start(tmp_path_factory.mktemp("demo"))
    yield fleet
    fleet.stop()


@pytest.fixture(scope="session")
def tls_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoFleet]:
    """One node that serves TLS, for clients that insist on it."""
    fleet = DemoFleet.start(tmp_path_factory.mktemp("tls"), "--tls", "--regions", "iad", "--nodes", "1")
    yield fleet
    fleet.stop()
