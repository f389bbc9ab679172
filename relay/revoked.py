"""Which tokens hold no more, as this node knows it. Owns the reading; the list is its region's (``fanout.Accounts``).

While Redis is away what was known still holds, and nothing is learned.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from fanout import Accounts, RegionUnreachable

_READ_SECONDS: Final = 1.0


class Revoked:
    """The list of one node; ``watch`` is work without an end."""

    def __init__(self, accounts: Accounts, on_change: Callable[[], None]) -> None:
        self._accounts = accounts
        self._on_change = on_change
        self._tokens: frozenset[tuple[str, str]] = frozenset()
        self._version = -1
        self._read_at: float | None = None
        self._loop = asyncio.get_running_loop()

    def has(self, tenant: str, jti: str | None) -> bool:
        """Whether a tenant's token with this id holds no more."""
        return (tenant, jti) in self._tokens

    @property
    def age(self) -> float:
        """Seconds since the list was last read, -1.0 before the first time."""
        return self._loop.time() - self._read_at if self._read_at is not None else -1.0

    async def watch(self) -> None:
        """Read what is new, every second."""
        while True:
            try:
                found = await self._accounts.revoked(self._version)
            except RegionUnreachable:
                pass
            else:
                self._read_at, self._version = self._loop.time(), found.version
                if found.entries is not None:
                    self._tokens = frozenset(found.entries)
                    self._on_change()
            await asyncio.sleep(_READ_SECONDS)
