"""Which of many things has something to do when, and who waits for that. Knows nothing of what is to be done."""

import asyncio
import heapq
from collections import deque
from collections.abc import Hashable
from itertools import count
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)
_TICK = 0.001  # seconds, of the loop's clock


class Schedule(Generic[Item]):
    """Each item is in it once, with the earliest moment that was given for it. Any number of workers may `wait`."""

    def __init__(self) -> None:
        self._due: dict[Item, float] = {}
        self._heap: list[tuple[float, int, Item]] = []
        self._order = count()
        self._idle: deque[asyncio.Future[None]] = deque()  # workers that wait for something to do

    @staticmethod
    def now() -> float:
        """Up to which moment things are due now: timers come a hair early, and asking until the clock moves costs."""
        return asyncio.get_running_loop().time() + _TICK

    def put(self, item: Item, due: float) -> None:
        """Something is to be done for it at this moment of the loop's clock, or earlier."""
        known = self._due.get(item)
        if known is None or due < known:
            first = self._next()
            self._due[item] = due
            heapq.heappush(self._heap, (due, next(self._order), item))
            if first is None or due < first:
                self.wake()  # else somebody comes for the first, in time for this one too

    def drop(self, item: Item) -> None:
        """Nothing is to be done for it."""
        self._due.pop(item, None)

    def take(self, now: float, most: int) -> list[Item]:
        """What is due, in the order of its moments; each is out of the schedule then."""
        taken: list[Item] = []
        while len(taken) < most and (due := self._next()) is not None and due <= now:
            _, _, item = heapq.heappop(self._heap)
            del self._due[item]
            taken.append(item)
        if len(taken) == most and (due := self._next()) is not None and due <= now:
            self.wake()
        return taken

    async def wait(self, until: float | None = None) -> None:
        """Until something is due, or that moment, or somebody wakes us."""
        loop = asyncio.get_running_loop()
        moments = [moment for moment in (self._next(), until) if moment is not None]
        if moments and min(moments) <= loop.time():
            await asyncio.sleep(0)
            return
        waiter = loop.create_future()
        self._idle.append(waiter)
        try:
            async with asyncio.timeout_at(min(moments, default=None)):
                await waiter
        except TimeoutError:
            pass
        finally:
            if waiter in self._idle:
                self._idle.remove(waiter)

    def wake(self) -> None:
        """One of those who wait, to look again: for the others there is nothing to do."""
        while self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():  # else its time was over
                waiter.set_result(None)
                return

    def _next(self) -> float | None:
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)  # dropped, or due earlier than it was
        return self._heap[0][0] if self._heap else None
