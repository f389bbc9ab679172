"""Keeps the public keys of whoever signs tokens elsewhere: fetches their set at a URL, now and then and when asked to.

Decides when to fetch, and what counts as an answer; what is in a set is for ``relay.keys``. No request starts a fetch
of its own: one task does all of them, in turn, so that a flood of unknown keys is one request every few seconds.
"""

import asyncio
import contextlib
import math
from typing import Final, NamedTuple

import aiohttp
import structlog

from relay.keys import BadKeySet, PublicKey, read_key_set

_MOST_BYTES: Final = 256 * 1024
_ACCEPT: Final = "application/jwk-set+json, application/json"

log = structlog.get_logger("relay")


class Pace(NamedTuple):
    """All in seconds."""

    every: float = 300.0  # between fetches that nobody asked for
    pause: float = 10.0  # at least, between any two
    fetch: float = 5.0  # at most, for one
    wait: float = 2.0  # at most, of a request for a fetch


_PACE: Final = Pace()


class Jwks:
    """The key set at one URL, as it was when it could last be read; ``watch`` is work without an end."""

    def __init__(self, url: str, pace: Pace = _PACE) -> None:
        self._url = url
        self._pace = pace
        self._body = b""
        self._wanted = asyncio.Event()
        self._answered = asyncio.Event()  # of the fetch that goes on, or of the next one
        self._rests_until = 0.0
        self._is_good: bool | None = None  # the last answer; None: there was none yet
        self.keys: tuple[PublicKey, ...] = ()
        self.fetches = {"ok": 0, "failed": 0}  # by outcome

    async def refresh(self) -> bool:
        """Have the set fetched again; returns whether ``keys`` is what the server says.

        False: it could not be fetched, or not in time. Asked for again too soon, it answers for the last time, and the
        fetch comes when the pause is over.
        """
        self._wanted.set()
        if not self.is_resting:
            try:
                async with asyncio.timeout(self._pace.wait):
                    await self._answered.wait()
            except TimeoutError:
                return False
        return self._is_good is True

    @property
    def is_resting(self) -> bool:
        """Whether the last fetch was so short a time ago that there is none now."""
        return asyncio.get_running_loop().time() < self._rests_until

    @property
    def retry_seconds(self) -> int:
        """After how long it is worth asking again."""
        return max(1, math.ceil(self._rests_until - asyncio.get_running_loop().time()))

    async def watch(self) -> None:
        """Fetch, for ever: at once, every few minutes, when asked to, and after a failure as soon as it may."""
        seconds, no_jar = aiohttp.ClientTimeout(total=self._pace.fetch), aiohttp.DummyCookieJar()
        # Not decompressed: what is small on the wire would be large here before its size is known.
        async with aiohttp.ClientSession(auto_decompress=False, timeout=seconds, cookie_jar=no_jar) as http:
            while True:
                await self._take(http)
                await asyncio.sleep(self._pace.pause)
                if self._is_good:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(max(0.0, self._pace.every - self._pace.pause)):
                            await self._wanted.wait()

    async def _take(self, http: aiohttp.ClientSession) -> None:
        self._rests_until = 0.0
        try:
            body = await self._fetch(http)
            if body != self._body:
                self.keys, self._body = read_key_set(body), body
        except (aiohttp.ClientError, OSError, BadKeySet) as error:
            self._fail(str(error) or type(error).__name__)
        else:
            self._succeed()
        finally:
            self._rests_until = asyncio.get_running_loop().time() + self._pace.pause
            self._wanted.clear()  # whoever asked meanwhile has this answer
            answered, self._answered = self._answered, asyncio.Event()
            answered.set()

    async def _fetch(self, http: aiohttp.ClientSession) -> bytes:
        headers = {"Accept": _ACCEPT, "Accept-Encoding": "identity"}
        async with http.get(self._url, headers=headers, allow_redirects=False) as response:
            if response.status != 200:  # a redirect too: keys come from where the operator said, and nowhere else
                raise BadKeySet(f"the server answered with HTTP {response.status}")
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > _MOST_BYTES:
                    raise BadKeySet(f"the answer is longer than {_MOST_BYTES} bytes")
            return bytes(body)

    def _fail(self, reason: str) -> None:
        self.fetches["failed"] += 1
        if self._is_good is not False:  # once, not every ten seconds of an outage
            log.warning("jwks_failed", reason=reason, keys=len(self.keys))
        self._is_good = False

    def _succeed(self) -> None:
        self.fetches["ok"] += 1
        if self._is_good is False:
            log.info("jwks_back", keys=len(self.keys))
        self._is_good = True
