"""What the Autobahn testsuite found once; and that its echo server still is the relay's own client side."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from tests.autobahn.echo_server import serve

_HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
_TEXT, _CLOSE, _PING, _ORPHAN = 0x81, 0x88, 0x89, 0x80


def frame(first_byte: int, payload: bytes) -> bytes:
    """A short client frame; the mask is zero, so that the payload stays readable."""
    return bytes((first_byte, 0x80 | len(payload), 0, 0, 0, 0)) + payload


@pytest.fixture
async def port() -> AsyncIterator[int]:
    ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as tasks:
        server = tasks.create_task(serve(0, ready.set_result))
        yield await ready
        server.cancel()


async def exchange(port: int, frames: bytes) -> bytes:
    """Send everything in one segment; what comes back until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    writer.write(_HANDSHAKE)
    await reader.readuntil(b"\r\n\r\n")
    writer.write(frames)
    try:
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


async def test_a_message_comes_back_and_a_close_is_answered(port: int):
    answer = await exchange(port, frame(_TEXT, b"hello") + frame(_CLOSE, b"\x03\xe8"))
    assert answer == b"\x81\x05hello" + b"\x88\x02\x03\xe8"


@pytest.mark.parametrize(
    ("bad", "code"),
    [(frame(_ORPHAN, b"x"), 1002), (frame(_TEXT, b"\xff"), 1007), (frame(_PING | 0x20, b""), 1002)],
    ids=["orphan", "utf8", "reserved_bit"],
)
async def test_nothing_behind_a_bad_frame_is_looked_at(port: int, bad: bytes, code: int):
    """Not even what came in the same read (cases 3.2, 5.9 to 5.17, 6.4.3): the close code is that of the bad frame."""
    answer = await exchange(port, bad + frame(_TEXT, b"more") + frame(_PING, b"ping") + frame(_CLOSE, b"\x03\xe8"))
    assert answer[0] == _CLOSE
    assert int.from_bytes(answer[2:4], "big") == code
    assert len(answer) == 2 + answer[1]


async def test_a_bad_close_is_answered_and_the_connection_ends_at_once(port: int):
    """No other CLOSE will come to wait for (cases 7.9.1, 7.9.5): the client would wait for the server to hang up."""
    async with asyncio.timeout(1):
        answer = await exchange(port, frame(_CLOSE, b"\x03\xee"))
    assert int.from_bytes(answer[2:4], "big") == 1002
