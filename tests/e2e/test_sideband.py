"""Side legs: the official SDK attached to a live call by its id, through another node than the call's."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI
from openai.resources.realtime.realtime import AsyncRealtimeConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from fanout import new_call_id
from relay.app import Node
from tests.e2e.test_call import say
from tests.support.fleet import Nodes, bearer, closed, event, system_message, token, until

Event = dict[str, Any]
APPEND = "input_audio_buffer.append"
DELTA = "response.output_audio.delta"
LOOKUP = {"type": "function", "name": "lookup", "parameters": {"type": "object", "properties": {}}}


@dataclass
class Call:
    """A live call on node a; node b is where its backends are."""

    nodes: Nodes
    owner: Node
    other: Node
    client: aiohttp.ClientWebSocketResponse
    session: Event

    @classmethod
    async def begin(cls, nodes: Nodes, **env: str) -> "Call":
        """``env`` are settings of node b."""
        owner, other = await nodes.add("a"), await nodes.add("b", **env)
        client = await nodes.connect(owner)
        return cls(nodes, owner, other, client, (await event(client, "session.created"))["session"])

    @property
    def id(self) -> str:
        """Of the call."""
        return self.client._response.headers["X-Call-Id"]

    async def send(self, kind: str, **fields: Any) -> None:
        """Speak as the client."""
        await self.client.send_str(json.dumps({"type": kind, **fields}))

    async def seen(self, kind: str) -> list[Event]:
        """What the client gets, up to an event of this type."""
        return await up_to(kind, self.client.receive_json)

    async def seen_meanwhile(self) -> list[Event]:
        """What the client has got before the answer to something that it asks now."""
        await self.send("input_audio_buffer.clear")
        return (await self.seen("input_audio_buffer.cleared"))[:-1]

    async def lives(self) -> bool:
        """Whether the client still gets answers, and nothing else."""
        return await self.seen_meanwhile() == []


@pytest.fixture
async def call(nodes: Nodes) -> Call:
    """A call whose client has its ``session.created``."""
    return await Call.begin(nodes)


@asynccontextmanager
async def attached(node: Node, call_id: str, **query: str) -> AsyncIterator[AsyncRealtimeConnection]:
    """A side leg of the official SDK."""
    async with (
        AsyncOpenAI(api_key=token("control"), base_url=f"{node.url}/v1", max_retries=0) as sdk,
        sdk.realtime.connect(call_id=call_id, extra_query=query) as leg,
    ):
        yield leg


@asynccontextmanager
async def watching(call: Call, node: Node | None = None, **query: str) -> AsyncIterator[AsyncRealtimeConnection]:
    """A side leg whose call knows of it: what happens from now on, it sees."""
    async with attached(node or call.other, call.id, **query) as leg:
        await heard(leg, "session.created")
        await leg.input_audio_buffer.clear()
        await heard(leg, "input_audio_buffer.cleared")
        await call.seen("input_audio_buffer.cleared")
        yield leg


async def up_to(kind: str, receive: Callable[[], Awaitable[Event]]) -> list[Event]:
    found: list[Event] = []
    async with asyncio.timeout(10):
        while not found or found[-1]["type"] != kind:
            found.append(await receive())
    return found


async def heard(leg: AsyncRealtimeConnection, kind: str) -> list[Event]:
    """What a side leg gets, up to an event of this type."""

    async def receive() -> Event:
        return (await leg.recv()).to_dict()

    return await up_to(kind, receive)


async def ended(leg: AsyncRealtimeConnection) -> tuple[int, str, list[str]]:
    """Until a side leg is closed; returns code, reason and the types of the events that came before."""
    kinds: list[str] = []
    async with asyncio.timeout(10):
        while True:
            try:
                kinds.append((await leg.recv()).type)
            except ConnectionClosed as end:
                assert end.rcvd is not None, "cut without a CLOSE"
                return end.rcvd.code, end.rcvd.reason, kinds


def ids(events: list[Event]) -> list[str]:
    return [each["event_id"] for each in events]


def kinds(events: list[Event]) -> list[str]:
    return [each["type"] for each in events]


def words(text: str) -> Any:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


# What it sees


async def test_it_is_greeted_with_the_session_as_it_is_now(call: Call) -> None:
    """Not as it was when the call began: a supervisor must know what the client has made of it."""
    await call.send("session.update", session={"type": "realtime", "instructions": "Speak French."})
    updated = (await call.seen("session.updated"))[-1]["session"]

    async def is_shown() -> bool:
        async with attached(call.other, call.id) as leg:
            greeting = (await leg.recv()).to_dict()
        assert (greeting["type"], set(greeting)) == ("session.created", {"type", "event_id", "session"})
        assert greeting["session"]["id"] == call.session["id"]
        return bool(greeting["session"] == updated)

    await until(is_shown)  # it is written down within a second
    assert updated["instructions"] == "Speak French."


async def test_it_sees_the_calls_events_in_the_clients_order_without_audio(call: Call) -> None:
    """One order for all; audio would cost the fleet a second time what the call costs."""
    async with watching(call) as leg:
        await say(call.client)
        at_client, at_side = await call.seen("response.done"), await heard(leg, "response.done")
    assert DELTA in kinds(at_client)
    assert ids(at_side) == ids([each for each in at_client if each["type"] != DELTA])
    assert at_side[-1]["response"] == at_client[-1]["response"]


async def test_it_hears_both_sides_in_their_places_if_it_asks(call: Call) -> None:
    """What was said stands where it was said: a recorder needs no clock."""
    async with watching(call, audio="1") as leg:
        await say(call.client)
        at_client, at_side = await call.seen("response.done"), await heard(leg, "response.done")
    said = [each for each in at_side if each["type"] == APPEND]
    assert len(said) == 4
    assert len(base64.b64decode(said[0]["audio"])) == 19_200
    assert ids([each for each in at_side if each["type"] != APPEND]) == ids(at_client)
    assert kinds(at_side).index(APPEND) < kinds(at_side).index("input_audio_buffer.speech_started")


async def test_several_see_one_order_wherever_they_are(call: Call) -> None:
    """Two on one node, one of them with audio, and one on the call's own node."""
    async with watching(call) as one, watching(call, audio="1") as two, watching(call, call.owner) as three:
        await heard(one, "input_audio_buffer.cleared")  # of the two others
        await heard(one, "input_audio_buffer.cleared")
        await heard(two, "input_audio_buffer.cleared")
        await say(call.client)
        at_client = await call.seen("response.done")
        for leg in (one, two, three):
            at_side = [each for each in await heard(leg, "response.done") if each["type"] not in {APPEND, DELTA}]
            assert ids(at_side) == ids([each for each in at_client if each["type"] != DELTA])


async def test_an_item_hidden_from_the_client_is_seen_here(call: Call) -> None:
    """A supervisor's whisper to the model: to the client there is no such item, even if it guesses its id."""
    async with watching(call) as leg:
        status, receipt = await call.nodes.put(
            call.other, call.id, {"item": system_message("He is angry."), "visible": False}
        )
        assert (status, receipt["status"]) == (200, "applied")
        item = (await heard(leg, "conversation.item.done"))[-1]["item"]
        assert (item["id"], item["content"][0]["text"]) == (receipt["item_id"], "He is angry.")
        assert await call.lives()
        await call.send("conversation.item.retrieve", item_id=receipt["item_id"], event_id="mine")
        (error,) = await call.seen("error")
        assert error["error"]["code"] == "item_retrieve_invalid_item_id"
        assert error["error"]["event_id"] == "mine"
        await leg.conversation.item.retrieve(item_id=receipt["item_id"])
        retrieved = (await heard(leg, "conversation.item.retrieved"))[-1]["item"]
        assert retrieved["content"][0]["text"] == "He is angry."
        assert await call.lives()


# What it does


async def test_a_session_that_it_changes_is_changed_for_all(call: Call) -> None:
    """The client sees the model's own event, as if it had asked itself."""
    async with watching(call) as leg:
        await leg.session.update(session={"type": "realtime", "instructions": "Speak German."})
        at_side = (await heard(leg, "session.updated"))[-1]
        at_client = (await call.seen("session.updated"))[-1]
    assert at_client == at_side
    assert at_client["session"]["instructions"] == "Speak German."


async def test_it_answers_a_tool_call(call: Call) -> None:
    """The client needs no secret of the tool's: its answer comes from the backend."""
    await call.send("session.update", session={"type": "realtime", "tools": [LOOKUP]})
    async with watching(call) as leg:
        await call.send("conversation.item.create", item=words("lookup, please"))
        await call.send("response.create")
        (tool_call,) = (await heard(leg, "response.done"))[-1]["response"]["output"]
        output: Any = {"type": "function_call_output", "call_id": tool_call["call_id"], "output": "42"}
        await leg.conversation.item.create(item=output)
        await leg.response.create()
        await call.seen("response.done")
        (answer,) = (await call.seen("response.done"))[-1]["response"]["output"]
        assert answer["content"][0]["transcript"].startswith("The tool said: 42")
        assert "error" not in kinds(await heard(leg, "response.done"))


async def test_responses_asked_for_while_one_is_active_follow_it(call: Call) -> None:
    """The model makes one at a time and refuses a second: nobody is told so, and none is lost."""
    async with watching(call) as leg, watching(call, call.owner) as other:
        await call.send("response.create", response={"instructions": "talk for 1 second", "metadata": {"by": "client"}})
        await heard(leg, "response.created")
        for sender, name in ((leg, "one"), (leg, "two"), (other, "three")):
            await sender.response.create(response={"metadata": {"by": name}})
        at_client = [each for _ in range(4) for each in await call.seen("response.done")]
        at_side = [each for _ in range(4) for each in await heard(leg, "response.done")]
    asked_by = [each["response"]["metadata"]["by"] for each in at_client if each["type"] == "response.done"]
    assert asked_by[0] == "client"
    assert asked_by.index("one") < asked_by.index("two")
    assert set(asked_by) == {"client", "one", "two", "three"}
    assert "error" not in kinds(at_client) + kinds(at_side)


async def test_it_cancels_the_active_response(call: Call) -> None:
    """A supervisor stops the model in the middle of a word."""
    async with watching(call) as leg:
        await call.send("response.create", response={"instructions": "talk for 50 seconds"})
        await call.seen(DELTA)
        await leg.response.cancel()
        for done in ((await call.seen("response.done"))[-1], (await heard(leg, "response.done"))[-1]):
            details = done["response"]["status_details"]
            assert (done["response"]["status"], details["reason"]) == ("cancelled", "client_cancelled")


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"type": "call.sing"}, "invalid_value"),
        ({"type": "session.update", "session": {"type": "realtime", "colour": "red"}}, "unknown_parameter"),
        ({"type": "response.create", "response": {"colour": "red"}}, "unknown_parameter"),
        ({"type": "conversation.item.delete", "item_id": "nothing"}, "item_delete_invalid_item_id"),
        ({"type": "response.cancel"}, "response_cancel_not_active"),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else value,
)
async def test_what_the_model_refuses_is_told_to_its_sender_alone(call: Call, wrong: Any, code: str) -> None:
    """In the model's words, with the sender's own event id: SDKs find their cause by it. The client asked nothing."""
    async with watching(call) as leg, watching(call, call.owner) as other:
        await heard(leg, "input_audio_buffer.cleared")
        await leg.send({**wrong, "event_id": "evt_1"})
        (refused,) = await heard(leg, "error")
        assert (refused["error"]["code"], refused["error"]["event_id"]) == (code, "evt_1")
        assert await call.lives()
        assert kinds(await heard(other, "input_audio_buffer.cleared")) == ["input_audio_buffer.cleared"]


async def test_it_may_not_speak(call: Call) -> None:
    """Two microphones in one buffer would be noise: the cause is named, and the call hears nothing."""
    async with watching(call, audio="1") as leg:
        await leg.send({"type": APPEND, "audio": "AAAA", "event_id": "evt_1"})  # type: ignore[misc]
        (refused,) = await heard(leg, "error")
        assert (refused["error"]["code"], refused["error"]["event_id"]) == ("audio_not_allowed", "evt_1")
        assert (await call.nodes.session())["received"].get(APPEND) is None
        assert await call.lives()


async def test_what_is_no_event_is_told_and_the_leg_goes_on(call: Call) -> None:
    """As the Realtime API does with most errors."""
    async with watching(call) as leg:
        for bad in ("{", "[]", '{"no": "type"}', '{"type": 7}', "[" * 5000):
            await leg.send_raw(bad)
            (refused,) = await heard(leg, "error")
            assert refused["error"]["code"] == "invalid_json"
        await leg.input_audio_buffer.clear()
        await heard(leg, "input_audio_buffer.cleared")


# How it ends


async def test_detaching_changes_nothing_and_it_may_come_back(call: Call) -> None:
    """Supervisors come and go; the person on the line must not notice."""
    for number in range(2):
        async with watching(call) as leg:
            await leg.session.update(session={"type": "realtime", "instructions": str(number)})
            assert kinds(await call.seen("session.updated")) == ["session.updated"]
        assert await call.lives()
    assert (await call.nodes.session())["closed_by"] is None


async def hang_up(call: Call) -> None:
    async with AsyncOpenAI(api_key=token("control"), base_url=f"{call.other.url}/v1", max_retries=0) as sdk:
        await sdk.realtime.calls.hangup(call.id)


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda call: call.client.close(code=1000), 1000),
        (lambda call: call.client.close(code=4321), 4321),
        (lambda call: call.send("response.create"), 4002),  # the model closes
        (hang_up, 1000),
    ],
    ids=["client", "client-4321", "model", "hangup"],
)
async def test_the_calls_end_closes_it_with_the_calls_own_code(
    nodes: Nodes, end: Callable[[Call], Awaitable[object]], code: int
) -> None:
    """A backend must know that the call is over, and how, without asking."""
    if code == 4002:
        await nodes.fault(close=4002, reason="tired", events=5)
    call = await Call.begin(nodes)
    async with watching(call) as leg, watching(call, call.owner) as other:
        await end(call)
        assert (await closed(call.client))[0] == code
        for each in (leg, other):
            got, why, _ = await ended(each)
            tombstone = (await nodes.get(call.other, f"/v1/realtime/calls/{call.id}"))[1]
            assert (got, why) == (code, tombstone["why"])


async def test_the_last_events_come_before_the_end(nodes: Nodes) -> None:
    """The error that says why the call ends is worth more than all before it."""
    await nodes.fault(expire=0.5)
    call = await Call.begin(nodes)
    async with watching(call) as leg:
        code, why, before = await ended(leg)
    assert (code, why, before) == (1001, "model_expired", ["error"])


async def test_one_that_does_not_read_is_cut_and_costs_the_call_nothing(nodes: Nodes) -> None:
    """What it does not take is bounded on its node; the owner never hears of it."""
    limits = {"SIDE_BUFFER_BYTES": "65536", "WRITE_BUFFER_BYTES": "32768", "SOCKET_BUFFER_BYTES": "16384"}
    call = await Call.begin(nodes, CLOSE_SECONDS="5", **limits)
    async with watching(call) as leg, watching(call, call.owner) as other:
        for number in range(100):  # 20 MB of events: more than the SDK and the kernel take unread
            await call.send("conversation.item.create", item=words("x" * 100_000) | {"id": f"item_{number}"})
            assert (await call.seen("conversation.item.done"))[-1]["item"]["id"] == f"item_{number}"
            assert (await heard(other, "conversation.item.done"))[-1]["item"]["id"] == f"item_{number}"
        code, why, before = await ended(leg)
        assert (code, why) == (1013, "side_leg_slow")
        assert 0 < len(before) < 200
        assert await call.lives()


async def test_a_draining_node_sends_its_side_legs_elsewhere(call: Call) -> None:
    """1012 makes SDKs connect again; the call, on another node, goes on."""
    async with watching(call) as leg:
        async with call.nodes.http.post(call.other.ops_url + "/drain") as response:
            assert response.status == 202
        assert await ended(leg) == (1012, "node_draining", [])
    with pytest.raises(InvalidStatus) as refused:
        async with attached(call.other, call.id):
            pass
    assert (refused.value.response.status_code, refused.value.response.headers["Retry-After"]) == (503, "1")
    assert await call.lives()
    async with watching(call, call.owner):
        assert await call.lives()


async def test_a_node_that_leaves_takes_its_side_legs_and_nothing_else(nodes: Nodes) -> None:
    """Its lease on the call runs out by itself; those of other nodes go on."""
    call = await Call.begin(nodes)
    async with nodes.node("c") as node, asyncio.TaskGroup() as tasks, AsyncExitStack() as stack:
        leg = await stack.enter_async_context(watching(call, node))
        other = await stack.enter_async_context(watching(call))
        leaving = tasks.create_task(ended(leg))
    assert (await leaving)[:2] == (1012, "node_draining")
    assert await call.lives()
    await heard(other, "input_audio_buffer.cleared")
