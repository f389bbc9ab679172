"""One response on its way out: which events it consists of, and when each of them is due.

Time comes in as `now`. Audio goes out in chunks faster than real time, the words of the transcript a little ahead.
The session says when to go on, and may cancel at any point; `response.done` is always the last event.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from ops.simulator.conversation import Conversation, Item
from ops.simulator.reply import Call, Fail, Plan, Say
from ops.simulator.speech import Clip

ARGUMENT_PIECE = 16  # characters of a tool call's arguments per event
WORD_SECONDS = 0.01  # between the deltas of a text answer


@dataclass(frozen=True, slots=True)
class Pace:
    """How the answer flows: `speed` times real time, in chunks, after a pause that stands for thinking."""

    speed: float = 5.0
    chunk_ms: int = 200
    delay_seconds: float = 0.05


class Emit(Protocol):
    def __call__(self, kind: str, **fields: Any) -> None: ...


class Response:
    """Give it ids and a plan, call `start`, then `advance` whenever `due` has come, until `due` is None."""

    def __init__(
        self,
        response_id: str,
        item_id: str,
        call_id: str,
        plan: Plan,
        config: dict[str, Any],
        *,
        conversation: Conversation | None,
        context_tokens: tuple[int, int],
        cached_tokens: tuple[int, int],
        pace: Pace,
        emit: Emit,
    ) -> None:
        self.id = response_id
        self.due: float | None = None
        self.sent_clip_ms = 0
        self._plan = plan
        self._config = config
        self._conversation = conversation  # None: out of band
        self._context_tokens = context_tokens  # text, audio
        self._cached_tokens = cached_tokens
        self._pace = pace
        self._emit = emit
        self._item: Item | None = None
        self._item_id = item_id
        self._call_id = call_id
        self._pieces = _pieces(plan)
        self._sent = 0  # steps of the plan that are out
        self._text_out = ""

    @property
    def says_audio(self) -> bool:
        return isinstance(self._plan, Say) and self._plan.clip is not None

    def start(self, now: float) -> None:
        self._emit("response.created", response=self._object("in_progress", None, None))
        limits = [("requests", 5000, 4999, 0.012), ("tokens", 800_000, 799_000, 0.075)]
        names = ("name", "limit", "remaining", "reset_seconds")
        self._emit("rate_limits.updated", rate_limits=[dict(zip(names, each, strict=True)) for each in limits])
        self.due = now + self._pace.delay_seconds

    def advance(self, now: float) -> None:
        """Emit what is due; late calls catch up."""
        while self.due is not None and self.due <= now:
            if isinstance(self._plan, Fail):
                self._finish("failed", None)
            elif self._item is None:
                self._open()
            else:
                self._step(self._plan)

    def cancel(self, reason: str) -> None:
        """End now, as `cancelled`; what was not sent is never said."""
        if self.due is not None:
            self._finish("cancelled", reason)

    def _step(self, plan: Say | Call) -> None:
        step, self._sent = self._sent, self._sent + 1
        if isinstance(plan, Call):
            interval = self._step_call(step)
        elif plan.clip is None:
            interval = self._step_text(step)
        else:
            interval = self._step_audio(plan.clip, step)
        if interval is None:
            self._finish("completed", None)
        elif self.due is not None:
            self.due += interval

    def _step_call(self, step: int) -> float | None:
        if step >= len(self._pieces):
            return None
        self._say("response.function_call_arguments.delta", self._pieces[step], call_id=self._call_id)
        return 0.0

    def _step_text(self, step: int) -> float | None:
        if step >= len(self._pieces):
            return None
        self._say("response.output_text.delta", self._pieces[step], content_index=0)
        return WORD_SECONDS

    def _step_audio(self, clip: Clip, step: int) -> float | None:
        size = self._pace.chunk_ms * clip.format.bytes_per_ms
        chunks = max(-(-len(clip.data) // size), 1)
        if step >= chunks:
            return None
        first, last = len(self._pieces) * step // chunks, len(self._pieces) * (step + 1) // chunks
        for piece in self._pieces[first:last]:
            self._say("response.output_audio_transcript.delta", piece, content_index=0)
        chunk = clip.data[step * size : (step + 1) * size]
        if self._item is not None and chunk:
            self._emit("response.output_audio.delta", **self._ids, content_index=0, delta=b64encode(chunk).decode())
            self._item.clips[0] = Clip(clip.format, clip.data[: (step + 1) * size])
            self.sent_clip_ms = self._item.clips[0].ms
        return self._pace.chunk_ms / 1000 / self._pace.speed

    def _say(self, kind: str, piece: str, **fields: Any) -> None:
        self._text_out += piece
        self._emit(kind, **self._ids, **fields, delta=piece)

    def _open(self) -> None:
        body: dict[str, Any] = {"id": self._item_id, "object": "realtime.item"}
        if isinstance(self._plan, Call):
            body |= {"type": "function_call", "status": "in_progress", "name": self._plan.name}
            body |= {"call_id": self._call_id, "arguments": ""}
        else:
            body |= {"type": "message", "status": "in_progress", "role": "assistant", "content": []}
        self._item = item = Item(body)
        before = self._conversation.add(item) if self._conversation is not None else None
        self._emit("response.output_item.added", response_id=self.id, output_index=0, item=item.wire())
        if self._conversation is not None:
            self._emit("conversation.item.added", previous_item_id=before, item=item.wire())
        if isinstance(self._plan, Say):
            kind = "audio" if self.says_audio else "text"
            words = {"transcript": ""} if kind == "audio" else {"text": ""}
            body["content"].append({"type": f"output_{kind}", **words})
            self._emit("response.content_part.added", **self._ids, content_index=0, part={"type": kind, **words})

    def _finish(self, status: str, reason: str | None) -> None:
        self.due = None
        if self._item is not None:
            self._close_item(self._item, "completed" if status == "completed" else "incomplete")
        details: dict[str, Any] | None = None
        if status != "completed":
            details = {"type": status}
            if isinstance(self._plan, Fail) and status == "failed":
                details["error"] = {"type": "server_error", "code": self._plan.code, "message": self._plan.message}
            else:
                details["reason"] = reason
        self._emit("response.done", response=self._object(status, details, self._usage()))

    def _close_item(self, item: Item, status: str) -> None:
        item.body["status"] = status
        words = self._text_out
        if isinstance(self._plan, Call):
            item.body["arguments"] = words
            fields = {"call_id": self._call_id, "name": self._plan.name, "arguments": words}
            self._emit("response.function_call_arguments.done", **self._ids, **fields)
        elif self.says_audio:
            self._emit("response.output_audio.done", **self._ids, content_index=0)
            self._emit("response.output_audio_transcript.done", **self._ids, content_index=0, transcript=words)
            item.body["content"][0]["transcript"] = words
        else:
            self._emit("response.output_text.done", **self._ids, content_index=0, text=words)
            item.body["content"][0]["text"] = words
        if isinstance(self._plan, Say):
            part = {"type": "audio", "transcript": words} if self.says_audio else {"type": "text", "text": words}
            self._emit("response.content_part.done", **self._ids, content_index=0, part=part)
        self._emit("response.output_item.done", response_id=self.id, output_index=0, item=item.wire())
        if self._conversation is not None:
            before = self._conversation.before(item.id)
            self._emit("conversation.item.done", previous_item_id=before, item=item.wire())

    @property
    def _ids(self) -> dict[str, Any]:
        return {"response_id": self.id, "item_id": self._item_id, "output_index": 0}

    def _usage(self) -> dict[str, Any]:
        (text_in, audio_in), (text_cached, audio_cached) = self._context_tokens, self._cached_tokens
        text_out, audio_out = -(-len(self._text_out) // 4), self.sent_clip_ms // 50
        cached = {"text_tokens": text_cached, "audio_tokens": audio_cached, "image_tokens": 0}
        return {
            "total_tokens": text_in + audio_in + text_out + audio_out,
            "input_tokens": text_in + audio_in,
            "output_tokens": text_out + audio_out,
            "input_token_details": {
                "text_tokens": text_in,
                "audio_tokens": audio_in,
                "image_tokens": 0,
                "cached_tokens": text_cached + audio_cached,
                "cached_tokens_details": cached,
            },
            "output_token_details": {"text_tokens": text_out, "audio_tokens": audio_out},
        }

    def _object(self, status: str, details: dict[str, Any] | None, usage: dict[str, Any] | None) -> dict[str, Any]:
        return {
            "object": "realtime.response",
            "id": self.id,
            "status": status,
            "status_details": details,
            "output": [self._item.wire()] if self._item is not None else [],
            "conversation_id": self._conversation.id if self._conversation is not None else None,
            "output_modalities": self._config["output_modalities"],
            "max_output_tokens": self._config["max_output_tokens"],
            "audio": self._config["audio"],
            "usage": usage,
            "metadata": self._config["metadata"],
        }


def _pieces(plan: Plan) -> list[str]:
    """The deltas of what is said: words, or slices of a tool call's arguments."""
    if isinstance(plan, Call):
        return [plan.arguments[i : i + ARGUMENT_PIECE] for i in range(0, len(plan.arguments), ARGUMENT_PIECE)]
    if isinstance(plan, Say):
        words = plan.text.split(" ")
        return [word if i == 0 else f" {word}" for i, word in enumerate(words)]
    return []


def tokens(items: Iterable[Item]) -> tuple[int, int]:
    """Text and audio tokens of a context, roughly OpenAI's: four characters, 100 ms of input, 50 ms of output."""
    text = audio = 0
    for item in items:
        text += -(-len(item.text()) // 4) + 3
        audio += sum(clip.ms // (50 if item.kind == "assistant" else 100) for clip in item.clips.values())
    return text, audio
