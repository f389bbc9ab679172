"""`python -m ops.bench.listeners`: the backends that listen, all of them in one process: a side leg on each call.

They send nothing. What comes is told apart by its first bytes: the client's audio, the model's, the transcript.
"""

import asyncio
import time
from typing import Any, Final

from picows import WSCloseCode, WSFrame, WSMsgType, WSTransport, ws_connect

from ops.bench.events import APPEND, DELTA, WORDS
from ops.bench.orders import Order, run_peer
from ops.bench.traffic import Arrivals, Connection

_LEG_SECONDS: Final = 20.0  # for one leg to be greeted, or all to close
_ARRIVAL_SECONDS: Final = 3.0  # for what was sent last; bounds the time that a lost frame costs
_LOOK_SECONDS: Final = 0.01


class _SideLeg(Connection):
    """One side leg; its first event is the greeting."""

    def __init__(self, arrivals: dict[str, Arrivals]) -> None:
        super().__init__(arrivals["up"])
        self._kinds = tuple(arrivals.values())
        self.others = 0  # events that are none of the load's

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Count an event where it belongs."""
        if frame.msg_type is not WSMsgType.TEXT:
            super().on_ws_frame(transport, frame)
            return
        payload = frame.get_payload_as_memoryview()
        for kind in self._kinds:
            if kind.event.is_in(payload):
                kind.add(frame)
                return
        self.others += 1
        if not self.first.done():
            self.first.set_result(None)


class _Listeners:
    """What the backends are ordered to do."""

    def __init__(self) -> None:
        self._legs: list[_SideLeg] = []
        self._arrivals: dict[str, Arrivals] = {}

    async def open(self, url: str, headers: dict[str, str], calls: list[str], audio: bool, at_once: int) -> None:
        """Attach a side leg to each of the calls, so many at once, and wait until all are greeted."""
        self._arrivals = {"up": Arrivals(APPEND), "down": Arrivals(DELTA), "words": Arrivals(WORDS)}
        ids = iter(calls)

        async def attach_some() -> None:
            for call in ids:
                leg = _SideLeg(self._arrivals)
                self._legs.append(leg)
                async with asyncio.timeout(_LEG_SECONDS):
                    await ws_connect(
                        lambda leg=leg: leg, f"{url}?call_id={call}&audio={audio:d}", extra_headers=headers
                    )
                    await leg.first

        async with asyncio.TaskGroup() as tasks:
            for _ in range(at_once):
                tasks.create_task(attach_some())

    def begin(self) -> None:
        """Open a window."""
        for each in self._arrivals.values():
            each.begin()

    async def wait_heard(self, due: dict[str, int]) -> None:
        """Until so many frames came since `open`, by kind, or no more can be hoped for."""
        until = time.monotonic() + _ARRIVAL_SECONDS
        while self._lacks(due) and time.monotonic() < until:  # noqa: ASYNC110 - a wake-up for each frame would cost more
            await asyncio.sleep(_LOOK_SECONDS)

    def _lacks(self, due: dict[str, int]) -> bool:
        return any(self._arrivals[kind].frames < frames for kind, frames in due.items())

    def end(self) -> dict[str, Any]:
        """What came since `begin`, with the frames since `open`, and how many legs were lost."""
        return {
            "lost": sum(leg.transport is None for leg in self._legs),
            "others": sum(leg.others for leg in self._legs),
            **{name: {**each.end(), "frames": each.frames} for name, each in self._arrivals.items()},
        }

    async def close(self) -> None:
        """Detach all."""
        for leg in self._legs:
            if leg.transport is not None:
                leg.transport.send_close(WSCloseCode.OK)
        async with asyncio.timeout(_LEG_SECONDS):
            for leg in self._legs:
                await leg.lost
        self._legs = []


def _orders() -> tuple[Order, ...]:
    listeners = _Listeners()
    return (listeners.open, listeners.begin, listeners.wait_heard, listeners.end, listeners.close)


if __name__ == "__main__":
    run_peer(_orders)
