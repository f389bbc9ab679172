"""All that a node has to do with one home: a region's Redis, or one shard of it."""

import asyncio
from collections.abc import Callable

import structlog

from fanout.chronicler import WRITERS
from fanout.core.circuit import Circuit
from fanout.core.envelope import Envelope, EnvelopeError
from fanout.core.keys import tag_in
from fanout.core.partitions import partition_tags, tag_of
from fanout.core.scripts import Scripts
from fanout.directory import Directory
from fanout.errors import RegionUnreachable
from fanout.owner import WORKERS, Owner
from fanout.publisher import Publisher
from fanout.reaper import Reaper
from fanout.sealing import Seal
from fanout.settings import BusSettings
from fanout.store import Listener, Store
from fanout.tasks import Tasks
from fanout.watcher import Watcher

_log = structlog.get_logger("fanout")
_ENVELOPE_OVERHEAD = 64 * 1024  # of a receipt with the model's error in it

OpenStore = Callable[[str, str, BusSettings, Listener], Store]


class Home:
    """Publisher, owner, directory and, in its own region, reaper on one store; the heartbeat; who hears what."""

    def __init__(
        self,
        name: str,
        url: str,
        settings: BusSettings,
        boot: str,
        *,
        open_store: OpenStore,
        clock: Callable[[], float],
        tasks: Tasks,
    ) -> None:
        self.name = name
        self._settings = settings
        self._boot = boot
        self._clock = clock
        self._seal = Seal(settings.memory_keys)
        self._scripts = Scripts(settings, self._seal)
        keys = self._scripts.keys
        self._channels = {keys.node_channel(tag, settings.node) for tag in partition_tags()}
        self._own_channel = keys.node_channel(tag_of(settings.node), settings.node)
        self._circuit = Circuit(settings.circuit_seconds)
        self._changed = asyncio.Event()
        self._unreadable = 0
        self._beat_at: float | None = None
        self._beat_number = 0
        self._beat_sent_at = 0.0
        self._round_trip = 0.0
        self._lag = 0.0
        self._clock_offset = 0.0
        self._phase = "unknown"
        self._is_introduced = False
        self._beating = asyncio.Lock()  # a beat that overtook the last words would leave the node's key behind
        self.store = open_store(name, url, settings, self)
        self.owner = Owner(self.store, self._scripts, boot, clock=clock)
        self.publisher = Publisher(self.store, self._scripts, self._circuit, clock=clock, tasks=tasks)
        self.directory = Directory(self.store, self._scripts)
        self.watcher = Watcher(self.store, self._scripts, self._circuit, tasks=tasks)
        self.reaper = Reaper(self.store, self._scripts, clock=clock)
        for channel in self._channels:
            self.store.want(channel)
        tasks.keep(self.store.work, name=f"store {name}")
        for number in range(WORKERS):
            tasks.keep(self.owner.work, name=f"owner {name} {number}")
        for number in range(WRITERS):
            tasks.keep(self.owner.chronicler.work, name=f"chronicler {name} {number}")
        tasks.keep(self._beat, name=f"heartbeat {name}")
        if name in settings.homes:
            tasks.keep(self.reaper.work, name=f"reaper {name}")

    @property
    def is_connected(self) -> bool:
        """Whether replies and our own heartbeat can reach this node."""
        return all(self.store.holds(channel) for channel in self._channels)

    @property
    def is_answering(self) -> bool:
        """Whether the last heartbeat was answered."""
        return self._beat_at is not None and not self._circuit.is_failing()

    @property
    def is_away(self) -> bool:
        """Whether it has failed for so long that nothing new is asked of it for somebody who waits."""
        return self._circuit.is_open(asyncio.get_running_loop().time())

    async def wait_connected(self) -> None:
        """Until they can, and Redis answers."""
        while not (self.is_connected and self.is_answering):
            await self._changed.wait()

    # -- Listener, for the store

    def on_subscribed(self, channel: str) -> None:
        """A channel was acknowledged."""
        if self.watcher.has(channel):
            self.watcher.on_subscribed(channel)
        elif channel not in self._channels:
            self.owner.on_subscribed(channel)
        elif channel == self._own_channel:
            self.owner.sweep_soon()
        if channel in self._channels:
            self._wake()

    def on_message(self, channel: str, data: bytes) -> None:
        """A bell, a receipt, what is watched, or our own heartbeat."""
        if self.watcher.has(channel):
            self.watcher.on_message(channel, data)
            return
        if channel not in self._channels:
            self.owner.on_bell(channel, data)
            return
        try:
            envelope = Envelope.unpack(data, max_bytes=self._settings.message_max_bytes + _ENVELOPE_OVERHEAD)
        except EnvelopeError as exc:
            self._unreadable += 1
            if self._unreadable == 1:
                _log.warning("unreadable_envelope", home=self.name, partition=tag_in(channel), error=str(exc))
            return
        if envelope.kind == "receipt":
            self.publisher.on_receipt(envelope)
        elif envelope.kind == "heartbeat" and envelope.id == str(self._beat_number):
            self._lag = asyncio.get_running_loop().time() - self._beat_sent_at

    def on_new_server(self, tags: frozenset[str]) -> None:
        """Another Redis serves these partitions."""
        _log.warning("new_server", home=self.name, partitions=len(tags))
        self._is_introduced = False
        self.owner.on_new_server(tags)
        self.publisher.on_new_server(tags)
        self.reaper.on_new_server()

    # -- the heartbeat

    async def _beat(self) -> None:
        """Say that the node lives, to all by a key and to our own feeds by a message."""
        loop, seconds = asyncio.get_running_loop(), self._settings.heartbeat_seconds
        while True:
            self.store.check_silence()
            self._beat_number += 1
            self._beat_sent_at = started = loop.time()
            # A server that is new to us is asked once in every partition, so that all of them begin to settle now.
            introduces, self._is_introduced = not self._is_introduced, True
            runs = [self._scripts.beat(tag, self._boot, self._beat_number) for tag in self._beat_tags()]
            if introduces:
                runs += [self._scripts.introduce(tag) for tag in partition_tags()]
            async with self._beating:
                outcomes = await self.store.run(runs)
            now = loop.time()
            for outcome in outcomes:
                if isinstance(outcome, RegionUnreachable):
                    self._circuit.on_failure(started)
                    self._is_introduced &= not introduces
                    break
            else:
                self._on_beat(now, now - started, outcomes[0])
            await asyncio.sleep(max(0.0, seconds - (loop.time() - started)))

    def _on_beat(self, now: float, round_trip: float, answer: list[bytes]) -> None:
        self._circuit.on_success()
        self._beat_at, self._round_trip = now, round_trip
        self._clock_offset = self._clock() - round_trip / 2 - float(answer[1])
        self._phase = answer[2].decode()
        self.publisher.on_beat()
        self._wake()

    def _beat_tags(self) -> list[str]:
        return sorted({tag_of(self._settings.node), *self.store.beat_tags()})

    async def leave(self) -> None:
        """The last words, if Redis takes them in time."""
        try:
            async with asyncio.timeout(self._settings.close_seconds):
                while not self.owner.is_idle:  # noqa: ASYNC110 - many things may make it idle
                    await asyncio.sleep(0.01)
                await self._beating.acquire()  # for good
                await self.store.run([self._scripts.beat(tag, self._boot, leaves=True) for tag in self._beat_tags()])
        except TimeoutError:
            pass

    def status(self) -> dict[str, int | float | str]:
        """Numbers for the status page and the metrics; words for people."""
        now = asyncio.get_running_loop().time()
        state = "open" if self._circuit.is_open(now) else "failing" if self._circuit.is_failing() else "closed"
        return {
            "connected": int(self.is_connected and self.is_answering),
            "circuit": state,
            "circuit_open": int(state == "open"),
            "phase": self._phase,
            "settling": int(self._phase != "normal"),
            "heartbeat_age_seconds": round(now - self._beat_at, 3) if self._beat_at is not None else -1.0,
            "round_trip_seconds": round(self._round_trip, 6),
            "lag_seconds": round(self._lag, 6),
            "clock_offset_seconds": round(self._clock_offset, 6),
            "unreadable_envelopes": self._unreadable,
            "unsealable": self._seal.failures,
            **{name: value for name, value in self.store.status().items() if name != "connected"},
            **self.owner.counts,
            **self.publisher.counts,
            **self.watcher.counts,
            **self.reaper.counts,
        }

    def _wake(self) -> None:
        self._changed.set()
        self._changed.clear()
