"""The model's side of a conversation, for tests of what becomes of a backend's message."""

import json
from typing import Any

from relay.core.gate import Gate, Released
from relay.core.messages import Injection, Settled

NOW, WALL = 10.0, 1_700_000_000.0
LATER = WALL + 60


class Play:
    """The model's side of a conversation, seen from the gate. ``now`` is the test's to move."""

    def __init__(self) -> None:
        self.gate = Gate(apply_seconds=10.0, max_waiting=64)
        self.now = NOW
        self.wall = WALL
        self.audio = (0, 0)  # that the model has sent: messages and bytes
        self.appended = 0  # messages of audio that the client has sent
        self.events: list[dict[str, Any]] = []
        self.settled: list[tuple[str, str]] = []
        self.errors: dict[str, Any] = {}

    def put(
        self,
        name: str,
        *,
        response: dict[str, Any] | None = None,
        expires_at: float = LATER,
        when: str = "now",
        **item: Any,
    ) -> None:
        """A message arrives and is sent on if it can be."""
        item = {"type": "message", "id": f"item_{name}", **item}
        event = {"type": "conversation.item.create", "item": item}
        self.inject(Injection(name, item["id"], event, response, expires_at, when))

    def event(self, name: str, event: dict[str, Any] | None, **more: Any) -> None:
        """A side leg's event arrives; None: it only asks for a response."""
        fields = {"item_id": (event or {}).get("item_id", ""), "response": None if event else {}, **more}
        self.inject(Injection(message_id=name, event=event, expires_at=LATER, **fields))

    def inject(self, injection: Injection) -> None:
        self.note(self.gate.add(injection))
        self.release()

    def result(self, name: str, tool_call: str, **more: Any) -> None:
        """A tool's result arrives."""
        self.put(name, type="function_call_output", call_id=tool_call, output="{}", **more)

    def release(self, wall: float | None = None) -> Released:
        released = self.gate.release(self.now, self.wall if wall is None else wall, self.appended)
        self.note(released.settled)
        self.events += [json.loads(event) for event in released.events]
        return released

    def pass_time(self, seconds: float) -> None:
        """Time goes by; what is due happens."""
        self.now += seconds
        self.wall += seconds
        self.note(self.gate.overdue(self.now))
        self.release()

    def note(self, settled: list[Settled]) -> None:
        self.settled += [(entry.message_id, entry.status) for entry in settled]
        self.errors |= {entry.message_id: entry.error for entry in settled}

    def item(self, name: str, **fields: Any) -> None:
        """The model has an item; what waited for that follows."""
        self.note(self.gate.on_item({"id": f"item_{name}", "type": "message", **fields}))
        self.release()

    def tool_calls(self, response_id: str, *calls: str) -> None:
        """A response makes tool calls."""
        for call in calls:
            self.gate.tools.on_started(call, response_id)
            self.item(f"of_{call}", type="function_call", call_id=call)

    def answer(self, kind: str, item_id: str = "") -> None:
        """The model has done what an event asked for."""
        self.note(self.gate.on_answer(kind, item_id))
        self.release()

    def error(self, event_id: str | None, code: str, message: str = "no") -> bool:
        """The model refuses something; returns whether that was the relay's own doing."""
        own, settled = self.gate.on_error({"event_id": event_id, "code": code, "message": message})
        self.note(settled)
        return own

    def created(self, response_id: str, metadata: dict[str, str] | None = None) -> None:
        self.note(self.gate.on_response_created({"id": response_id, "conversation_id": "c", "metadata": metadata}))

    def created_as_asked(self, response_id: str) -> None:
        """The response that was asked for last begins."""
        self.created(response_id, self.asks()[-1]["response"]["metadata"])

    def done(self, response_id: str, status: str = "completed", **fields: Any) -> bool:
        """A response ends; returns whether the client should stop playing."""
        settled, silenced = self.gate.on_response_done({"id": response_id, "status": status, **fields})
        self.note(settled)
        self.release()
        return silenced

    def client_asks(self, event_id: str = "c.1", **fields: Any) -> bool | None:
        """The client asks for a response; see ``Responses.client_wants``."""
        event = {"type": "response.create", "event_id": event_id, **fields}
        return self.gate.responses.client_wants(event, event_id, self.now)

    def creates(self) -> list[str]:
        return [event["item"]["id"] for event in self.events if event["type"] == "conversation.item.create"]

    def asks(self) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == "response.create"]

    def sent(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]
