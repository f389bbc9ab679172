"""What of a client's events goes to the model, and what is answered here. Pure.

What the model answers is remembered until it has: its answer must be told from those to backends' events, and the event
is said again to another model leg if this one is lost before.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from relay.core import realtime
from relay.core.actions import Action, Log, Note, Send, Side
from relay.core.client_session import ClientSession
from relay.core.flights import OWN, Flight
from relay.core.gate import Gate
from relay.core.hidden import Hidden
from relay.core.locks import Locks, lock
from relay.core.memory import Memory
from relay.core.realtime import ClientEvent, NotAnEvent

CLIENT_EVENTS: Final = "c."  # stands before the client's event ids on the model leg, so that errors find their cause
NAMELESS_EVENTS: Final = "n."  # and this is the whole id of those that it gave none, where their answer matters here

_NOT_ALLOWED: Final = "not_allowed"
# Events whose answers must be told from those to backends' events.
_TRACKED: Final = frozenset(
    {
        *("session.update", "input_audio_buffer.commit", "input_audio_buffer.clear", "response.cancel"),
        *("conversation.item.retrieve", "conversation.item.delete", "conversation.item.truncate"),
        "conversation.item.create",
    }
)
_NAMED_BYTES: Final = 256 * 1024  # of an item that is given an id: a larger one goes as it is, and only once

# What goes on to the model (None: nothing), and what else follows.
_Answer = tuple[bytes | None, list[Action]]


class ClientEvents:
    """The events of one call's client. ``restored`` are the items that this model leg has as text only."""

    __slots__ = (
        "_again",
        "_apply_seconds",
        "_event_ids",
        "_gate",
        "_hidden",
        "_memory",
        "_nameless",
        "_transcription_event",
        "_view",
        "is_rebuilt",
        "locks",
        "restored",
    )

    def __init__(
        self,
        gate: Gate,
        hidden: Hidden,
        memory: Memory,
        view: ClientSession,
        event_ids: Callable[[], str],
        *,
        apply_seconds: float,
    ) -> None:
        self._gate = gate
        self._hidden = hidden
        self._memory = memory
        self._view = view
        self._event_ids = event_ids
        self._apply_seconds = apply_seconds
        self._nameless = 0
        self._transcription_event = ""
        self._again: list[tuple[str, Flight]] = []  # what the model leg did not answer, by event id
        self.restored: frozenset[str] = frozenset()
        self.is_rebuilt = False
        self.locks: Locks | None = None  # of the client that is here, or was last; None: it may say all

    # Who may say what

    def bind(self, locks: Locks | None) -> None:
        """Hold the client that is here now to these locks; what was locked first is so for every browser after it.

        Where nobody knows what was, all is that can be.
        """
        if locks is None:
            self._memory.locked = None  # what it sets from here on no browser after it may change
        else:
            if self._memory.locked is None:
                self._memory.locked = locks.names | locks.lockable
            locks = replace(locks, names=self._memory.locked)
        self.locks = locks

    @property
    def session_type(self) -> object:
        """The session's type, None if it is not known."""
        return self._memory.session.get("type") or self._view.opening_type

    def on_backend(self, event: dict[str, Any] | None) -> None:
        """A backend sends an event: what it sets of the session is its own from then on, where such fields are."""
        session = event.get("session") if event is not None else None
        if self.locks is not None and isinstance(session, dict):
            self._memory.locked = self.locks.names | lock(self.locks.lockable, session)
            self.bind(self.locks)

    # What it says

    def on_event(self, event: ClientEvent, now: float, appended: int) -> _Answer:
        """Take an event; ``appended`` is how many messages of audio the client has sent."""
        if self.locks is not None:
            trouble = self.locks.judge(event, self.session_type)
            if trouble is not None:
                return None, self._refusal(event, _NOT_ALLOWED, trouble)
        hidden = self._hidden.refuses(event) if self._hidden else None
        if hidden is not None:
            code = f"{event.type.removeprefix('conversation.').replace('.', '_')}_invalid_item_id"
            return None, self._refusal(event, code, f"Item with item_id {hidden!r} not found.")
        if self._is_answered_here(event):
            return None, self._truncated(event)
        event_id = CLIENT_EVENTS + event.event_id if event.event_id else None
        if event.type not in _TRACKED and event.type != "response.create":
            return event.encoded(event_id), []
        event_id = event_id or self._nameless_id()
        match event.type:
            case "response.create":
                return self._on_response(event, event_id, now)
            case "session.update":
                return self._on_update(event, event_id, now)
            case "input_audio_buffer.commit" | "input_audio_buffer.clear":
                self._gate.turns.on_buffer_taken(appended)
        return self._tracked(event, event_id, event.encoded(event_id), now), []

    def refuse_audio(self) -> bytes:
        """Build the answer to audio that the client may not send."""
        text = "This key may not send audio."
        return realtime.error_event(self._event_ids(), "invalid_request_error", _NOT_ALLOWED, text)

    # The relay's own

    def switch_on_transcription(self, session: dict[str, Any], now: float) -> list[Action]:
        """Have what people say written down, for the call's memory."""
        missing = self._view.missing(session)
        if missing is None or self._gate.flights.expects_own("session.updated"):
            return []
        self._transcription_event = event_id = self._gate.event_id()
        self._gate.flights.add(event_id, "session.update", "", OWN, now + self._apply_seconds)
        return [Send(Side.MODEL, realtime.encode({"type": "session.update", "event_id": event_id, "session": missing}))]

    def on_refused(self, event_id: str) -> None:
        """The model refuses an event: the transcription, if it was that."""
        if event_id == self._transcription_event:
            self._view.give_up_transcription()

    # Another model leg

    def on_model_gone(self, again: list[tuple[str, Flight]]) -> None:
        """The model leg is lost: ``again`` is what it did not answer."""
        self._again += again

    def say_again(self, now: float) -> list[Action]:
        """Say to another model leg what the one before did not answer."""
        again, self._again = self._again, []
        actions: list[Action] = []
        for event_id, flight in again:
            event = ClientEvent(flight.again)
            if self._is_answered_here(event):
                actions += self._truncated(event)
            else:
                self._gate.flights.put_again(event_id, flight, now + self._apply_seconds)
                actions.append(Send(Side.MODEL, flight.again))
        return actions

    def _is_answered_here(self, event: ClientEvent) -> bool:
        if event.type != "conversation.item.truncate":
            return False
        item_id = event.text_of("item_id")
        # What it has as text only, and what it never had: of the leg, or the node, before.
        return item_id in self.restored or (self.is_rebuilt and not self._memory.has(item_id))

    # What the events ask for

    def _tracked(self, event: ClientEvent, event_id: str, message: bytes, now: float) -> bytes:
        item_id = event.text_of("item_id")
        if event.type == "conversation.item.create":
            item_id = event.named_item(self._event_ids().replace("event_", "item_"), largest=_NAMED_BYTES)
            message = event.encoded(event_id)
        self._gate.flights.add(event_id, event.type, item_id, None, now + self._apply_seconds, message)
        return message

    def _on_update(self, event: ClientEvent, event_id: str, now: float) -> _Answer:
        message = event.encoded(event_id)
        update = _decoded(message).get("session")
        if not isinstance(update, dict):
            return self._tracked(event, event_id, message, now), []  # the model says what it thinks of it
        session = self._memory.session
        self._view.on_update(update)
        is_known = not self._gate.flights.expects("session.updated")  # else another one is changing it
        changed = self._view.changed(update, session) if is_known else update
        if self.locks is not None and is_known and session and not self._view.is_opening and not _asks(update):
            changed = None  # what it asked for is locked: the model has nothing to say to it
        if changed is None:
            return None, [Send(Side.CLIENT, self._view.updated(session))]
        if changed != update:
            message = realtime.encode({"type": event.type, "event_id": event_id, "session": changed})
        return self._tracked(event, event_id, message, now), []

    def _on_response(self, event: ClientEvent, event_id: str, now: float) -> _Answer:
        message = event.encoded(event_id)
        fields = _decoded(message)
        if not fields:
            return message, []  # the model says what it thinks of it
        response = fields.get("response")
        if isinstance(response, dict) and response.get("conversation") == "none":
            return self._tracked(event, event_id, message, now), []
        goes_on = self._gate.responses.client_wants(fields, event_id, now)
        if goes_on is None:
            text = "Too many responses wait for the one that is active: ask again when it is done."
            return None, self._refusal(event, "too_many_responses", text)
        return (message if goes_on else None), []

    def _truncated(self, event: ClientEvent) -> list[Action]:
        """The model has only the words of this item, no audio to cut: what was heard is remembered for the next leg."""
        fields = _decoded(event.encoded())
        answer = {key: fields.get(key) for key in ("item_id", "content_index", "audio_end_ms")}
        answer |= {"type": "conversation.item.truncated", "event_id": self._event_ids()}
        self._gate.turns.on_cut(event.text_of("item_id"))
        told = realtime.encode(answer)
        return [Send(Side.CLIENT, told), Log(told), *(Note(*fact) for fact in self._memory.on_truncated(answer))]

    def _nameless_id(self) -> str:
        self._nameless += 1
        return f"{NAMELESS_EVENTS}{self._nameless}"

    def _refusal(self, event: ClientEvent, code: str, text: str) -> list[Action]:
        cause = event.event_id or None
        error = realtime.error_event(self._event_ids(), "invalid_request_error", code, text, cause=cause)
        return [Send(Side.CLIENT, error)]


def _asks(update: dict[str, Any]) -> bool:
    """Whether an update asks for anything."""
    return bool(update.keys() - {"type"})


def _decoded(message: bytes) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = realtime.decode(message)
    except NotAnEvent:
        return {}
    return fields
