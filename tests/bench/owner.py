"""`python -m tests.bench.owner SETTINGS`: a node that owns calls on the bus and has no socket of a client or a model.

Its sessions apply every message at once. It looks into the bus where asking for `status` would cost what is measured.
"""

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Final

import uvloop

from fanout import BusSettings, CallRecord, Fanout, Message, OwnedCall, Status, new_call_id
from ops import logs
from ops.bench.measure import memory
from tests.bench.stalls import Stalls
from tests.drills.orders import obey

_GC_THRESHOLDS: Final = (2000, 10, 1000)  # as `relay serve` has them
_OWNED_PER_TURN: Final = 10  # calls come one by one; more in one turn of the loop would be a stall of ours
_LOOKS_PER_TURN: Final = 200
_LOOK_SECONDS: Final = 0.001
_TENANT: Final = "bench"


class _Owner:
    """What it is ordered to do."""

    def __init__(self, settings: BusSettings, bus: Fanout) -> None:
        self._settings = settings
        self._bus = bus
        (self._home,) = bus._homes.values()
        self._calls: list[OwnedCall] = []
        self._stalls = Stalls()
        self._connects = 0
        self._restores: list[int] = []

    async def settle(self) -> None:
        """Until Redis has been there for so long that what it doesn't know is known not to be."""
        while self._home.status()["phase"] != "normal":  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.05)

    async def own(self, calls: int) -> list[str]:
        """Own so many more calls; returns all ids once all can be reached."""
        for number in range(calls):
            self._own()
            if number % _OWNED_PER_TURN == 0:
                await asyncio.sleep(0)
        for call in self._calls:
            await call.wait_registered()
        return [call.id for call in self._calls]

    def _own(self) -> None:
        settings = self._settings
        record = CallRecord(
            id=new_call_id(settings.region),
            tenant=_TENANT,
            node=settings.node,
            region=settings.region,
            agent="default",
            model="bench",
            started_at=time.time(),
        )

        def apply(message: Message) -> None:
            call.settle(message.id, Status.APPLIED)

        call = self._bus.own(record, apply)
        self._calls.append(call)

    def rss_kib(self) -> int:
        """The process's memory, after a collection."""
        gc.collect()
        return memory(os.getpid()).rss

    def status_ms(self) -> float:
        """How long `Fanout.status` holds up the loop: every scrape of the metrics asks it."""
        began = time.monotonic()
        self._bus.status()
        return (time.monotonic() - began) * 1e3

    def watch(self) -> None:
        """Look for stalls from now on; remember where the bus stands."""
        self._connects = self._home.store.status()["connects"]
        self._restores = [call.protocol.restores for call in self._calls]
        self._stalls.begin()

    def stalls(self) -> dict[str, float]:
        """What was seen since `watch`."""
        return self._stalls.end()

    async def held_again(self) -> dict[str, int]:
        """Since `watch` the subscriber's connection was lost: when all channels were held, when all inboxes were read.

        In nanoseconds of the monotonic clock.
        """
        await self._wait_held()
        held = time.monotonic_ns()
        await self._each(lambda place: not self._calls[place].protocol.inbox.needs_read)
        return {"held": held, "read": time.monotonic_ns()}

    async def restored(self) -> dict[str, int]:
        """Since `watch` Redis lost everything: when all channels were held and all records written again."""
        await self._each(lambda place: self._calls[place].protocol.restores > self._restores[place])
        restored = time.monotonic_ns()
        await self._wait_held()
        return {"restored": restored, "held": time.monotonic_ns()}

    async def _wait_held(self) -> None:
        while True:
            status = self._home.store.status()
            if status["connects"] > self._connects and status["held"] == status["wanted"]:
                return
            await asyncio.sleep(_LOOK_SECONDS)

    async def _each(self, holds: Callable[[int], bool]) -> None:
        """Until a condition has held for every call; looks at few of them at a time."""
        for place in range(len(self._calls)):
            if place % _LOOKS_PER_TURN == 0:
                await asyncio.sleep(0)
            while not holds(place):  # noqa: ASYNC110 - a look costs what is measured, so only this one asks
                await asyncio.sleep(_LOOK_SECONDS)


async def _main(settings: BusSettings) -> None:
    async with Fanout.running(settings, clock=time.time) as bus:
        await bus.wait_connected()
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        owner = _Owner(settings, bus)
        await obey(
            (
                owner.settle,
                owner.own,
                owner.rss_kib,
                owner.status_ms,
                owner.watch,
                owner.stalls,
                owner.held_again,
                owner.restored,
            )
        )


if __name__ == "__main__":
    logs.configure()
    uvloop.run(_main(BusSettings(**json.loads(sys.argv[1]))))
