"""Tokens that are revoked while something of theirs goes on; and what a refused or a finished request leaves behind."""

import asyncio
import gc
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from relay.accounting import Accounting
from relay.app import Node
from tests.e2e.test_limits import Crowd, answer, connected, settings
from tests.e2e.test_usage import revoke
from tests.support.fleet import Nodes, bearer, closed, event, token, until


async def test_a_call_that_outlived_its_token_ends_with_it(nodes: Nodes) -> None:
    """A call lasts for as long as it is talked; who stole its token hours ago must not have it for ever."""
    node = await nodes.add()
    client = await nodes.connect(node, headers=bearer(token("call", jti="stolen")))
    await event(client, "session.created")
    long_ago = int(time.time()) - 86_400
    assert (await revoke(nodes, node, token("mint"), jti="stolen", expires_at=long_ago))[0] == 200
    assert (await closed(client))[0] == 4001


async def test_an_event_stream_ends_when_its_token_is_revoked(nodes: Nodes) -> None:
    """It would show the call to who stole the token until the call's end."""
    node = await nodes.add()
    client = await nodes.connect(node)
    await event(client, "session.created")
    url = f"{node.url}/v1/realtime/calls/{client._response.headers['X-Call-Id']}/events"
    async with nodes.http.get(url, headers=bearer(token("read", jti="stolen"))) as stream:
        await stream.content.readuntil(b"session.created")
        assert (await revoke(nodes, node, token("mint"), jti="stolen"))[0] == 200
        async with asyncio.timeout(10):
            await stream.content.read()  # to its end
    assert not client.closed
    await client.close()


async def test_a_token_that_is_revoked_while_its_request_waits_opens_nothing(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the token and the upgrade Redis is asked; meanwhile the call is on no list."""
    node = await nodes.add()
    admit: Callable[..., Any] = Accounting.admit

    async def slow_admit(self: Accounting, *call: Any) -> None:
        await admit(self, *call)
        assert (await revoke(nodes, node, token("mint"), jti="stolen"))[0] == 200

        async def is_known() -> bool:
            return (await answer(nodes, node, token("read", jti="stolen")))[2]["code"] == "token_revoked"

        await until(is_known)

    monkeypatch.setattr(Accounting, "admit", slow_admit)
    status, _, error = await answer(nodes, node, token("call", jti="stolen"))
    assert (status, error["code"]) == (401, "token_revoked")


async def test_a_full_node_keeps_no_place_of_a_tenant(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call was let in by its plan, then the node had no room: another node has."""
    own = {**settings(nodes, "[plans.pair]\nconcurrent_calls = 2\n"), "LEASE_SECONDS": "30"}
    full, free = await nodes.add("a", **own, MAX_CALLS="1"), await nodes.add("b", **own)
    key = token("call", tenant="test", plan="pair")
    admit: Callable[..., Any] = Accounting.admit
    first: list[aiohttp.ClientWebSocketResponse] = []

    async def admit_two(self: Accounting, *call: Any) -> None:
        await admit(self, *call)
        if not first:
            first.append(await _placed(nodes, full, key, first))

    monkeypatch.setattr(Accounting, "admit", admit_two)
    status, _, error = await answer(nodes, full, key)
    assert (status, error["code"]) == (503, "node_full")
    monkeypatch.setattr(Accounting, "admit", admit)
    await Crowd(nodes, key).until_through(free)


async def _placed(nodes: Nodes, node: Node, key: str, first: list[Any]) -> aiohttp.ClientWebSocketResponse:
    """A call that takes the node's only room."""
    first.append(None)  # it is let in as any
    client = await connected(nodes, node, key)
    first.clear()
    return client


async def test_a_client_that_comes_back_is_still_read_no_faster_than_its_plan_allows(nodes: Nodes) -> None:
    """Its pause is on the leg before: a new one must not be a way round it."""
    own = settings(nodes, "[plans.slow]\nclient_bytes_per_second = 10000\n")
    node = await nodes.add("a", **own)
    protocols = ["relay.events.v1"]
    headers = bearer(token("call", tenant="test", plan="slow"))
    client = await nodes.http.ws_connect(node.url + "/v1/realtime?model=sim", headers=headers, protocols=protocols)
    key = (await event(client, "relay.started"))["resume"]["token"]
    burst = {"type": "input_audio_buffer.append", "audio": "A" * 60_000}
    await event(client, "session.created")
    await client.send_json(burst)
    await event(client, "error")
    again = await nodes.http.ws_connect(node.url + "/v1/realtime?model=sim", headers=bearer(key), protocols=protocols)
    await event(again, "session.created")
    for _ in range(10):  # together 60 s of what it may
        await again.send_json(burst)
    assert (await closed(again))[0] == 4013


async def test_requests_leave_nothing_for_the_garbage_collector(nodes: Nodes) -> None:
    """A collection stops the audio of all calls; and a call must not keep the request with its token."""
    node = await nodes.add()
    client = await nodes.connect(node)
    await event(client, "session.created")
    for _ in range(20):
        assert (await nodes.get(node, "/v1/realtime/calls"))[0] == 200
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            assert (await nodes.get(node, "/v1/realtime/calls"))[0] == 200
        requests = (each for each in gc.get_objects() if isinstance(each, web.Request))
        assert [each for each in requests if node.url.endswith(each.headers.get("Host", "?"))] == []
    finally:
        gc.enable()
    await client.close()
