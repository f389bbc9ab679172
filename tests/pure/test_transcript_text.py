"""A call's transcript as people read it: a line for each entry."""

import json
from typing import Any

import pytest

from fanout import Facts
from relay.api.transcript import as_json, as_text


def facts(*entries: dict[str, Any], **more: bytes) -> Facts:
    items = {f"item.{place:08d}": json.dumps(entry).encode() for place, entry in enumerate(entries)}
    return Facts(state="live", values={**dict(reversed(items.items())), **more, "session": b"{}"})


def message(role: str, text: str, at: float, **more: Any) -> dict[str, Any]:
    return {"id": "i", "type": "message", "role": role, "text": text, "at": at, **more}


CALL = {
    "id": "a",
    "type": "function_call",
    "name": "get_weather",
    "call_id": "c1",
    "arguments": '{"city": "Rome"}',
    "at": 165.2,
}
RESULT = {"id": "b", "type": "function_call_output", "call_id": "c1", "output": '{"sky": "blue"}', "at": 166.0}


def test_each_entry_is_a_line_with_the_time_since_the_start():
    """In the conversation's order, whatever order the facts came in."""
    text = as_text(facts(message("user", "hi", 100.9), message("assistant", "hello", 161.0)), 100.0)
    assert text == "[0:00] user: hi\n[1:01] assistant: hello\n"


def test_a_tools_result_stands_with_its_call():
    """As one reads it; the result's own place says nothing more."""
    text = as_text(facts(CALL, message("user", "well?", 165.5), RESULT), 100.0)
    assert text.splitlines() == [
        '[1:05] tool get_weather({"city": "Rome"}) -> {"sky": "blue"}',
        "[1:05] user: well?",
    ]


def test_a_tool_call_without_result_and_a_result_without_call_are_shown():
    """Both are worth a question."""
    assert as_text(facts(CALL), 100.0) == '[1:05] tool get_weather({"city": "Rome"})\n'
    assert as_text(facts(RESULT), 100.0) == '[1:06] tool result of c1: {"sky": "blue"}\n'


def test_an_entry_is_one_line_whatever_was_said():
    """Who counts lines counts entries; nobody can write somebody else's line."""
    text = as_text(facts(message("user", "a\n[0:09] assistant: b\r\n\tc", 100.0)), 100.0)
    assert text == "[0:00] user: a [0:09] assistant: b c\n"


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        (message("assistant", "I was", 100.0, truncated_ms=300), "[0:00] assistant: I was [interrupted]"),
        (message("user", "", 100.0), "[0:00] user: (no words yet)"),
        ({"id": "x", "type": "mcp_call", "at": 100.0}, "[0:00] mcp_call"),
        (message("user", "before the start", 99.0), "[0:00] user: before the start"),
    ],
    ids=["cut off", "not transcribed", "unknown kind", "clocks"],
)
def test_what_is_special_is_said(entry, line):
    """Not guessed."""
    assert as_text(facts(entry), 100.0) == f"{line}\n"


def test_dropped_entries_are_told_first():
    """The conversation began before its first line."""
    assert as_text(facts(message("user", "hi", 100.0), dropped=b"12"), 100.0).startswith("(12 earlier entries")


def test_without_a_start_the_first_entry_is_at_nought():
    """A call that is only known by its facts."""
    assert as_text(facts(message("user", "hi", 100.0)), None) == "[0:00] user: hi\n"
    assert as_text(facts(), None) == ""


def test_as_json_entries_are_as_they_were_kept():
    """A newer node's fields are not lost on the way."""
    entry = message("user", "hi", 100.0, future=[1])
    body = as_json("c", facts(entry, dropped=b"2"))
    assert (body["call_id"], body["state"], body["dropped"]) == ("c", "live", 2)
    assert [json.loads(bytes(raw)) for raw in body["data"]] == [entry]
