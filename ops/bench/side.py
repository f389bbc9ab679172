"""The side legs' measurement: calls with audio on one node, and on another a side leg on each of them.

Every window has its own calls, since a node that listened is written to for a while after it left. Results are plain
JSON values.
"""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from aiohttp import ClientSession

from ops.bench.processes import ChildFailed, Peer, Server, running_peer
from ops.bench.runs import Contender, streams
from ops.bench.site import Site

_OPEN_AT_ONCE: Final = 10
_HEARD_SECONDS: Final = 10.0  # for the calls' node to know who listens
_LOOK_SECONDS: Final = 0.02
_REGION: Final = "iad"


class Mode(NamedTuple):
    """Who is there beside clients and model."""

    name: str
    has_node: bool = True
    has_side_legs: bool = False
    has_audio: bool = False


DIRECT, ALONE, EVENTS, AUDIO = MODES = (
    Mode("direct", has_node=False),
    Mode("no side legs"),
    Mode("events", has_side_legs=True),
    Mode("audio", has_side_legs=True, has_audio=True),
)


@dataclass(frozen=True, slots=True)
class SideShape:
    """How much of everything."""

    calls: int
    seconds: float
    warm_up_seconds: float
    rounds: int
    up_frames: float = 50.0  # a second and call
    down_frames: float = 5.0
    words: float = 5.0  # events of the transcript: what a side leg without audio gets


class SideBench:
    """The peers, and what they measure of the nodes."""

    def __init__(self, shape: SideShape, load: Peer, model: Peer, site: Site, redis: Server) -> None:
        self._shape = shape
        self._load = load
        self._model = model
        self._site = site
        self._redis = redis

    async def measure(self) -> dict[str, list[dict[str, Any]]]:
        """Measure all modes, in turns; by mode, a result for each round."""
        port = await self._model.ask("listen", cert=None, key=None)
        upstream = f"ws://127.0.0.1:{port}/v1/realtime"
        region = {"RELAY_REGION": _REGION, "RELAY_REGIONS": f"{_REGION}={self._redis.url}"}
        found: dict[str, list[dict[str, Any]]] = {mode.name: [] for mode in MODES}
        async with (
            self._site.relay(upstream, "node-of-calls", **region) as owner,
            self._site.relay(upstream, "node-of-side-legs", **region) as other,
            running_peer("listeners", "ops.bench.listeners", self._site.folder) as listeners,
            ClientSession() as session,
        ):
            window = _Window(self, owner, other, listeners, session)
            for _ in range(self._shape.rounds):
                for mode in MODES:
                    found[mode.name].append(await window.pass_by(mode, upstream))
        return found

    async def speak(self) -> None:
        """Let clients and model begin."""
        shape = self._shape
        await self._model.ask("stream", rate=shape.calls * shape.down_frames, words=shape.calls * shape.words)
        await self._load.ask("stream", rate=shape.calls * shape.up_frames)

    async def be_still(self) -> dict[str, int]:
        """Let them end; returns the frames that were sent since `speak`, by direction."""
        up, down = await self._load.ask("still"), await self._model.ask("still")
        return {"up": up, "down": down["audio"], "words": down["words"]}

    async def open(self, url: str, headers: dict[str, str]) -> list[str]:
        """Open the calls; returns their ids."""
        calls = self._shape.calls
        await self._load.ask("open", url=url, headers=headers, ca=None, calls=calls, at_once=min(_OPEN_AT_ONCE, calls))
        ids: list[str] = await self._load.ask("call_ids") if headers else []
        return ids

    async def streams(self, pids: dict[str, int]) -> dict[str, Any]:
        """Measure what is said, for the window's length."""
        pids = pids | {"redis": self._redis.pid, "load": self._load.pid, "model": self._model.pid}
        return await streams(self._load, self._model, pids, self._shape.seconds)

    async def close(self) -> None:
        """End the calls."""
        await self._load.ask("close")

    def log(self, node: Contender) -> Path:
        """Where a node's log is."""
        return self._site.folder / f"{node.name}.log"

    @property
    def shape(self) -> SideShape:
        """How much of everything."""
        return self._shape


class _Window:
    """One stretch of time in one of the modes, on calls of its own."""

    def __init__(
        self, bench: SideBench, owner: Contender, other: Contender, listeners: Peer, session: ClientSession
    ) -> None:
        self._bench = bench
        self._owner = owner
        self._other = other
        self._listeners = listeners
        self._session = session
        nodes = {"owner": owner, "other": other}
        self._pids = {name: node.pid for name, node in nodes.items() if node.pid is not None}

    async def pass_by(self, mode: Mode, upstream: str) -> dict[str, Any]:
        """Measure in this mode."""
        bench, owner, listeners = self._bench, self._owner, self._listeners
        calls = await (bench.open(owner.url, owner.headers) if mode.has_node else bench.open(upstream, {}))
        if mode.has_side_legs:
            await self._attach(calls, mode)
        dropped = await self._dropped()
        await bench.speak()
        await asyncio.sleep(bench.shape.warm_up_seconds)
        if mode.has_side_legs:
            await listeners.ask("begin")
        found = await bench.streams(self._pids | {"listeners": listeners.pid})
        busy = (1 - found["machine"]["idle"]) * (os.cpu_count() or 1)
        found["others_cpus"] = busy - sum(found["cpu_seconds"].values()) / bench.shape.seconds
        sent = await bench.be_still()
        if mode.has_side_legs:
            found["due"] = {kind: frames if mode.has_audio or kind == "words" else 0 for kind, frames in sent.items()}
            await listeners.ask("wait_heard", due=found["due"])
            found["heard"] = await listeners.ask("end")
            found["dropped"] = await self._dropped() - dropped
            await listeners.ask("close")
        await bench.close()
        await self._wait_until(live=0, watched=0, heard=0)
        return found

    async def _attach(self, calls: Sequence[str], mode: Mode) -> None:
        other = self._other
        await self._listeners.ask(
            "open",
            url=other.url.partition("?")[0],
            headers=other.headers,
            calls=calls,
            audio=mode.has_audio,
            at_once=_OPEN_AT_ONCE,
        )
        await self._wait_until(watched=len(calls), heard=len(calls) if mode.has_audio else 0)

    async def _wait_until(self, **counts: int) -> None:
        """Until the calls' node counts so many of its calls."""
        until = asyncio.get_running_loop().time() + _HEARD_SECONDS
        while counts.items() - (await self._counts()).items():
            if asyncio.get_running_loop().time() > until:
                raise ChildFailed(self._owner.name, f"did not come to count {counts}", self._bench.log(self._owner))
            await asyncio.sleep(_LOOK_SECONDS)

    async def _dropped(self) -> int:
        """What the calls' node has left out of its logs and sound so far."""
        counts = await self._counts()
        return int(counts["log_dropped"] + counts["sounds_dropped"])

    async def _counts(self) -> dict[str, Any]:
        async with self._session.get(f"{self._owner.ops_url}/status") as response:
            response.raise_for_status()
            status = await response.json()
        return {"live": status["calls"]["live"], **status["bus"]["regions"][_REGION]}
