"""What the bus asks of whoever seals what a call's home keeps of the conversation, and who seals nothing. Pure.

A seal belongs to one call and is given the name under which a value is kept: what is sealed for one place doesn't open
in another. See fanout/sealing.py for the one with keys.
"""

from collections.abc import Iterable
from typing import Final, Protocol

from fanout.errors import Unsealable

SEALED: Final = b"\0"  # what a sealed value begins with; no clear one does: they are JSON and msgpack lists
MEMORY: Final = "memory list"  # the name of all entries of that; no fact has it


class CallSeal(Protocol):
    """Of one call."""

    def seal(self, name: str, value: bytes) -> bytes:
        """The value as it is to be kept."""
        ...

    def open(self, name: str, kept: bytes) -> bytes:
        """The value again; one that was kept in the clear passes. Raises Unsealable."""
        ...


class Seals(Protocol):
    """Of all calls."""

    def of(self, call_id: str) -> CallSeal:
        """The seal of a call."""
        ...


class Clear:
    """Seals nothing, for any call."""

    def of(self, call_id: str) -> "Clear":
        """The same for all."""
        return self

    def seal(self, name: str, value: bytes) -> bytes:
        """The value itself."""
        return value

    def open(self, name: str, kept: bytes) -> bytes:
        """The value itself, unless somebody else sealed it. Raises Unsealable."""
        if kept.startswith(SEALED):
            raise Unsealable("no key is known here")
        return kept


CLEAR: Final = Clear()


def open_facts(seal: CallSeal, kept: Iterable[tuple[bytes, bytes]]) -> dict[str, bytes]:
    """Facts by name; one that cannot be opened is left out."""
    facts = {}
    for raw_name, value in kept:
        name = raw_name.decode()
        try:
            facts[name] = seal.open(name, value)
        except Unsealable:
            continue
    return facts
