"""The operations port over HTTP: probes, metrics, status, drain."""

from collections.abc import AsyncIterator

import pytest
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families

from ops.endpoints import make_app
from ops.health import Health, moved
from ops.metrics import Metrics


class Node:
    """What the port shows."""

    def __init__(self) -> None:
        self.health = Health.STARTING
        self.drains = 0

    def drain(self) -> None:
        self.drains += 1
        self.health = moved(self.health, Health.DRAINING)


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
async def client(node: Node) -> AsyncIterator[TestClient]:
    metrics = Metrics()
    metrics.gauge("relay_ready", "1 while the node takes calls.", lambda: float(node.health.accepts_calls))
    app = make_app(
        health=lambda: node.health,
        metrics=metrics,
        status=lambda: {"state": node.health.value, "calls": {"live": 3}},
        drain=node.drain,
    )
    async with TestClient(TestServer(app)) as client:
        yield client


@pytest.mark.parametrize(
    ("health", "status"), [(Health.STARTING, 503), (Health.READY, 200), (Health.DRAINING, 503)], ids=lambda v: str(v)
)
async def test_a_node_is_ready_only_while_it_takes_calls(client, node, health, status):
    """The balancer sends new calls where it says so, and the body says why not."""
    node.health = health
    async with client.get("/readyz") as response:
        assert (response.status, await response.text()) == (status, f"{health.value}\n")


@pytest.mark.parametrize("health", Health, ids=lambda health: health.value)
async def test_a_node_is_alive_whatever_its_state(client, node, health):
    """A drain must not be cut short by a restart of the container."""
    node.health = health
    async with client.get("/livez") as response:
        assert response.status == 200


async def test_metrics_are_the_nodes_and_the_process_in_a_form_that_prometheus_reads(client, node):
    """One page; no name twice."""
    node.health = Health.READY
    async with client.get("/metrics") as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        families = list(text_string_to_metric_families(await response.text()))
    names = [family.name for family in families]
    assert len(set(names)) == len(names)
    assert {"relay_ready", "process_open_fds"} <= set(names)
    assert next(family for family in families if family.name == "relay_ready").samples[0].value == 1


async def test_status_is_what_the_node_sees(client):
    """For people: JSON."""
    async with client.get("/status") as response:
        assert await response.json() == {"state": "starting", "calls": {"live": 3}}


async def test_a_drain_may_be_asked_for_twice(client, node):
    """A pre-stop hook and an operator may both do it; the answer says where it stands."""
    node.health = Health.READY
    for _ in range(2):
        async with client.post("/drain") as response:
            assert (response.status, await response.json()) == (202, {"state": "draining"})
    assert node.drains == 2
    async with client.get("/readyz") as response:
        assert response.status == 503


async def test_a_drain_is_no_get(client, node):
    """A crawler or a preview of the link must not empty the node."""
    async with client.get("/drain") as response:
        assert response.status == 405
    assert node.drains == 0
