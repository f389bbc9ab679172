"""A call outlives its model legs: what is lost with one, what another is told, and when there is no use in trying."""

import asyncio
import json
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from ops.simulator.output import Pace
from ops.simulator.session import Behaviour
from ops.simulator.speech import tone
from relay.app import Node
from relay.core.bridge import Phase
from relay.demo import declare_settled
from tests.e2e.test_resume import ASK, REDIALS, ends, known, live, say, sessions, talk, words
from tests.support.fleet import Nodes, closed, event, session_of, system_message, until
from tests.support.redis_server import RedisServer

Socket = aiohttp.ClientWebSocketResponse
FRAME = 960  # bytes of 20 ms
TOOL = {"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}}
MANUAL = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}


def lose_model(nodes: Nodes) -> None:
    """Cut the sessions that the model has."""
    for connection in list(nodes.model._connections):
        connection.abort()


def id_of(client: Socket) -> str:
    return client._response.headers["X-Call-Id"]


async def replaced(nodes: Nodes, sessions_before: int = 1) -> None:
    """Until the model has another session that is open."""

    async def is_there() -> bool:
        found = await sessions(nodes)
        return len(found) > sessions_before and found[-1]["open"]

    await until(is_there)


async def events_until(client: Socket, kind: str, seconds: float = 10.0) -> list[dict[str, Any]]:
    """All events up to one of this type."""
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(seconds):
        while not found or found[-1]["type"] != kind:
            found.append(await client.receive_json())
    return found


async def metric(nodes: Nodes, node: Node, sample: str) -> float:
    """A sample of the node's metrics."""
    async with nodes.http.get(node.ops_url + "/metrics") as response:
        lines = (line.rpartition(" ") for line in (await response.text()).splitlines())
        return next(float(value) for name, _, value in lines if name == sample)


def append(pcm: bytes) -> dict[str, Any]:
    return {"type": "input_audio_buffer.append", "audio": b64encode(pcm).decode()}


def audio_of(events: list[dict[str, Any]]) -> bytes:
    return b"".join(b64decode(each["delta"]) for each in events if each["type"] == "response.output_audio.delta")


@asynccontextmanager
async def paced(redis_server: RedisServer, nodes: Nodes, **pace: Any) -> AsyncIterator[Nodes]:
    """Nodes whose model speaks at another pace."""
    async with Nodes.running(redis_server.url, nodes.folder, behaviour=Behaviour(pace=Pace(**pace))) as other:
        await declare_settled(redis_server.url, other.prefix)
        yield other


# Which losses are mended


@pytest.mark.parametrize(
    "refusals",
    [[{"hang": True}], [{"refuse": 503}, {"refuse": 500}], [{"refuse": 429}], [{"close": 1011}], [{"stall": True}]],
    ids=json.dumps,
)
async def test_a_model_that_is_not_there_at_once_is_asked_again(nodes: Nodes, refusals: list[dict[str, Any]]) -> None:
    """It may hang, refuse, be busy, fail, or answer nothing: as long as the budget lasts it is tried again."""
    node = await nodes.add(**REDIALS, DIAL_SECONDS="0.3", APPLY_SECONDS="0.3")
    client = await live(nodes, node)
    await talk(client, "My name is Ada.")
    for refusal in refusals:
        await nodes.fault(**refusal)
    before = len(await sessions(nodes))
    lose_model(nodes)

    async def is_mended() -> bool:
        return await metric(nodes, node, 'relay_model_redials_total{outcome="rebuilt"}') >= 1

    await until(is_mended)
    assert "name" in await talk(client, "What is my name?")
    last = (await sessions(nodes))[-1]
    assert [text for _, _, text in known(last)][:3:2] == ["My name is Ada.", "What is my name?"]
    assert len(await sessions(nodes)) > before
    assert await metric(nodes, node, 'relay_model_redials_total{outcome="failed"}') == 0
    await client.close()


FINAL: list[tuple[dict[str, Any], str, int]] = [
    ({"close": 3000}, "model_key", 1008),
    ({"close": 4000, "reason": "invalid_request_error.missing_model"}, "model_closed", 4000),
    ({"error": "insufficient_quota", "close": 1000}, "model_refused", 1008),
    ({"refuse": 401}, "model_key", 1008),
    ({"refuse": 404}, "model_refused", 1008),
]


@pytest.mark.parametrize(("fault", "why", "code"), FINAL, ids=[json.dumps(fault) for fault, _, _ in FINAL])
async def test_a_model_that_will_not_have_the_call_ends_it_at_once(
    nodes: Nodes, fault: dict[str, Any], why: str, code: int
) -> None:
    """No other leg would fare better: the person hears now that it is over, and an operator reads why."""
    node = await nodes.add(**REDIALS)
    client = await live(nodes, node)
    await nodes.fault(**fault, count=50)
    lose_model(nodes)
    found, events = await closed(client)
    assert found == code
    if "refuse" in fault:
        assert [each["type"] for each in events] == ["error"]
    assert (await ends(nodes, node, id_of(client)))["why"] == why
    assert (await nodes.sim_health())["pending_faults"] == 49, "it was asked once"


@pytest.mark.parametrize(
    ("fault", "why", "code"),
    [
        ({"close": 3000}, "model_key", 1008),
        ({"close": 4000}, "model_closed", 4000),
        ({"error": "insufficient_quota", "close": 1011}, "model_closed", 1011),
    ],
    ids=json.dumps,
)
async def test_a_model_that_ends_a_call_for_good_is_not_asked_again(
    nodes: Nodes, fault: dict[str, Any], why: str, code: int
) -> None:
    """An account without money stays without: its reason comes before the close."""
    await nodes.fault(**fault, after=0.3)
    node = await nodes.add(**REDIALS)
    client = await live(nodes, node)
    found, events = await closed(client)
    assert found == code
    told = [each["error"]["code"] for each in events if each["type"] == "error"]
    assert told == [fault[key] for key in fault if key == "error"]
    assert (await ends(nodes, node, id_of(client)))["why"] == why
    assert len(await sessions(nodes)) == 1


async def test_a_call_without_a_model_for_too_long_ends_as_its_first_loss_says(nodes: Nodes) -> None:
    """That is what happened to it; that the model then could not be reached is only why it was not mended."""
    node = await nodes.add(**REDIALS | {"REDIAL_SECONDS": "0.6"})
    client = await live(nodes, node)
    await nodes.fault(refuse=503, count=100)
    clock = asyncio.get_running_loop().time
    lose_model(nodes)
    begun = clock()
    code, events = await closed(client)
    assert 0.5 < clock() - begun < 3
    assert (code, [each["error"]["code"] for each in events]) == (1011, ["model_lost"])
    assert (await ends(nodes, node, id_of(client)))["why"] == "model_lost"
    assert await metric(nodes, node, 'relay_model_redials_total{outcome="failed"}') == 1


# What was open on the leg that is gone


def check_order(events: list[dict[str, Any]]) -> None:
    """Check what the state machines of SDKs count on: one response at a time, ends from the inside out."""
    open_: list[str] = []
    for each in events:
        kind = each["type"]
        if kind == "response.created":
            assert not open_
            open_ = [each["response"]["id"]]
        elif kind == "response.done":
            assert open_ == [each["response"]["id"]]
            open_ = []
        elif kind.startswith("response."):
            assert open_[0] == each["response_id"]
            if kind.endswith(("item.added", "part.added")):
                open_.append(each["item"]["id"] if "item" in each else each["item_id"])
            elif kind == "response.content_part.done":
                assert open_.pop() == each["item_id"]
            elif kind == "response.output_item.done":
                assert open_.pop() == each["item"]["id"]
            else:
                assert open_[-1] == each["item_id"]
    assert not open_


async def test_an_answer_that_is_cut_off_ends_as_cancelled_and_is_asked_for_again(nodes: Nodes) -> None:
    """An SDK waits for ever for a response without its end; the model goes on from what it had said."""
    await nodes.fault(reset=True, events=30)
    node = await nodes.add(**REDIALS)
    client = await live(nodes, node)
    await client.send_json(say("Please talk for 10 seconds", "item_question"))
    await client.send_json(ASK)
    events = await events_until(client, "response.done")
    cut = events[-1]["response"]
    assert (cut["status"], cut["status_details"]["reason"]) == ("cancelled", "client_cancelled")
    kinds = [each["type"] for each in events]
    assert kinds[kinds.index("response.output_audio.done") :] == [
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "response.output_item.done",
        "conversation.item.done",
        "response.done",
    ]
    said = "".join(each["delta"] for each in events if each["type"] == "response.output_audio_transcript.delta")
    assert words(cut["output"][0]) == said
    second = await events_until(client, "response.done")
    assert (second[-1]["response"]["status"], second[-1]["response"]["id"] == cut["id"]) == ("completed", False)
    check_order(events + second)
    assert "session.created" not in {each["type"] for each in events + second}
    _, new = await sessions(nodes)
    assert known(new)[0] == ("item_question", "user", "Please talk for 10 seconds")
    item_id, role, text = known(new)[1]
    assert (item_id, role) == (cut["output"][0]["id"], "assistant")
    assert text.strip()
    assert said.startswith(text.removesuffix("…").rstrip())
    await client.close()


@pytest.mark.parametrize("from_whom", ["client", "backend"])
async def test_a_tool_call_that_was_open_has_its_result_on_the_new_leg(nodes: Nodes, from_whom: str) -> None:
    """Tools are slow: the model that asked is gone when they answer, and the other one must know the question."""
    node = await nodes.add(**REDIALS)
    client = await live(nodes, node)
    await client.send_json({"type": "session.update", "session": {"type": "realtime", "tools": [TOOL]}})
    await client.send_json(say("get weather, please"))
    await client.send_json(ASK)
    call = (await event(client, "response.done"))["response"]["output"][0]
    assert call["type"] == "function_call"
    lose_model(nodes)
    await replaced(nodes)
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    if from_whom == "client":
        await client.send_json({"type": "conversation.item.create", "item": result})
        await client.send_json(ASK)
    else:
        assert (await nodes.put(node, id_of(client), {"item": result}))[0] == 200
    done = (await event(client, "response.done"))["response"]
    assert words(done["output"][0]).startswith("The tool said: sunny")
    _, new = await sessions(nodes)
    assert [item["type"] for item in new["items"] if not item["id"].startswith("relay_anchor")][1:3] == [
        *("function_call", "function_call_output")
    ]
    status, refused = await nodes.put(node, id_of(client), {"item": result})
    assert (status, refused["error"]["code"]) == (409, "tool_call_answered")
    await client.close()


async def test_messages_that_were_on_their_way_are_in_the_conversation_once(nodes: Nodes) -> None:
    """The model had them, but nobody knows: they are said again to another one, in their order, and no third time."""
    node = await nodes.add(**REDIALS)
    client = await live(nodes, node)
    leg = session_of(id_of(client)).model.leg
    leg.pause()  # what the model answers is not read any more

    async def has_all() -> bool:
        return len((await nodes.session())["items"]) == 5

    async with asyncio.TaskGroup() as tasks:
        putting = []
        for number in range(5):
            body = {"item": system_message(f"message {number}"), "id": f"m{number}"}
            putting.append(tasks.create_task(nodes.put(node, id_of(client), body, "wait=applied&timeout_ms=8000")))

            async def has_it(number: int = number) -> bool:
                return len((await nodes.session())["items"]) == number + 1

            await until(has_it)
        assert not any(each.done() for each in putting)
        lose_model(nodes)
        leg.resume()
        leg.abort()
    assert [each.result()[1]["status"] for each in putting] == ["applied"] * 5
    _, new = await sessions(nodes)
    assert [text for _, _, text in known(new)] == [f"message {number}" for number in range(5)]
    await client.close()


async def test_items_that_the_new_leg_refuses_are_left_out_and_counted(nodes: Nodes) -> None:
    """A hole in the conversation is better than none at all; an operator sees that there is one."""
    node = await nodes.add(**REDIALS)
    client = await live(nodes, node, protocols=["relay.events.v1"])
    for text in ("one", "two"):
        await talk(client, text)
    await nodes.fault(refuse_items=3)
    lose_model(nodes)
    resumed = await event(client, "relay.resumed")
    assert (resumed["model"], resumed["kept"]["items"], resumed["lost"]["items"]) == ("rebuilt", 4, 3)
    _, new = await sessions(nodes)
    assert [role for _, role, _ in known(new)] == ["assistant"]
    assert await metric(nodes, node, "relay_items_skipped_total") == 3
    assert await talk(client, "Still there?")
    await client.close()


async def test_what_the_client_says_meanwhile_reaches_the_new_leg_in_order(nodes: Nodes) -> None:
    """Not a frame is missing: the model says back what it heard, byte for byte."""
    node = await nodes.add(**REDIALS)
    client = await live(nodes, node)
    await client.send_json({"type": "session.update", "session": MANUAL})
    await event(client, "session.updated")
    await nodes.fault(slow_open=0.5)
    lose_model(nodes)
    call = session_of(id_of(client))
    await until(lambda: call._bridge.phase is Phase.REDIALLING)
    pcm = b"".join(number.to_bytes(2, "little") * (FRAME // 2) for number in range(1000, 1100))
    for at in range(0, len(pcm), FRAME):
        await client.send_json(append(pcm[at : at + FRAME]))
    assert call._bridge.phase is Phase.REDIALLING
    await client.send_json({"type": "input_audio_buffer.commit"})
    await client.send_json(ASK)
    assert audio_of(await events_until(client, "response.done")) == pcm
    await client.close()


# A session's end


async def test_a_session_that_ends_before_it_could_be_replaced_is_a_loss_like_any_other(nodes: Nodes) -> None:
    """Its error says "your session has expired", which the client's has not."""
    await nodes.fault(expire=1.5)
    await nodes.fault(hang=True, count=2)
    node = await nodes.add(**REDIALS, DIAL_SECONDS="0.9", ROLL_OVER_SECONDS="1")
    client = await live(nodes, node)
    await talk(client, "My name is Ada.")
    await replaced(nodes)
    await client.send_json(say("What is my name?"))
    await client.send_json(ASK)
    kinds = {each["type"] for each in await events_until(client, "response.done")}
    assert kinds & {"error", "session.created"} == set()
    old, new = await sessions(nodes)
    assert (old["close_code"], old["sent"]["error"]) == (1001, 1)
    assert known(new)[0][2] == "My name is Ada."
    await client.close()


async def test_a_relay_that_may_not_redial_hands_the_end_on(nodes: Nodes) -> None:
    """Then the session's end is the call's, and the client must know why."""
    await nodes.fault(expire=0.3)
    node = await nodes.add(**REDIALS | {"REDIAL_SECONDS": "0"})
    client = await live(nodes, node)
    code, events = await closed(client)
    assert (code, events[-1]["error"]["code"]) == (1001, "session_expired")


async def test_speech_is_not_cut_where_one_session_takes_over_from_another(
    redis_server: RedisServer, nodes: Nodes
) -> None:
    """Each turn is heard whole, once, though the next begins a moment after the last was answered."""
    async with paced(redis_server, nodes, speed=50) as quick:
        await quick.fault(expire=4, count=2)
        node = await quick.add(**REDIALS, ROLL_OVER_SECONDS="2")
        client = await live(quick, node)
        await client.send_json(
            {"type": "session.update", "session": {"type": "realtime", "output_modalities": ["text"]}}
        )
        rolled = session_of(id_of(client))._services.tally.roll_overs
        answers: list[tuple[str, str]] = []

        async def listen() -> None:
            while True:
                response = (await event(client, "response.done"))["response"]
                answers.append((response["status"], " ".join(words(each)[:31] for each in response["output"])))

        async def speak() -> int:
            """In real time, with pauses in each of which there are some 300 ms to replace a session in."""
            clock = asyncio.get_running_loop().time
            due, turns, pcm = clock(), 0, tone(0.6) + bytes(60 * FRAME)
            while rolled["done"] + rolled["forced"] < 2:
                turns += 1
                for at in range(0, len(pcm), FRAME):
                    await client.send_json(append(pcm[at : at + FRAME]))
                    due += 0.02
                    await asyncio.sleep(max(0.0, due - clock()))
            return turns

        async with asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(listen())
            async with asyncio.timeout(20):
                turns = await speak()
            await until(lambda: len(answers) == turns)
            listening.cancel()
        assert answers == [("completed", "You said 0.6 seconds of speech.")] * turns
        assert rolled["missed"] == 0
        assert [text for _, role, text in known((await sessions(quick))[-1]) if role == "user"] == [
            "0.6 seconds of speech."
        ] * turns
        await client.close()


async def test_the_last_second_of_what_is_being_said_is_said_to_the_next_session_too(nodes: Nodes) -> None:
    """At the end of a session any pause will do: what the old one heard and nobody committed must not be lost."""
    await nodes.fault(expire=8)  # so that two seconds are left between the building of a leg and its use
    node = await nodes.add(**REDIALS, ROLL_OVER_SECONDS="4")
    client = await live(nodes, node)
    await client.send_json({"type": "session.update", "session": MANUAL})
    await event(client, "session.updated")
    await client.send_json(append(bytes(FRAME)))  # so that there is no turn boundary
    call = session_of(id_of(client))
    await until(lambda: call._hands.is_keeping)
    pcm = b"".join(number.to_bytes(2, "little") * (FRAME // 2) for number in range(1000, 1040))
    for at in range(0, len(pcm), FRAME):
        await client.send_json(append(pcm[at : at + FRAME]))
    await until(lambda: call._services.tally.roll_overs["forced"] == 1)
    await client.send_json({"type": "input_audio_buffer.commit"})
    await client.send_json(ASK)
    assert audio_of(await events_until(client, "response.done")) == pcm
    await client.close()


async def test_what_is_being_said_when_the_model_is_lost_is_said_to_the_next_one(nodes: Nodes) -> None:
    """A person need not say it again: only its first moment, before the model had noticed, is gone."""
    node = await nodes.add(**REDIALS)
    client = await live(nodes, node)
    pcm = tone(0.8)
    for at in range(0, 20 * FRAME, FRAME):
        await client.send_json(append(pcm[at : at + FRAME]))
    await event(client, "input_audio_buffer.speech_started")
    for at in range(20 * FRAME, len(pcm), FRAME):
        await client.send_json(append(pcm[at : at + FRAME]))
    call = session_of(id_of(client))
    await until(lambda: len(call._hands.speech()) == 20)
    lose_model(nodes)
    await event(client, "input_audio_buffer.cleared")
    for _ in range(60):
        await client.send_json(append(bytes(FRAME)))
    done = await event(client, "response.done")
    assert (done["response"]["status"], words(done["response"]["output"][0])) == (
        "completed",
        "You said 0.4 seconds of speech.",
    )
    await client.close()


# What clients that know relay events are told


async def test_a_client_that_asked_is_told_what_became_of_its_conversation(nodes: Nodes) -> None:
    """So that a page can say "that was lost, say it again" where a plain client can only wonder."""
    node = await nodes.add(**REDIALS)
    client = await live(nodes, node, protocols=["relay.events.v1"])
    await talk(client, "My name is Ada.")
    lose_model(nodes)
    resumed = await event(client, "relay.resumed")
    assert {key: resumed[key] for key in ("call_id", "node", "region", "model", "kept", "lost")} == {
        "call_id": id_of(client),
        "node": "a",
        "region": "iad",
        "model": "rebuilt",
        "kept": {"items": 2, "missed_events": 0},
        "lost": {"items": 0, "turn": None, "response": None},
    }
    await client.send_json(say("talk for 10 seconds"))
    await client.send_json(ASK)
    response = (await event(client, "response.created"))["response"]["id"]
    await event(client, "response.output_audio.delta")
    lose_model(nodes)
    resumed = await event(client, "relay.resumed")
    assert resumed["lost"] == {"items": 0, "turn": None, "response": response}
    await client.send_json({"type": "response.cancel"})
    voice = tone(0.6)
    for at in range(0, len(voice), FRAME):
        await client.send_json(append(voice[at : at + FRAME]))
    turn = (await event(client, "input_audio_buffer.speech_started"))["item_id"]
    lose_model(nodes)
    events = await events_until(client, "relay.resumed")
    assert "input_audio_buffer.cleared" in {each["type"] for each in events}
    assert events[-1]["lost"]["turn"] == turn
    await client.close()
