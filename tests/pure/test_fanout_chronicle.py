"""What a call writes for those who look on: numbers, bounds, repeats, facts, and for how long anybody looks.

Redis is tests/support/redis_model.py, so that what is said here of a flush is said of its script.
"""

import pytest

from fanout.core.chronicle import Chronicle
from fanout.core.envelope import Batch, LogKind, Ring
from fanout.core.keys import Keys
from fanout.core.scripts import Scripts
from fanout.errors import RegionUnreachable
from fanout.messages import CallRecord
from fanout.settings import BusSettings
from tests.support.redis_model import RedisModel

CALL, WALL = "call-1", 1_790_000_000.0
KEYS = Keys("relay").call(CALL, "acme")
EVENT, AUDIO, SNAPSHOT = LogKind.EVENT, LogKind.AUDIO, LogKind.SNAPSHOT
RECORD = CallRecord(id=CALL, tenant="acme", node="n1", region="iad", agent="a", model="m", started_at=1.0)
AWAY = RegionUnreachable("iad")
LEASE = 60_000


class Owner:
    """A call whose owner has claimed it, on a model of Redis; `now` is its clock."""

    def __init__(self, *, is_taken=False, is_watched=True, is_heard=False, **changes):
        settings = BusSettings(node="n1", region="iad", regions={"iad": "redis://unused"}, **changes)
        self.scripts = Scripts(settings)
        self.model = RedisModel("run")
        self.claim = "aa"
        claim = self.scripts.claim(KEYS, "fresh", self.claim, RECORD, latest_ms=10**15)
        self.epoch = int(self.model.execute(claim, WALL)[1])
        self.now = 100.0
        self.call = Chronicle(KEYS, self.scripts, is_taken=is_taken)
        self.call.on_interest(Ring(LEASE * is_watched, LEASE * is_heard), self.now)
        self.answer = None

    def note(self, name, value):
        return self.call.note(name, value, self.now)

    def ask(self):
        """What is to be written now, and what Redis answers to it; whether there was anything."""
        run = self.call.flush(self.now, self.epoch, self.claim)
        self.run = run
        self.answer = run and self.model.execute(run, WALL + self.now)
        return run is not None

    def flush(self, *, after=0.0, outcome=None):
        """After so long: what was published on the feed, as (first number, entries)."""
        self.now += after
        self.model.published.clear()
        if not self.ask():
            return None
        self.call.on_outcome(outcome or self.answer, self.now)
        return self.heard(KEYS.feed)

    def flush_all(self):
        """Everything, in as many flushes as it takes."""
        found = []
        while (batch := self.flush(after=1.5)) is not None:
            found += batch
        return found

    def heard(self, channel):
        batches = [Batch.unpack(data, max_bytes=1 << 24) for on, data in self.model.published if on == channel]
        return [(batch.first, batch.entries) for batch in batches]

    def due(self, *, can_write=True):
        """In how many seconds there is something to do."""
        due = self.call.due(self.now, can_write=can_write)
        return None if due is None else round(due - self.now, 3)

    @property
    def stored(self):
        return self.model.dump(WALL + self.now)

    @property
    def positions(self):
        return [int(entry.decode().split("-")[1]) for entry, _ in self.stored.get(KEYS.log, [])]

    @property
    def facts(self):
        return self.stored.get(KEYS.facts, {})


# -- the log


def test_nothing_is_logged_while_nobody_watches():
    """Nearly all calls, nearly all the time: they cost Redis nothing."""
    owner = Owner(is_watched=False)
    owner.call.log(b"e")
    owner.call.sound(b"a")
    assert (owner.call.is_watched, owner.call.is_heard, owner.due(), owner.flush()) == (False, False, None, None)


def test_events_are_numbered_and_go_at_once_then_together():
    """A person waits for the first; the others share a script."""
    owner = Owner()
    owner.call.log(b"e1")
    assert owner.due() == 0
    assert owner.flush() == [(1, [(EVENT, b"e1")])]
    owner.call.log(b"e2")
    owner.call.log(b"e3")
    assert owner.due() == 0.02
    assert owner.flush() is None
    assert owner.flush(after=0.02) == [(2, [(EVENT, b"e2"), (EVENT, b"e3")])]
    assert owner.positions == [1, 3]
    assert (owner.call.counts.logged, owner.call.counts.logged_bytes) == (3, 6)
    assert owner.due() == pytest.approx(LEASE / 1000 - 0.02)


def test_nothing_is_asked_before_the_answer():
    """A call's flushes keep their order."""
    owner = Owner()
    owner.call.log(b"e1")
    assert owner.ask()
    owner.call.log(b"e2")
    owner.now += 1
    assert not owner.ask()
    assert not owner.call.is_written
    assert owner.due() == LEASE / 1000 - 1


def test_who_begins_to_watch_gets_the_session_first():
    """Its effective settings say how the events after it are to be read."""
    owner = Owner(is_watched=False)
    owner.note("session", b"s1")
    owner.flush_all()
    assert owner.call.on_interest(Ring(LEASE, 0), owner.now)
    owner.call.log(b"e")
    assert owner.flush(after=1) == [(1, [(SNAPSHOT, b"s1"), (EVENT, b"e")])]


def test_a_session_that_is_known_later_is_told_once():
    """A backend may watch before the client connects."""
    owner = Owner()
    owner.call.log(b"e1")
    owner.note("session", b"s1")
    owner.note("session", b"s2")
    assert owner.flush() == [(1, [(EVENT, b"e1"), (SNAPSHOT, b"s1")])]
    assert owner.facts == {b"session": b"s2"}


def test_a_log_that_stood_still_passes_over_a_number():
    """Who comes back with a position must not believe that nothing happened meanwhile."""
    owner = Owner()
    owner.note("session", b"s")
    owner.call.log(b"e")
    owner.flush_all()
    owner.now += LEASE / 1000
    assert owner.call.on_tick(owner.now)
    assert not owner.call.is_watched
    owner.call.log(b"unseen")
    assert owner.call.on_interest(Ring(LEASE, 0), owner.now)
    assert owner.flush(after=1) == [(4, [(SNAPSHOT, b"s")])]


@pytest.mark.parametrize(
    ("is_taken", "is_watched", "first"),
    [(False, False, 1), (True, True, 1), (True, False, 2)],
    ids=["new", "taken-watched", "taken-unwatched"],
)
def test_a_new_epoch_begins_at_1_unless_something_may_have_passed(is_taken, is_watched, first):
    """Of a call that was taken over there are positions of its last owner."""
    owner = Owner(is_taken=is_taken, is_watched=is_watched)
    owner.call.on_interest(Ring(LEASE, 0), owner.now + 1)
    owner.call.log(b"e")
    assert owner.flush(after=1) == [(first, [(EVENT, b"e")])]


def test_what_does_not_fit_is_a_gap_in_the_numbers():
    """Watchers must see that something is missing; the owner must not hold more."""
    owner = Owner(log_pending_max=2)
    for number in range(1, 5):
        owner.call.log(b"e%d" % number)
    owner.ask()
    owner.call.log(b"e5")
    owner.call.on_outcome(owner.answer, owner.now)
    assert owner.call.counts.log_dropped == 2
    assert owner.heard(KEYS.feed) == [(1, [(EVENT, b"e1"), (EVENT, b"e2")])]
    assert owner.flush(after=1) == [(5, [(EVENT, b"e5")])]


def test_a_gap_ends_a_batch():
    """Numbers within one are counted from its first."""
    owner = Owner(is_heard=True, log_pending_max_bytes=10)
    owner.call.log(b"12345")
    owner.call.log(b"123456")
    owner.call.sound(b"a")
    owner.call.log(b"1234")
    assert owner.flush() == [(1, [(EVENT, b"12345")])]
    assert owner.flush(after=1) == [(3, [(EVENT, b"1234")])]
    assert owner.heard(KEYS.sound) == [(3, [(AUDIO, b"a"), (EVENT, b"1234")])]


def test_an_event_larger_than_the_log_is_left_out():
    """It would push everything else out."""
    owner = Owner(log_max_bytes=10)
    owner.call.log(b"12345678901")
    owner.call.log(b"1234567890")
    assert owner.flush() == [(2, [(EVENT, b"1234567890")])]
    assert owner.call.counts.log_dropped == 1


def test_one_flush_carries_so_much_and_at_least_one_event():
    """A script holds up the whole Redis."""
    owner = Owner(flush_max_bytes=10)
    for event in (b"12345678901", b"12345", b"12345", b"1"):
        owner.call.log(event)
    assert [len(owner.flush(after=1)[0][1]) for _ in range(3)] == [1, 2, 1]
    assert owner.call.is_written


@pytest.mark.parametrize("limit", [{"log_max": 3}, {"log_max_bytes": 3}], ids=["events", "bytes"])
def test_the_log_keeps_the_newest_batches(limit):
    """Redis holds a bounded part of every call that is watched."""
    owner = Owner(**limit)
    for _ in range(5):
        owner.call.log(b"e")
        owner.flush(after=1)
    assert owner.positions == [3, 4, 5]
    owner.call.log(b"e")
    owner.call.log(b"e")
    owner.flush(after=1)
    assert owner.positions == [5, 7]


def test_a_repeat_takes_no_further_place_in_the_log():
    """It would push out what is there."""
    owner = Owner(log_max=4)
    for outcome in (None, AWAY, AWAY, None):
        owner.call.log(b"e")
        owner.flush(after=1, outcome=outcome)
    owner.flush_all()
    assert owner.positions == [1, 2, 4]


def test_what_an_earlier_owner_logged_stays_until_there_is_as_much_anew():
    """Who comes back after a take-over reads the end of what was before it."""
    owner = Owner(log_max=2)
    batch = Batch(owner.epoch - 1000, 7, [(EVENT, b"old")])
    owner.model.execute(
        owner.scripts.log(KEYS, owner.epoch, "aa", batch=batch, lowest="0-0", sound=None, facts={}), WALL
    )
    owner.call.log(b"e")
    owner.flush()
    assert owner.positions == [7, 1]
    for _ in range(2):
        owner.call.log(b"e")
        owner.flush(after=1)
    assert owner.positions == [2, 3]


# -- sound


def test_sound_goes_between_the_events_to_those_who_listen():
    """In its order, with no number, and into no log."""
    owner = Owner(is_heard=True)
    owner.call.sound(b"a1")
    owner.call.log(b"e1")
    owner.call.sound(b"a2")
    assert owner.flush() == [(1, [(EVENT, b"e1")])]
    assert owner.heard(KEYS.sound) == [(1, [(AUDIO, b"a1"), (EVENT, b"e1"), (AUDIO, b"a2")])]
    owner.call.sound(b"a3")
    assert owner.flush(after=1) == []
    assert owner.heard(KEYS.sound) == [(2, [(AUDIO, b"a3")])]
    assert owner.positions == [1]
    assert owner.call.counts.sounds == 3


def test_nothing_is_sent_as_sound_where_nobody_listens():
    """It is by far the most of a call."""
    owner = Owner()
    owner.call.sound(b"a")
    owner.call.log(b"e")
    owner.flush()
    assert owner.heard(KEYS.sound) == []


def test_of_too_much_sound_the_oldest_goes():
    """Nobody wants to hear it late."""
    owner = Owner(is_heard=True, sound_pending_max_bytes=4)
    owner.call.log(b"e")
    for sound in (b"a1", b"a2", b"a3", b"larger"):
        owner.call.sound(sound)
    owner.flush()
    assert owner.heard(KEYS.sound) == [(1, [(EVENT, b"e"), (AUDIO, b"a2"), (AUDIO, b"a3")])]
    assert owner.call.counts.sounds_dropped == 2


def test_events_come_before_sound_where_room_is_short():
    """What is said is in the transcript, too; what happened is nowhere else."""
    owner = Owner(is_heard=True, log_pending_max=3)
    for sound in (b"a1", b"a2", b"a3", b"a4"):
        owner.call.sound(sound)
    for event in (b"e1", b"e2", b"e3"):
        owner.call.log(event)
    owner.call.sound(b"a5")
    assert owner.flush() == [(1, [(EVENT, b"e1"), (EVENT, b"e2"), (EVENT, b"e3")])]
    assert owner.call.counts.sounds_dropped == 5
    assert owner.call.counts.log_dropped == 0


def test_sound_that_waits_is_let_go_when_the_last_listener_is_gone():
    """The events of the same flush are not."""
    owner = Owner(is_heard=True)
    owner.call.on_interest(Ring(2 * LEASE, 0), owner.now)
    owner.call.sound(b"a")
    owner.call.log(b"e")
    owner.now += LEASE / 1000
    assert owner.call.on_tick(owner.now)
    assert (owner.call.is_watched, owner.call.is_heard) == (True, False)
    assert owner.flush() == [(1, [(EVENT, b"e")])]
    assert owner.heard(KEYS.sound) == []


# -- facts


def test_facts_are_written_together_at_moments_that_all_calls_share():
    """Many calls in one go cost half; a node may die at any time, so not much later. A transcript grows fast."""
    owner = Owner(is_watched=False, facts_seconds=1.0, facts_grid_seconds=0.25)
    owner.note("item.1", b"h")
    assert owner.due() == 0.25
    assert owner.due(can_write=False) is None
    assert owner.flush(after=0.24) is None
    assert owner.flush(after=0.01) == []
    assert owner.facts == {b"item.1": b"h"}
    owner.note("item.1", b"hel")
    owner.now += 0.1
    owner.note("item.1", b"hello")
    owner.note("usage", b"u")
    assert owner.due() == 1.15
    assert owner.flush(after=1.14) is None
    assert owner.flush(after=0.01) == []
    assert owner.facts == {b"item.1": b"hello", b"usage": b"u"}
    assert owner.call.counts.facts_written == 3
    assert owner.due() is None
    owner.now += 2
    owner.note("usage", b"v")
    assert owner.due() == 0.25


def test_facts_go_with_the_events_that_came_with_them():
    """Who reads both reads one moment."""
    owner = Owner()
    owner.note("usage", b"u")
    owner.call.log(b"e")
    assert owner.flush() == [(1, [(EVENT, b"e")])]
    assert owner.facts == {b"usage": b"u"}


def test_a_fact_that_did_not_change_is_not_written_again():
    """And one that goes is deleted, whoever wrote it."""
    owner = Owner(is_watched=False)
    owner.note("usage", b"u")
    owner.note("item.1", b"i")
    owner.flush_all()
    owner.note("usage", b"u")
    assert owner.due() is None
    owner.note("item.1", None)
    owner.note("item.0", None)
    owner.flush_all()
    assert owner.facts == {b"usage": b"u"}
    assert owner.run is None


@pytest.mark.parametrize("limit", [{"facts_max": 2}, {"facts_max_bytes": 8}], ids=["names", "bytes"])
def test_a_fact_for_which_there_is_no_room_is_left_out(limit):
    """What it was before would not be true any more."""
    owner = Owner(is_watched=False, **limit)
    told = [owner.note(name, value) for name, value in (("a", b"123"), ("b", b"123"), ("c", b"1"))]
    assert told == [True, True, False]
    owner.flush_all()
    assert owner.facts == {b"a": b"123", b"b": b"123"}
    assert owner.call.counts.facts_dropped == 1
    assert owner.note("a", b"1234567890") is ("facts_max" in limit)
    assert owner.note("b", b"12")
    owner.flush_all()
    if "facts_max_bytes" in limit:
        assert owner.facts == {b"b": b"12"}


def test_what_goes_makes_room():
    """So a session that has too much to remember lets the oldest go, and says so."""
    owner = Owner(is_watched=False, facts_max=2)
    assert owner.note("item.1", b"1")
    assert owner.note("item.2", b"2")
    assert not owner.note("item.3", b"3")
    assert owner.note("item.1", None)
    assert owner.note("item.3", b"3")
    owner.flush_all()
    assert owner.facts == {b"item.2": b"2", b"item.3": b"3"}


def test_a_new_owner_has_the_facts_of_the_last_one():
    """They are not written again; they take their room, and a Redis that loses them gets them from here."""
    owner = Owner(is_taken=True, is_watched=False, facts_max=2)
    owner.call.begin({"session": b"s", "usage": b"u"}, owner.now)
    assert owner.due() is None
    assert not owner.note("item.1", b"i")
    owner.flush_all()
    owner.note("usage", None)
    owner.flush_all()
    owner.call.on_lost(owner.now)
    owner.flush_all()
    assert owner.facts == {b"session": b"s"}


def test_facts_that_came_from_a_redis_that_is_gone_are_written_to_the_one_after_it():
    """The claim may have been answered by the one, and its answer read after the other was there."""
    owner = Owner(is_taken=True, is_watched=False)
    owner.call.on_lost(owner.now)
    owner.call.begin({"session": b"s"}, owner.now)
    owner.flush_all()
    assert owner.facts == {b"session": b"s"}


def test_who_begins_to_watch_after_a_take_over_gets_the_session_that_was_known():
    """The new owner need not say it again."""
    owner = Owner(is_taken=True, is_watched=False)
    owner.call.begin({"session": b"s"}, owner.now)
    owner.call.on_interest(Ring(LEASE, 0), owner.now)
    assert owner.flush(after=1) == [(2, [(SNAPSHOT, b"s")])]


def test_a_flush_that_was_given_up_and_comes_late_changes_no_fact():
    """A frozen Redis carries it out after the one that followed it, from another connection."""
    owner = Owner(is_watched=False)
    owner.note("item.1", b"hel")
    owner.note("item.2", b"to go")
    owner.now += 1
    late = owner.call.flush(owner.now, owner.epoch, "aa")
    owner.call.on_outcome(AWAY, owner.now)
    owner.note("item.1", b"hello")
    owner.note("item.2", None)
    owner.flush_all()
    assert owner.model.execute(late, WALL + owner.now)[0] == b"held"
    assert owner.facts == {b"item.1": b"hello"}


def test_deletions_that_wait_are_bounded():
    """A call that creates and deletes while Redis is away holds no more than others."""
    owner = Owner(is_watched=False, facts_max=2)
    assert [owner.note(f"item.{number}", None) for number in range(9)] == [True] * 4 + [False] * 5
    assert not owner.note("usage", b"u")
    assert owner.call.counts.facts_dropped == 5 + 2  # neither itself nor that it is gone
    owner.note("item.1", b"i")
    owner.flush_all()
    assert owner.facts == {b"item.1": b"i"}


def test_one_flush_carries_so_many_facts():
    """After Redis was replaced all of them are to be written."""
    owner = Owner(is_watched=False, flush_max_bytes=10)
    for name in "abcd":
        owner.note(name, b"1234")
    assert [len(owner.flush(after=0.25) is not None and owner.facts) for _ in range(2)] == [2, 4]
    assert owner.call.is_written


def test_another_redis_gets_every_fact():
    """It may have none; what it lacks of the log is a gap that its reader sees."""
    owner = Owner(is_watched=False)
    owner.note("usage", b"u")
    owner.flush_all()
    owner.model.delete(KEYS.facts)
    owner.call.on_lost(owner.now)
    owner.flush_all()
    assert owner.facts == {b"usage": b"u"}


def test_facts_that_a_failover_brought_back_go_where_there_are_none():
    """They are of an owner whose claim was taken back."""
    owner = Owner(is_watched=False)
    strange = {"usage": b"u"}
    owner.model.execute(
        owner.scripts.log(KEYS, owner.epoch, "aa", batch=None, lowest="", sound=None, facts=strange, number=1), WALL
    )
    claim = owner.scripts.claim(KEYS, "restore", "ab", RECORD, epoch=owner.epoch, latest_ms=10**15)
    owner.model.execute(claim, WALL)
    owner.claim = "ab"
    owner.call.on_lost(owner.now)
    owner.flush_all()
    assert owner.facts == {}
    assert owner.call.is_written


def test_a_fact_that_a_failover_brought_back_goes_again():
    """Its deletion was lost with the primary, or it is of an owner whose claim was taken back."""
    owner = Owner(is_watched=False, flush_max_bytes=10)
    for name in ("usage", "session", "item.1"):
        owner.note(name, b"1234")
    owner.flush_all()
    before = owner.model.copy("second")
    owner.note("item.1", None)
    owner.flush_all()
    owner.model = RedisModel("second")
    owner.call.on_lost(owner.now)
    owner.flush(after=1)
    assert owner.answer == [b"behind"]
    owner.model = before
    owner.flush(after=1)
    assert b"item.1" not in owner.facts
    owner.flush_all()
    assert owner.facts == {b"session": b"1234", b"usage": b"1234"}


def test_who_is_in_a_hurry_does_not_wait_for_other_facts():
    """The session is about to end the call. Later ones wait again."""
    owner = Owner(is_watched=False)
    owner.note("usage", b"u1")
    owner.call.hurry()
    assert owner.due() == 0
    assert owner.flush() == []
    assert owner.call.is_written
    owner.note("usage", b"u2")
    assert owner.due() == 1.25
    owner.flush_all()
    owner.call.hurry()
    owner.note("usage", b"u3")
    assert owner.due() == 0.25


def test_a_call_that_is_to_be_somebody_elses_writes_what_it_has_and_takes_no_more():
    """Its facts stay until somebody has them: this Redis may lose them."""
    owner = Owner(is_heard=True)
    owner.note("usage", b"u")
    owner.flush_all()
    owner.note("usage", b"v")
    owner.call.log(b"e1")
    owner.call.sound(b"a")
    owner.call.leave()
    owner.call.log(b"e2")
    assert owner.note("usage", b"w")
    assert not owner.call.on_interest(Ring(LEASE, LEASE), owner.now)
    assert owner.due() == 0.0
    assert owner.flush() == [(1, [(EVENT, b"e1")])]
    assert owner.call.is_written
    owner.model.delete(KEYS.facts)
    owner.call.on_lost(owner.now)
    owner.flush_all()
    assert owner.facts == {b"usage": b"v"}


# -- what the answers mean


def test_a_flush_without_an_answer_is_repeated_with_the_same_events():
    """They have one id in the log. Its sound is not: it may have been heard. Facts are the latest."""
    owner = Owner(is_heard=True)
    owner.note("usage", b"u1")
    owner.call.sound(b"a")
    owner.call.log(b"e1")
    owner.ask()
    owner.call.log(b"e2")
    owner.note("usage", b"u2")
    owner.call.on_outcome(AWAY, owner.now)
    assert not owner.call.is_written
    assert owner.flush(after=1) == [(1, [(EVENT, b"e1")])]
    assert owner.heard(KEYS.sound) == [(1, [(EVENT, b"e1")])]
    assert owner.facts == {b"usage": b"u2"}
    assert owner.flush(after=1) == [(2, [(EVENT, b"e2")])]
    assert owner.positions == [1, 2]
    assert owner.call.counts.sounds_dropped == 1


def test_a_flush_of_sound_and_facts_alone_is_made_anew():
    """There is nothing in it that must be the same."""
    owner = Owner(is_heard=True)
    owner.note("usage", b"u")
    owner.call.sound(b"a")
    owner.flush(outcome=AWAY)
    owner.model.delete(KEYS.facts)
    assert owner.flush(after=1.5) == []
    assert owner.facts == {b"usage": b"u"}
    assert owner.heard(KEYS.sound) == []


def test_an_owner_whose_record_is_gone_waits_until_it_is_restored():
    """Which is the business of another machine, and takes a moment."""
    owner = Owner()
    owner.model.delete(KEYS.call)
    owner.call.log(b"e")
    owner.flush()
    assert owner.answer == [b"behind"]
    assert owner.due() == 0.25


@pytest.mark.parametrize("word", [b"fenced", b"ended"])
def test_a_call_that_is_somebody_elses_or_over_waits_until_its_owner_knows(word):
    """Who decides that reads for itself: a failover may take the other's claim back, and then all is still needed."""
    owner = Owner()
    owner.note("usage", b"u")
    owner.call.log(b"e")
    owner.ask()
    assert not owner.call.on_outcome([word, b"9"], owner.now)
    assert owner.due() == 0.25
    assert owner.flush(after=0.25) == [(1, [(EVENT, b"e")])]
    assert owner.facts == {b"usage": b"u"}


def test_a_call_that_is_closed_keeps_nothing():
    """It is over, or somebody else's."""
    owner = Owner()
    owner.note("usage", b"u")
    owner.call.close()
    owner.call.log(b"e")
    assert owner.note("usage", b"v")
    owner.call.on_lost(owner.now)
    assert not owner.call.on_interest(Ring(LEASE, LEASE), owner.now)
    assert (owner.call.is_watched, owner.call.is_written, owner.due()) == (False, True, None)


def test_a_call_that_ends_during_a_flush_keeps_nothing():
    """The answer comes to nobody."""
    owner = Owner()
    owner.call.log(b"e")
    owner.ask()
    owner.call.close()
    assert owner.call.is_written
    assert not owner.call.on_outcome(AWAY, owner.now)
    assert owner.due() is None


# -- who looks


def test_interest_lasts_as_long_as_its_leases():
    """Every answer of Redis says how long that is."""
    owner = Owner(is_watched=False)
    for node, sound in (("a", False), ("b", True)):
        watch = Scripts(BusSettings(node=node, region="iad", regions={"iad": "redis://unused"})).watch(
            KEYS, "acme", sound=sound
        )
        owner.model.execute(watch, WALL + owner.now)
    owner.note("usage", b"u")
    owner.now += 30
    assert owner.ask()
    assert owner.call.on_outcome(owner.answer, owner.now)
    assert (owner.call.is_watched, owner.call.is_heard, owner.due()) == (True, True, 30)
    owner.now += 29
    assert not owner.call.on_tick(owner.now)
    owner.now += 1
    assert owner.call.on_tick(owner.now)
    assert (owner.call.is_watched, owner.call.is_heard, owner.due()) == (False, False, None)


def test_a_shorter_lease_than_was_known_is_a_redis_that_forgot():
    """Nobody revokes one; whoever still watches says so again before the old one is over."""
    owner = Owner(is_heard=True)
    assert not owner.call.on_interest(Ring(0, 0), owner.now)
    assert (owner.call.is_watched, owner.call.is_heard) == (True, True)
