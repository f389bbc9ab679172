"""Carries out a node's drain: side legs go first, then waves of calls, at the deadline the rest. Owns its task.

Who goes when is ``relay.core.waves``'s decision; how a call moves is the call's. That new ones are refused meanwhile is
seen to by whoever begins it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, Protocol

import structlog

from relay.calls import Lives
from relay.config import Settings
from relay.core.endings import Ending, SideWhy, Why, ended
from relay.core.waves import Movable, Waves
from relay.sideband import SideLeg

_TICK_SECONDS: Final = 0.05
_LAST_CLOSES_SECONDS: Final = 2.0  # beyond close_seconds, for the last of the log to be written and tasks to finish
_GONE: Final = ended(Why.NODE_DRAINING, "this node is shutting down: connect again")

log = structlog.get_logger("relay")


class DrainedCall(Movable, Protocol):
    """A call of this node. Its methods return at once, and do nothing where it is on its way out already."""

    @property
    def call_id(self) -> str:
        """The call's id."""
        ...

    def move(self) -> None:
        """Begin to hand it over to whichever node its client resumes it on."""

    def end(self, ending: Ending) -> None:
        """Begin to end it."""


class Calls(Protocol):
    """The calls that live here."""

    def __len__(self) -> int: ...

    def all(self) -> Sequence[DrainedCall]:
        """Those that live now."""
        ...

    async def wait_empty(self) -> None:
        """Until none is left."""


class Draining:
    """The drain of one node, begun at most once; ``running`` must be entered for a begin to have an effect."""

    def __init__(
        self, settings: Settings, calls: Calls, side_legs: Lives[SideLeg], *, wall: Callable[[], float]
    ) -> None:
        self._settings = settings
        self._calls = calls
        self._side_legs = side_legs
        self._wall = wall
        self._waves: Waves[DrainedCall] = Waves(started=0.0, seconds=0.0)  # of nobody, until the begin
        self._started = 0.0  # wall time
        self._begun = asyncio.Event()
        self._hurry = asyncio.Event()
        self._over = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Carry the drain out when it is begun; leaving the block drains at once."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._run(), name="drain")
            try:
                yield
            finally:
                self.hurry()
                await self._over.wait()

    def begin(self) -> None:
        """Begin; called again it changes nothing."""
        if self._begun.is_set():
            return
        self._begun.set()
        self._waves = Waves(started=asyncio.get_running_loop().time(), seconds=self._settings.drain_seconds)
        self._waves.note(self._calls.all())
        self._started = self._wall()
        for leg in self._side_legs.all():  # they lose nothing: their backends attach elsewhere
            leg.end(SideWhy.NODE_DRAINING)
        log.info("drain_started", node=self._settings.node, calls=len(self._calls), pinned=self._waves.pinned)

    def hurry(self) -> None:
        """Go on as if the deadline were now."""
        self.begin()
        self._hurry.set()

    async def wait_over(self) -> None:
        """Until a drain was begun and is through: no call is left, or it could not be ended."""
        await self._over.wait()

    @property
    def is_begun(self) -> bool:
        """Whether it was begun."""
        return self._begun.is_set()

    @property
    def moved(self) -> int:
        """Calls that were moved."""
        return self._waves.moved

    @property
    def ended(self) -> int:
        """Calls that had to be ended."""
        return self._waves.ended

    def by_state(self) -> dict[str, float]:
        """Calls that are still here, by what they wait for."""
        waves = self._waves
        return {"moving": waves.moving, "pinned": waves.pinned, "waiting": waves.waiting}

    def progress(self) -> dict[str, Any] | None:
        """How far it is, as JSON values; None before its begin. Times are seconds since the epoch."""
        if not self.is_begun:
            return None
        return {
            "started_at": round(self._started, 3),
            "deadline": round(self._started + self._settings.drain_seconds, 3),
            "moved": self.moved,
            "moving": self._waves.moving,
            "pinned": self._waves.pinned,
            "left": len(self._calls),
            "ended": self.ended,
        }

    async def _run(self) -> None:
        await self._begun.wait()
        try:
            await self._make_waves()
            await self._clear()
        finally:
            self._over.set()
        waves, left = self._waves, len(self._calls)
        log.info("drain_over", node=self._settings.node, moved=waves.moved, ended=waves.ended, left=left)

    async def _make_waves(self) -> None:
        """Until all calls are gone, or the time is over."""
        clock, waves = asyncio.get_running_loop().time, self._waves
        while len(self._calls) and not self._hurry.is_set() and (now := clock()) < waves.deadline:
            try:
                for call in waves.on_tick(now, self._calls.all()):
                    call.move()
            except Exception:
                log.exception("drain_failed")  # a bug of ours, in one call: the others go on, and the deadline holds
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(_TICK_SECONDS, waves.deadline - now)):
                    await self._hurry.wait()

    async def _clear(self) -> None:
        """Move and end the rest, at once."""
        moved, ended = self._waves.rest(self._calls.all())
        for call in moved:
            _tell(call.call_id, call.move)
        for call in ended:
            _tell(call.call_id, partial(call.end, _GONE))
        if await self._wait_gone():
            return
        for call in self._waves.overdue(self._calls.all()):
            _tell(call.call_id, partial(call.end, _GONE))
        if not await self._wait_gone():
            log.error("calls_left", node=self._settings.node, calls=len(self._calls), side_legs=len(self._side_legs))

    async def _wait_gone(self) -> bool:
        try:
            async with asyncio.timeout(self._settings.close_seconds + _LAST_CLOSES_SECONDS):
                await self._calls.wait_empty()
                await self._side_legs.wait_empty()
        except TimeoutError:
            return False
        finally:
            self._waves.note(self._calls.all())
        return True


def _tell(call_id: str, act: Callable[[], None]) -> None:
    try:
        act()
    except Exception:
        log.exception("call_failed", call=call_id)  # a bug of ours, which must not keep the others
