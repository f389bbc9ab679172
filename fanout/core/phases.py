"""Where a call stands with a node that has it, had it or wants it, and what is asked of Redis meanwhile. Pure data."""

from enum import Enum
from typing import Any, NamedTuple

from fanout.core.runs import Run

LIVE = "live"
MOVING = "moving"  # the state of a call that is nobody's, or whose node is gone: its client may bring it back


class Phase(Enum):
    """Where the call stands with us."""

    CLAIMING = "claiming"
    RELEASING = "releasing"  # a take-over that may still happen, and must not: its answer was lost, or its client left
    HELD = "held"
    HANDING_OVER = "handing over"  # to be given up, once all that is known of it is written
    HANDED_OVER = "handed over"  # Redis has it so: it is nobody's, and waits for its client
    ENDING = "ending"  # the tombstone is to be written
    ENDED = "ended"  # Redis has it
    LOST = "lost"  # somebody else has it, or ended it
    OFFERING = "offering"  # somebody else had it, and a new Redis may not know what we know


KEPT_ONLY = frozenset({Phase.HANDED_OVER, Phase.ENDED, Phase.LOST})  # nothing happens unless Redis is replaced
AGAIN = {  # what is told to a Redis that was replaced
    Phase.HANDED_OVER: Phase.HANDING_OVER,
    Phase.ENDED: Phase.ENDING,
    Phase.LOST: Phase.OFFERING,
}
WRITES = frozenset({Phase.HELD, Phase.HANDING_OVER})  # with a claim, for as long as Redis has no higher one


class Step(NamedTuple):
    """Something to ask of Redis; `about` is for `on_outcomes`."""

    kind: str
    run: Run
    about: Any = None


class Expected(NamedTuple):
    """The claim that a take-over replaces."""

    epoch: int
    claim: str
