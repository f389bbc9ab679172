"""A client that loses its node without a word and keeps the connection to it, as a phone between two networks does."""

import asyncio
import time
from typing import Final

import aiohttp

_MODEL: Final = "held"  # no call that the drills' model takes for a talker's
_ANSWER_SECONDS: Final = 5.0
REPLACED: Final = 4009  # the close code that tells a client that its call goes on elsewhere


class Holder:
    """One call, that goes on through a second connection while the first is still open."""

    def __init__(self, http: aiohttp.ClientSession, mint_token: str) -> None:
        self._http = http
        self._mint_token = mint_token
        self._key = ""
        self._old: aiohttp.ClientWebSocketResponse
        self._new: aiohttp.ClientWebSocketResponse

    async def call(self, url: str) -> None:
        """Call through this node."""
        headers = {"Authorization": f"Bearer {self._mint_token}"}
        async with self._http.post(f"{url}/v1/realtime/client_secrets", json={}, headers=headers) as answer:
            self._key = str((await answer.json())["value"])
        self._old = await self._connect(url)

    async def resume(self, url: str) -> None:
        """Go on through another node."""
        self._new = await self._connect(url)

    async def wait_old_closed(self, seconds: float) -> tuple[float, int | None]:
        """Until the first connection is closed, or for so long; returns how long that took, and the code."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(seconds):
                while (await self._old.receive()).type is aiohttp.WSMsgType.TEXT:
                    pass
        except TimeoutError:
            return seconds, None
        return time.monotonic() - began, self._old.close_code

    async def hang_up(self) -> None:
        """End the call."""
        await self._new.close()

    async def _connect(self, url: str) -> aiohttp.ClientWebSocketResponse:
        headers = {"Authorization": f"Bearer {self._key}"}
        async with asyncio.timeout(_ANSWER_SECONDS):
            socket = await self._http.ws_connect(f"{url}/v1/realtime?model={_MODEL}", headers=headers, max_msg_size=0)
            await socket.receive()  # session.created
        return socket
