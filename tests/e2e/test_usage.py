"""What a tenant's calls used, as it reads it anywhere in the fleet; and tokens that are revoked everywhere."""

import asyncio
import base64
import csv
import io
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest

from relay.app import Node
from relay.demo import declare_settled
from tests.e2e.test_call import SILENCE, TONE
from tests.support.fleet import Nodes, bearer, closed, event, system_message, token, until
from tests.support.redis_server import RedisServer

WEATHER = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}}
BYTES_PER_SECOND = 48_000
AGENTS = """\
[agents.default]
transcription = false
[agents.sales]
transcription = false
[agents.insiders]
tenants = ["inside"]
"""


class Person:
    """A client that adds up what the model says that it cost."""

    def __init__(self, client: aiohttp.ClientWebSocketResponse) -> None:
        self.client = client
        self.call_id: str = client._response.headers["X-Call-Id"]
        self.used: Counter[str] = Counter(calls=1)
        self.seconds = {"audio_seconds_in": 0.0, "audio_seconds_out": 0.0, "transcription_seconds": 0.0}

    @classmethod
    async def on(cls, nodes: Nodes, node: Node, **claims: str) -> "Person":
        """Open a call."""
        person = cls(await nodes.connect(node, headers=bearer(token("call", **claims))))
        await person.hear("session.created")
        return person

    async def send(self, kind: str, **fields: Any) -> None:
        await self.client.send_json({"type": kind, **fields})

    async def hear(self, kind: str) -> dict[str, Any]:
        """Until an event of this type, counting on the way."""
        async with asyncio.timeout(15):
            while True:
                found: dict[str, Any] = json.loads((await self.client.receive()).data)
                self._count(found)
                if found["type"] == kind:
                    return found

    def _count(self, found: dict[str, Any]) -> None:
        match found["type"]:
            case "response.done":
                usage = found["response"]["usage"]
                given, made = usage["input_token_details"], usage["output_token_details"]
                self.used["responses"] += 1
                self.used["cached_tokens"] += given["cached_tokens"]
                for kind in ("text", "audio", "image"):
                    self.used[f"input_{kind}_tokens"] += given[f"{kind}_tokens"]
                for kind in ("text", "audio"):
                    self.used[f"output_{kind}_tokens"] += made[f"{kind}_tokens"]
            case "conversation.item.input_audio_transcription.completed":
                usage = found["usage"]
                self.used["transcription_tokens"] += usage.get("total_tokens", 0)
                self.seconds["transcription_seconds"] += usage.get("seconds", 0.0)
            case "response.output_audio.delta":
                self.seconds["audio_seconds_out"] += len(base64.b64decode(found["delta"])) / BYTES_PER_SECOND

    async def configure(self, transcription: str) -> None:
        """Set the session up with a tool, and a model that writes down what is said."""
        session = {"tools": [WEATHER], "audio": {"input": {"transcription": {"model": transcription}}}}
        await self.send("session.update", session={"type": "realtime", **session})
        await self.hear("session.updated")

    async def speak(self) -> None:
        """Say something, and listen to the answer."""
        for audio in (TONE, TONE, SILENCE, SILENCE):
            await self.client.send_str('{"type":"input_audio_buffer.append","audio":"' + audio.decode() + '"}')
            self.seconds["audio_seconds_in"] += len(base64.b64decode(audio)) / BYTES_PER_SECOND
        await self.hear("response.done")

    async def write(self, text: str) -> None:
        """Write something, and listen to the answer."""
        content = [{"type": "input_text", "text": text}]
        await self.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
        await self.send("response.create")
        await self.hear("response.done")


async def ask(nodes: Nodes, node: Node, query: str = "", *, tenant: str = "test") -> tuple[int, dict[str, Any]]:
    """Status and JSON of a tenant's usage."""
    headers = bearer(token("read", tenant=tenant))
    async with nodes.http.get(f"{node.url}/v1/usage?{query}", headers=headers) as response:
        return response.status, await response.json()


async def rows(nodes: Nodes, node: Node, group_by: str, query: str = "") -> list[dict[str, Any]]:
    """The sums, where all regions answer."""
    status, found = await ask(nodes, node, f"group_by={group_by}&{query}")
    assert (status, found["object"], found["unreachable_regions"]) == (200, "list", [])
    return list(found["data"])


async def until_counted(nodes: Nodes, node: Node, calls: int, responses: int = 0) -> None:
    """Until all this is counted, and no call lives: a call's last report has all of it."""

    async def is_counted() -> bool:
        _, listed = await nodes.get(node, "/v1/realtime/calls")
        found = await rows(nodes, node, "agent,region")
        sums = [sum(each[name] for each in found) for name in ("calls", "responses")]
        return not listed["data"] and sums == [calls, responses]

    await until(is_counted)


class Regions(NamedTuple):
    """Two nodes in one region and one in another, and the other's Redis."""

    near: Node
    next_to: Node
    far: Node
    there: RedisServer


@pytest.fixture
def config(nodes: Nodes) -> Path:
    """A file with two agents, one that few may use, and a plan whose backends may say little."""
    path = nodes.folder / "rulebook.toml"
    path.write_text(f"{AGENTS}[plans.quiet]\nmessages_per_second = 1\n")
    return path


@asynccontextmanager
async def two_regions(nodes: Nodes, config: Path) -> AsyncIterator[Regions]:
    """Nodes that know of both."""
    there = RedisServer().start()
    try:
        await declare_settled(there.url, nodes.prefix)
        env = {"REGIONS": f"iad={nodes._redis_url},lhr={there.url}", "CONFIG": str(config), "BUS_SOCKET_TIMEOUT": "0.6"}
        async with (
            nodes.node("iad-1", **env) as near,
            nodes.node("iad-2", **env) as next_to,
            nodes.node("lhr-1", REGION="lhr", **env) as far,
        ):
            yield Regions(near, next_to, far, there)
    finally:
        there.stop()


# Usage


@pytest.mark.parametrize("transcription", ["gpt-4o-mini-transcribe", "whisper-1"], ids=["tokens", "seconds"])
async def test_usage_is_what_the_model_reported_and_what_passed(nodes: Nodes, transcription: str) -> None:
    """Turns, a tool call with a backend's result, a message, transcription by either measure; read at another node."""
    node, other = await nodes.add("a"), await nodes.add("b")
    person = await Person.on(nodes, node)
    await person.configure(transcription)
    await person.speak()  # to which the simulator's answer is a tool call
    (tool_call,) = [each["call_id"] for each in (await nodes.session())["items"] if each.get("call_id")]
    result = {"type": "function_call_output", "call_id": tool_call, "output": "{}"}
    assert (await nodes.put(other, person.call_id, {"item": result}))[0] == 200
    await person.hear("response.done")
    assert (await nodes.put(other, person.call_id, {"item": system_message("be brief")}))[0] == 200
    await person.write("talk for 2 seconds")
    await person.client.close()
    await until_counted(nodes, other, 1, responses=3)
    (found,) = await rows(nodes, other, "agent")
    assert (found["object"], found["agent"], found["day"], found["region"]) == ("realtime.usage", "default", None, None)
    assert person.used["responses"] == 3
    assert {name: found[name] for name in person.used} == {**person.used}
    assert found["messages"] == 2
    for name, seconds in person.seconds.items():
        assert found[name] == pytest.approx(seconds, rel=0.01, abs=0.02), name
    assert person.used["transcription_tokens"] or person.seconds["transcription_seconds"]
    assert found["seconds"] > 0


async def test_a_live_call_is_counted_as_it_goes(nodes: Nodes) -> None:
    """A bill that is only written at the end would miss the call of a node that dies."""
    node = await nodes.add(LEASE_SECONDS="3")
    person = await Person.on(nodes, node)
    await person.write("hello")

    async def is_counted() -> bool:
        found = await rows(nodes, node, "agent")
        return len(found) == 1 and found[0]["responses"] == 1 and found[0]["seconds"] > 0.5

    await until(is_counted)
    assert not person.client.closed
    await person.client.close()


async def test_usage_of_all_nodes_and_regions_is_one_bill(nodes: Nodes, config: Path) -> None:
    """Asked anywhere; by region, agent and day, each call once."""
    async with two_regions(nodes, config) as fleet:
        people = [
            await Person.on(nodes, fleet.near),
            await Person.on(nodes, fleet.next_to, agent="sales"),
            await Person.on(nodes, fleet.far),
        ]
        for person in people:
            await person.write("hello")
            await person.client.close()
        await until_counted(nodes, fleet.far, 3, responses=3)
        for node in fleet[:3]:
            by_region = {each["region"]: each for each in await rows(nodes, node, "region")}
            assert {region: each["calls"] for region, each in by_region.items()} == {"iad": 2, "lhr": 1}
            assert by_region["lhr"]["input_text_tokens"] == people[2].used["input_text_tokens"] > 0
            assert [
                (each["agent"], each["region"], each["calls"]) for each in await rows(nodes, node, "agent,region")
            ] == [
                ("default", "iad", 1),
                ("default", "lhr", 1),
                ("sales", "iad", 1),
            ]
            assert [each["calls"] for each in await rows(nodes, node, "agent", "agent=sales")] == [1]
            assert await rows(nodes, node, "agent", "agent=nobody") == []
            assert sum(each["calls"] for each in await rows(nodes, node, "day")) == 3


async def test_a_region_that_does_not_answer_is_named_and_no_export_is_made_without_it(
    nodes: Nodes, config: Path
) -> None:
    """Half a bill looks like a whole one, and a file has no place to say so."""
    async with two_regions(nodes, config) as fleet:
        person = await Person.on(nodes, fleet.near)
        await person.client.close()
        await until_counted(nodes, fleet.near, 1)
        fleet.there.freeze()
        try:
            status, found = await ask(nodes, fleet.near, "group_by=region")
            assert (status, found["unreachable_regions"]) == (200, ["lhr"])
            assert [(each["region"], each["calls"]) for each in found["data"]] == [("iad", 1)]
            for form in ("csv", "jsonl"):
                url = f"{fleet.near.url}/v1/usage?format={form}"
                async with nodes.http.get(url, headers=bearer(token("read"))) as response:
                    code = (await response.json())["error"]["code"]
                    assert (response.status, code) == (503, "region_unreachable")
                    assert int(response.headers["Retry-After"]) > 0
        finally:
            fleet.there.thaw()


async def test_json_lines_and_csv_say_the_same(nodes: Nodes, config: Path) -> None:
    """In the query or in the Accept header, with the type that was asked for."""
    node = await nodes.add(CONFIG=str(config))
    for agent in ("default", "sales"):
        person = await Person.on(nodes, node, agent=agent)
        await person.write("hello")
        await person.client.close()
    await until_counted(nodes, node, 2, responses=2)

    async def text(query: str, accept: str) -> tuple[str, str]:
        headers = bearer(token("read")) | {"Accept": accept}
        async with nodes.http.get(f"{node.url}/v1/usage?{query}", headers=headers) as response:
            assert response.status == 200
            return response.content_type, (await response.read()).decode()

    as_json = json.loads((await text("", "*/*"))[1])["data"]
    kind, lines = await text("format=jsonl", "*/*")
    assert (kind, [json.loads(line) for line in lines.splitlines()]) == ("application/jsonl", as_json)
    kind, table = await text("format=csv", "*/*")
    assert kind == "text/csv"
    read = list(csv.DictReader(io.StringIO(table, newline="")))
    names = list(read[0])
    assert names[:4] == ["day", "agent", "region", "calls"]
    assert [{name: value if name in names[:3] else float(value) for name, value in each.items()} for each in read] == [
        {name: each[name] if each[name] is not None else "" for name in names} for each in as_json
    ]
    assert await text("", "text/csv") == (kind, table)
    assert await text("", "application/jsonl") == ("application/jsonl", lines)
    assert (await text("format=json", "text/csv"))[0] == "application/json"


async def test_another_tenant_sees_nothing(nodes: Nodes) -> None:
    """Nor does a token without the scope, or for one call."""
    node = await nodes.add()
    person = await Person.on(nodes, node)
    await person.client.close()
    await until_counted(nodes, node, 1)
    status, found = await ask(nodes, node, tenant="evil")
    assert (status, found["data"]) == (200, [])
    for credentials, code in (
        (token("call", "control", "mint"), "missing_scope"),
        (token("read", call=person.call_id), "token_for_one_call"),
    ):
        async with nodes.http.get(f"{node.url}/v1/usage", headers=bearer(credentials)) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (403, code)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("start_day=yesterday", "start_day"),
        ("start_day=", "start_day"),
        ("start_day=2026-02-30", "start_day"),
        ("start_day=2026-01-01&end_day=2026-12-31", "start_day"),
        ("end_day=2026-1-1", "end_day"),
        ("group_by=tenant", "group_by"),
        ("group_by=", "group_by"),
        ("format=xlsx", "format"),
        ("tenant=evil", "tenant"),
    ],
)
async def test_a_wrong_question_about_usage_is_told_with_its_parameter(nodes: Nodes, query: str, param: str) -> None:
    """What is overlooked would make another bill."""
    status, answer = await ask(nodes, await nodes.add(), query)
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (422, "invalid_value", param)


# Revocation


async def revoke(nodes: Nodes, node: Node, credentials: str, **body: Any) -> tuple[int, dict[str, Any]]:
    """Ask a node to revoke a token."""
    url = f"{node.url}/v1/tokens/revoke"
    async with nodes.http.post(url, json=body, headers=bearer(credentials)) as response:
        return response.status, await response.json()


async def opens(nodes: Nodes, node: Node, key: str) -> int:
    """The status with which a node answers a call's upgrade; a call that it begins is closed."""
    try:
        client = await nodes.http.ws_connect(f"{node.url}/v1/realtime?model=sim", headers=bearer(key))
    except aiohttp.WSServerHandshakeError as refused:
        return refused.status
    await client.close()
    return 101


async def refusal(nodes: Nodes, node: Node, key: str) -> tuple[int, str]:
    """Status and code with which a node answers a request that reads."""
    async with nodes.http.get(f"{node.url}/v1/realtime/calls", headers=bearer(key)) as response:
        body = await response.json()
        return response.status, body["error"]["code"] if "error" in body else ""


async def test_a_revoked_token_opens_nothing_anywhere_and_its_call_ends(nodes: Nodes, config: Path) -> None:
    """Within seconds on every node of every region; other tokens, and their calls, don't notice."""
    async with two_regions(nodes, config) as fleet:
        stolen, good = token("call", "read", jti="stolen"), token("call", "read", jti="good")
        client = await nodes.connect(fleet.far, headers=bearer(stolen))
        await event(client, "session.created")
        other = await Person.on(nodes, fleet.far, jti="good")
        status, answer = await revoke(nodes, fleet.near, token("mint"), jti="stolen")
        assert (status, answer["object"], answer["jti"]) == (200, "realtime.token.revocation", "stolen")
        assert (answer["regions"], answer["unreachable_regions"]) == (["iad", "lhr"], [])
        code, _ = await closed(client)
        assert code == 4001
        for node in fleet[:3]:

            async def is_refused(node: Node = node) -> bool:
                return await refusal(nodes, node, stolen) == (401, "token_revoked")

            await until(is_refused)
            assert await opens(nodes, node, stolen) == 401
            assert await opens(nodes, node, good) == 101
        _, call = await nodes.get(fleet.near, f"/v1/realtime/calls/{client._response.headers['X-Call-Id']}")
        assert (call["state"], call["why"], call["fault"]) == ("ended", "token_revoked", "policy")
        await other.write("still here")
        await other.client.close()


async def test_a_node_that_starts_later_knows_what_was_revoked(nodes: Nodes) -> None:
    """A rollout must not let anybody in again."""
    first = await nodes.add("a")
    stolen = token("read", jti="stolen")
    assert (await revoke(nodes, first, token("mint"), jti="stolen"))[0] == 200
    later = await nodes.add("b")

    async def is_refused() -> bool:
        return await refusal(nodes, later, stolen) == (401, "token_revoked")

    await until(is_refused)


async def test_a_client_secret_is_revoked_by_the_id_of_its_answer(nodes: Nodes) -> None:
    """Before its client has come."""
    node = await nodes.add()
    async with nodes.http.post(
        f"{node.url}/v1/realtime/client_secrets", json={}, headers=bearer(token("mint"))
    ) as response:
        secret = await response.json()
    body = {"jti": secret["jti"], "expires_at": secret["expires_at"]}
    status, answer = await revoke(nodes, node, token("mint"), **body)
    assert (status, answer["expires_at"]) == (200, secret["expires_at"])

    async def is_refused() -> bool:
        return await refusal(nodes, node, secret["value"]) == (401, "token_revoked")

    await until(is_refused)
    assert await opens(nodes, node, secret["value"]) == 401


async def test_one_tenant_revokes_nothing_of_another(nodes: Nodes) -> None:
    """Ids are not secret, and may be the same."""
    node = await nodes.add()
    mine, theirs = token("read", jti="j1"), token("read", jti="j1", tenant="evil")
    assert (await revoke(nodes, node, token("mint", tenant="evil"), jti="j1"))[0] == 200

    async def is_refused() -> bool:
        return await refusal(nodes, node, theirs) == (401, "token_revoked")

    await until(is_refused)
    assert await refusal(nodes, node, mine) == (200, "")


async def test_a_revocation_that_misses_a_region_says_so_and_may_be_repeated(nodes: Nodes, config: Path) -> None:
    """Half a revocation is no revocation: 503, with what is done and what is not."""
    async with two_regions(nodes, config) as fleet:
        fleet.there.freeze()
        try:
            status, answer = await revoke(nodes, fleet.near, token("mint"), jti="stolen", expires_at=4_000_000_000)
            assert (status, answer["error"]["code"]) == (503, "region_unreachable")
            assert (answer["jti"], answer["expires_at"]) == ("stolen", 4_000_000_000)
            assert (answer["regions"], answer["unreachable_regions"]) == (["iad"], ["lhr"])
        finally:
            fleet.there.thaw()

        async def is_revoked() -> bool:
            return (await revoke(nodes, fleet.near, token("mint"), jti="stolen"))[0] == 200

        async def is_refused() -> bool:
            return await refusal(nodes, fleet.far, token("read", jti="stolen")) == (401, "token_revoked")

        await until(is_revoked)
        await until(is_refused)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "jti"),
        ({"jti": ""}, "jti"),
        ({"jti": "x" * 257}, "jti"),
        ({"jti": "a\nb"}, "jti"),
        ({"jti": 7}, "jti"),
        ({"jti": "j", "expires_at": 3600}, "expires_at"),
        ({"jti": "j", "expires_at": 1_790_000_000_000}, "expires_at"),
        ({"jti": "j", "expires_at": "tomorrow"}, "expires_at"),
        ({"jti": "j", "tenant": "evil"}, "tenant"),
    ],
)
async def test_a_revocation_that_would_do_nothing_is_refused(nodes: Nodes, body: dict[str, Any], param: str) -> None:
    """A duration or milliseconds as a time, for one."""
    status, answer = await revoke(nodes, await nodes.add(), token("mint"), **body)
    assert (status, answer["error"]["param"]) == (422, param)


async def test_who_cannot_make_keys_cannot_revoke_them(nodes: Nodes) -> None:
    """Else whoever may listen could shut everybody out."""
    status, answer = await revoke(nodes, await nodes.add(), token("call", "control", "read"), jti="j")
    assert (status, answer["error"]["code"]) == (403, "missing_scope")


# Messages


async def test_a_plans_messages_are_counted_over_all_nodes(nodes: Nodes, config: Path) -> None:
    """One a second: the second is told when to come again, on whichever node, and a hangup is never refused."""
    env = {"CONFIG": str(config)}
    node, other = await nodes.add("a", **env), await nodes.add("b", **env)
    person = await Person.on(nodes, node)
    headers = bearer(token("control", plan="quiet"))

    async def put(each: Node, what: str) -> tuple[int, str, str]:
        url = f"{each.url}/v1/realtime/calls/{person.call_id}/{what}"
        body = {"item": system_message("hi")} if what == "items" else {"type": "response.cancel"}
        async with nodes.http.post(url, json=body, headers=headers) as response:
            code = (await response.json()).get("error") or {}
            return response.status, code.get("code", ""), response.headers.get("Retry-After", "")

    loop = asyncio.get_running_loop()
    begun, taken, refused = loop.time(), 0, 0
    while refused < 4:
        for each, what in ((node, "items"), (other, "events")):
            status, code, retry_after = await put(each, what)
            if status == 429:
                assert (code, int(retry_after) >= 1) == ("too_many_messages", True)
                refused += 1
            else:
                taken += 1
    assert taken <= 2 + (loop.time() - begun)  # what may be saved up is two seconds' worth

    async def is_taken() -> bool:
        return (await put(other, "items"))[0] in {200, 202}

    await until(is_taken)
    url = f"{node.url}/v1/realtime/calls/{person.call_id}/hangup"
    async with nodes.http.post(url, headers=headers) as response:
        assert response.status == 200


async def test_a_plan_that_nobody_knows_lets_nothing_through(nodes: Nodes) -> None:
    """Else a limit is escaped by misspelling it."""
    node = await nodes.add()
    person = await Person.on(nodes, node)
    url = f"{node.url}/v1/realtime/calls/{person.call_id}/items"
    body = {"item": system_message("hi")}
    async with nodes.http.post(url, json=body, headers=bearer(token("control", plan="silver"))) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (403, "unknown_plan")
