"""Owners of a node's own tasks: one that dies or returns is started again, with backoff, and counted."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import structlog

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 10.0

log = structlog.get_logger("ops")


class Supervisor:
    """Runs a node's background work; use it as ``async with Supervisor.running() as supervisor``."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._running: list[asyncio.Task[None]] = []
        self.restarts: dict[str, int] = {}

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator["Supervisor"]:
        """Own tasks for the length of the block; its end cancels them."""
        async with asyncio.TaskGroup() as tasks:
            supervisor = cls(tasks)
            try:
                yield supervisor
            finally:
                for task in supervisor._running:
                    task.cancel()

    def start(self, work: Callable[[], Awaitable[None]], *, name: str) -> None:
        """Keep ``work`` going: it is work without an end, so that returning counts as dying."""
        self.restarts[name] = 0
        self._running.append(self._tasks.create_task(self._keep(work, name), name=name))

    async def _keep(self, work: Callable[[], Awaitable[None]], name: str) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                await work()
                log.error("task_returned", task=name)
            except asyncio.CancelledError:
                current = asyncio.current_task()
                if current is not None and current.cancelling():
                    raise
                log.exception("task_died", task=name)  # what it waited for was cancelled, not this task
            except Exception:
                log.exception("task_died", task=name)
            self.restarts[name] += 1
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
