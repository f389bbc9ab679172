"""The operations port, as an SRE and Prometheus use it."""

import asyncio
import json
import socket
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from relay.app import Node
from relay.core.endings import Why
from tests.support.fleet import Nodes, event, system_message, until


async def text(nodes: Nodes, url: str) -> str:
    """Read a text page."""
    async with nodes.http.get(url) as response:
        assert response.status == 200
        return await response.text()


async def test_probes_and_status_need_no_redis(nodes: Nodes) -> None:
    """A Redis outage must not take the fleet's nodes out of service, or restart them."""
    node = await nodes.add(REGIONS="iad=redis://user:hunter2@127.0.0.1:1")
    assert await text(nodes, node.ops_url + "/livez") == "alive\n"
    assert await text(nodes, node.ops_url + "/readyz") == "ready\n"
    status = await text(nodes, node.ops_url + "/status")
    home = json.loads(status)["bus"]["regions"]["iad"]
    assert (home["connected"], home["phase"], home["heartbeat_age_seconds"]) == (0, "unknown", -1)
    assert "hunter2" not in status
    assert 'relay_bus_connected{region="iad"} 0\n' in await text(nodes, node.ops_url + "/metrics")


async def bus_samples(nodes: Nodes, node: Node) -> dict[str, dict[str, tuple[str, float]]]:
    """The bus's metrics by name: for each region kind and value."""
    page = await text(nodes, node.ops_url + "/metrics")
    return {
        sample.name: {each.labels["region"]: (family.type, each.value) for each in family.samples}
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name.startswith("relay_bus_") and "region" in sample.labels
    }


async def test_every_number_that_the_bus_has_is_a_metric_with_its_home(nodes: Nodes) -> None:
    """A count that is only in the code is missed at three in the morning; words are for /status."""
    node = await nodes.add(REGIONS=f"iad={nodes._redis_url},iad-2={nodes._redis_url},lhr=redis://127.0.0.1:1")
    samples = await bus_samples(nodes, node)
    homes = json.loads(await text(nodes, node.ops_url + "/status"))["bus"]["regions"]
    words = {"circuit", "phase"}
    numbers = {key for key, value in homes["iad"].items() if not isinstance(value, str)}
    assert set(homes["iad"]) - numbers == words
    shown = {name.removeprefix("relay_bus_").removesuffix("_total") for name in samples}
    assert shown == numbers
    for name, by_region in samples.items():
        assert set(by_region) == {"iad", "iad-2", "lhr"}
        kind = "counter" if name.endswith("_total") else "gauge"
        assert {found for found, _ in by_region.values()} == {kind}


async def test_the_buss_metrics_follow_what_happens(nodes: Nodes) -> None:
    """Numbers on a page that was read once must not be those of the page before."""
    node = await nodes.add()
    client = await nodes.connect(node)
    await event(client, "session.created")
    call_id = client._response.headers["X-Call-Id"]
    before = await bus_samples(nodes, node)
    assert before["relay_bus_owned"]["iad"] == ("gauge", 1)
    assert before["relay_bus_connected"]["iad"] == ("gauge", 1)
    assert before["relay_bus_settling"]["iad"] == ("gauge", 0)
    assert abs(before["relay_bus_clock_offset_seconds"]["iad"][1]) < 0.25
    status, receipt = await nodes.put(node, call_id, {"item": system_message("hello")})
    assert (status, receipt["status"]) == (200, "applied")
    after = await bus_samples(nodes, node)
    assert after["relay_bus_delivered_total"]["iad"] == ("counter", 1)
    assert after["relay_bus_published_total"]["iad"][1] >= 1
    assert before["relay_bus_delivered_total"]["iad"] == ("counter", 0)


async def test_metrics_count_a_call_and_its_end(nodes: Nodes) -> None:
    """Every row of the table of endings is there from the start, so that rates work."""
    node = await nodes.add()
    client = await nodes.connect(node)
    await event(client, "session.created")
    assert "relay_calls_live 1\n" in await text(nodes, node.ops_url + "/metrics")
    await client.close()

    async def counted() -> bool:
        page = await text(nodes, node.ops_url + "/metrics")
        return 'relay_calls_ended_total{why="client_closed"} 1\n' in page and "relay_calls_live 0\n" in page

    await until(counted)
    page = await text(nodes, node.ops_url + "/metrics")
    assert all(f'relay_calls_ended_total{{why="{why.label}"}} ' in page for why in Why)


async def test_no_secret_is_logged_or_shown(nodes: Nodes, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither the client's token nor the upstream's key, whatever happens to the call."""
    node = await nodes.add(UPSTREAM_KEY="sk-very-secret")
    client = await nodes.connect(node)
    await event(client, "session.created")
    await client.close()
    await nodes.fault(refuse=401, body="key sk-very-secret refused")
    await (await nodes.connect(node)).receive()
    page = await text(nodes, node.ops_url + "/metrics") + await text(nodes, node.ops_url + "/status")
    printed = "".join(capfd.readouterr())
    assert "sk-very-secret" not in page + printed
    assert "eyJ" not in page + printed


@pytest.mark.needs("prometheus")
async def test_a_real_prometheus_scrapes_it(nodes: Nodes, tmp_path: Path) -> None:
    """The text passes promtool's checks, and the samples can be asked for."""
    node = await nodes.add()
    check = await asyncio.create_subprocess_exec(
        "promtool", "check", "metrics", stdin=asyncio.subprocess.PIPE, stdout=-1, stderr=asyncio.subprocess.STDOUT
    )
    page = await text(nodes, node.ops_url + "/metrics")
    ours = "".join(line for line in page.splitlines(keepends=True) if "relay_" in line)
    complaints, _ = await check.communicate(ours.encode())
    assert (check.returncode, complaints) == (0, b"")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    target = node.ops_url.removeprefix("http://")
    job = {"job_name": "relay", "scrape_interval": "1s", "static_configs": [{"targets": [target]}]}
    (tmp_path / "prometheus.yml").write_text(json.dumps({"scrape_configs": [job]}))  # JSON is YAML
    with (tmp_path / "log").open("wb") as log:
        server = await asyncio.create_subprocess_exec(
            "prometheus",
            f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}/data",
            f"--web.listen-address=127.0.0.1:{port}",
            stdout=log,
            stderr=log,
        )

    async def scraped() -> bool:
        try:
            async with nodes.http.get(
                f"http://127.0.0.1:{port}/api/v1/query", params={"query": "relay_ready"}
            ) as response:
                if response.status != 200:
                    return False  # it is up and not ready yet
                result = (await response.json())["data"]["result"]
        except OSError:
            return False  # it is not up yet
        return [sample["value"][1] for sample in result] == ["1"]

    try:
        await until(scraped, 30)
    finally:
        server.terminate()
        await server.wait()
