"""The bridge as playbooks: what comes in, which actions go out."""

import json
from itertools import count
from typing import Any

import pytest

from relay.core.actions import Complaint, End, Note, Pause, Resume, Send, Side
from relay.core.bridge import TRANSITIONS, Bridge, Phase, Rules, Step
from relay.core.conversation import opening_update
from relay.core.endings import Why
from relay.core.frames import Opcode
from relay.core.messages import Injection, Settled

CLIENT, MODEL = Side.CLIENT, Side.MODEL
NOW, WALL = 50.0, 1_700_000_000.0
APPEND = b'{"type":"input_audio_buffer.append","audio":"AAAA"}'
CREATED = b'{"type":"session.created","session":{}}'


def playing(phase: Phase = Phase.OPEN, **rules: Any) -> Bridge:
    """A bridge in a phase, its clients and model silent so far."""
    ids = count(1)
    bridge = Bridge(Rules(**rules), lambda: f"event_{next(ids)}")
    if phase not in {Phase.DIALLING, Phase.ENDED}:
        bridge.on_model_opened(None, NOW)
    if phase not in {Phase.DIALLING, Phase.ANNOUNCING, Phase.ENDED}:
        bridge.on_announced((), NOW, WALL)
    if phase in {Phase.AWAY, Phase.ALONE}:
        bridge.on_client_lost()
    if phase in {Phase.REDIALLING, Phase.ALONE}:
        bridge.on_model_lost(NOW)
    if phase is Phase.ENDED:
        bridge.on_ended()
    assert bridge.phase is phase
    return bridge


def event(kind: str, **fields: Any) -> bytes:
    return json.dumps({"type": kind, **fields}).encode()


def injection(name: str = "m1", **changes: Any) -> Injection:
    item = {"type": "message", "role": "system", "content": [], "id": f"item_{name}"}
    event = {"type": "conversation.item.create", "item": item}
    return Injection(name, item["id"], event, None, WALL + 60)._replace(**changes)


def from_model(bridge: Bridge, message: bytes) -> list[Any]:
    """What follows a model's message; what readers of the call are told of it has tests of its own."""
    return [action for action in bridge.on_model_text(message, NOW, WALL) if not isinstance(action, Note)]


def sent(actions: list[Any], side: Side) -> list[Any]:
    """The JSON events that go to a leg."""
    return [json.loads(action.payload) for action in actions if isinstance(action, Send) and action.side is side]


# The phases


@pytest.mark.parametrize("phase", Phase, ids=lambda phase: phase.name.lower())
@pytest.mark.parametrize("step", Step, ids=lambda step: step.name.lower())
def test_a_step_that_the_table_does_not_have_raises(phase, step):
    """A missing pair is our bug; going on from it would send things in the wrong order."""
    bridge = playing(phase)
    act = {
        Step.MODEL_OPENED: lambda: bridge.on_model_opened(None, NOW),
        Step.ANNOUNCED: lambda: bridge.on_announced((), NOW, WALL),
        Step.MODEL_LOST: lambda: bridge.on_model_lost(NOW),
        Step.CLIENT_LOST: bridge.on_client_lost,
        Step.CLIENT_BACK: lambda: bridge.on_client_back(Rules(), (), NOW, WALL),
        Step.ENDED: bridge.on_ended,
    }[step]
    if step in TRANSITIONS[phase]:
        act()
        assert bridge.phase is TRANSITIONS[phase][step]
        return
    with pytest.raises(KeyError):
        act()


def test_every_phase_but_the_last_leads_on_and_every_one_can_end():
    """A call may end at any moment, and more than once."""
    assert set(TRANSITIONS) == set(Phase)
    assert all(steps[Step.ENDED] is Phase.ENDED for steps in TRANSITIONS.values())
    assert set(TRANSITIONS[Phase.ENDED].values()) == {Phase.ENDED}


# Before the model leg is open


def test_what_the_client_sends_before_the_model_is_there_goes_out_in_order_when_it_is():
    """The Agents SDKs send their session.update at once, before any answer."""
    bridge = playing(Phase.DIALLING)
    update = event("session.update", session={"type": "realtime"}, event_id="e1")
    assert bridge.on_client_text(update, NOW) == []
    assert bridge.on_client_text(APPEND, NOW) == []
    first, second, resume = bridge.on_model_opened(None, NOW)
    assert json.loads(first.payload) == {**json.loads(update), "event_id": "c.e1"}
    assert second == Send(MODEL, APPEND)
    assert resume == Resume(CLIENT)
    assert bridge.on_client_text(APPEND, NOW) == [Send(MODEL, APPEND)]


def test_the_relays_own_opening_goes_before_what_was_held():
    """The agent's session must hold for the first audio already."""
    bridge = playing(Phase.DIALLING)
    bridge.on_client_text(APPEND, NOW)
    opening = opening_update({"type": "realtime", "instructions": "Hi"})
    assert bridge.on_model_opened(opening, NOW) == [Send(MODEL, opening), Send(MODEL, APPEND), Resume(CLIENT)]
    assert json.loads(opening)["session"] == {"type": "realtime", "instructions": "Hi"}


def test_the_client_is_paused_when_as_many_messages_are_held_as_may_be():
    """What waits is in this node's memory; over the limit nothing is dropped, TCP pushes back."""
    bridge = playing(Phase.DIALLING, hold_items=3)
    assert [bridge.on_client_text(APPEND, NOW) for _ in range(5)] == [[], [], *[[Pause(CLIENT)]] * 3]
    assert bridge.on_model_opened(None, NOW) == [Send(MODEL, APPEND)] * 5 + [Resume(CLIENT)]


def test_the_client_is_paused_when_as_many_bytes_are_held_as_may_be():
    """A few long messages weigh as much as many short ones."""
    bridge = playing(Phase.DIALLING, hold_bytes=2 * len(APPEND))
    assert [bridge.on_client_text(APPEND, NOW) for _ in range(2)] == [[], [Pause(CLIENT)]]


# Before the call is announced


def test_what_the_model_sends_before_the_call_is_registered_waits_for_that():
    """Who sees session.created may tell a backend, which must find the call."""
    bridge = playing(Phase.ANNOUNCING)
    assert from_model(bridge, CREATED) == []
    assert from_model(bridge, event("error", error={"event_id": None})) == []
    held = bridge.on_announced((), NOW, WALL)
    assert [action.payload for action in held[:2]] == [CREATED, event("error", error={"event_id": None})]
    assert held[2:] == [Resume(MODEL)]
    assert from_model(bridge, CREATED) == [Send(CLIENT, CREATED)]


def test_relay_started_is_the_first_event_of_a_client_that_knows_it():
    """It names the call before anything about the call is said."""
    bridge = playing(Phase.ANNOUNCING)
    from_model(bridge, CREATED)
    started = event("relay.started")
    assert bridge.on_announced([started], NOW, WALL) == [Send(CLIENT, started), Send(CLIENT, CREATED), Resume(MODEL)]


def test_the_model_is_paused_when_as_much_is_held_for_the_client_as_may_be():
    """A bus that is slow must not fill the node's memory with the model's audio."""
    bridge = playing(Phase.ANNOUNCING, hold_items=2)
    assert [from_model(bridge, CREATED) for _ in range(3)] == [[], [Pause(MODEL)], [Pause(MODEL)]]
    assert bridge.on_announced((), NOW, WALL) == [Send(CLIENT, CREATED)] * 3 + [Resume(MODEL)]


def test_the_client_reaches_the_model_while_the_call_is_being_registered():
    """Registration holds the answer back, not the question."""
    assert playing(Phase.ANNOUNCING).on_client_text(APPEND, NOW) == [Send(MODEL, APPEND)]


# Whose an event is


@pytest.mark.parametrize("event_id", ["e1", "r.1", "c.1", 'quo"te', "é"])
def test_a_clients_event_id_is_its_own_on_the_model_leg_and_comes_back_in_errors(event_id):
    """Several parties speak on one leg; no client can take another's name, the relay's included."""
    bridge = playing()
    (to_model,) = sent(bridge.on_client_text(event("response.create", event_id=event_id), NOW), MODEL)
    assert to_model["event_id"] == f"c.{event_id}"
    failed = event("error", event_id="s1", error={"code": "x", "message": "m", "event_id": to_model["event_id"]})
    (to_client,) = sent(from_model(bridge, failed), CLIENT)
    assert to_client == {
        "type": "error",
        "event_id": "s1",
        "error": {"code": "x", "message": "m", "event_id": event_id},
    }


@pytest.mark.parametrize("fields", [{}, {"event_id": None}], ids=["absent", "null"])
def test_an_event_without_an_id_stays_without_one(fields):
    """Also where the relay names it on the model leg, to know whose the answer is."""
    (to_model,) = sent(playing().on_client_text(event("custom.event", **fields), NOW), MODEL)
    assert to_model == {"type": "custom.event", **fields}
    bridge = playing()
    (to_model,) = sent(bridge.on_client_text(event("response.create", **fields), NOW), MODEL)
    failed = event("error", error={"code": "x", "event_id": to_model["event_id"]})
    (to_client,) = sent(from_model(bridge, failed), CLIENT)
    assert to_client["error"] == {"code": "x", "event_id": None}


@pytest.mark.parametrize("cause", ["evt_7", None, "", "r", "c"], ids=repr)
def test_an_error_with_a_foreign_cause_goes_on_byte_for_byte(cause):
    """It is not ours to read."""
    error = event("error", error={"code": "x", "message": "m", "event_id": cause})
    assert from_model(playing(), error) == [Send(CLIENT, error)]


@pytest.mark.parametrize("error", [None, "text", [], {}, {"event_id": 7}], ids=repr)
def test_an_error_in_an_unknown_shape_goes_on_byte_for_byte(error):
    """Other servers' errors must reach the client too."""
    assert from_model(playing(), event("error", error=error)) == [Send(CLIENT, event("error", error=error))]


@pytest.mark.parametrize("cause", ["r.1", "r.open", "r.999"])
def test_an_error_that_the_relay_caused_never_reaches_the_client(cause):
    """The client can do nothing about it, and SDKs raise on errors that nobody handles."""
    error = event("error", error={"code": "invalid_value", "message": "said", "param": "p", "event_id": cause})
    assert from_model(playing(), error) == [Complaint("invalid_value", "p")]


@pytest.mark.parametrize("cause", [None, "c.e1"], ids=["no cause", "client's"])
def test_what_openai_says_about_the_key_is_kept_from_the_client(cause):
    """Its text quotes part of the relay's key."""
    message = "Incorrect API key provided: sk-proj-****hunter2."
    error = {"type": "invalid_request_error", "code": "invalid_api_key", "message": message, "event_id": cause}
    error["param"] = message
    (to_client,) = sent(from_model(playing(), event("error", error=error)), CLIENT)
    assert "hunter2" not in str(to_client)
    assert "operator" in to_client["error"].pop("message")
    del error["message"]
    assert to_client["error"] == {**error, "param": None, "event_id": cause and "e1"}


@pytest.mark.parametrize("kind", ["conversation.item.retrieved", "session.created", "relay.unheard.of"])
@pytest.mark.parametrize("order", ["{", '{"event_id":"e",'], ids=["type first", "id first"])
def test_events_that_the_relay_need_not_understand_are_not_even_parsed(kind, order):
    """``conversation.item.retrieved`` carries megabytes of audio at every turn; the body shows that it is unread."""
    message = f'{order}"type":"{kind}",!! no JSON "error":{{"event_id":"r.1"}}'.encode()
    assert from_model(playing(), message) == [Send(CLIENT, message)]


@pytest.mark.parametrize("body", ["!!", '"item":5}', '"response":[]}', '"item":{"id":[]}}'], ids=repr)
@pytest.mark.parametrize("kind", ["error", "conversation.item.done", "response.created", "response.done"])
def test_an_event_that_the_relay_cannot_understand_goes_on_all_the_same(kind, body):
    """The client says what it thinks of it; the call does not end."""
    message = f'{{"type":"{kind}",{body}'.encode()
    assert from_model(playing(), message) == [Send(CLIENT, message)]


@pytest.mark.parametrize("message", [b"hello", b"[]", b'{"x":1}', b'{"type":"x"', b'{"type":"x","event_id":7}'])
def test_what_is_no_event_is_answered_by_the_relay_and_the_call_goes_on(message):
    """As the model's own server would do; the model never sees it."""
    bridge = playing()
    (error,) = sent(bridge.on_client_text(message, NOW), CLIENT)
    assert (error["type"], error["error"]["code"]) == ("error", "invalid_json")
    assert bridge.on_client_text(APPEND, NOW) == [Send(MODEL, APPEND)]


def test_an_append_that_takes_no_fast_path_is_rewritten():
    """A second key could hide another type from a parser that takes the first."""
    message = b'{"type":"session.update","audio":"AAAA","type":"input_audio_buffer.append"}'
    (to_model,) = playing().on_client_text(message, NOW)
    assert to_model.payload.count(b'"type"') == 1
    assert b"session.update" not in to_model.payload


# Binary frames


def test_a_voice_clients_binary_frame_is_audio():
    """The simplest client has no JSON; text and audio keep their order."""
    bridge = playing(Phase.DIALLING, binary_client=True)
    bridge.on_client_binary(b"\x00\x01")
    bridge.on_client_text(event("response.create"), NOW)
    audio, response = sent(bridge.on_model_opened(None, NOW), MODEL)
    assert audio == {"type": "input_audio_buffer.append", "audio": "AAE="}
    assert response["type"] == "response.create"


@pytest.mark.parametrize("phase", [Phase.DIALLING, Phase.OPEN], ids=["dialling", "open"])
def test_a_binary_frame_elsewhere_ends_the_call_and_says_why(phase):
    """To take it for audio would turn a client's mistake into noise."""
    (end,) = playing(phase).on_client_binary(b"\x00\x01")
    assert isinstance(end, End)
    assert (end.ending.why, end.ending.close.code) == (Why.CLIENT_BINARY, 1003)
    assert json.loads(end.error)["error"]["code"] == "unsupported_data"


AUDIO = b"\x01\x02\x03"
DELTAS = {
    "type first": {"type": "response.output_audio.delta", "event_id": "e", "delta": "AQID"},
    "id first": {"event_id": "e", "type": "response.output_audio.delta", "delta": "AQID"},
    "type last": {"delta": "AQID", "item_id": "i", "type": "response.output_audio.delta"},
    "beta": {"type": "response.audio.delta", "delta": "AQID"},
}


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")], ids=["compact", "spaced"])
@pytest.mark.parametrize("delta", DELTAS.values(), ids=DELTAS)
def test_a_client_that_wants_binary_audio_gets_no_other(delta, separators):
    """However the model's server writes its events."""
    message = json.dumps(delta, separators=separators).encode()
    assert from_model(playing(binary_audio=True), message) == [Send(CLIENT, AUDIO, Opcode.BINARY)]
    assert from_model(playing(), message) == [Send(CLIENT, message)]


def test_binary_audio_is_held_in_order_with_the_events():
    """The first audio may come before the call is registered."""
    bridge = playing(Phase.ANNOUNCING, binary_audio=True)
    from_model(bridge, CREATED)
    from_model(bridge, json.dumps(DELTAS["type first"], separators=(",", ":")).encode())
    held = [Send(CLIENT, CREATED), Send(CLIENT, AUDIO, Opcode.BINARY), Resume(MODEL)]
    assert bridge.on_announced((), NOW, WALL) == held


@pytest.mark.parametrize("rest", ["!!", '"delta":"AAA"}', '"delta":"é"}'], ids=["no JSON", "half a group", "no base64"])
def test_audio_that_cannot_be_decoded_goes_on_as_it_came(rest):
    """As with every event that the relay cannot read: a fault of the model's is no fault of the node's."""
    message = f'{{"type":"response.output_audio.delta",{rest}'.encode()
    assert from_model(playing(binary_audio=True), message) == [Send(CLIENT, message)]


# Messages of backends


def test_a_message_waits_until_the_call_is_open():
    """The conversation begins with what the client and the agent want it to begin with."""
    bridge = playing(Phase.DIALLING)
    assert bridge.inject(injection(), NOW, WALL) == []
    assert bridge.on_model_opened(None, NOW) == [Resume(CLIENT)]
    (created,) = sent(bridge.on_announced((), NOW, WALL), MODEL)
    assert created["item"]["id"] == "item_m1"


def test_a_message_waits_while_the_model_leg_cannot_be_written():
    """It would pile up where nobody counts it; the client's audio has stopped too."""
    bridge = playing()
    assert bridge.on_model_blocked(True, NOW, WALL) == []
    assert bridge.inject(injection(), NOW, WALL) == []
    assert bridge.on_model_blocked(True, NOW, WALL) == []
    assert len(sent(bridge.on_model_blocked(False, NOW, WALL), MODEL)) == 1


def test_the_client_sees_the_item_and_the_backend_learns_that_it_was_taken():
    """Both from the one event, which goes on byte for byte."""
    bridge = playing()
    bridge.inject(injection(), NOW, WALL)
    added = event("conversation.item.added", item={"id": "item_m1"})
    assert from_model(bridge, added) == [Send(CLIENT, added), Settled("m1", "item_m1", "applied")]


def test_an_item_that_the_model_never_answers_is_given_up_on_time():
    """The tick is the only thing that tells."""
    bridge = playing(apply_seconds=10.0)
    bridge.inject(injection(), NOW, WALL)
    assert bridge.on_tick(NOW + 9.9, WALL) == []
    (settled,) = bridge.on_tick(NOW + 10.0, WALL)
    assert (settled.message_id, settled.status) == ("m1", "failed")


# The end


def test_after_the_end_nothing_goes_anywhere():
    """Frames that were under way still come in; the legs have sent their last."""
    bridge = playing(binary_client=True, binary_audio=True)
    bridge.inject(injection("m0"), NOW, WALL)
    bridge.on_ended()
    assert bridge.on_client_text(APPEND, NOW) == []
    assert bridge.on_client_text(b"not an event", NOW) == []
    assert bridge.on_client_binary(b"\x00") == []
    assert from_model(bridge, CREATED) == []
    assert from_model(bridge, event("conversation.item.added", item={"id": "item_m0"})) == []
    assert bridge.inject(injection("m1"), NOW, WALL) == []
    assert bridge.on_model_blocked(False, NOW, WALL) == []
