"""A person, a supervisor and a backend in one call, each at another node, while everybody talks and interrupts.

Two regions, each with a Redis of its own. The person's client and the supervisor are the official SDK; the backend has
HTTP and server-sent events. All of them must see one order of items, and every message must end as was asked.
"""

import asyncio
import json
import random
import time
from base64 import b64encode
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI
from openai.resources.realtime.realtime import AsyncRealtimeConnection

from ops.simulator.speech import tone
from relay.app import Node
from relay.demo import declare_settled
from tests.support.fleet import Nodes, bearer, system_message, token, until
from tests.support.redis_server import RedisServer

MESSAGES = 200
SEED = 20261121
FRAME = 960  # bytes: 20 ms
TOOLS = [
    {"type": "function", "name": name, "description": "", "parameters": {"type": "object", "properties": {}}}
    for name in ("get_weather", "get_stock")
]
SPEECH, SILENCE = tone(0.5), bytes(48 * 700)


@dataclass
class Seen:
    """What one party saw of the call."""

    added: list[str] = field(default_factory=list)  # item ids in the order of conversation.item.added
    done: Counter[str] = field(default_factory=Counter)  # responses
    errors: list[Any] = field(default_factory=list)

    def note(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "conversation.item.added":
                self.added.append(event["item"]["id"])
            case "response.done":
                self.done[event["response"]["id"]] += 1
            case "error":
                self.errors.append(event["error"])


class Person:
    """A client as a browser's: it speaks, asks in words, interrupts, and asks for responses as the SDKs do."""

    def __init__(self, connection: AsyncRealtimeConnection, dice: random.Random) -> None:
        self.seen = Seen()
        self._connection = connection
        self._dice = dice
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def listen(self) -> None:
        async for event in self._connection:
            fields = event.to_dict()
            self.seen.note(fields)
            if fields["type"] == "response.created":
                self._active += 1
                self._idle.clear()
            elif fields["type"] == "response.done":
                self._active -= 1
                if not self._active:
                    self._idle.set()

    async def talk(self, turns: int) -> None:
        for _ in range(turns):
            await self._dice.choice([self._speak, self._ask, self._ask_for_tools, self._wait])()

    async def _speak(self) -> None:
        """Over the model's own words, if it is speaking."""
        audio = SPEECH + SILENCE
        for start in range(0, len(audio), FRAME):
            await self._connection.input_audio_buffer.append(audio=b64encode(audio[start : start + FRAME]).decode())
            await asyncio.sleep(0.02)  # the pace of speech

    async def _ask(self, words: str = "how are you") -> None:
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": words}]}
        await self._connection.conversation.item.create(item=item)  # type: ignore[arg-type]
        await self._idle.wait()  # as the Agents SDKs do before they ask for a response
        self._idle.clear()
        await self._connection.response.create()

    async def _ask_for_tools(self) -> None:
        await self._ask("please get weather and get stock")

    async def _wait(self) -> None:
        await asyncio.sleep(self._dice.uniform(0.2, 0.8))


class Supervisor:
    """The official SDK attached by ``call_id``; now and then it says something itself."""

    def __init__(self, connection: AsyncRealtimeConnection) -> None:
        self.seen = Seen()
        self._connection = connection

    async def listen(self) -> None:
        async for event in self._connection:
            self.seen.note(event.to_dict())

    async def steer(self, times: int) -> None:
        for number in range(times):
            item = {"id": f"sup_{number}", **system_message(f"supervisor {number}")}
            await self._connection.conversation.item.create(item=item)  # type: ignore[arg-type]
            if number % 3 == 0:
                await self._connection.response.create()
            await asyncio.sleep(1.0)


class Backend:
    """Reads the call's events and answers the model's tool calls, each with one result."""

    def __init__(self, http: aiohttp.ClientSession, node: Node, call_id: str) -> None:
        self.seen = Seen()
        self.results: dict[str, Any] = {}
        self._http, self._url = http, f"{node.url}/v1/realtime/calls/{call_id}"
        self.is_open = asyncio.Event()

    async def work(self) -> None:
        async with (
            asyncio.TaskGroup() as tasks,
            self._http.get(f"{self._url}/events", headers=bearer(token("read")), timeout=_NEVER) as stream,
        ):
            assert stream.status == 200
            self.is_open.set()
            async for event in _events(stream):
                self.seen.note(event)
                if event["type"] == "response.output_item.done" and event["item"]["type"] == "function_call":
                    tasks.create_task(self._answer(event["item"]["call_id"]))

    async def _answer(self, tool_call: str) -> None:
        item = {"type": "function_call_output", "call_id": tool_call, "output": '{"ok": true}'}
        self.results[tool_call] = await self.put({"item": item}, "answered")

    async def put(self, body: dict[str, Any], wait: str) -> dict[str, Any]:
        query = f"wait={wait}&timeout_ms=60000"
        headers = bearer(token("control"))
        async with self._http.post(
            f"{self._url}/items?{query}", json=body, headers=headers, timeout=_NEVER
        ) as response:
            receipt: dict[str, Any] = await response.json()
            assert response.status == 200, receipt
            return receipt


_NEVER = aiohttp.ClientTimeout(total=None)


async def _events(stream: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    async for line in stream.content:
        if line.startswith(b"data: "):
            yield json.loads(line[6:])


@dataclass
class Fleet:
    """One node in iad, two in lhr."""

    nodes: Nodes
    person: Node
    supervisor: Node
    backend: Node


@pytest.fixture
async def fleet(redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[Fleet]:
    """Both homes settled, nobody in a call."""
    other = RedisServer().start()
    try:
        async with Nodes.running(redis_server.url, tmp_path) as nodes:
            for url in (redis_server.url, other.url):
                await declare_settled(url, nodes.prefix)
            regions = {"REGIONS": f"iad={redis_server.url},lhr={other.url}"}
            yield Fleet(
                nodes,
                await nodes.add("iad-1", **regions),
                await nodes.add("lhr-1", REGION="lhr", **regions),
                await nodes.add("lhr-2", REGION="lhr", **regions),
            )
    finally:
        other.stop()


async def mint(fleet: Fleet) -> tuple[str, str]:
    """Make a key for a new call whose tools are known; its call id is known before anybody is in it."""
    audio = {"input": {"transcription": {"model": "whisper-1"}}}
    session: Any = {"type": "realtime", "tools": TOOLS, "audio": audio}
    async with AsyncOpenAI(api_key=token("mint"), base_url=fleet.person.url + "/v1") as client:
        secret = await client.realtime.client_secrets.create(session=session)
    assert secret.model_extra is not None
    return secret.value, secret.model_extra["call_id"]


@pytest.mark.timeout(240)
async def test_three_parties_see_one_order_and_every_message_ends_as_it_was_asked(fleet: Fleet) -> None:
    """200 messages, for now, for the turn's end and to interrupt, while the person and the model talk at random."""
    dice = random.Random(SEED)
    key, call_id = await mint(fleet)
    async with asyncio.TaskGroup() as tasks:
        backend = Backend(fleet.nodes.http, fleet.backend, call_id)
        working = tasks.create_task(backend.work())
        await backend.is_open.wait()  # it watches before the person has come
        async with (
            AsyncOpenAI(api_key=key, base_url=fleet.person.url + "/v1") as person_sdk,
            AsyncOpenAI(api_key=token("control"), base_url=fleet.supervisor.url + "/v1") as supervisor_sdk,
            person_sdk.realtime.connect(model="sim") as connection,
        ):
            person = Person(connection, dice)
            listening = tasks.create_task(person.listen())
            async with supervisor_sdk.realtime.connect(call_id=call_id) as side:
                supervisor = Supervisor(side)
                watching = tasks.create_task(supervisor.listen())
                async with asyncio.TaskGroup() as acts:
                    acts.create_task(person.talk(22))
                    acts.create_task(supervisor.steer(12))
                    injecting = acts.create_task(_inject(backend, dice))
                receipts = injecting.result()
                hidden = {receipt["item_id"] for body, receipt, _ in receipts if not body["visible"]}
                in_model = await _settled(fleet.nodes, person.seen, (supervisor.seen, backend.seen), hidden)
            watching.cancel()
        await working  # the call's end ends the stream
        listening.cancel()
    _check_receipts(receipts, in_model)
    assert backend.seen.added == in_model
    assert person.seen.added == [item for item in in_model if item not in hidden]
    first = in_model.index(supervisor.seen.added[0])
    assert supervisor.seen.added == in_model[first:]
    assert set(person.seen.done.values()) == {1}
    assert [*person.seen.errors, *supervisor.seen.errors, *backend.seen.errors] == []
    assert backend.results
    assert {receipt["status"] for receipt in backend.results.values()} == {"answered"}


async def _settled(nodes: Nodes, person: Seen, others: Sequence[Seen], hidden: set[str]) -> list[str]:
    """Until everybody has seen the model's last item that they may see; returns all of its items in order."""
    items: list[str] = []

    async def is_settled() -> bool:
        model = await nodes.session(open_only=True)
        items[:] = [item["id"] for item in model["items"]]
        shown = [item for item in items if item not in hidden]
        return person.added[-1:] == shown[-1:] and all(seen.added[-1:] == items[-1:] for seen in others)

    await until(is_settled, 30)
    return items


async def _inject(backend: Backend, dice: random.Random) -> list[tuple[dict[str, Any], dict[str, Any], float]]:
    """Put the messages in; returns each with its receipt and the time by which it had to be applied."""
    receipts: list[tuple[dict[str, Any], dict[str, Any], float]] = []

    async def put(body: dict[str, Any], wait: str) -> None:
        deadline = time.time() + body["expires_in_ms"] / 1000
        receipts.append((body, await backend.put(body, wait), deadline))

    async with asyncio.TaskGroup() as tasks:
        for number in range(MESSAGES):
            answer = dice.random() < 0.12
            short = not answer and dice.random() < 0.1  # too short for some: those must never be applied
            body = {
                "item": system_message(f"message {number}"),
                "when": dice.choice(["now", "turn_end", "interrupt"]),
                "response": answer,
                "visible": dice.random() < 0.8,
                "expires_in_ms": 400 if short else 120_000,
            }
            tasks.create_task(put(body, "answered" if answer else "applied"))
            await asyncio.sleep(dice.uniform(0.0, 0.25))
    return receipts


def _check_receipts(receipts: list[tuple[dict[str, Any], dict[str, Any], float]], in_model: list[str]) -> None:
    times = Counter(in_model)
    outcomes = Counter[str]()
    for body, receipt, deadline in receipts:
        outcomes[receipt["status"]] += 1
        wanted = "answered" if body["response"] else "applied"
        if receipt["status"] == "expired":
            assert body["expires_in_ms"] == 400
            assert times[receipt["item_id"]] == 0
            continue
        assert receipt["status"] == wanted, receipt
        assert times[receipt["item_id"]] == 1
        assert receipt["reached"]["applied"] <= deadline + 0.1  # it was sent in time; the model took a moment
    assert len(receipts) == MESSAGES
    assert outcomes["answered"] > MESSAGES // 20
    assert outcomes["applied"] > MESSAGES // 2
