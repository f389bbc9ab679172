"""The public port before any token: limits of an address, heads and bodies without end, and what they are answered.

Addresses are those of 127.0.0.0/8; a trusted proxy is a peer that connects from 127.0.0.9.
"""

import asyncio
import gc
import json
import logging
import os
import random
import resource
import ssl
import time
import weakref
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from structlog.testing import capture_logs

from relay.api.binding import answer_refusal
from relay.app import Node
from relay.config import Settings
from relay.core.waiting import LEAVE_SECONDS, LINGER_SECONDS
from relay.devcert import make_certificate
from relay.front import Front
from tests.support.fleet import Nodes, bearer, closed, token, until

PROXY = "127.0.0.9"
HEADS = 1500
SHORT = {"HANDSHAKE_SECONDS": "0.4"}  # looked at every 0.1 s
GET = b"GET /openapi.json HTTP/1.1\r\nHost: relay\r\n\r\n"
UPGRADE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str | None:
        """Of the error, which has the shape of all errors."""
        if self.status < 400:
            return None
        assert self.headers["content-type"] == "application/json; charset=utf-8"
        error = json.loads(self.body)["error"]
        assert set(error) == {"type", "code", "message", "param"}
        return str(error["code"])


class Peer:
    """A client that writes its bytes itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, request: bytes = GET) -> Answer:
        """Send a request and read its answer."""
        self.writer.write(request)
        return await self.answer()

    async def answer(self) -> Answer:
        """Read one answer."""
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.rstrip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            return Answer(
                int(first.split()[1]), headers, await self.reader.readexactly(int(headers.get("content-length", 0)))
            )

    async def cut(self, seconds: float = 5.0) -> bytes:
        """Until the node ends the connection; returns what came before."""
        async with asyncio.timeout(seconds):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""

    async def send_on(self, data: bytes, piece: int = 16_384) -> None:
        """Send all that the node takes; what comes back can still be read."""
        try:
            for start in range(0, len(data), piece):
                self.writer.write(data[start : start + piece])
                await self.writer.drain()
        except ConnectionError:
            return


@asynccontextmanager
async def peer(node: Node, address: str = "127.0.0.1", **options: Any) -> AsyncIterator[Peer]:
    """Connect from an address."""
    port = int(node.url.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0), **options)
    try:
        yield Peer(reader, writer)
    finally:
        writer.transport.abort()


_of_others: weakref.WeakSet[Front] = weakref.WeakSet()


@pytest.fixture(autouse=True)
def _forget_others() -> None:
    """What nodes of earlier tests left is none of this one's."""
    _of_others.update(each for each in gc.get_objects() if isinstance(each, Front))


def front_of_node() -> Front:
    """Find the node's among this process's objects."""
    (found,) = (each for each in gc.get_objects() if isinstance(each, Front) and each not in _of_others)
    return found


def get(path: str = "/openapi.json", *lines: str) -> bytes:
    """A request without a body."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: relay", *lines, "", ""]).encode()


def upgrade(*lines: str, path: str = "/v1/realtime?model=sim") -> bytes:
    """A request for a WebSocket."""
    return get(path, *UPGRADE.strip().split("\r\n"), *lines)


def authorized(*scope: str) -> str:
    """The line that carries a good token."""
    return f"Authorization: Bearer {token(*scope)}"


# Connections of an address


async def test_connections_over_the_limit_are_told_so_and_a_flood_is_cut(nodes):
    """Another address is not affected, and who leaves makes room."""
    node = await nodes.add(IP_CONNECTIONS="3")
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(peer(node)) for _ in range(3)]
        assert [(await one.ask()).status for one in peers] == [200] * 3
        over = [await stack.enter_async_context(peer(node)) for _ in range(3)]
        for one in over[:2]:
            answer = await one.ask(get("/nowhere"))
            assert (answer.status, answer.code) == (429, "too_many_connections")
            assert int(answer.headers["retry-after"]) > 0
            assert answer.headers["connection"] == "close"
            assert await one.cut() == b""
        late = [await stack.enter_async_context(peer(node)) for _ in range(6)]
        cut = [each for each in late if await is_cut(each)]
        assert len(cut) == 4  # three within, the last of those over, two more: the double
        async with peer(node, "127.0.0.2") as other:
            assert (await other.ask()).status == 200
        assert [(await one.ask()).status for one in peers] == [200] * 3
        for one in (*over, *late, peers[0]):
            one.writer.transport.abort()
        await until(lambda: front_of_node().connections == 2)
        async with peer(node) as next_one:
            assert (await next_one.ask()).status == 200


async def is_cut(one: Peer) -> bool:
    """Whether it gets no answer."""
    try:
        return (await one.ask()).status == 0
    except (asyncio.IncompleteReadError, ConnectionError):
        return True


async def test_one_that_came_too_many_is_served_once_the_others_are_gone(nodes):
    """It was not over for ever."""
    node = await nodes.add(IP_CONNECTIONS="1")
    async with peer(node) as late:
        async with peer(node) as first:
            assert (await first.ask()).code == "too_many_connections"
        await until(lambda: front_of_node().connections == 1)
        assert (await late.ask()).status == 200
        assert (await late.ask()).status == 200


async def test_a_websocket_counts_until_its_leg_is_gone(nodes):
    """For most of its life a call is no connection of aiohttp's."""
    node = await nodes.add(IP_CONNECTIONS="2")
    first, second = await nodes.connect(node), await nodes.connect(node)
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await nodes.connect(node)
    assert refused.value.status == 429
    await first.close()
    await until(lambda: front_of_node().connections == 1)
    third = await nodes.connect(node)
    await third.close()
    await second.close()
    await until(lambda: front_of_node().connections == 0)


@pytest.mark.parametrize("how", ["bad token", "client gone"])
async def test_an_upgrade_that_came_to_nothing_counts_no_more(nodes, how):
    """Else an address would use up its limit for good."""
    node = await nodes.add(IP_CONNECTIONS="1")
    for _ in range(5):
        async with peer(node) as one:
            one.writer.write(upgrade("Authorization: Bearer no" if how == "bad token" else authorized("call")))
            if how == "bad token":
                assert (await one.answer()).status == 401
        await until(lambda: front_of_node().connections == 0)


async def test_a_node_has_a_limit_of_its_own(nodes):
    """Whoever has many addresses."""
    front = Front(Settings.from_env(nodes.environment("a", MAX_CALLS="3", IP_CONNECTIONS="50")), answer_refusal)
    guests = [front.meet(f"203.0.{number // 200}.{number % 200}") for number in range(2000)]
    assert sum(guest is not None for guest in guests) == front.connections == 2 * 3 + 1024
    assert front.turned_away["full"] == 2000 - front.connections


# Behind a proxy


async def test_behind_a_trusted_proxy_each_client_has_its_own_limit(nodes):
    """The proxy's own connections are as many as it wants, and stay when one of its clients is refused."""
    node = await nodes.add(IP_CONNECTIONS="2", TRUSTED_PROXIES=f"{PROXY}/32,10.0.0.0/8")
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(peer(node, PROXY)) for _ in range(10)]
        assert [(await one.ask(get("/openapi.json", "X-Forwarded-For: 203.0.113.7"))).status for one in peers] == [
            200
        ] * 10
        line = "X-Forwarded-For: 1.2.3.4, 203.0.113.7, 10.0.0.1"
        for one in peers[:2]:
            assert (await one.ask(upgrade(line, authorized("call")))).status == 101
        for one in peers[2:4]:
            answer = await one.ask(upgrade(line, authorized("call")))
            assert (answer.status, answer.code) == (429, "too_many_connections")
            assert "connection" not in answer.headers
            assert (await one.ask(upgrade("X-Forwarded-For: 203.0.113.8", authorized("call")))).status == 101
        peers[0].writer.transport.abort()
        await until(lambda: front_of_node().connections == 9)
        assert (await peers[4].ask(upgrade(line, authorized("call")))).status == 101


async def test_a_header_of_somebody_who_is_no_trusted_proxy_changes_nothing(nodes):
    """Else a flood would come from another address each time. The operator is told once, in case it is a proxy."""
    node = await nodes.add(IP_STARTS_PER_MINUTE="3", TRUSTED_PROXIES=f"{PROXY}/32")
    with capture_logs() as logs:
        async with peer(node, "127.0.0.2") as one:
            statuses = [
                (await one.ask(get("/openapi.json", f"X-Forwarded-For: 203.0.113.{number}, {PROXY}"))).status
                for number in range(6)
            ]
    assert statuses == [200] * 3 + [429] * 3
    assert [entry["limit"] for entry in logs if entry["event"] == "proxy_not_trusted"] == ["starts"]


async def test_what_a_client_writes_before_the_proxy_changes_nothing(nodes):
    """The rightmost address is what the proxy saw."""
    node = await nodes.add(IP_STARTS_PER_MINUTE="3", TRUSTED_PROXIES=f"{PROXY}/32")
    async with peer(node, PROXY) as one:
        lines = [f"X-Forwarded-For: {spoofed}, 203.0.113.7" for spoofed in ("1.1.1.1", "2.2.2.2", "x", "", PROXY)]
        assert [(await one.ask(get("/openapi.json", line))).status for line in lines] == [200] * 3 + [429] * 2
        assert (await one.ask(get("/openapi.json", "X-Forwarded-For: 203.0.113.8"))).status == 200


# Starts


async def test_starts_over_the_limit_are_refused_before_the_token_is_read(nodes):
    """Whatever is asked for, on however many connections, with when to come again."""
    node = await nodes.add(IP_STARTS_PER_MINUTE="4", ALLOWED_ORIGINS="https://app.example")
    for number in range(6):
        async with peer(node) as one:
            answer = await one.ask(upgrade("Authorization: Bearer no", "Origin: https://app.example"))
            assert (answer.status, answer.code) == ((401, "invalid_api_key"), (429, "too_many_requests"))[number > 3]
    assert 1 <= int(answer.headers["retry-after"]) <= 15
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert front_of_node().turned_away["starts"] == 2


async def test_a_request_with_a_good_token_is_no_start_of_its_address(nodes):
    """A backend puts thousands of messages in; a plan limits them. A WebSocket is one, whoever asks."""
    node = await nodes.add(IP_STARTS_PER_MINUTE="3")
    async with peer(node) as one:
        request = get("/v1/realtime/calls", authorized("read"))
        assert {(await one.ask(request)).status for _ in range(50)} == {200}
        assert [(await one.ask(get("/v1/realtime/calls"))).status for _ in range(4)] == [401, 401, 401, 429]
        assert (await one.ask(request)).status == 429
    async with AsyncExitStack() as stack:
        statuses = []
        for _ in range(5):
            one = await stack.enter_async_context(peer(node, "127.0.0.3"))
            statuses.append((await one.ask(upgrade(authorized("call")))).status)
        assert statuses == [101] * 3 + [429] * 2


async def test_a_flood_of_upgrades_costs_what_is_allowed(nodes):
    """All at once, good tokens: so many calls and no more."""
    node = await nodes.add(IP_STARTS_PER_MINUTE="8", IP_CONNECTIONS="100")

    async def knock(stack: AsyncExitStack) -> int:
        one = await stack.enter_async_context(peer(node))
        return (await one.ask(upgrade(authorized("call")))).status

    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(knock(stack)) for _ in range(60)]
    assert sorted(task.result() for task in asked) == [101] * 8 + [429] * 52
    await until(lambda: front_of_node().connections == 0)


async def test_who_never_gets_so_far_as_a_request_is_cut_in_the_end(nodes):
    """Each garbled connection costs an answer, each TLS handshake more; beyond the limit they get none."""
    node = await nodes.add(IP_STARTS_PER_MINUTE="3")
    answers = []
    for _ in range(7):
        async with peer(node) as one:
            one.writer.write(b"\x16\x03\x01 garbage\r\n\r\n")
            answers.append(bool(await one.cut()))
        await until(lambda: front_of_node().connections == 0)
    assert answers == [True] * 4 + [False] * 3
    assert front_of_node().turned_away["flood"] == 3
    async with peer(node, "127.0.0.2") as other:
        assert (await other.ask()).status == 200


# Time


async def timed(waiting: Awaitable[Any]) -> tuple[float, Any]:
    """How long it took, and what came of it."""
    started = time.monotonic()
    found = await waiting
    return time.monotonic() - started, found


async def test_a_connection_that_says_nothing_is_cut(nodes):
    """Without a word: it asked for nothing."""
    node = await nodes.add(**SHORT)
    async with peer(node) as one:
        seconds, found = await timed(one.cut())
        assert (0.3 < seconds < 2.0, found) == (True, b"")


async def test_a_head_that_comes_byte_by_byte_is_cut_in_time(nodes):
    """However steadily it comes, and also on a connection that was used before."""
    node = await nodes.add(**SHORT)
    async with peer(node) as one:
        for _ in range(2):
            if one.reader.at_eof():
                break
            started = time.monotonic()
            for byte in get("/" + "x" * 400):
                one.writer.write(bytes([byte]))
                await asyncio.sleep(0.02)
                if one.reader._buffer:
                    break
            assert 0.3 < time.monotonic() - started < 2.0
            answer = await one.answer()
            assert (answer.status, answer.code) == (408, "request_timeout")
            assert await one.cut(LEAVE_SECONDS + 2) == b""
    async with peer(node) as used:
        assert (await used.ask()).status == 200
        used.writer.write(b"GET / HT")
        answer = await used.answer()
        assert (answer.status, answer.code) == (408, "request_timeout")
    await until(lambda: front_of_node().connections == 0)
    assert front_of_node().turned_away["slow_head"] == 2


async def test_a_connection_is_kept_between_requests_longer_than_a_head_may_take(nodes):
    """Browsers and proxies use it again; it counts once."""
    node = await nodes.add(IP_CONNECTIONS="1", **SHORT)
    async with peer(node) as one:
        for _ in range(20):
            assert (await one.ask()).status == 200
        assert front_of_node().connections == 1
        await asyncio.sleep(1.0)  # nothing announces that nothing happens
        assert (await one.ask()).status == 200
        assert (await one.ask(GET + GET)).status == 200
        assert (await one.answer()).status == 200


def post(length: int, *lines: str, path: str = "/v1/realtime/calls/rtc_iad_x/items") -> bytes:
    """The head of a request with a body."""
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: relay", f"Content-Length: {length}", *lines, "", ""]).encode()


async def test_a_body_that_does_not_come_is_answered_with_408(nodes, caplog):
    """Its bytes, too, may come one by one; without a token it is answered at once, and not waited for long."""
    node = await nodes.add(**SHORT)
    async with peer(node) as one:
        one.writer.write(post(1000, authorized("control")))
        started = time.monotonic()
        while not one.reader._buffer and time.monotonic() - started < 5.0:
            one.writer.write(b"x")
            await asyncio.sleep(0.02)
        assert 0.3 < time.monotonic() - started < 2.0
        answer = await one.answer()
        assert (answer.status, answer.code) == (408, "request_timeout")
        assert answer.headers["connection"] == "close"
        await one.cut(2 * LINGER_SECONDS)
    async with peer(node) as one:
        assert (await one.ask(post(1000))).status == 401
        seconds, _ = await timed(one.cut(2 * LINGER_SECONDS + 2))
        assert seconds > 1.0
    assert front_of_node().turned_away["slow_body"] == 1
    assert caplog.records == []  # aiohttp would report what it reads in vain


async def test_a_body_in_two_parts_is_whole(nodes):
    """Slow is not late."""
    node = await nodes.add(**SHORT)
    async with peer(node) as one:
        for _ in range(2):
            one.writer.write(post(4, authorized("control")))
            await asyncio.sleep(0.1)
            answer = await one.ask(b"nope")
            assert (answer.status, answer.code) == (400, "invalid_json")


async def test_a_reader_that_takes_nothing_is_cut(nodes):
    """What waits to be sent to it is this node's memory."""
    node = await nodes.add(STALL_SECONDS="0.5", IP_CONNECTIONS="0", IP_STARTS_PER_MINUTE="0")
    async with peer(node, limit=1024) as one:
        one.writer.transport.pause_reading()
        while front_of_node().turned_away["slow_reader"] == 0:
            one.writer.write(GET * 20)
            await asyncio.sleep(0.05)
        await until(lambda: front_of_node().connections == 0)


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("cert"))


async def add_tls(nodes: Nodes, certificate: tuple[Path, Path], **env: str) -> Node:
    """A node that serves TLS."""
    return await nodes.add(TLS_CERT=str(certificate[0]), TLS_KEY=str(certificate[1]), **env)


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02", GET], ids=["nothing", "half a hello", "plain HTTP"])
async def test_a_tls_handshake_that_is_never_finished_is_cut_and_counted_meanwhile(nodes, certificate, said):
    """It costs a socket and TLS's buffers before there is a request."""
    node = await add_tls(nodes, certificate, IP_CONNECTIONS="2", **SHORT)
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(peer(node)) for _ in range(4)]
        for one in peers:
            one.writer.write(said)
        if said != GET:  # which fails at once
            async with peer(node) as flood:
                seconds, found = await timed(flood.cut())
                assert (seconds < 0.3, found) == (True, b"")
        for one in peers:
            seconds, _ = await timed(one.cut())
            assert seconds < 2.0
    await until(lambda: front_of_node().connections == 0)
    context = ssl.create_default_context(cafile=certificate[0])
    async with peer(node, ssl=context, server_hostname="localhost") as one:
        assert (await one.ask()).status == 200
        assert front_of_node().connections == 1
        one.writer.write(b"GET / HT")
        assert (await one.answer()).code == "request_timeout"
    await until(lambda: front_of_node().connections == 0)


async def test_a_call_over_tls_counts_until_it_is_gone(nodes, certificate):
    """As one in the clear does."""
    node = await add_tls(nodes, certificate, IP_CONNECTIONS="1")
    context = ssl.create_default_context(cafile=certificate[0])
    url = node.url.replace("127.0.0.1", "localhost")
    call = await nodes.http.ws_connect(f"{url}/v1/realtime?model=sim", headers=bearer(token()), ssl=context)
    async with peer(node, ssl=context, server_hostname="localhost") as one:
        assert (await one.ask()).code == "too_many_connections"
    await call.close()
    await until(lambda: front_of_node().connections == 0)


# Size and shape

TOKEN_LINE = "Authorization: Bearer eyJ-not-for-any-log"
LARGE = {
    "URL": (get("/" + "x" * (1 << 20), TOKEN_LINE), 414, "url_too_long"),
    "URL of 10 KB": (get("/" + "x" * 10_000, TOKEN_LINE), 414, "url_too_long"),
    "URL without end": (b"GET /" + b"x" * (1 << 20), 414, "url_too_long"),
    "head": (get("/", TOKEN_LINE, *(f"X-{number}: {'y' * 1000}" for number in range(1000))), 431, "headers_too_large"),
    "one header": (get("/", f"X: {'y' * 20_000}", TOKEN_LINE), 431, "headers_too_large"),
    "header without end": (get("/", TOKEN_LINE)[:-4] + b"\r\nX: " + b"y" * (1 << 20), 431, "headers_too_large"),
    "10,000 headers": (get("/", TOKEN_LINE, *(["a: b"] * 10_000)), 431, "headers_too_large"),
    "130 headers": (get("/", TOKEN_LINE, *(["a: b"] * 130)), 431, "headers_too_large"),
    "body": (post(2 << 20, authorized("control")) + bytes(2 << 20), 413, "body_too_large"),
    "chunked body": (
        post(0, authorized("control")).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        + (b"10000\r\n" + bytes(65_536) + b"\r\n") * 32,
        413,
        "body_too_large",
    ),
}


@pytest.mark.parametrize(("request_bytes", "status", "code"), LARGE.values(), ids=LARGE)
@pytest.mark.parametrize("piece", [16_384, 700], ids=["in large pieces", "in small ones"])
async def test_what_is_too_large_is_answered_as_such(nodes, request_bytes, status, code, piece):
    """A client that still sends can read it; what it then sends is thrown away."""
    node = await nodes.add()
    async with peer(node) as one, asyncio.TaskGroup() as tasks:
        sending = tasks.create_task(one.send_on(request_bytes, piece))
        answer = await one.answer()
        assert (answer.status, answer.code) == (status, code)
        assert answer.headers["connection"] == "close"
        sending.cancel()
    await until(lambda: front_of_node().connections == 0)


BROKEN = {
    "no HTTP": b"hello there\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n" + TOKEN_LINE.encode() + b"\r\n\r\n",
    "version": b"GET / HTTP/9.9\r\nHost: h\r\n" + TOKEN_LINE.encode() + b"\r\n\r\n",
    "space in a name": get("/", "X Y: z", TOKEN_LINE),
    "zero": get("/", TOKEN_LINE + "\0"),
    "two lengths": get("/", "Content-Length: 1", "Content-Length: 2", TOKEN_LINE),
    "length and chunks": get("/", "Content-Length: 1", "Transfer-Encoding: chunked", TOKEN_LINE),
    "negative length": get("/", "Content-Length: -1", TOKEN_LINE),
    "length of letters": get("/", "Content-Length: x", TOKEN_LINE),
    "folded": get("/", "X: y\r\n z", TOKEN_LINE + "\r\n\tmore"),
}


@pytest.mark.parametrize("request_bytes", BROKEN.values(), ids=BROKEN)
async def test_what_is_no_request_is_answered_as_such_and_not_logged(nodes, caplog, request_bytes):
    """aiohttp would write what came into the log, tokens and all, and answer with a page of text."""
    caplog.set_level(logging.DEBUG)
    node = await nodes.add()
    with capture_logs() as logs:
        async with peer(node) as one:
            answer = await one.ask(request_bytes)
            assert (answer.status, answer.code) == (400, "bad_request")
            assert b"eyJ" not in answer.body
            assert answer.headers["connection"] == "close"
    written = repr(logs) + caplog.text
    assert "eyJ" not in written
    assert "hello" not in written
    assert "Traceback" not in written
    assert front_of_node().turned_away["unreadable"] == 1


async def test_garbage_on_a_connection_that_was_used_is_answered_as_such(nodes):
    """As on a new one."""
    node = await nodes.add()
    async with peer(node) as one:
        assert (await one.ask()).status == 200
        assert (await one.ask(b"garbage\r\n\r\n")).code == "bad_request"


@pytest.mark.parametrize(
    "body",
    [b"xyz\r\n", b"5\r\nhelloX", b"-1\r\n", b"ffffffffffffffffff\r\n"],
    ids=["no length", "no end", "negative", "endless"],
)
async def test_a_body_that_is_not_encoded_as_it_says_is_answered_with_400(nodes, body):
    """It is the client's mistake, and no traceback in our log."""
    node = await nodes.add()
    head = post(0, authorized("control")).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    with capture_logs() as logs:
        async with peer(node) as one:
            answer = await one.ask(head + body)
            assert answer.status == 400
            assert answer.code in {"invalid_body", "bad_request"}
    assert [entry for entry in logs if entry["log_level"] == "error"] == []


async def test_a_compressed_body_that_is_none_is_answered_with_400(nodes):
    """And one that grows is stopped at the limit of all bodies."""
    import zlib

    node = await nodes.add()
    packed = zlib.compress(bytes(64 << 20))
    for body, status in ((b"no deflate", 400), (packed, 413)):
        async with peer(node) as one:
            answer = await one.ask(post(len(body), authorized("control"), "Content-Encoding: deflate") + body)
            assert answer.status == status
            assert answer.code in {"invalid_body", "body_too_large"}


async def test_a_client_that_waits_to_be_told_to_send_its_body_is_told(nodes):
    """curl does; other expectations are nothing to us."""
    node = await nodes.add()
    for expected in ("100-continue", "200-maybe"):
        async with peer(node) as one:
            one.writer.write(post(4, authorized("control"), f"Expect: {expected}"))
            if expected == "100-continue":
                assert (await one.answer()).status == 100
            assert (await one.ask(b"nope")).code == "invalid_json"


async def test_a_flood_of_heads_without_end_takes_little_memory(nodes):
    """What a connection may keep in the node before its request is 32 KiB."""
    node = await nodes.add(HANDSHAKE_SECONDS="30")
    head = get("/", *(f"X-{number}: {'y' * 1000}" for number in range(31)))[:-2]
    before = resident()
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(peer(node)) for _ in range(200)]
        for one in peers:
            await one.send_on(head)
        await until(lambda: front_of_node().connections == 200)
        await asyncio.sleep(0.5)  # for what is in the sockets
        assert resident() - before < 40 << 20
        for one in peers:
            one.writer.write(b"z" * 65_536)
        assert {(await one.answer()).status for one in peers} == {431}


def resident() -> int:
    """Bytes of this process's memory that are in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def test_any_head_is_answered_or_cut_and_none_is_an_error_of_ours(nodes, caplog):
    """Each a good one that was changed at random; one that now lacks its end is answered when its time is over."""
    node = await nodes.add(ALLOWED_ORIGINS="https://app.example", **SHORT)
    source, good = random.Random(6), upgrade(TOKEN_LINE, "Origin: https://app.example")
    heads, statuses = iter([changed(good, source) for _ in range(HEADS)]), set[int]()

    async def knock() -> None:
        for head in heads:
            async with peer(node) as one:
                one.writer.write(head)
                async with asyncio.timeout(5):
                    found = await one.reader.read(12)
                assert not found or found.startswith(b"HTTP/")
                statuses.add(int(found[9:]) if found else 0)

    with capture_logs() as logs:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(20):
                tasks.create_task(knock())
    assert statuses <= {0, 400, 401, 403, 404, 405, 408, 414, 426, 431}
    assert {400, 401, 408, 426, 431} <= statuses
    assert [entry for entry in logs if entry["log_level"] == "error"] == []
    assert "eyJ" not in repr(logs) + caplog.text
    await until(lambda: front_of_node().connections == 0)


def changed(data: bytes, source: random.Random) -> bytes:
    """Put bytes in, take some out, or have them twice, in a few places."""
    for _ in range(source.randint(1, 4)):
        start = source.randrange(len(data) + 1)
        end = min(start + source.choice((0, 1, 2, 20)), len(data))
        put = source.choice(
            (
                b"",
                b"\0",
                b"\r",
                b"\n",
                b"\r\n",
                b"\r\n\r\n",
                b" ",
                b":",
                b"\xff\xfe",
                data[start:end] * 2,
                b"x" * 40_000,
            )
        )
        data = data[:start] + put + data[end:]
    return data


# The port


async def test_a_node_without_descriptors_serves_those_who_wait_when_it_has_some(nodes):
    """It neither spins nor gives the port up."""
    node = await nodes.add()
    front = front_of_node()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with peer(node) as early:
        assert (await early.ask()).status == 200
        async with peer(node) as waiting:
            await until(lambda: front.connections == 2)
        await until(lambda: front.connections == 1)
        port = int(node.url.rsplit(":", 1)[1])
        with __import__("socket").socket() as knocking:
            knocking.setblocking(False)
            lowest = os.dup(0)
            os.close(lowest)
            with capture_logs() as logs:
                try:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
                    await asyncio.get_running_loop().sock_connect(knocking, ("127.0.0.1", port))
                    await until(lambda: any(entry["event"] == "accept_failed" for entry in logs))
                    used = time.process_time()
                    await asyncio.sleep(0.3)
                    assert time.process_time() - used < 0.2
                    assert sum(entry["event"] == "accept_failed" for entry in logs) == 1
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await asyncio.get_running_loop().sock_sendall(knocking, GET)
            async with asyncio.timeout(5):
                assert (await asyncio.get_running_loop().sock_recv(knocking, 15)).startswith(b"HTTP/1.1 200")
        del waiting


async def test_a_node_that_stops_waits_for_no_handshake(nodes, certificate):
    """Nor for a head that never comes."""
    env = {"TLS_CERT": str(certificate[0]), "TLS_KEY": str(certificate[1])}
    async with AsyncExitStack() as stack:
        async with nodes.node("a", **env) as node:
            half_open = await stack.enter_async_context(peer(node))
            context = ssl.create_default_context(cafile=certificate[0])
            silent = await stack.enter_async_context(peer(node, ssl=context, server_hostname="localhost"))
            await until(lambda: front_of_node().connections == 2)
            leaving = time.monotonic()
        assert time.monotonic() - leaving < 5.0
        await half_open.cut()
        await silent.cut()


async def test_a_call_outlives_every_deadline_of_http(nodes):
    """They end with the upgrade."""
    node = await nodes.add(IP_CONNECTIONS="1", STALL_SECONDS="0.5", **SHORT)
    call = await nodes.connect(node)
    await asyncio.sleep(1.5)  # nothing announces that nothing happens
    assert not call.closed
    assert front_of_node().connections == 1
    await call.close()
    assert (await closed(call))[0] == 1000
