"""One response on its way out: its output items one after the other, and when the next event is due.

Time comes in as `now`. Audio goes out in chunks faster than real time, the words of the transcript a little ahead.
The session says when to go on, and may cancel at any point; `response.done` is always the last event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ops.simulator.conversation import Conversation, Item
from ops.simulator.output import Emit, Output, Pace
from ops.simulator.reply import Fail, Part, Plan, Say


class Response:
    """Give it a plan, call `start`, then `advance` whenever `due` has come, until `due` is None."""

    def __init__(
        self,
        new_id: Callable[[str], str],
        plan: Plan,
        config: dict[str, Any],
        *,
        conversation: Conversation | None,
        context_tokens: tuple[int, int],
        cached_tokens: tuple[int, int],
        pace: Pace,
        emit: Emit,
    ) -> None:
        self.id = new_id("resp")
        self.due: float | None = None
        self._new_id = new_id
        self._failure = plan if isinstance(plan, Fail) else None
        self._parts: tuple[Part, ...] = () if isinstance(plan, Fail) else plan
        self._config = config
        self._conversation = conversation  # None: out of band
        self._context_tokens = context_tokens  # text, audio
        self._cached_tokens = cached_tokens
        self._pace = pace
        self._emit = emit
        self._outputs: list[Output] = []
        self._open: Output | None = None  # the last of them, until it is closed

    @property
    def says_audio(self) -> bool:
        return any(isinstance(part, Say) and part.clip is not None for part in self._parts)

    @property
    def sent_clip_ms(self) -> int:
        """How much audio is out."""
        return sum(output.sent_clip_ms for output in self._outputs)

    def start(self, now: float) -> None:
        self._emit("response.created", response=self._object("in_progress", None, None))
        limits = [("requests", 5000, 4999, 0.012), ("tokens", 800_000, 799_000, 0.075)]
        names = ("name", "limit", "remaining", "reset_seconds")
        self._emit("rate_limits.updated", rate_limits=[dict(zip(names, each, strict=True)) for each in limits])
        self.due = now + self._pace.delay_seconds

    def advance(self, now: float) -> None:
        """Emit what is due; late calls catch up."""
        while self.due is not None and self.due <= now:
            if self._open is not None:
                self.due = self._step(self._open, self.due)
            elif len(self._outputs) < len(self._parts):
                self._begin(self._parts[len(self._outputs)])
            else:
                self._finish("completed" if self._failure is None else "failed", None)

    def cancel(self, reason: str) -> None:
        """End now, as `cancelled`; what was not sent is never said, and tools that were not called yet never are."""
        if self.due is not None:
            self._finish("cancelled", reason)

    def _begin(self, part: Part) -> None:
        self._open = Output(
            part,
            len(self._outputs),
            self.id,
            self._new_id("item"),
            self._new_id("call"),
            conversation=self._conversation,
            pace=self._pace,
            emit=self._emit,
        )
        self._outputs.append(self._open)
        self._open.open()

    def _step(self, output: Output, due: float) -> float:
        interval = output.step()
        if interval is None:
            self._open = None
            output.close("completed")
        return due + (interval or 0.0)

    def _finish(self, status: str, reason: str | None) -> None:
        self.due = None
        if self._open is not None:
            self._open.close("incomplete")
        details: dict[str, Any] | None = None
        if self._failure is not None and status == "failed":
            error = {"type": "server_error", "code": self._failure.code, "message": self._failure.message}
            details = {"type": status, "error": error}
        elif status != "completed":
            details = {"type": status, "reason": reason}
        self._emit("response.done", response=self._object(status, details, self._usage()))

    def _usage(self) -> dict[str, Any]:
        (text_in, audio_in), (text_cached, audio_cached) = self._context_tokens, self._cached_tokens
        text_out = sum(-(-len(output.text_out) // 4) for output in self._outputs)
        audio_out = self.sent_clip_ms // 50
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
            "output": [output.wire() for output in self._outputs],
            "conversation_id": self._conversation.id if self._conversation is not None else None,
            "output_modalities": self._config["output_modalities"],
            "max_output_tokens": self._config["max_output_tokens"],
            "audio": self._config["audio"],
            "usage": usage,
            "metadata": self._config["metadata"],
        }


def tokens(items: Iterable[Item]) -> tuple[int, int]:
    """Text and audio tokens of a context, roughly OpenAI's: four characters, 100 ms of input, 50 ms of output."""
    text = audio = 0
    for item in items:
        text += -(-len(item.text()) // 4) + 3
        audio += sum(clip.ms // (50 if item.kind == "assistant" else 100) for clip in item.clips.values())
    return text, audio
