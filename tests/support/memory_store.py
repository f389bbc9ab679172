"""A home's Redis in this process: the bus's `Store` on a `RedisModel`, for several nodes in one event loop.

It decides when what the server said reaches a node, and what is lost on the way; what the server says is the model's.
No socket and no other process: a test makes it slow, frozen, dead or forgetful by a call.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from fanout.core.deafness import Deafness
from fanout.core.partitions import partition_tags, tag_in
from fanout.core.runs import Run
from fanout.core.subscriptions import Diff, Subscriptions
from fanout.errors import RegionUnreachable
from fanout.settings import BusSettings
from fanout.store import Listener, Outcome
from fanout.tasks import Backoff
from tests.support.redis_model import RedisModel

_WAITING_MAX = 10_000  # what a frozen server's sockets take
_LINE_MAX = 100_000  # beyond it the server cuts a feed, as Redis does with a slow subscriber
_CHANNELS_PER_REQUEST = 500
_MESSAGES_PER_TURN = 32

_Item = TypeVar("_Item")


class MemoryHome:
    """One Redis process that is known to every store that was opened on it; running from the start, and empty.

    It belongs to no event loop, so that one test after another may use it.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self.lag_seconds = 0.0  # how late what the server says reaches the stores
        self.model = RedisModel("run-1")
        self.is_running = True
        self._clock = clock
        self._runs = 1
        self._is_frozen = False
        self._waiting: deque[Callable[[], None]] = deque()
        self._stores: set[MemoryStore] = set()
        self._feeds: dict[_Feed, None] = {}
        self._lost_share = 0.0
        self._random = random.Random()

    def open_store(self, name: str, url: str, settings: BusSettings, listener: Listener) -> "MemoryStore":
        """A node's store on this home, in place of `fanout.redis.open_store`; the URL is not looked at."""
        store = MemoryStore(self, name, settings, listener)
        self._stores.add(store)
        return store

    # -- faults

    def lose_messages(self, share: float, seed: int = 0) -> None:
        """From now on this share of what is published doesn't arrive, each subscriber by itself."""
        self._lost_share, self._random = share, random.Random(seed)

    def drop_subscribers(self) -> None:
        """Close every connection that carries channels."""
        for feed in list(self._feeds):
            self.close_feed(feed)

    def freeze(self) -> None:
        """Connections stay open and nothing answers; what is asked meanwhile waits, even if nobody waits for it."""
        self._is_frozen = True

    def thaw(self) -> None:
        """Go on with what came in meanwhile, in its order."""
        self._is_frozen = False
        while self._waiting:
            self._waiting.popleft()()
        self._tell_stores()

    def kill(self) -> None:
        """Connections are reset; until `start` there is nobody."""
        self.is_running = self._is_frozen = False
        self._waiting.clear()
        self.drop_subscribers()
        for store in self._stores:
            store.lose_answers()

    def start(self, *, empty: bool = True) -> None:
        """Another process, on the same data or on none."""
        self._runs += 1
        run_id = f"run-{self._runs}"
        self.model = RedisModel(run_id) if empty else self.model.copy(run_id)
        self.is_running = True
        self._tell_stores()

    def restart(self) -> None:
        """Killed and started again, empty."""
        self.kill()
        self.start()

    # -- what a test looks at

    def keys(self) -> dict[str, float]:
        """Every key with its time to live in seconds, negative for none."""
        now = self._clock()
        at = {key: self.model.expires_at(key) for key in self.model.dump(now)}
        return {key: -0.001 if expires is None else expires - now for key, expires in at.items()}

    def channels(self) -> list[str]:
        """What anybody is subscribed to."""
        return list(self.model.subscribers)

    # -- for the stores

    @property
    def is_answering(self) -> bool:
        """Running, and not frozen."""
        return self.is_running and not self._is_frozen

    def submit(self, request: Callable[[], None]) -> bool:
        """Carry it out, now or at the thaw; False if it can't be."""
        if not self.is_running or len(self._waiting) >= _WAITING_MAX:
            return False
        if self._is_frozen:
            self._waiting.append(request)
        else:
            request()
        return True

    def execute(self, run: Run) -> Outcome:
        """One script; what it publishes is under way when this returns."""
        answer = self.model.execute(run, self._clock())
        for channel, data in self.model.published:
            self.publish(channel, data)
        self.model.published.clear()
        return answer

    def publish(self, channel: str, data: bytes) -> None:
        """To all who hear the channel; some may miss it."""
        for feed in list(self._feeds):
            if channel in feed.channels and self._random.random() >= self._lost_share:
                feed.line.put(("message", channel, data))
                if len(feed.line) > _LINE_MAX:
                    self.close_feed(feed)

    def open_feed(self) -> "_Feed":
        """A connection that carries channels."""
        feed = _Feed(_Line(self))
        self._feeds[feed] = None
        return feed

    def close_feed(self, feed: "_Feed") -> None:
        """What is still under way on it is lost."""
        self._feeds.pop(feed, None)
        self._leave(feed, list(feed.channels))
        feed.line.close()

    def change_channels(self, feed: "_Feed", diff: Diff) -> None:
        """Carry what a feed asks for, and acknowledge it."""
        if feed not in self._feeds:
            return
        self._leave(feed, diff.unsubscribe)
        for channel in diff.unsubscribe:
            feed.line.put(("unsubscribed", channel, b""))
        for channel in diff.subscribe:
            if channel not in feed.channels:
                feed.channels.add(channel)
                self.model.subscribers[channel] = self.model.subscribers.get(channel, 0) + 1
            feed.line.put(("subscribed", channel, b""))

    def forget(self, store: "MemoryStore") -> None:
        """A store that is closed."""
        self._stores.discard(store)

    def _leave(self, feed: "_Feed", channels: list[str]) -> None:
        subscribers = self.model.subscribers
        for channel in channels:
            if channel in feed.channels:
                feed.channels.discard(channel)
                subscribers[channel] -= 1
                if not subscribers[channel]:
                    del subscribers[channel]

    def _tell_stores(self) -> None:
        for store in self._stores:
            store.on_changed()


class MemoryStore:
    """One node's store; see `fanout.store.Store`. Whatever it tells comes from its `work`."""

    def __init__(self, home: MemoryHome, name: str, settings: BusSettings, listener: Listener) -> None:
        self.name = name
        self._home = home
        self._settings = settings
        self._listener = listener
        self._subscriptions = Subscriptions()
        self._wanted: set[str] = set()
        self._feed: _Feed | None = None
        self._heard_at = 0.0
        self._answers: _Line[tuple[asyncio.Future[list[Outcome]], list[Outcome], str]] = _Line(home)
        self._asked: set[asyncio.Future[list[Outcome]]] = set()
        self._changed = asyncio.Event()
        self._run_id = ""
        self._is_closed = False
        self._deafness = Deafness()
        self._is_silent = False
        self._connects = self._messages = self._new_servers = self._errors = 0

    async def run(self, runs: Sequence[Run]) -> list[Outcome]:
        """See `Store.run`. A run that the model can't carry out is a bug, and raises."""
        unreachable: list[Outcome] = [RegionUnreachable(self.name) for _ in runs]
        asked: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()

        def carry_out() -> None:
            outcomes = [self._home.execute(run) for run in runs]
            self._answers.put((asked, outcomes, self._home.model.run_id))

        if self._is_closed or not self._home.submit(carry_out):
            await asyncio.sleep(0)
            self._errors += 1
            return unreachable
        self._asked.add(asked)
        try:
            async with asyncio.timeout(self._settings.socket_timeout):
                outcomes = await asked
        except TimeoutError:
            outcomes = []
        finally:
            self._asked.discard(asked)
        self._errors += len(outcomes) < len(runs)
        return outcomes or unreachable

    def want(self, channel: str) -> None:
        """See `Store.want`."""
        self._wanted.add(channel)
        self._subscriptions.want(channel)
        self._send_wishes()

    def unwant(self, channel: str) -> None:
        """See `Store.unwant`."""
        self._wanted.discard(channel)
        if not any(tag_in(other) == tag_in(channel) for other in self._wanted):
            self._deafness.heard(tag_in(channel), asyncio.get_running_loop().time())
        self._subscriptions.unwant(channel)
        self._send_wishes()

    def renew(self, channel: str) -> None:
        """See `Store.renew`."""
        self._subscriptions.renew(channel)
        self._send_wishes()

    def holds(self, channel: str) -> bool:
        """See `Store.holds`."""
        return self._subscriptions.holds(channel)

    def beat_tags(self) -> list[str]:
        """See `Store.beat_tags`: one server, so one tag."""
        return [partition_tags()[0]]

    def check_silence(self) -> None:
        """See `Store.check_silence`."""
        silent_for = asyncio.get_running_loop().time() - self._heard_at
        if self._feed and self._wanted and silent_for > self._settings.silence_seconds:
            self._is_silent = True
            self._home.close_feed(self._feed)

    async def work(self) -> None:
        """See `Store.work`."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._answer(), name=f"answers {self.name}")
            group.create_task(self._listen(), name=f"feed {self.name}")

    async def close(self) -> None:
        """See `Store.close`."""
        self._is_closed = True
        self.lose_answers()
        self._answers.close()
        if self._feed:
            self._home.close_feed(self._feed)
        self._home.forget(self)
        self.on_changed()

    def status(self) -> dict[str, int | float]:
        """See `Store.status`."""
        return {
            "connected": int(self._feed is not None and self._home.is_running),
            "connects": self._connects,
            "servers": 1,
            "wanted": len(self._wanted),
            "held": self._subscriptions.held,
            "messages": self._messages,
            "new_servers": self._new_servers,
            "redis_errors": self._errors,
            "deaf_periods": self._deafness.periods,
            "deaf_seconds": round(self._deafness.seconds(asyncio.get_running_loop().time()), 3),
        }

    def on_changed(self) -> None:
        """The home was started or thawed: it may answer now."""
        self._changed.set()

    def lose_answers(self) -> None:
        """Connections are gone, and with them every answer that has not come."""
        self._answers.clear()
        for asked in self._asked:
            if not asked.done():
                asked.set_result([])

    async def _answer(self) -> None:
        while (answer := await self._answers.take()) is not None:
            asked, outcomes, run_id = answer
            self._note_server(run_id)
            if not asked.done():
                asked.set_result(outcomes)

    async def _listen(self) -> None:
        backoff = Backoff(self._settings.backoff_seconds, self._settings.backoff_max_seconds)
        while not self._is_closed:
            if not self._home.is_answering:
                self._changed.clear()
                await self._changed.wait()
                continue
            self._feed = feed = self._home.open_feed()
            self._connects += 1
            self._heard_at = asyncio.get_running_loop().time()
            self._note_server(self._home.model.run_id)
            try:
                self._send_wishes()
                await self._carry(feed, backoff)
            finally:
                self._home.close_feed(feed)
                self._on_feed_lost()
            await backoff.wait()

    def _on_feed_lost(self) -> None:
        since = self._heard_at if self._is_silent else asyncio.get_running_loop().time()
        self._deafness.lost({tag_in(channel) for channel in self._subscriptions.carried()}, since)
        self._feed, self._is_silent = None, False
        self._subscriptions.on_connection_lost()

    async def _carry(self, feed: "_Feed", backoff: Backoff) -> None:
        count = 0
        while (heard := await feed.line.take()) is not None:
            self._heard_at = asyncio.get_running_loop().time()
            backoff.reset()
            self._on_heard(*heard)
            count += 1
            if count % _MESSAGES_PER_TURN == 0:
                await asyncio.sleep(0)

    def _on_heard(self, what: str, channel: str, data: bytes) -> None:
        if what == "subscribed":
            self._deafness.heard(tag_in(channel), self._heard_at)
            if self._subscriptions.on_subscribed(channel):
                self._listener.on_subscribed(channel)
        elif what == "unsubscribed":
            self._subscriptions.on_unsubscribed(channel)
        elif channel in self._wanted:
            self._messages += 1
            self._listener.on_message(channel, data)

    def _note_server(self, run_id: str) -> None:
        before, self._run_id = self._run_id or run_id, run_id
        if before != run_id:
            self._new_servers += 1
            self._listener.on_new_server(frozenset(partition_tags()))

    def _send_wishes(self) -> None:
        feed = self._feed
        while feed and not self._subscriptions.is_settled:
            diff = self._subscriptions.take(_CHANNELS_PER_REQUEST)
            if not self._home.submit(partial(self._home.change_channels, feed, diff)):
                self._home.close_feed(feed)
                return


class _Feed:
    """A connection that carries channels: the server's side of it, and the line to the store."""

    def __init__(self, line: "_Line[tuple[str, str, bytes]]") -> None:
        self.line = line
        self.channels: set[str] = set()


class _Line(Generic[_Item]):
    """What the server says to one store, in order and late by the home's lag."""

    def __init__(self, home: MemoryHome) -> None:
        self._home = home
        self._items: deque[tuple[float, _Item]] = deque()
        self._filled = asyncio.Event()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: _Item) -> None:
        """Under way from now on."""
        due = asyncio.get_running_loop().time() + self._home.lag_seconds
        self._items.append((max(due, self._items[-1][0]) if self._items else due, item))
        self._filled.set()

    async def take(self) -> _Item | None:
        """The next, once it is due; None from a closed line."""
        loop = asyncio.get_running_loop()
        while not self._is_closed:
            if not self._items:
                self._filled.clear()
                await self._filled.wait()
            elif (wait := self._items[0][0] - loop.time()) > 0:
                await asyncio.sleep(wait)
            else:
                return self._items.popleft()[1]
        return None

    def clear(self) -> None:
        """What is under way is lost."""
        self._items.clear()

    def close(self) -> None:
        """What is under way is lost, and nothing more comes."""
        self._is_closed = True
        self._items.clear()
        self._filled.set()
