"""Whether this node's event loop has been running. Owns a timer, and what must happen after a stop.

A node that stood still for some seconds (a frozen machine, a stopped process) may have lost its calls meanwhile: what
its sockets bring then is from before, and must reach no model until the call is known to be this node's still.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

STOP_SECONDS: Final = 2.0  # shorter than anything after which a client goes elsewhere and its call is taken over
_BEAT_SECONDS: Final = 0.5


class Pulse:
    """``until`` is the moment of the loop's clock up to which it is known to have been running."""

    __slots__ = ("_loop", "_timer", "on_stop", "stops", "until")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self.on_stop: Callable[[], None] = lambda: None  # called when it turns out to have stood still
        self.stops = 0
        self.until = loop.time() + STOP_SECONDS

    @contextmanager
    def beating(self) -> Iterator["Pulse"]:
        """Beat for the length of the block."""
        self._beat()
        try:
            yield self
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self.on_stop = lambda: None

    def _beat(self) -> None:
        now = self._loop.time()
        if now >= self.until:
            self.stops += 1
            self.on_stop()
        self.until = now + STOP_SECONDS
        self._timer = self._loop.call_later(_BEAT_SECONDS, self._beat)

    @property
    def has_stopped(self) -> bool:
        """Whether it has stood still, as is found out before the next beat."""
        return self._loop.time() >= self.until

    def guarded(self, is_plain: Callable[[bytes], bool]) -> Callable[[bytes], bool]:
        """Let a test of messages fail, too, after a stop: then they go the way of those that must be decided on."""
        now = self._loop.time

        def is_plain_now(message: bytes) -> bool:
            return now() < self.until and is_plain(message)

        return is_plain_now
