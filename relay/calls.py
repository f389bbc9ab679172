"""The calls that live on this node: started, counted, ended together. Owns their tasks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from relay.core.endings import Ending
from relay.session import Session

log = structlog.get_logger("relay")


class Calls:
    """A node's calls by id; use it as ``async with Calls.running() as calls``."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._sessions: dict[str, Session] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator["Calls"]:
        """Hold calls for the length of the block; its end waits for them, cancelling it ends them."""
        async with asyncio.TaskGroup() as tasks:
            yield cls(tasks)

    def __len__(self) -> int:
        return len(self._sessions)

    def start(self, session: Session) -> None:
        """Let a call live; a session ends its own call on any error, so none of them can end another."""
        self._sessions[session.call_id] = session
        self._empty.clear()
        self._tasks.create_task(self._live(session), name=session.call_id)

    async def _live(self, session: Session) -> None:
        try:
            await session.run()
        except Exception:
            log.exception("call_failed", call=session.call_id)  # a bug of ours, which must not end the other calls
        finally:
            del self._sessions[session.call_id]
            if not self._sessions:
                self._empty.set()

    def end_all(self, ending: Ending) -> None:
        """Begin the end of every call."""
        for session in self._sessions.values():
            session.end(ending)

    async def wait_empty(self) -> None:
        """Until no call is left."""
        await self._empty.wait()
