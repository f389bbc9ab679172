"""A small model with a person in front of it, for walks through the turn gate: plain, on a clock of its own.

It makes one response at a time and refuses a second, lets the person interrupt it and answers them by itself, calls
tools, and is as unreliable as it is told to be. What it was asked for and what it made of that is kept for the test.
"""

import heapq
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any

ACTIVE = "conversation_already_has_active_response"


class Clock:
    """Time that passes from one thing that happens to the next."""

    def __init__(self) -> None:
        self.now = 0.0
        self._next = count()
        self._plan: list[tuple[float, int, Callable[[], None]]] = []

    def at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._plan, (max(when, self.now), next(self._next), act))

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self.at(self.now + seconds, act)

    def run(self, until: float) -> None:
        while self._plan and self._plan[0][0] <= until:
            self.now, _, act = heapq.heappop(self._plan)
            act()
        self.now = until


@dataclass
class Faults:
    """How a model's server misbehaves; the numbers are probabilities."""

    keeps_metadata: bool = True
    names_causes: bool = True  # errors say which event they are about
    refuses: float = 0.0
    forgets: float = 0.0  # to answer at all


@dataclass
class Response:
    """A response that was made."""

    id: str
    cause: str | None  # event id of what asked for it, None for the model's own
    label: str  # its instructions, by which a test knows it
    is_aside: bool = False
    calls: list[str] = field(default_factory=list)


class SmallModel:
    """The model's server. ``say`` takes what it sends."""

    def __init__(self, clock: Clock, random: Random, faults: Faults, say: Callable[[bytes], None]) -> None:
        self._clock, self._random, self._faults, self._say = clock, random, faults, say
        self._ids = count(1)
        self.active: Response | None = None
        self.items: list[str] = []
        self.responses: list[Response] = []
        self.refused: list[str | None] = []  # event ids of the response.create events
        self.forgotten: list[str | None] = []
        self.calls: dict[str, Response] = {}  # tool calls that were made whole
        self.results: set[str] = set()  # tool calls that have one
        self.is_hearing = False

    def emit(self, kind: str, **fields: Any) -> None:
        self._say(json.dumps({"type": kind, "event_id": f"s{next(self._ids)}", **fields}).encode())

    def refuse(self, cause: str | None, code: str, text: str = "no") -> None:
        cause = cause if self._faults.names_causes else None
        self.emit("error", error={"type": "x", "code": code, "message": text, "event_id": cause})

    # What it is asked

    def take(self, event: dict[str, Any]) -> None:
        kind, cause = event["type"], event.get("event_id")
        if self._random.random() < self._faults.forgets:
            self.forgotten.append(cause)
        elif self._random.random() < self._faults.refuses:
            self.refused.append(cause)
            self.refuse(cause, "invalid_value")
        elif kind == "conversation.item.create":
            self._add(cause, event["item"])
        elif kind == "response.create":
            self._create(cause, event.get("response") or {})
        elif kind == "response.cancel":
            self._cancel(cause)
        elif kind == "session.update":
            self.emit("session.updated", session={})
        elif kind == "conversation.item.truncate":
            self.emit("conversation.item.truncated", item_id=event["item_id"], audio_end_ms=event["audio_end_ms"])
        elif kind == "conversation.item.retrieve":
            self.emit("conversation.item.retrieved", item={"id": event["item_id"]})

    def _add(self, cause: str | None, item: dict[str, Any]) -> None:
        if item["id"] in self.items:
            self.refuse(cause, "item_create_duplicate_item_id", f"the item '{item['id']}' already exists")
            return
        if item["type"] == "function_call_output":
            self.results.add(item["call_id"])
        self.items.append(item["id"])
        for stage in ("added", "done"):
            self.emit(f"conversation.item.{stage}", previous_item_id=None, item=item)

    def _create(self, cause: str | None, fields: dict[str, Any]) -> None:
        is_aside = fields.get("conversation") == "none"
        if self.active is not None and not is_aside:
            self.refused.append(cause)
            self.refuse(cause, ACTIVE)
            return
        self._begin(cause, fields.get("instructions", ""), fields.get("metadata"), is_aside=is_aside)

    def _cancel(self, cause: str | None) -> None:
        if self.active is None:
            self.refuse(cause, "response_cancel_not_active")
        else:
            self._finish(self.active, "cancelled")

    # What it makes

    def _begin(self, cause: str | None, label: str, metadata: Any, *, is_aside: bool) -> None:
        response = Response(f"resp_{next(self._ids)}", cause, label, is_aside)
        self.responses.append(response)
        if not is_aside:
            self.active = response
        self._tell("created", response, "in_progress", metadata)
        seconds = self._random.choice((0.0, 0.05, 0.5, 3.0))
        if not is_aside:
            for part in range(self._random.randrange(3)):
                self._clock.after(seconds * self._random.random(), lambda part=part: self._speak(response, part))
            if self._random.random() < 0.4:
                for _ in range(self._random.randrange(1, 4)):
                    self._clock.after(seconds * self._random.random(), lambda: self._call(response))
        status = self._random.choice(("completed", "completed", "incomplete", "failed"))
        self._clock.after(seconds, lambda: self._finish(response, status))

    def _tell(self, step: str, response: Response, status: str, metadata: Any = None) -> None:
        fields = {"id": response.id, "conversation_id": None if response.is_aside else "conv", "status": status}
        kept = metadata if self._faults.keeps_metadata else None
        self.emit(f"response.{step}", response={**fields, "metadata": kept})

    def _speak(self, response: Response, part: int) -> None:
        if self.active is response:
            place = {"response_id": response.id, "item_id": f"said_{response.id}", "content_index": part}
            self.emit("response.content_part.added", **place, part={"type": "audio"})
            self.emit("response.output_audio.delta", **place, delta="A" * self._random.randrange(100_000))

    def _call(self, response: Response) -> None:
        if self.active is not response:
            return
        call = f"call_{next(self._ids)}"
        item = {"id": f"of_{call}", "type": "function_call", "call_id": call, "name": "f"}
        self.emit("response.output_item.added", response_id=response.id, item={**item, "status": "in_progress"})
        response.calls.append(call)
        self._clock.after(self._random.random() * 0.2, lambda: self._called(response, item, "completed"))

    def _called(self, response: Response, item: dict[str, Any], status: str) -> None:
        call = item["call_id"]
        if call in response.calls and call not in self.calls and (self.active is response or status == "incomplete"):
            if status == "completed":
                self.calls[call] = response
            else:
                response.calls.remove(call)
            item = {**item, "status": status}
            self.emit("response.output_item.done", response_id=response.id, item=item)
            self.emit("conversation.item.done", previous_item_id=None, item=item)

    def _finish(self, response: Response, status: str) -> None:
        if not response.is_aside:
            if self.active is not response:
                return
            for call in [call for call in response.calls if call not in self.calls]:
                if self._random.random() < 0.5:  # other servers say nothing more of it
                    response.calls.remove(call)
                else:
                    item = {"id": f"of_{call}", "type": "function_call", "call_id": call, "name": "f"}
                    self._called(response, item, "incomplete")
            self.active = None
        self._tell("done", response, status)

    # The person

    def hear(self, seconds: float) -> None:
        """The person speaks for so long: the model is silent, and answers when they have finished."""
        if self.is_hearing:
            return
        self.is_hearing = True
        self.emit("input_audio_buffer.speech_started", item_id="speech", audio_start_ms=0)
        if self.active is not None and self._random.random() < 0.7:
            self._finish(self.active, "cancelled")
        self._clock.after(seconds, self._heard)

    def _heard(self) -> None:
        self.is_hearing = False
        item_id = f"speech_{next(self._ids)}"
        if self._random.random() < 0.1:
            self.emit("input_audio_buffer.cleared")
            return
        self.emit("input_audio_buffer.speech_stopped", item_id=item_id, audio_end_ms=0)
        self.emit("input_audio_buffer.committed", item_id=item_id, previous_item_id=None)
        self.emit("conversation.item.added", previous_item_id=None, item={"id": item_id, "type": "message"})
        if self.active is None:
            self._begin(None, "", None, is_aside=False)
        else:
            self.refuse(None, ACTIVE)
