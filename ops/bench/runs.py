"""The measurements: what is done with one contender, and what is read meanwhile. Results are plain JSON values."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import ClientSession

from ops.bench.measure import Memory, cpu, machine, memory, summary
from ops.bench.processes import Peer

_OPEN_AT_ONCE: Final = 50
_FIRST_CALLS: Final = 5  # pay for what is made once; few, as later calls find the memory that they leave
_SETTLE_SECONDS: Final = 1.5  # for buffers to go and for the last objects of closed calls
_SCRAPE_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True)
class Shape:
    """How much of everything."""

    calls: int
    seconds: float
    warm_up_seconds: float
    idle_calls: int
    connects: int
    rounds: int
    up_frames: float = 50.0  # a second and call
    down_frames: float = 5.0


@dataclass(frozen=True, slots=True)
class Contender:
    """What the callers dial: a bridge, or the model itself."""

    name: str
    url: str
    headers: dict[str, str]
    ca: str | None = None  # of the URL's certificate
    pid: int | None = None  # None: nothing stands between callers and model
    ops_url: str | None = None


class Bench:
    """The peers, and what they measure of a contender."""

    def __init__(self, shape: Shape, load: Peer, model: Peer) -> None:
        self._shape = shape
        self._load = load
        self._model = model

    async def steady(self, contender: Contender, *, scraped: bool = False) -> dict[str, Any]:
        """Measure CPU per relayed frame and latency under the load; `scraped` reads its metrics meanwhile."""
        shape, load, model = self._shape, self._load, self._model
        await self._open(contender, shape.calls, _OPEN_AT_ONCE)
        await model.ask("stream", rate=shape.calls * shape.down_frames)
        await load.ask("stream", rate=shape.calls * shape.up_frames)
        await asyncio.sleep(shape.warm_up_seconds)
        pids = {"load": load.pid, "model": model.pid} | ({"bridge": contender.pid} if contender.pid else {})
        await model.ask("begin")
        await load.ask("begin")
        before, began, idle = {name: cpu(pid) for name, pid in pids.items()}, time.monotonic(), machine()
        scrapes = await self._pass_the_window(contender if scraped else None)
        used = {name: cpu(pid).since(before[name]) for name, pid in pids.items()}
        seconds, shares = time.monotonic() - began, machine().since(idle)
        down, up = await load.ask("end"), await model.ask("end")
        await load.ask("still")
        await model.ask("still")
        await load.ask("close")
        frames = down["sent"]["frames"] + down["received"]["frames"]
        result: dict[str, Any] = {
            "lost_calls": down["lost"],
            "up_frames": {"sent": down["sent"]["frames"], "received": up["received"]["frames"]},
            "down_frames": {"sent": up["sent"]["frames"], "received": down["received"]["frames"]},
            "up_ms": up["received"]["latency_ms"],
            "down_ms": down["received"]["latency_ms"],
            "machine": shares,
            "cores": {name: round(spent.total / seconds, 4) for name, spent in used.items()},
            "senders_latest_ms": {"load": down["sent"]["latest_ms"], "model": up["sent"]["latest_ms"]},
        }
        if "bridge" in used and frames:
            result["cpu_us"] = {part: value / frames * 1e6 for part, value in used["bridge"]._asdict().items()}
        if scraped:
            result["scrapes_ms"] = summary(scrapes)
        return result

    async def _pass_the_window(self, scraped: Contender | None) -> list[float]:
        """Wait for the window's length; returns how long each scrape took, in milliseconds."""
        if scraped is None:
            await asyncio.sleep(self._shape.seconds)
            return []
        took = []
        until = time.monotonic() + self._shape.seconds
        async with ClientSession() as session:
            while time.monotonic() < until:
                began = time.monotonic()
                async with session.get(f"{scraped.ops_url}/metrics") as response:
                    response.raise_for_status()
                    await response.read()
                took.append((time.monotonic() - began) * 1e3)
                await asyncio.sleep(_SCRAPE_SECONDS)
        return took

    async def connects(self, contender: Contender, at_once: int) -> dict[str, Any]:
        """Measure the time from dialling to `session.created`, in milliseconds."""
        count = self._shape.connects if at_once == 1 else max(self._shape.connects, 4 * at_once)
        took: dict[str, Any] = await self._open(contender, count, at_once)
        await self._load.ask("close")
        return took

    async def idle_memory(self, contender: Contender) -> dict[str, Any]:
        """Measure the memory of idle calls; the contender's process must be fresh."""
        if contender.pid is None:
            raise ValueError("nothing to measure between callers and model")
        await self._open(contender, _FIRST_CALLS, _FIRST_CALLS)
        await self._load.ask("close")
        before = await self._settled_memory(contender.pid)
        await self._open(contender, self._shape.idle_calls, _OPEN_AT_ONCE)
        await self._load.ask("speak_once")
        with_calls = await self._settled_memory(contender.pid)
        await self._load.ask("close")
        calls = self._shape.idle_calls
        return {
            "calls": calls,
            "before_kib": before._asdict(),
            "rss_kib": (with_calls.rss - before.rss) / calls,
            "pss_kib": (with_calls.pss - before.pss) / calls,
        }

    async def _settled_memory(self, pid: int) -> Memory:
        await asyncio.sleep(_SETTLE_SECONDS)
        return memory(pid)

    async def _open(self, contender: Contender, calls: int, at_once: int) -> dict[str, Any]:
        took: dict[str, Any] = await self._load.ask(
            "open", url=contender.url, headers=contender.headers, ca=contender.ca, calls=calls, at_once=at_once
        )
        return took


async def rounds(bench: Bench, shape: Shape, contenders: Sequence[Contender]) -> dict[str, list[dict[str, Any]]]:
    """Measure the contenders one after the other, again and again, so that the machine's noise meets all of them."""
    results: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in contenders}
    for _ in range(shape.rounds):
        for contender in contenders:
            results[contender.name].append(await bench.steady(contender))
    return results


async def streams(load: Peer, model: Peer, pids: dict[str, int], seconds: float) -> dict[str, Any]:
    """Measure the audio of calls that speak, and the CPU time of some processes, for so long."""
    await model.ask("begin")
    await load.ask("begin")
    before, idle = {name: cpu(pid) for name, pid in pids.items()}, machine()
    await asyncio.sleep(seconds)
    used = {name: cpu(pid).since(before[name]).total for name, pid in pids.items()}
    shares = machine().since(idle)
    down, up = await load.ask("end"), await model.ask("end")
    return {
        "cpu_seconds": used,
        "machine": shares,
        "lost_calls": down["lost"],
        "up_ms": up["received"]["latency_ms"],
        "down_ms": down["received"]["latency_ms"],
        "senders_latest_ms": {"load": down["sent"]["latest_ms"], "model": up["sent"]["latest_ms"]},
    }
