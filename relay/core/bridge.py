"""What one call does with each message: the phases, what is held until the next one, what is counted.

Pure: it gets messages and answers with actions, which the session carries out. Audio that is in its plain form does not
even come here while the call is open (``relay.session`` sends it straight on): of it only counts are known. What the
events mean is ``relay.core.conversation``'s to say.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

from relay.core import realtime
from relay.core.actions import Action, End, Passed, Pause, Resume, Send, Side, Sound
from relay.core.conversation import Conversation, Gone
from relay.core.endings import Why, ended
from relay.core.frames import Opcode
from relay.core.gate import Gate
from relay.core.locks import Locks
from relay.core.messages import Injection
from relay.core.realtime import ClientEvent, NotAnEvent


class Phase(Enum):
    """Where a call is: whether it has a model leg, and whether its client is there."""

    DIALLING = auto()  # no model leg yet: what the client sends is held
    ANNOUNCING = auto()  # the model leg is open, the call not registered yet: what the model sends is held
    OPEN = auto()
    REDIALLING = auto()  # the model leg is lost: what the client sends is held
    AWAY = auto()  # the client is gone and may come back: what the model sends is held
    ALONE = auto()  # both
    ENDED = auto()

    @property
    def has_model(self) -> bool:
        """Whether there is a model leg."""
        return self in {Phase.ANNOUNCING, Phase.OPEN, Phase.AWAY}


class Step(Enum):
    """What moves a call from phase to phase."""

    MODEL_OPENED = auto()
    ANNOUNCED = auto()
    MODEL_LOST = auto()
    CLIENT_LOST = auto()
    CLIENT_BACK = auto()
    ENDED = auto()


TRANSITIONS: Final[dict[Phase, dict[Step, Phase]]] = {
    Phase.DIALLING: {Step.MODEL_OPENED: Phase.ANNOUNCING, Step.ENDED: Phase.ENDED},
    Phase.ANNOUNCING: {Step.ANNOUNCED: Phase.OPEN, Step.MODEL_LOST: Phase.DIALLING, Step.ENDED: Phase.ENDED},
    Phase.OPEN: {Step.MODEL_LOST: Phase.REDIALLING, Step.CLIENT_LOST: Phase.AWAY, Step.ENDED: Phase.ENDED},
    Phase.REDIALLING: {Step.MODEL_OPENED: Phase.OPEN, Step.CLIENT_LOST: Phase.ALONE, Step.ENDED: Phase.ENDED},
    Phase.AWAY: {Step.CLIENT_BACK: Phase.OPEN, Step.MODEL_LOST: Phase.ALONE, Step.ENDED: Phase.ENDED},
    Phase.ALONE: {Step.MODEL_OPENED: Phase.AWAY, Step.CLIENT_BACK: Phase.REDIALLING, Step.ENDED: Phase.ENDED},
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

    def __len__(self) -> int:
        return len(self._items)

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
    transcription: Mapping[str, Any] | None = None  # what is switched on for the call's memory; None: nothing
    redials: bool = False  # a model leg that ends is replaced
    locks: Locks | None = None  # what the client may not say, and is not shown; None: nothing


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
        "conversation",
        "heard",
        "phase",
        "rules",
    )

    def __init__(self, rules: Rules, event_ids: Callable[[], str], passed: Callable[[], Passed] = Passed) -> None:
        self.phase = Phase.DIALLING
        self.heard = False
        self.rules = rules
        self._event_ids = event_ids
        self._passed = passed
        self._appends = (0, 0)  # audio that came through here: of the client's, messages and bytes
        self._deltas = (0, 0)  # of the model's, messages and bytes
        self._held_for_model: Hold | None = Hold(rules.hold_items, rules.hold_bytes)
        self._held_for_client: Hold | None = Hold(rules.hold_items, rules.hold_bytes)
        self._gate = Gate(apply_seconds=rules.apply_seconds, max_waiting=rules.inbox_max)
        self.conversation = Conversation(
            self._gate,
            event_ids,
            apply_seconds=rules.apply_seconds,
            told_to_clear=rules.told_to_clear,
            transcription=rules.transcription,
            hides_expiry=rules.redials,
            locks=rules.locks,
        )
        self._model_blocked = False
        if rules.expects_opening:
            self.conversation.view.expect_opening(math.inf)

    @property
    def is_announced(self) -> bool:
        """Whether the client has heard of the call."""
        return self.phase not in {Phase.DIALLING, Phase.ANNOUNCING}

    def _step(self, step: Step) -> None:
        self.phase = TRANSITIONS[self.phase][step]

    # The client's side

    def on_client_text(self, message: bytes, now: float) -> list[Action]:
        """A text message from the client that is not plain audio in an open call."""
        if self.phase is Phase.ENDED:
            return []
        if self._held_for_model is not None:
            return self._wait(message, self._held_for_model)
        if realtime.is_whole_append(message):
            return self._on_append(message)
        try:
            event = ClientEvent(message)
        except NotAnEvent as wrong:
            error = realtime.error_event(self._event_ids(), "invalid_request_error", "invalid_json", str(wrong))
            return self._to_client(Send(Side.CLIENT, error))
        to_model, follows = self.conversation.on_client_event(event, now, self._appended)
        follows = self._hold_back(follows)
        if to_model is None:
            return follows
        if event.type == "input_audio_buffer.append":
            return [*follows, *self._on_append(to_model)]
        return [*follows, Send(Side.MODEL, to_model)]

    def on_client_binary(self, message: bytes) -> list[Action]:
        """A binary message from the client."""
        if self.phase is Phase.ENDED:
            return []
        if self.rules.binary_client:
            append = realtime.append_event(message)
            hold = self._held_for_model
            return self._wait(append, hold) if hold is not None else self._on_append(append)
        text = "This path takes JSON events in text frames; raw PCM in binary frames is for /voice."
        error = realtime.error_event(self._event_ids(), "invalid_request_error", "unsupported_data", text)
        return [End(ended(Why.CLIENT_BINARY, "binary frames are for /voice"), error)]

    def _on_append(self, message: bytes) -> list[Action]:
        client = self.conversation.client
        if client.locks is not None and not client.locks.allows_audio:
            return self._to_client(Send(Side.CLIENT, client.refuse_audio()))
        usage, (messages, size) = self.conversation.usage, self._appends
        if usage is not None and not usage.given.is_learned:
            usage.given.learn(message)
        self._appends = (messages + 1, size + len(message))
        sound: list[Action] = [Sound(message)] if self.heard else []
        return [Send(Side.MODEL, message), *sound]

    def _wait(self, message: bytes, hold: Hold) -> list[Action]:
        """Hold a message as it came: it is read when there is a model leg for it."""
        hold.put(Send(Side.MODEL, message))
        return [Pause(Side.CLIENT)] if hold.full else []

    @property
    def _appended(self) -> int:
        return self._passed().client_messages + self._appends[0]

    # The model's side

    def on_model_opened(self, opening: bytes | None, now: float) -> list[Action]:
        """The first model leg is open: ``opening`` (the relay's own first event) goes first, then what was held."""
        self._step(Step.MODEL_OPENED)
        first: list[Action] = []
        if opening is not None:
            self.conversation.view.expect_opening(now, opening)
            self.conversation.view.on_update(realtime.decode(opening).get("session") or {})
            first.append(Send(Side.MODEL, opening))
        return [*first, *self._to_model(now)]

    def _to_model(self, now: float) -> list[Action]:
        """What was held for the model, and what comes from now on."""
        held, self._held_for_model = self._held_for_model, None
        messages = [send.payload for send in held.drain()] if held is not None else []
        return [*(action for each in messages for action in self.on_client_text(each, now)), Resume(Side.CLIENT)]

    def on_model_lost(self, now: float) -> Gone:
        """The model leg is gone, and another one will come; the actions of what it leaves are the caller's to do."""
        self._step(Step.MODEL_LOST)
        self._held_for_model = Hold(self.rules.hold_items, self.rules.hold_bytes)
        self._model_blocked = False
        self._listen(now)
        gone = self.conversation.on_model_gone(now)
        return gone._replace(follows=self._left_open(gone))

    def _left_open(self, gone: Gone) -> list[Action]:
        return self._hold_back([*(Send(Side.CLIENT, event) for event in gone.to_client), *gone.follows])

    def on_model_changed(
        self, session: dict[str, Any], restored: Iterable[str], anchor: str | None, now: float, wall: float
    ) -> list[Action]:
        """Another model leg has the conversation; see ``Conversation.on_model_changed``. Then what was held."""
        before: list[Action] = []
        if self.phase.has_model:  # the leg before is still there, and silent
            before = self._left_open(self.conversation.on_model_gone(now))
        else:
            self._step(Step.MODEL_OPENED)
        told = self._hold_back(self.conversation.on_model_changed(session, restored, anchor, now))
        return [*before, *told, *self._to_model(now), *self._release(now, wall)]

    def restore(self, facts: Mapping[str, bytes], items: Iterable[dict[str, Any]], wall: float) -> Gone:
        """Take a call over from another node; see ``Conversation.restore``."""
        return self.conversation.restore(facts, items, wall)

    def new_event_id(self) -> str:
        """Make an event id of the relay's own on a model leg."""
        return self._gate.event_id()

    def is_quiet(self, now: float) -> bool:
        """Whether the model leg could be replaced, or the call moved, without anybody's noticing."""
        self._listen(now)
        is_open = self.phase in {Phase.OPEN, Phase.AWAY} and not self.conversation.is_answering
        return is_open and self._gate.is_quiet(now, self._appended)

    def may_be_cut(self, now: float) -> bool:
        """The same where time is short: nobody speaks and nothing is being said."""
        return self.phase in {Phase.OPEN, Phase.AWAY} and self._gate.may_be_cut(now)

    def on_announced(self, greeting: Iterable[bytes], now: float, wall: float) -> list[Action]:
        """The call is registered: ``greeting`` (for clients that know relay events) goes first, then what was held."""
        self._step(Step.ANNOUNCED)
        return self._greet(greeting, now, wall)

    def on_client_lost(self) -> None:
        """The client is gone and may come back: what the model sends meanwhile is held for it."""
        self._step(Step.CLIENT_LOST)
        self._held_for_client = Hold(self.rules.hold_items, self.rules.hold_bytes)

    def on_client_back(self, rules: Rules, greeting: Iterable[bytes], now: float, wall: float) -> list[Action]:
        """The client has a new leg: ``greeting`` goes first, then what was held."""
        self._step(Step.CLIENT_BACK)
        self.rules = rules
        self.bind(rules.locks)
        self.conversation.told_to_clear = rules.told_to_clear
        return self._greet(greeting, now, wall)

    def bind(self, locks: Locks | None) -> None:
        """Hold another client of this call to its own locks; what the one before said is still judged by that one's."""
        client, hold = self.conversation.client, self._held_for_model
        before = client.locks
        client.bind(locks)
        if before is None or hold is None or before == client.locks:
            return
        for send in hold.drain():
            passed = before.passed(send.payload, client.session_type)
            if passed is not None:
                hold.put(send._replace(payload=passed))

    @property
    def missed(self) -> int:
        """How many messages wait for the client."""
        return len(self._held_for_client) if self._held_for_client is not None else 0

    def _greet(self, greeting: Iterable[bytes], now: float, wall: float) -> list[Action]:
        held, self._held_for_client = self._held_for_client, None
        first = [Send(Side.CLIENT, event) for event in greeting]
        shown = map(self._shown, [*first, *(held.drain() if held is not None else ())])
        told: list[Action] = [send for send in shown if send is not None]
        return [*told, Resume(Side.MODEL), *self._release(now, wall)]

    def on_model_text(self, message: bytes, now: float, wall: float) -> list[Action]:
        """A text message from the model that is not plain audio in an open call."""
        if self.phase is Phase.ENDED:
            return []
        kind = realtime.event_type(message)
        if kind in realtime.AUDIO_TYPES:
            return self._on_model_audio(message)
        self._listen(now)
        passed, follows = self.conversation.on_event(kind, message, now, wall)
        first = [Send(Side.CLIENT, passed)] if passed is not None else []
        return [*self._hold_back([*first, *follows]), *self._release(now, wall)]

    def _on_model_audio(self, message: bytes) -> list[Action]:
        usage, (messages, size) = self.conversation.usage, self._deltas
        if usage is not None and not usage.made.is_learned:
            usage.made.learn(message)
        self._deltas = (messages + 1, size + len(message))
        audio = realtime.delta_audio(message) if self.rules.binary_audio else None
        send = Send(Side.CLIENT, message) if audio is None else Send(Side.CLIENT, audio, Opcode.BINARY)
        sound: list[Action] = [Sound(message)] if self.heard else []
        return self._to_client(send) + sound

    def _listen(self, now: float) -> None:
        """Look how much audio has gone to the client."""
        passed, (messages, size) = self._passed(), self._deltas
        self._gate.turns.on_appended(passed.client_messages + self._appends[0])
        self._gate.turns.on_audio(passed.model_messages + messages, passed.model_bytes + size, now)

    def audio(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Count the messages of audio that have passed, and their bytes: the client's, and the model's."""
        passed, given, made = self._passed(), self._appends, self._deltas
        return (
            (passed.client_messages + given[0], passed.client_bytes + given[1]),
            (passed.model_messages + made[0], passed.model_bytes + made[1]),
        )

    def _to_client(self, send: Send) -> list[Action]:
        shown = self._shown(send)
        if shown is None:
            return []
        if self._held_for_client is None:
            return [shown]
        self._held_for_client.put(shown)
        return [Pause(Side.MODEL)] if self._held_for_client.full else []

    def _shown(self, send: Send) -> Send | None:
        """What the client gets of a message: less than the model says, where something is locked."""
        locks = self.conversation.client.locks
        if locks is None or send.kind is not Opcode.TEXT:
            return send
        shown = locks.shown(send.payload)
        return send._replace(payload=shown) if shown is not None else None

    def _hold_back(self, actions: Iterable[Action]) -> list[Action]:
        """The same, but for what the client cannot be sent yet: that is held."""
        now: list[Action] = []
        for action in actions:
            if isinstance(action, Send) and action.side is Side.CLIENT:
                now += self._to_client(action)
            else:
                now.append(action)
        return now

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
        return self.phase not in {Phase.OPEN, Phase.AWAY} or self._model_blocked

    def _release(self, now: float, wall: float) -> list[Action]:
        if not self._gate.is_busy:
            return []
        if self._is_held_back:
            return [*self._gate.expire(wall)]
        self._listen(now)
        return self._hold_back(self.conversation.release(now, wall, self._appended))

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
