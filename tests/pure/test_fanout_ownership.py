"""What an owner asks of Redis and what it makes of the answers: the machine on a model of the scripts."""

from itertools import count
from typing import Any

import pytest

from fanout.core.envelope import Envelope
from fanout.core.inbox import Entry, Position
from fanout.core.memory import Memory
from fanout.core.ownership import SETTLES_MAX, Ownership
from fanout.core.phases import Expected, Phase
from fanout.core.records import message_from_envelope, message_to_envelope
from fanout.core.scripts import Scripts, outgoing_args
from fanout.errors import RegionUnreachable
from fanout.messages import CallRecord, Message, Status, Tombstone
from fanout.settings import BusSettings
from tests.support.redis_model import RedisModel

NOW = 1_700_000_000.0
SETTINGS = BusSettings(node="iad-1", region="iad", regions={"iad": "redis://h"}, read_max=2)
SCRIPTS = Scripts(SETTINGS)
RECORD = CallRecord(
    id="rtc_iad_a", tenant="acme", node="iad-1", region="iad", agent="default", model="gpt", started_at=NOW
)
TOMBSTONE = Tombstone(
    id="rtc_iad_a",
    tenant="acme",
    node="iad-1",
    region="iad",
    started_at=NOW,
    ended_at=NOW + 1,
    why="client_left",
    fault="client",
)
KEYS = SCRIPTS.keys.call(RECORD.id, RECORD.tenant)
TROUBLE = RegionUnreachable("iad")


def read_entry(entry_id: str, message_id: str, packed: bytes) -> Entry:
    return Entry(entry_id, message_id, message_from_envelope(Envelope.unpack(packed, max_bytes=9999)))


class World:
    """A Redis that is settled unless it is said to be new, and owners on it."""

    def __init__(self) -> None:
        self.redis = RedisModel("first")
        self.now = NOW
        self._claims = count(1)
        self.look("")
        self.settle_redis()

    def settle_redis(self) -> None:
        self.now += SETTINGS.settling_seconds + SETTINGS.rewrite_seconds

    def new_redis(self, data: RedisModel | None = None) -> None:
        self.redis = data.copy("second") if data else RedisModel("second")

    def owner(self, expected: Expected | None = None) -> Ownership:
        name = f"boot.{next(self._claims)}"
        names = (f"{name}-{number}" for number in count(1))
        return Ownership(RECORD, SCRIPTS, new_claim=lambda: next(names), read_entry=read_entry, expected=expected)

    def live(self) -> Ownership:
        owner = self.owner()
        self.drive(owner)
        return owner

    def drive(self, owner: Ownership) -> list[str]:
        """Ask and answer until nothing is due; returns the ids of what is delivered."""
        delivered = []
        while (due := owner.due(self.now)) is not None and due <= self.now:
            steps = owner.steps(self.now, self.now)
            outcomes = [self.redis.execute(step.run, self.now) for step in steps]
            delivered += [message.id for message in owner.on_outcomes(steps, outcomes, self.now, self.now)]
        return delivered

    def lose_answers(self, owner: Ownership, *, executed: bool = True) -> None:
        steps = owner.steps(self.now, self.now)
        assert steps
        if executed:
            for step in steps:
                self.redis.execute(step.run, self.now)
        owner.on_outcomes(steps, [TROUBLE for _ in steps], self.now, self.now)

    def put(self, message_id: str) -> list[Any]:
        message = Message(id=message_id, item=b"{}", expires_at=self.now + 60, item_id=f"item_{message_id}")
        packed = message_to_envelope(message, RECORD.id, "lhr-1").pack()
        args = outgoing_args(RECORD.id, message_id, "print", packed, message.item_id, wants_response=False)
        return self.redis.execute(SCRIPTS.publish(KEYS, RECORD.tenant, args, (), again=False), self.now)

    def deliver(self, owner: Ownership, message_id: str) -> None:
        """Put one in, and let the owner find it."""
        self.put(message_id)
        owner.on_subscribed()
        self.drive(owner)

    def look(self, message_id: str) -> list[Any]:
        return self.redis.execute(SCRIPTS.lookup(KEYS, RECORD.tenant, message_id), self.now)

    def apply(self, owner: Ownership, message_id: str) -> None:
        assert owner.settle(message_id, Status.APPLIED, self.now, memory=f"memory of {message_id}".encode())

    def recall(self, owner: Ownership) -> list[bytes]:
        assert owner.claim.encode() == self.redis.dump(self.now)[KEYS.call][b"claim"]
        memory = Memory(100, 1000)
        memory.restore(0, self.redis.dump(self.now)[KEYS.memory])
        return memory.entries


@pytest.fixture
def world() -> World:
    return World()


def test_a_new_call_is_claimed_and_its_inbox_read(world):
    """From then on it can be reached."""
    owner = world.live()
    assert (owner.phase, owner.is_held) == (Phase.HELD, True)
    assert world.look("")[0] == b"live"
    assert owner.due(world.now) is None


def test_a_claim_whose_answer_was_lost_is_made_again_and_is_the_same(world):
    """A second epoch of its own would make the owner yield to itself."""
    owner = world.owner()
    world.lose_answers(owner)
    world.drive(owner)
    assert owner.is_held
    assert int(world.look("")[2]) == owner.epoch


def test_an_inbox_is_read_in_parts_and_in_order(world):
    """A full one must not hold up the loop."""
    owner = world.live()
    for number in range(5):
        world.put(f"m{number}")
    owner.ask_refresh()
    assert world.drive(owner) == [f"m{number}" for number in range(5)]


def test_a_ring_before_the_claim_delivers_nothing(world):
    """The read that follows the claim brings it, in its place."""
    owner = world.owner()
    assert owner.on_bell(Entry("1-0", "m1", None), Position(), world.now) == []
    assert not owner.inbox.needs_read


def test_an_applied_message_leaves_its_receipt_and_its_memory_in_one_step(world):
    """A new owner that finds one without the other would say it twice or not at all."""
    owner = world.live()
    world.deliver(owner, "m1")
    world.apply(owner, "m1")
    [step] = owner.steps(world.now, world.now)
    owner.on_outcomes([step], [world.redis.execute(step.run, world.now)], world.now, world.now)
    assert world.recall(owner) == [b"memory of m1"]
    assert b"applied" in world.look("m1")[1]
    assert not owner.inbox.has_unwritten


def test_what_is_remembered_twice_because_an_answer_was_lost_is_there_once(world):
    """The position says so."""
    owner = world.live()
    world.deliver(owner, "m1")
    world.apply(owner, "m1")
    world.lose_answers(owner)
    world.drive(owner)
    assert world.recall(owner) == [b"memory of m1"]


@pytest.mark.parametrize("lost", ["all", "suffix"])
def test_an_owner_restores_what_a_new_redis_lacks(world, lost):
    """Record, memory and verdicts; and in that order, so that nobody builds on half of it."""
    owner = world.live()
    for message_id in ("m1", "m2"):
        world.put(message_id)
        owner.on_subscribed()
        world.drive(owner)
        before = world.redis.copy("replica")
        world.apply(owner, message_id)
        world.drive(owner)
    world.new_redis(before if lost == "suffix" else None)
    owner.on_new_server()
    world.drive(owner)
    assert owner.phase is Phase.HELD
    assert world.look("")[0] == b"live"
    assert b"applied" not in world.look("m2")[1]
    world.settle_redis()
    world.drive(owner)
    assert world.recall(owner) == [b"memory of m1", b"memory of m2"]
    assert b"applied" in world.look("m2")[1]


def test_while_redis_settles_a_publisher_still_hears_that_its_message_arrived(world):
    """Else it would hold back the next one for ten seconds. Nothing that counts is written."""
    owner = world.live()
    world.new_redis()
    owner.on_new_server()
    world.drive(owner)
    world.put("m1")
    owner.on_subscribed()
    assert world.drive(owner) == ["m1"]
    world.apply(owner, "m1")
    world.drive(owner)
    assert b"delivered" in world.look("m1")[1]
    assert b"applied" not in world.look("m1")[1]
    world.settle_redis()
    world.drive(owner)
    assert b"applied" in world.look("m1")[1]


def test_an_answer_from_before_the_new_redis_proves_nothing_about_it(world):
    """It came from the old one, or from the new one before the owner knew that there is one."""
    owner = world.live()
    world.deliver(owner, "m1")
    world.apply(owner, "m1")
    steps = owner.steps(world.now, world.now)
    outcomes = [world.redis.execute(step.run, world.now) for step in steps]
    owner.on_new_server()
    owner.on_outcomes(steps, outcomes, world.now, world.now)
    assert owner.inbox.has_unwritten


def test_taking_a_call_over_brings_its_memory_and_then_what_is_open(world):
    """The conversation is rebuilt first; what has its end is not delivered again."""
    owner = world.live()
    for message_id in ("m1", "m2"):
        world.put(message_id)
    owner.on_subscribed()
    world.drive(owner)
    world.apply(owner, "m1")
    world.drive(owner)
    other = world.owner(Expected(owner.epoch, owner.claim))
    assert world.drive(other) == ["m2"]
    assert other.memory.entries == [b"memory of m1"]
    assert other.epoch > owner.epoch


def test_an_owner_yields_to_a_higher_claim_that_it_sees_and_to_nothing_else(world):
    """Its next look or write shows it; what it says after that is not written."""
    owner = world.live()
    other = world.owner(Expected(owner.epoch, owner.claim))
    world.drive(other)
    assert owner.phase is Phase.HELD
    owner.ask_refresh()
    world.drive(owner)
    assert owner.phase is Phase.LOST
    assert not owner.end(TOMBSTONE, world.now)
    assert world.look("")[0] == b"live"


@pytest.mark.parametrize("kind", ["late", "changed", "settling", "absent"])
def test_a_take_over_that_may_not_be_is_refused(world, kind):
    """Late: its client has gone elsewhere. Changed: somebody was quicker. Settling: nobody knows yet who has it."""
    owner = world.live()
    expected = Expected(owner.epoch, owner.claim)
    if kind == "changed":
        world.drive(world.owner(expected))
    if kind == "absent":
        world.new_redis()
        world.look("")
        world.settle_redis()
    if kind == "settling":
        world.new_redis(world.redis)
        world.look("")
    other = world.owner(expected)
    if kind == "late":
        steps = other.steps(world.now, world.now)
        world.now += 60
        outcomes = [world.redis.execute(step.run, world.now) for step in steps]
        assert outcomes[0][0] == b"late"
        assert int(world.look("")[2]) == owner.epoch
        return
    world.drive(other)
    assert other.epoch == 0
    if kind == "settling":
        world.settle_redis()
        world.drive(other)
        assert other.is_held
    else:
        assert (other.phase, other.refusal) == (Phase.LOST, kind)


def test_a_clock_that_is_behind_does_not_keep_a_node_from_claiming(world):
    """Redis says what time it is, and the next claim is dated by that."""
    owner = world.owner()
    for _ in range(2):
        steps = owner.steps(world.now, world.now - 3600)
        outcomes = [world.redis.execute(step.run, world.now) for step in steps]
        owner.on_outcomes(steps, outcomes, world.now, world.now - 3600)
    assert owner.phase is Phase.HELD


@pytest.mark.parametrize("executed", [True, False])
def test_a_call_whose_take_over_is_not_confirmed_is_left_and_not_ended(world, executed):
    """Its client is gone from here before it was ours: it may be in the call elsewhere."""
    owner = world.live()
    other = world.owner(Expected(owner.epoch, owner.claim))
    steps = other.steps(world.now, world.now)
    outcomes = [world.redis.execute(step.run, world.now) if executed else TROUBLE for step in steps]
    other.end(TOMBSTONE, world.now)
    other.on_outcomes(steps, outcomes, world.now, world.now)
    world.drive(other)
    assert other.phase is Phase.LOST
    assert world.look("")[0] == b"live"


@pytest.mark.parametrize("executed", [True, False])
def test_a_take_over_whose_answer_was_lost_is_released_before_it_is_tried_again(world, executed):
    """It may still happen, after its client has gone elsewhere: so it must be known whether it did."""
    owner = world.live()
    other = world.owner(Expected(owner.epoch, owner.claim))
    first = other.claim
    world.lose_answers(other, executed=executed)
    assert other.phase is Phase.RELEASING
    world.drive(other)
    assert other.is_held
    assert other.claim != first


def test_a_take_over_that_its_client_gave_up_is_undone(world):
    """Else nobody would answer for the call, and its old owner would yield to nobody."""
    owner = world.live()
    other = world.owner(Expected(owner.epoch, owner.claim))
    world.lose_answers(other)
    other.end(TOMBSTONE, world.now)
    world.drive(other)
    assert other.phase is Phase.LOST
    assert world.look("")[3] == b""


def test_a_look_that_is_asked_for_while_one_is_under_way_is_another(world):
    """The one that is under way may have been answered before the call was taken."""
    owner = world.live()
    owner.ask_refresh()
    steps = owner.steps(world.now, world.now)
    outcomes = [world.redis.execute(step.run, world.now) for step in steps]
    world.drive(world.owner(Expected(owner.epoch, owner.claim)))
    owner.ask_look()
    owner.on_outcomes(steps, outcomes, world.now, world.now)
    world.drive(owner)
    assert owner.phase is Phase.LOST


@pytest.mark.parametrize("executed", [True, False])
def test_a_take_over_that_its_client_left_is_undone_and_forgotten(world, executed):
    """A new Redis must not hear of it: it was never ours."""
    owner = world.live()
    other = world.owner(Expected(owner.epoch, owner.claim))
    steps = other.steps(world.now, world.now)
    outcomes = [world.redis.execute(step.run, world.now) if executed else TROUBLE for step in steps]
    assert other.hand_over()
    assert not other.hand_over()
    assert not other.end(TOMBSTONE, world.now)
    other.on_outcomes(steps, outcomes, world.now, world.now)
    world.drive(other)
    assert (other.phase, other.epoch) == (Phase.LOST, 0)
    assert world.look("")[4] == (b"moving" if executed else b"live")
    other.on_new_server()
    assert other.due(world.now) is None


def test_a_take_over_brings_the_facts_in_the_same_step(world):
    """An owner that had the claim without them could lose them to a Redis that comes back empty."""
    owner = world.live()
    facts = {"session": b"s", "usage": b"u"}
    world.redis.execute(
        SCRIPTS.log(KEYS, owner.epoch, owner.claim, batch=None, lowest="", sound=None, facts=facts, number=1), world.now
    )
    assert owner.known is None
    other = world.owner(Expected(owner.epoch, owner.claim))
    world.drive(other)
    assert other.known == [b"session", b"s", b"usage", b"u"]


def test_a_call_is_handed_over_after_what_was_said_of_it(world):
    """What has no end yet is the next owner's; nothing more comes here."""
    owner = world.live()
    for message_id in ("m1", "m2"):
        world.put(message_id)
    owner.on_subscribed()
    world.drive(owner)
    world.apply(owner, "m1")
    assert owner.hand_over()
    assert not owner.hand_over()
    assert not owner.end(TOMBSTONE, world.now)
    assert not owner.is_held
    assert owner.may_write
    world.put("m3")
    owner.on_subscribed()
    assert world.drive(owner) == []
    assert (owner.phase, owner.may_write, owner.due(world.now)) == (Phase.HANDED_OVER, False, None)
    assert world.look("")[3:5] == [b"", b"moving"]
    other = world.owner(Expected(owner.epoch, ""))
    assert world.drive(other) == ["m2", "m3"]
    assert other.memory.entries == [b"memory of m1"]
    assert world.look("")[4] == b"live"


def test_a_call_is_not_handed_over_before_its_facts_are_written(world):
    """The next owner builds the conversation from them. Meanwhile it is looked after as ever."""
    is_noted = False
    names = count(1)
    owner = Ownership(
        RECORD, SCRIPTS, new_claim=lambda: f"boot.{next(names)}", read_entry=read_entry, is_noted=lambda: is_noted
    )
    world.drive(owner)
    owner.hand_over()
    assert owner.due(world.now) is None
    world.redis = RedisModel("second")
    owner.ask_refresh()
    world.drive(owner)
    assert owner.restores == 1
    assert world.look("")[3:5] == [owner.claim.encode(), b"moving"]
    world.settle_redis()
    owner.ask_refresh()
    world.drive(owner)
    assert owner.phase is Phase.HANDING_OVER
    is_noted = True
    world.drive(owner)
    assert world.look("")[3:5] == [b"", b"moving"]


def test_a_hand_over_whose_answer_was_lost_is_made_again(world):
    """It may not have happened, and then the call would have an owner that is gone."""
    for executed in (True, False):
        owner = world.live()
        owner.hand_over()
        world.lose_answers(owner, executed=executed)
        assert owner.phase is Phase.HANDING_OVER
        world.drive(owner)
        assert owner.phase is Phase.HANDED_OVER
        world.redis.delete(KEYS.call)


def test_a_new_call_that_is_given_up_before_it_is_claimed_is_handed_over_then(world):
    """Its client has been told to come back, and would find nothing."""
    owner = world.owner()
    owner.hand_over()
    assert world.drive(owner) == []
    assert owner.phase is Phase.HANDED_OVER
    assert world.look("")[4] == b"moving"


def test_a_new_redis_is_told_of_a_call_that_was_handed_over(world):
    """With all that was known; its last owner alone has it. Not of one that somebody has taken."""
    owner = world.live()
    world.deliver(owner, "m1")
    world.apply(owner, "m1")
    owner.hand_over()
    world.drive(owner)
    before = world.redis.copy("replica")
    world.new_redis()
    owner.on_new_server()
    world.drive(owner)
    assert owner.phase is Phase.HANDING_OVER
    world.settle_redis()
    world.drive(owner)
    assert owner.phase is Phase.HANDED_OVER
    other = world.owner(Expected(owner.epoch, ""))
    world.drive(other)
    assert other.memory.entries == [b"memory of m1"]
    world.new_redis(before)
    other.on_new_server()
    world.drive(other)
    owner.on_new_server()
    world.drive(owner)
    assert owner.phase is Phase.LOST
    world.settle_redis()
    world.drive(other)
    assert world.look("")[2:5] == [str(other.epoch).encode(), other.claim.encode(), b"live"]


def test_a_call_that_is_over_or_somebody_elses_is_not_handed_over(world):
    """Its client was told otherwise."""
    owner = world.live()
    other = world.owner(Expected(owner.epoch, owner.claim))
    world.drive(other)
    owner.ask_refresh()
    world.drive(owner)
    assert not owner.hand_over()
    other.end(TOMBSTONE, world.now)
    assert not other.hand_over()
    world.drive(other)
    assert world.look("")[0] == b"ended"


def test_the_end_waits_for_the_verdicts_and_fails_what_has_none(world):
    """A message that was applied must not end as failed because the call ended in the same moment."""
    owner = world.live()
    for message_id in ("m1", "m2"):
        world.put(message_id)
    owner.on_subscribed()
    world.drive(owner)
    world.apply(owner, "m1")
    assert owner.end(TOMBSTONE, world.now)
    assert not owner.end(TOMBSTONE, world.now)
    world.drive(owner)
    assert owner.phase is Phase.ENDED
    assert b"applied" in world.look("m1")[1]
    assert b"call_ended" in world.look("m2")[1]
    assert world.look("")[0] == b"ended"


def test_the_end_of_a_call_is_told_to_a_new_redis_too(world):
    """Else a call that is over would be listed again."""
    owner = world.live()
    before = world.redis.copy("replica")
    owner.end(TOMBSTONE, world.now)
    world.drive(owner)
    world.new_redis(before)
    owner.on_new_server()
    world.drive(owner)
    assert world.look("")[0] == b"live"
    world.settle_redis()
    world.drive(owner)
    assert (world.look("")[0], owner.phase) == (b"ended", Phase.ENDED)


def test_an_end_that_a_new_redis_knows_stays_ours(world):
    """It is no reason to count the call as lost."""
    owner = world.live()
    owner.end(TOMBSTONE, world.now)
    world.drive(owner)
    world.new_redis(world.redis)
    owner.on_new_server()
    world.settle_redis()
    world.drive(owner)
    assert owner.phase is Phase.ENDED


def test_who_yielded_tells_a_new_redis_what_it_knew_unless_a_higher_claim_is_there(world):
    """The one it yielded to may be gone with the data."""
    owner = world.live()
    world.deliver(owner, "m1")
    world.apply(owner, "m1")
    world.drive(owner)
    other = world.owner(Expected(owner.epoch, owner.claim))
    world.drive(other)
    owner.ask_refresh()
    world.drive(owner)
    world.new_redis()
    owner.on_new_server()
    world.drive(owner)
    assert owner.phase is Phase.OFFERING
    other.on_new_server()
    world.drive(other)
    world.settle_redis()
    world.drive(owner)
    world.drive(other)
    assert (owner.phase, other.phase) == (Phase.LOST, Phase.HELD)
    assert int(world.look("")[2]) == other.epoch
    assert world.recall(other) == [b"memory of m1"]


def test_an_offer_that_nobody_disputes_is_written_and_done(world):
    """Then the call waits for its client with all that is known of it."""
    owner = world.live()
    world.drive(world.owner(Expected(owner.epoch, owner.claim)))
    owner.ask_refresh()
    world.drive(owner)
    world.new_redis()
    owner.on_new_server()
    world.drive(owner)
    world.settle_redis()
    world.drive(owner)
    assert owner.phase is Phase.LOST
    assert world.look("")[0] == b"live"


def test_a_late_memory_write_makes_the_owner_write_the_whole(world):
    """Whatever came between, the owner's copy holds."""
    owner = world.live()
    world.deliver(owner, "m1")
    world.redis.execute(SCRIPTS.rewrite(KEYS, owner.epoch, owner.claim, 7, [b"strange"]), world.now)
    world.apply(owner, "m1")
    world.drive(owner)
    assert world.recall(owner) == [b"memory of m1"]
    assert b"applied" in world.look("m1")[1]


def test_a_bell_that_nobody_hears_is_noticed(world):
    """Redis counts who listens: what we believe of our subscriptions is no proof."""
    owner = world.live()
    world.redis.subscribers[KEYS.channel] = 1
    owner.ask_refresh()
    world.drive(owner)
    assert not owner.is_bell_unheard
    world.redis.subscribers.clear()
    owner.ask_refresh()
    world.drive(owner)
    assert owner.is_bell_unheard


def test_many_verdicts_are_written_in_parts(world):
    """One call must not hold up the batch that it is asked in."""
    owner = world.live()
    for number in range(SETTLES_MAX + 1):
        world.put(f"m{number}")
    owner.on_subscribed()
    world.drive(owner)
    owner.on_new_server()
    steps = owner.steps(world.now, world.now)
    assert len([step for step in steps if step.kind == "settle"]) <= SETTLES_MAX


def test_a_new_call_whose_id_somebody_has_is_lost(world):
    """An id is given once; a second holder is a mistake that must not end the first one's call."""
    world.live()
    second = world.owner()
    world.drive(second)
    assert (second.phase, second.refusal) == (Phase.LOST, "fenced")


def test_a_tombstone_of_somebody_else_ends_the_call_here(world):
    """It says why."""
    owner = world.live()
    other = world.owner(Expected(owner.epoch, owner.claim))
    world.drive(other)
    other.end(TOMBSTONE, world.now)
    world.drive(other)
    owner.ask_refresh()
    world.drive(owner)
    assert (owner.phase, owner.tombstone) == (Phase.LOST, TOMBSTONE)


def test_a_redis_that_does_not_answer_ends_nothing(world):
    """However long; the machine asks again and keeps what it has to say."""
    owner = world.live()
    world.deliver(owner, "m1")
    world.apply(owner, "m1")
    for _ in range(50):
        world.lose_answers(owner, executed=False)
        world.now += 10
    assert owner.phase is Phase.HELD
    world.drive(owner)
    assert b"applied" in world.look("m1")[1]
