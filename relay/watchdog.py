"""Looks at a call's legs every few seconds: pings what is silent, reports what is dead or stalled. Owns the timer.

What a look means is ``relay.core.liveness``'s decision; what follows is the call's.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from relay.config import Settings
from relay.core.liveness import Liveness, Pulse
from relay.legs import Leg

_LOOKS: Final = 6  # within a leg's shortest limit


class Call(Protocol):
    """What the watchdog tells."""

    def on_look(self) -> None:
        """It is time to look after everything else that has no event."""

    def on_stalled(self, leg: Leg) -> None:
        """The peer took no byte for too long."""

    def on_silent(self, leg: Leg) -> None:
        """The peer answered no ping."""

    def on_failed(self, error: Exception) -> None:
        """A look failed: a call whose clocks are broken must not live on without them."""


class Watchdog:
    """The clocks of one call's legs, from ``start`` to ``stop``."""

    __slots__ = ("_call", "_legs", "_settings", "_timer")

    def __init__(self, settings: Settings, call: Call) -> None:
        self._settings = settings
        self._call = call
        self._legs: dict[Leg, Liveness] = {}
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, leg: Leg, now: float) -> None:
        """Look at a leg that is connected now."""
        settings = self._settings
        life = Liveness(
            stall_seconds=settings.stall_seconds,
            ping_seconds=settings.ping_seconds,
            pong_seconds=settings.pong_seconds,
            now=now,
        )
        self._legs[leg] = life

    def forget(self, leg: Leg) -> None:
        """Look at it no more."""
        self._legs.pop(leg, None)

    def start(self) -> None:
        """Begin to look, and go on."""
        settings = self._settings
        seconds = min(settings.stall_seconds, settings.ping_seconds, settings.pong_seconds) / _LOOKS
        self._timer = asyncio.get_running_loop().call_later(seconds, self._tick)

    def stop(self) -> None:
        """No more looks."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._legs.clear()
        self._call = cast(Any, None)  # it refers back

    def _tick(self) -> None:
        self.start()
        call = self._call
        try:
            self._look(asyncio.get_running_loop().time())
            call.on_look()
        except Exception as error:  # noqa: BLE001  # it is ours, and ends this call with a traceback
            call.on_failed(error)

    def _look(self, now: float) -> None:
        verdicts: list[tuple[Leg, Callable[[Leg], None]]] = []
        for leg, life in self._legs.items():
            leg.buffered()  # notes the largest
            taken = leg.taken() if leg.blocked else 0
            match life.look(now, received=leg.frames_in, reading=leg.reading, blocked=leg.blocked, taken=taken):
                case Pulse.PING:
                    leg.ping()
                case Pulse.STALLED:
                    verdicts.append((leg, self._call.on_stalled))
                case Pulse.SILENT:
                    verdicts.append((leg, self._call.on_silent))
        for leg, tell in verdicts:
            tell(leg)
