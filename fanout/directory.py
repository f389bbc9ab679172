"""Looks up what one home's Redis knows of calls and receipts."""

import heapq
from typing import Any, NamedTuple

import msgspec

from fanout.core.partitions import partition_tags
from fanout.core.phases import MOVING, Expected
from fanout.core.records import call_from_stored, receipt_from_stored, tombstone_from_stored
from fanout.core.scripts import Scripts
from fanout.core.seals import open_facts
from fanout.errors import CallEnded, CallNotFound, CallStateUnknown, CallTaken, RegionUnreachable
from fanout.messages import CallFilter, CallRecord, Facts, Receipt, Reservation, Tombstone
from fanout.store import Store, run_one

_ANY = CallFilter()
_LOOKED_AT_MIN = 20  # in each partition and round, for a filter that few calls may match
_ROUNDS_MAX = 16  # of which each asks every partition once

Place = tuple[float, str]  # of a call in a list: its start in seconds, its id


class Listing(NamedTuple):
    """A part of a list; `end` is how far was looked, None for so far as was asked: up to the limit, or all."""

    calls: list[CallRecord]
    end: Place | None


class Directory:
    """The calls whose home is one region or shard."""

    def __init__(self, store: Store, scripts: Scripts) -> None:
        self._store = store
        self._scripts = scripts

    async def call(self, call_id: str, tenant: str) -> CallRecord | Tombstone | None:
        """What is known of a call; None for another tenant's, and for one that is only reserved."""
        answer = await self._lookup(call_id, tenant)
        match answer:
            case [b"live", _, epoch, claim, state, record]:
                (found,) = await self._with_owners([(claim, _record(epoch, state, record))])
                return found
            case [b"ended", _, record]:
                return tombstone_from_stored(record)
            case _:
                return None

    async def find(self, call_id: str, tenant: str) -> CallRecord | Tombstone | Reservation | None:
        """What an id stands for, by one question: whether a call's owner lives is not among it."""
        match await self._lookup(call_id, tenant):
            case [b"live", _, epoch, _, state, record]:
                return _record(epoch, state, record)
            case [b"ended", _, record]:
                return tombstone_from_stored(record)
            case [b"reserved", _, session]:
                return Reservation(call_id=call_id, session=session)
            case _:
                return None

    async def claim(self, call_id: str, tenant: str) -> Expected:
        """The claim of a live call, for who would take it over; its owner is rung to write what it has not written yet.

        Raises CallNotFound, CallEnded.
        """
        match await self._lookup(call_id, tenant, rings=True):
            case [b"live", _, epoch, claim, *_]:
                return Expected(int(epoch), claim.decode())
            case [b"ended", _, record]:
                raise CallEnded(tombstone_from_stored(record))
            case _:
                raise CallNotFound(call_id)

    async def receipt(self, call_id: str, tenant: str, message_id: str) -> Receipt | None:
        """A receipt, of a live call or of one that ended within the hour. Raises CallNotFound, EnvelopeError."""
        answer = await self._lookup(call_id, tenant, message_id)
        if answer[0] == b"absent":
            raise CallNotFound(call_id)
        packed = answer[1]
        return receipt_from_stored(call_id, message_id, packed) if packed else None

    async def calls(self, tenant: str, limit: int, after: Place | None, where: CallFilter) -> Listing:
        """Live calls older than `after`, newest first, at most `limit`; what it looks at for that is bounded."""
        found: list[CallRecord] = []
        cursors: dict[str, Place | None] = dict.fromkeys(partition_tags(), after)  # of those that may have more
        most = limit if where == _ANY else max(limit, _LOOKED_AT_MIN)
        for _ in range(_ROUNDS_MAX):
            looked_at = await self._look(tenant, most, cursors)
            matching = [(claim, record) for claim, record in looked_at if where.matches_but_for_state(record)]
            if not where.state:
                matching = heapq.nlargest(limit, matching, key=lambda call: place_of(call[1]))
            found += [record for record in await self._with_owners(matching) if where.matches(record)]
            end = max((cursor for cursor in cursors.values() if cursor is not None), default=None)
            # Below that a partition may have calls that have not been looked at.
            listed = [record for record in found if end is None or place_of(record) >= end]
            if end is None or len(listed) >= limit:
                break
        newest = heapq.nlargest(limit, listed, key=place_of)
        return Listing(newest, end if len(listed) < limit else None)

    async def _look(self, tenant: str, most: int, cursors: dict[str, Place | None]) -> list[tuple[bytes, CallRecord]]:
        """The next calls of each partition, with their claims; moves the cursors, and drops those that had all."""
        tags = list(cursors)
        runs = [self._scripts.list(tag, self._store.name, tenant, most, cursors[tag]) for tag in tags]
        found: list[tuple[bytes, CallRecord]] = []
        for tag, outcome in zip(tags, await self._store.run(runs), strict=True):
            if isinstance(outcome, RegionUnreachable):
                raise outcome
            listed = [(claim, _record(epoch, state, record)) for _, epoch, claim, state, record in outcome[1:]]
            found += listed
            if len(listed) < most:
                del cursors[tag]
            else:
                cursors[tag] = place_of(listed[-1][1])
        return found

    async def facts(self, call_id: str, tenant: str) -> Facts:
        """What is known of a call, or was at its end within the hour. Raises CallNotFound."""
        keys = self._scripts.keys.call(call_id, tenant)
        answer = await run_one(self._store, self._scripts.facts(keys, tenant))
        if answer[0] == b"unknown":
            raise CallStateUnknown(call_id)
        if answer[0] == b"absent":
            raise CallNotFound(call_id)
        state, *known = answer
        kept = zip(known[::2], known[1::2], strict=True)
        return Facts(state=state.decode(), values=open_facts(self._scripts.seals.of(call_id), kept))

    async def reserve(self, call_id: str, tenant: str, seconds: float, session: bytes) -> None:
        """Hold an id for a client that will come; the call's owner claims it then."""
        keys = self._scripts.keys.call(call_id, tenant)
        answer = await run_one(self._store, self._scripts.reserve(keys, tenant, seconds, session))
        if answer[0] != b"reserved":
            raise CallTaken(call_id)

    async def reservation(self, call_id: str, tenant: str) -> Reservation | None:
        """What an id is held with. Raises CallTaken for a live call, CallEnded."""
        match await self._lookup(call_id, tenant):
            case [b"reserved", _, session]:
                return Reservation(call_id=call_id, session=session)
            case [b"live", *_]:
                raise CallTaken(call_id)
            case [b"ended", _, record]:
                raise CallEnded(tombstone_from_stored(record))
            case _:
                return None

    async def _lookup(self, call_id: str, tenant: str, message_id: str = "", *, rings: bool = False) -> list[Any]:
        keys = self._scripts.keys.call(call_id, tenant)
        answer = await run_one(self._store, self._scripts.lookup(keys, tenant, message_id, rings=rings))
        if answer[0] == b"unknown":
            raise CallStateUnknown(call_id)
        return answer

    async def _with_owners(self, calls: list[tuple[bytes, CallRecord]]) -> list[CallRecord]:
        """The records; the state says so where the owner's heartbeat is gone, or is of a later boot."""
        nodes = list({record.node for _, record in calls})
        outcomes = await self._store.run([self._scripts.alive(node) for node in nodes])
        boots = {
            node: outcome[1] if outcome[0] == b"alive" else b""
            for node, outcome in zip(nodes, outcomes, strict=True)
            if not isinstance(outcome, RegionUnreachable)
        }
        return [
            record
            if boots.get(record.node) in {None, claim.partition(b".")[0]}
            else msgspec.structs.replace(record, state=MOVING)
            for claim, record in calls
        ]


def place_of(record: CallRecord) -> Place:
    """Where a call stands in a list, which is sorted by this, the highest first."""
    return record.started_at, record.id


def _record(epoch: bytes, state: bytes, record: bytes) -> CallRecord:
    return call_from_stored(record, epoch=int(epoch), state=state.decode())
