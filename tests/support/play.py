"""The model's side of a conversation, for tests of what becomes of a backend's message."""

import json
from typing import Any

from relay.core.injection import Injection, Injections, Settled

NOW, WALL = 10.0, 1_700_000_000.0
LATER = WALL + 60


class Play:
    """The model's side of a conversation, seen from the relay."""

    def __init__(self) -> None:
        self.injections = Injections(apply_seconds=10.0, max_waiting=64)
        self.events: list[dict[str, Any]] = []
        self.settled: list[tuple[str, str]] = []
        self.errors: dict[str, Any] = {}

    def put(self, name: str, *, response: dict[str, Any] | None = None, expires_at: float = LATER, **item: Any) -> None:
        """A message arrives and is sent on if it can be."""
        item = {"type": "message", "id": f"item_{name}", **item}
        self.injections.add(Injection(name, item["id"], item, response, expires_at))
        self.release()

    def result(self, name: str, tool_call: str) -> None:
        """A tool's result arrives."""
        self.put(name, type="function_call_output", call_id=tool_call, output="{}")

    def release(self, wall: float = WALL) -> list[dict[str, Any]]:
        events, settled = self.injections.release(NOW, wall)
        self.note(settled)
        self.events += [json.loads(event) for event in events]
        return [json.loads(event) for event in events]

    def note(self, settled: list[Settled]) -> None:
        self.settled += [(entry.message_id, entry.status) for entry in settled]
        self.errors |= {entry.message_id: entry.error for entry in settled}

    def item(self, name: str, **fields: Any) -> None:
        """The model has an item; what waited for that follows."""
        self.note(self.injections.on_item({"id": f"item_{name}", "type": "message", **fields}))
        self.release()

    def error(self, event_id: str | None, code: str, message: str = "no") -> bool:
        """The model refuses something; returns whether that was the relay's own doing."""
        own, settled = self.injections.on_error({"event_id": event_id, "code": code, "message": message})
        self.note(settled)
        return own

    def created(self, response_id: str, metadata: dict[str, str] | None = None) -> None:
        self.injections.on_response_created({"id": response_id, "conversation_id": "c", "metadata": metadata})

    def done(self, response_id: str, status: str = "completed", **fields: Any) -> None:
        self.note(self.injections.on_response_done({"id": response_id, "status": status, **fields}))
        self.release()

    def creates(self) -> list[str]:
        return [event["item"]["id"] for event in self.events if event["type"] == "conversation.item.create"]

    def asks(self) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == "response.create"]
