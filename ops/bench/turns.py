"""The turns of a conversation as a model tells of them, beside its audio: a question that was spoken, and its answer.

Everything that the Realtime API (GA) says of such a turn with transcription on, in its order; the ids differ from turn
to turn, the words do not.
"""

import asyncio
import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from picows import WSMsgType

from ops.bench.traffic import Connection

_QUESTION: Final = "Could you please tell me when my order will be here? It should have come on Monday already."
_ANSWER: Final = (
    "I am sorry that it took so long. Your order left the warehouse this morning, and it will be with you "
    "tomorrow before noon."
)
_TURN_SECONDS: Final = 10.0  # from a question to the next, where the seconds below are real; else all are in proportion
_SPOKEN_SECONDS: Final = 3.0  # the question
_THOUGHT_SECONDS: Final = 0.8  # until the answer
_WORD_SECONDS: Final = 0.2
_PART: Final = {"output_index": 0, "content_index": 0}
_RATES: Final = [
    {"name": name, "limit": limit, "remaining": limit - 1, "reset_seconds": 0.01}
    for name, limit in (("requests", 10_000), ("tokens", 200_000))
]
_USAGE: Final = {
    "total_tokens": 900,
    "input_tokens": 700,
    "output_tokens": 200,
    "input_token_details": {"text_tokens": 200, "audio_tokens": 500, "cached_tokens": 600},
    "output_token_details": {"text_tokens": 50, "audio_tokens": 150},
}


class Turns:
    """Tells of turns on each of the connections, one after the other, evenly spread over them."""

    def __init__(self, send_to: Sequence[Connection]) -> None:
        self._send_to = send_to
        self._run = 0  # what was begun in an earlier run says nothing more
        self._number = 0
        self.events = 0  # since `start`

    def start(self, every_seconds: float) -> None:
        """Begin: on each connection a turn in so many seconds."""
        self._run += 1
        self.events = 0
        loop = asyncio.get_running_loop()
        for place, connection in enumerate(self._send_to):
            loop.call_later(
                every_seconds * place / len(self._send_to), self._begin, connection, every_seconds, self._run
            )

    def stop(self) -> None:
        """Say no more."""
        self._run += 1

    def _begin(self, connection: Connection, every_seconds: float, run: int) -> None:
        if run != self._run or connection.transport is None:
            return
        loop = asyncio.get_running_loop()
        self._number += 1
        for after, event in _turn(self._number):
            after *= every_seconds / _TURN_SECONDS
            loop.call_later(after, self._say, connection, json.dumps(event, separators=(",", ":")).encode(), run)
        loop.call_later(every_seconds, self._begin, connection, every_seconds, run)

    def _say(self, connection: Connection, event: bytes, run: int) -> None:
        if run == self._run and connection.transport is not None:
            connection.transport.send(WSMsgType.TEXT, event)
            self.events += 1


def _turn(number: int) -> Iterator[tuple[float, dict[str, Any]]]:
    """The events of one turn, each with the seconds after its beginning."""
    events = [*_asked(f"item_q{number}"), *_answered(f"item_q{number}", f"item_a{number}", f"resp_{number}")]
    for place, (after, kind, fields) in enumerate(events):
        yield after, {"type": kind, "event_id": f"event_{number}_{place}", **fields}


_Said = Iterator[tuple[float, str, dict[str, Any]]]


def _asked(item_id: str) -> _Said:
    of_item = {"item_id": item_id, "content_index": 0}
    content = [{"type": "input_audio", "transcript": None}]
    added = {"previous_item_id": None, "item": _item(item_id, "user", content, "completed")}
    stopped = _SPOKEN_SECONDS
    yield 0.0, "input_audio_buffer.speech_started", {"audio_start_ms": 0, "item_id": item_id}
    yield stopped, "input_audio_buffer.speech_stopped", {"audio_end_ms": 3000, "item_id": item_id}
    yield stopped, "input_audio_buffer.committed", {"previous_item_id": None, "item_id": item_id}
    yield stopped, "conversation.item.added", added
    yield stopped, "conversation.item.done", added
    transcribed = {**of_item, "transcript": _QUESTION, "usage": {"type": "duration", "seconds": 3}}
    yield stopped + 0.4, "conversation.item.input_audio_transcription.completed", transcribed


def _answered(question_id: str, item_id: str, response_id: str) -> _Said:
    of_item = {"response_id": response_id, "item_id": item_id, **_PART}
    of_output = {"response_id": response_id, "output_index": 0}
    coming, whole = _item(item_id, "assistant", [], "in_progress"), _item(item_id, "assistant", _said(), "completed")
    at = _SPOKEN_SECONDS + _THOUGHT_SECONDS
    yield at, "response.created", {"response": _response(response_id, [], "in_progress", None)}
    yield at, "rate_limits.updated", {"rate_limits": _RATES}
    yield at, "response.output_item.added", {**of_output, "item": coming}
    yield at, "conversation.item.added", {"previous_item_id": question_id, "item": coming}
    yield at, "response.content_part.added", {**of_item, "part": {"type": "audio", "transcript": ""}}
    for word in _ANSWER.split():
        yield at, "response.output_audio_transcript.delta", {**of_item, "delta": f"{word} "}
        at += _WORD_SECONDS
    yield at, "response.output_audio.done", of_item
    yield at, "response.output_audio_transcript.done", {**of_item, "transcript": _ANSWER}
    yield at, "response.content_part.done", {**of_item, "part": {"type": "audio", "transcript": _ANSWER}}
    yield at, "conversation.item.done", {"previous_item_id": question_id, "item": whole}
    yield at, "response.output_item.done", {**of_output, "item": whole}
    yield at, "response.done", {"response": _response(response_id, [whole], "completed", _USAGE)}


def _said() -> list[dict[str, Any]]:
    return [{"type": "output_audio", "transcript": _ANSWER}]


def _item(item_id: str, role: str, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
    kind = {"id": item_id, "object": "realtime.item", "type": "message"}
    return {**kind, "status": status, "role": role, "content": content}


def _response(
    response_id: str, output: list[dict[str, Any]], status: str, usage: dict[str, Any] | None
) -> dict[str, Any]:
    return {
        "object": "realtime.response",
        "id": response_id,
        "status": status,
        "status_details": None,
        "output": output,
        "conversation_id": "conv_bench",
        "output_modalities": ["audio"],
        "max_output_tokens": "inf",
        "usage": usage,
        "metadata": None,
    }
