"""How late the event loop runs: what everything on the node waits for at least."""

import asyncio
from bisect import bisect_left
from typing import Final

LAG_BUCKETS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)  # seconds
_EVERY_SECONDS: Final = 0.25


class LoopLag:
    """A histogram of lateness in seconds, as plain integers; ``bounds`` are upper bounds."""

    def __init__(self) -> None:
        self.bounds: tuple[float, ...] = LAG_BUCKETS
        self.counts = [0] * (len(LAG_BUCKETS) + 1)
        self.sum = 0.0
        self.largest = 0.0

    async def watch(self) -> None:
        """Measure for ever."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _EVERY_SECONDS
            await asyncio.sleep(_EVERY_SECONDS)
            lag = max(0.0, loop.time() - due)
            self.counts[bisect_left(self.bounds, lag)] += 1
            self.sum += lag
            self.largest = max(self.largest, lag)
