"""A node's way to its home: one connection for commands, one feed, and what can happen on the way.

Decides delays, what is lost, and what is carried out although nobody hears the answer. What fails is told as the real
store tells it: a RegionUnreachable in the answer's place.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from fanout.core.runs import Run
from fanout.errors import RegionUnreachable
from tests.simulation.redis import Home, Server
from tests.simulation.world import World

Give = Callable[[list[Any]], None]
BACKOFF = (0.05, 0.5)  # seconds until a lost connection is there again
_UNREACHABLE = RegionUnreachable("home")


class Ear(Protocol):
    """The node at this end."""

    name: str

    def later(self, when: float, act: Callable[..., None], *args: Any) -> None:
        """Let something happen at this node, if it still runs then."""

    def channels(self) -> list[str]:
        """What it wants to hear."""
        ...

    def on_message(self, channel: str, payload: bytes) -> None:
        """It hears something."""

    def on_subscribed(self, channels: list[str]) -> None:
        """It hears these from now on."""

    def on_new_server(self) -> None:
        """Another process than before."""


class Batch:
    """Scripts that were sent together."""

    __slots__ = ("give", "is_over", "kept", "reaches_at", "runs", "sent_at")

    def __init__(self, runs: Sequence[Run], give: Give, sent_at: float) -> None:
        self.runs = list(runs)
        self.give = give
        self.sent_at = sent_at
        self.reaches_at = 0.0
        self.is_over = False
        self.kept: int | None = None  # how many answers came through, if not all


class Link:
    """One node's."""

    def __init__(self, world: World, home: Home, ear: Ear, delay: float, timeout: float, silence: float) -> None:
        self._world = world
        self._home = home
        self._ear = ear
        self._delay = delay
        self._timeout = timeout
        self._silence = silence
        self.server: Server = home.primary
        self._run_id = home.primary.name
        self.is_down = False  # no connection: what is asked waits for one
        self._connection: object = object()
        self._in_flight: dict[Batch, None] = {}
        self._waiting: dict[Batch, None] = {}
        self._out_at = self._in_at = self._feed_at = 0.0
        self.feed = 0  # number of the present feed
        self.has_feed = False
        self.cut_until = 0.0
        self.answers_lost = 0.0  # how likely
        self.bells_lost = 0.0
        self.bells_late = 0.0  # by how many seconds at most

    def _travel(self) -> float:
        return self._delay * self._world.between(0.9, 1.3)

    # -- commands

    def run(self, runs: Sequence[Run], give: Give) -> None:
        """Carry out these scripts; `give` gets the outcomes."""
        batch = Batch(runs, give, self._world.now)
        if self.is_down:
            self._waiting[batch] = None
            self._ear.later(batch.sent_at + self._timeout, self._time_out, batch)
        else:
            self._send(batch)

    def _send(self, batch: Batch) -> None:
        world, server = self._world, self.server
        self._in_flight[batch] = None
        if self.cut_until > world.now:
            self._ear.later(batch.sent_at + self._timeout, self._time_out, batch)
            if world.chance(0.5):  # in the kernel's buffer, which goes on trying after its process gave up
                world.at(self.cut_until + world.between(0, 1), self._reach, batch, server, self._connection)
            return
        self._out_at = max(self._out_at, world.now + self._travel())
        batch.reaches_at = self._out_at
        world.at(self._out_at, self._reach, batch, server, self._connection)

    def hold_back(self, until: float) -> None:
        """What is on its way arrives only then."""
        for batch in self._in_flight:
            if batch.reaches_at > self._world.now:
                batch.reaches_at = until

    def _reach(self, batch: Batch, server: Server, connection: object) -> None:
        world = self._world
        if batch.reaches_at > world.now:
            world.at(batch.reaches_at, self._reach, batch, server, connection)
        elif server.is_dead:
            self._ear.later(world.now + self._travel(), self._on_reset, batch)
        elif server.frozen_until > world.now:
            self._ear.later(batch.sent_at + self._timeout, self._time_out, batch)
            server.waiting.setdefault(connection, []).append(lambda: self._execute(batch, server))
        else:
            self._execute(batch, server)

    def _execute(self, batch: Batch, server: Server) -> None:
        world = self._world
        outcomes = self._home.execute(server, batch.runs, batch.sent_at)
        if batch.is_over:
            return
        if self.answers_lost and world.chance(self.answers_lost):
            batch.kept = world.random.randrange(len(outcomes))
        self._in_at = max(self._in_at, world.now + self._travel())
        self._ear.later(self._in_at, self._on_answers, batch, outcomes)

    def _on_answers(self, batch: Batch, outcomes: list[Any]) -> None:
        world = self._world
        deadline = batch.sent_at + self._timeout
        if self.cut_until > world.now:
            is_short = self.cut_until < deadline
            self._ear.later(max(world.now, deadline), self._time_out, batch)
            if is_short:
                self._ear.later(self.cut_until, self._on_answers, batch, outcomes)
        elif world.now > deadline and world.chance(0.5):
            self._give(batch, 0, outcomes)  # it was frozen, and looked at its clock first
        else:
            self._give(batch, batch.kept, outcomes)

    def _on_reset(self, batch: Batch) -> None:
        """The server is gone: nothing is asked until there is another connection."""
        if not batch.is_over:
            self._give(batch, 0, [])
            self.lose()

    def _time_out(self, batch: Batch) -> None:
        """No answer in time: the connection is given up, with all that was sent on it; some of it may arrive yet."""
        if batch.is_over or batch in self._waiting:
            self._give(batch, 0, [])
            return
        self.is_down = True
        for other in list(self._in_flight):
            self._give(other, 0, [])
        again = max(self._world.now, self.cut_until, self.server.frozen_until)
        if again < math.inf:
            self._ear.later(again + self._world.between(*BACKOFF), self._connect, self.server)

    def _give(self, batch: Batch, kept: int | None, outcomes: list[Any]) -> None:
        if batch.is_over:
            return
        batch.is_over = True
        self._in_flight.pop(batch, None)
        self._waiting.pop(batch, None)
        if kept is not None:
            outcomes = outcomes[:kept] + [_UNREACHABLE] * (len(batch.runs) - kept)
        batch.give(outcomes)

    # -- connections

    def lose(self) -> None:
        """Both connections are gone."""
        self.is_down = True
        for batch in list(self._in_flight):
            if self._world.chance(0.5):  # else its answer is in the kernel's buffer already
                self._give(batch, 0, [])
        self.lose_feed()

    def lose_feed(self) -> None:
        """Whatever was under way to it never comes."""
        if self.has_feed:
            self.has_feed = False
            if self.cut_until <= self._world.now:  # else the server will not notice before the next
                for channel in list(self.server.carried):
                    self.server.drop(channel, self._ear.name, self.feed)

    def close(self) -> None:
        """The node is gone; what it sent arrives all the same."""
        for batch in (*self._in_flight, *self._waiting):
            batch.is_over = True
        self.lose_feed()

    def switch(self) -> None:
        """The node learned where the primary is: connect, commands and feed in any order."""
        server, world = self._home.primary, self._world
        self.is_down = True
        for batch in list(self._in_flight):
            self._give(batch, 0, [])
        self.lose_feed()
        self.server = server
        self._ear.later(world.now + world.between(*BACKOFF), self._connect, server)
        self._ear.later(world.now + world.between(*BACKOFF), self.open_feed)

    def _connect(self, server: Server) -> None:
        if server is not self.server or not self.is_down or server.is_dead:
            return
        if max(self.cut_until, server.frozen_until) > self._world.now:
            self._ear.later(self._world.now + 1.0, self._connect, server)
            return
        self._meet()
        self.is_down = False
        self._connection = object()
        for batch in list(self._waiting):
            del self._waiting[batch]
            self._send(batch)

    def _meet(self) -> None:
        if self._run_id != self.server.name:
            self._run_id = self.server.name
            self._world.note(self._ear.name, "meets", self._run_id)
            self._ear.on_new_server()

    # -- the feed

    def open_feed(self) -> None:
        """Connect the feed, and subscribe to all that is wanted."""
        server, world = self.server, self._world
        if self.has_feed or server.is_dead:
            return
        until = max(self.cut_until, server.frozen_until)
        if until > world.now:
            self._ear.later(until + world.between(*BACKOFF), self.open_feed)
            return
        self._meet()
        self.feed += 1
        self.has_feed = True
        self._feed_at = 0.0
        self.subscribe(self._ear.channels())

    def subscribe(self, channels: list[str]) -> None:
        """Ask for these on the present feed; without one, the next one does."""
        if self.has_feed:
            self._world.after(self._travel(), self._subscribe, self.server, self.feed, channels)

    def unsubscribe(self, channel: str) -> None:
        """No more of this."""
        self.server.drop(channel, self._ear.name, self.feed)

    def _subscribe(self, server: Server, feed: int, channels: list[str]) -> None:
        if feed != self.feed or not self.has_feed or server.is_dead:
            return
        self._home.subscribe(server, channels, self._ear.name, feed, self._hear)
        self._arrive(feed, self._on_subscribed, channels)

    def _on_subscribed(self, feed: int, channels: list[str]) -> None:
        if feed == self.feed and self.has_feed:
            self._ear.on_subscribed(channels)

    def _hear(self, feed: int, channel: str, payload: bytes) -> None:
        """The server published something that this feed carries."""
        if not (self.bells_lost and self._world.chance(self.bells_lost)):
            self._arrive(feed, self._on_message, channel, payload)

    def _arrive(self, feed: int, act: Callable[..., None], *args: Any) -> None:
        world = self._world
        late = world.between(0, self.bells_late) if self.bells_late else 0.0
        self._feed_at = max(self._feed_at, world.now + self._travel() + late, self.cut_until)
        self._ear.later(self._feed_at, act, feed, *args)

    def _on_message(self, feed: int, channel: str, payload: bytes) -> None:
        if feed == self.feed and self.has_feed:
            self._ear.on_message(channel, payload)

    # -- faults

    def cut(self, seconds: float) -> None:
        """Nothing passes for so long."""
        world = self._world
        self.cut_until = world.now + seconds
        self.watch_silence(self.cut_until)

    def watch_silence(self, until: float) -> None:
        """Nothing will be heard until then; a feed that is silent for too long is given up."""
        world = self._world
        noticed = world.now + self._silence + world.between(0, 1)
        if noticed < until:
            self._ear.later(noticed, self.lose_feed)
            self._ear.later(until + world.between(0, 1), self.open_feed)
