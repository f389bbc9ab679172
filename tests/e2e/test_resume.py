"""A call outlives its upstream session, its socket and its node: what the client, the model and backends see of it."""

import json
from typing import Any

import aiohttp
import pytest

from relay.app import Node
from tests.support.fleet import Nodes, bearer, closed, event, session_of, system_message, token, until

REDIALS = {"REDIAL_SECONDS": "10", "CONFIG": ""}  # with the agents that a node has by default
ASK = {"type": "response.create"}


def say(text: str, item_id: str | None = None) -> dict[str, Any]:
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
    return {"type": "conversation.item.create", "item": item | ({"id": item_id} if item_id else {})}


async def talk(client: aiohttp.ClientWebSocketResponse, text: str) -> str:
    """Say something and have it answered; returns the answer's words."""
    await client.send_json(say(text))
    await client.send_json(ASK)
    done = await event(client, "response.done")
    assert done["response"]["status"] == "completed", done
    return words(done["response"]["output"][0])


def words(item: dict[str, Any]) -> str:
    parts = item.get("content") or []
    return " ".join(str(part.get("text") or part.get("transcript") or "") for part in parts)


async def sessions(nodes: Nodes) -> list[dict[str, Any]]:
    listed = await nodes._get(f"{nodes.model.http_url}/sim/sessions")
    return [await nodes._get(f"{nodes.model.http_url}/sim/sessions/{each['id']}") for each in listed["data"]]


async def minted(nodes: Nodes, node: Node, **body: Any) -> tuple[str, str]:
    """A client secret and its call's id."""
    url = f"{node.url}/v1/realtime/client_secrets"
    async with nodes.http.post(url, json=body, headers=bearer(token("mint"))) as response:
        secret = await response.json()
        assert response.status == 200, secret
        return str(secret["value"]), str(secret["call_id"])


async def connect(nodes: Nodes, node: Node, key: str, **options: Any) -> aiohttp.ClientWebSocketResponse:
    return await nodes.connect(node, headers=bearer(key), **options)


async def live(nodes: Nodes, node: Node, key: str | None = None, **options: Any) -> aiohttp.ClientWebSocketResponse:
    """A client leg that has its session; without a key as any client of the tenant's."""
    client = await (connect(nodes, node, key, **options) if key is not None else nodes.connect(node, **options))
    await event(client, "session.created")
    return client


def drop(client: aiohttp.ClientWebSocketResponse) -> None:
    """The network takes the connection away."""
    assert client._response.connection is not None
    assert client._response.connection.transport is not None
    client._response.connection.transport.abort()


async def away(client: aiohttp.ClientWebSocketResponse) -> None:
    """Drop it, and wait until its node has noticed."""
    call = session_of(client._response.headers["X-Call-Id"])
    drop(client)
    await until(lambda: call.is_away)


async def ends(nodes: Nodes, node: Node, call_id: str) -> dict[str, Any]:
    """Until a call has ended; returns what is written of its end."""
    found: dict[str, Any] = {}

    async def is_over() -> bool:
        found.update((await nodes.get(node, f"/v1/realtime/calls/{call_id}"))[1])
        return found.get("state") == "ended"

    await until(is_over)
    return found


async def refused(nodes: Nodes, node: Node, key: str, path: str = "/v1/realtime?model=sim") -> tuple[int, str]:
    """Status and code with which a node refuses a connection; ``Retry-After`` goes with every 503."""
    handshake = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    headers = handshake | bearer(key) | {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
    async with nodes.http.get(node.url + path, headers=headers) as response:
        assert (response.status == 503) == ("Retry-After" in response.headers)
        return response.status, (await response.json())["error"]["code"]


async def remembered(nodes: Nodes, node: Node, call_id: str, text: str) -> None:
    """Until the call's home has this as its last words: what a node that dies has not written is lost."""

    async def is_written() -> bool:
        _, found = await nodes.get(node, f"/v1/realtime/calls/{call_id}/transcript")
        return [item.get("text") for item in found["data"]][-1:] == [text]

    await until(is_written)


def known(session: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The items that a model has, the relay's own aside."""
    return [
        (item["id"], item["role"] or item["type"], item["text"])
        for item in session["items"]
        if not item["id"].startswith("relay_anchor")
    ]


@pytest.mark.parametrize("fault", [{"reset": True}, {"close": 1011}, {"close": 1000}, {"close": 1001}], ids=json.dumps)
async def test_a_model_leg_that_is_lost_is_replaced_and_nobody_notices(nodes: Nodes, fault: dict[str, Any]) -> None:
    """The conversation goes on with all that was said, and the client gets one session.created."""
    await nodes.fault(**fault, after=0.5)
    node = await nodes.add(**REDIALS)
    client = await nodes.connect(node)
    await event(client, "session.created")
    first = await talk(client, "My name is Ada.")

    async def rebuilt() -> bool:
        return len(await sessions(nodes)) == 2

    await until(rebuilt)
    second = await talk(client, "What is my name?")
    assert "Ada" in first
    assert "name" in second
    old, new = await sessions(nodes)
    assert known(new)[: len(known(old))] == known(old)
    assert [text for _, _, text in known(new)][-2:] == ["What is my name?", second]
    await client.close()


async def test_a_client_comes_back_to_the_same_model_leg_and_hears_what_it_missed(nodes: Nodes) -> None:
    """A network change is no reason to lose anything."""
    node = await nodes.add(**REDIALS)
    key, call_id = await minted(nodes, node)
    client = await connect(nodes, node, key)
    await event(client, "session.created")
    await client.send_json(say("talk for 2 seconds"))
    await client.send_json(ASK)
    await event(client, "response.output_audio.delta")
    client._response.connection.transport.abort()
    await until(lambda: session_of(call_id).is_away)
    again = await connect(nodes, node, key)
    assert (await event(again, "session.created"))["session"]["type"] == "realtime"
    done = await event(again, "response.done")
    assert done["response"]["status"] == "completed"
    assert len(await sessions(nodes)) == 1
    await again.close()


async def test_a_client_that_comes_to_another_node_goes_on_there(nodes: Nodes) -> None:
    """The call moves: another model leg, the same conversation; the first node lets go and says why."""
    first, second = await nodes.add("a", **REDIALS), await nodes.add("b", **REDIALS)
    key, call_id = await minted(nodes, first)
    client = await connect(nodes, first, key)
    await event(client, "session.created")
    answer = await talk(client, "My name is Ada.")
    status, _ = await nodes.put(first, call_id, {"item": system_message("She likes tea."), "id": "tea"})
    assert status == 200
    await remembered(nodes, first, call_id, "She likes tea.")
    again = await connect(nodes, second, key)
    await event(again, "session.created")
    assert again._response.headers["X-Relay-Node"] == "b"
    assert (await closed(client))[0] == 4009
    assert "name" in await talk(again, "What is my name?")
    old, new = await sessions(nodes)
    assert [text for _, _, text in known(new)][:3] == ["My name is Ada.", answer, "She likes tea."]
    assert known(new)[:3] == known(old)
    _, call = await nodes.get(second, f"/v1/realtime/calls/{call_id}")
    assert (call["state"], call["node"]) == ("live", "b")
    await again.close()


async def test_a_session_that_is_about_to_end_is_replaced_between_two_turns(nodes: Nodes) -> None:
    """The 60-minute cap, here four seconds: no error, no close, no second session.created, nothing lost."""
    await nodes.fault(expire=4, count=3)
    node = await nodes.add(**REDIALS, ROLL_OVER_SECONDS="2")
    client = await nodes.connect(node)
    created = await event(client, "session.created")
    said: list[tuple[str, str]] = []
    while sum(each["close_code"] is not None for each in await sessions(nodes)) < 3:
        text = f"Number {len(said)}."
        said.append((text, await talk(client, text)))
    *ended, last = await sessions(nodes)
    assert [each["close_code"] for each in ended] == [1000] * 3, "each was closed by the relay, before its end"
    assert [text for _, _, text in known(last)] == [text for turn in said for text in turn]
    assert created["session"]["type"] == "realtime"
    await client.close()


async def test_a_second_connection_of_the_client_replaces_the_first(nodes: Nodes) -> None:
    """The first is told so, with a code that no SDK takes for an invitation."""
    node = await nodes.add(**REDIALS)
    key, _ = await minted(nodes, node)
    first = await connect(nodes, node, key)
    await event(first, "session.created")
    second = await connect(nodes, node, key)
    await event(second, "session.created")
    assert (await closed(first))[0] == 4009
    assert await talk(second, "Still there?")
    assert len(await sessions(nodes)) == 1
    await second.close()


async def test_what_an_sdk_repeats_when_it_resumes_is_answered_and_not_sent_on(nodes: Nodes) -> None:
    """A voice cannot be set again once the model has spoken: the model would refuse the whole update."""
    node = await nodes.add(**REDIALS)
    key, call_id = await minted(nodes, node)
    client = await connect(nodes, node, key)
    await event(client, "session.created")
    update = {"type": "realtime", "instructions": "Be kind.", "audio": {"output": {"voice": "cedar"}}}
    await client.send_json({"type": "session.update", "session": update})
    await event(client, "session.updated")
    await talk(client, "Hello.")
    client._response.connection.transport.abort()
    await until(lambda: session_of(call_id).is_away)
    again = await connect(nodes, node, key)
    await event(again, "session.created")
    await again.send_json({"type": "session.update", "session": update})
    assert (await event(again, "session.updated"))["session"]["instructions"] == "Be kind."
    await again.send_json({"type": "session.update", "session": {**update, "instructions": "Be brief."}})
    assert (await event(again, "session.updated"))["session"]["instructions"] == "Be brief."
    (model,) = await sessions(nodes)
    updates = [each["session"] for each in model["events"] if each["type"] == "session.update"]
    assert updates[-1] == {"type": "realtime", "instructions": "Be brief."}
    await again.close()


async def test_transcription_is_on_for_the_memory_and_hidden_from_who_did_not_ask(nodes: Nodes) -> None:
    """What people say must be known in words to be restored; a client that did not ask for them sees none."""
    node = await nodes.add(**REDIALS)
    client = await nodes.connect(node)
    created = await event(client, "session.created")
    assert created["session"]["audio"]["input"]["transcription"] is None

    async def is_on() -> bool:
        session = (await nodes.session())["session"]
        return bool(session["audio"]["input"]["transcription"])

    await until(is_on)
    await client.send_json({"type": "session.update", "session": {"type": "realtime", "instructions": "Hi."}})
    updated = await event(client, "session.updated")
    assert (updated["session"]["instructions"], updated["session"]["audio"]["input"]["transcription"]) == ("Hi.", None)
    await client.close()
