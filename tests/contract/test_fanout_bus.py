"""What every bus must do, whatever it is made of: messages put on one node reach the call's owner on another.

The `bus` fixture's parameters are the implementations; what a real Redis does besides is in test_fanout_outages.py.
"""

import asyncio
import time

import msgspec
import pytest

from fanout import (
    BusFull,
    BusTimeout,
    CallEnded,
    CallNotFound,
    CallNotStarted,
    CallRecord,
    CallTaken,
    IdempotencyConflict,
    InboxFull,
    Message,
    MessageTooLarge,
    RegionUnreachable,
    Status,
    home_of,
    item_id_for,
    new_call_id,
)
from tests.support.bus import Session, eventually, live, message, put, taken


async def test_a_message_put_on_one_node_reaches_the_owner_on_another(bus):
    """The whole way: accepted, delivered, applied, each with its time, and the same receipt when asked later."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a)
        sent = message("m1", traceparent="00-1-2-01", visible=False, when="turn_end", response=b'{"a":1}')
        receipt = await put(b, session.id, sent)
        assert (receipt.status, receipt.node, receipt.item_id) == (Status.APPLIED, "a", item_id_for(session.id, "m1"))
        assert list(receipt.reached) == ["accepted", "delivered", "applied"]
        assert await b.receipt(session.id, "acme", "m1") == receipt
        assert await b.receipt(session.id, "acme", "m2") is None
        [got] = session.got
        assert got == msgspec.structs.replace(sent, item_id=receipt.item_id)


async def test_a_node_says_how_late_it_hears_what_is_published(bus):
    """Its heartbeat goes the way that bells and receipts go."""
    async with bus.nodes("a") as (a,):
        home = a.status()["regions"]["iad"]
        await eventually(lambda: 0 < a.status()["regions"]["iad"]["lag_seconds"] < 5)
        assert 0 <= home["heartbeat_age_seconds"] < 5


async def test_a_node_publishes_to_its_own_calls_as_to_others(bus):
    """A backend meets any node, the owner included."""
    async with bus.nodes("a") as (a,):
        session = await live(a)
        assert (await put(a, session.id, message("m1"))).status is Status.APPLIED


async def test_messages_of_one_publisher_arrive_in_the_order_they_were_put(bus):
    """Even if they are put without waiting for each other."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a)
        async with asyncio.TaskGroup() as group:
            for number in range(50):
                group.create_task(put(b, session.id, message(f"m{number}")))
        assert session.ids == [f"m{number}" for number in range(50)]


async def test_the_same_id_twice_is_one_message_with_one_receipt(bus):
    """Through any node; a repeat later finds the receipt."""
    async with bus.nodes("a", "b", "c") as (a, b, c):
        session = await live(a)
        async with asyncio.TaskGroup() as group:
            puts = [group.create_task(put(node, session.id, message("m1"))) for node in (b, c, b, a)]
        assert session.ids == ["m1"]
        receipts = [task.result() for task in puts]
        assert receipts == [await put(c, session.id, message("m1"))] * 4


async def test_an_id_with_another_body_is_a_conflict(bus):
    """Silently dropping the second would lose a message."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a)
        await put(b, session.id, message("m1"))
        with pytest.raises(IdempotencyConflict):
            await put(b, session.id, message("m1", item=b'{"type":"other"}'))


async def test_another_tenants_call_looks_like_none(bus):
    """Nothing may be learnt from the difference."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a)
        await put(b, session.id, message("m1"))
        with pytest.raises(CallNotFound):
            await put(b, session.id, message("m1"), tenant="evil")
        with pytest.raises(CallNotFound):
            await b.receipt(session.id, "evil", "m1")
        assert await b.call(session.id, "evil") is None
        assert (await b.calls("evil")).calls == []
        assert session.ids == ["m1"]


@pytest.mark.parametrize("call_id", ["rtc_iad_nobody", "rtc_mars_nobody", "nonsense"])
async def test_a_call_that_never_was_is_not_found(bus, call_id):
    """Whether it could exist or not."""
    async with bus.nodes("b") as (b,):
        with pytest.raises(CallNotFound):
            await put(b, call_id, message("m1"))
        with pytest.raises(CallNotFound):
            await b.receipt(call_id, "acme", "m1")
        assert await b.call(call_id, "acme") is None


async def test_a_reserved_call_has_not_started_until_its_owner_claims_it(bus):
    """A backend knows the id before the browser connects."""
    async with bus.nodes("a", "b") as (a, b):
        call_id = new_call_id("iad")
        await b.reserve(call_id, "acme", seconds=60)
        with pytest.raises(CallTaken):
            await b.reserve(call_id, "evil", seconds=60)
        with pytest.raises(CallNotStarted):
            await put(b, call_id, message("m1"))
        session = await live(a, call_id=call_id)
        assert (await put(b, session.id, message("m1"))).status is Status.APPLIED


async def test_an_ended_call_says_why_and_keeps_its_receipts(bus):
    """A repeat of what was applied gets its receipt; what is new is refused."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a)
        applied = await put(b, session.id, message("m1"))
        session.end("client_left")
        await session.call.wait_ended()
        with pytest.raises(CallEnded) as refused:
            await put(b, session.id, message("m2"))
        assert refused.value.tombstone.why == "client_left"
        assert await b.call(session.id, "acme") == refused.value.tombstone
        assert await put(b, session.id, message("m1")) == applied
        assert await b.receipt(session.id, "acme", "m1") == applied
        with pytest.raises(CallEnded):
            await session.call.wait_registered()


async def test_the_end_of_a_call_is_the_end_of_its_open_messages(bus):
    """Whoever waits is told at once, with what they had reached."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a, applies=False)
        async with asyncio.TaskGroup() as group:
            waiting = [group.create_task(put(b, session.id, message(f"m{n}", response=True))) for n in range(3)]
            await eventually(lambda: len(session.got) == 3)
            session.call.settle("m0", Status.APPLIED)
            await eventually(lambda: waiting[0].done())
            session.end()
        assert [task.result().status for task in waiting] == [Status.APPLIED, Status.FAILED, Status.FAILED]
        last = await put(b, session.id, message("m0", response=True), wait=Status.ANSWERED)
        assert (last.status, last.error and last.error["code"]) == (Status.FAILED, "call_ended")
        assert list(last.reached) == ["accepted", "delivered", "applied", "failed"]


async def test_a_full_inbox_refuses_and_takes_again_when_answers_are_there(bus):
    """Nothing accepted is ever trimmed to make room."""
    async with bus.nodes("a", "b", inbox_max=3) as (a, b):
        session = await live(a, applies=False)
        for number in range(3):
            await put(b, session.id, message(f"m{number}"), wait=Status.DELIVERED)
        with pytest.raises(InboxFull):
            await put(b, session.id, message("m3"))
        assert (await put(b, session.id, message("m0"), wait=Status.DELIVERED)).status is Status.DELIVERED
        session.call.settle("m0", Status.REJECTED, error={"code": "unknown_tool_call", "message": "no such call"})
        await session.call.wait_settled()
        assert (await put(b, session.id, message("m3"), wait=Status.DELIVERED)).status is Status.DELIVERED
        assert session.ids == ["m0", "m1", "m2", "m3"]


async def test_an_inbox_is_full_by_its_bytes_too(bus):
    """256 messages of a megabyte would be Redis's memory."""
    async with bus.nodes("a", "b", inbox_max_bytes=3000) as (a, b):
        session = await live(a, applies=False)
        for number in range(2):
            await put(b, session.id, message(f"m{number}", item=b"x" * 1000), wait=Status.DELIVERED)
        with pytest.raises(InboxFull):
            await put(b, session.id, message("m2", item=b"x" * 1000))
        session.call.settle("m0", Status.APPLIED)
        await session.call.wait_settled()
        await put(b, session.id, message("m2", item=b"x" * 1000), wait=Status.DELIVERED)


async def test_a_message_beyond_the_limit_is_refused_before_it_is_sent(bus):
    """One megabyte by default."""
    async with bus.nodes("a", "b", message_max_bytes=2000) as (a, b):
        session = await live(a)
        with pytest.raises(MessageTooLarge):
            await put(b, session.id, message("m1", item=b"x" * 2000))
        assert (await put(b, session.id, message("m2", item=b"x" * 1000))).status is Status.APPLIED


async def test_a_node_holds_only_so_many_messages_under_way(bus):
    """Its memory is bounded even if every caller waits."""
    async with bus.nodes("a", "b", outgoing_max=1) as (a, b):
        session = await live(a, applies=False)
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(put(b, session.id, message("m1")))
            await eventually(lambda: session.ids == ["m1"])
            with pytest.raises(BusFull):
                await put(b, session.id, message("m2"))
            session.call.settle("m1", Status.APPLIED)
        assert waiting.result().status is Status.APPLIED
        await eventually(lambda: b.status()["regions"]["iad"]["outgoing"] == 0)
        session.applies = True
        assert (await put(b, session.id, message("m2"))).status is Status.APPLIED


async def test_a_message_of_the_largest_size_arrives(bus):
    """The limit is a promise in the other direction, too."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a)
        await put(b, session.id, message("m1", item=b"x" * (1024 * 1024 - 1024)))
        assert len(session.got[0].item) == 1024 * 1024 - 1024


async def test_a_message_past_its_deadline_expires_at_the_owner(bus):
    """Never delivered late, and its publisher hears of it."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a)
        receipt = await put(b, session.id, message("m1", expires_at=time.time() - 1))
        assert (receipt.status, receipt.error and receipt.error["code"]) == (Status.EXPIRED, "message_expired")
        await put(b, session.id, message("m2"))
        assert session.ids == ["m2"]


async def test_the_models_error_comes_back_word_for_word(bus):
    """A backend can only mend what it can read."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a, applies=False)
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(put(b, session.id, message("m1")))
            await eventually(lambda: session.ids == ["m1"])
            error = {"code": "item_invalid", "message": "Ungültig: „x“", "param": "item.content[0]", "depth": [1, None]}
            session.call.settle("m1", Status.FAILED, error=error)
        assert (waiting.result().status, waiting.result().error) == (Status.FAILED, error)


async def test_a_wait_for_the_answer_outlasts_applied(bus):
    """`answered` is the response's end; without one asked for, applied is all there will be."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a)
        assert (await put(b, session.id, message("m0"), wait=Status.ANSWERED)).status is Status.APPLIED
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(put(b, session.id, message("m1", response=True), wait=Status.ANSWERED))
            await eventually(lambda: "m1" in session.ids)
            session.call.settle("m1", Status.ANSWERED)
        assert waiting.result().status is Status.ANSWERED


async def test_a_timeout_returns_the_receipt_so_far_and_the_message_goes_on(bus):
    """202, not an error: it is accepted, and a repeat finds what became of it."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a, applies=False)
        receipt = await put(b, session.id, message("m1"), timeout=0.3)
        assert receipt.status is Status.DELIVERED
        session.call.settle("m1", Status.APPLIED, item_id="given")
        assert (await put(b, session.id, message("m1"))).item_id == "given"
        assert session.ids == ["m1"]


async def test_a_message_waits_behind_an_earlier_one_that_the_owner_has_not_got(bus):
    """That keeps the order; what was not written by the timeout is said to be so."""
    async with bus.nodes("b") as (b,):
        async with bus.nodes("a") as (a,):
            session = await live(a)
        # The owner is gone; the call's record is still there.
        async with asyncio.TaskGroup() as group:
            first = group.create_task(put(b, session.id, message("m1"), timeout=0.5))
            await eventually(lambda: b.status()["regions"]["iad"]["published"] == 1)
            with pytest.raises(BusTimeout):
                await put(b, session.id, message("m2"), timeout=0.2)
        assert first.result().status is Status.ACCEPTED


async def test_a_new_owner_takes_the_call_and_gets_what_was_accepted(bus):
    """The highest claim holds: the earlier owner is told to yield and writes nothing more."""
    async with bus.nodes("a", "b", "c") as (a, b, c):
        old = await live(a, applies=False)
        await put(b, old.id, message("m1"), wait=Status.DELIVERED)
        new = await taken(c, old.id)
        assert new.call.epoch > old.call.epoch
        async with asyncio.timeout(5):
            await old.call.wait_lost()
        old.call.settle("m1", Status.FAILED)
        old.end("too late")
        receipt = await put(b, old.id, message("m1"))
        assert (receipt.status, receipt.node, new.ids) == (Status.APPLIED, "c", ["m1"])
        found = await b.call(old.id, "acme")
        assert isinstance(found, CallRecord)
        assert (found.node, found.epoch) == ("c", new.call.epoch)


async def test_a_delivery_that_raises_fails_its_message_and_no_other(bus):
    """One session's bug must not deafen every call of the node."""
    async with bus.nodes("a", "b") as (a, b):
        sound = await live(a)

        def deliver(_: Message) -> None:
            raise KeyError("bug")

        record = msgspec.structs.replace(sound.record, id=new_call_id("iad"))
        broken = a.own(record, deliver)
        await broken.wait_registered()
        receipt = await put(b, broken.id, message("m1"))
        assert (receipt.status, receipt.error and receipt.error["code"]) == (Status.FAILED, "delivery_failed")
        assert (await put(b, sound.id, message("m2"))).status is Status.APPLIED


async def test_live_calls_are_listed_newest_first_in_pages(bus):
    """Each page starts where the last id of the one before stood, even if that call has ended since."""
    async with bus.nodes("a", "b") as (a, b):
        sessions = [await live(a, started_at=100.0 + number // 2) for number in range(5)]
        newest_first = sorted(sessions, key=lambda s: (s.record.started_at, s.id), reverse=True)
        first = await b.calls("acme", limit=2)
        assert [call.id for call in first.calls] == [s.id for s in newest_first[:2]]
        assert (first.has_more, first.unreachable_regions) == (True, [])
        assert first.calls[0].to_public()["state"] == "live"
        newest_first[1].end()
        await newest_first[1].call.wait_ended()
        second = await b.calls("acme", limit=3, after=newest_first[1].id)
        assert [call.id for call in second.calls] == [s.id for s in newest_first[2:]]
        assert not second.has_more
        with pytest.raises(CallNotFound):
            await b.calls("acme", after="rtc_iad_nobody")


async def test_a_region_that_cannot_be_asked_is_named(bus):
    """A list that is silently shorter would be read as calls that ended."""
    regions = {"iad": bus.url, "lhr": "redis://:hunter2@127.0.0.1:1"}
    async with bus.nodes("a", regions=regions) as (a,):
        session = await live(a)
        page = await a.calls("acme")
        assert [call.id for call in page.calls] == [session.id]
        assert page.unreachable_regions == ["lhr"]
        for answer in (put(a, "rtc_lhr_x", message("m1"), timeout=0.2), a.call("rtc_lhr_x", "acme")):
            with pytest.raises(RegionUnreachable, match="lhr") as unreachable:
                await answer
            assert "hunter2" not in str(unreachable.value)
        assert "hunter2" not in str(a.status())


async def test_several_regions_are_several_islands(bus):
    """The id alone says where a call's keys are; here two regions share a server, and one has two shards of it."""
    regions = {"iad": bus.url, "iad-2": bus.url, "lhr": bus.url}
    async with bus.nodes("a", "b", regions=regions) as (a, b):
        sessions = [await live(a, call_id=new_call_id(region), started_at=s) for s, region in enumerate(regions)]
        for session in sessions:
            assert (await put(b, session.id, message("m1"))).status is Status.APPLIED
        assert [home_of(call.id) for call in (await b.calls("acme")).calls] == ["lhr", "iad-2", "iad"]


async def test_an_owner_that_owns_twice_or_elsewhere_is_a_bug(bus):
    """Said at once, to the code that did it."""
    async with bus.nodes("a") as (a,):
        session = await live(a)
        for call_id in (session.id, new_call_id("mars")):
            with pytest.raises(ValueError, match=call_id):
                Session(a, call_id=call_id)


async def test_after_the_end_every_key_left_is_on_its_way_out(bus):
    """Tombstone and receipts for an hour, nothing of the living call."""
    async with bus.nodes("a", "b") as (a, b):
        session = await live(a)
        await put(b, session.id, message("m1"))
        assert all(ttl > 0 for ttl in bus.keys().values())
        session.end()
        await session.call.wait_ended()
        of_the_call = {key.split(":")[-2]: ttl for key, ttl in bus.keys().items() if session.id in key}
        assert set(of_the_call) == {"ended", "receipts", "settled"}
        assert all(0 < ttl <= 3600 for ttl in of_the_call.values())
        assert session.id not in str(bus.channels())
    assert all(ttl > 0 for ttl in bus.keys().values())


async def test_when_the_tombstones_are_gone_nothing_is_left(bus):
    """A fleet that runs for years must not fill its Redis."""
    async with bus.nodes("a", "b", tombstone_seconds=0.3) as (a, b):
        for number in range(3):
            session = await live(a)
            await put(b, session.id, message("m1"), timeout=0.1 + number)
            session.end()
            await session.call.wait_ended()
    await eventually(lambda: bus.keys() == {})
