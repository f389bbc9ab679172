"""What the model has begun to answer and not finished, and how that is brought to an end when the model is gone. Pure.

Clients count on every response to end: a ``response.created`` without its ``response.done`` blocks an SDK for ever. So
the events with which a server ends a response that is cancelled are made here, with the words that there were so far.
"""

from collections.abc import Callable
from typing import Any, Final

from relay.core.realtime import encode

_RESPONSES: Final = 64  # at the same time; the oldest is forgotten
_ITEMS: Final = 128  # of one response, and parts of one item; more are overlooked
_TEXT: Final = 256_000  # characters of one response; more words are let go

_CANCELLED: Final = {
    "status": "cancelled",
    "status_details": {"type": "cancelled", "reason": "client_cancelled"},
    "usage": None,
}
# What ends each kind of part, and where its words stand.
_PARTS: Final = {
    "audio": ("output_audio_transcript", "transcript"),
    "text": ("output_text", "text"),
}


class _Part:
    """A content part: ``kind`` is ``audio`` or ``text``."""

    __slots__ = ("ended", "kind", "words")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.words: list[str] = []
        self.ended: set[str] = set()  # types of the events that ended it, or half of it


class _Item:
    """An item that a response makes, as the model said it last."""

    __slots__ = ("arguments", "body", "is_done", "is_in_conversation", "parts", "previous_id")

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body
        self.parts: dict[int, _Part] = {}  # by content index
        self.arguments: list[str] = []
        self.is_done = False
        self.is_in_conversation = False  # the client was told so
        self.previous_id: str | None = None

    @property
    def id(self) -> str:
        return str(self.body.get("id"))

    @property
    def is_call(self) -> bool:
        return self.body.get("type") == "function_call"


class _Response:
    """A response under way: as ``response.created`` said it, and its items by output index."""

    __slots__ = ("body", "items", "length")

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body
        self.items: dict[int, _Item] = {}
        self.length = 0


class Unfinished:
    """The responses under way on one model leg, those outside the conversation too."""

    __slots__ = ("_responses",)

    def __init__(self) -> None:
        self._responses: dict[str, _Response] = {}

    @property
    def response_ids(self) -> list[str]:
        """The responses that the client waits for, oldest first."""
        return list(self._responses)

    def open_items(self, response_id: str) -> list[str]:
        """Return the ids of a response's items that are not finished."""
        response = self._responses.get(response_id)
        items = response.items.values() if response is not None else ()
        return [item.id for item in items if not item.is_done]

    def made_tool_call(self, response_id: str) -> bool:
        """Whether a response has made a tool call that is whole: somebody may be about to answer it."""
        response = self._responses.get(response_id)
        items = response.items.values() if response is not None else ()
        return any(item.is_call and item.is_done and item.body.get("status") != "incomplete" for item in items)

    # What the model says

    def on_event(self, kind: str, event: dict[str, Any]) -> None:
        """Take an event of the model's that the client gets; ``FOLLOWED`` names the kinds that matter."""
        if kind in {"response.created", "response.done"}:
            self._on_response(kind, event.get("response"))
        elif kind in {"conversation.item.added", "conversation.item.done"}:
            self._on_conversation(event.get("item"), event.get("previous_item_id"))
        elif kind in FOLLOWED:
            response = self._responses.get(str(event.get("response_id")))
            index = event.get("output_index")
            if response is not None and isinstance(index, int):
                self._on_output(response, index, kind, event)

    def _on_response(self, kind: str, body: Any) -> None:
        if not isinstance(body, dict):
            return
        response_id = str(body.get("id"))
        if kind == "response.done":
            self._responses.pop(response_id, None)
            return
        self._responses[response_id] = _Response(body)
        if len(self._responses) > _RESPONSES:
            del self._responses[next(iter(self._responses))]

    def _on_conversation(self, body: Any, previous_id: Any) -> None:
        item_id = body.get("id") if isinstance(body, dict) else None
        for response in self._responses.values():
            for item in response.items.values():
                if item.id == item_id:
                    item.is_in_conversation = True
                    item.previous_id = previous_id if isinstance(previous_id, str) else None

    def _on_output(self, response: _Response, index: int, kind: str, event: dict[str, Any]) -> None:
        item = response.items.get(index)
        if kind in {"response.output_item.added", "response.output_item.done"}:
            body = event.get("item")
            if not isinstance(body, dict) or (item is None and len(response.items) >= _ITEMS):
                return
            if item is None:
                item = response.items[index] = _Item(body)
            item.body, item.is_done = body, kind == "response.output_item.done"
        elif item is not None and kind == "response.function_call_arguments.delta":
            _collect(response, item.arguments, event)
        elif item is not None and isinstance(event.get("content_index"), int):
            self._on_part(response, item, kind, event)

    def _on_part(self, response: _Response, item: _Item, kind: str, event: dict[str, Any]) -> None:
        index = event["content_index"]
        if kind == "response.content_part.added":
            part = event.get("part")
            name = str(part.get("type") if isinstance(part, dict) else None).removeprefix("output_")
            if name in _PARTS and len(item.parts) < _ITEMS:
                item.parts[index] = _Part(name)
        elif index not in item.parts:
            return
        elif kind.endswith(".delta"):
            _collect(response, item.parts[index].words, event)
        else:
            item.parts[index].ended.add(kind)

    # The end

    def close(self, new_event_id: Callable[[], str]) -> list[bytes]:
        """Return the events that end every response as cancelled; after that none is under way.

        A tool call that is not whole ends as incomplete, and without the two events on which some clients would run it.
        """
        events = [event for response_id in list(self._responses) for event in self._closed(response_id)]
        self._responses.clear()
        return [encode({"type": event.pop("type"), "event_id": new_event_id(), **event}) for event in events]

    def _closed(self, response_id: str) -> list[dict[str, Any]]:
        response = self._responses[response_id]
        events: list[dict[str, Any]] = []
        output = []
        for index, item in sorted(response.items.items()):
            if not item.is_done:
                events += _closed_item(item, {"response_id": response_id, "output_index": index})
            output.append(item.body)
        return [*events, {"type": "response.done", "response": {**response.body, **_CANCELLED, "output": output}}]


def cancelled(response_id: str, event_id: str) -> bytes:
    """End a response of which nothing but its id is known any more."""
    body: dict[str, Any] = {"object": "realtime.response", "id": response_id, **_CANCELLED, "output": []}
    return encode({"type": "response.done", "event_id": event_id, "response": body})


_ENDS: Final = frozenset(
    {
        *("response.output_audio.done", "response.output_audio_transcript.done", "response.output_text.done"),
        "response.content_part.done",
    }
)
# The events that must be shown to ``Unfinished``.
FOLLOWED: Final = _ENDS | {
    *("response.created", "response.done", "response.output_item.added", "response.output_item.done"),
    *("conversation.item.added", "conversation.item.done", "response.content_part.added"),
    *("response.output_audio_transcript.delta", "response.output_text.delta"),
    "response.function_call_arguments.delta",
}


def _collect(response: _Response, words: list[str], event: dict[str, Any]) -> None:
    delta = event.get("delta")
    if isinstance(delta, str):
        words.append(delta[: _TEXT - response.length])
        response.length += len(words[-1])


def _closed_item(item: _Item, place: dict[str, Any]) -> list[dict[str, Any]]:
    """The events that end an item, innermost first; the item is then as they say."""
    ids = {**place, "item_id": item.id}
    events = [event for index, part in sorted(item.parts.items()) for event in _closed_part(part, ids, index)]
    item.body = {**item.body, "status": "incomplete"}
    if item.is_call:
        item.body["arguments"] = "".join(item.arguments)
    elif item.body.get("type") == "message":
        item.body["content"] = [_content(part) for _, part in sorted(item.parts.items())]
    events.append({"type": "response.output_item.done", **place, "item": item.body})
    if item.is_in_conversation and not item.is_call:
        events.append({"type": "conversation.item.done", "previous_item_id": item.previous_id, "item": item.body})
    return events


def _closed_part(part: _Part, ids: dict[str, Any], index: int) -> list[dict[str, Any]]:
    place, words = {**ids, "content_index": index}, "".join(part.words)
    name, key = _PARTS[part.kind]
    events: list[dict[str, Any]] = [
        *([{"type": "response.output_audio.done", **place}] if part.kind == "audio" else ()),
        {"type": f"response.{name}.done", **place, key: words},
        {"type": "response.content_part.done", **place, "part": {"type": part.kind, key: words}},
    ]
    return [event for event in events if event["type"] not in part.ended]


def _content(part: _Part) -> dict[str, Any]:
    return {"type": f"output_{part.kind}", _PARTS[part.kind][1]: "".join(part.words)}
