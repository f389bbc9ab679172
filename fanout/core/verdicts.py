"""What an owner says of a message. Pure."""

from dataclasses import dataclass, field
from typing import Any

from fanout.core.memory import MemoryEntry
from fanout.messages import Status


@dataclass(slots=True)
class Verdict:
    """How far a message came, as its owner says. Only climbs."""

    status: Status
    wants_response: bool
    item_id: str = ""
    reached: dict[str, float] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    memory: MemoryEntry | None = None  # what the call remembers of it, until Redis has it
    is_told: bool = False  # that it was delivered

    @property
    def is_terminal(self) -> bool:
        """Nothing follows."""
        return self.status.is_terminal or (self.status is Status.APPLIED and not self.wants_response)

    def as_delivered(self) -> "Verdict":
        """As much of it as may be said before the rest."""
        reached = {"delivered": self.reached["delivered"]}
        return Verdict(Status.DELIVERED, self.wants_response, self.item_id, reached)
