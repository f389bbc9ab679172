"""What a node publishes, when again, and when it is done with a message: the machine on a model of the scripts."""

import pytest

from fanout.core.circuit import Circuit
from fanout.core.holds import Holds
from fanout.core.memory import Memory
from fanout.core.outbox import Outbox, Outgoing
from fanout.core.records import receipt_from_stored
from fanout.core.scripts import Scripts, outgoing_args
from fanout.core.verdicts import Verdict
from fanout.errors import CallEnded, CallNotFound, CallNotStarted, IdempotencyConflict, InboxFull, RegionUnreachable
from fanout.messages import CallRecord, Receipt, Status, Tombstone
from fanout.settings import BusSettings
from tests.support.redis_model import RedisModel

NOW = 1_700_000_000.0
SETTINGS = BusSettings(node="lhr-1", region="lhr", regions={"lhr": "redis://h"}, inbox_max=3)
SCRIPTS = Scripts(SETTINGS)
RECORD = CallRecord(
    id="rtc_lhr_a", tenant="acme", node="lhr-2", region="lhr", agent="default", model="gpt", started_at=NOW
)
KEYS = SCRIPTS.keys.call(RECORD.id, RECORD.tenant)
CLAIM = "boot.1"
TOMBSTONE = Tombstone(
    id=RECORD.id,
    tenant="acme",
    node="lhr-2",
    region="lhr",
    started_at=NOW,
    ended_at=NOW,
    why="client_left",
    fault="client",
)
SETTLING = SETTINGS.settling_seconds + SETTINGS.rewrite_seconds


class World:
    """A settled Redis with a live call and one publisher."""

    def __init__(self) -> None:
        self.redis = RedisModel("first")
        self.now = NOW
        self.outbox = Outbox(RECORD.id, RECORD.tenant, SCRIPTS)
        self.done: list[str] = []
        self.claim()
        self.now += SETTLING

    def claim(self) -> None:
        run = SCRIPTS.claim(KEYS, "fresh", CLAIM, RECORD, latest_ms=int(self.now * 1000))
        self.epoch = int(self.redis.execute(run, self.now)[1])

    def add(self, message_id: str, fingerprint: str = "print", *, wants_response: bool = False) -> Outgoing:
        args = outgoing_args(RECORD.id, message_id, fingerprint, b"envelope", "item", wants_response=wants_response)
        outgoing = Outgoing(message_id, fingerprint, args, 8, self.now + 60)
        self.outbox.add(outgoing)
        return outgoing

    def publish(self) -> str | None:
        """One step, if one is due; the id of the message."""
        step = self.outbox.step(self.now)
        if step is None:
            return None
        self._finish(self.outbox.on_outcome(step, self.redis.execute(step.run, self.now), self.now))
        return step.outgoing.message_id

    def fail(self, *, executed: bool) -> None:
        step = self.outbox.step(self.now)
        assert step is not None
        if executed:
            self.redis.execute(step.run, self.now)
        self.outbox.on_outcome(step, RegionUnreachable("lhr"), self.now)

    def settle(self, message_id: str, status: Status, *, reply: bool = True) -> None:
        """The owner's verdict, and its way back here."""
        verdict = Verdict(status, wants_response=False, item_id="item", reached={status.value: self.now})
        run = SCRIPTS.settle(KEYS, self.epoch, CLAIM, RECORD.id, message_id, verdict, keep=0)
        assert self.redis.execute(run, self.now) == [b"held"]
        if reply:
            receipt = self.receipt(message_id)
            assert receipt is not None
            self._finish(self.outbox.on_receipt(receipt, self.now))

    def receipt(self, message_id: str) -> Receipt | None:
        packed = self.redis.execute(SCRIPTS.lookup(KEYS, RECORD.tenant, message_id), self.now)[1]
        return receipt_from_stored(RECORD.id, message_id, packed) if packed else None

    def inbox(self) -> list[str]:
        answer = self.redis.execute(SCRIPTS.read(KEYS, self.epoch, CLAIM, ""), self.now)
        return [message_id.decode() for _, message_id, *_ in answer[4]]

    def _finish(self, outgoing: Outgoing | None) -> None:
        if outgoing is not None:
            self.done.append(outgoing.message_id)


@pytest.fixture
def world() -> World:
    return World()


def test_one_message_is_in_flight_until_the_owner_has_it(world):
    """That is what keeps this publisher's order."""
    world.add("m1")
    world.add("m2")
    assert [world.publish(), world.publish()] == ["m1", None]
    world.settle("m1", Status.DELIVERED)
    assert world.publish() == "m2"


def test_a_message_that_is_not_delivered_holds_the_next_one_only_for_a_while(world):
    """The owner may be away for long; the script keeps the order, which knows what came before."""
    world.add("m1")
    world.add("m2")
    world.publish()
    world.now += SETTINGS.in_flight_seconds
    published = {world.publish(), world.publish()}
    assert published == {"m1", "m2"}
    assert world.inbox() == ["m1", "m2"]


def test_a_message_stays_until_it_has_its_end(world):
    """Delivered is not enough: a roll-back could take it from the inbox and the owner could die."""
    world.add("m1")
    world.publish()
    world.settle("m1", Status.DELIVERED)
    assert not world.outbox.is_empty
    world.settle("m1", Status.APPLIED)
    assert world.outbox.is_empty
    assert world.done == ["m1"]


def test_an_unanswered_message_is_repeated_with_growing_pauses(world):
    """A reply or the ring may have been lost; a repeat finds the receipt."""
    world.add("m1")
    times = []
    for _ in range(4):
        due = world.outbox.due(world.now)
        assert due is not None
        world.now = max(world.now, due)
        times.append(world.now)
        assert world.publish() == "m1"
    pauses = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    assert pauses[0] <= SETTINGS.repeat_seconds
    assert all(second / first > 1.2 for first, second in zip(pauses, pauses[1:], strict=False))
    world.settle("m1", Status.APPLIED, reply=False)
    world.now += SETTINGS.repeat_max_seconds
    world.publish()
    assert world.done == ["m1"]


@pytest.mark.parametrize("executed", [True, False])
def test_a_publication_without_an_answer_is_tried_again_with_the_same_id(world, executed):
    """Whether it ran or not, it is one message."""
    world.add("m1")
    world.fail(executed=executed)
    assert world.outbox.step(world.now) is None
    world.now += SETTINGS.backoff_max_seconds
    assert world.publish() == "m1"
    assert world.inbox() == ["m1"]


def test_a_redis_that_lost_the_message_before_gets_it_again_first(world):
    """The order would be broken if the later one were taken without it."""
    world.add("m1")
    world.add("m2")
    world.publish()
    world.redis = RedisModel("first")
    world.claim()
    world.now += SETTLING
    world.outbox.on_new_server()
    world.now += SETTINGS.in_flight_seconds
    while world.publish():
        pass
    assert world.inbox() == ["m1", "m2"]


def test_behind_is_answered_by_repeating_from_the_oldest(world):
    """Even if the later one comes to be published first."""
    world.add("m1")
    world.publish()
    world.settle("m1", Status.DELIVERED)
    world.redis = RedisModel("first")
    world.claim()
    world.now += 0.01
    world.add("m2")
    assert [world.publish(), world.publish(), world.publish()] == ["m2", "m1", "m2"]
    assert world.inbox() == ["m1", "m2"]


@pytest.mark.parametrize(
    ("case", "error"),
    [
        ("absent", CallNotFound),
        ("ended", CallEnded),
        ("reserved", CallNotStarted),
        ("conflict", IdempotencyConflict),
        ("full", InboxFull),
    ],
)
def test_a_refusal_is_an_error_and_the_message_is_gone(world, case, error):
    """Nothing was written, and nothing will be."""
    if case == "absent":
        world.redis.delete(KEYS.call)
    if case == "reserved":
        world.redis.delete(KEYS.call)
        world.redis.execute(SCRIPTS.reserve(KEYS, RECORD.tenant, 60), world.now)
    if case == "ended":
        world.redis.execute(SCRIPTS.end(KEYS, world.epoch, CLAIM, TOMBSTONE), world.now)
    if case == "conflict":
        other = Outbox(RECORD.id, RECORD.tenant, SCRIPTS)
        other.add(Outgoing("m1", "x", outgoing_args(RECORD.id, "m1", "x", b"e", "i", wants_response=False), 1, NOW))
        step = other.step(world.now)
        assert step is not None
        world.redis.execute(step.run, world.now)
    if case == "full":
        for number in range(3):
            world.add(f"before{number}")
            world.publish()
            world.settle(f"before{number}", Status.DELIVERED)
    outgoing = world.add("m1")
    world.publish()
    assert type(outgoing.refusal) is error
    assert world.outbox.get("m1") is None


def test_an_accepted_message_is_not_refused_later(world):
    """Redis lost the call; its owner will restore it. The caller was told "accepted", and that holds."""
    outgoing = world.add("m1")
    world.publish()
    world.redis = RedisModel("first")
    world.redis.execute(SCRIPTS.lookup(KEYS, "acme"), world.now)
    world.now += SETTLING
    assert world.publish() == "m1"
    assert outgoing.refusal is None
    world.claim()
    world.now += SETTINGS.backoff_max_seconds
    world.publish()
    assert world.inbox() == ["m1"]


def test_an_accepted_message_that_redis_lost_before_the_call_ended_has_failed(world):
    """Its publisher gets an end that it can read."""
    outgoing = world.add("m1")
    world.publish()
    world.redis = RedisModel("first")
    world.claim()
    world.now += SETTLING
    world.redis.execute(SCRIPTS.end(KEYS, world.epoch, CLAIM, TOMBSTONE), world.now)
    assert world.publish() == "m1"
    assert outgoing.receipt is not None
    assert (outgoing.receipt.status, world.done) == (Status.FAILED, ["m1"])


def test_while_redis_settles_an_unknown_call_is_no_refusal(world):
    """Its owner may not have restored it yet; the caller's patience decides."""
    world.redis = RedisModel("second")
    outgoing = world.add("m1")
    world.publish()
    assert (outgoing.refusal, type(outgoing.trouble).__name__) == (None, "CallStateUnknown")


def test_a_message_nobody_waits_for_and_redis_never_took_is_left(world):
    """It was answered with an error; what was accepted goes on."""
    lost, kept = world.add("m1"), world.add("m2")
    world.outbox.give_up(lost)
    world.publish()
    world.outbox.give_up(kept)
    assert world.outbox.get("m1") is None
    assert world.outbox.get("m2") is kept


def test_a_reply_that_is_quicker_than_the_answer_counts(world):
    """The two come on different connections."""
    world.add("m1")
    step = world.outbox.step(world.now)
    assert step is not None
    answer = world.redis.execute(step.run, world.now)
    world.settle("m1", Status.APPLIED)
    assert world.done == ["m1"]
    assert world.outbox.on_outcome(step, answer, world.now) is None
    assert world.outbox.is_empty


def test_a_receipt_of_a_newer_version_leaves_the_message_accepted(world):
    """Redis has it: that much is sure, and nothing is thrown."""
    outgoing = world.add("m1")
    step = world.outbox.step(world.now)
    assert step is not None
    world.outbox.on_outcome(step, [b"receipt", b"\xc1"], world.now)
    assert outgoing.receipt is not None
    assert outgoing.receipt.status is Status.ACCEPTED


def test_an_owner_that_never_answers_is_waited_for_and_then_given_up(world):
    """Long after the deadline: by then it would have said that the message expired."""
    world.add("m1")
    world.publish()
    assert world.outbox.expire(world.now + 61) == []
    [outgoing] = world.outbox.expire(world.now + 3600)
    assert (outgoing.message_id, world.outbox.counts.abandoned, world.outbox.is_empty) == ("m1", 1, True)


@pytest.mark.parametrize("lost", [True, False], ids=["lost", "known"])
def test_a_message_that_had_its_end_is_published_once_more_to_a_new_redis(world, lost):
    """Its end goes with it, and holds back nothing; if it was applied, an owner looks after its item."""
    holds = Holds(10.0, 10, 1000)
    outgoing = world.add("m1")
    world.publish()
    world.settle("m1", Status.APPLIED)
    holds.add(world.outbox, outgoing, world.now)
    if lost:
        world.redis = RedisModel("first")
        world.claim()
    [held] = holds.take(frozenset({world.outbox.tag}))
    world.outbox.add_again(held.outgoing, world.now)
    world.add("m2")
    assert world.publish() == "m2"
    world.now += SETTLING / 2
    world.settle("m2", Status.DELIVERED)
    while world.publish():
        pass
    assert world.done == ["m1", "m1"]
    receipt = world.receipt("m1")
    assert receipt is not None
    assert (receipt.status, receipt.by["applied"]) == (Status.APPLIED, ("lhr-1", "lhr"))
    assert set(world.inbox()) == ({"m1", "m2"} if lost else {"m2"})


def test_a_message_that_is_repeated_while_it_is_held_goes_out_with_its_end(world):
    """Else the repeat could be given up, and with it the only copy of what became of the message."""
    first = world.add("m1")
    world.publish()
    world.settle("m1", Status.APPLIED)
    world.redis = RedisModel("first")
    world.claim()
    second = world.add("m1")
    assert not world.outbox.add_again(first, world.now)
    world.outbox.give_up(second)
    world.publish()
    receipt = world.receipt("m1")
    assert receipt is not None
    assert receipt.status is Status.APPLIED


def test_what_is_held_is_bounded_and_goes_with_time():
    """By number, by bytes and by age."""
    outbox = Outbox("rtc_lhr_a", "acme", SCRIPTS)

    def outgoing(size: int) -> Outgoing:
        return Outgoing("m", "p", (), size, NOW)

    holds = Holds(10.0, 2, 100)
    for size in (1, 2, 3):
        holds.add(outbox, outgoing(size), NOW)
    assert (len(holds), holds.dropped) == (2, 1)
    holds.add(outbox, outgoing(99), NOW + 1)
    assert (len(holds), holds.dropped) == (1, 3)
    holds.release(NOW + 10)
    assert len(holds) == 1
    holds.release(NOW + 11)
    assert len(holds) == 0
    holds.add(outbox, outgoing(1), NOW)
    assert holds.take(frozenset({"elsewhere"})) == []
    assert len(holds) == 1


def test_the_circuit_opens_after_a_while_of_failing_and_closes_at_once():
    """A short fail-over is worth waiting for; a region that is away is not."""
    circuit = Circuit(3.0)
    circuit.on_failure(10.0)
    assert (circuit.is_failing(), circuit.is_open(12.9)) == (True, False)
    circuit.on_failure(12.0)
    assert circuit.is_open(13.0)
    circuit.on_success()
    assert not circuit.is_open(13.0)
    assert not circuit.is_failing()


def test_a_memory_forgets_the_oldest_and_knows_what_redis_has():
    """Positions count from the first entry ever, so that both sides agree on what comes next."""
    memory = Memory(2, 100)
    first, second = memory.add("a", b"one"), memory.add("b", b"two")
    assert first is not None
    assert second is not None
    assert memory.add("b", b"two again") is None
    assert memory.keep_with(first) == 1
    memory.on_stored(1)
    assert memory.is_stored(first)
    assert not memory.is_stored(second)
    third = memory.add("c", b"three")
    assert third is not None
    assert (memory.entries, memory.total, memory.forgotten) == ([b"two", b"three"], 3, 1)
    assert (memory.keep_with(third), third.position) == (2, 2)
    assert (memory.has("a"), memory.has("c")) == (False, True)
    huge = memory.add("d", b"x" * 101)
    assert huge is not None
    assert (memory.entries, memory.keep_with(huge)) == ([], 0)
    memory.on_lost()
    assert memory.needs_rewrite
    memory.restore(7, [first.packed, b"of another version"])
    assert (memory.total, memory.entries, memory.is_stored(huge)) == (7, [b"one"], True)


def test_a_memory_that_never_had_anything_has_nothing_to_rewrite():
    """A quiet call costs a new Redis one restored record."""
    memory = Memory(2, 10)
    memory.on_lost()
    assert not memory.needs_rewrite
