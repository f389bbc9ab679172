"""What becomes of a backend's message from the inbox to the model's answer; of turns see test_turn_gate.py."""

from typing import Any

import pytest

from relay.core.actions import Note
from relay.core.bridge import Bridge, Rules
from relay.core.gate import Gate
from relay.core.messages import Injection, Settled
from relay.core.realtime import encode
from tests.support.play import LATER, NOW, WALL, Play

DUPLICATE = "item_create_duplicate_item_id"
ACTIVE = "conversation_already_has_active_response"


@pytest.fixture
def play() -> Play:
    return Play()


def create(name: str, *, response: dict[str, Any] | None = None, expires_at: float = LATER) -> Injection:
    """A message that puts in an item."""
    event = {"type": "conversation.item.create", "item": {"id": f"item_{name}"}}
    return Injection(name, f"item_{name}", event, response, expires_at)


# The item


def test_a_message_is_an_item_create_with_an_event_id_of_the_relays(play):
    """So that an error finds its cause, and a client's event can never have the same."""
    play.put("a", role="system", content=[])
    play.put("b")
    first, second = play.events
    assert first["item"] == {"type": "message", "id": "item_a", "role": "system", "content": []}
    assert first["event_id"].startswith("r.")
    assert first["event_id"] != second["event_id"]


def test_messages_go_out_in_the_order_of_their_arrival(play):
    """The promise to a publisher; an expired one between them changes nothing."""
    for name in ("a", "b"):
        play.gate.add(create(name))
    play.gate.add(create("late", expires_at=WALL - 1))
    play.put("c")
    play.put("d")
    assert play.creates() == ["item_a", "item_b", "item_c", "item_d"]


def test_the_model_having_the_item_means_applied_once(play):
    """``added`` comes first, then ``done``; other servers say ``created``: each alone would do."""
    play.put("a")
    play.item("other")
    assert play.settled == []
    play.item("a")
    play.item("a")
    assert play.settled == [("a", "applied")]


def test_a_duplicate_id_means_that_the_item_is_there_already(play):
    """A new owner replays what has no receipt; the conversation must have it once."""
    play.put("a")
    assert play.error(play.events[0]["event_id"], DUPLICATE)
    assert play.settled == [("a", "applied")]


def test_a_duplicate_error_without_event_id_is_known_by_the_item_it_names(play):
    """OpenAI was seen to leave the event id of this error empty."""
    play.put("a")
    assert play.error(None, DUPLICATE, "Error adding item: the item 'item_a' already exists.")
    assert play.settled == [("a", "applied")]


@pytest.mark.parametrize("order", [("1", "12"), ("12", "1")], ids=" ".join)
def test_an_item_that_is_named_is_not_one_whose_id_begins_the_same(play, order):
    """Backends number their items; the wrong receipt would be lost for ever."""
    for name in order:
        play.put(name)
    assert play.error(None, DUPLICATE, "The item 'item_12' already exists.")
    assert play.settled == [("12", "applied")]


def test_a_clients_duplicate_is_not_taken_for_ours_because_its_id_begins_the_same(play):
    """The client would never hear of its error, and the backend of a success that is none."""
    play.put("1")
    assert not play.error(None, DUPLICATE, "The item 'item_12' already exists.")
    assert play.settled == []


@pytest.mark.parametrize(
    ("event_id", "code", "message"),
    [
        (None, DUPLICATE, "The item 'theirs' already exists."),
        (None, "invalid_value", "item_a"),
        ("c.r.1", "invalid_value", "item_a"),
        ("evt_1", DUPLICATE, "item_a"),
        (None, "session_expired", "item_a"),
    ],
)
def test_errors_of_others_settle_nothing(play, event_id, code, message):
    """They go on to the client."""
    play.put("a")
    assert not play.error(event_id, code, message)
    assert play.settled == []


def test_a_message_that_the_model_refuses_has_failed_with_the_models_own_words(play):
    """The backend's developer needs them verbatim."""
    play.put("a")
    error = {"event_id": play.events[0]["event_id"], "code": "string_above_max_length", "param": "item.x", "extra": 1}
    own, settled = play.gate.on_error(error)
    assert own
    assert settled == [Settled("a", "item_a", "failed", {**error, "event_id": None})]
    play.item("a")
    assert play.settled == []


@pytest.mark.parametrize(("wall", "sent"), [(LATER, True), (LATER + 0.001, False)], ids=["in time", "late"])
def test_a_message_whose_deadline_passed_is_never_sent(play, wall, sent):
    """A remark about what was said a minute ago does harm."""
    play.gate.add(create("a", response={}))
    play.release(wall)
    assert bool(play.creates()) == sent
    assert play.settled == ([] if sent else [("a", "expired")])


def test_a_message_without_an_answer_has_failed_after_the_limit(play):
    """Never silence; and no sooner, for the model may be busy."""
    play.put("a")
    play.note(play.gate.overdue(NOW + 9.9))
    assert play.settled == []
    play.note(play.gate.overdue(NOW + 10.0))
    assert play.settled == [("a", "failed")]
    assert play.errors["a"]["code"] == "model_timeout"
    play.note(play.gate.overdue(NOW + 99.0))
    assert len(play.settled) == 1


def test_more_messages_than_the_inbox_lets_through_are_a_bug():
    """The inbox refuses with 429 long before; growing without end would hide its fault."""
    gate = Gate(apply_seconds=1.0, max_waiting=2)
    for name in "ab":
        gate.add(create(name))
    with pytest.raises(OverflowError):
        gate.add(create("c"))


# Tool results


def test_a_result_for_a_tool_call_that_this_conversation_never_made_is_refused(play):
    """The model would answer with an error, or not at all."""
    play.result("a", "call_1")
    assert (play.events, play.settled) == ([], [("a", "rejected")])
    assert play.errors["a"]["code"] == "unknown_tool_call"


def test_a_tool_call_has_one_result(play):
    """Two workers may have run the same tool; the model acts on the first."""
    play.item("fc", type="function_call", call_id="call_1")
    play.result("a", "call_1")
    play.result("b", "call_1")
    assert play.creates() == ["item_a"]
    assert play.settled == [("b", "rejected")]
    assert play.errors["b"]["code"] == "tool_call_answered"


def test_a_tool_call_that_the_client_answered_is_answered(play):
    """Client and backend may both know the tool."""
    play.item("fc", type="function_call", call_id="call_1")
    play.item("theirs", type="function_call_output", call_id="call_1")
    play.result("a", "call_1")
    assert play.settled == [("a", "rejected")]


def test_a_tool_call_can_be_answered_again_when_its_result_was_refused(play):
    """The model still waits for it, and the backend can send a better one."""
    play.item("fc", type="function_call", call_id="call_1")
    play.result("a", "call_1")
    play.error(play.events[-1]["event_id"], "string_above_max_length")
    play.result("b", "call_1")
    assert play.creates() == ["item_a", "item_b"]
    assert play.settled == [("a", "failed")]


def test_seeing_a_tool_call_again_does_not_open_it_again(play):
    """The same item comes as output_item.done and as item.done."""
    play.item("fc", type="function_call", call_id="call_1")
    play.result("a", "call_1")
    play.item("fc", type="function_call", call_id="call_1")
    play.result("b", "call_1")
    assert play.settled == [("b", "rejected")]


@pytest.mark.parametrize("call_id", [None, 7, []], ids=repr)
def test_a_tool_call_with_an_impossible_id_is_overlooked(play, call_id):
    """Whatever a server sends, the call goes on."""
    play.item("fc", type="function_call", call_id=call_id)
    play.item("theirs", type="function_call_output", call_id=call_id or "call_1")
    assert play.settled == []


def test_only_the_newest_tool_calls_are_remembered(play):
    """A call of an hour may make thousands; the limit protects memory."""
    for number in range(1025):
        play.item(f"fc{number}", type="function_call", call_id=f"call_{number}")
    play.result("old", "call_0")
    play.result("new", "call_1")
    assert play.settled == [("old", "rejected")]


# Responses


def test_a_response_is_asked_for_when_its_item_is_there(play):
    """Not before: the model would answer without having read it. The fields and the metadata are kept."""
    play.put("a", response={"instructions": "Be brief", "metadata": {"k": "v"}})
    assert play.asks() == []
    play.item("a")
    (ask,) = play.asks()
    assert ask["response"]["instructions"] == "Be brief"
    assert ask["response"]["metadata"].items() > {"k": "v"}.items()
    assert ask["event_id"] not in {event["event_id"] for event in play.events if event is not ask}


def test_a_message_without_response_asks_for_none(play):
    """A remark for later must not make the model speak."""
    play.put("a")
    play.item("a")
    assert play.asks() == []


@pytest.mark.parametrize("status", ["completed", "cancelled", "incomplete"])
def test_a_message_is_answered_when_its_response_is_done(play, status):
    """Also if the person interrupted it: the model has answered."""
    play.put("a", response={})
    play.item("a")
    play.created("resp_1", play.asks()[0]["response"]["metadata"])
    play.done("resp_1", status)
    assert play.settled == [("a", "applied"), ("a", "answered")]


@pytest.mark.parametrize(
    "details", [None, {}, {"error": {"code": "insufficient_quota"}}], ids=["none", "empty", "error"]
)
def test_a_message_whose_response_failed_has_failed(play, details):
    """With the response's own error where it has one."""
    play.put("a", response={})
    play.item("a")
    play.created("resp_1", play.asks()[0]["response"]["metadata"])
    play.done("resp_1", "failed", status_details=details)
    assert play.settled[-1] == ("a", "failed")
    expected = "insufficient_quota" if details else "response_failed"
    assert play.errors["a"]["code"] == expected


def test_a_response_that_the_model_refuses_has_failed(play):
    """There will be no response.created and no response.done."""
    play.put("a", response={"x": 1})
    play.item("a")
    assert play.error(play.asks()[0]["event_id"], "unknown_parameter")
    assert play.settled == [("a", "applied"), ("a", "failed")]
    assert play.errors["a"]["code"] == "unknown_parameter"


def test_a_server_that_drops_metadata_is_believed(play):
    """Not all servers keep it; the next response is ours then."""
    play.put("a", response={})
    play.item("a")
    play.created("resp_1", None)
    play.done("resp_1")
    assert play.settled[-1] == ("a", "answered")


def test_a_response_waits_for_the_active_one_and_follows_it(play):
    """The model speaks with one voice; nothing is lost to "already has an active response"."""
    play.created("theirs", {"client": "x"})
    play.put("a", response={})
    play.item("a")
    assert play.asks() == []
    play.done("other")
    assert play.asks() == []
    play.done("theirs")
    assert len(play.asks()) == 1
    assert play.settled == [("a", "applied")]


def test_a_response_outside_the_conversation_is_in_nobodys_way():
    """With ``conversation: "none"`` it may run beside others, and is never the answer to a message."""
    bridge = Bridge(Rules(), lambda: "event_1")
    bridge.on_model_opened(None, NOW)
    bridge.on_announced((), NOW, WALL)
    bridge.inject(create("a", response={}), NOW, WALL)

    def tell(kind: str, **fields: Any) -> list[Any]:
        actions = bridge.on_model_text(encode({"type": kind, **fields}), NOW, WALL)[1:]
        return [action for action in actions if not isinstance(action, Note)]

    aside = {"id": "aside", "conversation_id": None, "status": "completed"}
    assert tell("response.created", response=aside) == []
    applied, asked = tell("conversation.item.added", item={"id": "item_a"})
    assert (applied.status, b'"response.create"' in asked.payload) == ("applied", True)
    assert tell("response.done", response=aside) == []
    ours = {"id": "ours", "conversation_id": "conv_1", "status": "completed"}
    assert tell("response.created", response=ours) == []
    assert [settled.status for settled in tell("response.done", response=ours)] == ["answered"]


def test_responses_are_asked_for_one_by_one_in_order(play):
    """Two at once would cost one of them."""
    for name in "ab":
        play.put(name, response={"instructions": name})
    for name in "ab":
        play.item(name)
    assert [ask["response"]["instructions"] for ask in play.asks()] == ["a"]
    play.created("resp_1", play.asks()[0]["response"]["metadata"])
    play.done("resp_1")
    assert [ask["response"]["instructions"] for ask in play.asks()] == ["a", "b"]


def test_a_response_that_lost_a_race_is_asked_for_again_before_all_others(play):
    """The client or the VAD was first by a few milliseconds; the message must not lose its answer."""
    for name in "ab":
        play.put(name, response={"instructions": name})
        play.item(name)
    play.created("theirs", {"client": "x"})
    assert play.error(play.asks()[0]["event_id"], ACTIVE)
    assert play.release().events == []
    play.done("theirs")
    assert [ask["response"]["instructions"] for ask in play.asks()] == ["a", "a"]
    play.created("ours", play.asks()[1]["response"]["metadata"])
    play.done("ours")
    assert play.settled == [("a", "applied"), ("b", "applied"), ("a", "answered")]


def test_a_response_of_the_vad_is_not_ours_if_the_model_refuses_ours(play):
    """VAD's responses have no metadata, as those of servers that drop it: the refusal that follows tells them apart."""
    play.put("a", response={})
    play.item("a")
    play.created("vad", None)
    assert play.error(play.asks()[0]["event_id"], ACTIVE)
    play.done("vad")
    assert play.settled == [("a", "applied")]
    assert len(play.asks()) == 2


def test_a_response_that_the_model_never_begins_has_failed_after_the_limit(play):
    """A refusal without an event id cannot be matched; without a limit no later message would ever be answered."""
    for name in "ab":
        play.put(name, response={"instructions": name})
        play.item(name)
    play.note(play.gate.overdue(NOW + 10.0))
    assert play.settled[-1] == ("a", "failed")
    play.release()
    assert [ask["response"]["instructions"] for ask in play.asks()] == ["a", "b"]
