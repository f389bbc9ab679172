"""The measurement: what the memory of its calls costs a node under conversations, by a node that forgets now and then.

One node and one set of calls for all, in short windows that take turns: what differs between two processes, or between
two minutes of the machine, is more than what is looked for.
"""

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aiohttp import ClientSession

from ops.bench.processes import Peer, running_peer, running_redis
from ops.bench.runs import Contender, streams
from ops.bench.site import Site

MEMORY, NO_WRITES, NO_MEMORY = MODES = (
    "memory",
    "no writes",  # the node knows what it would, and nothing of it is written
    "no memory",  # it does not even note it
)

_PROGRAM: Final = ("tests.bench.forgetful", "serve")
_OPEN_AT_ONCE: Final = 50
_SWEEP_SECONDS: Final = (
    "60"  # a sweep costs as much as some windows' facts: it must not come again and again in one mode
)
_SETTLE_SECONDS: Final = 1.5  # for what was noted in the mode before to be written


@dataclass(frozen=True, slots=True)
class Load:
    """The standard load of `ops.bench`, and turns."""

    calls: int = 200
    seconds: float = 3.0  # of a window
    rounds: int = 10
    turn_seconds: float = 10.0  # from a call's question to its next; also the warm-up, until all calls are at it
    up_frames: float = 50.0  # a second and call
    down_frames: float = 5.0


async def measure(load: Load) -> dict[str, list[dict[str, Any]]]:
    """Measure the node in each of its modes, in turns; by mode, a result for each round. Plain JSON values."""
    found: dict[str, list[dict[str, Any]]] = {mode: [] for mode in MODES}
    async with _talking(load) as (callers, model, node, pids):
        for _ in range(load.rounds):
            for mode in MODES:
                await asyncio.sleep(_SETTLE_SECONDS)
                found[mode].append(await _window(load, callers, model, node, pids))
                os.kill(pids["node"], signal.SIGUSR1)
    return found


@asynccontextmanager
async def _talking(load: Load) -> AsyncIterator[tuple[Peer, Peer, Contender, dict[str, int]]]:
    """Run a node with calls that are under way; yields callers, model, node, and the ids of all processes."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memory-bench-")))
        redis = await stack.enter_async_context(running_redis(folder))
        callers = await stack.enter_async_context(running_peer("load", "ops.bench.load", folder))
        model = await stack.enter_async_context(running_peer("model", "ops.bench.model", folder))
        port = await model.ask("listen", cert=None, key=None)
        site, upstream = Site(folder, redis.url), f"ws://127.0.0.1:{port}/v1/realtime"
        node = await stack.enter_async_context(
            site.relay(upstream, program=_PROGRAM, RELAY_BUS_SWEEP_SECONDS=_SWEEP_SECONDS)
        )
        if node.pid is None:
            raise RuntimeError("a node without a process")
        where = {"url": node.url, "headers": node.headers, "ca": None}
        await callers.ask("open", **where, calls=load.calls, at_once=min(_OPEN_AT_ONCE, load.calls))
        await model.ask("stream", rate=load.calls * load.down_frames, turn_seconds=load.turn_seconds)
        await callers.ask("stream", rate=load.calls * load.up_frames)
        await asyncio.sleep(load.turn_seconds)
        yield callers, model, node, {"node": node.pid, "redis": redis.pid, "load": callers.pid, "model": model.pid}
        await callers.ask("still")
        await model.ask("still")
        await callers.ask("close")


async def _window(load: Load, callers: Peer, model: Peer, node: Contender, pids: dict[str, int]) -> dict[str, Any]:
    before = await _counts(node, model)
    found = await streams(callers, model, pids, load.seconds)
    after = await _counts(node, model)
    busy = (1 - found["machine"]["idle"]) * (os.cpu_count() or 1)
    found["others_cpus"] = busy - sum(found["cpu_seconds"].values()) / load.seconds
    return {**found, **{name: count - before[name] for name, count in after.items()}}


async def _counts(node: Contender, model: Peer) -> dict[str, int]:
    """What the node wrote of its calls, what it left out, and what the model told, so far."""
    async with ClientSession() as session, session.get(f"{node.ops_url}/status") as response:
        response.raise_for_status()
        (home,) = (await response.json())["bus"]["regions"].values()
    counts = {name: int(home[name]) for name in ("facts_written", "facts_dropped")}
    return {**counts, "turn_events": await model.ask("told")}
