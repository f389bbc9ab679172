"""The bus's measurement: messages posted to one node, for calls with audio that live on another.

In one region both nodes share a Redis; between regions each has its own, and the node that takes the posts reaches the
calls' home over a link with a delay. Results are plain JSON values.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from ops.bench.processes import Peer, Server, running_peer, running_redis
from ops.bench.runs import Contender, streams
from ops.bench.site import Site

_OPEN_AT_ONCE: Final = 10
_ARRIVAL_SECONDS: Final = 0.5  # beyond the link, for what was accepted to come to the model
_HOME, _AWAY = "iad", "lhr"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the messages are posted, and how many."""

    name: str
    rate: float  # messages a second, over all calls
    delay_ms: float = 0.0  # one way, from there to the calls' home; 0: the same region


PLACES: Final = (Place("in one region", 500.0), Place("between regions", 100.0, 40.0))


@dataclass(frozen=True, slots=True)
class BusShape:
    """How much of everything."""

    calls: int
    seconds: float
    warm_up_seconds: float
    rounds: int
    settles: bool  # whether to wait until a Redis that just started lets verdicts be written (twelve seconds)
    up_frames: float = 50.0  # a second and call
    down_frames: float = 5.0


class BusBench:
    """The peers, and what they measure of the nodes."""

    def __init__(self, shape: BusShape, load: Peer, model: Peer, site: Site, redis: Server) -> None:
        self._shape = shape
        self._load = load
        self._model = model
        self._site = site
        self._redis = redis

    async def measure(self, place: Place) -> dict[str, Any]:
        """Measure one place: windows without and with messages, in turns, on the same calls."""
        shape, load = self._shape, self._load
        port = await self._model.ask("listen", cert=None, key=None, takes_items=True)
        upstream = f"ws://127.0.0.1:{port}/v1/realtime"
        async with AsyncExitStack() as stack:
            owner, other, link = await stack.enter_async_context(self._nodes(place, upstream))
            publisher = await stack.enter_async_context(
                running_peer("publisher", "ops.bench.publisher", self._site.folder)
            )
            to_owner = {"url": owner.url, "headers": owner.headers, "ca": None}
            await load.ask("open", **to_owner, calls=shape.calls, at_once=min(_OPEN_AT_ONCE, shape.calls))
            calls = await load.ask("call_ids")
            first_wait = "applied" if shape.settles else "delivered"
            first = await publisher.ask(
                "open", url=other.url, headers=other.headers, calls=calls, first_wait=first_wait
            )
            await self._model.ask("stream", rate=shape.calls * shape.down_frames)
            await load.ask("stream", rate=shape.calls * shape.up_frames)
            window = _Window(self, place, publisher, link, owner, other)
            without, with_messages = [], []
            for _ in range(shape.rounds):
                without.append(await window.pass_by(0.0))
                with_messages.append(await window.pass_by(place.rate))
            await load.ask("still")
            await self._model.ask("still")
            await load.ask("close")
        return {"first": first, "without": without, "with": with_messages}

    @asynccontextmanager
    async def _nodes(self, place: Place, upstream: str) -> AsyncIterator[tuple[Contender, Contender, Peer | None]]:
        """Run the node of the calls, the one that takes the posts, and the link between them if there is one."""
        async with AsyncExitStack() as stack:
            home = self._redis.url
            link = None
            if place.delay_ms:
                away = (await stack.enter_async_context(running_redis(self._site.folder, "redis-away"))).url
                link = await stack.enter_async_context(running_peer("link", "ops.bench.link", self._site.folder))
                back = await stack.enter_async_context(running_peer("link-back", "ops.bench.link", self._site.folder))
                over = await link.ask("open", url=home, delay_ms=place.delay_ms)
                over_back = await back.ask("open", url=away, delay_ms=place.delay_ms)
                of_owner = _region(_HOME, home, f"redis://127.0.0.1:{over_back}/0")
                of_other = _region(_AWAY, f"redis://127.0.0.1:{over}/0", away)
            else:
                of_owner = of_other = {"RELAY_REGION": _HOME, "RELAY_REGIONS": f"{_HOME}={home}"}
            owner = await stack.enter_async_context(self._site.relay(upstream, "node-of-calls", **of_owner))
            other = await stack.enter_async_context(self._site.relay(upstream, "node-of-posts", **of_other))
            yield owner, other, link

    async def streams(self, pids: dict[str, int], seconds: float) -> dict[str, Any]:
        """Measure the calls' audio, and the CPU time of some processes, for so long."""
        return await streams(self._load, self._model, pids | {"redis": self._redis.pid}, seconds)

    async def arrived(self, first: int, end: int) -> dict[str, Any]:
        """What came to the model of the messages with these numbers."""
        found: dict[str, Any] = await self._model.ask("items", first=first, end=end)
        return found

    @property
    def shape(self) -> BusShape:
        """How much of everything."""
        return self._shape


class _Window:
    """One stretch of time, with or without messages."""

    def __init__(
        self, bench: BusBench, place: Place, publisher: Peer, link: Peer | None, owner: Contender, other: Contender
    ) -> None:
        self._bench = bench
        self._place = place
        self._publisher = publisher
        self._link = link
        self._pids = {each: node.pid for each, node in (("owner", owner), ("other", other)) if node.pid is not None}

    async def pass_by(self, rate: float) -> dict[str, Any]:
        """Measure under so many messages a second."""
        bench, publisher, link = self._bench, self._publisher, self._link
        if rate:
            await publisher.ask("stream", rate=rate)
        await asyncio.sleep(bench.shape.warm_up_seconds)
        await publisher.ask("begin")
        if link is not None:
            await link.ask("begin")
        found = await bench.streams(self._pids, bench.shape.seconds)
        if rate:
            await publisher.ask("still")
            sent = await publisher.ask("end")
            await asyncio.sleep(_ARRIVAL_SECONDS + self._place.delay_ms / 1e3)
            found["sent"] = sent
            found["arrived"] = await bench.arrived(sent["first"], sent["end"])
            found["senders_latest_ms"]["publisher"] = sent["latest_ms"]
            if link is not None:
                found["link_late_ms"] = await link.ask("end")
        return found


def _region(name: str, home: str, away: str) -> dict[str, str]:
    return {"RELAY_REGION": name, "RELAY_REGIONS": f"{_HOME}={home},{_AWAY}={away}"}
