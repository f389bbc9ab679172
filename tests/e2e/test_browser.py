"""The demo's page in a real Chromium whose microphone is a recorded voice."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from tests.support.fleet import DemoFleet

HERE = Path(__file__).parent / "browser"


@pytest.mark.needs("chromium", "speech", "node")
async def test_a_person_talks_interrupts_and_sees_an_injected_message(demo_fleet: DemoFleet, tmp_path: Path) -> None:
    """Audio comes back, barge-in cuts it, and a message put in through another node shows in the conversation."""
    speech = tmp_path / "speech.wav"
    made = await asyncio.create_subprocess_exec("sh", str(HERE / "speech.sh"), str(speech))
    assert await made.wait() == 0
    env = os.environ | {
        "PAGE_URL": demo_fleet.url("iad-1") + "/",
        "SPEECH_WAV": str(speech),
        "OUT_PNG": str(tmp_path / "page.png"),
        "INJECT_NODE": "iad-2",
    }
    process = await asyncio.create_subprocess_exec(
        "node", str(HERE / "browser.mjs"), env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, f"{out.decode()}\n{err.decode()}"
    result = json.loads(out.splitlines()[-1])
    assert result["ok"], result
