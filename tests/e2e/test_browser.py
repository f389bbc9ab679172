"""The demo's page in a real Chromium whose microphone is a recorded voice."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fleet import DemoFleet

HERE = Path(__file__).parent / "browser"

pytestmark = pytest.mark.needs("chromium", "speech", "node")


async def play(scenario: str, folder: Path, **given: str) -> dict[str, Any]:
    """Run a scenario and return its report."""
    speech = folder / "speech.wav"
    made = await asyncio.create_subprocess_exec("sh", str(HERE / "speech.sh"), str(speech))
    assert await made.wait() == 0
    env = os.environ | {"SPEECH_WAV": str(speech), "OUT_PNG": str(folder / "page.png")} | given
    process = await asyncio.create_subprocess_exec(
        "node", str(HERE / scenario), env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, f"{out.decode()}\n{err.decode()}"
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert result["ok"], result
    return result


async def test_a_person_talks_interrupts_and_sees_an_injected_message(demo_fleet: DemoFleet, tmp_path: Path) -> None:
    """Audio comes back, barge-in cuts it, and a message put in through another node shows in the conversation."""
    await play("browser.mjs", tmp_path, PAGE_URL=demo_fleet.url("iad-1") + "/", INJECT_NODE="iad-2")


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[DemoFleet]:
    """A fleet of which one node may be lost."""
    fleet = DemoFleet.start(tmp_path, "--regions", "iad")
    yield fleet
    fleet.stop()


@pytest.mark.parametrize("way", ["killed", "drained"])
async def test_a_person_talks_on_when_the_node_goes_away(two_nodes: DemoFleet, tmp_path: Path, way: str) -> None:
    """The page resumes its call at the other node and keeps its transcript; of two tabs with a call one lets it go."""
    node, other = two_nodes.ready["nodes"]
    broken = {"KILL_PID": str(node["pid"])} if way == "killed" else {"DRAIN_URL": node["ops_url"] + "/drain"}
    result = await play("resume.mjs", tmp_path, PAGE_URL=node["url"] + "/", OTHER_URL=other["url"] + "/", **broken)
    assert (result["from"], result["to"], result["dropped"]) == (node["name"], other["name"], 0)
