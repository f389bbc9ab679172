"""What a call's owner writes for those who look on, on every kind of bus, read from Redis as it lies there.

What a watcher makes of it is in test_fanout_watch.py.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from fanout import (
    CallEnded,
    CallFilter,
    CallNotFound,
    CallRecord,
    CallStateUnknown,
    CallTaken,
    Fanout,
    RegionUnreachable,
    Tombstone,
    new_call_id,
)
from fanout.core.envelope import Batch, LogKind
from fanout.core.scripts import Scripts
from tests.support.bus import Bus, MemoryBus, RedisBus, Session, eventually, live, message, put, taken
from tests.support.kinds import settled
from tests.support.memory_store import MemoryHome
from tests.support.redis_server import RedisServer

EVENT, SNAPSHOT = LogKind.EVENT, LogKind.SNAPSHOT
QUICK_FACTS: dict[str, Any] = {"facts_seconds": 0.05}


@pytest.fixture(params=["memory", "redis"])
def alone(request: pytest.FixtureRequest) -> Iterator[Bus]:
    """A bus of one test, which breaks it."""
    with settled(request.param) as bus:
        yield bus


def server(bus: Bus) -> RedisServer | MemoryHome:
    """What stands for Redis, to be broken."""
    if isinstance(bus, MemoryBus):
        return bus.home
    assert isinstance(bus, RedisBus)
    assert isinstance(bus.server, RedisServer)
    return bus.server


async def watch(node: Fanout, call_id: str, *, sound: bool = False, after: str = "", tenant: str = "acme") -> list[Any]:
    """What the script says to a node that watches."""
    home = node._homes["iad"]
    scripts: Scripts = home._scripts
    [answer] = await home.store.run(
        [scripts.watch(scripts.keys.call(call_id, tenant), tenant, sound=sound, after=after)]
    )
    found: list[Any] = answer
    return found


async def watched(node: Fanout, session: Session, *, sound: bool = False) -> None:
    """The call is watched by this node, and its owner knows."""
    await watch(node, session.id, sound=sound)
    await eventually(lambda: session.call.is_heard if sound else session.call.is_watched)


async def log_of(node: Fanout, call_id: str) -> list[tuple[int, LogKind, bytes]]:
    """All that the log has: number, kind, body."""
    packed = (await watch(node, call_id, after="0-0"))[5:]
    found = []
    for batch in (Batch.unpack(each, max_bytes=1 << 24) for each in packed):
        found += [(batch.first + place, kind, body) for place, (kind, body) in enumerate(batch.entries)]
    return found


async def logged(session: Session) -> None:
    async with asyncio.timeout(5):
        await session.call.wait_logged()


def counts(node: Fanout) -> dict[str, int]:
    found: dict[str, int] = node.status()["regions"]["iad"]
    return found


def parts_of(bus: Bus, call_id: str) -> dict[str, float]:
    """What there is of a call, and for how long."""
    return {key.split(":")[-2]: ttl for key, ttl in bus.keys().items() if key.endswith(call_id)}


# -- the log


async def test_events_are_in_the_log_in_their_order_once_somebody_watches(bus):
    """From any node, whatever the owner did at the moment; before that nothing is written."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a)
        session.call.log(b"unseen")
        session.call.sound(b"unheard")
        await logged(session)
        assert "log" not in parts_of(bus, session.id)
        assert counts(a)["watched"] == counts(a)["heard"] == 0
        await watched(b, session, sound=True)
        for number in range(100):
            session.call.log(b"e%d" % number)
            session.call.sound(b"a%d" % number)
            if number % 10 == 9:
                await asyncio.sleep(0)
        await logged(session)
        assert await log_of(b, session.id) == [(number + 1, EVENT, b"e%d" % number) for number in range(100)]
        told = counts(a)
        assert (told["logged"], told["sounds"], told["watched"], told["heard"]) == (100, 100, 1, 1)
        assert told["logged_bytes"] == 10 * 2 + 90 * 3
        assert (told["log_dropped"], told["sounds_dropped"]) == (0, 0)


async def test_a_call_that_was_awaited_is_watched_before_it_counts_as_registered(bus):
    """A backend watches the id that it had minted: it must not miss how the call began."""
    async with bus.nodes("a", "b") as (a, b):
        call_id = new_call_id("iad")
        await b.reserve(call_id, "acme", seconds=10)
        assert (await watch(b, call_id))[0] == b"reserved"
        session = Session(a, call_id=call_id)
        told = []
        session.call.on_interest = lambda: told.append((session.call.is_watched, session.call.is_heard))
        async with asyncio.timeout(5):
            await session.call.wait_registered()
        assert (session.call.is_watched, told) == (True, [(True, False)])
        session.call.note("session", b"s")
        session.call.log(b"e")
        await logged(session)
        assert await log_of(b, call_id) == [(1, SNAPSHOT, b"s"), (2, EVENT, b"e")]


async def test_the_owner_learns_when_interest_begins_and_ends(bus):
    """By the ring at once, though it sweeps seldom; the end by the clock. A bug in who is told harms nobody."""
    async with bus.nodes("a", "b", lease_seconds=0.5, sweep_seconds=60.0) as (a, b):
        session, told = await live(a), []

        def tell() -> None:
            told.append((session.call.is_watched, session.call.is_heard))
            raise KeyError("bug")

        session.call.on_interest = tell
        await watched(b, session)
        await watched(b, session, sound=True)
        await eventually(lambda: not session.call.is_watched)
        assert told[:2] == [(True, False), (True, True)]
        assert told[-1] == (False, False)
        assert counts(a)["watched"] == 0
        await eventually(lambda: "watchers" not in parts_of(bus, session.id))


async def test_a_ring_that_was_lost_is_made_up_for_by_the_sweep(bus):
    """Pub/sub loses; the lease is in Redis."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a)
        home = b._homes["iad"]
        run = home._scripts.watch(session.call.keys, "acme", sound=True)
        elsewhere = [name.replace(":bell:", ":lost:") for name in run.keys]
        await home.store.run([run._replace(keys=tuple(elsewhere))])
        await eventually(lambda: session.call.is_heard)


async def test_a_new_owner_goes_on_in_an_epoch_of_its_own(bus):
    """What the last one logged and noted stays; it itself can write no more. Who watches hears how the session is."""
    async with bus.nodes("a", "b") as (a, b):
        first = await live(a)
        await watched(b, first)
        first.call.log(b"e1")
        first.call.note("usage", b"u1")
        first.call.note("session", b"s1")
        await logged(first)
        second = await taken(b, first.id)
        assert second.call.is_watched
        assert second.call.epoch > first.call.epoch
        async with asyncio.timeout(5):
            await first.call.wait_lost()
        first.call.log(b"late")
        first.call.note("usage", b"late")
        await logged(first)
        second.call.note("session", b"s2")
        second.call.log(b"e2")
        await logged(second)
        assert await log_of(b, first.id) == [
            *[(1, EVENT, b"e1"), (2, SNAPSHOT, b"s1")],
            *[(1, SNAPSHOT, b"s1"), (2, EVENT, b"e2")],
        ]
        assert (await a.facts(first.id, "acme")).values == {"usage": b"u1", "session": b"s2"}


async def test_log_and_facts_stay_as_long_as_the_tombstone(bus):
    """The question how a call went comes after it."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a)
        await watched(b, session)
        session.call.log(b"e")
        session.call.note("usage", b"u")
        await logged(session)
        assert parts_of(bus, session.id)["watchers"] <= 60
        session.end()
        session.call.log(b"late")
        session.call.note("usage", b"late")
        async with asyncio.timeout(5):
            await session.call.wait_ended()
            await session.call.wait_logged()
        assert await log_of(b, session.id) == [(1, EVENT, b"e")]
        facts = await b.facts(session.id, "acme")
        assert (facts.state, facts.values) == ("ended", {"usage": b"u"})
        left = parts_of(bus, session.id)
        assert set(left) == {"ended", "log", "facts"}
        assert all(0 < ttl <= 3600 for ttl in left.values())
        assert counts(a)["watched"] == 0


async def test_a_log_and_its_facts_are_bounded(bus):
    """However long the call, however much is said."""
    async with bus.nodes("a", log_max=20, facts_max=3, flush_seconds=0.001) as (a,):
        session = await live(a)
        await watched(a, session)
        for number in range(100):
            session.call.log(b"e%d" % number)
            session.call.note(f"item.{number}", b"i")
            if number % 5 == 4:
                await logged(session)
        found = await log_of(a, session.id)
        assert found == [(number + 1, EVENT, b"e%d" % number) for number in range(80, 100)]
        assert len((await a.facts(session.id, "acme")).values) == 3
        assert counts(a)["facts_dropped"] == 97


# -- facts


async def test_facts_are_read_through_any_node_and_by_their_tenant_only(bus):
    """The latest of each name, at once, whether anybody watches or not."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a)
        assert (await b.facts(session.id, "acme")).values == {}
        session.call.note("usage", b"u1")
        session.call.note("usage", b"u2")
        session.call.note("item.00000001", b"\xff\x00")
        await eventually(lambda: counts(a)["facts_written"] == 2)
        facts = await b.facts(session.id, "acme")
        assert (facts.state, facts.values) == ("live", {"usage": b"u2", "item.00000001": b"\xff\x00"})
        session.call.note("usage", None)
        await logged(session)
        assert (await b.facts(session.id, "acme")).values == {"item.00000001": b"\xff\x00"}
        for call_id, tenant in ((session.id, "evil"), (new_call_id("iad"), "acme"), ("rtc_mars_1", "acme")):
            with pytest.raises(CallNotFound):
                await b.facts(call_id, tenant)


async def test_facts_do_not_wait_for_others_where_the_session_waits_for_them(bus):
    """It is about to end the call."""
    async with bus.nodes("a", facts_seconds=60.0) as (a,):
        session = await live(a)
        for usage in (b"u", b"v"):
            session.call.note("usage", usage)
            await logged(session)
        assert (await a.facts(session.id, "acme")).values == {"usage": b"v"}


# -- reservations


async def test_a_reservation_keeps_what_its_client_is_to_get(bus):
    """Minted on one node, connected to on another."""
    async with bus.nodes("a", "b") as (a, b):
        call_id = new_call_id("iad")
        assert await b.reservation(call_id, "acme") is None
        assert await b.reservation("rtc_mars_1", "acme") is None
        await a.reserve(call_id, "acme", seconds=10, session=b'{"voice":"alloy"}')
        held = await b.reservation(call_id, "acme")
        assert held
        assert (held.call_id, held.session) == (call_id, b'{"voice":"alloy"}')
        assert (await b.facts(call_id, "acme")).state == "reserved"
        assert await b.reservation(call_id, "evil") is None
        await a.reserve(call_id, "acme", seconds=10)
        assert (await b.reservation(call_id, "acme")).session == b""
        session = await live(b, call_id=call_id)
        with pytest.raises(CallTaken):
            await a.reservation(call_id, "acme")
        session.end("model_gone")
        await session.call.wait_ended()
        with pytest.raises(CallEnded, match="model_gone"):
            await a.reservation(call_id, "acme")


async def test_a_reserved_id_is_claimed_by_its_tenant_only(bus):
    """Ids are no secret; a reservation is worth nothing if anybody may use it."""
    async with bus.nodes("a", "b") as (a, b):
        call_id = new_call_id("iad")
        await a.reserve(call_id, "acme", seconds=10, session=b"s")
        thief = CallRecord(id=call_id, tenant="evil", node="b", region="iad", agent="a", model="m", started_at=1.0)
        stolen = b.own(thief, lambda _: None)
        with pytest.raises(CallTaken):
            async with asyncio.timeout(5):
                await stolen.wait_registered()
        assert (await b.reservation(call_id, "acme")).session == b"s"
        assert (await live(a, call_id=call_id)).call.epoch


# -- what goes wrong


async def test_a_redis_that_came_back_empty_gets_every_fact_and_what_follows_of_the_log(alone):
    """Nobody but the owner has them. Meanwhile nothing is said not to be."""
    async with alone.nodes("a", "b", node_ttl_seconds=1.5, **QUICK_FACTS) as (a, b):
        session = await live(a)
        await watched(b, session)
        session.call.note("usage", b"u")
        session.call.log(b"before")
        await logged(session)
        server(alone).kill()
        session.call.log(b"meanwhile")
        server(alone).start()
        facts: dict[str, bytes] = {}
        async with asyncio.timeout(10):
            while facts != {"usage": b"u"}:
                try:
                    facts = (await b.facts(session.id, "acme")).values
                except (CallStateUnknown, RegionUnreachable):
                    await asyncio.sleep(0.01)
        with pytest.raises(CallStateUnknown):
            await b.facts(new_call_id("iad"), "acme")
        session.call.log(b"after")
        await logged(session)
        assert session.call.is_watched
        assert await log_of(b, session.id) == [(2, EVENT, b"meanwhile"), (3, EVENT, b"after")]


async def test_a_redis_that_is_away_holds_nothing_up_and_costs_a_bounded_part(alone):
    """What the bound left out is missing in the numbers; messages go on as they would without."""
    limits: dict[str, Any] = {"log_pending_max": 50, "sound_pending_max_bytes": 100, "sweep_seconds": 0.2}
    async with alone.nodes("a", "b", **limits) as (a, b):
        session = await live(a)
        await watched(b, session, sound=True)
        server(alone).freeze()
        for number in range(200):
            session.call.log(b"e%d" % number)
            session.call.sound(b"0123456789")
            if number % 50 == 0:
                await asyncio.sleep(0.02)
        session.call.note("usage", b"u")
        await asyncio.sleep(0.5)  # longer than an answer may take
        server(alone).thaw()
        await logged(session)
        assert (await put(b, session.id, message("m1"))).call_id == session.id
        session.call.log(b"last")
        await logged(session)
        found = await log_of(b, session.id)
        numbers = [number for number, *_ in found]
        assert numbers == sorted(set(numbers))
        assert found[0] == (1, EVENT, b"e0")
        assert found[-1] == (201, EVENT, b"last")
        assert 50 <= len(found) == 201 - counts(a)["log_dropped"] < 150
        assert counts(a)["sounds_dropped"] > 100
        assert (await b.facts(session.id, "acme")).values == {"usage": b"u"}


# -- lists


async def test_a_list_can_be_of_some_calls_only(bus):
    """Pages are of those that match, to the end, however few they are among the others."""
    async with bus.nodes("a", "b") as (a, b):
        for number in range(60):
            record = CallRecord(
                id=new_call_id("iad"),
                tenant="acme",
                node="a" if number % 3 else "b",
                region="lhr" if number < 5 else "iad",
                agent="sales" if number % 20 == 7 else "help",
                model="m",
                started_at=float(number),
            )
            (a if number % 3 else b).own(record, lambda _: None)
        await eventually(lambda: counts(a)["unregistered"] == counts(b)["unregistered"] == 0)

        async def pages(limit: int, where: CallFilter) -> list[list[float]]:
            found, after, more = [], None, True
            while more:
                page = await a.calls("acme", limit=limit, after=after, where=where)
                found.append([call.started_at for call in page.calls])
                after, more = page.last_id, page.has_more
            return found

        assert await pages(2, CallFilter(agent="sales")) == [[47.0, 27.0], [7.0]]
        assert await pages(3, CallFilter(region="lhr")) == [[4.0, 3.0, 2.0], [1.0, 0.0]]
        assert await pages(5, CallFilter(region="lhr", node="b")) == [[3.0, 0.0]]
        assert await pages(1, CallFilter(region="lhr", agent="sales")) == [[]]
        assert await pages(50, CallFilter(state="moving")) == [[]]
        assert [len(page) for page in await pages(25, CallFilter(state="live"))] == [25, 25, 10]
        assert await pages(100, CallFilter()) == [[float(number) for number in reversed(range(60))]]


async def test_what_one_question_of_a_list_looks_at_is_bounded(bus, monkeypatch):
    """A page may then be short, or empty, and say how to go on."""
    monkeypatch.setattr("fanout.directory._ROUNDS_MAX", 1)
    monkeypatch.setattr("fanout.directory._LOOKED_AT_MIN", 1)
    async with bus.nodes("a") as (a,):
        for number in range(200):
            agent = "sales" if number % 20 < 2 else "help"
            record = CallRecord(
                id=new_call_id("iad"), tenant="acme", node="a", region="iad", agent=agent, model="m",
                started_at=float(number),
            )  # fmt: skip
            a.own(record, lambda _: None)
        await eventually(lambda: counts(a)["unregistered"] == 0)
        found, questions, after, more = [], 0, None, True
        while more:
            page = await a.calls("acme", limit=1, after=after, where=CallFilter(agent="sales"))
            found += [call.started_at for call in page.calls]
            after, more, questions = page.last_id, page.has_more, questions + 1
        assert found == [float(number) for number in reversed(range(200)) if number % 20 < 2]
        assert questions > len(found)


async def test_a_call_that_nobody_watched_leaves_nothing_of_this(bus):
    """As before there were watchers."""
    async with bus.nodes("a") as (a,):
        session = await live(a)
        session.end()
        await session.call.wait_ended()
        assert isinstance(await a.call(session.id, "acme"), Tombstone)
        assert set(parts_of(bus, session.id)) == {"ended"}
