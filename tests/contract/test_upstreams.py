"""Dialling on real sockets: what an upstream is told, what its refusals mean, and that nobody else is ever dialled."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import pytest
from websockets.asyncio.server import Request, ServerConnection, serve
from websockets.http11 import Response

from relay.core import realtime
from relay.core.actions import Side
from relay.core.frames import Close
from relay.legs import Leg
from relay.rulebook.upstreams import UpstreamConfig
from relay.stale import Nobody, let_go
from relay.upstream import DialError, Target, Upstreams


class Server:
    """An upstream that answers with a status, or upgrades; it keeps what it was asked."""

    def __init__(self) -> None:
        self.status = 101
        self.location = ""
        self.asked: list[Request] = []
        self.port = 0

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator["Server"]:
        server = cls()
        async with serve(server._talk, "127.0.0.1", 0, process_request=server._answer) as listening:
            server.port = listening.sockets[0].getsockname()[1]
            yield server

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/realtime"

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        self.asked.append(request)
        if self.status == 101:
            return None
        response = connection.respond(HTTPStatus(self.status), "no")
        if self.location:
            response.headers["Location"] = self.location
        return response

    async def _talk(self, ws: ServerConnection) -> None:
        await ws.wait_closed()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server.running() as running:
        yield running


def upstreams_of(configs: Mapping[str, UpstreamConfig], seconds: float = 2.0) -> Upstreams:
    context = ssl.create_default_context()
    return Upstreams(lambda: configs, dial_seconds=seconds, max_message=1 << 20, context=context, user_agent="relay/1")


def one(server: Server, **options: Any) -> dict[str, UpstreamConfig]:
    return {"one": UpstreamConfig("one", server.url, **options)}


async def dial(upstreams: Upstreams, target: Target) -> None:
    """Connect a leg, and let it go."""
    limits = {"max_message": 1 << 20, "write_bytes": 65_536, "socket_bytes": 65_536}
    leg = Leg(Side.MODEL, Nobody(), lambda _: None, realtime.is_audio_delta, **limits)
    try:
        await upstreams.dial(target, leg)
    finally:
        let_go(leg, Close(1000, ""), 1.0)
    await leg.closed


async def test_an_upstream_is_told_its_key_its_model_and_who_asks(server):
    """And nothing of another's."""
    headers = (("api-key", "secret"), ("X-Tenant", "relay"))
    config = one(server, headers=headers, model_parameter="deployment", models={"gpt": "mine"})
    await dial(upstreams_of(config), Target("gpt", "transcription", "one"))
    (asked,) = server.asked
    assert asked.path == "/v1/realtime?deployment=mine&intent=transcription"
    told = {
        name: asked.headers.get_all(name) for name in ("api-key", "X-Tenant", "User-Agent", "Authorization", "Host")
    }
    host = [f"127.0.0.1:{server.port}"]
    assert told == {
        "api-key": ["secret"], "X-Tenant": ["relay"], "User-Agent": ["relay/1"], "Authorization": [], "Host": host
    }  # fmt: skip


@pytest.mark.parametrize(
    "model",
    [
        "@127.0.0.1:1/",
        "//evil.example",
        "m HTTP/1.1\r\nHost: evil.example\r\n\r\nGET /",
        "?#/../..",
        "%0d%0aX: y",
        "\ud800",
    ],
    ids=ascii,
)
async def test_a_name_of_a_model_arrives_as_one_value_of_the_query(server, model):
    """Whatever it looks like, it is dialled nowhere else and says nothing else."""
    await dial(upstreams_of(one(server)), Target(model, None, "one"))
    (asked,) = server.asked
    path, _, query = asked.path.partition("?model=")
    assert path == "/v1/realtime"
    assert set(query) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789%+-._~")
    assert asked.headers.get_all("Host") == [f"127.0.0.1:{server.port}"]
    assert "X" not in asked.headers


@pytest.mark.parametrize("status", [301, 302, 307, 308], ids=str)
async def test_a_redirect_is_not_followed(server, status):
    """The key would go where an upstream says, and an upstream may be taken over."""
    async with Server.running() as other:
        server.status, server.location = status, other.url
        with pytest.raises(DialError) as refused:
            await dial(upstreams_of(one(server)), Target("m", None, "one"))
        assert refused.value.code == "upstream_failed"
        assert other.asked == []


async def test_an_upstream_that_is_in_no_rulebook_is_not_dialled(server):
    """A call keeps the names with which it was admitted; the rulebook may have been read again since."""
    upstreams = upstreams_of({})
    with pytest.raises(DialError) as refused:
        await dial(upstreams, Target("m", None, "one"))
    assert refused.value.code == "upstream_unknown"
    assert server.asked == []


async def test_of_the_upstreams_of_an_agent_those_count_that_the_rulebook_still_has(server):
    """A call on one that was removed goes on; its next model leg is had at another, at last at the default one."""
    configs = one(server) | {"two": UpstreamConfig("two", server.url)}
    upstreams = upstreams_of(configs)
    assert upstreams.known(("one", "two")) == ["one", "two"]
    del configs["one"]
    assert upstreams.known(("one", "two")) == ["two"]
    del configs["two"]
    assert upstreams.known(("one", "two")) == ["default"]


async def test_a_rulebook_that_is_read_again_holds_from_the_next_dial_on(server):
    """A new key needs no restart."""
    configs = one(server, headers=(("api-key", "old"),))
    upstreams = upstreams_of(configs)
    await dial(upstreams, Target("m", None, "one"))
    configs |= one(server, headers=(("api-key", "new"),))
    await dial(upstreams, Target("m", None, "one"))
    assert [each.headers["api-key"] for each in server.asked] == ["old", "new"]


@pytest.mark.parametrize(
    ("status", "remembered"),
    [(401, True), (429, True), (500, True), (503, True), (302, True), (400, False), (403, False), (404, False)],
)
async def test_a_refusal_is_remembered_unless_it_may_be_for_what_the_call_asks(server, status, remembered):
    """A model that the relay's key may not use is 403 or 404: one tenant's choice, no outage."""
    server.status = status
    configs = one(server) | {"two": UpstreamConfig("two", server.url)}
    upstreams = upstreams_of(configs)
    with pytest.raises(DialError):
        await dial(upstreams, Target("m", None, "one"))
    assert upstreams.order(["one", "two"]) == (["two", "one"] if remembered else ["one", "two"])


@pytest.mark.parametrize("how", ["nobody listens", "silence", "no TLS"])
async def test_a_server_that_is_not_there_is_remembered_until_it_serves(server, how):
    """Whoever asks next asks another one first."""
    async with await asyncio.start_server(_swallow, "127.0.0.1", 0) as silent:
        url = {
            "nobody listens": "ws://127.0.0.1:1/",
            "silence": f"ws://127.0.0.1:{silent.sockets[0].getsockname()[1]}/",
            "no TLS": server.url.replace("ws:", "wss:"),
        }[how]
        configs = {"one": UpstreamConfig("one", url), "two": UpstreamConfig("two", server.url)}
        upstreams = upstreams_of(configs, seconds=0.3)
        with pytest.raises(DialError) as refused:
            await dial(upstreams, Target("m", None, "one"))
        assert "127.0.0.1" not in str(refused.value), "where it is is the operator's business"
        assert upstreams.order(["one", "two"]) == ["two", "one"]
        upstreams.serve("one")
        assert upstreams.order(["one", "two"]) == ["one", "two"]


async def _swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
