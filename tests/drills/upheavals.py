"""The drills of continuity, as a table: what is done to a fleet in which people talk, and what they may notice of it.

An upheaval is a function of the scene that returns when it is over. What it sees that no promise of all drills covers,
it blames itself. Times of the full length and of the short one stand in the table.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import aiohttp

from fanout.core.keys import Keys
from tests.drills.faults import BROKEN
from tests.drills.fleet import TENANT, Fleet, Node
from tests.drills.survival import Allowed
from tests.drills.verdict import Verdict

PREFIX: Final = "relay"  # of a node's keys, by default
_POLL_SECONDS: Final = 0.05
_LEGS_SECONDS: Final = 1.0  # for a node that wakes up to close the legs of calls that it has lost
_BETWEEN_SECONDS: Final = 2.0  # two restarts
_WATCHED_SECONDS: Final = 3.0  # what a node that woke up does is looked at for so long


@dataclass(slots=True)
class Scene:
    """What an upheaval works with."""

    fleet: Fleet
    http: aiohttp.ClientSession
    seconds: float  # of the upheaval
    open: Callable[[int, list[str]], Awaitable[None]]  # so many calls more, through these nodes
    verdict: Verdict
    figures: dict[str, float] = field(default_factory=dict)

    async def nodes_of_calls(self) -> dict[int, tuple[str, str]]:
        """Return each call's id and node."""
        calls = await self.fleet.load.ask("calls")
        return {int(number): (call["id"], call["node"]) for number, call in calls.items()}

    async def wait_until(self, condition: Callable[[], Awaitable[bool]], seconds: float) -> float | None:
        """Until it holds; returns how many seconds that took, None if it did not in so many."""
        began = time.monotonic()
        while not await condition():
            if time.monotonic() - began > seconds:
                return None
            await asyncio.sleep(_POLL_SECONDS)
        return time.monotonic() - began

    async def live_calls(self, node: Node) -> int:
        """Return how many calls a node has, as it says itself."""
        async with self.http.get(f"{node.ops_url}/status") as answer:
            live: int = (await answer.json())["calls"]["live"]
            return live

    async def claim(self, call_id: str) -> tuple[str, ...]:
        """Return epoch, claim and state of a call, as its home has them."""
        keys = Keys(PREFIX).call(call_id, TENANT)
        home = self.fleet.standalone(call_id.split("_")[1])
        found: list[bytes | None] = await home.ask("HMGET", keys.call, "epoch", "claim", "state")
        return tuple((each or b"").decode() for each in found)

    async def open_sessions(self, before: float) -> dict[int, set[str]]:
        """Return the sessions at the model that were opened before and are open still, by call."""
        calls = await self.fleet.model.ask("sessions")
        return {
            int(number): {each["id"] for each in sessions if each["opened_at"] < before and each["closed_at"] is None}
            for number, sessions in calls.items()
        }


async def sessions_run_out(scene: Scene) -> None:
    """Each session of the model ends after a while, while tools are called."""
    await scene.fleet.load.ask("hear_out", seconds=scene.seconds)


async def upstream_fails(scene: Scene) -> None:
    """The model's connections are reset, closed, frozen and refused, each after two to eight seconds."""
    await asyncio.sleep(scene.seconds)
    left = await scene.fleet.model.ask("calm")
    if left == 0:
        scene.verdict.blame("drills that show nothing", ["the troubles ran out"])
    await asyncio.sleep(LAST_TROUBLE_SECONDS)


async def rolling_restart(scene: Scene) -> None:
    """SIGTERM for one node after the other, and a new one in its place."""
    drains = []
    for node in scene.fleet.nodes:
        began = time.monotonic()
        code = await node.process.stop()
        drains.append(time.monotonic() - began)
        if code != 0:
            scene.verdict.blame("nodes did not exit with 0", [f"{node.name}: {code}"])
        for home in scene.fleet.homes:
            left = await scene.fleet.standalone(home).names_with(node.name)
            scene.verdict.blame("keys were left by a node that was drained", left)
        await scene.fleet.start_node(node)
        await scene.fleet.load.ask("nodes", nodes=scene.fleet.described())
        await asyncio.sleep(_BETWEEN_SECONDS)
    scene.figures["longest drain, s:"] = max(drains)


async def owner_killed(scene: Scene) -> None:
    """SIGKILL for a node."""
    node = scene.fleet.nodes.pop(0)
    await node.process.kill()
    await scene.fleet.load.ask("nodes", nodes=scene.fleet.described())
    await asyncio.sleep(scene.seconds)


async def owner_frozen(scene: Scene) -> None:
    """SIGSTOP for a node; its calls go on elsewhere, and then it wakes up."""
    node = scene.fleet.nodes[0]
    numbers = {number: call_id for number, (call_id, at) in (await scene.nodes_of_calls()).items() if at == node.name}
    node.process.freeze()
    frozen_at = time.monotonic()
    await asyncio.sleep(scene.seconds)
    moved = await scene.nodes_of_calls()
    stayed = [f"call {number}" for number in numbers if moved[number][1] in {"", node.name}]
    scene.verdict.blame("calls of a frozen node did not go on elsewhere", stayed)
    before = {number: await scene.claim(call_id) for number, call_id in numbers.items()}
    node.process.thaw()
    woken_at = time.monotonic()

    async def has_let_go() -> bool:
        left = await scene.open_sessions(frozen_at)
        return not any(left[number] for number in numbers) and await scene.live_calls(node) == 0

    seconds = await scene.wait_until(has_let_go, _WATCHED_SECONDS)
    scene.figures["legs closed after, s:"] = seconds or _WATCHED_SECONDS
    if seconds is None or seconds > _LEGS_SECONDS:
        took = f"more than {_WATCHED_SECONDS:g} s" if seconds is None else f"{seconds:.2f} s"
        scene.verdict.blame("nodes held on to calls that they had lost", [f"{node.name}: {took}"])
    await asyncio.sleep(max(0.0, woken_at + _WATCHED_SECONDS - time.monotonic()))
    after = {number: await scene.claim(call_id) for number, call_id in numbers.items()}
    changed = [f"call {each}: {before[each]}, then {after[each]}" for each in numbers if before[each] != after[each]]
    scene.verdict.blame("calls were written by a node that had lost them", changed)


async def redis_killed(scene: Scene) -> None:
    """SIGKILL for a region's Redis, and much later an empty one in its place."""
    home = scene.fleet.standalone(BROKEN)
    await home.kill()
    await _without_redis(scene)
    await home.start()
    await _after_redis(scene)


async def redis_stopped(scene: Scene) -> None:
    """SIGSTOP for a region's Redis, long."""
    home = scene.fleet.standalone(BROKEN)
    home.freeze()
    await _without_redis(scene)
    home.thaw()
    await _after_redis(scene)


async def _without_redis(scene: Scene) -> None:
    await asyncio.sleep(scene.seconds / 3)
    began = time.monotonic()
    nodes = [node.name for node in scene.fleet.nodes if node.region == BROKEN]
    await scene.open(len(nodes), nodes)
    scene.figures["new calls opened in, s:"] = time.monotonic() - began
    await asyncio.sleep(max(0.0, scene.seconds * 2 / 3 - (time.monotonic() - began)))


async def _after_redis(scene: Scene) -> None:
    """Until all is told again; then all calls of that region lose their connections, and come to whatever node."""
    await asyncio.sleep(settling_seconds(scene.fleet.nodes[0].env))
    calls = await scene.nodes_of_calls()
    numbers = [number for number, (call_id, _) in calls.items() if call_id.startswith(f"rtc_{BROKEN}_")]
    await scene.fleet.load.ask("drop", numbers=numbers)
    await asyncio.sleep(_WATCHED_SECONDS)
    then = await scene.nodes_of_calls()
    scene.figures["resumed on another node:"] = sum(calls[number][1] != then[number][1] for number in numbers)


def settling_seconds(env: Mapping[str, str]) -> float:
    """How long a Redis that is new is not trusted, with margin for what is told to it then."""
    return float(env.get("RELAY_BUS_NODE_TTL_SECONDS", "8")) + 6.0


LAST_TROUBLE_SECONDS: Final = 14.0  # the longest until a fault comes, and then until it is noticed and repaired
_QUICK_BUS: Final = {
    "RELAY_BUS_SILENCE_SECONDS": "1.5",
    "RELAY_BUS_NODE_TTL_SECONDS": "3",
    "RELAY_BUS_SWEEP_SECONDS": "3",
    "RELAY_BUS_SOCKET_TIMEOUT": "1",
}
_QUICK_PINGS: Final = {"RELAY_PING_SECONDS": "2", "RELAY_PONG_SECONDS": "2", "RELAY_STALL_SECONDS": "3"}


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of it."""

    calls: int
    seconds: float
    messages_per_second: float = 50.0
    env: Mapping[str, str] = field(default_factory=dict)
    session_seconds: float | None = None  # after which the model ends each session; each call has a twin without
    turns: int | None = None  # that each person takes; None: as many as there is time for
    sessions: tuple[int, int] = (1, 100_000)


@dataclass(frozen=True, slots=True)
class Upheaval:
    """A row of the table."""

    name: str
    act: Callable[[Scene], Awaitable[None]]
    allowed: Allowed
    full: Extent
    short: Extent
    heartbeat: float | None = None  # of the people's clients
    has_trouble: bool = False  # at the model, from the first connection on


UPHEAVALS: Final = (
    Upheaval(
        "session-cap",
        sessions_run_out,
        Allowed(later_than_twin=0.3),
        Extent(4, 180, 0.0, {"RELAY_ROLL_OVER_SECONDS": "8"}, session_seconds=20, turns=32, sessions=(6, 100)),
        Extent(2, 40, 0.0, {"RELAY_ROLL_OVER_SECONDS": "3"}, session_seconds=7, turns=5, sessions=(3, 100)),
    ),
    Upheaval(
        "upstream",
        upstream_fails,
        Allowed(unanswered=True),
        Extent(20, 120, env=_QUICK_PINGS, sessions=(10, 200)),
        Extent(6, 8, 20.0, env=_QUICK_PINGS, sessions=(2, 200)),
        has_trouble=True,
    ),
    Upheaval(
        "rolling-restart",
        rolling_restart,
        Allowed({1012}, recoveries=4),
        Extent(40, 0, env={"RELAY_DRAIN_SECONDS": "30"}),
        Extent(8, 0, 20.0, env={"RELAY_DRAIN_SECONDS": "30"}),
    ),
    Upheaval(
        "owner-killed",
        owner_killed,
        Allowed({1006}, back_seconds=3.0, missing=3, unanswered=True, recoveries=1),
        Extent(40, 15),
        Extent(8, 5, 20.0, env=_QUICK_BUS),
    ),
    Upheaval(
        "owner-frozen",
        owner_frozen,
        Allowed({1006}, back_seconds=3.0, missing=3, unanswered=True, recoveries=1),
        Extent(20, 10),
        Extent(8, 5, 20.0, env=_QUICK_BUS),
        heartbeat=1.4,
    ),
    Upheaval(
        "redis-killed",
        redis_killed,
        Allowed({1006}, back_seconds=3.0, missing=1, unseen=3, recoveries=1),
        Extent(12, 60),
        Extent(4, 6, 20.0, env=_QUICK_BUS),
    ),
    Upheaval(
        "redis-stopped",
        redis_stopped,
        Allowed({1006}, back_seconds=3.0, missing=1, unseen=3, recoveries=1),
        Extent(12, 60),
        Extent(4, 6, 20.0, env=_QUICK_BUS),
    ),
)
