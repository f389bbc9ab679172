"""Reads server-sent events, and tells a call's Realtime events to a person: who did what, a line each. Pure.

Pieces of what comes whole later (deltas, parts) are left out; an event that is not known here is named, never hidden.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from relay.shell.words import duration, entry, plain

_EVENT_BYTES: Final = 4 << 20
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_REMEMBERED: Final = 256  # tool calls whose names are known when their results come
_INSTRUCTIONS: Final = 80


class BadStream(Exception):
    """What comes is no event stream, or one event is larger than any that the relay sends."""


class Sent(NamedTuple):
    """One event of a stream. `id` is the last that was given, as the standard has it."""

    id: str
    type: str
    data: str


class Decoder:
    """Cuts a `text/event-stream` into events (WHATWG HTML, section 9.2.6)."""

    def __init__(self, most_bytes: int = _EVENT_BYTES) -> None:
        self._most_bytes = most_bytes
        self._rest = b""
        self._id = ""
        self._type = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, data: bytes) -> list[Sent]:
        """Take what came; return the events that are complete with it.

        Raises:
            BadStream: an event is larger than the limit.
        """
        held = self._rest + data
        tail = held[len(held) - held.endswith(b"\r") :]  # the other half of a line's end may be still to come
        *lines, rest = _LINE_END.split(held[: len(held) - len(tail)])
        self._rest = rest + tail
        sent = [event for line in lines if (event := self._line(line)) is not None]
        if self._size + len(self._rest) > self._most_bytes:
            raise BadStream(f"an event of more than {self._most_bytes} bytes")
        return sent

    def _line(self, line: bytes) -> Sent | None:
        if not line:
            event = Sent(self._id, self._type or "message", "\n".join(self._data)) if self._data else None
            self._type, self._data, self._size = "", [], 0
            return event
        name, _, value = line.partition(b":")
        text = value.removeprefix(b" ").decode(errors="replace")
        if name == b"data":
            self._data.append(text)
            self._size += len(value)
        elif name == b"event":
            self._type = text
        elif name == b"id" and "\0" not in text:
            self._id = text
        return None


class Told(NamedTuple):
    """A line about a call: who, and what they said or did."""

    who: str
    what: str


class Narrator:
    """Tells the events of one call in their order; remembers only what the next line needs."""

    def __init__(self) -> None:
        self._session: Mapping[str, Any] = {}
        self._tools: OrderedDict[str, str] = OrderedDict()  # names by the ids of their calls
        self._speech_from_ms: int | None = None
        self._spoken_item = ""

    def tell(self, event: Mapping[str, Any]) -> Told | None:
        """Return the line for an event; None for one that says nothing new."""
        kind = str(event.get("type"))
        if kind in _SILENT or kind.endswith(".delta"):
            return None
        teller = _TELLERS.get(kind)
        return Told("event", plain(kind)) if teller is None else teller(self, event)

    # -- session and speech ----------------------------------------------------------------------------------------

    def _session_created(self, event: Mapping[str, Any]) -> Told:
        self._session = session = _object(event.get("session"))
        return Told("session", "; ".join(_settings(session)) or "begins")

    def _session_updated(self, event: Mapping[str, Any]) -> Told | None:
        before, self._session = self._session, _object(event.get("session"))
        if before == self._session:
            return None
        was = set(_settings(before))
        changed = [words for words in _settings(self._session) if words not in was]
        return Told("session", "; ".join(changed) or "changed")

    def _speech_started(self, event: Mapping[str, Any]) -> Told:
        start = event.get("audio_start_ms")
        self._speech_from_ms = start if isinstance(start, int) else None
        return Told("user", "(starts to speak)")

    def _speech_stopped(self, event: Mapping[str, Any]) -> Told:
        start, end = self._speech_from_ms, event.get("audio_end_ms")
        self._spoken_item = str(event.get("item_id"))
        if start is None or not isinstance(end, int):
            return Told("user", "(stops speaking)")
        return Told("user", f"(spoke for {duration((end - start) / 1000)})")

    def _committed(self, event: Mapping[str, Any]) -> Told | None:
        return None if event.get("item_id") == self._spoken_item else Told("user", "(sent what was recorded)")

    def _timeout(self, _: Mapping[str, Any]) -> Told:
        return Told("user", "(is silent for so long that the model speaks again)")

    def _transcribed(self, event: Mapping[str, Any]) -> Told:
        return Told("user", plain(str(event.get("transcript") or "(no words)").strip()))

    def _not_transcribed(self, event: Mapping[str, Any]) -> Told:
        return Told("user", f"(could not be transcribed: {_error(_object(event.get('error')))})")

    # -- items and responses ---------------------------------------------------------------------------------------

    def _item_added(self, event: Mapping[str, Any]) -> Told | None:
        item = _object(event.get("item"))
        if item.get("type") == "message":
            words = _words(item)
            return (
                Told(plain(str(item.get("role"))), plain(words)) if words else None
            )  # speech comes with its transcript
        if item.get("type") == "function_call":
            return self._tool_call(item) if item.get("arguments") else None  # else the response is still writing it
        if item.get("type") == "function_call_output":
            return Told(*entry(item, self._tools))
        return Told("item", plain(str(item.get("type"))))

    def _output_done(self, event: Mapping[str, Any]) -> Told | None:
        item = _object(event.get("item"))
        if item.get("type") != "function_call":
            return None
        return self._tool_call(item)

    def _tool_call(self, item: Mapping[str, Any]) -> Told:
        name, tool_call = str(item.get("name")), str(item.get("call_id"))
        self._tools[tool_call] = name
        if len(self._tools) > _REMEMBERED:
            self._tools.popitem(last=False)
        cut = "" if item.get("status") != "incomplete" else ", cut off"
        return Told("tool", f"{plain(name)}({plain(str(item.get('arguments') or ''))}) as {plain(tool_call)}{cut}")

    def _spoken(self, event: Mapping[str, Any]) -> Told | None:
        return Told("assistant", plain(str(event["transcript"]))) if event.get("transcript") else None

    def _written(self, event: Mapping[str, Any]) -> Told | None:
        return Told("assistant", plain(str(event["text"]))) if event.get("text") else None

    def _response_done(self, event: Mapping[str, Any]) -> Told | None:
        response = _object(event.get("response"))
        details = _object(response.get("status_details"))
        match response.get("status"):
            case "cancelled":
                return Told("assistant", f"(cut off: {plain(str(details.get('reason') or 'cancelled'))})")
            case "incomplete":
                return Told("assistant", f"(not finished: {plain(str(details.get('reason') or 'incomplete'))})")
            case "failed":
                return Told("error", f"the response failed: {_error(_object(details.get('error')))}")
            case _:
                return None

    def _truncated(self, event: Mapping[str, Any]) -> Told:
        end = event.get("audio_end_ms")
        heard = f" {duration(end / 1000)}" if isinstance(end, int) else ""
        return Told("assistant", f"(was heard for{heard} only)" if heard else "(was cut short)")

    def _deleted(self, event: Mapping[str, Any]) -> Told:
        return Told("item", f"{plain(str(event.get('item_id')))} was deleted")

    def _failed(self, event: Mapping[str, Any]) -> Told:
        return Told("error", _error(_object(event.get("error"))))

    # -- the relay's own -------------------------------------------------------------------------------------------

    def _gap(self, _: Mapping[str, Any]) -> Told:
        return Told("relay", "(events are missing here)")

    def _moving(self, _: Mapping[str, Any]) -> Told:
        return Told("relay", "(the call moves to another node)")

    def _resumed(self, _: Mapping[str, Any]) -> Told:
        return Told("relay", "(the call goes on)")


_TELLERS: Final[Mapping[str, Callable[[Narrator, Mapping[str, Any]], Told | None]]] = {
    "session.created": Narrator._session_created,
    "session.updated": Narrator._session_updated,
    "input_audio_buffer.speech_started": Narrator._speech_started,
    "input_audio_buffer.speech_stopped": Narrator._speech_stopped,
    "input_audio_buffer.committed": Narrator._committed,
    "input_audio_buffer.timeout_triggered": Narrator._timeout,
    "conversation.item.input_audio_transcription.completed": Narrator._transcribed,
    "conversation.item.input_audio_transcription.failed": Narrator._not_transcribed,
    "conversation.item.added": Narrator._item_added,
    "conversation.item.truncated": Narrator._truncated,
    "conversation.item.deleted": Narrator._deleted,
    "response.output_item.done": Narrator._output_done,
    "response.output_audio_transcript.done": Narrator._spoken,
    "response.output_text.done": Narrator._written,
    "response.done": Narrator._response_done,
    "error": Narrator._failed,
    "relay.gap": Narrator._gap,
    "relay.moving": Narrator._moving,
    "relay.resumed": Narrator._resumed,
}
_SILENT: Final = frozenset(
    {
        "conversation.created",
        "conversation.item.created",
        "conversation.item.done",
        "conversation.item.retrieved",
        "conversation.item.input_audio_transcription.segment",
        "input_audio_buffer.cleared",
        "output_audio_buffer.started",
        "output_audio_buffer.stopped",
        "output_audio_buffer.cleared",
        "rate_limits.updated",
        "relay.started",
        "response.created",
        "response.output_item.added",
        "response.content_part.added",
        "response.content_part.done",
        "response.output_audio.done",
        "response.function_call_arguments.done",
    }
)


def _settings(session: Mapping[str, Any]) -> list[str]:
    """What a person wants to know of a session, one phrase each."""
    audio = _object(session.get("audio"))
    hears, speaks = _object(audio.get("input")), _object(audio.get("output"))
    tools = session.get("tools") or []
    names = [str(_object(tool).get("name") or _object(tool).get("server_label")) for tool in tools]
    voice = speaks.get("voice")
    phrases = {
        "model": session.get("model"),
        "voice": _object(voice).get("id") or voice,
        "tools": ", ".join(names) if isinstance(tools, list) else None,
        "transcription": _object(hears.get("transcription")).get("model"),
        "turn detection": _object(hears.get("turn_detection")).get("type"),
    }
    said = [f"{name} {plain(str(value))}" for name, value in phrases.items() if value]
    if session.get("instructions"):
        said.append(f"instructions “{plain(str(session['instructions']), _INSTRUCTIONS)}”")
    return said


def _words(item: Mapping[str, Any]) -> str:
    content = item.get("content")
    parts = [_object(part) for part in content] if isinstance(content, list) else []
    said = [str(part.get("text") or part.get("transcript") or "") for part in parts]
    images = ["(an image)"] if any(part.get("type") == "input_image" for part in parts) else []
    return " ".join([each for each in said if each] + images)


def _error(error: Mapping[str, Any]) -> str:
    return plain(": ".join(str(error[key]) for key in ("code", "message") if error.get(key)) or "no reason given")


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
