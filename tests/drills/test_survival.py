"""The judge of the drills of continuity: each promise, broken once in what was noticed, is named; nothing else is."""

from dataclasses import replace

import pytest

from tests.drills.survival import Allowed, Call, Session, judge_calls, judge_messages, percentile
from tests.drills.verdict import Item, Message, Verdict

ITEMS = (
    {"id": "item_1", "type": "message", "role": "user", "text": "2.0 seconds of speech."},
    {"id": "item_2", "type": "message", "role": "assistant", "text": "You said that."},
    {"id": "item_3", "type": "message", "role": "system", "text": "m1-0 for the model"},
)
GOOD = Call(
    number=1,
    ended="hung up",
    created=2,
    codes=(1012, 1000),
    back=(0.4,),
    waits=(0.5, 0.6),
    gaps=(0.02,),
    unanswered=0,
    view=ITEMS,
    sessions=(Session("old", 1.0, 20.0, 1.1, 10.0), Session("new", 10.1, None, 10.2, 30.0)),
    items=(*ITEMS, {"id": "relay_anchor_1", "type": "message", "role": "system", "text": "Go on."}),
    facts=ITEMS,
)
DEPLOY = Allowed(codes={1012}, recoveries=1)


def broken(allowed=DEPLOY, twins=None, **fields):
    """What is broken in a drill with one call that differs from a good one in what is given."""
    verdict = Verdict(0, 0, {})
    judge_calls(verdict, [replace(GOOD, **fields)], allowed, twins or {})
    return verdict.broken


def changed(**fields):
    """The items, the second of them different."""
    return (ITEMS[0], ITEMS[1] | fields, ITEMS[2])


def test_a_call_that_came_back_with_all_that_it_knew_breaks_nothing():
    """Otherwise no drill could be kept. What tells a model where it is, is nobody else's."""
    assert broken() == []


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"ended": "1011 node_failed"}, "1 calls ended: call 1: 1011 node_failed"),
        ({"created": 3}, "1 calls had other than one session.created for each connection: 3 of 2 of call 1"),
        ({"codes": (1011, 1000)}, "1 connections ended for no reason: call 1: 1011"),
        ({"back": (2.1,)}, "1 ways back that took too long: p99 2.10 s"),
        ({"back": ()}, "1 drills that show nothing: 0 connections were lost and made again"),
        ({"unanswered": 2}, "1 calls had turns without an answer: 2 of call 1"),
        (
            {"sessions": (GOOD.sessions[0], replace(GOOD.sessions[1], heard_from=9.5))},
            "1 sessions heard the person when another one did already: old of call 1, 0.500 s",
        ),
    ],
    ids=["ended", "greeted twice", "cut", "slow", "undisturbed", "silent", "both hear"],
)
def test_what_a_person_must_not_notice_is_named(fields, what):
    """A person in a call hears at most a pause."""
    assert broken(**fields) == [what]


def test_two_sockets_that_are_read_in_one_turn_are_no_two_listeners():
    """The last frame of one and the first of the other have one moment between them."""
    sessions = (GOOD.sessions[0], replace(GOOD.sessions[1], heard_from=9.99))
    assert broken(sessions=sessions) == []


def test_too_few_and_too_many_sessions_are_named():
    """With too few of them the drill shows nothing; with too many a call was built anew for no reason."""
    assert broken(replace(DEPLOY, sessions=(2, 2))) == []
    assert broken(replace(DEPLOY, sessions=(3, 9))) == ["1 calls had other than 3 to 9 sessions: 2 of call 1"]
    assert broken(replace(DEPLOY, sessions=(1, 1))) == ["1 calls had other than 1 to 1 sessions: 2 of call 1"]


@pytest.mark.parametrize(
    "items",
    [changed(text="You said"), (ITEMS[1], ITEMS[0], ITEMS[2]), ITEMS[1:], (*ITEMS, ITEMS[0] | {"id": "item_4"})],
    ids=["other words", "other order", "one less", "one more"],
)
def test_a_conversation_that_is_not_the_clients_is_named(items):
    """At the model it is the model that forgot; at the home it will be the next node."""
    assert "between what clients and the model's last sessions have" in broken(items=items)[0]
    assert "between what clients (left) and the calls' homes have" in broken(facts=items)[0]


def test_items_may_be_missing_where_the_drill_gives_a_reason():
    """What a node that was killed had not written yet; never more, and never altered."""
    lost, home = ITEMS[:1] + ITEMS[2:], ITEMS[:1] + ITEMS[2:]
    assert broken(replace(DEPLOY, missing=1), items=lost, facts=home) == []
    assert len(broken(replace(DEPLOY, missing=1), items=ITEMS[2:], facts=ITEMS[2:])) == 2
    assert len(broken(replace(DEPLOY, missing=1), items=changed(text="You said"))) == 1
    assert len(broken(replace(DEPLOY, missing=1), codes=(1000,), created=1, items=lost, facts=home)) == 2


def test_only_a_backends_item_may_be_unseen_where_the_drill_gives_a_reason():
    """The client was away when it was added."""
    allowed = replace(DEPLOY, unseen=1)
    assert broken(allowed, view=ITEMS[:2]) == []
    assert len(broken(view=ITEMS[:2])) == 2
    assert len(broken(allowed, view=ITEMS[1:])) == 2


def test_answers_that_are_later_than_the_twins_are_named():
    """Turn by turn: the model takes its time for each of them, and longer where tools are called."""
    allowed = replace(DEPLOY, later_than_twin=0.3)
    assert broken(allowed, {1: replace(GOOD, waits=(0.3, 0.4))}) == []
    assert broken(allowed, {1: replace(GOOD, waits=(0.1, 0.6))}) == [
        "1 silences were longer than the twin's by more than 0.3 s: turn 0 of call 1: 0.50 s instead of 0.10"
    ]
    assert len(broken(allowed, {1: replace(GOOD, waits=(0.5,))})) == 1
    assert len(broken(allowed, {1: GOOD}, gaps=(0.4,))) == 1


def test_answers_that_are_late_where_nothing_delays_them_are_named():
    """Audio goes on, whatever becomes of the bus."""
    allowed = replace(DEPLOY, answer_seconds=1.0)
    assert broken(allowed) == []
    assert broken(allowed, waits=(0.5, 1.1)) == ["1 answers were late or broken off: 1.10 s in call 1"]
    assert broken(allowed, gaps=(0.31,)) == ["1 answers were late or broken off: a gap of 0.31 s in call 1"]


@pytest.mark.parametrize(
    ("receipt", "items", "allowed", "what"),
    [
        ("applied", ["m1-0"], DEPLOY, []),
        ("applied", [], DEPLOY, ["1 told applied and not in the conversation: m1-0"]),
        ("applied", ["m1-0", "m1-0"], DEPLOY, ["1 repeated in a conversation: m1-0"]),
        ("expired", [], DEPLOY, ["1 answered 2xx and then refused: m1-0 (expired: None)"]),
        ("expired", [], replace(DEPLOY, expiry=True), []),
        (
            "expired",
            ["m1-0"],
            replace(DEPLOY, expiry=True),
            ["1 told refused and in the conversation: m1-0 (expired: None)"],
        ),
    ],
    ids=["kept", "lost", "twice", "expired", "expired for a reason", "expired and there"],
)
def test_a_message_is_where_its_receipt_says(receipt, items, allowed, what):
    """In the session that goes on, whatever became of the ones before."""
    verdict = Verdict(0, 0, {})
    message = Message("m1-0", 1, "backend", 0, 7, True, receipt, None, None, "near")
    judge_messages(verdict, [message], {1: [Item(each, 7) for each in items]}, {"200": 1}, allowed)
    assert verdict.broken == what


def test_a_dishonest_answer_is_named():
    """A node that goes may cut a connection, but not say that there is no such call."""
    verdict = Verdict(0, 0, {})
    answers = {"200": 1, "503 bus_busy": 2, "broken (ClientOSError)": 3, "404 call_not_found": 4}
    judge_messages(verdict, [], {}, answers, DEPLOY)
    assert verdict.broken == ["1 kinds of dishonest answers: 4× 404 call_not_found"]


def test_a_percentile_is_one_of_the_values():
    """The nearest rank."""
    assert percentile([3.0], 0.99) == 3.0
    assert percentile(range(1, 102), 0.5) == 51
    assert percentile(range(1, 102), 0.99) == 100
