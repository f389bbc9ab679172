"""The conversation: items in order, what may be done to them, and the audio that belongs to them.

Raises `ClientError` where OpenAI answers with an error. Audio is bounded: beyond `AUDIO_HOLD_BYTES` the oldest items
lose theirs (they are then retrieved without it), the items themselves stay.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from ops.simulator.schema import ClientError
from ops.simulator.speech import Clip

AUDIO_HOLD_BYTES = 8 * 1024 * 1024  # three minutes of PCM


@dataclass(slots=True)
class Item:
    """`body` is the item in the wire's shape without audio; `clips` its audio by content index.

    `spoken` is the part of a person's turn worth saying back, `spoken_ms` the length of the speech alone.
    """

    body: dict[str, Any]
    clips: dict[int, Clip] = field(default_factory=dict)
    spoken: Clip | None = None
    spoken_ms: int = 0

    @property
    def id(self) -> str:
        return str(self.body["id"])

    @property
    def kind(self) -> str:
        """`system`, `user` or `assistant` for a message, else the item's type."""
        return str(self.body.get("role") or self.body["type"])

    def text(self) -> str:
        """What a reader would see: text, transcripts, a tool's output or arguments."""
        if self.body["type"] == "message":
            parts = (part.get("text") or part.get("transcript") or "" for part in self.body["content"])
            return " ".join(part for part in parts if part)
        return str(self.body.get("output") or self.body.get("arguments") or "")

    def wire(self) -> dict[str, Any]:
        return deepcopy(self.body)

    def wire_with_audio(self) -> dict[str, Any]:
        body = self.wire()
        for index, clip in self.clips.items():
            body["content"][index]["audio"] = b64encode(clip.data).decode()
        return body


class Conversation:
    def __init__(self, conversation_id: str) -> None:
        self.id = conversation_id
        self._items: dict[str, Item] = {}
        self._order: list[str] = []

    def __iter__(self) -> Iterator[Item]:
        return (self._items[item_id] for item_id in self._order)

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._items

    @property
    def last_id(self) -> str | None:
        return self._order[-1] if self._order else None

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Put an item behind `after` (`root`: in front, None: at the end); returns the id of the one before it."""
        if item.id in self._items:
            raise ClientError(
                "item_create_duplicate_item_id",
                f"Error adding item: an item with id '{item.id}' already exists in the conversation.",
                "item.id",
            )
        if after is None:
            index = len(self._order)
        elif after == "root":
            index = 0
        else:
            self._need(after, "create", "the previous item", "invalid_previous_item_id")
            index = self._order.index(after) + 1
        if item.kind == "function_call_output" and not self._has_call(item.body["call_id"]):
            raise ClientError(
                "invalid_tool_call_id",
                f"Tool call ID '{item.body['call_id']}' not found in conversation.",
                "item.call_id",
            )
        self._order.insert(index, item.id)
        self._items[item.id] = item
        self._bound_audio()
        return self._order[index - 1] if index else None

    def get(self, item_id: str) -> Item | None:
        return self._items.get(item_id)

    def before(self, item_id: str) -> str | None:
        """The id of the item in front of this one; None for the first, and for one that is gone."""
        index = self._order.index(item_id) if item_id in self._items else 0
        return self._order[index - 1] if index else None

    def retrieve(self, item_id: str) -> Item:
        return self._need(item_id, "retrieve")

    def delete(self, item_id: str) -> None:
        self._need(item_id, "delete")
        del self._items[item_id]
        self._order.remove(item_id)

    def truncate(self, item_id: str, content_index: int, audio_end_ms: int) -> None:
        """Cut an answer's audio to what was heard; its transcript goes, as nobody knows which words were."""
        item = self._need(item_id, "truncate")
        content = item.body.get("content") or ()
        if (
            item.kind != "assistant"
            or content_index >= len(content)
            or content[content_index]["type"] != "output_audio"
        ):
            raise ClientError("invalid_value", "Only model output audio messages can be truncated.", "item_id")
        clip = item.clips.get(content_index)
        length = 0 if clip is None else clip.ms
        if clip is None or audio_end_ms > length:
            raise ClientError(
                "invalid_value",
                f"Audio content of {length}ms is already shorter than {audio_end_ms}ms",
                "audio_end_ms",
            )
        item.clips[content_index] = clip.first(audio_end_ms)
        content[content_index]["transcript"] = None

    def _need(self, item_id: str, verb: str, which: str = "the item", problem: str = "invalid_item_id") -> Item:
        item = self._items.get(item_id)
        if item is None:
            raise ClientError(
                f"item_{verb}_{problem}",
                f"Error {_GERUND[verb]} item: {which} with id '{item_id}' does not exist.",
                "previous_item_id" if verb == "create" else "item_id",
            )
        return item

    def _has_call(self, call_id: str) -> bool:
        return any(item.kind == "function_call" and item.body.get("call_id") == call_id for item in self)

    def _bound_audio(self) -> None:
        held = sum(len(clip.data) for item in self for clip in item.clips.values())
        for item in self:
            if held <= AUDIO_HOLD_BYTES:
                return
            held -= sum(len(clip.data) for clip in item.clips.values())
            item.clips.clear()
            item.spoken = None


_GERUND = {"create": "adding", "retrieve": "retrieving", "delete": "deleting", "truncate": "truncating"}
