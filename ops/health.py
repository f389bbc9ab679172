"""Whether a node is alive and takes calls. Pure, and ignorant of Redis: its outage must not empty the fleet."""

from enum import Enum


class Health(Enum):
    """The states of a node; it only ever goes forward."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"

    @property
    def accepts_calls(self) -> bool:
        """Whether new calls may start here."""
        return self is Health.READY


_NEXT = {
    Health.STARTING: {Health.READY, Health.DRAINING},
    Health.READY: {Health.DRAINING},
    Health.DRAINING: {Health.DRAINING},
}


def moved(state: Health, to: Health) -> Health:
    """Return the state after a move.

    Raises:
        ValueError: a node does not go back.
    """
    if to not in _NEXT[state]:
        raise ValueError(f"a node that is {state.value} cannot become {to.value}")
    return to
