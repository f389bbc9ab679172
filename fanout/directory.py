"""Looks up what one home's Redis knows of calls and receipts."""

import heapq
from typing import Any

import msgspec

from fanout.core.partitions import partition_tags
from fanout.core.records import call_from_stored, receipt_from_stored, tombstone_from_stored
from fanout.core.scripts import Scripts
from fanout.errors import CallNotFound, CallStateUnknown, CallTaken, RegionUnreachable
from fanout.messages import CallRecord, Receipt, Tombstone
from fanout.store import Store, run_one

ORPHANED = "moving"  # the state of a call whose node is gone: its client may bring it back


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

    async def claim(self, call_id: str, tenant: str) -> tuple[int, str]:
        """Epoch and claim of a live call, for who would take it over. Raises CallNotFound."""
        answer = await self._lookup(call_id, tenant)
        if answer[0] != b"live":
            raise CallNotFound(call_id)
        return int(answer[2]), answer[3].decode()

    async def receipt(self, call_id: str, tenant: str, message_id: str) -> Receipt | None:
        """A receipt, of a live call or of one that ended within the hour. Raises CallNotFound, EnvelopeError."""
        answer = await self._lookup(call_id, tenant, message_id)
        if answer[0] == b"absent":
            raise CallNotFound(call_id)
        packed = answer[1]
        return receipt_from_stored(call_id, message_id, packed) if packed else None

    async def calls(self, tenant: str, limit: int, after: tuple[float, str] | None) -> list[CallRecord]:
        """Live calls older than `after` (start, id), newest first, at most `limit`."""
        home = self._store.name
        runs = [self._scripts.list(tag, home, tenant, limit, after) for tag in partition_tags()]
        outcomes = await self._store.run(runs)
        found: list[tuple[bytes, CallRecord]] = []
        for outcome in outcomes:
            if isinstance(outcome, RegionUnreachable):
                raise outcome
            found += [(claim, _record(epoch, state, record)) for _, epoch, claim, state, record in outcome[1:]]
        newest = heapq.nlargest(limit, found, key=lambda call: (call[1].started_at, call[1].id))
        return await self._with_owners(newest)

    async def reserve(self, call_id: str, tenant: str, seconds: float) -> None:
        """Hold an id for a client that will come; the call's owner claims it then."""
        keys = self._scripts.keys.call(call_id, tenant)
        answer = await run_one(self._store, self._scripts.reserve(keys, tenant, seconds))
        if answer[0] != b"reserved":
            raise CallTaken(call_id)

    async def _lookup(self, call_id: str, tenant: str, message_id: str = "") -> list[Any]:
        keys = self._scripts.keys.call(call_id, tenant)
        answer = await run_one(self._store, self._scripts.lookup(keys, tenant, message_id))
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
            else msgspec.structs.replace(record, state=ORPHANED)
            for claim, record in calls
        ]


def _record(epoch: bytes, state: bytes, record: bytes) -> CallRecord:
    return call_from_stored(record, epoch=int(epoch), state=state.decode())
