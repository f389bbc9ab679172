"""The official JavaScript SDKs, unmodified, through a node; npm ``openai`` over TLS, which is all that it speaks."""

import asyncio
import json
import os

import pytest

from tests.support.fleet import DemoFleet
from tests.support.parts import CLIENTS

SCENARIOS = ["spoken_turn", "function_call", "error", "side_leg"]


async def run(script: str, scenario: str, fleet: DemoFleet, name: str, backend: str | None = None) -> None:
    """Run one scenario of a client script and fail with what it says; ``backend`` is the node of side legs."""
    env = os.environ | {"RELAY_URL": fleet.url(name).replace("http", "ws", 1), "RELAY_TOKEN": fleet.client_token}
    env["RELAY_BACKEND_URL"] = fleet.url(backend or name).replace("http", "ws", 1)
    env["RELAY_BACKEND_TOKEN"] = fleet.backend_token
    if "wss" in env["RELAY_URL"]:
        env["RELAY_CA"] = str(fleet.certificate)
    process = await asyncio.create_subprocess_exec(
        "node", script, scenario, cwd=CLIENTS, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    results = [json.loads(line) for line in out.splitlines()]
    assert [result["ok"] for result in results] == [True], f"{out.decode()}\n{err.decode()}"


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
