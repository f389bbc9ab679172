"""Which calls are orphans: their owner is gone, or gave them up, and no client brought them back. Pure.

It decides from what one node sees, look by look. No time is counted in which Redis was new or away, or this node
asleep: after any of these it begins anew for every call.
`now` is any steady clock.
"""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from fanout.core.partitions import tag_of
from fanout.messages import CallRecord
from fanout.settings import BusSettings

NODE_LOST: Final = ("node_lost", "node")  # why a call ended, and whose fault that is
CLIENT_LOST: Final = ("client_lost", "client")


class Silent(NamedTuple):
    """A call whose owner hasn't said lately that it has it, as one look found it."""

    record: CallRecord
    claim: str  # empty: nobody's
    owned_ms: str  # when its owner last said so, as Redis has it
    moved_for: float  # seconds since it was handed over; negative if it wasn't

    @property
    def boot(self) -> str:
        """Of its owner; empty for none."""
        return self.claim.partition(".")[0]

    @property
    def cause(self) -> tuple[str, str]:
        """Why it ends if nobody comes, and whose fault that is."""
        return NODE_LOST if self.claim else CLIENT_LOST


class Look(NamedTuple):
    """What a node saw at one time; a partition, or a node, of which it learned nothing is not in it."""

    normal: frozenset[str]  # partitions that answered, on a server that has settled
    silent: Iterable[Silent]
    boots: Mapping[str, str]  # by node, of those that the silent calls name; empty for one without a heartbeat


class Orphans:
    """What this node has watched since when: as much as one look finds, which is bounded."""

    def __init__(self, settings: BusSettings) -> None:
        self._client_seconds = settings.orphan_seconds
        self._node_seconds = max(2 * settings.node_ttl_seconds, settings.orphan_seconds)
        self._far_seconds = max(self._node_seconds, settings.orphan_far_seconds)
        self._region = settings.region
        # A heartbeat that came and went between two looks would not be missed: it lasts longer than that.
        self._gap_seconds = settings.node_ttl_seconds
        self._looked_at = float("-inf")
        self._normal_since: dict[str, float] = {}  # by partition
        self._since: dict[tuple[str, int, str, str], float] = {}  # by call, epoch, claim and the owner's last word

    def __len__(self) -> int:
        """How many calls are without an owner, as far as this node knows, and not ended yet."""
        return len(self._since)

    def start_again(self) -> None:
        """What was seen so far says nothing any more: another Redis serves the home, or part of it."""
        self._normal_since.clear()
        self._since.clear()

    def on_look(self, look: Look, now: float) -> list[Silent]:
        """The orphans among the silent calls, those that have been silent longest first."""
        if now - self._looked_at > self._gap_seconds:
            self.start_again()
        self._looked_at = now
        self._normal_since = {tag: self._normal_since.get(tag, now) for tag in look.normal}
        before, self._since = self._since, {}
        orphans = []
        for call in look.silent:
            if _has_owner(call, look):
                continue
            watched = (call.record.id, call.record.epoch, call.claim, call.owned_ms)
            self._since[watched] = since = before.get(watched, now)
            if self._is_orphan(call, now - since, now - self._normal_since[tag_of(call.record.id)]):
                orphans.append(call)
        return sorted(orphans, key=lambda call: int(call.owned_ms))

    def _is_orphan(self, call: Silent, watched_for: float, normal_for: float) -> bool:
        if call.claim:  # a node elsewhere may be cut off from here, and its call as lively as ever
            is_near = call.record.region == self._region
            return watched_for >= (self._node_seconds if is_near else self._far_seconds)
        if call.moved_for < 0:  # a claim that was undone, whose client went away
            return watched_for >= self._client_seconds
        return min(call.moved_for, normal_for) >= self._client_seconds


def _has_owner(call: Silent, look: Look) -> bool:
    """Or may have, for all we know."""
    if tag_of(call.record.id) not in look.normal:
        return True
    if not call.claim:
        return False
    node = call.record.node
    return tag_of(node) not in look.normal or look.boots.get(node, call.boot) == call.boot
