"""Watching a call from another node: its events in order and once, what is missing said, its end told at once.

The first part holds on every kind of Redis, the second is what a Redis of its own goes through.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from fanout import (
    BusFull,
    CallEnded,
    CallNotFound,
    CallStateUnknown,
    Fanout,
    LogEntry,
    RegionUnreachable,
    Tombstone,
    Watch,
    WatchEnd,
    new_call_id,
)
from fanout.core.keys import CallKeys, Keys
from fanout.core.records import pack_tombstone
from tests.support.bus import Bus, RedisBus, Session, eventually, live, taken
from tests.support.kinds import KINDS, settled
from tests.support.redis_sets import ClusterSet, SentinelSet

LEASES: dict[str, Any] = {"renew_seconds": 0.1, "lease_seconds": 1.2}  # short enough to see one run out


@pytest.fixture(scope="module", params=[kind for kind in KINDS if kind != "memory"])
def servers(request: pytest.FixtureRequest) -> Iterator[Bus]:
    with settled(request.param) as bus:
        yield bus


@pytest.fixture
def one_server() -> Iterator[Bus]:
    with settled("redis") as bus:
        yield bus


class Reader:
    """Keeps what a watch is given."""

    watch: Watch

    def __init__(self, call_id: str) -> None:
        self.call_id = call_id
        self.entries: list[LogEntry] = []

    def take(self, entry: LogEntry) -> None:
        self.entries.append(entry)

    @property
    def said(self) -> list[str]:
        """Bodies of events and of audio; of the rest the kind."""
        return [entry.body.decode() if entry.kind in {"event", "audio"} else entry.kind for entry in self.entries]

    @property
    def position(self) -> str:
        return next(entry.position for entry in reversed(self.entries) if entry.position)

    async def wait_said(self, *expected: str) -> None:
        try:
            await eventually(lambda: self.said[-len(expected) :] == list(expected))
        except TimeoutError:
            assert self.said[-len(expected) :] == list(expected)

    async def wait_ended(self) -> WatchEnd:
        async with asyncio.timeout(5):
            return await self.watch.wait_ended()


@asynccontextmanager
async def watching(node: Fanout, call_id: str, tenant: str = "acme", **changes: Any) -> AsyncIterator[Reader]:
    reader = Reader(call_id)
    async with node.watch(call_id, tenant, reader.take, **changes) as reader.watch:
        assert reader.entries == []
        yield reader


async def watched(session: Session) -> None:
    """Until the owner knows that somebody watches."""
    await eventually(lambda: session.call.is_watched)


async def seen_one(node: Fanout, session: Session) -> str:
    """Somebody watches until the event 1 and leaves; returns the position to come back with."""
    async with watching(node, session.id) as reader:
        await watched(session)
        session.call.log(b"1")
        await reader.wait_said("1")
        return reader.position


def keys_of(call_id: str) -> CallKeys:
    return Keys("test").call(call_id, "acme")


def ask(bus: RedisBus, call_id: str, *command: Any) -> Any:
    """Of the server that has the call's keys."""
    server = bus.server.primary_of(keys_of(call_id).tag) if isinstance(bus.server, ClusterSet) else bus.primaries()[0]
    return server.command(*command)


def counts(node: Fanout) -> dict[str, int]:
    found: dict[str, int] = node.status()["regions"]["iad"]
    return found


async def test_a_watch_on_another_node_gets_every_event_once_and_in_order(bus):
    """First the session as it is; what was before the watch is not told."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a)
        session.call.log(b"nobody hears this")
        session.call.note("session", b'{"voice":"ash"}')
        await session.call.wait_logged()
        async with watching(b, session.id) as reader:
            assert (reader.watch.state, reader.watch.session) == ("live", b'{"voice":"ash"}')
            await watched(session)
            for number in range(500):
                session.call.log(b"%d" % number)
                if number % 50 == 0:
                    await asyncio.sleep(0)
            await reader.wait_said("499")
            assert reader.said == ["session", *map(str, range(500))]
            assert len({entry.position for entry in reader.entries}) == 501
            assert counts(b)["watch_gaps"] == 0


async def test_events_are_heard_within_the_flush_not_within_a_renewal(bus):
    """The owner is told of a watch, and the watch of an event, by a message."""
    async with bus.nodes("a", "b", renew_seconds=60.0, sweep_seconds=60.0) as (a, b):
        session = await live(a)
        async with watching(b, session.id) as reader:
            await watched(session)
            session.call.log(b"now")
            async with asyncio.timeout(0.9):  # a look at the log comes after a second
                while not reader.entries:  # noqa: ASYNC110 - it is delivered by another task
                    await asyncio.sleep(0.005)


async def test_watches_of_one_call_on_one_node_share_a_subscription_and_a_lease(bus):
    """Each has its own position all the same; with audio there is one more."""
    async with bus.nodes("a", "b") as (a, b), AsyncExitStack() as stack:
        session = await live(a)
        before = set(bus.channels())
        first = await stack.enter_async_context(watching(b, session.id))
        await watched(session)
        session.call.log(b"1")
        await first.wait_said("1")
        second = await stack.enter_async_context(watching(b, session.id))
        third = await stack.enter_async_context(watching(b, session.id, after="0-0"))
        await third.wait_said("1")
        session.call.log(b"2")
        for reader in (first, second, third):
            await reader.wait_said("2")
        assert (first.said, second.said, third.said) == (["1", "2"], ["2"], ["1", "2"])
        keys = keys_of(session.id)
        assert set(bus.channels()) - before == {keys.feed}
        assert ask(bus, session.id, "HLEN", keys.watchers) == 1
        assert (counts(b)["watches"], counts(b)["watched_channels"]) == (3, 1)
        await stack.enter_async_context(watching(b, session.id, audio=True))
        assert set(bus.channels()) - before == {keys.feed, keys.sound}
        assert ask(bus, session.id, "HLEN", keys.watchers) == 1


async def test_watches_that_read_the_log_together_get_each_what_it_lacks(bus):
    """One read serves them all, from the position that is furthest behind."""
    async with bus.nodes("a", "b", "c", watch_read_max=1) as (a, b, c), AsyncExitStack() as stack:
        session = await live(a)
        first = await stack.enter_async_context(watching(c, session.id))
        await watched(session)
        for number in range(20):
            session.call.log(b"%d" % number)
            await session.call.wait_logged()
        await first.wait_said("19")
        positions = [entry.position for entry in first.entries]
        readers = [
            await stack.enter_async_context(watching(b, session.id, after=after)) for after in ("0-0", positions[4])
        ]
        for reader in readers:
            await reader.wait_said("19")
        told = list(map(str, range(20)))
        assert [reader.said for reader in readers] == [told, told[5:]]
        assert counts(b)["watch_reads"] > 20


async def test_who_comes_back_with_its_position_misses_nothing(bus):
    """The lease outlives the watch for a while, so the log went on; through any node."""
    async with bus.nodes("a", "b", "c") as (a, b, c):
        session = await live(a)
        position = await seen_one(b, session)
        for number in range(2, 200):
            session.call.log(b"%d" % number)
            if number % 3 == 0:
                await session.call.wait_logged()
        async with watching(c, session.id, after=position) as again:
            await again.wait_said("199")
            session.call.log(b"200")
            await again.wait_said("200")
            assert again.said == [str(number) for number in range(2, 201)]


async def test_who_comes_back_too_late_is_told_of_a_gap(bus):
    """The log is bounded; what it still has comes after the gap."""
    async with bus.nodes("a", "b", log_max=3) as (a, b):
        session = await live(a)
        position = await seen_one(b, session)
        for number in range(2, 20):
            session.call.log(b"%d" % number)
            await session.call.wait_logged()
        async with watching(b, session.id, after=position) as again:
            await again.wait_said("19")
            assert again.said == ["gap", "17", "18", "19"]


async def test_who_comes_back_after_the_log_stood_still_is_told_of_a_gap(bus):
    """Nobody watched, so what happened meanwhile was never written."""
    async with bus.nodes("a", "b", **LEASES) as (a, b):
        session = await live(a)
        session.call.note("session", b"{}")
        position = await seen_one(b, session)
        await eventually(lambda: not session.call.is_watched)
        session.call.log(b"2")
        async with watching(b, session.id, after=position) as again, watching(b, session.id) as anew:
            await watched(session)
            session.call.log(b"3")
            for reader in (again, anew):
                await reader.wait_said("3")
            assert again.said == ["gap", "session", "3"]
            assert anew.said in (["session", "3"], ["3"])  # it came before the log began again, or just after


@pytest.mark.parametrize("after", ["nonsense", f"{'9' * 15}-1", f"{'9' * 400}-1"])
async def test_a_position_that_no_log_has_is_a_gap_and_no_error(bus, after):
    """It is whatever a client sent as Last-Event-ID."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a)
        async with watching(b, session.id, after=after) as reader:
            await watched(session)
            session.call.log(b"1")
            await reader.wait_said("1")
            assert reader.said == ["gap", "1"]


async def test_a_call_that_is_only_reserved_is_watched_before_its_client_comes(bus):
    """The backend that reserved it hears everything from the start."""
    async with bus.nodes("a", "b") as (a, b):
        call_id = new_call_id("iad")
        await b.reserve(call_id, "acme", seconds=60)
        async with watching(b, call_id) as reader:
            assert (reader.watch.state, reader.watch.session) == ("reserved", None)
            session = await live(a, call_id=call_id)
            assert session.call.is_watched
            session.call.note("session", b"{}")
            session.call.log(b"1")
            await reader.wait_said("session", "1")
            assert reader.said == ["session", "1"]


async def test_a_watch_ends_with_its_call_at_once_and_says_why(bus):
    """After all that was logged."""
    async with bus.nodes("a", "b", renew_seconds=60.0, sweep_seconds=60.0) as (a, b):
        session = await live(a)
        async with watching(b, session.id) as reader, watching(b, session.id, audio=True) as listener:
            await eventually(lambda: session.call.is_heard)
            session.call.log(b"bye")
            await session.call.wait_logged()
            session.end("client_left")
            for each in (reader, listener):
                end = await each.wait_ended()
                assert (end.lost, end.tombstone and end.tombstone.why) == (False, "client_left")
                assert each.said == ["bye"]


async def test_an_ended_call_is_watched_only_to_read_the_rest_of_its_log(bus):
    """By who has a position; anybody else is told that it ended."""
    async with bus.nodes("a", "b", watch_read_max=3) as (a, b):
        session = await live(a)
        position = await seen_one(b, session)
        for number in range(2, 20):
            session.call.log(b"%d" % number)
            await session.call.wait_logged()
        session.end("client_left")
        await session.call.wait_ended()
        with pytest.raises(CallEnded) as refused:
            async with watching(b, session.id):
                pass
        assert refused.value.tombstone.why == "client_left"
        async with watching(b, session.id, after=position) as again:
            assert again.watch.state == "ended"
            end = await again.wait_ended()
            assert end.tombstone == refused.value.tombstone
            assert again.said == [str(number) for number in range(2, 20)]


async def test_a_watch_stays_with_a_call_that_another_node_takes(bus):
    """First what the old owner left, then the new one's events; nothing twice, and no gap."""
    async with bus.nodes("a", "b", "c") as (a, b, c):
        session = await live(a)
        session.call.note("session", b"{}")
        async with watching(b, session.id) as reader:
            await watched(session)
            for number in range(10):
                session.call.log(b"old %d" % number)
            await session.call.wait_logged()
            moved = await taken(c, session.id)
            assert moved.call.is_watched
            moved.call.note("session", b"{}")
            for number in range(10):
                moved.call.log(b"new %d" % number)
            await reader.wait_said("new 9")
            told = [f"old {number}" for number in range(10)], [f"new {number}" for number in range(10)]
            assert reader.said == ["session", *told[0], "session", *told[1]]
            moved.end("client_left")
            assert (await reader.wait_ended()).tombstone is not None


async def test_a_cut_subscription_loses_and_doubles_nothing(bus):
    """What was published meanwhile is read from the log."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a)
        async with watching(b, session.id) as reader, watching(b, session.id, audio=True) as listener:
            await watched(session)
            for number in range(300):
                session.call.log(b"%d" % number)
                if number % 60 == 30:
                    await session.call.wait_logged()
                    bus.drop_subscribers()
            for each in (reader, listener):
                await each.wait_said("299")
                assert each.said == [str(number) for number in range(300)]
            assert counts(b)["connects"] > 1


async def test_audio_comes_between_the_events_to_those_who_want_it(bus):
    """And is not even sent while nobody does."""
    async with bus.nodes("a", "b", **LEASES) as (a, b):
        session = await live(a)
        async with watching(b, session.id) as reader:
            await watched(session)
            assert not session.call.is_heard
            async with watching(b, session.id, audio=True) as listener:
                await eventually(lambda: session.call.is_heard)
                for number in range(10):
                    session.call.sound(b"a%d" % number)
                    session.call.log(b"%d" % number)
                session.call.sound(b"last")
                await listener.wait_said("last")
                expected = [f"{kind}{number}" for number in range(10) for kind in ("a", "")]
                assert listener.said == [*expected, "last"]
            await eventually(lambda: not session.call.is_heard)
            assert session.call.is_watched
            assert reader.said == [str(number) for number in range(10)]


async def test_leases_are_renewed_for_as_long_as_somebody_watches(bus):
    """And run out by themselves: leaving revokes none."""
    async with bus.nodes("a", "b", **LEASES) as (a, b):
        session = await live(a)
        async with watching(b, session.id):
            await watched(session)
            renewals = counts(b)["lease_renewals"]
            await eventually(lambda: counts(b)["lease_renewals"] > renewals + 15)  # longer than a lease
            assert session.call.is_watched
        assert session.call.is_watched
        await eventually(lambda: not session.call.is_watched)


async def test_the_last_watch_that_leaves_takes_the_subscription_with_it(bus):
    """Also one that was refused, and one that left before its first answer."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a)
        before = set(bus.channels())
        async with watching(b, session.id):
            async with watching(b, session.id):
                pass
            assert len(bus.channels()) == len(before) + 1
            await eventually(lambda: counts(b)["lease_renewals"] == 1)  # the next is far off
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0), watching(b, session.id):
                pass
        await eventually(lambda: set(bus.channels()) == before)
        assert (counts(b)["watches"], counts(b)["watched_channels"]) == (0, 0)
        await eventually(lambda: not any(task.get_name() == f"watch {session.id}" for task in asyncio.all_tasks()))


async def test_another_tenants_call_and_one_that_never_was_look_the_same(bus):
    """Nothing is heard of the one, not even while its own tenant watches it here."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a)
        before = set(bus.channels())
        for call_id, tenant in ((session.id, "evil"), (new_call_id("iad"), "acme"), ("rtc_mars_x", "acme")):
            with pytest.raises(CallNotFound):
                async with watching(b, call_id, tenant):
                    pass
        await eventually(lambda: set(bus.channels()) == before)
        async with watching(b, session.id) as reader:
            with pytest.raises(CallNotFound):
                async with watching(b, session.id, "evil"):
                    pass
            await watched(session)
            session.call.log(b"1")
            await reader.wait_said("1")


async def test_a_delivery_that_fails_harms_no_other_watch_and_is_told_as_a_gap(bus):
    """One backend's bug must not deafen the rest of the node."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a)
        taken_by_it: list[str] = []

        def fail_at_the_second(entry: LogEntry) -> None:
            if entry.body == b"2":
                raise ZeroDivisionError
            taken_by_it.append(entry.body.decode() or entry.kind)

        async with b.watch(session.id, "acme", fail_at_the_second), watching(b, session.id) as reader:
            await watched(session)
            for number in range(1, 5):
                session.call.log(b"%d" % number)
            await reader.wait_said("1", "2", "3", "4")
            assert taken_by_it == ["1", "gap", "3", "4"]
            assert counts(b)["watch_failures"] == 1


async def test_a_node_has_so_many_watches_and_no_more(bus):
    """Each holds a subscription, and reads after every reconnect."""
    async with bus.nodes("a", watches_max=2) as (a,):
        session = await live(a)
        async with watching(a, session.id), watching(a, session.id):
            with pytest.raises(BusFull, match="2 watches"):
                async with watching(a, session.id):
                    pass
        async with watching(a, session.id):
            pass


async def test_a_reservation_that_runs_out_ends_its_watches(bus):
    """Nobody came, and nothing says more."""
    async with bus.nodes("b", **LEASES) as (b,):
        call_id = new_call_id("iad")
        await b.reserve(call_id, "acme", seconds=0.3)
        async with watching(b, call_id) as reader:
            assert await reader.wait_ended() == WatchEnd(tombstone=None, lost=True)


async def test_a_node_that_stops_ends_its_watches(bus):
    """Whoever waits for an event waits for nothing else."""
    async with AsyncExitStack() as stack:
        async with bus.nodes("a", "b") as (a, b):
            session = await live(a)
            reader = await stack.enter_async_context(watching(b, session.id))
            await watched(session)
        assert await reader.wait_ended() == WatchEnd(tombstone=None, lost=True)


async def test_poison_on_the_channel_and_in_the_log_is_counted_and_told_as_a_gap(bus):
    """A newer version wrote it, or another program."""
    async with bus.nodes("a", "b", **LEASES) as (a, b):
        session = await live(a)
        keys = keys_of(session.id)
        async with watching(b, session.id) as reader:
            await watched(session)
            session.call.log(b"1")
            await reader.wait_said("1")
            epoch, number = map(int, reader.position.split("-"))
            for poison in (b"\xc1", b"\x93\x01\xa5ended\xc4\x01\xc1"):
                ask(bus, session.id, "SPUBLISH", keys.feed, poison)
            ask(bus, session.id, "XADD", keys.log, f"{epoch}-{number + 1}", "b", b"\xc1")
            await reader.wait_said("gap")
            assert counts(b)["watch_unreadable"] >= 3


@pytest.mark.parametrize("kind", ["sentinel", "cluster"])
async def test_a_watch_goes_on_through_a_failover(kind):
    """A replica may lack the last of the log: that is said, nothing is told twice, and the rest comes in order."""
    bus = KINDS[kind]()
    assert isinstance(bus, RedisBus)
    try:
        await bus.settle()
        async with bus.nodes("a", "b") as (a, b):
            session = await live(a)
            session.call.note("session", b"{}")
            async with watching(b, session.id) as reader:
                await watched(session)
                session.call.log(b"0")
                await reader.wait_said("0")
                async with asyncio.timeout(30), asyncio.TaskGroup() as group:
                    failing = group.create_task(asyncio.to_thread(fail_over, bus, session.id))
                    number = 0
                    while not failing.done():
                        number += 1
                        session.call.log(b"%d" % number)
                        await asyncio.sleep(0.02)
                async with asyncio.timeout(20):
                    while reader.said[-1] != "last":
                        session.call.log(b"last")
                        await asyncio.sleep(0.1)
            assert session.call.is_watched
            numbers = [int(said) for said in reader.said if said.isdigit()]
            assert numbers == sorted(set(numbers))
            assert reader.said.count("gap") > 0 or numbers == list(range(number + 1))
    finally:
        bus.stop()


def fail_over(bus: RedisBus, call_id: str) -> None:
    """Kill what has no orderly way; it blocks until another server serves the call."""
    if isinstance(bus.server, ClusterSet):
        bus.server.failover(keys_of(call_id).tag)
    elif isinstance(bus.server, SentinelSet):
        bus.server.wait_new_master(bus.server.kill_master())


async def test_a_watch_survives_a_redis_that_comes_back_empty(one_server):
    """The log is gone, so is what was published meanwhile: that is said, and the rest comes."""
    bus = one_server
    async with bus.nodes("a", "b", **LEASES) as (a, b):
        session = await live(a)
        session.call.note("session", b"{}")
        async with watching(b, session.id) as reader:
            await watched(session)
            session.call.log(b"before")
            await reader.wait_said("before")
            bus.server.restart()
            session.call.log(b"during")
            await eventually(lambda: bool(bus.server.command("EXISTS", keys_of(session.id).watchers)))
            await watched(session)
            session.call.log(b"after")
            await reader.wait_said("after")
            assert reader.said in (
                ["session", "before", "during", "after"],
                ["session", "before", "gap", "session", "during", "after"],
                ["session", "before", "during", "gap", "session", "after"],
                ["session", "before", "gap", "session", "after"],
            )


async def test_a_call_that_a_new_redis_never_gets_to_know_is_lost(one_server):
    """Nobody restores a reservation; after the time for settling nobody is waited for."""
    bus = one_server
    async with bus.nodes("b", **LEASES) as (b,):
        call_id = new_call_id("iad")
        await b.reserve(call_id, "acme", seconds=60)
        async with watching(b, call_id) as reader:
            bus.server.restart()
            with pytest.raises(CallStateUnknown):
                await first_answer(b, call_id)
            assert reader.watch.state == "reserved"
            assert await reader.wait_ended() == WatchEnd(tombstone=None, lost=True)


async def test_a_watch_goes_on_after_a_new_redis_that_did_not_know_the_call_at_first(one_server):
    """What it then says is worth nothing, and is asked again."""
    bus = one_server
    async with bus.nodes("a", "b", **LEASES) as (a, b):
        call_id = new_call_id("iad")
        await b.reserve(call_id, "acme", seconds=60)
        async with watching(b, call_id) as reader:
            bus.server.restart()
            with pytest.raises(CallStateUnknown):
                await first_answer(b, call_id)
            reads = counts(b)["watch_reads"]
            await eventually(lambda: counts(b)["watch_reads"] > reads)
            await b.reserve(call_id, "acme", seconds=60)
            session = await live(a, call_id=call_id)
            await watched(session)
            session.call.log(b"1")
            await reader.wait_said("1")


async def first_answer(node: Fanout, call_id: str) -> None:
    """Ask as long as the region is away."""
    async with asyncio.timeout(5):
        while True:
            try:
                async with watching(node, call_id):
                    return
            except RegionUnreachable:
                await asyncio.sleep(0.01)


async def test_a_redis_that_is_away_is_said_at_the_start_only(one_server):
    """A watch that goes on waits for it, and its lease is longer than that."""
    bus = one_server
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a)
        async with watching(b, session.id) as reader:
            await watched(session)
            session.call.log(b"1")
            await reader.wait_said("1")
            bus.server.freeze()
            session.call.log(b"2")
            with pytest.raises(RegionUnreachable):
                async with watching(b, session.id, after=reader.position):
                    pass
            await eventually(lambda: counts(b)["circuit_open"] == 1)
            with pytest.raises(RegionUnreachable):
                async with asyncio.timeout(0.05), watching(b, session.id):
                    pass
            bus.server.thaw()
            session.call.log(b"3")
            await reader.wait_said("3")
            assert reader.said == ["1", "2", "3"]


async def test_a_message_that_the_channel_lost_is_found_by_the_next_looks(one_server):
    """Pub/sub promises nothing; and the channel is subscribed to anew."""
    bus = one_server
    async with bus.nodes("a", "b", **LEASES) as (a, b):
        session = await live(a)
        keys = keys_of(session.id)
        async with watching(b, session.id) as reader:
            await watched(session)
            session.call.log(b"1")
            await reader.wait_said("1")
            epoch, number = map(int, reader.position.split("-"))
            lost = b"\x94\x01" + b"\xcf" + epoch.to_bytes(8, "big") + bytes([number + 1]) + b"\x91\x92\x00\xc4\x01x"
            before = subscribe_commands(bus)
            bus.server.command("XADD", keys.log, f"{epoch}-{number + 1}", "b", lost)
            await reader.wait_said("x")
            assert counts(b)["watch_unheard"] == 1
            assert subscribe_commands(bus) == before + 1


async def test_an_end_that_the_channel_lost_is_found_by_the_next_look(one_server):
    """The tombstone is there, whoever wrote it."""
    bus = one_server
    async with bus.nodes("b", **LEASES) as (b,):
        call_id = new_call_id("iad")
        await b.reserve(call_id, "acme", seconds=60)
        tombstone = Tombstone(
            id=call_id, tenant="acme", node="a", region="iad", started_at=1.0, ended_at=2.0, why="left", fault="client"
        )
        async with watching(b, call_id) as reader:
            bus.server.command(
                "HSET", keys_of(call_id).tombstone, "tenant", "acme", "record", pack_tombstone(tombstone)
            )
            assert await reader.wait_ended() == WatchEnd(tombstone=tombstone, lost=False)


def subscribe_commands(bus: RedisBus) -> int:
    """How many the server had so far."""
    stats = bus.primaries()[0].command("INFO", "commandstats")
    return int(stats.partition("cmdstat_ssubscribe:calls=")[2].partition(",")[0])
