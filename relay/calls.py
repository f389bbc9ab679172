"""What lives on this node for longer than a request, calls and side legs: started, counted, ended. Owns their tasks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Generic, Protocol, TypeVar

import structlog

log = structlog.get_logger("relay")


class Living(Protocol):
    """Something with a life of its own: it ends itself on any error, so that none of them can end another."""

    @property
    def call_id(self) -> str:
        """The call that it is, or is about."""
        ...

    async def run(self) -> None:
        """Live, until nothing of it is left on this node."""


L = TypeVar("L", bound=Living)


class Lives(Generic[L]):
    """All of one kind on a node; use it as ``async with Lives.running() as calls``."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._all: set[L] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator["Lives[L]"]:
        """Hold them for the length of the block; its end waits for them, cancelling it ends them."""
        async with asyncio.TaskGroup() as tasks:
            yield cls(tasks)

    def __len__(self) -> int:
        return len(self._all)

    def start(self, one: L) -> asyncio.Task[None]:
        """Let one live."""
        self._all.add(one)
        self._empty.clear()
        return self._tasks.create_task(self._live(one), name=one.call_id)

    async def _live(self, one: L) -> None:
        try:
            await one.run()
        except Exception:
            log.exception("call_failed", call=one.call_id)  # a bug of ours, which must not end the others
        finally:
            self._all.discard(one)
            if not self._all:
                self._empty.set()

    def all(self) -> list[L]:
        """Those that live now."""
        return list(self._all)

    async def wait_empty(self) -> None:
        """Until none is left."""
        await self._empty.wait()
