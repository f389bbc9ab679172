"""One model leg's server, which may die at any moment, for walks in which a call outlives it.

It is plainer than the simulator and runs on a clock of its own: one response at a time, items with their places, tool
calls, a person who is heard. What it was told and what it made stays with it for the test. A dead one is deaf and dumb.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.support.small_model import ACTIVE, Clock

_NOT_FOUND = "item_not_found"


@dataclass(eq=False)
class Answer:
    """A response that was made. ``is_told`` is the relay's knowledge of its end."""

    id: str
    label: str  # its instructions, by which a test knows it
    begun_at: float
    is_aside: bool
    leg: int
    is_told: bool = False
    was_cancelled: bool = False  # somebody asked for that, or the person spoke
    calls: list[str] = field(default_factory=list)  # tool calls that were made whole, and told
    output: list[dict[str, Any]] = field(default_factory=list)


class MortalModel:
    """``say`` takes an event that it sends; ``answers`` are those of all legs of the call."""

    def __init__(
        self, clock: Clock, random: Random, leg: int, answers: list[Answer], say: Callable[[dict[str, Any]], None]
    ) -> None:
        self._clock, self._random, self._say = clock, random, say
        self._next = 0
        self.leg = leg
        self.answers = answers
        self.is_dead = False
        self.is_hearing = False
        self.session: dict[str, Any] = {
            "id": f"sess_{leg}",
            "type": "realtime",
            "instructions": "default",
            "audio": {"input": {"turn_detection": {"type": "server_vad"}, "transcription": None}},
        }
        self.items: dict[str, dict[str, Any]] = {}  # in the conversation's order
        self.active: Answer | None = None

    def emit(self, kind: str, **fields: Any) -> None:
        if not self.is_dead:
            self._say({"type": kind, "event_id": f"s{self._new()}", **fields})

    def _new(self) -> str:
        self._next += 1
        return f"{self.leg}_{self._next}"

    def open(self) -> None:
        self.emit("session.created", session=self.session)

    # What it is asked

    def take(self, event: dict[str, Any]) -> None:
        if self.is_dead:
            return
        kind, cause = event["type"], event.get("event_id")
        match kind:
            case "session.update":
                self._update(event["session"])
            case "conversation.item.create":
                self._add(cause, event)
            case "conversation.item.delete" | "conversation.item.retrieve" | "conversation.item.truncate":
                self._touch(kind.removeprefix("conversation.item."), cause, event)
            case "response.create":
                self._create(cause, event.get("response") or {})
            case "response.cancel":
                self._cancel(cause)

    def refuse(self, cause: str | None, code: str) -> None:
        self.emit("error", error={"type": "x", "code": code, "message": "no", "event_id": cause})

    def _update(self, update: dict[str, Any]) -> None:
        given = update.get("audio", {}).get("input", {})
        audio = {"input": {**self.session["audio"]["input"], **given}}
        self.session = {**self.session, **update, "audio": audio}
        self.emit("session.updated", session=self.session)

    def _add(self, cause: str | None, event: dict[str, Any]) -> None:
        item, after = event["item"], event.get("previous_item_id")
        calls = {each.get("call_id") for each in self.items.values() if each["type"] == "function_call"}
        if item["id"] in self.items:
            self.refuse(cause, "item_create_duplicate_item_id")
        elif item["type"] == "function_call_output" and item["call_id"] not in calls:
            self.refuse(cause, "invalid_tool_call_id")
        elif after not in {None, "root", *self.items}:
            self.refuse(cause, _NOT_FOUND)
        else:
            self._put({**item, "status": "completed", "is_text": True}, after)
            self._finish_item(item["id"], {})

    def _put(self, item: dict[str, Any], after: str | None = None) -> None:
        """An item is in the conversation; without a place at its end."""
        order = list(self.items.items())
        at = len(order) if after is None else 0 if after == "root" else list(self.items).index(after) + 1
        before = order[at - 1][0] if at else None
        self.items = dict([*order[:at], (item["id"], item), *order[at:]])
        self.emit("conversation.item.added", previous_item_id=before, item=_shown(item))

    def _finish_item(self, item_id: str, changes: dict[str, Any]) -> None:
        if item_id in self.items:  # the client may have deleted it meanwhile
            self.items[item_id] |= changes
            before = [*self.items][[*self.items].index(item_id) - 1] if next(iter(self.items)) != item_id else None
            self.emit("conversation.item.done", previous_item_id=before, item=_shown(self.items[item_id]))

    def _touch(self, verb: str, cause: str | None, event: dict[str, Any]) -> None:
        item = self.items.get(event["item_id"])
        if item is None or (verb == "truncate" and item.get("is_text")):
            self.refuse(cause, _NOT_FOUND)
        elif verb == "delete":
            del self.items[item["id"]]
            self.emit("conversation.item.deleted", item_id=item["id"])
        elif verb == "retrieve":
            self.emit("conversation.item.retrieved", item=_shown(item))
        else:
            place = {"item_id": item["id"], "content_index": 0, "audio_end_ms": event["audio_end_ms"]}
            self.emit("conversation.item.truncated", **place)

    def _create(self, cause: str | None, fields: dict[str, Any]) -> None:
        is_aside = fields.get("conversation") == "none"
        if self.active is not None and not is_aside:
            self.refuse(cause, ACTIVE)
        else:
            self._begin(fields.get("instructions", ""), fields.get("metadata"), is_aside=is_aside)

    def _cancel(self, cause: str | None) -> None:
        if self.active is None:
            self.refuse(cause, "response_cancel_not_active")
        else:
            self.active.was_cancelled = True
            self._finish(self.active, "cancelled")

    # What it makes

    def _begin(self, label: str, metadata: Any, *, is_aside: bool) -> None:
        answer = Answer(f"resp_{self._new()}", label, self._clock.now, is_aside, self.leg)
        self.answers.append(answer)
        if not is_aside:
            self.active = answer
        self.emit("response.created", response={**_body(answer, "in_progress"), "metadata": metadata})
        self._go_on(answer, iter(()) if is_aside else self._steps(answer))

    def _go_on(self, answer: Answer, steps: Iterator[None]) -> None:
        def step() -> None:
            if self.is_dead or (not answer.is_aside and self.active is not answer):
                return
            try:
                next(steps)
            except StopIteration:
                self._finish(answer, "completed")
            else:
                self._go_on(answer, steps)

        self._clock.after(self._random.choice((0.0, 0.01, 0.1, 0.4)), step)

    def _steps(self, answer: Answer) -> Iterator[None]:
        for index in range(self._random.randrange(4)):
            yield
            make = self._call if self._random.random() < 0.4 else self._speech
            yield from make(answer, {"response_id": answer.id, "output_index": index})

    def _speech(self, answer: Answer, place: dict[str, Any]) -> Iterator[None]:
        item = {"id": f"said_{self._new()}", "type": "message", "role": "assistant", "status": "in_progress"}
        self._output(answer, place, item)
        part = {**place, "item_id": item["id"], "content_index": 0}
        yield
        self.emit("response.content_part.added", **part, part={"type": "audio", "transcript": ""})
        words = ""
        for number in range(self._random.randrange(1, 4)):
            yield
            words += f"{item['id']} {number} "
            self.emit("response.output_audio_transcript.delta", **part, delta=f"{item['id']} {number} ")
            self.emit("response.output_audio.delta", **part, delta="A" * 8000)
        yield
        self.emit("response.output_audio.done", **part)
        self.emit("response.output_audio_transcript.done", **part, transcript=words)
        self.emit("response.content_part.done", **part, part={"type": "audio", "transcript": words})
        content = [{"type": "output_audio", "transcript": words}]
        self._done(answer, place, item, {"status": "completed", "content": content})

    def _call(self, answer: Answer, place: dict[str, Any]) -> Iterator[None]:
        call = f"call_{self._new()}"
        item = {"id": f"of_{call}", "type": "function_call", "call_id": call, "name": "f", "status": "in_progress"}
        self._output(answer, place, item)
        yield
        self.emit("response.function_call_arguments.delta", **place, item_id=item["id"], delta="{}")
        yield
        self.emit("response.function_call_arguments.done", **place, item_id=item["id"], arguments="{}")
        self._done(answer, place, item, {"status": "completed", "arguments": "{}"})

    def _output(self, answer: Answer, place: dict[str, Any], item: dict[str, Any]) -> None:
        answer.output.append(item)
        self.emit("response.output_item.added", **place, item=_shown(item))
        self._put(item)

    def _done(self, answer: Answer, place: dict[str, Any], item: dict[str, Any], changes: dict[str, Any]) -> None:
        item |= changes
        self.emit("response.output_item.done", **place, item=_shown(item))
        self._finish_item(item["id"], changes)

    def _finish(self, answer: Answer, status: str) -> None:
        if not answer.is_aside:
            for index, item in enumerate(answer.output):
                if item["status"] == "in_progress":
                    place = {"response_id": answer.id, "output_index": index}
                    self._done(answer, place, item, {"status": "incomplete"})
            self.active = None
        output = [_shown(each) for each in answer.output]
        self.emit("response.done", response={**_body(answer, status), "output": output})

    # The person

    def hear(self, seconds: float) -> None:
        """The person speaks for so long: the model is silent, and answers when they have finished."""
        if self.is_hearing or self.is_dead:
            return
        self.is_hearing = True
        item_id = f"heard_{self._new()}"
        self.emit("input_audio_buffer.speech_started", item_id=item_id, audio_start_ms=0)
        if self.active is not None:
            self.active.was_cancelled = True
            self._finish(self.active, "cancelled")
        self._clock.after(seconds, lambda: self._heard(item_id))

    def _heard(self, item_id: str) -> None:
        if self.is_dead:
            return
        self.is_hearing = False
        self.emit("input_audio_buffer.speech_stopped", item_id=item_id, audio_end_ms=0)
        before = next(reversed(self.items), None)
        self.emit("input_audio_buffer.committed", item_id=item_id, previous_item_id=before)
        self._put({"id": item_id, "type": "message", "role": "user", "status": "completed", "content": []})
        self._finish_item(item_id, {})
        kind = "conversation.item.input_audio_transcription.completed"
        self._clock.after(0.1, lambda: self.emit(kind, item_id=item_id, content_index=0, transcript=item_id))
        self._clock.after(0.05, self._answer_heard)

    def _answer_heard(self) -> None:
        if self.active is None and not self.is_dead:
            self._begin("", None, is_aside=False)


def _shown(item: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key != "is_text"}


def _body(answer: Answer, status: str) -> dict[str, Any]:
    conversation = None if answer.is_aside else "conv"
    return {"object": "realtime.response", "id": answer.id, "conversation_id": conversation, "status": status}
