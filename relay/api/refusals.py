"""What the bus refuses, as HTTP answers: status, code, when to come again. Pure."""

from typing import Final

from fanout import (
    BusFull,
    BusTimeout,
    CallEnded,
    CallNotFound,
    CallNotStarted,
    CallStateUnknown,
    FanoutError,
    IdempotencyConflict,
    InboxFull,
    MessageTooLarge,
    Receipt,
    RegionUnreachable,
)
from relay.admission import Refused

_SETTLING_RETRY_SECONDS: Final = 2  # a new Redis takes about twelve to know
_REJECTED: Final = {"tool_call_late": 410}  # else 409


def bus_refusal(error: FanoutError) -> Refused:
    """Return the answer for an error of the bus; one that has none is a bug, and is raised again."""
    match error:
        case CallNotFound():
            return Refused(404, "call_not_found", f"No live call {error.call_id!r}.")
        case CallNotStarted():
            return Refused(409, "call_not_started", "The call is reserved: its client has not connected yet.")
        case CallEnded():
            tomb = error.tombstone
            return Refused(
                410, "call_ended", f"The call ended at {tomb.ended_at:.3f}: {tomb.why} (fault: {tomb.fault})."
            )
        case InboxFull():
            text = "The call has as many unanswered messages as it may: wait for their receipts."
            return Refused(429, "inbox_full", text, kind="rate_limit_error", retry_after=1)
        case IdempotencyConflict():
            return Refused(
                409, "idempotency_conflict", f"{error.message_id!r} was used for another message.", param="id"
            )
        case MessageTooLarge():
            return Refused(413, "message_too_large", f"The message has {error.size} bytes, the limit is {error.limit}.")
        case BusFull() | BusTimeout():
            return unavailable("bus_busy", "This node has too much under way: repeat it, a message with the same id.")
        case RegionUnreachable():
            text = f"The Redis of {error.region!r} did not answer: repeat it, a message with the same id."
            return unavailable("region_unreachable", text)
        case CallStateUnknown():
            text = "The call's Redis is new and does not know yet which calls there are: repeat it."
            return unavailable("call_state_unknown", text, _SETTLING_RETRY_SECONDS)
        case _:
            raise error  # a case is missing above


def unavailable(code: str, text: str, retry_after: int = 1) -> Refused:
    """Not the caller's fault, and over soon."""
    return Refused(503, code, text, kind="server_error", retry_after=retry_after)


def rejection(receipt: Receipt) -> Refused:
    """Return the answer for a message that the call's node would not give to the model."""
    error = receipt.error or {}
    code = str(error.get("code", "rejected"))
    return Refused(_REJECTED.get(code, 409), code, str(error.get("message", "The message was rejected.")))
