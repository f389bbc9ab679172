"""What plans allow, on several nodes of a region: counted exactly by Redis, and well enough while it is away."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from fanout import Fanout, RegionUnreachable, new_call_id
from ops.tasks import Supervisor
from relay import accounting as module
from relay.accounting import Account, Accounting
from relay.admission import Refused
from relay.config import Settings
from relay.core.endings import Why
from relay.rulebook.plans import Plan
from relay.tally import Tally
from tests.support.bus import RedisBus
from tests.support.redis_server import RedisServer, find_binary

SECRET = "s" * 32


pytestmark = pytest.mark.parametrize("servers", ["redis"], indirect=True)


@dataclass(eq=False)
class Desk:
    """One node's accounting, and what it tells calls to end."""

    accounting: Accounting
    tally: Tally
    node: Fanout

    def __post_init__(self) -> None:
        self.told: list[tuple[str, Why]] = []

    async def admit(self, plan: Plan, tenant: str = "acme", call_id: str = "") -> str:
        """The call id, or the refusal's code."""
        call_id, refused = call_id or new_call_id("iad"), None
        try:
            await self.accounting.admit(call_id, tenant, plan, 1.0)
        except Refused as error:
            refused = error
        assert refused is None or (refused.retry_after or 0) >= 1
        return call_id if refused is None else f"{refused.status} {refused.code}"

    def open(
        self, plan: Plan, call_id: str = "", *, tenant: str = "acme", age: float = 0.0, resumes: bool = False
    ) -> Account:
        call_id = call_id or new_call_id("iad")
        return self.accounting.open(
            call_id,
            tenant,
            "support",
            plan,
            1.0,
            started_at=time.time() - age,
            resumes=resumes,
            on_spent=lambda why, text: self.told.append((call_id, why)),
        )

    async def live(self, tenant: str = "acme") -> int:
        """How many calls of a tenant Redis counts as living."""
        return (await self.node.accounts.renew_or_report(tenant, [])).live

    async def live_by_tenant(self, tenants: list[str]) -> dict[str, int]:
        """The same of several; those are missing of which nobody can tell."""
        found: dict[str, int] = {}

        async def ask(tenant: str) -> None:
            with contextlib.suppress(TimeoutError, RegionUnreachable):
                async with asyncio.timeout(1.0):
                    found[tenant] = await self.live(tenant)

        async with asyncio.TaskGroup() as group:
            for tenant in tenants:
                group.create_task(ask(tenant))
        return found

    async def used(self, tenant: str = "acme") -> dict[str, float]:
        """All that is counted of a tenant, the seconds of calls apart: they go on."""
        today = datetime.now(UTC).date()
        days = [(today + timedelta(days=step)).isoformat() for step in (-1, 1)]
        found = await self.node.accounts.usage(tenant, *days)
        assert {row.agent for row in found.rows} <= {"support"}
        counted: Counter[str] = Counter()
        for row in found.rows:
            counted.update(row.counters)
        return {name: number for name, number in counted.items() if number and name != "seconds"}


@asynccontextmanager
async def desks(
    bus: RedisBus, *names: str, regions: Mapping[str, str] | None = None, **env: str
) -> AsyncIterator[list[Desk]]:
    """Nodes of one region; leases are short, so that a lapse shows."""
    names = names or ("a",)
    quick = {"RELAY_LEASE_SECONDS": "1.2", "RELAY_REGISTER_SECONDS": "2", "RELAY_CLOSE_SECONDS": "1"}
    given = {f"RELAY_{name}": value for name, value in env.items()}
    settings = Settings.from_env({"RELAY_JWT_SECRET": SECRET, "OPENAI_API_KEY": "k", **quick, **given})
    changes = {"regions": regions} if regions is not None else {}
    async with bus.nodes(*names, **changes) as nodes, AsyncExitStack() as stack:
        supervisor = await stack.enter_async_context(Supervisor.running())
        found = []
        for node in nodes:
            tally = Tally()
            running = Accounting.running(node.accounts, settings, tally, time.time, supervisor)
            found.append(Desk(await stack.enter_async_context(running), tally, node))
        yield found
        assert not any(supervisor.restarts.values())


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """For what another process counts."""
    async with asyncio.timeout(10):
        while not await condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.02)


@contextlib.contextmanager
def frozen(bus: RedisBus) -> Iterator[None]:
    """Redis answers nothing, and does later what it was asked."""
    bus.server.freeze()
    try:
        yield
    finally:
        bus.server.thaw()


# What Redis counts


async def test_four_nodes_together_admit_exactly_as_many_calls_as_the_plan_says(bus):
    """However many come at once, wherever they come."""
    plan = Plan(concurrent_calls=10)
    async with desks(bus, "a", "b", "c", "d") as four:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(four[number % 4].admit(plan)) for number in range(50)]
        answers = [task.result() for task in asked]
        assert Counter(answer for answer in answers if not answer.startswith("rtc_")) == {"429 too_many_calls": 40}
        assert sum(desk.tally.limited["concurrent"] for desk in four) == 40
        assert {desk.tally.limits_unchecked for desk in four} == {0}


async def test_another_tenant_is_not_held_up(bus):
    """Their accounts have nothing to do with each other."""
    plan = Plan(concurrent_calls=1)
    async with desks(bus) as (desk,):
        assert (await desk.admit(plan)).startswith("rtc_")
        assert await desk.admit(plan) == "429 too_many_calls"
        assert (await desk.admit(plan, tenant="other")).startswith("rtc_")


async def test_a_call_that_asks_again_is_one_call(bus):
    """A client whose connection broke while it was admitted comes back with the same key."""
    plan, call_id = Plan(concurrent_calls=1, call_starts_per_minute=1), new_call_id("iad")
    async with desks(bus, "a", "b") as (a, b):
        assert [await desk.admit(plan, call_id=call_id) for desk in (a, b, a)] == [call_id] * 3


async def test_a_place_is_free_as_soon_as_its_call_is_over(bus):
    """Not when its lease lapses: whoever hangs up and calls again must get through."""
    plan = Plan(concurrent_calls=1)
    async with desks(bus, "a", "b", LEASE_SECONDS="60") as (a, b):
        account = a.open(plan, await a.admit(plan))
        assert await b.admit(plan) == "429 too_many_calls"
        account.close(goes_on=False)
        await until(lambda: _is(a.live, 0))
        assert (await b.admit(plan)).startswith("rtc_")


async def test_a_live_call_keeps_its_place_and_one_that_never_came_loses_it(bus):
    """A lease is renewed for as long as the call lives, and by nobody else."""
    plan = Plan(concurrent_calls=2)
    async with desks(bus) as (desk,):
        desk.open(plan, await desk.admit(plan))
        await desk.admit(plan)  # and its client is gone
        assert await desk.live() == 2
        await until(lambda: _is(desk.live, 1))
        await asyncio.sleep(1.5)  # longer than a lease
        assert await desk.live() == 1


async def test_starts_are_counted_over_all_nodes(bus):
    """A minute's worth may come at once."""
    plan = Plan(call_starts_per_minute=5)
    async with desks(bus, "a", "b") as two:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(two[number % 2].admit(plan)) for number in range(20)]
        assert [task.result() for task in asked].count("429 too_many_starts") == 15


async def test_a_plan_without_such_limits_asks_nothing_of_redis(bus):
    """Its calls must not wait for one that is away, nor be counted as unchecked."""
    async with desks(bus) as (desk,):
        with frozen(bus):
            async with asyncio.timeout(0.1):
                assert (await desk.admit(Plan(longest_call_seconds=60))).startswith("rtc_")
                await desk.accounting.spend_message("acme", Plan(), 1.0)
        assert desk.tally.limits_unchecked == 0


async def test_messages_may_come_at_the_plans_rate_over_all_nodes(bus):
    """Two seconds' worth at once; then the refusal says when."""
    plan = Plan(messages_per_second=2.0)
    async with desks(bus, "a", "b") as (a, b):
        for desk in (a, b, a, b):
            await desk.accounting.spend_message("acme", plan, 1.0)
        with pytest.raises(Refused) as refused:
            await a.accounting.spend_message("acme", plan, 1.0)
        assert (refused.value.status, refused.value.code, refused.value.retry_after) == (429, "too_many_messages", 1)
        await b.accounting.spend_message("other", plan, 1.0)
        assert a.tally.limited["messages"] == 1


# What ends calls


async def test_calls_end_when_the_minutes_of_the_day_are_spent_wherever_they_are(bus):
    """Each hears of it once, and no other begins."""
    plan, unlimited = Plan(call_minutes_per_day=0.6 / 60), Plan()
    async with desks(bus, "a", "b") as (a, b):
        accounts = [desk.open(plan, await desk.admit(plan)) for desk in (a, b)]
        spared = a.open(unlimited)
        await until(lambda: _is(_told(a, b), {(each.call_id, Why.MINUTES_SPENT) for each in accounts}))
        assert await b.admit(plan) == "429 minutes_spent"
        await asyncio.sleep(0.5)  # more than one report later
        assert len(a.told + b.told) == 2
        assert spared.is_open


async def test_a_call_ends_at_its_longest_though_it_began_elsewhere(bus):
    """A move gives it no new time, and one that is over hears nothing."""
    plan = Plan(longest_call_seconds=100.0)
    async with desks(bus) as (desk,):
        old, young = desk.open(plan, age=99.7, resumes=True), desk.open(plan)
        over = desk.open(plan, age=200.0)
        over.close(goes_on=False)
        assert desk.told == []
        await until(lambda: _is(_told(desk), {(old.call_id, Why.CALL_TOO_LONG)}))
        assert young.is_open


# What is counted


async def test_what_a_call_uses_is_counted_while_it_lives_and_at_its_end(bus):
    """A node that dies takes only what came since its last report with it."""
    async with desks(bus) as (desk,):
        account = desk.open(Plan())
        account.usage.on_response({"input_tokens": 100, "output_tokens": 10})
        await until(
            lambda: _is(desk.used, {"calls": 1, "responses": 1, "input_text_tokens": 100, "output_text_tokens": 10})
        )
        account.usage.on_message()
        account.close(goes_on=False)
        account.close(goes_on=False)
        await until(lambda: _counts(desk, "messages", 1))
        assert (await desk.used())["responses"] == 1


async def test_a_call_that_moves_is_one_call_and_keeps_its_place(bus):
    """Each node reports what it saw of it."""
    plan = Plan(concurrent_calls=1)
    async with desks(bus, "a", "b") as (a, b):
        first = a.open(plan, await a.admit(plan))
        first.usage.on_response(None)
        first.close(goes_on=True)
        await until(lambda: _counts(a, "responses", 1))
        assert await b.admit(plan) == "429 too_many_calls"
        second = b.open(plan, first.call_id, resumes=True)
        second.usage.on_response(None)
        await until(lambda: _is(a.used, {"calls": 1, "responses": 2}))
        second.close(goes_on=False)
        await until(lambda: _is(a.live, 0))


async def test_more_calls_than_one_report_holds_are_all_counted(bus):
    """They go in several, and each is renewed."""
    async with desks(bus) as (desk,):
        accounts = [desk.open(Plan()) for _ in range(250)]
        await until(lambda: _is(desk.live, 250))
        for account in accounts:
            account.close(goes_on=False)
        await until(lambda: _is(desk.live, 0))
        assert (await desk.used()) == {"calls": 250}


async def test_the_last_reports_are_sent_before_the_node_leaves(bus):
    """A drain ends all calls just before it."""
    async with desks(bus, "a", "b") as (_, b), bus.nodes("c") as (node,), Supervisor.running() as supervisor:
        settings = Settings.from_env({"RELAY_JWT_SECRET": SECRET, "OPENAI_API_KEY": "k"})
        async with Accounting.running(node.accounts, settings, Tally(), time.time, supervisor) as accounting:
            for _ in range(20):
                Desk(accounting, Tally(), node).open(Plan()).close(goes_on=False)
        assert await b.used() == {"calls": 20}


# While Redis is away


async def test_while_redis_is_away_a_node_admits_what_it_can_count_itself(bus):
    """As many as the region may have; what then is too much Redis says when it is back."""
    plan = Plan(concurrent_calls=3)
    async with desks(bus, "a", "b", REGISTER_SECONDS="0.3") as (a, b):
        a.open(plan, await a.admit(plan))
        with frozen(bus):
            async with asyncio.TaskGroup() as group:
                started = time.monotonic()
                asked = {desk: [group.create_task(desk.admit(plan)) for _ in range(5)] for desk in (a, b)}
            assert time.monotonic() - started < 1.0
            let_in = {desk: [task.result() for task in tasks] for desk, tasks in asked.items()}
            assert [answers.count("429 too_many_calls") for answers in let_in.values()] == [3, 2]
            for desk, answers in let_in.items():
                for call_id in answers:
                    if call_id.startswith("rtc_"):
                        desk.open(plan, call_id)
            assert (a.tally.limits_unchecked, b.tally.limits_unchecked) == (5, 5)
        await until(lambda: _is(a.live, 6))
        assert await b.admit(plan) == "429 too_many_calls"


async def test_a_call_that_was_let_in_alone_and_never_came_is_forgotten(bus):
    """Like one that Redis let in."""
    plan = Plan(concurrent_calls=1)
    async with desks(bus, LEASE_SECONDS="0.6") as (desk,):
        with frozen(bus):
            call_id = await desk.admit(plan)
            assert await desk.admit(plan, call_id=call_id) == call_id
            assert await desk.admit(plan) == "429 too_many_calls"
            await until(lambda: _is(desk.admit, "429 too_many_calls", plan, negate=True))


async def test_who_closes_the_door_while_redis_is_away_admits_nothing(bus):
    """For those to whom a call too many is worse than one too few; the answer says so, and to try again."""
    plan = Plan(concurrent_calls=3)
    async with desks(bus, LIMITS_AWAY="closed") as (desk,):
        with frozen(bus):
            assert await desk.admit(plan) == "503 limits_unknown"
            assert desk.tally.limits_unchecked == 1
        await until(lambda: _is(desk.admit, "503 limits_unknown", plan, negate=True))


async def test_messages_are_counted_by_each_node_while_redis_is_away(bus):
    """Tool results must get through an outage; a flood must not."""
    plan = Plan(messages_per_second=2.0)
    async with desks(bus, REGISTER_SECONDS="0.02") as (desk,):
        with frozen(bus):
            for _ in range(4):
                await desk.accounting.spend_message("acme", plan, 1.0)
            with pytest.raises(Refused, match="too much"):
                await desk.accounting.spend_message("acme", plan, 1.0)


async def test_reports_are_kept_through_an_outage_and_counted_once(bus):
    """Redis may have taken one whose answer was lost, and takes those that waited in its socket, all over again."""
    async with desks(bus) as (desk,):
        over, lives = desk.open(Plan()), desk.open(Plan())
        await until(lambda: _counts(desk, "calls", 2))
        with frozen(bus):
            over.usage.on_response({"input_tokens": 7})
            lives.usage.on_response({"input_tokens": 5})
            over.close(goes_on=False)
            await asyncio.sleep(1.0)  # some rounds fail
            assert desk.accounting.waiting == 1
        await until(lambda: _is(desk.used, {"calls": 2, "responses": 2, "input_text_tokens": 12}))
        assert desk.accounting.waiting == 0
        await asyncio.sleep(0.5)
        assert await desk.used() == {"calls": 2, "responses": 2, "input_text_tokens": 12}
        assert await desk.live() == 1


async def test_a_redis_that_came_back_empty_hears_of_live_calls_before_it_admits_more(bus):
    """Until then it says that it doesn't know."""
    plan = Plan(concurrent_calls=1)
    async with desks(bus, "a", "b", LIMITS_AWAY="closed") as (a, b):
        account = a.open(plan, await a.admit(plan))
        account.usage.on_message()
        await until(lambda: _counts(a, "messages", 1))
        bus.server.restart()
        seen = []

        async def is_known() -> bool:
            seen.append(await b.admit(plan))
            return seen[-1] != "503 limits_unknown"

        await until(is_known)
        assert seen[-1] == "429 too_many_calls"
        assert await a.used() == {"calls": 1, "messages": 1}


async def test_what_waits_for_redis_is_bounded(bus, monkeypatch):
    """A long outage must not fill a node's memory: the oldest is dropped, and counted."""
    monkeypatch.setattr(module, "_CLOSED_MAX", 5)
    async with desks(bus, CLOSE_SECONDS="0.1") as (desk,):
        with frozen(bus):
            for _ in range(8):
                desk.open(Plan()).close(goes_on=False)
            assert (desk.accounting.waiting, desk.tally.usage_dropped) == (5, 3)
            async with asyncio.timeout(2):
                await desk.accounting._flush()  # as at the end of a node
            assert desk.tally.usage_dropped == 8


async def test_a_shard_that_is_away_does_not_let_the_leases_of_others_lapse(bus):
    """Its tenants' reports wait for an answer until they time out; the others' go first."""
    other = RedisServer(find_binary()).start()
    tenants = [f"tenant-{number}" for number in range(40)]
    try:
        homes = {"iad": bus.url, "iad-2": other.url}
        async with desks(bus, regions=homes, LEASE_SECONDS="1.8", CLOSE_SECONDS="0.1") as (desk,):
            await desk.node.wait_connected()
            for tenant in tenants:
                desk.open(Plan(), tenant=tenant)
            other.freeze()
            reachable = await desk.live_by_tenant(tenants)
            assert 8 < len(reachable) < 32
            await asyncio.sleep(3.0)  # more than a lease
            assert await desk.live_by_tenant(tenants) == dict.fromkeys(reachable, 1)
    finally:
        other.stop()


async def _is(ask: Callable[..., Awaitable[object]], expected: object, *args: object, negate: bool = False) -> bool:
    return (await ask(*args) == expected) is not negate


async def _counts(desk: Desk, name: str, number: int) -> bool:
    return (await desk.used()).get(name) == number


def _told(*desks: Desk) -> Callable[[], Awaitable[object]]:
    async def told() -> set[tuple[str, Why]]:
        return {each for desk in desks for each in desk.told}

    return told
