"""Which upstreams of a node failed lately: in which order an agent's are asked. Pure.

What is known of them is this node's alone, and only an order: one that failed is asked last, never not at all.
"""

from collections.abc import Iterable
from typing import Final

REMEMBERED_SECONDS: Final = 30.0  # short enough that an upstream is used again soon after it is mended


class Outages:
    """The failures of a node's upstreams, by name; there are as many of these as the rulebook ever had."""

    def __init__(self, seconds: float = REMEMBERED_SECONDS) -> None:
        self._seconds = seconds
        self._failed: dict[str, float] = {}  # when, last

    def fail(self, name: str, now: float) -> bool:
        """Note a failure; false if one is remembered already."""
        is_news = not self.is_out(name, now)
        self._failed[name] = now
        return is_news

    def serve(self, name: str, now: float) -> bool:
        """Note that it serves; true if a failure was remembered, which is forgotten now."""
        was_out = self.is_out(name, now)
        self._failed.pop(name, None)
        return was_out

    def is_out(self, name: str, now: float) -> bool:
        """Whether it failed lately."""
        return name in self._failed and now - self._failed[name] < self._seconds

    def order(self, names: Iterable[str], now: float) -> list[str]:
        """Return the names as they should be asked: as they stand, then those that failed, longest ago first."""
        return sorted(names, key=lambda name: self._failed[name] if self.is_out(name, now) else float("-inf"))
