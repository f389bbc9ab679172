"""Carries out what the bridge of one call decides: on its legs, on its place in the bus, on its alarm clock.

It decides nothing and knows nothing of how a call begins and ends.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, assert_never, cast

import structlog

from fanout import Message, OwnedCall, Status
from relay.call import Services
from relay.clientside import ClientSide
from relay.core import messages, realtime
from relay.core.actions import Action, Complaint, End, Log, Note, Pause, Resume, Send, Side, Sound
from relay.core.bridge import Bridge, Phase
from relay.core.endings import Ending
from relay.core.messages import Settled
from relay.core.usage import Audio
from relay.legs import Leg
from relay.modelside import ModelSide

_LOGGED_TEXT: Final = 100  # characters
_ALARM_SECONDS: Final = 0.01  # between looks at the gate that no event asks for
_KEPT_FRAMES: Final = 50  # of the client's audio before another model leg takes over: a second of 20 ms frames

_Tap = Callable[[bytes], None] | None


class Hands:
    """``owned`` is the call's place in the bus, once it has one."""

    def __init__(
        self,
        services: Services,
        log: structlog.stdlib.BoundLogger,
        bridge: Bridge,
        client: ClientSide,
        model: ModelSide,
        *,
        end: Callable[[Ending, bytes | None], None],
        on_failed: Callable[[Exception], None],
    ) -> None:
        self._services = services
        self._log = log
        self._bridge = bridge
        self._client = client
        self._model = model
        self._end = end
        self._on_failed = on_failed
        self._loop = asyncio.get_running_loop()
        # By message: when it came, and its item as the model gets it.
        self._injected: dict[str, tuple[float, bytes | None]] = {}
        self._held: set[Side] = set()  # legs paused by the bridge
        self._kept: deque[bytes] | None = None  # the client's last audio, while another model leg is to take over
        self._speech: list[bytes] | None = None  # the client's audio since it began to speak, until it is committed
        self._speech_bytes = 0
        self._alarm: asyncio.TimerHandle | None = None  # when the gate has something to do though nothing happens
        self._is_stopped = False
        self.owned: OwnedCall | None = None

    def stop(self) -> None:
        """The call is over: nothing happens by itself any more."""
        self._is_stopped = True
        self._set_alarm()

    def forget(self) -> None:
        """Refer back to nothing."""
        self.owned = None
        self._end = self._on_failed = cast(Any, None)

    def act(self, actions: Iterable[Action]) -> None:
        """Carry actions out, in their order."""
        owned = self.owned
        for action in actions:
            match action:
                case Send(Side.CLIENT, payload, kind):
                    self._client.send(payload, kind)
                case Send(_, payload, kind):
                    self._model.leg.send(payload, kind)
                case Log(event):
                    if owned is not None:
                        owned.log(event)
                case Sound(event):
                    if owned is not None:
                        owned.sound(event)
                case Note(name, value):
                    self._note(name, value)
                case Settled():
                    self.settle(action)
                case Complaint(code, param):
                    self._log.warning("model_refused_ours", code=code[:_LOGGED_TEXT], param=param[:_LOGGED_TEXT])
                case Pause(side):
                    self._hold(side, True)
                case Resume(side):
                    self._hold(side, False)
                case End(ending, error):
                    self._end(ending, error)
                case _:
                    assert_never(action)
        self._set_alarm()

    def tell_state(self) -> None:
        """Write down what a later owner must know beside the items."""
        self.act(self._bridge.conversation.state())

    # Messages of backends

    def inject(self, message: Message) -> None:
        """Put a backend's message into the conversation, as soon as the gate lets it."""
        try:
            injection = messages.read(message)
        except ValueError:
            text = "The message could not be read by the call's node."
            self.settle(Settled(message.id, message.item_id, "rejected", messages.error("malformed_message", text)))
            return
        now, item = self._loop.time(), injection.item
        self._injected[message.id] = (now, realtime.encode(item) if item is not None else None)
        self.act(self._bridge.inject(injection, now, self._services.wall()))

    def settle(self, settled: Settled) -> None:
        """Say what became of a message, and have its item remembered if the model has it."""
        tally = self._services.tally
        tally.injected[settled.status] += 1
        usage = self._bridge.conversation.usage
        if settled.status == "applied" and usage is not None:
            usage.on_message()
        memory = None
        injected = self._injected.pop(settled.message_id, None)
        if injected is not None and settled.status == "applied":
            since, memory = injected
            tally.apply.observe(self._loop.time() - since)
        if self.owned is not None:
            status, item_id, error = Status(settled.status), settled.item_id, settled.error
            self.owned.settle(settled.message_id, status, item_id=item_id, error=error, memory=memory)

    def _note(self, name: str, value: bytes | None) -> None:
        """Write down what the call remembers; where there is no room the oldest item goes."""
        owned = self.owned
        self._model.on_memory_changed()
        if owned is None or owned.note(name, value) or not name.startswith("item."):
            return
        for old_name, old_value in self._bridge.conversation.memory.drop_oldest():
            owned.note(old_name, old_value)
        owned.note(name, value)

    # The legs

    def feed(self) -> None:
        """Let plain audio go straight from leg to leg, past those who hear the call."""
        if self._bridge.phase is not Phase.OPEN:
            return
        sound = self.owned.sound if self._bridge.heard and self.owned is not None else None
        kept = self._kept.append if self._kept is not None else None
        heard = self._hear if self._speech is not None else None
        usage, locks = self._bridge.conversation.usage, self._client.request.locks
        given, made = (self._learn(usage.given), self._learn(usage.made)) if usage is not None else (None, None)
        if locks is None or locks.allows_audio:
            self._client.leg.feed(self._model.leg, _all(sound, kept, heard, given))
        if not self._client.request.binary_audio:
            self._model.leg.feed(self._client.leg, _all(sound, self._client.tap, made))

    def _learn(self, audio: Audio | None) -> _Tap:
        """What must see the first message of one direction's audio, to know what of such messages is none."""
        if audio is None or audio.is_learned:
            return None

        def learn(payload: bytes) -> None:
            audio.learn(payload)
            self.feed()

        return learn

    def keep_audio(self, keep: bool) -> None:
        """Keep the client's last audio, for the model leg that is to come, or do so no longer."""
        self._kept = deque(maxlen=_KEPT_FRAMES) if keep else None
        self.feed()

    def _hear(self, payload: bytes) -> None:
        if self._speech is None:
            return
        self._speech.append(payload)
        self._speech_bytes += len(payload)
        if self._speech_bytes > self._services.settings.hold_bytes:  # longer than anybody speaks at a stretch
            self._forget_speech()

    def speech(self) -> list[bytes]:
        """Return what was kept of it, as messages."""
        return list(self._speech or ())

    @property
    def is_keeping(self) -> bool:
        """Whether the client's last audio is kept."""
        return self._kept is not None

    def on_turn(self, kind: str) -> None:
        """An event of the model's: it may begin a turn of the client's, or end one.

        What the client says is kept until the model has it as an item, for another leg if this one is lost before. Of
        the audio that is kept for a leg that is to come only what follows a turn is for it.
        """
        match kind.removeprefix("input_audio_buffer."):
            case "speech_started" if self._speech is None:
                self._speech, self._speech_bytes = [], 0
                self.feed()
            case "speech_stopped" if self._kept is not None:
                self._kept.clear()
            case "committed" | "cleared":
                if self._kept is not None:
                    self._kept.clear()
                self._forget_speech()

    def _forget_speech(self) -> None:
        if self._speech is not None:
            self._speech = None
            self.feed()

    def kept_audio(self) -> list[bytes]:
        """Return that audio, as messages."""
        return list(self._kept or ())

    def _hold(self, side: Side, held: bool) -> None:
        """Pause a leg because what it sent is held, once however often the bridge asks."""
        if held != (side in self._held):
            self._held ^= {side}
            leg = self._client.leg if side is Side.CLIENT else self._model.leg
            if held:
                leg.pause()
            else:
                leg.resume()

    def on_blocked(self, leg: Leg, blocked: bool) -> None:
        """A leg that cannot be written pauses the reading of its peer."""
        peer = self._model.leg if leg is self._client.leg else self._client.leg
        if blocked:
            peer.pause()
        else:
            peer.resume()

    def let_go(self, leg: Leg) -> None:
        """A leg goes: what it held up goes on, and how it was held is forgotten."""
        self._held.discard(leg.side)
        if leg.blocked:
            self.on_blocked(leg, False)
        if leg.side is Side.CLIENT and self.owned is not None:
            self.owned.hurry()  # the client may come back at another node, which must know all

    def take_up(self, leg: Leg) -> None:
        """A leg has come: it waits for its peer, if that cannot be written."""
        peer = self._model.leg if leg is self._client.leg else self._client.leg
        if peer.blocked:
            leg.pause()

    # The alarm clock

    def _set_alarm(self) -> None:
        """Look again when a turn is over, a deadline passes or an answer is overdue."""
        now = self._loop.time()
        due = self._bridge.due(now, self._services.wall()) if not self._is_stopped else None
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if due is not None:
            self._alarm = self._loop.call_at(max(due, now + _ALARM_SECONDS), self.on_alarm)

    def on_alarm(self) -> None:
        """Something may be due."""
        if self._is_stopped:
            return
        try:
            self.act(self._bridge.on_tick(self._loop.time(), self._services.wall()))
        except Exception as error:  # noqa: BLE001  # a gate that is broken must end this call, and no other
            self._on_failed(error)


def _all(*taps: _Tap) -> _Tap:
    wanted = [tap for tap in taps if tap is not None]
    if len(wanted) < 2:
        return wanted[0] if wanted else None

    def tap(payload: bytes) -> None:
        for each in wanted:
            each(payload)

    return tap
