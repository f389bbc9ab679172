"""Time and chance of one schedule: what happens when, in one order that the seed decides. Knows nothing of the bus."""

import heapq
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

START = 1000.0  # of the steady clock, in seconds; 0 means never in some places
EPOCH = 1_700_000_000.0  # what true wall clocks show at 0
_TRACE_MAX = 20_000  # lines; the oldest go first

Act = Callable[..., None]


class World:
    """A heap of events. Everything random in a schedule comes out of `random`."""

    def __init__(self, seed: int, *, is_traced: bool = False) -> None:
        self.random = Random(seed)
        self.now = START
        self.events = 0
        self.last_work_at = float("inf")  # after it nothing begins any more that nobody waits for
        self.trace: deque[str] | None = deque(maxlen=_TRACE_MAX) if is_traced else None
        self._heap: list[tuple[float, int, Act, tuple[Any, ...]]] = []
        self._order = 0

    def at(self, when: float, act: Act, *args: Any) -> None:
        """Let something happen, never before now; at the same time what was asked for first comes first."""
        self._order += 1
        heapq.heappush(self._heap, (max(when, self.now), self._order, act, args))

    def after(self, seconds: float, act: Act, *args: Any) -> None:
        """Let something happen so much later."""
        self.at(self.now + seconds, act, *args)

    def run(self, until: float) -> None:
        """Everything up to then."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, act, args = heapq.heappop(heap)
            self.events += 1
            act(*args)
        self.now = until

    def chance(self, probability: float) -> bool:
        """True that often."""
        return self.random.random() < probability

    def between(self, low: float, high: float) -> float:
        """Any number between these."""
        return low + (high - low) * self.random.random()

    def note(self, *words: object) -> None:
        """A line of the trace; callers in hot places look at `trace` first."""
        if self.trace is not None:
            self.trace.append(f"{self.now - START:10.4f}  {' '.join(map(str, words))}")
