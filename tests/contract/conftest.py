"""The bus of a contract suite: one of each kind for a module, empty for each test."""

from collections.abc import Iterator

import pytest

from tests.support.bus import Bus
from tests.support.kinds import KINDS, settled


@pytest.fixture(scope="module", params=list(KINDS))
def servers(request: pytest.FixtureRequest) -> Iterator[Bus]:
    """For the module; a suite that needs fewer kinds parametrizes this one."""
    with settled(request.param) as bus:
        yield bus


@pytest.fixture
def bus(servers: Bus) -> Iterator[Bus]:
    """For one test."""
    yield servers
    servers.clean()
