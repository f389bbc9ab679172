"""How a drain goes: which calls are moved to other nodes now, and which stay until its deadline. Pure.

Moves are paced, since each is a resume and a new model leg somewhere else; where those under way do not end, as while
the bus is away, the next ones wait. A call goes between two turns, where nobody hears it; in the last quarter of the
time it goes whatever is said. One that cannot be moved stays, for its person would have to begin anew.
"""

from collections import deque
from collections.abc import Collection, Iterator
from typing import Final, Generic, Protocol, TypeVar

RATE: Final = 20.0  # moves begun a second, unless that were too slow for the node's calls
AT_ONCE: Final = 32  # moves under way

_HASTY_FROM: Final = 0.75  # of the time
_AIM: Final = 0.5  # of the time that is left: what waits is to be gone by then
_LATE_SECONDS: Final = 0.1  # by which a tick may be late without slowing the pace
_LOOKS: Final = 256  # calls looked at in a tick


class Movable(Protocol):
    """What is to be known of a call."""

    @property
    def can_move(self) -> bool:
        """Whether its client could resume it; a call may come to that only later."""
        ...

    def moment(self, now: float) -> bool:
        """Whether it is between two turns."""
        ...


C = TypeVar("C", bound=Movable)


class Waves(Generic[C]):
    """One drain, from its start to its deadline; times are seconds of the loop's clock."""

    __slots__ = (
        "_at_once",
        "_hasty_at",
        "_moving",
        "_next",
        "_order",
        "_pace",
        "_waiting",
        "deadline",
        "ended",
        "moved",
    )

    def __init__(self, *, started: float, seconds: float, rate: float = RATE, at_once: int = AT_ONCE) -> None:
        self.deadline = started + seconds
        self.moved = 0  # calls that are gone from here since they were moved
        self.ended = 0  # calls that had to be ended
        self._hasty_at = started + _HASTY_FROM * seconds
        self._pace = rate
        self._at_once = at_once
        self._next = started  # when the next move may begin
        self._moving: set[C] = set()
        self._waiting: dict[C, bool] = {}  # and whether it could move when it was looked at last
        self._order: deque[C] = deque()  # of the looks; those that are gone are found out when it is their turn

    @property
    def moving(self) -> int:
        """Calls whose move is under way."""
        return len(self._moving)

    @property
    def waiting(self) -> int:
        """Calls that could move, and will."""
        return sum(self._waiting.values())

    @property
    def pinned(self) -> int:
        """Calls that cannot move."""
        return len(self._waiting) - self.waiting

    def on_tick(self, now: float, live: Collection[C]) -> Iterator[C]:
        """Yield the calls whose move begins now.

        Args:
            now: the loop's time, before the deadline.
            live: all calls of the node; one that is missing has ended, or has been moved.
        """
        self.note(live)
        self._pace = max(self._pace, self.waiting / (_AIM * (self.deadline - now)))
        for _ in range(min(len(self._order), _LOOKS)):
            if self._next > now or len(self._moving) >= self._at_once:
                return
            call = self._order.popleft()
            if call not in self._waiting:
                continue
            can_move = self._waiting[call] = call.can_move
            if can_move and (now >= self._hasty_at or call.moment(now)):
                self._next = max(self._next, now - _LATE_SECONDS) + 1 / self._pace
                self._begin(call)
                yield call
            else:
                self._order.append(call)

    def rest(self, live: Collection[C]) -> tuple[list[C], list[C]]:
        """At the deadline, or when nobody waits for it: return the calls to move and those to end, all at once."""
        self.note(live)
        moved = [call for call in self._waiting if call.can_move]
        for call in moved:
            self._begin(call)
        ended = list(self._waiting)
        self.ended += len(ended)
        return moved, ended

    def overdue(self, live: Collection[C]) -> list[C]:
        """Return the calls that are still being moved, which must be ended now."""
        self.note(live)
        overdue = list(self._moving)
        self._moving.clear()
        self.ended += len(overdue)
        return overdue

    def note(self, live: Collection[C]) -> None:
        """Note who is left: a move is over when its call is gone."""
        present = frozenset(live)
        self.moved += len(self._moving - present)
        self._moving &= present
        for gone in self._waiting.keys() - present:
            del self._waiting[gone]
        for new in present - self._waiting.keys() - self._moving:
            self._waiting[new] = new.can_move
            self._order.append(new)

    def _begin(self, call: C) -> None:
        del self._waiting[call]
        self._moving.add(call)
