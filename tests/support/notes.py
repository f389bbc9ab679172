"""What a talker noticed of its call, for tests to judge. Times are the loop's, in seconds; every list has a bound."""

from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tests.support.hearing import MAX_NOTES


@dataclass(slots=True)
class Connection:
    """One socket of the call; times are the loop's."""

    node: str
    opened_at: float
    created_at: float | None = None  # its session.created
    heard_at: float | None = None  # its first model audio
    closed_at: float | None = None
    code: int | None = None
    reason: str = ""
    response: str = ""  # the one that was under way at its end


@dataclass(frozen=True, slots=True)
class Recovery:
    """From the end of a connection, in seconds: until the next session.created, and until model audio was there."""

    created: float
    heard: float | None
    code: int
    node: str


@dataclass(slots=True)
class Notes:
    """What a talker noticed."""

    connections: deque[Connection] = field(default_factory=lambda: deque(maxlen=MAX_NOTES))
    events: Counter[str] = field(default_factory=Counter)  # by type
    responses: Counter[str] = field(default_factory=Counter)  # that are done, by status
    errors: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=MAX_NOTES))
    relay_events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=MAX_NOTES))
    refusals: deque[int] = field(default_factory=lambda: deque(maxlen=MAX_NOTES))  # HTTP status of upgrades
    unreachable: int = 0  # attempts that got no answer, or found no node ready
    repeated: int = 0  # events whose id had come before
    waits: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_NOTES))  # end of a turn to the first audio
    turns: int = 0
    unanswered: int = 0  # turns that the person stopped waiting for
    dropped_frames: int = 0
    again: int = 0  # tool results that were sent once more, as nothing had said that they arrived
    again_refused: int = 0

    @property
    def recoveries(self) -> list[Recovery]:
        """Of each connection that was followed by one with a session."""
        return [
            Recovery(
                new.created_at - old.closed_at,
                None if new.heard_at is None else new.heard_at - old.closed_at,
                old.code or 0,
                new.node,
            )
            for old, new in pairwise([each for each in self.connections if each.created_at is not None])
            if new.created_at is not None and old.closed_at is not None
        ]
