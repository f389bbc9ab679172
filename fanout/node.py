"""A node's place on the bus, and the whole of what the rest of the relay calls: put, read, watch, own."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fanout.accounts import Accounts
from fanout.directory import Place, place_of
from fanout.errors import BusFull, CallNotFound, CallTaken, RegionUnreachable
from fanout.home import Home, OpenStore
from fanout.ids import home_of
from fanout.messages import (
    CallFilter,
    CallPage,
    CallRecord,
    Facts,
    LogEntry,
    Message,
    Receipt,
    Reservation,
    Status,
    Tombstone,
)
from fanout.owned import OwnedCall
from fanout.redis import open_store
from fanout.settings import BusSettings
from fanout.tasks import Tasks
from fanout.watcher import Watch

_TAKES = 3  # claims of a call before somebody else's is left to stand


class Fanout:
    """Get one from `Fanout.running`."""

    def __init__(
        self, settings: BusSettings, homes: dict[str, Home], tasks: Tasks, *, clock: Callable[[], float]
    ) -> None:
        self._settings = settings
        self._homes = homes
        self._tasks = tasks
        self.accounts = Accounts(settings, homes, clock=clock)
        self.on_orphan: Callable[[Tombstone], None] | None = None  # told of each call that this node ended for another
        for home in homes.values():
            home.reaper.on_orphan = self._on_orphan

    @classmethod
    @asynccontextmanager
    async def running(
        cls, settings: BusSettings, *, clock: Callable[[], float], open_store: OpenStore = open_store
    ) -> AsyncIterator["Fanout"]:
        """The bus, working, for the length of the block. Doesn't wait for Redis: a node starts without it.

        `clock` is wall time in seconds since the epoch. At the end what is still to be written has `close_seconds`.
        """
        boot = secrets.token_hex(6)
        pauses = {"first_pause": settings.backoff_seconds, "longest_pause": settings.backoff_max_seconds}
        async with AsyncExitStack() as stores, Tasks(**pauses) as tasks:
            homes = {}
            for name, url in settings.regions.items():
                home = Home(name, url, settings, boot, open_store=open_store, clock=clock, tasks=tasks)
                stores.push_async_callback(home.store.close)
                homes[name] = home
            try:
                yield cls(settings, homes, tasks, clock=clock)
            finally:
                async with asyncio.TaskGroup() as group:
                    for home in homes.values():
                        group.create_task(home.leave())

    async def put(self, call_id: str, tenant: str, message: Message, *, wait: Status, timeout: float) -> Receipt:
        """Put a message into a call, wherever it lives; returns once its receipt reached `wait`, or at the timeout.

        At the timeout the receipt so far is returned and the message goes on by itself. The same id again is the same
        message and gets the same receipt. Raises CallNotFound, CallNotStarted, CallEnded, InboxFull,
        IdempotencyConflict, MessageTooLarge, BusFull, BusTimeout (not written), RegionUnreachable (unknown whether
        written; a repeat with the same id is safe), CallStateUnknown (not written; ask again).
        """
        return await self._home(call_id).publisher.put(call_id, tenant, message, wait=wait, timeout=timeout)

    async def receipt(self, call_id: str, tenant: str, message_id: str) -> Receipt | None:
        """What became of a message. Raises CallNotFound, CallStateUnknown, RegionUnreachable, EnvelopeError (newer)."""
        return await self._home(call_id).directory.receipt(call_id, tenant, message_id)

    async def call(self, call_id: str, tenant: str) -> CallRecord | Tombstone | None:
        """A live call, an ended one within the hour, or None; another tenant's is None.

        Raises RegionUnreachable, CallStateUnknown.
        """
        home = self._homes.get(home_of(call_id) or "")
        return None if home is None else await home.directory.call(call_id, tenant)

    async def find(self, call_id: str, tenant: str) -> CallRecord | Tombstone | Reservation | None:
        """What an id stands for: a live call, as Redis has it, one that ended within the hour, or a reservation.

        One question, so that whether a live call's owner lives is not looked at. Another tenant's is None. Raises
        RegionUnreachable, CallStateUnknown.
        """
        home = self._homes.get(home_of(call_id) or "")
        return None if home is None else await home.directory.find(call_id, tenant)

    async def calls(
        self, tenant: str, *, limit: int = 20, after: str | None = None, where: CallFilter | None = None
    ) -> CallPage:
        """Live calls of a tenant in all regions, newest first; `after` is the `last_id` of the page before.

        Raises CallNotFound if `after` is unknown, RegionUnreachable if its region is away.
        """
        start: tuple[float, str] | None = None
        if after is not None:
            known = await self.call(after, tenant)
            if known is None:
                raise CallNotFound(after)
            start = (known.started_at, after)
        found: list[CallRecord] = []
        ends: list[Place] = []
        unreachable: list[str] = []

        async def ask(home: Home) -> None:
            try:
                listing = await home.directory.calls(tenant, limit + 1, start, where or CallFilter())
            except RegionUnreachable:
                unreachable.append(home.name)
                return
            found.extend(listing.calls)
            if listing.end is not None:
                ends.append(listing.end)

        async with asyncio.TaskGroup() as group:
            for home in self._homes.values():
                group.create_task(ask(home))
        end = max(ends, default=None)  # below it not every home has been looked through
        listed = sorted((call for call in found if end is None or place_of(call) >= end), key=place_of, reverse=True)
        page = listed[:limit]
        last_id = page[-1].id if page else None
        if end is not None and len(listed) <= limit:
            last_id = end[1]
        return CallPage(
            calls=page,
            has_more=end is not None or len(listed) > limit,
            unreachable_regions=sorted(unreachable),
            last_id=last_id,
        )

    async def facts(self, call_id: str, tenant: str) -> Facts:
        """What is known of a call, or was at its end within the hour.

        Raises CallNotFound, CallStateUnknown, RegionUnreachable.
        """
        return await self._home(call_id).directory.facts(call_id, tenant)

    async def reserve(self, call_id: str, tenant: str, *, seconds: float, session: bytes = b"") -> None:
        """Hold a call id for a client that will come: until then a message to it is CallNotStarted.

        `session` is for who owns the call then, see `reservation`. The same tenant may hold it again, which replaces
        both. Raises CallTaken if the id is in use, RegionUnreachable.
        """
        await self._home(call_id).directory.reserve(call_id, tenant, seconds, session)

    async def reservation(self, call_id: str, tenant: str) -> Reservation | None:
        """What a call id is held with for this tenant; None if it isn't.

        Raises CallTaken if the call is live, CallEnded, CallStateUnknown, RegionUnreachable.
        """
        home = self._homes.get(home_of(call_id) or "")
        return None if home is None else await home.directory.reservation(call_id, tenant)

    @asynccontextmanager
    async def watch(
        self,
        call_id: str,
        tenant: str,
        deliver: Callable[[LogEntry], None],
        *,
        after: str | None = None,
        audio: bool = False,
    ) -> AsyncIterator[Watch]:
        """A call's events for the length of the block, wherever it lives, also of one that is only reserved.

        `deliver` gets each entry once, in order, first within the block and in the bus's reader: it must return at
        once. `after` is a position to go on behind, as far as the log still has it; what is missing is a gap, and a
        position that can't be read is one that is missing. A watch waits for a Redis that is away. Raises CallNotFound,
        CallEnded (without `after`; with it, the rest of the log comes), CallStateUnknown, RegionUnreachable, BusFull.
        """
        home, most = self._home(call_id), self._settings.watches_max
        if sum(each.watcher.watches for each in self._homes.values()) >= most:
            raise BusFull(most, 0, what="watches")
        async with home.watcher.watch(call_id, tenant, deliver, after=after, audio=audio) as watch:
            yield watch

    def own(self, record: CallRecord, deliver: Callable[[Message], None]) -> OwnedCall:
        """This node holds the call, a new one. Never waits: it registers when Redis allows (`wait_registered`).

        `deliver` gets each message once, in order, in the bus's reader: it must return at once. Raises ValueError for a
        call whose home is no configured one, or that this node owns already.
        """
        return self._owner_home(record.id).owner.own(record, deliver)

    async def take(self, record: CallRecord, deliver: Callable[[Message], None]) -> OwnedCall:
        """Take a live call over from whoever has it, for a client that resumes here; see `own`. Returns it registered.

        Its `memory` and `known` are what its conversation had; what has no end yet is delivered after that. Waits as
        long as Redis settles, or is away: give it a timeout. Cancelled, it gives the call up again. Raises
        CallNotFound, CallEnded, CallTaken (others take it, too), CallStateUnknown, RegionUnreachable, and ValueError as
        `own` does.
        """
        home = self._owner_home(record.id)
        for _ in range(_TAKES):
            await home.owner.wait_given_up(record.id)
            expected = await home.directory.claim(record.id, record.tenant)
            await asyncio.sleep(self._settings.take_seconds)  # if its owner lives it writes what it knows
            taken = home.owner.own(record, deliver, expected)
            try:
                await taken.wait_registered()
            except CallTaken:
                if taken.protocol.refusal == "absent":
                    raise CallNotFound(record.id) from None
                if taken.protocol.refusal != "changed":
                    raise
            except BaseException:
                taken.hand_over()
                raise
            else:
                taken.begin()
                return taken
        raise CallTaken(record.id)

    def new_home(self) -> str:
        """Where a new call should live: a home of this node's region, one that answers if there is one."""
        names = self._settings.homes
        return secrets.choice([name for name in names if self._homes[name].is_answering] or names)

    def is_answering(self, call_id: str) -> bool:
        """Whether the call's home answered lately."""
        home = self._homes.get(home_of(call_id) or "")
        return home is not None and home.is_answering

    async def wait_connected(self) -> None:
        """Until every home has acknowledged this node's own channels. For tests and logs; not for readiness."""
        for home in self._homes.values():
            await home.wait_connected()

    def status(self) -> dict[str, Any]:
        """What this node sees of each home: numbers and words, no URL."""
        return {
            "node": self._settings.node,
            "task_failures": self._tasks.failures,
            "regions": {name: home.status() for name, home in self._homes.items()},
        }

    def _on_orphan(self, tombstone: Tombstone) -> None:
        if self.on_orphan is not None:
            self.on_orphan(tombstone)

    def _home(self, call_id: str) -> Home:
        home = self._homes.get(home_of(call_id) or "")
        if home is None:
            raise CallNotFound(call_id)
        return home

    def _owner_home(self, call_id: str) -> Home:
        home = self._homes.get(home_of(call_id) or "")
        if home is None:
            raise ValueError(f"{call_id}: its home is none of the configured ones")
        return home
