"""A call that goes from one node to another, on every kind of bus: found, taken over, handed over, and who yields."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress

import msgspec
import pytest

from fanout import (
    CallEnded,
    CallNotFound,
    CallRecord,
    CallStateUnknown,
    CallTaken,
    Fanout,
    Message,
    RegionUnreachable,
    Reservation,
    Status,
    Tombstone,
    new_call_id,
)
from fanout.core.phases import Expected, Phase
from fanout.directory import Directory
from fanout.owner import Owner
from tests.support.bus import RedisBus, Session, eventually, live, message, put, taken
from tests.support.kinds import settled
from tests.support.redis_server import RedisServer


@pytest.fixture(params=["redis", "valkey"])
def alone(request: pytest.FixtureRequest) -> Iterator[RedisBus]:
    """A bus of one test, which breaks it."""
    with settled(request.param) as bus:
        yield bus


def server(bus: RedisBus) -> RedisServer:
    """What is broken."""
    assert isinstance(bus.server, RedisServer)
    return bus.server


def counts(node: Fanout) -> dict[str, int]:
    found: dict[str, int] = node.status()["regions"]["iad"]
    return found


async def handed_over(session: Session) -> None:
    session.call.hand_over()
    async with asyncio.timeout(5):
        await session.call.wait_handed_over()


async def logged(session: Session) -> None:
    async with asyncio.timeout(5):
        await session.call.wait_logged()


def memory(*entries: str) -> list[bytes]:
    return [entry.encode() for entry in entries]


# -- finding


async def test_one_question_says_what_an_id_stands_for(bus):
    """A client that comes with an id may be the first, come back, or be too late."""
    async with bus.nodes("a", "b") as (a, b):
        call_id = new_call_id("iad")
        assert await b.find(call_id, "acme") is None
        assert await b.find("rtc_mars_1", "acme") is None
        await a.reserve(call_id, "acme", seconds=10, session=b"s")
        assert await b.find(call_id, "acme") == Reservation(call_id=call_id, session=b"s")
        session = await live(a, call_id=call_id)
        found = await b.find(call_id, "acme")
        assert isinstance(found, CallRecord)
        assert (found.node, found.epoch, found.state) == ("a", session.call.epoch, "live")
        assert await b.find(call_id, "evil") is None
        session.end("model_gone")
        async with asyncio.timeout(5):
            await session.call.wait_ended()
        ended = await b.find(call_id, "acme")
        assert isinstance(ended, Tombstone)
        assert ended.why == "model_gone"


# -- taking over


async def test_a_call_is_taken_with_all_that_is_known_of_it(bus):
    """The new owner builds the conversation from it; what is open comes after, once the call is in its hands."""
    async with bus.nodes("a", "b") as (a, b):
        old = await live(a)
        await put(a, old.id, message("m1"))
        old.applies = False
        await put(a, old.id, message("m2"), wait=Status.DELIVERED)
        old.call.note("session", b"s")
        old.call.note("item.00000001", b"\xff\x00")
        await logged(old)
        new = await taken(b, old.id)
        assert new.call.is_registered
        assert new.call.memory == memory("m1")
        assert new.call.known == {"session": b"s", "item.00000001": b"\xff\x00"}
        assert new.ids == []
        await eventually(lambda: new.ids == ["m2"])
        assert (await put(a, old.id, message("m2"))).node == "b"
        new.call.note("item.00000001", None)
        await logged(new)
        assert (await a.facts(old.id, "acme")).values == {"session": b"s"}


async def test_the_old_owner_yields_at_once(bus):
    """The take-over rings its bell; its next look of its own would be in a minute."""
    async with bus.nodes("a", "b", sweep_seconds=60.0) as (a, b):
        old = await live(a)
        new = await taken(b, old.id)
        async with asyncio.timeout(0.5):
            await old.call.wait_lost()
        assert new.call.protocol.is_held
        assert counts(b)["gaps"] == 0


async def test_a_bell_alone_makes_nobody_yield(bus):
    """Anybody may ring it who may put messages in."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a)
        session.call.on_look()
        await eventually(lambda: session.call.protocol.due(asyncio.get_running_loop().time()) is None)
        assert (await put(b, session.id, message("m1"))).node == "a"


@pytest.mark.parametrize(
    ("state", "error"), [("absent", CallNotFound), ("reserved", CallNotFound), ("ended", CallEnded)]
)
async def test_what_is_no_live_call_cannot_be_taken(bus, state, error):
    """Its client is told which."""
    async with bus.nodes("a", "b") as (a, b):
        call_id = new_call_id("iad")
        if state == "reserved":
            await a.reserve(call_id, "acme", seconds=10)
        if state == "ended":
            session = await live(a, call_id=call_id)
            session.end()
            async with asyncio.timeout(5):
                await session.call.wait_ended()
        with pytest.raises(error):
            await taken(b, call_id)
        assert counts(b)["owned"] == 0


async def test_another_claim_that_comes_between_is_claimed_over(bus, monkeypatch):
    """The client is here, whoever else has tried; but not for ever, since another may think the same."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a)
        asked = Directory.claim
        late = 2

        async def claim_late(directory: Directory, call_id: str, tenant: str) -> Expected:
            nonlocal late
            found = await asked(directory, call_id, tenant)
            late -= 1
            return found if late < 0 else found._replace(claim="before it")

        monkeypatch.setattr(Directory, "claim", claim_late)
        new = await taken(b, session.id)
        assert new.call.protocol.is_held
        async with asyncio.timeout(5):
            await session.call.wait_lost()
        late = 100
        with pytest.raises(CallTaken):
            await taken(a, session.id)
        assert late == 97
        assert new.call.protocol.is_held


async def test_two_nodes_that_take_a_call_at_once_have_one_owner(bus):
    """The higher claim; the other yields."""
    async with bus.nodes("a", "b", "c") as (a, b, c):
        session = await live(a)
        async with asyncio.TaskGroup() as group:
            tries = [group.create_task(_tried(node, session.id)) for node in (b, c)]
        async with asyncio.timeout(5):
            await session.call.wait_lost()
        takers = [task.result() for task in tries if task.result() is not None]
        assert takers
        await eventually(lambda: [taker.call.protocol.phase for taker in takers].count(Phase.HELD) == 1)


async def _tried(node: Fanout, call_id: str) -> Session | None:
    with suppress(CallTaken):
        return await taken(node, call_id)
    return None


@pytest.mark.parametrize("is_carried_out", [True, False])
async def test_a_take_that_is_given_up_is_undone(alone, monkeypatch, is_carried_out):
    """Its client has gone elsewhere; a claim of this node that happens later must not keep the call from it."""
    async with alone.nodes("a", "b", "c") as (a, b, c):
        old = await live(a)
        old.call.note("session", b"s")
        await logged(old)
        asked = Directory.claim

        async def claim_and_freeze(directory: Directory, call_id: str, tenant: str) -> Expected:
            found = await asked(directory, call_id, tenant)
            server(alone).freeze()
            return found if is_carried_out else found._replace(claim="before it")

        with monkeypatch.context() as patch:
            patch.setattr(Directory, "claim", claim_and_freeze)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await b.take(msgspec.structs.replace(old.record, node="b"), lambda _: None)
            assert counts(b)["owned"] == 1
        server(alone).thaw()
        await eventually(lambda: counts(b)["owned"] == 0)
        found = await c.find(old.id, "acme")
        assert isinstance(found, CallRecord)
        assert found.state == ("moving" if is_carried_out else "live")
        new = await taken(c, old.id)
        assert new.call.known == {"session": b"s"}
        assert (await put(a, old.id, message("m1"))).node == "c"


async def test_a_node_whose_take_was_given_up_can_take_the_call_again(alone):
    """The client lost its patience, and is back."""
    async with alone.nodes("a", "b") as (a, b):
        old = await live(a)
        found = await b._homes["iad"].directory.claim(old.id, "acme")
        server(alone).freeze()
        first = b._homes["iad"].owner.own(old.record, lambda _: None, found)
        await eventually(lambda: first.protocol.phase is Phase.RELEASING)
        first.hand_over()
        server(alone).thaw()
        new = await taken(b, old.id)
        assert new.call.protocol.is_held
        assert (await put(a, old.id, message("m1"))).node == "b"


# -- handing over


async def test_a_call_is_handed_over_with_all_that_was_said_and_noted(bus):
    """The node is about to stop; its client comes back to another one."""
    async with bus.nodes("a", "b", sweep_seconds=60.0, facts_seconds=60.0) as (a, b):
        old = await live(a, applies=False)
        for number in range(3):
            await put(b, old.id, message(f"m{number}"), wait=Status.DELIVERED)
        old.call.note("usage", b"u")
        await logged(old)
        old.call.settle("m0", Status.APPLIED, memory=b"m0")
        old.call.note("session", b"s")
        await handed_over(old)
        assert old.call.is_lost
        assert (counts(a)["owned"], counts(a)["handed_over"], counts(a)["lost"]) == (0, 1, 0)
        found = await b.find(old.id, "acme")
        assert isinstance(found, CallRecord)
        assert found.state == "moving"
        assert [call.state for call in (await b.calls("acme")).calls] == ["moving"]
        assert (await put(b, old.id, message("m3"), wait=Status.ACCEPTED)).status is Status.ACCEPTED
        old.end("too late")
        new = await taken(b, old.id)
        assert (new.call.memory, new.call.known) == (memory("m0"), {"usage": b"u", "session": b"s"})
        await eventually(lambda: new.ids == ["m1", "m2", "m3"])
        assert [call.state for call in (await a.calls("acme")).calls] == ["live"]
        assert old.ids == ["m0", "m1", "m2"]


async def test_a_node_that_stops_waits_until_its_calls_are_handed_over(alone):
    """Within its last seconds; no longer than for what else there is to write."""
    async with alone.nodes("b") as (b,):
        async with alone.nodes("a", close_seconds=5.0) as (a,):
            session = await live(a)
            session.call.note("session", b"s")
            server(alone).freeze()
            session.call.hand_over()
            asyncio.get_running_loop().call_later(0.8, server(alone).thaw)  # longer than one answer may take
        found = await b.find(session.id, "acme")
        assert isinstance(found, CallRecord)
        assert found.state == "moving"
        assert (await taken(b, session.id)).call.known == {"session": b"s"}


async def test_a_call_that_is_handed_over_can_come_back_to_its_node(bus):
    """It may be the only one."""
    async with bus.nodes("a") as (a,):
        old = await live(a)
        old.call.hand_over()
        new = await taken(a, old.id)
        assert new.call.epoch > old.call.epoch
        assert (await put(a, old.id, message("m1"))).status is Status.APPLIED
        new.end()
        async with asyncio.timeout(5):
            await new.call.wait_ended()


async def test_a_call_that_is_not_yet_registered_is_handed_over_once_it_is(alone):
    """Until then nobody could find it."""
    async with alone.nodes("a", "b") as (a, b):
        server(alone).kill()
        session = Session(a)
        session.call.note("session", b"s")
        session.call.hand_over()
        server(alone).start()
        async with asyncio.timeout(10):
            await session.call.wait_handed_over()
        with pytest.raises(CallTaken):
            await session.call.wait_registered()
        assert (await taken(b, session.id)).call.known == {"session": b"s"}


async def test_a_call_that_somebody_took_meanwhile_is_not_handed_over(bus):
    """It is theirs to hand over."""
    async with bus.nodes("a", "b", sweep_seconds=60.0) as (a, b):
        old = await live(a)
        new = await taken(b, old.id)
        await handed_over(old)
        assert counts(a)["handed_over"] == 0
        assert (await put(a, old.id, message("m1"))).node == "b"
        assert new.call.protocol.is_held


async def test_a_redis_that_loses_a_call_that_is_nobodys_gets_it_again(alone):
    """From its last owner, as long as that is there; and not once somebody has it."""
    async with alone.nodes("a", "b") as (a, b):
        old = await live(a)
        await put(b, old.id, message("m1"))
        old.call.note("session", b"s")
        await handed_over(old)
        server(alone).restart()
        found = None
        async with asyncio.timeout(10):
            while not isinstance(found, CallRecord) or old.call.protocol.phase is not Phase.HANDED_OVER:
                with suppress(CallStateUnknown, RegionUnreachable):
                    found = await b.find(old.id, "acme")
                await asyncio.sleep(0.01)
        assert found.state == "moving"
        assert old.call.is_lost
        new = await taken(b, old.id)
        assert (new.call.memory, new.call.known) == (memory("m1"), {"session": b"s"})
        server(alone).restart()
        await eventually(lambda: counts(b)["restored"] == 1)
        await eventually(lambda: old.call.protocol.phase is Phase.LOST)
        assert (await put(a, old.id, message("m2"), timeout=5.0)).node == "b"


# -- outages


@pytest.mark.parametrize("comes_back", ["frozen", "empty"])
async def test_every_fact_is_there_after_an_outage(alone, comes_back):
    """Longer than the circuit's patience: what a session noted meanwhile waits on its owner."""
    async with alone.nodes("a", "b", circuit_seconds=0.3) as (a, b):
        session = await live(a)
        known = {}

        def note(number: int) -> None:
            known[f"item.{number:08}"] = b"words" * number
            session.call.note(f"item.{number:08}", known[f"item.{number:08}"])

        note(1)
        await logged(session)
        if comes_back == "frozen":
            server(alone).freeze()
        else:
            server(alone).kill()
        for number in range(100):
            note(number)
            await asyncio.sleep(0.005)
        await eventually(lambda: counts(a)["circuit"] == "open")
        session.call.note("item.00000001", None)
        del known["item.00000001"]
        if comes_back == "frozen":
            server(alone).thaw()
        else:
            server(alone).start()
        found: dict[str, bytes] = {}
        async with asyncio.timeout(10):
            while found != known:
                with suppress(CallStateUnknown, RegionUnreachable):
                    found = (await b.facts(session.id, "acme")).values
                await asyncio.sleep(0.02)
        new = await taken(b, session.id)
        assert new.call.known == known


async def test_a_new_owner_writes_the_facts_again_that_redis_loses(alone):
    """It was given them; the one that noted them is gone."""
    async with alone.nodes("b") as (b,):
        async with alone.nodes("a") as (a,):
            old = await live(a)
            old.call.note("session", b"s")
            await logged(old)
        new = await taken(b, old.id)
        server(alone).restart()
        async with asyncio.timeout(10):
            known: dict[str, bytes] = {}
            while known != {"session": b"s"}:
                with suppress(CallStateUnknown, RegionUnreachable):
                    known = (await b.facts(old.id, "acme")).values
                await asyncio.sleep(0.01)
        assert new.call.protocol.is_held


async def test_nothing_is_delivered_to_who_has_not_got_the_call_in_hand(bus, monkeypatch):
    """A session settles what it gets, and has nothing to settle it with before."""
    subscribed = Owner.on_subscribed

    def on_subscribed_late(owner: Owner, channel: str) -> None:
        asyncio.get_running_loop().call_later(0.3, subscribed, owner, channel)

    async with bus.nodes("a", "b") as (a, b):
        old = await live(a, applies=False)
        await put(b, old.id, message("m1"), wait=Status.DELIVERED)
        got: list[tuple[Message, bool]] = []
        owned = None
        monkeypatch.setattr(Owner, "on_subscribed", on_subscribed_late)
        async with asyncio.timeout(5):
            owned = await b.take(old.record, lambda sent: got.append((sent, owned is not None)))
        await eventually(lambda: len(got) == 1)
        assert got[0][1]
