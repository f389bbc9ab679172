"""Who owns the bus's tasks: one group for the node, ended with it. Knows nothing of what the tasks do."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self

import structlog

_log = structlog.get_logger("fanout")


class Backoff:
    """Growing pauses with jitter, so that a fleet doesn't return to a recovered Redis in step."""

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._pause = first

    def reset(self) -> None:
        """It worked: start small again."""
        self._pause = self._first

    async def wait(self) -> None:
        """Pause for half to the whole of the current length, and double it."""
        pause = self._pause * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing
        self._pause = min(self._pause * 2, self._longest)
        await asyncio.sleep(pause)


class Signal:
    """Wakes whoever waits for something to change, to look again."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Something may have changed."""
        self._changed.set()
        self._changed.clear()

    async def wait(self, seconds: float | None) -> None:
        """Until then, or for so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass


class Tasks:
    """A task group whose children's failures are logged and counted instead of ending the node.

    A context manager; leaving it cancels what still runs. An error of the block comes out as it is, in no group.
    """

    def __init__(self, *, first_pause: float, longest_pause: float) -> None:
        self._pauses = (first_pause, longest_pause)
        self._group = asyncio.TaskGroup()
        self._running: set[asyncio.Task[None]] = set()
        self.failures = 0

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._running:
            task.cancel()
        await self._group.__aexit__(None, None, None)

    def start(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """Run once. The caller may cancel it."""
        task = self._own(self._once(work, name), name)
        task.add_done_callback(lambda _: work.close())  # if it was cancelled before it began
        return task

    def keep(self, work: Callable[[], Awaitable[None]], *, name: str) -> None:
        """Run for as long as the node does: started again, after a pause, if it dies or returns."""
        self._own(self._forever(work, name), name)

    def _own(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self._group.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _once(self, work: Coroutine[Any, Any, None], name: str) -> None:
        try:
            await work
        except Exception:  # noqa: BLE001 - one message's bug must not end the node
            self._failed(name)

    async def _forever(self, work: Callable[[], Awaitable[None]], name: str) -> None:
        backoff = Backoff(*self._pauses)
        while True:
            try:
                await work()
            except asyncio.CancelledError:
                current = asyncio.current_task()
                if current is not None and current.cancelling():
                    raise
                self._failed(name)  # what it waited for was cancelled, not this task
            except Exception:  # noqa: BLE001 - as above; the count and the traceback tell
                self._failed(name)
            await backoff.wait()

    def _failed(self, name: str) -> None:
        self.failures += 1
        _log.exception("bus_task_failed", task=name)
