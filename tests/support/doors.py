"""Chooses the node of a connection as the load balancer before a fleet does."""

import asyncio
from collections.abc import Mapping

import aiohttp


class Doors:
    """Chooses a node as a load balancer does: one after the other, of those whose ``/readyz`` says so."""

    def __init__(self, http: aiohttp.ClientSession, nodes: Mapping[str, tuple[str, str]]) -> None:
        """Args: http: for the health checks. nodes: url and operations url by name; may change at any time."""
        self.nodes = dict(nodes)
        self._http = http
        self._next = 0

    async def choose(self) -> str | None:
        """Return the url of a node that is ready, None if none is."""
        for _ in range(len(self.nodes)):
            url, ops_url = list(self.nodes.values())[self._next % len(self.nodes)]
            self._next += 1
            if await self._is_ready(ops_url):
                return url
        return None

    async def _is_ready(self, ops_url: str) -> bool:
        try:
            async with asyncio.timeout(0.5), self._http.get(f"{ops_url}/readyz") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False
