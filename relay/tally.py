"""A node's counts as plain integers: the data path adds to them, ``/metrics`` reads them.

An increment costs tens of nanoseconds; a metric library's labelled child costs a microsecond and more.
"""

from bisect import bisect_left
from typing import Final

from relay.core.endings import SideWhy, Why

LIMITS: Final = ("concurrent", "starts", "minutes", "messages", "client_rate")  # of a plan
CONNECT_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds
DURATION_BUCKETS: Final = (1.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0)
INJECT_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0)
REBUILD_BUCKETS: Final = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_REFUSALS: Final = (400, 401, 403, 404, 408, 409, 410, 413, 414, 422, 426, 429, 431, 500, 501, 503)


class Histogram:
    """Counts by bucket; ``bounds`` are upper bounds in seconds."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Tally:
    """All counts of one node. Labels are the closed sets that the dictionaries are made with."""

    def __init__(self) -> None:
        self.started = 0
        self.ended: dict[Why, int] = dict.fromkeys(Why, 0)
        self.side_legs = 0  # started
        self.side_ended: dict[SideWhy, int] = dict.fromkeys(SideWhy, 0)
        self.refused: dict[int, int] = dict.fromkeys(_REFUSALS, 0)
        self.frames = {"client": 0, "model": 0}  # received, by leg
        self.bytes = {"client": 0, "model": 0}
        self.unregistered = 0  # calls that went on before the bus had them
        self.injected: dict[str, int] = dict.fromkeys(("applied", "answered", "failed", "rejected", "expired"), 0)
        self.resumes: dict[str, int] = dict.fromkeys(("same_leg", "moved", "refused"), 0)  # of clients, by kind
        self.redials: dict[str, int] = dict.fromkeys(("rebuilt", "failed"), 0)  # of lost model legs, by outcome
        # Of calls whose agent has several upstreams, by outcome: another one served after one had failed, or at once
        # for one had failed lately; or none did.
        self.failovers: dict[str, int] = dict.fromkeys(("served", "avoided", "failed"), 0)
        self.roll_overs: dict[str, int] = dict.fromkeys(("done", "forced", "missed"), 0)  # of model legs, by outcome
        self.items_skipped = 0  # items of a conversation that a model refused when it was rebuilt
        self.orphans: dict[str, int] = dict.fromkeys(("node_lost", "client_lost"), 0)  # ended for others, by why
        self.limited: dict[str, int] = dict.fromkeys(LIMITS, 0)  # what plans refused, or slowed down, by limit
        self.limits_unchecked = 0  # calls and messages that Redis could not be asked about
        self.usage_dropped = 0  # reports of what calls used that were not counted
        self.connect = Histogram(CONNECT_BUCKETS)
        self.rebuild = Histogram(REBUILD_BUCKETS)
        self.duration = Histogram(DURATION_BUCKETS)
        self.apply = Histogram(INJECT_BUCKETS)

    def refuse(self, status: int) -> None:
        """Count a request that was refused; a status that is not in the set counts as 500."""
        self.refused[status if status in self.refused else 500] += 1

    def end_orphan(self, why: str) -> None:
        """Count a call that nobody held any more and this node ended."""
        self.orphans[why] += 1
