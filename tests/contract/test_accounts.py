"""A tenant's account on real Redises: no call too many, nothing counted twice, and what living nodes know survives."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fanout import (
    AccountsFull,
    AccountsSettling,
    Admission,
    BusSettings,
    Fanout,
    RegionUnreachable,
    Report,
    Terms,
    new_call_id,
)
from fanout.core import accounts as core
from fanout.core.accounts import COUNTERS
from tests.support.bus import QUICK, Bus, RedisBus, eventually
from tests.support.kinds import settled

ENGINES = ["redis", "valkey", "sentinel", "cluster"]
DAY, NOON = "2026-11-22", 1_795_348_800.0  # of that day, UTC
TENANT = "acme"
UNLIMITED = Terms(None, None, None, 30.0)


@pytest.fixture(scope="module", params=ENGINES)
def servers(request: pytest.FixtureRequest) -> Iterator[Bus]:
    """Real ones: the double has no scripts of accounts."""
    with settled(request.param) as bus:
        yield bus


@pytest.fixture(params=["redis", "valkey"])
def own_bus(request: pytest.FixtureRequest) -> Iterator[RedisBus]:
    """To be killed."""
    with settled(request.param) as bus:
        yield bus


class Clock:
    """The nodes' wall clock."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def fleet(bus: RedisBus, clock: Callable[[], float], *names: str, **changes: Any) -> AsyncIterator[list[Fanout]]:
    """Nodes with that clock, connected to the homes that there are."""
    told = {"region": "iad", "regions": {"iad": bus.url}, "prefix": "test", **QUICK, **changes}
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(Fanout.running(BusSettings(node=name, **told), clock=clock))
            for name in names
        ]
        async with asyncio.timeout(10):
            for home, url in told["regions"].items():
                for node in nodes if url == bus.url else ():
                    await node._homes[home].wait_connected()
        yield nodes


def terms(**limits: Any) -> Terms:
    return UNLIMITED._replace(**limits)


def report(call_id: str, *, source: str = "", lease: float = 30.0, day: str = DAY, agent: str = "default", **counters):
    return Report(call_id, source or f"{call_id}/1", agent, lease, {day: counters})


async def totals(node: Fanout, tenant: str = TENANT) -> dict[str, int | float]:
    """All that is counted, without what is 0."""
    found = await node.accounts.usage(tenant, "2026-11-18", "2026-11-26")
    assert found.unreachable_regions == []
    summed: Counter[str] = Counter()
    for row in found.rows:
        assert tuple(row.counters) == COUNTERS
        summed.update(row.counters)
    return {name: count for name, count in summed.items() if count}


# -- admission


async def test_of_many_that_begin_at_once_on_four_nodes_not_one_is_too_many(bus):
    """Fifty, with room for seven: as many as leave are followed by as many, until eleven have begun in the minute."""
    limits, calls = terms(concurrent=7, starts_per_minute=11), [new_call_id("iad") for _ in range(50)]
    async with bus.nodes("a", "b", "c", "d") as nodes:

        async def rush() -> dict[str, Admission]:
            found: dict[str, Admission] = {}

            async def begin(place: int, call_id: str) -> None:
                found[call_id] = await nodes[place % 4].accounts.admit(TENANT, call_id, limits)

            async with asyncio.TaskGroup() as group:
                for place, call_id in enumerate(calls):
                    group.create_task(begin(place, call_id))
            return found

        first = await rush()
        living = [call_id for call_id, admission in first.items() if not admission.refused]
        assert Counter(admission.refused for admission in first.values()) == {"": 7, "concurrent": 43}
        assert first == await rush()  # who is in is not counted again
        standing = await nodes[0].accounts.renew_or_report(TENANT, [report(call, lease=0) for call in living[:6]])
        assert standing.live == 1
        second = await rush()
        begun = {call_id for call_id, admission in second.items() if not admission.refused}
        assert living[6] in begun
        assert Counter(admission.refused for admission in second.values()) == {"": 5, "starts": 45}
        assert all(0 < admission.retry_after <= 60 for admission in second.values() if admission.refused)
        assert (await nodes[1].accounts.renew_or_report(TENANT, [])).live == 5


async def test_one_that_may_not_begin_takes_nothing_and_others_are_not_concerned(bus):
    """Neither a place nor a start; another tenant's account is another one."""
    async with bus.nodes("a") as (a,):
        for _ in range(3):
            assert (await a.accounts.admit(TENANT, "one", terms(concurrent=0, starts_per_minute=5))).refused
        for call in ("one", "two"):
            assert await a.accounts.admit(TENANT, call, terms(starts_per_minute=2)) == Admission("")
        refused = await a.accounts.admit(TENANT, "three", terms(starts_per_minute=2))
        assert refused.refused == "starts"
        assert 55 < refused.retry_after <= 60
        assert await a.accounts.admit("other", "three", terms(starts_per_minute=2)) == Admission("")
        assert await a.accounts.admit(TENANT, "three", UNLIMITED) == Admission("")
        assert await a.accounts.admit(TENANT, "three", terms(concurrent=1)) == Admission("")
        assert await a.accounts.admit(TENANT, "four", terms(concurrent=3)) == Admission("concurrent")


async def test_a_call_whose_node_died_leaves_its_place_when_its_lease_is_over(bus):
    """And one that is renewed does not."""
    async with bus.nodes("a", "b") as (a, b):
        short = terms(concurrent=2, lease_seconds=0.3)
        assert await a.accounts.admit(TENANT, "dies", short) == Admission("")
        assert await b.accounts.admit(TENANT, "lives", short) == Admission("")
        assert (await b.accounts.renew_or_report(TENANT, [report("lives", lease=30.0)])).live == 2
        assert (await b.accounts.admit(TENANT, "waits", short)).refused == "concurrent"
        async with asyncio.timeout(5):
            while (await b.accounts.admit(TENANT, "waits", short)).refused:  # noqa: ASYNC110 - a lease ends in Redis
                await asyncio.sleep(0.02)
        assert (await b.accounts.renew_or_report(TENANT, [])).live == 2
        assert (await b.accounts.admit(TENANT, "more", short)).refused == "concurrent"


async def test_a_call_that_was_never_admitted_has_a_place_as_soon_as_it_is_reported(bus):
    """It came from another region, or began while Redis was away: it lives, whatever the limits say."""
    async with bus.nodes("a") as (a,):
        assert (await a.accounts.renew_or_report(TENANT, [report("moved"), report("began")])).live == 2
        assert (await a.accounts.admit(TENANT, "new", terms(concurrent=2))).refused == "concurrent"
        assert await a.accounts.admit(TENANT, "moved", terms(concurrent=1)) == Admission("")


async def test_the_node_that_a_call_left_does_not_shorten_its_lease(bus):
    """Its last report may come after the first of the node to which the call moved."""
    async with bus.nodes("a", "b") as (a, b):
        await b.accounts.renew_or_report(TENANT, [report("moved", source="moved/2")])
        await a.accounts.renew_or_report(TENANT, [report("moved", source="moved/1", lease=0.05)])
        assert await a.accounts.admit(TENANT, "moved", terms(lease_seconds=0.05)) == Admission("")
        await asyncio.sleep(0.1)
        assert (await b.accounts.renew_or_report(TENANT, [])).live == 1


async def test_a_day_that_is_spent_admits_nobody_until_it_is_over(bus):
    """All agents' seconds are the tenant's; the next day begins with none."""
    clock = Clock()
    async with fleet(bus, clock, "a") as (a,):
        daily = terms(seconds_per_day=100)
        await a.accounts.renew_or_report(TENANT, [report("one", seconds=99.0)])
        assert await a.accounts.admit(TENANT, "two", daily) == Admission("")
        standing = await a.accounts.renew_or_report(TENANT, [report("two", agent="sales", seconds=1.001)])
        assert standing.seconds_today == 100.001
        assert await a.accounts.admit(TENANT, "three", daily) == Admission("minutes", 43_200.0)
        clock.now += 43_200
        assert await a.accounts.admit(TENANT, "three", daily) == Admission("")
        assert (await a.accounts.renew_or_report(TENANT, [])).seconds_today == 0


# -- what was used


async def test_reports_are_added_up_exactly_by_day_agent_and_region(bus):
    """Each of them, of hundreds at once, and no number loses a digit."""
    async with bus.nodes("a", "b") as (a, b):
        many = {name: 2**40 + place for place, name in enumerate(COUNTERS) if "seconds" not in name}
        exact = {"seconds": 0.001, "audio_seconds_in": 86_399.999, "transcription_seconds": 1_234_567.891}
        await a.accounts.renew_or_report(TENANT, [report("one", **many, **exact)])
        await b.accounts.renew_or_report(TENANT, [report("two", agent="sales", day="2026-11-21", calls=1)])
        rows = (await b.accounts.usage(TENANT, "2026-11-21", DAY)).rows
        assert [(row.day, row.agent, row.region) for row in rows] == [
            ("2026-11-21", "sales", "iad"),
            (DAY, "default", "iad"),
        ]
        assert rows[1].counters == {**dict.fromkeys(COUNTERS, 0), **many, **exact}
        assert (await a.accounts.usage(TENANT, "2026-11-21", DAY, "sales")).rows == rows[:1]
        assert (await a.accounts.usage(TENANT, DAY, DAY)).rows == rows[1:]
        assert (await a.accounts.usage("other", DAY, DAY)).rows == []
        hundreds = [report(f"call-{number}", calls=1, seconds=0.1) for number in range(450)]
        standing = await a.accounts.renew_or_report("big", hundreds)
        assert standing.live == 450
        assert await totals(a, "big") == {"calls": 450, "seconds": 45.0}


@pytest.fixture(scope="module")
def numbers() -> Iterator[int]:
    """No two tenants of the examples are the same."""
    return iter(range(10**9))


LAST = {"one/a": (6, 3.5), "one/b": (3, 0.25), "two/a": (9, 10.0)}  # by source: messages and seconds at its end
HISTORY = [(source, step, day) for source in LAST for step in (1, 2, 3) for day in ("2026-11-21", DAY)]
STEPS = st.lists(st.sampled_from(HISTORY), max_size=20).flatmap(lambda again: st.permutations([*HISTORY, *again]))


@settings(max_examples=3, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(STEPS, st.integers(0, 40)), min_size=15, max_size=15))
async def test_whatever_comes_again_late_or_in_another_order_is_counted_once(bus, numbers, examples):
    """Through two nodes, cut at any place: what it comes to is what each source said last."""
    async with fleet(bus, Clock(), "a", "b") as nodes:
        for sent, cut in examples:
            tenant = f"tenant-{next(numbers)}"
            for node, steps in zip(nodes, (sent[:cut], sent[cut:]), strict=True):
                reports = []
                for source, step, day in steps:
                    messages, seconds = LAST[source]
                    used = {"calls": 1, "messages": messages * step // 3, "seconds": seconds * step / 3}
                    reports.append(report(source[:3], source=source, day=day, **used))
                await node.accounts.renew_or_report(tenant, reports)
            assert await totals(nodes[0], tenant) == {"calls": 6, "messages": 36, "seconds": 27.5}


async def test_nodes_that_count_more_and_nodes_that_count_less_share_an_account(bus, monkeypatch):
    """While a fleet is being replaced: neither takes away what the other counts."""
    async with fleet(bus, Clock(), "a") as (a,):
        await a.accounts.renew_or_report(TENANT, [report("old", calls=1)])
        with monkeypatch.context() as newer:
            newer.setattr(core, "COUNTERS", (*COUNTERS, "images"))
            newer.setattr(core, "_UNITS", {**core._UNITS, "images": 1})
            await a.accounts.renew_or_report(TENANT, [report("new", calls=1, images=5)])
        await a.accounts.renew_or_report(TENANT, [report("old", calls=1), report("other", calls=1)])
        assert await totals(a) == {"calls": 3}
        with monkeypatch.context() as newer:
            newer.setattr(core, "COUNTERS", (*COUNTERS, "images"))
            newer.setattr(core, "_UNITS", {**core._UNITS, "images": 1})
            (row,) = (await a.accounts.usage(TENANT, DAY, DAY)).rows
            assert row.counters["images"] == 5


async def test_a_late_report_of_a_stay_that_is_over_takes_no_place(bus):
    """It waited in a frozen server's socket, say; the same call's next stay does take one."""
    async with fleet(bus, Clock(), "a") as (a,):
        late, last = report("one", seconds=1.0), report("one", seconds=2.0, lease=0)
        assert (await a.accounts.renew_or_report(TENANT, [late])).live == 1
        assert (await a.accounts.renew_or_report(TENANT, [last])).live == 0
        standing = await a.accounts.renew_or_report(TENANT, [late])
        assert (standing.live, standing.seconds_today) == (0, 2.0)
        assert (await a.accounts.renew_or_report(TENANT, [report("one", source="one/2", seconds=1.0)])).live == 1
        assert (await totals(a))["seconds"] == 3.0


async def test_a_day_too_long_ago_or_not_begun_is_not_counted_and_that_is_said(bus):
    """What was reported of it is forgotten: a repeat would be counted twice."""
    clock = Clock()
    async with fleet(bus, clock, "a") as (a,):
        days = {day: {"calls": 1} for day in ("2026-11-18", "2026-11-19", "2026-11-20", "2026-11-23", "2026-11-24")}
        standing = await a.accounts.renew_or_report(TENANT, [Report("one", "one/1", "default", 30.0, days)])
        assert (standing.dropped, standing.live) == (3, 1)
        assert await totals(a) == {"calls": 2}
        for wrong in ({"2026-11-32": {}}, {"20261122": {}}, {DAY: {"minutes": 1}}):
            with pytest.raises(ValueError, match=r"month|YYYY|minutes"):
                await a.accounts.renew_or_report(TENANT, [Report("one", "one/1", "default", 30.0, wrong)])


async def test_every_key_of_an_account_goes_by_itself(bus):
    """Leases and starts with what they are of, usage when it is as old as was asked, what was reported sooner."""
    clock = Clock()
    async with fleet(bus, clock, "a", usage_days=10) as (a,):
        await a.accounts.admit(TENANT, "one", terms(concurrent=5, starts_per_minute=5))
        await a.accounts.renew_or_report(TENANT, [report("one", calls=1), report("two", lease=90.0, calls=1)])
        await a.accounts.spend(TENANT, "messages", 2.0, 10)
        await a.accounts.revoke(TENANT, "j1", time.time() + 1000)
        await a.accounts.revoke(TENANT, "j2", time.time() + 10)
        lives = {key.split("}:")[1].split(":")[0]: ttl for key, ttl in bus.keys().items() if ":alive:" not in key}
        expected = {"leases": 90, "starts": 60, "spent": 0.5, "revoked": 1000, "revoked_until": 1000}
        expected |= {"usage": 43_200 + 12 * 86_400, "reported": 43_200 + 2 * 86_400}
        assert lives.keys() == expected.keys()
        assert {kind: pytest.approx(seconds, abs=2, rel=0) for kind, seconds in expected.items()} == lives


async def test_usage_of_all_regions_is_read_and_one_that_is_away_is_named(bus):
    """Rows say of which region they are. What is in another home, since its region had fewer, is not lost."""
    clock, url = Clock(), bus.url
    away = {"iad": url, "lhr": url, "nrt": "redis://127.0.0.1:1"}
    async with (
        fleet(bus, clock, "a", regions=away) as (a,),
        fleet(bus, clock, "b", region="lhr", regions={"lhr": url}) as (b,),
        fleet(bus, clock, "c", regions={"iad": url, "iad-2": url}) as (c,),
    ):
        for node, call in ((a, "one"), (b, "two"), (c, "three")):
            await node.accounts.renew_or_report("t2", [report(call, calls=1)])
        found = await a.accounts.usage("t2", DAY, DAY)
        assert [(row.region, row.counters["calls"]) for row in found.rows] == [("iad", 1), ("lhr", 1)]
        assert found.unreachable_regions == ["nrt"]
        assert c.accounts._account("t2").name == "iad-2"
        (row,) = (await c.accounts.usage("t2", DAY, DAY)).rows
        assert (row.region, row.counters["calls"]) == ("iad", 2)  # there its account is in iad-2


# -- what flows at a rate


async def test_what_flows_at_a_rate_is_had_by_all_nodes_together(bus):
    """Ten at once of ten, at a rate of one in twenty seconds: then one must wait for it."""
    async with bus.nodes("a", "b") as nodes:
        waits: list[float] = []

        async def spend(place: int) -> None:
            waits.append(await nodes[place % 2].accounts.spend(TENANT, "messages", 0.05, 10))

        async with asyncio.TaskGroup() as group:
            for place in range(25):
                group.create_task(spend(place))
        assert waits.count(0.0) == 10
        assert all(15 < wait <= 20 for wait in waits if wait)
        assert await nodes[0].accounts.spend("other", "messages", 0.05, 10) == 0.0
        assert await nodes[0].accounts.spend(TENANT, "others", 0.05, 10) == 0.0
        assert await nodes[0].accounts.spend(TENANT, "quick", 50.0, 1) == 0.0
        wait = await nodes[0].accounts.spend(TENANT, "quick", 50.0, 1)
        assert 0 < wait <= 0.02
        await asyncio.sleep(wait)
        assert await nodes[0].accounts.spend(TENANT, "quick", 50.0, 1) == 0.0


# -- tokens that hold no more


async def test_a_token_that_is_revoked_in_one_region_is_on_the_list_of_all(bus):
    """Each node reads its own region's; nothing is read twice; a repeat changes nothing, a later end does."""
    clock = Clock()
    clock.now = time.time()
    regions = {"iad": bus.url, "lhr": bus.url}
    async with (
        fleet(bus, clock, "a", regions=regions) as (a,),
        fleet(bus, clock, "b", region="lhr", regions=regions) as (b,),
    ):
        assert await b.accounts.revoked(0) == (0, None)
        assert (await b.accounts.revoked(-1)).entries == {}
        until = float(int(clock.now + 60))
        assert await a.accounts.revoke(TENANT, "j1", until) == []
        version, entries = await b.accounts.revoked(0)
        assert entries == {(TENANT, "j1"): until}
        assert await a.accounts.revoke(TENANT, "j1", until) == await a.accounts.revoke(TENANT, "j1", until - 9) == []
        assert await a.accounts.revoke(TENANT, "ended", clock.now - 1) == []
        assert await b.accounts.revoked(version) == (version, None)
        assert (await a.accounts.revoked(0)).entries == {(TENANT, "j1"): until}
        await a.accounts.revoke(TENANT, "j1", until + 60)
        await a.accounts.revoke("other", "j1\u00e9 x", until)
        assert (await b.accounts.revoked(version)).entries == {
            (TENANT, "j1"): until + 60,
            ("other", "j1\u00e9 x"): until,
        }
        clock.now = until + 1
        assert (await b.accounts.revoked(-1)).entries == {(TENANT, "j1"): until + 60}
        for wrong in ("", "a\nb", "x" * 257, "\ud800"):
            with pytest.raises(ValueError, match="jti"):
                await a.accounts.revoke(TENANT, wrong, until)


async def test_a_region_that_does_not_answer_is_named_and_the_others_have_the_token(bus):
    """The caller repeats it."""
    async with fleet(bus, time.time, "a", regions={"iad": bus.url, "lhr": "redis://127.0.0.1:1"}) as (a,):
        until = float(int(time.time() + 60))
        assert await a.accounts.revoke(TENANT, "j1", until) == ["lhr"]
        assert (await a.accounts.revoked(0)).entries == {(TENANT, "j1"): until}


async def test_a_list_is_bounded_and_read_in_parts(bus, monkeypatch):
    """A token that ended makes room; one that is on the list needs none."""
    monkeypatch.setattr(core, "REVOKED_MAX", 12)
    monkeypatch.setattr(core, "REVOKED_READ", 5)
    monkeypatch.setattr("fanout.revocations.REVOKED_READ", 5)
    async with bus.nodes("a", "b") as (a, b):
        until = float(int(time.time() + 60))
        await a.accounts.revoke(TENANT, "short", time.time() + 0.3)
        for number in range(11):
            await a.accounts.revoke(TENANT, f"j{number}", until)
        with pytest.raises(AccountsFull):
            await a.accounts.revoke(TENANT, "one more", until)
        await a.accounts.revoke(TENANT, "j3", until + 1)
        assert len((await b.accounts.revoked(0)).entries) >= 11
        await asyncio.sleep(0.3)
        await a.accounts.revoke(TENANT, "one more", until)
        for node in (a, b):
            names = {jti for _, jti in (await node.accounts.revoked(0)).entries}
            assert names == {"one more", *(f"j{number}" for number in range(11))}


# -- a Redis that is away, or new


async def test_while_redis_is_away_everybody_is_told_so(own_bus):
    """At once, when it has been for a while: whoever begins a call waits for the answer."""
    async with own_bus.nodes("a") as (a,):
        own_bus.server.kill()
        for ask in (
            lambda: a.accounts.admit(TENANT, "one", UNLIMITED),
            lambda: a.accounts.renew_or_report(TENANT, [report("one")]),
            lambda: a.accounts.spend(TENANT, "messages", 1.0, 1),
            lambda: a.accounts.revoked(0),
        ):
            with pytest.raises(RegionUnreachable):
                await ask()
        assert (await a.accounts.usage(TENANT, DAY, DAY)).unreachable_regions == ["iad"]
        assert await a.accounts.revoke(TENANT, "j1", 9e9) == ["iad"]
        await eventually(lambda: a.accounts._homes["iad"].is_away)
        before = asyncio.get_running_loop().time()
        with pytest.raises(RegionUnreachable):
            await a.accounts.admit(TENANT, "one", UNLIMITED)
        assert asyncio.get_running_loop().time() - before < QUICK["socket_timeout"] / 4


async def test_a_redis_that_comes_back_empty_is_told_what_living_nodes_know_before_it_admits_anybody(own_bus):
    """Leases, what each stay used so far, and tokens; a call that is known again may ask again at any time."""
    clock = Clock()
    async with fleet(own_bus, clock, "a", "b") as (a, b):
        limits = terms(concurrent=3)
        for node, call in ((a, "one"), (a, "two"), (b, "three")):
            assert await node.accounts.admit(TENANT, call, limits) == Admission("")
        await a.accounts.renew_or_report(TENANT, [report("one", seconds=10.0), report("two", seconds=5.0)])
        await b.accounts.renew_or_report(TENANT, [report("three", seconds=1.0)])
        until = float(int(time.time() + 60))
        clock.now = time.time()
        await a.accounts.revoke(TENANT, "j1", until)
        version = (await b.accounts.revoked(0)).version
        await asyncio.to_thread(own_bus.server.restart)
        clock.now = NOON
        await eventually(
            lambda: a.status()["regions"]["iad"]["phase"] == b.status()["regions"]["iad"]["phase"] == "settling"
        )
        with pytest.raises(AccountsSettling) as refused:
            await a.accounts.admit(TENANT, "four", limits)
        assert 0 < refused.value.seconds < 1
        standing = await a.accounts.renew_or_report(TENANT, [report("one", seconds=11.0), report("two", seconds=5.0)])
        assert standing == (16.0, 2, 0)
        assert await a.accounts.admit(TENANT, "one", limits) == Admission("")
        assert (await b.accounts.renew_or_report(TENANT, [report("three", seconds=1.5)])).seconds_today == 17.5
        async with asyncio.timeout(5):
            while True:
                try:
                    assert (await b.accounts.admit(TENANT, "four", limits)).refused == "concurrent"
                    break
                except AccountsSettling:
                    await asyncio.sleep(0.02)
        clock.now = time.time()
        assert await b.accounts.revoked(version) == (version, None)
        assert (await a.accounts.revoked(-1)).entries == {(TENANT, "j1"): until}  # which b restored: a never read it
