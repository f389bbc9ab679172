"""5,000 generated bad tokens, header values and frames against a live node; the same ones in each run.

Bytes that are no request of HTTP are tests/e2e/test_front.py's; here every request is one, and each value in it wrong.
"""

import asyncio
import base64
import gc
import hashlib
import hmac
import json
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp
import pytest
from structlog.testing import capture_logs

from fanout import new_call_id
from relay.api.routes import ROUTES, Kind
from relay.app import Node
from relay.tokens import SCOPES
from tests.e2e.test_call import say
from tests.e2e.test_front import Answer, Peer, peer, resident, upgrade
from tests.support.fleet import SECRET, Nodes, closed, event, token, until

SEED = 6
TOKENS, HEADERS, BAD_FRAMES, BAD_EVENTS = 2000, 1000, 700, 1300
TASKS = 8
GROWTH_BYTES = 16 << 20  # of this process, which holds the simulator, the clients and what was logged as well
_TOLD_APART = 12  # letters: a shorter part of a token may stand in an answer by chance


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


# Tokens


class BadToken(NamedTuple):
    """A token that opens nothing, as bytes of a header."""

    text: bytes

    @property
    def parts(self) -> list[str]:
        """What of it would be recognized."""
        parts = self.text.decode("latin-1").replace("ek_", ".").split(".")
        return [part for part in parts if len(part) >= _TOLD_APART]


ALGORITHMS = [
    "none",
    "None",
    "NONE",
    "nOnE",
    "",
    "HS384",
    "HS512",
    "RS256",
    "ES256",
    "EdDSA",
    "PS256",
    "hs256",
    "HS256 ",
]
ODD: list[Any] = [None, 5, -1, 1.5, True, [], {}, "", [5], [None], {"a": 1}, 10**400, ["HS256"], "x" * 500]
HEADS: list[dict[str, Any]] = [
    *({"alg": name} for name in ALGORITHMS),
    *({"alg": value} for value in ODD),
    *({"alg": "HS256", name: "x"} for name in ("jku", "jwk", "x5u", "x5c", "crit")),
    {"alg": "HS256", "crit": ["exp"], "exp": 1},
    *({"alg": "RS256", "kid": kid} for kid in ("", "../../etc/passwd", "' or 1=1", "a\0b", "x" * 1000, 5, None, [])),
    *({"alg": "HS256", "kid": kid} for kid in (5, [], {}, True)),
    *({"alg": "HS256", "b64": value, "crit": ["b64"]} for value in (False, True)),
]
CLAIMS: list[tuple[str, list[Any]]] = [
    ("tenant", [None, 5, [], {}, "", "x" * 129, "a\nb", "a\0", "\u200b", "\ud800", True]),
    ("scope", [None, 5, {}, [5], [None], [["read"]], True, {"read": 1}]),
    ("exp", [None, "soon", [], {}, -1, 0, 1, "1", "", "1e9", float("-inf"), float("inf"), float("nan")]),
    ("nbf", ["soon", [], {}, 10**12, float("inf"), float("nan"), 10**400]),
    ("iat", ["soon", [], {}, 10**12, float("inf"), float("nan")]),
    *((name, [5, "", None, [], {}, True]) for name in ("agent", "plan", "call", "jti", "origin")),
    *((name, ["yes", 1, None, [], "true"]) for name in ("session", "browser")),
]


def signed(head: Any, body: Any, secret: str = SECRET) -> str:
    """A token with a good signature of the node's own secret, whatever stands in it."""
    text = ".".join(base64url(each if isinstance(each, bytes) else json.dumps(each).encode()) for each in (head, body))
    return f"{text}.{base64url(hmac.digest(secret.encode(), text.encode(), hashlib.sha256))}"


def claims(source: random.Random) -> dict[str, Any]:
    """What would be good."""
    return {"tenant": f"tenant-{source.random()}", "scope": sorted(SCOPES), "exp": 4_000_000_000}


def _other_head(source: random.Random) -> str:
    head = source.choice(HEADS)
    text = signed(head, claims(source), source.choice([SECRET, "", "x" * 32]))
    return text if source.random() < 0.7 else text[: text.rindex(".") + 1]


def _other_claims(source: random.Random) -> str:
    name, values = source.choice(CLAIMS)
    return signed({"alg": "HS256"}, claims(source) | {name: source.choice(values)})


def _lacks_claims(source: random.Random) -> str:
    body = claims(source)
    del body[source.choice(sorted(body))]
    return signed({"alg": "HS256"}, body)


def _other_secret(source: random.Random) -> str:
    secrets = ["", SECRET[:-1], SECRET + "\n", SECRET.upper(), "secret", "x" * 32]
    return signed({"alg": "HS256"}, claims(source), source.choice(secrets))


def _changed(source: random.Random) -> str:
    """One letter, but not the last: its lowest bits mean nothing."""
    text = signed({"alg": "HS256"}, claims(source))
    place = source.choice([each for each in range(len(text) - 1) if text[each] != "."])
    other = source.choice([letter for letter in "ABCxyz019-_" if letter != text[place]])
    return text[:place] + other + text[place + 1 :]


def _cut(source: random.Random) -> str:
    text = signed({"alg": "HS256"}, claims(source))
    start = source.choice([0, 0, source.randrange(1, len(text))])
    return text[start : source.randrange(start + 1, len(text))]


def _put_together(source: random.Random) -> str:
    """Parts of several tokens, too few or too many."""
    parts = [part for _ in range(2) for part in signed({"alg": "HS256"}, claims(source)).split(".")]
    return ".".join(source.choice([*parts, "", "."]) for _ in range(source.choice([1, 2, 3, 3, 4, 5, 50])))


def _no_object(source: random.Random) -> str:
    """JSON that is none, or is too deep, or says things twice."""
    odd = [b"", b"{", b"[]", b"5", b"null", b'"x"', b"\xff\xfe", b"[" * 3000, b'{"a":' * 900, b"\0" * 100, b"{}" * 9]
    twice = b'{"alg":"HS256","alg":"none"}'
    head = source.choice([*odd, twice, b'{"alg":"HS256"}'])
    body = source.choice(odd) if head == b'{"alg":"HS256"}' else json.dumps(claims(source)).encode()
    return signed(head, body, SECRET if head != twice else "")


def _long(source: random.Random) -> str:
    return signed({"alg": "HS256"}, claims(source) | {"more": "x" * source.randrange(6200, 7500)})


def _noise(source: random.Random) -> bytes:
    letters = [*range(0x21, 0x7F), *range(0x80, 0x100)]
    letters.remove(ord(","))  # in a header it begins another value
    return bytes(source.choices(letters, k=source.choice([1, 2, 5, 40, 400, 4000])))


MAKERS: list[Callable[[random.Random], str | bytes]] = [
    *(
        _other_head,
        _other_claims,
        _lacks_claims,
        _other_secret,
        _changed,
        _cut,
        _put_together,
        _no_object,
        _long,
        _noise,
    )
]


def bad_tokens(source: random.Random) -> Iterator[BadToken]:
    """The tokens; one in five with the prefix of client tokens."""
    for number in range(TOKENS):
        made = MAKERS[number % len(MAKERS)](source)
        text = made.encode("latin-1") if isinstance(made, str) else made
        yield BadToken(b"ek_" + text if number % 5 == 0 else text)


async def in_turn(work: Callable[[Any], Any], cases: Iterator[Any]) -> None:
    """Do the cases, a few at a time."""

    async def go_on() -> None:
        for case in cases:
            await work(case)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(TASKS):
            tasks.create_task(go_on())


class Watched:
    """A node, and all that was logged, told and kept meanwhile."""

    def __init__(self, node: Node, logs: list[Any], caplog: pytest.LogCaptureFixture) -> None:
        self.node = node
        self._logs, self._caplog = logs, caplog
        self._base = 0

    def begin_to_measure(self) -> None:
        """What is needed once, such as parsers and pools, is there by now."""
        gc.collect()
        self._base = resident()

    def check(self, secrets: set[str]) -> None:
        """Nothing of these in the log, no error of ours, and no memory that is kept for nothing."""
        written = repr(self._logs) + self._caplog.text
        assert [entry for entry in self._logs if entry["log_level"] in {"error", "critical"}] == []
        assert "Traceback" not in written
        assert [secret for secret in secrets if secret in written] == []
        gc.collect()
        assert resident() - self._base < GROWTH_BYTES


@asynccontextmanager
async def watched(nodes: Nodes, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Watched]:
    """The node serves a call before and after, with audio both ways."""
    caplog.set_level(logging.DEBUG)
    node = await nodes.add(ALLOWED_ORIGINS="https://app.example")
    with capture_logs() as logs:
        await talk(nodes, node)
        yield Watched(node, logs, caplog)
        await until(lambda: _is_empty(nodes, node), 20)
        await talk(nodes, node)


async def talk(nodes: Nodes, node: Node) -> None:
    client = await nodes.connect(node)
    await say(client)
    await event(client, "response.output_audio.delta")
    await client.close()


async def _is_empty(nodes: Nodes, node: Node) -> bool:
    async with nodes.http.get(node.ops_url + "/status") as response:
        status = await response.json()
    assert status["bus"]["task_failures"] == 0
    return status["calls"]["live"] == status["side_legs"]["live"] == 0


async def test_bad_tokens_are_401_and_nothing_is_said_of_them(nodes: Nodes, caplog: pytest.LogCaptureFixture) -> None:
    """In the header or as a subprotocol, for the API and for calls."""
    source = random.Random(SEED)
    cases = list(bad_tokens(source))
    wrong, seen = [], set[int]()
    async with watched(nodes, caplog) as node:

        async def send(number: int) -> None:
            bad = cases[number]
            ways = [b"Authorization: Bearer ", b"authorization:bearer   "]
            is_name = all(letter in _NAME for letter in bad.text)
            if number % 3 == 2 and is_name:
                request = upgrade("<>").replace(
                    b"<>", b"Sec-WebSocket-Protocol: realtime, openai-insecure-api-key." + bad.text
                )
            elif number % 3 == 1:
                request = upgrade("<>").replace(b"<>", ways[number % 2] + bad.text)
            else:
                path = f"/v1/realtime/calls/{new_call_id('iad')}"
                request = f"GET {path} HTTP/1.1\r\nHost: relay\r\n".encode() + ways[number % 2] + bad.text + b"\r\n\r\n"
            async with peer(node.node) as one:
                answer = await one.ask(request)
            seen.add(answer.status)
            told = repr(answer.headers) + answer.body.decode()
            if answer.status != 401 or any(part in told for part in bad.parts):
                wrong.append((number, bad, answer))

        await in_turn(send, iter(range(TOKENS // 10)))
        node.begin_to_measure()
        await in_turn(send, iter(range(TOKENS // 10, TOKENS)))
        assert wrong == []
        node.check({part for bad in cases for part in bad.parts})
    assert seen == {401}


_NAME = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")  # RFC 9110, 5.6.2


# Headers

NAMES = (
    *("Sec-WebSocket-Key", "Sec-WebSocket-Version", "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions"),
    *("Connection", "Upgrade", "Origin", "Last-Event-ID", "traceparent", "tracestate", "Accept", "Accept-Encoding"),
    *("Content-Type", "Content-Encoding", "Expect", "Range", "If-None-Match", "If-Modified-Since", "Cookie", "Host"),
    *("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Forwarded", "X-HTTP-Method-Override", "Referer"),
    *("Access-Control-Request-Method", "OpenAI-Beta", "User-Agent", "X-Call-Id", "Idempotency-Key", "Keep-Alive"),
)
VALUES = (
    *(b"", b" ", b"\t", b",", b",,,,", b";", b'"', b"\\", b"=", b"*", b"-1", b"0", b"13", b"1e999", b"NaN", b"9" * 400),
    *(b"%s%n%x", b"${jndi:ldap://x}", b"{{7*7}}", b"../../etc/passwd", b"<script>", b"' or 1=1", b"null", b"undefined"),
    *(
        b"close",
        b"upgrade, close",
        b"websocket, h2c",
        b"100-continue",
        b"bytes=0-",
        b"deflate",
        b"gzip, br",
        b"\xff\xfe",
    ),
    *(
        "ﬀ‮é".encode(),
        b"a" * 4000,
        b"a," * 2000,
        b"1-0",
        b"0-0",
        b"18446744073709551616-1",
        b"1-1-1",
        b"-",
        b"\x80" * 50,
    ),
    *(
        b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01",
        b"https://app.example",
        b"null, https://app.example",
        b"http://[",
    ),
    *(b"127.0.0.1", b"::1", b"[::", b"for=unknown", b"DELETE", b"text/event-stream;q=x", b"application/json;charset=x"),
)
# Beside what the table says: a body or a Host that can't be, another encoding, no such way to ask.
_OF_THE_PORT = {400, 403, 404, 405, 413, 415, 417, 426}


async def test_odd_headers_are_answered_as_the_table_says_or_as_no_request(
    nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    """With a good token, so that they are read; calls that come of it are as good as any."""
    source = random.Random(SEED)
    text = token(*sorted(SCOPES))
    wrong, seen = [], set[int]()
    nobodys = new_call_id("iad")
    async with watched(nodes, caplog) as node:

        async def send(number: int) -> None:
            route = ROUTES[number % len(ROUTES)]
            path = route.path.format(call_id=nobodys, message_id="m") + (
                "?model=sim" if route.kind is Kind.UPGRADE else ""
            )
            body = b"{}" if route.body is not None else b""
            lines = [f"{route.method} {path} HTTP/1.1".encode(), f"Authorization: Bearer {text}".encode()]
            lines += [b"Host: relay"] if number % 7 else []
            if route.kind is Kind.UPGRADE:
                lines += upgrade().split(b"\r\n")[2:-2]
            more = [f"{name}: ".encode() + value for name, value in odd[number]]
            lines[1:1] = more if number % 2 else []  # of two values the first may count, or the last
            lines += [] if number % 2 else more
            request = b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", body])
            async with peer(node.node) as one:
                answer = await one.ask(request)
                if answer.status == 100:
                    answer = await one.answer()
            seen.add(answer.status)
            is_known = answer.status in route.answers or answer.status in _OF_THE_PORT
            if not is_known or text in repr(answer) or not _is_whole(answer, route.kind):
                wrong.append((route.name, odd[number], answer))

        odd = [
            [(source.choice(NAMES), source.choice(VALUES)) for _ in range(source.randint(1, 4))] for _ in range(HEADERS)
        ]
        await in_turn(send, iter(range(HEADERS // 10)))
        await until(lambda: _is_empty(nodes, node.node), 20)
        node.begin_to_measure()
        await in_turn(send, iter(range(HEADERS // 10, HEADERS)))
        assert wrong == []
        node.check({text})
    assert {101, 200, 400, 403, 404, 422, 426, 501} <= seen
    assert 500 not in seen


def _is_whole(answer: Answer, kind: Kind) -> bool:
    """Whether an error has the shape of all errors; other bodies are other tests'."""
    return answer.status < 400 or answer.code is not None


# Frames


def frame(first: int, payload: bytes, source: random.Random, *, masked: bool = True) -> bytes:
    """A client's frame with any first byte."""
    mask = source.randbytes(4)
    size = len(payload)
    length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2, "big") if size < 65536 else b""
    length = length or b"\x7f" + size.to_bytes(8, "big")
    if not masked:
        return bytes([first]) + length + payload
    scrambled = bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
    return bytes([first, length[0] | 0x80]) + length[1:] + mask + scrambled


Broken = tuple[bytes, set[int]]  # what is sent, and with which codes it may be closed
APPEND = b'{"type":"input_audio_buffer.append","audio":"AAAA"}'


def _opcode(source: random.Random) -> Broken:
    return frame(0x80 | source.choice([3, 4, 5, 6, 7, 11, 12, 13, 14, 15]), source.randbytes(5), source), {1002}


def _reserved(source: random.Random) -> Broken:
    return frame(0x81 | source.choice([0x40, 0x20, 0x10, 0x70, 0x60]), APPEND, source), {1002}


def _unmasked(source: random.Random) -> Broken:
    return frame(0x81, APPEND, source, masked=False), {1002}


def _text(source: random.Random) -> Broken:
    bad = source.choice([b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"])
    return frame(0x81, APPEND[: source.randrange(len(APPEND))] + bad, source), {1007}


def _continuation(source: random.Random) -> Broken:
    return frame(source.choice([0x80, 0x00]), APPEND, source), {1002}


def _interrupted(source: random.Random) -> Broken:
    return frame(0x01, APPEND[:9], source) + frame(source.choice([0x81, 0x82, 0x01]), APPEND, source), {1002}


def _fragmented_control(source: random.Random) -> Broken:
    return frame(source.choice([0x08, 0x09, 0x0A]), b"", source), {1002}


def _long_control(source: random.Random) -> Broken:
    return frame(source.choice([0x88, 0x89, 0x8A]), source.randbytes(source.choice([126, 200, 70_000])), source), {1002}


def _close(source: random.Random) -> Broken:
    codes = [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535]
    bodies = [b"\x03", *(code.to_bytes(2, "big") + b"why" for code in codes)]
    return frame(0x88, source.choice(bodies), source), {1002}


def _close_text(source: random.Random) -> Broken:
    return frame(0x88, b"\x03\xe8" + source.choice([b"\xff", b"\xc0\xaf", b"ok\xed\xa0\x80"]), source), {1002, 1007}


def _binary(source: random.Random) -> Broken:
    return frame(0x82, source.randbytes(source.choice([0, 1, 100, 3000])), source), {1003}


def _endless(source: random.Random) -> Broken:
    """Only its length comes: what would be kept for it is never needed."""
    size = source.choice([1 << 26, 1 << 31, 1 << 40, 1 << 62, (1 << 63) + 5, (1 << 64) - 1])
    return bytes([0x81, 0xFF]) + size.to_bytes(8, "big") + bytes(4) + b"x" * 100, {1002, 1009}


BREAKERS: list[Callable[[random.Random], Broken]] = [
    *(_opcode, _reserved, _unmasked, _text, _continuation, _interrupted, _fragmented_control, _long_control, _close),
    *(_close_text, _binary, _endless),
]


async def close_code(one: Peer) -> int:
    """Read frames up to a close, or the end of the connection (1006)."""
    async with asyncio.timeout(10):
        try:
            while True:
                first, size = await one.reader.readexactly(2)
                if size >= 126:
                    size = int.from_bytes(await one.reader.readexactly(2 if size == 126 else 8), "big")
                payload = await one.reader.readexactly(size)
                if first & 0x0F == 8:
                    return int.from_bytes(payload[:2], "big")
        except (asyncio.IncompleteReadError, ConnectionError):
            return 1006


async def test_bad_frames_close_with_the_code_of_what_is_wrong_with_them(
    nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a call's client, and of a side leg, whose call notices nothing."""
    source = random.Random(SEED)
    cases = [BREAKERS[number % len(BREAKERS)](source) for number in range(BAD_FRAMES)]
    wrong = []
    async with watched(nodes, caplog) as node:
        attended = await nodes.connect(node.node)
        await event(attended, "session.created")
        call_id = attended._response.headers["X-Call-Id"]
        await until(lambda: _is_known(nodes, node.node, call_id))
        paths = ("/v1/realtime?model=sim", f"/v1/realtime?call_id={call_id}", "/voice?model=sim")

        async def send(number: int) -> None:
            data, codes = cases[number]
            path = paths[number // len(BREAKERS) % 3]
            if path == paths[2] and BREAKERS[number % len(BREAKERS)] is _binary:
                return  # there it is audio
            async with peer(node.node) as one:
                head = upgrade(f"Authorization: Bearer {token('call', 'control')}", path=path)
                assert (await one.ask(head)).status == 101
                await one.send_on(data)
                code = await close_code(one)
            if code not in codes:
                wrong.append((BREAKERS[number % len(BREAKERS)].__name__, path, code, data[:40]))

        await in_turn(send, iter(range(BAD_FRAMES // 10)))
        node.begin_to_measure()
        await in_turn(send, iter(range(BAD_FRAMES // 10, BAD_FRAMES)))
        assert wrong == []
        await attended.send_json({"type": "input_audio_buffer.clear"})
        await event(attended, "input_audio_buffer.cleared")
        await attended.close()
        node.check({"input_audio_buffer.append"})


async def _is_known(nodes: Nodes, node: Node, call_id: str) -> bool:
    return (await nodes.get(node, f"/v1/realtime/calls/{call_id}"))[0] == 200


# Events

KINDS = (
    *("session.update", "input_audio_buffer.append", "input_audio_buffer.commit", "conversation.item.create"),
    *("conversation.item.truncate", "conversation.item.delete", "conversation.item.retrieve", "response.create"),
    *("response.cancel", "output_audio_buffer.clear", "session.created", "error", "no.such.event", "x" * 5000),
)
FIELDS = (
    "event_id",
    "session",
    "audio",
    "item",
    "item_id",
    "previous_item_id",
    "response",
    "response_id",
    "audio_end_ms",
)
LEAVES: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        1.5,
        10**30,
        -(10**18),
        "",
        "x",
        "A" * 3000,
        "\0",
        "\u202e\ufeff",
        "💥",
        "\ud800",
        [],
        {},
        [[]],
    ),
    *(
        {"type": 5},
        {"type": "message", "role": 5},
        {"type": "realtime", "tools": 5},
        {"audio": {"input": []}},
        ["a"] * 50,
    ),
)
NO_EVENTS = (
    *(b"", b" ", b"{", b"}", b"[]", b"null", b"5", b'"x"', b"{}", b'{"type":5}', b'{"type":null}', b'{"type":""}'),
    *(b'{"type":["a"]}', b'{"type":"\\ud800"}', b'{"type":"a",}', b"{'type':'a'}", b'{"type":"a"}{"type":"b"}', b"NaN"),
    *(
        b"[" * 20_000,
        b'{"type":' * 5000,
        b'{"type":"a","event_id":5}',
        b'{"type":"a","event_id":{}}',
        b"\xef\xbb\xbf{}",
    ),
    *(b'{"type":"input_audio_buffer.append","audio":"AAAA"', b'{"type":"input_audio_buffer.append","audio":"AA"A"}'),
)


def bad_event(source: random.Random) -> bytes:
    """No event, or one that is wrong somewhere."""
    if source.random() < 0.3:
        return source.choice(NO_EVENTS)
    made = {"type": source.choice(KINDS)}
    made |= {source.choice(FIELDS): source.choice(LEAVES) for _ in range(source.randint(0, 4))}
    text = json.dumps(made).encode()
    if source.random() < 0.2:
        place = source.randrange(len(text))
        text = text[:place] + source.choice([b"", b"\x01", b'"', b"\\", b",", b"{"]) + text[place + 1 :]
    return text


@pytest.mark.parametrize("leg", ["client", "side leg", "voice"])
async def test_bad_events_are_answered_and_the_call_goes_on(
    nodes: Nodes, caplog: pytest.LogCaptureFixture, leg: str
) -> None:
    """One after the other in few calls: what one of them did to it would show in the next."""
    source = random.Random(SEED + ["client", "side leg", "voice"].index(leg))
    groups = [[bad_event(source) for _ in range(40)] for _ in range(BAD_EVENTS // 3 // 40 + 1)]
    async with watched(nodes, caplog) as node:
        for number, group in enumerate(groups):
            call = await nodes.connect(node.node, "/voice?model=sim" if leg == "voice" else "/v1/realtime?model=sim")
            await event(call, "session.created")
            spoken = call
            if leg == "side leg":
                call_id = call._response.headers["X-Call-Id"]
                await until(lambda call_id=call_id: _is_known(nodes, node.node, call_id))
                headers = {"Authorization": f"Bearer {token('control')}"}
                url = f"{node.node.url}/v1/realtime?call_id={call_id}"
                spoken = await nodes.http.ws_connect(url, headers=headers, max_msg_size=0)
                await event(spoken, "session.created")
            told = 0
            for each in group:
                await spoken.send_frame(each, aiohttp.WSMsgType.TEXT)
            await spoken.send_json({"type": "input_audio_buffer.clear", "event_id": "last"})
            async with asyncio.timeout(20):
                while (found := await spoken.receive_json())["type"] != "input_audio_buffer.cleared":
                    told += found["type"] == "error"
            assert told >= sum(each in NO_EVENTS for each in group)
            await call.close()
            if leg == "side leg":
                await closed(spoken)
            if number == 1:
                node.begin_to_measure()
        node.check({"💥", "A" * 100})
