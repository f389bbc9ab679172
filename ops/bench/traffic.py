"""What the callers and the model have in common: an even pace of frames over all calls, and a count of arrivals."""

import asyncio
import time
from typing import Any, Final

from picows import WSFrame, WSListener, WSMsgType, WSTransport

from ops.bench.events import StampedEvent
from ops.bench.measure import summary

_TICK_SECONDS: Final = 0.001


class Arrivals:
    """Counts the frames of one direction, and keeps the ages of those that are stamped while a window is open."""

    def __init__(self, event: StampedEvent) -> None:
        self.event = event
        self.frames = 0  # in all
        self._frames_before = 0
        self._ages_ns: list[int] = []

    def add(self, frame: WSFrame) -> None:
        """Take a text frame."""
        self.frames += 1
        age = self.event.age_ns(frame.get_payload_as_memoryview())
        if age is not None:
            self._ages_ns.append(age)

    def begin(self) -> None:
        """Open a window."""
        self._frames_before = self.frames
        self._ages_ns = []

    def end(self) -> dict[str, Any]:
        """What came since `begin`; times in milliseconds."""
        ages = summary([age / 1e6 for age in self._ages_ns])
        return {"frames": self.frames - self._frames_before, "latency_ms": ages}


class Connection(WSListener):
    """One WebSocket of a peer; `first` is done with the first text frame."""

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals
        self.transport: WSTransport | None = None
        self.first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_ws_connected(self, transport: WSTransport) -> None:
        """The handshake is done."""
        self.transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """A frame; peers here send whole messages."""
        if frame.msg_type is WSMsgType.TEXT:
            if not self.first.done():
                self.first.set_result(None)
            self._arrivals.add(frame)
        elif frame.msg_type is WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """The connection is gone."""
        self.transport = None
        if not self.lost.done():
            self.lost.set_result(None)


class Pacer:
    """Sends frames at an even rate, to one connection after the other; every `stamp_every`th bears a stamp.

    Even as far as the loop's clock allows: each millisecond it sends what is due. `latest_ms` says how late it ever
    was: if that is more than a few milliseconds, the machine was too busy for the figures to mean much.
    """

    def __init__(self, event: StampedEvent, send_to: list[Connection], stamp_every: int) -> None:
        self._event = event
        self._send_to = send_to
        self._stamp_every = stamp_every
        self._timer: asyncio.TimerHandle | None = None
        self.frames = 0  # since `start`
        self._frames_before = 0
        self._latest = 0.0

    def start(self, frames_per_second: float) -> None:
        """Begin to send."""
        self.frames = self._frames_before = 0
        self._rate, self._sent, self._since = frames_per_second, 0, time.monotonic()
        self._tick()

    def stop(self) -> None:
        """Send no more."""
        if self._timer is not None:
            self._timer.cancel()

    def begin(self) -> None:
        """Open a window."""
        self._frames_before = self.frames
        self._latest = 0.0

    def end(self) -> dict[str, Any]:
        """What was sent since `begin`."""
        return {"frames": self.frames - self._frames_before, "latest_ms": self._latest * 1e3}

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._tick)
        passed = time.monotonic() - self._since
        self._latest = max(self._latest, passed - self._sent / self._rate)
        for number in range(self._sent, int(passed * self._rate)):
            self._send(number)

    def _send(self, number: int) -> None:
        transport = self._send_to[number % len(self._send_to)].transport
        if transport is not None:
            stamp = number % self._stamp_every == 0
            transport.send(WSMsgType.TEXT, self._event.stamped() if stamp else self._event.plain)
            self.frames += 1
        self._sent = number + 1
