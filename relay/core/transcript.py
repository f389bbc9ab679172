"""What a call's readers are told of its conversation: the session, the items with their words, the usage. Pure.

It goes by the model's events. An answer is a list of facts, name and JSON, for the call's home; a value of None takes a
fact away. No audio is among them.
"""

from typing import Any, Final

from relay.core.realtime import encode

_ITEMS: Final = 1000  # the oldest are dropped, and ``dropped`` says how many were
_TEXT: Final = 20_000  # characters of one entry; the rest is cut, with a mark

Fact = tuple[str, bytes | None]


class Transcript:
    """The facts of one call; each method takes an event of the model's and returns those that changed."""

    __slots__ = ("_dropped", "_next", "_places", "_responses", "_usage")

    def __init__(self) -> None:
        self._places: dict[str, tuple[str, dict[str, Any]]] = {}  # item id -> name of its fact, entry
        self._next = 0
        self._dropped = 0
        self._usage: dict[str, Any] = {}
        self._responses = 0

    def on_session(self, session: dict[str, Any]) -> list[Fact]:
        """The effective session."""
        return [("session", encode(session))]

    def on_item(self, item: dict[str, Any], wall: float) -> list[Fact]:
        """An item is in the conversation, or has more to it than before."""
        item_id = item.get("id")
        if not isinstance(item_id, str):
            return []
        known = self._places.get(item_id)
        entry = _entry(item)
        if known is None:
            return self._add(item_id, {**entry, "at": round(wall, 3)})
        name, before = known
        # What is known of words stays: an item that comes again may lack the transcript that came meanwhile.
        entry = before | {key: value for key, value in entry.items() if value or key not in before}
        return self._change(item_id, name, before, entry)

    def _add(self, item_id: str, entry: dict[str, Any]) -> list[Fact]:
        name = f"item.{self._next:08d}"
        self._next += 1
        self._places[item_id] = (name, entry)
        facts: list[Fact] = [(name, encode(entry))]
        if len(self._places) > _ITEMS:
            oldest = next(iter(self._places))
            self._dropped += 1
            facts += [(self._places.pop(oldest)[0], None), ("dropped", encode(self._dropped))]
        return facts

    def _change(self, item_id: str, name: str, before: dict[str, Any], entry: dict[str, Any]) -> list[Fact]:
        if entry == before:
            return []
        self._places[item_id] = (name, entry)
        return [(name, encode(entry))]

    def on_transcribed(self, event: dict[str, Any]) -> list[Fact]:
        """The words of the person's speech, which come when they are ready."""
        return self._amend(event, text=_cut(str(event.get("transcript") or "")))

    def on_truncated(self, event: dict[str, Any]) -> list[Fact]:
        """The person heard only a part of an answer; what its text says beyond it was never heard."""
        return self._amend(event, truncated_ms=event.get("audio_end_ms"))

    def _amend(self, event: dict[str, Any], **fields: Any) -> list[Fact]:
        item_id = event.get("item_id")
        known = self._places.get(item_id) if isinstance(item_id, str) else None
        if known is None:
            return []
        name, before = known
        return self._change(str(item_id), name, before, before | fields)

    def on_deleted(self, item_id: str) -> list[Fact]:
        """An item is no longer in the conversation."""
        known = self._places.pop(item_id, None)
        return [(known[0], None)] if known is not None else []

    def on_response_done(self, response: dict[str, Any], wall: float) -> list[Fact]:
        """The items as the response leaves them, and what it cost."""
        facts: list[Fact] = []
        output = response.get("output")
        for item in output if isinstance(output, list) else ():
            if isinstance(item, dict) and str(item.get("id")) in self._places:
                facts += self.on_item(item, wall)
        usage = response.get("usage")
        if isinstance(usage, dict):
            _sum(self._usage, usage)
            self._responses += 1
            facts.append(("usage", encode({**self._usage, "responses": self._responses})))
        return facts


def _sum(total: dict[str, Any], more: dict[str, Any]) -> None:
    """Add up the counts of a usage block, whatever kinds of tokens a model names."""
    for key, value in more.items():
        if isinstance(value, bool) or not isinstance(value, int | float | dict):
            continue
        if isinstance(value, dict):
            inner = total.setdefault(key, {})
            if isinstance(inner, dict):
                _sum(inner, value)
        elif isinstance(total.get(key, 0), int | float):
            total[key] = total.get(key, 0) + value


def _entry(item: dict[str, Any]) -> dict[str, Any]:
    """What a reader needs of an item."""
    entry = {key: item[key] for key in ("id", "type", "role", "status", "name", "call_id") if item.get(key)}
    entry |= {key: _cut(str(item[key])) for key in ("arguments", "output") if item.get(key) is not None}
    content = item.get("content")
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict)]
        words = [str(part.get("text") or part.get("transcript") or "") for part in parts]
        entry["text"] = _cut(" ".join(word for word in words if word))
    return entry


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT else text[:_TEXT] + "…"
