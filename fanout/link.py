"""One region's Redis: its connections and its scripts. Any trouble there comes out as RegionUnreachable.

The only file that imports redis-py. Its own retries, health check and socket timeout are off: when to repeat is the
callers' decision; the health check never leaves a dead Sentinel master; and the timeout of a send is asyncio.wait_for,
which before Python 3.12 can swallow a cancellation, and then the node would never stop (seen).
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any, NamedTuple

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from fanout.errors import RegionUnreachable
from fanout.settings import BusSettings

_log = structlog.get_logger("fanout")

# What redis-py raises when the server is away, slow or refusing.
REDIS_TROUBLE = (RedisError, OSError, TimeoutError)

Connection = AbstractConnection
Arg = str | bytes | int | float


class Script:
    """A Lua script, known to the server by its digest."""

    def __init__(self, name: str) -> None:
        source = files("fanout") / "lua"
        self.text = (source / "common.lua").read_text() + (source / f"{name}.lua").read_text()
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class Run(NamedTuple):
    """One call of a script."""

    script: Script
    keys: Sequence[str]
    args: Sequence[Arg]

    @property
    def tail(self) -> tuple[Arg, ...]:
        """What follows the script in EVALSHA."""
        return (len(self.keys), *self.keys, *self.args)


class Link:
    """A bounded pool of command connections to one Redis, and new connections for the subscriber."""

    def __init__(self, region: str, url: str, settings: BusSettings) -> None:
        self.region = region
        self.errors = 0
        self._trouble = ""
        self._timeout = settings.socket_timeout
        try:
            self._pool = BlockingConnectionPool.from_url(
                url,
                max_connections=settings.connections,
                timeout=None,  # for a free connection; our own time limit covers it
                socket_timeout=None,
                socket_connect_timeout=settings.socket_timeout,
                health_check_interval=0,
                protocol=2,  # a third less CPU per published message than 3, and a round trip less to connect
                driver_info=None,
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError:
            # The error's text may quote the URL, and the URL has the password.
            raise ValueError(f"regions: the URL of {region} cannot be read") from None
        self._client: Redis = Redis.from_pool(self._pool)

    def new_connection(self) -> Connection:
        """A connection of the caller's own, not yet connected."""
        connection: Connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        return connection

    async def run(self, run: Run) -> Any:
        """One script; loads it if the server doesn't have it, as after a fail-over."""
        async with self._answering():
            try:
                return await self._command("EVALSHA", run.script.sha, *run.tail)
            except NoScriptError:
                return await self._command("EVAL", run.script.text, *run.tail)

    async def run_many(self, runs: Sequence[Run]) -> list[Any]:
        """Scripts in one go, answers in the same order. If it raises, any of them may have run."""
        async with self._answering():
            answers = await self._pipeline([("EVALSHA", run.script.sha, *run.tail) for run in runs])
            missing = [place for place, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
            if missing:
                texts = [("EVAL", runs[place].script.text, *runs[place].tail) for place in missing]
                for place, answer in zip(missing, await self._pipeline(texts), strict=True):
                    answers[place] = answer
            return _checked(answers)

    async def commands(self, commands: Iterable[tuple[Arg, ...]]) -> list[Any]:
        """Plain commands in one go, answers in the same order."""
        async with self._answering():
            return _checked(await self._pipeline(commands))

    async def _command(self, *parts: Arg) -> Any:
        return await self._client.execute_command(*parts)  # type: ignore[no-untyped-call]

    async def _pipeline(self, commands: Iterable[tuple[Arg, ...]]) -> list[Any]:
        async with self._client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers

    @asynccontextmanager
    async def _answering(self) -> AsyncIterator[None]:
        """The time limit, and the translation of whatever goes wrong."""
        try:
            async with asyncio.timeout(self._timeout):
                yield
        except REDIS_TROUBLE as exc:
            raise self.unreachable(exc) from exc
        self._trouble = ""

    def unreachable(self, exc: BaseException) -> RegionUnreachable:
        """Counts the trouble and logs each new kind of it once until something works again."""
        self.errors += 1
        kind = type(exc).__name__
        if kind != self._trouble:
            self._trouble = kind
            _log.warning("redis_trouble", region=self.region, kind=kind, error=str(exc)[:200])
        return RegionUnreachable(self.region)

    async def close(self) -> None:
        """Close every command connection."""
        await self._client.aclose()
        await self._pool.aclose()


def _checked(answers: list[Any]) -> list[Any]:
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers
