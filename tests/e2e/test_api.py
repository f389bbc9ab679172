"""The HTTP surface against live calls: lists, transcripts, events, streams, hangup, client secrets, its description."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp
import pytest
from openai import AsyncOpenAI

from fanout import new_call_id
from relay.app import Node
from relay.keys import Keyring
from relay.tokens import Claims
from tests.support.fleet import SECRET, Nodes, bearer, closed, event, session_of, system_message, token, until

HELLO = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello there"}]}


class Sent(NamedTuple):
    """One server-sent event."""

    id: str
    type: str
    data: dict[str, Any]


class Reader:
    """What a backend makes of an event stream."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def next(self, seconds: float = 10.0) -> Sent | None:
        """The next event, comments left out; None at the end of the stream."""
        fields = {"id": "", "event": "", "data": ""}
        async with asyncio.timeout(seconds):
            while line := (await self.response.content.readline()).decode():
                name, _, value = line.rstrip("\n").partition(": ")
                if line == "\n" and fields["event"]:
                    return Sent(fields["id"], fields["event"], json.loads(fields["data"]))
                fields[name] = value
        return None

    async def until(self, kind: str) -> list[Sent]:
        """Up to an event of this type."""
        found: list[Sent] = []
        while not found or found[-1].type != kind:
            sent = await self.next()
            assert sent is not None, f"the stream ended before {kind}: {[each.type for each in found]}"
            found.append(sent)
        return found

    async def rest(self) -> list[Sent]:
        """Up to the end."""
        found = []
        while (sent := await self.next()) is not None:
            found.append(sent)
        return found


@asynccontextmanager
async def stream(nodes: Nodes, node: Node, call_id: str, query: str = "", **headers: str) -> AsyncIterator[Reader]:
    """Follow a call."""
    url = f"{node.url}/v1/realtime/calls/{call_id}/events{query}"
    async with nodes.http.get(url, headers=bearer(token("read")) | headers) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        yield Reader(response)


async def call_on(nodes: Nodes, node: Node, path: str = "/v1/realtime?model=sim") -> tuple[str, Any]:
    """A live call."""
    client = await nodes.connect(node, path)
    await event(client, "session.created")
    return client._response.headers["X-Call-Id"], client


async def say(client: Any, text: str = "hello there") -> None:
    """The client of a call asks something and has its answer."""
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
    await client.send_json({"type": "conversation.item.create", "item": item})
    await client.send_json({"type": "response.create"})
    await event(client, "response.done")


async def post(nodes: Nodes, node: Node, path: str, body: object = None, *scope: str) -> tuple[int, Any]:
    """Send JSON; returns the status and the JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
    headers = bearer(token(*(scope or ("control",))))
    async with nodes.http.post(node.url + path, data=data, headers=headers) as response:
        return response.status, await response.json()


def events_path(call_id: str, query: str = "wait=applied") -> str:
    return f"/v1/realtime/calls/{call_id}/events?{query}"


# Events for the model


async def test_an_event_reaches_the_model_and_its_receipt_says_so(nodes: Nodes) -> None:
    """As if the call's client had sent it, from any node."""
    node, other = await nodes.add("a"), await nodes.add("b")
    call_id, client = await call_on(nodes, node)
    update = {"type": "session.update", "session": {"type": "realtime", "instructions": "be kind"}}
    status, receipt = await post(nodes, other, events_path(call_id), update)
    assert (status, receipt["status"]) == (200, "applied")
    assert (await event(client, "session.updated"))["session"]["instructions"] == "be kind"


async def test_a_response_that_was_asked_for_is_answered(nodes: Nodes) -> None:
    """The receipt climbs to its last step."""
    node = await nodes.add()
    call_id, client = await call_on(nodes, node)
    status, receipt = await post(nodes, node, events_path(call_id, "wait=answered"), {"type": "response.create"})
    assert (status, receipt["status"]) == (200, "answered")
    await event(client, "response.done")


async def test_what_the_model_says_of_a_wrong_event_is_in_the_receipt(nodes: Nodes) -> None:
    """Verbatim, with the sender's own event id; the client of the call hears nothing of it."""
    node = await nodes.add()
    call_id, client = await call_on(nodes, node)
    wrong = {"type": "no.such.event", "event_id": "mine"}
    status, receipt = await post(nodes, node, events_path(call_id), wrong)
    assert (status, receipt["status"], receipt["error"]["event_id"]) == (200, "failed", "mine")
    await client.send_json({"type": "response.create"})
    async with asyncio.timeout(10):
        while (seen := json.loads((await client.receive()).data))["type"] != "response.done":
            assert seen["type"] != "error"


@pytest.mark.parametrize(
    ("body", "query", "status", "code", "param"),
    [
        (b"{", "", 400, "invalid_json", None),
        ([], "", 422, "invalid_value", None),
        ({}, "", 422, "invalid_value", "type"),
        ({"type": ""}, "", 422, "invalid_value", "type"),
        ({"type": 7}, "", 422, "invalid_value", "type"),
        ({"type": "response.create", "event_id": 7}, "", 422, "invalid_value", "event_id"),
        ({"type": "input_audio_buffer.append", "audio": "AAAA"}, "", 422, "audio_not_allowed", "type"),
        ({"type": "response.create"}, "wait=done", 422, "invalid_value", "wait"),
        ({"type": "response.create"}, "id=a%20b", 422, "invalid_value", "id"),
        ({"type": "response.create"}, "expires_in_ms=0", 422, "invalid_value", "expires_in_ms"),
        ({"type": "response.create"}, "", 404, "call_not_found", None),
    ],
)
async def test_an_event_that_cannot_be_sent_is_told_why(
    nodes: Nodes, body: object, query: str, status: int, code: str, param: str | None
) -> None:
    """Before anything is asked of Redis."""
    got, answer = await post(nodes, await nodes.add(), events_path(new_call_id("iad"), query), body)
    error = answer["error"]
    assert (got, error["code"], error["param"]) == (status, code, param)


async def test_the_same_event_id_twice_is_one_event(nodes: Nodes) -> None:
    """So that a backend may repeat what it has no answer to."""
    node = await nodes.add()
    call_id, _ = await call_on(nodes, node)
    update = {"type": "session.update", "session": {"type": "realtime", "instructions": "be kind"}}
    path = events_path(call_id, "wait=applied&id=m1")
    first, again = await post(nodes, node, path, update), await post(nodes, node, path, update)
    assert (first, first[1]["id"]) == (again, "m1")
    status, answer = await post(nodes, node, path, {**update, "session": {"type": "realtime"}})
    assert (status, answer["error"]["code"]) == (409, "idempotency_conflict")


async def test_a_result_that_nobody_waits_for_any_more_is_410_with_its_receipt(nodes: Nodes) -> None:
    """Its tool call was deleted from the conversation: the backend need not try again."""
    node = await nodes.add()
    call_id, client = await call_on(nodes, node)
    tool = {"type": "function", "name": "lookup", "parameters": {"type": "object", "properties": {}}}
    await client.send_json({"type": "session.update", "session": {"type": "realtime", "tools": [tool]}})
    item = {**HELLO, "content": [{"type": "input_text", "text": "lookup, please"}]}
    await client.send_json({"type": "conversation.item.create", "item": item})
    await client.send_json({"type": "response.create"})
    called = await event(client, "response.function_call_arguments.done")
    await event(client, "response.done")
    delete = {"type": "conversation.item.delete", "item_id": called["item_id"]}
    assert (await post(nodes, node, events_path(call_id), delete))[1]["status"] == "applied"
    result = {"type": "function_call_output", "call_id": called["call_id"], "output": "{}"}
    status, answer = await nodes.put(node, call_id, {"item": result})
    assert (status, answer["error"]["code"]) == (410, "tool_call_late")
    assert answer["receipt"]["status"] == "rejected"


# Hangup


async def test_the_official_sdk_hangs_up(nodes: Nodes) -> None:
    """Its path and its shape, on another node than the call's."""
    node, other = await nodes.add("a"), await nodes.add("b")
    call_id, client = await call_on(nodes, node)
    async with AsyncOpenAI(api_key=token("control"), base_url=f"{other.url}/v1", max_retries=0) as sdk:
        await sdk.realtime.calls.hangup(call_id)
    code, _ = await closed(client)
    assert code == 1000
    tombstone = await ended(nodes, other, call_id)
    assert tombstone["fault"] != "node"


async def test_hanging_up_answers_with_the_call_and_then_that_it_has_ended(nodes: Nodes) -> None:
    """200 once, 410 after: the same request again does no harm."""
    node = await nodes.add()
    call_id, _ = await call_on(nodes, node)
    path = f"/v1/realtime/calls/{call_id}/hangup"
    status, call = await post(nodes, node, path, b"not looked at")
    assert (status, call["object"], call["id"]) == (200, "realtime.call", call_id)
    await ended(nodes, node, call_id)
    status, answer = await post(nodes, node, path)
    assert (status, answer["error"]["code"]) == (410, "call_ended")


async def ended(nodes: Nodes, node: Node, call_id: str) -> dict[str, Any]:
    """Until the call has its tombstone."""
    found: dict[str, Any] = {}

    async def is_ended() -> bool:
        _, call = await nodes.get(node, f"/v1/realtime/calls/{call_id}")
        found.update(call)
        return bool(call["state"] == "ended")

    await until(is_ended)
    return found


# Reading


async def test_a_call_shows_its_usage_and_its_transcript(nodes: Nodes) -> None:
    """Through any node, while it lives and for an hour after."""
    node, other = await nodes.add("a"), await nodes.add("b")
    call_id, client = await call_on(nodes, node)
    await say(client, "good morning")

    async def is_written() -> bool:
        _, call = await nodes.get(other, f"/v1/realtime/calls/{call_id}")
        return "usage" in call and len(call.get("transcript", ())) == 2

    await until(is_written)
    _, call = await nodes.get(other, f"/v1/realtime/calls/{call_id}")
    assert (call["state"], call["node"], call["usage"]["responses"]) == ("live", "a", 1)
    assert call["age"] >= 0
    assert [(entry["role"], entry["type"]) for entry in call["transcript"]] == [
        ("user", "message"),
        ("assistant", "message"),
    ]
    assert call["transcript"][0]["text"] == "good morning"
    await client.close()
    after = await ended(nodes, other, call_id)
    assert (after["why"], after["transcript"], after["usage"]) == ("client_closed", call["transcript"], call["usage"])


async def test_a_transcript_is_json_or_text_as_one_asks(nodes: Nodes) -> None:
    """A person reads lines, a program reads entries."""
    node = await nodes.add()
    call_id, client = await call_on(nodes, node)
    await say(client, "good\nmorning")
    path = f"/v1/realtime/calls/{call_id}/transcript"

    async def is_written() -> bool:
        return len((await nodes.get(node, path))[1]["data"]) == 2

    await until(is_written)
    _, transcript = await nodes.get(node, path)
    assert (transcript["object"], transcript["call_id"], transcript["state"], transcript["dropped"]) == (
        "realtime.call.transcript",
        call_id,
        "live",
        0,
    )

    async def text(query: str, accept: str) -> tuple[str, str]:
        headers = bearer(token("read")) | {"Accept": accept}
        async with nodes.http.get(node.url + path + query, headers=headers) as response:
            return response.content_type, await response.text()

    kind, lines = await text("?format=text", "*/*")
    assert kind == "text/plain"
    assert lines.splitlines()[0] == "[0:00] user: good morning"
    assert lines.splitlines()[1].startswith("[0:00] assistant: ")
    assert await text("", "text/plain") == (kind, lines)
    assert (await text("?format=json", "text/plain"))[0] == "application/json"
    assert (await text("", "*/*"))[0] == "application/json"


@pytest.mark.parametrize("what", ["", "/transcript", "/events", "/items/m1"])
async def test_another_tenants_call_is_404_to_every_reader(nodes: Nodes, what: str) -> None:
    """Nobody learns which ids exist."""
    node = await nodes.add()
    call_id, _ = await call_on(nodes, node)
    for path, credentials in (
        (f"{call_id}{what}", token("read", tenant="evil")),
        (f"{new_call_id('iad')}{what}", token("read")),
    ):
        async with nodes.http.get(f"{node.url}/v1/realtime/calls/{path}", headers=bearer(credentials)) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (404, "call_not_found")


async def test_a_list_is_filtered_and_paged(nodes: Nodes) -> None:
    """Each filter by itself; pages have no call twice and leave none out."""
    agents = nodes.folder / "agents.toml"
    agents.write_text('[agents.sales]\nmodel = "sim"\n')
    node = await nodes.add("a", CONFIG=str(agents))
    other = await nodes.add("b", CONFIG=str(agents))
    clients = [await call_on(nodes, each) for each in (node, node, other)]
    mine = [call_id for call_id, _ in clients]
    sales = await nodes.connect(other, "/v1/realtime", headers=bearer(token("call", agent="sales")))
    await event(sales, "session.created")

    async def listed(query: str) -> list[str]:
        status, page = await nodes.get(node, f"/v1/realtime/calls?{query}")
        assert (status, page["unreachable_regions"]) == (200, [])
        return [call["id"] for call in page["data"]]

    assert set(await listed("node=a")) == set(mine[:2])
    assert await listed("agent=sales") == [sales._response.headers["X-Call-Id"]]
    assert len(await listed("region=iad&state=live")) == 4
    assert await listed("region=lhr") == await listed("state=moving") == await listed("node=c") == []
    seen, query = [], "limit=1"
    while True:
        _, page = await nodes.get(node, f"/v1/realtime/calls?{query}")
        seen += [call["id"] for call in page["data"]]
        if not page["has_more"]:
            break
        query = f"limit=1&after={page['last_id']}"
    assert (len(seen), set(seen)) == (4, set(await listed("")))


async def test_a_list_says_which_regions_it_lacks(nodes: Nodes) -> None:
    """A call that is not listed may be there."""
    node = await nodes.add(REGIONS=f"iad={nodes._redis_url},lhr=redis://127.0.0.1:1")
    call_id, _ = await call_on(nodes, node)
    _, page = await nodes.get(node, "/v1/realtime/calls")
    assert ([call["id"] for call in page["data"]], page["unreachable_regions"]) == ([call_id], ["lhr"])


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("limit=101", "limit"), ("limit=x", "limit"), ("state=ended", "state"), ("page=2", "page")],
)
async def test_a_wrong_question_is_told_with_its_parameter(nodes: Nodes, query: str, param: str) -> None:
    """A misspelt filter that is overlooked would list the wrong calls."""
    status, answer = await nodes.get(await nodes.add(), f"/v1/realtime/calls?{query}")
    assert (status, answer["error"]["param"]) == (422, param)


# Streams


async def test_a_stream_begins_with_the_session_and_has_what_happens_in_order(nodes: Nodes) -> None:
    """Through another node than the call's; no audio is in it."""
    node, other = await nodes.add("a"), await nodes.add("b")
    call_id, client = await call_on(nodes, node)
    async with stream(nodes, other, call_id) as reader:
        first = await reader.next()
        assert first is not None
        assert (first.type, first.data["session"]["model"]) == ("session.created", "sim")
        await say(client)
        events = await reader.until("response.done")
    types = [sent.type for sent in events]
    assert types.index("conversation.item.added") < types.index("response.created") < types.index("response.done")
    assert "response.output_audio.delta" not in types
    assert all(sent.type == sent.data["type"] for sent in events)
    numbers = [int(sent.id.partition("-")[2]) for sent in events]
    assert numbers == sorted(set(numbers))


async def test_a_stream_goes_on_where_it_was(nodes: Nodes) -> None:
    """With what happened meanwhile, through any node, without another session.created."""
    node, other = await nodes.add("a"), await nodes.add("b")
    call_id, client = await call_on(nodes, node)
    async with stream(nodes, node, call_id) as reader:
        await reader.next()
        await say(client)
        position = (await reader.until("response.done"))[-1].id
    await say(client, "again")
    async with stream(nodes, other, call_id, **{"Last-Event-ID": position}) as reader:
        missed = await reader.until("response.done")
    async with stream(nodes, other, call_id, f"?after={position}") as reader:
        again = await reader.until("response.done")
    assert missed == again
    assert "session.created" not in [sent.type for sent in missed]
    (asked,) = [sent.data["item"] for sent in missed if sent.type == "conversation.item.done"][:1]
    assert asked["content"][0]["text"] == "again"


async def test_a_stream_ends_with_its_call_and_says_why(nodes: Nodes) -> None:
    """At once, and what is left of it can be read for a while."""
    node, other = await nodes.add("a"), await nodes.add("b")
    call_id, client = await call_on(nodes, node)
    async with stream(nodes, other, call_id) as reader:
        await say(client)
        position = (await reader.until("response.created"))[-1].id
        await client.close()
        last = (await reader.rest())[-1]
    assert (last.type, last.data["why"], last.data["fault"]) == ("relay.ended", "client_closed", "client")
    status, answer = await nodes.get(node, f"/v1/realtime/calls/{call_id}/events")
    assert (status, answer["error"]["code"]) == (410, "call_ended")
    async with stream(nodes, node, call_id, **{"Last-Event-ID": position}) as reader:
        rest = await reader.rest()
    assert [rest[-1].type, rest[-2].type] == ["relay.ended", "rate_limits.updated"] or rest[-1] == last
    assert "response.done" in [sent.type for sent in rest]


async def test_a_call_can_be_followed_before_its_client_connects(nodes: Nodes) -> None:
    """Whoever made the key misses nothing."""
    node, other = await nodes.add("a"), await nodes.add("b")
    status, secret = await post(nodes, node, "/v1/realtime/client_secrets", {}, "mint")
    assert status == 200
    async with stream(nodes, other, secret["call_id"]) as reader:
        client = await nodes.connect(node, headers=bearer(secret["value"]))
        await say(client)
        events = await reader.until("response.done")
    assert events[0].type == "session.created"
    assert [sent.type for sent in events].count("session.created") == 1


@asynccontextmanager
async def slow_reader(node: Node, call_id: str) -> AsyncIterator[socket.socket]:
    """A reader for which the kernel holds next to nothing; it takes nothing by itself."""
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        reader.connect(("127.0.0.1", int(node.url.rpartition(":")[2])))
        head = f"GET /v1/realtime/calls/{call_id}/events HTTP/1.1\r\nHost: relay\r\nConnection: close"
        reader.sendall(f"{head}\r\nAuthorization: Bearer {token('read')}\r\n\r\n".encode())
        await until(lambda: session_of(call_id)._hands.owned.is_watched)
        yield reader


async def chatter(client: Any, items: int) -> None:
    """The call has events of about 200 KB for each item."""
    item = {**HELLO, "content": [{"type": "input_text", "text": "x" * 100_000}]}
    for _ in range(items):
        await client.send_json({"type": "conversation.item.create", "item": item})
        await event(client, "conversation.item.done")


async def test_a_reader_that_is_too_slow_is_told_and_costs_the_call_nothing(nodes: Nodes) -> None:
    """What waits for it is bounded; its stream ends honestly, and it can go on from its position."""
    node = await nodes.add()
    call_id, client = await call_on(nodes, node)
    async with slow_reader(node, call_id) as reader:
        await chatter(client, 30)  # more than the kernel and the node hold together
        await say(client)
        reader.settimeout(10)
        got = await asyncio.to_thread(lambda: b"".join(iter(lambda: reader.recv(1 << 20), b"")))
    events = got.split(b"\nevent: ")
    assert events[-1].startswith(b"relay.too_slow\n")
    assert len(events) < 60


async def test_a_reader_that_takes_nothing_for_too_long_is_cut(nodes: Nodes) -> None:
    """There is no way to tell it; what it holds is freed."""
    node = await nodes.add(STALL_SECONDS="0.5")
    call_id, client = await call_on(nodes, node)
    async with slow_reader(node, call_id) as reader:
        assert await watches(nodes, node) == 1
        await chatter(client, 5)

        async def is_cut() -> bool:
            return await watches(nodes, node) == 0

        await until(is_cut)
        await say(client)
        reader.settimeout(10)
        got = await asyncio.to_thread(lambda: b"".join(iter(lambda: reader.recv(1 << 20), b"")))
    assert not got.endswith(b"\r\n0\r\n\r\n"), "a stream that was cut must not look like one that ended"


async def test_a_draining_node_ends_its_streams_and_begins_none(nodes: Nodes) -> None:
    """They go on at another node, from their position, while the call is still here."""
    node, other = await nodes.add("a", DRAIN_SECONDS="60"), await nodes.add("b")
    call_id, client = await call_on(nodes, node)
    async with stream(nodes, node, call_id) as reader:
        await say(client)
        position = (await reader.until("response.done"))[-1].id
        node.drain()
        rest = await reader.rest()
    assert "relay.ended" not in [sent.type for sent in rest]
    status, answer = await nodes.get(node, f"/v1/realtime/calls/{call_id}/events")
    assert (status, answer["error"]["code"]) == (503, "node_draining")
    async with stream(nodes, other, call_id, f"?after={position}") as reader:
        await say(client)
        await reader.until("response.done")


async def test_a_reader_that_leaves_leaves_nothing_behind(nodes: Nodes) -> None:
    """Its watch is over within a second or two, not at the next comment."""
    node = await nodes.add()
    call_id, _ = await call_on(nodes, node)
    async with stream(nodes, node, call_id) as reader:
        await reader.next()
        assert await watches(nodes, node) == 1
        reader.response.close()

    async def is_over() -> bool:
        return await watches(nodes, node) == 0

    await until(is_over)


async def watches(nodes: Nodes, node: Node) -> int:
    """How many watches the node has."""
    async with nodes.http.get(node.ops_url + "/status") as response:
        return int((await response.json())["bus"]["regions"]["iad"]["watches"])


@pytest.mark.parametrize(
    ("query", "headers", "param"),
    [("?after=x", {}, "after"), ("", {"Last-Event-ID": "1"}, "Last-Event-ID"), ("?from=1-1", {}, "from")],
)
async def test_a_wrong_position_is_told(nodes: Nodes, query: str, headers: dict[str, str], param: str) -> None:
    """To begin at the end instead would hide what was missed."""
    node = await nodes.add()
    url = f"{node.url}/v1/realtime/calls/{new_call_id('iad')}/events{query}"
    async with nodes.http.get(url, headers=bearer(token("read")) | headers) as response:
        assert (response.status, (await response.json())["error"]["param"]) == (422, param)


# Client secrets


async def test_the_official_sdk_makes_a_key_that_opens_its_call(nodes: Nodes) -> None:
    """The backend knows the call before the browser connects, and the browser gets the session that was asked for."""
    node, other = await nodes.add("a"), await nodes.add("b")
    session: Any = {"type": "realtime", "model": "sim", "instructions": "Be brief."}
    async with AsyncOpenAI(api_key=token("mint"), base_url=f"{node.url}/v1") as sdk:
        secret = await sdk.realtime.client_secrets.create(
            expires_after={"anchor": "created_at", "seconds": 60}, session=session
        )
    assert secret.value.startswith("ek_")
    assert 50 < secret.expires_at - time.time() <= 60
    assert (secret.session.type, secret.session.instructions) == ("realtime", "Be brief.")
    call_id = secret.model_extra["call_id"]
    status, call = await nodes.get(other, f"/v1/realtime/calls/{call_id}")
    assert (status, call) == (
        200,
        {"object": "realtime.call", "id": call_id, "state": "reserved", "region": "iad"},
    )
    status, answer = await nodes.put(other, call_id, {"item": system_message("early")})
    assert (status, answer["error"]["code"]) == (409, "call_not_started")
    async with (
        AsyncOpenAI(api_key=secret.value, base_url=f"{other.url}/v1") as browser,
        browser.realtime.connect(model="sim") as connection,
    ):
        begun: Any = await connection.recv()
        assert (begun.type, begun.session.instructions) == ("session.created", None)  # they are not a browser's to see
        assert (await nodes.session())["session"]["instructions"] == "Be brief."
        assert (await nodes.get(node, f"/v1/realtime/calls/{call_id}"))[1]["state"] == "live"


async def test_a_key_is_bound_to_tenant_agent_and_call(nodes: Nodes) -> None:
    """What a browser gets must not open anything else."""
    agents = nodes.folder / "agents.toml"
    agents.write_text('[agents.sales]\nmodel = "other"\n[plans.gold]\n')
    node = await nodes.add(CONFIG=str(agents))
    credentials = bearer(token("mint", agent="sales", plan="gold"))
    async with nodes.http.post(f"{node.url}/v1/realtime/client_secrets", data=b"{}", headers=credentials) as response:
        secret = await response.json()
        assert (response.status, response.headers["X-Call-Id"]) == (200, secret["call_id"])
        assert response.headers["Cache-Control"] == "no-store"
    claims = Keyring([SECRET]).verify(secret["value"])
    assert isinstance(claims, Claims)
    assert (claims.tenant, claims.agent, claims.plan, claims.scope) == ("test", "sales", "gold", {"call"})
    assert (claims.call, claims.browser, claims.session) == (secret["call_id"], True, False)
    assert claims.jti
    assert (secret["session"]["model"], secret["session"]["object"]) == ("other", "realtime.session")
    assert 590 < secret["expires_at"] - time.time() <= 600


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"", 400, None),
        ({"expires_after": {"seconds": 9}}, 422, "expires_after.seconds"),
        ({"expires_after": {"seconds": 7201}}, 422, "expires_after.seconds"),
        ({"expires_after": {"anchor": "now", "seconds": 60}}, 422, "expires_after.anchor"),
        ({"session": {}}, 422, "session.type"),
        ({"session": {"type": "text"}}, 422, "session.type"),
        ({"session": {"type": "realtime", "model": 5}}, 422, "session.model"),
        ({"session": {"type": "realtime", "instructions": "x" * 65_536}}, 413, "session"),
        ({"sesion": {}}, 422, "sesion"),
    ],
)
async def test_a_wrong_wish_for_a_key_is_told_with_its_field(
    nodes: Nodes, body: object, status: int, param: str | None
) -> None:
    """As OpenAI's API would, and no call is reserved for it."""
    got, answer = await post(nodes, await nodes.add(), "/v1/realtime/client_secrets", body, "mint")
    assert (got, answer["error"]["param"]) == (status, param)


@pytest.mark.parametrize(
    ("credentials", "code"),
    [(token("call", "control", "read"), "missing_scope"), (token("mint", agent="none"), "unknown_agent")],
)
async def test_who_may_not_make_keys_is_refused(nodes: Nodes, credentials: str, code: str) -> None:
    """A client's own key makes no further ones."""
    node = await nodes.add()
    url = f"{node.url}/v1/realtime/client_secrets"
    async with nodes.http.post(url, data=b"{}", headers=bearer(credentials)) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (403, code)


# The surface itself


async def test_webrtc_is_answered_with_what_to_set_instead(nodes: Nodes) -> None:
    """The Agents SDK tries it by default in browsers."""
    node = await nodes.add()
    async with nodes.http.post(f"{node.url}/v1/realtime/calls", data=b"v=0") as response:
        assert response.status == 501
        assert "new OpenAIRealtimeWebSocket({url:" in (await response.json())["error"]["message"]


async def test_its_description_is_open_and_loads_nothing(nodes: Nodes) -> None:
    """For a person who has no token yet, on a network without the internet."""
    node = await nodes.add()
    async with nodes.http.get(f"{node.url}/openapi.json") as response:
        document = await response.json()
        assert (response.status, document["openapi"]) == (200, "3.1.0")
    async with nodes.http.get(f"{node.url}/docs") as response:
        page = await response.text()
        assert (response.status, response.content_type) == (200, "text/html")
        assert response.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert "src=" not in page
    assert "http://" not in page


async def test_a_page_of_an_allowed_site_may_read_streams_and_errors(nodes: Nodes) -> None:
    """A browser shows neither to a page without these headers, also where the answer is a stream."""
    node = await nodes.add(ALLOWED_ORIGINS="https://ours")
    call_id, _ = await call_on(nodes, node)
    asked = {"Origin": "https://ours", "Access-Control-Request-Method": "GET"}
    async with nodes.http.options(f"{node.url}/v1/realtime/calls/{call_id}/events", headers=asked) as response:
        assert response.status == 204
        assert "last-event-id" in response.headers["Access-Control-Allow-Headers"]
    for path in (f"{call_id}/events", "rtc_iad_nobody"):
        headers = bearer(token("read")) | {"Origin": "https://ours"}
        async with nodes.http.get(f"{node.url}/v1/realtime/calls/{path}", headers=headers) as response:
            assert response.headers["Access-Control-Allow-Origin"] == "https://ours"


async def test_a_wrong_method_is_told_the_right_ones(nodes: Nodes) -> None:
    """RFC 9110, section 15.5.6."""
    node = await nodes.add()
    async with nodes.http.delete(f"{node.url}/v1/realtime/calls") as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET,HEAD,POST")
        assert (await response.json())["error"]["code"] == "method_not_allowed"


async def test_a_token_for_one_call_is_for_nothing_else(nodes: Nodes) -> None:
    """Whoever has it may have got it from the person in that call."""
    node = await nodes.add()
    sockets = [await nodes.connect(node) for _ in range(2)]
    own, other = (socket._response.headers["X-Call-Id"] for socket in sockets)
    key = bearer(token("read", "control", call=own))

    async def ask(path: str) -> tuple[int, str | None]:
        async with nodes.http.get(node.url + path, headers=key) as response:
            return response.status, (await response.json()).get("error", {}).get("code")

    await until(lambda: _is(nodes.get(node, f"/v1/realtime/calls/{other}"), 200))
    assert await ask(f"/v1/realtime/calls/{own}") == (200, None)
    assert await ask(f"/v1/realtime/calls/{other}") == (404, "call_not_found")
    assert await ask("/v1/realtime/calls") == (403, "token_for_one_call")


async def _is(answer: Awaitable[tuple[int, Any]], status: int) -> bool:
    return (await answer)[0] == status


async def test_a_draining_node_keeps_no_connection(nodes: Nodes) -> None:
    """Else a client behind a load balancer would come back to it for as long as it drains."""
    node = await nodes.add(DRAIN_SECONDS="5")
    socket = await nodes.connect(node)
    async with aiohttp.ClientSession() as http:
        headers = bearer(token("read"))
        async with http.get(f"{node.url}/v1/realtime/calls", headers=headers) as response:
            assert "Connection" not in response.headers
        node.drain()
        async with http.get(f"{node.url}/v1/realtime/calls", headers=headers) as response:
            assert response.headers["Connection"] == "close"
    await socket.close()
