"""What one call does with each message: the phases, what is held until the next one, what is counted.

Pure: it gets messages and answers with actions, which the session carries out. Audio that is in its plain form does not
even come here while the call is open (``relay.session`` sends it straight on): of it only counts are known. What the
events mean is ``relay.core.conversation``'s to say.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from relay.core import realtime
from relay.core.actions import Action, End, Passed, Pause, Resume, Send, Side, Sound
from relay.core.conversation import Conversation
from relay.core.endings import Why, ended
from relay.core.frames import Opcode
from relay.core.gate import Gate
from relay.core.messages import Injection
from relay.core.realtime import ClientEvent, NotAnEvent


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
    expects_opening: bool = False  # on_model_opened will get one; the model may speak before it
    told_to_clear: bool = False  # the client understands that it should stop playing what it has buffered


class Bridge:
    """The state of one call. Every method returns what is to be done, in order.

    ``heard`` is set by the session: whether ``Sound`` is wanted.
    """

    __slots__ = (
        "_appends",
        "_deltas",
        "_event_ids",
        "_gate",
        "_held_for_client",
        "_held_for_model",
        "_model_blocked",
        "_passed",
        "_rules",
        "conversation",
        "heard",
        "phase",
    )

    def __init__(self, rules: Rules, event_ids: Callable[[], str], passed: Callable[[], Passed] = Passed) -> None:
        self.phase = Phase.DIALLING
        self.heard = False
        self._rules = rules
        self._event_ids = event_ids
        self._passed = passed
        self._appends = 0  # audio that came through here: of the client's, messages
        self._deltas = (0, 0)  # of the model's, messages and bytes
        self._held_for_model: Hold | None = Hold(rules.hold_items, rules.hold_bytes)
        self._held_for_client: Hold | None = Hold(rules.hold_items, rules.hold_bytes)
        self._gate = Gate(apply_seconds=rules.apply_seconds, max_waiting=rules.inbox_max)
        self.conversation = Conversation(
            self._gate, event_ids, apply_seconds=rules.apply_seconds, told_to_clear=rules.told_to_clear
        )
        self._model_blocked = False
        if rules.expects_opening:
            self.conversation.expect_opening(math.inf)

    def _step(self, step: Step) -> None:
        self.phase = TRANSITIONS[self.phase][step]

    # The client's side

    def on_client_text(self, message: bytes, now: float) -> list[Action]:
        """A text message from the client that is not plain audio in an open call."""
        if self.phase is Phase.ENDED:
            return []
        if realtime.is_whole_append(message):
            return self._on_append(message)
        try:
            event = ClientEvent(message)
        except NotAnEvent as wrong:
            error = realtime.error_event(self._event_ids(), "invalid_request_error", "invalid_json", str(wrong))
            return [Send(Side.CLIENT, error)]
        to_model, to_client = self.conversation.on_client_event(event, now, self._appended)
        answer: list[Action] = [Send(Side.CLIENT, to_client)] if to_client is not None else []
        if to_model is None:
            return answer
        if event.type == "input_audio_buffer.append":
            return self._on_append(to_model)
        return self._to_model(to_model)

    def on_client_binary(self, message: bytes) -> list[Action]:
        """A binary message from the client."""
        if self.phase is Phase.ENDED:
            return []
        if self._rules.binary_client:
            return self._on_append(realtime.append_event(message))
        text = "This path takes JSON events in text frames; raw PCM in binary frames is for /voice."
        error = realtime.error_event(self._event_ids(), "invalid_request_error", "unsupported_data", text)
        return [End(ended(Why.CLIENT_BINARY, "binary frames are for /voice"), error)]

    def _on_append(self, message: bytes) -> list[Action]:
        self._appends += 1
        sound: list[Action] = [Sound(message)] if self.heard else []
        return self._to_model(message) + sound

    def _to_model(self, message: bytes) -> list[Action]:
        if self._held_for_model is None:
            return [Send(Side.MODEL, message)]
        self._held_for_model.put(Send(Side.MODEL, message))
        return [Pause(Side.CLIENT)] if self._held_for_model.full else []

    @property
    def _appended(self) -> int:
        return self._passed().client_messages + self._appends

    # The model's side

    def on_model_opened(self, opening: bytes | None, now: float) -> list[Action]:
        """The model leg is open: ``opening`` (the relay's own first event) goes first, then what was held."""
        self._step(Step.MODEL_OPENED)
        first: list[Action] = []
        if opening is not None:
            self.conversation.expect_opening(now)
            first.append(Send(Side.MODEL, opening))
        held, self._held_for_model = self._held_for_model, None
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
        kind = realtime.event_type(message)
        if kind in realtime.AUDIO_TYPES:
            return self._on_model_audio(message)
        self._listen(now)
        passed, follows = self.conversation.on_event(kind, message, now, wall)
        actions: list[Action] = self._to_client(Send(Side.CLIENT, passed)) if passed is not None else []
        return [*actions, *follows, *self._release(now, wall)]

    def _on_model_audio(self, message: bytes) -> list[Action]:
        messages, size = self._deltas
        self._deltas = (messages + 1, size + len(message))
        audio = realtime.delta_audio(message) if self._rules.binary_audio else None
        send = Send(Side.CLIENT, message) if audio is None else Send(Side.CLIENT, audio, Opcode.BINARY)
        sound: list[Action] = [Sound(message)] if self.heard else []
        return self._to_client(send) + sound

    def _listen(self, now: float) -> None:
        """Look how much audio has gone to the client."""
        passed, (messages, size) = self._passed(), self._deltas
        self._gate.turns.on_appended(passed.client_messages + self._appends)
        self._gate.turns.on_audio(passed.model_messages + messages, passed.model_bytes + size, now)

    def _to_client(self, send: Send) -> list[Action]:
        if self._held_for_client is None:
            return [send]
        self._held_for_client.put(send)
        return [Pause(Side.MODEL)] if self._held_for_client.full else []

    # Messages from backends

    def inject(self, injection: Injection, now: float, wall: float) -> list[Action]:
        """Put a backend's message into the conversation, as soon as it and the model leg allow it."""
        return [*self.conversation.inject(injection), *self._release(now, wall)]

    def on_model_blocked(self, blocked: bool, now: float, wall: float) -> list[Action]:
        """The model leg can no longer, or again, be written: messages of backends wait meanwhile."""
        self._model_blocked = blocked
        return self._release(now, wall)

    @property
    def _is_held_back(self) -> bool:
        return self.phase is not Phase.OPEN or self._model_blocked

    def _release(self, now: float, wall: float) -> list[Action]:
        if not self._gate.is_busy:
            return []
        if self._is_held_back:
            return [*self._gate.expire(wall)]
        self._listen(now)
        return self.conversation.release(now, wall, self._appended)

    def on_tick(self, now: float, wall: float) -> list[Action]:
        """Settle what the model left without an answer for too long, and go on with the next."""
        if self.phase is Phase.ENDED:
            return []
        created, settled = self.conversation.on_tick(now)
        actions: list[Action] = self._to_client(Send(Side.CLIENT, created)) if created is not None else []
        return [*actions, *settled, *self._release(now, wall)]

    def due(self, now: float, wall: float) -> float | None:
        """When ``on_tick`` has something to do, by ``now``'s clock; None: not before something happens."""
        if not self._gate.is_busy:
            return None
        self._listen(now)
        return self._gate.due(now, wall, self._appended, is_held_back=self._is_held_back)

    def on_ended(self) -> list[Send]:
        """The call is over, whatever comes now; what is held for the client still goes, it may say why."""
        self._step(Step.ENDED)
        held, self._held_for_client, self._held_for_model = self._held_for_client, None, None
        return list(held.drain()) if held is not None else []
