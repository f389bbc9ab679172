"""What every store promises to the bus, whatever it is made of: a real Redis, or the tests' double.

What a real one does besides (Sentinel, clusters, TLS, connections) is in test_redis_store.py.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fanout.core.partitions import partition_tags
from fanout.core.scripts import Scripts
from fanout.errors import RegionUnreachable
from fanout.redis import open_store
from fanout.settings import BusSettings
from tests.support.memory_store import MemoryHome
from tests.support.redis_server import RedisServer

TAG, OTHER_TAG = partition_tags()[7], partition_tags()[8]
QUICK = {
    "heartbeat_seconds": 0.1,
    "silence_seconds": 0.3,
    "socket_timeout": 0.3,
    "backoff_seconds": 0.02,
    "backoff_max_seconds": 0.1,
}


class RealHome(RedisServer):
    """A server with the faults by the names that `MemoryHome` has for them."""

    open_store = staticmethod(open_store)

    def drop_subscribers(self) -> None:
        """Close every connection that carries channels."""
        self.command("CLIENT", "KILL", "TYPE", "pubsub")


class Node:
    """A listener that keeps what it is told and by which task, with its store and its heartbeats."""

    def __init__(self, home: Any, name: str) -> None:
        url = home.url if isinstance(home, RealHome) else ""
        settings = BusSettings(node=name, region="iad", regions={"iad": url}, prefix="test", **QUICK)
        self.told: list[tuple[str, str]] = []
        self.new_servers: list[frozenset[str]] = []
        self.told_by: set[asyncio.Task[Any] | None] = set()
        self.scripts = Scripts(settings)
        self.store = home.open_store("iad", url, settings, self)

    def channel(self, tag: str = TAG) -> str:
        """Where this node's heartbeats are heard."""
        return self.scripts.keys.node_channel(tag, self.scripts.settings.node)

    async def beat(self, boot: str = "boot", tag: str = TAG) -> Any:
        """Publish one heartbeat: the answer, or RegionUnreachable."""
        [outcome] = await self.store.run([self.scripts.beat(tag, boot)])
        return outcome

    def on_message(self, channel: str, data: bytes) -> None:
        self._note("message", channel)

    def on_subscribed(self, channel: str) -> None:
        self._note("subscribed", channel)

    def on_new_server(self, tags: frozenset[str]) -> None:
        self.new_servers.append(tags)

    def _note(self, what: str, channel: str) -> None:
        self.told.append((what, channel))
        self.told_by.add(asyncio.current_task())


@asynccontextmanager
async def at_work(home: Any, *names: str) -> AsyncIterator[list[Node]]:
    """Nodes whose stores are connected; when they are closed, no task is left."""
    before = asyncio.all_tasks()
    nodes = [Node(home, name) for name in names]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(node.store.work()) for node in nodes]
        try:
            await eventually(lambda: all(node.store.status()["connected"] for node in nodes))
            yield nodes
        finally:
            for task in tasks:
                task.cancel()
    for node in nodes:
        await node.store.close()
    assert asyncio.all_tasks() <= before


async def eventually(condition: Callable[[], object]) -> None:
    """For what another task or process does."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.005)


async def hears(node: Node, channel: str) -> None:
    """Want it, until the server has acknowledged it."""
    node.store.want(channel)
    await eventually(lambda: ("subscribed", channel) in node.told)


@pytest.fixture(params=["memory", "redis"])
def home(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "memory":
        yield MemoryHome()
        return
    server = RealHome().start()
    yield server
    server.stop()


async def test_runs_are_carried_out_and_answered_in_their_order(home):
    """An owner's claim comes before its verdict, in one batch."""
    async with at_work(home, "a") as [node]:
        beats = [node.scripts.beat(TAG, f"boot-{number}") for number in range(200)]
        alive = node.scripts.alive("a")
        beats = [run._replace(tag=alive.tag, keys=alive.keys) for run in beats]
        assert await node.store.run([]) == []
        answers = await node.store.run([part for beat in beats for part in (beat, alive)])
        assert answers[1::2] == [[b"alive", f"boot-{number}".encode()] for number in range(200)]


async def test_what_one_node_publishes_is_heard_by_all_that_want_the_channel(home):
    """And by nobody else; never from within `run`, whose caller may be in the middle of something."""
    async with at_work(home, "a", "b") as [a, b]:
        await hears(b, a.channel())
        await hears(a, a.channel())
        assert b.store.holds(a.channel())
        assert not b.store.holds(a.channel(OTHER_TAG))
        await a.beat(tag=OTHER_TAG)
        await a.beat()
        await eventually(lambda: a.told[1:] == b.told[1:] == [("message", a.channel())])
        assert asyncio.current_task() not in a.told_by | b.told_by


async def test_a_channel_that_is_unwanted_is_not_heard_any_more(home):
    """A call that ended leaves nothing behind."""
    async with at_work(home, "a") as [node]:
        await hears(node, node.channel())
        await hears(node, node.channel(OTHER_TAG))
        node.store.unwant(node.channel())
        await eventually(lambda: not node.store.holds(node.channel()))
        await node.beat()
        await node.beat(tag=OTHER_TAG)
        await eventually(lambda: ("message", node.channel(OTHER_TAG)) in node.told)
        assert ("message", node.channel()) not in node.told


async def test_renewing_and_losing_a_subscription_is_acknowledged_anew(home):
    """Each acknowledgement is a reason to read the stream."""
    async with at_work(home, "a") as [node]:
        await hears(node, node.channel())
        for again in (lambda: node.store.renew(node.channel()), home.drop_subscribers):
            node.told.clear()
            again()
            await eventually(lambda: node.told == [("subscribed", node.channel())] and node.store.holds(node.channel()))
        assert node.new_servers == []


async def test_a_frozen_server_says_nothing_in_time_and_does_it_all_later(home):
    """Unreachable means unknown: the run that nobody waits for any more is carried out at the thaw."""
    async with at_work(home, "a") as [node]:
        alive = node.scripts.alive("a")
        home.freeze()
        assert isinstance(await node.beat(tag=alive.tag), RegionUnreachable)
        home.thaw()
        found: list[Any] = []
        while found != [[b"alive", b"boot"]]:
            found = await node.store.run([alive])
        assert node.new_servers == []


async def test_a_feed_on_which_nothing_is_heard_is_dropped(home):
    """The server may be frozen, or the link cut without a word."""
    async with at_work(home, "a") as [node]:
        await hears(node, node.channel())
        home.freeze()
        await eventually(lambda: node.store.check_silence() or not node.store.holds(node.channel()))
        node.told.clear()
        home.thaw()
        await eventually(lambda: node.told == [("subscribed", node.channel())])


async def test_a_server_that_came_back_as_another_is_told_of_and_has_the_channels(home):
    """Told before its answers: what it knows may be less than what the last one did."""
    async with at_work(home, "a") as [node]:
        await hears(node, node.channel())
        assert (await node.beat())[0] == b"ok"
        home.kill()
        assert isinstance(await node.beat(), RegionUnreachable)
        await eventually(lambda: not node.store.holds(node.channel()))
        node.told.clear()
        home.start()
        while isinstance(await node.beat(), RegionUnreachable):  # noqa: ASYNC110 - as a publisher does
            await asyncio.sleep(0.005)
        assert TAG in node.new_servers[0]
        await eventually(lambda: ("subscribed", node.channel()) in node.told)
        await node.beat()
        await eventually(lambda: ("message", node.channel()) in node.told)


async def test_a_closed_store_refuses(home):
    """At once, whatever its caller still wants."""
    async with at_work(home, "a") as [node]:
        await node.store.close()
        assert isinstance(await node.beat(), RegionUnreachable)


# -- what only the double can be told to do


async def test_a_slow_home_keeps_the_order():
    """Also while it gets quicker."""
    home = MemoryHome()
    async with at_work(home, "a") as [node]:
        channels = [node.channel(tag) for tag in partition_tags()[:8]]
        for channel in channels:
            await hears(node, channel)
        started = asyncio.get_running_loop().time()
        home.lag_seconds = 0.05
        late = node.store.run([node.scripts.beat(tag, "boot") for tag in partition_tags()[:7]])
        async with asyncio.TaskGroup() as group:
            group.create_task(late)
            await asyncio.sleep(0)
            home.lag_seconds = 0.0
            await node.beat(tag=partition_tags()[7])
        assert asyncio.get_running_loop().time() - started >= 0.049  # the loop counts in milliseconds
        await eventually(lambda: [channel for what, channel in node.told if what == "message"] == channels)


async def test_a_home_loses_the_share_of_messages_that_it_is_told_to():
    """The same ones for the same seed."""
    heard = []
    for _ in range(2):
        home = MemoryHome()
        async with at_work(home, "a") as [node]:
            await hears(node, node.channel())
            await hears(node, node.channel(OTHER_TAG))
            home.lose_messages(0.5, seed=3)
            for _ in range(100):
                await node.beat()
            home.lose_messages(0.0)
            await node.beat(tag=OTHER_TAG)
            await eventually(lambda node=node: ("message", node.channel(OTHER_TAG)) in node.told)
            heard.append(node.told.count(("message", node.channel())))
    assert 30 < heard[0] == heard[1] < 70


async def test_a_home_can_come_back_with_what_it_had():
    """As one with persistence, or a replica that had everything."""
    home = MemoryHome()
    async with at_work(home, "a") as [node]:
        alive = node.scripts.alive("a")
        await node.beat(tag=alive.tag)
        home.kill()
        home.start(empty=False)
        assert await node.store.run([alive]) == [[b"alive", b"boot"]]
        home.restart()
        assert await node.store.run([alive]) == [[b"gone"]]
        assert len(node.new_servers) == 2
        assert not any("alive" in key for key in set(home.keys()))
