"""Reads what one region's Redis knows of calls and receipts. Writes nothing but the removal of dead list entries."""

from fanout.core.keys import Keys
from fanout.core.records import call_from_stored, receipt_from_stored, tombstone_from_stored
from fanout.errors import CallNotFound, CallTaken
from fanout.link import Link, Run, Script
from fanout.messages import CallRecord, Receipt, Tombstone

_RESERVE = Script("reserve")
_CHUNK = 100


class Directory:
    """The calls whose home is one region."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys

    async def call(self, call_id: str, tenant: str) -> CallRecord | Tombstone | None:
        """What is known of a call; None for another tenant's, and for one that is only reserved."""
        keys = self._keys.call(call_id)
        live, ended = await self._link.commands(
            [("HMGET", keys.call, "tenant", "epoch", "state", "record"), ("HMGET", keys.tombstone, "tenant", "record")]
        )
        if ended[0] == tenant.encode():
            return tombstone_from_stored(ended[1])
        return _live_call(live, tenant)

    async def receipt(self, call_id: str, tenant: str, message_id: str) -> Receipt | None:
        """A receipt, of a live call or of one that ended within the hour."""
        keys = self._keys.call(call_id)
        live, ended, packed = await self._link.commands(
            [
                ("HGET", keys.call, "tenant"),
                ("HGET", keys.tombstone, "tenant"),
                ("HGET", keys.receipts, message_id),
            ]
        )
        if tenant.encode() not in (live, ended):
            raise CallNotFound(call_id)
        return receipt_from_stored(call_id, message_id, packed) if packed else None

    async def calls(self, tenant: str, limit: int, after: tuple[float, str] | None) -> list[CallRecord]:
        """Live calls older than `after` (start, id), newest first, at most `limit`."""
        index = self._keys.tenant_calls(tenant)
        highest = "+inf" if after is None else repr(after[0])
        found: list[CallRecord] = []
        offset = 0
        while len(found) < limit:
            (listed,) = await self._link.commands(
                [("ZREVRANGEBYSCORE", index, highest, "-inf", "WITHSCORES", "LIMIT", offset, _CHUNK)]
            )
            if not listed:
                break
            ids = [
                call_id.decode()
                for call_id, start in zip(listed[::2], listed[1::2], strict=True)
                if after is None or (float(start), call_id.decode()) < after
            ]
            calls, dead = await self._look_up(tenant, ids)
            found += calls
            if dead:
                await self._link.commands([("ZREM", index, *dead)])
            offset += len(listed) // 2 - len(dead)
        return found[:limit]

    async def _look_up(self, tenant: str, ids: list[str]) -> tuple[list[CallRecord], list[str]]:
        """The records, and the ids that have none: expired, or lost with Redis, then their owner lists them again."""
        answers = await self._link.commands(
            [("HMGET", self._keys.call(call_id).call, "tenant", "epoch", "state", "record") for call_id in ids]
        )
        records = [_live_call(answer, tenant) for answer in answers]
        return (
            [record for record in records if record is not None],
            [call_id for call_id, record in zip(ids, records, strict=True) if record is None],
        )

    async def reserve(self, call_id: str, tenant: str, seconds: float) -> None:
        """Hold an id for a client that will come; the call's owner claims it then."""
        keys = self._keys.call(call_id)
        (answer,) = await self._link.run(Run(_RESERVE, (keys.call, keys.tombstone), (tenant, int(seconds * 1000))))
        if answer != b"reserved":
            raise CallTaken(call_id)


def _live_call(fields: list[bytes | None], tenant: str) -> CallRecord | None:
    held_tenant, epoch, state, record = fields
    if held_tenant != tenant.encode() or epoch is None or state is None or record is None:
        return None
    return call_from_stored(record, epoch=int(epoch), state=state.decode())
