"""One home's Redis behind `Store`: servers come and go with the topology, channels follow their partition.

Decides when to resolve the topology again and what is to be told of a server that is another than before. It neither
reads nor writes a connection: wires, feeds and the topology do.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from fanout.core.deafness import Deafness
from fanout.core.partitions import tag_in
from fanout.core.runs import Run
from fanout.core.topology import Address
from fanout.errors import RegionUnreachable
from fanout.redis.dial import Dialler
from fanout.redis.runner import Runner
from fanout.redis.scripts import Scripts, read_script
from fanout.redis.server import Server
from fanout.redis.target import Kind, parse_url
from fanout.redis.topology import open_topology
from fanout.redis.trouble import REDIS_TROUBLE, Trouble
from fanout.settings import BusSettings
from fanout.store import Listener, Outcome, Store
from fanout.tasks import Backoff

_RESOLVE_SECONDS = 5.0  # for a change that nothing points to, like a master that was cut off from its sentinels
_NAMED_SECONDS = 30.0  # how long a server that only a redirection named is kept connected


def open_store(
    name: str,
    url: str,
    settings: BusSettings,
    listener: Listener,
    *,
    scripts: Callable[[str], str] = read_script,
) -> Store:
    """A home's Redis by its URL; connects when its `work` runs, and `run` only works meanwhile.

    `scripts` gives a script's whole text by its name. Raises ValueError for a URL that can't be used, without the URL.
    """
    return RedisStore(name, url, settings, listener, scripts=scripts)


class RedisStore:
    """See `Store`."""

    def __init__(
        self, name: str, url: str, settings: BusSettings, listener: Listener, *, scripts: Callable[[str], str]
    ) -> None:
        self.name = name
        self._settings = settings
        self._listener = listener
        target = parse_url(url)
        self._is_fixed = target.kind is Kind.STANDALONE
        self._dialler = Dialler(target, timeout=settings.socket_timeout)
        self._topology = open_topology(self._dialler, settings)
        self._trouble = Trouble(name)
        self._runner = Runner(name, Scripts(scripts), self, self._trouble, timeout=settings.socket_timeout)
        self._group: asyncio.TaskGroup | None = None
        self._servers: dict[Address, Server] = {}
        self._primaries: dict[str, Address] = {}  # by tag
        self._named_at: dict[Address, float] = {}  # servers that a redirection named, and when it did last
        self._run_ids: dict[str, str] = {}  # of the process that served a tag last
        self._channels: dict[str, dict[str, None]] = {}  # wanted, by tag
        self._tag_of: dict[str, str] = {}  # of each wanted channel
        self._deafness = Deafness()
        self._poked = asyncio.Event()
        self._changed = asyncio.Event()
        self._is_closed = False
        self._messages = self._resolves = self._new_servers = self._connects_before = 0

    # -- scripts

    async def run(self, runs: Sequence[Run]) -> list[Outcome]:
        """See `Store.run`. Within `socket_timeout` in all; a batch of some hundreds goes out in one write per server.

        An unknown script's name, or an argument that can't be sent, is the caller's bug and raises.
        """
        if self._is_closed:
            return [RegionUnreachable(self.name) for _ in runs]
        return await self._runner.run(runs)

    def server_of(self, tag: str) -> Server | None:
        """The present primary of a tag, if one is known."""
        address = self._primaries.get(tag)
        return None if address is None else self._servers.get(address)

    def server_at(self, address: Address) -> Server | None:
        """A server that another one named; connected to if it is new. None while the store doesn't work."""
        if self._group is None:
            return None
        self._named_at[address] = asyncio.get_running_loop().time()
        self._start({address})
        return self._servers[address]

    async def wait_changed(self) -> None:
        """Until a wire came or went or a primary changed."""
        await self._changed.wait()

    # -- channels

    def want(self, channel: str) -> None:
        """See `Store.want`."""
        tag = tag_in(channel)
        self._tag_of[channel] = tag
        self._channels.setdefault(tag, {})[channel] = None
        if (server := self.server_of(tag)) is not None:
            server.feed.want([channel])

    def unwant(self, channel: str) -> None:
        """See `Store.unwant`."""
        tag = self._tag_of.pop(channel, None)
        if tag is None:
            return
        wanted = self._channels[tag]
        del wanted[channel]
        if not wanted:
            del self._channels[tag]
            self._deafness.heard(tag, self._now())
        if (server := self.server_of(tag)) is not None:
            server.feed.unwant(channel)

    def renew(self, channel: str) -> None:
        """See `Store.renew`."""
        if (server := self.server_of(tag_in(channel))) is not None:
            server.feed.renew(channel)

    def holds(self, channel: str) -> bool:
        """See `Store.holds`."""
        tag = self._tag_of.get(channel)
        server = None if tag is None else self.server_of(tag)
        return server is not None and server.feed.holds(channel)

    def beat_tags(self) -> list[str]:
        """See `Store.beat_tags`."""
        return list({address: tag for tag, address in self._primaries.items()}.values())

    def check_silence(self) -> None:
        """See `Store.check_silence`."""
        for server in self._servers.values():
            server.feed.check_silence()

    # -- what wires and feeds tell

    def on_message(self, channel: str, data: bytes) -> None:
        """Handed on if it is still wanted."""
        if channel in self._tag_of:
            self._messages += 1
            self._listener.on_message(channel, data)

    def on_subscribed(self, channel: str) -> None:
        """Handed on, once the store counts as hearing."""
        tag = self._tag_of.get(channel)
        if tag is not None:
            self._deafness.heard(tag, self._now())
            self._listener.on_subscribed(channel)

    def on_deaf(self, channels: list[str], since: float) -> None:
        """Messages of these are lost from then on."""
        self._deafness.lost({tag for channel in channels if (tag := self._tag_of.get(channel)) is not None}, since)

    def on_connected(self, address: Address, run_id: str) -> None:
        """A wire or a feed found this process there."""
        server = self._servers.get(address)
        if server is not None:
            server.run_id = run_id
            self._note_run_ids({tag for tag, primary in self._primaries.items() if primary == address})

    def on_wires_changed(self) -> None:
        """Whoever waits for a wire looks again."""
        self._changed.set()
        self._changed.clear()

    def on_moved(self, tag: str, address: Address) -> None:
        """Believed at once; the topology is resolved too, since a partition seldom moves alone."""
        if self._group is not None:
            self._apply({tag: address})
        self._poked.set()

    def on_refused(self) -> None:
        """Something was lost or refused: the topology is resolved again, soon."""
        self._poked.set()

    # -- the topology

    async def work(self) -> None:
        """See `Store.work`."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self._watch(), name=f"topology {self.name}")
                try:
                    await self._follow()
                finally:
                    self._group = None  # nothing new starts in it from here
                    for server in self._servers.values():
                        server.stop()
        finally:
            self._connects_before += sum(server.connects for server in self._servers.values())
            self._servers.clear()
            self._primaries.clear()
            self._named_at.clear()
            self.on_wires_changed()

    async def close(self) -> None:
        """See `Store.close`: ends what `work` still keeps, and refuses every further run."""
        self._is_closed = True
        self.on_wires_changed()
        self.on_refused()
        for server in list(self._servers.values()):
            await server.stopped()

    def status(self) -> dict[str, int | float]:
        """See `Store.status`."""
        servers, now = self._servers.values(), self._now()
        serving = set(self._primaries.values())
        is_ready = bool(serving) and all(self._servers[address].is_ready for address in serving)
        return {
            "connected": int(is_ready),
            "connects": self._connects_before + sum(server.connects for server in servers),
            "servers": len(serving),
            "redis_errors": self._trouble.errors,
            "wanted": len(self._tag_of),
            "held": sum(server.feed.held for server in servers),
            "messages": self._messages,
            "deaf_periods": self._deafness.periods,
            "deaf_seconds": round(self._deafness.seconds(now), 3),
            "resolves": self._resolves,
            "new_servers": self._new_servers,
            "moved": self._runner.redirected,
        }

    async def _watch(self) -> None:
        backoff = Backoff(self._settings.backoff_seconds, _RESOLVE_SECONDS)
        while True:
            try:
                await self._topology.watch(self.on_refused)
            except REDIS_TROUBLE as exc:
                self._trouble.report("topology hints", exc)
                await backoff.wait()
            else:
                return

    async def _follow(self) -> None:
        """Resolve, apply, and again when something points to a change; in trouble as often as a heartbeat."""
        settings = self._settings
        backoff = Backoff(settings.backoff_seconds, max(settings.backoff_seconds, settings.heartbeat_seconds))
        while not self._is_closed:
            self._poked.clear()
            try:
                found = await self._topology.resolve()
            except REDIS_TROUBLE as exc:
                self._trouble.report("topology", exc)
            else:
                self._resolves += 1
                self._trouble.worked("topology")
                if self._apply(found):
                    backoff.reset()
            await backoff.wait()
            try:
                async with asyncio.timeout(self._resolve_pause()):
                    await self._poked.wait()
            except TimeoutError:
                backoff.reset()

    def _resolve_pause(self) -> float | None:
        if not self.status()["connected"]:
            return self._settings.heartbeat_seconds
        return None if self._is_fixed else _RESOLVE_SECONDS

    def _apply(self, found: Mapping[str, Address]) -> bool:
        """Take over primaries by tag; those that are not named stay. Says whether any changed."""
        moved = {tag: address for tag, address in found.items() if self._primaries.get(tag) != address}
        self._start(set(moved.values()))
        for tag, address in moved.items():
            channels = self._channels.get(tag, {})
            if (before := self.server_of(tag)) is not None:
                self.on_deaf([channel for channel in channels if before.feed.holds(channel)], self._now())
                before.feed.forget(channels)
            self._primaries[tag] = address
            self._servers[address].feed.want(channels)
        self._stop_unused()
        for server in self._servers.values():
            server.feed.retry()
        if moved:
            self._note_run_ids(set(moved))
            self.on_wires_changed()
        return bool(moved)

    def _start(self, addresses: set[Address]) -> None:
        if self._group is None:
            return
        for address in addresses - self._servers.keys():
            server = Server(self._dialler, address, self._settings, self._trouble, self)
            self._servers[address] = server
            server.start(self._group)

    def _stop_unused(self) -> None:
        now = self._now()
        self._named_at = {address: at for address, at in self._named_at.items() if now - at < _NAMED_SECONDS}
        for address in self._servers.keys() - set(self._primaries.values()) - self._named_at.keys():
            server = self._servers.pop(address)
            self._connects_before += server.connects
            server.stop()

    def _note_run_ids(self, tags: set[str]) -> None:
        changed = []
        for tag in tags:
            server = self.server_of(tag)
            if server is not None and server.run_id:
                before = self._run_ids.get(tag, server.run_id)
                self._run_ids[tag] = server.run_id
                if before != server.run_id:
                    changed.append(tag)
        if changed:
            self._new_servers += 1
            self._listener.on_new_server(frozenset(changed))

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
