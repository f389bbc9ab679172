"""One WebSocket connection: moves messages between a socket and a `Session`, and makes its faults happen.

Decides nothing about the conversation. Two tasks, owned by one group: the reader waits while the outbox is full, the
writer waits for the socket; so a peer that doesn't read stops being read, and a late model says less, not more.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import struct
from collections import deque
from collections.abc import Iterable
from typing import NoReturn

import msgspec
from aiohttp import WSMsgType, web

from ops.simulator.faults import HANG_SECONDS, Fault
from ops.simulator.ledger import Record
from ops.simulator.session import Close, Event, Session

OUTBOX_EVENTS = 1_024
OUTBOX_BYTES = 8 * 1024 * 1024
WRITE_SECONDS = 120.0  # a peer that takes nothing for so long is gone
PEER_GONE = (ConnectionError, TimeoutError)


class Connection:
    def __init__(
        self, ws: web.WebSocketResponse, transport: asyncio.Transport, session: Session, fault: Fault, record: Record
    ) -> None:
        self._ws = ws
        self._transport = transport
        self._session = session
        self._fault = fault
        self._fault_is_pending = fault.acts_later
        self._record = record
        self._clock = asyncio.get_running_loop().time
        self._opened_at = self._clock()
        self._outbox: deque[tuple[str, bytes]] = deque()  # type of the event (empty: raw bytes, no frame), payload
        self._outbox_bytes = 0
        self._sent = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._cut_at = math.inf  # when a stalled connection is ended
        self._was_cut = False
        self._is_closing = False

    async def run(self) -> None:
        """Until one side has closed; leaves no task behind."""
        self._push(self._session.open())
        try:
            async with asyncio.TaskGroup() as tasks:
                reader = tasks.create_task(self._read(), name="simulator-reader")
                writer = tasks.create_task(self._write(), name="simulator-writer")
                await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
                if not self._is_closing:
                    writer.cancel()
                await asyncio.wait((writer,))
                reader.cancel()
        finally:
            self._note_end()

    def stop(self, close: Close) -> None:
        """Have the writer close the connection."""
        self._session.closing = self._session.closing or close
        self._wake.set()

    def abort(self) -> None:
        self._transport.abort()

    # -- tasks -----------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            await self._room.wait()
            message = await self._ws.receive()
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                return
            now = self._clock()
            self._record.on_received(message.data, now)
            self._push(self._session.receive(message.data, now))
            self._wake.set()

    async def _write(self) -> None:
        with contextlib.suppress(*PEER_GONE):
            while True:
                self._fire_fault()
                if self._outbox:
                    await self._send(*self._outbox.popleft())
                elif (close := self._session.closing) is not None:
                    self._is_closing = True
                    await self._ws.close(code=close.code, message=close.reason.encode())
                    return
                else:
                    await self._wait_wake()
                    self._push(self._session.tick(self._clock()))

    async def _wait_wake(self) -> None:
        at = min(self._session.wake_at(), self._cut_at)
        if self._fault_is_pending:
            at = min(at, self._opened_at + self._fault.delay_seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(at):
                await self._wake.wait()
        self._wake.clear()

    async def _send(self, kind: str, payload: bytes) -> None:
        self._outbox_bytes -= len(payload)
        if not self._is_full():
            self._room.set()
        if not kind:
            self._transport.write(payload)
            return
        async with asyncio.timeout(WRITE_SECONDS):
            await self._ws.send_frame(payload, WSMsgType.TEXT)
        self._sent += 1
        self._record.sent[kind] += 1

    def _push(self, events: Iterable[Event]) -> None:
        self._outbox.extend(_encoded(events))
        self._count_outbox()

    def _count_outbox(self) -> None:
        self._outbox_bytes = sum(len(payload) for _, payload in self._outbox)
        if self._is_full():
            self._room.clear()
        else:
            self._room.set()

    def _is_full(self) -> bool:
        return len(self._outbox) >= OUTBOX_EVENTS or self._outbox_bytes >= OUTBOX_BYTES

    # -- faults ----------------------------------------------------------------------------------------------------

    def _fire_fault(self) -> None:
        fault, now = self._fault, self._clock()
        if now >= self._cut_at:
            self._reset()
        if not self._fault_is_pending or not fault.is_due(now - self._opened_at, self._sent):
            return
        self._fault_is_pending = False
        if fault.reset:
            self._reset()
        ahead: list[tuple[str, bytes]] = []
        if fault.error is not None:
            self._session.error(fault.error, "The simulator was told to send this error.", kind="server_error")
            ahead.extend(_encoded(self._session.take()))
        if fault.garbage:
            ahead.append(("(garbage)", b'{"type": "response.output_audio.delta", "delta": '))
        if fault.bad_frame is not None:
            ahead.append(("", fault.bad_frame))
        if fault.close is not None:
            self._outbox.clear()
            self._session.closing = Close(fault.close, fault.reason)
        self._outbox.extendleft(reversed(ahead))
        self._count_outbox()
        if fault.stall:
            self._transport.pause_reading()
            self._cut_at = now + HANG_SECONDS  # a paused transport doesn't notice a peer that leaves

    def _reset(self) -> NoReturn:
        self._was_cut = True
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.abort()
        raise ConnectionResetError("reset on demand")

    def _note_end(self) -> None:
        close = self._session.closing
        if self._is_closing and close is not None:
            self._record.on_closed(self._clock(), close.code, close.reason, "server")
        elif self._was_cut:
            self._record.on_closed(self._clock(), 1006, "reset", "server")
        else:
            code = self._ws.close_code
            self._record.on_closed(self._clock(), 1006 if code is None else code, "", "client")


def _encoded(events: Iterable[Event]) -> list[tuple[str, bytes]]:
    return [(event["type"], msgspec.json.encode(event)) for event in events]
