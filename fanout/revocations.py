"""A region's list of tokens that hold no more, as one node knows it: what is new is read, what Redis lost is restored.

It forgets no token before that ends by itself: a Redis that comes back empty must not make a stolen one good again.
"""

import asyncio
import math
from collections.abc import Callable
from itertools import islice
from typing import Final

from fanout.core.accounts import REVOKED_MAX, REVOKED_READ, AccountScripts, Revoked
from fanout.store import Store, run_one

_Token = tuple[str, str]  # tenant, jti
_TOLD: Final = 500  # tokens in one run of a script


class Revocations:
    """One node's copy of its region's list."""

    def __init__(self, scripts: AccountScripts, *, clock: Callable[[], float]) -> None:
        self._scripts = scripts
        self._clock = clock
        self._reading = asyncio.Lock()
        self._until: dict[_Token, float] = {}
        self._first_end = math.inf  # of these, or earlier
        self._version = 0  # of the copy, counted by this node
        self._server = b""  # since when the server that was read is known
        self._read_to = 0  # version of the list on that server

    async def read(self, store: Store, known: int) -> Revoked:
        """See `Accounts.revoked`. Raises RegionUnreachable."""
        async with self._reading:
            self._drop_ended()
            await self._read_new(store)
        return Revoked(self._version, None if known == self._version else dict(self._until))

    async def _read_new(self, store: Store) -> None:
        """What came since the last time; all, where another server may know more or less than the one before."""
        found: dict[_Token, float] = {}
        server, after = self._server, self._read_to
        while True:
            _, since, last, *parts = await run_one(store, self._scripts.revoked(store.name, after))
            if since != server or int(last) < after:
                server, after = since, 0
                found.clear()
                continue
            for token, version, until_ms in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
                tenant, _, jti = token.decode().partition("\n")
                found[tenant, jti] = int(until_ms) / 1000
                after = int(version)
            if len(parts) < 3 * REVOKED_READ:
                break
        if server != self._server:
            await self._restore(store, found)
        self._add(found)
        self._server, self._read_to = server, after

    async def _restore(self, store: Store, theirs: dict[_Token, float]) -> None:
        """Tell a new server what it lacks. Raises RegionUnreachable: then all of it is done once more."""
        lacking = ((*token, until) for token, until in list(self._until.items()) if theirs.get(token, 0.0) < until)
        while part := list(islice(lacking, _TOLD)):
            await run_one(store, self._scripts.revoke(store.name, part))

    def _add(self, found: dict[_Token, float]) -> None:
        for token, until in found.items():
            held = self._until.get(token)
            if held is None and len(self._until) < REVOKED_MAX or held is not None and held < until:
                self._until[token] = until
                self._first_end = min(self._first_end, until)
                self._version += 1

    def _drop_ended(self) -> None:
        now = self._clock()
        if now < self._first_end:  # a full list takes five milliseconds
            return
        for token in [token for token, until in self._until.items() if until <= now]:
            del self._until[token]
        self._first_end = min(self._until.values(), default=math.inf)
