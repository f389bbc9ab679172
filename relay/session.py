"""One call's life: it owns both legs, carries out what the bridge decides, and sees to it that everything ends.

The only module that acts for a call. Decisions are in ``relay.core``. While the call is open its legs feed each other
plain audio (``Leg.feed``); everything else comes here from the read callbacks.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Iterable
from functools import partial
from typing import Final, assert_never

import structlog

from fanout import CallEnded, CallTaken, Message, OwnedCall, Status
from relay.call import Request, Services, log_end
from relay.core import messages, realtime
from relay.core.actions import (
    Action,
    Complaint,
    End,
    Log,
    Note,
    Passed,
    Pause,
    Resume,
    Send,
    Side,
    Sound,
)
from relay.core.bridge import Bridge, Phase, Rules
from relay.core.conversation import opening_update
from relay.core.endings import Ending, Why, client_broke_protocol, client_closed, ended, model_closed
from relay.core.frames import Close, Opcode, Violation
from relay.core.messages import Settled
from relay.legs import Leg
from relay.upstream import DialError
from relay.watchdog import Watchdog

_BUG: Final = "internal error of the relay"
_LOGGED_TEXT: Final = 300  # characters
_LOG_SECONDS: Final = 1.0  # for the last events to reach those who watch
_ALARM_SECONDS: Final = 0.01  # between looks at the gate that no event asks for
_ANSWERS_AT_MOST: Final = 32  # times the write buffer, see _guard

log = structlog.get_logger("relay")


class Session:
    """A call on this node, from the upgrade to its tombstone."""

    def __init__(self, services: Services, request: Request) -> None:
        settings = services.settings
        self._services = services
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._log = log.bind(call=request.call_id, node=settings.node, region=settings.region)
        rules = Rules(
            hold_bytes=settings.hold_bytes,
            apply_seconds=settings.apply_seconds,
            binary_client=request.voice,
            binary_audio=request.binary_audio,
            expects_opening=bool(request.opening),
            told_to_clear=request.voice or request.relay_events,
        )
        limits = {"write_bytes": settings.write_buffer_bytes, "socket_bytes": settings.socket_buffer_bytes}
        plain = realtime.is_whole_append
        self.client = Leg(Side.CLIENT, self, self._on_client_text, plain, max_message=request.max_message, **limits)
        most, plain = settings.max_message_bytes, realtime.is_audio_delta
        self._model = Leg(Side.MODEL, self, self._on_model_text, plain, max_message=most, **limits)
        self._bridge = Bridge(rules, _event_id, partial(_passed, self.client, self._model))
        self._ending: asyncio.Future[Ending] = self._loop.create_future()
        self._owned: OwnedCall | None = None
        # By message: when it came, and its item as the model gets it.
        self._injected: dict[str, tuple[float, bytes | None]] = {}
        self._started = services.wall()
        self._started_at = self._loop.time()
        self._connect_seconds: float | None = None
        self._counted = (0, 0, 0, 0)
        self._held: set[Side] = set()  # legs paused by the bridge
        self._watchdog = Watchdog(settings, self)
        self._alarm: asyncio.TimerHandle | None = None  # when the gate has something to do though nothing happens

    @property
    def call_id(self) -> str:
        """The call's id."""
        return self._request.call_id

    # Life

    async def run(self) -> None:
        """Live the call from the upgrade to the tombstone; returns when nothing of it is left on this node."""
        self._services.tally.started += 1
        self._watchdog.watch(self.client, self._started_at)
        self._watchdog.start()
        try:
            record = self._request.record(self._services.settings, self._started)
            self._owned = self._services.bus.own(record, self._deliver)
            self._owned.on_interest = self._on_interest
            await self._live(self._owned)
            await self._close_legs(self._ending.result())
            await self._close_log(self._owned)
        finally:  # also when we are cancelled
            self._fail(Why.NODE_FAILED, _BUG)  # a no-op unless the bus would not have the call
            self._model.abort()
            self.client.abort()
            if self._owned is not None:
                settings, now = self._services.settings, self._services.wall()
                self._owned.on_interest = None  # it refers back, as the call does
                self._owned.end(self._request.tombstone(settings, self._ending.result(), self._started, now))
                self._owned = None

    async def _live(self, owned: OwnedCall) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                opening = tasks.create_task(self._open_model(owned))
                losing = tasks.create_task(self._yield_when_lost(owned))
                await self._ending
                opening.cancel()
                losing.cancel()
        except* Exception as errors:  # noqa: BLE001  # our bug must end this call, and no other
            self._log.error("call_failed", exc_info=errors)
            self._fail(Why.NODE_FAILED, _BUG)
        finally:
            self.end(ended(Why.NODE_DRAINING, "node shut down"))  # a no-op unless we were cancelled
            self._account(self._ending.result())

    async def _open_model(self, owned: OwnedCall) -> None:
        services = self._services
        try:
            await services.upstream.dial(self._request.target, self._model)
        except DialError as error:
            self._fail(error.why, str(error), error.code)
            return
        if self._ending.done():  # while we dialled, or by a frame that came with the handshake
            return
        self._connect_seconds = self._loop.time() - self._started_at
        services.tally.connect.observe(self._connect_seconds)
        self._watchdog.watch(self._model, self._loop.time())
        session = dict(self._request.opening)
        self._act(self._bridge.on_model_opened(opening_update(session) if session else None, self._loop.time()))
        try:
            async with asyncio.timeout(services.settings.register_seconds):
                await owned.wait_registered()
        except TimeoutError:  # the bus is away: the call goes on, and is registered when it is back
            services.tally.unregistered += 1
        except (CallTaken, CallEnded):  # two clients came with one call id: the other was first
            return  # _yield_when_lost says so
        if self._ending.done():
            return
        self._act(self._bridge.on_announced(self._started_event(), self._loop.time(), services.wall()))
        if self._bridge.phase is not Phase.OPEN:
            return
        self._feed()

    def _feed(self) -> None:
        """Let plain audio go straight from leg to leg, past those who listen to the call."""
        tap = self._owned.sound if self._bridge.heard and self._owned is not None else None
        self.client.feed(self._model, tap)
        if not self._request.binary_audio:
            self._model.feed(self.client, tap)

    def _on_interest(self) -> None:
        """Somebody begins to watch or to listen, or nobody does any more."""
        owned, bridge = self._owned, self._bridge
        if owned is None:
            return
        bridge.conversation.watched = owned.is_watched
        if owned.is_heard != bridge.heard:
            bridge.heard = owned.is_heard
            if bridge.phase is Phase.OPEN and not self._ending.done():
                self._feed()

    async def _yield_when_lost(self, owned: OwnedCall) -> None:
        """Only a claim with a higher epoch, seen in the home Redis, ends a call from the bus's side."""
        await owned.wait_lost()
        self._fail(Why.NODE_FAILED, "the call was claimed by another node")

    def end(self, ending: Ending, error: bytes | None = None) -> None:
        """Begin the end of the call; the first reason stands. ``error`` is an event that the client gets first."""
        if self._ending.done():
            return
        self.client.feed(None)
        self._model.feed(None)
        for held in self._bridge.on_ended():
            self.client.send(held.payload, held.kind)
        if error is not None:
            self.client.send(error)
        self._ending.set_result(ending)

    def _fail(self, why: Why, text: str, code: str | None = None) -> None:
        """End the call for a fault that is not the client's, which is told in words what happened."""
        self.end(ended(why, text), realtime.error_event(_event_id(), "server_error", code or why.label, text))

    async def _close_legs(self, ending: Ending) -> None:
        """Close both legs, whatever their peers do: politely within ``close_seconds``, then by force."""
        self.client.close(ending.close)
        self._model.close(Close(1000, ""))
        self._model.abandon()
        if ending.why in {Why.CLIENT_SLOW, Why.CLIENT_SILENT}:
            self.client.abort()
        if ending.why in {Why.MODEL_SLOW, Why.MODEL_SILENT}:
            self._model.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._services.settings.close_seconds):
                await self._model.closed
                await self.client.closed

    async def _close_log(self, owned: OwnedCall) -> None:
        """Let those who watch have the last events before they hear that the call is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOG_SECONDS):
                await owned.wait_logged()

    def _account(self, ending: Ending) -> None:
        """Count the end and write the call's one log line."""
        self._watchdog.stop()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._count()
        tally, seconds = self._services.tally, self._loop.time() - self._started_at
        tally.ended[ending.why] += 1
        tally.duration.observe(seconds)
        legs, connected = (self.client, self._model), self._connect_seconds
        log_end(self._log, self._request, ending, legs, seconds=seconds, connect_seconds=connected)

    def _started_event(self) -> bytes | None:
        if not self._request.relay_events:
            return None
        settings = self._services.settings
        event = {"type": "relay.started", "event_id": _event_id(), "call_id": self.call_id}
        return realtime.encode(event | {"node": settings.node, "region": settings.region})

    # Messages of the legs, called from the read callbacks

    def _on_client_text(self, message: bytes) -> None:
        self._act(self._bridge.on_client_text(message, self._loop.time()))
        self._guard()

    def _on_model_text(self, message: bytes) -> None:
        self._act(self._bridge.on_model_text(message, self._loop.time(), self._services.wall()))

    def on_leg_binary(self, leg: Leg, payload: bytes) -> None:
        """A binary message: raw audio of a /voice client; no known model sends one."""
        if leg is self.client:
            self._act(self._bridge.on_client_binary(payload))
        elif self._bridge.phase is Phase.OPEN:
            self.client.send(payload, Opcode.BINARY)

    def on_leg_violation(self, leg: Leg, violation: Violation) -> None:
        """A peer broke the protocol: its leg told it so; a model's fault the client knows as a lost model."""
        if leg is self.client:
            self.end(client_broke_protocol(violation.code, violation.reason))
        else:
            self._fail(Why.MODEL_PROTOCOL, "the model's server broke the WebSocket protocol")

    def on_leg_close(self, leg: Leg, close: Close) -> None:
        """A peer closes, or answers our CLOSE."""
        if not leg.closing:
            self.end(client_closed(close) if leg is self.client else model_closed(close))
            leg.close(close)
        leg.disconnect()

    def on_leg_lost(self, leg: Leg) -> None:
        """A connection is gone without a close."""
        if leg is self.client:
            self.end(ended(Why.CLIENT_LOST))
        else:
            self._fail(Why.MODEL_LOST, "the connection to the model was lost")

    def on_leg_blocked(self, leg: Leg, blocked: bool) -> None:
        """A leg that cannot be written pauses the reading of its peer."""
        leg.buffered()
        peer = self._model if leg is self.client else self.client
        if blocked:
            peer.pause()
        else:
            peer.resume()
        if leg is self._model:
            self._act(self._bridge.on_model_blocked(blocked, self._loop.time(), self._services.wall()))

    def on_leg_failed(self, leg: Leg, error: Exception) -> None:
        """Our own bug: it ends this call, with a traceback, and no other."""
        self.on_look_failed(error)

    def on_look_failed(self, error: Exception) -> None:
        """The same, in the look after the legs."""
        self._log.error("call_failed", exc_info=error)
        self._fail(Why.NODE_FAILED, _BUG)

    # Messages of backends

    def _deliver(self, message: Message) -> None:
        """Take a message from the inbox; called by the bus on the event loop, in order."""
        if message.kind == "hangup":
            self._settle(Settled(message.id, message.item_id, "applied"))
            self.end(ended(Why.HUNG_UP, "hung up"))
            return
        try:
            injection = messages.read(message)
        except ValueError:
            text = "The message could not be read by the call's node."
            self._settle(Settled(message.id, message.item_id, "rejected", messages.error("malformed_message", text)))
            return
        now, item = self._loop.time(), injection.item
        remembered = realtime.encode(item) if item is not None else None
        self._injected[message.id] = (now, remembered)
        self._act(self._bridge.inject(injection, now, self._services.wall()))

    def _settle(self, settled: Settled) -> None:
        tally = self._services.tally
        tally.injected[settled.status] += 1
        memory = None  # what a later owner builds the conversation from
        injected = self._injected.pop(settled.message_id, None)
        if injected is not None and settled.status == "applied":
            since, memory = injected
            tally.apply.observe(self._loop.time() - since)
        if self._owned is not None:
            status, item_id, error = Status(settled.status), settled.item_id, settled.error
            self._owned.settle(settled.message_id, status, item_id=item_id, error=error, memory=memory)

    # Carrying out

    def _act(self, actions: Iterable[Action]) -> None:
        owned = self._owned
        for action in actions:
            match action:
                case Send(side, payload, kind):
                    self._leg(side).send(payload, kind)
                case Log(event):
                    if owned is not None:
                        owned.log(event)
                case Sound(event):
                    if owned is not None:
                        owned.sound(event)
                case Note(name, value):
                    if owned is not None:
                        owned.note(name, value)
                case Settled():
                    self._settle(action)
                case Complaint(code, text):
                    self._log.warning("model_refused_ours", code=code, message=text[:_LOGGED_TEXT])
                case Pause(side):
                    self._hold(side, True)
                case Resume(side):
                    self._hold(side, False)
                case End(ending, error):
                    self.end(ending, error)
                case _:
                    assert_never(action)
        self._set_alarm()

    def _set_alarm(self) -> None:
        """Look again when a turn is over, a deadline passes or an answer is overdue."""
        now = self._loop.time()
        due = self._bridge.due(now, self._services.wall()) if not self._ending.done() else None
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if due is not None:
            self._alarm = self._loop.call_at(max(due, now + _ALARM_SECONDS), self._on_alarm)

    def _on_alarm(self) -> None:
        if self._ending.done():
            return
        try:
            self._act(self._bridge.on_tick(self._loop.time(), self._services.wall()))
        except Exception as error:  # noqa: BLE001  # a gate that is broken must end this call, and no other
            self.on_look_failed(error)

    def _hold(self, side: Side, held: bool) -> None:
        """Pause a leg because what it sent is held, once however often the bridge asks."""
        if held != (side in self._held):
            self._held ^= {side}
            leg = self._leg(side)
            if held:
                leg.pause()
            else:
                leg.resume()

    def _guard(self) -> None:
        """Bound what answers can pile up on a client that sends what must be answered and reads nothing.

        What is forwarded is bounded by pausing the other leg; answers are not. One message of the largest size may be
        waiting already.
        """
        settings = self._services.settings
        most = settings.max_message_bytes + _ANSWERS_AT_MOST * settings.write_buffer_bytes
        if self.client.blocked and self.client.buffered() > most:
            self.end(ended(Why.CLIENT_SLOW, "the client sends and does not read"))

    def on_stalled(self, leg: Leg) -> None:
        """A peer took no byte for too long."""
        seconds = self._services.settings.stall_seconds
        if leg is self.client:
            self.end(ended(Why.CLIENT_SLOW, f"the client took no byte for {seconds:g} s"))
        else:
            self._fail(Why.MODEL_SLOW, f"the model took no byte for {seconds:g} s")

    def on_silent(self, leg: Leg) -> None:
        """A peer answered no ping."""
        if leg is self.client:
            self.end(ended(Why.CLIENT_SILENT, "the client answered no ping"))
        else:
            self._fail(Why.MODEL_SILENT, "the model answered no ping")

    def _leg(self, side: Side) -> Leg:
        return self.client if side is Side.CLIENT else self._model

    def on_look(self) -> None:
        """What has no event of its own to wake it."""
        self._count()
        self._on_alarm()

    def _count(self) -> None:
        """Add what the legs counted since last time to the node's tally."""
        tally, before = self._services.tally, self._counted
        now = (self.client.frames_in, self.client.bytes_in, self._model.frames_in, self._model.bytes_in)
        self._counted = now
        tally.frames["client"] += now[0] - before[0]
        tally.bytes["client"] += now[1] - before[1]
        tally.frames["model"] += now[2] - before[2]
        tally.bytes["model"] += now[3] - before[3]


def _passed(client: Leg, model: Leg) -> Passed:
    """Count what went straight from leg to leg."""
    return Passed(
        client.frames_in - client.handled_frames,
        model.frames_in - model.handled_frames,
        model.bytes_in - model.handled_bytes,
    )


def _event_id() -> str:
    return f"event_{secrets.token_hex(10)}"
