"""One connection of the public port while it speaks HTTP: aiohttp's protocol, with an end to each of its waits.

What aiohttp cannot read is answered here, in the shape of all errors and without a word of it in the log: it may carry
a token. How long a peer is waited for is ``relay.core.waiting``, who may connect is ``relay.front``.
"""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final, cast

import structlog
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import LineTooLong

from relay.admission import Refused
from relay.core.waiting import HEAD_BYTES, IDLE_SECONDS, LINGER_SECONDS, Late, Size, Waiting

LINE_BYTES: Final = 8190  # of a URL: it has a model, a call's id, a position
FIELD_BYTES: Final = 12 * 1024  # of one header: a subprotocol carries a token of up to 8 KiB
HEADERS: Final = 100
_READ_BYTES: Final = 16 * 1024  # of a body that nobody has read yet; aiohttp stops reading at twice that
_NO_REQUEST: Final = Refused(400, "bad_request", "This is no request of HTTP/1.1.")
_SLOW_HEAD: Final = Refused(408, "request_timeout", "The request's head did not come in time.")
_LONG_URL: Final = Refused(414, "url_too_long", f"The URL may have {LINE_BYTES} bytes.")
_LARGE_HEAD: Final = Refused(
    431,
    "headers_too_large",
    f"A request may have {HEADERS} headers of {FIELD_BYTES} bytes each, and {HEAD_BYTES} in all.",
)

log = structlog.get_logger("relay")


class SlowBody(TimeoutError):
    """The body of a request did not come in time. aiohttp, which may be reading it as well, expects a TimeoutError."""


class _Answered(web.StreamResponse):
    """The response of a request that was answered past aiohttp: nothing is left to write, the peer closes."""

    @property
    def keep_alive(self) -> bool | None:
        return True

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


class Door(web.RequestHandler):
    """The protocol of one connection. ``look`` has to be called every now and then."""

    def __init__(
        self,
        server: web.Server,
        waiting: Waiting,
        keepalive_seconds: float,
        answer: Callable[[Refused], web.Response],
        on_gone: Callable[["Door"], None],
    ) -> None:
        """Make a protocol that is not connected yet.

        Args:
            server: of the application.
            waiting: what it is waited for.
            keepalive_seconds: aiohttp's own limit, longer than those of ``waiting``.
            answer: makes the response of a refusal.
            on_gone: is called once, when this speaks HTTP no more: the connection is gone, or handed off.
        """
        options: dict[str, Any] = {
            "loop": asyncio.get_running_loop(),
            "access_log": None,
            "keepalive_timeout": keepalive_seconds,
            "max_line_size": LINE_BYTES,
            "max_field_size": FIELD_BYTES,
            "max_headers": HEADERS,
            "read_bufsize": _READ_BYTES,
            "lingering_time": LINGER_SECONDS,
        }
        super().__init__(server, **options)
        self.waiting = waiting
        self._answer = answer
        self._on_gone = on_gone
        self._below: asyncio.Transport | None = None
        self._request: web.Request | None = None
        self.was_connected = False
        self.came_to_nothing = True  # no request could be read, or not the last one

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    # From the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there, its TLS handshake done."""
        self._below = cast(asyncio.Transport, transport)
        self.was_connected = True
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is gone, or handed off."""
        super().connection_lost(exc)
        self._request = None
        if self._below is not None:
            self._below = None
            self._on_gone(self)

    def data_received(self, data: bytes) -> None:
        """Bytes came, or aiohttp reads on in what it has (then there are none here)."""
        if self.waiting.is_leaving:
            return
        size = self.waiting.on_data(data, self._now())
        if size is Size.FITS:
            super().data_received(data)
        else:
            self._turn_away(_LONG_URL if size is Size.LONG_LINE else _LARGE_HEAD)

    # From the application

    def begin(self, request: web.Request) -> None:
        """A request is being handled."""
        self._request = request
        self.came_to_nothing = False
        self.waiting.on_request(self._now(), is_whole=request.content.is_eof())

    def end(self) -> None:
        """It was."""
        if self._request is not None:
            self.waiting.on_answer(self._now(), is_whole=self._request.content.is_eof())
            self._request = None

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer what aiohttp could not read, or what went wrong outside of the application's own handling."""
        if status >= 500:
            log.error("request_failed", exc_info=exc)
            return self._answer(Refused(500, "internal_error", "Internal error of the relay.", kind="server_error"))
        self._turn_away(_unreadable(exc, message or ""))
        return _Answered()

    # From whoever looks after it

    def look(self) -> Late | None:
        """Do something about what is late; returns what it was."""
        below, request = self._below, self._request
        if below is None:
            return None
        is_whole = request is None or request.content.is_eof()
        late = self.waiting.on_look(self._now(), unsent=below.get_write_buffer_size(), is_whole=is_whole)
        if late is Late.HEAD:
            self._turn_away(_SLOW_HEAD)
        elif late is Late.BODY and request is not None:
            request.content.set_exception(SlowBody())
        elif late is not None:
            below.abort()
        return late

    def _turn_away(self, refused: Refused) -> None:
        """Answer past aiohttp, and leave the peer the time to read it: a connection closed at once would be reset."""
        below, self.came_to_nothing = self._below, True
        if self.waiting.is_leaving or below is None or below.is_closing():
            return
        self.waiting.on_leave(self._now())
        response = self._answer(refused)
        body = response.body if isinstance(response.body, bytes) else b""
        fields = {**response.headers, "Content-Length": str(len(body)), "Connection": "close"}
        lines = [f"HTTP/1.1 {refused.status} {HTTPStatus(refused.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        below.write("\r\n".join([*lines, "", ""]).encode() + body)
        if below.can_write_eof():
            below.write_eof()
        self.transport = None  # what aiohttp still has to answer goes nowhere


def keepalive_seconds(handshake_seconds: float) -> float:
    """Return a limit for aiohttp that is longer than all waits for a head."""
    return IDLE_SECONDS + 2 * handshake_seconds


def _unreadable(error: BaseException | None, message: str) -> Refused:
    """Say what was wrong, not what came."""
    if isinstance(error, LineTooLong):
        return _LONG_URL if error.args[1] == LINE_BYTES else _LARGE_HEAD
    return _LARGE_HEAD if message.startswith("Too many headers") else _NO_REQUEST
