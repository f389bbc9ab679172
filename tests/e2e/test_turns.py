"""The turn gate on a live node: when messages go in and who is answered, as the model and the client see it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ops.simulator.response import Pace
from ops.simulator.session import Behaviour
from relay.demo import declare_settled
from tests.support.fleet import Nodes, event, system_message
from tests.support.redis_server import RedisServer

TOOLS = [
    {"type": "function", "name": name, "parameters": {"type": "object", "properties": {}}}
    for name in ("get_weather", "get_stock")
]
TALK_SECONDS = 3


async def say(socket: aiohttp.ClientWebSocketResponse, words: str, **session: Any) -> None:
    """The person types, and wants an answer."""
    if session:
        await socket.send_json({"type": "session.update", "session": {"type": "realtime", **session}})
        await event(socket, "session.updated")
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": words}]}
    await socket.send_json({"type": "conversation.item.create", "item": item})
    await socket.send_json({"type": "response.create"})


def call_id(socket: aiohttp.ClientWebSocketResponse) -> str:
    return socket._response.headers["X-Call-Id"]


async def events_until_quiet(socket: aiohttp.ClientWebSocketResponse, seconds: float = 0.6) -> list[dict[str, Any]]:
    """What the client gets until nothing has come for a while."""
    found = []
    while True:
        try:
            message = await socket.receive(timeout=seconds)
        except TimeoutError:
            return found
        assert message.type is aiohttp.WSMsgType.TEXT
        found.append(json.loads(message.data))


async def test_two_tool_calls_of_a_response_have_one_answer(nodes: Nodes) -> None:
    """Each result has its receipt; the model speaks once, knowing both."""
    node = await nodes.add()
    socket = await nodes.connect(node)
    await say(socket, "please get weather and get stock", tools=TOOLS)
    called = (await event(socket, "response.done"))["response"]["output"]
    assert [item["type"] for item in called] == ["function_call", "function_call"]

    async def answer(tool_call: str) -> tuple[int, Any]:
        item = {"type": "function_call_output", "call_id": tool_call, "output": "{}"}
        return await nodes.put(node, call_id(socket), {"item": item}, "wait=answered&timeout_ms=20000")

    async with asyncio.TaskGroup() as tasks:
        answers = [tasks.create_task(answer(item["call_id"])) for item in called]
    assert [(each.result()[0], each.result()[1]["status"]) for each in answers] == [(200, "answered")] * 2
    kinds = [each["type"] for each in await events_until_quiet(socket)]
    assert kinds.count("response.created") == 1


async def test_a_message_for_the_turns_end_waits_until_the_answer_was_heard(nodes: Nodes) -> None:
    """The model has sent its audio long before; the person still listens."""
    node = await nodes.add()
    socket = await nodes.connect(node)
    await say(socket, f"talk for {TALK_SECONDS} seconds")
    loop = asyncio.get_running_loop()
    await event(socket, "response.output_audio.delta")
    begun = loop.time()
    await event(socket, "response.done")
    assert loop.time() - begun < TALK_SECONDS / 2
    body = {"item": system_message("by the way"), "when": "turn_end"}
    status, receipt = await nodes.put(node, call_id(socket), body)
    assert (status, receipt["status"]) == (200, "applied")
    assert TALK_SECONDS - 0.2 <= loop.time() - begun < TALK_SECONDS + 1.0


@pytest.mark.parametrize("path", ["/voice", "/v1/realtime?model=sim"], ids=["told to clear", "an SDK's"])
async def test_an_interruption_cuts_what_was_not_heard_and_is_answered(nodes: Nodes, path: str) -> None:
    """The model is told how much the person heard; a client that understands it is told to stop playing."""
    agents = nodes.folder / "agents.toml"
    agents.write_text('[agents.default]\nmodel = "sim"\n')
    node = await nodes.add(CONFIG=str(agents))
    socket = await nodes.connect(node, path)
    await say(socket, f"talk for {TALK_SECONDS} seconds")
    await event(socket, "response.done")
    body = {"item": system_message("stop that"), "when": "interrupt", "response": True}
    status, receipt = await nodes.put(node, call_id(socket), body, "wait=answered&timeout_ms=20000")
    assert (status, receipt["status"]) == (200, "answered")
    seen = await events_until_quiet(socket)
    (cut,) = [each for each in seen if each["type"] == "conversation.item.truncated"]
    assert 0 < cut["audio_end_ms"] < TALK_SECONDS * 1000 - 500
    kinds = [each["type"] for each in seen]
    assert kinds.count("output_audio_buffer.cleared") == (1 if path == "/voice" else 0)
    assert kinds.index("conversation.item.truncated") < kinds.index("response.created")


async def test_an_interruption_ends_a_response_that_is_active(tmp_path: Path, redis_server: RedisServer) -> None:
    """At once, in the middle of its audio."""
    slow = Behaviour(pace=Pace(speed=1.0))
    async with Nodes.running(redis_server.url, tmp_path, behaviour=slow) as nodes:
        await declare_settled(redis_server.url, nodes.prefix)
        node = await nodes.add()
        socket = await nodes.connect(node, protocols=("realtime", "relay.events.v1"))
        await say(socket, f"talk for {TALK_SECONDS * 4} seconds")
        await event(socket, "response.output_audio.delta")
        body = {"item": system_message("stop that"), "when": "interrupt"}
        status, _ = await nodes.put(node, call_id(socket), body)
        assert status == 200
        done = (await event(socket, "response.done"))["response"]
        assert (done["status"], done["status_details"]["reason"]) == ("cancelled", "client_cancelled")
        assert (await event(socket, "output_audio_buffer.cleared"))["response_id"] == done["id"]


async def test_a_hidden_item_is_not_shown_and_does_not_exist_for_the_client(nodes: Nodes) -> None:
    """What follows it is shown as following what the client knows."""
    node = await nodes.add()
    socket = await nodes.connect(node)
    await event(socket, "session.created")
    await nodes.put(node, call_id(socket), {"item": system_message("seen")})
    first = (await event(socket, "conversation.item.done"))["item"]["id"]
    _, hidden = await nodes.put(node, call_id(socket), {"item": system_message("secret"), "visible": False})
    await nodes.put(node, call_id(socket), {"item": system_message("seen too")})
    await socket.send_json({"type": "conversation.item.retrieve", "item_id": hidden["item_id"], "event_id": "mine"})
    error = (await event(socket, "error"))["error"]
    assert (error["code"], error["event_id"]) == ("item_retrieve_invalid_item_id", "mine")
    await nodes.put(node, call_id(socket), {"item": system_message("and this")})
    seen = await events_until_quiet(socket)
    assert hidden["item_id"] not in json.dumps(seen)
    assert [item["text"] for item in (await nodes.session())["items"]][:2] == ["seen", "secret"]
    assert first not in {each["item"]["id"] for each in seen if "item" in each}
