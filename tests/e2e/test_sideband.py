"""Side legs: the official SDK attached to a live call by its id, through another node than the call's."""

import asyncio
import base64
import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI
from openai.resources.realtime.realtime import AsyncRealtimeConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from fanout import BusSettings, CallRecord, Fanout, Tombstone, new_call_id
from relay.app import Node
from relay.sideband import SideLeg
from tests.e2e.test_call import SILENCE, TONE, say
from tests.support.fleet import Nodes, bearer, closed, event, system_message, token, until

Event = dict[str, Any]
APPEND = "input_audio_buffer.append"
DELTA = "response.output_audio.delta"
HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}
# Without this it reads on only while fewer than 16 events wait for its user, and then its own close takes ten seconds.
READS_ALL: Any = {"max_queue": None}
RESULT = {"type": "function_call_output", "call_id": "call_never_made", "output": "{}"}
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
    @asynccontextmanager
    async def begun(cls, nodes: Nodes, path: str = "/v1/realtime?model=sim", **env: str) -> AsyncIterator["Call"]:
        """``env`` are settings of node b."""
        owner, other = await nodes.add("a"), await nodes.add("b", **env)
        client = await nodes.connect(owner, path)
        yield cls(nodes, owner, other, client, (await event(client, "session.created"))["session"])
        await client.close()

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
async def call(nodes: Nodes) -> AsyncIterator[Call]:
    """A call whose client has its ``session.created``."""
    async with Call.begun(nodes) as begun:
        yield begun


@asynccontextmanager
async def attached(
    node: Node, call_id: str, options: Any = READS_ALL, **query: str
) -> AsyncIterator[AsyncRealtimeConnection]:
    """A side leg of the official SDK."""
    async with (
        AsyncOpenAI(api_key=token("control"), base_url=f"{node.url}/v1", max_retries=0) as sdk,
        sdk.realtime.connect(call_id=call_id, extra_query=query, websocket_connection_options=options) as leg,
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


async def ended(leg: AsyncRealtimeConnection) -> tuple[int, str, list[Event]]:
    """Until a side leg is closed; returns code, reason and the events that came before."""
    events: list[Event] = []
    async with asyncio.timeout(10):
        while True:
            try:
                events.append((await leg.recv()).to_dict())
            except ConnectionClosed as end:
                return (end.rcvd.code, end.rcvd.reason, events) if end.rcvd is not None else (1006, "", events)


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


async def test_it_hears_a_call_that_is_binary(nodes: Nodes) -> None:
    """A /voice client sends and gets raw PCM; who listens gets the Realtime API's events all the same."""
    async with Call.begun(nodes, path="/voice?model=sim&audio=binary") as call, watching(call, audio="1") as leg:
        for audio in (TONE, TONE, SILENCE, SILENCE):
            await call.client.send_bytes(base64.b64decode(audio))
        at_side = await heard(leg, "response.done")
        assert [each["audio"] for each in at_side if each["type"] == APPEND] == [
            audio.decode() for audio in (TONE, TONE, SILENCE, SILENCE)
        ]
        pcm = b"".join(base64.b64decode(each["delta"]) for each in at_side if each["type"] == DELTA)
        received = b""
        while len(received) < len(pcm):
            message = await call.client.receive()
            received += message.data if message.type is aiohttp.WSMsgType.BINARY else b""
        assert received == pcm != b""


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


async def test_what_it_says_at_once_is_done_in_order_and_none_is_lost(call: Call) -> None:
    """Many more than may be under way: it is read more slowly, that is all."""
    async with watching(call) as leg:
        for number in range(300):
            await leg.conversation.item.create(item=words("hello") | {"id": f"item_{number}"})
        for number in range(300):
            assert (await call.seen("conversation.item.done"))[-1]["item"]["id"] == f"item_{number}"
        assert "error" not in kinds([each for _ in range(300) for each in await heard(leg, "conversation.item.done")])


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
        ({"type": "conversation.item.create", "item": RESULT}, "unknown_tool_call"),
        ({"type": "conversation.item.create", "item": "x" * 1_100_000}, "message_too_large"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
async def test_what_is_refused_is_told_to_its_sender_alone(call: Call, wrong: Any, code: str) -> None:
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
    async with Call.begun(nodes) as call, watching(call) as leg, watching(call, call.owner) as other:
        await end(call)
        assert (await closed(call.client))[0] == code
        for each in (leg, other):
            got, why, _ = await ended(each)
            tombstone = (await nodes.get(call.other, f"/v1/realtime/calls/{call.id}"))[1]
            assert (got, why) == (code, tombstone["why"])


async def test_the_last_events_come_before_the_end(nodes: Nodes) -> None:
    """All that the client got: what a call ends with says why."""
    await nodes.fault(close=4002, events=22)
    async with Call.begun(nodes) as call, watching(call) as leg:
        for _ in range(20):
            await call.send("conversation.item.create", item=words("hello"))
        (_, at_client), (code, why, at_side) = await closed(call.client), await ended(leg)
    assert (code, why) == (4002, "model_closed")
    assert ids(at_side) == ids(at_client)
    assert len(at_side) >= 20


async def test_one_that_does_not_read_is_cut_and_costs_the_call_nothing(nodes: Nodes) -> None:
    """What it does not take is bounded on its node; the owner never hears of it."""
    limits = {"SIDE_BUFFER_BYTES": "262144", "WRITE_BUFFER_BYTES": "32768", "SOCKET_BUFFER_BYTES": "16384"}
    async with (
        Call.begun(nodes, CLOSE_SECONDS="5", **limits) as call,
        watching(call) as reads,
        attached(call.other, call.id, options={"max_queue": 4}) as leg,
    ):
        await heard(leg, "session.created")
        for number in range(60):  # 6 MB of events: more than the SDK and the kernel take unread
            await call.send("conversation.item.create", item=words("x" * 50_000) | {"id": f"item_{number}"})
            assert (await call.seen("conversation.item.done"))[-1]["item"]["id"] == f"item_{number}"
            assert (await heard(reads, "conversation.item.done"))[-1]["item"]["id"] == f"item_{number}"
        code, why, before = await ended(leg)
        assert (code, why) == (1013, "side_leg_slow")
        assert 4 < len(before) < 120
        assert await call.lives()


async def test_one_that_sends_nonsense_and_does_not_read_is_cut(nodes: Nodes) -> None:
    """Answers are bounded as events are."""
    limits = {"SIDE_BUFFER_BYTES": "65536", "WRITE_BUFFER_BYTES": "32768", "SOCKET_BUFFER_BYTES": "16384"}
    async with (
        Call.begun(nodes, CLOSE_SECONDS="5", **limits) as call,
        attached(call.other, call.id, options={"max_queue": 4}) as leg,
    ):
        await heard(leg, "session.created")
        for _ in range(6000):  # more than 1 MB of answers
            await leg.send_raw("{")
        code, why, before = await ended(leg)
        assert (code, why, set(kinds(before))) == (1013, "side_leg_slow", {"error"})
        assert len(before) < 6000
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
    """Its lease on the call runs out by itself; the legs of other nodes see all that follows."""
    async with Call.begun(nodes) as call, AsyncExitStack() as legs:
        async with nodes.node("c") as node:
            leg = await legs.enter_async_context(watching(call, node))
            other = await legs.enter_async_context(watching(call))
        code, why, before = await ended(leg)
        assert (code, why, kinds(before)) == (1012, "node_draining", ["input_audio_buffer.cleared"])
        assert await call.lives()
        assert kinds(await heard(other, "input_audio_buffer.cleared")) == ["input_audio_buffer.cleared"]


async def test_a_node_that_is_killed_takes_its_side_legs_and_nothing_else(call: Call) -> None:
    """Nobody closes anything: the owner goes on logging until the lease is over, and that is all."""
    async with (
        process_of(call.nodes.environment("killed")) as (process, node),
        watching(call, node) as leg,
        watching(call) as other,
    ):
        process.kill()
        assert (await ended(leg))[0] == 1006
        assert await call.lives()
        assert kinds(await heard(other, "input_audio_buffer.cleared")) == ["input_audio_buffer.cleared"]


@asynccontextmanager
async def process_of(env: dict[str, str]) -> AsyncIterator[tuple[asyncio.subprocess.Process, Node]]:
    """A node as a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "relay", "serve"), env=os.environ | env, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(20):
            ready = json.loads(await process.stderr.readline())  # type: ignore[union-attr]
        yield process, Node(ready["url"], ready["ops_url"], *[None] * 4)  # type: ignore[arg-type]
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def test_it_stays_when_the_call_moves_to_another_node(call: Call) -> None:
    """It goes on with what the new owner shows, and is not greeted again."""
    settings = BusSettings(node="c", region="iad", regions={"iad": call.nodes._redis_url}, prefix=call.nodes.prefix)
    async with watching(call) as leg, Fanout.running(settings, clock=time.time) as bus:
        record = await bus.call(call.id, "test")
        assert isinstance(record, CallRecord)
        taken = await bus.take(record, lambda _: None)
        await taken.wait_registered()
        taken.note("session", json.dumps(call.session).encode())
        taken.log(b'{"type":"response.done","event_id":"event_of_c","response":{"id":"resp_of_c"}}')
        (done,) = await heard(leg, "response.done")
        assert done["event_id"] == "event_of_c"
        taken.end(Tombstone(**_died(record)))
        code, reason, events = await ended(leg)
        assert (code, reason, events) == (1001, "model_expired", [])


def _died(record: CallRecord) -> dict[str, Any]:
    """The end of a call at its second owner."""
    names = ("id", "tenant", "node", "region", "started_at")
    known = {name: getattr(record, name) for name in names}
    return known | {"ended_at": time.time(), "why": "model_expired", "fault": "model", "close_code": 1001}


# Before the call begins


async def test_it_may_come_before_the_client_and_be_heard_first(nodes: Nodes) -> None:
    """A backend that minted a key prepares the call: nothing that it says is lost, nothing that happens is missed."""
    owner, other = await nodes.add("a"), await nodes.add("b")
    async with AsyncOpenAI(api_key=token("mint"), base_url=f"{other.url}/v1") as sdk:
        secret = await sdk.realtime.client_secrets.create()
    call_id: str = secret.model_extra["call_id"]  # type: ignore[index]
    async with attached(other, call_id) as leg:
        await leg.session.update(session={"type": "realtime", "instructions": "Be kind."})
        for number in range(10):
            await leg.conversation.item.create(item=words("hello") | {"id": f"item_{number}"})
        await (await leg._connection.ping())  # SDKs hang up on a server that answers none
        client = await nodes.connect(owner, headers=bearer(secret.value))
        created = await event(client, "session.created")
        greeting = (await leg.recv()).to_dict()
        assert (greeting["type"], greeting["session"]["id"]) == ("session.created", created["session"]["id"])
        at_client = [each for _ in range(10) for each in await up_to("conversation.item.done", client.receive_json)]
        at_side = [each for _ in range(10) for each in await heard(leg, "conversation.item.done")]
    assert ids(at_side) == ids(at_client)
    assert [each["item"]["id"] for each in at_side if "item" in each][::2] == [f"item_{number}" for number in range(10)]
    assert at_side[0]["session"]["instructions"] == "Be kind."


async def test_one_that_says_very_much_before_the_client_comes_is_read_no_further(nodes: Nodes) -> None:
    """What waits is bounded on its node, and in its own buffers then; when the call begins, all of it goes on."""
    node = await nodes.add("a")
    async with AsyncOpenAI(api_key=token("mint"), base_url=f"{node.url}/v1") as sdk:
        secret = await sdk.realtime.client_secrets.create()
    call_id: str = secret.model_extra["call_id"]  # type: ignore[index]
    async with attached(node, call_id) as leg:
        for number in range(100):
            await leg.conversation.item.create(item=words("hello") | {"id": f"item_{number}"})
        (side,) = (each for each in gc.get_objects() if isinstance(each, SideLeg) and each.call_id == call_id)
        await until(lambda: not side.leg.reading)
        client = await nodes.connect(node, headers=bearer(secret.value))
        for number in range(100):
            done = (await up_to("conversation.item.done", client.receive_json))[-1]
            assert done["item"]["id"] == f"item_{number}"
        await until(lambda: side.leg.reading)
        await client.close()


async def test_one_that_leaves_before_the_client_comes_has_said_nothing(nodes: Nodes) -> None:
    """What it wanted was for a call in which it takes part."""
    owner, other = await nodes.add("a"), await nodes.add("b")
    async with AsyncOpenAI(api_key=token("mint"), base_url=f"{other.url}/v1") as sdk:
        secret = await sdk.realtime.client_secrets.create()
    async with attached(other, secret.model_extra["call_id"]) as leg:  # type: ignore[index]
        await leg.conversation.item.create(item=words("hello"))
    await until(lambda: side_legs(nodes, other, 0))
    client = await nodes.connect(owner, headers=bearer(secret.value))
    await event(client, "session.created")
    await client.send_str('{"type": "input_audio_buffer.clear"}')
    assert kinds(await up_to("input_audio_buffer.cleared", client.receive_json)) == ["input_audio_buffer.cleared"]


async def side_legs(nodes: Nodes, node: Node, number: int) -> bool:
    """Whether a node has so many."""
    async with nodes.http.get(f"{node.ops_url}/status") as response:
        return bool((await response.json())["side_legs"]["live"] == number)


async def test_what_it_says_just_before_it_leaves_is_heard(call: Call) -> None:
    """A script attaches, says one thing and goes."""
    for number in range(5):
        async with attached(call.other, call.id) as leg:
            await heard(leg, "session.created")
            await leg.conversation.item.create(item=words("hello") | {"id": f"item_{number}"})
    for number in range(5):
        assert (await call.seen("conversation.item.done"))[-1]["item"]["id"] == f"item_{number}"


async def test_one_that_attaches_in_the_middle_misses_nothing_from_there_on(call: Call) -> None:
    """Events that come while its connection is made are the first that it gets."""

    async def go_on() -> None:
        while True:
            await call.send("input_audio_buffer.clear")
            at_client.extend(ids(await call.seen("input_audio_buffer.cleared")))

    at_client: list[str] = []
    at_side: list[str] = []
    async with watching(call), asyncio.TaskGroup() as tasks:
        talking = tasks.create_task(go_on())
        for _ in range(10):
            async with attached(call.other, call.id) as leg:
                await heard(leg, "session.created")
                at_side += ids([each for _ in range(5) for each in await heard(leg, "input_audio_buffer.cleared")])
        talking.cancel()
    for first in range(0, 50, 5):
        start = at_client.index(at_side[first])
        assert at_side[first : first + 5] == at_client[start : start + 5]


async def test_one_that_vanishes_while_it_attaches_leaves_nothing(call: Call) -> None:
    """At any moment of it: the call is asked for at its home, and that may be far."""
    head = f"GET /v1/realtime?call_id={call.id} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token('control')}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in HANDSHAKE.items()) + "\r\n"
    for turns in range(40):
        _, writer = await asyncio.open_connection("127.0.0.1", int(call.other.url.rsplit(":", 1)[1]))
        writer.write(head.encode())
        for _ in range(turns):
            await asyncio.sleep(0)  # a turn of the loop
        writer.transport.abort()
    await until(lambda: side_legs(call.nodes, call.other, 0))
    assert await call.lives()


# Bad input


@pytest.mark.parametrize(
    ("query", "headers", "status", "code"),
    [
        ("", {}, 401, "missing_token"),
        ("", bearer(token("control", secret="x" * 32)), 401, "invalid_api_key"),
        ("", bearer(token("control", seconds=-60)), 401, "invalid_api_key"),
        ("", bearer(token("call", "read", "mint")), 403, "missing_scope"),
        ("", bearer(token("control", tenant="evil")), 404, "call_id_not_found"),
        ("", bearer(token("control", call=new_call_id("iad"))), 404, "call_id_not_found"),
        ("x", bearer(token("control")), 404, "call_id_not_found"),
        ("&model=sim", bearer(token("control")), 400, "contradictory_query"),
        ("&intent=transcription", bearer(token("control")), 400, "contradictory_query"),
        ("&audio=yes", bearer(token("control")), 422, "invalid_value"),
        ("&audio=1", bearer(token("control")) | {"Origin": "https://evil.example"}, 403, "origin_not_allowed"),
        ("&audio=1", bearer(token("control")) | {"Sec-WebSocket-Version": "12"}, 426, "unsupported_version"),
    ],
)
async def test_what_may_not_attach_is_refused_before_the_upgrade(
    call: Call, query: str, headers: dict[str, str], status: int, code: str
) -> None:
    """As an HTTP status, in OpenAI's error shape; and nothing of it is left on the node."""
    url = f"{call.other.url}/v1/realtime?call_id={call.id}{query}"
    async with call.nodes.http.get(url, headers=HANDSHAKE | headers) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (status, code)
    assert await side_legs(call.nodes, call.other, 0)


@pytest.mark.parametrize("call_id", ["rtc_iad_nobody", "rtc_mars_nobody", "nonsense", "", "rtc_iad_" + "x" * 80])
async def test_a_call_that_is_not_there_is_404_in_openais_words(nodes: Nodes, call_id: str) -> None:
    """Whether its id could be one or not; the SDK shows the status."""
    node = await nodes.add()
    with pytest.raises(InvalidStatus) as refused:
        async with attached(node, call_id):
            pass
    answer = refused.value.response
    assert (answer.status_code, json.loads(answer.body)["error"]["code"]) == (404, "call_id_not_found")


async def test_a_call_that_has_ended_is_410_with_why(call: Call) -> None:
    """For an hour its end is known."""
    await call.client.close()

    async def is_over() -> bool:
        return (await call.nodes.get(call.other, f"/v1/realtime/calls/{call.id}"))[1]["state"] == "ended"

    await until(is_over)
    with pytest.raises(InvalidStatus) as refused:
        async with attached(call.other, call.id):
            pass
    answer = refused.value.response
    error = json.loads(answer.body)["error"]
    assert (answer.status_code, error["code"]) == (410, "call_ended")
    assert "client_closed" in error["message"]


async def test_a_call_whose_region_cannot_be_reached_is_503(nodes: Nodes) -> None:
    """It may live: the backend should come again, here or elsewhere."""
    regions = {"REGIONS": f"iad={nodes._redis_url},lhr=redis://127.0.0.1:1", "BUS_SOCKET_TIMEOUT": "0.3"}
    node = await nodes.add("b", **regions)
    with pytest.raises(InvalidStatus) as refused:
        async with attached(node, new_call_id("lhr")):
            pass
    answer = refused.value.response
    assert (answer.status_code, json.loads(answer.body)["error"]["code"]) == (503, "region_unreachable")
    assert answer.headers["Retry-After"] == "1"
    assert await side_legs(nodes, node, 0)


async def test_a_node_takes_as_many_side_legs_as_calls(nodes: Nodes) -> None:
    """Admission is by count, and they don't take the calls' room."""
    async with Call.begun(nodes, MAX_CALLS="1") as call, attached(call.other, call.id):
        with pytest.raises(InvalidStatus) as refused:
            async with attached(call.other, call.id):
                pass
        assert (refused.value.response.status_code, refused.value.response.headers["Retry-After"]) == (503, "2")
        assert json.loads(refused.value.response.body)["error"]["code"] == "node_full"
        second = await nodes.connect(call.other)
        await event(second, "session.created")
        await second.close()


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\x82\x82\0\0\0\0hi", 1003),  # binary
        (b"\x83\x80\0\0\0\0", 1002),  # a reserved opcode
        (b"\x80\x80\0\0\0\0", 1002),  # continues nothing
        (b"\x81\x01x", 1002),  # not masked
        (b"\x81\x82\0\0\0\0\xff\xfe", 1007),  # not UTF-8
        (b"\x81\xff\0\0\0\0\x02\0\0\0\0\0\0\0", 1009),  # 32 MiB announced
        (b"\x88\x82\0\0\0\0\x0f\xa0", 4000),  # its own CLOSE comes back
    ],
    ids=["binary", "opcode", "continuation", "unmasked", "utf8", "too-big", "close"],
)
async def test_a_bad_frame_ends_the_side_leg_alone(call: Call, frame: bytes, code: int) -> None:
    """RFC 6455, section 7.4.1; the call has nothing to do with it."""
    url = f"{call.other.url}/v1/realtime?call_id={call.id}"
    protocols = ("realtime", f"openai-insecure-api-key.{token('control')}")
    leg = await call.nodes.http.ws_connect(url, protocols=protocols)  # as from a page
    assert (leg.protocol, leg._response.headers["X-Call-Id"]) == ("realtime", call.id)
    await event(leg, "session.created")
    leg._response.connection.transport.write(frame)
    assert (await closed(leg))[0] == code
    assert await call.lives()
    await until(lambda: side_legs(call.nodes, call.other, 0))
