"""Ten thousand schedules hold every promise under one fault; with any one rule of the protocol away, some don't.

Each schedule is a seed: `python -m tests.simulation --seed N --trace` shows what happened in it.
"""

import pytest

from fanout.core import ownership
from fanout.core.chronicle import Chronicle
from fanout.core.holds import Holds
from fanout.core.inbox import Inbox
from fanout.core.outbox import Outbox
from fanout.core.ownership import Ownership
from fanout.core.phases import Phase
from fanout.core.scripts import Scripts
from tests.simulation.faults import FAULTS
from tests.simulation.many import replay_command, run_many
from tests.simulation.schedule import simulate
from tests.support import redis_model
from tests.support.redis_model import RedisModel

SEEDS = 10_000
SEARCHED = 2_000
SHOWN = 5


@pytest.mark.timeout(400)
def test_every_promise_holds_under_any_one_fault():
    """Applied is once in the conversation, 2xx has its end, order and deadlines hold, no live call is given up."""
    faults, failures = set(), []
    for outcome in run_many(0, SEEDS, processes=2):
        faults.update(outcome.faults)
        if outcome.broken:
            failures.append("\n    ".join([replay_command(outcome), *outcome.broken]))
    assert faults == set(FAULTS)
    assert not failures, f"{len(failures)} of {SEEDS} schedules:\n" + "\n".join(failures[:SHOWN])


def test_a_seed_is_the_same_schedule_in_every_process():
    """Else a failure could not be replayed."""
    here = [simulate(seed) for seed in range(20)]
    assert list(run_many(0, 20, processes=1)) == here
    assert simulate(3, is_traced=True).trace == simulate(3, is_traced=True).trace


def test_two_faults_can_be_tried():
    """Nothing is promised for them, but that the world goes on."""
    assert all(len(simulate(seed, faults=2).faults) == 2 for seed in range(20))


# Rules, each taken away


def deliver_what_is_known(patch):
    known = Inbox.on_entries
    patch.setattr(Inbox, "on_entries", lambda self, entries, now: known(_Forgetful(self), entries, now))


class _Forgetful:
    """An inbox that has seen nothing."""

    def __init__(self, inbox):
        self._known = {}
        self._take = inbox._take
        self.counts = inbox.counts


def name_no_message_before(patch):
    patch.setattr(Outbox, "_before", lambda self, outgoing: [])


def restore_no_record(patch):
    patch.setattr(Ownership, "_restore", property(lambda self: False, lambda self, value: None), raising=False)


def rewrite_nothing(patch):
    patch.setattr(Ownership, "_say_all_again", lambda self: self.inbox.ask_read())


def hold_no_message(patch):
    patch.setattr(Holds, "take", lambda self, tags: [])


def forget_a_message_once_it_is_accepted(patch):
    note = Outbox._note

    def note_and_forget(self, outgoing, receipt, now):
        done = note(self, outgoing, receipt, now)
        self._queue.pop(outgoing.message_id, None)
        return done

    patch.setattr(Outbox, "_note", note_and_forget)


def let_every_claim_write(patch):
    patch.setattr(RedisModel, "_fence", lambda self, keys, epoch, claim: [b"held"])


def let_claims_come_late(patch):
    claim = Scripts.claim
    patch.setattr(Scripts, "claim", lambda *args, **kwargs: claim(*args, **{**kwargs, "latest_ms": 10**15}))


def let_no_server_settle(patch):
    patch.setattr(RedisModel, "_phase_of_server", lambda *args: (b"normal", 0.0))


def let_late_facts_change_what_is_known(patch):
    log = redis_model._SCRIPTS["log"]

    def log_unnumbered(self, keys, args):
        self._keys.get(keys[1], {}).pop(b"facts_at", None)
        return log(self, keys, args)

    patch.setitem(redis_model._SCRIPTS, "log", log_unnumbered)


def forget_no_fact_of_others(patch):
    log = Scripts.log
    patch.setattr(Scripts, "log", lambda *args, are_all, **kwargs: log(*args, **kwargs))


def hand_over_before_facts_are_written(patch):
    made = Ownership.__init__
    patch.setattr(Ownership, "__init__", lambda *args, is_noted, **kwargs: made(*args, **kwargs))
    patch.setattr(Chronicle, "leave", lambda self: setattr(self, "_is_leaving", True))  # and in no hurry


def keep_nothing_of_what_was_handed_over(patch):
    patch.setattr(ownership, "AGAIN", {Phase.ENDED: Phase.ENDING})


RULES = [
    (deliver_what_is_known, "feeds_dropped", "delivered twice"),
    (name_no_message_before, "failover_split", "is before"),
    (restore_no_record, "restarted_empty", ""),
    (rewrite_nothing, "failover", "Redis does not have what"),
    (hold_no_message, "restarted_empty", "its receipt is None"),
    (forget_a_message_once_it_is_accepted, "failover", "was answered 2xx"),
    (let_every_claim_write, "nothing", "is held by"),
    (let_claims_come_late, "node_frozen", ""),
    (let_no_server_settle, "restarted_empty", "is live, and"),
    (let_late_facts_change_what_is_known, "link_cut", "has the facts"),
    (forget_no_fact_of_others, "failover", "has the facts"),
    (hand_over_before_facts_are_written, "link_cut", "is taken with"),
    (keep_nothing_of_what_was_handed_over, "failover", "is not in the conversation"),
]


@pytest.mark.timeout(200)
@pytest.mark.parametrize(("take_away", "fault", "promise"), RULES, ids=[rule[0].__name__ for rule in RULES])
def test_without_a_rule_a_promise_breaks(monkeypatch, take_away, fault, promise):
    """So the rule is needed, and the simulation would see it missing; with the rule the same schedule keeps it."""
    with monkeypatch.context() as patch:
        take_away(patch)
        caught = next((seed for seed in range(SEARCHED) if _breaks(seed, fault, promise)), None)
    assert caught is not None
    assert not _breaks(caught, fault, promise)


def _breaks(seed, fault, promise):
    return any(promise in broken for broken in simulate(seed, fault=fault).broken)
