"""The frame rules, judged by a reader of the wire of its own; first the rules alone, then a leg behind picows.

The reader says what must come out of a stream of bytes. It knows all of it at once and is written after RFC 6455: it
shares no line with what it judges.
"""

import asyncio
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import pytest
import uvloop
from hypothesis import strategies as st
from multidict import CIMultiDict
from picows import WSUpgradeResponse, WSUpgradeResponseWithListener

from relay import handoff
from relay.core.actions import Side
from relay.core.frames import Assembler, Close, Violation, close_body, parse_close
from relay.core.realtime import is_whole_append
from relay.legs import Leg
from tests.fuzz.target import Target

LIMIT = 96
SENDABLE = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}  # RFC 6455, 7.4, and IANA's registry
CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
APPEND = b'{"type":"input_audio_buffer.append","audio":"AAAA"}'
_KEY = "dGhlIHNhbXBsZSBub25jZQ=="


class Frame(NamedTuple):
    fin: bool
    reserved: bool
    opcode: int
    payload: bytes


@dataclass
class Wire:
    """Frames of a client, as far as they can be told from one another."""

    frames: list[Frame] = field(default_factory=list)
    bad: frozenset[int] = frozenset()  # close codes for what comes behind the last frame; empty: nothing bad does
    says_nothing: bool = False  # it is a CLOSE with a code (0 or 1005) that picows has for one without


def read_wire(data: bytes, limit: int) -> Wire:
    """Cut a client's bytes into frames, up to the first that cannot be one."""
    wire, at = Wire(), 0
    while len(data) - at >= 2:
        fin, reserved, opcode = bool(data[at] & 0x80), bool(data[at] & 0x70), data[at] & 0x0F
        is_masked, size = bool(data[at + 1] & 0x80), data[at + 1] & 0x7F
        if opcode not in {CONT, TEXT, BINARY, CLOSE, PING, PONG} or not is_masked:
            return _ended(wire, 1002)
        if opcode >= CLOSE and (not fin or size > 125):
            return _ended(wire, 1002)
        at += 2
        more = {126: 2, 127: 8}.get(size, 0)
        if len(data) - at < more:
            return wire
        if more:
            size = int.from_bytes(data[at : at + more], "big")
            if size < (126 if more == 2 else 1 << 16) or size >> 63:
                return _ended(wire, 1002, *([1009] if size > limit else []))
        at += more
        if opcode < CLOSE and size > limit:
            return _ended(wire, 1009)
        if len(data) - at < 4 + size:
            return wire
        mask, at = data[at : at + 4], at + 4
        payload = bytes(byte ^ mask[place % 4] for place, byte in enumerate(data[at : at + size]))
        at += size
        if opcode == CLOSE and (codes := _close_codes(payload, any(frame.opcode == CLOSE for frame in wire.frames))):
            wire.says_nothing = payload[:2] in {b"\0\0", b"\x03\xed"}
            return _ended(wire, *codes)
        wire.frames.append(Frame(fin, reserved, opcode, payload))
    return wire


def _ended(wire: Wire, *codes: int) -> Wire:
    wire.bad = frozenset(codes)
    return wire


def _close_codes(payload: bytes, is_second: bool) -> set[int]:
    """What is wrong with the body of a CLOSE."""
    codes = {1002} if is_second or len(payload) == 1 else set()
    if len(payload) >= 2:
        codes |= set() if int.from_bytes(payload[:2], "big") in SENDABLE else {1002}
        codes |= set() if _is_utf8(payload[2:]) else {1007}
    return codes


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _begins_utf8(data: bytes) -> bool:
    """Whether more bytes could make it UTF-8; of a surrogate, which none is, Python's decoder waits for all three."""
    if len(data) >= 2 and data[-2] == 0xED and 0xA0 <= data[-1] <= 0xBF:
        data = data[:-2]
    return any(
        _is_utf8(data + more) for more in (b"", b"\x80", b"\xa0", b"\x90\x80", b"\x80\x80", b"\xa0\x80", *_TAILS)
    )


_TAILS = (b"\x80\x80\x80", b"\x90\x80\x80")


class Story(NamedTuple):
    """What must come of a stream: whole messages and pings in their order, and how it ends."""

    told: list[tuple[str, bytes]]
    closes: set[int]  # codes of the peer's CLOSE, of which any is right; empty: it sends none
    violations: set[int]  # codes, of which any is right
    may_lack_last: bool  # it stands before a frame that cannot be read, and picows reads one frame ahead


def story_of(wire: Wire, limit: int) -> Story:
    """Read frames as RFC 6455 (sections 5.4, 5.5, 8.1) says."""
    told: list[tuple[str, bytes]] = []
    closes = {1005} if wire.says_nothing else set()
    kind, parts = 0, b""
    for place, frame in enumerate(wire.frames):
        is_last = place == len(wire.frames) - 1
        ahead = wire.bad if is_last else frozenset()
        wrong = {1002} if frame.reserved else set()
        if frame.opcode >= CLOSE:
            close = {int.from_bytes(frame.payload[:2], "big") or 1005} if frame.opcode == CLOSE else closes
            if wrong:  # of a CLOSE that it has read ahead of a bad frame picows tells the code and not the bits
                return Story(told, close if ahead else set(), wrong | ahead, False)
            if frame.opcode == CLOSE:
                return Story(told, close, set(), False)
            if frame.opcode == PING:
                told.append(("pong", frame.payload))
        else:
            wrong |= {1002} if (frame.opcode == CONT) != bool(kind) else set()
            whole = parts + frame.payload
            wrong |= {1009} if len(whole) > limit else set()
            if (kind or frame.opcode) == TEXT or frame.opcode == TEXT:
                wrong |= set() if (_is_utf8 if frame.fin else _begins_utf8)(whole) else {1007}
            if wrong:
                return Story(told, closes if is_last else set(), wrong | ahead, False)
            is_single, kind, parts = not kind, kind or frame.opcode, whole
            if frame.fin:
                told.append((_kind_of(kind, whole, is_single), whole))
                kind, parts = 0, b""
        if is_last and wire.bad:
            produced = frame.opcode == PING or (frame.opcode < CLOSE and frame.fin)
            return Story(told, closes, set(wire.bad), produced)
    return Story(told, closes, set(wire.bad), False)


def _kind_of(kind: int, message: bytes, is_single: bool) -> str:
    if kind == BINARY:
        return "binary"
    return "plain" if is_single and message.isascii() and is_whole_append(message) else "text"


# The rules alone


def check_rules(data: bytes) -> None:
    """The assembler makes of frames what the reader makes of them, and refuses with a code that is right."""
    wire = read_wire(data, LIMIT)  # without control frames that have reserved bits, which are a leg's to refuse
    wire = Wire([frame for frame in wire.frames if frame.opcode < CLOSE or not frame.reserved])
    told, assembler, code = list[tuple[str, bytes]](), Assembler(LIMIT), 0
    for frame in wire.frames:
        try:
            if frame.opcode == CLOSE:
                parse_close(frame.payload)
                break
            if frame.opcode >= CLOSE:
                continue
            message = assembler.accept(frame.opcode, frame.fin, frame.reserved, frame.payload)
        except Violation as violation:
            code = violation.code
            break
        if message is not None:
            told.append((message.kind.name, message.payload))
    story = story_of(wire, LIMIT)
    names = {"text": "TEXT", "plain": "TEXT", "binary": "BINARY"}
    assert told == [(names[kind], payload) for kind, payload in story.told if kind != "pong"]
    assert code in story.violations if story.violations else code == 0
    check_close(data)


def check_close(data: bytes) -> None:
    """The body of a CLOSE is read as the RFC says; what is written can be read again, and fits a control frame."""
    wrong = _close_codes(data, False)
    if wrong:
        with pytest.raises(Violation) as violation:
            parse_close(data)
        assert violation.value.code in wrong
    else:
        close = parse_close(data)
        assert close.code == (int.from_bytes(data[:2], "big") if data else 1005)
        written = close_body(close)
        assert len(written) <= 125
        assert data.startswith(written)
        assert parse_close(written).code == close.code


# A leg behind picows


class _Call:
    """The owner of a leg: closes as a call does, and keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, bytes]] = []
        self.endings: list[tuple[str, int]] = []
        limits: dict[str, int] = {"max_message": LIMIT, "write_bytes": 1 << 20, "socket_bytes": 1 << 18}
        self.leg = Leg(Side.CLIENT, self, lambda text: self._tell("text", text), is_whole_append, **limits)

    def _tell(self, kind: str, payload: bytes) -> None:
        assert not self.endings, "a message behind the end"
        self.told.append((kind, payload))

    def on_leg_binary(self, leg: Leg, payload: bytes) -> None:
        self._tell("binary", payload)

    def on_leg_violation(self, leg: Leg, violation: Violation) -> None:
        self.endings.append(("violation", violation.code))

    def on_leg_close(self, leg: Leg, close: Close) -> None:
        self.endings.append(("close", close.code))
        if not leg.closing:
            leg.close(close)
        leg.disconnect()

    def on_leg_lost(self, leg: Leg) -> None:
        pass

    def on_leg_blocked(self, leg: Leg, blocked: bool) -> None:
        pass

    def on_leg_failed(self, leg: Leg, error: Exception) -> None:
        raise error


class _Line:
    """A call's leg on one end of a connection, and the other end."""

    def __init__(self) -> None:
        self.call = _Call()
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.far = socket.create_connection(server.getsockname())
            self.near, _ = server.accept()
        self.near.setblocking(False)
        self.far.setblocking(False)
        # Else some thousands of closed connections a second would use up the ports.
        self.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        answer = WSUpgradeResponseWithListener(WSUpgradeResponse.create_101_response(CIMultiDict()), self.call.leg)
        on_refused = self.call.leg.on_ws_refused
        self.frames = handoff._protocol(lambda _: answer, client=None, max_message=LIMIT, on_refused=on_refused)

    @classmethod
    async def open(cls) -> "_Line":
        line = cls()
        await handoff.take(line.near, lambda: line.frames, None, 60.0)
        handoff._feed(line.frames, handoff._canonical_head(_KEY))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await line.read()
        return line

    async def read(self) -> bytes:
        data = await asyncio.get_running_loop().sock_recv(self.far, 1 << 16)
        assert data, "hung up early"
        return data

    async def sent(self, is_all: Callable[[list[tuple[int, bytes]]], bool]) -> list[tuple[int, bytes]]:
        """Frames that the other end got, as soon as there are enough."""
        data = b""
        async with asyncio.timeout(60.0):
            while not is_all(list(sent_frames(data))):
                data += await self.read()
        return list(sent_frames(data))

    async def close(self) -> None:
        self.far.close()
        self.call.leg.abort()
        await self.call.leg.closed


class _Stage:
    """Two connected legs: a client's, which is given bytes, and the model's, to which plain audio goes."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self.loop.set_exception_handler(handoff.quiet_refusals)
        self.model = self.loop.run_until_complete(_Line.open())

    def play(self, data: bytes) -> None:
        self.loop.run_until_complete(self._play(data))

    async def _play(self, data: bytes) -> None:
        """The first byte says in what pieces the others come."""
        size = (data[0] if data else 0) or 4096
        client, passed_on = await _Line.open(), list[bytes]()
        try:
            client.call.leg.feed(self.model.call.leg, passed_on.append)
            for at in range(1, len(data), size):
                if client.call.leg.transport is None or client.call.leg.transport.is_disconnected:
                    break
                handoff._feed(client.frames, data[at : at + size])
            received = await self.model.sent(lambda frames: len(frames) >= len(passed_on))
            assert received == [(TEXT, each) for each in passed_on]
            await _judge(data[1:], client, passed_on)
        finally:
            await client.close()


@cache
def _stage() -> _Stage:
    return _Stage()


def check_leg(data: bytes) -> None:
    """A leg tells its call what the reader reads, passes plain audio on, and answers pings and the end."""
    _stage().play(data)


def sent_frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Frames of a server, which are short and not masked."""
    while data:
        size, at = data[1], 2
        if size == 126:
            size, at = int.from_bytes(data[2:4], "big"), 4
        assert data[0] & 0xF0 == 0x80
        assert size <= len(data) - at
        yield data[0] & 0x0F, data[at : at + size]
        data = data[at + size :]


async def _judge(data: bytes, client: _Line, passed_on: list[bytes]) -> None:
    call, story = client.call, story_of(read_wire(data, LIMIT), LIMIT)
    expected = [story.told, story.told[:-1]] if story.may_lack_last else [story.told]
    ends = bool(story.closes or story.violations)
    assert bool(call.endings) == ends
    fewest = len(_of(expected[-1], "pong"))
    answers = await client.sent(
        lambda frames: any(opcode == CLOSE for opcode, _ in frames) if ends else len(frames) >= fewest
    )
    found = ([payload for opcode, payload in answers if opcode == PONG], passed_on, call.told)
    assert found in [(_of(told, "pong"), _of(told, "plain"), _heard_by_call(told)) for told in expected]
    if ends:
        allowed = {*(("close", code) for code in story.closes), *(("violation", code) for code in story.violations)}
        assert call.endings[0] in allowed
        said = next(payload for opcode, payload in answers if opcode == CLOSE)
        code = int.from_bytes(said[:2], "big") if said else 1005
        assert code == call.endings[0][1]
        assert code in SENDABLE | {1005}


def _of(told: list[tuple[str, bytes]], kind: str) -> list[bytes]:
    return [payload for each, payload in told if each == kind]


def _heard_by_call(told: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    return [each for each in told if each[0] not in {"pong", "plain"}]


# Shapes


def wired(first: int, payload: bytes, *, mask: bytes = bytes(4), size: int | None = None) -> bytes:
    """A client's frame, whose length may be a lie."""
    size = len(payload) if size is None else size
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 1 << 16:
        length = b"\xfe" + size.to_bytes(2, "big")
    else:
        length = b"\xff" + size.to_bytes(8, "big")
    body = bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
    return bytes([first]) + length + mask + body


PAYLOADS = st.one_of(
    st.sampled_from([b"", b"a", "é".encode(), b"\xc3", b"\xa9", b"\xf0\x9f", b"\x8e\xa4", b"\xff", APPEND, b"b" * 60]),
    st.binary(max_size=LIMIT + 8),
)
CODES = st.sampled_from([999, 1000, 1001, 1004, 1005, 1006, 1011, 1015, 2999, 3000, 4999, 5000, 65535])
DATA = st.tuples(st.sampled_from([0x81, 0x82, 0x01, 0x02, 0x00, 0x80, 0x80, 0x81, 0xC1, 0x91]), PAYLOADS)
CONTROL = st.tuples(st.sampled_from([0x89, 0x8A, 0x89, 0xC9, 0x09]), PAYLOADS)
BODIES = st.builds(lambda code, reason: code.to_bytes(2, "big") + reason, CODES, PAYLOADS)
CLOSES = st.tuples(st.sampled_from([0x88, 0x88, 0x88, 0x98, 0x08]), BODIES | PAYLOADS)
MASKS = st.just(bytes(4)) | st.binary(min_size=4, max_size=4)
FRAMES = st.builds(lambda frame, mask: wired(*frame, mask=mask), DATA | DATA | CONTROL | CLOSES, MASKS)
ODD = st.builds(
    lambda frame, size: wired(*frame, size=size), DATA, st.sampled_from([0, 1, 125, 126, 65535, 65536, 1 << 63])
)
STREAMS = st.lists(FRAMES | FRAMES | FRAMES | ODD | st.binary(max_size=12), max_size=8).map(b"".join)
CHUNKS = st.sampled_from([b"\x00", b"\x00", b"\x01", b"\x02", b"\x03", b"\x07", b"\x40"])

_SEEDS = (
    wired(0x81, APPEND) + wired(0x81, "ä".encode()) + wired(0x82, b"\xff"),
    wired(0x01, b"fr\xc3") + wired(0x89, b"p") + wired(0x80, b"\xa9"),
    wired(0x81, APPEND, mask=b"abcd") * 4 + wired(0x88, b"\x03\xe8bye"),
    wired(0x88, b""),
    wired(0x88, b"\x0b\xb8" + b"r" * 100) + wired(0x81, b"after"),
    wired(0x82, b"x" * LIMIT) + wired(0x82, b"x" * (LIMIT + 1)),
    wired(0x88, b"\xff\xff") + b"\x81\x01a",
)
_WORDS = (
    b"\x81\x80\0\0\0\0",
    b"\x01\x81\0\0\0\0\xc3",
    b"\x80\x81\0\0\0\0\xa9",
    b"\x89\x80\0\0\0\0",
    b"\x88\x80\0\0\0\0",
)
_WORDS += (b"\x88\x82\0\0\0\0\x03\xe8", b"\xfe\0\x7e", b"\xff\0\0\0\0\0\1\0\0", b"\xff\x80\0\0\0\0\0\0\0", APPEND)

_EDGES = tuple(
    code.to_bytes(2, "big") for code in (999, 1000, 1003, 1004, 1006, 1007, 1014, 1015, 2999, 3000, 4999, 5000)
)
RULES = Target("frames", check_rules, (*_SEEDS, *_EDGES), _WORDS, STREAMS | BODIES)
LEG = Target(
    "leg",
    check_leg,
    tuple(chunk + seed for seed in _SEEDS for chunk in (b"\x00", b"\x01")),
    _WORDS,
    st.builds(lambda chunk, stream: chunk + stream, CHUNKS, STREAMS),
)
