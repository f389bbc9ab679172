"""The home's Redis: a primary, what of it a replica would have, who subscribes, and what goes wrong with a server.

The scripts are those of tests/support/redis_model.py. Time on the way is the links' business.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from fanout.core.runs import Run
from tests.simulation.world import EPOCH, World
from tests.support.redis_model import RedisModel

Hear = Callable[[int, str, bytes], None]


class Granted(NamedTuple):
    """A claim that some server wrote; `node` is in the claim."""

    call_key: str
    epoch: int
    claim: str
    mode: str
    sent_at: float
    at: float

    @property
    def node(self) -> str:
        """Whose it is."""
        return self.claim.partition("-")[0]


class Server:
    """One process."""

    def __init__(self, name: str, model: RedisModel, skew: float) -> None:
        self.name = name
        self.model = model
        self.skew = skew
        self.is_dead = False
        self.frozen_until = 0.0
        self.waiting: dict[object, list[Callable[[], None]]] = {}  # by connection: what a frozen one has not yet read
        self.carried: dict[str, dict[str, tuple[int, Hear]]] = {}  # by channel and node: the feed's number

    def drop(self, channel: str, node: str, feed: int) -> None:
        """A subscription ends."""
        nodes = self.carried.get(channel, {})
        if node in nodes and nodes[node][0] == feed:
            del nodes[node]
            self.model.subscribers[channel] = len(nodes)


class Home:
    """The servers of one home, of which one is the primary."""

    def __init__(self, world: World, skew_max: float) -> None:
        self._world = world
        self._skew_max = skew_max
        self._servers = 0
        self.primary = self._new(None)
        self._base = self.primary.model
        self._log: list[tuple[float, Run, float]] = []  # what the replica would be told: when, what, at which clock
        self.granted: list[Granted] = []

    def begin(self, run: Run) -> None:
        """The server has been there for a while before the schedule begins."""
        self.primary.model.execute(run, self._clock(self.primary) - 60.0)
        self._base = self.primary.model.copy(self.primary.model.run_id)

    def _new(self, model: RedisModel | None) -> Server:
        self._servers += 1
        name = f"redis{self._servers}"
        if model is None:
            model = RedisModel(name)
        model.run_id = name
        return Server(name, model, self._world.between(-self._skew_max, self._skew_max))

    def _clock(self, server: Server) -> float:
        return EPOCH + self._world.now + server.skew

    def execute(self, server: Server, runs: list[Run], sent_at: float) -> list[Any]:
        """Carry out on a server that is up; what it publishes is on its way."""
        model, now = server.model, self._clock(server)
        answers = []
        for run in runs:
            answer = model.execute(run, now)
            answers.append(answer)
            if server is self.primary:
                self._log.append((self._world.now, run, now))
            if run.script == "claim" and answer[0] == b"held":
                mode, claim = str(run.args[2]), str(run.args[3])
                self.granted.append(Granted(run.keys[1], int(answer[1]), claim, mode, sent_at, self._world.now))
        if model.published:
            published, model.published = model.published, []
            for channel, payload in published:
                for feed, hear in server.carried.get(channel, {}).values():
                    hear(feed, channel, payload)
        return answers

    def subscribe(self, server: Server, channels: list[str], node: str, feed: int, hear: Hear) -> None:
        """A node's feed asked for these."""
        for channel in channels:
            server.carried.setdefault(channel, {})[node] = (feed, hear)
            server.model.subscribers[channel] = len(server.carried[channel])

    # -- faults

    def promote(self, lag: float) -> Server:
        """The replica takes over with what it was told until `lag` seconds ago."""
        behind = self._world.now - lag
        replica = self._base.copy(self._base.run_id)
        kept = [(run, clock) for at, run, clock in self._log if at <= behind]
        for run, clock in kept:
            replica.execute(run, clock)
        replica.published.clear()
        self._world.note("promotion: lost", len(self._log) - len(kept), "writes of", f"{lag:.3f} s")
        return self._become(replica)

    def replace(self) -> Server:
        """A new process with nothing."""
        self._world.note("restarted empty")
        return self._become(None)

    def _become(self, model: RedisModel | None) -> Server:
        self.primary = self._new(model)
        self._base, self._log = self.primary.model.copy(self.primary.name), []
        return self.primary

    def freeze(self, server: Server, seconds: float) -> None:
        """It answers nothing for so long, then carries out what came meanwhile."""
        server.frozen_until = self._world.now + seconds
        self._world.at(server.frozen_until, self._thaw, server)

    def _thaw(self, server: Server) -> None:
        if server.is_dead:
            return
        waiting, server.waiting = server.waiting, {}
        connections = list(waiting.values())
        while connections:
            # In order on each connection, in any order between them.
            place = self._world.random.randrange(len(connections))
            connections[place].pop(0)()
            if not connections[place]:
                connections.pop(place)
