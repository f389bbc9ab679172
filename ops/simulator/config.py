"""The session object: its defaults, and what a `session.update` makes of it.

Pure data in the wire's own shape, so that `session.updated` is the very object.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from ops.simulator.schema import ClientError
from ops.simulator.speech import Format

_SERVER_VAD = {
    "type": "server_vad",
    "threshold": 0.5,
    "prefix_padding_ms": 300,
    "silence_duration_ms": 500,
    "idle_timeout_ms": None,
    "create_response": True,
    "interrupt_response": True,
}
_SEMANTIC_VAD = {"type": "semantic_vad", "eagerness": "auto", "create_response": True, "interrupt_response": True}
_FORMATS = {"audio/pcm": {"type": "audio/pcm", "rate": 24000}}
# What null (or an empty value) means for a field that cannot be null.
_CLEARED: dict[str, Any] = {
    "instructions": "",
    "tools": [],
    "tool_choice": "auto",
    "output_modalities": ["audio"],
    "max_output_tokens": "inf",
    "truncation": "auto",
}


def default_session(session_id: str, model: str, expires_at: int) -> dict[str, Any]:
    """What `session.created` carries."""
    return {
        "type": "realtime",
        "object": "realtime.session",
        "id": session_id,
        "model": model,
        "output_modalities": ["audio"],
        "instructions": "You are a simulated voice model: you say back what you hear.",
        "tools": [],
        "tool_choice": "auto",
        "max_output_tokens": "inf",
        "tracing": None,
        "truncation": "auto",
        "prompt": None,
        "expires_at": expires_at,
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 24000},
                "transcription": None,
                "noise_reduction": None,
                "turn_detection": dict(_SERVER_VAD),
            },
            "output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "marin", "speed": 1.0},
        },
        "include": None,
    }


def updated(session: dict[str, Any], change: dict[str, Any], *, voice_is_locked: bool) -> dict[str, Any]:
    """The session after a (validated) change; fields that the change doesn't name stay as they are.

    A model that begins with `sim` stands for any: the Agents SDKs name their default model in `session.update` whatever
    the URL says.
    """
    model = change.get("model")
    if model not in (None, session["model"]) and not session["model"].startswith("sim"):
        raise ClientError("invalid_value", "Cannot update a session's model once it has started.", "session.model")
    new = deepcopy(session)
    for key, value in change.items():
        if key in ("type", "model", "audio"):
            continue
        new[key] = _CLEARED.get(key) if value is None else value
    audio = change.get("audio") or {}
    _update_input(new["audio"]["input"], audio.get("input") or {})
    _update_output(new["audio"]["output"], audio.get("output") or {}, voice_is_locked)
    return new


def _update_input(current: dict[str, Any], change: dict[str, Any]) -> None:
    if change.get("format"):
        current["format"] = _full_format(change["format"])
    for key in ("transcription", "noise_reduction"):
        if key in change:
            current[key] = change[key]
    if "turn_detection" in change:
        wanted = change["turn_detection"]
        if wanted is not None:
            defaults = _SERVER_VAD if wanted["type"] == "server_vad" else _SEMANTIC_VAD
            wanted = {**defaults, **{key: value for key, value in wanted.items() if value is not None}}
        current["turn_detection"] = wanted


def _update_output(current: dict[str, Any], change: dict[str, Any], voice_is_locked: bool) -> None:
    if change.get("format"):
        current["format"] = _full_format(change["format"])
    if change.get("speed") is not None:
        current["speed"] = change["speed"]
    voice = change.get("voice")
    if voice is not None and voice != current["voice"]:
        if voice_is_locked:
            raise ClientError(
                "cannot_update_voice",
                "Cannot update a conversation's voice if assistant audio is present.",
                "session.audio.output.voice",
            )
        current["voice"] = voice


def _full_format(wanted: dict[str, Any]) -> dict[str, Any]:
    return dict(_FORMATS.get(wanted["type"], {"type": wanted["type"]}))


def input_format(session: dict[str, Any]) -> Format:
    return Format.named(session["audio"]["input"]["format"]["type"])


def response_config(session: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """The session's settings with those of one `response.create` over them, in the shape of a response object."""
    given = {key: value for key, value in wanted.items() if value is not None}
    output = {**session["audio"]["output"], **((given.get("audio") or {}).get("output") or {})}
    return {
        "output_modalities": given.get("output_modalities", session["output_modalities"]),
        "max_output_tokens": given.get("max_output_tokens", session["max_output_tokens"]),
        "tools": given.get("tools", session["tools"]),
        "tool_choice": given.get("tool_choice", session["tool_choice"]),
        "parallel_tool_calls": given.get("parallel_tool_calls", session.get("parallel_tool_calls")),
        "instructions": given.get("instructions"),
        "metadata": given.get("metadata"),
        "audio": {"output": {"format": _full_format(output["format"]), "voice": output["voice"]}},
    }
