"""A fleet for one drill: two regions with a Redis and two nodes each, the model, the load, the links between regions.

Everything is a process that ends with the block, whatever happened in it. What runs where, and how the regions' link is
cut, comes from outside (`Placement`), so that the regions may as well live in network namespaces.
"""

import asyncio
import json
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from relay.tokens import mint
from tests.drills.homes import Home, Standalone
from tests.drills.link import Link
from tests.drills.processes import Process

REGIONS: Final = ("iad", "lhr")
NODES_PER_REGION: Final = 2
TENANT: Final = "drill"
_TOKEN_SECONDS: Final = 3600
_LOCAL: Final = "127.0.0.1"

Serve = Callable[[Coroutine[Any, Any, None]], None]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where things run: by region, and `model` for the simulator."""

    prefixes: Mapping[str, list[str]] = field(default_factory=dict)  # before each command of a region
    hosts: Mapping[str, str] = field(default_factory=dict)  # the address of its processes
    cut: str | None = None  # shell commands that cut and heal the network; {iad_redis} is a port
    heal: str | None = None
    link_ms: float = 40.0  # one way, over the links of the drills' own

    def host(self, name: str) -> str:
        """The address of a region's processes, or of the model."""
        return self.hosts.get(name, _LOCAL)

    def prefix(self, name: str) -> list[str]:
        """What stands before a region's commands."""
        return self.prefixes.get(name, [])

    @property
    def has_own_links(self) -> bool:
        """Whether the regions are connected by the drills' own links, and not by a network."""
        return self.cut is None


@dataclass(slots=True)
class Node:
    """A relay node."""

    name: str
    region: str
    command: list[str]
    env: dict[str, str]
    ready: Path
    url: str = ""
    ops_url: str = ""
    process: Process = field(init=False)


class Fleet:
    """What runs, and the handles by which drills break it."""

    def __init__(self, placement: Placement, folder: Path) -> None:
        self._placement = placement
        self._folder = folder
        self._secret = secrets.token_hex(32)
        self._stack: AsyncExitStack
        self.homes: dict[str, Home] = {}
        self.links: list[Link] = []
        self.nodes: list[Node] = []
        self.model: Process
        self.load: Process

    @property
    def processes(self) -> list[Process]:
        """Those that must not end while the drill runs."""
        return [self.model, self.load, *(node.process for node in self.nodes)]

    def token(self, *scope: str) -> str:
        """Sign a token of the drills' tenant."""
        return mint(self._secret, tenant=TENANT, scope=scope, expires_at=time.time() + _TOKEN_SECONDS)

    async def cut_link(self) -> None:
        """Let nothing pass between the regions, silently."""
        for link in self.links:
            link.cut()
        await self._shell(self._placement.cut)

    async def heal_link(self) -> None:
        """Let everything pass again."""
        for link in self.links:
            link.heal()
        await self._shell(self._placement.heal)

    async def _shell(self, command: str | None) -> None:
        if command is None:
            return
        ports = {f"{name}_redis": home.target[1] for name, home in self.homes.items() if home.target is not None}
        process = await asyncio.create_subprocess_shell(command.format(**ports))
        if await process.wait() != 0:
            raise RuntimeError(f"this command failed: {command}")

    async def start(
        self,
        stack: AsyncExitStack,
        make_home: Callable[[str], Home],
        env: Mapping[str, str],
        load: str = "tests.drills.load",
        before_nodes: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Start everything, each part as soon as what it needs is there; `stack` ends it."""
        self._stack = stack
        serve = await stack.enter_async_context(_serving())
        async with asyncio.TaskGroup() as starts:
            for region in REGIONS:
                home = self.homes[region] = make_home(region)
                stack.push_async_callback(home.stop)
                starts.create_task(home.start())
            starts.create_task(self._start_model())
            starts.create_task(self._start_load(load))
        upstream = await self.model.ask("url")
        if before_nodes is not None:
            await before_nodes()
        names = [(f"{region}-{place}", region) for region in REGIONS for place in range(1, NODES_PER_REGION + 1)]
        urls = {region: self._redis_urls(region, serve) for region in REGIONS}
        async with asyncio.TaskGroup() as starts:
            started = [
                starts.create_task(self._start_node(name, region, urls[region], upstream, env))
                for name, region in names
            ]
        self.nodes = [node.result() for node in started]

    async def _start_model(self) -> None:
        command = [sys.executable, "-m", "tests.drills.model", self._placement.host("model")]
        self.model = await Process.start("model", command, folder=self._folder, takes_orders=True)
        self._stack.push_async_callback(self.model.kill)

    async def _start_load(self, module: str) -> None:
        command = [sys.executable, "-m", module]
        self.load = await Process.start("load", command, folder=self._folder, takes_orders=True)
        self._stack.push_async_callback(self.load.kill)

    def _redis_urls(self, region: str, serve: Serve) -> dict[str, str]:
        """Return the regions' Redises as this region's nodes reach them: over a link, where one can lead there."""
        urls = {}
        for name, home in self.homes.items():
            urls[name] = home.url
            if name != region and home.target is not None and self._placement.has_own_links:
                link = Link(home.target, self._placement.link_ms / 1000)
                serve(link.serve())
                self.links.append(link)
                urls[name] = f"redis://{_LOCAL}:{link.port}/0"
        return urls

    async def _start_node(
        self,
        name: str,
        region: str,
        redis_urls: Mapping[str, str],
        upstream: str,
        env: Mapping[str, str],
    ) -> Node:
        ready = self._folder / f"{name}.json"
        own = {
            "RELAY_NODE": name,
            "RELAY_REGION": region,
            "RELAY_REGIONS": ",".join(f"{each}={url}" for each, url in redis_urls.items()),
            "RELAY_HOST": self._placement.host(region),
            "RELAY_PORT": "0",
            "RELAY_OPS_PORT": "0",
            "RELAY_JWT_SECRET": self._secret,
            "RELAY_IP_CONNECTIONS": "0",  # all of them come from one address
            "RELAY_IP_STARTS_PER_MINUTE": "0",
            "RELAY_UPSTREAM_URL": upstream,
            "RELAY_UPSTREAM_KEY": "drill",
        }
        command = [
            *self._placement.prefix(region), sys.executable, "-m", "relay", "serve", "--ready-file", str(ready),
        ]  # fmt: skip
        node = Node(name, region, command, {**own, **env}, ready)
        await self.start_node(node)
        return node

    async def start_node(self, node: Node) -> None:
        """Start a node, anew where it has ended; it listens at other ports then."""
        node.ready.unlink(missing_ok=True)
        node.process = await Process.start(node.name, node.command, folder=self._folder, env=node.env)
        self._stack.push_async_callback(node.process.kill)
        found: dict[str, Any] = await node.process.wait_file(node.ready)
        node.url, node.ops_url = str(found["url"]), str(found["ops_url"])

    def described(self) -> list[dict[str, str]]:
        """Return the nodes for the load."""
        return [
            {"name": node.name, "region": node.region, "url": node.url, "ops_url": node.ops_url} for node in self.nodes
        ]

    def troubles(self) -> list[str]:
        """What no node may have logged: errors that nobody caught, one line of each node's first."""
        found = []
        for node in self.nodes:
            for line in node.process.log.read_text(errors="replace").splitlines():
                if _is_crash(line):
                    found.append(f"{node.name}: {line[:300]}")
                    break
        return found

    def standalone(self, region: str) -> Standalone:
        """Return the one server of a region."""
        home = self.homes[region]
        assert isinstance(home, Standalone)
        return home


def _is_crash(line: str) -> bool:
    """Whether a log line tells of an error that nobody expected."""
    if not line.startswith("{"):
        return line.startswith("Traceback")
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    return "exception" in entry or entry.get("level") == "critical"


@asynccontextmanager
async def _serving() -> AsyncIterator[Serve]:
    """Hold what serves as long as the fleet is there."""
    async with asyncio.TaskGroup() as tasks:
        running: list[asyncio.Task[None]] = []

        def serve(work: Coroutine[Any, Any, None]) -> None:
            running.append(tasks.create_task(work))

        try:
            yield serve
        finally:
            for task in running:
                task.cancel()
