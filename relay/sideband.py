"""A side leg: a backend's socket attached to a live call that may be anywhere. Owns the socket and what it sent.

It watches the call's log and puts what its peer says into the call's inbox, as any backend does; it never touches the
call's own legs. Whatever happens to it costs the call nothing.
"""

import asyncio
import contextlib
import secrets
from typing import Final

import structlog

from fanout import BusTimeout, CallEnded, FanoutError, LogEntry, Message, RegionUnreachable, Status, Watch
from relay.admission import Refused
from relay.api.refusals import bus_refusal
from relay.call import Services
from relay.core import realtime
from relay.core.actions import Side
from relay.core.endings import SideWhy
from relay.core.frames import NO_STATUS, Close, Violation
from relay.core.realtime import ClientEvent, NotAnEvent
from relay.core.side import SideView, error_event, refusal
from relay.entitled import plan_of
from relay.legs import Leg
from relay.tokens import Claims
from relay.watchdog import Watchdog

_EVENT_SECONDS: Final = 60.0  # what a side leg sends may wait so long for its turn
_UNDER_WAY: Final = 64  # events of one side leg without a receipt: then it is not read until there are fewer

log = structlog.get_logger("relay")


class SideLeg:
    """One side leg, from its watch of the call to its close."""

    def __init__(self, services: Services, call_id: str, claims: Claims, *, audio: bool) -> None:
        settings, rulebook = services.settings, services.rulebook()
        self._services = services
        self._tenant = claims.tenant
        self._plan, self._share = plan_of(rulebook, claims), rulebook.share(settings.region)
        self._jti = claims.jti
        self._audio = audio
        self._loop = asyncio.get_running_loop()
        self._view = SideView()
        self._most = settings.side_buffer_bytes
        self._watchdog = Watchdog(settings, self)
        self._ending: asyncio.Future[tuple[SideWhy, Close]] = self._loop.create_future()
        self._sends: asyncio.TaskGroup | None = None
        self._under_way = self._under_way_bytes = 0
        self._is_held = False  # not read, since too much is under way
        self._early: list[LogEntry] | None = []  # came while the connection was being handed over; None: it was
        self._greeted = asyncio.Event()
        self.call_id = call_id
        self.attached: asyncio.Future[None] = self._loop.create_future()  # or why it cannot be
        self.connected: asyncio.Future[None] = self._loop.create_future()
        self.leg = Leg(
            Side.SIDE,
            self,
            self._on_text,
            _never,
            max_message=settings.max_message_bytes,
            write_bytes=settings.write_buffer_bytes,
            socket_bytes=settings.socket_buffer_bytes,
        )

    # Life

    async def run(self) -> None:
        """Watch, and serve the socket once ``connected`` says that it is there, until either is over."""
        bus = self._services.bus
        try:
            async with bus.watch(self.call_id, self._tenant, self._deliver, audio=self._audio) as watch:
                self.attached.set_result(None)
                await self.connected
                self._begin(watch)
                await self._live(watch)
        except FanoutError as error:
            if self.attached.done():
                raise
            self.attached.set_exception(error)
        finally:
            self.attached.cancel()
            self._watchdog.stop()
            self.leg.abort()
            self.leg.abandon()

    def _begin(self, watch: Watch) -> None:
        """Show the session as it was at the start of the watch, and what has come since."""
        early, self._early = self._early or [], None
        if watch.session is not None:
            self._show(self._view.on_session(watch.session, _event_id()))
        for entry in early:
            self._deliver(entry)

    async def _live(self, watch: Watch) -> None:
        self._services.tally.side_legs += 1
        started = self._loop.time()
        self._watchdog.watch(self.leg, started)
        self._watchdog.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                self._sends = tasks
                watching = tasks.create_task(self._end_with_call(watch))
                _, close = await self._ending
                await self._close(close)
                watching.cancel()
                raise _Over  # what is still under way goes on in the inbox; nobody waits for it here
        except* _Over:
            pass
        except* Exception as errors:  # our bug must end this leg, and no other
            log.exception("side_leg_failed", call=self.call_id, exc_info=errors)
            self.end(SideWhy.NODE_FAILED)
        finally:
            self._sends = None
            self.end(SideWhy.NODE_DRAINING)  # a no-op unless we were cancelled
            why, close = self._ending.result()
            self._services.tally.side_ended[why] += 1
            seconds = round(self._loop.time() - started, 3)
            log.info(
                "side_leg_ended",
                call=self.call_id,
                tenant=self._tenant,
                why=why.label,
                code=close.code,
                seconds=seconds,
            )

    async def _end_with_call(self, watch: Watch) -> None:
        end = await watch.wait_ended()
        if end.tombstone is None:
            self.end(SideWhy.CALL_LOST)
            return
        code = end.tombstone.close_code or SideWhy.CALL_ENDED.code
        self.end(SideWhy.CALL_ENDED, Close(1000 if code == NO_STATUS else code, end.tombstone.why))

    def check_token(self) -> None:
        """End if the token with which it came has been revoked."""
        if self._services.revoked.has(self._tenant, self._jti):
            self.end(SideWhy.TOKEN_REVOKED)

    def end(self, why: SideWhy, close: Close | None = None) -> None:
        """Begin the end; the first reason stands."""
        if not self._ending.done():
            self._ending.set_result((why, close or Close(why.code, why.label)))

    async def _close(self, close: Close) -> None:
        self.leg.close(close)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._services.settings.close_seconds):
                await self.leg.closed

    # What the call shows

    def _deliver(self, entry: LogEntry) -> None:
        """Take an entry of the call's log; called by the bus on the event loop, in order."""
        if self._early is not None:
            self._early.append(entry)  # for a turn or two of the loop
        elif entry.kind == "gap":
            if self._view.is_greeted:
                self.end(SideWhy.EVENTS_LOST)
        elif not self._ending.done():
            self._show(self._view.on_entry(entry))

    def _show(self, events: list[bytes]) -> None:
        """Send what the view lets through; the first of it is the greeting."""
        if events:
            self._send(events)
            self._greeted.set()

    def _send(self, events: list[bytes]) -> None:
        leg = self.leg
        for event in events:
            leg.send(event)
        if leg.blocked and leg.buffered() > self._most:
            self.end(SideWhy.SLOW)

    # What its peer says

    def _on_text(self, message: bytes) -> None:
        try:
            event = ClientEvent(message)
        except NotAnEvent as wrong:
            self._refuse("invalid_json", str(wrong), None)
            return
        cause = event.event_id or None
        if event.type == "input_audio_buffer.append":
            self._refuse("audio_not_allowed", "A side leg sends no audio: the call's client does.", cause)
        elif self._sends is not None:
            encoded = event.encoded()
            self._count(1, len(encoded))
            self._sends.create_task(self._put(encoded, cause))

    def _count(self, events: int, size: int) -> None:
        """Add to what is under way, or take from it; the peer is read while there is not too much."""
        self._under_way += events
        self._under_way_bytes += size
        is_held = self._under_way >= _UNDER_WAY or self._under_way_bytes >= self._most
        if is_held and not self._is_held:
            self.leg.pause()
        elif self._is_held and not is_held:
            self.leg.resume()
        self._is_held = is_held

    async def _put(self, event: bytes, cause: str | None) -> None:
        """Put an event into the call, and tell the peer if it came to nothing."""
        services = self._services
        await self._greeted.wait()  # until the call has begun there is nobody to hear it
        message = Message(
            id=f"side_{secrets.token_hex(12)}",
            item=event,
            kind="event",
            expires_at=services.wall() + _EVENT_SECONDS,
        )
        try:
            await services.accounting.spend_message(self._tenant, self._plan, self._share)
            receipt = await services.bus.put(
                self.call_id, self._tenant, message, wait=Status.APPLIED, timeout=_EVENT_SECONDS + 1.0
            )
            error = refusal(receipt)
            if error is not None:
                self._send([error_event(_event_id(), error, cause)])
        except Refused as refused:
            self._refuse(refused.code, str(refused), cause)
        except CallEnded:
            pass  # the watch hears it, too
        except (RegionUnreachable, BusTimeout):
            text = "The call's Redis did not answer: whether the event reached the model is not known."
            self._refuse("region_unreachable", text, cause)
        except FanoutError as failed:
            told = bus_refusal(failed)
            self._refuse(told.code, str(told), cause)
        finally:
            self._count(-1, -len(event))

    def _refuse(self, code: str, text: str, cause: str | None) -> None:
        self._send([realtime.error_event(_event_id(), "invalid_request_error", code, text, cause=cause)])

    # From the leg and the watchdog

    def on_leg_binary(self, leg: Leg, payload: bytes) -> None:
        """A binary message: no event is one."""
        self.end(SideWhy.PROTOCOL, Close(1003, "this path takes JSON events in text frames"))

    def on_leg_violation(self, leg: Leg, violation: Violation) -> None:
        """The peer broke the protocol, and was told so."""
        self.end(SideWhy.PROTOCOL, Close(violation.code, violation.reason))

    def on_leg_close(self, leg: Leg, close: Close) -> None:
        """The peer detaches, or answers our CLOSE."""
        if not self.leg.closing:
            self.end(SideWhy.CLOSED, close)
            self.leg.close(close)
        self.leg.disconnect()

    def on_leg_lost(self, leg: Leg) -> None:
        """The connection is gone."""
        self.end(SideWhy.LOST)

    def on_leg_blocked(self, leg: Leg, blocked: bool) -> None:
        """What its peer does not take is counted where it is sent."""

    def on_leg_failed(self, leg: Leg, error: Exception) -> None:
        """Our own bug: it ends this leg, with a traceback, and no other."""
        log.error("side_leg_failed", call=self.call_id, exc_info=error)
        self.end(SideWhy.NODE_FAILED)

    def on_failed(self, error: Exception) -> None:
        """The same, in the look after the socket."""
        self.on_leg_failed(self.leg, error)

    def on_look(self) -> None:
        """Nothing of a side leg needs looking after but its socket."""

    def on_stalled(self, leg: Leg) -> None:
        """The peer took no byte for too long."""
        self.end(SideWhy.SLOW)

    def on_silent(self, leg: Leg) -> None:
        """The peer answered no ping."""
        self.end(SideWhy.SILENT)


class _Over(Exception):
    """The leg has closed: its tasks end."""


def _never(_: bytes) -> bool:
    return False


def _event_id() -> str:
    return f"event_{secrets.token_hex(10)}"
