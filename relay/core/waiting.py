"""What a connection that speaks HTTP is waited for, and how long: heads, bodies, readers. Pure; ``now`` comes in.

A peer may be slow, but never without end: each wait has a deadline that more bytes don't move.
"""

import math
from enum import Enum, auto
from typing import Final

HEAD_BYTES: Final = 32 * 1024
IDLE_SECONDS: Final = 30.0  # between an answer and the next request
LEAVE_SECONDS: Final = 2.0  # for a peer to read why it is turned away
LINGER_SECONDS: Final = 5.0  # for the rest of a body that was answered before it had come
_END: Final = b"\r\n\r\n"


class Late(Enum):
    """What did not come, or did not go, in time."""

    REQUEST = auto()  # not one byte of it
    HEAD = auto()  # its end
    BODY = auto()
    READER = auto()  # took nothing of an answer
    LEAVER = auto()  # was answered for the last time, and stayed


class Size(Enum):
    """Of a head, as far as it has come."""

    FITS = auto()
    LONG_LINE = auto()  # it is too large, and still in its first line
    TOO_LARGE = auto()


class _Phase(Enum):
    HEAD = auto()  # waits for a request
    BODY = auto()  # handles one whose body has not come yet
    BUSY = auto()  # handles one, in the time that the handler gives itself
    LINGERING = auto()  # has answered one, and reads on to the end of its body, or to its own
    LEAVING = auto()  # throws away what comes


class Waiting:
    """The waits of one connection, from its first moment until it speaks HTTP no more."""

    __slots__ = (
        "_deadline",
        "_handshake_seconds",
        "_has_line",
        "_head_bytes",
        "_phase",
        "_stall_seconds",
        "_tail",
        "_taken_at",
        "_unsent",
    )

    def __init__(self, now: float, *, handshake_seconds: float, stall_seconds: float) -> None:
        """Begin to wait for a request.

        Args:
            now: in seconds.
            handshake_seconds: within which a head has to come, from here or from its first byte on; and a body.
            stall_seconds: how long a peer may take nothing of what waits to be sent.
        """
        self._handshake_seconds = handshake_seconds
        self._stall_seconds = stall_seconds
        self._phase = _Phase.HEAD
        self._deadline = now + handshake_seconds
        self._head_bytes = 0
        self._has_line = False  # the first line of the head is whole
        self._tail: bytes | None = b""  # the end of what came of a head; None once it is whole
        self._unsent = 0
        self._taken_at = now

    @property
    def is_leaving(self) -> bool:
        """Whether nothing that comes matters any more."""
        return self._phase is _Phase.LEAVING

    def on_data(self, data: bytes, now: float) -> Size:
        """Bytes came; says how the head that they may be of stands to its limit."""
        if self._phase is not _Phase.HEAD or self._tail is None:
            return Size.FITS
        if not self._head_bytes:
            data = data.lstrip(b"\r\n")  # before a request line parsers skip them; an end of a head they are not
            if not data:
                return Size.FITS
            self._deadline = min(self._deadline, now + self._handshake_seconds)
        self._has_line = self._has_line or b"\n" in data[:HEAD_BYTES]
        end = (self._tail + data).find(_END)
        if end < 0:
            self._head_bytes += len(data)
            self._tail = (self._tail + data)[1 - len(_END) :]
        else:
            self._head_bytes += end + len(_END) - len(self._tail)
            self._tail = None  # the deadline holds until there is a request
        if self._head_bytes <= HEAD_BYTES:
            return Size.FITS
        return Size.TOO_LARGE if self._has_line else Size.LONG_LINE

    def on_request(self, now: float, *, is_whole: bool) -> None:
        """A request began; ``is_whole`` if all of its body is here."""
        if self._phase is _Phase.LEAVING:
            return
        self._phase = _Phase.BUSY if is_whole else _Phase.BODY
        self._deadline = math.inf if is_whole else now + self._handshake_seconds

    def on_answer(self, now: float, *, is_whole: bool) -> None:
        """The request was handled; ``is_whole`` if all of its body is here, else the connection is closed after it."""
        if self._phase is _Phase.LEAVING:
            return
        self._phase = _Phase.HEAD if is_whole else _Phase.LINGERING
        self._deadline = now + (IDLE_SECONDS if is_whole else 2 * LINGER_SECONDS)
        self._head_bytes = 0
        self._has_line = False
        self._tail = b""

    def on_leave(self, now: float) -> None:
        """The last answer is on its way."""
        self._phase = _Phase.LEAVING
        self._deadline = now + LEAVE_SECONDS

    def on_look(self, now: float, *, unsent: int, is_whole: bool) -> Late | None:
        """Say what is late; ``unsent`` are the bytes that wait to be sent, ``is_whole`` is of the body."""
        if unsent != self._unsent or not unsent:
            self._unsent = unsent
            self._taken_at = now
        elif now - self._taken_at > self._stall_seconds:
            return Late.READER
        if now < self._deadline:
            return None
        if self._phase is _Phase.BODY:
            self._phase, self._deadline = _Phase.BUSY, math.inf
            return None if is_whole else Late.BODY
        if self._phase in {_Phase.LINGERING, _Phase.LEAVING}:
            return Late.LEAVER
        if unsent:  # the answer before is still being read
            self._deadline = now + IDLE_SECONDS
            return None
        return Late.HEAD if self._head_bytes else Late.REQUEST
