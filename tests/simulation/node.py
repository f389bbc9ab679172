"""One node: what it owns, what it publishes, its clock, its crashes and freezes. Drives, and decides nothing."""

from collections.abc import Callable
from typing import Any

from fanout.core.envelope import Envelope
from fanout.core.phases import Expected
from fanout.core.runs import Run
from fanout.core.scripts import Scripts
from fanout.errors import RegionUnreachable
from fanout.messages import CallRecord
from tests.simulation.client import Client
from tests.simulation.facts import Facts
from tests.simulation.link import Link
from tests.simulation.owning import Owning
from tests.simulation.publishing import Publishing
from tests.simulation.redis import Home
from tests.simulation.world import EPOCH, World


class Node:
    """Runs from the start; `crash` and `restart` change its boot, and with it everything it knew."""

    def __init__(
        self,
        world: World,
        home: Home,
        facts: Facts,
        scripts: Scripts,
        tags: frozenset[str],
        delay: float,
        refuses: float,
    ) -> None:
        self.world = world
        self.facts = facts
        self.scripts = scripts
        self.name = scripts.settings.node
        self.refuses = refuses
        self.boot = 0
        self.is_up = False
        self.frozen_until = 0.0
        self._home = home
        self._tags = tags
        self.delay = delay  # one way to Redis, in seconds
        self._skew = world.between(-1, 1) * scripts.settings.clock_skew_seconds
        self._claims = 0
        self._channels = {scripts.keys.node_channel(tag, self.name): None for tag in sorted(tags)}
        self.restart()

    def restart(self) -> None:
        """A new process, which knows nothing."""
        settings = self.scripts.settings
        self.is_up = True
        self.link = Link(self.world, self._home, self, self.delay, settings.socket_timeout, settings.silence_seconds)
        self.owning = Owning(self)
        self.publishing = Publishing(self)
        self.link.open_feed()
        self.later(self.world.now + self.world.between(0, settings.sweep_seconds), self._sweep)

    def crash(self) -> None:
        """All memory is gone; what was sent is under way all the same."""
        self.world.note(self.name, "crashes")
        self.boot += 1
        self.is_up = False
        self.link.close()
        for call in self.owning.by_id.values():
            call.session.close()
            if call.client is not None:
                call.client.on_node_gone(call)

    def freeze(self, seconds: float) -> None:
        """It does nothing for so long; then all that came meanwhile comes at once."""
        world = self.world
        world.note(self.name, "freezes for", f"{seconds:.3f} s")
        self.frozen_until = world.now + seconds
        if world.chance(0.5):
            self.link.hold_back(self.frozen_until)
        if seconds > self.scripts.settings.silence_seconds and world.chance(0.5):
            self.later(self.frozen_until, self.link.lose_feed)
            self.later(self.frozen_until + world.between(0.05, 0.5), self.link.open_feed)
        for call in list(self.owning.by_id.values()):
            if call.client is not None:
                call.client.on_node_frozen(call, self.frozen_until)

    @property
    def answers(self) -> bool:
        """Whether a client or a backend gets through to it."""
        return self.is_up and self.frozen_until <= self.world.now

    def wall(self) -> float:
        """Its clock: seconds since the epoch, and how far it is off."""
        return EPOCH + self.world.now + self._skew

    def new_claim(self) -> str:
        """A claim id."""
        self._claims += 1
        return f"{self.name}-{self.boot}.{self.world.random.randrange(1 << 30):08x}"

    def beat(self) -> Run:
        """Its heartbeat."""
        return self.scripts.beat(min(self._tags), f"{self.name}-{self.boot}")

    def later(self, when: float, act: Callable[..., None], *args: Any) -> None:
        """Let something happen here, unless it crashes first; while it is frozen, at its waking."""
        self.world.at(when, self._act, self.boot, act, args)

    def _act(self, boot: int, act: Callable[..., None], args: tuple[Any, ...]) -> None:
        if boot != self.boot:
            return
        if self.frozen_until > self.world.now:
            self.world.at(self.frozen_until, self._act, boot, act, args)
        else:
            act(*args)

    # -- for clients

    def take(self, record: CallRecord, tenant: str, client: Client) -> None:
        """A client resumes its call here: on its owner it is the same call, elsewhere it is taken over."""
        known = self.owning.by_id.get(record.id)
        if known is not None and known.protocol.is_given_up:
            client.on_refused(self, "moving")
            return
        if known is not None:
            client.on_attached(known)
            return
        run = self.scripts.lookup(self.scripts.keys.call(record.id, tenant), tenant)

        def on_answer(outcomes: list[Any]) -> None:
            (answer,) = outcomes
            word = "unreachable" if isinstance(answer, RegionUnreachable) else answer[0].decode()
            if word != "live" or client.is_elsewhere(self):
                client.on_refused(self, word)
            elif record.id in self.owning.by_id and self.owning.by_id[record.id].protocol.is_given_up:
                client.on_refused(self, "moving")
            elif record.id in self.owning.by_id:
                client.on_attached(self.owning.by_id[record.id])
            else:
                client.on_attached(self.owning.own(record, client, Expected(int(answer[2]), answer[3].decode())))

        self.link.run([run], on_answer)

    # -- Ear, for the link

    def channels(self) -> list[str]:
        """See `Ear`."""
        return [*self._channels, *self.owning.by_channel]

    def on_message(self, channel: str, payload: bytes) -> None:
        """A bell, a receipt, or its own heartbeat."""
        if channel not in self._channels:
            self.owning.on_bell(channel, payload)
            return
        envelope = Envelope.unpack(payload, max_bytes=1 << 20)
        if envelope.kind == "receipt":
            self.publishing.on_receipt(envelope)

    def on_subscribed(self, channels: list[str]) -> None:
        """Acknowledged; after a loss the calls are looked at at once."""
        for channel in channels:
            if channel not in self._channels:
                self.owning.on_subscribed(channel)
        if not self._channels.keys().isdisjoint(channels):
            self.owning.sweep()

    def on_new_server(self) -> None:
        """See `Ear`."""
        self.owning.on_new_server()
        self.publishing.on_new_server(self._tags)

    def _sweep(self) -> None:
        if self.world.now < self.world.last_work_at:
            self.owning.sweep()
        self.later(self.world.now + self.scripts.settings.sweep_seconds, self._sweep)
