"""What one reader of a call's events is still to be sent, as server-sent events: order, bounds, and how it ends. Pure.

The format is the HTML standard's (section 9.2, "Server-sent events"). Events go out as they are; whoever reads too
slowly is told so and is rid of what waited for it, and nobody else notices.
"""

from collections import deque
from typing import Any, Final

from fanout import LogEntry, WatchEnd
from relay.core.realtime import encode, event_type
from relay.core.side import SideView

_EVENTS: Final = 1000
_BYTES: Final = 4 * 1024 * 1024
GREETING: Final = b"retry: 1000\n\n"
COMMENT: Final = b":\n\n"


class Feed:
    """The events that wait for one reader, from the watch of the call to the end of the stream."""

    def __init__(self, call_id: str, *, resumed: bool, events: int = _EVENTS, size: int = _BYTES) -> None:
        self._call_id = call_id
        self._view = SideView()
        self._resumed = resumed
        self._most = (events, size)
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self.is_closed = False  # nothing is added any more; what waits is still to be sent

    def begin(self, session: bytes | None, event_id: str, position: str) -> None:
        """Begin with the session as it is; one who comes again knows it, and goes on with what came since."""
        if self._resumed:
            self._view.on_session(session or b"{}", event_id)
        elif session is not None:
            self._put_all(self._view.on_session(session, event_id), position)

    def add(self, entry: LogEntry) -> None:
        """Take what the watch delivers."""
        if entry.kind == "gap":
            self._put(_relay("relay.gap", {}))
        else:
            self._put_all(self._view.on_entry(entry), entry.position)

    def end(self, end: WatchEnd) -> None:
        """The call has ended, or nothing is known of it any more."""
        call = {"object": "realtime.call", "id": self._call_id, "state": "unknown", "why": None, "fault": None}
        self._put(_relay("relay.ended", end.tombstone.to_public() if end.tombstone is not None else call))
        self.is_closed = True

    def close(self) -> None:
        """The node has to end the stream: what waits is sent, and the reader goes on elsewhere."""
        self.is_closed = True

    def take(self) -> bytes:
        """Return all that waits; it is the caller's to send."""
        taken = b"".join(self._waiting)
        self._waiting.clear()
        self._bytes = 0
        return taken

    def _put_all(self, events: list[bytes], position: str) -> None:
        for event in events:
            self._put(_event(event_type(event), event, position))

    def _put(self, event: bytes) -> None:
        if self.is_closed:
            return
        most, size = self._most
        if len(self._waiting) >= most or self._bytes + len(event) > size:
            self._waiting.clear()
            event = _relay("relay.too_slow", {"message": f"More than {most} events or {size} bytes waited for you."})
            self.is_closed = True
        self._waiting.append(event)
        self._bytes += len(event)


def _relay(name: str, fields: dict[str, Any]) -> bytes:
    return _event(name, encode({"type": name, **fields}))


def _event(name: str, body: bytes, position: str = "") -> bytes:
    """Write one event; a line end in the body, which JSON allows between its values, begins another data line."""
    if b"\n" in body or b"\r" in body:
        body = b"\ndata: ".join(body.splitlines())
    head = f"id: {position}\n" if position else ""
    name = name if name.isprintable() and name else "message"
    return b"%sevent: %s\ndata: %s\n\n" % (head.encode(), name.encode(), body)
