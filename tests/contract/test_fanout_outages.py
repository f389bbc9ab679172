"""What a real Redis does to the bus: connections cut, killed and back empty, frozen; and what no message may notice."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest
import redis

from fanout import CallNotFound, CallStateUnknown, Fanout, Receipt, RegionUnreachable, Status
from fanout.core.envelope import Envelope
from fanout.core.keys import Keys
from fanout.core.records import message_to_envelope
from fanout.core.scripts import Scripts, outgoing_args
from fanout.redis.scripts import read_script
from fanout.settings import BusSettings
from tests.support.bus import QUICK, RedisBus, Session, eventually, live, message, put
from tests.support.redis_server import RedisServer, find_binary


@pytest.fixture
def bus() -> Iterator[RedisBus]:
    bus = RedisBus(RedisServer(find_binary()).start())
    asyncio.run(bus.settle())
    yield bus
    bus.stop()


def region(node: Fanout) -> dict[str, int]:
    found: dict[str, int] = node.status()["regions"]["iad"]
    return found


async def put_until_known(node: Fanout, session: Session, message_id: str) -> Receipt:
    """As a backend does that knows the call to be there: repeat with the same id until the owner has registered it."""
    async with asyncio.timeout(5):
        while True:
            try:
                return await put(node, session.id, message(message_id))
            except (CallNotFound, CallStateUnknown, RegionUnreachable):
                await asyncio.sleep(0.02)


async def test_cut_subscriptions_lose_and_double_nothing(bus):
    """What rings while the subscriber is away is in the stream, and is read when it is back."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a)
        async with asyncio.TaskGroup() as group:
            for number in range(60):
                group.create_task(put(b, session.id, message(f"m{number}")))
                if number % 20 == 10:
                    await eventually(lambda: region(a)["connected"] == 1)
                    bus.drop_subscribers()
        assert session.ids == [f"m{number}" for number in range(60)]
        assert region(a)["connects"] > 1


async def test_a_message_put_while_the_owner_is_cut_off_arrives_once_it_is_back(bus):
    """Its ring went to nobody; the acknowledgement of the new subscription makes the owner read."""
    async with bus.nodes("a", "b", repeat_seconds=60.0, sweep_seconds=60.0) as (a, b):
        session = await live(a)
        bus.drop_subscribers()
        receipt = await put(b, session.id, message("m1"), wait=Status.ACCEPTED)
        assert receipt.status in {Status.ACCEPTED, Status.DELIVERED, Status.APPLIED}
        await eventually(lambda: session.ids == ["m1"])


async def test_a_message_whose_ring_was_lost_is_found_by_the_sweep(bus):
    """Pub/sub promises nothing, not even on a connection that holds."""
    async with bus.nodes("a") as (a,):
        session = await live(a)
        settings = BusSettings(node="b", region="iad", regions={"iad": bus.url}, prefix="test", **QUICK)
        scripts, keys = Scripts(settings), Keys("test").call(session.id, "acme")
        packed = message_to_envelope(message("m1"), session.id, "b").pack()
        args = outgoing_args(session.id, "m1", "print", packed, "item", wants_response=False)
        run = scripts.publish(replace(keys, channel=keys.channel + "of nobody"), "acme", args, (), again=False)
        run_id = bus.server.command("HGET", keys.generation, "server")
        with closing(redis.Redis(port=bus.server.port)) as client:
            client.eval(read_script(run.script), len(run.keys), *run.keys, run_id, *run.args)
        await eventually(lambda: session.ids == ["m1"])


async def test_poisoned_rings_and_messages_are_counted_and_skipped(bus):
    """Another version, or another program on the same channel, must not deafen the node."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a)
        keys = Keys("test").call(session.id, "acme")
        await eventually(lambda: region(a)["held"] == region(a)["wanted"])  # it may be registered before it hears
        for channel in (keys.channel, Keys("test").node_channel(keys.tag, "a")):
            bus.server.command("SPUBLISH", channel, b"\xc1garbage")
        strange = Envelope("receipt", "m1", session.id, "x", 0.0, "", b"\xc1").pack()
        bus.server.command("SPUBLISH", Keys("test").node_channel(keys.tag, "b"), strange)
        bus.server.command("XADD", keys.inbox, "*", "m", "poison", "e", b"\x93\x63")
        bus.server.command("HSET", keys.call, "last_entry", "9-9", "last_message", "poison")
        assert (await put(b, session.id, message("m1"))).status is Status.APPLIED
        await eventually(lambda: (region(a)["unreadable"], region(a)["unreadable_envelopes"]) == (2, 1))
        receipt = await b.receipt(session.id, "acme", "poison")
        assert receipt is not None
        assert (receipt.status, receipt.error and receipt.error["code"]) == (Status.FAILED, "unreadable_message")


async def test_after_redis_came_back_empty_live_calls_are_registered_again(bus):
    """Its data is gone; the calls are not, and neither is what was said of their messages."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a)
        await put(b, session.id, message("m1"))
        epoch, keys = session.call.epoch, Keys("test").call(session.id, "acme")
        bus.server.restart()
        await eventually(lambda: {keys.call, keys.receipts} <= set(bus.keys()))
        assert session.call.epoch == epoch
        assert (await put(b, session.id, message("m1"))).status is Status.APPLIED
        assert (await put(b, session.id, message("m2"))).status is Status.APPLIED
        assert session.ids == ["m1", "m2"]
        assert [call.id for call in (await b.calls("acme")).calls] == [session.id]


async def test_a_message_put_during_a_restart_arrives_once(bus):
    """Nobody is told of an outage that is shorter than the wait."""
    async with bus.nodes("a", "b", sweep_seconds=0.05) as (a, b):
        session = await live(a)
        bus.server.kill()
        async with asyncio.TaskGroup() as group:
            waiting = [group.create_task(put_until_known(b, session, f"m{number}")) for number in range(5)]
            await eventually(lambda: region(b)["redis_errors"] > 3)
            bus.server.start()
        assert {task.result().status for task in waiting} == {Status.APPLIED}
        assert sorted(session.ids) == [f"m{number}" for number in range(5)]


async def test_a_call_that_starts_during_an_outage_is_registered_after_it(bus):
    """The person in it never waits for Redis."""
    async with bus.nodes("a", "b") as (a, b):
        bus.server.kill()
        await eventually(lambda: region(a)["connected"] == 0)
        session = Session(a)
        await eventually(lambda: region(a)["unregistered"] == 1 and region(a)["redis_errors"] > 1)
        bus.server.start()
        async with asyncio.timeout(5):
            await session.call.wait_registered()
        assert (await put(b, session.id, message("m1"))).status is Status.APPLIED


async def test_a_node_that_starts_during_an_outage_works_after_it(bus):
    """A node's start must not depend on Redis either."""
    bus.server.kill()
    async with bus.nodes("a", regions={"iad": bus.url}) as (a,):
        session = Session(a)
        bus.server.start()
        async with asyncio.timeout(5):
            await a.wait_connected()
        assert (await put_until_known(a, session, "m1")).status is Status.APPLIED


async def test_a_call_that_starts_and_ends_within_an_outage_leaves_its_tombstone(bus):
    """Why did this call end: there is an answer even then."""
    async with bus.nodes("a", "b") as (a, b):
        bus.server.kill()
        session = Session(a)
        session.end("bus_is_not_to_blame")
        bus.server.start()
        async with asyncio.timeout(5):
            await session.call.wait_ended()
        found = await b.call(session.id, "acme")
        assert found is not None
        assert found.to_public()["why"] == "bus_is_not_to_blame"
        assert all(ttl > 0 for ttl in bus.keys().values())


async def test_what_is_settled_while_redis_is_frozen_is_written_when_it_thaws(bus):
    """A verdict is never lost, and the session that gives it never waits."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a, applies=False)
        await put(b, session.id, message("m1"), wait=Status.DELIVERED)
        await session.call.wait_settled()
        bus.server.freeze()
        session.call.settle("m1", Status.APPLIED)
        await eventually(lambda: region(a)["redis_errors"] > 0)
        bus.server.thaw()
        async with asyncio.timeout(5):
            await session.call.wait_settled()
        receipt = await b.receipt(session.id, "acme", "m1")
        assert receipt is not None
        assert receipt.status is Status.APPLIED


async def test_a_verdict_given_while_redis_lost_everything_is_written_to_the_new_one(bus):
    """The publisher's repeat must find "applied", not put the message in again."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a, applies=False)
        await put(b, session.id, message("m1"), wait=Status.DELIVERED)
        bus.server.kill()
        session.call.settle("m1", Status.APPLIED)
        bus.server.start()
        async with asyncio.timeout(5):
            await session.call.wait_settled()
        receipt = await b.receipt(session.id, "acme", "m1")
        assert receipt is not None
        assert receipt.status is Status.APPLIED
        assert (await put(b, session.id, message("m1"))).status is Status.APPLIED
        assert session.ids == ["m1"]


async def test_a_silent_connection_is_dropped(bus):
    """TCP doesn't notice a frozen server; our own heartbeat that doesn't come back does."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a)
        bus.server.freeze()
        await eventually(lambda: region(a)["deaf_periods"] > 0)
        bus.server.thaw()
        assert (await put(b, session.id, message("m1"))).status is Status.APPLIED
        await eventually(lambda: region(a)["held"] == region(a)["wanted"] == 65)


async def test_a_put_that_redis_does_not_take_says_that_the_region_is_unreachable(bus):
    """And only then: whether it was written is unknown, so the same id must be used again."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a)
        bus.server.kill()
        with pytest.raises(RegionUnreachable) as refused:
            await put(b, session.id, message("m1"), timeout=0.2)
        assert refused.value.region == "iad"
        for reading in (b.call(session.id, "acme"), b.receipt(session.id, "acme", "m1")):
            with pytest.raises(RegionUnreachable):
                await reading
        assert (await b.calls("acme")).unreachable_regions == ["iad"]


async def test_many_calls_start_and_end_in_batches(bus):
    """More than one batch of everything, and a reconnect in the middle."""
    async with bus.nodes("a", "b") as (a, b):
        sessions = [Session(a) for _ in range(700)]
        async with asyncio.timeout(60):
            for session in sessions:
                await session.call.wait_registered()
            bus.drop_subscribers()
            async with asyncio.TaskGroup() as group:
                for session in sessions:
                    group.create_task(put(b, session.id, message("m1"), timeout=30.0))
            assert [session.ids for session in sessions] == [["m1"]] * len(sessions)
            for session in sessions:
                session.end()
            for session in sessions:
                await session.call.wait_ended()
        assert (await b.calls("acme")).calls == []
        await eventually(lambda: region(a)["held"] == region(a)["wanted"] == 64)
