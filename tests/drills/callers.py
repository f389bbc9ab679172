"""The people in the drills' calls: client legs that stream numbered audio frames at an even pace and note their end.

A frame that cannot be written waits in the transport: at most what is spoken while a node is frozen.
"""

import asyncio
import binascii
import json
import os
import time
from collections.abc import Sequence
from typing import Any, Final

from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

APPEND_HEAD: Final = '{"type":"input_audio_buffer.append","audio":"'
_APPEND_TAIL: Final = b'"}'
_STAMP_BYTES: Final = 9  # number, then microseconds of the monotonic clock, which all processes of a machine share
STAMP_LETTERS: Final = _STAMP_BYTES // 3 * 4  # in base64
_BYTES_PER_MS: Final = 48  # PCM16 at 24 kHz
_TICK_SECONDS: Final = 0.005
_CALL_SECONDS: Final = 20.0  # to open a call
_LONGEST_FRAME: Final = 16 << 20
# The model's VAD would cost more than the rest of it, and has nothing to say about noise.
_NO_VAD: Final = json.dumps(
    {"type": "session.update", "session": {"type": "realtime", "audio": {"input": {"turn_detection": None}}}}
).encode()


def stamp(number: int, at_us: int) -> bytes:
    """The first bytes of a frame's audio."""
    return number.to_bytes(3) + at_us.to_bytes(6)


def read_stamp(data: bytes) -> tuple[int, int]:
    """Number and time of a frame, from its first bytes."""
    return int.from_bytes(data[:3]), int.from_bytes(data[3:_STAMP_BYTES])


class Caller(WSListener):
    """One call."""

    def __init__(self, number: int, node: str) -> None:
        self.number = number
        self.node = node
        self.call_id = ""
        self.frames = 0
        self.ended: str | None = None  # why, once it has
        self.created: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: WSTransport | None = None
        self._is_hanging_up = False

    async def dial(self, url: str, headers: dict[str, str]) -> None:
        """Open the call; returns when the model's session is there."""
        async with asyncio.timeout(_CALL_SECONDS):
            await ws_connect(lambda: self, url, extra_headers=headers, max_frame_size=_LONGEST_FRAME)
            await self.created

    def on_ws_connected(self, transport: WSTransport) -> None:
        """The handshake is done; its answer names the call."""
        self._transport = transport
        self.call_id = transport.response.headers["X-Call-Id"]
        transport.send(WSMsgType.TEXT, _NO_VAD)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """The first event is `session.created`; of the others only the close matters here."""
        if frame.msg_type is WSMsgType.TEXT:
            if not self.created.done():
                self.created.set_result(None)
        elif frame.msg_type is WSMsgType.CLOSE:
            reason = bytes(frame.get_close_message() or b"").decode(errors="replace")
            self._end(f"close {int(frame.get_close_code())} {reason}".strip())
            transport.send_close(frame.get_close_code())
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """The connection is gone."""
        self._end("no close frame")
        self._transport = None
        if not self.created.done():
            self.created.set_exception(ConnectionError(f"call {self.number}: {self.ended}"))

    def speak(self, tail: bytes) -> None:
        """Send the next frame; `tail` is what follows the stamp."""
        if self._transport is None:
            return
        head = binascii.b2a_base64(stamp(self.frames, time.monotonic_ns() // 1000), newline=False)
        self._transport.send(WSMsgType.TEXT, APPEND_HEAD.encode() + head + tail)
        self.frames += 1

    def hang_up(self) -> None:
        """End the call."""
        self._is_hanging_up = True
        if self._transport is not None:
            self._transport.send_close(WSCloseCode.OK)
            self._transport.disconnect()

    def _end(self, why: str) -> None:
        if self.ended is None and not self._is_hanging_up:
            self.ended = f"call {self.number} on {self.node}: {why}"


class Speakers:
    """Lets every caller speak at an even pace, each a little after the other."""

    def __init__(self, callers: Sequence[Caller], frame_ms: int) -> None:
        self._callers = callers
        self._rate = len(callers) * 1000 / frame_ms
        rest = os.urandom(frame_ms * _BYTES_PER_MS - _STAMP_BYTES)
        self._tail = binascii.b2a_base64(rest, newline=False) + _APPEND_TAIL
        self._timer: asyncio.TimerHandle | None = None
        self._since = 0.0
        self._spoken = 0
        self.latest_ms = 0.0  # how late the pace ever was: the load's own doing

    def start(self) -> None:
        """Begin to speak."""
        self._since, self._spoken = time.monotonic(), 0
        self._tick()

    def stop(self) -> None:
        """Fall silent."""
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._tick)
        passed = time.monotonic() - self._since
        self.latest_ms = max(self.latest_ms, (passed - self._spoken / self._rate) * 1000)
        for place in range(self._spoken, int(passed * self._rate)):
            self._callers[place % len(self._callers)].speak(self._tail)
        self._spoken = int(passed * self._rate)


def describe(callers: Sequence[Caller]) -> list[dict[str, Any]]:
    """What became of the calls, for the runner."""
    return [
        {"call": each.number, "node": each.node, "id": each.call_id, "frames": each.frames, "ended": each.ended}
        for each in callers
    ]
