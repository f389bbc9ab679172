"""Decides what the simulated model answers: it parrots speech, quotes text, and calls tools.

A pure function of what is new in the conversation and of the settings. The words are chosen so that a test can see what
reached the model: injected system messages and tool outputs are quoted, and a turn that was restored by its transcript
is answered as the spoken one would be. Words also steer it: `talk for 3 seconds` makes
a spoken answer that long, naming tools calls them, and `first say` makes it speak before it calls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ops.simulator.conversation import Item
from ops.simulator.speech import Clip, Format, beeps

QUOTE_LIMIT = 2_000  # a transcript is streamed word by word: don't stream 256,000 characters of them
MAX_CALLS = 8  # in one response
MAX_TALK_MS = 60_000
ANCHOR = "relay_anchor_"  # how the id of a system message begins that tells a rebuilt session where it is
_TRANSCRIPT = re.compile(r"(\d+\.\d) seconds of speech\.")
_TALK_FOR = re.compile(r"\btalk for (\d{1,9}(?:\.\d{1,9})?) ?s(?:ec(?:ond)?s?)?\b")


@dataclass(frozen=True, slots=True)
class Say:
    """An answer in words; `clip` is None where the answer is text only."""

    text: str
    clip: Clip | None


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Fail:
    """A response that the model could not make."""

    code: str
    message: str


Part = Say | Call
Plan = tuple[Part, ...] | Fail  # the output items of a response in order; at least one


def transcript_of(spoken_ms: int) -> str:
    """What the simulator's transcription makes of a turn."""
    return f"{spoken_ms / 1000:.1f} seconds of speech."


def spoken_ms_of(transcript: str) -> int:
    """How long the turn was whose transcript this is; 0 for other words."""
    found = _TRANSCRIPT.fullmatch(transcript)
    return 0 if found is None else round(float(found[1]) * 1000)


def plan(new: Sequence[Item], config: dict[str, Any], *, tool_was_answered: bool, echo_cap_ms: int) -> Plan:
    """The answer to the items that no response has seen yet; `config` has the shape of a response object.

    A relay's re-anchor item is no prompt: the answer is what it would be without it.
    """
    new = [item for item in new if not item.id.startswith(ANCHOR)]
    calls = tuple(
        Call(tool["name"], json.dumps(_example(tool.get("parameters") or {})))
        for tool in _tools_to_call(new, config, tool_was_answered)
    )
    if calls and "first say" not in _asked(new):
        return calls
    return (_say(new, config, echo_cap_ms), *calls)


def _say(new: Sequence[Item], config: dict[str, Any], echo_cap_ms: int) -> Say:
    words = _words(new, config["instructions"])
    if config["output_modalities"] == ["text"]:
        return Say(words, None)
    coding = Format.named(config["audio"]["output"]["format"]["type"])
    length = _TALK_FOR.search(f"{_asked(new)} {config['instructions'] or ''}".lower())
    if length is not None:
        return Say(words, beeps(words, coding, min(round(float(length[1]) * 1000), MAX_TALK_MS)))
    spoken = next((item.spoken for item in reversed(new) if item.spoken is not None), None)
    if spoken is not None and not any(item.kind == "function_call_output" for item in new):
        return Say(words, spoken.first(echo_cap_ms).to(coding))
    return Say(words, beeps(words, coding))


def _asked(new: Sequence[Item]) -> str:
    """What somebody wants of the model, in words; a tool's output and the model's own words are not among them."""
    return "\n".join(item.text() for item in new if item.kind in ("user", "system")).lower()


def _words(new: Sequence[Item], instructions: str | None) -> str:
    said: list[str] = []
    aside: list[str] = []
    for item in new:
        quoted = item.text()[:QUOTE_LIMIT]
        if item.kind == "function_call_output":
            said.append(f"The tool said: {quoted}")
        elif item.kind == "system":
            aside.append(f"(system: {quoted})")
        elif item.kind == "user" and (item.spoken is not None or item.spoken_ms):
            said.append(f"You said {transcript_of(item.spoken_ms)}")
        elif item.kind == "user":
            said.append(f"You said: {quoted}" if quoted else "You sent something that has no words.")
    if instructions:
        aside.append(f"(instructions: {instructions[:QUOTE_LIMIT]})")
    return " ".join([*(said or ["I am listening."]), *aside])


def _tools_to_call(new: Sequence[Item], config: dict[str, Any], tool_was_answered: bool) -> list[dict[str, Any]]:
    tools: list[dict[str, Any]] = [tool for tool in config["tools"] if tool["type"] == "function"]
    choice = config["tool_choice"]
    if not tools or choice == "none" or any(item.kind == "function_call_output" for item in new):
        return []  # a tool's output is told, not answered by another call: a forced choice would never end
    if isinstance(choice, dict):
        return [tool for tool in tools if tool["name"] == choice.get("name")][:1]
    users = [item for item in new if item.kind == "user"]
    named = _tools_named("\n".join(item.text() for item in users), tools)
    if named:
        return named[: 1 if config["parallel_tool_calls"] is False else MAX_CALLS]
    spoke = any(item.spoken_ms for item in users)
    return tools[:1] if choice == "required" or (spoke and not tool_was_answered) else []


def _tools_named(words: str, tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tools that the words name, in their order, each once; of names within each other the longest counts."""
    by_name = {_spoken(tool["name"]): tool for tool in reversed(tools) if tool["name"]}
    longest_first = sorted(by_name, key=len, reverse=True)
    if not longest_first:
        return []
    mentions = re.findall("|".join(map(re.escape, longest_first)), _spoken(words))
    return [by_name[name] for name in dict.fromkeys(mentions)]


def _spoken(name: str) -> str:
    return name.lower().replace("_", " ")


def _example(schema: Any, depth: int = 0) -> Any:
    """A plausible value of a JSON schema: required properties only, the first of an enum."""
    if not isinstance(schema, dict) or depth > 8:
        return "test"
    if schema.get("enum"):
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return _example(schema[key][0], depth + 1)
    kind = schema.get("type", "object" if "properties" in schema or depth == 0 else "string")
    if isinstance(kind, list):
        kind = next((each for each in kind if each != "null"), "null")
    if kind == "object":
        properties = schema.get("properties") or {}
        names = [name for name in schema.get("required") or () if isinstance(name, str)]
        return {name: _example(properties.get(name), depth + 1) for name in names}
    if kind == "array":
        return [_example(schema.get("items"), depth + 1)] if schema.get("minItems") else []
    return {"integer": 1, "number": 1, "boolean": True, "null": None}.get(str(kind), "test")
