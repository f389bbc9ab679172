"""What a person in a call hears and reads, from the events that come: audio as it is played, the conversation as it is.

Pure: time comes in. Knows no socket; the talker feeds it. Every list has a bound.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

MAX_NOTES: Final = 10_000  # gaps and items that are kept
_PCM_BYTES_PER_SECOND: Final = 48_000  # PCM16 at 24 kHz
_ANCHOR: Final = "relay_anchor_"  # items by which a relay tells a new session where it is


@dataclass(frozen=True, slots=True)
class Gap:
    """A silence inside an answer: more of it came only when all that was there had been played."""

    item_id: str
    at: float
    seconds: float


class Playout:
    """A loudspeaker: each piece of audio is played once the one before it is over."""

    def __init__(self) -> None:
        self.until = 0.0  # when all that has come will have been played
        self.seconds = 0.0  # of audio that came to be played
        self.gaps: deque[Gap] = deque(maxlen=MAX_NOTES)
        self._item = ""
        self._item_seconds = 0.0

    def hear(self, item_id: str, size: int, now: float) -> None:
        """Queue so many bytes of an item's audio."""
        length = size / _PCM_BYTES_PER_SECOND
        if item_id != self._item:
            self._item, self._item_seconds = item_id, 0.0
        elif now > self.until:
            self.gaps.append(Gap(item_id, self.until, now - self.until))
        self.until = max(self.until, now) + length
        self.seconds += length
        self._item_seconds += length

    def stop(self, now: float) -> tuple[str, int] | None:
        """Be silent; returns the item that was cut and how many of its milliseconds were heard, None if none was."""
        rest = self.until - now
        if rest <= 0:
            return None
        self.until = now
        self.seconds -= rest
        heard = max(0, int(1000 * (self._item_seconds - rest)))
        item, self._item = self._item, ""
        return item, heard


class View:
    """The conversation as its client saw it."""

    def __init__(self) -> None:
        self._items: dict[str, dict[str, Any]] = {}
        self._order: list[str] = []

    def items(self) -> list[dict[str, Any]]:
        """Return the items in order: id, type, role, text, and name, call_id, arguments and output where they apply."""
        return [self._items[item_id] for item_id in self._order]

    def apply(self, event: Mapping[str, Any]) -> None:
        """Take an event in; those that change no item are passed over."""
        item_id = event.get("item_id", "")
        match event["type"]:
            case "conversation.item.added" | "conversation.item.done":
                self._take(event["item"], event.get("previous_item_id"))
            case "conversation.item.deleted":
                self._items.pop(item_id, None)
                self._order = [each for each in self._order if each != item_id]
            case "conversation.item.truncated":
                self._put(item_id, text="")  # nobody knows which words were heard
            case "conversation.item.input_audio_transcription.completed" | "response.output_audio_transcript.done":
                self._put(item_id, text=event["transcript"])
            case "response.output_text.done":
                self._put(item_id, text=event["text"])
            case "response.function_call_arguments.done":
                self._put(item_id, arguments=event["arguments"])

    def _take(self, item: Mapping[str, Any], previous: str | None) -> None:
        item_id = item["id"]
        if item_id not in self._items:
            at = self._order.index(previous) + 1 if previous in self._items else len(self._order)
            if len(self._order) >= MAX_NOTES:
                raise RuntimeError("the conversation is longer than any test's")
            self._order.insert(at, item_id)
            self._items[item_id] = {"id": item_id, "type": item["type"], "role": item.get("role"), "text": ""}
        known = {key: item[key] for key in ("name", "call_id", "arguments", "output") if item.get(key)}
        words = " ".join(filter(None, (part.get("text") or part.get("transcript") for part in item.get("content", ()))))
        self._put(item_id, **known, **({"text": words} if words else {}))

    def _put(self, item_id: str, **fields: Any) -> None:
        if item_id in self._items:
            self._items[item_id].update(fields)


def differences(view: Iterable[Mapping[str, Any]], known: Iterable[Mapping[str, Any]]) -> list[str]:
    """Say where a client's conversation and what a model's session knows are not the same; empty if they are.

    Args:
        view: ``View.items()``.
        known: ``items`` of the simulator's ``/sim/sessions/{id}``; re-anchor items are left out.
    """
    seen = {item["id"]: item for item in view}
    there = {item["id"]: item for item in known if not str(item["id"]).startswith(_ANCHOR)}
    found = [f"{item_id}: only the client has it: {item}" for item_id, item in seen.items() if item_id not in there]
    found += [f"{item_id}: only the model has it: {item}" for item_id, item in there.items() if item_id not in seen]
    both = [item_id for item_id in seen if item_id in there]
    if both != [item_id for item_id in there if item_id in seen]:
        found.append("their order is not the same")
    for item_id in both:
        is_message = seen[item_id]["type"] == "message"
        for key in ("type", "role", "text") if is_message else ("type", "name", "call_id", "arguments", "output"):
            ours, theirs = seen[item_id].get(key), there[item_id].get(key)
            if (ours or None) != (theirs or None):
                found.append(f"{item_id}: {key} is {ours!r} at the client, {theirs!r} at the model")
    return found
