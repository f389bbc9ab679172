"""What one call does with each message and each rare event: the phases, what is held, whose an event is.

Pure: it gets messages and answers with actions, which the session carries out. Audio that is in its plain form does not
even come here while the call is open (``relay.session`` sends it straight on).
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final, NamedTuple

from relay.core import realtime
from relay.core.endings import Ending, Why, ended
from relay.core.frames import Opcode
from relay.core.injection import OWN_EVENTS, Injection, Injections, Settled
from relay.core.realtime import ClientEvent, NotAnEvent

CLIENT_EVENTS: Final = "c."  # stands before the client's event ids on the model leg, so that errors find their cause


class Side(Enum):
    """A leg of the call, as the other leg sees it."""

    CLIENT = auto()
    MODEL = auto()


class Phase(Enum):
    """Where a call is."""

    DIALLING = auto()  # no model leg yet: what the client sends is held
    ANNOUNCING = auto()  # the model leg is open, the call not registered yet: what the model sends is held
    OPEN = auto()
    ENDED = auto()


class Step(Enum):
    """What moves a call from phase to phase."""

    MODEL_OPENED = auto()
    ANNOUNCED = auto()
    ENDED = auto()


TRANSITIONS: Final[dict[Phase, dict[Step, Phase]]] = {
    Phase.DIALLING: {Step.MODEL_OPENED: Phase.ANNOUNCING, Step.ENDED: Phase.ENDED},
    Phase.ANNOUNCING: {Step.ANNOUNCED: Phase.OPEN, Step.ENDED: Phase.ENDED},
    Phase.OPEN: {Step.ENDED: Phase.ENDED},
    Phase.ENDED: {Step.ENDED: Phase.ENDED},
}


class Send(NamedTuple):
    """Send a message on a leg."""

    side: Side
    payload: bytes
    kind: Opcode = Opcode.TEXT


class Pause(NamedTuple):
    """Stop reading a leg: what it sent is held up to the limit."""

    side: Side


class Resume(NamedTuple):
    """Read the leg again."""

    side: Side


class End(NamedTuple):
    """End the call; ``error`` is an event that the client gets first."""

    ending: Ending
    error: bytes | None = None


class Complaint(NamedTuple):
    """The model refused an event of the relay's own that no message stands behind: for the node's log."""

    code: str
    message: str


Action = Send | Pause | Resume | End | Settled | Complaint


# What goes on to the client (None: nothing), and what else follows.
_Understood = tuple[bytes | None, Sequence[Settled | Complaint]]


class Hold:
    """Messages that wait for the other leg, in order.

    The limits (items, bytes) protect the node's memory. Over them the sender is paused, nothing is dropped: what may
    still come is what its read buffer holds.
    """

    __slots__ = ("_bytes", "_items", "_max_bytes", "_max_items")

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._max_items, self._max_bytes = max_items, max_bytes
        self._items: deque[Send] = deque()
        self._bytes = 0

    @property
    def full(self) -> bool:
        """Whether the sender must pause."""
        return len(self._items) >= self._max_items or self._bytes >= self._max_bytes

    def put(self, send: Send) -> None:
        """Keep a message."""
        self._items.append(send)
        self._bytes += len(send.payload)

    def drain(self) -> deque[Send]:
        """Return what was held, oldest first, and forget it."""
        items, self._items, self._bytes = self._items, deque(), 0
        return items


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for every call of a node, and for this call's client."""

    hold_items: int = 4096
    hold_bytes: int = 1 << 20
    apply_seconds: float = 10.0
    inbox_max: int = 256
    binary_client: bool = False  # /voice: a binary frame is raw PCM
    binary_audio: bool = False  # /voice?audio=binary: the model's audio goes to the client as raw PCM


class Bridge:
    """The decisions of one call."""

    __slots__ = (
        "_event_ids",
        "_held_for_client",
        "_held_for_model",
        "_injections",
        "_model_blocked",
        "_rules",
        "phase",
    )

    def __init__(self, rules: Rules, event_ids: Callable[[], str]) -> None:
        self.phase = Phase.DIALLING
        self._rules = rules
        self._event_ids = event_ids
        self._held_for_model: Hold | None = Hold(rules.hold_items, rules.hold_bytes)
        self._held_for_client: Hold | None = Hold(rules.hold_items, rules.hold_bytes)
        self._injections = Injections(apply_seconds=rules.apply_seconds, max_waiting=rules.inbox_max)
        self._model_blocked = False

    def _step(self, step: Step) -> None:
        self.phase = TRANSITIONS[self.phase][step]

    # The client's side

    def on_client_text(self, message: bytes) -> list[Action]:
        """A text message from the client that is not plain audio in an open call."""
        if self.phase is Phase.ENDED:
            return []
        if realtime.is_whole_append(message):
            return self._to_model(message)
        try:
            event = ClientEvent(message)
        except NotAnEvent as wrong:
            return [Send(Side.CLIENT, self._error("invalid_json", str(wrong)))]
        return self._to_model(event.encoded(CLIENT_EVENTS + event.event_id if event.event_id else None))

    def on_client_binary(self, message: bytes) -> list[Action]:
        """A binary message from the client."""
        if self.phase is Phase.ENDED:
            return []
        if self._rules.binary_client:
            return self._to_model(realtime.append_event(message))
        text = "This path takes JSON events in text frames; raw PCM in binary frames is for /voice."
        error = self._error("unsupported_data", text)
        return [End(ended(Why.CLIENT_BINARY, "binary frames are for /voice"), error)]

    def _to_model(self, message: bytes) -> list[Action]:
        if self._held_for_model is None:
            return [Send(Side.MODEL, message)]
        self._held_for_model.put(Send(Side.MODEL, message))
        return [Pause(Side.CLIENT)] if self._held_for_model.full else []

    # The model's side

    def on_model_opened(self, opening: bytes | None) -> list[Action]:
        """The model leg is open: ``opening`` (the relay's own first event) goes first, then what was held."""
        self._step(Step.MODEL_OPENED)
        held, self._held_for_model = self._held_for_model, None
        first: list[Action] = [Send(Side.MODEL, opening)] if opening is not None else []
        return [*first, *(held.drain() if held is not None else ()), Resume(Side.CLIENT)]

    def on_announced(self, started: bytes | None, now: float, wall: float) -> list[Action]:
        """The call is registered: ``started`` (for clients that know relay events) goes first, then what was held."""
        self._step(Step.ANNOUNCED)
        held, self._held_for_client = self._held_for_client, None
        first: list[Action] = [Send(Side.CLIENT, started)] if started is not None else []
        return [*first, *(held.drain() if held is not None else ()), Resume(Side.MODEL), *self._release(now, wall)]

    def on_model_text(self, message: bytes, now: float, wall: float) -> list[Action]:
        """A text message from the model that is not plain audio in an open call."""
        if self.phase is Phase.ENDED:
            return []
        if self._rules.binary_audio:
            audio = realtime.delta_audio(message)
            if audio is not None:
                return self._to_client(Send(Side.CLIENT, audio, Opcode.BINARY))
        understand = _UNDERSTOOD.get(realtime.event_type(message))
        if understand is None:
            return self._to_client(Send(Side.CLIENT, message))
        try:
            event = realtime.decode(message)
        except NotAnEvent:
            return self._to_client(Send(Side.CLIENT, message))  # the client says what it thinks of it
        passed, follows = understand(self, message, event)
        actions: list[Action] = self._to_client(Send(Side.CLIENT, passed)) if passed is not None else []
        return [*actions, *follows, *self._release(now, wall)]

    def _to_client(self, send: Send) -> list[Action]:
        if self._held_for_client is None:
            return [send]
        self._held_for_client.put(send)
        return [Pause(Side.MODEL)] if self._held_for_client.full else []

    def _on_error(self, message: bytes, event: dict[str, Any]) -> _Understood:
        error = event.get("error")
        if not isinstance(error, dict):
            return message, []
        own, settled = self._injections.on_error(error)
        if own:
            if settled:
                return None, settled
            return None, [Complaint(str(error.get("code")), str(error.get("message")))]
        cause, changed = error.get("event_id"), False
        if isinstance(cause, str) and cause.startswith(CLIENT_EVENTS):
            error["event_id"], changed = cause.removeprefix(CLIENT_EVENTS), True
        if error.get("code") == "invalid_api_key":  # OpenAI's text quotes part of the key
            error["message"], changed = (
                "The upstream refused the relay's API key; its operator must set a valid one.",
                True,
            )
        return realtime.encode(event) if changed else message, settled

    def _on_item(self, message: bytes, event: dict[str, Any]) -> _Understood:
        item = event.get("item")
        return message, self._injections.on_item(item) if isinstance(item, dict) else []

    def _on_response_created(self, message: bytes, event: dict[str, Any]) -> _Understood:
        response = _of_conversation(event)
        if response is not None:
            self._injections.on_response_created(response)
        return message, []

    def _on_response_done(self, message: bytes, event: dict[str, Any]) -> _Understood:
        response = _of_conversation(event)
        return message, self._injections.on_response_done(response) if response is not None else []

    # Messages from backends

    def inject(self, injection: Injection, now: float, wall: float) -> list[Action]:
        """Put a backend's message into the conversation, at once if the model leg can take it."""
        self._injections.add(injection)
        return self._release(now, wall)

    def on_model_blocked(self, blocked: bool, now: float, wall: float) -> list[Action]:
        """The model leg can no longer, or again, be written: messages of backends wait meanwhile."""
        self._model_blocked = blocked
        return self._release(now, wall)

    def _release(self, now: float, wall: float) -> list[Action]:
        if self.phase is not Phase.OPEN or self._model_blocked:
            return []
        events, settled = self._injections.release(now, wall)
        return [*(Send(Side.MODEL, event) for event in events), *settled]

    def on_tick(self, now: float, wall: float) -> list[Action]:
        """Settle the messages that the model left without an answer for too long, and go on with the next."""
        return [*self._injections.overdue(now), *self._release(now, wall)]

    def on_ended(self) -> list[Send]:
        """The call is over, whatever comes now; what is held for the client still goes, it may say why."""
        self._step(Step.ENDED)
        held, self._held_for_client, self._held_for_model = self._held_for_client, None, None
        return list(held.drain()) if held is not None else []

    def _error(self, code: str, text: str) -> bytes:
        return realtime.error_event(self._event_ids(), "invalid_request_error", code, text)


_Understand = Callable[[Bridge, bytes, dict[str, Any]], _Understood]
# The events that the relay must understand; all others go on unread. ``conversation.item.retrieved`` must never be
# here: it carries megabytes of audio, and the Agents SDKs ask for it at every turn.
_UNDERSTOOD: Final[dict[str, _Understand]] = {
    "error": Bridge._on_error,
    "conversation.item.added": Bridge._on_item,
    "conversation.item.done": Bridge._on_item,
    "conversation.item.created": Bridge._on_item,
    "response.output_item.done": Bridge._on_item,
    "response.created": Bridge._on_response_created,
    "response.done": Bridge._on_response_done,
}


def _of_conversation(event: dict[str, Any]) -> dict[str, Any] | None:
    """Return the event's response unless it stands outside the conversation (``conversation: "none"``)."""
    response = event.get("response")
    # null says that it stands outside; where a server leaves the field out it says nothing
    return response if isinstance(response, dict) and response.get("conversation_id", "") is not None else None


def opening_update(session: dict[str, Any]) -> bytes:
    """Build the ``session.update`` that a /voice call begins with."""
    return realtime.encode({"type": "session.update", "event_id": f"{OWN_EVENTS}open", "session": session})
