"""The judge of the drills: each promise, broken once in the logs, is named; nothing else is."""

from dataclasses import replace

import pytest

from tests.drills.verdict import Audio, Item, Message, is_honest, judge, summary

SENT = tuple(
    Message(
        id=f"m{call}-{publisher}-{number}",
        call=call,
        publisher=publisher,
        number=number,
        checksum=number,
        accepted=True,
        receipt="applied",
        applied_ms=10.0 + number,
        error=None,
        lane="near",
    )
    for call in (0, 1)
    for number in (0, 1, 2)
    for publisher in ("a", "b")
)
AUDIO = (Audio(0, 100, 100, 0, 20.0, 500.0), Audio(1, 100, 100, 0, 30.0, 500.0))


def conversations(messages=SENT):
    """What the model has when all is well."""
    found = {}
    for message in messages:
        found.setdefault(message.call, []).append(Item(message.id, message.checksum))
    return found


def judged(messages=SENT, answers=None, seen=None, audio=AUDIO, ended=(), felt_ms=0.0):
    """The verdict on a drill that differs from a good one in what is given."""
    seen = conversations() if seen is None else seen
    return judge(messages, answers or {"200": len(messages)}, seen, audio, ended, p99_limit_ms=500.0, felt_ms=felt_ms)


def changed(place, **fields):
    """All messages, one of them different."""
    return [replace(message, **fields) if at == place else message for at, message in enumerate(SENT)]


def without(place):
    """What the model has, without one message."""
    return conversations([message for at, message in enumerate(SENT) if at != place])


def test_a_drill_in_which_everything_arrived_breaks_nothing():
    """Otherwise no drill could be kept."""
    found = judged()
    assert found.broken == []
    assert (found.sent, found.accepted, found.lost, found.repeated, found.disordered) == (12, 12, 0, 0, 0)
    assert (found.frames_sent, found.frames_lost, found.held_ms) == (200, 0, 30.0)


def test_a_message_told_applied_that_the_model_has_not_is_lost():
    """The worst that can be told."""
    found = judged(seen=without(3))
    assert found.lost == 1
    assert found.broken == ["1 told applied and not in the conversation: m0-b-1"]


@pytest.mark.parametrize("receipt", [None, "accepted", "delivered", "asked for it: 404 message_not_found"])
def test_a_message_answered_2xx_without_a_terminal_receipt_is_lost(receipt):
    """Its publisher would never learn what became of it."""
    found = judged(changed(0, receipt=receipt))
    assert found.lost == 1
    assert found.broken == [f"1 answered 2xx without a terminal receipt: m0-a-0 ({receipt})"]


def test_a_message_answered_2xx_and_then_refused_is_named():
    """Nothing in the drills gives the model or the owner a reason to refuse."""
    found = judged(changed(2, receipt="failed", error="model_timeout"), seen=without(2))
    assert found.broken == ["1 answered 2xx and then refused: m0-a-1 (failed: model_timeout)"]


def test_a_message_told_refused_that_the_model_has_is_named():
    """A backend would send it again under another id."""
    assert judged(changed(2, receipt="expired", error="expired")).broken == [
        "1 told refused and in the conversation: m0-a-1 (expired: expired)"
    ]


def test_a_message_that_stands_twice_in_its_conversation_is_repeated():
    """Whatever id the model gave its items: the text tells."""
    seen = conversations()
    seen[1].append(seen[1][0])
    found = judged(seen=seen)
    assert found.repeated == 1
    assert found.broken == ["1 repeated in a conversation: m1-a-0"]


def test_a_message_behind_a_later_one_of_its_publisher_is_out_of_order():
    """Two publishers may come in any order to one another."""
    seen = conversations()
    swapped = seen[0]
    swapped[0], swapped[1] = swapped[1], swapped[0]
    assert judged(seen=seen).broken == []
    swapped[1], swapped[3] = swapped[3], swapped[1]
    found = judged(seen=seen)
    assert found.disordered == 1


def test_a_message_that_was_never_taken_is_named_and_may_be_missing():
    """After the repair every refused message must be taken; one that was not taken is not lost."""
    found = judged(changed(11, accepted=False, receipt=None, applied_ms=None), seen=without(11))
    assert found.lost == 0
    assert found.broken == ["1 never answered 2xx: m1-b-2"]


def test_an_altered_and_a_strange_item_are_named():
    """Another text than was sent, or in another call."""
    seen = conversations()
    seen[0][0] = Item(seen[0][0].id, 99)
    seen[0].append(Item("m1-a-9", 0))
    assert judged(seen=seen).broken == [
        "1 altered on the way: m0-a-0",
        "1 items in a conversation that nobody sent there: m1-a-9",
    ]


@pytest.mark.parametrize(
    ("answer", "honest"),
    [
        ("200", True),
        ("202", True),
        ("503 region_unreachable", True),
        ("503 bus_busy", True),
        ("503 call_state_unknown", True),
        ("429 inbox_full", True),
        ("500 internal_error", False),
        ("404 call_not_found", False),
        ("410 call_ended", False),
        ("409 idempotency_conflict", False),
        ("503 None", False),
        ("no answer", False),
        ("broken (ServerDisconnectedError)", False),
    ],
)
def test_which_answers_a_live_calls_publisher_may_get(answer, honest):
    """Only those that say what is wrong and that the same id may be sent again."""
    assert is_honest(answer) is honest
    assert bool(judged(answers={"200": 12, answer: 1}).broken) is not honest


@pytest.mark.parametrize(
    ("audio", "what"),
    [
        (Audio(0, 100, 99, 0, 20.0, 500.0), "lost audio frames: 1 of call 0"),
        (Audio(0, 100, 100, 2, 20.0, 500.0), "had audio frames out of order or twice: 2 of call 0"),
        (Audio(0, 100, 100, 0, 501.0, 500.0), "had audio held up for too long: 501 ms in call 0"),
        (Audio(0, 0, 0, 0, 0.0, 500.0), "sent no audio, so that the drill shows nothing: call 0"),
    ],
    ids=["lost", "disordered", "late", "silent"],
)
def test_what_is_wrong_with_a_calls_audio_is_named(audio, what):
    """The data path is to feel nothing of what happens to the bus."""
    assert judged(audio=[audio]).broken == [f"1 calls {what}"]


def test_an_ended_call_is_named():
    """No fault of the drills gives a reason to end one."""
    found = judged(ended=["call 3 on iad-1: close 1011 node_failed"])
    assert found.calls_ended == 1
    assert found.broken == ["1 calls ended: call 3 on iad-1: close 1011 node_failed"]


def test_latency_is_given_by_lane():
    """A message from another region needs the link's round trip, and hides what the others need."""
    found = judged(changed(0, lane="far", applied_ms=90.0))
    assert found.latency["far"] == summary([90.0])
    assert found.latency["near"].count == 11
    assert summary(range(1, 102)).p50 == 51
    assert summary(range(1, 102)).p99 == 100


@pytest.mark.parametrize("lane", ["near", "far", "hit", "big"])
def test_only_what_a_drill_leaves_alone_has_to_be_quick(lane):
    """A broken region is to slow down nobody but its own calls; those may wait for the repair."""
    broken = judged([replace(message, lane=lane, applied_ms=600.0) for message in SENT]).broken
    assert broken == (
        [f"1 kinds of messages were slow that the drill leaves alone: p99 {lane} 600 ms"]
        if lane in {"near", "far"}
        else []
    )


def test_a_fault_that_nobody_felt_is_named():
    """A drill whose fault did not happen would keep every promise."""
    hit = [replace(message, lane="hit", applied_ms=600.0) for message in SENT]
    assert judged(hit, felt_ms=600.0).broken == []
    assert judged(hit, felt_ms=601.0).broken == [
        "1 faults were not felt, so that the drill shows nothing: no message took 601 ms"
    ]
    assert judged(felt_ms=1.0).broken != []
