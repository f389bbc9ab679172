"""The operations port, as an SRE and Prometheus use it."""

import asyncio
import json
import socket
from pathlib import Path

import pytest

from relay.core.endings import Why
from tests.support.fleet import Nodes, event, until


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
    assert json.loads(status)["bus"]["regions"]["iad"]["connected"] == 0
    assert "hunter2" not in status


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
