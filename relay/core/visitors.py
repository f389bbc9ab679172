"""How many connections an address has and how fast it begins requests, in bounded tables. Pure; ``now`` comes in.

Rates are leaky buckets that hold a minute's worth, as one number each: when the bucket will be empty again.
"""

from collections import OrderedDict
from enum import IntEnum
from typing import Final

ADDRESSES: Final = 65_536  # whose rates are remembered; the one that was idle the longest goes first
_MINUTE: Final = 60.0
_ROUNDING: Final = 1e-6  # seconds
_FLOOD: Final = 2  # times the limit: beyond it an answer costs more than it helps


class Crowd(IntEnum):
    """An address's connections: as many as it may have, more, or so many more that they get no answer."""

    WITHIN = 0
    OVER = 1
    FLOOD = 2


class Visitors:
    """The addresses that use one node. A limit of 0 is none; connections are counted all the same."""

    def __init__(self, *, connections: int, starts_per_minute: int, addresses: int = ADDRESSES) -> None:
        """Args: ``connections`` and ``starts_per_minute`` that an address may have, and ``addresses`` remembered."""
        self._most_connections = connections
        self._interval = _MINUTE / starts_per_minute if starts_per_minute else 0.0
        self._addresses = addresses
        self._connections: dict[str, int] = {}  # as long as there are any: what is open bounds it
        self._empty_at: OrderedDict[str, float] = OrderedDict()

    def enter(self, address: str) -> Crowd:
        """Count one more connection; each has to ``leave``."""
        self._connections[address] = self._connections.get(address, 0) + 1
        return self.crowd(address)

    def leave(self, address: str) -> None:
        """Count one connection less."""
        left = self._connections[address] - 1
        if left:
            self._connections[address] = left
        else:
            del self._connections[address]

    def crowd(self, address: str) -> Crowd:
        """Say how its connections stand to the limit."""
        found, most = self._connections.get(address, 0), self._most_connections
        if not most or found <= most:
            return Crowd.WITHIN
        return Crowd.OVER if found <= _FLOOD * most else Crowd.FLOOD

    def start(self, address: str, now: float) -> float:
        """Count the start of a request if it is within the limit: 0.0, else the seconds until it would be.

        What is over the limit doesn't count: who waits as told gets through.
        """
        wait = self._over(address, now)
        if wait <= 0.0:
            self._add(address, now)
        return max(wait, 0.0)

    def fail(self, address: str, now: float) -> None:
        """Count a connection that came to nothing; unlike starts such ones count beyond the limit, up to its double."""
        if self._over(address, now) < _MINUTE:
            self._add(address, now)

    def is_failing(self, address: str, now: float) -> bool:
        """Whether so much of what it began came to nothing that it may begin no more for now."""
        return self._over(address, now) > self._interval

    def _over(self, address: str, now: float) -> float:
        """Seconds until one more fits."""
        if not self._interval:
            return 0.0
        over = max(self._empty_at.get(address, 0.0), now) + self._interval - now - _MINUTE
        return over if over > _ROUNDING else 0.0

    def _add(self, address: str, now: float) -> None:
        if not self._interval:
            return
        self._empty_at[address] = max(self._empty_at.get(address, 0.0), now) + self._interval
        self._empty_at.move_to_end(address)
        if len(self._empty_at) > self._addresses:
            self._empty_at.popitem(last=False)

    def refund(self, address: str) -> None:
        """Take back what the last ``start`` counted."""
        if address in self._empty_at:
            self._empty_at[address] -= self._interval

    @property
    def remembered(self) -> int:
        """The addresses that take memory."""
        return len(self._connections.keys() | self._empty_at.keys())
