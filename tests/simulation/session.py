"""A call at one node, beside the protocol: its model legs and their conversations. The model is a list of item ids.

An item is put in once the leg is ready, and the model takes it, or not, a little later; a new leg is built from what
the call remembers. What the model took before its leg died, and nobody heard of, is put in again. An item that is in
the conversation already is applied, whatever its deadline says.
"""

from typing import Protocol

from fanout.core.ownership import Ownership
from fanout.messages import Message, Status
from tests.simulation.facts import Facts
from tests.simulation.world import EPOCH, World

_REFUSED = {"code": "invalid_value", "message": "The model refuses."}
_EXPIRED = {"code": "expired", "message": "Its deadline passed."}


class Place(Protocol):
    """The call's place at its node."""

    protocol: Ownership
    node_name: str

    def later(self, when: float, act: object, *args: object) -> None:
        """Let something happen at this node, if it still runs then."""

    def wall(self) -> float:
        """The node's clock."""
        ...

    def settle(self, message_id: str, status: Status, **details: object) -> None:
        """As OwnedCall.settle."""

    def note(self, name: str, value: bytes | None) -> None:
        """As OwnedCall.note."""


class Session:
    """From the take-over of a call to its end here."""

    def __init__(self, world: World, facts: Facts, place: Place, *, refuses: float) -> None:
        self._world = world
        self._facts = facts
        self._place = place
        self._refuses = refuses  # how likely the model refuses an item
        self._seen: set[str] = set()
        self._waiting: dict[str, Message] = {}  # not taken by the present leg
        self._in_flight: dict[str, Message] = {}
        self._unanswered: dict[str, Message] = {}
        self._taken_at = self._heard_at = 0.0
        self.conversation: list[str] | None = None  # of the leg that is ready
        self.leg = 0
        self.is_closed = False

    @property
    def is_quiet(self) -> bool:
        """Nothing is under way."""
        return self.conversation is not None and not (self._waiting or self._in_flight or self._unanswered)

    def deliver(self, message: Message) -> None:
        """The bus hands a message over."""
        if message.id in self._seen:
            self._facts.violate(f"{message.id} was delivered twice to one owner, {self._place.node_name}")
        self._seen.add(message.id)
        self._waiting[message.id] = message
        self._inject()

    def build(self) -> None:
        """A new leg, ready after a while; the one before, if any, is dead."""
        self.leg += 1
        self.conversation = None
        self._world.note(self._place.node_name, "builds leg", self.leg)
        self._place.later(self._world.now + self._world.between(0.02, 0.5), self._on_ready, self.leg)

    def close(self) -> None:
        """Nothing happens here any more."""
        self.is_closed = True
        self.leg += 1

    def _on_ready(self, leg: int) -> None:
        if leg != self.leg:
            return
        self.conversation = [entry.decode() for entry in self._place.protocol.memory.entries]
        self._waiting = {**self._in_flight, **self._waiting}
        self._in_flight = {}
        self._inject()
        for message in list(self._unanswered.values()):
            self._respond(message)

    def _inject(self) -> None:
        if self.conversation is None or self.is_closed:
            return
        world = self._world
        waiting, self._waiting = self._waiting, {}
        for message in waiting.values():
            if message.item_id not in self.conversation:
                if self._place.wall() > message.expires_at:
                    self._place.settle(message.id, Status.EXPIRED, error=_EXPIRED)
                    continue
                self._judge_time(message)
            self._in_flight[message.id] = message
            self._taken_at = max(self._taken_at, world.now + world.between(0.001, 0.2))
            world.at(self._taken_at, self._take, self.leg, message)

    def _judge_time(self, message: Message) -> None:
        if self._world.now + EPOCH > self._facts.sent[message.id].deadline:
            late = self._world.now + EPOCH - self._facts.sent[message.id].deadline
            self._facts.violate(f"{message.id} was put in {late:.3f} s after its deadline")

    def _take(self, leg: int, message: Message) -> None:
        """At the model."""
        if leg != self.leg or self.conversation is None:
            return
        world = self._world
        is_there = message.item_id in self.conversation
        is_refused = not is_there and world.chance(self._refuses)
        if not is_there and not is_refused:
            self.conversation.append(message.item_id)
        self._heard_at = max(self._heard_at, world.now + world.between(0.001, 0.05))
        self._place.later(self._heard_at, self._on_taken, leg, message, is_refused)

    def _on_taken(self, leg: int, message: Message, is_refused: bool) -> None:
        if leg != self.leg:
            return
        self._in_flight.pop(message.id, None)
        if is_refused:
            self._facts.sent[message.id].was_refused = True
            self._place.settle(message.id, Status.FAILED, error=_REFUSED)
            return
        entry = message.item_id.encode()
        self._place.note("usage", b"%d in leg %d" % (len(self.conversation or ()), leg))
        self._place.note(f"item.{len(self.conversation or ()):02}", entry)
        self._place.note(f"item.{len(self.conversation or ()) - 4:02}", None)
        self._place.settle(message.id, Status.APPLIED, item_id=message.item_id, memory=entry)
        if message.wants_response:
            self._unanswered[message.id] = message
            self._respond(message)

    def _respond(self, message: Message) -> None:
        self._place.later(self._world.now + self._world.between(0.05, 1.0), self._on_answered, self.leg, message)

    def _on_answered(self, leg: int, message: Message) -> None:
        if leg == self.leg:
            self._unanswered.pop(message.id, None)
            self._place.settle(message.id, Status.ANSWERED)
