"""An aiohttp server that hands every upgrade over, and a client that writes its own bytes: for contract tests."""

import asyncio
import itertools
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from picows import WSFrame, WSListener, WSMsgType, WSTransport

from relay.admission import Refused
from relay.config import Settings
from relay.front import Front
from relay.handoff import BadHandshake, check_upgrade, hand_off
from relay.port import listening

LIMIT = 1 << 20
_TEST_SECONDS = 30.0
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
HEAD = (
    "GET /x HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
)


class Echo(WSListener):
    """Sends each message back, answers a close, and keeps what came."""

    def __init__(self) -> None:
        self.transport: WSTransport
        self.frames: list[tuple[int, bytes]] = []
        self.closed = asyncio.get_running_loop().create_future()
        self.refused: list[tuple[int, str]] = []
        self.pause_at_once = False

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        payload = frame.get_payload_as_bytes()
        self.frames.append((frame.msg_type.value, payload))
        if self.pause_at_once:
            transport.underlying_transport.pause_reading()
        transport.send(frame.msg_type, payload)
        if frame.msg_type is WSMsgType.CLOSE:
            transport.disconnect()

    def on_ws_refused(self, code: int, reason: str) -> None:
        self.refused.append((code, reason))

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.closed.set_result(None)


class Server:
    """An aiohttp server that hands every upgrade over; ``admission`` holds requests back as a slow check would."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.admission = asyncio.Event()
        self.admission.set()
        self.requests: list[web.Request] = []
        self.listeners: list[Any] = []
        self.reset: list[ConnectionResetError] = []
        self.make: Callable[[], Any] = Echo  # or a leg
        self.port = 0

    @classmethod
    @asynccontextmanager
    async def running(cls, context: ssl.SSLContext | None = None) -> AsyncIterator["Server"]:
        server = cls()
        app = web.Application()
        app.router.add_get("/plain", server._plain)
        app.router.add_get("/{path:.*}", server._upgrade)
        server.runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await server.runner.setup()
        sock = socket.create_server(("127.0.0.1", 0))
        server.port = sock.getsockname()[1]
        async with listening(_front(), server.runner, sock, context):
            yield server
            for listener in server.listeners:
                if listener.transport is not None:
                    listener.transport.disconnect(False)
                await listener.closed
        await server.runner.cleanup()

    async def _plain(self, _: web.Request) -> web.Response:
        return web.Response(text="plain")

    async def _upgrade(self, request: web.Request) -> web.StreamResponse:
        try:
            check_upgrade(request)
        except BadHandshake as bad:
            return web.Response(status=bad.status, text=bad.code)
        self.requests.append(request)
        await self.admission.wait()
        self.requests.remove(request)
        listener = self.make()
        try:
            response = hand_off(request, listener, self.headers, max_message=LIMIT, on_refused=listener.on_ws_refused)
        except ConnectionResetError as error:
            self.reset.append(error)
            raise
        self.listeners.append(listener)
        return response


def _front() -> Front:
    """A front that lets everybody in."""
    settings = Settings.from_env(
        {
            "OPENAI_API_KEY": "none",
            "RELAY_JWT_SECRET": "secret" * 6,
            "RELAY_IP_CONNECTIONS": "0",
            "RELAY_IP_STARTS_PER_MINUTE": "0",
        }
    )
    return Front(settings, _plain_refusal)


def _plain_refusal(refused: Refused) -> web.Response:
    return web.Response(status=refused.status, text=refused.code)


class Raw:
    """A client that writes its bytes itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    @asynccontextmanager
    async def connected(cls, server: Server, first: bytes = HEAD.encode(), **options: Any) -> AsyncIterator["Raw"]:
        address = () if "sock" in options else ("127.0.0.1", server.port)
        reader, writer = await asyncio.open_connection(*address, **options)
        try:
            async with asyncio.timeout(_TEST_SECONDS):  # a test that waits for what never comes fails, and ends
                writer.write(first)
                yield cls(reader, writer)
        finally:
            writer.close()

    async def head(self) -> str:
        return (await self.reader.readuntil(b"\r\n\r\n")).decode()

    async def frame(self) -> tuple[int, bytes]:
        first, size = await self.reader.readexactly(2)
        if size >= 126:
            size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8), "big")
        return first & 0x0F, await self.reader.readexactly(size)


def masked(opcode: int, payload: bytes) -> bytes:
    """A client's frame, with a mask that changes nothing."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xff" + size.to_bytes(8, "big")
    return bytes([0x80 | opcode]) + length + bytes(4) + payload


def payload_of(size: int, start: int = 0) -> bytes:
    """Bytes in which a shift or a swap shows; ASCII, so that it may be text."""
    return bytes(itertools.islice(itertools.cycle(b"%d|" % start + bytes(range(48, 58 + start % 40))), size))
