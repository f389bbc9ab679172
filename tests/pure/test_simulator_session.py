"""A session of the simulated model, driven without a loop: `now` is an argument, waiting is adding to it."""

from __future__ import annotations

import itertools
import json
import math
from base64 import b64decode, b64encode
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from openai.types.realtime import RealtimeServerEvent
from pydantic import BaseModel, Field, TypeAdapter

from ops.simulator.session import Behaviour, Close, Event, Session
from ops.simulator.speech import Clip, Format, tone

SDK: TypeAdapter[BaseModel] = TypeAdapter(Annotated[RealtimeServerEvent, Field(discriminator="type")])
SPOKEN_TURN = bytes(300 * 48) + tone(1) + bytes(600 * 48)
TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "…",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}},
        "required": ["city", "days", "unit"],
    },
}
# What `session.created` has and the SDK's class (that of the request) has not.
KNOWN_EXTRAS = {"session.id", "session.object", "session.expires_at"}


def check_with_the_sdk(event: Event) -> None:
    """It must parse to the class of its type, and hold nothing that the class doesn't know."""
    parsed = SDK.validate_python(json.loads(json.dumps(event)), strict=True)
    assert set(unknown_fields(parsed, "")) <= KNOWN_EXTRAS, event


def unknown_fields(model: Any, path: str) -> Iterator[str]:
    if isinstance(model, list):
        for each in model:
            yield from unknown_fields(each, path)
    if isinstance(model, BaseModel):
        yield from (f"{path}{name}" for name in model.model_extra or ())
        for name in type(model).model_fields:
            yield from unknown_fields(getattr(model, name), f"{path}{name}.")


class Talk:
    """A session and its clock; every event that comes out is checked against the SDK."""

    def __init__(self, model: str = "sim", **behaviour: Any) -> None:
        self.now = 100.0
        ids = itertools.count(1)
        self.session = Session(
            model, Behaviour(**behaviour), lambda prefix: f"{prefix}_{next(ids):06}", now=self.now, wall=1_000_000.0
        )
        self.all: list[Event] = []
        self._keep(self.session.open())

    def send(self, kind: str, **fields: Any) -> list[Event]:
        return self.send_raw(json.dumps({"type": kind, **fields}))

    def send_raw(self, raw: str | bytes) -> list[Event]:
        return self._keep(self.session.receive(raw, self.now))

    def hear(self, pcm: bytes) -> list[Event]:
        return self.send("input_audio_buffer.append", audio=b64encode(pcm).decode())

    def wait(self, seconds: float = math.inf) -> list[Event]:
        """Let time pass: so many seconds, or until nothing is going on."""
        end, seen = self.now + seconds, len(self.all)
        while (at := self.session.wake_at()) <= end and at < 3_600:
            self.now = max(self.now, at)
            self._keep(self.session.tick(self.now))
        self.now = max(self.now, end) if seconds < math.inf else self.now
        return self.all[seen:]

    def say(self, text: str, role: str = "user", **fields: Any) -> list[Event]:
        content = [{"type": "output_text" if role == "assistant" else "input_text", "text": text}]
        return self.send(
            "conversation.item.create", item={"type": "message", "role": role, "content": content, **fields}
        )

    def update(self, **session: Any) -> list[Event]:
        return self.send("session.update", session={"type": "realtime", **session})

    def answer(self, **response: Any) -> list[Event]:
        """`response.create`, and everything until it is done."""
        return [*self.send("response.create", response=response), *self.wait()]

    def _keep(self, events: list[Event]) -> list[Event]:
        for event in events:
            check_with_the_sdk(event)
        self.all += events
        return events


def kinds(events: list[Event]) -> list[str]:
    return [event["type"] for event in events]


def one(events: list[Event], kind: str) -> Event:
    (event,) = (each for each in events if each["type"] == kind)
    return event


def said(events: list[Event]) -> str:
    return str(one(events, "response.output_audio_transcript.done")["transcript"])


def audio_of(events: list[Event]) -> bytes:
    return b"".join(b64decode(each["delta"]) for each in events if each["type"] == "response.output_audio.delta")


def error_of(events: list[Event]) -> Event:
    assert kinds(events) == ["error"]
    return dict(events[0]["error"])


# -- session ---------------------------------------------------------------------------------------------------------


def test_the_session_begins_with_the_full_session_object():
    session = Talk().all[0]["session"]
    assert session["object"] == "realtime.session"
    assert session["expires_at"] == 1_003_600
    assert session["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 500
    assert session["audio"]["output"] == {
        "format": {"type": "audio/pcm", "rate": 24000},
        "voice": "marin",
        "speed": 1.0,
    }


def test_an_update_changes_what_it_names_and_nothing_else():
    talk = Talk()
    first = talk.all[0]["session"]
    (updated,) = talk.update(instructions="be brief", audio={"output": {"voice": "cedar"}})
    expected = json.loads(json.dumps(first))
    expected["instructions"] = "be brief"
    expected["audio"]["output"]["voice"] = "cedar"
    assert updated["session"] == expected
    assert first["instructions"] != "be brief"  # what was sent is not changed behind the reader's back


def test_a_turn_detection_gets_the_defaults_of_its_type():
    (updated,) = Talk().update(audio={"input": {"turn_detection": {"type": "semantic_vad"}}})
    detection = updated["session"]["audio"]["input"]["turn_detection"]
    assert detection == {
        "type": "semantic_vad",
        "eagerness": "auto",
        "create_response": True,
        "interrupt_response": True,
    }


def test_the_model_cannot_change_unless_it_is_simulated_by_name():
    """The Agents SDKs name their default model in `session.update`, whatever the URL says."""
    assert error_of(Talk("gpt-realtime").update(model="gpt-4"))["param"] == "session.model"
    assert kinds(Talk("gpt-realtime").update(model="gpt-realtime")) == ["session.updated"]
    (updated,) = Talk("sim;null_ids").update(model="gpt-4")
    assert updated["session"]["model"] == "sim;null_ids"


def test_the_voice_is_fixed_once_it_was_heard():
    talk = Talk()
    talk.answer()
    assert error_of(talk.update(audio={"output": {"voice": "ash"}}))["code"] == "cannot_update_voice"
    assert kinds(talk.update(audio={"output": {"voice": "marin"}})) == ["session.updated"]


def test_a_session_expires_with_an_error_and_1001():
    talk = Talk(session_seconds=60)
    talk.wait(59.9)
    assert talk.session.closing is None
    (event,) = talk.wait(0.2)
    assert event["error"]["code"] == "session_expired"
    assert event["error"]["event_id"] is None
    assert talk.session.closing == Close(1001, "Your session hit the maximum duration of 60 minutes.")
    assert talk.send("response.create") == []


def test_an_error_names_the_event_that_caused_it_unless_told_not_to():
    assert error_of(Talk().send("nonsense", event_id="mine"))["event_id"] == "mine"
    assert error_of(Talk(anonymous_errors=True).send("nonsense", event_id="mine"))["event_id"] is None
    assert error_of(Talk().send_raw("{"))["code"] == "invalid_json"


# -- speech ----------------------------------------------------------------------------------------------------------


def test_a_spoken_turn_is_heard_committed_and_said_back():
    talk = Talk()
    talk.update(audio={"input": {"transcription": {"model": "whisper-1"}}})
    heard = talk.hear(SPOKEN_TURN)
    assert kinds(heard) == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "conversation.item.input_audio_transcription.delta",
        "conversation.item.input_audio_transcription.completed",
        "response.created",
        "rate_limits.updated",
    ]
    item_ids = {event.get("item_id") or event["item"]["id"] for event in heard[:-2]}
    assert len(item_ids) == 1
    assert heard[6]["usage"] == {"type": "duration", "seconds": 1.8}
    answer = talk.wait()
    assert said(answer) == "You said 1.0 seconds of speech."
    assert audio_of(answer) == SPOKEN_TURN[: 1400 * 48]


def test_an_answer_streams_faster_than_real_time_in_chunks():
    talk = Talk()
    talk.hear(SPOKEN_TURN)
    started = talk.now
    deltas = [event for event in talk.wait() if event["type"] == "response.output_audio.delta"]
    assert len(deltas) == 7
    assert len(deltas[0]["delta"]) == 12_800
    assert talk.now - started == pytest.approx(0.05 + 7 * 0.2 / 5)


def test_a_late_tick_catches_up():
    """The shell may be held up by a peer that doesn't read; the answer must not get stuck."""
    talk = Talk()
    talk.hear(SPOKEN_TURN)
    talk.now += 50
    assert kinds(talk._keep(talk.session.tick(talk.now)))[-1] == "response.done"


@pytest.mark.parametrize("coding", [Format.PCMU, Format.PCMA], ids=lambda each: each.wire)
def test_a_phone_hears_its_own_codes(coding: Format):
    talk = Talk()
    talk.update(audio={"input": {"format": {"type": coding.wire}}, "output": {"format": {"type": coding.wire}}})
    spoken = Clip(Format.PCM, SPOKEN_TURN).to(coding).data
    started, stopped, *_ = talk.hear(spoken)
    assert (started["audio_start_ms"], stopped["audio_end_ms"]) == (0, 1800)
    assert audio_of(talk.wait()) == spoken[: 1400 * 8]


def test_a_phone_in_and_pcm_out_is_the_same_length():
    talk = Talk()
    talk.update(audio={"input": {"format": {"type": "audio/pcmu"}}})
    talk.hear(Clip(Format.PCM, SPOKEN_TURN).to(Format.PCMU).data)
    assert len(audio_of(talk.wait())) == 1400 * 48


def test_an_echo_is_capped():
    talk = Talk(echo_cap_ms=500)
    talk.hear(SPOKEN_TURN)
    assert len(audio_of(talk.wait())) == 500 * 48


def test_manual_turns_wait_for_commit_and_response_create():
    talk = Talk()
    talk.update(audio={"input": {"turn_detection": None}})
    assert talk.hear(SPOKEN_TURN) == []
    assert kinds(talk.send("input_audio_buffer.commit")) == [
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
    ]
    assert talk.wait() == []
    assert said(talk.answer()) == "You said 1.9 seconds of speech."


def test_a_commit_of_nothing_is_an_error():
    talk = Talk()
    error = error_of(talk.send("input_audio_buffer.commit", event_id="c"))
    assert (error["code"], error["event_id"]) == ("input_audio_buffer_commit_empty", "c")
    talk.hear(tone(1))
    assert kinds(talk.send("input_audio_buffer.clear")) == ["input_audio_buffer.cleared"]
    assert error_of(talk.send("input_audio_buffer.commit"))["code"] == "input_audio_buffer_commit_empty"


@pytest.mark.parametrize("audio", ["", "###", "AAA"], ids=["empty", "junk", "padding"])
def test_audio_that_is_no_base64_is_an_error(audio: str):
    error = error_of(Talk().send("input_audio_buffer.append", audio=audio))
    assert (error["code"], error["param"]) == ("invalid_value", "audio")


def test_silence_after_an_answer_makes_the_model_speak_again_when_asked_to():
    talk = Talk()
    talk.update(audio={"input": {"turn_detection": {"type": "server_vad", "idle_timeout_ms": 5000}}})
    talk.hear(SPOKEN_TURN)
    talk.wait()
    assert talk.hear(bytes(6_000 * 48)) == []  # 1.4 s of answer are still being played
    events = talk.hear(bytes(500 * 48))
    assert kinds(events)[:2] == ["input_audio_buffer.timeout_triggered", "input_audio_buffer.committed"]
    assert talk.wait()[-1]["response"]["status"] == "completed"


# -- barge-in --------------------------------------------------------------------------------------------------------


def test_speaking_over_an_answer_cancels_it():
    talk = Talk()
    talk.hear(SPOKEN_TURN)
    talk.wait(0.1)
    events = talk.hear(tone(0.2))
    assert kinds(events) == [
        "input_audio_buffer.speech_started",
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "response.output_item.done",
        "conversation.item.done",
        "response.done",
    ]
    response = events[-1]["response"]
    assert response["status"] == "cancelled"
    assert response["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
    assert response["output"][0]["status"] == "incomplete"
    assert talk.wait() == []


def test_without_interrupt_response_the_answer_goes_on_and_a_second_one_is_refused():
    talk = Talk()
    talk.update(audio={"input": {"turn_detection": {"type": "server_vad", "interrupt_response": False}}})
    talk.hear(SPOKEN_TURN)
    talk.wait(0.1)
    events = talk.hear(SPOKEN_TURN)
    assert events[-1]["error"]["code"] == "conversation_already_has_active_response"
    assert talk.wait()[-1]["response"]["status"] == "completed"


def test_a_client_cancels_an_answer_once():
    talk = Talk()
    talk.say("a story please")
    created = talk.send("response.create")[0]
    talk.wait(0.06)
    done = talk.send("response.cancel", response_id=created["response"]["id"])[-1]
    assert done["response"]["status_details"]["reason"] == "client_cancelled"
    assert error_of(talk.send("response.cancel"))["code"] == "response_cancel_not_active"


def test_an_answer_that_is_cancelled_before_its_first_event_has_no_item():
    talk = Talk()
    talk.send("response.create")
    (done,) = talk.send("response.cancel")
    assert done["response"]["output"] == []


def test_truncating_keeps_what_was_heard_and_no_transcript():
    talk = Talk()
    talk.hear(SPOKEN_TURN)
    item_id = one(talk.wait(), "response.done")["response"]["output"][0]["id"]
    cut = {"item_id": item_id, "content_index": 0}
    error = error_of(talk.send("conversation.item.truncate", **cut, audio_end_ms=1401))
    assert error["message"] == "Audio content of 1400ms is already shorter than 1401ms"
    (event,) = talk.send("conversation.item.truncate", **cut, audio_end_ms=700)
    assert event["audio_end_ms"] == 700
    (event,) = talk.send("conversation.item.retrieve", item_id=item_id)
    (part,) = event["item"]["content"]
    assert b64decode(part["audio"]) == SPOKEN_TURN[: 700 * 48]
    assert part["transcript"] is None


def test_only_spoken_answers_can_be_truncated():
    talk = Talk()
    talk.say("hello", id="mine")
    cut = {"content_index": 0, "audio_end_ms": 0}
    assert error_of(talk.send("conversation.item.truncate", item_id="mine", **cut))["code"] == "invalid_value"
    error = error_of(talk.send("conversation.item.truncate", item_id="gone", **cut))
    assert error["code"] == "item_truncate_invalid_item_id"


# -- items -----------------------------------------------------------------------------------------------------------


def test_an_item_keeps_its_id_and_its_place():
    talk = Talk()
    talk.say("b", id="b")
    added, done = talk.say("c", id="c")
    assert (added["previous_item_id"], done["item"]["id"]) == ("b", "c")
    first = talk.send(
        "conversation.item.create",
        previous_item_id="root",
        item={"type": "message", "role": "system", "id": "a", "content": [{"type": "input_text", "text": "a"}]},
    )
    assert first[0]["previous_item_id"] is None
    assert [item.id for item in talk.session.conversation] == ["a", "b", "c"]
    assert kinds(talk.send("conversation.item.delete", item_id="b")) == ["conversation.item.deleted"]
    assert [item.id for item in talk.session.conversation] == ["a", "c"]


@pytest.mark.parametrize(
    ("kind", "fields", "code"),
    [
        ("conversation.item.delete", {"item_id": "x"}, "item_delete_invalid_item_id"),
        ("conversation.item.retrieve", {"item_id": "x"}, "item_retrieve_invalid_item_id"),
        (
            "conversation.item.create",
            {"item": {"type": "function_call_output", "call_id": "call_x", "output": ""}},
            "invalid_tool_call_id",
        ),
        (
            "conversation.item.create",
            {"previous_item_id": "x", "item": {"type": "function_call", "name": "f", "arguments": ""}},
            "item_create_invalid_previous_item_id",
        ),
        (
            "conversation.item.create",
            {"item": {"type": "function_call", "id": "mine", "name": "f", "arguments": ""}},
            "item_create_duplicate_item_id",
        ),
        ("response.create", {"response": {"input": [{"type": "item_reference", "id": "x"}]}}, "invalid_value"),
        ("output_audio_buffer.clear", {}, "invalid_value"),
    ],
    ids=["delete", "retrieve", "tool output", "previous", "duplicate", "reference", "webrtc only"],
)
def test_what_refers_to_nothing_is_refused(kind: str, fields: dict[str, Any], code: str):
    talk = Talk()
    talk.say("hello", id="mine")
    error = error_of(talk.send(kind, event_id="e", **fields))
    assert (error["code"], error["event_id"]) == (code, "e")
    assert [item.id for item in talk.session.conversation] == ["mine"]


def test_added_items_carry_no_audio_and_retrieved_ones_do():
    talk = Talk()
    content = [{"type": "input_audio", "audio": b64encode(SPOKEN_TURN).decode()}]
    added, _ = talk.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
    assert "audio" not in added["item"]["content"][0]
    (event,) = talk.send("conversation.item.retrieve", item_id=added["item"]["id"])
    assert b64decode(event["item"]["content"][0]["audio"]) == SPOKEN_TURN
    assert said(talk.answer()) == "You said 1.9 seconds of speech."


# -- answers ---------------------------------------------------------------------------------------------------------


def test_a_text_turn_is_quoted_and_beeped():
    talk = Talk()
    talk.say("hello there")
    answer = talk.answer(metadata={"who": "test"})
    assert kinds(answer) == [
        "response.created",
        "rate_limits.updated",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        *["response.output_audio_transcript.delta", "response.output_audio.delta"] * 4,
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "response.output_item.done",
        "conversation.item.done",
        "response.done",
    ]
    assert said(answer) == "You said: hello there"
    response = answer[-1]["response"]
    assert response["metadata"] == {"who": "test"}
    usage = response["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0


def test_a_text_only_answer_has_no_audio():
    talk = Talk()
    talk.say("hello")
    answer = talk.answer(output_modalities=["text"])
    assert one(answer, "response.output_text.done")["text"] == "You said: hello"
    assert "".join(e["delta"] for e in answer if e["type"] == "response.output_text.delta") == "You said: hello"
    assert not any("audio" in kind for kind in kinds(answer))


def test_an_injected_system_message_is_heard_in_the_next_answer_and_only_there():
    talk = Talk()
    talk.say("the train is late", role="system")
    talk.hear(SPOKEN_TURN)
    assert said(talk.wait()) == "You said 1.0 seconds of speech. (system: the train is late)"
    talk.say("and now?")
    assert said(talk.answer()) == "You said: and now?"


def test_a_rebuilt_history_is_not_answered_again():
    """A relay that reconnects replays the conversation, then adds a system item."""
    talk = Talk()
    talk.say("old question")
    talk.say("old answer", role="assistant")
    talk.say("go on as before", role="system")
    assert said(talk.answer()) == "I am listening. (system: go on as before)"


def test_what_was_heard_before_the_rebuilding_is_not_heard_again():
    """A system message that stands before an answer was quoted in it."""
    talk = Talk()
    talk.say("the train is late", role="system")
    talk.say("old answer", role="assistant")
    assert said(talk.answer()) == "I am listening."


def test_a_re_anchor_item_changes_no_answer():
    """Whatever is in it: it tells a rebuilt session where it is, and is no prompt."""
    talk = Talk()
    talk.say("and now?")
    talk.say("You were in a call: talk for 9 seconds.", role="system", id="relay_anchor_1")
    answer = talk.answer()
    assert said(answer) == "You said: and now?"
    assert len(audio_of(answer)) < 3 * 48_000


@pytest.mark.parametrize("kind", ["input_text", "input_audio"])
@pytest.mark.parametrize("tools", [[], [TOOL]], ids=["words", "tool"])
def test_a_turn_that_was_restored_by_its_transcript_is_answered_as_the_spoken_one_would_be(kind: str, tools: list[Any]):
    live, rebuilt = Talk(), Talk()
    live.update(tools=tools, audio={"input": {"transcription": {"model": "whisper-1"}}})
    heard = live.hear(SPOKEN_TURN)
    words = one(heard, "conversation.item.input_audio_transcription.completed")["transcript"]
    rebuilt.update(tools=tools)
    part = {"type": kind, "text" if kind == "input_text" else "transcript": words}
    rebuilt.send("conversation.item.create", item={"type": "message", "role": "user", "content": [part]})
    (item,), (again,) = (
        one(events, "response.done")["response"]["output"] for events in (live.wait(), rebuilt.answer())
    )
    for answer in (item, again):
        del answer["id"]
        answer.pop("call_id", None)
    assert item == again


def test_a_transcript_may_come_after_the_answer():
    """It is nowhere before; of an item that is gone by then there is none."""
    talk = Talk(transcription_ms=60_000)
    talk.update(audio={"input": {"transcription": {"model": "whisper-1"}}})
    talk.hear(SPOKEN_TURN)
    talk.wait(30)
    (item, _) = talk.session.conversation
    assert (item.text(), talk.all[-1]["type"]) == ("", "response.done")
    assert kinds(talk.wait(30)) == [
        "conversation.item.input_audio_transcription.delta",
        "conversation.item.input_audio_transcription.completed",
    ]
    assert item.text() == "1.0 seconds of speech."
    talk.hear(SPOKEN_TURN)
    talk.wait(30)
    talk.send("conversation.item.delete", item_id=one(talk.all[-30:], "input_audio_buffer.committed")["item_id"])
    assert talk.wait(31) == []


def test_so_many_items_are_refused_as_by_a_failing_server():
    talk = Talk(refuse_items=1)
    error = error_of(talk.say("hello", id="mine"))
    assert (error["type"], error["code"]) == ("server_error", "server_error")
    assert kinds(talk.say("hello", id="mine")) == ["conversation.item.added", "conversation.item.done"]


def test_a_second_response_is_refused_while_one_is_active():
    talk = Talk()
    talk.send("response.create")
    error = error_of(talk.send("response.create", event_id="second"))
    assert (error["code"], error["event_id"]) == ("conversation_already_has_active_response", "second")
    assert talk.wait()[-1]["response"]["status"] == "completed"


def test_an_out_of_band_response_runs_beside_and_stays_outside():
    talk = Talk()
    talk.say("hello", id="mine")
    talk.send("response.create")
    beside = {"conversation": "none", "metadata": {"topic": "x"}, "output_modalities": ["text"]}
    talk.send("response.create", response={**beside, "input": [{"type": "item_reference", "id": "mine"}]})
    events = talk.wait()
    ends = {
        event["response"]["conversation_id"]: event["response"] for event in events if event["type"] == "response.done"
    }
    assert ends[None]["metadata"] == {"topic": "x"}
    assert ends[None]["output"][0]["content"][0]["text"] == "You said: hello"
    assert len(ends) == 2
    assert len(list(talk.session.conversation)) == 2
    one(events, "conversation.item.added")


def test_a_failed_response_says_why():
    talk = Talk(fail_code="insufficient_quota")
    response = talk.answer()[-1]["response"]
    assert response["status"] == "failed"
    assert response["status_details"]["error"]["code"] == "insufficient_quota"


# -- tools -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["speech", "its name", "required", "forced"])
def test_a_tool_is_called_and_its_output_told(way: str):
    talk = Talk()
    talk.update(tools=[TOOL])
    if way == "speech":
        talk.hear(SPOKEN_TURN)
        events = talk.wait()
    else:
        talk.say("use get weather please" if way == "its name" else "hello")
        choice = {"required": "required", "forced": {"type": "function", "name": "get_weather"}, "its name": "auto"}[
            way
        ]
        events = talk.answer(tool_choice=choice)
    call = one(events, "response.function_call_arguments.done")
    assert json.loads(call["arguments"]) == {"city": "test", "days": 1, "unit": "C"}
    deltas = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call["arguments"]
    item = one(events, "response.output_item.done")["item"]
    assert (item["status"], item["name"], item["call_id"]) == ("completed", "get_weather", call["call_id"])
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    talk.send("conversation.item.create", item=output)
    assert said(talk.answer()) == "The tool said: sunny"
    talk.hear(SPOKEN_TURN)
    assert said(talk.wait()) == "You said 1.0 seconds of speech."


def test_no_tool_is_called_where_none_is_wanted():
    talk = Talk()
    talk.update(tools=[TOOL], tool_choice="none")
    talk.say("get_weather")
    assert said(talk.answer()) == "You said: get_weather"


def function(name: str) -> dict[str, Any]:
    return {"type": "function", "name": name, "parameters": {"type": "object", "properties": {}}}


def calls(events: list[Event]) -> list[tuple[int, str]]:
    """Place and name of each tool call of the response that is done."""
    output = one(events, "response.done")["response"]["output"]
    return [(index, item["name"]) for index, item in enumerate(output) if item["type"] == "function_call"]


def test_tools_that_are_named_together_are_called_in_one_response():
    """In the order of the words; one output item each, complete before the next begins."""
    talk = Talk()
    talk.update(tools=[TOOL, function("book_table"), function("hang_up")])
    talk.say("please book table, then get_weather and once more book_table")
    answer = talk.answer()
    one_call = [
        "response.output_item.added",
        "conversation.item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "conversation.item.done",
    ]
    assert list(dict.fromkeys(kinds(answer))) == ["response.created", "rate_limits.updated", *one_call, "response.done"]
    assert calls(answer) == [(0, "book_table"), (1, "get_weather")]
    placed = [(event["type"], event["output_index"]) for event in answer if "output_index" in event]
    assert placed == sorted(placed, key=lambda each: each[1])
    items = one(answer, "response.done")["response"]["output"]
    assert [event["item"] for event in answer if event["type"] == "response.output_item.done"] == items
    assert len({item["call_id"] for item in items}) == len({item["id"] for item in items}) == 2
    assert [item.id for item in talk.session.conversation][1:] == [item["id"] for item in items]
    for number, item in enumerate(items):
        output = {"type": "function_call_output", "call_id": item["call_id"], "output": f"result {number}"}
        talk.send("conversation.item.create", item=output)
    assert said(talk.answer()) == "The tool said: result 0 The tool said: result 1"


@pytest.mark.parametrize("where", ["session", "response"])
def test_without_parallel_tool_calls_the_first_that_is_named_is_called(where: str):
    talk = Talk()
    talk.update(tools=[TOOL, function("hang_up")], parallel_tool_calls=where != "session")
    talk.say("hang up, no, get weather")
    assert calls(talk.answer(**({"parallel_tool_calls": False} if where == "response" else {}))) == [(0, "hang_up")]


def test_at_most_eight_tools_are_called_at_once():
    talk = Talk()
    names = [f"tool_{letter}" for letter in "abcdefghij"]
    talk.update(tools=[function(name) for name in names])
    talk.say(" ".join(names))
    assert calls(talk.answer()) == list(enumerate(names[:8]))


def test_of_names_within_each_other_the_longest_counts():
    """Who says `get weather now` doesn't ask for `get_weather`, nor for `weather`."""
    talk = Talk()
    talk.update(tools=[function("weather"), TOOL, function("get_weather_now")])
    talk.say("get weather now")
    assert calls(talk.answer()) == [(0, "get_weather_now")]


def test_it_can_speak_before_it_calls_a_tool():
    """Real models do: `I'll look that up.` and the call are items of one response."""
    talk = Talk()
    talk.update(tools=[TOOL, function("hang_up")])
    talk.say("first say something, then get weather and hang up")
    answer = talk.answer()
    assert said(answer) == "You said: first say something, then get weather and hang up"
    assert calls(answer) == [(1, "get_weather"), (2, "hang_up")]
    assert audio_of(answer)
    usage = one(answer, "response.done")["response"]["usage"]
    assert usage["output_token_details"]["audio_tokens"] == len(audio_of(answer)) // 48 // 50
    assert usage["output_token_details"]["text_tokens"] > 0


def test_a_response_that_is_cancelled_at_its_first_item_has_no_second():
    talk = Talk()
    talk.update(tools=[TOOL])
    talk.say("first say something, then get weather")
    talk.send("response.create")
    talk.wait(0.1)
    done = one(talk.send("response.cancel"), "response.done")["response"]
    assert [(item["type"], item["status"]) for item in done["output"]] == [("message", "incomplete")]
    assert talk.wait() == []


@pytest.mark.parametrize(
    ("words", "ms"),
    [
        ("talk for 3 seconds", 3_000),
        ("Talk for 0.5 s.", 500),
        ("talk for 90 seconds", 60_000),
        ("talk for 1 second", 1_000),
    ],
)
@pytest.mark.parametrize("role", ["user", "system"])
def test_an_answer_is_as_long_as_the_words_ask_for(words: str, ms: int, role: str):
    """Capped, since its audio is held in memory."""
    talk = Talk()
    talk.say(words, role=role)
    started = talk.now
    answer = talk.answer()
    assert len(audio_of(answer)) == ms * 48
    assert talk.now - started == pytest.approx(0.05 + -(-ms // 200) * 0.2 / 5)


def test_the_instructions_of_a_response_set_its_length_too():
    assert len(audio_of(Talk().answer(instructions="Talk for 2 seconds."))) == 2_000 * 48


# -- all of it -------------------------------------------------------------------------------------------------------


def test_every_event_type_that_it_sends_is_covered_and_known_to_the_sdk():
    """`Talk` checks each event against the SDK's classes; this is the list of what the simulator can say."""
    talk = Talk()
    detection = {"type": "server_vad", "idle_timeout_ms": 5000}
    talk.update(
        tools=[TOOL], audio={"input": {"transcription": {"model": "gpt-4o-transcribe"}, "turn_detection": detection}}
    )
    talk.hear(SPOKEN_TURN)
    call = one(talk.wait(), "response.function_call_arguments.done")
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    talk.send("conversation.item.create", item=output)
    item_id = one(talk.answer(), "response.done")["response"]["output"][0]["id"]
    talk.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=100)
    talk.send("conversation.item.retrieve", item_id=item_id)
    talk.send("conversation.item.delete", item_id=item_id)
    talk.send("input_audio_buffer.clear")
    talk.hear(bytes(8_000 * 48))
    talk.wait()
    talk.answer(output_modalities=["text"])
    talk.send("nonsense")
    assert set(kinds(talk.all)) == EVERYTHING


EVERYTHING = {
    "error",
    "session.created",
    "session.updated",
    "conversation.item.added",
    "conversation.item.done",
    "conversation.item.deleted",
    "conversation.item.retrieved",
    "conversation.item.truncated",
    "conversation.item.input_audio_transcription.delta",
    "conversation.item.input_audio_transcription.completed",
    "input_audio_buffer.committed",
    "input_audio_buffer.cleared",
    "input_audio_buffer.speech_started",
    "input_audio_buffer.speech_stopped",
    "input_audio_buffer.timeout_triggered",
    "rate_limits.updated",
    "response.created",
    "response.done",
    "response.output_item.added",
    "response.output_item.done",
    "response.content_part.added",
    "response.content_part.done",
    "response.output_text.delta",
    "response.output_text.done",
    "response.output_audio.delta",
    "response.output_audio.done",
    "response.output_audio_transcript.delta",
    "response.output_audio_transcript.done",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
}
