"""The Python publisher on a real Redis: the promises and receipts of a node, from a process that is none."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from fanout import (
    BusSettings,
    BusTimeout,
    CallEnded,
    CallNotFound,
    CallNotStarted,
    CallRecord,
    IdempotencyConflict,
    InvalidItem,
    Receipt,
    RegionUnreachable,
    Status,
    Tombstone,
    new_call_id,
)
from fanout.client import Publisher
from relay.demo import declare_settled
from tests.support.bus import RedisBus, eventually, live
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
        assert result.expires_at - item.expires_at == pytest.approx(58.5, abs=1.0)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"item": {"type": "message"}}, "item.role"),
        ({"item": {"type": "function_call"}}, "item.type"),
        ({"item": {**ITEM, "content": [{"type": "audio"}]}}, "item.content[0]"),
        ({"item": {**ITEM, "extra": object()}}, None),
        ({"item": {**ITEM, "extra": "\ud800"}}, None),
        ({"item": "hello"}, "item"),
        ({"response": "yes"}, "response"),
        ({"when": "turn_end"}, "when"),
        ({"visible": False}, "visible"),
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
