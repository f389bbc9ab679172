"""What relay/handoff.py relies on in aiohttp and picows, with real clients on real sockets; both are pinned for it."""

import asyncio
import socket
import ssl
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from picows import WSMsgType
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websockets_connect

from relay.devcert import make_certificate
from tests.support.fleet import until
from tests.support.upgrade import HEAD, KEY, LIMIT, Echo, Raw, Server, masked, payload_of

SIZES = (0, 1, 125, 126, 4095, 4096, 4097, 8191, 8192, 8193, 16_384, 65_535, 65_536, 65_537, 600_000)
TEXT, BINARY = WSMsgType.TEXT.value, WSMsgType.BINARY.value


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server.running() as running:
        yield running


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("cert"))


@pytest.fixture
async def tls_server(certificate: tuple[Path, Path]) -> AsyncIterator[Server]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    async with Server.running(context) as running:
        yield running


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


# Frames


@pytest.mark.parametrize("text", [True, False], ids=["text", "binary"])
async def test_aiohttps_client_gets_every_size_back(server, http, text):
    """Around each boundary of the frame header, of picows' buffers and of its 8 KiB threshold."""
    async with http.ws_connect(f"http://127.0.0.1:{server.port}/x", max_msg_size=0) as ws:
        for size in SIZES:
            sent = payload_of(size)
            await (ws.send_str(sent.decode()) if text else ws.send_bytes(sent))
            got = await ws.receive()
            assert got.type is (aiohttp.WSMsgType.TEXT if text else aiohttp.WSMsgType.BINARY)
            assert got.data == (sent.decode() if text else sent)
    assert [payload for _, payload in server.listeners[0].frames[: len(SIZES)]] == [payload_of(size) for size in SIZES]


@asynccontextmanager
async def by_websockets(server: Server, **options: Any) -> AsyncIterator[ClientConnection]:
    scheme = "wss" if options.get("ssl") else "ws"
    async with websockets_connect(f"{scheme}://localhost:{server.port}/x", max_size=None, proxy=None, **options) as ws:
        yield ws


async def test_the_websockets_library_gets_every_size_back_though_it_offers_compression(server):
    """The official Python SDKs use it; what it offers is declined, not half accepted."""
    async with by_websockets(server) as ws:
        for size in SIZES:
            await ws.send(payload_of(size))
            assert await ws.recv() == payload_of(size)
        assert ws.protocol.extensions == []


async def test_tls_carries_every_size(tls_server, certificate):
    """The official JavaScript SDK speaks nothing else."""
    async with by_websockets(tls_server, ssl=ssl.create_default_context(cafile=certificate[0])) as ws:
        for size in SIZES:
            await ws.send(payload_of(size))
            assert await ws.recv() == payload_of(size)


async def interleaved(listener: Echo, read: Callable[[], Any]) -> None:
    """Send large and small frames to a client that reads nothing, until much is buffered; then it reads."""
    sizes = [20, 9000, 1, 8193, 0, 8192, 70_000, 300, 20_000, 126] * 20
    below = listener.transport.underlying_transport
    below.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
    for number, size in enumerate(sizes):
        listener.transport.send(WSMsgType.BINARY, payload_of(size, number))
    assert below.get_write_buffer_size() > 1 << 20
    for number, size in enumerate(sizes):
        assert await read() == payload_of(size, number), f"frame {number} of {size} bytes"


async def test_large_and_small_frames_arrive_whole_and_in_order_at_a_client_that_stopped_reading(server):
    """picows reuses the memory of a large frame's header at once; uvloop's own transport would still point to it."""
    async with Raw.connected(server, limit=1024) as raw:
        await raw.head()
        async with asyncio.timeout(30):
            await interleaved(server.listeners[0], lambda: _second(raw.frame()))


async def _second(frame: Any) -> bytes:
    return (await frame)[1]


async def test_they_do_so_through_tls(tls_server, certificate):
    """TLS has buffers of its own."""
    context = ssl.create_default_context(cafile=certificate[0])
    async with by_websockets(tls_server, ssl=context, max_queue=1) as ws, asyncio.timeout(30):
        await interleaved(tls_server.listeners[0], ws.recv)


async def test_a_message_that_is_too_long_is_answered_with_1009(server, http):
    """picows refuses it by its header, before it is read; the leg hears of it first."""
    async with http.ws_connect(f"http://127.0.0.1:{server.port}/x") as ws:
        await ws.send_bytes(bytes(LIMIT))
        assert len((await ws.receive()).data) == LIMIT
        await ws.send_bytes(bytes(LIMIT + 1))
        assert (await ws.receive()).type is aiohttp.WSMsgType.CLOSE
        assert ws.close_code == 1009
    (listener,) = server.listeners
    assert [code for code, _ in listener.refused] == [1009]
    await listener.closed


# The handshake


@pytest.mark.parametrize("waiting", [False, True], ids=["at once", "during admission"])
@pytest.mark.parametrize("sizes", [[5], [0, 70_000, 3], [300_000]], ids=["one", "three", "large"])
async def test_frames_that_come_glued_to_the_request_are_not_lost(server, sizes, waiting):
    """A client may write them in one go; aiohttp has read them before anyone decides to upgrade."""
    if waiting:
        server.admission.clear()
    early = b"".join(masked(BINARY, payload_of(size)) for size in sizes)
    async with Raw.connected(server, HEAD.encode() + early + masked(TEXT, b"cut")[:4]) as raw:
        await until(lambda: bool(server.requests or server.listeners))
        server.admission.set()
        assert (await raw.head()).startswith("HTTP/1.1 101")
        assert [await raw.frame() for _ in sizes] == [(BINARY, payload_of(size)) for size in sizes]
        raw.writer.write(masked(TEXT, b"cut")[4:] + masked(TEXT, b"after"))
        assert [await raw.frame(), await raw.frame()] == [(TEXT, b"cut"), (TEXT, b"after")]


async def test_a_listener_that_pauses_at_the_first_glued_frame_stays_paused(server):
    """A call's hold may be full before the upgrade is done."""

    def pausing() -> Echo:
        echo = Echo()
        echo.pause_at_once = True
        return echo

    server.make = pausing
    async with Raw.connected(server, HEAD.encode() + masked(TEXT, b"early")) as raw:
        await raw.head()
        assert await raw.frame() == (TEXT, b"early")
        below = server.listeners[0].transport.underlying_transport
        assert not below.is_reading()
        raw.writer.write(masked(TEXT, b"later"))
        below.resume_reading()
        assert await raw.frame() == (TEXT, b"later")


@pytest.mark.parametrize(
    "change",
    [
        ("Connection: Upgrade", "Connection: keep-alive, Upgrade"),
        ("Connection: Upgrade", "connection:upgrade"),
        ("Connection: Upgrade", "Connection: keep-alive\r\nConnection: Upgrade"),
        ("Upgrade: websocket", "Upgrade: WebSocket"),
        (KEY, f"{KEY} "),
        ("Host: h", "Host: h\r\nSec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"),
        ("GET /x", "GET /v1/realtime?model=gpt%20x&n=%C3%A9"),
    ],
    ids=["Firefox", "lower case", "two headers", "mixed case", "space", "compression", "query"],
)
async def test_a_good_handshake_is_answered_however_it_is_written(server, change):
    """RFC 6455, section 4.2.1: tokens, not strings. picows alone answers Firefox with 400."""
    async with Raw.connected(server, HEAD.replace(*change).encode() + masked(TEXT, b"hi")) as raw:
        head = await raw.head()
        assert head.startswith("HTTP/1.1 101")
        assert "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
        assert "extensions" not in head.lower()
        assert await raw.frame() == (TEXT, b"hi")


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        (("Upgrade: websocket\r\n", ""), 426, "upgrade_required"),
        (("Upgrade: websocket", "Upgrade: h2c"), 426, "upgrade_required"),
        (("Connection: Upgrade", "Connection: keep-alive"), 426, "upgrade_required"),
        (("Version: 13", "Version: 8"), 426, "unsupported_version"),
        (("Sec-WebSocket-Version: 13\r\n", ""), 426, "unsupported_version"),
        ((KEY, "c2hvcnQ="), 400, "invalid_key"),
        ((KEY, "not base64!"), 400, "invalid_key"),
        ((KEY, "é" * 8), 400, "invalid_key"),
        ((f"Sec-WebSocket-Key: {KEY}\r\n", ""), 400, "invalid_key"),
    ],
    ids=[
        "no upgrade",
        "other upgrade",
        "no token",
        "version",
        "no version",
        "short",
        "no base64",
        "no ASCII",
        "no key",
    ],
)
async def test_a_bad_handshake_is_refused_by_status_before_anything_changes_hands(server, change, status, code):
    """The connection is still aiohttp's, and can be used again."""
    async with Raw.connected(server, HEAD.replace(*change).encode()) as raw:
        assert f" {status} " in (await raw.head()).splitlines()[0]
        assert await raw.reader.readexactly(len(code)) == code.encode()
        assert server.listeners == []


async def test_a_connection_that_served_a_get_can_be_upgraded(server):
    """Browsers keep connections for a while, and proxies always."""
    async with Raw.connected(server, b"GET /plain HTTP/1.1\r\nHost: h\r\n\r\n") as raw:
        await raw.head()
        assert await raw.reader.readexactly(5) == b"plain"
        raw.writer.write(HEAD.encode() + masked(TEXT, b"hi"))
        assert (await raw.head()).startswith("HTTP/1.1 101")
        assert await raw.frame() == (TEXT, b"hi")


async def test_the_answer_carries_the_subprotocol_and_the_headers_of_the_caller(server, http):
    """The call's id is there, for a client that can read headers."""
    server.headers = {"Sec-WebSocket-Protocol": "realtime", "X-Call-Id": "rtc_iad_x"}
    async with http.ws_connect(f"http://127.0.0.1:{server.port}/x", protocols=["realtime", "key.x"]) as ws:
        assert ws.protocol == "realtime"
        assert ws._response.headers["X-Call-Id"] == "rtc_iad_x"


# Who owns the connection


async def test_aiohttp_forgets_the_connection_at_once(server, http):
    """Else its parser and the request would live as long as the call, and its shutdown would wait for calls."""
    async with http.ws_connect(f"http://127.0.0.1:{server.port}/x") as ws:
        await until(lambda: server.runner.server.connections == [])
        async with asyncio.timeout(2):  # aiohttp's own limit is a minute
            await server.runner.cleanup()
        await ws.send_str("still here")
        assert await ws.receive_str() == "still here"


async def test_the_request_is_freed_while_the_call_lives(server, http):
    """Its headers have the token."""
    server.admission.clear()
    async with asyncio.TaskGroup() as tasks:
        connecting = tasks.create_task(http.ws_connect(f"http://127.0.0.1:{server.port}/x"))
        await until(lambda: bool(server.requests))
        request = weakref.ref(server.requests[0])
        server.admission.set()
    async with connecting.result() as ws:
        await until(lambda: request() is None)
        await ws.send_str("still here")
        assert await ws.receive_str() == "still here"


async def test_no_task_is_left_behind_nor_needed(server):
    """A node has thousands of calls; picows needs no task for one, and aiohttp's own is over."""
    before = asyncio.all_tasks()
    async with Raw.connected(server) as raw:
        await raw.head()
        await until(lambda: asyncio.all_tasks() == before)
        raw.writer.write(masked(TEXT, b"hi"))
        assert await raw.frame() == (TEXT, b"hi")
    await server.listeners[0].closed
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_a_client_that_left_during_admission_is_no_call(server, how):
    """Nobody would ever end it."""
    server.admission.clear()
    async with Raw.connected(server) as raw:
        await until(lambda: bool(server.requests))
        raw.writer.close() if how == "close" else raw.writer.transport.abort()
        request = server.requests[0]
        await until(lambda: request.transport is None)
        server.admission.set()
        await until(lambda: bool(server.reset))
    assert server.listeners == []


async def test_a_listener_learns_that_its_client_is_gone(server):
    """Without a CLOSE, as phones go."""
    async with Raw.connected(server) as raw:
        await raw.head()
        raw.writer.transport.abort()
        async with asyncio.timeout(5):
            await server.listeners[0].closed


async def test_an_abort_ends_the_connection_now(server, http):
    """What waits to be written is lost; a stalled client would never take it."""
    async with http.ws_connect(f"http://127.0.0.1:{server.port}/x") as ws:
        listener = server.listeners[0]
        listener.transport.disconnect(False)
        assert (await ws.receive()).type is aiohttp.WSMsgType.CLOSED
        assert ws.close_code == 1006
        await listener.closed
