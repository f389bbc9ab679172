"""`python -m ops.bench.load`: the callers, all of them in one process."""

import asyncio
import ssl
import time
from typing import Any, Final

from picows import WSCloseCode, WSMsgType, ws_connect

from ops.bench.events import APPEND, DELTA, SMALL_APPEND
from ops.bench.measure import summary
from ops.bench.orders import Order, run_peer
from ops.bench.traffic import Arrivals, Connection, Pacer

_STAMP_EVERY: Final = 7  # has no common factor with the number of calls, so that every call has its turn
_CALL_SECONDS: Final = 20.0  # for one call to open, or all to close
_CALL_ID: Final = "X-Call-Id"  # of the handshake's answer
_HANG_UP: Final = 50  # calls that are closed at a time


class _Load:
    """What the callers are ordered to do."""

    def __init__(self) -> None:
        self._live: list[Connection] = []
        self._arrivals = Arrivals(DELTA)
        self._pacer = Pacer(APPEND, self._live, _STAMP_EVERY)

    async def open(self, url: str, headers: dict[str, str], ca: str | None, calls: int, at_once: int) -> dict[str, Any]:
        """Open calls, so many at once; returns the time in milliseconds from dialling to `session.created`."""
        context = ssl.create_default_context(cafile=ca) if ca is not None else None
        took: list[float] = []
        numbers = iter(range(calls))

        async def dial_some() -> None:
            for _ in numbers:
                began = time.monotonic()
                connection = await self._dial(url, headers, context)
                took.append((time.monotonic() - began) * 1e3)
                self._live.append(connection)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(at_once):
                tasks.create_task(dial_some())
        return summary(took)

    async def _dial(self, url: str, headers: dict[str, str], context: ssl.SSLContext | None) -> Connection:
        connection = Connection(self._arrivals)
        async with asyncio.timeout(_CALL_SECONDS):
            await ws_connect(
                lambda: connection,
                url,
                extra_headers=headers,
                ssl_context=context,
                websocket_handshake_timeout=_CALL_SECONDS,
            )
            await connection.first
        return connection

    def call_ids(self) -> list[str]:
        """Return the ids that the node gave to the calls."""
        transports = [connection.transport for connection in self._live]
        return [str(each.response.headers[_CALL_ID]) for each in transports if each is not None]

    def speak_once(self) -> None:
        """Send one small frame on each call."""
        for connection in self._live:
            if connection.transport is not None:
                connection.transport.send(WSMsgType.TEXT, SMALL_APPEND)

    def stream(self, rate: float) -> None:
        """Begin to speak: so many frames a second on all calls together."""
        self._pacer.start(rate)

    def still(self) -> int:
        """Stop speaking; returns how many frames were sent since `stream`."""
        self._pacer.stop()
        return self._pacer.frames

    def begin(self) -> None:
        """Open a window."""
        self._arrivals.begin()
        self._pacer.begin()

    def end(self) -> dict[str, Any]:
        """What came and went since `begin`, and how many calls were lost."""
        lost = sum(connection.transport is None for connection in self._live)
        return {"received": self._arrivals.end(), "sent": self._pacer.end(), "lost": lost}

    async def close(self) -> None:
        """End all calls."""
        while self._live:
            some, self._live[:] = self._live[:_HANG_UP], self._live[_HANG_UP:]
            for connection in some:
                if connection.transport is not None:
                    connection.transport.send_close(WSCloseCode.OK)
            async with asyncio.timeout(_CALL_SECONDS):
                for connection in some:
                    await connection.lost


def _orders() -> tuple[Order, ...]:
    load = _Load()
    return (load.open, load.call_ids, load.speak_once, load.stream, load.still, load.begin, load.end, load.close)


if __name__ == "__main__":
    run_peer(_orders)
