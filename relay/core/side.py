"""What a side leg is shown of a call, and how it is told what became of what it sent. Pure.

It sees the call as a client would that came just now: ``session.created`` first, with the session as it is, then the
model's events as they come.
"""

from typing import Any, Final

import msgspec

from fanout.messages import LogEntry, Receipt, Status
from relay.core import realtime

_EARLY: Final = 256  # events that are held for a call that has not said what its session is
_CREATED, _UPDATED = "session.created", "session.updated"


class SideView:
    """One side leg's view. Methods return the events to send, in order."""

    __slots__ = ("_early", "_session")

    def __init__(self) -> None:
        self._session: Any = None  # as it was shown last; None before the greeting
        self._early: list[bytes] = []

    @property
    def is_greeted(self) -> bool:
        """Whether ``session.created`` was sent."""
        return self._session is not None

    def on_session(self, session: bytes, event_id: str) -> list[bytes]:
        """The session as it is, at the start of the watch or where its log was interrupted."""
        current = msgspec.json.decode(session)
        kind = _UPDATED if self.is_greeted else _CREATED
        if current == self._session:
            return []
        self._session = current
        greeting = realtime.encode({"type": kind, "event_id": event_id, "session": msgspec.Raw(session)})
        early, self._early = self._early, []
        return [greeting, *early]

    def on_event(self, event: bytes) -> list[bytes]:
        """An event of the call's."""
        kind = realtime.event_type(event)
        if kind in {_CREATED, _UPDATED}:
            try:
                fields = realtime.decode(event)
            except realtime.NotAnEvent:
                return []
            session = fields.get("session")
            if kind == _CREATED and self.is_greeted:  # the call's model leg is another one: that is not its matter
                return []
            was_greeted, self._session = self.is_greeted, session if isinstance(session, dict) else {}
            if not was_greeted and kind == _UPDATED:
                event = realtime.encode({**fields, "type": _CREATED})
            early, self._early = self._early, []
            return [event, *early]
        if not self.is_greeted:
            self._early = [*self._early, event][-_EARLY:]
            return []
        return [event]

    def on_entry(self, entry: LogEntry) -> list[bytes]:
        """What a watch delivers, other than a gap."""
        match entry.kind:
            case "session":
                return self.on_session(entry.body, f"event_{entry.position}")
            case "audio":
                return [entry.body] if self.is_greeted else []
            case _:
                return self.on_event(entry.body)


def refusal(receipt: Receipt) -> dict[str, Any] | None:
    """The error that a sender is owed for an event that came to nothing; None if it came to something."""
    if receipt.error is not None and receipt.status in {Status.FAILED, Status.REJECTED, Status.EXPIRED}:
        return receipt.error
    return None


def error_event(event_id: str, error: dict[str, Any], cause: str | None) -> bytes:
    """Build an ``error`` event from a receipt's error, which has the model's own words where it failed there."""
    shape = {"type": "invalid_request_error", "code": None, "message": "", "param": None}
    return realtime.encode({"type": "error", "event_id": event_id, "error": {**shape, **error, "event_id": cause}})
