"""Carries out one drill: fleet, load, fault, repair, and the comparison of what was told with what the model has."""

import asyncio
import os
import random
import tempfile
import time
from collections import defaultdict
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.drills.faults import BROKEN, Drill, Stage
from tests.drills.fleet import Fleet, Placement
from tests.drills.homes import Home, Standalone, Together, binary_of, version_of
from tests.drills.publishers import Plan
from tests.drills.report import Outcome
from tests.drills.verdict import Audio, Item, Message, Verdict, judge
from tests.support.redis_sets import ClusterSet, SentinelSet

_STILL_SECONDS: Final = 5.0  # for the last frames to reach the model
_POLL_SECONDS: Final = 0.1
_BEYOND_SECONDS: Final = 90.0  # to start and to end, beside the planned times


@dataclass(frozen=True, slots=True)
class Size:
    """How much load, for how long. The full length is the default."""

    calls: int = 20
    messages_per_second: float = 200.0
    frame_ms: int = 20
    timeout_ms: int = 5000  # that a publisher gives the relay
    scale: float = 1.0  # of the faults' times
    warm_seconds: float = 4.0
    recovery_seconds: float = 8.0  # under load, after the repair
    finish_seconds: float = 25.0  # at most, until every message under way is taken
    settle_seconds: float = 30.0  # at most, until every receipt is terminal
    held_ms: float = 500.0  # the longest that audio may be under way through a node that runs
    p99_ms: float = 500.0  # the longest that messages may take which the fault leaves alone, but for one in a hundred
    env: dict[str, str] = field(default_factory=dict)  # of the nodes

    @property
    def limit_seconds(self) -> float:
        """When a drill is given up."""
        planned = self.warm_seconds + self.recovery_seconds + self.finish_seconds + self.settle_seconds
        return planned + 30 * self.scale + _BEYOND_SECONDS


# Everything quicker, so that all drills fit into a few minutes; the ratios between the bus's times stay.
SHORT: Final = Size(
    calls=8,
    messages_per_second=100.0,
    timeout_ms=2000,
    scale=0.4,
    warm_seconds=1.5,
    recovery_seconds=2.5,
    finish_seconds=15.0,
    settle_seconds=15.0,
    held_ms=1000.0,
    p99_ms=1000.0,
    env={
        "RELAY_BUS_SILENCE_SECONDS": "1.5",
        "RELAY_BUS_NODE_TTL_SECONDS": "3",
        "RELAY_BUS_SWEEP_SECONDS": "3",
        "RELAY_BUS_SOCKET_TIMEOUT": "1",
    },
)


async def carry_out(drill: Drill, engine: str, size: Size, placement: Placement, seed: int) -> Outcome:
    """Run a drill and judge it.

    Raises:
        TimeoutError: it took longer than its limit.
        ProcessFailed: a process did not start, or the load or the model ended.
    """
    began = time.monotonic()
    binary = binary_of(engine)
    async with asyncio.timeout(size.limit_seconds), AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"drill-{drill.name}-")))
        fleet = Fleet(placement, folder)

        def make_home(region: str) -> Home:
            if region == BROKEN and drill.home != "one server":
                return Together(SentinelSet(binary) if drill.home == "sentinel" else ClusterSet(binary))
            return Standalone(binary, region, folder, placement.host(region), placement.prefix(region))

        await fleet.start(stack, make_home, size.env)
        found = await _under_load(drill, fleet, size, seed)
    return Outcome(drill.name, version_of(binary), seconds=time.monotonic() - began, **found)


async def _under_load(drill: Drill, fleet: Fleet, size: Size, seed: int) -> dict[str, Any]:
    load = fleet.load
    nodes = fleet.described()
    await load.ask("open", nodes=nodes, calls=size.calls, token=fleet.token("call"), frame_ms=size.frame_ms)
    calls = await load.ask("calls")
    stage = Stage(fleet, [call["id"] for call in calls], random.Random(seed), size.scale)
    plan = asdict(Plan(0.0, size.timeout_ms, drill.copies))
    del plan["period_seconds"]
    named = {"region": BROKEN, "node": stage.slow_node.name}
    hit = {drill.hits: named.get(drill.hits, "")}
    big_to = stage.slow_node.name if drill.has_big_messages else None
    token = fleet.token("control", "read")
    rate = size.messages_per_second
    await load.ask("warm", token=token, timeout_ms=size.timeout_ms, seconds=size.settle_seconds)
    before = _Cpu(fleet)
    await load.ask("publish", rate=rate, plan=plan, hit=hit, big_to=big_to, seed=seed)
    await asyncio.sleep(size.warm_seconds)
    await drill.fault(stage)
    await asyncio.sleep(size.recovery_seconds)
    idle, cpu = before.until_now()
    await load.ask("finish", seconds=size.finish_seconds)
    await load.ask("settle", seconds=size.settle_seconds)
    await load.ask("hush")
    verdict, notes = await _judged(drill, fleet, size, stage)
    return {"verdict": verdict, "idle": idle, "cpu": cpu, "notes": notes}


async def _judged(drill: Drill, fleet: Fleet, size: Size, stage: Stage) -> tuple[Verdict, dict[str, float]]:
    told = await fleet.load.ask("told")
    calls = await fleet.load.ask("calls")
    heard = await _wait_still(fleet, {call["call"]: call["frames"] for call in calls})
    seen = await fleet.model.ask("conversations")
    frozen_ms = drill.frozen_seconds * size.scale * 1000
    audio = [
        Audio(
            call=call["call"],
            sent=call["frames"],
            heard=int(heard[call["call"]]["heard"]),
            disordered=int(heard[call["call"]]["disordered"]),
            held_ms=heard[call["call"]]["held_ms"],
            held_limit_ms=size.held_ms + (frozen_ms if call["node"] == stage.slow_node.name else 0.0),
        )
        for call in calls
    ]
    ended = [call["ended"] for call in calls if call["ended"] is not None]
    ended += [f"call {call} has another session" for call, each in heard.items() if each["sessions"] != 1]
    verdict = judge(
        [Message(**message) for message in told["messages"]],
        told["answers"],
        {int(call): [Item(*item) for item in items] for call, items in seen.items()},
        audio,
        ended,
        p99_limit_ms=size.p99_ms,
        felt_ms=drill.felt_seconds * size.scale * 1000,
    )
    verdict.blame("processes ended", [each.name for each in fleet.processes if each.has_ended])
    verdict.blame("nodes logged an error that nobody caught", fleet.troubles())
    notes = {
        "longest answer, ms:": told["longest_answer_ms"],
        "longest audio gap, ms:": max(each["gap_ms"] for each in heard.values()),
        "load's own lateness, ms:": told["latest_frame_ms"],
    }
    return verdict, notes


async def _wait_still(fleet: Fleet, sent: dict[int, int]) -> dict[int, dict[str, float]]:
    """Until the model has heard all that was said, or long enough; returns what it heard."""
    until = time.monotonic() + _STILL_SECONDS
    while True:
        audio = await fleet.model.ask("audio")
        heard = {int(call): each for call, each in audio.items()}
        if all(heard[call]["heard"] >= frames for call, frames in sent.items()) or time.monotonic() > until:
            return heard
        await asyncio.sleep(_POLL_SECONDS)


class _Cpu:
    """Who uses the machine from now on."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._began = time.monotonic()
        self._machine = _machine_ticks()
        self._used = self._by_kind()

    def _by_kind(self) -> dict[str, float]:
        used: dict[str, float] = defaultdict(float)
        used["runner"] = sum(os.times()[:2])
        for process in self._fleet.processes:
            used["nodes" if process.name not in {"model", "load"} else process.name] += process.cpu_seconds()
        return used

    def until_now(self) -> tuple[float, dict[str, float]]:
        """Return the machine's idle share, and the cores used by each kind of process."""
        seconds = time.monotonic() - self._began
        idle, total = (after - before for after, before in zip(_machine_ticks(), self._machine, strict=True))
        return idle / max(total, 1), {
            name: (used - self._used[name]) / seconds for name, used in self._by_kind().items()
        }


def _machine_ticks() -> tuple[int, int]:
    """Idle and total time of all CPUs (Linux)."""
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return 0, 0
    return fields[3] + fields[4], sum(fields)
