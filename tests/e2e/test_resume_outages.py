"""A call's client comes back while Redis is away, was lost, or is not to be trusted; and while its node stood still."""

import asyncio
import base64
import os
import signal

import aiohttp
import pytest
import redis.asyncio as redis

from relay.app import Node
from tests.e2e.test_drain import id_of, serving, up
from tests.e2e.test_resume import REDIALS, away, known, live, minted, refused, say, sessions, talk, written
from tests.support.fleet import Nodes, closed, event, session_of, system_message, until
from tests.support.redis_server import RedisServer

QUICK = REDIALS | {"BUS_SILENCE_SECONDS": "1.1", "BUS_NODE_TTL_SECONDS": "1.2", "BUS_SOCKET_TIMEOUT": "0.4"}
CLEAR = {"type": "input_audio_buffer.clear"}


@pytest.mark.parametrize("key_of", ["relay.started", "a client secret with a session"])
async def test_on_its_owner_a_call_is_resumed_without_redis_and_elsewhere_not(
    doomed: tuple[RedisServer, Nodes], key_of: str
) -> None:
    """Who owns it is known where it lives; elsewhere a guess would make two of it, so the client is told to wait."""
    server, nodes = doomed
    node, other = await nodes.add("a", **QUICK), await nodes.add("b", **QUICK)
    if key_of == "relay.started":
        client = await nodes.connect(node, protocols=["relay.events.v1"])
        key = (await event(client, "relay.started"))["resume"]["token"]
    else:
        key, _ = await minted(nodes, node, session={"type": "realtime", "instructions": "Be brief."})
        client = await live(nodes, node, key)
    await talk(client, "My name is Ada.")
    await asyncio.to_thread(server.freeze)
    await away(client)
    assert await refused(nodes, other, key) == (503, "region_unreachable")
    again = await live(nodes, node, key)
    assert id_of(again) == id_of(client)
    assert await talk(again, "Still there?")
    assert len(await sessions(nodes)) == 1
    await asyncio.to_thread(server.thaw)
    await again.close()


async def test_a_redis_that_comes_back_empty_gets_the_memory_again(doomed: tuple[RedisServer, Nodes]) -> None:
    """All of it, what was said meanwhile too: the call moves afterwards as if nothing had been."""
    server, nodes = doomed
    node, other = await nodes.add("a", **QUICK), await nodes.add("b", **QUICK)
    key, call_id = await minted(nodes, node)
    client = await live(nodes, node, key)
    await talk(client, "My name is Ada.")
    assert (await nodes.put(node, call_id, {"item": system_message("She likes tea."), "id": "tea"}))[0] == 200
    await asyncio.to_thread(server.kill)
    await talk(client, "Remember that.")
    await asyncio.to_thread(server.start)

    async def is_known() -> bool:
        _, call = await nodes.get(other, f"/v1/realtime/calls/{call_id}")
        return bool(call.get("state") == "live")

    await until(is_known, 15)
    await written(client)
    before = known((await sessions(nodes))[0])
    await away(client)

    async def is_back() -> bool:
        try:
            await live(nodes, other, key)
        except aiohttp.WSServerHandshakeError as error:
            if error.status != 503:  # it has not settled yet
                raise
            return False
        return True

    await until(is_back, 15)
    _, new = await sessions(nodes)
    assert known(new) == before
    assert len(before) == 5


def sealing_key(name: str) -> str:
    return f"{name}:{base64.b64encode(os.urandom(32)).decode()}"


async def test_a_call_whose_memory_is_sealed_is_resumed_with_a_newer_key(
    nodes: Nodes, redis_server: RedisServer
) -> None:
    """Operators change the key in two steps: all nodes know both, the new one seals. No fact is in words."""
    old, new = sealing_key("2025"), sealing_key("2026")
    node = await nodes.add("a", **REDIALS, MEMORY_KEYS=old)
    other = await nodes.add("b", **REDIALS, MEMORY_KEYS=f"{new},{old}")
    key, call_id = await minted(nodes, node)
    client = await live(nodes, node, key)
    await talk(client, "My name is Ada.")
    await written(client)
    (facts,) = [name for name in redis_server.command("KEYS", f"{nodes.prefix}*{call_id}*") if "fact" in name]
    async with redis.from_url(redis_server.url) as store:
        values = await store.hvals(facts)
    assert len(values) >= 3
    assert b"Ada" not in b"".join(values)
    await away(client)
    again = await live(nodes, other, key)
    old_session, new_session = await sessions(nodes)
    assert known(new_session) == known(old_session)
    assert await talk(again, "And now?")
    await again.close()


# Nodes that stood still


async def test_what_comes_after_a_stop_waits_until_the_call_is_known_to_be_ours(
    doomed: tuple[RedisServer, Nodes],
) -> None:
    """It may be somebody else's by now, and its person must not be heard by two models."""
    server, nodes = doomed
    node = await nodes.add("a", **REDIALS)
    key, call_id = await minted(nodes, node)
    client = await live(nodes, node, key)
    await talk(client, "My name is Ada.")
    call = session_of(call_id)
    await asyncio.to_thread(server.freeze)
    call._services.pulse.until = 0.0  # as it is found after a stop
    for number in range(3):
        await client.send_json(say(f"message {number}", f"item_{number}"))
    await until(lambda: bool(call._doubt._held))
    assert not call.client.leg.reading
    (model,) = await sessions(nodes)
    assert len(known(model)) == 2
    await asyncio.to_thread(server.thaw)
    for number in range(3):
        assert (await event(client, "conversation.item.done"))["item"]["id"] == f"item_{number}"
    assert await talk(client, "Still there?")
    await client.close()


async def test_a_redis_that_does_not_answer_takes_no_call_from_its_node(doomed: tuple[RedisServer, Nodes]) -> None:
    """Nor could anybody else have taken it meanwhile: audio goes on after two seconds at most."""
    server, nodes = doomed
    node = await nodes.add("a", **REDIALS)
    key, call_id = await minted(nodes, node)
    client = await live(nodes, node, key)
    call = session_of(call_id)
    await asyncio.to_thread(server.freeze)
    call._services.pulse.until = 0.0
    clock = asyncio.get_running_loop().time
    begun = clock()
    await client.send_json(CLEAR)
    await event(client, "input_audio_buffer.cleared")
    assert 1 < clock() - begun < 4
    await asyncio.to_thread(server.thaw)
    await client.close()


async def test_a_node_that_was_frozen_says_nothing_to_the_model_of_a_call_that_moved(nodes: Nodes) -> None:
    """What its client had sent to it before it went elsewhere is in its socket when it wakes, and stays there."""
    other = await nodes.add("b", **REDIALS)
    async with serving(nodes, **REDIALS, DRAIN_SECONDS="0") as (process, ready):
        node: Node = await up(ready)
        key, call_id = await minted(nodes, node)
        client = await live(nodes, node, key)
        await talk(client, "My name is Ada.")

        async def is_written() -> bool:
            _, found = await nodes.get(other, f"/v1/realtime/calls/{call_id}/transcript")
            return [item.get("text") for item in found["data"]][-1:] == ["You said: My name is Ada."]

        await until(is_written)
        process.send_signal(signal.SIGSTOP)
        clock = asyncio.get_running_loop().time
        frozen = clock()
        await client.send_json(say("Do you hear me?", "item_lost"))
        await client.send_json({"type": "input_audio_buffer.append", "audio": "AAAA" * 1000})
        again = await live(nodes, other, key)
        assert await talk(again, "And now?")
        await until(lambda: clock() - frozen > 2.2)
        process.send_signal(signal.SIGCONT)
        woke = clock()
        code, events = await closed(client)
        assert (code, clock() - woke < 1.5) == (4009, True)
        assert [each["type"] for each in events] == []

        async def is_one() -> bool:
            return (await nodes.sim_health())["open_sessions"] == 1

        await until(is_one)
        old, new = await sessions(nodes)
        assert (old["open"], len(known(old)), old["audio_ms_received"]) == (False, 2, 0)
        assert new["open"]
        assert await talk(again, "Still there?")
        await again.close()
