"""Fleets for tests: nodes and a simulator in this process, or the demo as processes, and small clients for both."""

import asyncio
import gc
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp

from ops.simulator.server import Settings as SimulatorSettings
from ops.simulator.server import Simulator, serve
from relay.app import Node, running
from relay.config import Settings
from relay.session import Session
from relay.tokens import mint

SECRET = secrets.token_hex(32)
_START_SECONDS = 30.0


def token(*scope: str, tenant: str = "test", secret: str = SECRET, seconds: float = 3600, **claims: str) -> str:
    """Sign a token for the nodes of these tests."""
    return mint(secret, tenant=tenant, scope=scope or ("call",), expires_at=time.time() + seconds, **claims)


def bearer(text: str) -> dict[str, str]:
    """Return the header that carries a token."""
    return {"Authorization": f"Bearer {text}"}


async def until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]], seconds: float = 10.0) -> None:
    """Until a condition holds, which nothing announces; fails the test after ``seconds``."""
    async with asyncio.timeout(seconds):
        while True:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.01)


class Nodes:
    """Nodes and one simulator in this process."""

    def __init__(self, stack: AsyncExitStack, redis_url: str, folder: Path) -> None:
        self._stack = stack
        self._redis_url = redis_url
        self.folder = folder
        self.prefix = f"test-{secrets.token_hex(4)}"
        self.http: aiohttp.ClientSession
        self.model: Simulator

    @classmethod
    @asynccontextmanager
    async def running(cls, redis_url: str, folder: Path, **behaviour: Any) -> AsyncIterator[Self]:
        """Hold the simulator, and the nodes that are added, for the length of the block."""
        async with AsyncExitStack() as stack:
            nodes = cls(stack, redis_url, folder)
            # No kept connections: a test that counts sockets counts calls.
            nodes.http = await stack.enter_async_context(
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))
            )
            nodes.model = await stack.enter_async_context(serve(SimulatorSettings(**behaviour)))
            yield nodes

    async def add(self, name: str = "a", **env: str) -> Node:
        """Start a node; ``env`` are settings without their RELAY_ prefix."""
        return await self._stack.enter_async_context(self.node(name, **env))

    def node(self, name: str = "a", **env: str) -> Any:
        """Return the context of a node, for a test that ends it itself."""
        return running(Settings.from_env(self.environment(name, **env)))

    def environment(self, name: str, **env: str) -> dict[str, str]:
        """Return the environment of a node."""
        own = {
            "RELAY_NODE": name,
            "RELAY_REGION": "iad",
            "RELAY_REGIONS": f"iad={self._redis_url}",
            "RELAY_PREFIX": self.prefix,
            "RELAY_PORT": "0",
            "RELAY_OPS_PORT": "0",
            "RELAY_JWT_SECRET": SECRET,
            "RELAY_UPSTREAM_URL": self.model.url,
            "RELAY_UPSTREAM_KEY": "upstream-key",
            "RELAY_DRAIN_SECONDS": "0",
            "RELAY_CLOSE_SECONDS": "1",
            # Most tests are of a call with one model leg, on which nothing is but what the test puts there.
            "RELAY_REDIAL_SECONDS": "0",
            "RELAY_IP_CONNECTIONS": "0",  # all of them come from one address
            "RELAY_IP_STARTS_PER_MINUTE": "0",
            "RELAY_CONFIG": str(self._plain_agents()),
        }
        return own | {f"RELAY_{key}": value for key, value in env.items()}

    def _plain_agents(self) -> Path:
        path = self.folder / "plain-agents.toml"
        path.write_text("[agents.default]\ntranscription = false\n")
        return path

    async def connect(
        self, node: Node, path: str = "/v1/realtime?model=sim", **options: Any
    ) -> aiohttp.ClientWebSocketResponse:
        """Open a client leg; ``options`` go to aiohttp."""
        headers = {**bearer(token("call")), **options.pop("headers", {})}
        return await self.http.ws_connect(node.url + path, headers=headers, max_msg_size=0, **options)

    async def session(self, open_only: bool = False) -> dict[str, Any]:
        """Return what the simulator received in its newest session."""
        listed = await self._get(f"{self.model.http_url}/sim/sessions" + ("?open=1" if open_only else ""))
        return await self._get(f"{self.model.http_url}/sim/sessions/{_newest(listed)}")

    async def sim_health(self) -> dict[str, Any]:
        """Return the simulator's own view of itself."""
        return await self._get(f"{self.model.http_url}/sim/health")

    async def fault(self, **fault: Any) -> None:
        """Let something go wrong with the next connections to the model."""
        async with self.http.post(f"{self.model.http_url}/sim/faults", json=fault) as response:
            assert response.status < 300, await response.text()

    async def put(
        self, node: Node, call_id: str, body: Mapping[str, Any], query: str = "wait=applied"
    ) -> tuple[int, Any]:
        """Put an item into a call; returns the status and the JSON."""
        url = f"{node.url}/v1/realtime/calls/{call_id}/items?{query}"
        async with self.http.post(url, json=body, headers=bearer(token("control"))) as response:
            return response.status, await response.json()

    async def get(self, node: Node, path: str, *scope: str) -> tuple[int, Any]:
        """Read from a node's API."""
        async with self.http.get(node.url + path, headers=bearer(token(*(scope or ("read",))))) as response:
            return response.status, await response.json()

    async def _get(self, url: str) -> dict[str, Any]:
        async with self.http.get(url) as response:
            found: dict[str, Any] = await response.json()
            return found


def _newest(listed: Mapping[str, Any]) -> str:
    sessions = listed["data"]
    assert sessions, "the simulator has had no session"
    return str(sessions[-1]["id"])


def session_of(call_id: str) -> Session:
    """Find the call's session among this process's objects."""
    sessions = (each for each in gc.get_objects() if isinstance(each, Session))
    return next(each for each in sessions if each.call_id == call_id)


async def event(socket: aiohttp.ClientWebSocketResponse, kind: str, seconds: float = 10.0) -> dict[str, Any]:
    """Until an event of this type comes; earlier ones are dropped."""
    async with asyncio.timeout(seconds):
        while True:
            message = await socket.receive()
            assert message.type is aiohttp.WSMsgType.TEXT, f"{message.type!r} {message.data!r} instead of {kind}"
            found: dict[str, Any] = json.loads(message.data)
            if found["type"] == kind:
                return found


async def closed(socket: aiohttp.ClientWebSocketResponse, seconds: float = 10.0) -> tuple[int, list[dict[str, Any]]]:
    """Until the other side closes; returns the code and the events that came before."""
    events = []
    async with asyncio.timeout(seconds):
        while True:
            message = await socket.receive()
            if message.type is aiohttp.WSMsgType.TEXT:
                events.append(json.loads(message.data))
            elif message.type in {aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR}:
                return socket.close_code or 1006, events


def system_message(text: str) -> dict[str, Any]:
    """Return an item that a backend would inject."""
    return {"type": "message", "role": "system", "content": [{"type": "input_text", "text": text}]}


@dataclass
class DemoFleet:
    """``relay demo`` as a process, described by its ready file."""

    process: subprocess.Popen[bytes]
    ready: dict[str, Any]
    folder: Path

    @classmethod
    def start(cls, folder: Path, *arguments: str) -> "DemoFleet":
        """Start it and wait until all is up."""
        ready, log = folder / "ready.json", folder / "log"
        env = {key: value for key, value in os.environ.items() if key not in {"OPENAI_API_KEY", "REDIS_URL"}}
        with log.open("wb") as output:
            command = [sys.executable, "-m", "relay", "demo", "--ready-file", str(ready), *arguments]
            process = subprocess.Popen(command, stdout=output, stderr=output, env=env)
        deadline = time.monotonic() + _START_SECONDS
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise RuntimeError(log.read_text())
            time.sleep(0.02)  # nothing announces the file
        return cls(process, json.loads(ready.read_text()), folder)

    @property
    def client_token(self) -> str:
        """A token that opens calls."""
        return str(self.ready["tokens"]["client"])

    @property
    def backend_token(self) -> str:
        """A token that controls and reads them."""
        return str(self.ready["tokens"]["backend"])

    def url(self, name: str) -> str:
        """The origin of a node."""
        return next(str(node["url"]) for node in self.ready["nodes"] if node["name"] == name)

    @property
    def certificate(self) -> Path:
        """The certificate of a fleet that serves TLS."""
        return Path(self.ready["certificate"])

    def stop(self) -> int:
        """End it as a person would; returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=10)
