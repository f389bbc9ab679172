"""Every answer of ``POST …/items`` that is not a receipt as asked for: status, code, field, and when to come again."""

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest

from fanout import BusSettings, CallRecord, Fanout, Message, OwnedCall, Status, new_call_id
from fanout.core.keys import Keys
from relay.app import Node
from tests.support.fleet import Nodes, bearer, event, system_message, token, until
from tests.support.redis_server import RedisServer

ITEM = system_message("lunch is ready")
RESULT = {"type": "function_call_output", "call_id": "call_never_made", "output": "{}"}


class Answer(NamedTuple):
    """What a backend gets."""

    status: int
    retry_after: str | None
    body: dict[str, Any]

    @property
    def code(self) -> str | None:
        """Of the error."""
        error: dict[str, Any] = self.body.get("error") or {}
        return error.get("code")

    @property
    def param(self) -> str | None:
        """The field that the error is about."""
        param: str | None = self.body["error"]["param"]
        return param


async def put(
    nodes: Nodes, node: Node, call_id: str, body: object = None, query: str = "", credentials: str | None = None
) -> Answer:
    """``body`` is sent as it is if it is bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body if body is not None else {"item": ITEM}).encode()
    headers = bearer(credentials or token("control"))
    url = f"{node.url}/v1/realtime/calls/{call_id}/items?{query}"
    async with nodes.http.post(url, data=io.BytesIO(data), headers=headers) as response:
        return Answer(response.status, response.headers.get("Retry-After"), await response.json())


async def call_on(nodes: Nodes, node: Node) -> tuple[str, Any]:
    """A live call with the simulator."""
    client = await nodes.connect(node)
    await event(client, "session.created")
    return client._response.headers["X-Call-Id"], client


class SilentOwner:
    """Owns a call on a node of the test's own, takes every message and says nothing of any."""

    def __init__(self, bus: Fanout, call_id: str) -> None:
        self.got: list[Message] = []
        record = CallRecord(
            id=call_id, tenant="test", node="owner", region="iad", agent="default", model="sim", started_at=time.time()
        )
        self.call: OwnedCall = bus.own(record, self.got.append)


@asynccontextmanager
async def bus_of(nodes: Nodes) -> AsyncIterator[Fanout]:
    """A node of the bus alone, beside the relay's."""
    regions = {"iad": nodes._redis_url}
    settings = BusSettings(node="owner", region="iad", regions=regions, prefix=nodes.prefix)
    async with Fanout.running(settings, clock=time.time) as bus:
        yield bus


async def silent_call(bus: Fanout) -> SilentOwner:
    owner = SilentOwner(bus, new_call_id("iad"))
    async with asyncio.timeout(5):
        await owner.call.wait_registered()
    return owner


async def test_a_step_that_is_not_reached_in_time_is_202_with_the_receipt_so_far(nodes: Nodes) -> None:
    """The message goes on; the receipt can be asked for, or the same id be put again."""
    node = await nodes.add()
    async with bus_of(nodes) as bus:
        owner = await silent_call(bus)
        answer = await put(nodes, node, owner.call.id, {"item": ITEM, "id": "m1"}, "wait=applied&timeout_ms=300")
        assert (answer.status, answer.body["status"]) == (202, "delivered")
        owner.call.settle("m1", Status.APPLIED)
        again = await put(nodes, node, owner.call.id, {"item": ITEM, "id": "m1"}, "wait=applied")
        assert (again.status, again.body["status"]) == (200, "applied")
        assert [message.id for message in owner.got] == ["m1"]


@pytest.mark.parametrize("call_id", ["rtc_iad_nobody", "rtc_mars_nobody", "nonsense", "rtc_iad_" + "x" * 80])
async def test_a_call_that_is_not_there_is_404(nodes: Nodes, call_id: str) -> None:
    """Whether its id could be one or not."""
    answer = await put(nodes, await nodes.add(), call_id)
    assert (answer.status, answer.code) == (404, "call_not_found")


async def test_another_tenants_call_is_404_as_if_it_were_not_there(nodes: Nodes) -> None:
    """The answer must not tell which ids exist."""
    node = await nodes.add()
    call_id, _ = await call_on(nodes, node)
    foreign = await put(nodes, node, call_id, credentials=token("control", tenant="evil"))
    assert (foreign.status, foreign.code) == (404, "call_not_found")
    assert (await put(nodes, node, call_id)).status == 200


async def test_a_call_that_is_only_reserved_is_409(nodes: Nodes) -> None:
    """Its client has not come yet: the backend is early, not wrong."""
    node = await nodes.add()
    async with bus_of(nodes) as bus:
        call_id = new_call_id("iad")
        await bus.reserve(call_id, "test", seconds=60)
        answer = await put(nodes, node, call_id)
        assert (answer.status, answer.code) == (409, "call_not_started")


async def test_a_result_for_a_tool_call_that_was_never_made_is_409_with_its_receipt(nodes: Nodes) -> None:
    """The model would take it and be confused."""
    node = await nodes.add()
    call_id, _ = await call_on(nodes, node)
    answer = await put(nodes, node, call_id, {"item": RESULT}, "wait=applied")
    assert (answer.status, answer.code) == (409, "unknown_tool_call")
    assert answer.body["receipt"]["status"] == "rejected"


async def test_an_id_with_another_body_is_409_through_any_node(nodes: Nodes) -> None:
    """While the first is under way here, and when it has ended elsewhere."""
    node, other = await nodes.add("a"), await nodes.add("b")
    async with bus_of(nodes) as bus:
        owner = await silent_call(bus)
        assert (await put(nodes, node, owner.call.id, {"item": ITEM, "id": "m1"})).status == 200
        for each in (node, other):
            answer = await put(nodes, each, owner.call.id, {"item": system_message("no"), "id": "m1"})
            assert (answer.status, answer.code, answer.param) == (409, "idempotency_conflict", "id")
        owner.call.settle("m1", Status.APPLIED)
        await owner.call.wait_settled()
        answer = await put(nodes, other, owner.call.id, {"item": ITEM, "id": "m1", "response": True})
        assert (answer.status, answer.code) == (409, "idempotency_conflict")


async def test_a_call_that_ended_is_410_and_says_why(nodes: Nodes) -> None:
    """For an hour; after that nobody knows it."""
    node = await nodes.add()
    call_id, client = await call_on(nodes, node)
    await client.close()

    async def ended() -> bool:
        return (await put(nodes, node, call_id)).status == 410

    await until(ended)
    answer = await put(nodes, node, call_id)
    assert answer.code == "call_ended"
    assert "client_closed (fault: client)" in answer.body["error"]["message"]


@pytest.mark.parametrize(
    ("size", "code"),
    [((1 << 20) + 1, "body_too_large"), ((1 << 20) - 64, "message_too_large")],
    ids=["body", "message"],
)
async def test_what_is_too_large_is_413(nodes: Nodes, size: int, code: str) -> None:
    """The body is not read to its end, and what would not fit on the bus is not sent there."""
    node = await nodes.add()
    empty = len(json.dumps({"item": system_message("")}))
    body = json.dumps({"item": system_message("x" * (size - empty))}).encode()
    answer = await put(nodes, node, "rtc_iad_nobody", body)
    assert (answer.status, answer.code) == (413, code)


@pytest.mark.parametrize(
    ("body", "query", "status", "code", "param"),
    [
        (b"", "", 400, "invalid_json", None),
        (b"item=1", "", 400, "invalid_json", None),
        (b"\xff", "", 400, "invalid_json", None),
        (b'{"item":' + b'{"a":' * 10_000, "", 400, "invalid_json", None),
        ([], "", 422, "invalid_value", None),
        ({}, "", 422, "invalid_value", "item"),
        ({"item": {"type": "message", "role": "tool"}}, "", 422, "invalid_value", "item.role"),
        ({"item": {**ITEM, "content": [{"type": "audio"}]}}, "", 422, "invalid_value", "item.content[0].type"),
        ({"item": ITEM, "when": "later"}, "", 422, "invalid_value", "when"),
        ({"item": ITEM, "expires_in_ms": 0}, "", 422, "invalid_value", "expires_in_ms"),
        ({"item": ITEM, "id": "a b"}, "", 422, "invalid_value", "id"),
        ({"item": ITEM, "reponse": True}, "", 422, "invalid_value", "reponse"),
        (None, "wait=failed", 422, "invalid_value", "wait"),
        (None, "timeout_ms=0", 422, "invalid_value", "timeout_ms"),
        (None, "timeout_ms=60001", 422, "invalid_value", "timeout_ms"),
        (None, "timeout_ms=%D9%A1", 422, "invalid_value", "timeout_ms"),
        (None, "timeout=5", 422, "invalid_value", "timeout"),
        (None, "wait=applied&wait=answered", 422, "invalid_value", "wait"),
    ],
)
async def test_a_wrong_body_or_query_is_told_with_its_field(
    nodes: Nodes, body: object, query: str, status: int, code: str, param: str | None
) -> None:
    """Before anything is asked of Redis; every rule has its test in tests/pure/test_items.py."""
    answer = await put(nodes, await nodes.add(), "rtc_iad_nobody", body, query)
    assert (answer.status, answer.code, answer.param) == (status, code, param)


@pytest.mark.parametrize(
    ("credentials", "status"), [("nonsense", 401), (token("read", "call"), 403)], ids=["no token", "another scope"]
)
async def test_a_token_that_does_not_allow_it_is_told_first(nodes: Nodes, credentials: str, status: int) -> None:
    """Who may not ask learns nothing of calls, fields or sizes."""
    answer = await put(nodes, await nodes.add(), "nonsense", b"nonsense", credentials=credentials)
    assert answer.status == status


async def test_a_full_inbox_is_429_with_retry_after(nodes: Nodes) -> None:
    """Nothing that was accepted is dropped to make room."""
    node = await nodes.add()
    async with bus_of(nodes) as bus:
        owner = await silent_call(bus)
        for _ in range(BusSettings.inbox_max):
            assert (await put(nodes, node, owner.call.id)).status == 200
        full = await put(nodes, node, owner.call.id, {"item": ITEM, "id": "late"})
        assert (full.status, full.code, full.retry_after) == (429, "inbox_full", "1")
        owner.call.settle(owner.got[0].id, Status.APPLIED)
        await owner.call.wait_settled()
        assert (await put(nodes, node, owner.call.id, {"item": ITEM, "id": "late"})).status == 200


async def test_a_message_behind_one_that_nobody_takes_is_503_bus_busy(nodes: Nodes) -> None:
    """It was not written: messages of one node stay in order, and the time was too short to wait for the one before."""
    node = await nodes.add()
    async with bus_of(nodes) as bus:
        call_id = (await silent_call(bus)).call.id
    assert (await put(nodes, node, call_id)).status == 200  # accepted; its owner is gone
    answer = await put(nodes, node, call_id, query="timeout_ms=100")
    assert (answer.status, answer.code, answer.retry_after) == (503, "bus_busy", "1")


async def test_a_receipt_of_a_newer_version_is_503_and_not_a_bug_of_ours(nodes: Nodes) -> None:
    """In the middle of a rollout another node can read it."""
    node = await nodes.add()
    async with bus_of(nodes) as bus:
        owner = await silent_call(bus)
        await put(nodes, node, owner.call.id, {"item": ITEM, "id": "m1"}, "wait=delivered")
        port = int(nodes._redis_url.rpartition(":")[2].partition("/")[0])
        await _hset(port, Keys(nodes.prefix).call(owner.call.id, "test").receipts, "m1", "\x01newer")
        url = f"{node.url}/v1/realtime/calls/{owner.call.id}/items/m1"
        async with nodes.http.get(url, headers=bearer(token("read"))) as response:
            code = (await response.json())["error"]["code"]
            assert (response.status, code, response.headers["Retry-After"]) == (503, "receipt_unreadable", "1")


async def _hset(port: int, key: str, field: str, value: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    words = ("HSET", key, field, value)
    writer.write(f"*{len(words)}\r\n".encode() + b"".join(f"${len(w)}\r\n{w}\r\n".encode() for w in words))
    assert await reader.readline() == b":0\r\n"  # it was there
    writer.close()


async def test_while_redis_is_away_puts_are_503_late_at_first_and_at_once_when_that_is_known(
    doomed: tuple[RedisServer, Nodes],
) -> None:
    """A short gap is waited out; after that a backend must not hang for each message. The call itself goes on."""
    server, nodes = doomed
    node = await nodes.add()
    call_id, client = await call_on(nodes, node)
    assert (await put(nodes, node, call_id, query="wait=applied")).body["status"] == "applied"
    server.kill()
    first = await put(nodes, node, call_id, {"item": ITEM, "id": "m2"}, "wait=applied&timeout_ms=300")
    assert (first.status, first.code, first.retry_after) == (503, "region_unreachable", "1")

    async def is_open() -> bool:
        async with nodes.http.get(node.ops_url + "/status") as response:
            return (await response.json())["bus"]["regions"]["iad"]["circuit"] == "open"

    await until(is_open)
    started = time.monotonic()
    at_once = await put(nodes, node, call_id, {"item": ITEM, "id": "m3"}, "wait=applied&timeout_ms=5000")
    assert (at_once.status, at_once.code, at_once.retry_after) == (503, "region_unreachable", "1")
    assert time.monotonic() - started < 2.5
    await client.send_json({"type": "response.create"})
    await event(client, "response.done")


async def test_a_region_that_cannot_be_reached_is_503_and_the_others_work(nodes: Nodes) -> None:
    """Only calls that live there are affected."""
    node = await nodes.add(REGIONS=f"iad={nodes._redis_url},lhr=redis://127.0.0.1:1")
    answer = await put(nodes, node, new_call_id("lhr"), query="timeout_ms=300")
    assert (answer.status, answer.code, answer.retry_after) == (503, "region_unreachable", "1")
    assert "'lhr'" in answer.body["error"]["message"]
    call_id, _ = await call_on(nodes, node)
    assert (await put(nodes, node, call_id, query="wait=applied")).body["status"] == "applied"


async def test_an_unknown_call_is_503_while_a_redis_that_came_back_empty_settles_and_then_404(
    doomed: tuple[RedisServer, Nodes],
) -> None:
    """Until the owners had the time to say what they have, 'no such call' would be a guess."""
    server, nodes = doomed
    node = await nodes.add(BUS_SILENCE_SECONDS="1.1", BUS_NODE_TTL_SECONDS="1.2", BUS_SOCKET_TIMEOUT="0.5")
    call_id, _ = await call_on(nodes, node)
    unknown = new_call_id("iad")
    assert (await put(nodes, node, unknown)).status == 404
    await asyncio.to_thread(server.restart)

    async def answers(status: int, code: str) -> bool:
        answer = await put(nodes, node, unknown, query="timeout_ms=300")
        if answer.code == "call_state_unknown":
            assert (answer.status, answer.retry_after) == (503, "2")
        return (answer.status, answer.code) == (status, code)

    await until(lambda: answers(503, "call_state_unknown"))
    await until(lambda: answers(404, "call_not_found"), 15)
    assert (await put(nodes, node, call_id, query="wait=applied")).body["status"] == "applied"
