"""A call outlives its upstream session, its socket and its node: what the client, the model and backends see of it."""

import asyncio
import json
import time
from typing import Any

import aiohttp
import pytest

from relay.app import Node
from relay.tokens import mint
from tests.support.fleet import SECRET, Nodes, bearer, closed, event, session_of, system_message, token, until

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


async def written(client: aiohttp.ClientWebSocketResponse) -> None:
    """Until the call's home has all that is known of it."""
    owned = session_of(client._response.headers["X-Call-Id"])._hands.owned
    assert owned is not None
    async with asyncio.timeout(5):
        await owned.wait_logged()


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
    await client.send_json(say("talk for 10 seconds"))
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
    await again.send_json({"type": "input_audio_buffer.clear"})
    assert (await again.receive_json())["type"] == "input_audio_buffer.cleared", "and not another session.created"
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


# How long a call waits for its client, and for whom


async def test_a_client_that_stays_away_ends_its_call(nodes: Nodes) -> None:
    """And is not forgotten before: what an operator reads is that the client was lost, and when."""
    node = await nodes.add(**REDIALS, RESUME_SECONDS="0.4")
    key, call_id = await minted(nodes, node)
    await away(await live(nodes, node, key))
    found = await ends(nodes, node, call_id)
    assert (found["why"], found["fault"]) == ("client_lost", "client")
    (model,) = await sessions(nodes)
    assert (model["open"], model["close_code"]) == (False, 1000)
    assert await refused(nodes, node, key) == (410, "call_ended")


async def test_a_call_that_may_not_wait_ends_with_its_client(nodes: Nodes) -> None:
    """An operator can switch it off."""
    node = await nodes.add(**REDIALS, RESUME_SECONDS="0")
    key, call_id = await minted(nodes, node)
    drop(await live(nodes, node, key))
    assert (await ends(nodes, node, call_id))["why"] == "client_lost"


@pytest.mark.parametrize("code", [1000, 4001])
async def test_a_client_that_says_goodbye_is_not_waited_for(nodes: Nodes, code: int) -> None:
    """A model leg that nobody will hear costs money for nothing."""
    node = await nodes.add(**REDIALS)
    key, call_id = await minted(nodes, node)
    client = await live(nodes, node, key)
    await client.close(code=code)
    assert (await ends(nodes, node, call_id))["why"] == "client_closed"
    assert await refused(nodes, node, key) == (410, "call_ended")


@pytest.mark.parametrize("code", [1001, 1011, 1012])
async def test_a_client_whose_close_says_that_it_was_interrupted_is_waited_for(nodes: Nodes, code: int) -> None:
    """A browser closes with 1001 when its tab is reloaded, a proxy with 1011 or 1012 when it is."""
    node = await nodes.add(**REDIALS)
    key, call_id = await minted(nodes, node)
    client = await live(nodes, node, key)
    call = session_of(call_id)
    await client.close(code=code)
    await until(lambda: call.is_away)
    again = await live(nodes, node, key)
    assert len(await sessions(nodes)) == 1
    await again.close()


async def test_a_client_that_cannot_prove_whose_call_it_wants_begins_a_new_one(nodes: Nodes) -> None:
    """A token that names no call cannot resume, so its call ends with its connection."""
    node = await nodes.add(**REDIALS)
    client = await live(nodes, node)
    call_id = client._response.headers["X-Call-Id"]
    drop(client)
    assert (await ends(nodes, node, call_id))["why"] == "client_lost"


async def test_another_tenant_does_not_learn_that_there_is_such_a_call(nodes: Nodes) -> None:
    """On its owner as on any other node: not found, and nobody is replaced."""
    node, other = await nodes.add("a", **REDIALS), await nodes.add("b", **REDIALS)
    key, call_id = await minted(nodes, node)
    client = await live(nodes, node, key)
    foreign = f"ek_{token('call', tenant='evil', call=call_id)}"
    for each in (node, other):
        assert await refused(nodes, each, foreign) == (404, "call_not_found")
    assert await talk(client, "Still there?")
    await client.close()


def expired(call_id: str, resume_seconds: int) -> str:
    """A client secret whose own time was over a minute ago."""
    claims: dict[str, Any] = {"call": call_id, "resume_seconds": resume_seconds}
    return f"ek_{mint(SECRET, tenant='test', scope=['call'], expires_at=time.time() - 60, **claims)}"


async def test_a_secret_that_has_expired_resumes_its_call_and_begins_none(nodes: Nodes) -> None:
    """Ten minutes to begin a call is enough; a call may be longer than that, and is its client's to the end."""
    node, other = await nodes.add("a", **REDIALS), await nodes.add("b", **REDIALS)
    key, call_id = await minted(nodes, node)
    _, reserved = await minted(nodes, node)
    client = await live(nodes, node, key)
    await away(client)
    late = expired(call_id, 600)
    again = await live(nodes, node, late)
    assert again._response.headers["X-Call-Id"] == call_id
    await away(again)
    elsewhere = await live(nodes, other, late)
    assert elsewhere._response.headers["X-Call-Id"] == call_id
    for each in (node, other):
        assert await refused(nodes, each, expired(call_id, 10)) == (401, "invalid_api_key")
        assert await refused(nodes, each, expired(reserved, 600)) == (401, "invalid_api_key")
    await elsewhere.close()
    await ends(nodes, other, call_id)
    assert await refused(nodes, node, late) == (410, "call_ended")


async def test_a_node_that_drains_takes_nobody_back(nodes: Nodes) -> None:
    """Not even onto the same leg: the next node is where the client's calls should be."""
    node, other = await nodes.add("a", **REDIALS, DRAIN_SECONDS="60"), await nodes.add("b", **REDIALS)
    key, call_id = await minted(nodes, node)
    client = await live(nodes, node, key)
    await client.send_json(say("talk for 30 seconds"))
    await client.send_json(ASK)
    await event(client, "response.output_audio.delta")
    node.drain()
    assert await refused(nodes, node, key) == (503, "node_draining")
    again = await live(nodes, other, key)
    assert (await closed(client))[0] == 4009
    assert again._response.headers["X-Relay-Node"] == "b"
    await again.close()


# What a client that is back hears first


async def test_who_comes_back_in_the_middle_of_an_answer_hears_all_of_it(nodes: Nodes) -> None:
    """What the model says meanwhile is held, and when that is full the model waits: not a byte is lost."""
    node = await nodes.add(**REDIALS, HOLD_BYTES="65536", SOCKET_BUFFER_BYTES="8192")
    key, call_id = await minted(nodes, node)
    client = await live(nodes, node, key)
    await client.send_json(say("talk for 20 seconds"))
    await client.send_json(ASK)
    first = await event(client, "response.output_audio.delta")
    call = session_of(call_id)
    client._response.connection.transport.pause_reading()  # what is on the way now is what the network loses
    drop(client)
    await until(lambda: call.is_away and not call.model.leg.reading)
    held = call._bridge.missed
    assert 0 < held < 40
    again = await live(nodes, node, key)
    deltas = 0
    while (found := await again.receive_json())["type"] != "response.done":
        deltas += found["type"] == "response.output_audio.delta"
    assert found["response"]["status"] == "completed"
    assert first["response_id"] == found["response"]["id"]
    assert deltas > held, "the model went on when its client was back"
    assert len(await sessions(nodes)) == 1
    await again.close()


async def test_a_client_says_what_it_saw_last_and_gets_what_followed(nodes: Nodes) -> None:
    """What was sent into a network that was gone already is sent again, in order, and nothing twice."""
    node = await nodes.add(**REDIALS)
    client = await live(nodes, node, protocols=["relay.events.v1"])
    call = session_of(client._response.headers["X-Call-Id"])
    resume = call._greeter._offer(call.client.request)
    await client.send_json(say("talk for 3 seconds"))
    await client.send_json(ASK)
    seen: list[str] = []
    while (found := await client.receive_json())["type"] != "response.done":
        seen.append(found["event_id"])
    seen.append(found["event_id"])
    await away(client)
    last = seen[len(seen) // 2]
    path = f"/v1/realtime?model=sim&last_event_id={last}"
    again = await nodes.http.ws_connect(
        node.url + path, headers=bearer(resume["token"]), protocols=["relay.events.v1"], max_msg_size=0
    )
    await event(again, "session.created")
    told = await again.receive_json()
    missed = seen[len(seen) // 2 + 1 :]
    assert (told["type"], told["kept"]["missed_events"]) == ("relay.resumed", len(missed))
    assert [(await again.receive_json())["event_id"] for _ in missed] == missed
    await again.send_json({"type": "input_audio_buffer.clear"})
    assert (await again.receive_json())["type"] == "input_audio_buffer.cleared"
    await again.close()


@pytest.mark.parametrize("place", ["same node", "another node"])
async def test_relay_started_says_how_to_resume_and_relay_resumed_what_was_kept(nodes: Nodes, place: str) -> None:
    """For clients without a client secret: any token will do to begin, and the relay gives the one to come back."""
    node, other = await nodes.add("a", **REDIALS), await nodes.add("b", **REDIALS)
    client = await nodes.connect(node, protocols=["relay.events.v1"])
    started = await event(client, "relay.started")
    assert started["resume"]["url"] == f"{node.url.replace('http', 'ws', 1)}/v1/realtime"
    assert not started["resume"]["token"].startswith("ek_")  # as its own: only a browser gets a browser's
    assert started["resume"]["expires_at"] > time.time() + 3600
    await talk(client, "My name is Ada.")
    await written(client)
    await away(client)
    where = node if place == "same node" else other
    again = await connect(nodes, where, started["resume"]["token"], protocols=["relay.events.v1"])
    first, told = await again.receive_json(), await again.receive_json()
    assert first["type"] == "session.created"
    assert {key: told[key] for key in ("type", "call_id", "node", "region", "model", "kept", "lost")} == {
        "type": "relay.resumed",
        "call_id": started["call_id"],
        "node": "a" if where is node else "b",
        "region": "iad",
        "model": "same" if where is node else "rebuilt",
        "kept": {"items": 2, "missed_events": 0},
        "lost": {"items": 0, "turn": None, "response": None},
    }
    assert told["resume"]["url"] == f"{where.url.replace('http', 'ws', 1)}/v1/realtime"
    assert await talk(again, "And now?")
    await again.close()


async def test_hidden_items_stay_hidden_where_the_call_goes_on(nodes: Nodes) -> None:
    """The model knows them there, the client does not: neither by name, nor as what stands before its own."""
    node, other = await nodes.add("a", **REDIALS), await nodes.add("b", **REDIALS)
    key, call_id = await minted(nodes, node)
    client = await live(nodes, node, key)
    await client.send_json(say("Hello.", "item_hello"))
    await event(client, "conversation.item.done")
    secret = {"item": system_message("He owes us money."), "id": "secret", "visible": False}
    status, receipt = await nodes.put(node, call_id, secret)
    assert status == 200
    await written(client)
    again = await live(nodes, other, key)
    await again.send_json({"type": "conversation.item.retrieve", "item_id": receipt["item_id"], "event_id": "mine"})
    error = (await event(again, "error"))["error"]
    assert (error["code"], error["event_id"]) == ("item_retrieve_invalid_item_id", "mine")
    await again.send_json(say("Are you there?"))
    assert (await event(again, "conversation.item.added"))["previous_item_id"] == "item_hello"
    _, new = await sessions(nodes)
    assert [text for _, _, text in known(new)] == ["Hello.", "He owes us money.", "Are you there?"]
    await again.close()


# Two at once


async def test_of_two_clients_that_come_back_at_once_one_has_the_call(nodes: Nodes) -> None:
    """On two nodes at the same moment: the other is told, and the model is left with one session."""
    names = ("a", "b", "c")
    node, *others = [await nodes.add(name, **REDIALS) for name in names]
    key, call_id = await minted(nodes, node)
    client = await live(nodes, node, key)
    await talk(client, "My name is Ada.")
    await written(client)
    await away(client)
    async with asyncio.TaskGroup() as tasks:
        coming = [tasks.create_task(connect(nodes, each, key)) for each in others]
    clients = [each.result() for each in coming]
    async with asyncio.TaskGroup() as tasks:
        hearing = {tasks.create_task(closed(each)): each for each in clients}
        over, (alive,) = await asyncio.wait(hearing, return_when=asyncio.FIRST_COMPLETED)
        assert [each.result()[0] for each in over] == [4009]
        alive.cancel()
    winner = hearing[alive]
    assert "name" in await talk(winner, "What is my name?")

    async def is_one() -> bool:
        return (await nodes.sim_health())["open_sessions"] == 1

    await until(is_one)
    await winner.close()
