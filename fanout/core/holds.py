"""Messages that have their end and are kept a while: a Redis that takes over may not know of them. Pure and bounded."""

from collections import deque
from typing import NamedTuple

from fanout.core.outbox import Outbox, Outgoing


class Held(NamedTuple):
    """A message, where it came from, and until when it is kept."""

    outbox: Outbox
    outgoing: Outgoing
    until: float


class Holds:
    """First in, first out; beyond the limits the oldest is let go."""

    def __init__(self, seconds: float, items_max: int, bytes_max: int) -> None:
        self._seconds = seconds
        self._items_max = items_max
        self._bytes_max = bytes_max
        self._held: deque[Held] = deque()
        self._bytes = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._held)

    def add(self, outbox: Outbox, outgoing: Outgoing, now: float) -> None:
        """Keep one."""
        self._held.append(Held(outbox, outgoing, now + self._seconds))
        self._bytes += outgoing.size
        while len(self._held) > self._items_max or self._bytes > self._bytes_max:
            self._pop()
            self.dropped += 1

    def release(self, now: float) -> None:
        """Redis answered just now, as the server that it was: what is old enough is on its replicas."""
        while self._held and self._held[0].until <= now:
            self._pop()

    def take(self, tags: frozenset[str]) -> list[Held]:
        """All that these partitions had, to be published once more."""
        taken = [held for held in self._held if held.outbox.tag in tags]
        self._held = deque(held for held in self._held if held.outbox.tag not in tags)
        self._bytes = sum(held.outgoing.size for held in self._held)
        return taken

    def _pop(self) -> None:
        self._bytes -= self._held.popleft().outgoing.size
