"""What a model leg that is gone leaves, and what another one and the client are told; walks: test_loss_walk.py."""

import json
from itertools import count
from typing import Any

import pytest

from relay.core.actions import Log, Note, Pause, Resume, Send, Settled, Side
from relay.core.bridge import Bridge, Phase, Rules
from relay.core.conversation import Gone, opening_update
from relay.core.messages import WHEN, Injection

NOW, WALL = 50.0, 1_700_000_000.0
APPLY_SECONDS = 10.0
SESSION = {"type": "realtime", "instructions": "Hi"}
ANCHOR = "relay_anchor_1"
ACTIVE = "conversation_already_has_active_response"


def event(kind: str, **fields: Any) -> bytes:
    return json.dumps({"type": kind, **fields}, separators=(",", ":")).encode()


def sent(actions: Any, side: Side) -> list[Any]:
    return [json.loads(each.payload) for each in actions if isinstance(each, Send) and each.side is side]


def settled(actions: Any) -> list[tuple[str, str]]:
    return [(each.message_id, each.status) for each in actions if isinstance(each, Settled)]


class Call:
    """An open call whose model leg can be lost, and replaced by another one."""

    def __init__(self, *, opening: bool = False, **rules: Any) -> None:
        ids = count(1)
        self.bridge = Bridge(Rules(apply_seconds=APPLY_SECONDS, **rules), lambda: f"event_{next(ids)}")
        self.bridge.on_model_opened(opening_update(SESSION) if opening else None, NOW)
        self.bridge.on_announced((), NOW, WALL)
        self.gone = Gone([], [], None, None)

    def client(self, kind: str, **fields: Any) -> list[Any]:
        """The client sends an event: what the model gets."""
        return sent(self.bridge.on_client_text(event(kind, **fields), NOW), Side.MODEL)

    def client_gets(self, kind: str, **fields: Any) -> list[Any]:
        """The client sends an event: what it gets back at once."""
        return sent(self.bridge.on_client_text(event(kind, **fields), NOW), Side.CLIENT)

    def model(self, kind: str, *, now: float = NOW, **fields: Any) -> list[Any]:
        return self.bridge.on_model_text(event(kind, **fields), now, WALL)

    def put(self, name: str, body: dict[str, Any] | None, **changes: Any) -> list[Any]:
        """A backend sends an event; None: it only wants a response."""
        item_id = (body or {}).get("item", {}).get("id", "")
        injection = Injection(name, item_id, body, None if body else {}, WALL + 60)._replace(**changes)
        return self.bridge.inject(injection, NOW, WALL)

    def put_item(self, name: str, **changes: Any) -> list[Any]:
        item = {"id": f"item_{name}", "type": "message", "role": "system"}
        return self.put(name, {"type": "conversation.item.create", "item": item}, **changes)

    def has(self, item_id: str, **fields: Any) -> None:
        """The model has an item."""
        item = {"id": item_id, "type": "message", "role": "user", "status": "completed"} | fields
        for step in ("added", "done"):
            self.model(f"conversation.item.{step}", previous_item_id=None, item=item)

    def begins(
        self, response_id: str = "resp", metadata: Any = None, conversation_id: str | None = "conv"
    ) -> list[Any]:
        body = {"id": response_id, "conversation_id": conversation_id, "status": "in_progress", "metadata": metadata}
        return self.model("response.created", response=body)

    def says(self, item_id: str, words: str = "Good day", response_id: str = "resp") -> None:
        """The model begins to say something."""
        item = {"id": item_id, "type": "message", "role": "assistant", "status": "in_progress"}
        place = {"response_id": response_id, "output_index": 0}
        self.model("response.output_item.added", **place, item=item)
        self.model("conversation.item.added", previous_item_id=self.bridge.conversation.memory.last_id, item=item)
        part = {**place, "item_id": item_id, "content_index": 0}
        self.model("response.content_part.added", **part, part={"type": "audio"})
        if words:
            self.model("response.output_audio_transcript.delta", **part, delta=words)
        self.model("response.output_audio.delta", **part, delta="A" * 64_000)

    def calls(self, call_id: str, status: str = "completed", response_id: str = "resp", index: int = 1) -> None:
        """The model makes a tool call, or has begun to."""
        item = {
            "id": f"of_{call_id}",
            "type": "function_call",
            "call_id": call_id,
            "name": "f",
            "status": "in_progress",
        }
        place = {"response_id": response_id, "output_index": index}
        self.model("response.output_item.added", **place, item=item)
        self.model("conversation.item.added", previous_item_id=None, item=item)
        if status != "in_progress":
            self.model("response.output_item.done", **place, item={**item, "status": status, "arguments": "{}"})

    def result(self, name: str, call_id: str, *, wants: bool = True) -> list[Any]:
        item = {"id": f"item_{name}", "type": "function_call_output", "call_id": call_id, "output": "{}"}
        response = {"instructions": name} if wants else None
        return self.put(name, {"type": "conversation.item.create", "item": item}, response=response)

    def lose(self, now: float = NOW) -> list[Any]:
        """The model leg is lost: what that brings."""
        self.gone = self.bridge.on_model_lost(now)
        return self.gone.follows

    def another(self, *, session: dict[str, Any] | None = None, restored: Any = None, now: float = NOW) -> list[Any]:
        """Another model leg has the conversation: what it and the client are told."""
        ids = [each["id"] for each in self.bridge.conversation.memory.entries] if restored is None else restored
        return self.bridge.on_model_changed(SESSION if session is None else session, ids, ANCHOR, now, WALL)

    def told(self) -> list[str]:
        """The model leg is lost and another one comes: types of what that is asked at once."""
        self.lose()
        return [each["type"] for each in sent(self.another(), Side.MODEL)]


@pytest.fixture
def call() -> Call:
    """It is known what its session is."""
    call = Call()
    call.model("session.created", session=SESSION)
    return call


# The session


def test_a_client_that_had_no_session_created_has_it_from_another_leg():
    """SDKs do nothing before it comes; and only the first one is theirs."""
    call = Call()
    call.lose()
    (created,) = sent(call.another(), Side.CLIENT)
    assert (created["type"], created["session"]) == ("session.created", SESSION)
    call.lose()
    assert sent(call.another(), Side.CLIENT) == []


def test_a_client_that_had_its_session_created_never_has_another(call):
    """The Agents SDKs would take it for a new call."""
    call.lose()
    assert sent(call.another(), Side.CLIENT) == []


def test_a_leg_that_says_nothing_of_its_session_before_it_is_used_says_it_itself():
    """There was nothing to tell it, so nothing was waited for."""
    call = Call()
    call.lose()
    assert call.another(session={}) == [Resume(Side.CLIENT)]
    assert [each["type"] for each in sent(call.model("session.created", session=SESSION), Side.CLIENT)] == [
        "session.created"
    ]


@pytest.mark.parametrize("is_created", [True, False], ids=["created", "silent"])
def test_an_opening_under_way_is_said_to_another_leg(is_created):
    """Else the person would talk with a model that knows nothing of its agent."""
    call = Call(opening=True)
    if is_created:
        call.model("session.created", event_id="first", session={"instructions": "default"})
    call.lose()
    assert call.gone.to_client == []
    assert call.bridge.on_tick(NOW + 10 * APPLY_SECONDS, WALL) == []  # nobody is there who could answer it
    actions = call.another(session={"instructions": "default"} if is_created else {}, now=NOW + 100)
    assert [each["session"] for each in sent(actions, Side.MODEL)] == [SESSION]
    assert sent(actions, Side.CLIENT) == []
    (created,) = sent(call.model("session.updated", session=SESSION), Side.CLIENT)
    assert (created["type"], created["session"]) == ("session.created", SESSION)


def test_an_opening_goes_before_what_the_client_asked_for(call):
    """As it did the first time: the client's settings stand over the agent's."""
    call = Call(opening=True)
    call.client("session.update", session={"instructions": "mine"})
    call.lose()
    said = sent(call.another(session={}), Side.MODEL)
    assert [each["session"]["instructions"] for each in said] == ["Hi", "mine"]


def test_an_opening_that_is_done_is_not_said_again():
    """The new leg has its result with the settings."""
    call = Call(opening=True)
    call.model("session.updated", session=SESSION)
    assert call.told() == []


# What the client had asked for

MINE = {"id": "mine", "type": "message"}
REPEATED = {
    "session.update": {"session": {"instructions": "x"}},
    "conversation.item.create": {"item": MINE},
    "conversation.item.delete": {"item_id": "theirs"},
    "conversation.item.retrieve": {"item_id": "theirs"},
}


@pytest.mark.parametrize(("kind", "fields"), REPEATED.items(), ids=REPEATED)
def test_what_the_leg_did_not_answer_is_said_to_another_one_and_to_the_one_after_that(call, kind, fields):
    """To the client there is one model, which is slow for once."""
    call.has("theirs")
    (said,) = call.client(kind, event_id="e1", **fields)
    for _ in range(2):
        call.lose()
        assert sent(call.another(), Side.MODEL) == [said]


def test_what_the_leg_did_answer_is_not_said_again(call):
    """It would be done twice."""
    call.has("theirs")
    for kind, fields in REPEATED.items():
        call.client(kind, **fields)
    call.model("session.updated", session=SESSION)
    call.has("mine")
    call.model("conversation.item.deleted", item_id="theirs")
    call.model("conversation.item.retrieved", item=MINE)
    assert call.told() == []


@pytest.mark.parametrize("kind", ["input_audio_buffer.commit", "input_audio_buffer.clear", "response.cancel", "x.new"])
def test_what_was_about_audio_or_a_response_that_are_gone_is_not_said_again(call, kind):
    """There is nothing left that it could mean."""
    call.client(kind)
    assert call.told() == []


def test_what_is_said_again_is_told_from_what_backends_ask(call):
    """An answer belongs to the oldest question; a backend's receipt must not be for the client's."""
    call.has("theirs")
    call.client("conversation.item.retrieve", item_id="theirs")
    call.lose()
    call.another()
    call.put("m", {"type": "conversation.item.retrieve", "item_id": "theirs"})
    answers = [call.model("conversation.item.retrieved", item={"id": "theirs"}) for _ in range(2)]
    assert [(len(sent(each, Side.CLIENT)), settled(each)) for each in answers] == [(1, []), (0, [("m", "applied")])]


def test_what_is_said_again_has_its_own_time(call):
    """The time without a leg does not count; after that a lost answer holds up no other."""
    call.client("session.update", session={"instructions": "x"})
    call.lose()
    call.another(now=NOW + 30)
    assert call.bridge.due(NOW + 30, WALL) == NOW + 30 + APPLY_SECONDS


def test_an_item_without_an_id_is_given_one_so_that_it_can_be_said_again(call):
    """Else nobody could tell whether the leg had it."""
    (said,) = call.client("conversation.item.create", item={"type": "message", "id": None})
    assert said["item"]["id"].startswith("item_")
    call.has(said["item"]["id"])
    assert call.told() == []


@pytest.mark.parametrize(
    "item",
    [{"type": "message", "content": "x" * 300_000}, {"id": 7}, "text", None],
    ids=["large", "number", "text", "none"],
)
def test_an_item_that_cannot_be_given_an_id_goes_on_as_it_is(call, item):
    """The model says what it thinks of it; it is not read whole for that."""
    (said,) = call.client("conversation.item.create", item=item)
    assert said["item"] == item


def test_only_so_much_is_kept_to_be_said_again(call):
    """The limit protects the node's memory; what is beyond it is lost with its leg."""
    big = {"instructions": "x" * 600_000}
    for _ in range(2):
        call.client("session.update", session=big)
    assert call.told() == ["session.update"]


# Items that another leg has as text only


def test_an_answer_that_another_leg_has_as_text_is_cut_here(call):
    """It has no audio that could be cut: the API would refuse; what was heard is for the next leg to know."""
    call.has("said", role="assistant", content=[{"transcript": "hello"}])
    call.lose()
    call.another()
    place = {"item_id": "said", "content_index": 0, "audio_end_ms": 40}
    actions = call.bridge.on_client_text(event("conversation.item.truncate", event_id="e1", **place), NOW)
    assert sent(actions, Side.MODEL) == []
    (answer,) = sent(actions, Side.CLIENT)
    assert answer.items() > {"type": "conversation.item.truncated", **place}.items()
    assert [json.loads(each.event) for each in actions if isinstance(each, Log)] == [answer]
    assert call.bridge.conversation.memory.entry("said")["truncated_ms"] == 40


def test_a_cut_under_way_is_done_here_when_the_leg_is_lost(call):
    """The client waits for its answer, and the next leg must not be told what nobody heard."""
    call.has("said", role="assistant", content=[{"transcript": "hello"}])
    call.client("conversation.item.truncate", item_id="said", content_index=0, audio_end_ms=40)
    call.lose()
    actions = call.another()
    assert sent(actions, Side.MODEL) == []
    assert [each["type"] for each in sent(actions, Side.CLIENT)] == ["conversation.item.truncated"]


def test_an_interruption_cuts_nothing_that_the_leg_has_no_audio_of(call):
    """The person still hears it; the API would refuse to cut it."""
    call.begins()
    call.says("said")
    call.client("response.cancel")
    call.lose()
    call.another()
    assert [each["type"] for each in sent(call.put_item("i", when="interrupt"), Side.MODEL)] == [
        "conversation.item.create"
    ]


def test_what_another_leg_says_itself_is_cut_there(call):
    """It has the audio."""
    call.lose()
    call.another()
    call.begins()
    call.says("said")
    assert len(call.client("conversation.item.truncate", item_id="said", content_index=0, audio_end_ms=40)) == 1


def test_an_answer_that_was_lost_before_its_first_word_can_be_cut_too(call):
    """The client has heard some of it; no leg knows of it."""
    call.begins()
    call.says("said", "")
    call.lose()
    call.another()
    (answer,) = call.client_gets("conversation.item.truncate", item_id="said", content_index=0, audio_end_ms=40)
    assert answer["type"] == "conversation.item.truncated"


def test_the_client_sees_nothing_of_a_rebuild(call):
    """The last of its events may come when the leg is in use already."""
    call.has("theirs")
    call.lose()
    call.another()
    for item_id in (ANCHOR, "theirs"):
        actions = call.model("conversation.item.done", previous_item_id=None, item={"id": item_id, "type": "message"})
        assert (sent(actions, Side.CLIENT), [each for each in actions if isinstance(each, Note)]) == ([], [])
    assert not call.bridge.conversation.memory.has(ANCHOR)


def test_an_item_that_went_and_comes_again_is_seen(call):
    """The client may put it in anew."""
    call.has("theirs")
    call.lose()
    call.another()
    call.model("conversation.item.deleted", item_id="theirs")
    added = call.model("conversation.item.added", previous_item_id=None, item={"id": "theirs", "type": "message"})
    assert len(sent(added, Side.CLIENT)) == 1


def test_what_follows_the_anchor_follows_the_last_item_that_the_client_knows(call):
    """Also in the end that the relay makes for it."""
    call.has("theirs")
    call.lose()
    call.another()
    call.begins()
    item = {"id": "said", "type": "message", "role": "assistant", "status": "in_progress"}
    call.model("response.output_item.added", response_id="resp", output_index=0, item=item)
    (added,) = sent(call.model("conversation.item.added", previous_item_id=ANCHOR, item=item), Side.CLIENT)
    call.lose()
    (done,) = [each for each in sent(call.gone.follows, Side.CLIENT) if each["type"] == "conversation.item.done"]
    assert added["previous_item_id"] == done["previous_item_id"] == "theirs"


# Responses


def test_a_response_that_did_not_begin_is_asked_for_again(call):
    """Under the client's own id, so that a refusal finds it."""
    (asked,) = call.client("response.create", event_id="e1", response={"instructions": "x"})
    call.lose()
    assert sent(call.another(), Side.MODEL) == [asked]


def test_a_response_that_was_cut_off_ends_for_the_client_and_is_asked_for_again(call):
    """A response without an end blocks an SDK for ever; a question without an answer, its person."""
    call.client("response.create", event_id="e1", response={"instructions": "x"})
    call.begins()
    call.says("said")
    done = sent(call.lose(), Side.CLIENT)[-1]
    assert (done["type"], done["response"]["id"], done["response"]["status"]) == ("response.done", "resp", "cancelled")
    assert (call.gone.response, call.gone.turn) == ("resp", None)
    (asked,) = sent(call.another(), Side.MODEL)
    assert (asked["type"], asked["response"]) == ("response.create", {"instructions": "x"})
    entry = call.bridge.conversation.memory.entry("said")
    assert (entry["text"], entry["status"], entry["audio_ms"]) == ("Good day", "incomplete", pytest.approx(1000, 1))


def test_a_response_that_has_called_a_tool_is_not_asked_for_again(call):
    """The result asks for the next one; the tool would be called twice."""
    call.put_item("m", response={})
    call.has("item_m")
    call.begins()
    call.calls("call_1")
    actions = call.lose()
    assert settled(actions) == [("m", "answered")]
    assert sent(call.another(), Side.MODEL) == []
    assert settled(call.result("out", "call_1")) == []


def test_a_tool_call_that_is_whole_is_told_to_another_leg_before_its_own_end_is(call):
    """The client acts on the first event that says so: the other leg must know the call to take its result."""
    call.begins()
    call.calls("call_1")
    assert call.bridge.conversation.memory.entry("of_call_1")["status"] == "completed"


@pytest.mark.parametrize("who", ["client", "backend", "interrupt"])
def test_a_response_that_somebody_cancelled_is_not_asked_for_again(call, who):
    """Whether the model had heard of it or not: nobody wants it."""
    call.put_item("m", response={})
    call.has("item_m")
    call.begins()
    if who == "client":
        call.client("response.cancel")
    elif who == "backend":
        call.put("c", {"type": "response.cancel"})
    else:
        call.put_item("i", when="interrupt")
    actions = call.lose()
    assert ("m", "answered") in settled(actions)
    assert (("c", "applied") in settled(actions)) == (who == "backend")
    asked = [each["type"] for each in sent(call.another(), Side.MODEL)]
    assert asked == ["conversation.item.create"] * (who == "interrupt")


@pytest.mark.parametrize("told", [True, False], ids=["understands it", "does not"])
def test_a_client_is_told_to_stop_when_the_leg_of_an_interrupted_response_is_lost(told):
    """The interruption still stands: what is buffered is not wanted."""
    call = Call(told_to_clear=told)
    call.begins("resp_1")
    call.says("said", response_id="resp_1")
    call.put_item("i", when="interrupt")
    cleared = [each for each in sent(call.lose(), Side.CLIENT) if each["type"] == "output_audio_buffer.cleared"]
    assert [each["response_id"] for each in cleared] == ["resp_1"] * told


@pytest.mark.parametrize(
    ("detection", "seconds", "asked"),
    [
        ({"type": "server_vad"}, 1.0, 1),
        ({"type": "server_vad"}, 6.0, 0),
        ({"create_response": False}, 1.0, 0),
        (None, 1.0, 0),
    ],
    ids=["soon", "long ago", "nobody answers", "by hand"],
)
def test_what_a_person_said_just_now_is_answered_by_another_leg(call, detection, seconds, asked):
    """The server would have done so by itself; long ago it has thought better of it."""
    call.model("session.updated", session={"audio": {"input": {"turn_detection": detection}}})
    call.model("input_audio_buffer.committed", item_id="heard", previous_item_id=None)
    call.has("heard")
    call.lose(NOW + seconds)
    assert len(sent(call.another(now=NOW + seconds), Side.MODEL)) == asked


def test_what_a_person_was_just_saying_is_lost_and_said_so(call):
    """Its audio is gone: the client hears that its buffer is empty, and which turn it was."""
    call.model("input_audio_buffer.speech_started", item_id="heard", audio_start_ms=0)
    call.lose()
    assert (call.gone.turn, [each["type"] for each in sent(call.gone.follows, Side.CLIENT)]) == (
        "heard",
        ["input_audio_buffer.cleared"],
    )
    assert not call.bridge.is_quiet(NOW + 60)  # there is no leg
    call.another()
    assert call.bridge.is_quiet(NOW + 60)


def test_a_bare_request_that_had_begun_is_applied_once(call):
    """Its receipt was given when the first response began."""
    (asked,) = sent(call.put("m", None), Side.MODEL)
    assert settled(call.begins("one", asked["response"]["metadata"])) == [("m", "applied")]
    call.lose()
    (again,) = sent(call.another(), Side.MODEL)
    assert settled(call.begins("two", again["response"]["metadata"])) == []
    body = {"id": "two", "conversation_id": "conv", "status": "completed"}
    assert settled(call.model("response.done", response=body)) == [("m", "answered")]


def test_who_was_told_all_that_it_wants_to_know_is_told_no_more(call):
    """A second receipt would say that what was applied had expired."""
    (asked,) = sent(call.put("m", None, wants_answer=False, expires_at=WALL + 1), Side.MODEL)
    call.begins("one", asked["response"]["metadata"])
    call.lose()
    assert settled(call.bridge.on_tick(NOW + 5, WALL + 5)) == []
    assert len(sent(call.another(), Side.MODEL)) == 1


def test_a_response_of_which_nobody_knew_whose_it_was_is_told_from_its_beginning_to_its_end(call):
    """A server that drops metadata: the response may be ours. It had said what it had to say."""
    call.put("m", None)
    call.begins("one")
    call.calls("call_1", response_id="one")
    assert settled(call.lose()) == [("m", "applied"), ("m", "answered")]


# Tool calls


def test_results_that_wait_for_the_response_that_made_the_calls_are_answered_when_it_is_lost(call):
    """It will never be done: nothing else would ever ask."""
    call.begins()
    call.calls("call_1")
    call.result("out", "call_1")
    call.has("item_out", type="function_call_output", call_id="call_1")
    call.lose()
    (asked,) = sent(call.another(), Side.MODEL)
    assert asked["response"]["instructions"] == "out"


def test_a_tool_call_that_was_cut_off_with_its_leg_is_not_waited_for(call):
    """Nobody can answer it; the results of the others are answered without it."""
    call.begins()
    call.calls("call_1")
    call.calls("call_2", "in_progress", index=2)
    call.lose()
    call.another()
    assert settled(call.result("late", "call_2")) == [("late", "rejected")]
    call.result("out", "call_1")
    asked = call.model(
        "conversation.item.added", item={"id": "item_out", "type": "function_call_output", "call_id": "call_1"}
    )
    assert [each["type"] for each in sent(asked, Side.MODEL)] == ["response.create"]


def test_a_result_that_comes_again_and_is_known_is_answered(call):
    """Its node died between the item and the question."""
    call.calls("call_1")
    call.has("item_out", type="function_call_output", call_id="call_1")
    actions = call.result("out", "call_1")
    assert settled(actions) == [("out", "applied")]
    assert [each["type"] for each in sent(actions, Side.MODEL)] == ["response.create"]


# Messages of backends


def test_messages_under_way_go_to_another_leg_in_their_order_before_those_that_came_meanwhile(call):
    """The promise to a publisher holds over the loss."""
    for name in "ab":
        call.put_item(name)
    call.lose()
    assert sent(call.put_item("c"), Side.MODEL) == []
    said = sent(call.another(), Side.MODEL)
    assert [each["item"]["id"] for each in said] == ["item_a", "item_b", "item_c"]
    assert len({each["event_id"] for each in said}) == 3


@pytest.mark.parametrize("when", WHEN)
def test_a_message_that_was_under_way_and_is_late_by_then_expires(call, when):
    """The leg that may have had it is gone."""
    call.put_item("a", when=when, expires_at=WALL + 1)
    call.lose()
    assert settled(call.bridge.on_tick(NOW + 2, WALL + 2)) == [("a", "expired")]
    assert sent(call.another(), Side.MODEL) == []


def test_an_event_that_has_no_answer_but_an_error_is_not_sent_twice(call):
    """Whether the leg took it nobody can say any more."""
    call.put("m", {"type": "something.new"})
    assert settled(call.lose()) == [("m", "applied")]
    assert sent(call.another(), Side.MODEL) == []


# Legs that come and go


def test_what_the_client_sends_while_there_is_no_model_waits_for_one(call):
    """In order, before what comes from then on."""
    call.lose()
    assert call.client("session.update", session={"instructions": "x"}) == []
    assert call.client("input_audio_buffer.append", audio="AAAA") == []
    assert [each["type"] for each in sent(call.another(), Side.MODEL)] == [
        "session.update",
        "input_audio_buffer.append",
    ]


def test_what_there_is_for_a_client_that_is_away_waits_for_it(call):
    """What the model says, what the relay answers for it, and how many they are."""
    call.has("said", role="assistant", content=[{"transcript": "hello"}])
    call.lose()
    call.client("conversation.item.truncate", item_id="said", content_index=0, audio_end_ms=40)
    call.client_gets("session.update")
    call.bridge.on_client_text(b"no event", NOW)
    call.bridge.on_client_lost()
    assert call.bridge.phase is Phase.ALONE
    assert sent(call.another(), Side.CLIENT) == []
    assert call.bridge.phase is Phase.AWAY
    assert sent(call.model("rate_limits.updated"), Side.CLIENT) == []
    assert call.bridge.missed == 3
    greeting = event("session.created")
    back = sent(call.bridge.on_client_back(Rules(told_to_clear=True), [greeting], NOW, WALL), Side.CLIENT)
    assert [each["type"] for each in back] == [
        "session.created",
        "conversation.item.truncated",
        "error",
        "rate_limits.updated",
    ]
    assert call.bridge.missed == 0
    assert call.bridge.conversation.told_to_clear


def test_a_client_that_is_away_for_long_pauses_the_model():
    """What it says is held in this node's memory."""
    call = Call(hold_items=2)
    call.bridge.on_client_lost()
    assert Pause(Side.MODEL) not in call.model("rate_limits.updated")
    assert Pause(Side.MODEL) in call.model("rate_limits.updated")
    assert Resume(Side.MODEL) in call.bridge.on_client_back(Rules(), (), NOW, WALL)


def test_messages_are_put_in_while_the_client_is_away(call):
    """It is the conversation's matter; the person hears of it when they are back."""
    call.bridge.on_client_lost()
    assert len(sent(call.put_item("a"), Side.MODEL)) == 1


def test_the_loss_of_both_legs_ends_when_the_client_is_back_first(call):
    """It then waits for the model as if it had never been away."""
    call.bridge.on_client_lost()
    call.begins()
    call.lose()
    assert call.bridge.phase is Phase.ALONE
    back = sent(call.bridge.on_client_back(Rules(), (), NOW, WALL), Side.CLIENT)
    assert [each["type"] for each in back] == ["response.created", "response.done"]
    assert call.bridge.phase is Phase.REDIALLING
    assert call.client("x.new") == []
    assert [each["type"] for each in sent(call.another(), Side.MODEL)] == ["x.new", "response.create"]


def test_a_leg_that_lives_is_replaced_and_what_was_open_on_it_is_as_if_it_was_lost(call):
    """Where time is short nobody waits for the end of everything."""
    call.client("session.update", session={"instructions": "x"})
    call.begins("aside", conversation_id=None)
    actions = call.another()
    assert [each["type"] for each in sent(actions, Side.MODEL)] == ["session.update"]
    assert [each["type"] for each in sent(actions, Side.CLIENT)] == ["response.done"]
    assert call.bridge.phase is Phase.OPEN


# The moment to do so


def test_a_call_in_which_nothing_happens_is_quiet(call):
    """It could be anybody's."""
    assert (call.bridge.is_quiet(NOW), call.bridge.may_be_cut(NOW)) == (True, True)
    call.bridge.on_client_lost()
    assert (call.bridge.is_quiet(NOW), call.bridge.may_be_cut(NOW)) == (True, True)


@pytest.mark.parametrize("phase", ["redialling", "alone", "ended"])
def test_a_call_without_a_model_leg_has_none_to_be_replaced(call, phase):
    """The other one comes by itself."""
    if phase == "alone":
        call.bridge.on_client_lost()
    call.lose()
    if phase == "ended":
        call.bridge.on_ended()
    assert (call.bridge.is_quiet(NOW), call.bridge.may_be_cut(NOW)) == (False, False)


def test_a_call_is_not_quiet_while_anything_is_under_way(call):
    """Each of these would be noticed; but where time is short only what is said aloud counts."""
    call.put_item("a", when="turn_end")
    assert (call.bridge.is_quiet(NOW), call.bridge.may_be_cut(NOW)) == (False, True)
    call.has("item_a")
    assert call.bridge.is_quiet(NOW)
    call.begins("aside", conversation_id=None)
    assert (call.bridge.is_quiet(NOW), call.bridge.may_be_cut(NOW)) == (False, True)
    call.model("response.done", response={"id": "aside", "conversation_id": None, "status": "completed"})
    assert call.bridge.is_quiet(NOW)
    call.begins()
    assert (call.bridge.is_quiet(NOW), call.bridge.may_be_cut(NOW)) == (False, False)
    call.model("response.done", response={"id": "resp", "conversation_id": "conv", "status": "completed"})
    call.model("input_audio_buffer.speech_started", item_id="heard")
    assert (call.bridge.is_quiet(NOW), call.bridge.may_be_cut(NOW)) == (False, False)
    call.model("input_audio_buffer.committed", item_id="heard")
    assert (call.bridge.is_quiet(NOW + 1), call.bridge.may_be_cut(NOW + 1)) == (False, False)  # it will be answered
    assert (call.bridge.is_quiet(NOW + 6), call.bridge.may_be_cut(NOW + 6)) == (True, True)


# Small things


def test_the_client_has_heard_of_a_call_once_it_was_announced():
    """Until then nobody could come back to it."""
    bridge = Bridge(Rules(), lambda: "event_1")
    assert not bridge.is_announced
    bridge.on_model_opened(None, NOW)
    assert not bridge.is_announced
    bridge.on_announced((), NOW, WALL)
    bridge.on_client_lost()
    bridge.on_model_lost(NOW)
    assert bridge.is_announced


def test_event_ids_of_the_relays_own_are_no_one_elses(call):
    """Those of a leg that is being built and those of the gate are answered on one leg in the end."""
    (create,) = sent(call.put_item("a"), Side.MODEL)
    assert call.bridge.new_event_id() != create["event_id"]
    assert create["event_id"].startswith("r.")


def test_how_much_of_an_answer_there_is_is_remembered(call):
    """Of one that is cut off later its length tells which words were heard."""
    call.begins()
    call.says("said")
    call.model("response.output_audio.done", response_id="resp", output_index=0, item_id="said", content_index=0)
    assert call.bridge.conversation.memory.entry("said")["audio_ms"] == pytest.approx(1000, 1)
    call.model("response.output_audio.done", response_id="resp", output_index=0, item_id="other", content_index=0)
    assert not call.bridge.conversation.memory.has("other")


def test_binary_audio_waits_for_the_model_too():
    """It keeps its place among the events."""
    call = Call(binary_client=True)
    call.lose()
    assert call.bridge.on_client_binary(b"\x00\x01") == []
    assert [each["audio"] for each in sent(call.another(), Side.MODEL)] == ["AAE="]
