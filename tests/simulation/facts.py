"""What happened in one schedule, as far as the promises speak of it. Gathered by everybody, judged in promises.py."""

from dataclasses import dataclass, field

from fanout.messages import Receipt


@dataclass(slots=True)
class Sent:
    """One message and what was said of it."""

    id: str
    call: str
    number: int
    deadline: float  # on the true clock, with the margin that is promised
    wants_response: bool
    nodes: list[str] = field(default_factory=list)  # that published it
    put_at: float = 0.0  # for the first time
    puts: int = 0
    answered_at: float | None = None  # 2xx, for the first time
    told: list[str] = field(default_factory=list)  # statuses that anybody was told
    is_told_applied: bool = False
    was_refused: bool = False  # by the model of some leg; a Redis that loses that verdict has it put in again, later

    def tell(self, receipt: Receipt) -> None:
        """Somebody read this receipt."""
        if receipt.status.value not in self.told:
            self.told.append(receipt.status.value)
        self.is_told_applied = self.is_told_applied or "applied" in receipt.reached


@dataclass(slots=True)
class Yielded:
    """An owner gave a call up, or a take-over came to nothing."""

    call_key: str
    node: str
    epoch: int
    claim: str
    refusal: str


class Facts:
    """All of it."""

    def __init__(self) -> None:
        self.sent: dict[str, Sent] = {}
        self.yielded: list[Yielded] = []
        self.violations: list[str] = []  # seen while it ran
        self.handed: dict[tuple[str, int], dict[str, bytes]] = {}  # what was known of a call when it was given up

    def compare_with_handed(self, call: str, epoch: int, known: dict[str, bytes]) -> None:
        """Whoever takes a call that was handed over gets what was known of it."""
        handed = self.handed.get((call, epoch))
        if handed is not None and handed != known:
            self.violate(f"{call} was handed over with {handed}, and is taken with {known}")

    def violate(self, text: str) -> None:
        """A promise was broken, there and then."""
        self.violations.append(text)
