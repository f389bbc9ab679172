"""A backend that puts messages into calls by way of nodes, asks again where it was not told 2xx, and believes receipts.

It puts one after the other, or each at its time; a repeat has the same id and may go by another node.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fanout.errors import CallEnded, CallNotFound, FanoutError
from fanout.messages import Message, Receipt, Status
from tests.simulation.client import Client
from tests.simulation.facts import Facts, Sent
from tests.simulation.publishing import Answer
from tests.simulation.world import EPOCH, World

if TYPE_CHECKING:
    from tests.simulation.node import Node

_TRIES = 4
_GIVES_UP_SECONDS = 20.0  # after the last message was planned


@dataclass(frozen=True, slots=True)
class Plan:
    """A message to come."""

    id: str
    number: int
    at: float
    expires_in: float
    wants_response: bool
    wait: Status
    timeout: float
    is_repeated: bool  # although it was told 2xx, once more by another node


class Caller:
    """One backend's messages to one call."""

    def __init__(
        self,
        world: World,
        facts: Facts,
        nodes: "list[Node]",
        node: "Node",
        client: Client,
        plans: list[Plan],
        *,
        in_turn: bool,
    ) -> None:
        self._world = world
        self._facts = facts
        self._nodes = nodes
        self._node = node
        self._client = client
        self._plans = plans
        self._in_turn = in_turn
        self._until = plans[-1].at + _GIVES_UP_SECONDS
        self._begun = 0  # how many of the plans
        if in_turn:
            self._next(0)
        else:
            for plan in plans:
                world.at(plan.at, self._put, plan, node, 1)

    def _next(self, place: int) -> None:
        if self._begun <= place < len(self._plans):
            self._begun = place + 1
            self._world.at(self._plans[place].at, self._put, self._plans[place], self._node, 1)

    def _put(self, plan: Plan, node: "Node", tries: int) -> None:
        world = self._world
        if world.now > self._until:
            return
        if not node.answers or not self._client.was_registered:
            if tries < _TRIES:
                world.after(world.between(0.1, 1), self._put, plan, self._elsewhere(node), tries + 1)
            elif self._in_turn:
                self._next(plan.number + 1)
            return
        expires_at = node.wall() + plan.expires_in
        sent = self._facts.sent.get(plan.id)
        if sent is None:
            sent = Sent(plan.id, self._client.record.id, plan.number, 0.0, plan.wants_response, put_at=world.now)
            self._facts.sent[plan.id] = sent
        margin = 2 * node.scripts.settings.clock_skew_seconds
        sent.deadline = max(sent.deadline, EPOCH + world.now + plan.expires_in + margin)
        sent.puts += 1
        if node.name not in sent.nodes:
            sent.nodes.append(node.name)
        message = Message(id=plan.id, item=b"{}", response=plan.wants_response, expires_at=expires_at)
        asked = _Asked(self, plan, node, sent, tries)
        world.after(plan.timeout + world.between(1, 3), asked.on_silence)
        if world.trace is not None:
            world.note("put", plan.id, "at", node.name, f"for {plan.expires_in:.2f} s, waits for {plan.wait.value}")
        record = self._client.record
        node.publishing.put(record.id, record.tenant, message, plan.wait, plan.timeout, asked.on_answer)

    def _elsewhere(self, node: "Node") -> "Node":
        return self._world.random.choice(self._nodes) if self._world.chance(0.5) else node

    def on_told(self, plan: Plan, node: "Node", sent: Sent, tries: int, answer: Answer | None) -> None:
        """The answer, or none."""
        world = self._world
        if world.trace is not None:
            what = answer.status.value if isinstance(answer, Receipt) else type(answer).__name__
            world.note("put of", plan.id, "at", node.name, "is told", what)
        if isinstance(answer, Receipt):
            if sent.answered_at is None:
                sent.answered_at = world.now
            sent.tell(answer)
            if plan.is_repeated and tries < _TRIES:
                world.after(world.between(0, 2), self._put, plan, world.random.choice(self._nodes), _TRIES)
        else:
            self._judge(answer, sent)
            if tries < _TRIES and world.chance(0.8):
                world.after(world.between(0, 1), self._put, plan, self._elsewhere(node), tries + 1)
                return
        if self._in_turn:
            self._next(plan.number + 1)

    def _judge(self, answer: FanoutError | None, sent: Sent) -> None:
        if isinstance(answer, CallNotFound | CallEnded) and self._client.is_live:
            self._facts.violate(f"{sent.call} is live, and {sent.id} was told {type(answer).__name__}")


class _Asked:
    """One request of a backend to a node."""

    def __init__(self, caller: Caller, plan: Plan, node: "Node", sent: Sent, tries: int) -> None:
        self._caller = caller
        self._plan = plan
        self._node = node
        self._boot = node.boot
        self._sent = sent
        self._tries = tries
        self._is_over = False

    def on_answer(self, answer: Answer) -> None:
        """The node answers."""
        if not self._is_over:
            self._is_over = True
            self._caller.on_told(self._plan, self._node, self._sent, self._tries, answer)

    def on_silence(self) -> None:
        """It doesn't."""
        if not self._is_over:
            self._is_over = True
            self._caller.on_told(self._plan, self._node, self._sent, self._tries, None)
