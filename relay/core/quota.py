"""A plan's numbers as they hold in one region, what breaks them, and what is admitted while nobody can count. Pure.

Regions don't ask each other: each has its share of a plan's numbers. Within a region Redis counts exactly; where it
cannot be asked, a node counts what it sees itself.
"""

import math
from collections.abc import Hashable
from typing import Final, NamedTuple

from relay.core.usage import DAY_SECONDS
from relay.rulebook.plans import Plan

BURST_SECONDS: Final = 2.0  # of a plan's messages a second: what may come at once
_BUSY_SECONDS: Final = 5.0  # after which it is worth a try whether one of the calls has ended
_AWAY_SECONDS: Final = 5.0  # and whether Redis is back
_KEYS: Final = 10_000  # that a node counts by itself; those that have been idle longest go
_ALMOST: Final = 1e-9  # what is lost of a whole number when it is multiplied


class Limits(NamedTuple):
    """What a tenant may do in one region; None: no limit."""

    concurrent: int | None = None
    starts_per_minute: int | None = None
    seconds_per_day: float | None = None
    messages_per_second: float | None = None

    @property
    def any_for_calls(self) -> bool:
        """Whether a new call has to be counted before it may begin."""
        return (self.concurrent, self.starts_per_minute, self.seconds_per_day) != (None, None, None)

    def is_spent(self, seconds_today: float) -> bool:
        """Whether the day's seconds are used up."""
        return self.seconds_per_day is not None and seconds_today >= self.seconds_per_day


def limits(plan: Plan, share: float) -> Limits:
    """Return a plan's limits for a region that has this share of them; whoever may call at all may do it anywhere."""
    minutes, messages = plan.call_minutes_per_day, plan.messages_per_second
    return Limits(
        concurrent=_part(plan.concurrent_calls, share),
        starts_per_minute=_part(plan.call_starts_per_minute, share),
        seconds_per_day=None if minutes is None else minutes * 60 * share,
        messages_per_second=None if messages is None else messages * share,
    )


def _part(number: int | None, share: float) -> int | None:
    return None if number is None else max(1, math.floor(number * share + _ALMOST))


def burst(per_second: float) -> float:
    """Return how many messages may come at once: one always may."""
    return max(1.0, per_second * BURST_SECONDS)


def retry_after(refused: str, seconds: float, wall: float) -> int:
    """Return whole seconds after which a refused call is worth another try.

    Args:
        refused: "concurrent", "starts", "minutes", or "unknown" where nobody could count.
        seconds: what the count says of it, 0.0 if it can't say.
        wall: now, since the epoch.
    """
    guess = {"concurrent": _BUSY_SECONDS, "unknown": _AWAY_SECONDS, "minutes": DAY_SECONDS - wall % DAY_SECONDS}
    return max(1, math.ceil(seconds or guess.get(refused, 1.0)))


class Alone:
    """What one node counts by itself while Redis is away: how often something was done, by key; times are ``now``."""

    __slots__ = ("_free_at",)

    def __init__(self) -> None:
        self._free_at: dict[Hashable, float] = {}  # when a key has nothing left to pay for

    def take(self, key: Hashable, per_second: float, at_once: float, now: float) -> float:
        """Take one, if that is within the rate; else return the seconds until it would be."""
        free_at = max(now, self._free_at.pop(key, now))
        wait = free_at + 1 / per_second - now - max(1.0, at_once) / per_second
        if wait > _ALMOST:
            self._free_at[key] = free_at
            return wait
        if len(self._free_at) >= _KEYS:
            del self._free_at[next(iter(self._free_at))]
        self._free_at[key] = free_at + 1 / per_second
        return 0.0

    def admit(self, tenant: str, held: Limits, live: int, now: float) -> tuple[str, float]:
        """Decide on a new call of a tenant with ``live`` calls on this node.

        Returns which limit it breaks, "" for none, and the seconds until it is worth another try. What other nodes
        admitted, and the minutes of the day, are not known.
        """
        if held.concurrent is not None and live >= held.concurrent:
            return "concurrent", 0.0
        if held.starts_per_minute is not None:
            wait = self.take(("starts", tenant), held.starts_per_minute / 60, held.starts_per_minute, now)
            return "starts" if wait else "", wait
        return "", 0.0
