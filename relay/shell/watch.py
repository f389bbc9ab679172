"""Follows a call's events for `relay watch`, over broken connections too, until the call ends.

How an event reads is decided in `events.py`; how an ending reads, in `words.py`.
"""

import asyncio
import json
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from relay.shell.events import Narrator, Sent
from relay.shell.node import Node, Trouble

PATIENCE_SECONDS: Final = 300.0  # without a connection
_FIRST_PAUSE_SECONDS: Final = 0.25
_LONGEST_PAUSE_SECONDS: Final = 8.0


@dataclass(frozen=True, slots=True)
class Report:
    """Where it goes to: `event` gets what a script reads, `line` what a person reads, `notice` what is no event."""

    event: Callable[[dict[str, Any]], None]
    line: Callable[[str, str], None]
    notice: Callable[[str], None]


class Watch:
    """One call, watched from now on, or from behind a position."""

    def __init__(self, node: Node, call_id: str, report: Report, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._node = node
        self._call_id = call_id
        self._report = report
        self._patience_seconds = patience_seconds
        self._narrator = Narrator()
        self._position: str | None = None
        self._pause_seconds = _FIRST_PAUSE_SECONDS
        self._was_connected = False
        self._broken_since: float | None = None

    async def run(self) -> dict[str, Any]:
        """Until the call has ended; returns its tombstone.

        Raises:
            Trouble: the call cannot be watched, or no node can be reached for too long.
        """
        while True:
            try:
                tombstone = await self._follow()
                trouble = None
            except Trouble as found:
                tombstone, trouble = None, found
            if tombstone is not None:
                return tombstone
            if trouble is not None and self._was_connected and trouble.status == 410:
                return await self._ended_meanwhile()
            await self._wait_before_next(trouble)

    async def _follow(self) -> dict[str, Any] | None:
        """Until the stream ends: with the tombstone, or None where it ended for another reason."""
        async with aclosing(self._node.events(self._call_id, self._position, self._on_open)) as events:
            async for sent in events:
                self._pause_seconds = _FIRST_PAUSE_SECONDS
                if sent.type == "relay.ended":
                    return self._on_ended(_object(sent))
                if sent.type == "relay.too_slow":
                    self._report.notice("too slow for the stream: going on from where it stopped")
                    return None
                self._on_event(sent)
        return None

    def _on_open(self) -> None:
        self._was_connected = True
        if self._broken_since is not None:
            missed = "" if self._position is not None else "; what happened meanwhile is not known"
            self._report.notice(f"connected again{missed}")
        self._broken_since = None

    def _on_event(self, sent: Sent) -> None:
        event = {"type": sent.type, **_object(sent)}
        self._report.event(event)
        told = self._narrator.tell(event)
        if told is not None:
            self._report.line(*told)
        self._position = sent.id or self._position

    def _on_ended(self, tombstone: dict[str, Any]) -> dict[str, Any]:
        self._report.event({"type": "relay.ended", **tombstone})
        return tombstone | {"id": self._call_id, "state": "ended"}

    async def _ended_meanwhile(self) -> dict[str, Any]:
        answer = await self._node.get(self._call_id)
        return self._on_ended(answer.body)

    async def _wait_before_next(self, trouble: Trouble | None) -> None:
        """Give up, or pause for longer each time until something comes again."""
        now = asyncio.get_running_loop().time()
        if trouble is not None and not (self._was_connected and trouble.passing):
            raise trouble
        if self._broken_since is None:
            self._broken_since = now
            reason = trouble.reason if trouble is not None else "the node ended the stream"
            self._report.notice(f"the connection is gone, trying again ({reason})")
        elif trouble is not None and now - self._broken_since >= self._patience_seconds:
            raise trouble
        pause = self._pause_seconds
        if trouble is not None and trouble.retry_after is not None:
            pause = min(max(pause, trouble.retry_after), _LONGEST_PAUSE_SECONDS)
        self._pause_seconds = min(self._pause_seconds * 2, _LONGEST_PAUSE_SECONDS)
        await asyncio.sleep(pause)


def _object(sent: Sent) -> dict[str, Any]:
    try:
        found = json.loads(sent.data)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"data": sent.data}
