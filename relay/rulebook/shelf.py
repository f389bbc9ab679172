"""Keeps the rulebook that holds, and takes another one when its files change. Decides nothing about what is in it.

It is swapped as a whole, and only for one that is whole: while any of the files is bad, what held before holds.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from relay.rulebook.book import Rulebook
from relay.rulebook.reading import Reading, SourceError, Sources, Stamp, read_sources, stamp_of

_LOOK_SECONDS: Final = 2.0
_SETTLE_SECONDS: Final = 0.2  # a file that changes within it is still being written

log = structlog.get_logger("relay")


class Shelf:
    """The rulebook of a node, ``first`` to begin with.

    Its files are looked at instead of watched: network file systems and the volumes of Kubernetes, where a symbolic
    link is swapped, have no events to rely on, and a look costs the stat of a handful of files.
    """

    def __init__(self, sources: Sources, first: Rulebook, *, look_seconds: float = _LOOK_SECONDS) -> None:
        self._sources = sources
        self._current = first
        self._look_seconds = look_seconds
        self._stamps: Mapping[Path, Stamp] | None = None  # of the last reading; since ``first`` they may have changed
        self._readings = 0
        self._asked = asyncio.Event()
        self.outcomes = {"loaded": 0, "refused": 0}
        self.is_stale = False  # the files were refused: what holds is older

    def current(self) -> Rulebook:
        """Return the rulebook that holds now."""
        return self._current

    def reload(self) -> bool:
        """Read the files now, and wait for them; returns whether they were taken. `ask` doesn't hold up the loop."""
        self._readings += 1
        return self._take(read_sources(self._sources))

    def ask(self) -> None:
        """Have `watch` read the files at once, whether they seem to have changed or not: what SIGHUP means."""
        self._asked.set()

    async def watch(self) -> None:
        """Look at the files for ever, and take what they say whenever they have changed."""
        before: Mapping[Path, Stamp] | None = None
        while True:
            if self._asked.is_set():
                self._asked.clear()
                await self._read()
            now = await asyncio.to_thread(self._look)
            if now != self._stamps and now == before:
                await self._read()
            before = now
            with suppress(TimeoutError):
                async with asyncio.timeout(self._look_seconds if now == self._stamps else _SETTLE_SECONDS):
                    await self._asked.wait()

    async def _read(self) -> None:
        self._readings += 1
        reading = self._readings
        found = await asyncio.to_thread(read_sources, self._sources)
        if reading == self._readings:  # else `reload` has read the files since
            self._take(found)

    def _look(self) -> Mapping[Path, Stamp]:
        return {path: stamp_of(path) for path in self._stamps or {}}

    def _take(self, reading: Reading) -> bool:
        self._stamps = reading.stamps
        found = reading.found
        self.is_stale = isinstance(found, SourceError)
        self.outcomes["refused" if self.is_stale else "loaded"] += 1
        if isinstance(found, SourceError):
            file = None if found.file is None else str(found.file)
            log.error("rulebook_refused", setting=found.variable, file=file, line=found.line, what=str(found))
            return False
        self._current = found
        log.info(
            "rulebook_loaded",
            agents=len(found.agents),
            plans=len(found.plans),
            tenants=len(found.tenants),
            upstreams=len(found.upstreams),
        )
        return True
