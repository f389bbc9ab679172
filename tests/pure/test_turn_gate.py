"""When a message enters the conversation and who is answered next: the turn gate as tables, time passed in."""

from collections.abc import Callable

import pytest

from relay.core.messages import Injection
from relay.core.turns import SETTLE_SECONDS, Unplayed
from tests.support.play import LATER, Play

ACTIVE = "conversation_already_has_active_response"
SECOND = 48_000  # bytes of PCM16 at 24 kHz


@pytest.fixture
def play() -> Play:
    return Play()


def speak(play: Play, seconds: float, item_id: str = "answer") -> None:
    """The model sends so much audio, in one event of its own size."""
    turns = play.gate.turns
    turns.on_part(item_id, 0, ids_bytes=60)
    play.audio = (play.audio[0] + 1, play.audio[1] + 127 + 60 + round(seconds * SECOND) * 4 // 3)
    turns.on_audio(*play.audio, play.now)


# The end of a turn

BUSY: dict[str, tuple[Callable[[Play], object], Callable[[Play], object]]] = {
    "a response is active": (lambda play: play.created("theirs"), lambda play: play.done("theirs")),
    "the client has asked for a response": (
        lambda play: play.client_asks("c.1"),
        lambda play: (play.created("theirs"), play.done("theirs")),
    ),
    "somebody speaks": (
        lambda play: play.gate.turns.on_speech_started(),
        lambda play: (play.gate.turns.on_speech_stopped(play.now), play.pass_time(SETTLE_SECONDS)),
    ),
    "speech stopped a moment ago": (
        lambda play: play.gate.turns.on_speech_stopped(play.now),
        lambda play: play.pass_time(SETTLE_SECONDS),
    ),
    "audio was sent that is not played yet": (
        lambda play: speak(play, 2.0),
        lambda play: play.pass_time(2.01),
    ),
    "audio is buffered and not committed": (
        lambda play: (
            play.gate.turns.on_session({"audio": {"input": {"turn_detection": None}}}),
            setattr(play, "appended", 3),
        ),
        lambda play: (play.gate.turns.on_buffer_taken(3), play.release()),
    ),
}


@pytest.mark.parametrize(("begin", "end"), BUSY.values(), ids=BUSY)
def test_a_message_for_the_end_of_the_turn_waits_for_it(play, begin, end):
    """Nobody is talked over, and nothing is lost to an active response."""
    begin(play)
    play.put("a", when="turn_end")
    assert play.creates() == []
    end(play)
    assert play.creates() == ["item_a"]


@pytest.mark.parametrize(("begin", "end"), BUSY.values(), ids=BUSY)
def test_a_message_for_now_waits_for_nothing(play, begin, end):
    """Its sender wants the model to know at once, whoever speaks."""
    begin(play)
    play.put("a", when="now")
    assert play.creates() == ["item_a"]


@pytest.mark.parametrize(("begin", "end"), BUSY.values(), ids=BUSY)
def test_a_message_whose_deadline_passes_while_it_waits_is_never_sent(play, begin, end):
    """Deadlines hold while waiting, whatever is waited for; and its sender hears of it in time."""
    begin(play)
    play.put("a", when="turn_end", expires_at=play.wall + 0.1)
    due = play.gate.due(play.now, play.wall, play.appended)
    assert due is not None
    assert due <= play.now + 0.102
    play.pass_time(0.11)
    assert play.settled == [("a", "expired")]
    end(play)
    assert play.creates() == []


def test_silence_is_the_end_of_a_turn(play):
    """A call in which nobody has said anything can be spoken into."""
    play.put("a", when="turn_end", response={})
    assert play.creates() == ["item_a"]


def test_audio_that_arrives_late_is_played_after_what_came_before(play):
    """Two seconds that are sent in a moment take two seconds to hear."""
    speak(play, 1.0)
    play.pass_time(0.2)
    speak(play, 1.0)
    play.put("a", when="turn_end")
    play.pass_time(1.7)
    assert play.creates() == []
    play.pass_time(0.11)
    assert play.creates() == ["item_a"]


def test_the_gate_says_when_a_turn_that_only_time_ends_will_be_over(play):
    """Nothing else would wake it."""
    speak(play, 2.0)
    play.put("a", when="turn_end", expires_at=LATER)
    assert play.gate.due(play.now, play.wall, 0) == pytest.approx(play.now + 2.0, abs=0.01)
    play.gate.turns.on_speech_started()
    due = play.gate.due(play.now, play.wall, 0)
    assert due == pytest.approx(play.now + 60.0, abs=0.01)  # now only its deadline


def test_a_turns_end_has_one_message_that_asks_for_an_answer(play):
    """The next waits until the person has heard this one's."""
    for name in "ab":
        play.put(name, when="turn_end", response={})
    assert play.creates() == ["item_a"]
    play.item("a")
    play.created_as_asked("resp_1")
    assert play.creates() == ["item_a"]
    play.done("resp_1")
    assert play.creates() == ["item_a", "item_b"]


def test_messages_that_ask_for_nothing_go_together_at_the_turns_end(play):
    """They keep nobody from speaking."""
    play.created("theirs")
    for name in "abc":
        play.put(name, when="turn_end")
    play.done("theirs")
    assert play.creates() == ["item_a", "item_b", "item_c"]


def test_a_person_who_begins_to_speak_meanwhile_is_not_talked_over(play):
    """The item is in the conversation by then; the answer waits for the next turn's end."""
    play.put("a", when="turn_end", response={})
    play.gate.turns.on_speech_started()
    play.item("a")
    assert play.asks() == []
    play.gate.turns.on_speech_stopped(play.now)
    play.pass_time(SETTLE_SECONDS)
    assert len(play.asks()) == 1


@pytest.mark.parametrize("interrupts", [True, False], ids=["stops playing", "goes on playing"])
def test_a_client_that_stops_playing_when_somebody_speaks_has_nothing_left_to_play(play, interrupts):
    """Unless the session says that speech does not interrupt."""
    detection = {"type": "server_vad", "interrupt_response": interrupts}
    play.gate.turns.on_session({"audio": {"input": {"turn_detection": detection}}})
    speak(play, 60.0)
    play.gate.turns.on_speech_started()
    play.gate.turns.on_speech_stopped(play.now)
    play.put("a", when="turn_end")
    play.pass_time(SETTLE_SECONDS)
    assert bool(play.creates()) == interrupts


@pytest.mark.parametrize(("kind", "rate"), [("audio/pcm", 48_000), ("audio/pcmu", 8_000), ("audio/pcma", 8_000)])
def test_how_long_audio_plays_follows_from_its_format(play, kind, rate):
    """A telephone's second has a sixth of the bytes."""
    play.gate.turns.on_session({"audio": {"output": {"format": {"type": kind}}}})
    speak(play, 1.0)
    quiet_from = play.gate.turns.quiet_from(0)
    assert quiet_from == pytest.approx(play.now + SECOND / rate, abs=0.01)


@pytest.mark.parametrize("session", [{}, {"audio": None}, {"audio": {"input": 5, "output": []}}], ids=repr)
def test_a_session_in_another_shape_is_taken_for_the_usual_one(play, session):
    """Other servers have other fields; the call goes on."""
    play.gate.turns.on_session(session)
    play.put("a", when="turn_end")
    assert play.creates() == ["item_a"]


# Interrupting


def test_an_interruption_cancels_and_cuts_at_what_was_heard_and_then_speaks(play):
    """In this order: the model must not believe that the rest was heard."""
    play.created("theirs")
    speak(play, 5.0)
    play.pass_time(1.5)
    play.put("a", when="interrupt", response={})
    assert [event["type"] for event in play.events] == [
        "response.cancel",
        "conversation.item.truncate",
        "conversation.item.create",
    ]
    cut = play.sent("conversation.item.truncate")[0]
    assert (cut["item_id"], cut["content_index"], cut["audio_end_ms"]) == ("answer", 0, 1500)
    play.item("a")
    assert play.asks() == []
    assert play.done("theirs", "cancelled")  # now the client has all that it will get, and is told to stop
    assert len(play.asks()) == 1


def test_an_answer_that_is_over_and_still_heard_is_cut_at_once(play):
    """There is nothing to cancel then."""
    speak(play, 5.0)
    play.pass_time(1.0)
    event = {"type": "conversation.item.create", "item": {"id": "item_a"}}
    assert play.gate.add(Injection("a", "item_a", event, None, LATER, "interrupt")) == []
    released = play.release()
    assert released.silenced
    assert [event["type"] for event in play.events] == ["conversation.item.truncate", "conversation.item.create"]
    assert play.gate.turns.unplayed(play.now) == []


def test_an_interruption_of_silence_is_a_message(play):
    """Nothing is cancelled, nothing is cut, nobody is told to stop."""
    play.put("a", when="interrupt", response={})
    assert [event["type"] for event in play.events] == ["conversation.item.create"]


def test_an_interruption_waits_for_a_response_that_was_asked_for_to_begin(play):
    """What has not begun cannot be cancelled: it would speak after the interruption."""
    play.client_asks("c.1")
    play.put("a", when="interrupt", response={})
    assert play.events == []
    play.created("theirs")
    play.release()
    assert [event["type"] for event in play.events] == ["response.cancel", "conversation.item.create"]


def test_the_answer_of_an_interruption_comes_before_those_that_wait(play):
    """It is what the interruption is for."""
    play.created("theirs")
    play.put("a", response={"instructions": "later"})
    play.item("a")
    play.put("b", when="interrupt", response={"instructions": "now"})
    play.item("b")
    play.done("theirs", "cancelled")
    assert [ask["response"]["instructions"] for ask in play.asks()] == ["now"]


def test_a_message_whose_answer_was_interrupted_is_answered(play):
    """Its response is done, as when the person interrupts it."""
    play.put("a", response={})
    play.item("a")
    play.created_as_asked("resp_1")
    play.put("b", when="interrupt")
    play.done("resp_1", "cancelled")
    assert ("a", "answered") in play.settled


def test_what_was_cut_elsewhere_is_not_cut_again(play):
    """The client truncates when it stops playing."""
    speak(play, 5.0)
    play.gate.turns.on_cut("answer")
    play.put("a", when="interrupt")
    assert play.sent("conversation.item.truncate") == []


def test_each_part_that_was_not_heard_to_its_end_is_cut(play):
    """The one that plays where it is, the one behind it at its beginning."""
    speak(play, 1.0, "first")
    speak(play, 1.0, "second")
    play.pass_time(0.5)
    assert play.gate.turns.unplayed(play.now) == [Unplayed("first", 0, 500), Unplayed("second", 0, 0)]
    play.pass_time(1.0)
    second = play.gate.turns.unplayed(play.now)
    assert [(part.item_id, part.played_ms) for part in second] == [("second", pytest.approx(500, abs=2))]


# Who is answered next


def test_a_clients_own_response_goes_straight_on_when_nothing_of_the_relays_is_in_its_way(play):
    """As on a direct connection, the model's refusal of a second one included."""
    assert play.client_asks("c.1") is True
    assert play.client_asks("c.2") is True
    play.created("theirs")
    assert play.client_asks("c.3") is True


def test_a_clients_own_response_follows_the_relays(play):
    """The client cannot know of it before it sees response.created."""
    play.put("a", response={})
    play.item("a")
    assert play.client_asks("c.1") is False
    play.created_as_asked("ours")
    assert play.client_asks("c.2", response={"instructions": "mine"}) is False
    play.done("ours")
    assert [ask["event_id"] for ask in play.asks()][1:] == ["c.1"]
    play.created("theirs")
    play.done("theirs")
    assert play.asks()[-1] == {"type": "response.create", "event_id": "c.2", "response": {"instructions": "mine"}}


def test_the_relays_response_follows_the_clients(play):
    """Two requests under way at once would cost one of them."""
    play.client_asks("c.1")
    play.put("a", response={})
    play.item("a")
    assert play.asks() == []
    play.created("theirs", {"of": "the client"})
    assert play.asks() == []
    play.done("theirs")
    assert len(play.asks()) == 1


def test_waiting_responses_are_made_in_the_order_in_which_they_were_wanted(play):
    """So nobody starves: not the client behind ten backends, nor they behind a client that always asks."""
    play.put("a", response={})
    play.item("a")
    play.created_as_asked("r0")
    play.client_asks("c.1")
    play.put("b", response={})
    play.item("b")
    play.client_asks("c.2")
    order = []
    for number in range(3):
        play.done(f"r{number}")
        order.append(play.asks()[-1]["event_id"])
        play.created(f"r{number + 1}", (play.asks()[-1].get("response") or {}).get("metadata"))
    assert [event_id[:2] for event_id in order] == ["c.", "r.", "c."]


def test_a_clients_response_that_waited_here_and_lost_a_race_is_asked_for_again(play):
    """It would not have lost it without us: its client must not hear of an active response."""
    play.put("a", response={})
    play.item("a")
    play.client_asks("c.1")
    play.created_as_asked("ours")
    play.done("ours")
    assert play.asks()[-1]["event_id"] == "c.1"
    play.created("vad", None)
    assert play.error("c.1", ACTIVE)
    play.done("vad")
    assert [ask["event_id"] for ask in play.asks()].count("c.1") == 2


def test_a_refusal_of_the_clients_own_response_is_the_clients(play):
    """Its SDK waits for the error with its event id."""
    play.client_asks("c.1")
    assert not play.error("c.1", ACTIVE)
    play.put("a", response={})
    play.item("a")
    assert len(play.asks()) == 1  # and nothing is in the way any more


def test_a_client_that_asks_without_end_is_told_so(play):
    """What waits for it is bounded."""
    play.put("a", response={})
    play.item("a")
    answers = [play.client_asks(f"c.{number}") for number in range(17)]
    assert answers == [False] * 16 + [None]


def test_a_clients_request_that_the_model_never_answers_does_not_stop_the_others(play):
    """An error without an event id cannot be matched."""
    play.client_asks("c.1")
    play.put("a", response={})
    play.item("a")
    play.pass_time(9.9)
    assert play.asks() == []
    play.pass_time(0.2)
    assert len(play.asks()) == 1


def test_an_answer_for_now_lets_the_person_finish(play):
    """The server answers the person by itself, and could not if this response were active."""
    play.gate.turns.on_speech_started()
    play.put("a", response={})
    play.item("a")
    assert play.asks() == []
    play.gate.turns.on_speech_stopped(play.now)
    assert play.gate.due(play.now, play.wall, 0) == pytest.approx(play.now + SETTLE_SECONDS)
    play.created("vad", None)
    play.pass_time(SETTLE_SECONDS)
    play.done("vad")
    assert len(play.asks()) == 1


def test_an_interruption_lets_nobody_finish(play):
    """That is what it is for."""
    play.gate.turns.on_speech_started()
    play.put("a", when="interrupt", response={})
    play.item("a")
    assert len(play.asks()) == 1


def test_an_answer_to_the_person_that_the_relays_response_prevented_is_asked_for(play):
    """Nothing is lost to an active response: also not what the server's turn detection wanted."""
    play.put("a", response={})
    play.item("a")
    play.created_as_asked("ours")
    assert play.error(None, ACTIVE)
    play.done("ours")
    assert len(play.asks()) == 2
    assert "response" not in play.asks()[1]


def test_an_answer_to_the_person_that_the_client_prevented_is_its_own_affair(play):
    """As on a direct connection."""
    play.client_asks("c.1")
    play.created("theirs", {"of": "the client"})
    assert not play.error(None, ACTIVE)
    play.done("theirs")
    assert play.asks() == []


@pytest.mark.parametrize("waited", [True, False], ids=["waited here", "went straight on"])
def test_a_refusal_without_a_name_is_of_the_response_that_was_asked_for(play, waited):
    """Some servers leave the event id of an error empty; a client that was not held back hears of it."""
    if waited:
        play.put("a", response={})
        play.item("a")
    else:
        play.client_asks("c.1")
    play.created("vad", {"of": "another"})
    assert play.error(None, ACTIVE) == waited
    play.done("vad")
    assert len(play.asks()) == (2 if waited else 0)


def test_an_answer_that_is_wanted_too_late_is_not_asked_for(play):
    """The item stays, and the receipt says so."""
    play.created("theirs")
    play.put("a", response={}, expires_at=play.wall + 5)
    play.item("a")
    play.pass_time(5.1)
    play.done("theirs")
    assert play.asks() == []
    assert play.settled == [("a", "applied"), ("a", "expired")]
    assert "in the conversation" in play.errors["a"]["message"]


# Tool calls


def test_several_tool_calls_of_one_response_have_one_answer_after_the_last_result(play):
    """Else the model would speak of the first while the others run."""
    play.tool_calls("resp_1", "one", "two", "three")
    for name in ("two", "one"):
        play.result(name, name, response={})
        play.item(name, type="function_call_output", call_id=name)
    assert play.asks() == []
    play.result("three", "three", response={})
    play.item("three", type="function_call_output", call_id="three")
    assert len(play.asks()) == 1
    play.created_as_asked("resp_2")
    play.done("resp_2")
    assert len(play.asks()) == 1
    assert {entry for entry in play.settled if entry[1] == "answered"} == {
        (n, "answered") for n in ("one", "two", "three")
    }


def test_a_tool_call_that_the_client_answers_counts(play):
    """Client and backend may share a response's tool calls."""
    play.tool_calls("resp_1", "one", "two")
    play.result("a", "one", response={})
    play.item("a", type="function_call_output", call_id="one")
    assert play.asks() == []
    play.item("theirs", type="function_call_output", call_id="two")
    assert len(play.asks()) == 1


def test_results_that_want_no_answer_ask_for_none(play):
    """The backend may have more to say before the model speaks."""
    play.tool_calls("resp_1", "one", "two")
    for name in ("one", "two"):
        play.result(name, name)
        play.item(name, type="function_call_output", call_id=name)
    assert play.asks() == []


def test_results_of_different_responses_do_not_wait_for_each_other(play):
    """Only what was called together is answered together."""
    play.tool_calls("resp_1", "one")
    play.tool_calls("resp_2", "two")
    play.result("a", "one", response={})
    play.item("a", type="function_call_output", call_id="one")
    assert len(play.asks()) == 1


def test_a_result_that_never_comes_holds_the_answer_until_the_deadline(play):
    """The receipts of the others say so then."""
    play.tool_calls("resp_1", "one", "two")
    play.result("a", "one", response={}, expires_at=play.wall + 30)
    play.item("a", type="function_call_output", call_id="one")
    assert play.gate.due(play.now, play.wall, 0) == pytest.approx(play.now + 30, abs=0.01)
    play.pass_time(30.1)
    assert play.settled == [("a", "applied"), ("a", "expired")]


def test_several_results_for_the_turns_end_go_in_at_the_same_one(play):
    """They belong together: the second must not wait for the answer to the first."""
    play.created("resp_1")
    play.tool_calls("resp_1", "one", "two")
    for name in ("one", "two"):
        play.result(name, name, response={}, when="turn_end")
    assert play.creates() == []
    play.done("resp_1")
    assert play.creates() == ["item_one", "item_two"]


def test_a_second_result_is_refused_while_the_first_still_waits(play):
    """At once: its sender could do nothing with a refusal that comes minutes later."""
    play.created("resp_1")
    play.tool_calls("resp_1", "one")
    play.result("a", "one", when="turn_end")
    play.result("b", "one", when="turn_end")
    assert play.settled == [("b", "rejected")]
    assert play.errors["b"]["code"] == "tool_call_answered"


def test_a_result_that_expired_leaves_its_tool_call_open(play):
    """A better one may come."""
    play.created("resp_1")
    play.tool_calls("resp_1", "one")
    play.result("a", "one", when="turn_end", expires_at=play.wall + 1)
    play.pass_time(1.1)
    play.result("b", "one")
    assert play.settled == [("a", "expired")]
    assert play.creates() == ["item_b"]


def test_a_result_for_a_tool_call_that_was_deleted_comes_too_late(play):
    """And the others of its response are not kept waiting for it."""
    play.tool_calls("resp_1", "one", "two")
    play.result("a", "one", response={})
    play.item("a", type="function_call_output", call_id="one")
    play.gate.on_deleted("item_of_two")
    play.release()
    assert len(play.asks()) == 1
    play.result("b", "two")
    assert play.errors["b"]["code"] == "tool_call_late"


# Events of side legs

ANSWERED = {
    "session.update": ("session.updated", ""),
    "input_audio_buffer.commit": ("input_audio_buffer.committed", ""),
    "input_audio_buffer.clear": ("input_audio_buffer.cleared", ""),
    "conversation.item.delete": ("conversation.item.deleted", "item_x"),
    "conversation.item.truncate": ("conversation.item.truncated", "item_x"),
    "conversation.item.retrieve": ("conversation.item.retrieved", ""),
}


@pytest.mark.parametrize(("kind", "answer"), ANSWERED.items(), ids=ANSWERED)
def test_an_event_is_applied_when_the_model_has_done_what_it_says(play, kind, answer):
    """Its sender hears of it, once."""
    play.event("a", {"type": kind, "item_id": "item_x"})
    assert play.settled == []
    play.answer(answer[0], "another" if answer[1] else "")
    play.answer(*answer)
    assert play.settled == [("a", "applied")]


def test_answers_without_a_name_are_told_apart_by_their_order(play):
    """The client's own session.update was sent first, so its answer comes first."""
    play.gate.flights.add("c.1", "session.update", "", None, play.now + 10)
    play.event("a", {"type": "session.update"})
    play.answer("session.updated")
    assert play.settled == []
    play.answer("session.updated")
    assert play.settled == [("a", "applied")]


def test_an_event_that_the_model_refuses_has_failed_with_its_senders_event_id(play):
    """An SDK on a side leg looks for it."""
    play.event("a", {"type": "nonsense"}, cause="evt_7")
    assert play.error(play.events[0]["event_id"], "invalid_value")
    assert play.errors["a"] == {"event_id": "evt_7", "code": "invalid_value", "message": "no"}


def test_an_event_that_only_an_error_would_answer_is_applied_when_none_came(play):
    """The relay cannot know every event that a server takes."""
    play.event("a", {"type": "something.new"})
    play.pass_time(9.9)
    assert play.settled == []
    play.pass_time(0.2)
    assert play.settled == [("a", "applied")]


def test_a_side_legs_response_waits_its_turn_and_is_applied_when_it_begins(play):
    """Nothing is lost to an active response, for it neither."""
    play.created("theirs")
    play.event("a", None)
    assert play.asks() == []
    play.done("theirs")
    assert play.settled == []
    play.created_as_asked("ours")
    assert play.settled == [("a", "applied")]
    play.done("ours")
    assert play.settled == [("a", "applied"), ("a", "answered")]


def test_a_cancel_that_came_too_late_is_told_to_its_sender(play):
    """And one that worked, too."""
    play.created("theirs")
    play.event("a", {"type": "response.cancel"})
    play.done("theirs", "cancelled")
    play.event("b", {"type": "response.cancel"})
    play.error(play.events[-1]["event_id"], "response_cancel_not_active")
    assert play.settled == [("a", "applied"), ("b", "failed")]
