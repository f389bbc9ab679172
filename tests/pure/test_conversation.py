"""What a model's and a client's events mean for the other leg, for backends and for those who watch."""

import json
from itertools import count
from typing import Any

import pytest

from relay.core.actions import Complaint, Log, Note, Send, Side
from relay.core.bridge import Bridge, Rules
from relay.core.conversation import opening_update
from relay.core.messages import Injection, Settled
from relay.core.usage import Usage

NOW, WALL = 50.0, 1_700_000_000.0
APPLY_SECONDS = 10.0
RETRIEVED = "conversation.item.retrieved"


def event(kind: str, **fields: Any) -> bytes:
    return json.dumps({"type": kind, **fields}, separators=(",", ":")).encode()


class Talk:
    """An open call, its client, its model and its backends."""

    def __init__(self, *, opening: bool = False, **rules: Any) -> None:
        ids = count(1)
        self.bridge = Bridge(Rules(apply_seconds=APPLY_SECONDS, **rules), lambda: f"event_{next(ids)}")
        self.bridge.on_model_opened(opening_update({"instructions": "Hi"}) if opening else None, NOW)
        self.bridge.on_announced((), NOW, WALL)
        self.names = count(1)

    def watched(self) -> "Talk":
        self.bridge.conversation.watched = True
        return self

    def client(self, kind: str, **fields: Any) -> tuple[list[Any], list[Any]]:
        """The client sends an event: what the model gets, and what the client gets back at once."""
        actions = self.bridge.on_client_text(event(kind, **fields), NOW)
        return sent(actions, Side.MODEL), sent(actions, Side.CLIENT)

    def model(self, message: bytes, now: float = NOW) -> list[Any]:
        return self.bridge.on_model_text(message, now, WALL)

    def to_client(self, kind: str, **fields: Any) -> bytes | None:
        """The model sends an event: what the client gets of it."""
        return passed(self.model(event(kind, **fields)))

    def put(self, body: dict[str, Any] | None, **changes: Any) -> list[Any]:
        """A backend sends an event; returns what the model gets now."""
        name = f"m{next(self.names)}"
        item = (body or {}).get("item", {})
        injection = Injection(name, item.get("id", ""), body, None if body else {}, WALL + 60)
        return sent(self.bridge.inject(injection._replace(**changes), NOW, WALL), Side.MODEL)

    def hide(self, item_id: str) -> None:
        """A backend puts in an item that the client must not see."""
        self.put({"type": "conversation.item.create", "item": {"id": item_id, "type": "message"}}, visible=False)

    def speak(self, item_id: str = "answer", response_id: str = "resp_1", *, then: str = "completed") -> list[Any]:
        """The model makes a response with ten seconds of audio; returns what its end brings."""
        self.model(event("response.created", response={"id": response_id, "conversation_id": "c", "metadata": None}))
        part = {"type": "audio", "transcript": ""}
        self.model(event("response.content_part.added", item_id=item_id, content_index=0, part=part))
        self.model(event("response.output_audio.delta", item_id=item_id, delta="A" * 640_000))
        if then == "":
            return []
        return self.model(event("response.done", response={"id": response_id, "conversation_id": "c", "status": then}))


def sent(actions: list[Any], side: Side) -> list[Any]:
    return [json.loads(action.payload) for action in actions if isinstance(action, Send) and action.side is side]


def passed(actions: list[Any]) -> bytes | None:
    payloads = [action.payload for action in actions if isinstance(action, Send) and action.side is Side.CLIENT]
    assert len(payloads) <= 1
    return payloads[0] if payloads else None


def settled(actions: list[Any]) -> list[tuple[str, str]]:
    return [(action.message_id, action.status) for action in actions if isinstance(action, Settled)]


def logged(actions: list[Any]) -> list[bytes]:
    return [action.event for action in actions if isinstance(action, Log)]


@pytest.fixture
def talk() -> Talk:
    return Talk()


# The session that a call begins with

CREATED = event("session.created", event_id="e1", session={"id": "s", "instructions": "Default", "model": "m"})
UPDATED = event("session.updated", event_id="e2", session={"id": "s", "instructions": "Hi", "model": "m"})


def test_session_created_shows_what_the_relays_opening_made_of_the_session():
    """The client knows of no ``session.update`` of the relay's: it sees one event, with the session as it is."""
    talk = Talk(opening=True)
    assert passed(talk.model(CREATED)) is None
    created = passed(talk.model(UPDATED))
    assert created is not None
    session = json.loads(UPDATED)["session"]
    assert json.loads(created) == {"type": "session.created", "event_id": "e1", "session": session}
    assert passed(talk.model(UPDATED)) == UPDATED


def test_a_server_that_says_nothing_before_the_opening_is_understood():
    """``session.updated`` alone has all that ``session.created`` needs."""
    created = passed(Talk(opening=True).model(UPDATED))
    assert created is not None
    assert json.loads(created) == {**json.loads(UPDATED), "type": "session.created"}


def test_a_refused_opening_leaves_the_session_as_the_model_made_it():
    """The agent's operator must learn of it; the person can still talk."""
    talk = Talk(opening=True).watched()
    talk.model(CREATED)
    actions = talk.model(event("error", error={"code": "invalid_value", "param": "voice", "event_id": "r.open"}))
    assert json.loads(passed(actions) or b"") == json.loads(CREATED)
    assert [each for each in actions if isinstance(each, Complaint)] == [Complaint("invalid_value", "voice")]
    assert logged(actions) == []
    assert passed(talk.model(UPDATED)) == UPDATED


def test_an_opening_that_is_refused_before_session_created_holds_nothing_back():
    """Nothing is left that it could be merged with."""
    talk = Talk(opening=True)
    assert talk.to_client("error", error={"code": "x", "message": "m", "event_id": "r.open"}) is None
    assert passed(talk.model(CREATED)) == CREATED


def test_an_opening_that_is_never_answered_holds_session_created_back_for_so_long():
    """SDKs wait for it before they do anything."""
    talk = Talk(opening=True)
    talk.model(CREATED)
    assert talk.bridge.on_tick(NOW + APPLY_SECONDS - 0.1, WALL) == []
    (created,) = talk.bridge.on_tick(NOW + APPLY_SECONDS, WALL)
    assert json.loads(created.payload) == json.loads(CREATED)
    assert talk.bridge.on_tick(NOW + APPLY_SECONDS, WALL) == []
    assert talk.to_client("error", error={"code": "x", "message": "m", "event_id": "r.open"}) is None


def test_an_opening_without_any_answer_leaves_nothing_to_show():
    """A server that says nothing at all is the watchdog's to end."""
    talk = Talk(opening=True)
    assert talk.bridge.on_tick(NOW + APPLY_SECONDS, WALL) == []
    assert passed(talk.model(CREATED)) == CREATED


def test_a_model_that_speaks_before_the_opening_went_out_is_held_to_it():
    """Its ``session.created`` may come with the handshake, before the relay has said anything."""
    bridge = Bridge(Rules(apply_seconds=APPLY_SECONDS, expects_opening=True), lambda: "event_1")
    assert passed(bridge.on_model_text(CREATED, NOW, WALL)) is None
    opening = opening_update({"instructions": "Hi"})
    assert bridge.on_model_opened(opening, NOW)[0] == Send(Side.MODEL, opening)
    bridge.on_announced((), NOW, WALL)
    assert json.loads(passed(bridge.on_model_text(UPDATED, NOW, WALL)) or b"")["type"] == "session.created"


def test_a_call_without_an_opening_shows_the_models_own_event(talk):
    """Byte for byte, and the readers know the session."""
    actions = talk.model(CREATED)
    assert passed(actions) == CREATED
    (note,) = [each for each in actions if isinstance(each, Note)]
    assert (note.name, json.loads(note.value)) == ("session", json.loads(CREATED)["session"])


# Items that the client must not see


@pytest.mark.parametrize("kind", ["added", "done", "created", "deleted", "truncated"])
def test_no_event_about_a_hidden_item_reaches_the_client(talk, kind):
    """``visible: false`` is for what only the model should know."""
    talk.hide("secret")
    fields = {"item_id": "secret"} if kind in {"deleted", "truncated"} else {"item": {"id": "secret"}}
    actions = talk.watched().model(event(f"conversation.item.{kind}", previous_item_id="a", **fields))
    assert passed(actions) is None
    assert len(logged(actions)) == 1  # a backend sees it


def test_the_words_of_a_hidden_item_are_hidden_too(talk):
    """They are the item."""
    talk.hide("secret")
    kind = "conversation.item.input_audio_transcription.completed"
    assert talk.to_client(kind, item_id="secret", transcript="psst") is None
    assert talk.to_client(kind, item_id="theirs", transcript="hello") is not None


def test_what_follows_a_hidden_item_follows_the_last_one_that_the_client_knows(talk):
    """An SDK that keeps the conversation's order looks the previous item up; through a chain of hidden ones, too."""
    for name in ("h1", "h2", "h3"):
        talk.hide(name)
    talk.to_client("conversation.item.added", previous_item_id="known", item={"id": "h1"})
    talk.to_client("conversation.item.added", previous_item_id="h1", item={"id": "h2"})
    talk.to_client("conversation.item.done", previous_item_id="h1", item={"id": "h2"})
    talk.to_client("conversation.item.added", previous_item_id="h2", item={"id": "h3"})
    following = talk.to_client("conversation.item.added", event_id="e", previous_item_id="h3", item={"id": "x"})
    assert json.loads(following or b"") == {
        "type": "conversation.item.added",
        "event_id": "e",
        "previous_item_id": "known",
        "item": {"id": "x"},
    }
    committed = talk.to_client("input_audio_buffer.committed", previous_item_id="h2", item_id="y")
    assert json.loads(committed or b"")["previous_item_id"] == "known"


def test_what_follows_a_hidden_item_at_the_front_is_the_first(talk):
    """As the first item of a conversation is shown: with no previous one."""
    talk.hide("h1")
    talk.to_client("conversation.item.added", previous_item_id=None, item={"id": "h1"})
    following = talk.to_client("conversation.item.added", previous_item_id="h1", item={"id": "x"})
    assert json.loads(following or b"")["previous_item_id"] is None


def test_hidden_items_that_a_server_says_follow_each_other_in_a_ring_end_the_search(talk):
    """Whatever a server says, the call goes on."""
    for name, before in (("h1", "h2"), ("h2", "h1")):
        talk.hide(name)
        talk.to_client("conversation.item.added", previous_item_id=before, item={"id": name})
    assert talk.to_client("conversation.item.added", previous_item_id="h1", item={"id": "x"}) is not None


def test_events_that_have_nothing_to_do_with_hidden_items_are_not_touched(talk):
    """Byte for byte, whatever else is hidden, however they are spaced and ordered."""
    talk.hide("secret")
    for message in (
        b'{ "type": "conversation.item.added", "previous_item_id": "a", "item": {"id": "x", "n": 1.50} }',
        b'{"type":"conversation.item.added","item":{"id":"x"},"previous_item_id":null}',
        b'{"type":"conversation.item.added","item":{"id":[]},"previous_item_id":[]}',
        b'{"type":"conversation.item.added","item":{"id":{}},"previous_item_id":{}}',
        b'{"type":"conversation.item.deleted","item_id":["secret"]}',
        b'{"type":"input_audio_buffer.committed","item_id":"y","previous_item_id":"a"}',
        b'{"type":"conversation.item.added","item":"secret"}',
    ):
        assert passed(talk.model(message)) == message


@pytest.mark.parametrize("verb", ["retrieve", "delete", "truncate"])
def test_to_the_client_a_hidden_item_does_not_exist(talk, verb):
    """The answer is in the model's words for an item that it doesn't have, with the client's own event id."""
    talk.hide("secret")
    to_model, (error,) = talk.client(f"conversation.item.{verb}", item_id="secret", event_id="e9")
    assert to_model == []
    assert (error["type"], error["error"]["event_id"]) == ("error", "e9")
    assert error["error"]["code"] == f"item_{verb}_invalid_item_id"
    assert talk.client(f"conversation.item.{verb}", item_id="theirs")[1] == []


def test_a_client_without_event_ids_is_told_of_a_missing_item_without_one(talk):
    """As the model does it."""
    talk.hide("secret")
    _, (error,) = talk.client("conversation.item.delete", item_id="secret")
    assert error["error"]["event_id"] is None


def test_other_events_that_name_a_hidden_item_are_the_models_to_refuse(talk):
    """The relay answers for it only where it knows what the model would say."""
    talk.hide("secret")
    (to_model,), answers = talk.client("something.new", item_id="secret")
    assert (to_model["item_id"], answers) == ("secret", [])


@pytest.mark.parametrize("item_id", [None, 7, ["secret"]], ids=repr)
def test_an_item_id_that_is_none_is_the_models_to_refuse(talk, item_id):
    """The relay has no opinion of it."""
    talk.hide("secret")
    (to_model,), answers = talk.client("conversation.item.retrieve", item_id=item_id)
    assert (to_model["item_id"], answers) == (item_id, [])


def test_only_the_newest_hidden_items_are_remembered(talk):
    """The limit protects the node's memory; of the oldest nobody speaks any more."""
    for number in range(1025):
        talk.hide(f"h{number}")
        talk.to_client("conversation.item.added", item={"id": f"h{number}"})
    assert talk.to_client("conversation.item.deleted", item_id="h0") is not None
    assert talk.to_client("conversation.item.deleted", item_id="h1") is None


# Event ids of the client's

ANSWERED_HERE = [
    "session.update",
    "input_audio_buffer.commit",
    "input_audio_buffer.clear",
    "response.cancel",
    "response.create",
    "conversation.item.create",
    "conversation.item.retrieve",
    "conversation.item.delete",
    "conversation.item.truncate",
]


@pytest.mark.parametrize("kind", ANSWERED_HERE)
def test_an_event_without_an_id_has_one_on_the_model_leg_which_is_taken_away_again(talk, kind):
    """The relay must find the cause of an error; to the client it is as on a direct connection."""
    (first,), _ = talk.client(kind, item_id="x")
    (second,), _ = talk.client(kind, item_id="x")
    assert first["event_id"] != second["event_id"]
    error = {"code": "x", "message": "m", "event_id": first["event_id"]}
    to_client = json.loads(talk.to_client("error", event_id="s", error=error) or b"")
    assert to_client == {"type": "error", "event_id": "s", "error": {**error, "event_id": None}}


def test_an_event_without_an_id_has_none_where_its_answer_does_not_matter(talk):
    """The less is changed the better."""
    (to_model,), _ = talk.client("something.new", x=1)
    assert to_model == {"type": "something.new", "x": 1}


def test_an_event_id_that_comes_twice_counts_twice(talk):
    """It is the client's choice; with a lost count a backend's answer would be taken for the client's."""
    for _ in range(2):
        talk.client("session.update", session={}, event_id="same")
    talk.put({"type": "session.update", "session": {}})
    assert [settled(talk.model(UPDATED)) for _ in range(3)] == [[], [], [("m1", "applied")]]


def test_a_refused_event_no_longer_waits_for_its_answer(talk):
    """The next answer is the next one's."""
    talk.client("session.update", session={}, event_id="bad")
    talk.put({"type": "session.update", "session": {}})
    talk.model(event("error", error={"code": "x", "message": "m", "event_id": "c.bad"}))
    assert settled(talk.model(UPDATED)) == [("m1", "applied")]


def test_a_clients_event_that_the_model_never_answers_is_forgotten(talk):
    """Else no later answer would ever be a backend's."""
    talk.client("session.update", session={})
    assert talk.bridge.on_tick(NOW + APPLY_SECONDS, WALL) == []
    talk.put({"type": "session.update", "session": {}})
    assert settled(talk.model(UPDATED)) == [("m1", "applied")]


def test_more_of_the_clients_events_than_are_remembered_never_end_the_call(talk):
    """A client may delete a whole conversation in one go; the limit protects the node's memory."""
    for number in range(300):
        assert talk.client("conversation.item.delete", item_id=f"x{number}")[1] == []
    talk.put({"type": "conversation.item.delete", "item_id": "theirs"}, item_id="theirs")
    assert settled(talk.model(event("conversation.item.deleted", item_id="theirs"))) == [("m1", "applied")]


def test_a_response_create_that_cannot_be_decoded_is_the_models_to_refuse(talk):
    """Its top level is JSON, what is within is not read twice."""
    (to_model,) = talk.bridge.on_client_text(b'{"type":"response.create","response":{"n":1e999}}', NOW)
    assert to_model == Send(Side.MODEL, b'{"type":"response.create","response":{"n":1e999},"event_id":"n.1"}')


def test_a_client_that_asks_for_too_much_is_told_so_with_its_own_event_id(talk):
    """Its SDK waits for an answer to it; the model never saw the event."""
    talk.put(None)
    for number in range(16):
        assert talk.client("response.create", event_id=f"e{number}") == ([], [])
    to_model, (error,) = talk.client("response.create", event_id="e16")
    assert to_model == []
    assert (error["error"]["code"], error["error"]["event_id"]) == ("too_many_responses", "e16")


def test_a_clients_response_outside_the_conversation_waits_for_nothing(talk):
    """It is in nobody's way; and the first answer is the client's, so that the second is the backend's."""
    talk.put(None)
    aside = {"conversation": "none", "input": []}
    (to_model,), _ = talk.client("response.create", response=aside)
    assert to_model["response"] == aside
    talk.put({"type": "response.create", "response": aside})
    created = event("response.created", response={"id": "aside", "conversation_id": None})
    assert [settled(talk.model(created)) for _ in range(2)] == [[], [("m2", "applied")]]


def test_a_response_outside_the_conversation_can_be_cancelled(talk):
    """Its end is the answer to the cancel, as for any other."""
    talk.put({"type": "response.cancel", "response_id": "aside"})
    done = event("response.done", response={"id": "aside", "conversation_id": None, "status": "cancelled"})
    assert settled(talk.model(done)) == [("m1", "applied")]


# Items that are asked for

AUDIO = "QUJD" * 1000
ITEM = {"id": "x", "type": "message", "content": [{"type": "input_audio", "audio": AUDIO, "transcript": "hi"}]}
ANSWER = event(RETRIEVED, event_id="e", item=ITEM)


def test_an_item_that_the_client_asks_for_goes_to_it_byte_for_byte_and_to_nobody_else(talk):
    """Megabytes at every turn; who watches did not ask for them."""
    talk.client("conversation.item.retrieve", item_id="x")
    assert talk.watched().model(ANSWER) == [Send(Side.CLIENT, ANSWER)]


def test_an_item_that_a_backend_asks_for_goes_to_those_who_watch_without_its_audio(talk):
    """The client asked for nothing; what a log keeps must be small."""
    talk.put({"type": "conversation.item.retrieve", "item_id": "x"})
    actions = talk.watched().model(ANSWER)
    assert passed(actions) is None
    assert settled(actions) == [("m1", "applied")]
    (log,) = logged(actions)
    part = {"type": "input_audio", "audio": None, "transcript": "hi"}
    assert json.loads(log) == {"type": RETRIEVED, "event_id": "e", "item": {**ITEM, "content": [part]}}


def test_an_item_that_a_backend_asks_for_while_nobody_watches_goes_nowhere(talk):
    """Its sender learns that it was answered."""
    talk.put({"type": "conversation.item.retrieve", "item_id": "x"})
    assert talk.model(ANSWER) == [Settled("m1", "", "applied")]


@pytest.mark.parametrize("first", ["client", "backend"])
def test_the_order_of_the_questions_says_whose_an_answer_is(talk, first):
    """The answer names the item only, which both may ask for."""
    for who in ("client", "backend") if first == "client" else ("backend", "client"):
        if who == "client":
            talk.client("conversation.item.retrieve", item_id="x")
        else:
            talk.put({"type": "conversation.item.retrieve", "item_id": "x"})
    assert [passed(talk.model(ANSWER)) is not None for _ in range(2)] == [first == "client", first == "backend"]


@pytest.mark.parametrize("asked", [True, False], ids=["asked for", "unasked"])
def test_a_hidden_item_is_never_shown_whoever_asked_for_it(talk, asked):
    """Whose an answer is follows from an order that a late or lost one upsets; what must stay hidden does not."""
    if asked:
        talk.client("conversation.item.retrieve", item_id="y")
    talk.hide("x")
    assert talk.to_client(RETRIEVED, event_id="e", item=ITEM) is None
    other = event(RETRIEVED, item={**ITEM, "id": "y"})
    assert passed(talk.model(other)) == other
    assert talk.to_client(RETRIEVED, item=None) is not None


# Those who watch


def test_nobody_is_shown_anything_while_nobody_watches(talk):
    """The log costs a turn of the loop per event."""
    assert logged(talk.model(CREATED)) == []
    assert len(logged(talk.watched().model(CREATED))) == 1


@pytest.mark.parametrize(
    "message",
    [
        event("session.updated", session={}),
        event("session.updated", session=None),
        event("conversation.item.added", item={"id": "x"}),
        event("rate_limits.updated", rate_limits=[]),
        event("something.new"),
        event("response.output_audio_transcript.delta", delta="hi"),
        b'{"type":"response.created",!!',
        b'{"type":"error","error":null}',
    ],
    ids=lambda message: message[9:40].decode(),
)
def test_those_who_watch_see_each_event_as_the_model_sent_it(talk, message):
    """Before anything is changed for the client's sake, and once."""
    assert logged(talk.watched().model(message)) == [message]


def test_those_who_watch_see_what_became_of_the_opening():
    """They are backends: the relay's own doing is theirs to know."""
    talk = Talk(opening=True).watched()
    assert [logged(talk.model(message)) for message in (CREATED, UPDATED)] == [[CREATED], [UPDATED]]


def test_audio_is_no_event_for_those_who_watch(talk):
    """They would have to ask for it."""
    assert logged(talk.watched().model(event("response.output_audio.delta", delta="AAAA"))) == []


# Whose an error is


def seen(actions: list[Any]) -> dict[str, Any]:
    """Who sees an error, and its event id there."""
    shown = [("client", passed(actions)), *(("watchers", each) for each in logged(actions))]
    found = {who: json.loads(each)["error"]["event_id"] for who, each in shown if each is not None}
    senders = [status for _, status in settled(actions)]
    return found | ({"sender": senders[0]} if senders else {})


def error(cause: str | None, code: str = "invalid_value") -> bytes:
    return event("error", event_id="s", error={"type": "t", "code": code, "message": "m", "event_id": cause})


def test_an_error_that_the_client_caused_is_the_clients_and_seen_by_those_who_watch(talk):
    """To them it has a foreign name: an SDK on a side leg must not take it for an answer to its own event."""
    assert seen(talk.watched().model(error("c.e1"))) == {"client": "e1", "watchers": "c.e1"}


def test_an_error_of_a_nameless_event_has_a_foreign_name_for_those_who_watch(talk):
    """Without one, the Agents SDKs would take it for an answer to their own ``response.create``."""
    assert seen(talk.watched().model(error("n.1"))) == {"client": None, "watchers": "n.1"}


def test_an_error_without_a_cause_is_everybodys(talk):
    """A session that expires, a fault of the model's."""
    assert seen(talk.watched().model(error(None, "session_expired"))) == {"client": None, "watchers": None}


def test_an_error_that_a_backend_caused_is_only_its_senders(talk):
    """It has a receipt, or its side leg gets an error of its own."""
    (to_model,) = talk.put({"type": "nonsense"})
    assert seen(talk.watched().model(error(to_model["event_id"]))) == {"sender": "failed"}


@pytest.mark.parametrize(
    ("code", "complaints"),
    [
        ("invalid_value", 1),
        ("response_cancel_not_active", 0),
        ("conversation_already_has_active_response", 0),
        ([], 1),
        (None, 1),
    ],
    ids=str,
)
def test_an_error_that_the_relay_itself_caused_is_only_the_nodes(talk, code, complaints):
    """For its log; that somebody else was faster is no news."""
    actions = talk.watched().model(error("r.999", code))
    assert len(actions) == complaints
    assert all(isinstance(each, Complaint) for each in actions)


def test_a_message_without_a_name_that_failed_twice_is_still_nobodys_complaint(talk):
    """The model may repeat its error: the first has settled it, the second is for the node's log."""
    (to_model,) = talk.put({"type": "nonsense"})
    talk.model(error(to_model["event_id"]))
    assert talk.model(error(to_model["event_id"])) == [Complaint("invalid_value", "")]


def test_what_openai_says_about_the_key_is_kept_from_those_who_watch_too(talk):
    """Its text quotes part of the relay's key."""
    (log,) = logged(talk.watched().model(error(None, "invalid_api_key")))
    assert "operator" in json.loads(log)["error"]["message"]


# Interrupting


def interrupt(talk: Talk) -> list[Any]:
    body = {"type": "conversation.item.create", "item": {"id": "now", "type": "message"}}
    return talk.bridge.inject(Injection("m", "now", body, None, WALL + 60, "interrupt"), NOW + 1, WALL)


@pytest.mark.parametrize("told", [True, False], ids=["understands it", "does not"])
def test_only_a_client_that_understands_it_is_told_to_stop_playing(told):
    """The event is WebRTC's in the Realtime API: other clients' SDKs might choke on it."""
    talk = Talk(told_to_clear=told)
    talk.speak()
    cleared = sent(interrupt(talk), Side.CLIENT)
    assert [each["type"] for each in cleared] == ["output_audio_buffer.cleared"] * told
    assert all(each["response_id"] == "resp_1" and each["event_id"] for each in cleared)


def test_a_client_is_told_to_stop_when_the_cancelled_response_is_done():
    """What comes before that it would play again; and it hears of the end first."""
    talk = Talk(told_to_clear=True)
    talk.speak(then="")
    assert sent(interrupt(talk), Side.CLIENT) == []
    done = event("response.done", response={"id": "resp_1", "conversation_id": "c", "status": "cancelled"})
    assert [each["type"] for each in sent(talk.model(done), Side.CLIENT)] == [
        "response.done",
        "output_audio_buffer.cleared",
    ]
    assert sent(talk.model(done), Side.CLIENT) == [json.loads(done)]


# Who has the floor

VAD_OFF = {"audio": {"input": {"turn_detection": None}}}


def ask_at_turn_end(talk: Talk) -> list[str]:
    """A message for the end of the turn: its item, if it goes at once."""
    body = {"type": "conversation.item.create", "item": {"id": "x", "type": "message"}}
    return [each["type"] for each in talk.put(body, when="turn_end")]


def test_a_person_who_speaks_is_not_talked_over(talk):
    """The server's turn detection says when they are done."""
    talk.model(event("input_audio_buffer.speech_started", item_id="a", audio_start_ms=0))
    assert ask_at_turn_end(talk) == []
    talk.model(event("input_audio_buffer.speech_stopped", item_id="a", audio_end_ms=0), NOW + 5)
    assert talk.bridge.due(NOW + 5, WALL + 5) == pytest.approx(NOW + 5.3)
    assert len(sent(talk.bridge.on_tick(NOW + 5.31, WALL + 5.31), Side.MODEL)) == 1


@pytest.mark.parametrize("kind", ["cleared", "committed"])
def test_speech_in_a_buffer_that_is_emptied_is_over(talk, kind):
    """The server doesn't say that it stopped; without this nothing would ever be asked for again."""
    talk.model(event("input_audio_buffer.speech_started", item_id="a", audio_start_ms=0))
    assert ask_at_turn_end(talk) == []
    assert sent(talk.model(event(f"input_audio_buffer.{kind}", item_id="a")), Side.MODEL) == []
    assert [each["type"] for each in sent(talk.bridge.on_tick(NOW + 0.31, WALL), Side.MODEL)] == [
        "conversation.item.create"
    ]


@pytest.mark.parametrize("kind", ["input_audio_buffer.commit", "input_audio_buffer.clear"])
def test_audio_that_the_client_has_not_committed_is_a_turn_under_way(talk, kind):
    """Push to talk: the person has the button pressed; a backend's commit counts as the client's does."""
    talk.model(event("session.updated", session=VAD_OFF))
    append = event("input_audio_buffer.append", audio="AAAA")
    talk.bridge.on_client_text(append, NOW)
    assert ask_at_turn_end(talk) == []
    talk.client(kind)
    assert len(sent(talk.bridge.on_tick(NOW, WALL), Side.MODEL)) == 1
    talk.bridge.on_client_text(append, NOW)
    assert ask_at_turn_end(talk) == []
    assert [each["type"] for each in talk.put({"type": kind})] == [kind, "conversation.item.create"]


def test_audio_before_turn_detection_is_switched_off_belongs_to_no_turn(talk):
    """It was the server's to commit; waiting for the client to do it could take for ever."""
    for _ in range(5):
        talk.bridge.on_client_text(event("input_audio_buffer.append", audio="AAAA"), NOW)
    talk.model(event("session.updated", session=VAD_OFF))
    assert ask_at_turn_end(talk) == ["conversation.item.create"]


@pytest.mark.parametrize("part", [None, {"type": "text"}, {"type": []}, {"type": "audio"}], ids=repr)
def test_a_content_part_in_another_shape_is_no_audio(talk, part):
    """Whatever a server sends, the call goes on."""
    message = event("response.content_part.added", item_id="i", content_index="0", part=part)
    assert passed(talk.model(message)) == message


@pytest.mark.parametrize("kind", ["added", "done"])
@pytest.mark.parametrize("item", [None, {"type": "message"}, {"type": []}], ids=repr)
def test_an_output_item_that_is_no_tool_call_goes_on_unread(talk, kind, item):
    """Most are messages."""
    message = event(f"response.output_item.{kind}", response_id="r", item=item)
    assert talk.model(message) == [Send(Side.CLIENT, message)]


def test_a_tool_call_is_known_from_its_output_item_on(talk):
    """Some servers send no ``conversation.item`` events for it."""
    item = {"id": "fc", "type": "function_call", "call_id": "call_1"}
    talk.model(event("response.output_item.added", response_id="r", item=item))
    talk.model(event("response.output_item.done", response_id="r", item=item))
    result = {"id": "out", "type": "function_call_output", "call_id": "call_1", "output": "{}"}
    assert len(talk.put({"type": "conversation.item.create", "item": result})) == 1


def test_a_tool_call_that_was_deleted_can_no_longer_be_answered(talk):
    """The model would refuse it; its sender learns why at once."""
    talk.model(event("conversation.item.done", item={"id": "fc", "type": "function_call", "call_id": "call_1"}))
    talk.model(event("conversation.item.deleted", item_id="fc"))
    result = {"id": "out", "type": "function_call_output", "call_id": "call_1", "output": "{}"}
    assert talk.put({"type": "conversation.item.create", "item": result}) == []


def test_what_the_client_cut_is_not_waited_for(talk):
    """It has stopped playing, and says so."""
    talk.speak()
    assert ask_at_turn_end(talk) == []
    actions = talk.model(event("conversation.item.truncated", item_id="answer", audio_end_ms=10))
    assert [each["type"] for each in sent(actions, Side.MODEL)] == ["conversation.item.create"]


def test_ids_are_no_audio(talk):
    """They are counted by the byte with it: with long ones a turn would seem to last for ever."""
    ids = {"event_id": "e" * 100, "response_id": "r" * 4000, "item_id": "i" * 4000, "content_index": 0}
    talk.model(event("response.content_part.added", **ids, part={"type": "audio"}))
    for _ in range(20):
        talk.model(event("response.output_audio.delta", **ids, delta="AAAA"))
    assert ask_at_turn_end(talk) == ["conversation.item.create"]


# What readers are told


@pytest.mark.parametrize(
    ("message", "names"),
    [
        (event("conversation.item.added", item={"id": "x"}), ["item.00000000"]),
        (event("conversation.item.done", item={"id": "a", "content": [{"text": "hi"}]}), ["item.00000000"]),
        (event("conversation.item.deleted", item_id="a"), ["item.00000000", "gone"]),
        (event("conversation.item.truncated", item_id="a", audio_end_ms=9), ["item.00000000"]),
        (
            event("conversation.item.input_audio_transcription.completed", item_id="a", transcript="hi"),
            ["item.00000000"],
        ),
        (
            event("response.done", response={"id": "r", "conversation_id": None, "usage": {"total_tokens": 1}}),
            ["usage"],
        ),
        (event("session.updated", session={"x": 1}), ["session"]),
    ],
    ids=lambda each: each[9:50].decode() if isinstance(each, bytes) else "",
)
def test_readers_are_told_of_what_the_model_says(talk, message, names):
    """Whether anybody watches or not: whoever asks later must find it."""
    if b'"id":"x"' not in message:
        talk.model(event("conversation.item.added", item={"id": "a"}))
    assert [each.name for each in talk.model(message) if isinstance(each, Note)] == names


# What it uses


def test_what_a_call_uses_is_counted_whoever_asked_for_it(talk):
    """A backend's response, and one outside the conversation, cost as much as the client's own."""
    usage = talk.bridge.conversation.usage = Usage(NOW, WALL, is_new=False)
    talk.put(None)
    for conversation_id in ("c", None):
        response = {"id": "r", "conversation_id": conversation_id, "status": "completed"}
        talk.model(event("response.done", response=response | {"usage": {"input_tokens": 5, "output_tokens": 2}}))
    talk.hide("h")
    cost = {"type": "duration", "seconds": 3}
    completed = "conversation.item.input_audio_transcription.completed"
    assert talk.to_client(completed, item_id="h", content_index=0, transcript="", usage=cost) is None
    (counted,) = usage.counted().values()
    assert counted == {
        "responses": 2,
        "input_text_tokens": 10,
        "output_text_tokens": 4,
        "transcription_seconds": 3.0,
    }


@pytest.mark.parametrize("usage", [None, 5, [], {"input_tokens": "x"}], ids=repr)
def test_a_response_without_a_cost_that_can_be_read_is_one_all_the_same(talk, usage):
    """Nothing that a server writes may end a call."""
    counters = talk.bridge.conversation.usage = Usage(NOW, WALL, is_new=False)
    talk.model(event("response.done", response={"id": "r", "conversation_id": "c", "usage": usage}))
    talk.model(event("response.done", response={"id": "r", "conversation_id": "c"}))
    assert list(counters.counted().values()) == [{"responses": 2}]


def test_the_sessions_formats_are_known_to_whoever_counts(talk):
    """Seconds follow from bytes only by the format, which any leg may have another of."""
    usage = talk.bridge.conversation.usage = Usage(NOW, WALL, is_new=False)
    size = 64_000 + len('{"type":"input_audio_buffer.append","audio":""}')

    def seconds(messages: int) -> float:
        before = sum(counters.get("audio_seconds_in", 0) for counters in usage.counted().values())
        usage.on_given(messages, messages * size)
        return sum(counters["audio_seconds_in"] for counters in usage.counted().values()) - before

    assert seconds(1) == 1.0
    talk.model(event("session.updated", session={"audio": {"input": {"format": {"type": "audio/pcmu"}}}}))
    assert seconds(2) == 6.0
    talk.bridge.on_model_lost(NOW)
    session = {"type": "realtime", "audio": {"input": {"format": {"type": "audio/pcm", "rate": 24_000}}}}
    talk.bridge.on_model_changed(session, [], None, NOW, WALL)
    assert seconds(3) == 1.0
