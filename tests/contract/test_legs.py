"""What a leg does on a real socket: frame rules, pings, flow control, closes; the call is a recorder."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from relay.core.actions import Side
from relay.core.frames import Close, Opcode, Violation
from relay.legs import Leg
from tests.support.fleet import until
from tests.support.upgrade import LIMIT, Raw, Server, masked, payload_of

WRITE, SOCKET = 32_768, 16_384
CONT, TEXT, BINARY, CLOSE, PING, PONG = (opcode.value for opcode in Opcode)


class Call:
    """The owner of one leg: keeps what it is told, and closes as a session does."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.fail = False
        limits = {"max_message": LIMIT, "write_bytes": WRITE, "socket_bytes": SOCKET}
        self.leg = Leg(Side.CLIENT, self, self._on_text, lambda message: message.startswith(b"plain"), **limits)

    def _on_text(self, message: bytes, kind: str = "text") -> None:
        if self.fail:
            raise LookupError("our bug")
        self.told.append((kind, message))

    def on_leg_binary(self, leg: Leg, payload: bytes) -> None:
        self._on_text(payload, "binary")

    def on_leg_violation(self, leg: Leg, violation: Violation) -> None:
        self.told.append(("violation", violation.code))

    def on_leg_close(self, leg: Leg, close: Close) -> None:
        self.told.append(("close", close))
        self.leg.close(close)
        self.leg.disconnect()

    def on_leg_lost(self, leg: Leg) -> None:
        self.told.append("lost")

    def on_leg_blocked(self, leg: Leg, blocked: bool) -> None:
        self.told.append(("blocked", blocked))

    def on_leg_failed(self, leg: Leg, error: Exception) -> None:
        self.told.append(("failed", type(error)))


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server.running() as running:
        yield running


@asynccontextmanager
async def talking(server: Server, **options: Any) -> AsyncIterator[tuple[Raw, Call]]:
    """A client that writes its own bytes, and the call that has it on its leg."""
    call = Call()
    server.make = lambda: call.leg
    async with Raw.connected(server, **options) as raw:
        assert " 101 " in await raw.head()
        yield raw, call


@asynccontextmanager
async def not_reading(server: Server) -> AsyncIterator[tuple[Raw, Call]]:
    """A client that takes little until it is asked to read."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", server.port))
    async with talking(server, sock=sock, limit=2048) as (raw, call):
        yield raw, call


async def steady(value: Callable[[], int]) -> int:
    """The value when it has not changed for twenty looks."""
    seen: list[int] = []
    await until(lambda: seen.append(value()) is None and len(seen) > 20 and len(set(seen[-20:])) == 1)
    return seen[-1]


def close_frame(code: int, reason: bytes = b"") -> bytes:
    return masked(CLOSE, code.to_bytes(2, "big") + reason)


def altered(frame: bytes, first: int) -> bytes:
    """The frame with another first byte."""
    return bytes([first]) + frame[1:]


# Messages


async def test_whole_messages_come_out_in_order_and_are_counted(server):
    """However they were cut, and with a ping between the fragments."""
    fragments = altered(masked(TEXT, b"fr"), 0x01) + masked(PING, b"p") + masked(CONT, "é".encode())
    async with talking(server) as (raw, call):
        raw.writer.write(masked(TEXT, b"one") + masked(BINARY, b"\xff") + fragments + masked(TEXT, "ä".encode()))
        await until(lambda: len(call.told) == 4)
        assert call.told == [("text", b"one"), ("binary", b"\xff"), ("text", "fré".encode()), ("text", "ä".encode())]
        assert (call.leg.frames_in, call.leg.bytes_in) == (6, 3 + 1 + 2 + 1 + 2 + 2)
        assert await raw.frame() == (PONG, b"p")


async def test_what_is_sent_arrives(server):
    """Text unless said otherwise."""
    async with talking(server) as (raw, call):
        call.leg.send(b"text")
        call.leg.send(b"\xff", Opcode.BINARY)
        call.leg.send(payload_of(20_000))
        assert [await raw.frame() for _ in range(3)] == [(TEXT, b"text"), (BINARY, b"\xff"), (TEXT, payload_of(20_000))]


async def test_a_leg_feeds_its_peer_plain_messages_and_gives_all_others_to_the_call(server):
    """Audio goes on in the read callback; what is not plain, not ASCII or in fragments is the call's to decide on."""
    async with talking(server) as (raw, call), talking(server) as (other, peer):
        call.leg.feed(peer.leg)
        fragments = altered(masked(TEXT, b"plain"), 0x01) + masked(CONT, b" but cut")
        others = masked(TEXT, b"else") + masked(TEXT, "plain ä".encode()) + fragments + masked(BINARY, b"plain")
        raw.writer.write(masked(TEXT, b"plain 1") + others + masked(TEXT, b"plain 2"))
        assert [await other.frame() for _ in range(2)] == [(TEXT, b"plain 1"), (TEXT, b"plain 2")]
        expected = [("text", b"else"), ("text", "plain ä".encode()), ("text", b"plain but cut"), ("binary", b"plain")]
        assert call.told == expected
        call.leg.feed(None)
        raw.writer.write(masked(TEXT, b"plain 3"))
        await until(lambda: call.told[-1] == ("text", b"plain 3"))


VIOLATIONS = {
    "reserved bit": (altered(masked(TEXT, b"a"), 0xC1), 1002),
    "reserved bit on a ping": (altered(masked(PING, b"a"), 0xC9), 1002),
    "reserved bit on a close": (altered(close_frame(1000), 0xC8), 1002),
    "unknown data opcode": (masked(3, b"a"), 1002),
    "unknown control opcode": (masked(11, b"a"), 1002),
    "continuation of nothing": (masked(CONT, b"a"), 1002),
    "text inside a message": (altered(masked(TEXT, b"a"), 0x01) + masked(TEXT, b"b"), 1002),
    "fragmented ping": (altered(masked(PING, b"a"), 0x09), 1002),
    "long ping": (masked(PING, b"a" * 126), 1002),
    "no mask": (b"\x81\x01a", 1002),
    "not UTF-8": (masked(TEXT, b"\xff"), 1007),
    "not UTF-8, in the second fragment": (altered(masked(TEXT, b"a"), 0x01) + masked(CONT, b"\xff"), 1007),
    "too long": (masked(TEXT, b"a" * (LIMIT + 1)), 1009),
    "too long in fragments": (altered(masked(TEXT, b"a" * LIMIT), 0x01) + masked(CONT, b"b"), 1009),
    "half a close code": (masked(CLOSE, b"\x03"), 1002),
    "a close code that must not be sent": (close_frame(1005), 1002),
    "close reason not UTF-8": (close_frame(1000, b"\xff"), 1007),
}


@pytest.mark.parametrize(("frames", "code"), VIOLATIONS.values(), ids=VIOLATIONS)
async def test_a_violation_is_answered_with_its_code_and_nothing_after_it_is_passed_on(server, frames, code):
    """What follows may be in the same packet, and must not reach the model."""
    async with talking(server) as (raw, call):
        raw.writer.write(masked(TEXT, b"before"))  # in a packet of its own: picows parses a frame ahead
        await until(lambda: bool(call.told))
        raw.writer.write(frames + masked(TEXT, b"after"))
        opcode, body = await raw.frame()
        assert (opcode, int.from_bytes(body[:2], "big")) == (CLOSE, code)
        call.leg.disconnect()
        await call.leg.closed
        assert call.told == [("text", b"before"), ("violation", code), "lost"]


async def test_a_close_that_stands_before_a_bad_frame_is_the_one_that_counts(server):
    """picows parses a frame ahead; the peer must read its own code back."""
    async with talking(server) as (raw, call):
        raw.writer.write(close_frame(4001, b"bye") + masked(3, b"a"))
        assert await raw.frame() == (CLOSE, (4001).to_bytes(2, "big") + b"bye")
        await call.leg.closed
        assert call.told[0] == ("close", Close(4001, "bye"))
        assert ("violation", 1002) not in call.told


async def test_a_bug_of_ours_is_told_to_the_call_and_ends_nothing_by_itself(server):
    """picows would close with 1011 behind the call's back."""
    async with talking(server) as (raw, call):
        call.fail = True
        raw.writer.write(masked(TEXT, b"a") + masked(BINARY, b"b"))
        await until(lambda: len(call.told) == 2)
        call.leg.ping()
        assert await raw.frame() == (PING, b"")
        assert call.told == [("failed", LookupError)] * 2


# Pings


@pytest.mark.parametrize("payload", [b"", b"x", b"\xff" * 125], ids=["empty", "short", "longest"])
async def test_a_ping_is_answered_with_its_own_payload(server, payload):
    """RFC 6455, section 5.5.3; a pong by itself needs no answer."""
    async with talking(server) as (raw, call):
        raw.writer.write(masked(PONG, b"unasked") + masked(PING, payload))
        assert await raw.frame() == (PONG, payload)
        assert call.told == []


async def test_a_peer_that_pings_and_reads_nothing_piles_up_no_pongs(server):
    """A few kilobytes a second from an attacker would become megabytes of ours."""
    async with not_reading(server) as (raw, call):
        pings = 1200  # whose pongs are 150 KB
        raw.writer.write(masked(PING, b"x" * 125) * pings)
        await until(lambda: call.leg.frames_in == pings)
        assert call.leg.blocked
        assert call.leg.buffered() <= WRITE + 127


# Flow control


async def test_a_peer_that_stops_reading_blocks_the_leg_and_one_that_reads_again_frees_it(server):
    """The call pauses the other leg meanwhile; nothing is lost and nothing changes its order."""
    sizes = [20, 9000, 1, 8193, 0, 8192, 70_000, 300, 20_000, 126] * 10
    async with not_reading(server) as (raw, call), asyncio.timeout(30):
        for number, size in enumerate(sizes):
            call.leg.send(payload_of(size, number), Opcode.BINARY)
        assert call.told == [("blocked", True)]
        assert call.leg.buffered() > 500_000
        for number, size in enumerate(sizes):
            assert await raw.frame() == (BINARY, payload_of(size, number)), f"frame {number} of {size} bytes"
        await until(lambda: not call.leg.blocked)
        assert call.told == [("blocked", True), ("blocked", False)]
        assert call.leg.largest_buffer > 500_000
        assert call.leg.buffered() == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel tells what was acknowledged on Linux only")
async def test_progress_is_what_the_peer_takes_and_not_what_the_kernel_holds(server):
    """The stall clock must see a slow link that moves, and must not be fooled by one that doesn't."""
    async with not_reading(server) as (raw, call), asyncio.timeout(30):
        for _ in range(100):
            call.leg.send(payload_of(8000))
        before = await steady(call.leg.taken)
        assert 0 <= before < 500_000
        call.leg.send(b"more that nobody takes")
        assert await steady(call.leg.taken) == before
        for _ in range(20):
            await raw.frame()
        await until(lambda: call.leg.taken() > before)
        for _ in range(81):
            await raw.frame()
        await until(lambda: call.leg.buffered() == 0)
        assert call.leg.taken() - before > 100_000


async def test_a_leg_is_read_again_when_every_pause_was_taken_back(server):
    """The bridge and the other leg may both want it paused."""
    async with talking(server) as (raw, call):
        leg = call.leg
        leg.pause()
        leg.pause()
        raw.writer.write(masked(TEXT, b"a"))
        leg.resume()
        assert not leg.reading
        assert not leg.transport.underlying_transport.is_reading()
        leg.resume()
        leg.resume()
        await until(lambda: call.told == [("text", b"a")])


async def test_a_leg_that_was_paused_before_it_was_connected_is_paused(server):
    """The other leg may be blocked while this one is being opened."""
    call = Call()
    call.leg.pause()
    server.make = lambda: call.leg
    async with Raw.connected(server) as raw:
        await raw.head()
        assert not call.leg.transport.underlying_transport.is_reading()
        raw.writer.write(masked(TEXT, b"a"))
        call.leg.resume()
        await until(lambda: call.told == [("text", b"a")])


# Closes

CODES = [1000, 1001, 1008, 1009, 1011, 1012, 1013, 3000, 3999, 4000, 4009, 4999]
CLOSES = {str(code): (Close(code, "why é"), code.to_bytes(2, "big") + "why é".encode()) for code in CODES}
CLOSES["empty"] = (Close(1005, ""), b"")


@pytest.mark.parametrize(("close", "body"), CLOSES.values(), ids=CLOSES)
async def test_we_close_with_any_code_and_wait_for_the_peers_close(server, close, body):
    """picows' own enum knows few codes; an empty close has no code at all."""
    async with talking(server) as (raw, call):
        call.leg.close(close)
        call.leg.close(Close(1000, "again"))
        call.leg.send(b"too late")
        assert await raw.frame() == (CLOSE, body)
        assert not call.leg.closed.done()
        raw.writer.write(masked(TEXT, b"too late") + masked(PING, b"") + masked(CLOSE, body))
        await call.leg.closed
        assert await raw.reader.read() == b""
        assert call.told == [("close", close), "lost"]


@pytest.mark.parametrize(("close", "body"), CLOSES.values(), ids=CLOSES)
async def test_the_peer_closes_with_any_code_and_reads_it_back(server, close, body):
    """RFC 6455, section 5.5.1."""
    async with talking(server) as (raw, call):
        raw.writer.write(masked(CLOSE, body))
        assert await raw.frame() == (CLOSE, body)
        assert await raw.reader.read() == b""
        await call.leg.closed
        assert call.told == [("close", close), "lost"]


async def test_a_bad_frame_after_our_close_is_no_violation_any_more(server):
    """The end has its reason already."""
    async with talking(server) as (raw, call):
        call.leg.close(Close(1000, ""))
        raw.writer.write(masked(3, b"a"))
        await call.leg.closed
        assert call.told == ["lost"]


async def test_a_paused_leg_that_is_closed_still_sees_the_peers_close(server):
    """Else every call whose other leg is blocked would end by force."""
    async with talking(server) as (raw, call):
        call.leg.pause()
        call.leg.pause()
        call.leg.close(Close(1012, ""))
        assert await raw.frame() == (CLOSE, (1012).to_bytes(2, "big"))
        raw.writer.write(close_frame(1012))
        await call.leg.closed
        assert call.told == [("close", Close(1012, "")), "lost"]


@pytest.mark.parametrize("how", ["client", "abort"])
async def test_a_connection_that_is_gone_without_close_is_lost_with_all_that_waited(server, how):
    """A phone in a tunnel, or a stalled peer that is given up: what waits for it must not keep the socket open."""
    async with not_reading(server) as (raw, call), asyncio.timeout(5):
        call.leg.send(payload_of(1_000_000))
        raw.writer.transport.abort() if how == "client" else call.leg.abort()
        await call.leg.closed
        assert call.told == [("blocked", True), "lost"]
        assert call.leg.buffered() == 0
        call.leg.send(b"into the void")
        call.leg.close(Close(1000, ""))


async def test_a_leg_that_connects_after_the_end_of_its_call_is_aborted(server):
    """The client hung up while the model was being dialled."""
    call = Call()
    call.leg.close(Close(1000, ""))
    server.make = lambda: call.leg
    async with Raw.connected(server) as raw, asyncio.timeout(5):
        await raw.reader.read()
        await call.leg.closed


async def test_a_leg_that_never_connected_is_closed_when_it_is_abandoned():
    """Whoever waits for both legs must not wait for this one; and to use it would be our bug."""
    leg = Call().leg
    with pytest.raises(RuntimeError, match="client leg used before it was connected"):
        leg.ping()
    leg.abandon()
    assert leg.closed.done()
    assert (leg.buffered(), leg.taken()) == (0, 0)
