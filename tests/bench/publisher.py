"""A backend beside the many calls: a message at a time, to one call after the other, until it is applied."""

import asyncio
import time
from collections import Counter
from typing import Any, Final

from fanout import BusTimeout, CallStateUnknown, Fanout, Message, RegionUnreachable, Status

_PAUSE_SECONDS: Final = 0.1  # before a repeat
_PATIENCE_SECONDS: Final = 60.0  # for one message, over all repeats
_TENANT: Final = "bench"


class Backend:
    """Messages under way and what became of them."""

    def __init__(self, bus: Fanout, calls: list[str], per_second: float) -> None:
        self._bus = bus
        self._calls = calls
        self._pause = 1 / per_second
        self._stopped = asyncio.Event()
        self.ends: Counter[str] = Counter()
        self.longest_seconds = 0.0

    async def work(self) -> None:
        """Send until told to stop, then wait for what is under way."""
        async with asyncio.TaskGroup() as messages:
            number = 0
            while not self._stopped.is_set():
                messages.create_task(self._send(self._calls[number * 7919 % len(self._calls)], f"bench-{number}"))
                number += 1
                await asyncio.sleep(self._pause)

    def stop(self) -> None:
        """Send no more."""
        self._stopped.set()

    async def _send(self, call: str, message_id: str) -> None:
        """Put it in, again and again while the bus refuses honestly."""
        began = time.monotonic()
        message = Message(id=message_id, item=b'{"type":"message"}', expires_at=time.time() + 2 * _PATIENCE_SECONDS)
        end = "gave up"
        while time.monotonic() - began < _PATIENCE_SECONDS:
            try:
                receipt = await self._bus.put(call, _TENANT, message, wait=Status.APPLIED, timeout=_PATIENCE_SECONDS)
            except (CallStateUnknown, RegionUnreachable, BusTimeout):
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                end = receipt.status.value
                break
        self.ends[end] += 1
        self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)

    def told(self) -> dict[str, Any]:
        """The messages that were applied and those that were not, and the longest time that one took."""
        return {
            "applied": self.ends["applied"],
            "not_applied": self.ends.total() - self.ends["applied"],
            "longest_seconds": self.longest_seconds,
        }
