"""The official JavaScript SDKs, unmodified, through a node; npm ``openai`` over TLS, which is all that it speaks."""

import asyncio
import json
import os
from typing import Any

import pytest

from tests.e2e.test_python_clients import deployment
from tests.e2e.test_resume import known, sessions
from tests.support.fleet import DemoFleet, Nodes, until
from tests.support.parts import CLIENTS

SCENARIOS = ["spoken_turn", "function_call", "error", "side_leg"]


async def run(script: str, scenario: str, fleet: DemoFleet, name: str, backend: str | None = None) -> None:
    """Run one scenario of a client script in a fleet; ``backend`` is the node of side legs."""
    env = {"RELAY_URL": fleet.url(name).replace("http", "ws", 1), "RELAY_TOKEN": fleet.client_token}
    env["RELAY_BACKEND_URL"] = fleet.url(backend or name).replace("http", "ws", 1)
    env["RELAY_BACKEND_TOKEN"] = fleet.backend_token
    if "wss" in env["RELAY_URL"]:
        env["RELAY_CA"] = str(fleet.certificate)
    await play(script, scenario, **env)


async def play(script: str, scenario: str, **env: str) -> dict[str, Any]:
    """Run one scenario and fail with what it says; returns its report."""
    process = await asyncio.create_subprocess_exec(
        *("node", script, scenario),
        cwd=CLIENTS,
        env=os.environ | env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    results = [json.loads(line) for line in out.splitlines()]
    assert [result["ok"] for result in results] == [True], f"{out.decode()}\n{err.decode()}"
    return dict(results[0])


@pytest.mark.needs("node")
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_npm_openai_over_tls(tls_fleet: DemoFleet, scenario: str) -> None:
    """It verifies the certificate that the demo made, given as an extra CA."""
    await run("openai_ws.mjs", scenario, tls_fleet, "iad-1")


@pytest.mark.needs("node")
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_npm_agents_realtime(demo_fleet: DemoFleet, scenario: str) -> None:
    """Its transport is given the node's URL and nothing else; the side leg is in another region than the call."""
    await run("agents_realtime.mjs", scenario, demo_fleet, "lhr-2", backend="iad-1")


async def deploy(nodes: Nodes, script: str) -> dict[str, Any]:
    """Drain the node under a client that has had its first answer; what it says then must be said to the same call."""
    async with deployment(nodes) as (front, first, key, _), asyncio.TaskGroup() as tasks:
        address = front.url.replace("http", "ws", 1)
        client = tasks.create_task(play(script, "deploy", RELAY_URL=address, RELAY_TOKEN=key))

        async def is_answered() -> bool:
            found = await sessions(nodes)
            return bool(found and found[0]["sent"].get("response.done"))

        await until(is_answered, 20)
        first.drain()
        report = await client
    said = [text for _, role, text in known((await sessions(nodes))[-1]) if role == "user"]
    assert said == ["My name is Ada.", "What is my name?"]
    assert len(await sessions(nodes)) == 2
    return report


@pytest.mark.needs("node")
async def test_npm_openai_goes_on_with_its_call_in_a_deploy(nodes: Nodes) -> None:
    """With ``reconnect`` and a client secret; what it sends meanwhile is queued, since it was told how much it may."""
    assert (await deploy(nodes, "openai_ws.mjs"))["sessions"] == 2


@pytest.mark.needs("node")
async def test_npm_agents_do_not_reconnect_and_a_new_session_goes_on_with_the_call(nodes: Nodes) -> None:
    """The SDK says that it is disconnected, and no more; what it does then is the application's."""
    report = await deploy(nodes, "agents_realtime.mjs")
    assert (report["first"]["node"], report["second"]["node"]) == ("a", "b")
