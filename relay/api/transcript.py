"""A call's conversation as its readers get it, out of the facts that the call's node keeps. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from fanout import Facts

_NO_WORDS: Final = "(no words yet)"


def entries(facts: Facts) -> list[msgspec.Raw]:
    """Return the entries in the conversation's order, as they were kept."""
    return [msgspec.Raw(entry) for entry in facts.entries]


def dropped(facts: Facts) -> int:
    """Return how many of the oldest entries of a long call are gone."""
    count: int = msgspec.json.decode(facts.values.get("dropped", b"0"), type=int)
    return count


def as_json(call_id: str, facts: Facts) -> dict[str, Any]:
    """Return the body of the JSON answer."""
    return {
        "object": "realtime.call.transcript",
        "call_id": call_id,
        "state": facts.state,
        "dropped": dropped(facts),
        "data": entries(facts),
    }


def as_text(facts: Facts, started_at: float | None) -> str:
    """Return a line for each entry, with the time since the call's start; a tool's result stands with its call."""
    items = [msgspec.json.decode(entry) for entry in entries(facts)]
    if started_at is None:
        started_at = items[0].get("at", 0.0) if items else 0.0
    lines = list(_lines(items, started_at))
    if gone := dropped(facts):
        lines.insert(0, f"({gone} earlier entries are no longer kept)")
    return "".join(f"{line}\n" for line in lines)


def _lines(items: list[dict[str, Any]], started_at: float) -> Iterator[str]:
    calls = {item.get("call_id") for item in items if item.get("type") == "function_call"}
    results = {item.get("call_id"): item for item in items if item.get("type") == "function_call_output"}
    for item in items:
        match item.get("type"):
            case "message":
                words = item.get("text") or _NO_WORDS
                cut = " [interrupted]" if "truncated_ms" in item else ""
                said = f"{item.get('role', '?')}: {words}{cut}"
            case "function_call":
                said = f"tool {item.get('name', '?')}({item.get('arguments', '')})"
                if result := results.get(item.get("call_id")):
                    said += f" -> {result.get('output', '')}"
            case "function_call_output" if item.get("call_id") in calls:
                continue
            case "function_call_output":
                said = f"tool result of {item.get('call_id', '?')}: {item.get('output', '')}"
            case other:
                said = str(other)
        yield f"[{_clock(item, started_at)}] {' '.join(said.split())}"


def _clock(item: Mapping[str, Any], started_at: float) -> str:
    minutes, seconds = divmod(max(0, int(item.get("at", started_at) - started_at)), 60)
    return f"{minutes}:{seconds:02d}"
