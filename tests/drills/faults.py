"""The drills: what each of them breaks in a fleet under load, as a table.

A fault is a function of the stage that returns when what it broke is repaired, or gone for good. Times are those of the
full length; the stage shortens them.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from fanout.core.partitions import tag_of
from tests.drills.fleet import REGIONS, Fleet, Node
from tests.drills.homes import Together
from tests.support.redis_sets import ClusterSet, SentinelSet

BROKEN: Final = REGIONS[0]  # the region whose Redis is broken, where only one is
_KILLS: Final = 16
_MIGRATIONS: Final = 6
_PULSE_SECONDS: Final = 0.5


@dataclass(slots=True)
class Stage:
    """What a fault works with."""

    fleet: Fleet
    calls: list[str]  # the ids of the live calls
    chance: random.Random
    scale: float  # of all times

    async def pause(self, seconds: float) -> None:
        """Let so much time pass, shortened."""
        await asyncio.sleep(seconds * self.scale)

    @property
    def sentinels(self) -> SentinelSet:
        """The broken region's Sentinel set."""
        home = self.fleet.homes[BROKEN]
        assert isinstance(home, Together)
        assert isinstance(home.servers, SentinelSet)
        return home.servers

    @property
    def cluster(self) -> ClusterSet:
        """The broken region's cluster."""
        home = self.fleet.homes[BROKEN]
        assert isinstance(home, Together)
        assert isinstance(home.servers, ClusterSet)
        return home.servers

    @property
    def slow_node(self) -> Node:
        """The node that is frozen, where one is."""
        return self.fleet.nodes[0]

    def tags(self) -> list[str]:
        """Hash tags of the live calls whose home is the broken region, in some order."""
        found = sorted({tag_of(call) for call in self.calls if call.startswith(f"rtc_{BROKEN}_")})
        self.chance.shuffle(found)
        return found


async def nothing(stage: Stage) -> None:
    """No fault: what the machine and the harness alone do to the figures."""
    await stage.pause(8)


async def subscribers_killed(stage: Stage) -> None:
    """CLIENT KILL TYPE pubsub every half second, in both regions."""
    killed = 0
    for _ in range(_KILLS):
        for region in REGIONS:
            killed += await stage.fleet.standalone(region).kill_subscribers()
        await stage.pause(0.5)
    if killed < _KILLS:
        raise RuntimeError(f"only {killed} connections that subscribe were there to be killed")


async def redis_restarted(stage: Stage) -> None:
    """SIGKILL for a region's Redis, and a second later an empty one in its place."""
    home = stage.fleet.standalone(BROKEN)
    await home.kill()
    await stage.pause(1)
    await home.start()


async def redis_frozen(stage: Stage) -> None:
    """SIGSTOP for a region's Redis, six seconds."""
    home = stage.fleet.standalone(BROKEN)
    home.freeze()
    await stage.pause(6)
    home.thaw()


async def master_killed(stage: Stage) -> None:
    """SIGKILL for the master, and a failover."""
    old = await asyncio.to_thread(stage.sentinels.kill_master)
    await asyncio.to_thread(stage.sentinels.wait_new_master, old)


async def master_frozen(stage: Stage) -> None:
    """SIGSTOP for the master, nine seconds: a failover, and a former master that comes back and knows nothing of it."""
    old = await asyncio.to_thread(stage.sentinels.freeze_master)
    began = time.monotonic()
    await asyncio.to_thread(stage.sentinels.wait_new_master, old)
    await asyncio.sleep(max(0.0, began + 9 * stage.scale - time.monotonic()))
    old.thaw()


async def planned_failover(stage: Stage) -> None:
    """SENTINEL FAILOVER, as for an upgrade."""
    await asyncio.to_thread(stage.sentinels.failover)


async def unreplicated_master_killed(stage: Stage) -> None:
    """No replica gets what the master writes for half a second; then it is killed, and those writes with it."""
    servers = stage.sentinels

    def work() -> None:
        with servers.replication_cut():
            time.sleep(0.5)
            old = servers.kill_master()
            servers.wait_new_master(old)

    await asyncio.to_thread(work)


async def slots_migrated(stage: Stage) -> None:
    """Slots of live calls move to another primary of the cluster, and back."""
    cluster = stage.cluster
    moved = []
    for tag in stage.tags()[:_MIGRATIONS]:
        moved.append((tag, cluster.primary_of(tag)))
        await asyncio.to_thread(cluster.migrate, tag)
        await stage.pause(0.5)
    for tag, first in moved:
        await asyncio.to_thread(cluster.migrate, tag, first)
        await stage.pause(0.5)


async def primary_killed(stage: Stage) -> None:
    """SIGKILL for a primary of the cluster that serves live calls; its replica takes over."""
    tag = stage.tags()[0]
    old = await asyncio.to_thread(stage.cluster.kill_primary, tag)
    await asyncio.to_thread(stage.cluster.wait_new_primary, tag, old)


async def link_cut(stage: Stage) -> None:
    """Nothing passes between the regions for six seconds, and nobody is told."""
    await stage.fleet.cut_link()
    await stage.pause(6)
    await stage.fleet.heal_link()


async def node_frozen(stage: Stage) -> None:
    """SIGSTOP for a node, five seconds: its own calls' audio waits, and goes on."""
    process = stage.slow_node.process
    process.freeze()
    await stage.pause(5)
    process.thaw()


async def slow_owner(stage: Stage) -> None:
    """Messages of 900 kB to the calls of a node that runs only half of the time."""
    process = stage.slow_node.process
    until = time.monotonic() + 8 * stage.scale
    while time.monotonic() < until:
        process.freeze()
        await asyncio.sleep(_PULSE_SECONDS)
        process.thaw()
        await asyncio.sleep(_PULSE_SECONDS)


@dataclass(frozen=True, slots=True)
class Drill:
    """A row of the table."""

    name: str
    fault: Callable[[Stage], Awaitable[None]]
    home: str = "one server"  # of the broken region; or `sentinel`, `cluster`
    hits: str = "region"  # what it breaks: a region's Redis, a `node`, `far` ways, `all`, `nothing`
    felt_seconds: float = 0.0  # a message that it hits takes so long, or the fault did not happen
    frozen_seconds: float = 0.0  # how long the slow node stands still: its calls' audio may be held up so much longer
    copies: int = 1  # of each request, at the same time
    has_big_messages: bool = False


DRILLS: Final = (
    Drill("calm", nothing, hits="nothing"),
    Drill("subscribers-killed", subscribers_killed, hits="all"),
    Drill("redis-restarted", redis_restarted, felt_seconds=0.5),
    Drill("redis-frozen", redis_frozen, felt_seconds=3.0),
    Drill("master-killed", master_killed, "sentinel", felt_seconds=0.5),
    Drill("master-frozen", master_frozen, "sentinel", felt_seconds=0.5),
    Drill("planned-failover", planned_failover, "sentinel"),
    Drill("unreplicated-master-killed", unreplicated_master_killed, "sentinel", felt_seconds=0.5),
    Drill("slots-migrated", slots_migrated, "cluster"),
    Drill("primary-killed", primary_killed, "cluster", felt_seconds=0.5),
    Drill("link-cut", link_cut, hits="far", felt_seconds=3.0),
    Drill("node-frozen", node_frozen, hits="node", felt_seconds=2.5, frozen_seconds=5.0),
    Drill("slow-owner", slow_owner, hits="node", felt_seconds=0.25, frozen_seconds=1.0, has_big_messages=True),
    Drill("copies", nothing, hits="nothing", copies=3),
)
