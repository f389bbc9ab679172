"""The official Python SDKs, unmodified, directly at the simulator and through a node: they must not be able to tell."""

from __future__ import annotations

import asyncio
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from agents import function_tool
from agents.realtime import RealtimeAgent, RealtimeRunner, RealtimeSession
from agents.realtime.events import RealtimeSessionEvent
from openai import AsyncOpenAI
from openai.resources.realtime.realtime import AsyncRealtimeConnection
from openai.types.websocket_reconnection import ReconnectingEvent, ReconnectingOverrides
from websockets.exceptions import ConnectionClosedError

from ops.simulator.response import Pace
from ops.simulator.server import Simulator
from ops.simulator.session import Behaviour
from ops.simulator.speech import tone
from relay.app import Node
from tests.e2e.test_resume import REDIALS, known, minted, sessions
from tests.support.doors import Doors
from tests.support.fleet import Nodes, system_message, token
from tests.support.front import Front
from tests.support.redis_server import RedisServer

SPOKEN_TURN = bytes(300 * 48) + tone(1) + bytes(600 * 48)


@dataclass
class Endpoint:
    """Where an SDK is pointed: at the simulator itself, or at a node of the fleet before it."""

    http_url: str
    key: str
    simulator: Simulator

    @property
    def url(self) -> str:
        return self.http_url.replace("http", "ws", 1) + "/v1/realtime"


@asynccontextmanager
async def endpoint(way: str, redis_url: str, folder: Path, pace: Pace) -> AsyncIterator[Endpoint]:
    async with Nodes.running(redis_url, folder, behaviour=Behaviour(pace=pace)) as nodes:
        if way == "direct":
            yield Endpoint(nodes.model.http_url, "sk-test", nodes.model)
        else:
            yield Endpoint((await nodes.add()).url, token("call"), nodes.model)


@pytest.fixture(params=["direct", "relayed"])
async def model(request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[Endpoint]:
    async with endpoint(request.param, redis_server.url, tmp_path, Pace()) as found:
        yield found


@pytest.fixture(params=["direct", "relayed"])
async def slow_model(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path
) -> AsyncIterator[Endpoint]:
    """Answers in real time, so that there is time to interrupt them."""
    async with endpoint(request.param, redis_server.url, tmp_path, Pace(speed=1)) as found:
        yield found


@pytest.fixture
async def sdk(model: Endpoint) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(api_key=model.key, base_url=f"{model.http_url}/v1") as client:
        yield client


async def hear(rt: AsyncRealtimeConnection, pcm: bytes) -> None:
    for i in range(0, len(pcm), 4_800):
        await rt.input_audio_buffer.append(audio=b64encode(pcm[i : i + 4_800]).decode())


async def until(rt: AsyncRealtimeConnection, kind: str) -> list[Any]:
    events: list[Any] = []
    async with asyncio.timeout(10):
        while not events or events[-1].type != kind:
            events.append(await rt.recv())
    return events


async def test_openai_a_spoken_turn(sdk: AsyncOpenAI):
    async with sdk.realtime.connect(model="sim") as rt:
        first = await rt.recv()
        assert first.type == "session.created"
        await rt.session.update(
            session={"type": "realtime", "audio": {"input": {"transcription": {"model": "whisper-1"}}}}
        )
        await hear(rt, SPOKEN_TURN)
        events = await until(rt, "response.done")
        audio = b"".join(b64decode(event.delta) for event in events if event.type == "response.output_audio.delta")
        assert audio == SPOKEN_TURN[: len(audio)]
        assert len(audio) == 1400 * 48
        transcript = next(event.transcript for event in events if event.type == "response.output_audio_transcript.done")
        assert transcript == "You said 1.0 seconds of speech."
        assert events[-1].response.usage.total_tokens > 0


async def test_openai_a_text_turn_a_tool_and_an_error(sdk: AsyncOpenAI):
    tool: Any = {
        "type": "function",
        "name": "lookup",
        "parameters": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
    }
    async with sdk.realtime.connect(model="sim") as rt:
        await rt.session.update(session={"type": "realtime", "tools": [tool], "output_modalities": ["text"]})
        hello: Any = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "lookup, please"}]}
        await rt.conversation.item.create(item=hello)
        await rt.response.create()
        call = (await until(rt, "response.done"))[-1].response.output[0]
        assert (call.type, call.name, call.arguments) == ("function_call", "lookup", '{"q": "test"}')
        await rt.conversation.item.create(
            item={"type": "function_call_output", "call_id": call.call_id, "output": "42"}
        )
        await rt.response.create()
        assert (await until(rt, "response.output_text.done"))[-1].text == "The tool said: 42"
        await until(rt, "response.done")
        await rt.conversation.item.delete(item_id="nothing", event_id="mine")
        error = (await until(rt, "error"))[-1].error
        assert (error.code, error.event_id) == ("item_delete_invalid_item_id", "mine")


async def test_openai_cancel_barge_in_and_truncate(slow_model: Endpoint):
    url = f"{slow_model.http_url}/v1"
    async with AsyncOpenAI(api_key=slow_model.key, base_url=url) as sdk, sdk.realtime.connect(model="sim") as rt:
        await rt.response.create(response={"instructions": "count " * 200})
        await until(rt, "response.output_audio.delta")
        await rt.response.cancel()
        done = (await until(rt, "response.done"))[-1].response
        assert (done.status, done.status_details.reason) == ("cancelled", "client_cancelled")
        await hear(rt, SPOKEN_TURN)
        delta = (await until(rt, "response.output_audio.delta"))[-1]
        await hear(rt, tone(0.2))
        events = await until(rt, "response.done")
        assert "input_audio_buffer.speech_started" in [event.type for event in events]
        assert events[-1].response.status_details.reason == "turn_detected"
        await rt.conversation.item.truncate(item_id=delta.item_id, content_index=0, audio_end_ms=150)
        assert (await until(rt, "conversation.item.truncated"))[-1].audio_end_ms == 150
        await rt.conversation.item.retrieve(item_id=delta.item_id)
        item = (await until(rt, "conversation.item.retrieved"))[-1].item
        assert b64decode(item.content[0].audio) == SPOKEN_TURN[: 150 * 48]


async def test_openai_a_message_of_megabytes_goes_both_ways(sdk: AsyncOpenAI):
    async with sdk.realtime.connect(model="sim") as rt:
        pcm = bytes(range(256)) * 16_384  # 4 MiB
        item: Any = {"type": "message", "role": "user", "id": "big", "content": [{"type": "input_audio"}]}
        item["content"][0]["audio"] = b64encode(pcm).decode()
        await rt.conversation.item.create(item=item)
        await rt.conversation.item.retrieve(item_id="big")
        retrieved = (await until(rt, "conversation.item.retrieved"))[-1].item
        assert b64decode(retrieved.content[0].audio) == pcm


# -- openai-agents ---------------------------------------------------------------------------------------------------


@function_tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


async def agents_until(session: RealtimeSession, kind: str) -> list[RealtimeSessionEvent]:
    events: list[RealtimeSessionEvent] = []
    async with asyncio.timeout(10):
        async for event in session:
            assert event.type != "error", event
            events.append(event)
            if event.type == kind:
                return events
    raise AssertionError("the session ended")


def runner(model: Endpoint, *, with_tool: bool) -> tuple[RealtimeRunner, Any]:
    agent = RealtimeAgent(name="test", instructions="Be brief.", tools=[get_weather] if with_tool else [])
    return RealtimeRunner(agent), {"api_key": model.key, "url": f"{model.url}?model=sim"}


async def test_agents_a_spoken_turn_calls_a_tool_and_tells_its_output(model: Endpoint):
    """The whole loop of the Agents SDK: its session.update before session.created, its retrieves, its tool answer."""
    run, config = runner(model, with_tool=True)
    async with await run.run(model_config=config) as session:
        await session.send_audio(SPOKEN_TURN)
        events = await agents_until(session, "tool_end")
        assert events[-1].type == "tool_end"
        assert events[-1].output == "sunny in test"
        events = await agents_until(session, "audio_end")
        assert any(event.type == "audio" for event in events)
    (record,) = model.simulator.ledger
    detail = record.detail()
    assert [item["text"] for item in detail["items"]][-1] == "The tool said: sunny in test"


async def test_agents_a_text_turn_is_answered_with_audio(model: Endpoint):
    run, config = runner(model, with_tool=False)
    async with await run.run(model_config=config) as session:
        await session.send_message("good morning")
        await agents_until(session, "audio_end")
        await agents_until(session, "agent_end")


async def test_agents_an_interruption_truncates_the_answer(slow_model: Endpoint):
    """The SDK sends the truncate itself; the simulator must find it plausible, or an error event would come back."""
    run, config = runner(slow_model, with_tool=False)
    async with await run.run(model_config=config) as session:
        await session.send_audio(SPOKEN_TURN)
        await agents_until(session, "audio")
        await session.send_audio(tone(0.2) + bytes(600 * 48))
        await agents_until(session, "audio_interrupted")
        await agents_until(session, "audio_end")
        await agents_until(session, "audio_end")
    (record,) = slow_model.simulator.ledger
    assert record.received["conversation.item.truncate"] == 1
    assert record.sent["error"] == 0


async def test_agents_keep_their_turns_while_backends_want_responses_too(nodes: Nodes):
    """The SDK waits for response.created and .done, whoever asked: nobody's response is lost, and no error comes."""
    node = await nodes.add()
    agent = RealtimeAgent(name="agent", instructions="Be brief.", tools=[get_weather])
    url = f"{node.url.replace('http', 'ws', 1)}/v1/realtime?model=sim"
    async with await RealtimeRunner(agent).run(model_config={"api_key": token("call"), "url": url}) as session:
        _, listed = await nodes.get(node, "/v1/realtime/calls")
        call_id = listed["data"][0]["id"]

        async def put(number: int) -> tuple[int, Any]:
            when = ("now", "turn_end", "interrupt")[number % 3]
            body = {"item": system_message(f"message {number}"), "response": True, "when": when}
            return await nodes.put(node, call_id, body, "wait=answered&timeout_ms=40000")

        async with asyncio.TaskGroup() as tasks:
            putting = [tasks.create_task(put(number)) for number in range(9)]
            for words in ("one", "two", "get weather, please"):
                await session.send_message(words)
                await asyncio.sleep(0.3)  # somewhere among the others' responses
        assert [(each.result()[0], each.result()[1]["status"]) for each in putting] == [(200, "answered")] * 9
        await agents_until(session, "tool_end")
        await session.send_message("last words")
        (record,) = nodes.model.ledger
        async with asyncio.timeout(20):
            while not any(
                "last words" in item["text"] and item["role"] == "assistant" for item in record.detail()["items"]
            ):
                await anext(aiter(session))
        assert record.sent["error"] == 0


# -- attached to a live call -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("names_call", [True, False], ids=["call_id", "url"])
async def test_agents_attached_to_a_call_talks_and_leaves_it_as_it_is(nodes: Nodes, names_call: bool):
    """It takes the address from ``url`` alone; what its setup sends is the call's session from then on."""
    owner, other = await nodes.add("a"), await nodes.add("b")
    async with (
        AsyncOpenAI(api_key=token("call"), base_url=f"{owner.url}/v1") as sdk,
        sdk.realtime.connect(model="sim") as client,
    ):
        await until(client, "session.created")
        call_id = client._connection.response.headers["X-Call-Id"]
        url = f"{other.url.replace('http', 'ws', 1)}/v1/realtime?call_id={call_id}"
        config: Any = {"api_key": token("control"), "url": url} | ({"call_id": call_id} if names_call else {})
        supervisor = RealtimeAgent(name="supervisor", instructions="Supervise.", tools=[get_weather])
        async with await RealtimeRunner(supervisor).run(model_config=config) as session:
            updated = (await until(client, "session.updated"))[-1].session
            assert (updated.instructions, [each.name for each in updated.tools]) == ("Supervise.", ["get_weather"])
            await session.send_message("get weather, please")
            events = await agents_until(session, "tool_end")
            assert events[-1].output == "sunny in test"
            first = (await until(client, "response.done"))[-1].response
            second = (await until(client, "response.done"))[-1].response
            assert [first.output[0].type, second.output[0].type] == ["function_call", "message"]
            assert second.output[0].content[0].transcript.startswith("The tool said: sunny in test")
            assert "audio" not in [event.type for event in await agents_until(session, "audio_end")]
        await client.response.create()
        assert (await until(client, "response.done"))[-1].response.status == "completed"


# -- what outlives a deploy and a change of networks (docs/sdks.md shows these lines) ----------------------------------


@asynccontextmanager
async def deployment(nodes: Nodes) -> AsyncIterator[tuple[Front, Node, str, str]]:
    """Two nodes behind one address, the first to be chosen, and a client secret of the second's with its call's id."""
    async with nodes.node("a", **REDIALS | {"DRAIN_SECONDS": "20"}) as first:
        second = await nodes.add("b", **REDIALS)
        doors = Doors(nodes.http, {name: (each.url, each.ops_url) for name, each in (("a", first), ("b", second))})
        async with Front.running(doors) as front:
            key, call_id = await minted(nodes, second)
            yield front, first, key, call_id


def go_on(event: ReconnectingEvent) -> ReconnectingOverrides | None:
    """Connect again, after ``event.delay`` seconds, with the same client secret: it names the call."""
    return None


async def ask(rt: AsyncRealtimeConnection, words: str) -> None:
    item: Any = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": words}]}
    await rt.conversation.item.create(item=item)
    await rt.response.create()


@pytest.mark.parametrize("trouble", ["a deploy", "a change of networks", "an upstream loss"])
async def test_openai_goes_on_with_its_call(nodes: Nodes, trouble: str):
    """With ``on_reconnecting`` the iterator goes on as if nothing had been but another session.created."""
    asked, kinds = 0, []
    async with deployment(nodes) as (front, first, key, _):
        client = AsyncOpenAI(api_key=key, base_url=f"{front.url}/v1")
        async with asyncio.timeout(15), client, client.realtime.connect(model="sim", on_reconnecting=go_on) as rt:
            async for event in rt:
                kinds.append(event.type)
                if event.type == "session.created" and asked == 0:
                    await ask(rt, "My name is Ada.")
                    asked = 1
                elif event.type == "response.done" and asked == 2:
                    break
                elif event.type == "response.done" and trouble == "a deploy":
                    first.drain()
                elif event.type == "response.done" and trouble == "a change of networks":
                    front.cut()
                elif event.type == "response.done":
                    for connection in list(nodes.model._connections):
                        connection.abort()
                    await ask(rt, "What is my name?")
                    asked = 2
                elif event.type == "session.created":
                    await ask(rt, "What is my name?")
                    asked = 2
        said = [text for _, role, text in known((await sessions(nodes))[-1]) if role == "user"]
    assert said == ["My name is Ada.", "What is my name?"]
    assert kinds.count("session.created") == (1 if trouble == "an upstream loss" else 2)
    assert "error" not in kinds
    assert len(await sessions(nodes)) == 2


async def test_openai_that_did_not_opt_in_is_told_and_goes_on_with_a_new_connection(nodes: Nodes):
    """1012 is an exception of the iterator's; the same secret opens the same call on the node that is ready."""
    async with (
        deployment(nodes) as (front, first, key, call_id),
        AsyncOpenAI(api_key=key, base_url=f"{front.url}/v1") as client,
    ):
        async with client.realtime.connect(model="sim") as rt:
            await until(rt, "session.created")
            await ask(rt, "My name is Ada.")
            await until(rt, "response.done")
            first.drain()
            with pytest.raises(ConnectionClosedError) as end:
                await until(rt, "never")
            assert end.value.rcvd is not None
            assert end.value.rcvd.code == 1012
        async with client.realtime.connect(model="sim") as rt:
            await until(rt, "session.created")
            assert rt._connection.response.headers["X-Call-Id"] == call_id
            await ask(rt, "What is my name?")
            await until(rt, "response.done")
    assert [text for _, role, text in known((await sessions(nodes))[-1]) if role == "user"][0] == "My name is Ada."


async def test_agents_do_not_reconnect_and_a_new_session_goes_on_with_the_call(nodes: Nodes):
    """The session's iterator raises; another session with the same secret has the model with all that was said."""
    agent = RealtimeAgent(name="agent", instructions="Be brief.", tools=[get_weather])
    async with deployment(nodes) as (front, first, key, _):
        config: Any = {"api_key": key, "url": f"{front.url.replace('http', 'ws', 1)}/v1/realtime?model=sim"}
        async with await RealtimeRunner(agent).run(model_config=config) as session:
            await session.send_message("My name is Ada.")
            await agents_until(session, "agent_end")
            first.drain()
            with pytest.raises(ConnectionClosedError) as end:
                await agents_until(session, "never")
            assert end.value.rcvd is not None
            assert end.value.rcvd.code == 1012
        async with await RealtimeRunner(agent).run(model_config=config) as session:
            await session.send_message("get weather, please")
            events = await agents_until(session, "tool_end")
            assert events[-1].type == "tool_end"
            await agents_until(session, "agent_end")
    old, new = await sessions(nodes)
    assert known(new)[: len(known(old))] == known(old)
    updates = [each["session"] for each in new["events"] if each["type"] == "session.update"]
    assert [each["instructions"] for each in updates if "instructions" in each] == ["Be brief."], "it is so already"


async def test_agents_do_not_notice_that_another_model_answers(nodes: Nodes):
    """Their gate of responses waits for every response to end: the one that is cut off does, and the next is heard."""
    agent = RealtimeAgent(name="agent", instructions="Be brief.")
    node = await nodes.add(**REDIALS)
    config: Any = {"api_key": token("call"), "url": f"{node.url.replace('http', 'ws', 1)}/v1/realtime?model=sim"}
    async with await RealtimeRunner(agent).run(model_config=config) as session:
        await session.send_message("Please talk for 10 seconds.")
        await agents_until(session, "audio")
        for connection in list(nodes.model._connections):
            connection.abort()
        await agents_until(session, "agent_end")
        await agents_until(session, "agent_end")
        await session.send_message("And now?")
        await agents_until(session, "agent_end")
    _, new = await sessions(nodes)
    words = [(role, text) for _, role, text in known(new)]
    assert [text for role, text in words if role == "user"] == ["Please talk for 10 seconds.", "And now?"]
    assert words[-1][1].startswith("You said: And now?")
    assert new["sent"].get("error", 0) == 0


async def test_a_side_leg_that_opted_in_attaches_through_another_node(nodes: Nodes):
    """The call, which is on that node, has noticed nothing."""
    async with deployment(nodes) as (front, first, key, call_id):
        client = await nodes.connect(await nodes.add("c", **REDIALS), headers={"Authorization": f"Bearer {key}"})
        sdk = AsyncOpenAI(api_key=token("control"), base_url=f"{front.url}/v1")
        async with asyncio.timeout(10), sdk, sdk.realtime.connect(call_id=call_id, on_reconnecting=go_on) as rt:
            attached = 0
            async for event in rt:
                if event.type == "session.created":
                    attached += 1
                    if attached == 2:
                        await ask(rt, "Do you hear me?")
                    else:
                        first.drain()
                elif event.type == "response.done":
                    break
        assert attached == 2
        await client.close()


def test_the_documentation_shows_lines_that_run_here():
    """What people copy must be what was seen to work."""
    root = Path(__file__).parent.parent
    sources = [Path(__file__), root / "clients" / "openai_ws.mjs"]
    run = {line.strip() for source in sources for line in source.read_text().splitlines()}
    blocks = (root.parent / "docs" / "sdks.md").read_text().split("```")[1::2]
    shown = [line.strip() for block in blocks for line in block.splitlines()[1:]]
    assert len(shown) > 5
    assert [line for line in shown if not any(line in each for each in run)] == []
