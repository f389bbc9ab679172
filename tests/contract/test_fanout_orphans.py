"""Calls whose node is gone are ended by a living node, once; no others are.

Beside each call that must not be ended there is one that must: when that is over, the other had its time, too.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from fanout import BusSettings, CallRecord, Fanout, LogEntry, RegionUnreachable, Status, Tombstone, new_call_id
from fanout.core.partitions import tag_of
from fanout.core.runs import Run
from fanout.core.scripts import Scripts
from fanout.store import Store, run_one
from tests.support.bus import QUICK, Bus, RedisBus, eventually, live, message, put, taken
from tests.support.kinds import settled

SHORT: dict[str, Any] = {"orphan_seconds": 0.8}
NODE_SECONDS = 2 * QUICK["node_ttl_seconds"]  # how long a node must have been gone
LONG = 20.0  # for what takes a second or two, on a machine that is busy


@pytest.fixture(scope="module", params=["memory", "redis", "valkey", "cluster"])
def servers(request: pytest.FixtureRequest) -> Iterator[Bus]:
    with settled(request.param) as bus:
        yield bus


@pytest.fixture(params=["redis", "valkey"])
def own_bus(request: pytest.FixtureRequest) -> Iterator[RedisBus]:
    with settled(request.param) as bus:
        yield bus


class Mortal:
    """An owner that does what it is told and nothing by itself: it can die, or be late, when the test wants it.

    It speaks to Redis through the store of a living node.
    """

    def __init__(self, through: Fanout, *, name: str = "mortal", boot: str = "boot1") -> None:
        self._store = through._homes["iad"].store
        self._boot = boot
        self.name = name
        settings = {**QUICK, "regions": {"iad": "redis://unused"}, "prefix": "test"}
        self._scripts = Scripts(BusSettings(node=name, region="iad", **settings))
        self._epochs: dict[str, int] = {}

    async def claim(self, call_id: str | None = None, mode: str = "fresh") -> str:
        """Own a call; its id."""
        call_id = call_id or new_call_id("iad")
        record = CallRecord(
            id=call_id, tenant="acme", node=self.name, region="iad", agent="default", model="gpt", started_at=1.0
        )
        epoch = self._epochs.get(call_id, 0)
        latest_ms = int(time.time() * 1000) + 5000
        keys = self._scripts.keys.call(call_id, "acme")
        answer = await self._run(
            self._scripts.claim(keys, mode, self._claim_of(call_id), record, epoch=epoch, latest_ms=latest_ms)
        )
        self._epochs[call_id] = int(answer[1])
        return call_id

    async def beat(self) -> None:
        await self._run(self._scripts.beat(tag_of(self.name), self._boot))

    async def refresh(self, call_id: str) -> None:
        await self._run(self._scripts.refresh(*self._place(call_id)))

    async def note(self, call_id: str, **facts: bytes) -> None:
        place = self._place(call_id)
        await self._run(self._scripts.log(*place, batch=None, lowest="", sound=None, facts=facts, number=1))

    async def hand_over(self, call_id: str) -> None:
        await self._run(self._scripts.handover(*self._place(call_id)))

    @asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        """Its heart beats for the length of the block."""
        async with asyncio.TaskGroup() as group:
            beating = group.create_task(self._live())
            yield
            beating.cancel()

    async def _live(self) -> None:
        while True:
            await self.beat()
            await asyncio.sleep(0.1)

    def _claim_of(self, call_id: str) -> str:
        return f"{self._boot}.{call_id[-8:]}"

    def _place(self, call_id: str) -> tuple[Any, int, str]:
        return self._scripts.keys.call(call_id, "acme"), self._epochs[call_id], self._claim_of(call_id)

    async def _run(self, run: Run) -> list[Any]:
        answer = await run_one(self._store, run)
        assert answer[0] in {b"held", b"ok"}
        return answer


class Told:
    """What nodes said of the orphans that they ended."""

    def __init__(self, *nodes: Fanout) -> None:
        self.of: list[Tombstone] = []
        for node in nodes:
            node.on_orphan = self.of.append

    @property
    def ids(self) -> list[str]:
        return [tombstone.id for tombstone in self.of]

    async def wait(self, call_id: str) -> Tombstone:
        await wait_until(lambda: call_id in self.ids)
        return next(tombstone for tombstone in self.of if tombstone.id == call_id)


async def wait_until(condition: Any) -> None:
    async with asyncio.timeout(LONG):
        while not condition():  # noqa: ASYNC110 - other nodes do it
            await asyncio.sleep(0.02)


def count(what: str, *nodes: Fanout) -> int:
    return sum(node.status()["regions"]["iad"][what] for node in nodes)


async def is_live(node: Fanout, call_id: str) -> bool:
    return isinstance(await node.call(call_id, "acme"), CallRecord)


async def test_a_call_whose_node_died_is_ended_once_with_all_that_belongs_to_an_end(bus):
    """By one of two that watch: tombstone, the last word on its messages, its facts kept, those who look on told."""
    async with bus.nodes("a", "b", **SHORT) as (a, b):
        told, mortal = Told(a, b), Mortal(a)
        heard: list[LogEntry] = []
        with capture_logs() as logs:
            async with mortal.living():
                call_id = await mortal.claim()
                await mortal.note(call_id, usage=b"u")
            receipt = await put(a, call_id, message("m1"), wait=Status.ACCEPTED)
            async with b.watch(call_id, "acme", heard.append) as watch:
                await wait_until(lambda: watch.end is not None)
            await told.wait(call_id)
        assert not receipt.is_terminal
        (tombstone,) = told.of
        assert (tombstone.why, tombstone.fault, tombstone.node) == ("node_lost", "node", "mortal")
        assert await a.call(call_id, "acme") == watch.end.tombstone == tombstone
        ended = await b.receipt(call_id, "acme", "m1")
        assert (ended.status, ended.error["code"]) == (Status.FAILED, "call_ended")
        facts = await a.facts(call_id, "acme")
        assert (facts.state, facts.values) == ("ended", {"usage": b"u"})
        assert call_id not in [call.id for call in (await a.calls("acme")).calls]
        assert count("orphans_ended", a, b) == 1
        await wait_until(lambda: count("orphans_watched", a, b) == 0)
        lines = [line for line in logs if line["event"] == "orphan_ended"]
        assert [(line["call"], line["why"], line["node"]) for line in lines] == [(call_id, "node_lost", "mortal")]


async def test_of_many_calls_of_a_dead_node_each_is_ended_once(bus):
    """More than go in one batch, under the eyes of three."""
    async with bus.nodes("a", "b", "c", **SHORT) as nodes:
        told, mortal = Told(*nodes), Mortal(nodes[0])
        calls = [await mortal.claim() for _ in range(80)]
        await wait_until(lambda: len(told.of) >= len(calls))
        assert sorted(told.ids) == sorted(calls)
        assert count("orphans_ended", *nodes) == len(calls)


async def test_calls_of_living_nodes_stay_however_late_their_owners_are(bus):
    """A heartbeat is enough; and a call of a node that does its work is never even looked at."""
    async with bus.nodes("a", "b", **SHORT) as (a, b):
        told, busy, dead = Told(a, b), Mortal(a, name="busy"), Mortal(a)
        session = await live(a)
        async with busy.living():
            late = await busy.claim()
            await told.wait(await dead.claim())
            assert await is_live(b, late)
            assert await is_live(b, session.id)
        assert len(told.of) == 1
        session.end()


async def test_a_node_that_comes_back_keeps_its_calls_and_its_time_begins_anew_when_it_goes_again(bus):
    """It was away for less than two lifetimes of its heartbeat."""
    async with bus.nodes("a", "b", **SHORT) as (a, b):
        told, mortal, dead = Told(a, b), Mortal(a), Mortal(a, name="dead")
        call_id = await mortal.claim()
        await wait_until(lambda: count("orphans_watched", a) == count("orphans_watched", b) == 1)
        async with mortal.living():
            await told.wait(await dead.claim())
            assert await is_live(a, call_id)
            gone_at = asyncio.get_running_loop().time()
        await told.wait(call_id)
        assert asyncio.get_running_loop().time() - gone_at >= NODE_SECONDS


async def test_a_node_that_was_started_again_under_its_name_is_another(bus):
    """It doesn't know the calls of the one before."""
    async with bus.nodes("a", **SHORT) as (a,):
        told, mortal = Told(a), Mortal(a)
        call_id = await mortal.claim()
        async with Mortal(a, boot="boot2").living():
            assert (await told.wait(call_id)).why == "node_lost"


async def test_a_call_that_a_client_brought_elsewhere_meanwhile_goes_on_there(bus):
    """Whoever watched it must see that it is another's now."""
    async with bus.nodes("a", "b", **SHORT) as (a, b):
        told, mortal, dead = Told(a, b), Mortal(a), Mortal(a, name="dead")
        call_id = await mortal.claim()
        await wait_until(lambda: count("orphans_watched", a, b) == 2)
        session = await taken(b, call_id)
        await told.wait(await dead.claim())
        assert told.ids != [call_id]
        assert len(told.of) == 1
        assert (await put(a, call_id, message("m1"))).status is Status.APPLIED
        session.end()


async def test_a_call_that_was_handed_over_and_not_taken_is_ended_for_its_client(bus):
    """Its node did what it could: the client had its time, and is who was missing. One that was taken goes on."""
    async with bus.nodes("a", "b", **SHORT) as (a, b):
        told, mortal = Told(a, b), Mortal(a)
        async with mortal.living():
            left, brought = await mortal.claim(), await mortal.claim()
            for call_id in (left, brought):
                await mortal.hand_over(call_id)
            handed_over_at = asyncio.get_running_loop().time()
            session = await taken(b, brought)
            tombstone = await told.wait(left)
            assert asyncio.get_running_loop().time() - handed_over_at >= SHORT["orphan_seconds"]
        assert (tombstone.why, tombstone.fault, tombstone.node) == ("client_lost", "client", "mortal")
        assert await is_live(a, brought)
        assert told.ids == [left]
        session.end()


async def test_an_owner_that_was_believed_dead_finds_its_call_ended(bus):
    """It yields: what it still does to its own model session does no harm."""
    async with bus.nodes("a", **SHORT) as (a,), bus.nodes("frozen") as (frozen,):
        told = Told(a)
        session = await live(frozen)
        scripts = Scripts(BusSettings(node="a", region="iad", regions={"iad": bus.url}, prefix="test", **QUICK))
        found = await a.call(session.id, "acme")
        tombstone = Tombstone(
            id=session.id,
            tenant="acme",
            node="frozen",
            region="iad",
            started_at=1.0,
            ended_at=2.0,
            why="w",
            fault="node",
        )
        keys, store = scripts.keys.call(session.id, "acme"), a._homes["iad"].store
        run = scripts.end(keys, found.epoch, session.call.protocol.claim, tombstone, owned_ms="0")
        assert await run_one(store, run) == [b"changed"]  # it has said since that the call is its
        await run_one(store, scripts.end(keys, found.epoch, session.call.protocol.claim, tombstone))
        async with asyncio.timeout(5):
            await session.call.wait_lost()
        assert session.call.tombstone == tombstone
        assert told.of == []


async def test_nodes_of_another_region_leave_a_home_to_its_own(bus):
    """They see less of it: a link that is cut is no node that is gone."""
    async with bus.nodes("far", region="lhr", regions={"iad": bus.url, "lhr": "redis://127.0.0.1:1"}):
        assert "reaper iad" not in {task.get_name() for task in asyncio.all_tasks()}
        assert "reaper lhr" in {task.get_name() for task in asyncio.all_tasks()}


class LosesAnswers:
    """A node's store that doesn't hear what became of the first calls that it would end, or that never sent it."""

    def __init__(self, store: Store, *, sends: bool, meanwhile: Callable[[], Awaitable[None]] | None = None) -> None:
        self.name = store.name
        self._meanwhile = meanwhile
        self.lost = 0
        self._store = store
        self._sends = sends

    async def run(self, runs: Sequence[Run]) -> list[Any]:
        if self.lost or not runs or runs[0].script != "end":
            return await self._store.run(runs)
        self.lost = len(runs)
        if self._sends:
            await self._store.run(runs)
        if self._meanwhile:
            await self._meanwhile()
        return [RegionUnreachable(self.name) for _ in runs]


@pytest.mark.parametrize("sends", [True, False], ids=["done", "not done"])
async def test_an_end_whose_answer_was_lost_is_told_once_all_the_same(bus, sends):
    """Whether it was written is asked, and not done again without looking."""
    async with bus.nodes("a", **SHORT) as (a,):
        told, mortal, reaper = Told(a), Mortal(a), a._homes["iad"].reaper
        reaper._store = losing = LosesAnswers(reaper._store, sends=sends)
        calls = [await mortal.claim(), await mortal.claim()]
        await wait_until(lambda: len(told.of) == len(calls))
        assert losing.lost
        assert sorted(told.ids) == sorted(calls)
        assert [(await a.call(call_id, "acme")) for call_id in told.ids] == told.of


async def test_a_node_that_came_back_while_an_end_of_its_call_was_on_its_way_keeps_it(bus):
    """A request that is repeated blindly would end a call that lives."""
    async with bus.nodes("a", **SHORT) as (a,):
        told, mortal, reaper = Told(a), Mortal(a), a._homes["iad"].reaper
        reaper._store = losing = LosesAnswers(reaper._store, sends=False, meanwhile=mortal.beat)
        call_id = await mortal.claim()
        await wait_until(lambda: losing.lost)
        async with mortal.living():
            await told.wait(await Mortal(a, name="dead").claim())
            assert await is_live(a, call_id)
        assert call_id not in told.ids


async def test_a_bug_in_who_is_told_keeps_no_orphan_from_being_ended(bus):
    """The tombstone is written by then; the next one must be, too."""
    async with bus.nodes("a", **SHORT) as (a,):
        told: list[str] = []

        def fail(tombstone: Tombstone) -> None:
            told.append(tombstone.id)
            raise RuntimeError("a bug")

        a.on_orphan = fail
        mortal = Mortal(a)
        calls = [await mortal.claim(), await mortal.claim()]
        await wait_until(lambda: sorted(told) == sorted(calls))


async def test_while_redis_is_frozen_no_time_is_counted(own_bus):
    """Heartbeats run out meanwhile, of nodes that live."""
    bus = own_bus
    async with bus.nodes("a", "b", **SHORT) as (a, b):
        told, mortal = Told(a, b), Mortal(a)
        call_id = await mortal.claim()
        await wait_until(lambda: count("orphans_watched", a, b) == 2)
        bus.server.freeze()
        await asyncio.sleep(2 * NODE_SECONDS)
        bus.server.thaw()
        thawed_at = asyncio.get_running_loop().time()
        await told.wait(call_id)
        assert asyncio.get_running_loop().time() - thawed_at >= NODE_SECONDS - QUICK["heartbeat_seconds"]
        assert told.ids == [call_id]


async def test_on_a_new_redis_no_time_is_counted_before_it_has_settled(own_bus):
    """An owner has to restore its calls first, and its heartbeat with them."""
    bus = own_bus
    async with bus.nodes("a", "b", **SHORT) as (a, b):
        told, mortal = Told(a, b), Mortal(a)
        call_id = await mortal.claim()
        await wait_until(lambda: count("orphans_watched", a, b) == 2)
        bus.server.restart()
        new_at = asyncio.get_running_loop().time()
        await eventually(lambda: count("new_servers", a, b) == 2)
        await mortal.claim(call_id, "restore")
        await told.wait(call_id)
        settling = QUICK["node_ttl_seconds"] + QUICK["margin_seconds"] + QUICK["rewrite_seconds"]
        assert asyncio.get_running_loop().time() - new_at >= settling + NODE_SECONDS
        assert told.ids == [call_id]
