"""``relay demo`` as a person and as a script use it: up in seconds, described by its ready file, gone when told."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from relay.cli import main
from tests.support.fleet import DemoFleet, bearer, event, system_message, until

SMALL = ("--regions", "iad", "--nodes", "1")


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def family(pid: int) -> list[int]:
    """The processes that a process started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children]


async def test_the_ready_file_describes_a_working_fleet(demo_fleet: DemoFleet) -> None:
    """Scripts find nodes, tokens and the model there; any node of any region takes a message for a call."""
    ready = demo_fleet.ready
    assert [(node["name"], node["region"]) for node in ready["nodes"]] == [
        ("iad-1", "iad"),
        ("iad-2", "iad"),
        ("lhr-1", "lhr"),
        ("lhr-2", "lhr"),
    ]
    assert set(ready["redis"]) == {"iad", "lhr"}
    assert ready["model_url"].startswith("ws://127.0.0.1:")
    async with aiohttp.ClientSession() as http:
        url = demo_fleet.url("lhr-1") + "/v1/realtime?model=sim"
        client = await http.ws_connect(url, headers=bearer(demo_fleet.client_token))
        await event(client, "session.created")
        call = client._response.headers["X-Call-Id"]
        for name in ("lhr-2", "iad-1"):
            async with http.post(
                f"{demo_fleet.url(name)}/v1/realtime/calls/{call}/items?wait=applied",
                json={"item": system_message(f"through {name}")},
                headers=bearer(demo_fleet.backend_token),
            ) as response:
                assert (response.status, (await response.json())["status"]) == (200, "applied")
        await client.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_it_ends_within_five_seconds_with_nothing_left(tmp_path: Path, number: signal.Signals) -> None:
    """Also with nodes, Redis and simulator to end in order."""
    fleet = DemoFleet.start(tmp_path, *SMALL)
    children = family(fleet.process.pid)
    assert len(children) >= 3
    fleet.process.send_signal(number)
    assert fleet.process.wait(timeout=5) == 0
    assert [pid for pid in children if alive(pid)] == []


async def test_its_children_die_with_it_even_when_it_is_killed(tmp_path: Path) -> None:
    """A demo that was killed must not leave servers on the machine."""
    fleet = DemoFleet.start(tmp_path, *SMALL)
    children = family(fleet.process.pid)
    fleet.process.kill()
    fleet.process.wait()
    await until(lambda: not any(alive(pid) for pid in children))


def test_a_bad_setting_is_named(tmp_path: Path) -> None:
    """The command line says which variable is wrong and what is expected."""
    env = {"PATH": os.environ["PATH"], "RELAY_PORT": "99999", "RELAY_JWT_SECRET": "x" * 32}
    done = subprocess.run(
        [sys.executable, "-m", "relay", "serve"], env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, "relay: RELAY_PORT: '99999' is no port\n")


def test_a_certificate_can_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints what to set for the node and for its clients."""
    assert main(["cert", str(tmp_path)]) == 0
    printed = dict(line.split("=", 1) for line in capsys.readouterr().out.splitlines())
    assert Path(printed["RELAY_TLS_CERT"]).exists()
    assert Path(printed["RELAY_TLS_KEY"]).stat().st_mode & 0o077 == 0


def test_the_curl_line_that_it_prints_works(demo_fleet: DemoFleet) -> None:
    """With the id of no live call it gets an answer in OpenAI's shape."""
    printed = (demo_fleet.folder / "log").read_text()
    command = printed[printed.index("curl ") : printed.index("Ctrl-C")].strip()
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)  # as a person would
    assert json.loads(done.stdout)["error"]["code"] == "call_not_found"
