"""Which client events the Realtime API takes, and what may stand in them.

The tables follow the SDK's generated types and `facts/realtime.md`; what depends on the conversation (ids, active
responses) is checked by the session.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ops.simulator.schema import (
    Check,
    ClientError,
    anything,
    array,
    boolean,
    either,
    integer,
    mapping,
    missing,
    not_supported,
    nullable,
    number,
    one_of,
    record,
    tagged,
    text,
    wrong_type,
)

ITEM_ID_LIMIT = 32
TEXT_LIMIT = 256_000
AUDIO_LIMIT = 15 * 1024 * 1024 * 4 // 3 + 4  # 15 MiB of audio in base64

_item_id = text(ITEM_ID_LIMIT)
_output_text = text(TEXT_LIMIT)
_any_text = text()

_FORMAT = tagged(
    "type",
    {
        "audio/pcm": record({"type": anything}, {"rate": one_of(24000)}),
        "audio/pcmu": record({"type": anything}),
        "audio/pcma": record({"type": anything}),
    },
)
_TURN_DETECTION = tagged(
    "type",
    {
        "server_vad": record(
            {"type": anything},
            {
                "threshold": nullable(number(0, 1)),
                "prefix_padding_ms": nullable(integer(0, 10_000)),
                "silence_duration_ms": nullable(integer(0, 10_000)),
                "create_response": nullable(boolean),
                "interrupt_response": nullable(boolean),
                "idle_timeout_ms": nullable(integer(5_000, 30_000)),
            },
        ),
        "semantic_vad": record(
            {"type": anything},
            {
                "eagerness": nullable(one_of("low", "medium", "high", "auto")),
                "create_response": nullable(boolean),
                "interrupt_response": nullable(boolean),
            },
        ),
    },
)
_TRANSCRIPTION = record(
    {},
    {
        "model": _any_text,
        "language": nullable(_any_text),
        "languages": nullable(array(_any_text)),
        "prompt": nullable(_any_text),
        "keywords": nullable(array(_any_text)),
        "delay": nullable(_any_text),
    },
)
_VOICE = either(str, text(256), record({"id": _any_text}))
_AUDIO_INPUT = record(
    {},
    {
        "format": nullable(_FORMAT),
        "transcription": nullable(_TRANSCRIPTION),
        "noise_reduction": nullable(record({"type": one_of("near_field", "far_field")}, {"strength": number(0, 1)})),
        "turn_detection": nullable(_TURN_DETECTION),
    },
)
_AUDIO_OUTPUT = record(
    {}, {"format": nullable(_FORMAT), "voice": nullable(_VOICE), "speed": nullable(number(0.25, 1.5))}
)
_TOOL = tagged(
    "type",
    {
        # Loose, because the Agents SDKs add keys of their own.
        "function": record({"type": anything, "name": text(64)}, {"description": nullable(_any_text)}, loose=True),
        "mcp": record({"type": anything, "server_label": _any_text}, loose=True),
    },
)
_TOOL_CHOICE = either(
    str,
    one_of("none", "auto", "required"),
    tagged("type", {"function": record({"type": anything, "name": _any_text}), "mcp": record(loose=True)}),
)
_MAX_TOKENS = either(str, one_of("inf"), integer(1, 32_768))


def _check_modalities(value: Any, path: str) -> None:
    array(one_of("text", "audio"), 2)(value, path)
    if sorted(set(value)) == ["audio", "text"]:
        raise ClientError(
            "invalid_value",
            "Invalid modalities: ['text', 'audio']. Supported combinations are: ['text'] and ['audio'].",
            path,
        )


# What a session and a single response have in common.
_MODEL_INPUT: dict[str, Check] = {
    "instructions": nullable(_any_text),
    "output_modalities": nullable(_check_modalities),
    "tools": nullable(array(_TOOL)),
    "tool_choice": nullable(_TOOL_CHOICE),
    "parallel_tool_calls": nullable(boolean),
    "max_output_tokens": nullable(_MAX_TOKENS),
    "prompt": nullable(record({"id": _any_text}, loose=True)),
    "reasoning": nullable(record({}, {"effort": nullable(_any_text)})),
}
_SESSION = tagged(
    "type",
    {
        "realtime": record(
            {"type": anything},
            {
                **_MODEL_INPUT,
                "model": nullable(_any_text),
                "audio": nullable(record({}, {"input": nullable(_AUDIO_INPUT), "output": nullable(_AUDIO_OUTPUT)})),
                "include": nullable(array(_any_text)),
                "tracing": anything,
                "truncation": nullable(either(str, one_of("auto", "disabled"), record(loose=True))),
            },
        )
    },
)

_ITEM_COMMON: dict[str, Check] = {
    "id": nullable(_item_id),
    "object": nullable(one_of("realtime.item")),
    "status": nullable(one_of("completed", "incomplete", "in_progress")),
}
_INPUT_TEXT = record({"type": anything, "text": text(TEXT_LIMIT)})


def _refuse_spoken(value: Any, path: str) -> None:
    """An answer's history can be given as text only."""
    message = "Assistant audio cannot be populated: give what the assistant said as 'output_text'."
    raise ClientError("invalid_value", message, f"{path}.type")


_CONTENT: dict[str, dict[str, Check]] = {
    "system": {"input_text": _INPUT_TEXT},
    "user": {
        "input_text": _INPUT_TEXT,
        "input_audio": record({"type": anything}, {"audio": text(AUDIO_LIMIT), "transcript": nullable(_any_text)}),
        "input_image": record({"type": anything, "image_url": _any_text}, {"detail": nullable(_any_text)}),
    },
    "assistant": {
        "output_text": record({"type": anything, "text": text(TEXT_LIMIT)}),
        "output_audio": _refuse_spoken,
    },
}
_MESSAGE = tagged(
    "role",
    {
        role: record({"type": anything, "role": anything, "content": array(tagged("type", parts))}, _ITEM_COMMON)
        for role, parts in _CONTENT.items()
    },
)
_ITEMS: dict[str, Check] = {
    "message": _MESSAGE,
    "function_call": record(
        {"type": anything, "name": text(64), "arguments": _any_text}, {**_ITEM_COMMON, "call_id": text(ITEM_ID_LIMIT)}
    ),
    "function_call_output": record({"type": anything, "call_id": _any_text, "output": _output_text}, _ITEM_COMMON),
}
_ITEM = tagged("type", _ITEMS)
_INPUT_ITEM = tagged("type", {**_ITEMS, "item_reference": record({"type": anything, "id": _any_text})})

_RESPONSE = record(
    {},
    {
        **_MODEL_INPUT,
        "audio": nullable(record({}, {"output": nullable(_AUDIO_OUTPUT)})),
        "conversation": nullable(one_of("auto", "none")),
        "input": nullable(array(_INPUT_ITEM)),
        "metadata": nullable(mapping(16, 64, 512)),
    },
)


def _event(required: dict[str, Check] | None = None, optional: dict[str, Check] | None = None) -> Check:
    return record({"type": anything, **(required or {})}, {"event_id": nullable(text(512)), **(optional or {})})


EVENTS: dict[str, Check] = {
    "session.update": _event({"session": _SESSION}),
    "input_audio_buffer.append": _event({"audio": text(AUDIO_LIMIT)}),
    "input_audio_buffer.commit": _event(),
    "input_audio_buffer.clear": _event(),
    "conversation.item.create": _event({"item": _ITEM}, {"previous_item_id": nullable(_any_text)}),
    "conversation.item.truncate": _event(
        {"item_id": _any_text, "content_index": integer(0, 1_000), "audio_end_ms": integer(0, 1_000_000_000)}
    ),
    "conversation.item.delete": _event({"item_id": _any_text}),
    "conversation.item.retrieve": _event({"item_id": _any_text}),
    "response.create": _event({}, {"response": nullable(_RESPONSE)}),
    "response.cancel": _event({}, {"response_id": nullable(_any_text)}),
    "output_audio_buffer.clear": _event(),
}


def parse(raw: str | bytes) -> dict[str, Any]:
    """The JSON object that a frame holds; raises `ClientError` if it holds none."""
    try:
        event = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise ClientError("invalid_json", f"We could not parse the JSON of your event: {error}.") from error
    if not isinstance(event, dict):
        raise wrong_type(event, "", "an object")
    return event


def check(event: dict[str, Any]) -> None:
    """Raise `ClientError` unless the event is one that the API takes, whatever the state of the conversation."""
    kind = event.get("type")
    if kind is None:
        raise missing("type")
    table = EVENTS.get(kind) if isinstance(kind, str) else None
    if table is None:
        raise not_supported(kind, "type", tuple(EVENTS))
    table(event, "")
