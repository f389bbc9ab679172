"""What of a model's error is news, and with which words others are told of it. Pure."""

from typing import Any, Final

from relay.core.actions import Complaint
from relay.core.client_events import CLIENT_EVENTS, NAMELESS_EVENTS
from relay.core.realtime import encode

_BAD_KEY: Final = "The upstream refused the relay's API key; its operator must set a valid one."
# Refusals of our own events that only say that somebody else was faster.
_EXPECTED: Final = frozenset({"response_cancel_not_active", "conversation_already_has_active_response"})


def is_expected(error: dict[str, Any]) -> bool:
    """Whether it is no news to anybody, of an event of the relay's own."""
    return str(error.get("code")) in _EXPECTED


def complaint(error: dict[str, Any]) -> Complaint:
    """Say it for the node's log."""
    return Complaint(str(error.get("code")), str(error.get("param") or ""))


def told(message: bytes, event: dict[str, Any], error: dict[str, Any]) -> tuple[bytes, bytes]:
    """Return what watchers are told of an ``error`` event, and what the client is.

    The client knows its events by its own ids, and of a key that is the operator's it learns nothing.
    """
    watched = message
    if error.get("code") == "invalid_api_key":  # OpenAI's text quotes part of the key
        error = {**error, "message": _BAD_KEY, "param": None}
        watched = encode({**event, "error": error})
    cause = error.get("event_id")
    if isinstance(cause, str) and cause.startswith(CLIENT_EVENTS):
        return watched, encode({**event, "error": {**error, "event_id": cause.removeprefix(CLIENT_EVENTS)}})
    if isinstance(cause, str) and cause.startswith(NAMELESS_EVENTS):
        return watched, encode({**event, "error": {**error, "event_id": None}})
    return watched, watched
