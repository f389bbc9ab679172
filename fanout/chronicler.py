"""Writes the logs and facts of the calls that this node owns into one home. What, is each call's own decision
(core/chronicle.py).

Its workers are its own, so that nothing that is written for onlookers holds up a message or a receipt. While Redis is
away it waits in the calls, bounded there.
"""

import asyncio
from dataclasses import asdict

from fanout.core.chronicle import LogCounts
from fanout.core.runs import Run
from fanout.core.scripts import Scripts
from fanout.errors import RegionUnreachable
from fanout.owned import OwnedCall
from fanout.schedule import Schedule
from fanout.settings import KIB
from fanout.store import Store
from fanout.tasks import Backoff

WRITERS = 4
_BATCH = 4  # calls in one go: with all writers, a millisecond of the loop
_BATCH_BYTES = 128 * KIB  # after which no further call is added: what one write to a socket may hold up


class Chronicler:
    """The calls of this node whose home is one region or shard."""

    def __init__(self, store: Store, scripts: Scripts) -> None:
        self._store = store
        self._settings = scripts.settings
        self._schedule: Schedule[OwnedCall] = Schedule()
        self._watched: set[OwnedCall] = set()
        self._heard: set[OwnedCall] = set()
        self.log_counts = LogCounts()

    @property
    def counts(self) -> dict[str, int]:
        """What was written, and of how many calls somebody wants more than facts."""
        return {**asdict(self.log_counts), "watched": len(self._watched), "heard": len(self._heard)}

    def on_changed(self, call: OwnedCall) -> None:
        """Look when the call has something to write."""
        chronicle = call.chronicle
        for calls, is_in in ((self._watched, chronicle.is_watched), (self._heard, chronicle.is_heard)):
            if is_in:
                calls.add(call)
            else:
                calls.discard(call)
        due = chronicle.due(asyncio.get_running_loop().time(), can_write=call.protocol.may_write)
        if due is None:
            self._schedule.drop(call)
        else:
            self._schedule.put(call, due)

    async def work(self) -> None:
        """Write what is to be written, for ever. Several may run."""
        backoff = Backoff(self._settings.backoff_seconds, self._settings.backoff_max_seconds)
        while True:
            batch = self._take_batch()
            if not batch:
                await self._schedule.wait()
            elif await self._write(batch):
                backoff.reset()
            else:
                await backoff.wait()

    def _take_batch(self) -> list[tuple[OwnedCall, Run]]:
        now = self._schedule.now()
        batch: list[tuple[OwnedCall, Run]] = []
        size = 0
        for call in self._schedule.take(now, _BATCH):
            if size < _BATCH_BYTES:
                call.on_tick()
                protocol = call.protocol
                run = call.chronicle.flush(now, protocol.epoch, protocol.claim) if protocol.may_write else None
                if run is not None:
                    batch.append((call, run))
                    size += sum(len(arg) for arg in run.args if isinstance(arg, bytes))
            self.on_changed(call)
        return batch

    async def _write(self, batch: list[tuple[OwnedCall, Run]]) -> bool:
        """One batch; false if Redis answered nothing."""
        outcomes = await self._store.run([run for _, run in batch])
        for (call, _), outcome in zip(batch, outcomes, strict=True):
            call.on_written(outcome)
            self.on_changed(call)
        return not all(isinstance(outcome, RegionUnreachable) for outcome in outcomes)
