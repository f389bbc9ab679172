"""A call that another node had: what of it is known again, what its client hears, and what it need not say again."""

import json
from itertools import count
from typing import Any

import pytest

from relay.core import realtime
from relay.core.actions import Note, Send, Side
from relay.core.bridge import Bridge, Rules
from relay.core.endings import invites_redial
from relay.core.messages import Injection
from relay.core.standing import CALL_FACT

NOW, WALL = 50.0, 1_700_000_000.0
VAD = {"type": "server_vad", "threshold": 0.5}
WRITTEN_DOWN = {"model": "ours"}


def session(**given: Any) -> dict[str, Any]:
    audio = {"input": {"turn_detection": VAD, "transcription": None} | given, "output": {"voice": "alloy"}}
    return {"type": "realtime", "instructions": "Hi", "audio": audio}


def event(kind: str, **fields: Any) -> bytes:
    return json.dumps({"type": kind, **fields}).encode()


def sent(actions: Any, side: Side) -> list[Any]:
    return [json.loads(each.payload) for each in actions if isinstance(each, Send) and each.side is side]


def message(item_id: str, text: str = "hello", **fields: Any) -> dict[str, Any]:
    return {"id": item_id, "type": "message", "role": "user", "status": "completed", "text": text} | fields


class Owner:
    """A node's part of a call. ``kept`` is what is written down of it."""

    def __init__(self, **rules: Any) -> None:
        ids = count(1)
        self.bridge = Bridge(Rules(**rules), lambda: f"event_{next(ids)}")
        self.kept: dict[str, bytes] = {}

    def act(self, actions: Any) -> Any:
        for each in actions:
            if isinstance(each, Note) and each.value is not None:
                self.kept[each.name] = each.value
            elif isinstance(each, Note):
                self.kept.pop(each.name, None)
        return actions

    def begin(self) -> "Owner":
        """A new call, whose client and model are there."""
        self.act(self.bridge.on_model_opened(None, NOW))
        self.act(self.bridge.on_announced((), NOW, WALL))
        return self

    def take(self, entries: Any = (), items: Any = (), **state: Any) -> Any:
        """Take a call over: what is lost."""
        facts = {f"item.{number:08d}": realtime.encode(entry) for number, entry in enumerate(entries)}
        self.kept |= facts | ({CALL_FACT: realtime.encode(state)} if state else {})
        gone = self.bridge.restore(dict(self.kept), items, WALL)
        self.act(gone.follows)
        return gone

    def go_on(self) -> list[Any]:
        """A model leg has the conversation, and the client is back: what the model is told."""
        memory = self.bridge.conversation.memory
        ids = [each["id"] for each in memory.entries]
        actions = [*self.bridge.on_model_changed(memory.session or session(), ids, "relay_anchor_1", NOW, WALL)]
        self.bridge.conversation.view.is_resumed = True
        greeting = [self.bridge.conversation.view.created(memory.session)]
        actions += self.bridge.on_announced(greeting, NOW, WALL)
        return sent(self.act(actions), Side.MODEL)

    def model(self, kind: str, **fields: Any) -> Any:
        return self.act(self.bridge.on_model_text(event(kind, **fields), NOW, WALL))

    def client(self, kind: str, **fields: Any) -> Any:
        return self.act(self.bridge.on_client_text(event(kind, **fields), NOW))


# What is known again


def test_what_the_client_was_waiting_for_is_asked_for_again():
    """Its question was heard; the node that heard it is gone."""
    first = Owner().begin()
    first.model("session.created", session=session())
    first.client("response.create", response={"instructions": "x"})
    second = Owner()
    second.kept = dict(first.kept)
    second.take()
    assert [each["type"] for each in second.go_on()] == ["response.create"]


def test_what_nobody_waited_for_is_not_asked_for():
    """The model would speak out of turn."""
    owner = Owner()
    owner.take([message("a")], owed=False)
    assert owner.go_on() == []


@pytest.mark.parametrize(
    ("status", "kept", "asked"), [("completed", True, 0), ("in_progress", False, 1)], ids=["whole", "cut off"]
)
def test_a_tool_call_that_waits_for_its_result_is_not_answered_before_it(status, kept, asked):
    """Its result asks for the next response; without one that is whole there is nobody who would."""
    owner = Owner()
    call = {
        "id": "of_1",
        "type": "function_call",
        "call_id": "call_1",
        "status": status,
        "name": "f",
        "arguments": "{}",
    }
    owner.take([message("a"), call], owed=True)
    assert owner.bridge.conversation.memory.has("of_1") == kept
    assert len(owner.go_on()) == asked
    item = {"id": "out", "type": "function_call_output", "call_id": "call_1", "output": "{}"}
    body = {"type": "conversation.item.create", "item": item}
    actions = owner.bridge.inject(Injection("m", "out", body, None, WALL + 60), NOW, WALL)
    assert len(sent(actions, Side.MODEL)) == kept


@pytest.mark.parametrize("status", ["completed", "incomplete"])
def test_a_tool_call_that_has_its_result_is_answered(status):
    """A second result would be refused by the model."""
    owner = Owner()
    call = {"id": "of_1", "type": "function_call", "call_id": "call_1", "status": status}
    owner.take([call, {"id": "out_1", "type": "function_call_output", "call_id": "call_1", "output": "{}"}])
    assert owner.bridge.conversation.memory.has("out_1")
    item = {"id": "out", "type": "function_call_output", "call_id": "call_1", "output": "{}"}
    body = {"type": "conversation.item.create", "item": item}
    (settled,) = owner.bridge.inject(Injection("m", "out", body, None, WALL + 60), NOW, WALL)
    assert settled.error["code"] == "tool_call_answered"


def test_hidden_items_stay_hidden():
    """And what follows them follows what the client knows."""
    owner = Owner()
    owner.take([message("a"), message("h1", hidden=True), message("h2", hidden=True)])
    owner.go_on()
    (error,) = sent(owner.client("conversation.item.retrieve", item_id="h1"), Side.CLIENT)
    assert error["type"] == "error"
    (added,) = sent(
        owner.model("conversation.item.added", previous_item_id="h2", item=message("b")),
        Side.CLIENT,
    )
    assert added["previous_item_id"] == "a"


def test_what_a_backend_was_told_applied_is_in_the_conversation():
    """It is kept apart, with its receipt; the rest may not have been written any more."""
    owner = Owner()
    item = {"id": "put", "type": "message", "role": "system", "content": [{"type": "input_text", "text": "x"}]}
    owner.take([message("a")], [item])
    assert [each["id"] for each in owner.bridge.conversation.memory.entries] == ["a", "put"]
    assert "put" in owner.kept["item.00000001"].decode()


def test_a_response_that_was_under_way_ends_for_the_client_and_so_does_its_answer():
    """Its SDK would wait for ever; the words so far stay."""
    owner = Owner()
    answer = message("said", "Good", role="assistant", status="in_progress")
    gone = owner.take([answer], active="resp_1", speech="heard_1")
    (done,) = [json.loads(each) for each in gone.to_client]
    assert (done["type"], done["response"]["id"], done["response"]["status"]) == (
        "response.done",
        "resp_1",
        "cancelled",
    )
    assert (gone.response, gone.turn) == ("resp_1", "heard_1")
    assert owner.bridge.conversation.memory.entry("said")["status"] == "incomplete"
    assert json.loads(owner.kept[CALL_FACT]) == {"transcripts": False, "owed": False, "active": None, "speech": None}


@pytest.mark.parametrize(
    "state", [b"!!", b"[]", b'{"owed":1,"active":2,"speech":[],"transcripts":"x"}', None], ids=repr
)
def test_what_makes_no_sense_is_not_believed(state):
    """Another version of the relay may have written it, or nobody."""
    owner = Owner()
    owner.kept = {CALL_FACT: state} if state is not None else {}
    gone = owner.take()
    assert (gone.to_client, gone.response, gone.turn, owner.go_on()) == ([], None, None, [])
    assert not owner.bridge.conversation.view.shows_transcripts


def test_turn_detection_is_as_it_was():
    """A person who has the button pressed is not talked over at the new node either."""
    owner = Owner()
    owner.kept["session"] = realtime.encode(session(turn_detection=None))
    owner.take()
    owner.go_on()
    owner.client("input_audio_buffer.append", audio="AAAA")
    assert not owner.bridge.is_quiet(NOW + 60)


def test_a_client_whose_session_was_never_known_has_one_session_created():
    """It is made for it when it comes back; the leg's own would be a second one."""
    owner = Owner()
    owner.take()
    actions = owner.bridge.on_model_changed(session(), (), None, NOW, WALL)
    assert sent(actions, Side.CLIENT) == []


# What a client that comes back need not say again


def resumed(**given: Any) -> Owner:
    owner = Owner(transcription=WRITTEN_DOWN)
    owner.kept["session"] = realtime.encode(session(**given))
    owner.take()
    owner.go_on()
    return owner


def test_an_update_that_changes_nothing_is_answered_here():
    """SDKs say everything again when they connect; the voice the model would refuse by then."""
    actions = resumed().client("session.update", event_id="e1", session=session())
    assert sent(actions, Side.MODEL) == []
    (answer,) = sent(actions, Side.CLIENT)
    assert (answer["type"], answer["session"]) == ("session.updated", session())


def test_of_an_update_only_what_is_new_goes_on():
    """Under the client's own id, so that a refusal finds it."""
    (said,) = sent(
        resumed().client("session.update", event_id="e1", session=session() | {"instructions": "new"}), Side.MODEL
    )
    assert (said["event_id"], said["session"]) == ("c.e1", {"type": "realtime", "instructions": "new"})


def test_an_update_after_one_that_is_under_way_goes_on_whole():
    """It may take back what that one changes."""
    owner = resumed()
    owner.client("session.update", session={"instructions": "new"})
    back = {"type": "realtime", "instructions": "Hi"}
    assert [each["session"] for each in sent(owner.client("session.update", session=back), Side.MODEL)] == [back]
    for _ in range(3):  # the first is to the relay's own
        owner.model("session.updated", session=session(transcription=WRITTEN_DOWN))
    assert sent(owner.client("session.update", session=back), Side.MODEL) == []


def test_a_client_that_was_never_away_is_taken_at_its_word():
    """Byte for byte, whatever the session is."""
    owner = Owner().begin()
    owner.model("session.updated", session=session())
    assert len(sent(owner.client("session.update", session=session()), Side.MODEL)) == 1


@pytest.mark.parametrize("update", [None, "text"], ids=repr)
def test_an_update_in_another_shape_is_the_models_to_refuse(update):
    """The relay has no opinion of it."""
    assert len(sent(resumed().client("session.update", session=update), Side.MODEL)) == 1


# Transcription for the call's memory alone


def transcribing() -> Owner:
    owner = Owner(transcription=WRITTEN_DOWN).begin()
    owner.act(owner.model("session.created", session=session()))
    return owner


def words(owner: Owner) -> list[Any]:
    """What the client gets of a transcript."""
    kind = "conversation.item.input_audio_transcription.completed"
    return sent(owner.model(kind, item_id="heard", transcript="hello"), Side.CLIENT)


def test_what_people_say_is_written_down_though_the_client_did_not_ask_for_it():
    """Another model leg must know it. The client sees nothing of that: neither its session nor the words."""
    owner = Owner(transcription=WRITTEN_DOWN).begin()
    (update,) = sent(owner.model("session.created", session=session()), Side.MODEL)
    assert update["session"] == {"type": "realtime", "audio": {"input": {"transcription": WRITTEN_DOWN}}}
    assert sent(owner.model("session.updated", session=session(transcription=WRITTEN_DOWN)), Side.CLIENT) == []
    owner.model("conversation.item.added", item={"id": "heard", "type": "message", "role": "user"})
    assert words(owner) == []
    assert owner.bridge.conversation.memory.entry("heard")["text"] == "hello"
    (shown,) = sent(owner.model("session.updated", session=session(transcription=WRITTEN_DOWN)), Side.CLIENT)
    assert shown["session"] == session()


def test_it_is_switched_on_once_while_it_is_under_way():
    """The answer to the client's own update may come before."""
    owner = Owner(transcription=WRITTEN_DOWN).begin()
    owner.client("session.update", session={"instructions": "x"})
    assert len(sent(owner.model("session.created", session=session()), Side.MODEL)) == 1
    actions = owner.model("session.updated", session=session())
    assert (len(sent(actions, Side.CLIENT)), sent(actions, Side.MODEL)) == (1, [])


def test_a_model_that_takes_it_and_does_not_do_it_is_not_asked_for_ever():
    """Each answer would bring another question, as fast as both can write."""
    owner = transcribing()
    for _ in range(2):
        assert sent(owner.model("session.updated", session=session()), Side.MODEL) == []


def test_a_client_that_asks_for_it_sees_it_until_it_wants_no_more():
    """Then it goes on for the memory alone."""
    owner = transcribing()
    owner.model("session.updated", session=session(transcription=WRITTEN_DOWN))
    for theirs in ({"model": "theirs"}, None):
        owner.client("session.update", session={"audio": {"input": {"transcription": theirs}}})
        actions = owner.model("session.updated", session=session(transcription=theirs))
        assert sent(actions, Side.CLIENT)[0]["session"] == session(transcription=theirs)
        assert bool(sent(actions, Side.MODEL)) == (theirs is None)
        assert len(words(owner)) == (theirs is not None)


def test_a_model_that_refuses_it_is_not_asked_again():
    """Not at any later leg either; the client hears nothing of it."""
    owner = Owner(transcription=WRITTEN_DOWN).begin()
    (update,) = sent(owner.model("session.created", session=session()), Side.MODEL)
    error = {"code": "invalid_value", "message": "m", "event_id": update["event_id"]}
    assert sent(owner.model("error", error=error), Side.CLIENT) == []
    assert sent(owner.model("session.updated", session=session()), Side.MODEL) == []


@pytest.mark.parametrize(
    "given",
    [{"type": "transcription", "audio": {"input": {}}}, {"type": "realtime"}, {"audio": {"input": 7}}, {"audio": 7}],
    ids=["transcription session", "no audio", "odd input", "odd audio"],
)
def test_a_session_that_has_no_place_for_it_is_left_alone(given):
    """Other servers have other sessions."""
    owner = Owner(transcription=WRITTEN_DOWN).begin()
    assert sent(owner.model("session.created", session=given), Side.MODEL) == []


def test_another_leg_is_asked_for_it_where_it_came_without():
    """Its settings may have been refused as a whole."""
    owner = transcribing()
    owner.bridge.on_model_lost(NOW)
    actions = owner.bridge.on_model_changed(session(), (), None, NOW, WALL)
    assert [each["session"]["audio"]["input"] for each in sent(actions, Side.MODEL)] == [
        {"transcription": WRITTEN_DOWN}
    ]


# When another leg makes no sense


@pytest.mark.parametrize("redials", [True, False], ids=["replaced", "not replaced"])
def test_the_end_of_the_models_session_is_the_clients_matter_only_where_it_ends_the_call(redials):
    """Else SDKs raise for something that the person never notices."""
    owner = Owner(redials=redials).begin()
    error = {"code": "session_expired", "message": "m", "event_id": None}
    assert len(sent(owner.model("error", error=error), Side.CLIENT)) == (not redials)


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        ({"code": "insufficient_quota"}, True),
        ({"code": "model_not_found", "param": "session.audio.input.transcription.model"}, False),
        ({"code": "invalid_value"}, False),
        ({"code": []}, False),
        ({"code": {}}, False),
        ({}, False),
    ],
    ids=repr,
)
def test_a_model_that_will_not_serve_this_relay_is_known(error, refused):
    """To try again would cost money or time, and change nothing; whatever a server sends, the call goes on."""
    owner = Owner().begin()
    owner.model("error", error={"message": "m", "event_id": None, **error})
    assert (owner.bridge.conversation.serving.refusal is not None) == refused


@pytest.mark.parametrize(
    ("code", "invites"),
    [
        (1001, True),
        (1006, True),
        (1011, True),
        (1008, False),
        (3000, False),
        (4000, False),
        (4999, False),
        (5000, True),
    ],
)
def test_a_models_close_code_says_whether_to_try_again(code, invites):
    """Not where it refuses what we ask or who we are."""
    assert invites_redial(code) == invites


@pytest.mark.parametrize(
    ("message", "event_id"),
    [(b'{"type":"x","event_id":"e1"}', "e1"), (b'{"type":"x"}', ""), (b"!!", ""), (b'{"event_id":7}', "")],
)
def test_the_id_of_an_event_is_found(message, event_id):
    """A client that comes back names the last that it saw."""
    assert realtime.event_id(message) == event_id
