"""One call's life: it owns both legs, carries out what the bridge decides, and sees to it that everything ends.

The only module that acts for a call. Decisions are in ``relay.core``. While the call is open its legs feed each other
plain audio (``Leg.feed``); everything else comes here from the read callbacks.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, assert_never

import msgspec
import structlog

from fanout import CallRecord, Fanout, Message, OwnedCall, Status, Tombstone
from relay.config import Agent, Settings
from relay.core import realtime
from relay.core.bridge import Action, Bridge, Complaint, End, Pause, Phase, Resume, Rules, Send, Side, opening_update
from relay.core.endings import Ending, Why, client_broke_protocol, client_closed, ended, model_closed
from relay.core.frames import Close, Opcode, Violation
from relay.core.injection import Injection, Settled
from relay.core.liveness import Liveness, Pulse
from relay.legs import Leg
from relay.tally import Tally
from relay.upstream import DialError, Target, Upstream

_TICKS: Final = 6  # looks at a leg within its shortest limit
_BUG: Final = "internal error of the relay"
_LOGGED_TEXT: Final = 300  # characters
_ANSWERS_AT_MOST: Final = 32  # times the write buffer, see _guard

log = structlog.get_logger("relay")


@dataclass(frozen=True, slots=True)
class Services:
    """What a node's calls share."""

    settings: Settings
    upstream: Upstream
    bus: Fanout
    tally: Tally
    wall: Callable[[], float]  # seconds since the epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A call as it was admitted."""

    call_id: str
    tenant: str
    agent: Agent
    target: Target
    max_message: int
    voice: bool = False  # /voice: the agent's session is set up for the client, which may send raw PCM
    binary_audio: bool = False
    relay_events: bool = False  # the client selected relay.events.v1


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
        )
        self._bridge = Bridge(rules, _event_id)
        limits = {"write_bytes": settings.write_buffer_bytes, "socket_bytes": settings.socket_buffer_bytes}
        plain = realtime.is_whole_append
        self.client = Leg(Side.CLIENT, self, self._on_client_text, plain, max_message=request.max_message, **limits)
        most, plain = settings.max_message_bytes, realtime.is_audio_delta
        self._model = Leg(Side.MODEL, self, self._on_model_text, plain, max_message=most, **limits)
        self._ending: asyncio.Future[Ending] = self._loop.create_future()
        self._owned: OwnedCall | None = None
        self._injected: dict[str, tuple[float, bytes]] = {}  # by message: when, and the item as the model gets it
        self._started = services.wall()
        self._started_at = self._loop.time()
        self._connect_seconds: float | None = None
        self._counted = (0, 0, 0, 0)
        self._held: set[Side] = set()  # legs paused by the bridge
        self._tick_seconds = min(settings.stall_seconds, settings.ping_seconds, settings.pong_seconds) / _TICKS
        self._ticker: asyncio.TimerHandle | None = None
        self._lives: dict[Side, Liveness] = {}

    @property
    def call_id(self) -> str:
        """The call's id."""
        return self._request.call_id

    # Life

    async def run(self) -> None:
        """Live the call from the upgrade to the tombstone; returns when nothing of it is left on this node."""
        self._services.tally.started += 1
        self._watch(Side.CLIENT)
        self._ticker = self._loop.call_later(self._tick_seconds, self._tick)
        try:
            self._owned = self._services.bus.own(self._record(), self._deliver)
            await self._live(self._owned)
            await self._close_legs(self._ending.result())
        finally:  # also when we are cancelled
            self._fail(Why.NODE_FAILED, _BUG)  # a no-op unless the bus would not have the call
            self._model.abort()
            self.client.abort()
            if self._owned is not None:
                self._owned.end(self._tombstone(self._ending.result()))
                self._owned = None  # it refers back

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
        self._watch(Side.MODEL)
        session = dict(self._request.agent.session) if self._request.voice else {}
        self._act(self._bridge.on_model_opened(opening_update(session) if session else None))
        try:
            async with asyncio.timeout(services.settings.register_seconds):
                await owned.wait_registered()
        except TimeoutError:  # the bus is away: the call goes on, and is registered when it is back
            services.tally.unregistered += 1
        if self._ending.done():
            return
        self._act(self._bridge.on_announced(self._started_event(), self._loop.time(), services.wall()))
        if self._bridge.phase is not Phase.OPEN:
            return
        self.client.feed(self._model)
        if not self._request.binary_audio:
            self._model.feed(self.client)

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

    def _account(self, ending: Ending) -> None:
        """Count the end and write the call's one log line."""
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        self._count()
        tally, seconds = self._services.tally, self._loop.time() - self._started_at
        tally.ended[ending.why] += 1
        tally.duration.observe(seconds)
        connected = self._connect_seconds
        self._log.info(
            "call_ended",
            why=ending.why.label,
            fault=ending.why.fault,
            close_code=ending.close.code,
            model_close_code=ending.model_code,
            tenant=self._request.tenant,
            agent=self._request.agent.name,
            seconds=round(seconds, 3),
            connect_seconds=round(connected, 4) if connected is not None else None,
            client_frames=self.client.frames_in,
            client_bytes=self.client.bytes_in,
            model_frames=self._model.frames_in,
            model_bytes=self._model.bytes_in,
            largest_buffer=max(self.client.largest_buffer, self._model.largest_buffer),
        )

    def _tombstone(self, ending: Ending) -> Tombstone:
        request, settings = self._request, self._services.settings
        return Tombstone(
            id=request.call_id,
            tenant=request.tenant,
            node=settings.node,
            region=settings.region,
            started_at=self._started,
            ended_at=self._services.wall(),
            why=ending.why.label,
            fault=ending.why.fault,
            close_code=ending.close.code,
            upstream_close_code=ending.model_code,
        )

    def _record(self) -> CallRecord:
        request, settings = self._request, self._services.settings
        return CallRecord(
            id=request.call_id,
            tenant=request.tenant,
            node=settings.node,
            region=settings.region,
            agent=request.agent.name,
            model=request.target.model or "",
            started_at=self._started,
        )

    def _started_event(self) -> bytes | None:
        if not self._request.relay_events:
            return None
        settings = self._services.settings
        event = {"type": "relay.started", "event_id": _event_id(), "call_id": self.call_id}
        return realtime.encode(event | {"node": settings.node, "region": settings.region})

    # Messages of the legs, called from the read callbacks

    def _on_client_text(self, message: bytes) -> None:
        self._act(self._bridge.on_client_text(message))
        self._guard()

    def _on_model_text(self, message: bytes) -> None:
        self._act(self._bridge.on_model_text(message, self._loop.time(), self._services.wall()))

    def on_leg_binary(self, side: Side, payload: bytes) -> None:
        """A binary message: raw audio of a /voice client; no known model sends one."""
        if side is Side.CLIENT:
            self._act(self._bridge.on_client_binary(payload))
        elif self._bridge.phase is Phase.OPEN:
            self.client.send(payload, Opcode.BINARY)

    def on_leg_violation(self, side: Side, violation: Violation) -> None:
        """A peer broke the protocol: its leg told it so; a model's fault the client knows as a lost model."""
        if side is Side.CLIENT:
            self.end(client_broke_protocol(violation.code, violation.reason))
        else:
            self._fail(Why.MODEL_PROTOCOL, "the model's server broke the WebSocket protocol")

    def on_leg_close(self, side: Side, close: Close) -> None:
        """A peer closes, or answers our CLOSE."""
        leg = self._leg(side)
        if not leg.closing:
            self.end(client_closed(close) if side is Side.CLIENT else model_closed(close))
            leg.close(close)
        leg.disconnect()

    def on_leg_lost(self, side: Side) -> None:
        """A connection is gone without a close."""
        if side is Side.CLIENT:
            self.end(ended(Why.CLIENT_LOST))
        else:
            self._fail(Why.MODEL_LOST, "the connection to the model was lost")

    def on_leg_blocked(self, side: Side, blocked: bool) -> None:
        """A leg that cannot be written pauses the reading of its peer."""
        self._leg(side).buffered()
        peer = self._model if side is Side.CLIENT else self.client
        if blocked:
            peer.pause()
        else:
            peer.resume()
        if side is Side.MODEL:
            self._act(self._bridge.on_model_blocked(blocked, self._loop.time(), self._services.wall()))

    def on_leg_failed(self, side: Side, error: Exception) -> None:
        """Our own bug: it ends this call, with a traceback, and no other."""
        self._log.error("call_failed", leg=side.name.lower(), exc_info=error)
        self._fail(Why.NODE_FAILED, _BUG)

    # Messages of backends

    def _deliver(self, message: Message) -> None:
        """Take a message from the inbox; called by the bus on the event loop, in order."""
        try:
            item, response = _fields(message)
        except (msgspec.DecodeError, TypeError, RecursionError):
            error = {"code": "malformed_message", "message": "The message could not be read by the call's node."}
            self._settle(Settled(message.id, message.item_id, "rejected", error))
            return
        now = self._loop.time()
        self._injected[message.id] = (now, realtime.encode(item))
        injection = Injection(message.id, message.item_id, item, response, message.expires_at)
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
        for action in actions:
            match action:
                case Send(side, payload, kind):
                    self._leg(side).send(payload, kind)
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

    def _stalled(self, side: Side) -> None:
        seconds = self._services.settings.stall_seconds
        if side is Side.CLIENT:
            self.end(ended(Why.CLIENT_SLOW, f"the client took no byte for {seconds:g} s"))
        else:
            self._fail(Why.MODEL_SLOW, f"the model took no byte for {seconds:g} s")

    def _silent(self, side: Side) -> None:
        if side is Side.CLIENT:
            self.end(ended(Why.CLIENT_SILENT, "the client answered no ping"))
        else:
            self._fail(Why.MODEL_SILENT, "the model answered no ping")

    def _leg(self, side: Side) -> Leg:
        return self.client if side is Side.CLIENT else self._model

    def _watch(self, side: Side) -> None:
        settings = self._services.settings
        self._lives[side] = Liveness(
            stall_seconds=settings.stall_seconds,
            ping_seconds=settings.ping_seconds,
            pong_seconds=settings.pong_seconds,
            now=self._loop.time(),
        )

    def _tick(self) -> None:
        if self._ending.done():
            return
        self._ticker = self._loop.call_later(self._tick_seconds, self._tick)
        try:
            self._look()
        except Exception as error:  # noqa: BLE001  # a call whose clocks are broken must not live on without them
            self.on_leg_failed(Side.CLIENT, error)

    def _look(self) -> None:
        self._count()
        now = self._loop.time()
        for side, life in self._lives.items():
            leg = self._leg(side)
            leg.buffered()  # notes the largest
            taken = leg.taken() if leg.blocked else 0
            match life.look(now, received=leg.frames_in, reading=leg.reading, blocked=leg.blocked, taken=taken):
                case Pulse.PING:
                    leg.ping()
                case Pulse.STALLED:
                    self._stalled(side)
                case Pulse.SILENT:
                    self._silent(side)
        self._act(self._bridge.on_tick(now, self._services.wall()))

    def _count(self) -> None:
        """Add what the legs counted since last time to the node's tally."""
        tally, before = self._services.tally, self._counted
        now = (self.client.frames_in, self.client.bytes_in, self._model.frames_in, self._model.bytes_in)
        self._counted = now
        tally.frames["client"] += now[0] - before[0]
        tally.bytes["client"] += now[1] - before[1]
        tally.frames["model"] += now[2] - before[2]
        tally.bytes["model"] += now[3] - before[3]


def _fields(message: Message) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Decode a message's item, with its id, and its response.create fields."""
    item: dict[str, Any] = {**msgspec.json.decode(message.item), "id": message.item_id}
    if message.response is False:
        return item, None
    return item, dict(msgspec.json.decode(message.response)) if isinstance(message.response, bytes) else {}


def _event_id() -> str:
    return f"event_{secrets.token_hex(10)}"
