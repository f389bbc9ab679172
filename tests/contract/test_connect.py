"""What `relay.handoff.connect` relies on in picows and aiofastnet: TLS, refusals, cancels that leave nothing."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from picows import WSFrame, WSHandshakeError, WSListener, WSTransport
from websockets.asyncio.server import ServerConnection, serve

from relay.devcert import make_certificate
from relay.handoff import connect
from tests.support.fleet import until

LIMIT = 1 << 20


class Listener(WSListener):
    """Keeps what comes."""

    def __init__(self) -> None:
        self.transport: WSTransport | None = None
        self.frames: asyncio.Queue[bytes] = asyncio.Queue()
        self.gone = asyncio.get_running_loop().create_future()
        self.refused: list[int] = []

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        self.frames.put_nowait(frame.get_payload_as_bytes())

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.gone.set_result(None)


async def dial(url: str, listener: Listener, context: ssl.SSLContext | None = None, **headers: str) -> None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    refused: Callable[[int, str], None] = lambda code, _: listener.refused.append(code)  # noqa: E731
    await connect(url, listener, headers=named, context=context, max_message=LIMIT, on_refused=refused)


@asynccontextmanager
async def model(port_of: Callable[..., Awaitable[None]] | None = None, **options: Any) -> AsyncIterator[str]:
    """An echoing server of another make; yields host and port."""

    async def echo(ws: ServerConnection) -> None:
        async for message in ws:
            await ws.send(f"{ws.request.path} {ws.request.headers.get('X-A')}" if message == "who?" else message)

    async with serve(port_of or echo, "127.0.0.1", 0, max_size=None, **options) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


class Peer:
    """A TCP server that answers a connection as it is told, and sees whether it is closed."""

    def __init__(self, answer: bytes, *, stay: bool) -> None:
        self._answer, self._stay = answer, stay
        self.heads: list[bytes] = []
        self._writers: list[asyncio.StreamWriter] = []
        self.ended = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def running(cls, answer: bytes = b"", *, stay: bool = True) -> AsyncIterator[tuple["Peer", int]]:
        peer = cls(answer, stay=stay)
        async with await asyncio.start_server(peer._serve, "127.0.0.1", 0) as server:
            try:
                yield peer, server.sockets[0].getsockname()[1]
            finally:
                for writer in peer._writers:
                    writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self.heads.append(await reader.read(4096))
        writer.write(self._answer)
        if self._stay:
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
        self.ended.set()
        writer.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("cert"))


@pytest.fixture
def server_context(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    return context


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
async def test_every_size_goes_there_and_back(tls, certificate, server_context):
    """Client frames are masked in picows' own buffer, which grows on the way."""
    context = ssl.create_default_context(cafile=certificate[0])
    async with model(ssl=server_context if tls else None) as address:
        listener = Listener()
        await dial(f"{'wss' if tls else 'ws'}://{address}/", listener, context)
        assert listener.transport is not None
        for size in (0, 1, 126, 4096, 8192, 8193, 65_536, 600_000, 10):
            sent = bytes(range(256)) * (size // 256) + bytes(size % 256)
            listener.transport.send(2, sent)
            assert await listener.frames.get() == sent
        listener.transport.disconnect(False)
        await listener.gone


async def test_path_query_and_headers_arrive_as_they_are():
    """The model's name is in the query, the key in a header."""
    async with model() as address:
        listener = Listener()
        await dial(f"ws://{address}/v1/realtime?model=gpt%20x&a=b", listener, X_A="Bearer x")
        assert listener.transport is not None
        listener.transport.send(1, b"who?")
        assert await listener.frames.get() == b"/v1/realtime?model=gpt%20x&a=b Bearer x"
        listener.transport.disconnect(False)
        await listener.gone


async def test_what_comes_glued_to_the_101_is_not_lost():
    """A model's server may say session.created in the same packet."""

    async def greet(ws: ServerConnection) -> None:
        for number in range(3):
            await ws.send(f"hello {number}")
        await ws.wait_closed()

    async with model(greet) as address:
        listener = Listener()
        await dial(f"ws://{address}/", listener)
        assert [await listener.frames.get() for _ in range(3)] == [b"hello 0", b"hello 1", b"hello 2"]
        assert listener.transport is not None
        listener.transport.disconnect(False)
        await listener.gone


async def test_a_message_that_is_too_long_is_refused():
    """The model leg has a limit too: a broken server must not fill the node's memory."""

    async def flood(ws: ServerConnection) -> None:
        await ws.send(bytes(LIMIT + 1))
        await ws.wait_closed()

    async with model(flood) as address:
        listener = Listener()
        await dial(f"ws://{address}/", listener)
        async with asyncio.timeout(5):
            await listener.gone
        assert listener.refused == [1009]


@pytest.mark.parametrize("trusted", [False, True], ids=["unknown authority", "wrong name"])
async def test_a_certificate_that_cannot_be_verified_is_refused(trusted, tmp_path, server_context, certificate):
    """The upstream key would go to whoever answers."""
    cafile = certificate[0] if trusted else make_certificate(tmp_path)[0]
    context = ssl.create_default_context(cafile=cafile)
    if trusted:
        server_context.load_cert_chain(*_without_address(tmp_path))
        context.load_verify_locations(tmp_path / "cert.pem")
    async with model(ssl=server_context) as address:
        listener = Listener()
        with pytest.raises(ssl.SSLCertVerificationError):
            await dial(f"wss://{address}/", listener, context)
        assert listener.transport is None


def _without_address(folder: Path) -> tuple[Path, Path]:
    """A certificate for another name than the one that is dialled."""
    from unittest.mock import patch

    with patch("relay.devcert._all_hosts", lambda hosts: ["other.example"]):
        return make_certificate(folder)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno", 401),
        (b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\r\n", 503),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200),
        (b"HTTP/1.1 307 Temporary Redirect\r\nLocation: ws://elsewhere/\r\nContent-Length: 0\r\n\r\n", 307),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
async def test_a_server_that_does_not_upgrade_says_why(answer, status):
    """The status decides what the client is told; redirects are not followed."""
    async with Peer.running(answer) as (peer, port):
        listener = Listener()
        with pytest.raises(WSHandshakeError) as caught:
            await dial(f"ws://127.0.0.1:{port}/", listener)
        assert caught.value.response is not None
        assert int(caught.value.response.status) == status
        async with asyncio.timeout(5):
            await peer.ended.wait()


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 101"], ids=["nothing", "no HTTP", "cut off"])
async def test_a_server_that_hangs_up_or_talks_nonsense_is_an_error(answer):
    """Else the call would go on with a leg that never opened, and end as a fault of ours."""
    async with Peer.running(answer, stay=False) as (_, port):
        with pytest.raises((WSHandshakeError, OSError)):
            async with asyncio.timeout(5):
                await dial(f"ws://127.0.0.1:{port}/", Listener())


async def test_a_port_where_nobody_listens_is_an_error():
    """The system says so at once."""
    async with Peer.running() as (_, port):
        pass
    with pytest.raises(OSError, match=r"[Cc]onnect"):
        await dial(f"ws://127.0.0.1:{port}/", Listener())


@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_a_cancelled_dial_leaves_no_socket(scheme):
    """The client may hang up while the model's server says nothing; picows alone would wait for its own timeout."""
    context = ssl.create_default_context()
    async with Peer.running() as (peer, port):
        before = asyncio.all_tasks()
        dialling = asyncio.create_task(dial(f"{scheme}://127.0.0.1:{port}/", Listener(), context))
        await until(lambda: bool(peer.heads))
        assert not dialling.done()
        dialling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dialling
        async with asyncio.timeout(5):
            await peer.ended.wait()
        await until(lambda: asyncio.all_tasks() <= before)
