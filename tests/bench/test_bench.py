"""The benchmarks of the bus run, short: their figures mean nothing here, but every one is there and nothing is lost."""

import json
import subprocess
import sys

import pytest

from ops.bench.resume import WAYS, ResumeShape
from ops.bench.resume_report import resume_table
from ops.bench.side import MODES, SideShape
from ops.bench.side_report import side_table
from tests.bench import remembering
from tests.bench.many_calls import Size, measure
from tests.bench.report import memory_table, table
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


def test_side_legs_get_every_frame_while_they_are_measured(tmp_path):
    """With audio all of both sides, without it the transcript; the calls go on in each of the modes."""
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "ops.bench", "--only", "side", "--quick", "--seconds", "0.5", "--calls", "10"]
    ran = subprocess.run([*command, "--json", str(figures)], capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(figures.read_text())["side"]
    for mode in MODES:
        (run,) = found[mode.name]
        assert run["lost_calls"] == 0, mode
        assert run["up_ms"]["count"] > 0, mode
        assert run["down_ms"]["count"] > 0, mode
        if mode.has_side_legs:
            heard = {kind: run["heard"][kind]["frames"] for kind in run["due"]}
            assert heard == run["due"], mode
            assert (run["heard"]["lost"], run["dropped"]) == (0, 0), mode
            assert run["heard"]["words"]["latency_ms"]["count"] > 0, mode
            assert (heard["up"] > 0) == (heard["down"] > 0) == mode.has_audio, mode
    assert "0 did not arrive" in ran.stdout


@pytest.mark.parametrize(
    ("added_ms", "late_ms", "others", "verdict"),
    [
        (4.9, 1.0, 0.0, "met"),
        (5.1, 1.0, 0.0, "MISSED"),
        (5.1, 11.0, 0.0, "not judged"),
        (5.1, 1.0, 0.3, "not judged"),
    ],
    ids=["met", "missed", "sender late", "others at work"],
)
def test_what_side_legs_add_to_a_call_is_judged_if_the_machine_did_nothing_else(added_ms, late_ms, others, verdict):
    """A machine that is busy otherwise says nothing about the node."""
    found = {mode.name: [_side_run(mode, added_ms, late_ms, others)] for mode in MODES}
    table = side_table(SideShape(50, 4.0, 1.0, 1), found)
    judged = [line for line in table.splitlines() if line.endswith("< 5 ms")]
    assert len(judged) == 2
    assert all(f"  {verdict}" in line for line in judged)


def _side_run(mode, added_ms, late_ms, others):
    ages = {"p50": 0.1, "p99": 0.5 + added_ms * mode.has_audio, "max": 9.0}
    run = {"up_ms": ages, "down_ms": ages, "senders_latest_ms": {"load": late_ms}, "others_cpus": others}
    run["cpu_seconds"] = {"owner": 0.3, "other": 0.2, "redis": 0.1}
    if mode.has_side_legs:
        run["heard"] = {kind: {"latency_ms": ages} for kind in ("up", "down", "words")}
    return run


def test_calls_go_on_where_their_clients_come_back_while_resumes_are_measured(tmp_path):
    """On their node, and on another with and without a spare: each is answered, and none before a model was reached."""
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "ops.bench", "--only", "resume", "--quick", "--calls", "5", "--json", str(figures)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(figures.read_text())["resume"]["ways"]
    assert {name: len(times) for name, times in found.items()} == {way.name: 5 for way in WAYS}
    round_trip = 2 * ResumeShape(5, 5).delay_ms
    assert all(time["audio_ms"] > round_trip for times in found.values() for time in times)
    assert all(f"{way.name}" in ran.stdout for way in WAYS)


def test_what_a_resume_adds_is_told_from_what_an_answer_takes_anyway():
    """By the same share of each."""
    times = {way.name: [{"open_ms": 1.0, "created_ms": 2.0, "audio_ms": 300.0}] * 3 for way in WAYS}
    times[WAYS[0].name] = [{"audio_ms": 100.0}] * 3
    lines = resume_table(ResumeShape(3, 3), {"ways": times}).splitlines()
    (added,) = [line.split() for line in lines if "more than without resume, p99" in line]
    assert added[-3:] == ["200.0"] * 3
    assert added[-4] == "ms"


async def test_a_node_that_forgets_writes_nothing_while_its_memory_is_measured():
    """In the same node and calls, which go on in each of the modes."""
    load = remembering.Load(calls=10, seconds=0.5, rounds=1, turn_seconds=2.0)
    found = await remembering.measure(load)
    for mode, (run,) in found.items():
        assert run["lost_calls"] == 0, mode
        assert run["turn_events"] > 0, mode
        assert run["up_ms"]["count"] > 0, mode
        assert (run["facts_written"] > 0) == (mode == remembering.MEMORY), mode
    assert "facts written" in memory_table(load, found)


@pytest.mark.parametrize(
    ("added", "others", "verdict"),
    [(0.029, 0.0, "met"), (0.031, 0.0, "MISSED"), (0.031, 0.3, "not judged")],
    ids=["met", "missed", "others at work"],
)
def test_what_a_memory_costs_is_judged_if_the_machine_did_nothing_else(added, others, verdict):
    """A machine that is busy otherwise says nothing about the node."""
    found = {mode: [_memory_run(1.0 + added * (mode == remembering.MEMORY), others)] for mode in remembering.MODES}
    (judged,) = [line for line in memory_table(remembering.Load(), found).splitlines() if line.endswith("< 3 %")]
    assert f"  {verdict}" in judged


def _memory_run(node_seconds, others):
    ages = {"p50": 0.1, "p99": 0.5}
    cpu = {"node": node_seconds, "redis": 0.1}
    run = {"cpu_seconds": cpu, "up_ms": ages, "down_ms": ages, "others_cpus": others}
    return run | {"facts_written": 0, "turn_events": 10}


async def test_a_node_with_many_calls_is_measured_through_an_outage():
    """All calls come back after the subscriber's cut and after a restart of Redis, and every message is applied."""
    found = await measure(find_binary(), SHORT)
    assert found["messages"]["not_applied"] == 0, found["messages"]
    assert found["messages"]["applied"] > 0
    assert 0 < found["cut"]["held_seconds"] <= found["cut"]["read_seconds"]
    assert found["restart"]["restored_seconds"] > 0
    assert "restored" in table(SHORT.calls, {"a server": found})
