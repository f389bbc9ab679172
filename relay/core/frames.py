"""What RFC 6455 asks of a leg beyond picows' parser: opcode order, reserved bits, UTF-8, fragments, close codes.

Decides on single frames of one leg; it knows nothing of sockets, of the other leg or of what a message means.
"""

import codecs
from enum import IntEnum
from typing import Final, NamedTuple


class Opcode(IntEnum):
    """Frame opcodes (RFC 6455, section 5.2)."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class Close(NamedTuple):
    """A close code and its reason; code 1005 stands for a CLOSE frame without a body."""

    code: int
    reason: str


class Message(NamedTuple):
    """A whole message: ``Opcode.TEXT`` or ``Opcode.BINARY`` and its payload."""

    kind: Opcode
    payload: bytes


class Violation(Exception):
    """The peer broke the protocol; ``code`` is the close code that RFC 6455 (section 7.4.1) has for it."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


NO_STATUS: Final = 1005
_MAY_BE_SENT: Final = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014})
_REASON_BYTES: Final = 123


class Assembler:
    """Turns the data frames of one leg into whole messages of at most ``max_bytes``.

    Fragments are put together and not passed on one by one: an event that the relay injects between two fragments
    would break the peer's stream.
    """

    __slots__ = ("_buffer", "_max_bytes", "_utf8", "kind")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.kind: Opcode | None = None  # of the fragmented message that is under way; None: none is
        self._buffer = bytearray()
        self._utf8: codecs.IncrementalDecoder | None = None

    def accept(self, opcode: int, fin: bool, reserved: bool, payload: bytes) -> Message | None:
        """Return the message that this data frame completes, or None while more of it is to come.

        Raises:
            Violation: the frame breaks the protocol or the message is too long.
        """
        if reserved:
            raise Violation(1002, "reserved bit set without an extension")
        if opcode == Opcode.CONTINUATION:
            if self.kind is None:
                raise Violation(1002, "continuation frame without a message to continue")
        elif self.kind is not None:
            raise Violation(1002, "new message before the last one was complete")
        if len(self._buffer) + len(payload) > self._max_bytes:
            raise Violation(1009, f"message longer than {self._max_bytes} bytes")
        if fin and self.kind is None:
            return Message(Opcode(opcode), checked_text(payload) if opcode == Opcode.TEXT else payload)
        return self._continue(opcode, fin, payload)

    def _continue(self, opcode: int, fin: bool, payload: bytes) -> Message | None:
        if self.kind is None:
            self.kind = Opcode(opcode)
            self._utf8 = codecs.getincrementaldecoder("utf-8")() if opcode == Opcode.TEXT else None
        if self._utf8 is not None:
            try:
                self._utf8.decode(payload, final=fin)
            except UnicodeDecodeError:
                raise Violation(1007, "text message is not UTF-8") from None
        self._buffer += payload
        if not fin:
            return None
        message = Message(self.kind, bytes(self._buffer))
        self.kind, self._buffer, self._utf8 = None, bytearray(), None
        return message


def checked_text(payload: bytes) -> bytes:
    """Return the payload if it is UTF-8.

    Raises:
        Violation: it is not (close code 1007).
    """
    if not payload.isascii():
        try:
            payload.decode()
        except UnicodeDecodeError:
            raise Violation(1007, "text message is not UTF-8") from None
    return payload


def parse_close(payload: bytes) -> Close:
    """Read the body of a CLOSE frame (RFC 6455, section 5.5.1).

    Raises:
        Violation: the body is one byte long, its code must not be sent, or its reason is not UTF-8.
    """
    if not payload:
        return Close(NO_STATUS, "")
    if len(payload) == 1:
        raise Violation(1002, "close frame with half a code")
    code = int.from_bytes(payload[:2], "big")
    if code not in _MAY_BE_SENT and not 3000 <= code <= 4999:
        raise Violation(1002, f"close code {code} must not be sent")
    try:
        return Close(code, payload[2:].decode())
    except UnicodeDecodeError:
        raise Violation(1007, "close reason is not UTF-8") from None


def close_body(close: Close) -> bytes:
    """Build the body of a CLOSE frame; a reason that does not fit in a control frame is cut at a whole character."""
    if close.code == NO_STATUS:
        return b""
    reason = close.reason.encode()[:_REASON_BYTES].decode(errors="ignore").encode()
    return close.code.to_bytes(2, "big") + reason
