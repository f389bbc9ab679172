"""The benchmarks of the bus run, short: their figures mean nothing here, but every one is there and nothing is lost."""

import json
import subprocess
import sys

from tests.bench.many_calls import Size, measure
from tests.bench.report import table
from tests.support.bus import QUICK
from tests.support.redis_server import find_binary

SHORT = Size(calls=200, sweeps=1, quiet_seconds=0.3, settings={**QUICK, "sweep_seconds": 0.5})


def test_messages_reach_the_model_while_the_bus_is_measured(tmp_path):
    """In one region and between two: each arrives once, and what is between regions takes the link's time."""
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "ops.bench", "--only", "bus", "--quick", "--seconds", "0.5", "--json"]
    ran = subprocess.run([*command, str(figures)], capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr
    places = json.loads(figures.read_text())["bus"]
    for place, found in places.items():
        (run,) = found["with"]
        assert set(run["sent"]["statuses"]) == {"200"}, place
        assert (run["arrived"]["missing"], run["arrived"]["repeated"], run["lost_calls"]) == (0, 0, 0), place
        assert run["arrived"]["latency_ms"]["count"] > 0, place
        assert run["up_ms"]["count"] > 0, place
        assert place in ran.stdout
    (far,) = places["between regions"]["with"]
    assert far["arrived"]["latency_ms"]["p50"] > 40


async def test_a_node_with_many_calls_is_measured_through_an_outage():
    """All calls come back after the subscriber's cut and after a restart of Redis, and every message is applied."""
    found = await measure(find_binary(), SHORT)
    assert found["messages"]["not_applied"] == 0, found["messages"]
    assert found["messages"]["applied"] > 0
    assert 0 < found["cut"]["held_seconds"] <= found["cut"]["read_seconds"]
    assert found["restart"]["restored_seconds"] > 0
    assert "restored" in table(SHORT.calls, {"a server": found})
