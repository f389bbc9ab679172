"""`python -m ops.bench.aiohttp_bridge`: what the relay is compared with, the simplest honest bridge on aiohttp.

Two pumps a call, no tokens, no bus, no metrics. Compression is off, as the relay has none; the rest is as a careful
author would have it: uvloop, aiohttp's compiled reader, no limit on connections, the relay's longest message.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import ClientSession, ClientWebSocketResponse, TCPConnector, WSMsgType, web

from ops.bench.bridge import Listening, run

_MAX_MESSAGE_BYTES: Final = 21 << 20
_BACKLOG: Final = 1024

Socket = web.WebSocketResponse | ClientWebSocketResponse


async def _pump(source: Socket, target: Socket) -> None:
    """Forward messages as they are, until one side closes; then close the other.

    To forward the bytes (`decode_text=False`, `send_frame`) was no cheaper and gives up the check for UTF-8.
    """
    async for message in source:
        if message.type is WSMsgType.TEXT:
            await target.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await target.send_bytes(message.data)
    await target.close()


def _handler(
    upstream: str, context: ssl.SSLContext | None, session: ClientSession
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def bridge(request: web.Request) -> web.StreamResponse:
        client = web.WebSocketResponse(compress=False, max_msg_size=_MAX_MESSAGE_BYTES)
        await client.prepare(request)
        verify = context if context is not None else True
        async with (
            session.ws_connect(upstream, compress=0, max_msg_size=_MAX_MESSAGE_BYTES, ssl=verify) as model,
            asyncio.TaskGroup() as pumps,
        ):
            pumps.create_task(_pump(client, model))
            pumps.create_task(_pump(model, client))
        return client

    return bridge


async def _serve(upstream: str, context: ssl.SSLContext | None, listening: Listening) -> None:
    async with ClientSession(connector=TCPConnector(limit=0)) as session:
        app = web.Application()
        app.router.add_get("/v1/realtime", _handler(upstream, context, session))
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=_BACKLOG).start()
        listening(runner.addresses[0][1])
        await asyncio.Event().wait()


if __name__ == "__main__":
    run(_serve)
