"""`python -m ops.bench.link`: the way between two regions, a TCP proxy that delays each direction.

On asyncio's loop with `select`, which wakes to the tenth of a millisecond; epoll's and uvloop's timers know whole ones.
Opening a connection over it costs no round trip of its own, unlike a real one, unless that is asked for.
"""

import asyncio
import contextlib
import selectors
from collections import deque
from typing import Any, Final
from urllib.parse import urlsplit

from ops.bench.measure import summary
from ops.bench.orders import Order, run_peer

_READ_BYTES: Final = 1 << 16


class _Link:
    """What the link is ordered to do."""

    def __init__(self) -> None:
        self._target = ("", 0)
        self._delay_seconds = self._opening_seconds = 0.0
        self._late_ms: list[float] = []

    async def open(self, url: str, delay_ms: float, opening: bool = False) -> int:
        """Lead to a server from a port, which is returned; with ``opening`` a connection's first round trip counts."""
        parts = urlsplit(url)
        self._target, self._delay_seconds = (parts.hostname or "", parts.port or 0), delay_ms / 1e3
        self._opening_seconds = 2 * self._delay_seconds if opening else 0.0
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        port: int = server.sockets[0].getsockname()[1]
        return port

    def begin(self) -> None:
        """Open a window."""
        self._late_ms = []

    def end(self) -> dict[str, Any]:
        """How late the link wrote what was due, in milliseconds."""
        return summary(self._late_ms)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        not_before = asyncio.get_running_loop().time() + self._opening_seconds
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        async with asyncio.TaskGroup() as ways:
            ways.create_task(self._pass(reader, far_writer, not_before))
            ways.create_task(self._pass(far_reader, writer, not_before))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, not_before: float) -> None:
        """Carry one direction until its sender closes; the sender has its connection since ``not_before``.

        What is under way has no bound of its own: Redis's clients wait for answers.
        """
        loop = asyncio.get_running_loop()
        coming: deque[tuple[float, bytes]] = deque()

        def write_next() -> None:
            due, data = coming.popleft()
            self._late_ms.append((loop.time() - due) * 1e3)
            writer.write(data)

        with contextlib.suppress(ConnectionError):  # an end like another
            while data := await reader.read(_READ_BYTES):
                coming.append((max(loop.time(), not_before) + self._delay_seconds, data))
                loop.call_at(coming[-1][0], write_next)
        await asyncio.sleep(self._delay_seconds)
        writer.close()


def _orders() -> tuple[Order, ...]:
    link = _Link()
    return (link.open, link.begin, link.end)


if __name__ == "__main__":
    run_peer(_orders, lambda: asyncio.SelectorEventLoop(selectors.SelectSelector()))
