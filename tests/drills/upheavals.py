"""The drills of continuity, as a table: what is done to a fleet in which people talk, and what they may notice of it.

An upheaval is a function of the scene that returns when it is over. What it sees that no promise of all drills covers,
it blames itself. Times of the full length and of the short one stand in the table.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from fanout.core.keys import Keys
from tests.drills.faults import BROKEN
from tests.drills.fleet import TENANT, Fleet, Node
from tests.drills.holding import REPLACED, Holder
from tests.drills.survival import Allowed
from tests.drills.verdict import Verdict

PREFIX: Final = "relay"  # of a node's keys, by default
_POLL_SECONDS: Final = 0.05
_LEGS_SECONDS: Final = 1.0  # for a node that wakes up to close the legs of calls that it has lost
_WATCHED_SECONDS: Final = 3.0  # what a node that woke up does is looked at for so long
_OPENING_SECONDS: Final = 5.0  # for calls to begin that know nothing of a Redis that is away


@dataclass(slots=True)
class Scene:
    """What an upheaval works with."""

    fleet: Fleet
    http: aiohttp.ClientSession
    extent: "Extent"
    open: Callable[[int, list[str]], Awaitable[None]]  # so many calls more, through these nodes
    verdict: Verdict
    figures: dict[str, float] = field(default_factory=dict)

    async def nodes_of_calls(self) -> dict[int, tuple[str, str]]:
        """Return each call's id and node."""
        calls = await self.fleet.load.ask("calls")
        return {int(number): (call["id"], call["node"]) for number, call in calls.items()}

    async def wait_until(self, condition: Callable[[], Awaitable[bool]], seconds: float) -> bool:
        """Until it holds, or for so long; returns whether it does."""
        until = time.monotonic() + seconds
        while not await condition():
            if time.monotonic() > until:
                return False
            await asyncio.sleep(_POLL_SECONDS)
        return True

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
    await scene.fleet.load.ask("hear_out", seconds=scene.extent.seconds)


async def upstream_fails(scene: Scene) -> None:
    """The model's connections are reset, closed, frozen and refused, each after some seconds."""
    await asyncio.sleep(scene.extent.seconds)
    left = await scene.fleet.model.ask("calm")
    if left == 0:
        scene.verdict.blame("drills that show nothing", ["the troubles ran out"])
    await asyncio.sleep(scene.extent.last_trouble_seconds)


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
        await asyncio.sleep(scene.extent.lull_seconds / 2)
    scene.figures["longest drain, s:"] = max(drains)


async def owner_killed(scene: Scene) -> None:
    """SIGKILL for a node."""
    node = scene.fleet.nodes.pop(0)
    await node.process.kill()
    await scene.fleet.load.ask("nodes", nodes=scene.fleet.described())
    await asyncio.sleep(scene.extent.seconds)


async def owner_frozen(scene: Scene) -> None:
    """SIGSTOP for a node; its calls go on elsewhere, and then it wakes up."""
    node, other = scene.fleet.nodes[0], scene.fleet.nodes[-1]
    holder = Holder(scene.http, scene.fleet.token("mint"))
    await holder.call(node.url)
    numbers = {number: call_id for number, (call_id, at) in (await scene.nodes_of_calls()).items() if at == node.name}
    node.process.freeze()
    frozen_at = time.monotonic()
    await asyncio.sleep(scene.extent.seconds / 2)
    await holder.resume(other.url)
    await asyncio.sleep(scene.extent.seconds / 2)
    moved = await scene.nodes_of_calls()
    stayed = [f"call {number}" for number in numbers if moved[number][1] in {"", node.name}]
    scene.verdict.blame("calls of a frozen node did not go on elsewhere", stayed)
    before = {number: await scene.claim(call_id) for number, call_id in numbers.items()}
    node.process.thaw()
    woken_at = time.monotonic()

    held_seconds, code = await holder.wait_old_closed(_WATCHED_SECONDS)
    if held_seconds > _LEGS_SECONDS or code != REPLACED:
        scene.verdict.blame("clients were not told that they were replaced", [f"{code} after {held_seconds:.2f} s"])

    async def has_let_go() -> bool:
        left = await scene.open_sessions(frozen_at)
        return not any(left[number] for number in numbers) and await scene.live_calls(node) == 0

    is_let_go = await scene.wait_until(has_let_go, _WATCHED_SECONDS)
    seconds = scene.figures["legs closed after, s:"] = time.monotonic() - woken_at
    if not is_let_go or seconds > _LEGS_SECONDS:
        scene.verdict.blame("nodes held on to calls that they had lost", [f"{node.name}: {seconds:.2f} s"])
    await asyncio.sleep(max(0.0, woken_at + _WATCHED_SECONDS - time.monotonic()))
    after = {number: await scene.claim(call_id) for number, call_id in numbers.items()}
    await holder.hang_up()
    changed = [f"call {each}: {before[each]}, then {after[each]}" for each in numbers if before[each] != after[each]]
    scene.verdict.blame("calls were written by a node that had lost them", changed)


async def redis_killed(scene: Scene) -> None:
    """SIGKILL for a region's Redis, and much later an empty one in its place."""
    home = scene.fleet.standalone(BROKEN)
    await home.kill()
    await _without_redis(scene)
    await home.start()
    await _after_redis(scene, settling_seconds(scene.fleet.nodes[0].env))


async def redis_stopped(scene: Scene) -> None:
    """SIGSTOP for a region's Redis, long."""
    home = scene.fleet.standalone(BROKEN)
    home.freeze()
    await _without_redis(scene)
    home.thaw()
    await _after_redis(scene, scene.extent.lull_seconds)


async def _without_redis(scene: Scene) -> None:
    await asyncio.sleep(scene.extent.seconds / 3)
    began = time.monotonic()
    nodes = [node.name for node in scene.fleet.nodes if node.region == BROKEN]
    await scene.open(len(nodes), nodes)
    took = scene.figures["new calls opened in, s:"] = time.monotonic() - began
    if took > _OPENING_SECONDS:
        scene.verdict.blame("calls could not begin without Redis", [f"{took:.1f} s"])
    await asyncio.sleep(max(0.0, scene.extent.seconds * 2 / 3 - (time.monotonic() - began)))


async def _after_redis(scene: Scene, seconds: float) -> None:
    """When all is told again, all calls of that region lose their connections, and come to whatever node."""
    await asyncio.sleep(seconds)
    calls = await scene.nodes_of_calls()
    numbers = [number for number, (call_id, _) in calls.items() if call_id.startswith(f"rtc_{BROKEN}_")]
    await scene.fleet.load.ask("drop", numbers=numbers)
    await asyncio.sleep(_WATCHED_SECONDS)
    then = await scene.nodes_of_calls()
    moved = scene.figures["resumed on another node:"] = sum(calls[each][1] != then[each][1] for each in numbers)
    if not moved:
        scene.verdict.blame("drills that show nothing", ["no call came to another node"])


def settling_seconds(env: Mapping[str, str]) -> float:
    """How long a Redis that is new is not trusted: a heartbeat's lifetime, then for owners to tell it all they know."""
    return float(env.get("RELAY_BUS_NODE_TTL_SECONDS", "8")) + 5.0


# What happens to the model's connections: by chance, one after the other.
TROUBLES: Final[tuple[dict[str, Any], ...]] = (
    {"reset": True},
    {"close": 1011},
    {"stall": True},
    {"refuse": 503},
    {"refuse": 429},
)
_QUICK_BUS: Final = {
    "RELAY_BUS_SILENCE_SECONDS": "1.5",
    "RELAY_BUS_NODE_TTL_SECONDS": "3",
    "RELAY_BUS_SWEEP_SECONDS": "3",
    "RELAY_BUS_SOCKET_TIMEOUT": "1",
}
_PINGS: Final = {"RELAY_PING_SECONDS": "2", "RELAY_PONG_SECONDS": "2", "RELAY_STALL_SECONDS": "3"}
_QUICK_PINGS: Final = {"RELAY_PING_SECONDS": "1", "RELAY_PONG_SECONDS": "1", "RELAY_STALL_SECONDS": "1.5"}


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of it."""

    calls: int
    seconds: float = 0.0
    messages_per_second: float = 50.0
    lull_seconds: float = 4.0  # of talk before and after it
    turn_seconds: tuple[float, float] = (1.0, 3.0)  # of speech
    env: Mapping[str, str] = field(default_factory=dict)
    session_seconds: float | None = None  # after which the model ends each session; each call has a twin without
    turns: int | None = None  # that each person takes then
    trouble_after: tuple[float, float] | None = None  # seconds until a connection to the model goes wrong
    sessions: tuple[int, int] = (1, 100_000)  # of each call

    @property
    def last_trouble_seconds(self) -> float:
        """The longest until a fault comes, and then until it is noticed and repaired."""
        pings = sum(float(self.env[f"RELAY_{each}_SECONDS"]) for each in ("PING", "PONG"))
        return (self.trouble_after or (0.0, 0.0))[1] + pings + 2.0


@dataclass(frozen=True, slots=True)
class Upheaval:
    """A row of the table."""

    name: str
    act: Callable[[Scene], Awaitable[None]]
    allowed: Allowed
    full: Extent
    short: Extent
    heartbeat: float | None = None  # of the people's clients


def _short(calls: int, seconds: float, **fields: Any) -> Extent:
    """What fits into CI: little of all."""
    quick: dict[str, Any] = {"messages_per_second": 20.0, "lull_seconds": 1.5, "turn_seconds": (0.5, 1.0)}
    return Extent(calls, seconds, **quick | fields)


_AWAY: Final = Allowed({1006}, back_seconds=3.0, missing=3, unanswered=True, recoveries=1)
_NO_REDIS: Final = Allowed({1006}, back_seconds=3.0, missing=1, unseen=3, expiry=True, answer_seconds=5.0, recoveries=1)

UPHEAVALS: Final = (
    Upheaval(
        "session-cap",
        sessions_run_out,
        Allowed(later_than_twin=0.3),
        Extent(
            4,
            seconds=180,
            messages_per_second=0,
            env={"RELAY_ROLL_OVER_SECONDS": "8"},
            session_seconds=20,
            turns=24,
            sessions=(6, 100),
        ),
        _short(
            2,
            40,
            messages_per_second=0,
            env={"RELAY_ROLL_OVER_SECONDS": "2"},
            session_seconds=5,
            turns=4,
            sessions=(3, 100),
        ),
    ),
    Upheaval(
        "upstream",
        upstream_fails,
        Allowed(unanswered=True),
        Extent(20, 120, env=_PINGS, trouble_after=(2, 8), sessions=(8, 200)),
        _short(6, 6, env=_QUICK_PINGS, trouble_after=(1, 3), sessions=(2, 200)),
    ),
    Upheaval(
        "rolling-restart",
        rolling_restart,
        Allowed({1012}, recoveries=4),
        # A backend waits for each message's end: so many planned are about fifty a second.
        Extent(40, messages_per_second=65.0, env={"RELAY_DRAIN_SECONDS": "30"}),
        _short(8, 0, env={"RELAY_DRAIN_SECONDS": "30"}),
    ),
    Upheaval("owner-killed", owner_killed, _AWAY, Extent(40, 15), _short(8, 4, env=_QUICK_BUS)),
    Upheaval("owner-frozen", owner_frozen, _AWAY, Extent(20, 10), _short(8, 5, env=_QUICK_BUS), heartbeat=1.4),
    Upheaval("redis-killed", redis_killed, _NO_REDIS, Extent(12, 60), _short(4, 4.5, env=_QUICK_BUS)),
    Upheaval("redis-stopped", redis_stopped, _NO_REDIS, Extent(12, 60), _short(4, 4.5, env=_QUICK_BUS)),
)
