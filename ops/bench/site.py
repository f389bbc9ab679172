"""How the bridges are started: with what, and against which upstream."""

import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final

import jwt

from ops.bench.processes import Server, running_server
from ops.bench.runs import Contender

_PATH: Final = "/v1/realtime?model=bench"


class Site:
    """Starts bridges; makes the certificate of the run."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.folder = folder
        self._redis_url = redis_url
        self._secret = secrets.token_hex(32)
        self.cert, self.key = folder / "cert.pem", folder / "key.pem"
        subprocess.run([sys.executable, "-m", "relay", "cert", str(folder)], check=True, capture_output=True)

    @asynccontextmanager
    async def relay(
        self, upstream: str, name: str = "relay", program: Sequence[str] = ("relay", "serve"), **settings: str
    ) -> AsyncIterator[Contender]:
        """Run a relay node with everything on: tokens, Redis, metrics, verified certificates.

        ``settings`` are further variables; the headers that its callers send allow them to publish and to mint, too.
        """
        env = {
            "RELAY_NODE": name,
            "RELAY_PORT": "0",
            "RELAY_OPS_PORT": "0",
            "RELAY_JWT_SECRET": self._secret,
            "RELAY_IP_CONNECTIONS": "0",  # all of them come from one address
            "RELAY_IP_STARTS_PER_MINUTE": "0",
            "REDIS_URL": self._redis_url,
            "RELAY_UPSTREAM_URL": upstream,
            "RELAY_UPSTREAM_KEY": "bench",
            "RELAY_UPSTREAM_CA": str(self.cert),
            "RELAY_DRAIN_SECONDS": "0",  # where the benchmark fails, calls are left
        }
        async with running_server(name, program, env | settings, self.folder) as server:
            claims = {"tenant": "bench", "scope": ["call", "control", "mint"], "exp": int(time.time()) + 86400}
            token = jwt.encode(claims, self._secret, algorithm="HS256")
            yield _contender(name, server, {"Authorization": f"Bearer {token}"})

    def aiohttp(self, upstream: str) -> AbstractAsyncContextManager[Contender]:
        """Run the aiohttp bridge."""
        return self._plain_bridge("aiohttp", upstream)

    def picows(self, upstream: str) -> AbstractAsyncContextManager[Contender]:
        """Run the bare picows bridge."""
        return self._plain_bridge("picows", upstream)

    @asynccontextmanager
    async def _plain_bridge(self, name: str, upstream: str) -> AsyncIterator[Contender]:
        arguments = [f"ops.bench.{name}_bridge", "--upstream", upstream, "--ca", str(self.cert)]
        async with running_server(name, arguments, {}, self.folder) as server:
            yield _contender(name, server, {})


def _contender(name: str, server: Server, headers: dict[str, str]) -> Contender:
    return Contender(
        name=name,
        url=server.url.replace("http", "ws", 1) + _PATH,
        headers=headers,
        pid=server.pid,
        ops_url=server.ops_url,
    )
