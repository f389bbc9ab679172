"""An agent with several upstreams: a call begins at one that serves, and goes on at another when its own is lost."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest
from websockets.utils import accept_key

from ops.simulator.server import Settings as SimulatorSettings
from ops.simulator.server import Simulator, serve
from relay.app import Node
from relay.call import Services
from tests.e2e.test_resume import ASK, ends, known, say, talk
from tests.support.fleet import Nodes, closed, event, session_of, until

Socket = aiohttp.ClientWebSocketResponse
REDIALS = {"REDIAL_SECONDS": "10", "DIAL_SECONDS": "0.5", "APPLY_SECONDS": "0.5"}
BOOK = """
[agents.default]
upstreams = [{names}]
transcription = false

[upstreams.one]
url = "{one}"
headers = {{Authorization = "Bearer key-of-one"}}
models = {{sim = "sim-of-one"}}

[upstreams.two]
url = "{two}"
headers = {{Authorization = "Bearer key-of-two"}}
models = {{sim = "sim-of-two"}}
"""


class Site:
    """Nodes, and two simulators: the upstreams of their agent."""

    def __init__(self, nodes: Nodes, one: Simulator, two: Simulator) -> None:
        self.nodes, self.one, self.two = nodes, one, two

    async def node(self, *, one: str | None = None, names: str = '"one", "two"', **env: str) -> Node:
        """Start a node; ``one`` is the first upstream's URL where it is not its simulator's."""
        book = self.nodes.folder / "book.toml"
        book.write_text(BOOK.format(names=names, one=one or self.one.url, two=self.two.url))
        return await self.nodes.add(**REDIALS | {"CONFIG": str(book)} | env)

    async def faults(self, model: Simulator, **fault: Any) -> None:
        async with self.nodes.http.post(f"{model.http_url}/sim/faults", json={"count": 100, **fault}) as response:
            assert response.status < 300, await response.text()

    async def sessions(self, model: Simulator) -> list[dict[str, Any]]:
        listed = await self.nodes._get(f"{model.http_url}/sim/sessions")
        return [await self.nodes._get(f"{model.http_url}/sim/sessions/{each['id']}") for each in listed["data"]]

    async def failovers(self, node: Node) -> dict[str, int]:
        """What became of them, but for what did not happen."""
        async with self.nodes.http.get(node.ops_url + "/metrics") as response:
            lines = [line for line in (await response.text()).splitlines() if line.startswith("relay_upstream_fail")]
        found = {line.partition('"')[2].partition('"')[0]: int(float(line.split()[-1])) for line in lines}
        return {outcome: number for outcome, number in found.items() if number}


@pytest.fixture
async def site(nodes: Nodes) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        one, two = [
            await stack.enter_async_context(serve(SimulatorSettings(key=f"key-of-{name}"))) for name in ("one", "two")
        ]
        yield Site(nodes, one, two)


def lose(model: Simulator) -> None:
    """Cut the sessions that it has."""
    for connection in list(model._connections):
        connection.abort()


def services_of(client: Socket) -> Services:
    return session_of(client._response.headers["X-Call-Id"])._services


async def first_answer(client: Socket) -> list[dict[str, Any]]:
    """Say something at once, as SDKs do; returns all events up to the answer's end."""
    await client.send_json({"type": "session.update", "session": {"type": "realtime", "instructions": "Be kind."}})
    await client.send_json(say("My name is Ada.", "item_ada"))
    await client.send_json(ASK)
    events: list[dict[str, Any]] = []
    async with asyncio.timeout(10):
        while not events or events[-1]["type"] != "response.done":
            events.append(await client.receive_json())
    return events


def check_seamless(events: list[dict[str, Any]]) -> None:
    """Check that they are those of a call to which nothing happened."""
    kinds = [each["type"] for each in events]
    assert kinds[0] == "session.created"
    assert (kinds.count("session.created"), kinds.count("error")) == (1, 0)
    assert (kinds.count("response.created"), events[-1]["response"]["status"]) == (1, "completed")


REFUSALS: list[dict[str, Any]] = [
    *({"refuse": status} for status in (401, 404, 429, 500)),
    {"hang": True},
    {"close": 3000, "reason": "invalid_request_error.invalid_api_key"},
    {"close": 4000, "reason": "invalid_request_error.missing_model"},
    {"close": 1011},
    {"reset": True},
    {"malformed": "opcode"},
    {"error": "insufficient_quota"},
    {"error": "insufficient_quota", "close": 1000},
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=json.dumps)
async def test_a_call_begins_at_the_next_upstream_where_the_first_refuses_it(site: Site, refusal: Mapping[str, Any]):
    """Whether before the upgrade or right after it: the client sees one session, and no error."""
    await site.faults(site.one, **refusal)
    node = await site.node()
    client = await site.nodes.connect(node)
    check_seamless(await first_answer(client))
    (session,) = await site.sessions(site.two)
    assert [text for _, _, text in known(session)][0] == "My name is Ada."
    assert await site.failovers(node) == {"served": 1}
    await client.close()


@pytest.mark.parametrize("how", ["nobody listens", "no TLS", "no such host"])
async def test_a_call_begins_at_the_next_upstream_where_the_first_is_not_there(site: Site, how: str):
    """A server that is down, or a name that is gone, costs a call a moment, not its life."""
    url = {
        "nobody listens": "ws://127.0.0.1:1/v1/realtime",
        "no TLS": site.one.url.replace("ws://", "wss://"),
        "no such host": "ws://model.invalid/v1/realtime",
    }[how]
    node = await site.node(one=url)
    client = await site.nodes.connect(node)
    check_seamless(await first_answer(client))
    assert len(await site.sessions(site.two)) == 1
    await client.close()


@pytest.mark.parametrize(
    ("refusal", "avoided"),
    [({"refuse": 503}, True), ({"close": 3000}, True), ({"close": 1011}, True), ({"error": "insufficient_quota"}, True)]
    + [({"refuse": 404}, False), ({"close": 4000}, False), ({"error": "model_not_found"}, False)],
    ids=json.dumps,
)
async def test_an_upstream_that_failed_is_asked_last_for_a_while_unless_it_may_be_the_calls_doing(
    site: Site, refusal: Mapping[str, Any], avoided: bool
):
    """Later calls must not wait for a server that is down; nor may one client's odd model turn all others away."""
    await site.faults(site.one, **refusal, count=1)
    node = await site.node()
    for _ in range(2):
        client = await site.nodes.connect(node)
        check_seamless(await first_answer(client))
        await client.close()
    assert len(await site.sessions(site.two)) == (2 if avoided else 1)
    assert await site.failovers(node) == {"served": 1} | ({"avoided": 1} if avoided else {})


async def test_an_upstream_that_serves_again_is_asked_first_again(site: Site):
    """That one failed is known for half a minute, unless it turns out to be mended before."""
    await site.faults(site.one, refuse=503, count=1)
    node = await site.node()
    client = await site.nodes.connect(node)
    await event(client, "session.created")
    await client.close()
    await site.faults(site.two, refuse=503, count=1)
    for _ in range(2):
        client = await site.nodes.connect(node)
        check_seamless(await first_answer(client))
        await client.close()
    assert (len(await site.sessions(site.one)), len(await site.sessions(site.two))) == (2, 1)


async def test_every_upstream_gets_its_own_name_of_the_model_and_its_own_key(site: Site):
    """What one provider calls a model is no name to another; each of these servers takes no key but its own."""
    await site.faults(site.one, error="insufficient_quota", count=1)
    node = await site.node()
    client = await site.nodes.connect(node)
    check_seamless(await first_answer(client))
    (refused,), (session,) = await site.sessions(site.one), await site.sessions(site.two)
    assert (refused["query"]["model"], session["query"]["model"]) == ("sim-of-one", "sim-of-two")
    await client.close()


LAST: list[tuple[dict[str, Any], dict[str, Any], str, int, list[str]]] = [
    ({"refuse": 503}, {"refuse": 401}, "model_key", 1008, ["upstream_credentials_refused"]),
    ({"refuse": 401}, {"refuse": 429}, "model_busy", 1013, ["upstream_busy"]),
    ({"close": 3000}, {"close": 4000, "reason": "missing_model"}, "model_closed", 4000, []),
    ({"refuse": 404}, {"error": "insufficient_quota"}, "model_refused", 1008, ["insufficient_quota"]),
    ({"refuse": 401}, {"hang": True}, "model_unreachable", 1013, ["upstream_timeout"]),
]


@pytest.mark.parametrize(("first", "second", "why", "code", "errors"), LAST, ids=lambda value: json.dumps(value))
async def test_a_call_that_no_upstream_takes_ends_as_the_last_one_says(
    site: Site, first: Mapping[str, Any], second: Mapping[str, Any], why: str, code: int, errors: list[str]
):
    """Each was asked once, and the client hears one reason."""
    await site.faults(site.one, **first)
    await site.faults(site.two, **second)
    node = await site.node()
    client = await site.nodes.connect(node)
    found, events = await closed(client)
    assert (found, [each["error"]["code"] for each in events if each["type"] == "error"]) == (code, errors)
    assert (await ends(site.nodes, node, client._response.headers["X-Call-Id"]))["why"] == why
    assert await site.failovers(node) == {"failed": 1}
    for model in (site.one, site.two):
        assert (await site.nodes._get(f"{model.http_url}/sim/health"))["pending_faults"] == 99


# In a call that lives


async def test_a_call_whose_model_is_lost_goes_on_at_the_next_upstream(site: Site):
    """The conversation is rebuilt there; at the end of that session it goes back to the first."""
    node = await site.node()
    client = await site.nodes.connect(node)
    await event(client, "session.created")
    await talk(client, "My name is Ada.")
    lose(site.one)
    await talk(client, "What is my name?")
    (session,) = await site.sessions(site.two)
    assert [text for _, _, text in known(session)][0] == "My name is Ada."
    assert await site.failovers(node) == {"served": 1}
    other = await site.nodes.connect(node)
    check_seamless(await first_answer(other))
    assert len(await site.sessions(site.one)) == 2, "one lost connection is no outage: other calls still begin there"
    lose(site.two)
    await talk(client, "Still there?")
    assert len(await site.sessions(site.one)) == 3
    await client.close()
    await other.close()


@pytest.mark.parametrize(
    "refusal",
    [{"error": "insufficient_quota", "events": 1}, {"fail": "insufficient_quota"}, {"close": 4000, "events": 2}]
    + [{"error": "insufficient_quota", "close": 1011, "events": 8}, {"close": 3000, "events": 12}],
    ids=json.dumps,
)
async def test_a_model_that_refuses_only_when_it_is_asked_something_is_replaced_in_silence(
    site: Site, refusal: Mapping[str, Any]
):
    """An account without money opens sessions and fails responses: what was asked is asked again elsewhere."""
    await site.faults(site.one, **refusal)
    node = await site.node()
    client = await site.nodes.connect(node)
    await client.send_json(say("My name is Ada.", "item_ada"))
    await client.send_json(ASK)
    events: list[dict[str, Any]] = []
    async with asyncio.timeout(10):
        while not events or events[-1].get("response", {}).get("status") != "completed":
            events.append(await client.receive_json())
    kinds = [each["type"] for each in events]
    assert (kinds.count("session.created"), kinds.count("error")) == (1, 0)
    assert kinds.count("response.created") == kinds.count("response.done")
    (session,) = await site.sessions(site.two)
    assert known(session)[0] == ("item_ada", "user", "My name is Ada.")
    await client.close()


async def test_a_model_that_refuses_when_it_is_asked_something_is_shown_to_do_so_where_no_other_is_left(site: Site):
    """Both accounts are empty: the call does not go to and fro, and its client learns why."""
    for model in (site.one, site.two):
        await site.faults(model, error="insufficient_quota", close=1000, events=1)
    node = await site.node()
    client = await site.nodes.connect(node)
    await client.send_json(say("My name is Ada."))
    await client.send_json(ASK)
    found, events = await closed(client)
    assert [each["error"]["code"] for each in events if each["type"] == "error"] == ["insufficient_quota"]
    assert (len(await site.sessions(site.one)), len(await site.sessions(site.two))) == (1, 1)


async def test_a_close_that_may_be_the_conversations_fault_is_not_taken_elsewhere(site: Site):
    """Once it has answered: what one provider's policy forbids is no matter for another's."""
    await site.faults(site.one, close=1008, after=0.8, count=1)
    node = await site.node()
    client = await site.nodes.connect(node)
    check_seamless(await first_answer(client))
    assert (await closed(client))[0] == 1008
    assert await site.sessions(site.two) == []


async def test_without_redials_only_the_beginning_has_a_second_upstream(site: Site):
    """Where nothing may be rebuilt, what the model says is the client's to hear."""
    await site.faults(site.one, error="insufficient_quota", close=1000, after=0.3, count=1)
    node = await site.node(REDIAL_SECONDS="0")
    client = await site.nodes.connect(node)
    code, events = await closed(client)
    assert (code, events[-1]["error"]["code"]) == (1000, "insufficient_quota")
    await site.faults(site.one, close=3000, count=1)
    client = await site.nodes.connect(node)
    check_seamless(await first_answer(client))
    await client.close()


async def test_a_redial_asks_every_upstream_and_again_as_long_as_one_may_come_back(site: Site):
    """One has no money for good, the other is only away for a moment."""
    node = await site.node()
    client = await site.nodes.connect(node)
    await event(client, "session.created")
    await talk(client, "My name is Ada.")
    await site.faults(site.two, close=3000)
    await site.faults(site.one, refuse=503, count=3)
    lose(site.one)
    await talk(client, "What is my name?")
    assert [text for _, _, text in known((await site.sessions(site.one))[-1])][0] == "My name is Ada."
    assert (await site.nodes._get(f"{site.two.http_url}/sim/health"))["pending_faults"] == 99, "it was asked once"
    await client.close()


async def test_a_redial_ends_the_call_when_every_upstream_has_refused_it(site: Site):
    """There is no use in asking any of them again."""
    node = await site.node()
    client = await site.nodes.connect(node)
    await event(client, "session.created")
    await talk(client, "My name is Ada.")
    await site.faults(site.two, error="insufficient_quota", close=1000)
    await site.faults(site.one, refuse=401)
    lose(site.one)
    code, events = await closed(client)
    assert code == 1008
    assert [each["error"]["code"] for each in events if each["type"] == "error"] == ["upstream_credentials_refused"]
    for model in (site.one, site.two):
        assert (await site.nodes._get(f"{model.http_url}/sim/health"))["pending_faults"] == 99


async def test_a_spare_is_of_the_upstream_that_the_call_is_given_to(site: Site):
    """The first upstream's as long as it serves, the next one's when it does not."""
    node = await site.node(UPSTREAM_SPARES="1")
    client = await site.nodes.connect(node)
    await event(client, "session.created")
    services = services_of(client)
    assert services.spares is not None
    await until(lambda: services.spares.ready == 1)
    other = await site.nodes.connect(node)
    check_seamless(await first_answer(other))
    assert services.spares.counts.taken == 1
    assert await site.sessions(site.two) == []
    await client.close()
    await other.close()


@asynccontextmanager
async def answering_first(model: Simulator, answer: bytes) -> AsyncIterator[str]:
    """The URL of a server that upgrades its first connection and says this in the same packet; then it is the model."""
    asked = 0

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
        await end(writer)

    async def end(writer: asyncio.StreamWriter) -> None:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        head = await reader.readuntil(b"\r\n\r\n")
        if asked == 1:
            key = re.search(rb"Sec-WebSocket-Key: (\S+)", head, re.IGNORECASE)
            assert key is not None
            writer.write(_UPGRADED % accept_key(key[1].decode()).encode() + answer)
            await reader.read()
            await end(writer)
            return
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", model.port)
        other_writer.write(head)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(carry(reader, other_writer))
            tasks.create_task(carry(other_reader, writer))

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/realtime"


_UPGRADED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n\r\n"
)


@pytest.mark.parametrize("names", ['"one"', '"one", "two"'], ids=["alone", "not alone"])
async def test_a_server_that_closes_in_the_packet_that_upgrades_is_a_loss_like_any_other(site: Site, names: str):
    """It is asked again where there is no other: we must not stumble over a leg that is gone before it is used."""
    going_away = b"\x88\x02" + (1011).to_bytes(2, "big")
    async with answering_first(site.one, going_away) as url:
        node = await site.node(one=url, names=names)
        client = await site.nodes.connect(node)
        check_seamless(await first_answer(client))
        await client.close()
        await until(lambda: not (site.one._connections or site.two._connections))
