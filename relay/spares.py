"""Warm upstream connections, dialled before a call needs one: how many, for which models, for how long.

What comes on them before somebody takes them is kept as it came; what they are taken for is the taker's business. Never
more than one is dialled at a time.
"""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

import structlog

from relay.core import realtime
from relay.core.actions import Side
from relay.core.frames import Close, Violation
from relay.legs import Leg
from relay.rulebook.upstreams import UpstreamConfig
from relay.upstream import DialError, Target, Upstreams

SPARE_SECONDS: Final = 60.0  # a spare's session has begun: it ends so much earlier for the call that takes it

_LOOKS: Final = 6  # in a spare's life; at each but the last it must have answered the ping of the one before
_MESSAGES: Final = 64
_BYTES: Final = 256 * 1024
_TARGETS: Final = 4
_FORGOTTEN_SECONDS: Final = 600.0  # without a call, unless it is the one that was asked for last
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0
_CLOSE_SECONDS: Final = 2.0  # for the server's CLOSE
_DONE: Final = Close(1000, "")

log = structlog.get_logger("relay")


class Spare(NamedTuple):
    """A connection that is ready: its taker must call ``Leg.give`` before it waits for anything."""

    leg: Leg
    messages: tuple[bytes, ...]  # what the server said so far, ``session.created`` among it


@dataclass(slots=True)
class SpareCounts:
    """What became of them since the start."""

    dialled: int = 0  # with success
    failed: int = 0  # dials without one, and spares that were lost before their time
    taken: int = 0
    missed: int = 0  # somebody asked, and there was none


class Spares:
    """The warm connections of a node; use it as ``async with Spares.running(upstreams, 2, …) as spares``.

    They are for the targets that were asked for lately, as many for each: so there is none before somebody has asked.
    """

    def __init__(self, upstreams: Upstreams, number: int, seconds: float, make_leg: "_MakeLeg") -> None:
        self._upstreams = upstreams
        self._number = number
        self._seconds = seconds
        self._make_leg = make_leg
        self._loop = asyncio.get_running_loop()
        self._held: list[_Warm] = []  # oldest first; also what is being opened or closed
        self._asked: dict[Target, float] = {}  # when, the last one last
        self._changed = asyncio.Event()
        self._is_stopped = False
        self._pauses: dict[str, _Pause] = {}  # of the upstreams that failed
        self.counts = SpareCounts()

    @classmethod
    @contextlib.asynccontextmanager
    async def running(
        cls,
        upstreams: Upstreams,
        number: int,
        *,
        write_bytes: int,
        socket_bytes: int,
        seconds: float = SPARE_SECONDS,
    ) -> AsyncIterator["Spares"]:
        """Keep up to ``number`` of them for the length of the block, each for so many seconds; its end closes them.

        ``write_bytes`` and ``socket_bytes`` are the legs': see ``Leg``. With 0 there are none.
        """

        def make_leg(warm: "_Warm") -> Leg:
            limits = {"max_message": upstreams.max_message, "write_bytes": write_bytes, "socket_bytes": socket_bytes}
            return Leg(Side.MODEL, warm, warm.on_text, realtime.is_audio_delta, **limits)

        spares = cls(upstreams, number, seconds, make_leg)
        async with asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(spares._keep(), name="spares")
            try:
                yield spares
            finally:
                spares.stop()
                keeping.cancel()
                await spares._wait_gone()

    def take(self, target: Target) -> Spare | None:
        """Return a connection for that target if there is one; more of them are made for it from now on."""
        if self._is_stopped or not self._number:
            return None
        self._remember(target)
        self._changed.set()
        config = self._upstreams.config(target.upstream)
        for stale in [each for each in self._held if each.target == target and each.config != config]:
            stale.leave()  # the rulebook says otherwise now: of the server, or the key
        warm = next((each for each in self._held if each.target == target and each.is_ready), None)
        if warm is None:
            self.counts.missed += 1
            return None
        self._held.remove(warm)
        self.counts.taken += 1
        self._pauses.pop(target.upstream, None)
        return warm.give()

    def stop(self) -> None:
        """Close them and make no more: the node drains."""
        self._is_stopped = True
        for warm in self._held:
            warm.leave()

    @property
    def ready(self) -> int:
        """How many could be taken now."""
        return sum(warm.is_ready for warm in self._held)

    # What happens to one

    def on_gone(self, warm: "_Warm") -> None:
        """Its connection is closed."""
        if warm in self._held:
            self._held.remove(warm)
        self._changed.set()

    def on_spoiled(self, upstream: str, why: str) -> None:
        """One cannot be used, before its time: so the next dial of its upstream had better wait."""
        now = self._loop.time()
        self.counts.failed += 1
        before = self._pauses.get(upstream, _Pause(0.0, 0.0))
        if now < before.until:  # the fault that is being waited for already
            return
        seconds = min(max(2 * before.seconds, _FIRST_PAUSE), _LONGEST_PAUSE)
        until = now + seconds * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing
        self._pauses[upstream] = _Pause(seconds, until)
        log.warning("spare_failed", upstream=upstream, why=why, pause_seconds=seconds)

    def on_old(self, upstream: str) -> None:
        """One lived to its end: the server keeps them."""
        self._pauses.pop(upstream, None)

    # The task

    async def _keep(self) -> None:
        while True:
            self._changed.clear()
            target, at = self._lacking()
            if target is None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(at):
                        await self._changed.wait()
            else:
                try:
                    await self._dial(target)
                except Exception:
                    log.exception("spares_failed")  # a bug of ours, which calls can do without
                    self.on_spoiled(target.upstream, "internal error of the relay")

    def _lacking(self) -> tuple[Target | None, float | None]:
        """The target that the next one is for: of those with the fewest, the one that was asked for last.

        Where there is none for now, when to look again; None: not before something changes.
        """
        if self._is_stopped or len(self._held) >= self._number:
            return None, None
        has = Counter(warm.target for warm in self._held if warm.is_ready)
        asked = [target for target in reversed(self._asked) if self._upstreams.config(target.upstream) is not None]
        starts = {target: self._pauses[target.upstream].until for target in asked if target.upstream in self._pauses}
        now = self._loop.time()
        target = min((each for each in asked if starts.get(each, now) <= now), key=lambda each: has[each], default=None)
        return target, min(starts.values(), default=None)

    def _remember(self, target: Target) -> None:
        now = self._loop.time()
        self._asked.pop(target, None)
        for old in [each for each, at in self._asked.items() if now - at > _FORGOTTEN_SECONDS]:
            del self._asked[old]
        if len(self._asked) == _TARGETS:
            del self._asked[next(iter(self._asked))]
        self._asked[target] = now

    async def _dial(self, target: Target) -> None:
        warm = _Warm(self, target, self._upstreams.config(target.upstream), self._make_leg, self._seconds)
        self._held.append(warm)
        try:
            await self._upstreams.dial(target, warm.leg)
            async with asyncio.timeout(self._upstreams.dial_seconds):
                await warm.settled.wait()
            if warm.is_ready:
                self.counts.dialled += 1
                self._upstreams.serve(target.upstream)
        except DialError as error:
            self.on_spoiled(target.upstream, error.code)
        except TimeoutError:
            self.on_spoiled(target.upstream, "no session.created")
        finally:
            if not warm.is_ready:
                warm.leave()
            if warm.leg.transport is None:
                warm.leg.abandon()
                self.on_gone(warm)

    async def _wait_gone(self) -> None:
        """Until all are closed; those that wait for a server are cut off in time."""
        try:
            while self._held:
                self._changed.clear()
                await self._changed.wait()
        finally:
            for warm in self._held:
                warm.leg.abort()


class _Pause(NamedTuple):
    """Before the next dial of an upstream: how long it is, and when it ends."""

    seconds: float
    until: float


class _Warm:
    """The owner of a leg that nobody has taken: whatever happens to it beside text ends it."""

    def __init__(
        self, spares: Spares, target: Target, config: UpstreamConfig | None, make_leg: "_MakeLeg", seconds: float
    ) -> None:
        self.target = target
        self.config = config  # of the upstream, as it is dialled
        self.settled = asyncio.Event()  # it has a session, or will never have one
        self._spares = spares
        self._seconds = seconds
        self._messages: list[bytes] = []
        self._room = _BYTES
        self._has_session = self._is_leaving = False
        self._looks = 0
        self._seen = 0  # frames, at the last look
        self._timer: asyncio.TimerHandle | None = None
        self.leg = make_leg(self)

    @property
    def is_ready(self) -> bool:
        """Whether it can be taken."""
        transport = self.leg.transport
        is_connected = transport is not None and not transport.is_disconnected
        return is_connected and self._has_session and not self._is_leaving

    def give(self) -> Spare:
        """Let it go, as it is."""
        self._set_timer(None)
        self._spares = cast(Any, None)
        return Spare(self.leg, tuple(self._messages))

    def leave(self) -> None:
        """Close it, by force if the server takes too long; a no-op on one that is closing already."""
        self._close(_DONE)

    def _spoil(self, why: str, close: Close = _DONE) -> None:
        if not self._is_leaving:
            self._spares.on_spoiled(self.target.upstream, why)
            self._close(close)

    def _close(self, close: Close) -> None:
        if self._is_leaving:
            return
        self._is_leaving = True
        self.leg.close(close)
        self._set_timer(_CLOSE_SECONDS, self.leg.abort)
        self.settled.set()

    def on_text(self, message: bytes) -> None:
        """Keep it for the taker."""
        self._room -= len(message)
        if self._room < 0 or len(self._messages) == _MESSAGES:
            self._spoil("the server said too much")
            return
        self._messages.append(message)
        if not self._has_session and realtime.event_type(message) == "session.created":
            self._has_session = True
            self.settled.set()
            self._set_timer(self._seconds / _LOOKS, self._look)

    def _look(self) -> None:
        self._looks += 1
        if self._looks == _LOOKS:
            self._spares.on_old(self.target.upstream)
            self.leave()
        elif self.leg.frames_in == self._seen:
            self._spoil("the server answered no ping")
        else:
            self._seen = self.leg.frames_in
            self.leg.ping()
            self._set_timer(self._seconds / _LOOKS, self._look)

    def _set_timer(self, seconds: float | None, then: Callable[[], None] | None = None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None and then is not None:
            self._timer = self._spares._loop.call_later(seconds, then)

    # From the leg

    def on_leg_binary(self, leg: Leg, payload: bytes) -> None:
        """No known model sends one."""
        self._spoil("the server sent a binary message")

    def on_leg_violation(self, leg: Leg, violation: Violation) -> None:
        """The leg has sent CLOSE."""
        self._spoil("the server broke the WebSocket protocol")

    def on_leg_close(self, leg: Leg, close: Close) -> None:
        """The server closes, or answers our CLOSE."""
        self._spoil(f"the server closed it with {int(close.code)} {close.reason}".rstrip(), close)
        leg.disconnect()

    def on_leg_lost(self, leg: Leg) -> None:
        """The connection is gone."""
        self._spoil("the connection was lost")
        self._set_timer(None)
        self._spares.on_gone(self)

    def on_leg_blocked(self, leg: Leg, blocked: bool) -> None:
        """Nothing is written but pings and pongs, which a leg holds back by itself."""

    def on_leg_failed(self, leg: Leg, error: Exception) -> None:
        """Our own bug."""
        log.error("spare_failed", why="internal error of the relay", exc_info=error)
        self._spoil("internal error of the relay")


_MakeLeg = Callable[[_Warm], Leg]
