"""Five hundred calls, ended in every way there is, leave nothing behind: here, in Redis, and at the simulator."""

import asyncio
import contextlib
import gc
import os
import re
import weakref
from collections.abc import Awaitable, Callable

import aiohttp
import pytest
import redis.asyncio as redis

from fanout.core.partitions import partition_tags
from ops.simulator.session import Session as SimulatorSession
from relay.app import Node
from relay.legs import Leg
from relay.session import Session
from tests.support.fleet import Nodes, closed, event, session_of, system_message, until
from tests.support.redis_server import RedisServer

CALLS = 500
AT_ONCE = 25

Way = Callable[[Nodes, Node, Node], Awaitable[None]]


async def use(nodes: Nodes, node: Node, other: Node) -> aiohttp.ClientWebSocketResponse:
    """Open a call, put a message into it through another node, and ask for a response."""
    client = await nodes.connect(node)
    await event(client, "session.created")
    call_id = client._response.headers["X-Call-Id"]
    status, receipt = await nodes.put(other, call_id, {"item": system_message("hello")})
    assert (status, receipt["status"]) == (200, "applied")
    await client.send_str('{"type": "response.create"}')
    await event(client, "response.created")
    return client


async def client_closes(nodes: Nodes, node: Node, other: Node) -> None:
    """In the middle of a response."""
    await (await use(nodes, node, other)).close()


async def client_vanishes(nodes: Nodes, node: Node, other: Node) -> None:
    """A reset."""
    client = await use(nodes, node, other)
    client._response.connection.transport.abort()
    await closed(client)


async def client_breaks_the_protocol(nodes: Nodes, node: Node, other: Node) -> None:
    """picows refuses the frame by itself."""
    client = await use(nodes, node, other)
    client._response.connection.transport.write(b"\x83\x80\0\0\0\0")
    await closed(client)


async def client_leaves_before_the_model_is_there(nodes: Nodes, node: Node, other: Node) -> None:
    """While the relay dials."""
    client = await nodes.connect(node, "/v1/realtime?model=sim%3Bslow_open%3D0.2")
    await client.close()


def model_fails(fault: str) -> Way:
    """The model ends the call, in one of its ways."""

    async def end(nodes: Nodes, node: Node, other: Node) -> None:
        client = await nodes.connect(node, f"/v1/realtime?model=sim%3B{fault.replace('=', '%3D').replace(',', '%2C')}")
        await closed(client)

    return end


async def refused(nodes: Nodes, node: Node, other: Node) -> None:
    """No call at all."""
    with pytest.raises(aiohttp.WSServerHandshakeError):
        await nodes.connect(node, "/v1/realtime?call_id=rtc_x")


WAYS: list[Way] = [
    client_closes,
    client_vanishes,
    client_breaks_the_protocol,
    client_leaves_before_the_model_is_there,
    refused,
    model_fails("close=1000,events=1"),
    model_fails("close=4000"),
    model_fails("reset,events=1"),
    model_fails("refuse=503"),
    model_fails("malformed=utf8"),
    model_fails("expire=0.05"),
]


async def test_an_ended_call_leaves_the_garbage_collector_no_work(nodes: Nodes) -> None:
    """A full collection stops the loop, and with it the audio of all calls, for longer the more there is."""
    node = await nodes.add()

    async def call() -> weakref.ref[Session]:
        client = await use(nodes, node, node)
        call_id = client._response.headers["X-Call-Id"]
        found = weakref.ref(session_of(call_id))
        await client.close()
        return found

    gc.collect()
    gc.disable()
    try:
        session = await call()
        await until(lambda: session() is None)
    finally:
        gc.enable()


def descriptors(but_to_port: int) -> int:
    """Count open descriptors, without the connections to Redis: those are pooled, up to a limit of the pool's own."""
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    pooled = {f"socket:[{row[9]}]" for row in rows if row[2].endswith(f":{but_to_port:04X}")}
    links = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists the folder
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return sum(link not in pooled for link in links)


def remains(redis_port: int) -> dict[str, int]:
    """What this process holds: nodes, simulator and clients together."""
    gc.collect()
    found = gc.get_objects()
    return {
        "tasks": len(asyncio.all_tasks()),
        "descriptors": descriptors(redis_port),
        "sessions": sum(isinstance(each, Session) for each in found),
        "legs": sum(isinstance(each, Leg) for each in found),
        "simulator sessions": sum(isinstance(each, SimulatorSession) for each in found),
    }


@pytest.mark.timeout(180)
async def test_five_hundred_calls_leave_nothing_behind(nodes: Nodes, redis_server: RedisServer) -> None:
    """No task, socket, object, Redis key or subscription; the simulator has no session open."""
    node = await nodes.add("a", TOMBSTONE_SECONDS="1", DIAL_SECONDS="5")
    other = await nodes.add("b", TOMBSTONE_SECONDS="1")
    limit = asyncio.Semaphore(AT_ONCE)

    async def calls(number: int) -> None:
        async def one(way: Way) -> None:
            async with limit:
                await way(nodes, node, other)

        async with asyncio.TaskGroup() as tasks:
            for at in range(number):
                tasks.create_task(one(WAYS[at % len(WAYS)]))

    await calls(2 * AT_ONCE)  # what is made once, or pooled, is made now
    async with redis.from_url(redis_server.url) as store:

        async def in_redis() -> tuple[list[bytes], list[bytes]]:
            found = [key async for key in store.scan_iter(match=f"{nodes.prefix}*")]
            keys = sorted(key for key in found if not re.search(rb":(usage|reported):", key))  # they outlive calls
            return keys, sorted(await store.pubsub_shardchannels(f"{nodes.prefix}*"))

        async def over() -> bool:
            keys, channels = await in_redis()
            live = any(b"rtc_" in name for name in (*keys, *channels))
            heard = sum(b":node:" in name for name in channels) == 2 * len(partition_tags())
            return heard and not live and (await nodes.sim_health())["open_sessions"] == 0

        await until(over)
        before, stored = remains(redis_server.port), await in_redis()
        await calls(CALLS)
        await until(over, 20)
        assert await in_redis() == stored

    def settled() -> bool:
        now = remains(redis_server.port)
        return all(now[kind] <= before[kind] for kind in now)

    try:
        await until(settled, 10)
    except TimeoutError:
        pytest.fail(f"before {before}, after {remains(redis_server.port)}")
