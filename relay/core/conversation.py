"""What events mean: for the messages of backends, for those who watch, and for what the other leg gets of them.

Pure. It decodes what it must understand and no more, and answers with what goes on to the client and what else follows.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

from relay.core import realtime
from relay.core.actions import Action, Complaint, Log, Note, Send, Side
from relay.core.gate import OWN_EVENTS, Gate
from relay.core.hidden import Hidden
from relay.core.messages import Injection
from relay.core.realtime import ClientEvent, NotAnEvent
from relay.core.transcript import Fact, Transcript

CLIENT_EVENTS: Final = "c."  # stands before the client's event ids on the model leg, so that errors find their cause
NAMELESS_EVENTS: Final = "n."  # and this is the whole id of those that it gave none, where their answer matters here
_OPENING: Final = f"{OWN_EVENTS}open"
_RETRIEVED: Final = "conversation.item.retrieved"

# Events of the client's whose answers must be told from those to backends' events.
_TRACKED: Final = frozenset(
    {
        *("session.update", "input_audio_buffer.commit", "input_audio_buffer.clear", "response.cancel"),
        *("conversation.item.retrieve", "conversation.item.delete", "conversation.item.truncate"),
    }
)

# What goes on to the client (None: nothing), and what else follows.
_Understood = tuple[bytes | None, Iterable[Action]]


class Conversation:
    """One conversation with the model, as its events tell it. ``watched`` says whether ``Log`` actions are wanted."""

    __slots__ = (
        "_apply_seconds",
        "_created",
        "_event_ids",
        "_gate",
        "_hidden",
        "_last_response",
        "_nameless",
        "_opening_until",
        "_told_to_clear",
        "_transcript",
        "watched",
    )

    def __init__(self, gate: Gate, event_ids: Callable[[], str], *, apply_seconds: float, told_to_clear: bool) -> None:
        self.watched = False
        self._gate = gate
        self._hidden = Hidden()
        self._nameless = 0
        self._event_ids = event_ids
        self._apply_seconds = apply_seconds
        self._told_to_clear = told_to_clear
        self._transcript = Transcript()
        self._opening_until: float | None = None  # our session.update is under way
        self._created: dict[str, Any] | None = None  # the session.created that waits for it
        self._last_response = ""

    def expect_opening(self, now: float) -> None:
        """The relay's own ``session.update`` goes first: the client's ``session.created`` shows what it makes."""
        self._opening_until = now + self._apply_seconds

    # The client's events

    def on_client_event(self, event: ClientEvent, now: float, appended: int) -> tuple[bytes | None, bytes | None]:
        """What of a client's event goes to the model now, and what answers it at once (None: nothing).

        ``appended`` is how many messages of audio the client has sent.
        """
        event_id = CLIENT_EVENTS + event.event_id if event.event_id else None
        hidden = self._hidden.refuses(event) if self._hidden else None
        if hidden is not None:
            code = f"{event.type.removeprefix('conversation.').replace('.', '_')}_invalid_item_id"
            return None, self._refusal(event, code, f"Item with item_id {hidden!r} not found.")
        if event.type == "response.create":
            return self._on_client_response(event, event_id or self._nameless_id(), now)
        if event.type not in _TRACKED:
            return event.encoded(event_id), None
        if event.type in {"input_audio_buffer.commit", "input_audio_buffer.clear"}:
            self._gate.turns.on_buffer_taken(appended)
        event_id = event_id or self._nameless_id()
        self._gate.flights.add(event_id, event.type, event.text_of("item_id"), None, now + self._apply_seconds)
        return event.encoded(event_id), None

    def _on_client_response(self, event: ClientEvent, event_id: str, now: float) -> tuple[bytes | None, bytes | None]:
        message = event.encoded(event_id)
        try:
            fields = realtime.decode(message)
        except NotAnEvent:
            return message, None  # the model says what it thinks of it
        response = fields.get("response")
        if isinstance(response, dict) and response.get("conversation") == "none":
            self._gate.flights.add(event_id, event.type, "", None, now + self._apply_seconds)
            return message, None
        goes_on = self._gate.responses.client_wants(fields, event_id, now)
        if goes_on is None:
            text = "Too many responses wait for the one that is active: ask again when it is done."
            return None, self._refusal(event, "too_many_responses", text)
        return (message if goes_on else None), None

    def _nameless_id(self) -> str:
        self._nameless += 1
        return f"{NAMELESS_EVENTS}{self._nameless}"

    def _refusal(self, event: ClientEvent, code: str, text: str) -> bytes:
        cause = event.event_id or None
        return realtime.error_event(self._event_ids(), "invalid_request_error", code, text, cause=cause)

    # The model's events

    def on_event(self, kind: str, message: bytes, now: float, wall: float) -> _Understood:
        """A model's event that is no audio."""
        if kind == _RETRIEVED:
            return self._on_retrieved(message)
        understand = _UNDERSTOOD.get(kind)
        if understand is None:
            return message, self._logged(message)
        try:
            event = realtime.decode(message)
        except NotAnEvent:
            return message, self._logged(message)  # the client says what it thinks of it
        passed, follows = understand(self, message, event, now, wall)
        # an error is its cause's business: it says itself who may see it
        return passed, [*([] if kind == "error" else self._logged(message)), *follows]

    def inject(self, injection: Injection) -> list[Action]:
        """Take a backend's message; the gate says when it goes."""
        if not injection.visible and injection.item is not None:
            self._hidden.add(injection.item_id)
        return [*self._gate.add(injection)]

    def release(self, now: float, wall: float, appended: int) -> list[Action]:
        """What the gate lets through now; see ``Gate.release``."""
        released = self._gate.release(now, wall, appended)
        sends = (Send(Side.MODEL, event) for event in released.events)
        return [*sends, *released.settled, *self._clear(released.silenced)]

    def on_tick(self, now: float) -> tuple[bytes | None, list[Action]]:
        """What the model left without an answer for too long, and what the client gets instead."""
        is_late = self._opening_until is not None and now >= self._opening_until
        return self._without_opening() if is_late else None, [*self._gate.overdue(now)]

    def _on_retrieved(self, message: bytes) -> _Understood:
        """Megabytes of audio, never parsed: whose it is follows from the order of the questions."""
        is_ours = self._gate.flights.awaits(_RETRIEVED)
        settled = self._gate.on_answer(_RETRIEVED)
        if not is_ours and not (self._hidden and self._hidden.hides(realtime.item_id(message))):
            return message, settled
        log = self._logged(realtime.without_audio(message)) if self.watched else []
        return None, [*log, *settled]

    def _on_error(self, message: bytes, event: dict[str, Any], now: float, wall: float) -> _Understood:
        error = event.get("error")
        if not isinstance(error, dict):
            return message, self._logged(message)
        if error.get("event_id") == _OPENING:
            return self._without_opening(), [_complaint(error)]
        own, settled = self._gate.on_error(error)
        if own:
            is_news = not settled and str(error.get("code")) not in _EXPECTED
            return None, [*settled, *([_complaint(error)] if is_news else ())]
        cause, changed = error.get("event_id"), False
        if error.get("code") == "invalid_api_key":  # OpenAI's text quotes part of the key
            error["message"], changed = (
                "The upstream refused the relay's API key; its operator must set a valid one.",
                True,
            )
        log = self._logged(realtime.encode(event) if changed else message)
        if isinstance(cause, str) and cause.startswith(CLIENT_EVENTS):
            error["event_id"], changed = cause.removeprefix(CLIENT_EVENTS), True
        elif isinstance(cause, str) and cause.startswith(NAMELESS_EVENTS):
            error["event_id"], changed = None, True
        return realtime.encode(event) if changed else message, [*log, *settled]

    def _logged(self, message: bytes) -> list[Action]:
        return [Log(message)] if self.watched else []

    def _end_opening(self) -> dict[str, Any] | None:
        created, self._created, self._opening_until = self._created, None, None
        return created

    def _without_opening(self) -> bytes | None:
        """Our session.update came to nothing: the client gets the session as it is."""
        created = self._end_opening()
        return realtime.encode(created) if created is not None else None

    def _on_session(self, message: bytes, event: dict[str, Any], now: float, wall: float) -> _Understood:
        session = event.get("session")
        if not isinstance(session, dict):
            return message, []
        self._gate.turns.on_session(session)
        notes = _notes(self._transcript.on_session(session))
        if event.get("type") == "session.created":
            if self._opening_until is not None:
                self._created = event
                return None, notes
            return message, notes
        if self._opening_until is not None:
            created = self._end_opening()
            return realtime.encode({**(created or event), "type": "session.created", "session": session}), notes
        return message, [*notes, *self._gate.on_answer("session.updated")]

    def _on_item(self, message: bytes, event: dict[str, Any], now: float, wall: float) -> _Understood:
        item = event.get("item")
        if not isinstance(item, dict):
            return message, []
        facts = self._transcript.on_item(item, wall)
        return self._hidden.passed(message, event), [*_notes(facts), *self._gate.on_item(item)]

    def _on_output_item(self, message: bytes, event: dict[str, Any], now: float, wall: float) -> _Understood:
        item = event.get("item")
        if not isinstance(item, dict) or item.get("type") != "function_call":
            return message, []
        if event.get("type") == "response.output_item.done":
            return message, self._gate.on_item(item)
        self._gate.tools.on_started(str(item.get("call_id")), str(event.get("response_id")))
        return message, []

    def _on_part(self, message: bytes, event: dict[str, Any], now: float, wall: float) -> _Understood:
        part, index = event.get("part"), event.get("content_index")
        if isinstance(part, dict) and part.get("type") in ("audio", "output_audio") and isinstance(index, int):
            ids = [str(event.get(key, "")) for key in ("event_id", "response_id", "item_id")]
            self._gate.turns.on_part(ids[2], index, ids_bytes=sum(map(len, ids)))
        return message, []

    def _on_speech(self, message: bytes, event: dict[str, Any], now: float, wall: float) -> _Understood:
        if event.get("type") == "input_audio_buffer.speech_started":
            self._gate.turns.on_speech_started()
        else:
            self._gate.turns.on_speech_stopped(now)
        return message, []

    def _on_buffer(self, message: bytes, event: dict[str, Any], now: float, wall: float) -> _Understood:
        self._gate.turns.on_buffer_empty(now)
        if event.get("type") == "input_audio_buffer.committed":
            self._gate.responses.on_heard()
        return self._hidden.passed(message, event), self._gate.on_answer(str(event.get("type")))

    def _on_item_changed(self, message: bytes, event: dict[str, Any], now: float, wall: float) -> _Understood:
        item_id, kind = str(event.get("item_id")), str(event.get("type"))
        settled = self._gate.on_answer(kind, item_id)
        if kind == "conversation.item.deleted":
            self._gate.on_deleted(item_id)
            facts = self._transcript.on_deleted(item_id)
        else:
            self._gate.turns.on_cut(item_id)
            facts = self._transcript.on_truncated(event)
        return self._hidden.passed(message, event), [*_notes(facts), *settled]

    def _on_transcribed(self, message: bytes, event: dict[str, Any], now: float, wall: float) -> _Understood:
        return self._hidden.passed(message, event), _notes(self._transcript.on_transcribed(event))

    def _on_response_created(self, message: bytes, event: dict[str, Any], now: float, wall: float) -> _Understood:
        response = event.get("response")
        if not isinstance(response, dict):
            return message, []
        if _is_aside(response):
            return message, self._gate.on_answer("response.created")
        return message, self._gate.on_response_created(response)

    def _on_response_done(self, message: bytes, event: dict[str, Any], now: float, wall: float) -> _Understood:
        response = event.get("response")
        if not isinstance(response, dict):
            return message, []
        notes = _notes(self._transcript.on_response_done(response, wall))
        if _is_aside(response):
            return message, [*notes, *self._gate.on_answer("response.done")]  # it may have been cancelled
        self._last_response = str(response.get("id"))
        settled, silenced = self._gate.on_response_done(response)
        return message, [*notes, *settled, *self._clear(silenced)]

    def _clear(self, silenced: bool) -> list[Action]:
        """Tell a client that understands it to stop playing; others go on with what they have."""
        if not silenced or not self._told_to_clear:
            return []
        fields = {"event_id": self._event_ids(), "response_id": self._last_response}
        return [Send(Side.CLIENT, realtime.encode({"type": "output_audio_buffer.cleared", **fields}))]


_Understand = Callable[[Conversation, bytes, dict[str, Any], float, float], _Understood]
# The events that the relay must understand; all others go on unread. ``conversation.item.retrieved`` must never be
# here: it carries megabytes of audio, and the Agents SDKs ask for it at every turn.
_UNDERSTOOD: Final[dict[str, _Understand]] = {
    "error": Conversation._on_error,
    "session.created": Conversation._on_session,
    "session.updated": Conversation._on_session,
    "conversation.item.added": Conversation._on_item,
    "conversation.item.done": Conversation._on_item,
    "conversation.item.created": Conversation._on_item,
    "conversation.item.deleted": Conversation._on_item_changed,
    "conversation.item.truncated": Conversation._on_item_changed,
    "conversation.item.input_audio_transcription.completed": Conversation._on_transcribed,
    "input_audio_buffer.speech_started": Conversation._on_speech,
    "input_audio_buffer.speech_stopped": Conversation._on_speech,
    "input_audio_buffer.committed": Conversation._on_buffer,
    "input_audio_buffer.cleared": Conversation._on_buffer,
    "response.output_item.added": Conversation._on_output_item,
    "response.output_item.done": Conversation._on_output_item,
    "response.content_part.added": Conversation._on_part,
    "response.created": Conversation._on_response_created,
    "response.done": Conversation._on_response_done,
}
# Refusals of our own events that only say that somebody else was faster.
_EXPECTED: Final = frozenset({"response_cancel_not_active", "conversation_already_has_active_response"})


def _is_aside(response: dict[str, Any]) -> bool:
    """Whether a response stands outside the conversation (``conversation: "none"``)."""
    return response.get("conversation_id", "") is None  # where a server leaves the field out it says nothing


def _notes(facts: Iterable[Fact]) -> list[Note]:
    return [Note(name, value) for name, value in facts]


def _complaint(error: dict[str, Any]) -> Complaint:
    return Complaint(str(error.get("code")), str(error.get("message")))


def opening_update(session: dict[str, Any]) -> bytes:
    """Build the ``session.update`` that a call begins with whose session is known beforehand."""
    return realtime.encode({"type": "session.update", "event_id": _OPENING, "session": session})
