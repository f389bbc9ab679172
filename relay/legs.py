"""One socket of a call: frames in, whole messages out to the call; messages, pings and closes back to the peer.

Translates picows' callbacks; what a message means is the call's business (``Owner``). The frame rules of RFC 6455 that
picows leaves out are ``relay.core.frames``.
"""

import asyncio
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport

from relay.core.actions import Side
from relay.core.frames import NO_STATUS, Assembler, Close, Opcode, Violation, checked_text, close_body, parse_close

_TEXT: Final = WSMsgType.TEXT
_BINARY: Final = WSMsgType.BINARY
_BYTES_ACKED: Final = struct.Struct("=120xQ")  # tcpi_bytes_acked in Linux's struct tcp_info


class Owner(Protocol):
    """What a leg tells its call. Every method is called on the event loop and must not raise."""

    def on_leg_binary(self, leg: "Leg", payload: bytes) -> None:
        """A whole binary message."""

    def on_leg_violation(self, leg: "Leg", violation: Violation) -> None:
        """The peer broke the protocol: the leg has sent CLOSE, and nothing more of the peer is passed on."""

    def on_leg_close(self, leg: "Leg", close: Close) -> None:
        """The peer sent CLOSE."""

    def on_leg_lost(self, leg: "Leg") -> None:
        """The connection is gone."""

    def on_leg_blocked(self, leg: "Leg", blocked: bool) -> None:
        """More waits to be written than the buffer should hold, or it does so no longer."""

    def on_leg_failed(self, leg: "Leg", error: Exception) -> None:
        """Our own code raised while it handled a message."""


class Leg(WSListener):
    """A connected WebSocket of a call.

    Plain audio goes to the other leg in the read callback, without a decision, while the call is open. ``on_text`` gets
    every other text message, in the same callback: it must not wait.
    """

    __slots__ = (
        "_assembler",
        "_forward",
        "_is_plain",
        "_max_message",
        "_on_text",
        "_owner",
        "_paused",
        "_socket_bytes",
        "_write_bytes",
        "blocked",
        "bytes_in",
        "closed",
        "closing",
        "frames_in",
        "handled_bytes",
        "handled_frames",
        "largest_buffer",
        "side",
        "transport",
    )

    def __init__(
        self,
        side: Side,
        owner: Owner,
        on_text: Callable[[bytes], None],
        is_plain: Callable[[bytes], bool],
        *,
        max_message: int,
        write_bytes: int,
        socket_bytes: int,
    ) -> None:
        """Make a leg that is not connected yet.

        Args:
            side: which leg of the call this is.
            owner: the call.
            on_text: takes a whole text message.
            is_plain: whether a text message may go straight to the other leg, once this one feeds it (``feed``).
            max_message: the longest message taken, in bytes; beyond it the leg is closed with 1009.
            write_bytes: how much may wait to be written before the other leg is paused.
            socket_bytes: the kernel's buffer, each way; it bounds what a burst makes of picows' read buffer.
        """
        self.side = side
        self._owner = owner
        self._on_text = on_text
        self._is_plain = is_plain
        self._max_message = max_message
        self._assembler: Assembler | None = None  # while a fragmented message is under way
        self._write_bytes = write_bytes
        self._socket_bytes = socket_bytes
        self._forward: Callable[[WSMsgType, bytes], None] | None = None
        self._paused = 0
        self.transport: WSTransport | None = None
        self.blocked = False
        self.closing = False
        self.closed = asyncio.get_running_loop().create_future()
        self.frames_in = self.bytes_in = 0
        self.handled_frames = self.handled_bytes = 0  # of these, what did not go straight on
        self.largest_buffer = 0

    # From picows

    def on_ws_connected(self, transport: WSTransport) -> None:
        """The handshake is done."""
        self.transport = transport
        below = transport.underlying_transport
        below.set_write_buffer_limits(high=self._write_bytes)
        sock: socket.socket = below.get_extra_info("socket")
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, self._socket_bytes)
        if self._paused:
            below.pause_reading()
        if self.closing:  # the call ended while this leg was being opened
            self.abort()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """A frame; plain audio in an open call first, with as few looks at it as the rules allow."""
        self.frames_in += 1
        kind = frame.msg_type
        try:
            if kind is _TEXT and frame.fin and self._assembler is None and not (frame.rsv1 or frame.rsv2 or frame.rsv3):
                payload = frame.get_payload_as_bytes()
                self.bytes_in += len(payload)
                forward = self._forward
                if forward is not None and payload.isascii() and self._is_plain(payload):
                    forward(_TEXT, payload)
                elif not self.closing:
                    self.handled_frames += 1
                    self.handled_bytes += len(payload)
                    self._on_text(checked_text(payload))
            else:
                self._on_other_frame(kind, frame)
        except Violation as violation:
            self._refuse(violation)
            if kind is WSMsgType.CLOSE:  # no other will come as an answer to ours
                self.disconnect()
        except Exception as error:  # noqa: BLE001  # our bug must end this call with a traceback, and no other
            self._owner.on_leg_failed(self, error)

    def _on_other_frame(self, kind: WSMsgType, frame: WSFrame) -> None:
        payload = frame.get_payload_as_bytes()
        self.bytes_in += len(payload)
        self.handled_frames += 1
        self.handled_bytes += len(payload)
        reserved = frame.rsv1 or frame.rsv2 or frame.rsv3
        if kind is WSMsgType.CLOSE:
            if reserved:
                raise Violation(1002, "reserved bit set without an extension")
            self._owner.on_leg_close(self, parse_close(payload))
        elif self.closing:
            return
        elif kind is WSMsgType.PING or kind is WSMsgType.PONG:
            if reserved:
                raise Violation(1002, "reserved bit set without an extension")
            if kind is WSMsgType.PING and not self.blocked:  # a peer that takes nothing must not pile up pongs
                self._transport.send_pong(payload)
        else:
            if self._assembler is None:
                self._assembler = Assembler(self._max_message)
            message = self._assembler.accept(kind.value, frame.fin, reserved, payload)
            if message is None:
                return
            self._assembler = None
            if message.kind is Opcode.TEXT:
                self._on_text(message.payload)
            else:
                self._owner.on_leg_binary(self, message.payload)

    def on_ws_refused(self, code: int, reason: str) -> None:
        """picows refuses a frame; it parses one frame ahead, so that a good CLOSE may stand before it, unseen."""
        handshake: Any = self.transport.close_handshake if self.transport is not None else None
        received = handshake.recv if handshake is not None else None
        if self.closing:
            return
        try:
            if received is None:
                raise Violation(code, reason)
            close = Close(int(received.code) or NO_STATUS, received.reason or "")
            parse_close(close_body(close))  # picows lets codes pass that nobody may send, such as 1006
            self._owner.on_leg_close(self, close)
        except Violation as violation:
            self._refuse(violation)

    def _refuse(self, violation: Violation) -> None:
        """Answer a bad frame at once: the same read may hold more of them."""
        self.close(Close(violation.code, violation.reason))
        self._owner.on_leg_violation(self, violation)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """The connection is gone."""
        owner = self._owner
        self._let_go()
        owner.on_leg_lost(self)

    def _let_go(self) -> None:
        """Nothing comes any more: drop what refers back, so that a call's end leaves the garbage collector no work.

        It stops the node for some 20 ms whenever the cycles of a few hundred ended calls have piled up (measured).
        """
        self.closing = True
        self.transport = self._forward = None
        self._owner = self._on_text = self._is_plain = cast(Any, None)
        if not self.closed.done():
            self.closed.set_result(None)

    def pause_writing(self) -> None:
        """The write buffer is over its limit."""
        self.blocked = True
        self._owner.on_leg_blocked(self, True)

    def resume_writing(self) -> None:
        """The write buffer has drained."""
        self.blocked = False
        self._owner.on_leg_blocked(self, False)

    # From the call

    @property
    def _transport(self) -> WSTransport:
        if self.transport is None:
            raise RuntimeError(f"{self.side.name.lower()} leg used before it was connected")
        return self.transport

    def send(self, payload: bytes, kind: Opcode = Opcode.TEXT) -> None:
        """Send a message; never waits. What is sent on a leg that is closing goes nowhere."""
        if not self.closing:
            self._transport.send(_TEXT if kind is Opcode.TEXT else _BINARY, payload)

    def give(self, owner: Owner, on_text: Callable[[bytes], None]) -> None:
        """Let another owner have the leg, and its text messages, from now on."""
        self._owner, self._on_text = owner, on_text

    def feed(self, peer: "Leg | None", tap: Callable[[bytes], None] | None = None) -> None:
        """Send plain messages straight on to the peer from now on; None: give them to ``on_text`` again.

        ``tap`` gets each of them too, after the peer.
        """
        if peer is None or peer.closing or self.closing:
            self._forward = None
        elif tap is None:
            self._forward = peer._transport.send
        else:
            self._forward = _tapped(peer._transport.send, tap)

    def ping(self) -> None:
        """Send a ping, unless bytes are waiting already: they ask the same."""
        if not self.blocked and not self.closing:
            self._transport.send_ping()

    def pause(self) -> None:
        """Stop reading; each call must be matched by ``resume``."""
        self._paused += 1
        if self._paused == 1 and self.transport is not None:
            self.transport.underlying_transport.pause_reading()

    def resume(self) -> None:
        """Take back one ``pause``; a no-op without one."""
        if self._paused:
            self._paused -= 1
            if not self._paused and self.transport is not None:
                self.transport.underlying_transport.resume_reading()

    @property
    def reading(self) -> bool:
        """Whether the peer's bytes are being read."""
        return not self._paused

    def buffered(self) -> int:
        """Bytes that wait in this process to be written."""
        if self.transport is None or self.transport.is_disconnected:
            return 0
        size: int = self.transport.underlying_transport.get_write_buffer_size()
        self.largest_buffer = max(size, self.largest_buffer)
        return size

    def taken(self) -> int:
        """How much the peer's kernel has taken so far, on a scale of its own: only growth means anything."""
        if self.transport is None or self.transport.is_disconnected:
            return 0
        if not sys.platform.startswith("linux"):
            return -self.buffered()  # less sure: it stands still while our kernel's buffer drains
        sock: socket.socket = self.transport.underlying_transport.get_extra_info("socket")
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size)
        return int(_BYTES_ACKED.unpack(info)[0])

    def close(self, close: Close) -> None:
        """Send CLOSE and take no more messages; the peer's CLOSE is still awaited (``closed``)."""
        if self.closing:
            return
        self.closing = True
        self._forward = None
        transport = self.transport
        if transport is None or transport.is_disconnected:
            return
        if self._paused:  # its CLOSE must be read
            self._paused = 0
            transport.underlying_transport.resume_reading()
        if close.code == NO_STATUS:
            transport.send(WSMsgType.CLOSE, close_body(close))
        else:
            transport.send_close(cast(WSCloseCode, close.code), close_body(close)[2:])  # picows takes any code

    def disconnect(self) -> None:
        """Close the connection once what was sent is written."""
        if self.transport is not None:
            self.transport.disconnect()

    def abort(self) -> None:
        """Close the connection now."""
        self.closing = True
        if self.transport is not None:
            self.transport.disconnect(False)

    def abandon(self) -> None:
        """There will be no connection: nothing is left to wait for."""
        if self.transport is None:
            self._let_go()


def _tapped(
    send: Callable[[WSMsgType, bytes], None], tap: Callable[[bytes], None]
) -> Callable[[WSMsgType, bytes], None]:
    def forward(kind: WSMsgType, payload: bytes) -> None:
        send(kind, payload)
        tap(payload)

    return forward
