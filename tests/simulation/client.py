"""The person of one call: connects, moves to another node, comes back after a loss, hangs up.

It is at one node at a time, and comes back until it has its call again; a node that it left isn't told where it went.
"""

from typing import TYPE_CHECKING

from fanout.core.phases import Phase
from fanout.messages import CallRecord, Tombstone
from tests.simulation.facts import Facts
from tests.simulation.world import World

if TYPE_CHECKING:
    from tests.simulation.node import Node
    from tests.simulation.owning import Owned

_RETRY = (0.05, 1.5)  # seconds until it tries again


class Client:
    """One call's."""

    def __init__(self, world: World, facts: Facts, nodes: "list[Node]", record: CallRecord) -> None:
        self._world = world
        self._facts = facts
        self._nodes = nodes
        self.record = record
        self.node: Node | None = None  # where it is, or tries to be
        self.owned: Owned | None = None  # its call there
        self.was_registered = False
        self.is_gone = False  # for good
        self.is_ended = False
        self.comes_back = True  # after its node died
        self.left: list[tuple[str, float]] = []  # which node, and when
        self._attempt = 0

    @property
    def tenant(self) -> str:
        """Whose call it is."""
        return self.record.tenant

    @property
    def is_live(self) -> bool:
        """Whether the call goes on."""
        return not (self.is_gone or self.is_ended)

    def start(self, node: "Node") -> None:
        """A new call."""
        self.node = node
        self.owned = node.owning.own(self.record, self)

    def move(self, node: "Node") -> None:
        """The connection to its node is gone, or its node asked it to go, and it resumes at another."""
        if self.is_live and node is not self.node:
            self._world.note("client of", self.record.id, "moves to", node.name)
            owned = self.owned
            if owned is not None and owned.node.answers and self._world.chance(0.5):
                self._leave()
                owned.hand_over()
            self._resume(node)

    def hang_up(self) -> None:
        """The end of the call."""
        owned = self.owned
        if owned is None or not self.is_live or self.node is None or not self.node.answers or not owned.is_registered:
            return
        if owned.protocol.phase is not Phase.HELD:
            return
        self._world.note("client of", self.record.id, "hangs up at", self.node.name)
        self.is_ended = True
        record = self.record
        wall = self.node.wall()
        owned.end(
            Tombstone(
                id=record.id, tenant=record.tenant, node=self.node.name, region="iad", started_at=record.started_at,
                ended_at=wall, why="client_closed", fault="client",
            )
        )  # fmt: skip

    def is_elsewhere(self, node: "Node") -> bool:
        """Whether it left this node."""
        return self.node is not node or not self.is_live

    # -- what nodes tell

    def on_attached(self, owned: "Owned") -> None:
        """It has its place."""
        if self.is_elsewhere(owned.node):
            return
        owned.client = self
        self.owned = owned
        if owned.protocol.is_kept_only:
            self.on_lost(owned)

    def on_registered(self, owned: "Owned") -> None:
        """Its call is claimed and can be reached."""
        self.was_registered = True

    def on_lost(self, owned: "Owned") -> None:
        """Its node closed it: another owner has the call, and if this was to be its end, it wasn't."""
        if owned is self.owned and not self.is_gone:
            self.is_ended = False
            self._come_back()

    def on_refused(self, node: "Node", word: str) -> None:
        """Its node could not take it."""
        if self.is_elsewhere(node):
            return
        if word in {"absent", "reserved", "ended"}:
            self._facts.violate(f"{self.record.id} is live, and its client was told {word} at {node.name}")
        self._come_back()

    def on_node_gone(self, owned: "Owned") -> None:
        """The node died."""
        if owned is not self.owned:
            return
        if self.comes_back and not self.is_ended:
            self._come_back()
        else:
            self.is_gone = True
            self.owned = None

    def on_node_frozen(self, owned: "Owned", until: float) -> None:
        """The node says nothing: after a while the client goes elsewhere."""
        patience = self._world.between(0.3, 5)
        if owned is self.owned and self._world.now + patience < until:
            self._world.after(patience, self._leave_frozen, owned)

    def _leave_frozen(self, owned: "Owned") -> None:
        if owned is self.owned and self.is_live:
            self._come_back()

    # -- coming back

    def _come_back(self) -> None:
        self._leave()
        self._attempt += 1
        self._world.after(self._world.between(*_RETRY), self._try, self._attempt)

    def _leave(self) -> None:
        if self.node is not None:
            self.left.append((self.node.name, self._world.now))
        if self.owned is not None:
            self.owned.client = None
        self.owned = self.node = None

    def _try(self, attempt: int) -> None:
        if attempt != self._attempt or not self.is_live or self.owned is not None:
            return
        nodes = [node for node in self._nodes if node.answers]
        before = [node for node in nodes if any(node.name == name for name, _ in self.left[:-1])]
        self._resume(self._world.random.choice(before if before and self._world.chance(0.5) else nodes))

    def _resume(self, node: "Node") -> None:
        self._leave()
        self._attempt += 1
        self.node = node
        if not node.answers:
            self._come_back()
            return
        self._world.note("client of", self.record.id, "resumes at", node.name)
        node.take(self.record, self.tenant, self)
        self._world.after(self._world.between(12, 20), self._lose_patience, self._attempt)

    def _lose_patience(self, attempt: int) -> None:
        """It hears nothing from where it is."""
        is_there = self.owned is not None and self.owned.is_registered
        if attempt == self._attempt and self.is_live and not is_there:
            self._come_back()
