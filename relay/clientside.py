"""The client's side of one call: its leg, the wait for a client that is gone, the leg with which it comes back.

It owns the client legs. What a client that comes back is told is the session's to say.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from relay.call import Request, Services
from relay.core import realtime
from relay.core.actions import Side
from relay.core.endings import Ending, Why, client_broke_protocol, client_closed, ended
from relay.core.frames import Close, Opcode, Violation
from relay.legs import Leg
from relay.stale import Nobody, let_go
from relay.watchdog import Watchdog

_SENT_BYTES: Final = 512 * 1024  # of what was sent last: what a client may have repeated that names what it saw
_ANSWERS_AT_MOST: Final = 32  # times the write buffer, see ``guard``
_DROPS: Final = frozenset({1001, 1006, 1011, 1012, 1013})  # closes of clients that may come back
_REPLACED: Final = Close(Why.REPLACED.code, "replaced by another connection of this call's client")


class Call(Protocol):
    """What the client's side tells its call."""

    watchdog: Watchdog

    @property
    def is_over(self) -> bool:
        """Whether it is ending."""
        ...

    def on_client_text(self, message: bytes) -> None:
        """A text message that is no plain audio."""

    def on_client_binary(self, payload: bytes) -> None:
        """A binary message."""

    def on_client_blocked(self, blocked: bool) -> None:
        """The client leg can no longer, or again, be written."""

    def can_wait(self) -> bool:
        """Whether the call can go on for a while without its client."""
        ...

    def on_client_lost(self) -> None:
        """The client is gone, and may come back."""

    def on_failed(self, error: Exception) -> None:
        """Our own bug."""

    def end(self, ending: Ending, error: bytes | None = None) -> None:
        """End the call."""


class ClientSide:
    """The client legs of one call. ``leg`` is the one in use, or the last one that was."""

    def __init__(self, services: Services, request: Request, call: Call) -> None:
        self._settings = services.settings
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._grace: asyncio.TimerHandle | None = None
        self._sent: deque[bytes] | None = None  # for a client that can say what it saw last
        self._sent_bytes = 0
        self.request = request  # of the client that is here, or was last
        self.leg = make_leg(services, request, self, call.on_client_text)
        self._keep_sent()

    def _keep_sent(self) -> None:
        """Begin to remember what is sent to a client that knows relay events."""
        if self.request.relay_events and self._sent is None:
            self._sent = deque()

    # Sending

    def send(self, payload: bytes, kind: Opcode = Opcode.TEXT) -> None:
        """Send a message, if the client is there."""
        if self._sent is not None:
            self.remember(payload)
        self.leg.send(payload, kind)

    @property
    def tap(self) -> Callable[[bytes], None] | None:
        """What must see the audio that goes straight to the client, if anything must."""
        return self.remember if self._sent is not None else None

    def remember(self, payload: bytes) -> None:
        """Keep a message that is sent, and let go of the oldest."""
        sent = self._sent
        if sent is None:
            return
        sent.append(payload)
        self._sent_bytes += len(payload)
        while self._sent_bytes > _SENT_BYTES:
            self._sent_bytes -= len(sent.popleft())

    def _sent_after(self, event_id: str) -> list[bytes]:
        """What was sent after an event that the client saw, as far as it is known."""
        if not event_id or self._sent is None:
            return []
        quoted = realtime.encode(event_id)
        after: list[bytes] = []
        for payload in reversed(self._sent):
            if quoted in payload and realtime.event_id(payload) == event_id:
                return after[::-1]
            after.append(payload)
        return []

    # Coming and going

    @property
    def is_here(self) -> bool:
        """Whether there is a client leg."""
        return not self.leg.closing

    def arrive(self, request: Request, leg: Leg) -> list[bytes]:
        """A new leg of this call's client: the one before is closed. Returns what that did not bring to its end."""
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        old, self.leg, self.request = self.leg, leg, request
        leg.give(self, self._call.on_client_text)
        self._call.watchdog.forget(old)
        self._call.watchdog.watch(leg, self._loop.time())
        let_go(old, _REPLACED, self._settings.close_seconds)
        missed = self._sent_after(request.last_event_id)
        self._keep_sent()
        return missed

    def _lose(self, ending: Ending) -> None:
        """The client is gone: the call waits for it, if it can come back, or ends."""
        call = self._call
        if call.is_over or self._grace is not None:
            return
        if not self.request.can_resume or not self._settings.resume_seconds:
            call.end(ending)
            return
        if not call.can_wait():
            # One that was just taken over lives: its client may come back to it, here or on another node.
            call.end(ended(Why.MOVED, "its client left before it was here") if self.request.resumes else ending)
            return
        call.watchdog.forget(self.leg)
        self._grace = self._loop.call_later(self._settings.resume_seconds, call.end, ending)
        call.on_client_lost()

    def on_stalled(self, leg: Leg) -> None:
        """The client took no byte for too long."""
        if leg is self.leg:
            self._fail(Why.CLIENT_SLOW, f"the client took no byte for {self._settings.stall_seconds:g} s")

    def on_silent(self, leg: Leg) -> None:
        """The client answered no ping."""
        if leg is self.leg:
            self._fail(Why.CLIENT_SILENT, "the client answered no ping")

    def _fail(self, why: Why, text: str) -> None:
        self._lose(ended(why, text))
        self.leg.abort()

    def guard(self) -> None:
        """Bound what answers can pile up on a client that sends what must be answered and reads nothing.

        What is forwarded is bounded by pausing the other leg; answers are not. One message of the largest size may be
        waiting already.
        """
        settings = self._settings
        most = settings.max_message_bytes + _ANSWERS_AT_MOST * settings.write_buffer_bytes
        if self.leg.blocked and self.leg.buffered() > most:
            self._call.end(ended(Why.CLIENT_SLOW, "the client sends and does not read"))

    def close(self, ending: Ending) -> None:
        """Close the leg: the call is over."""
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        self.leg.close(ending.close)
        if ending.why in {Why.CLIENT_SLOW, Why.CLIENT_SILENT}:
            self.leg.abort()

    def forget(self) -> None:
        """Cut what is left, and refer back to nothing: an ended call must leave the garbage collector no work."""
        self.leg.abort()
        let_go(self.leg, _REPLACED, 0.0)
        self._call = cast(Any, None)

    # From the leg in use

    def on_leg_binary(self, leg: Leg, payload: bytes) -> None:
        """Raw audio of a /voice client."""
        self._call.on_client_binary(payload)

    def on_leg_violation(self, leg: Leg, violation: Violation) -> None:
        """The client broke the protocol, and was told so."""
        self._call.end(client_broke_protocol(violation.code, violation.reason))

    def on_leg_close(self, leg: Leg, close: Close) -> None:
        """The client closes, or answers our CLOSE."""
        if not leg.closing:
            leg.close(close)
            if close.code in _DROPS:
                self._lose(client_closed(close))
            else:
                self._call.end(client_closed(close))
        leg.disconnect()

    def on_leg_lost(self, leg: Leg) -> None:
        """The connection is gone without a close."""
        self._lose(ended(Why.CLIENT_LOST))

    def on_leg_blocked(self, leg: Leg, blocked: bool) -> None:
        """It cannot be written, or can again."""
        leg.buffered()
        self._call.on_client_blocked(blocked)

    def on_leg_failed(self, leg: Leg, error: Exception) -> None:
        """Our own bug."""
        self._call.on_failed(error)


class Arrival(Nobody):
    """A client leg on its way to a call that lives here: what comes before it has arrived is kept."""

    def __init__(self, services: Services, request: Request) -> None:
        self.request = request
        self.early: list[bytes] = []  # what one read brought together with the handshake
        self.leg = make_leg(services, request, self, self.early.append)

    def on_leg_binary(self, leg: Leg, payload: bytes) -> None:
        """Raw audio, of a /voice client."""
        if self.request.voice:
            self.early.append(realtime.append_event(payload))


def make_leg(
    services: Services, request: Request, owner: "ClientSide | Arrival", on_text: Callable[[bytes], None]
) -> Leg:
    """Make a client leg that is not connected yet."""
    settings = services.settings
    return Leg(
        Side.CLIENT,
        owner,
        on_text,
        services.pulse.guarded(realtime.is_whole_append),
        max_message=request.max_message,
        write_bytes=settings.write_buffer_bytes,
        socket_bytes=settings.socket_buffer_bytes,
    )
