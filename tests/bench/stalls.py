"""How long one turn of an event loop takes at most: what the audio of a node's calls would have waited."""

import asyncio
import time
from typing import Final

_TICK_SECONDS: Final = 0.001
_TICK_NS: Final = 1_000_000


class Stalls:
    """A timer that is due each millisecond, and how late it ever was.

    `busy_ms` is the CPU time of the loop's own thread between two ticks: where a stall is longer, something else had
    the CPU.
    """

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._last_ns = self._last_cpu_ns = self._stall_ns = self._busy_ns = self._cpu_ns = 0

    def begin(self) -> None:
        """Open a window."""
        if self._timer is not None:
            self._timer.cancel()
        self._last_ns, self._last_cpu_ns = time.monotonic_ns(), time.thread_time_ns()
        self._cpu_ns = time.process_time_ns()
        self._stall_ns = self._busy_ns = 0
        self._timer = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._tick)

    def end(self) -> dict[str, float]:
        """The longest of the window in milliseconds, and the whole process's CPU time in it."""
        if self._timer is not None:
            self._timer.cancel()
        self._note()
        return {
            "stall_ms": self._stall_ns / 1e6,
            "busy_ms": self._busy_ns / 1e6,
            "cpu_ms": (time.process_time_ns() - self._cpu_ns) / 1e6,
        }

    def _tick(self) -> None:
        self._note()
        self._timer = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._tick)

    def _note(self) -> None:
        now, cpu = time.monotonic_ns(), time.thread_time_ns()
        self._stall_ns = max(self._stall_ns, now - self._last_ns - _TICK_NS)
        self._busy_ns = max(self._busy_ns, cpu - self._last_cpu_ns)
        self._last_ns, self._last_cpu_ns = now, cpu
