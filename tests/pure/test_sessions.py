"""What of a session's settings another one is given, and what of an update is news."""

import json
from typing import Any

import pytest

from relay.core.sessions import asks_for_transcription, restorable, transcription_of, without_unchanged
from tests.pure.test_simulator_session import TOOL, Talk

SESSION: dict[str, Any] = {
    "type": "realtime",
    "instructions": "Be brief.",
    "tools": [TOOL],
    "tracing": None,
    "output_modalities": ["audio"],
    "audio": {
        "input": {
            "format": {"type": "audio/pcm", "rate": 24000},
            "transcription": None,
            "turn_detection": {
                "type": "server_vad",
                "threshold": 0.5,
                "create_response": False,
                "idle_timeout_ms": None,
            },
        },
        "output": {"voice": "marin", "speed": 1.0},
    },
}


@pytest.mark.parametrize("detection", [None, {"type": "semantic_vad"}, {"type": "server_vad", "threshold": 0.2}])
def test_another_session_gets_the_settings_of_this_one(detection):
    """All of them, by an update that it takes; only who it is and when it ends are its own."""
    first, second = Talk(), Talk(session_seconds=60.0)
    first.update(
        instructions="Be brief.",
        tools=[{**TOOL, "parameters": {"type": "object", "properties": {"x": {"enum": ["a", None], "default": None}}}}],
        max_output_tokens=100,
        audio={
            "input": {
                "turn_detection": detection,
                "transcription": {"model": "whisper-1"},
                "format": {"type": "audio/pcmu"},
            },
            "output": {"voice": "cedar", "speed": 1.2},
        },
    )
    update = restorable(json.loads(json.dumps(first.session.config)))
    second.send("session.update", session=update)
    own = {"id": 0, "expires_at": 0}
    assert {**second.session.config, **own} == {**first.session.config, **own}
    assert not {"id", "object", "expires_at", "model"} & {*update}


def test_what_is_null_is_not_said():
    """It is the default, and some servers refuse it; within a tool it may mean something."""
    tool = {"type": "function", "name": "f", "parameters": {"enum": [None], "default": None}}
    session = {**SESSION, "tools": [tool], "prompt": None}
    assert restorable(session) == {
        "type": "realtime",
        "instructions": "Be brief.",
        "tools": [tool],
        "output_modalities": ["audio"],
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 24000},
                "turn_detection": {"type": "server_vad", "threshold": 0.5, "create_response": False},
            },
            "output": {"voice": "marin", "speed": 1.0},
        },
    }


def test_no_turn_detection_is_a_setting():
    """Its default is to detect turns."""
    assert restorable({"audio": {"input": {"turn_detection": None}}}) == {"audio": {"input": {"turn_detection": None}}}
    assert restorable({"audio": {"input": {}}}) == {"audio": {"input": {}}}


@pytest.mark.parametrize(
    "session", [{}, {"audio": None}, {"audio": 7}, {"audio": {"input": None}}, {"audio": {"input": 7}}]
)
def test_a_session_in_another_shape_is_no_trouble(session):
    """Other servers have their own."""
    assert restorable(session) in (session, {}, {"audio": {}})
    assert transcription_of(session) is None
    assert asks_for_transcription(session) is None


@pytest.mark.parametrize(
    ("update", "news"),
    [
        ({}, None),
        ({"type": "realtime"}, None),
        (SESSION, None),
        ({"type": "realtime", "instructions": "Be brief.", "tracing": None, "prompt": None}, None),
        ({"type": "realtime", "instructions": "Be long."}, {"type": "realtime", "instructions": "Be long."}),
        ({"type": "transcription"}, {"type": "transcription"}),
        ({"instructions": "Be long."}, {"instructions": "Be long."}),
        ({"type": "realtime", "tools": []}, {"type": "realtime", "tools": []}),
        ({"type": "realtime", "tools": None}, {"type": "realtime", "tools": None}),
        (
            {
                "type": "realtime",
                "audio": {"output": {"voice": "marin", "speed": 1.5}, "input": {"transcription": None}},
            },
            {"type": "realtime", "audio": {"output": {"speed": 1.5}}},
        ),
        ({"type": "realtime", "audio": {"input": {"format": {"type": "audio/pcm"}}}}, None),
        (
            {"type": "realtime", "audio": {"input": {"turn_detection": None}}},
            {"type": "realtime", "audio": {"input": {"turn_detection": None}}},
        ),
        ({"type": "realtime", "audio": None}, {"type": "realtime", "audio": None}),
    ],
)
def test_only_what_differs_is_news(update, news):
    """A client that comes back says again what it said at first."""
    assert without_unchanged(update, SESSION) == news


def test_settings_that_make_one_thing_stay_together():
    """Servers replace turn detection as one: what is left out would become its default."""
    detection = {"type": "semantic_vad", "create_response": False}
    update = {"type": "realtime", "audio": {"input": {"turn_detection": detection}}}
    assert without_unchanged(update, SESSION) == update


def test_a_setting_that_the_session_does_not_show_is_news():
    """The server says what it thinks of it."""
    update = {"type": "realtime", "audio": {"input": {"noise_reduction": {"type": "near_field"}}}}
    assert without_unchanged(update, SESSION) == update
    assert without_unchanged(update, {}) == update


@pytest.mark.parametrize(
    ("given", "settings", "asks"),
    [
        ({"transcription": {"model": "whisper-1"}}, {"model": "whisper-1"}, True),
        ({"transcription": None}, None, False),
        ({}, None, None),
    ],
    ids=["on", "off", "nothing said"],
)
def test_whether_speech_is_transcribed(given, settings, asks):
    """The memory needs it; the client may not have asked."""
    session = {"type": "realtime", "audio": {"input": given}}
    assert transcription_of(session) == settings
    assert asks_for_transcription(session) is asks
