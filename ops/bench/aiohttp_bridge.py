"""`python -m ops.bench.aiohttp_bridge`: what the relay is compared with, the simplest honest bridge on aiohttp.

Two pumps a call, no tokens, no bus, no metrics. Compression is off, as the relay has none; the rest is as a careful
author would have it: uvloop, aiohttp's compiled reader, no limit on connections, the relay's longest message.
"""

import argparse
import asyncio
import json
import os
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import uvloop
from aiohttp import ClientSession, ClientWebSocketResponse, TCPConnector, WSMsgType, web

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


async def _serve(upstream: str, ca: Path | None, ready_file: Path) -> None:
    context = ssl.create_default_context(cafile=ca) if ca is not None else None
    async with ClientSession(connector=TCPConnector(limit=0)) as session:
        app = web.Application()
        app.router.add_get("/v1/realtime", _handler(upstream, context, session))
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=_BACKLOG).start()
        host, port = runner.addresses[0][:2]
        partial = ready_file.with_name(f".{ready_file.name}")
        partial.write_text(json.dumps({"url": f"http://{host}:{port}", "pid": os.getpid()}))
        partial.replace(ready_file)
        await asyncio.Event().wait()


def main() -> None:
    """Run the bridge until it is killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--ca", type=Path)
    parser.add_argument("--ready-file", type=Path, required=True)
    options = parser.parse_args()
    uvloop.run(_serve(options.upstream, options.ca, options.ready_file))


if __name__ == "__main__":
    main()
