"""One primary as this node uses it: a few wires for scripts and one feed, kept connected in the background.

Few and warm, because the first command on a cold connection to another region costs several round trips. Large messages
have a wire of their own, so that a small one never waits behind a megabyte.
"""

import asyncio
from typing import Protocol

from fanout.core.topology import Address
from fanout.redis.dial import Dialler
from fanout.redis.feed import Ear, Feed
from fanout.redis.trouble import REDIS_TROUBLE, Trouble
from fanout.redis.wire import Wire
from fanout.settings import BusSettings
from fanout.tasks import Backoff


class Watcher(Ear, Protocol):
    """What a server tells; each returns at once and never raises."""

    def on_wires_changed(self) -> None:
        """One came or went."""


class _Lane:
    """The place of one wire: a new one is connected whenever the old one is lost."""

    def __init__(self, server: "Server", number: int) -> None:
        self._server = server
        self.name = f"{server.address} wire {number}"
        self.wire: Wire | None = None
        self.connects = 0

    async def work(self) -> None:
        """Never returns."""
        server, settings = self._server, self._server.settings
        backoff = Backoff(settings.backoff_seconds, settings.backoff_max_seconds)
        while True:
            try:
                async with server.dialler.primary(server.address) as (connection, run_id):
                    self.connects += 1
                    self.wire = Wire(connection, server.address, run_id, settings)
                    server.watcher.on_connected(server.address, run_id)
                    server.watcher.on_wires_changed()
                    await self.wire.serve(backoff)
            except REDIS_TROUBLE as exc:
                server.trouble.report(self.name, exc)
            finally:
                self.wire = None
            server.watcher.on_wires_changed()
            server.watcher.on_refused()
            await backoff.wait()


class Server:
    """Works from `start` to `stop`."""

    def __init__(
        self, dialler: Dialler, address: Address, settings: BusSettings, trouble: Trouble, watcher: Watcher
    ) -> None:
        self.dialler = dialler
        self.address = address
        self.settings = settings
        self.trouble = trouble
        self.watcher = watcher
        self.place = f"{address} scripts"
        self.run_id = ""  # of the process that was last connected to
        self.feed = Feed(dialler, address, settings, trouble, watcher)
        self._small = [_Lane(self, number) for number in range(settings.connections)]
        self._large = _Lane(self, settings.connections)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_ready(self) -> bool:
        """Whether scripts can be run and messages heard."""
        return self.feed.is_connected and self.wire(is_large=False) is not None

    @property
    def connects(self) -> int:
        """Connections made so far."""
        return self.feed.connects + sum(lane.connects for lane in (*self._small, self._large))

    def wire(self, *, is_large: bool) -> Wire | None:
        """The least busy live wire of the kind, or else whichever there is."""
        if is_large and self._large.wire is not None:
            return self._large.wire
        best: Wire | None = None
        for lane in self._small:
            wire = lane.wire
            if wire is not None and (best is None or wire.under_way < best.under_way):
                best = wire
        return best or self._large.wire

    def start(self, group: asyncio.TaskGroup) -> None:
        """Connect everything, in tasks of this group."""
        self._tasks.append(group.create_task(self.feed.work(), name=f"feed {self.address}"))
        for lane in (*self._small, self._large):
            self._tasks.append(group.create_task(lane.work(), name=lane.name))

    def stop(self) -> None:
        """End its tasks and with them its connections; what is under way is lost."""
        for task in self._tasks:
            task.cancel()

    async def stopped(self) -> None:
        """End its tasks, and return when its connections are closed."""
        self.stop()
        if self._tasks:
            await asyncio.wait(self._tasks)
