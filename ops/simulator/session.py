"""One session of the simulated model: client events in, server events out, timers as data.

Imports no asyncio, socket, clock, environment or logging. The shell calls `open` once, `receive` for each frame, `tick`
whenever `wake_at` has come, sends what they return in order, and closes the socket when `closing` is set.
"""

from __future__ import annotations

import binascii
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ops.simulator import config, validate
from ops.simulator.conversation import Conversation, Item
from ops.simulator.listening import Heard, InputBuffer, SpeechStarted, SpeechStopped
from ops.simulator.output import Pace
from ops.simulator.reply import Fail, Plan, plan, spoken_ms_of, transcript_of
from ops.simulator.response import Response, tokens
from ops.simulator.schema import ClientError
from ops.simulator.speech import Clip, Format

Event = dict[str, Any]
MIN_COMMIT_MS = 100
MAX_TRANSCRIPTIONS = 64  # under way; beyond that the oldest is done at once
MAX_OUT_OF_BAND = 32  # responses beside the conversation, at the same time


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How this model behaves; the same for every session of a server, but for its faults."""

    pace: Pace = field(default_factory=Pace)
    echo_cap_ms: int = 15_000
    session_seconds: float = 3600.0
    fail_code: str | None = None  # every response fails with this code
    refuse_items: int = 0  # so many created items are refused, from the first on
    transcription_ms: float = 0.0  # a turn's transcript comes so much later than the turn
    anonymous_errors: bool = False  # errors don't say which client event they answer, as some of OpenAI's don't


@dataclass(frozen=True, slots=True)
class Close:
    code: int
    reason: str


class Session:
    def __init__(
        self, model: str, behaviour: Behaviour, new_id: Callable[[str], str], *, now: float, wall: float
    ) -> None:
        self.id = new_id("sess")
        self.closing: Close | None = None
        self.conversation = Conversation(new_id("conv"))
        self.config = config.default_session(self.id, model, int(wall + behaviour.session_seconds))
        self._behaviour = behaviour
        self._new_id = new_id
        self._expires_at = now + behaviour.session_seconds
        self._input = InputBuffer(Format.PCM, self.config["audio"]["input"]["turn_detection"])
        self._speech_item_id: str | None = None  # promised by speech_started, used by the commit
        self._active: Response | None = None
        self._out_of_band: dict[str, Response] = {}
        self._unanswered: list[Item] = []
        self._transcribing: deque[tuple[float, Item, Clip, Event]] = deque()  # when it is done, of what, settings
        self._items_to_refuse = behaviour.refuse_items
        self._cached = (0, 0)  # text and audio tokens that an earlier response has seen
        self._has_spoken = False
        self._idle_from_ms: int | None = None  # since when the person is silent after an answer
        self._out: list[Event] = []

    # -- what the shell calls ------------------------------------------------------------------------------------

    @property
    def audio_ms_received(self) -> int:
        return self._input.received_ms

    def open(self) -> list[Event]:
        self._emit("session.created", session=self.config)
        return self.take()

    def receive(self, raw: str | bytes, now: float) -> list[Event]:
        """Take one message; a bad one is answered with an `error` event and changes nothing."""
        if self.closing is not None:
            return []
        event_id = None
        try:
            event = validate.parse(raw)
            event_id = event.get("event_id") if isinstance(event.get("event_id"), str) else None
            validate.check(event)
            _HANDLERS[event["type"]](self, event, now)
        except ClientError as error:
            self.error(error.code, error.message, error.param, event_id, error.kind)
        return self.take()

    def tick(self, now: float) -> list[Event]:
        """Do what is due."""
        if now >= self._expires_at and self.closing is None:
            text = "Your session hit the maximum duration of 60 minutes."
            self.error("session_expired", text)
            self.closing = Close(1001, text)
        if self.closing is None:
            self._finish_transcripts(now)
            for response in self._responses():
                response.advance(now)
            self._forget_finished()
        return self.take()

    def wake_at(self) -> float:
        """When `tick` is due."""
        if self.closing is not None:
            return math.inf
        transcript_at = self._transcribing[0][0] if self._transcribing else math.inf
        return min(self._expires_at, transcript_at, *(each.due for each in self._responses() if each.due is not None))

    def error(
        self, code: str, message: str, param: str | None = None, event_id: str | None = None, kind: str | None = None
    ) -> None:
        """Emit an `error` event with the next batch."""
        if self._behaviour.anonymous_errors:
            event_id = None
        body = {"type": kind or "invalid_request_error", "code": code, "message": message, "param": param}
        self._emit("error", error={**body, "event_id": event_id})

    # -- session and input audio ---------------------------------------------------------------------------------

    def _on_session_update(self, event: Event, now: float) -> None:
        before = self.config["audio"]["input"]
        self.config = config.updated(self.config, event["session"], voice_is_locked=self._has_spoken)
        after = self.config["audio"]["input"]
        if (before["format"], before["turn_detection"]) != (after["format"], after["turn_detection"]):
            self._input.configure(config.input_format(self.config), after["turn_detection"])
            self._speech_item_id = None
        self._emit("session.updated", session=self.config)

    def _on_append(self, event: Event, now: float) -> None:
        for heard in self._input.append(_audio(event["audio"], "audio")):
            self._on_heard(heard, now)
        self._check_idle(now)

    def _on_heard(self, heard: Heard, now: float) -> None:
        detection = self.config["audio"]["input"]["turn_detection"] or {}
        if isinstance(heard, SpeechStarted):
            self._idle_from_ms = None
            self._speech_item_id = self._new_id("item")
            self._emit("input_audio_buffer.speech_started", audio_start_ms=heard.at_ms, item_id=self._speech_item_id)
            if detection.get("interrupt_response") and self._active is not None:
                self._cancel(self._active, "turn_detected")
            return
        item_id = self._speech_item_id or self._new_id("item")
        self._speech_item_id = None
        self._emit("input_audio_buffer.speech_stopped", audio_end_ms=heard.at_ms, item_id=item_id)
        self._commit(item_id, heard, now)
        if detection.get("create_response"):
            self._auto_respond(now)

    def _on_commit(self, event: Event, now: float) -> None:
        if self._input.ms < MIN_COMMIT_MS:
            raise ClientError(
                "input_audio_buffer_commit_empty",
                "Error committing input audio buffer: buffer too small. Expected at least 100ms of audio, "
                f"but buffer only has {self._input.ms:.2f}ms of audio.",
            )
        item_id = self._speech_item_id or self._new_id("item")
        self._speech_item_id = None
        clip = self._input.commit()
        self._commit(item_id, SpeechStopped(self._input.received_ms, clip, clip, clip.ms), now)

    def _commit(self, item_id: str, turn: SpeechStopped, now: float) -> None:
        self._emit("input_audio_buffer.committed", item_id=item_id, previous_item_id=self.conversation.last_id)
        item = self._user_audio_item(item_id, turn)
        self._add(item)
        settings = self.config["audio"]["input"]["transcription"]
        if settings is not None:
            self._transcribing.append((now + self._behaviour.transcription_ms / 1000, item, turn.clip, settings))
            self._finish_transcripts(now)

    def _finish_transcripts(self, now: float) -> None:
        while self._transcribing and (self._transcribing[0][0] <= now or len(self._transcribing) > MAX_TRANSCRIPTIONS):
            _, item, clip, settings = self._transcribing.popleft()
            if item.id in self.conversation:
                self._transcribe(item, clip, settings)

    def _transcribe(self, item: Item, clip: Clip, settings: Event) -> None:
        transcript = transcript_of(item.spoken_ms)
        item.body["content"][0]["transcript"] = transcript
        kind = "conversation.item.input_audio_transcription"
        audio, text = max(clip.ms // 100, 1), -(-len(transcript) // 4)
        usage: Event = {"type": "duration", "seconds": clip.ms / 1000}
        if settings.get("model") != "whisper-1":
            usage = {"type": "tokens", "total_tokens": audio + text, "input_tokens": audio, "output_tokens": text}
            usage["input_token_details"] = {"text_tokens": 0, "audio_tokens": audio}
        self._emit(f"{kind}.delta", item_id=item.id, content_index=0, delta=transcript)
        self._emit(f"{kind}.completed", item_id=item.id, content_index=0, transcript=transcript, usage=usage)

    def _on_clear(self, event: Event, now: float) -> None:
        self._input.clear()
        self._speech_item_id = None
        self._emit("input_audio_buffer.cleared")

    def _check_idle(self, now: float) -> None:
        """`idle_timeout_ms`: when nobody speaks for so long after an answer was played, the model speaks again."""
        timeout = (self.config["audio"]["input"]["turn_detection"] or {}).get("idle_timeout_ms")
        start = self._idle_from_ms
        if timeout is None or start is None or self._active or self._input.received_ms - start < timeout:
            return
        self._idle_from_ms = None
        item_id, end = self._new_id("item"), self._input.received_ms
        self._emit("input_audio_buffer.timeout_triggered", audio_start_ms=start, audio_end_ms=end, item_id=item_id)
        self._emit("input_audio_buffer.committed", item_id=item_id, previous_item_id=self.conversation.last_id)
        silence = Clip(self._input.format, b"")
        self._add(self._user_audio_item(item_id, SpeechStopped(end, silence, silence, 0)))
        self._auto_respond(now)

    # -- items ---------------------------------------------------------------------------------------------------

    def _on_item_create(self, event: Event, now: float) -> None:
        if self._items_to_refuse > 0:
            self._items_to_refuse -= 1
            raise ClientError(
                "server_error", "The simulator was told to refuse this item.", "item", kind="server_error"
            )
        self._add(self._item(event["item"]), event.get("previous_item_id"))

    def _item(self, wanted: Event) -> Item:
        """The item that a client describes, in the shape in which the server keeps it: complete, without audio."""
        body = {"id": wanted.get("id") or self._new_id("item"), "object": "realtime.item", "type": wanted["type"]}
        body["status"] = "completed"
        if wanted["type"] == "function_call":
            call_id = wanted.get("call_id") or self._new_id("call")
            return Item({**body, "name": wanted["name"], "call_id": call_id, "arguments": wanted["arguments"]})
        if wanted["type"] == "function_call_output":
            return Item({**body, "call_id": wanted["call_id"], "output": wanted["output"]})
        item = Item({**body, "role": wanted["role"], "content": []})
        for index, part in enumerate(wanted["content"]):
            kept = {key: value for key, value in part.items() if key not in ("audio", "image_url")}
            if part["type"] == "input_audio":
                kept.setdefault("transcript", None)
            if part["type"] == "input_audio" and "audio" in part:
                clip = Clip(self._input.format, _audio(part["audio"], f"item.content[{index}].audio"))
                item.clips[index] = item.spoken = clip
                item.spoken_ms += clip.ms
            elif wanted["role"] == "user":
                item.spoken_ms += spoken_ms_of(kept.get("text") or kept.get("transcript") or "")
            item.body["content"].append(kept)
        return item

    def _user_audio_item(self, item_id: str, turn: SpeechStopped) -> Item:
        body = {"id": item_id, "object": "realtime.item", "type": "message", "status": "completed", "role": "user"}
        item = Item({**body, "content": [{"type": "input_audio", "transcript": None}]})
        item.clips[0] = turn.clip
        if turn.spoken_ms:
            item.spoken, item.spoken_ms = turn.heard, turn.spoken_ms
        return item

    def _add(self, item: Item, after: str | None = None) -> None:
        before = self.conversation.add(item, after)
        self._emit("conversation.item.added", previous_item_id=before, item=item.wire())
        self._emit("conversation.item.done", previous_item_id=before, item=item.wire())
        if item.kind in ("assistant", "function_call"):
            # A client that rebuilds a conversation: what stands before an answer is answered.
            self._unanswered = []
        else:
            self._unanswered.append(item)

    def _on_item_delete(self, event: Event, now: float) -> None:
        self.conversation.delete(event["item_id"])
        self._unanswered = [each for each in self._unanswered if each.id != event["item_id"]]
        self._emit("conversation.item.deleted", item_id=event["item_id"])

    def _on_item_retrieve(self, event: Event, now: float) -> None:
        self._emit("conversation.item.retrieved", item=self.conversation.retrieve(event["item_id"]).wire_with_audio())

    def _on_item_truncate(self, event: Event, now: float) -> None:
        fields = {key: event[key] for key in ("item_id", "content_index", "audio_end_ms")}
        self.conversation.truncate(**fields)
        self._emit("conversation.item.truncated", **fields)

    # -- responses -----------------------------------------------------------------------------------------------

    def _on_response_create(self, event: Event, now: float) -> None:
        wanted: Event = event.get("response") or {}
        out_of_band = wanted.get("conversation") == "none"
        if out_of_band and len(self._out_of_band) >= MAX_OUT_OF_BAND:
            raise ClientError("rate_limit_exceeded", f"At most {MAX_OUT_OF_BAND} out-of-band responses run at once.")
        if not out_of_band:
            self._refuse_second_response()
        new = self._unanswered
        if wanted.get("input") is not None:
            new = [self._referred(each, index) for index, each in enumerate(wanted["input"])]
        self._respond(wanted, new, out_of_band, now)

    def _referred(self, wanted: Event, index: int) -> Item:
        if wanted["type"] != "item_reference":
            return self._item(wanted)
        item = self.conversation.get(wanted["id"])
        if item is None:
            message = f"Item with item_id '{wanted['id']}' not found."
            raise ClientError("invalid_value", message, f"response.input[{index}].id")
        return item

    def _auto_respond(self, now: float) -> None:
        try:
            self._refuse_second_response()
            self._respond({}, self._unanswered, False, now)
        except ClientError as error:
            self.error(error.code, error.message, error.param)

    def _refuse_second_response(self) -> None:
        if self._active is not None:
            raise ClientError(
                "conversation_already_has_active_response",
                f"Conversation already has an active response in progress: {self._active.id}. "
                "Wait until the response is finished before creating a new one.",
            )

    def _respond(self, wanted: Event, new: list[Item], out_of_band: bool, now: float) -> None:
        settings = config.response_config(self.config, wanted)
        context = tokens(self.conversation) if wanted.get("input") is None else tokens(new)
        response = Response(
            self._new_id,
            self._plan(new, settings),
            settings,
            conversation=None if out_of_band else self.conversation,
            context_tokens=context,
            cached_tokens=(min(context[0], self._cached[0]), min(context[1], self._cached[1])),
            pace=self._behaviour.pace,
            emit=self._emit,
        )
        if out_of_band:
            self._out_of_band[response.id] = response
        else:
            self._active = response
            self._idle_from_ms = None
            if new is self._unanswered:
                self._unanswered = []
                self._cached = context
        response.start(now)

    def _plan(self, new: list[Item], settings: Event) -> Plan:
        code = self._behaviour.fail_code
        if code is not None:
            return Fail(code, "The simulator was told to fail this response.")
        answered = any(item.kind == "function_call_output" for item in self.conversation)
        return plan(new, settings, tool_was_answered=answered, echo_cap_ms=self._behaviour.echo_cap_ms)

    def _on_response_cancel(self, event: Event, now: float) -> None:
        wanted = event.get("response_id")
        response = self._active if wanted is None else next((r for r in self._responses() if r.id == wanted), None)
        if response is None:
            raise ClientError("response_cancel_not_active", "Cancellation failed: no active response found")
        self._cancel(response, "client_cancelled")

    def _cancel(self, response: Response, reason: str) -> None:
        response.cancel(reason)
        self._forget_finished()

    def _on_output_buffer_clear(self, event: Event, now: float) -> None:
        raise ClientError("invalid_value", "output_audio_buffer.clear is only available over WebRTC and SIP.", "type")

    def _responses(self) -> list[Response]:
        return [*self._out_of_band.values(), *((self._active,) if self._active is not None else ())]

    def _forget_finished(self) -> None:
        for response in self._responses():
            self._has_spoken = self._has_spoken or response.sent_clip_ms > 0
            if response.due is None:
                self._out_of_band.pop(response.id, None)
        if self._active is not None and self._active.due is None:
            if self._active.says_audio:
                self._idle_from_ms = self._input.received_ms + self._active.sent_clip_ms
            self._active = None

    # -- out -----------------------------------------------------------------------------------------------------

    def _emit(self, kind: str, **fields: Any) -> None:
        self._out.append({"type": kind, "event_id": self._new_id("event"), **fields})

    def take(self) -> list[Event]:
        out, self._out = self._out, []
        return out


def _audio(encoded: str, path: str) -> bytes:
    try:
        data = binascii.a2b_base64(encoded, strict_mode=True)
    except ValueError:
        data = b""
    if not data:
        got = "invalid base64" if encoded else "empty bytes"
        raise ClientError(
            "invalid_value", f"Invalid '{path}'. Expected base64-encoded audio bytes but got {got}.", path
        )
    return data


_HANDLERS: dict[str, Callable[[Session, Event, float], None]] = {
    "session.update": Session._on_session_update,
    "input_audio_buffer.append": Session._on_append,
    "input_audio_buffer.commit": Session._on_commit,
    "input_audio_buffer.clear": Session._on_clear,
    "conversation.item.create": Session._on_item_create,
    "conversation.item.delete": Session._on_item_delete,
    "conversation.item.retrieve": Session._on_item_retrieve,
    "conversation.item.truncate": Session._on_item_truncate,
    "response.create": Session._on_response_create,
    "response.cancel": Session._on_response_cancel,
    "output_audio_buffer.clear": Session._on_output_buffer_clear,
}
