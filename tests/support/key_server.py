"""A server on loopback that publishes keys, or whatever else a test lets it say."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.support.signing import ALGORITHMS, key_set, signer


class KeyServer:
    """Publishes what ``answer`` makes, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.url = ""
        self.answer: Callable[[web.Request], Any]
        self.publish(*(signer(algorithm.lower(), algorithm).public() for algorithm in ALGORITHMS))

    def publish(self, *keys: dict[str, Any]) -> None:
        """Answer with these keys."""
        self.say(200, key_set(*keys))

    def say(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Answer with this."""

        async def answer(_: web.Request) -> web.Response:
            return web.Response(status=status, body=body, headers={k.replace("_", "-"): headers[k] for k in headers})

        self.answer = answer

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer, and count it."""
        self.asked += 1
        found: web.StreamResponse = await self.answer(request)
        return found


@asynccontextmanager
async def publishing() -> AsyncIterator[KeyServer]:
    """Listen for the length of the block."""
    server, app = KeyServer(), web.Application()
    app.router.add_get("/keys", server.handle)
    listening = TestServer(app)
    await listening.start_server(shutdown_timeout=0.1)
    server.url = str(listening.make_url("/keys"))
    try:
        yield server
    finally:
        await listening.close()
