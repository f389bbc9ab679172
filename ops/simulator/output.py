"""One output item of a response on its way out: a spoken or written message, or a tool call, in steps.

Knows no time: each step says how long to wait for the next one. Out of band there is no conversation to put it into.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from typing import Any, Protocol

from ops.simulator.conversation import Conversation, Item
from ops.simulator.reply import Call, Part, Say
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


class Output:
    """Call `open`, then `step` until it returns None, then `close`; or `close` earlier, where it is cut off."""

    def __init__(
        self,
        part: Part,
        index: int,
        response_id: str,
        item_id: str,
        call_id: str,
        *,
        conversation: Conversation | None,
        pace: Pace,
        emit: Emit,
    ) -> None:
        self.text_out = ""
        self.sent_clip_ms = 0
        self._part = part
        self._conversation = conversation
        self._pace = pace
        self._emit = emit
        self._pieces = _pieces(part)
        self._sent = 0  # steps that are out
        self._place = {"response_id": response_id, "output_index": index}
        self._ids = {"response_id": response_id, "item_id": item_id, "output_index": index}
        self._call_id = call_id
        self._item = Item({"id": item_id, "object": "realtime.item", **_beginning(part, call_id)})

    def wire(self) -> dict[str, Any]:
        """The item as it is now."""
        return self._item.wire()

    def open(self) -> None:
        item = self._item
        before = self._conversation.add(item) if self._conversation is not None else None
        self._emit("response.output_item.added", **self._place, item=item.wire())
        if self._conversation is not None:
            self._emit("conversation.item.added", previous_item_id=before, item=item.wire())
        if isinstance(self._part, Say):
            kind, words = ("text", "text") if self._part.clip is None else ("audio", "transcript")
            item.body["content"].append({"type": f"output_{kind}", words: ""})
            self._emit("response.content_part.added", **self._ids, content_index=0, part={"type": kind, words: ""})

    def step(self) -> float | None:
        """Emit the next piece; returns the seconds until the one after it, None when there is no more."""
        step, self._sent = self._sent, self._sent + 1
        if isinstance(self._part, Say) and self._part.clip is not None:
            return self._step_audio(self._part.clip, step)
        if step >= len(self._pieces):
            return None
        if isinstance(self._part, Call):
            self._say("response.function_call_arguments.delta", self._pieces[step], call_id=self._call_id)
            return 0.0
        self._say("response.output_text.delta", self._pieces[step], content_index=0)
        return WORD_SECONDS

    def close(self, status: str) -> None:
        """Emit what ends the item; `status` is `completed` or `incomplete`."""
        item = self._item
        item.body["status"] = status
        words = self.text_out
        if isinstance(self._part, Call):
            item.body["arguments"] = words
            fields = {"call_id": self._call_id, "name": self._part.name, "arguments": words}
            self._emit("response.function_call_arguments.done", **self._ids, **fields)
        else:
            self._close_words(item, words, is_audio=self._part.clip is not None)
        self._emit("response.output_item.done", **self._place, item=item.wire())
        if self._conversation is not None:
            before = self._conversation.before(item.id)
            self._emit("conversation.item.done", previous_item_id=before, item=item.wire())

    def _close_words(self, item: Item, words: str, *, is_audio: bool) -> None:
        if is_audio:
            self._emit("response.output_audio.done", **self._ids, content_index=0)
            self._emit("response.output_audio_transcript.done", **self._ids, content_index=0, transcript=words)
            item.body["content"][0]["transcript"] = words
            part = {"type": "audio", "transcript": words}
        else:
            self._emit("response.output_text.done", **self._ids, content_index=0, text=words)
            item.body["content"][0]["text"] = words
            part = {"type": "text", "text": words}
        self._emit("response.content_part.done", **self._ids, content_index=0, part=part)

    def _step_audio(self, clip: Clip, step: int) -> float | None:
        size = self._pace.chunk_ms * clip.format.bytes_per_ms
        chunks = max(-(-len(clip.data) // size), 1)
        if step >= chunks:
            return None
        first, last = len(self._pieces) * step // chunks, len(self._pieces) * (step + 1) // chunks
        for piece in self._pieces[first:last]:
            self._say("response.output_audio_transcript.delta", piece, content_index=0)
        chunk = clip.data[step * size : (step + 1) * size]
        if chunk:
            self._emit("response.output_audio.delta", **self._ids, content_index=0, delta=b64encode(chunk).decode())
            self._item.clips[0] = Clip(clip.format, clip.data[: (step + 1) * size])
            self.sent_clip_ms = self._item.clips[0].ms
        return self._pace.chunk_ms / 1000 / self._pace.speed

    def _say(self, kind: str, piece: str, **fields: Any) -> None:
        self.text_out += piece
        self._emit(kind, **self._ids, **fields, delta=piece)


def _beginning(part: Part, call_id: str) -> dict[str, Any]:
    if isinstance(part, Call):
        body = {"type": "function_call", "status": "in_progress", "name": part.name}
        return {**body, "call_id": call_id, "arguments": ""}
    return {"type": "message", "status": "in_progress", "role": "assistant", "content": []}


def _pieces(part: Part) -> list[str]:
    """The deltas of what is said: words, or slices of a tool call's arguments."""
    if isinstance(part, Call):
        return [part.arguments[i : i + ARGUMENT_PIECE] for i in range(0, len(part.arguments), ARGUMENT_PIECE)]
    return [word if i == 0 else f" {word}" for i, word in enumerate(part.text.split(" "))]
