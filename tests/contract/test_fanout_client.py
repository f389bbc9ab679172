"""The Python client on a real Redis: a node's promises, receipts and events, in a process that is none."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from fanout import (
    BusSettings,
    BusTimeout,
    CallEnded,
    CallNotFound,
    CallNotStarted,
    CallRecord,
    Facts,
    IdempotencyConflict,
    InvalidItem,
    ReaderTooSlow,
    Receipt,
    RegionUnreachable,
    Status,
    Tombstone,
    new_call_id,
)
from fanout.client import Event, Publisher
from relay.demo import declare_settled
from tests.support.bus import RedisBus, Session, eventually, live
from tests.support.redis_server import RedisServer, find_binary

ITEM = {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "lunch is ready"}]}
RESULT = {"type": "function_call_output", "call_id": "call_1", "output": "{}"}


@pytest.fixture(scope="module")
def bus() -> Iterator[RedisBus]:
    bus = RedisBus(RedisServer(find_binary()).start())
    asyncio.run(declare_settled(bus.url, "test"))
    yield bus
    bus.stop()


def publisher(bus: RedisBus, tenant: str = "acme", **changes: Any) -> Publisher:
    return Publisher(**{"regions": {"iad": bus.url}, "tenant": tenant, "prefix": "test", **changes})


async def connected(bus: RedisBus, publisher: Publisher) -> None:
    """Until its subscriptions are there; only for tests that count what is left of them."""
    node = publisher._settings.node
    await eventually(lambda: any(channel.endswith(f":node:{node}") for channel in bus.channels()))


@pytest.mark.parametrize("wait", ["applied", Status.APPLIED], ids=["word", "status"])
async def test_an_item_is_applied_and_its_receipt_says_so(bus, wait):
    """The whole way, and the same receipt when asked later, by this publisher or another."""
    async with bus.nodes("a") as (a,), publisher(bus) as one, publisher(bus) as two:
        session = await live(a)
        receipt = await one.put(session.id, ITEM, wait=wait)
        assert (receipt.status, receipt.call_id, receipt.node) == (Status.APPLIED, session.id, "a")
        assert list(receipt.reached) == ["accepted", "delivered", "applied"]
        assert await two.receipt(session.id, receipt.id) == receipt
        assert await two.receipt(session.id, "another") is None
        [got] = session.got
        assert (got.id, got.item_id, got.response) == (receipt.id, receipt.item_id, False)


async def test_each_step_can_be_waited_for(bus):
    """And a timeout is no error: the receipt so far comes back, and the message goes on."""
    async with bus.nodes("a") as (a,), publisher(bus) as one:
        session = await live(a, applies=False)
        accepted = await one.put(session.id, ITEM, id="m1")
        assert accepted.reached["accepted"] > 0
        assert (await one.put(session.id, ITEM, id="m1", wait="delivered")).status is Status.DELIVERED
        late = await one.put(session.id, ITEM, id="m1", wait="applied", timeout=0.05)
        assert late.status is Status.DELIVERED
        session.call.settle("m1", Status.APPLIED)
        assert (await one.put(session.id, ITEM, id="m1", wait="answered")).status is Status.APPLIED  # its end


async def test_defaults_are_those_of_the_http_surface(bus):
    """A tool result asks for a response, a message doesn't, and both have a minute."""
    async with bus.nodes("a") as (a,), publisher(bus) as one:
        session = await live(a, applies=False)
        await one.put(session.id, RESULT, wait="delivered")
        await one.put(session.id, ITEM, wait="delivered", response={"instructions": "Be brief."}, expires_in=1.5)
        result, item = session.got
        assert result.response is True
        assert item.response == b'{"instructions":"Be brief."}'
        assert (result.when, item.when, result.visible) == ("turn_end", "turn_end", True)
        await one.put(session.id, ITEM, wait="delivered", visible=False)
        await one.put(session.id, ITEM, wait="delivered", when="interrupt")
        assert [(each.when, each.visible) for each in session.got[2:]] == [("now", False), ("interrupt", True)]
        assert result.expires_at - item.expires_at == pytest.approx(58.5, abs=1.0)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"item": {"type": "message"}}, "item.role"),
        ({"item": {"type": "function_call"}}, "item.type"),
        ({"item": {**ITEM, "content": [{"type": "audio"}]}}, "item.content[0].type"),
        ({"item": {**ITEM, "extra": object()}}, None),
        ({"item": {**ITEM, "extra": "\ud800"}}, None),
        ({"item": "hello"}, "item"),
        ({"response": "yes"}, "response"),
        ({"when": "later"}, "when"),
        ({"visible": "no"}, "visible"),
        ({"expires_in": 0.0}, "expires_in"),
        ({"expires_in": 3601.0}, "expires_in"),
        ({"id": "a b"}, "id"),
    ],
)
async def test_a_wrong_field_is_named_and_nothing_is_sent(bus, changes, param):
    """By the name that it has here."""
    async with publisher(bus) as one:
        with pytest.raises(InvalidItem) as refused:
            await one.put(new_call_id("iad"), **{"item": ITEM, **changes})
        assert refused.value.param == param


@pytest.mark.parametrize("wait", ["failed", "soon", Status.EXPIRED])
async def test_what_cannot_be_waited_for_is_refused(bus, wait):
    """An end answers every wait."""
    async with publisher(bus) as one:
        with pytest.raises(ValueError, match="wait|soon"):
            await one.put(new_call_id("iad"), ITEM, wait=wait)


@pytest.mark.parametrize("call_id", ["rtc_iad_nobody", "rtc_mars_nobody", "nonsense"])
async def test_a_call_that_is_not_there_is_not_found(bus, call_id):
    """Whether its home is known or not."""
    async with publisher(bus) as one:
        with pytest.raises(CallNotFound):
            await one.put(call_id, ITEM)
        with pytest.raises(CallNotFound):
            await one.receipt(call_id, "m1")
        assert await one.call(call_id) is None


async def test_another_tenants_call_looks_like_none(bus):
    """The tenant is the publisher's, not the caller's choice per message."""
    async with bus.nodes("a") as (a,), publisher(bus, tenant="evil") as evil:
        session = await live(a)
        with pytest.raises(CallNotFound):
            await evil.put(session.id, ITEM)
        assert await evil.call(session.id) is None
        assert session.got == []


async def test_a_call_is_seen_reserved_live_and_ended(bus):
    """What may be put in depends on it."""
    async with bus.nodes("a") as (a,), publisher(bus) as one:
        call_id = new_call_id("iad")
        await a.reserve(call_id, "acme", seconds=60)
        with pytest.raises(CallNotStarted):
            await one.put(call_id, ITEM)
        session = await live(a, call_id=call_id)
        found = await one.call(call_id)
        assert isinstance(found, CallRecord)
        assert found.node == "a"
        session.end("client_left")
        await session.call.wait_ended()
        with pytest.raises(CallEnded) as refused:
            await one.put(call_id, ITEM)
        assert await one.call(call_id) == refused.value.tombstone
        assert isinstance(refused.value.tombstone, Tombstone)


async def test_two_publishers_with_one_id_make_one_message(bus):
    """A backend that was restarted repeats what it doesn't know the end of."""
    async with bus.nodes("a") as (a,), publisher(bus) as one, publisher(bus) as two:
        session = await live(a)
        async with asyncio.TaskGroup() as group:
            puts = [group.create_task(each.put(session.id, ITEM, id="m1", wait="applied")) for each in (one, two, one)]
        receipts: list[Receipt] = [task.result() for task in puts]
        assert receipts == [receipts[0]] * 3
        assert session.ids == ["m1"]
        with pytest.raises(IdempotencyConflict):
            await two.put(session.id, RESULT, id="m1")


async def test_messages_arrive_in_the_order_of_their_puts(bus):
    """Though nobody waits for the one before."""
    async with bus.nodes("a") as (a,), publisher(bus) as one:
        session = await live(a)
        async with asyncio.TaskGroup() as group:
            for number in range(30):
                group.create_task(one.put(session.id, ITEM, id=f"m{number}", wait="applied"))
        assert session.ids == [f"m{number}" for number in range(30)]


async def test_a_redis_that_is_away_is_said_and_a_message_in_the_way_too(bus):
    """The first is unknown, the second certain not to have been written."""
    regions = {"iad": bus.url, "lhr": "redis://127.0.0.1:1"}
    async with publisher(bus, regions=regions) as one:
        with pytest.raises(RegionUnreachable):
            await one.put(new_call_id("lhr"), ITEM, timeout=0.3)
        async with bus.nodes("a") as (a,):
            session = await live(a)
            await connected(bus, one)
        await one.put(session.id, ITEM)  # its owner is gone: nobody takes it
        with pytest.raises(BusTimeout):
            await one.put(session.id, ITEM, timeout=0.1)


async def test_an_event_reaches_the_owner_as_the_client_could_have_sent_it(bus):
    """Only a response.create can be answered."""
    async with bus.nodes("a") as (a,), publisher(bus) as one:
        session = await live(a, applies=False)
        update = {"type": "session.update", "event_id": "e1", "session": {"type": "realtime"}}
        receipt = await one.send_event(session.id, update, wait="delivered", id="m1")
        await one.send_event(session.id, {"type": "response.create"}, wait="delivered", expires_in=2.0)
        first, second = session.got
        assert (first.kind, first.id, receipt.id, first.response) == ("event", "m1", "m1", False)
        assert msgspec.json.decode(first.item) == update
        assert (second.kind, second.response, second.item) == ("event", True, b'{"type":"response.create"}')
        assert first.expires_at - second.expires_at == pytest.approx(58.0, abs=1.0)


@pytest.mark.parametrize(
    ("event", "changes", "param"),
    [
        ("hello", {}, "event"),
        ({}, {}, "type"),
        ({"type": 1}, {}, "type"),
        ({"type": "input_audio_buffer.append", "audio": "AAAA"}, {}, "type"),
        ({"type": "response.cancel", "extra": object()}, {}, None),
        ({"type": "response.cancel"}, {"expires_in": 3601.0}, "expires_in"),
        ({"type": "response.cancel"}, {"id": "a b"}, "id"),
    ],
)
async def test_an_event_with_a_wrong_field_is_not_sent(bus, event, changes, param):
    """The field is named as it is here."""
    async with publisher(bus) as one:
        with pytest.raises(InvalidItem) as refused:
            await one.send_event(new_call_id("iad"), event, **changes)
        assert refused.value.param == param


async def test_a_call_is_hung_up(bus):
    """Its owner is told; the receipt says that it did it."""
    async with bus.nodes("a") as (a,), publisher(bus) as one:
        session = await live(a)
        assert (await one.hangup(session.id)).status is Status.APPLIED
        [got] = session.got
        assert (got.kind, got.item) == ("hangup", b"{}")
        with pytest.raises(CallNotFound):
            await one.hangup(new_call_id("iad"))


async def test_calls_are_listed_in_pages_and_by_what_they_are(bus):
    """Newest first, only the publisher's own."""
    bus.clean()  # of the calls that other tests left
    async with bus.nodes("a", "b") as (a, b), publisher(bus) as one, publisher(bus, tenant="evil") as evil:
        sessions = [await live(node, started_at=start) for start, node in enumerate((a, b, a), start=1)]
        newest_first = [session.id for session in reversed(sessions)]
        page = await one.calls(2)
        assert ([call.id for call in page.calls], page.has_more) == (newest_first[:2], True)
        rest = await one.calls(2, page.last_id)
        assert ([call.id for call in rest.calls], rest.has_more) == (newest_first[2:], False)
        assert [call.id for call in (await one.calls(node="b")).calls] == [sessions[1].id]
        assert (await one.calls(agent="another")).calls == []
        assert len((await one.calls(region="iad", state="live")).calls) == 3
        assert (await evil.calls()).calls == []


async def test_facts_and_the_transcript_are_those_of_the_call_also_after_its_end(bus):
    """Items in the order of their numbers."""
    async with bus.nodes("a") as (a,), publisher(bus) as one:
        session = await live(a)
        for number in (2, 10, 1):
            session.call.note(f"item.{number:08}", b'{"id":"item_%d"}' % number)
        session.call.note("usage", b"{}")
        await session.call.wait_logged()
        assert await one.transcript(session.id) == [{"id": "item_1"}, {"id": "item_2"}, {"id": "item_10"}]
        session.end()
        await session.call.wait_ended()
        facts = await one.facts(session.id)
        assert isinstance(facts, Facts)
        assert (facts.state, facts.values["usage"]) == ("ended", b"{}")
        assert len(await one.transcript(session.id)) == 3
        for reading in (one.facts, one.transcript):
            with pytest.raises(CallNotFound):
                await reading(new_call_id("iad"))


async def collect(events: AsyncIterator[Event], into: list[Event]) -> None:
    async for event in events:
        into.append(event)  # noqa: PERF401 - one by one, so that those before an error are there


async def follow(session: Session, *bodies: bytes) -> None:
    """Say something once somebody watches, and end."""
    await eventually(lambda: session.call.is_watched)
    for body in bodies:
        session.call.log(body)
    await session.call.wait_logged()
    session.end("client_left")


async def test_a_call_is_read_from_its_session_to_its_end(bus):
    """Each event with its position, decoded when asked."""
    async with bus.nodes("a") as (a,), publisher(bus) as one:
        session = await live(a)
        session.call.note("session", b'{"voice":"ash"}')
        await session.call.wait_logged()
        got: list[Event] = []
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            group.create_task(collect(one.events(session.id), got))
            await follow(session, b'{"type":"response.created"}', b'{"type":"response.done"}')
        assert [event.kind for event in got] == ["session", "session", "event", "event", "ended"]
        assert [event.data.get("type") for event in got[2:4]] == ["response.created", "response.done"]
        assert (got[0].data, got[0].position) == ({"voice": "ash"}, "")
        assert (got[-1].data["why"], got[-1].data["state"]) == ("client_left", "ended")
        again = [event async for event in one.events(session.id, after=got[2].position)]
        assert [event.data.get("type") for event in again] == ["response.done", None]
        with pytest.raises(CallEnded):
            await anext(one.events(session.id))


async def test_a_gap_is_an_event_without_data(bus):
    """It says that something is missing here."""
    async with bus.nodes("a") as (a,), publisher(bus) as one:
        session = await live(a)
        got: list[Event] = []
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            group.create_task(collect(one.events(session.id, after="nonsense"), got))
            await follow(session, b"{}")
        assert [(event.kind, event.data) for event in got[:2]] == [("gap", {}), ("event", {})]


async def test_audio_is_among_the_events_if_asked_for(bus):
    """In its place between them."""
    async with bus.nodes("a") as (a,), publisher(bus) as one:
        session = await live(a)
        got: list[Event] = []
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            group.create_task(collect(one.events(session.id, audio=True), got))
            await eventually(lambda: session.call.is_heard)
            session.call.sound(b'{"delta":"AAAA"}')
            await follow(session, b"{}")
        assert [event.kind for event in got] == ["audio", "event", "ended"]
        assert got[0].data == {"delta": "AAAA"}


@pytest.mark.parametrize(("count", "body"), [(1001, b"{}"), (5, b'"' + b"x" * 900_000 + b'"')], ids=["items", "bytes"])
async def test_a_reader_that_is_too_slow_is_told_so_and_where_to_go_on(bus, count, body):
    """What waits for it is given to it first."""
    changes = {"log_max": 3000, "log_max_bytes": 16_000_000}
    async with bus.nodes("a", **changes) as (a,), publisher(bus) as one:
        session = await live(a)
        async with aclosing(one.events(session.id)) as events:
            async with asyncio.TaskGroup() as group:
                first = group.create_task(anext(events))
                await eventually(lambda: session.call.is_watched)
                session.call.log(b"{}")
            await say_in_parts(session, count, body)
            await eventually(lambda: entries_of(one) >= count + 1)
            got = [first.result()]
            with pytest.raises(ReaderTooSlow) as slow:
                await collect(events, got)
        assert 1 < len(got) < count + 1
        assert (slow.value.call_id, slow.value.position) == (session.id, got[-1].position)
        rest: list[Event] = []
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            group.create_task(collect(one.events(session.id, after=slow.value.position), rest))
            await eventually(lambda: len(rest) + len(got) == count + 1)
            session.end()
        assert [event.kind for event in rest] == ["event"] * (count + 1 - len(got)) + ["ended"]


async def say_in_parts(session: Session, count: int, body: bytes) -> None:
    """As much as the owner takes at a time."""
    for number in range(count):
        session.call.log(body)
        if number % 100 == 0 or len(body) > 100_000:
            await session.call.wait_logged()
    await session.call.wait_logged()


def entries_of(publisher: Publisher) -> int:
    count: int = publisher._running().status()["regions"]["iad"]["watch_entries"]
    return count


async def test_a_reader_that_leaves_takes_its_subscription_with_it(bus):
    """The call is not changed by it."""
    async with bus.nodes("a") as (a,), publisher(bus) as one:
        session = await live(a)
        await connected(bus, one)
        before = set(bus.channels())
        async with aclosing(one.events(session.id)) as events, asyncio.TaskGroup() as group:
            first = group.create_task(anext(events))
            await eventually(lambda: session.call.is_watched)
            session.call.log(b"{}")
            await first
        await eventually(lambda: set(bus.channels()) == before)


@pytest.mark.parametrize(
    "ask",
    [
        lambda one, call_id: one.send_event(call_id, {"type": "response.cancel"}),
        lambda one, call_id: one.hangup(call_id),
        lambda one, call_id: one.facts(call_id),
        lambda one, call_id: one.transcript(call_id),
        lambda one, call_id: anext(one.events(call_id)),
    ],
    ids=["send_event", "hangup", "facts", "transcript", "events"],
)
async def test_nothing_of_another_tenants_call_is_seen_or_done(bus, ask: Callable[[Publisher, str], Any]):
    """It looks as if it were not there."""
    async with bus.nodes("a") as (a,), publisher(bus, tenant="evil") as evil:
        session = await live(a)
        with pytest.raises(CallNotFound):
            await ask(evil, session.id)
        assert session.got == []


async def test_leaving_the_block_leaves_nothing(bus):
    """No task and no subscription; also while a message has no end."""
    tasks, channels = asyncio.all_tasks(), set(bus.channels())
    async with bus.nodes("a") as (a,):
        session = await live(a, applies=False)
        before = set(bus.channels())
        async with publisher(bus) as one:
            await connected(bus, one)
            await one.put(session.id, ITEM, wait="delivered")
            assert set(bus.channels()) > before
        await eventually(lambda: set(bus.channels()) == before)
        with pytest.raises(RuntimeError, match="within its block"):
            await one.put(session.id, ITEM)
    assert asyncio.all_tasks() <= tasks
    assert set(bus.channels()) == channels


async def test_an_error_within_the_block_comes_out_as_it_is(bus):
    """Not wrapped in a group."""
    with pytest.raises(ZeroDivisionError):
        async with publisher(bus):
            raise ZeroDivisionError


async def test_the_environment_is_the_nodes_own(bus):
    """A backend is configured as the fleet is."""
    env = {"RELAY_REGIONS": f"iad={bus.url}", "RELAY_PREFIX": "test", "RELAY_TENANT": "acme", "RELAY_NODE": "billing"}
    async with bus.nodes("a") as (a,), Publisher.from_env(env) as one, Publisher.from_env(env) as two:
        session = await live(a, applies=False)
        receipt = await one.put(session.id, ITEM)
        assert receipt.node.startswith(f"publisher-billing-{os.getpid()}-") or receipt.node == "a"
        assert one._settings.node != two._settings.node  # two that shared one would hear each other's receipts


def test_without_a_tenant_it_is_that_of_a_development_token():
    """`relay token` signs for it."""
    found = Publisher.from_env({"RELAY_REGIONS": "iad=redis://a"})
    assert (found._tenant, found._settings.prefix) == ("dev", BusSettings.prefix)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("RELAY_REGIONS", ""),
        ("RELAY_REGIONS", "iad"),
        ("RELAY_REGIONS", "iad=http://:hunter2@host"),
        ("RELAY_BUS_NODE_TTL_SECONDS", "soon"),
    ],
)
def test_a_bad_environment_names_its_variable_and_shows_no_password(variable, value):
    """It ends up in a log."""
    with pytest.raises(ValueError, match=f"^{variable}: ") as refused:
        Publisher.from_env({"RELAY_REGIONS": "iad=redis://a", variable: value})
    assert "hunter2" not in str(refused.value)


def test_it_needs_no_web_server():
    """A backend has its own; what it installs for this is redis and three small packages."""
    absent = "aiohttp", "picows", "aiofastnet", "uvloop", "jwt", "prometheus_client", "cryptography"
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import fanout.client"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
