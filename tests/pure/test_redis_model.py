"""What the model of a Redis process adds to its scripts: time to live, entry ids, replicas, and being quick.

That its scripts do what the real ones do is shown in tests/contract/test_scripts.py.
"""

import time

import pytest

from fanout.core.keys import Keys
from fanout.core.memory import MemoryEntry
from fanout.core.records import receipt_from_stored
from fanout.core.scripts import Scripts, outgoing_args
from fanout.core.verdicts import Verdict
from fanout.messages import CallRecord, Status, Tombstone
from fanout.settings import BusSettings
from tests.support.redis_model import RedisModel

CALL, NOW = "call-1", 1_790_000_000.25
TTL, KEPT, NODE_TTL = 100.0, 30.0, 8.0
KEYS = Keys("relay").call(CALL, "acme")
SCRIPTS = Scripts(
    BusSettings(
        node="n1",
        region="iad",
        regions={"iad": "redis://unused"},
        call_ttl_seconds=TTL,
        tombstone_seconds=KEPT,
        node_ttl_seconds=NODE_TTL,
    )
)


def normally(run):
    """The run on a server that has settled."""
    return run._replace(args=(0, 0, *run.args[2:]))


def claim(name="aa"):
    record = CallRecord(id=CALL, tenant="acme", node="n1", region="iad", agent="a", model="m", started_at=1.0)
    return normally(SCRIPTS.claim(KEYS, "fresh", name, record, latest_ms=10**15))


def publish(message="m1", before=""):
    outgoing = outgoing_args(CALL, message, "print", b"envelope", f"item_{message}", wants_response=False)
    return normally(SCRIPTS.publish(KEYS, "acme", outgoing, before, again=False))


def settle(message, position=0, *, now=NOW):
    verdict = Verdict(Status.APPLIED, wants_response=False, reached={"applied": now})
    verdict.memory = MemoryEntry(position, message.encode())
    return normally(SCRIPTS.settle(KEYS, int(NOW * 1000), "aa", CALL, message, verdict, keep=10))


def refresh():
    return normally(SCRIPTS.refresh(KEYS, int(NOW * 1000), "aa"))


def end():
    tombstone = Tombstone(
        id=CALL, tenant="acme", node="n1", region="iad", started_at=1.0, ended_at=2.0, why="left", fault="client"
    )
    return normally(SCRIPTS.end(KEYS, int(NOW * 1000), "aa", tombstone))


def lookup():
    return normally(SCRIPTS.lookup(KEYS, "acme"))


def test_a_call_that_nobody_refreshes_is_gone_after_its_time():
    """An owner that died with its whole node must not leave it for ever."""
    model = RedisModel("run-1")
    for run in (claim(), publish(), settle("m1")):
        model.execute(run, NOW)
    assert model.execute(refresh(), NOW + TTL)[0] == b"held"
    assert model.execute(lookup(), NOW + 2 * TTL)[0] == b"live"
    assert model.execute(lookup(), NOW + 2 * TTL + 0.002) == [b"absent"]
    assert list(model.dump(NOW + 2 * TTL + 0.002)) == [KEYS.generation]


def test_a_list_leaves_out_a_call_whose_time_is_over():
    """Its index may live on, kept by the tenant's other calls."""
    model = RedisModel("run-1")
    model.execute(claim(), NOW)
    listed = normally(SCRIPTS.list(KEYS.tag, "", "acme", 10, None))
    assert len(model.execute(listed, NOW + TTL)) == 2
    model.execute(claim()._replace(keys=(*KEYS.all[:1], KEYS.call + "0", *KEYS.all[2:])), NOW + TTL)
    assert model.execute(listed, NOW + TTL + 1) == [b"found"]


def test_what_is_kept_of_an_ended_call_goes_after_its_time():
    """A tombstone, and the receipts with it."""
    model = RedisModel("run-1")
    for run in (claim(), publish(), end()):
        model.execute(run, NOW)
    assert model.execute(lookup(), NOW + KEPT)[0] == b"ended"
    assert model.execute(lookup(), NOW + KEPT + 0.002) == [b"absent"]
    assert list(model.dump(NOW + KEPT + 0.002)) == [KEYS.generation]


def test_a_heartbeat_lasts_as_long_as_it_says():
    """Each renews it."""
    model = RedisModel("run-1")
    beat, alive = normally(SCRIPTS.beat(KEYS.tag, "boot")), normally(SCRIPTS.alive("n1"))
    alive = alive._replace(keys=beat.keys)
    model.execute(beat, NOW)
    model.execute(beat, NOW + 5)
    assert model.execute(alive, NOW + 5 + NODE_TTL) == [b"alive", b"boot"]
    assert model.execute(alive, NOW + 5 + NODE_TTL + 0.002) == [b"gone"]


def test_entry_ids_rise_while_the_clock_stands_or_goes_back():
    """As a server's do, also past entries that are gone."""
    model = RedisModel("run-1")
    model.execute(claim(), NOW)
    ids = []
    for number, now in enumerate([NOW, NOW, NOW - 5, NOW + 1, NOW]):
        answer = model.execute(publish(f"m{number}"), now)
        assert receipt_from_stored(CALL, f"m{number}", answer[1]).status is Status.ACCEPTED
        model.execute(settle(f"m{number}", number), now)
        ids.append(model.dump(now)[KEYS.call][b"last_entry"].decode())
    ms = int(NOW * 1000)
    assert ids == [f"{ms}-0", f"{ms}-1", f"{ms}-2", f"{ms + 1000}-0", f"{ms + 1000}-1"]
    assert model.dump(NOW)[KEYS.inbox] == []


def test_a_copy_goes_its_own_way():
    """Neither sees what the other does, in any kind of key; nobody listens to the new process."""
    model = RedisModel("run-1")
    model.subscribers[KEYS.channel] = 1
    for run in (claim(), publish("m1"), publish("m2"), settle("m1"), normally(SCRIPTS.beat(KEYS.tag, "boot"))):
        model.execute(run, NOW)
    before = model.dump(NOW)
    copy = model.copy("run-2")
    assert copy.dump(NOW) == before
    assert (copy.published, copy.subscribers) == ([], {})
    for run in (publish("m3"), settle("m2", 1), normally(SCRIPTS.beat(KEYS.tag, "boot-2")), end()):
        copy.execute(run, NOW + 1)
    assert model.dump(NOW) == before
    assert copy.dump(NOW) != before
    assert model.execute(refresh(), NOW + 1)[3] == 1


@pytest.mark.parametrize("lag", range(8), ids=lambda lag: f"behind_by_{lag}")
def test_a_replica_that_ran_what_the_primary_ran_holds_what_it_held(lag):
    """With the primary's run id and clock, to the last time to live; promoted, it is another server to the scripts."""
    runs = [claim(), publish("m1"), settle("m1"), publish("m2"), publish("m3", "m2"), settle("m3", 1), refresh(), end()]
    primary = RedisModel("run-1")
    replica = primary.copy(primary.run_id)
    held = []
    for number, run in enumerate(runs):
        primary.execute(run, NOW + number)
        held.append((primary.dump(NOW + number), [primary.expires_at(key) for key in KEYS.all]))
    for number, run in enumerate(runs[: len(runs) - lag]):
        replica.execute(run, NOW + number)
    now = NOW + len(runs) - lag - 1
    assert (replica.dump(now), [replica.expires_at(key) for key in KEYS.all]) == held[-1 - lag]
    replica.run_id = "promoted"
    beat = SCRIPTS.beat(KEYS.tag, "boot")
    assert replica.execute(beat._replace(keys=(KEYS.generation, *beat.keys[1:])), now)[2] == b"settling"


def test_the_model_is_quick_enough_to_be_run_millions_of_times():
    """A simulation takes tens of millions of steps: some ten microseconds each; here with room for a busy machine."""
    model = RedisModel("run-1")
    model.execute(claim(), NOW)
    runs = [run for number in range(1000) for run in (publish(f"m{number}"), settle(f"m{number}", number), refresh())]
    started = time.process_time()
    for number, run in enumerate(runs):
        assert model.execute(run, NOW + number / 100)[0] in {b"receipt", b"held"}
        model.published.clear()
    assert (time.process_time() - started) / len(runs) < 100e-6
