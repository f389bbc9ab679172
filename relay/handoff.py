"""aiohttp does HTTP and admission, picows carries the frames: this module alone knows how a connection changes hands.

It uses names that are not public: picows' ``WSProtocol`` and aiohttp's ``RequestHandler.set_parser``. Both are pinned,
and tests/contract/test_handoff.py says what is relied upon. No decision about a call is made here.
"""

import asyncio
import base64
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import aiofastnet
import structlog
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict
from picows import WSListener, WSProtocolError, WSUpgradeResponse, WSUpgradeResponseWithListener
from picows.picows import WSProtocol  # type: ignore[attr-defined]  # absent from picows' stubs
from picows.url import parse_url

_log = structlog.get_logger("relay")

TLS_BUFFER_BYTES: Final = 16 * 1024 + 64  # each way of a TLS model leg: one record; the default is sixteen
READ_BUFFER_BYTES: Final = 4096  # per leg; picows doubles it for longer messages and keeps it doubled


class BadHandshake(Exception):
    """The request cannot become a WebSocket; ``status`` is the HTTP status that says so."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def check_upgrade(request: web.Request) -> None:
    """Check the handshake (RFC 6455, section 4.2.1) as far as headers go.

    ``Connection`` is a list of tokens: Firefox sends ``keep-alive, Upgrade``.

    Raises:
        BadHandshake: 426 if no upgrade is asked for, 400 if the key is wrong.
    """
    tokens = {token.strip().lower() for value in request.headers.getall("Connection", ()) for token in value.split(",")}
    if request.headers.get("Upgrade", "").strip().lower() != "websocket" or "upgrade" not in tokens:
        raise BadHandshake(426, "upgrade_required", "This path speaks WebSocket: send an upgrade request.")
    if request.headers.get("Sec-WebSocket-Version") != "13":
        raise BadHandshake(426, "unsupported_version", "Use WebSocket version 13.")
    try:
        key = base64.b64decode(request.headers.get("Sec-WebSocket-Key", ""), validate=True)
    except ValueError:  # not base64, or not even ASCII
        key = b""
    if len(key) != 16:
        raise BadHandshake(400, "invalid_key", "Sec-WebSocket-Key must be 16 bytes in base64.")


class _Watch:
    """What picows takes for its logger.

    It is told of a bad frame *before* picows answers it, which is the only way to answer first: a peer that closes
    twice must read its own code, not the parser's. picows' INFO lines go nowhere: a call has a line of its own.
    """

    __slots__ = ("_on_refused",)

    def __init__(self, on_refused: Callable[[int, str], None] | None) -> None:
        self._on_refused = on_refused

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802  # logging's name
        return False

    def error(self, text: str, *args: Any) -> None:
        if text.startswith("WS parser error") and self._on_refused is not None:
            code, reason = args[0]
            self._on_refused(int(code), str(reason))

    def exception(self, text: str, *args: Any) -> None:
        _log.exception("picows_failed", text=text % args)

    def _nothing(self, *args: Any) -> None:
        pass

    debug = info = warning = log = _nothing


class _EarlyBytes:
    """Takes what came glued to the request's head; aiohttp feeds it instead of its own WebSocket reader."""

    def __init__(self) -> None:
        self.data = bytearray()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """The connection closed; picows learns it from the transport."""


class _HandedOff(web.StreamResponse):
    """The response of a request whose connection is no longer aiohttp's: there is nothing left to write."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


def hand_off(
    request: web.Request,
    listener: WSListener,
    headers: Mapping[str, str],
    *,
    max_message: int,
    on_refused: Callable[[int, str], None] | None = None,
) -> web.StreamResponse:
    """Answer the upgrade with ``headers`` and let picows feed ``listener`` from now on.

    The listener is connected when this returns, unless the client went away meanwhile. aiohttp forgets the connection
    at once, so that its parser and the request are freed and its shutdown does not wait for calls: the caller owns it.
    ``on_refused`` gets close code and reason when picows refuses a frame, before its own CLOSE goes out.

    Raises:
        ConnectionResetError: the client is gone.
    """
    protocol = request.protocol
    transport = protocol.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("client gone before the upgrade")
    early = _EarlyBytes()
    protocol.set_parser(cast(Any, early))
    transport.pause_reading()
    response = WSUpgradeResponse.create_101_response(CIMultiDict(headers))
    answer = WSUpgradeResponseWithListener(response, listener)
    frames = _protocol(lambda _: answer, client=None, max_message=max_message, on_refused=on_refused)
    transport.set_protocol(frames)
    frames.connection_made(transport)
    protocol.transport = None  # else aiohttp closes it
    protocol.connection_lost(None)
    transport.resume_reading()  # before the listener hears of anything: it may pause the reading again
    _feed(frames, _canonical_head(request.headers["Sec-WebSocket-Key"]) + bytes(early.data))
    return _HandedOff()


async def take(
    sock: socket.socket,
    make_protocol: Callable[[], asyncio.Protocol],
    context: ssl.SSLContext | None,
    handshake_seconds: float,
) -> None:
    """Serve a connection that was accepted, so that it can be handed off; returns when its TLS handshake is done.

    It must be this and no site of aiohttp's. picows hands frames over 8 KiB to the transport with a view of a header
    buffer that it uses again; aiofastnet copies what it cannot write at once, uvloop's own transport keeps the view,
    and a client that reads slowly would get corrupted frames (seen, and tested in tests/contract/test_handoff.py). It
    is also the cheaper one, by about a fifth of a frame.

    Raises:
        OSError, ssl.SSLError: it is gone, or its handshake failed or took longer than ``handshake_seconds``.
    """
    tls = _tls(context)
    if tls:
        tls["ssl_handshake_timeout"] = handshake_seconds
    await aiofastnet.connect_accepted_socket(asyncio.get_running_loop(), make_protocol, sock, **tls)


def _tls(context: ssl.SSLContext | None) -> dict[str, Any]:
    if context is None:
        return {}
    return {"ssl": context, "ssl_incoming_bio_size": TLS_BUFFER_BYTES, "ssl_outgoing_bio_size": TLS_BUFFER_BYTES}


def quiet_refusals(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Handle an exception of the loop: drop what picows leaves in a future that nobody can reach.

    It does so when a server breaks the rules; the call has ended for it, with a row of its own.
    """
    if not isinstance(context.get("exception"), WSProtocolError):
        loop.default_exception_handler(context)


async def connect(
    url: str,
    listener: WSListener,
    *,
    headers: Mapping[str, str],
    context: ssl.SSLContext | None,
    max_message: int,
    on_refused: Callable[[int, str], None] | None = None,
) -> None:
    """Open a WebSocket to ``url`` for ``listener``; cancelling it leaves no socket behind.

    ``on_refused`` is as in ``hand_off``. picows' own ``ws_connect`` leaves the socket open until its handshake timeout
    when it is cancelled.

    Raises:
        OSError, ssl.SSLError: no connection.
        picows.WSHandshakeError: the server did not upgrade; its ``response`` says why.
    """
    parsed = parse_url(url)

    def make() -> WSProtocol:
        client = (parsed.netloc, parsed.resource_name, dict(headers))
        return _protocol(lambda: listener, client=client, max_message=max_message, on_refused=on_refused)

    tls = _tls(context if parsed.is_secure else None)
    loop = asyncio.get_running_loop()
    _, frames = await aiofastnet.create_connection(loop, make, parsed.host, parsed.port, **tls)
    try:
        await frames.wait_until_handshake_complete()
    except asyncio.CancelledError:
        frames.transport.disconnect(False)
        raise
    if frames.listener is None:
        raise ConnectionResetError("the server hung up before it upgraded")


def _protocol(
    factory: Any,
    *,
    client: tuple[str, str, dict[str, str]] | None,
    max_message: int,
    on_refused: Callable[[int, str], None] | None,
) -> WSProtocol:
    """Make picows' protocol; its positional arguments are of picows 2.3."""
    netloc, resource, headers = client if client is not None else (None, None, None)
    return WSProtocol(
        netloc,
        resource,
        client is not None,
        factory,
        _Watch(on_refused),
        True,  # disconnect on an exception of the listener's
        None,  # handshake timeout: the caller has a deadline, the server side is fed the whole head at once
        False,  # auto ping: relay.core.liveness
        20.0,
        20.0,
        2,
        False,  # auto pong: a leg answers, and not while its peer takes nothing
        max_message,
        headers,
        READ_BUFFER_BYTES,
    )


def _canonical_head(key: str) -> bytes:
    """The request as picows insists on it; all that matters was checked and answered from the real one."""
    return (
        "GET / HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key.strip()}\r\n\r\n"
    ).encode()


def _feed(frames: WSProtocol, data: bytes) -> None:
    view = memoryview(data)
    while view:
        buffer = frames.get_buffer(-1)
        size = min(len(buffer), len(view))
        buffer[:size] = view[:size]
        frames.buffer_updated(size)
        view = view[size:]
