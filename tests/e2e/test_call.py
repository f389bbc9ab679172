"""A call through a node, as its client and its backends see it."""

import base64
import json

import aiohttp

from fanout import item_id_for
from tests.support.fleet import Nodes, bearer, event, system_message, token, until

TONE = base64.b64encode(b"\x00\x20\x00\xe0" * 4800)  # 400 ms at full swing: speech to the simulator
SILENCE = base64.b64encode(bytes(19200))


async def say(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Speak for 800 ms, then be silent for 800 ms."""
    for audio in (TONE, TONE, SILENCE, SILENCE):
        await socket.send_str('{"type":"input_audio_buffer.append","audio":"' + audio.decode() + '"}')


async def test_a_spoken_turn_is_answered_with_audio(nodes: Nodes) -> None:
    """The whole path: microphone to model, and its audio back."""
    socket = await nodes.connect(await nodes.add())
    await event(socket, "session.created")
    await say(socket)
    await event(socket, "input_audio_buffer.speech_started")
    delta = await event(socket, "response.output_audio.delta")
    assert len(base64.b64decode(delta["delta"])) > 0
    assert (await event(socket, "response.done"))["response"]["status"] == "completed"


async def test_what_the_client_sends_before_the_model_is_there_arrives_in_order(nodes: Nodes) -> None:
    """The Agents SDKs send their session.update at once, before session.created."""
    await nodes.fault(slow_open=0.3)
    socket = await nodes.connect(await nodes.add())
    for number in range(50):
        item = system_message(str(number)) | {"id": f"item_{number}"}
        await socket.send_str(json.dumps({"type": "conversation.item.create", "item": item}))
    for number in range(50):
        assert (await event(socket, "conversation.item.done"))["item"]["id"] == f"item_{number}"


async def test_a_message_put_on_another_node_is_applied_in_the_call(nodes: Nodes) -> None:
    """The mission: any node reaches the live session, and the receipt says that the model took it."""
    owner, other = await nodes.add("a"), await nodes.add("b")
    socket = await nodes.connect(owner)
    await event(socket, "session.created")
    call_id = _call_id(socket)
    status, receipt = await nodes.put(other, call_id, {"id": "m1", "item": system_message("lunch is ready")})
    assert (status, receipt["status"], receipt["node"]) == (200, "applied", "a")
    assert receipt["item_id"] == item_id_for(call_id, "m1")
    assert set(receipt["reached"]) == {"accepted", "delivered", "applied"}
    assert (await event(socket, "conversation.item.done"))["item"]["id"] == receipt["item_id"]
    received = await nodes.session()
    assert [item["text"] for item in received["items"] if item.get("role") == "system"] == ["lunch is ready"]


async def test_a_message_that_asks_for_a_response_is_answered(nodes: Nodes) -> None:
    """It waits for the response that is under way instead of being lost to conversation_already_has_active_response."""
    node = await nodes.add()
    socket = await nodes.connect(node)
    await event(socket, "session.created")
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello there"}]}
    await socket.send_str(json.dumps({"type": "conversation.item.create", "item": item}))
    await socket.send_str(json.dumps({"type": "response.create"}))
    await event(socket, "response.created")
    body = {"item": system_message("say goodbye"), "response": True}
    status, receipt = await nodes.put(node, _call_id(socket), body, "wait=answered&timeout_ms=20000")
    assert (status, receipt["status"]) == (200, "answered")


async def test_a_tool_result_is_taken_once_and_only_for_a_call_that_was_made(nodes: Nodes) -> None:
    """Keyed by the tool call: a backend that repeats itself, or errs, must not confuse the conversation."""
    owner, other = await nodes.add("a"), await nodes.add("b")
    socket = await nodes.connect(owner)
    tool = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
    session = {"type": "realtime", "tools": [tool], "tool_choice": "required"}
    await socket.send_str(json.dumps({"type": "session.update", "session": session}))
    await socket.send_str(json.dumps({"type": "response.create"}))
    made = await event(socket, "response.function_call_arguments.done")
    await event(socket, "response.done")

    def result(call: str) -> dict[str, object]:
        return {"item": {"type": "function_call_output", "call_id": call, "output": "sunny"}, "response": False}

    status, refused = await nodes.put(other, _call_id(socket), result("call_unknown"))
    assert (status, refused["error"]["code"]) == (409, "unknown_tool_call")
    status, receipt = await nodes.put(other, _call_id(socket), result(made["call_id"]))
    assert (status, receipt["status"]) == (200, "applied")
    status, refused = await nodes.put(other, _call_id(socket), result(made["call_id"]))
    assert (status, refused["error"]["code"]) == (409, "tool_call_answered")


async def test_an_error_of_the_models_reaches_whoever_caused_it(nodes: Nodes) -> None:
    """Several parties speak on one model leg: the client must see its own errors with its own ids, and no other's."""
    node = await nodes.add()
    socket = await nodes.connect(node)
    await event(socket, "session.created")
    bad = {"item": {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "x", "bogus": 1}]}}
    status, receipt = await nodes.put(node, _call_id(socket), bad)
    assert (status, receipt["status"]) == (200, "failed")
    assert receipt["error"]["code"] == "unknown_parameter"
    for event_id in ("mine", "r.1", "c.mine"):  # the relay's own ids look like the last two
        await socket.send_str(json.dumps({"type": "response.cancel", "event_id": event_id}))
        error = await event(socket, "error")
        assert (error["error"]["code"], error["error"]["event_id"]) == ("response_cancel_not_active", event_id)


async def test_calls_are_listed_while_they_live_and_leave_a_tombstone(nodes: Nodes) -> None:
    """Before session.created is forwarded the call can be found; after its end, why it ended."""
    owner, other = await nodes.add("a"), await nodes.add("b")
    socket = await nodes.connect(owner)
    await event(socket, "session.created")
    call_id = _call_id(socket)
    status, listed = await nodes.get(other, "/v1/realtime/calls")
    assert status == 200
    assert [(call["id"], call["node"], call["state"]) for call in listed["data"]] == [(call_id, "a", "live")]
    status, stranger = await _get(nodes, other.url, "/v1/realtime/calls", token("read", tenant="stranger"))
    assert stranger["data"] == []
    await socket.close()

    async def ended() -> bool:
        return (await nodes.get(other, f"/v1/realtime/calls/{call_id}"))[1]["state"] == "ended"

    await until(ended)
    _, tombstone = await nodes.get(other, f"/v1/realtime/calls/{call_id}")
    assert (tombstone["why"], tombstone["fault"]) == ("client_closed", "client")
    status, refused = await nodes.put(other, call_id, {"item": system_message("late")})
    assert (status, refused["error"]["code"]) == (410, "call_ended")


async def test_voice_needs_no_sdk(nodes: Nodes) -> None:
    """/voice sets the default agent's session up, takes raw PCM and gives raw PCM back."""
    agents = nodes.folder / "agents.toml"
    agents.write_text('[agents.default]\nmodel = "sim"\nvoice = "cedar"\ninstructions = "be brief"\n')
    node = await nodes.add(CONFIG=str(agents))
    socket = await nodes.connect(node, "/voice?audio=binary")
    created = (await event(socket, "session.created"))["session"]
    assert (created["audio"]["output"]["voice"], created["instructions"]) == ("cedar", "be brief")
    pcm = base64.b64decode(TONE)
    for chunk in (pcm, pcm, bytes(len(pcm)), bytes(len(pcm))):
        await socket.send_bytes(chunk)
    heard = 0
    while True:
        message = await socket.receive(timeout=10)
        if message.type is aiohttp.WSMsgType.BINARY:
            heard += len(message.data)
        elif json.loads(message.data)["type"] == "response.done":
            break
        else:
            assert json.loads(message.data)["type"] != "response.output_audio.delta"
    assert heard > len(pcm)


async def test_only_clients_that_ask_for_relay_events_get_them(nodes: Nodes) -> None:
    """An unknown event type is an error to the Python Agents SDK."""
    node = await nodes.add()
    plain = await nodes.connect(node, protocols=("realtime",))
    assert plain.protocol == "realtime"
    assert json.loads((await plain.receive()).data)["type"] == "session.created"
    asked = await nodes.connect(node, protocols=("realtime", "relay.events.v1"))
    assert asked.protocol == "relay.events.v1"
    started = json.loads((await asked.receive()).data)
    assert (started["type"], started["call_id"], started["node"]) == ("relay.started", _call_id(asked), "a")


async def test_headers_of_the_client_never_reach_the_model(nodes: Nodes) -> None:
    """OpenAI refuses its old beta header, and the client's token is none of the model's business."""
    socket = await nodes.connect(await nodes.add(), headers={"OpenAI-Beta": "realtime=v1"})
    await event(socket, "session.created")
    headers = {name.lower() for name in (await nodes.session())["headers"]}
    assert "openai-beta" not in headers
    assert "x-call-id" not in headers


async def test_a_call_starts_without_redis_and_is_registered_when_it_is_back(nodes: Nodes) -> None:
    """A Redis outage touches neither live audio nor new calls."""
    nodes.http.headers.update(bearer(token("call")))
    node = await nodes.add(REGIONS="iad=redis://127.0.0.1:1", REGISTER_SECONDS="0.1")
    socket = await nodes.connect(node)
    await event(socket, "session.created")
    await say(socket)
    await event(socket, "response.done")
    status, refused = await nodes.put(node, _call_id(socket), {"item": system_message("x")}, "timeout_ms=500")
    assert (status, refused["error"]["code"]) == (503, "region_unreachable")


async def _get(nodes: Nodes, origin: str, path: str, text: str) -> tuple[int, dict[str, list[object]]]:
    async with nodes.http.get(origin + path, headers=bearer(text)) as response:
        return response.status, await response.json()


def _call_id(socket: aiohttp.ClientWebSocketResponse) -> str:
    return str(socket._response.headers["X-Call-Id"])
