"""What a call must remember for a new owner: items in order, bounded, and how much of it Redis has. Pure.

An entry is an item's id and bytes that are opaque here; it is sealed once, so that a repeat is the same. Its position
is the number of entries before it, ever; the oldest are forgotten first.
"""

from typing import NamedTuple

import msgspec

from fanout.core.seals import CLEAR, MEMORY, CallSeal
from fanout.errors import Unsealable

_pack = msgspec.msgpack.encode
_unpack = msgspec.msgpack.Decoder(tuple[str, bytes]).decode


class MemoryEntry(NamedTuple):
    """An entry as Redis keeps it, and its place."""

    position: int
    packed: bytes


class Memory:
    """The owner's copy, which is what it writes from when Redis has lost it."""

    def __init__(self, entries_max: int, bytes_max: int, seal: CallSeal = CLEAR) -> None:
        self._seal = seal
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self._packed: dict[str, bytes] = {}
        self._bytes = 0
        self._stored = 0
        self.total = 0
        self.needs_rewrite = False

    @property
    def entries(self) -> list[bytes]:
        """What is kept, oldest first."""
        return [self._read(packed)[1] for packed in self._packed.values()]

    @property
    def packed(self) -> list[bytes]:
        """The same as Redis keeps it."""
        return list(self._packed.values())

    @property
    def forgotten(self) -> int:
        """How many of the oldest are gone."""
        return self.total - len(self._packed)

    def has(self, item_id: str) -> bool:
        """Whether this item is remembered."""
        return item_id in self._packed

    def add(self, item_id: str, entry: bytes) -> MemoryEntry | None:
        """Remember one more, None if it is remembered already.

        One that is larger than all that may be kept pushes everything out, itself included.
        """
        if item_id in self._packed:
            return None
        place = MemoryEntry(self.total, self._seal.seal(MEMORY, _pack((item_id, entry))))
        self._packed[item_id] = place.packed
        self._bytes += len(place.packed)
        self.total += 1
        while len(self._packed) > self._entries_max or self._bytes > self._bytes_max:
            self._bytes -= len(self._packed.pop(next(iter(self._packed))))
        return place

    def restore(self, total: int, packed: list[bytes]) -> None:
        """What Redis has, for an owner that took the call over. An entry that cannot be read is left out."""
        for one in packed:
            try:
                self._packed[self._read(one)[0]] = one
            except (Unsealable, msgspec.MsgspecError, UnicodeDecodeError):
                continue
        self._bytes = sum(map(len, self._packed.values()))
        self.total = self._stored = total

    def _read(self, packed: bytes) -> tuple[str, bytes]:
        return _unpack(self._seal.open(MEMORY, packed))

    def forget(self) -> None:
        """All of it."""
        self._packed.clear()
        self._bytes = self.total = self._stored = 0
        self.needs_rewrite = False

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
