"""The measurement: a node comes to own thousands of calls, it sweeps, its subscriber is cut off, its Redis restarts."""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fanout import BusSettings, Fanout
from tests.bench.publisher import Backend
from tests.drills.processes import Process
from tests.support.redis_server import RedisServer

_REGION: Final = "iad"
_FIRST_CALLS: Final = 100  # pay for what is made once
_LIMIT_SECONDS: Final = 300.0


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything; the bus has the settings of production but for `settings`."""

    calls: int = 9000
    messages_per_second: float = 20.0
    sweeps: int = 2
    quiet_seconds: float = 2.0  # with few calls, for what the node uses anyway
    settings: dict[str, Any] = field(default_factory=dict)

    def bus(self, node: str, url: str) -> dict[str, Any]:
        """The settings of a node."""
        return {"node": node, "region": _REGION, "regions": {_REGION: url}, "prefix": "bench", **self.settings}


async def measure(binary: str, size: Size) -> dict[str, Any]:
    """Measure on one kind of server, given by its binary; plain JSON values.

    Raises:
        ProcessFailed: the owning node ended.
        TimeoutError: something did not happen within minutes.
    """
    server = RedisServer(binary).start()
    try:
        async with asyncio.timeout(_LIMIT_SECONDS), _owner(size, server.url) as owner:
            found = await _calls_come(owner, server, size)
            ids = found.pop("ids")
            settings = BusSettings(**size.bus("backend", server.url))
            async with Fanout.running(settings, clock=time.time) as bus, asyncio.TaskGroup() as tasks:
                await bus.wait_connected()
                backend = Backend(bus, ids, size.messages_per_second)
                tasks.create_task(backend.work())
                found["sweep"] = await _sweeps(owner, settings.sweep_seconds, size, found["quiet_cpu"])
                found["cut"] = await _subscriber_is_cut(owner, server)
                found["restart"] = await _redis_restarts(owner, server)
                backend.stop()
            found["messages"] = backend.told()
    finally:
        server.stop()
    return found


@asynccontextmanager
async def _owner(size: Size, url: str) -> AsyncIterator[Process]:
    with tempfile.TemporaryDirectory(prefix="bus-bench-") as folder:
        command = [sys.executable, "-m", "tests.bench.owner", json.dumps(size.bus("owner", url))]
        owner = await Process.start("owner", command, folder=Path(folder), takes_orders=True)
        try:
            yield owner
        finally:
            await owner.kill()


async def _calls_come(owner: Process, server: RedisServer, size: Size) -> dict[str, Any]:
    """Measure how calls are registered, and the memory of each on the node and on Redis."""
    await owner.ask("settle")
    await owner.ask("own", calls=min(_FIRST_CALLS, size.calls))
    await owner.ask("watch")
    await asyncio.sleep(size.quiet_seconds)
    quiet = await owner.ask("stalls")
    rss, used = await owner.ask("rss_kib"), await asyncio.to_thread(_used_bytes, server)
    await owner.ask("watch")
    began = time.monotonic()
    ids = await owner.ask("own", calls=size.calls)
    seconds = time.monotonic() - began
    return {
        "ids": ids,
        "quiet_cpu": quiet["cpu_ms"] / size.quiet_seconds,
        "register": {"seconds": seconds, **await owner.ask("stalls")},
        "node_kib": (await owner.ask("rss_kib") - rss) / size.calls,
        "redis_kib": (await asyncio.to_thread(_used_bytes, server) - used) / 1024 / size.calls,
        "status_ms": min([await owner.ask("status_ms") for _ in range(5)]),
    }


def _used_bytes(server: RedisServer) -> int:
    lines = server.command("INFO", "memory").splitlines()
    return next(int(line.partition(":")[2]) for line in lines if line.startswith("used_memory:"))


async def _sweeps(owner: Process, every_seconds: float, size: Size, quiet_cpu: float) -> dict[str, float]:
    """Watch some sweeps; their CPU time is what the node uses more than with few calls."""
    seconds = every_seconds * size.sweeps
    await owner.ask("watch")
    await asyncio.sleep(seconds)
    found: dict[str, float] = await owner.ask("stalls")
    found["cpu_ms"] = max(0.0, found["cpu_ms"] - quiet_cpu * seconds) / size.sweeps
    return found


async def _subscriber_is_cut(owner: Process, server: RedisServer) -> dict[str, float]:
    await owner.ask("watch")
    began = time.monotonic_ns()
    await asyncio.to_thread(server.command, "CLIENT", "KILL", "TYPE", "pubsub")
    return await _until(owner, "held_again", began)


async def _redis_restarts(owner: Process, server: RedisServer) -> dict[str, float]:
    """Kill it and start it empty; times count from when it answers again."""
    await owner.ask("watch")
    server.restart()  # in this thread, with which the server would end
    return await _until(owner, "restored", time.monotonic_ns())


async def _until(owner: Process, order: str, began: int) -> dict[str, float]:
    times = await owner.ask(order)
    seconds = {f"{name}_seconds": (at - began) / 1e9 for name, at in times.items()}
    return {**seconds, **await owner.ask("stalls")}
