"""`python -m ops.bench.publisher`: the backend that puts messages into calls, over connections that are kept.

A message is sent when it is due, whether or not those before it are answered; its clock starts when it is due to be
written, so that the wait for a free connection counts.
"""

import asyncio
import time
from collections import Counter, deque
from typing import Any, Final
from urllib.parse import urlsplit

from ops.bench.measure import summary
from ops.bench.messages import Sent, make
from ops.bench.orders import Order, run_peer

_CONNECTIONS: Final = 32
_TICK_SECONDS: Final = 0.001
_ANSWER_SECONDS: Final = 30.0
_LOST: Final = 0  # as the status of an answer that never came


class _Connection(asyncio.Protocol):
    """One HTTP connection with one request under way at a time."""

    def __init__(self, desk: "_Publisher") -> None:
        self._desk = desk
        self._transport: Any = None
        self._sent_ns: int | None = None  # of the message under way
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is there."""
        self._transport = transport
        self._desk.on_free(self)

    def post(self, head: bytes, sent: Sent) -> None:
        """Send a message."""
        self._sent_ns = sent.at_ns
        self._transport.write(b"%bContent-Length: %d\r\n\r\n%b" % (head, len(sent.body), sent.body))

    def data_received(self, data: bytes) -> None:
        """A part of an answer."""
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or len(body) < _length(head):
            return
        self._received = b""
        self._end(int(head.split(b" ", 2)[1]))
        self._desk.on_free(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The message under way, if there is one, has no answer."""
        self._end(_LOST)

    def _end(self, status: int) -> None:
        if self._sent_ns is not None:
            self._desk.on_answer(status, time.monotonic_ns() - self._sent_ns)
            self._sent_ns = None


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


class _Publisher:
    """What the backend is ordered to do."""

    def __init__(self) -> None:
        self._heads: list[bytes] = []  # of the requests, one for each call
        self._free: list[_Connection] = []
        self._waiting: deque[tuple[bytes, Sent]] = deque()  # for a connection; as many as come in `_ANSWER_SECONDS`
        self._next = 0
        self._statuses: Counter[int] = Counter()
        self._answers_ms: list[float] = []
        self._under_way = 0
        self._answered = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._latest = 0.0
        self._first = 0

    async def open(self, url: str, headers: dict[str, str], calls: list[str], first_wait: str) -> dict[str, Any]:
        """Connect, and put a first message into each call; returns how these were answered.

        The relay answers these once they have reached `first_wait`, and later ones once they are accepted.
        """
        parts = urlsplit(url)
        loop = asyncio.get_running_loop()
        for _ in range(_CONNECTIONS):
            await loop.create_connection(lambda: _Connection(self), parts.hostname or "", parts.port or 80)
        given = "".join(f"{name}: {value}\r\n" for name, value in headers.items())

        def heads(wait: str) -> list[bytes]:
            query = f"wait={wait}&timeout_ms={_ANSWER_SECONDS * 1000:.0f}"
            return [
                f"POST /v1/realtime/calls/{call}/items?{query} HTTP/1.1\r\nHost: {parts.netloc}\r\n{given}"
                "Content-Type: application/json\r\n".encode()
                for call in calls
            ]

        self.begin()
        self._heads = heads(first_wait)
        for _ in calls:
            self._post()
        self._heads = heads("accepted")
        return await self.end()

    def stream(self, rate: float) -> None:
        """Begin to publish: so many messages a second to all calls together."""
        self._rate, self._posted, self._since = rate, 0, time.monotonic()
        self._tick()

    def still(self) -> None:
        """Stop publishing."""
        if self._timer is not None:
            self._timer.cancel()

    def begin(self) -> None:
        """Open a window."""
        self._first = self._next
        self._latest = 0.0
        self._statuses.clear()
        self._answers_ms = []

    async def end(self) -> dict[str, Any]:
        """Which messages were sent since `begin`, and how they were answered, once all are; times in milliseconds."""
        end = self._next
        async with asyncio.timeout(_ANSWER_SECONDS):
            while self._under_way:
                self._answered.clear()
                await self._answered.wait()
        return {
            "first": self._first,
            "end": end,
            "statuses": {str(status): number for status, number in self._statuses.items()},
            "answer_ms": summary(self._answers_ms),
            "latest_ms": self._latest * 1e3,
        }

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._tick)
        passed = time.monotonic() - self._since
        self._latest = max(self._latest, passed - self._posted / self._rate)
        while self._posted < int(passed * self._rate):
            self._post()
            self._posted += 1

    def _post(self) -> None:
        number = self._next
        self._next += 1
        head, sent = self._heads[number % len(self._heads)], make(number)
        self._under_way += 1
        if self._free:
            self._free.pop().post(head, sent)
        else:
            self._waiting.append((head, sent))

    def on_free(self, connection: _Connection) -> None:
        """A connection can take the next message."""
        if self._waiting:
            connection.post(*self._waiting.popleft())
        else:
            self._free.append(connection)

    def on_answer(self, status: int, took_ns: int) -> None:
        """A message was answered, or its connection was lost."""
        self._under_way -= 1
        self._statuses[status] += 1
        self._answers_ms.append(took_ns / 1e6)
        self._answered.set()


def _orders() -> tuple[Order, ...]:
    publisher = _Publisher()
    return (publisher.open, publisher.stream, publisher.still, publisher.begin, publisher.end)


if __name__ == "__main__":
    run_peer(_orders)
