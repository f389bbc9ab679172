"""What the turn gate makes of races, of servers that do not say everything, and of what comes at the wrong moment."""

import math
from typing import Any

import pytest

from relay.core.actions import Passed, Send, Side
from relay.core.bridge import Bridge, Rules
from relay.core.flights import Flights
from relay.core.messages import Injection
from relay.core.realtime import encode
from relay.core.turns import SETTLE_SECONDS, Turns, Unplayed
from tests.support.play import NOW, WALL, Play

ACTIVE = "conversation_already_has_active_response"


@pytest.fixture
def play() -> Play:
    return Play()


def ask(play: Play, name: str = "a", **response: Any) -> None:
    """A backend's message is in the conversation and wants an answer."""
    play.put(name, response=response)
    play.item(name)


def client_waits(play: Play) -> None:
    """The client's own request was held back, and goes out now."""
    ask(play)
    play.client_asks("c.1")
    play.created_as_asked("ours")
    play.done("ours")
    assert play.asks()[-1]["event_id"] == "c.1"


# Whose the response is that begins


@pytest.mark.parametrize("metadata", ["x", ["x"], 7], ids=repr)
def test_metadata_that_is_no_object_is_the_models_to_refuse(play, metadata):
    """A side leg sends what it likes: whatever that is, it must not end the call."""
    ask(play, metadata=metadata)
    assert play.asks()[0]["response"] == {"metadata": metadata}
    assert play.error(play.asks()[0]["event_id"], "invalid_type")
    assert play.settled[-1] == ("a", "failed")


@pytest.mark.parametrize("metadata", ["x", ["relay_event_id"], 7], ids=repr)
def test_a_response_with_metadata_of_another_shape_is_anothers(play, metadata):
    """Whatever a server sends, the call goes on."""
    ask(play)
    play.created("theirs", metadata)
    play.done("theirs")
    assert play.settled == [("a", "applied")]


@pytest.mark.parametrize("details", ["x", ["error"], {"error": "x"}], ids=repr)
def test_a_failure_in_another_shape_is_a_failure(play, details):
    """Its receipt has an error that can be read."""
    ask(play)
    play.created_as_asked("ours")
    play.done("ours", "failed", status_details=details)
    assert play.errors["a"]["code"] == "response_failed"


def test_a_server_that_keeps_metadata_is_not_asked_to_be_believed(play):
    """Once that is known, a response without it is not ours: the VAD's would be taken for the answer."""
    ask(play)
    play.created_as_asked("ours")
    play.done("ours")
    ask(play, "b")
    play.created("vad", None)
    play.done("vad")
    assert ("b", "answered") not in play.settled
    play.created_as_asked("ours_too")
    play.done("ours_too")
    assert play.settled[-1] == ("b", "answered")


def test_a_response_that_begins_ends_the_one_before(play):
    """The model makes one at a time: a message must not wait for ever for an end that was never sent."""
    ask(play)
    play.created_as_asked("ours")
    play.created("vad", None)
    assert play.settled[-1] == ("a", "answered")
    play.done("ours")
    play.done("vad")
    assert play.settled == [("a", "applied"), ("a", "answered")]


def test_a_doubtful_response_that_another_follows_was_not_ours(play):
    """The VAD's went unfinished; ours comes with its metadata."""
    ask(play)
    play.created("vad", None)
    play.created_as_asked("ours")
    assert play.settled == [("a", "applied")]
    play.done("ours")
    assert play.settled == [("a", "applied"), ("a", "answered")]


def test_an_answer_for_the_turns_end_waits_until_what_was_said_meanwhile_is_heard(play):
    """Somebody else was first: the message is in the conversation, the person must not be talked over."""
    play.put("a", when="turn_end", response={})
    play.created("theirs")
    play.gate.turns.on_part("answer", 0)
    play.gate.turns.on_audio(1, 640_000, play.now)
    play.done("theirs")
    play.item("a")
    play.pass_time(5.0)
    assert play.asks() == []
    play.pass_time(6.0)
    assert len(play.asks()) == 1


def test_what_a_cancelled_response_had_to_say_is_not_waited_for(play):
    """Whoever cancelled it: the client has stopped playing."""
    play.created("theirs")
    play.gate.turns.on_part("answer", 0)
    play.gate.turns.on_audio(1, 640_000, play.now)
    play.put("a", when="turn_end")
    play.done("theirs", "cancelled")
    assert play.creates() == ["item_a"]


def test_only_the_response_that_was_interrupted_silences_the_client(play):
    """The next one's end is none of the interruption's."""
    play.created("theirs")
    play.put("a", when="interrupt")
    assert play.done("theirs", "cancelled")
    play.created("next")
    assert not play.done("next", "cancelled")


def test_a_request_of_the_clients_that_the_model_will_refuse_holds_nobody_up(play):
    """It came while another response was active: there is nothing to wait for."""
    play.created("vad", None)
    play.client_asks("c.1")
    ask(play)
    play.done("vad")
    assert len(play.asks()) == 1


# Refusals


def test_a_response_that_is_in_the_way_and_not_known_here_is_given_time(play):
    """Some servers count one outside the conversation: asking again at once would be a loop as fast as the network."""
    ask(play)
    assert play.error(play.asks()[-1]["event_id"], ACTIVE)
    play.release()
    assert len(play.asks()) == 1
    assert play.gate.due(play.now, play.wall, 0) == pytest.approx(play.now + 0.5)
    play.pass_time(0.49)
    assert len(play.asks()) == 1
    play.pass_time(0.02)
    assert len(play.asks()) == 2
    play.created_as_asked("ours")
    play.done("ours")
    assert play.settled[-1] == ("a", "answered")


def test_a_response_that_is_in_the_way_and_begins_is_waited_for(play):
    """Its end is when to ask again, not a guess."""
    ask(play)
    play.error(play.asks()[-1]["event_id"], ACTIVE)
    play.release()
    play.created("theirs", {"of": "another"})
    play.pass_time(0.1)
    play.done("theirs")
    assert len(play.asks()) == 2
    play.error(play.asks()[-1]["event_id"], ACTIVE)
    play.created("theirs", {"of": "another"})
    play.pass_time(1.0)
    assert len(play.asks()) == 2


def test_what_waits_for_a_response_that_is_not_known_here_can_expire(play):
    """And then nothing is left to wake up for, but the next message is not kept waiting."""
    play.put("a", response={}, expires_at=play.wall + 0.2)
    play.item("a")
    play.error(play.asks()[-1]["event_id"], ACTIVE)
    play.release()
    play.pass_time(0.21)
    assert play.settled[-1] == ("a", "expired")
    assert play.gate.due(play.now, play.wall, 0) is None
    play.pass_time(0.3)
    play.put("b", when="turn_end")
    assert play.creates() == ["item_a", "item_b"]


def test_a_person_who_spoke_while_ours_was_active_is_answered_once(play):
    """However often the server says that it could not: one answer has all that was said."""
    ask(play)
    play.created_as_asked("ours")
    for _ in range(2):
        play.gate.responses.on_heard()
        assert play.error(None, ACTIVE)
    play.done("ours")
    play.created("instead")
    play.done("instead")
    assert len(play.asks()) == 2


def test_a_nameless_refusal_of_the_clients_own_is_the_clients(play):
    """Nothing is mended that went straight on; and nothing waits for it any longer."""
    play.client_asks("c.1")
    assert not play.error(None, ACTIVE)
    ask(play)
    assert len(play.asks()) == 1


@pytest.mark.parametrize("heard", [True, False], ids=["after somebody spoke", "at once"])
def test_a_nameless_refusal_while_ours_may_be_active_is_of_what_came_last(play, heard):
    """The server drops metadata: the VAD's began and ours was refused, or ours began and the VAD's was refused."""
    ask(play)
    play.created("one", None)
    if heard:
        play.gate.responses.on_heard()
    assert play.error(None, ACTIVE)
    play.done("one")
    assert play.settled[1:] == ([("a", "answered")] if heard else [])
    assert ("response" in play.asks()[-1]) != heard


def test_a_nameless_refusal_after_somebody_spoke_over_the_clients_response_is_nobodys(play):
    """Ours is under way and may still begin: asked for again it would be made twice."""
    ask(play)
    play.created("theirs", {"of": "the client"})
    play.gate.responses.on_heard()
    assert not play.error(None, ACTIVE)
    play.done("theirs")
    assert len(play.asks()) == 1
    play.created_as_asked("ours")
    play.done("ours")
    assert play.settled[-1] == ("a", "answered")


def test_a_nameless_refusal_while_nothing_is_active_is_of_what_was_asked_for(play):
    """Nobody else can have lost."""
    ask(play)
    play.gate.responses.on_heard()
    assert play.error(None, ACTIVE)
    play.pass_time(0.1)
    play.pass_time(0.5)
    assert len(play.asks()) == 2


def test_what_was_said_before_the_active_response_began_is_its_matter(play):
    """The server's own answer to it is that response: what is refused after it is what was asked for."""
    ask(play)
    play.gate.responses.on_heard()
    play.created("vad", None)
    assert play.error(None, ACTIVE)
    play.done("vad")
    assert play.settled == [("a", "applied")]
    assert "response" in play.asks()[-1]


def test_a_person_who_spoke_over_a_client_that_was_held_back_is_answered_too(play):
    """The client's response would have come sooner without us."""
    client_waits(play)
    play.created("theirs", None)
    play.gate.responses.on_heard()
    assert play.error(None, ACTIVE)
    play.done("theirs")
    assert [each["event_id"] for each in play.asks()].count("c.1") == 1
    assert len(play.asks()) == 3


def test_a_client_asks_again_while_the_one_that_was_held_back_is_under_way(play):
    """It waits: two at once would cost one of them, and a nameless refusal could not be told."""
    client_waits(play)
    assert play.client_asks("c.2") is False
    play.created("theirs", None)
    assert play.client_asks("c.3") is False
    play.done("theirs")
    assert play.asks()[-1]["event_id"] == "c.2"


# Interrupting


@pytest.mark.parametrize("whose", ["client's that waited", "ours, metadata dropped"])
def test_a_response_that_began_can_be_interrupted_whoever_it_may_be(play, whose):
    """Until it is done there is a doubt whose it is; none that it speaks."""
    if whose == "client's that waited":
        client_waits(play)
    else:
        ask(play)
    play.created("one", None)
    play.put("b", when="interrupt")
    assert [each["type"] for each in play.events[-2:]] == ["response.cancel", "conversation.item.create"]


@pytest.mark.parametrize("whose", ["client's that waited", "ours, metadata dropped"])
def test_a_long_response_is_not_looked_after_all_the_time(play, whose):
    """By when it must begin has passed; an alarm in the past is one every few milliseconds."""
    if whose == "client's that waited":
        client_waits(play)
    else:
        ask(play)
    play.created("one", None)
    play.pass_time(60.0)
    assert play.gate.due(play.now, play.wall, 0) is None
    assert ("a", "failed") not in play.settled


def test_interruptions_are_answered_in_their_order(play):
    """Before all others, but not the second before the first."""
    play.created("theirs")
    ask(play, "late", instructions="late")
    for name in "ab":
        play.put(name, when="interrupt", response={"instructions": name})
        play.item(name)
    for number in range(3):
        play.done("theirs" if number == 0 else f"r{number}")
        play.created_as_asked(f"r{number + 1}")
    assert [each["response"]["instructions"] for each in play.asks()] == ["a", "b", "late"]


def test_a_second_interruption_while_the_first_is_being_carried_out_cuts_nothing_twice(play):
    """What was cut is not played any more."""
    play.created("theirs")
    play.gate.turns.on_part("answer", 0)
    play.gate.turns.on_audio(1, 100_000, play.now)
    for name in "ab":
        play.put(name, when="interrupt")
    assert len(play.sent("conversation.item.truncate")) == 1


# Tool calls


def result(play: Play, name: str, call: str, **more: Any) -> None:
    """A tool's result arrives, and the model has it."""
    play.result(name, call, response={}, **more)
    play.item(name, type="function_call_output", call_id=call)


def test_a_response_that_is_still_active_may_make_another_tool_call(play):
    """A fast tool's result is there before the second call is: the answer waits for both."""
    play.created("resp_1")
    play.tool_calls("resp_1", "one")
    result(play, "a", "one")
    play.tool_calls("resp_1", "two")
    play.done("resp_1")
    assert play.asks() == []
    result(play, "b", "two")
    assert len(play.asks()) == 1


def test_a_result_that_is_there_before_the_response_is_done_is_answered_after_it(play):
    """Nothing else would ask again."""
    play.created("resp_1")
    play.tool_calls("resp_1", "one")
    result(play, "a", "one")
    assert play.asks() == []
    play.done("resp_1")
    assert len(play.asks()) == 1


def test_a_response_whose_end_was_never_told_holds_no_result_back_for_ever(play):
    """The next one that begins says that it is over."""
    play.created("resp_1")
    play.tool_calls("resp_1", "one")
    result(play, "a", "one")
    play.created("vad", None)
    play.done("vad")
    assert len(play.asks()) == 1


def test_a_tool_call_that_was_begun_and_never_made_is_not_waited_for(play):
    """The person interrupted the response within it: it has no arguments that anybody could act on."""
    play.created("resp_1")
    play.tool_calls("resp_1", "one")
    play.gate.tools.on_started("two", "resp_1")
    result(play, "a", "one")
    assert play.asks() == []
    play.done("resp_1", "cancelled")
    assert len(play.asks()) == 1


def test_tool_calls_that_are_known_before_their_response_is_belong_together(play):
    """Some servers put the item in first, and then say whose it is."""
    for call in ("one", "two"):
        play.item(f"of_{call}", type="function_call", call_id=call)
        play.gate.tools.on_started(call, "resp_1")
        play.item(f"of_{call}", type="function_call", call_id=call)
    result(play, "a", "one")
    assert play.asks() == []
    result(play, "b", "two")
    assert len(play.asks()) == 1


def test_a_tool_call_that_was_cut_off_is_not_waited_for_and_may_be_answered(play):
    """Some backends answer it with an error, most know better."""
    play.created("resp_1")
    play.tool_calls("resp_1", "one")
    play.item("of_two", type="function_call", call_id="two", status="in_progress")
    play.gate.tools.on_started("two", "resp_1")
    play.item("of_two", type="function_call", call_id="two", status="incomplete")
    result(play, "a", "one")
    play.done("resp_1", "cancelled")
    assert len(play.asks()) == 1
    play.created_as_asked("resp_2")
    play.done("resp_2")
    result(play, "b", "two")
    assert len(play.asks()) == 2
    assert ("b", "rejected") not in play.settled


def test_a_result_of_a_cut_off_tool_call_that_is_under_way_is_waited_for(play):
    """Its answer would follow at once, and say half of it."""
    play.created("resp_1")
    play.tool_calls("resp_1", "one")
    play.gate.tools.on_started("two", "resp_1")
    play.item("of_two", type="function_call", call_id="two", status="incomplete")
    play.done("resp_1", "cancelled")
    play.result("b", "two", response={})
    result(play, "a", "one")
    assert play.asks() == []
    play.item("b", type="function_call_output", call_id="two")
    assert len(play.asks()) == 1


def test_only_the_newest_tool_calls_that_were_begun_are_remembered(play):
    """The limit protects memory from a server that never finishes one."""
    for number in range(1025):
        play.gate.tools.on_started(f"call_{number}", "resp_1")
    play.item("of_0", type="function_call", call_id="call_0")
    play.item("of_1", type="function_call", call_id="call_1")
    assert (play.gate.tools.group("call_0"), play.gate.tools.group("call_1")) == ("call_0", "resp_1")


def test_a_result_that_the_model_has_already_completes_its_tool_call(play):
    """A new owner puts it in again; the answer must not wait for what is there."""
    play.tool_calls("resp_1", "one")
    play.result("a", "one", response={})
    assert play.error(play.events[-1]["event_id"], "item_create_duplicate_item_id")
    play.release()
    assert (play.settled, len(play.asks())) == ([("a", "applied")], 1)


def test_a_result_that_came_to_nothing_opens_no_tool_call_that_the_client_answered(play):
    """The model has a result: a third one would be refused by it."""
    play.tool_calls("resp_1", "one")
    play.result("a", "one")
    play.item("theirs", type="function_call_output", call_id="one")
    play.pass_time(10.1)
    play.result("b", "one")
    assert play.settled == [("a", "failed"), ("b", "rejected")]


def test_an_item_of_another_kind_with_a_call_id_is_no_tool_call(play):
    """A tool of the server's own: nobody else can answer it."""
    play.item("mcp", type="mcp_call", call_id="one")
    play.result("a", "one")
    assert play.settled == [("a", "rejected")]


def test_a_result_whose_answer_never_came_leaves_its_tool_call_open(play):
    """The model may not have it: a second try is not refused."""
    play.tool_calls("resp_1", "one")
    play.result("a", "one")
    play.pass_time(10.1)
    play.result("b", "one")
    assert play.creates() == ["item_a", "item_b"]
    assert play.settled == [("a", "failed")]


@pytest.mark.parametrize("left", [True, False], ids=["some in time", "none in time"])
def test_of_the_results_that_wait_together_those_in_time_are_answered(play, left):
    """A deadline is its own message's."""
    play.tool_calls("resp_1", "one", "two", "three")
    result(play, "a", "one", expires_at=play.wall + 5)
    result(play, "b", "two", expires_at=play.wall + (50 if left else 5))
    play.pass_time(5.1)
    result(play, "c", "three")
    assert play.settled.count(("b", "expired")) == (not left)
    assert len(play.asks()) == 1


@pytest.mark.parametrize("given", [True, False], ids=["the last", "the first"])
def test_the_answer_to_several_results_has_the_fields_that_were_given(play, given):
    """One of them may say more than that it wants one."""
    play.tool_calls("resp_1", "one", "two")
    for name, call, fields in (("a", "one", not given), ("b", "two", given)):
        play.result(name, call, response={"instructions": "Be brief"} if fields else {})
        play.item(name, type="function_call_output", call_id=call)
    assert play.asks()[0]["response"]["instructions"] == "Be brief"


# When to look again


def test_a_turn_that_has_its_message_is_not_looked_at_until_something_happens(play):
    """The next one waits for an answer, not for time: an alarm in the past is one every few milliseconds."""
    for name in "ab":
        play.put(name, when="turn_end", response={})
    assert play.gate.due(play.now, play.wall, 0) == play.now + 10.0


def an_event(kind: str, **fields: Any) -> bytes:
    return encode({"type": kind, **fields})


def held_back(bridge: Bridge, expires_at: float = WALL + 5) -> list[Any]:
    item = {"type": "message", "id": "item_a"}
    event = {"type": "conversation.item.create", "item": item}
    return bridge.inject(Injection("a", "item_a", event, None, expires_at, "turn_end"), NOW, WALL)


@pytest.mark.parametrize("why", ["model blocked", "model not there", "not registered"])
def test_a_message_that_cannot_be_sent_expires_on_time_and_is_not_looked_at_before(why):
    """Its sender must hear of it though nothing moves; and nothing can be done about the turn meanwhile."""
    bridge = Bridge(Rules(), lambda: "event_1")
    if why != "model not there":
        bridge.on_model_opened(None, NOW)
    if why == "model blocked":
        bridge.on_announced((), NOW, WALL)
        bridge.on_model_blocked(True, NOW, WALL)
    assert held_back(bridge) == []
    assert bridge.due(NOW, WALL) == pytest.approx(NOW + 5, abs=0.01)
    (settled,) = bridge.on_tick(NOW + 5.1, WALL + 5.1)
    assert (settled.message_id, settled.status) == ("a", "expired")
    assert bridge.due(NOW + 5.1, WALL + 5.1) is None


def test_a_call_that_is_over_is_not_looked_after():
    """Its legs are closing."""
    bridge = Bridge(Rules(), lambda: "event_1")
    held_back(bridge)
    bridge.on_ended()
    assert bridge.on_tick(NOW + 99, WALL + 99) == []


def test_a_call_without_messages_is_not_looked_after():
    """Most calls have none; an alarm each would cost more than their events."""
    bridge = Bridge(Rules(), lambda: "event_1")
    assert bridge.due(NOW, WALL) is None


def test_those_who_listen_hear_both_sides():
    """And the other leg gets the same bytes."""
    bridge = Bridge(Rules(), lambda: "event_1")
    bridge.on_model_opened(None, NOW)
    bridge.on_announced((), NOW, WALL)
    append = b'{"type":"input_audio_buffer.append","audio":"AAAA"}'
    delta = an_event("response.output_audio.delta", delta="AAAA")
    for hears in (False, True):
        bridge.heard = hears
        sounds = [*bridge.on_client_text(append, NOW), *bridge.on_model_text(delta, NOW, WALL)]
        assert [each for each in sounds if isinstance(each, Send)] == [
            Send(Side.MODEL, append),
            Send(Side.CLIENT, delta),
        ]
        assert [each.event for each in sounds if not isinstance(each, Send)] == [append, delta] * hears


@pytest.mark.parametrize("rate", [0, 3], ids=["silent", "talking"])
def test_audio_that_went_straight_from_leg_to_leg_counts(rate):
    """Most of it does: the bridge never sees it, and must know of it all the same."""
    straight = Passed(client_messages=rate, model_messages=rate, model_bytes=rate * 64_000)
    so_far = [Passed()]
    for push_to_talk in (False, True):
        bridge = Bridge(Rules(), lambda: "event_1", lambda: so_far[0])
        bridge.on_model_opened(None, NOW)
        bridge.on_announced((), NOW, WALL)
        if push_to_talk:
            session = {"audio": {"input": {"turn_detection": None}}}
            bridge.on_model_text(an_event("session.updated", session=session), NOW, WALL)
        so_far[0] = straight if not push_to_talk else straight._replace(model_messages=0)
        assert len(held_back(bridge)) == (rate == 0)
        so_far[0] = Passed()


def test_an_append_with_an_event_id_counts_as_audio():
    """Some clients number everything; push to talk counts what was sent."""
    bridge = Bridge(Rules(), lambda: "event_1")
    bridge.on_model_opened(None, NOW)
    bridge.on_announced((), NOW, WALL)
    bridge.on_model_text(an_event("session.updated", session={"audio": {"input": {"turn_detection": None}}}), NOW, WALL)
    bridge.on_client_text(an_event("input_audio_buffer.append", event_id="e", audio="AAAA"), NOW)
    assert held_back(bridge) == []


# The floor


@pytest.fixture
def turns() -> Turns:
    return Turns()


def second(turns: Turns, number: int, now: float) -> None:
    """The model sends its n-th second of audio."""
    size = 127 + 60 + 64_000
    turns.on_audio(number, number * size, now)


def test_what_was_not_there_to_be_played_was_not_played(turns):
    """A model may pause within a sentence: counted as heard, the cut would lie beyond what there is, and be refused."""
    turns.on_part("answer", 0, ids_bytes=60)
    second(turns, 1, 0.0)
    second(turns, 2, 5.0)
    assert turns.unplayed(5.5) == [Unplayed("answer", 0, pytest.approx(1500, abs=2))]


def test_a_part_that_was_heard_is_forgotten(turns):
    """Parts of a long call do not pile up."""
    for number in range(1, 101):
        turns.on_part(f"answer_{number}", 0, ids_bytes=60)
        second(turns, number, number * 2.0)
    assert turns.unplayed(200.5) == [Unplayed("answer_100", 0, 500)]
    assert turns.quiet_from(0) == pytest.approx(201.0, abs=0.01)


def test_parts_beyond_the_limit_are_one_with_the_last(turns):
    """A model that sends a thousand parts at once must not fill the node's memory; it is still played to its end."""
    for number in range(1, 101):
        turns.on_part(f"answer_{number}", 0, ids_bytes=60)
        second(turns, number, 0.0)
    assert len(turns.unplayed(0.0)) == 64
    assert turns.quiet_from(0) == pytest.approx(100.0, abs=0.1)


def test_audio_that_belongs_to_no_part_is_played_and_not_cut(turns):
    """A server that announces no parts: there is no item that could be named."""
    turns.on_audio(1, 64_000, 0.0)
    assert turns.unplayed(0.1) == []
    quiet_from = turns.quiet_from(0)
    assert quiet_from is not None
    assert quiet_from > 0.5


def test_events_that_are_smaller_than_their_envelope_have_no_audio(turns):
    """Time does not run backwards."""
    turns.on_part("answer", 0, ids_bytes=60)
    turns.on_audio(3, 30, 1.0)
    assert turns.quiet_from(0) == 1.0


def test_switching_turn_detection_off_ends_speech(turns):
    """Nobody will say that it stopped."""
    turns.on_speech_started()
    assert turns.settled_from is None
    turns.on_session({"audio": {"input": {"turn_detection": None}}})
    assert turns.settled_from == -math.inf


def test_a_buffer_that_is_emptied_in_silence_changes_nothing(turns):
    """The server's own commit follows its ``speech_stopped``."""
    turns.on_speech_stopped(1.0)
    turns.on_buffer_empty(5.0)
    assert turns.settled_from == 1.0 + SETTLE_SECONDS


def test_a_session_that_stays_without_turn_detection_keeps_the_turn_under_way(turns):
    """Another ``session.update`` in the midst of a push to talk commits nothing."""
    off = {"audio": {"input": {"turn_detection": None}}}
    turns.on_session(off)
    turns.on_appended(3)
    turns.on_session(off)
    assert turns.quiet_from(3) is None


# Whom an answer is for


def test_an_event_that_lacks_the_item_it_is_about_waits_for_no_answer(play):
    """The model refuses it: another's answer must not be taken for one to it."""
    play.event("a", {"type": "conversation.item.delete"})
    play.answer("conversation.item.deleted", "")
    assert play.settled == []
    assert play.error(play.events[-1]["event_id"], "missing_required_parameter")
    assert play.settled == [("a", "failed")]


def test_of_the_clients_events_under_way_only_the_newest_are_remembered(play):
    """The limit protects memory; a backend's is never forgotten, somebody waits for it."""
    flights = Flights()
    flights.add("r.1", "conversation.item.retrieve", "", "a backend", 10.0)
    for number in range(1000):
        flights.add(f"c.{number}", "conversation.item.retrieve", "", None, 10.0)
    assert (len(flights), flights.cargo) == (257, ["a backend"])
    assert flights.on_refused("c.743") is None
    assert flights.on_refused("c.744") is not None


def test_a_duplicate_is_looked_for_among_items_only(play):
    """Other events under way have nothing to do with it."""
    play.event("a", {"type": "something.new"})
    play.event("b", {"type": "conversation.item.delete", "item_id": "item_x"}, item_id="item_x")
    assert not play.error(None, "item_create_duplicate_item_id", "The item 'item_x' already exists.")
    assert play.settled == []


def test_an_item_that_is_refused_as_a_duplicate_of_another_event_has_failed(play):
    """Only a create can have been done before."""
    play.event("a", {"type": "conversation.item.delete", "item_id": "x"}, item_id="x")
    assert play.error(play.events[-1]["event_id"], "item_create_duplicate_item_id")
    assert play.settled == [("a", "failed")]
