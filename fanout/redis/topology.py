"""Finds each partition's primary, by asking. Decides whom to ask and when enough have answered; keeps no connection.

Several are asked at once, so that one that is frozen or cut off costs neither time nor truth.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from fanout.core.topology import (
    Address,
    MasterClaim,
    View,
    everywhere,
    primaries_by_tag,
    read_master,
    read_view,
)
from fanout.redis.dial import Dialler
from fanout.redis.target import Kind
from fanout.redis.trouble import REDIS_TROUBLE, ConnectionLost
from fanout.settings import BusSettings

_NODES_ASKED = 3  # of a cluster
_NODES_KNOWN_MAX = 64  # of a cluster, beyond those that the URL names
_T = TypeVar("_T")


class Topology(Protocol):
    """Where the primaries are."""

    async def resolve(self) -> dict[str, Address]:
        """Each partition's primary by its tag; partitions that nobody serves are left out. Raises REDIS_TROUBLE."""
        ...

    async def watch(self, on_hint: Callable[[], None]) -> None:
        """Calls when somebody says that a primary changed. Raises REDIS_TROUBLE; returns if nobody ever says."""


class Standalone:
    """One server for ever."""

    def __init__(self, address: Address) -> None:
        self._found = everywhere(address)

    async def resolve(self) -> dict[str, Address]:
        """The server of the URL."""
        return self._found

    async def watch(self, on_hint: Callable[[], None]) -> None:
        """Nothing changes."""


class Sentinels:
    """The master that most sentinels know; of different answers, that of the latest failover."""

    def __init__(self, dialler: Dialler, *, timeout: float) -> None:
        self._dialler = dialler
        self._timeout = timeout

    async def resolve(self) -> dict[str, Address]:
        """One server for all partitions. Raises REDIS_TROUBLE if no sentinel knows it."""
        sentinels = self._dialler.target.addresses
        enough = len(sentinels) // 2 + 1
        claims = await ask_each(sentinels, self._ask, enough=enough, timeout=self._timeout)
        return everywhere(max(claims, key=lambda claim: claim.epoch).address)

    async def _ask(self, sentinel: Address) -> MasterClaim:
        master = self._dialler.target.master
        commands = [("SENTINEL", word, master) for word in ("GET-MASTER-ADDR-BY-NAME", "MASTER")]
        return read_master(*await self._dialler.ask(sentinel, *commands, is_sentinel=True))

    async def watch(self, on_hint: Callable[[], None]) -> None:
        """In a planned failover the old master goes on taking writes for seconds, and only the sentinels tell.

        The one that leads the failover says first that a replica was promoted, the others that the master changed.
        """
        sentinel = random.choice(self._dialler.target.addresses)  # noqa: S311 - spreads load, guards nothing
        await self._dialler.listen(sentinel, ("+promoted-slave", "+switch-master"), on_hint)


class Cluster:
    """What some nodes of a cluster say, of those that the URL names and those that they named."""

    def __init__(self, dialler: Dialler, *, timeout: float) -> None:
        self._dialler = dialler
        self._timeout = timeout
        self._named = dialler.target.addresses
        self._known = list(self._named)

    async def resolve(self) -> dict[str, Address]:
        """Each partition's primary. Raises REDIS_TROUBLE if no node answered."""
        count = min(_NODES_ASKED, len(self._known))
        asked = random.sample(self._known, count)
        try:
            views = await ask_each(asked, self._ask, enough=count // 2 + 1, timeout=self._timeout)
        except REDIS_TROUBLE:
            self._known = list(dict.fromkeys([*self._named, *self._known]))  # all that we knew may be gone
            raise
        heard = frozenset[Address]().union(*(view.nodes for view in views))
        self._known = list(heard)[:_NODES_KNOWN_MAX] or list(self._named)
        return primaries_by_tag(views)

    async def watch(self, on_hint: Callable[[], None]) -> None:
        """The servers tell by themselves, on wires and feeds."""

    async def _ask(self, node: Address) -> View:
        slots, nodes = await self._dialler.ask(node, ("CLUSTER", "SLOTS"), ("CLUSTER", "NODES"))
        return read_view(slots, nodes, node)


def open_topology(dialler: Dialler, settings: BusSettings) -> Topology:
    """As the URL says."""
    target = dialler.target
    match target.kind:
        case Kind.STANDALONE:
            return Standalone(target.addresses[0])
        case Kind.SENTINEL:
            return Sentinels(dialler, timeout=settings.socket_timeout)
        case Kind.CLUSTER:
            return Cluster(dialler, timeout=settings.socket_timeout)


async def ask_each(
    addresses: Sequence[Address], ask: Callable[[Address], Awaitable[_T]], *, enough: int, timeout: float
) -> Sequence[_T]:
    """Ask all at once; returns when `enough` have answered, or all have or failed, or at the timeout in seconds.

    Raises what went wrong last if nobody answered.
    """
    answers: list[_T] = []
    errors: list[BaseException] = []
    done = asyncio.Event()

    async def one(address: Address) -> None:
        try:
            answers.append(await ask(address))
        except REDIS_TROUBLE as exc:
            errors.append(exc)
        if len(answers) >= enough or len(answers) + len(errors) == len(addresses):
            done.set()

    try:
        async with asyncio.timeout(timeout), asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(address), name=f"ask {address}") for address in addresses]
            await done.wait()
            _cancel(tasks)
    except TimeoutError as exc:
        errors.append(exc)
    if not answers:
        raise errors[-1] if errors else ConnectionLost("nobody to ask")
    return answers


def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
