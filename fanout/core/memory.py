"""What a call must remember for a new owner: entries in order, bounded, and how much of it Redis has. Pure.

An entry is opaque here. Its position is the number of entries before it, ever; the oldest are forgotten first.
"""

from collections import deque
from typing import NamedTuple


class MemoryEntry(NamedTuple):
    """An entry and its place."""

    position: int
    entry: bytes


class Memory:
    """The owner's copy, which is what it writes from when Redis has lost it."""

    def __init__(self, entries_max: int, bytes_max: int) -> None:
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self._entries: deque[bytes] = deque()
        self._bytes = 0
        self._stored = 0
        self.total = 0
        self.needs_rewrite = False

    @property
    def entries(self) -> list[bytes]:
        """What is kept, oldest first."""
        return list(self._entries)

    @property
    def forgotten(self) -> int:
        """How many of the oldest are gone."""
        return self.total - len(self._entries)

    def add(self, entry: bytes) -> MemoryEntry:
        """Remember one more. One that is larger than all that may be kept pushes everything out, itself included."""
        place = MemoryEntry(self.total, entry)
        self._entries.append(entry)
        self._bytes += len(entry)
        self.total += 1
        while len(self._entries) > self._entries_max or self._bytes > self._bytes_max:
            self._bytes -= len(self._entries.popleft())
        return place

    def restore(self, total: int, entries: list[bytes]) -> None:
        """What Redis has, for an owner that took the call over."""
        self._entries = deque(entries)
        self._bytes = sum(map(len, entries))
        self.total = self._stored = total

    def is_stored(self, place: MemoryEntry) -> bool:
        """Whether Redis has this entry, or had it when it was forgotten."""
        return place.position < self._stored

    def keep_with(self, place: MemoryEntry) -> int:
        """How many entries Redis should keep once this one is added to it."""
        return max(0, place.position + 1 - self.forgotten)

    def on_stored(self, total: int) -> None:
        """Redis has the first `total`, ever."""
        self._stored = max(self._stored, total)

    def on_lost(self) -> None:
        """Redis may lack some: all of it is to be written again before anything is added."""
        self._stored = 0
        self.needs_rewrite = self.total > 0
