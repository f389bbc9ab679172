"""The resumes' measurement: how long a person waits for the first audio after a lost socket, by where the call goes on.

The model is the simulator, over TLS and a link with a delay; the clients are next door to the nodes, so that what is
measured is the relay's. Results are plain JSON values.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from aiohttp import ClientSession

from ops.bench.measure import machine
from ops.bench.processes import ChildFailed, Peer, Server, running_peer, running_server
from ops.bench.runs import Contender
from ops.bench.site import Site

_REGION: Final = "iad"
_SPEED: Final = "50"  # of the simulator's audio: only its first piece is waited for
_SPARES: Final = "4"
_SETTLE_SECONDS: Final = 40.0  # for nodes to trust a Redis that was just started; until then no call is moved
_LOOK_SECONDS: Final = 0.1


class Way(NamedTuple):
    """Where a call goes on after its client's socket was cut."""

    name: str
    node: str | None  # None: it was not cut


ASKED, SAME, COLD, WARM = WAYS = (
    Way("no resume", None),
    Way("same node", "owner"),
    Way("other node", "other"),
    Way("and a spare", "spared"),
)


@dataclass(frozen=True, slots=True)
class ResumeShape:
    """How much of everything."""

    resumes: int  # each way
    calls: int  # at a time
    turns: int = 5  # that a call has had: a question and an answer each
    delay_ms: float = 25.0  # one way, to the model


class ResumeBench:
    """The nodes and the clients, and what they measure."""

    def __init__(self, shape: ResumeShape, site: Site, redis: Server) -> None:
        self._shape = shape
        self._site = site
        self._redis = redis

    async def measure(self) -> dict[str, Any]:
        """Measure all ways, in turns; by way, the times of each resume."""
        shape = self._shape
        found: dict[str, list[dict[str, float]]] = {way.name: [] for way in WAYS}
        async with (
            self._upstream() as upstream,
            self._nodes(upstream) as nodes,
            running_peer("resumer", "ops.bench.resumer", self._site.folder) as resumer,
        ):
            await self._wait_settled(nodes.values())
            for node in nodes.values():  # spares are made for models that a node was asked for
                await self._open(resumer, node, 1)
                await resumer.ask("ask")
            before = machine()
            while len(found[WARM.name]) < shape.resumes:
                calls = min(shape.calls, shape.resumes - len(found[WARM.name]))
                for way in WAYS:
                    found[way.name] += await self._resumed(resumer, nodes, way, calls)
            shares = machine().since(before)
        return {"ways": found, "machine": shares}

    async def _wait_settled(self, nodes: Iterable[Contender]) -> None:
        until = asyncio.get_running_loop().time() + _SETTLE_SECONDS
        async with ClientSession() as session:
            for node in nodes:
                while not await _has_settled(session, node):
                    if asyncio.get_running_loop().time() > until:
                        raise ChildFailed(node.name, "did not settle", self._site.folder / f"{node.name}.log")
                    await asyncio.sleep(_LOOK_SECONDS)

    async def _resumed(
        self, resumer: Peer, nodes: dict[str, Contender], way: Way, calls: int
    ) -> list[dict[str, float]]:
        await self._open(resumer, nodes["owner"], calls)
        if way.node is None:
            times: list[dict[str, float]] = await resumer.ask("ask")
        else:
            times = await resumer.ask("resume", url=nodes[way.node].url)
        return times

    async def _open(self, resumer: Peer, node: Contender, calls: int) -> None:
        await resumer.ask("open", url=node.url, headers=node.headers, calls=calls, turns=self._shape.turns)

    @asynccontextmanager
    async def _upstream(self) -> AsyncIterator[str]:
        """Run the model and the way to it; yields the URL at the near end."""
        site = self._site
        arguments = ["ops.simulator", "--certfile", str(site.cert), "--keyfile", str(site.key), "--speed", _SPEED]
        async with (
            running_server("simulator", arguments, {}, site.folder, bridge=False) as simulator,
            running_peer("link-to-model", "ops.bench.link", site.folder) as link,
        ):
            port = await link.ask("open", url=simulator.url, delay_ms=self._shape.delay_ms, opening=True)
            yield f"wss://127.0.0.1:{port}/v1/realtime"

    @asynccontextmanager
    async def _nodes(self, upstream: str) -> AsyncIterator[dict[str, Contender]]:
        region = {"RELAY_REGION": _REGION, "RELAY_REGIONS": f"{_REGION}={self._redis.url}"}
        spares = {"owner": "0", "other": "0", "spared": _SPARES}
        async with AsyncExitStack() as stack:
            nodes = {}
            for name, number in spares.items():
                settings = {**region, "RELAY_UPSTREAM_SPARES": number}
                nodes[name] = await stack.enter_async_context(self._site.relay(upstream, f"node-{name}", **settings))
            yield nodes


async def _has_settled(session: ClientSession, node: Contender) -> bool:
    async with session.get(f"{node.ops_url}/status") as response:
        response.raise_for_status()
        (home,) = (await response.json())["bus"]["regions"].values()
    return not home["settling"]
