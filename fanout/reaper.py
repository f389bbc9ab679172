"""Ends the calls of one home that nobody has any more. Which those are is decided in core/orphans.py.

Every node of the home's region looks, every few seconds, and asks each partition only for calls whose owner has been
silent for longer than a sweep: in a healthy fleet there are none. Several nodes may find the same orphan; one script
decides. It never touches a call that this or another living node owns.
"""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import structlog

from fanout.core.orphans import Look, Orphans, Silent
from fanout.core.partitions import partition_tags
from fanout.core.records import call_from_stored
from fanout.core.runs import Run
from fanout.core.scripts import Scripts
from fanout.errors import RegionUnreachable
from fanout.messages import Tombstone
from fanout.store import Store

_log = structlog.get_logger("fanout")

_LOOKS_PER_LIFETIME = 2  # of a heartbeat, so that none comes and goes unseen
_BATCH = 32  # calls ended in one go
_NEVER = "never"  # no owner said so then: ends no call, but finds the tombstone that we wrote


class _Funeral(NamedTuple):
    """A call to be ended, as long as it is as it was found."""

    tombstone: Tombstone
    epoch: int
    claim: str
    owned_ms: str


class Reaper:
    """`on_orphan`, if set, is called for each call that was ended here; it must return at once."""

    def __init__(self, store: Store, scripts: Scripts, *, clock: Callable[[], float]) -> None:
        self.on_orphan: Callable[[Tombstone], None] | None = None
        self._store = store
        self._scripts = scripts
        self._clock = clock
        self._orphans = Orphans(scripts.settings)
        self._asked: list[_Funeral] = []  # whether they were carried out isn't known; one batch at most
        self._ended = 0

    @property
    def counts(self) -> dict[str, int]:
        """Calls that seem to have lost their owner, and those ended here."""
        return {"orphans_watched": len(self._orphans), "orphans_ended": self._ended}

    def on_new_server(self) -> None:
        """Another Redis serves the home, or a part of it: it may lack heartbeats."""
        self._orphans.start_again()

    async def work(self) -> None:
        """Look, and end what is to be ended, for ever."""
        loop = asyncio.get_running_loop()
        seconds = self._scripts.settings.node_ttl_seconds / _LOOKS_PER_LIFETIME
        while True:
            started = loop.time()
            await self._end(await self._look())
            await asyncio.sleep(max(0.0, seconds - (loop.time() - started)))

    async def _look(self) -> list[Silent]:
        """What is to be ended."""
        tags = partition_tags()
        outcomes = await self._store.run([self._scripts.orphans(tag, self._store.name) for tag in tags])
        normal: list[str] = []
        silent: list[Silent] = []
        for tag, outcome in zip(tags, outcomes, strict=True):
            if not isinstance(outcome, RegionUnreachable) and outcome[0] == b"found":
                normal.append(tag)
                silent += [_silent(*call) for call in outcome[1:]]
        boots = await self._boots(sorted({call.record.node for call in silent if call.claim}))
        return self._orphans.on_look(Look(frozenset(normal), silent, boots), self._now())

    async def _boots(self, nodes: list[str]) -> dict[str, str]:
        outcomes = await self._store.run([self._scripts.alive(node) for node in nodes])
        return {
            node: outcome[1].decode() if outcome[0] == b"alive" else ""
            for node, outcome in zip(nodes, outcomes, strict=True)
            if not isinstance(outcome, RegionUnreachable)
        }

    async def _end(self, orphans: list[Silent]) -> None:
        """Those that were asked for before, and had no answer, are only asked about: much may have happened since."""
        known = {funeral.tombstone.id for funeral in self._asked}
        funerals = [
            *(funeral._replace(owned_ms=_NEVER) for funeral in self._asked),
            *(self._funeral(call) for call in orphans if call.record.id not in known),
        ]
        self._asked = []
        for start in range(0, len(funerals), _BATCH):
            batch = funerals[start : start + _BATCH]
            outcomes = await self._store.run([self._run(funeral) for funeral in batch])
            for funeral, outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, RegionUnreachable):
                    self._asked.append(funeral)
                elif outcome[0] == b"held":
                    self._on_ended(funeral.tombstone)
            if self._asked:
                return  # the next look finds the others

    def _funeral(self, call: Silent) -> "_Funeral":
        record, (why, fault) = call.record, call.cause
        tombstone = Tombstone(
            id=record.id,
            tenant=record.tenant,
            node=record.node,
            region=record.region,
            started_at=record.started_at,
            ended_at=self._clock(),
            why=why,
            fault=fault,
        )
        return _Funeral(tombstone, record.epoch, call.claim, call.owned_ms)

    def _run(self, funeral: "_Funeral") -> Run:
        tombstone, epoch, claim, owned_ms = funeral
        keys = self._scripts.keys.call(tombstone.id, tombstone.tenant)
        return self._scripts.end(keys, epoch, claim, tombstone, owned_ms=owned_ms)

    def _on_ended(self, tombstone: Tombstone) -> None:
        self._ended += 1
        _log.warning("orphan_ended", call=tombstone.id, why=tombstone.why, node=tombstone.node, home=self._store.name)
        if self.on_orphan is None:
            return
        try:
            self.on_orphan(tombstone)
        except Exception:  # noqa: BLE001 - one call's bug must not keep the others from being ended
            _log.exception("on_orphan_failed", call=tombstone.id)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _silent(owned_ms: bytes, epoch: bytes, claim: bytes, state: bytes, record: bytes, moved_ms: Any) -> Silent:
    call = call_from_stored(record, epoch=int(epoch), state=state.decode())
    return Silent(call, claim.decode(), owned_ms.decode(), moved_ms / 1000)
