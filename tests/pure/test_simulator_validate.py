"""What the simulator says to events that the Realtime API doesn't take: OpenAI's code, and the path of the fault."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ops.simulator import validate
from ops.simulator.schema import ClientError


def refused(event: Any) -> ClientError:
    with pytest.raises(ClientError) as caught:
        validate.check(validate.parse(json.dumps(event)))
    return caught.value


def update(**session: Any) -> dict[str, Any]:
    return {"type": "session.update", "session": {"type": "realtime", **session}}


def item(**fields: Any) -> dict[str, Any]:
    return {"type": "conversation.item.create", "item": fields}


TEXT = [{"type": "input_text", "text": "hi"}]
WRONG = {
    "no type": ({}, "missing_required_parameter", "type"),
    "unknown type": ({"type": "nonsense"}, "invalid_value", "type"),
    "type is no string": ({"type": 7}, "invalid_value", "type"),
    "not an object": ([1], "invalid_type", None),
    "session type": ({"type": "session.update", "session": {}}, "missing_required_parameter", "session.type"),
    "no session": ({"type": "session.update"}, "missing_required_parameter", "session"),
    "unknown key": (update(voice="marin"), "unknown_parameter", "session.voice"),
    "unknown top key": ({"type": "input_audio_buffer.clear", "x": 1}, "unknown_parameter", "x"),
    "deep unknown key": (update(audio={"input": {"foo": 1}}), "unknown_parameter", "session.audio.input.foo"),
    "both modalities": (update(output_modalities=["audio", "text"]), "invalid_value", "session.output_modalities"),
    "vad type": (update(audio={"input": {"turn_detection": {}}}), "missing_required_parameter", None),
    "vad threshold": (
        update(audio={"input": {"turn_detection": {"type": "server_vad", "threshold": 2}}}),
        "decimal_above_max_value",
        "session.audio.input.turn_detection.threshold",
    ),
    "beta format": (
        update(audio={"input": {"format": {"type": "pcm16"}}}),
        "invalid_value",
        "session.audio.input.format.type",
    ),
    "rate": (
        update(audio={"output": {"format": {"type": "audio/pcm", "rate": 16000}}}),
        "invalid_value",
        "session.audio.output.format.rate",
    ),
    "instructions": (update(instructions=7), "invalid_type", "session.instructions"),
    "long id": (item(type="message", role="user", content=TEXT, id="x" * 33), "string_above_max_length", "item.id"),
    "no role": (item(type="message", content=TEXT), "missing_required_parameter", "item.role"),
    "no content": (item(type="message", role="user"), "missing_required_parameter", "item.content"),
    "content type": (
        item(type="message", role="user", content=[{"type": "text", "text": "hi"}]),
        "invalid_value",
        "item.content[0].type",
    ),
    "content kind": (item(type="message", role="user", content="hi"), "invalid_type", "item.content"),
    "system speaks": (
        item(type="message", role="system", content=[{"type": "input_audio", "audio": ""}]),
        "invalid_value",
        "item.content[0].type",
    ),
    "the assistant spoke": (
        item(type="message", role="assistant", content=[{"type": "output_audio", "transcript": "hi"}]),
        "invalid_value",
        "item.content[0].type",
    ),
    "session id": (update(id="sess_1"), "unknown_parameter", "session.id"),
    "session object": (update(object="realtime.session"), "unknown_parameter", "session.object"),
    "session expiry": (update(expires_at=1), "unknown_parameter", "session.expires_at"),
    "item type": (item(type="thought"), "invalid_value", "item.type"),
    "long text": (
        item(type="message", role="user", content=[{"type": "input_text", "text": "x" * 256_001}]),
        "string_above_max_length",
        "item.content[0].text",
    ),
    "output is no string": (
        item(type="function_call_output", call_id="c", output={"a": 1}),
        "invalid_type",
        "item.output",
    ),
    "audio": ({"type": "input_audio_buffer.append"}, "missing_required_parameter", "audio"),
    "audio type": ({"type": "input_audio_buffer.append", "audio": [1]}, "invalid_type", "audio"),
    "truncate": (
        {"type": "conversation.item.truncate", "item_id": "i", "content_index": 0},
        "missing_required_parameter",
        "audio_end_ms",
    ),
    "negative": (
        {"type": "conversation.item.truncate", "item_id": "i", "content_index": 0, "audio_end_ms": -1},
        "integer_below_min_value",
        "audio_end_ms",
    ),
    "conversation": (
        {"type": "response.create", "response": {"conversation": "mine"}},
        "invalid_value",
        "response.conversation",
    ),
    "metadata": (
        {"type": "response.create", "response": {"metadata": {"k": "v" * 513}}},
        "string_above_max_length",
        "response.metadata.k",
    ),
    "event id": ({"type": "response.cancel", "event_id": 5}, "invalid_type", "event_id"),
}


@pytest.mark.parametrize(("event", "code", "param"), WRONG.values(), ids=WRONG)
def test_a_wrong_event_is_refused_with_openais_code(event: Any, code: str, param: str | None):
    error = refused(event)
    assert error.code == code
    if param is not None:
        assert error.param == param


def test_an_unknown_type_is_told_the_types_there_are():
    message = refused({"type": "nonsense"}).message
    assert message.startswith("Invalid value: 'nonsense'. Supported values are: 'session.update', ")
    assert all(f"'{kind}'" in message for kind in validate.EVENTS)


def test_an_id_that_is_too_long_is_answered_in_openais_words():
    message = refused(item(type="message", role="user", content=TEXT, id="x" * 40)).message
    assert message == (
        "Invalid 'item.id': string too long. Expected a string with maximum length 32, "
        "but got a string with length 40 instead."
    )


@pytest.mark.parametrize("raw", ["", "{", '{"type": ', "\x00", b"\xff\xfe", "[" * 100_000], ids=range(6))
def test_what_is_no_json_is_an_error_and_not_a_crash(raw: str | bytes):
    with pytest.raises(ClientError) as caught:
        validate.parse(raw)
    assert caught.value.code == "invalid_json"


RIGHT = {
    "agents-py": update(
        model="gpt-realtime-2.1",
        tracing="auto",
        output_modalities=["audio"],
        tool_choice="auto",
        tools=[{"type": "function", "name": "f", "description": "", "parameters": {}, "strict": True}],
        audio={
            "input": {
                "format": {"type": "audio/pcm", "rate": 24000},
                "transcription": {"model": "gpt-4o-mini-transcribe"},
                "noise_reduction": {"type": "near_field"},
                "turn_detection": {"type": "semantic_vad", "interrupt_response": True},
            },
            "output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": {"id": "voice_1"}, "speed": 1.2},
        },
    ),
    "cleared": update(instructions="", tools=[], prompt=None, audio={"input": {"turn_detection": None}}),
    "image": item(type="message", role="user", content=[{"type": "input_image", "image_url": "data:…"}]),
    "first": {**item(type="function_call", name="f", arguments="{}"), "previous_item_id": "root"},
    "out of band": {
        "type": "response.create",
        "event_id": "e",
        "response": {"conversation": "none", "input": [{"type": "item_reference", "id": "i"}], "metadata": {"a": "b"}},
    },
}


@pytest.mark.parametrize("event", RIGHT.values(), ids=RIGHT)
def test_what_the_sdks_send_is_taken(event: Any):
    validate.check(validate.parse(json.dumps(event)))
