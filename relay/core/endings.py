"""Every way a call can end: close code for the client, metric label, whose fault, and whether to come back.

One table; whatever ends a call names a row of it. Codes 1001, 1011, 1012 and 1013 invite the official SDKs to
reconnect; 1008, 3000 and 4xxx do not (measured against the SDKs, see the README's table of endings).
"""

from enum import Enum
from typing import Final, Literal, NamedTuple

from relay.core.frames import NO_STATUS, Close

Fault = Literal["client", "model", "bus", "node", "policy"]


class _Row(NamedTuple):
    code: int
    label: str
    fault: Fault
    come_back: bool


class Why(Enum):
    """Why a call ended."""

    CLIENT_CLOSED = _Row(1000, "client_closed", "client", False)
    CLIENT_LOST = _Row(1011, "client_lost", "client", True)
    CLIENT_SLOW = _Row(1013, "client_slow", "client", True)
    CLIENT_SILENT = _Row(1011, "client_silent", "client", True)
    CLIENT_PROTOCOL = _Row(1002, "client_protocol", "client", False)
    CLIENT_BINARY = _Row(1003, "client_binary", "client", False)
    CLIENT_TEXT = _Row(1007, "client_text", "client", False)
    CLIENT_TOO_BIG = _Row(1009, "client_too_big", "client", False)
    MODEL_CLOSED = _Row(1000, "model_closed", "model", True)
    MODEL_EXPIRED = _Row(1001, "model_expired", "model", True)
    MODEL_LOST = _Row(1011, "model_lost", "model", True)
    MODEL_PROTOCOL = _Row(1011, "model_protocol", "model", True)
    MODEL_SLOW = _Row(1013, "model_slow", "model", True)
    MODEL_SILENT = _Row(1011, "model_silent", "model", True)
    MODEL_UNREACHABLE = _Row(1013, "model_unreachable", "model", True)
    MODEL_BUSY = _Row(1013, "model_busy", "model", True)
    MODEL_REFUSED = _Row(1008, "model_refused", "model", False)
    MODEL_KEY = _Row(1008, "model_key", "node", False)
    HUNG_UP = _Row(1000, "hung_up", "policy", False)
    CALL_TOO_LONG = _Row(4008, "call_too_long", "policy", False)
    CLIENT_TOO_FAST = _Row(4013, "client_too_fast", "policy", False)
    MINUTES_SPENT = _Row(4029, "minutes_spent", "policy", False)
    TOKEN_REVOKED = _Row(4001, "token_revoked", "policy", False)
    BUS_AWAY = _Row(1013, "bus_away", "bus", True)
    CALL_OVER = _Row(1008, "call_over", "policy", False)
    REPLACED = _Row(4009, "replaced", "client", False)
    MOVED = _Row(1012, "moved", "node", True)
    NODE_DRAINING = _Row(1012, "node_draining", "node", True)
    NODE_FAILED = _Row(1011, "node_failed", "node", True)
    NODE_LOST = _Row(1011, "node_lost", "node", True)  # written by another node: there was nobody left to close

    @property
    def code(self) -> int:
        """Close code that the client gets."""
        return self.value.code

    @property
    def label(self) -> str:
        """Name in metrics, logs and tombstones."""
        return self.value.label

    @property
    def fault(self) -> Fault:
        """Who caused it."""
        return self.value.fault

    @property
    def come_back(self) -> bool:
        """Whether a new attempt makes sense."""
        return self.value.come_back

    @property
    def goes_on(self) -> bool:
        """Whether it is only this node that the call has left: it has no end to be written down here."""
        return self in {Why.REPLACED, Why.MOVED, Why.BUS_AWAY, Why.CALL_OVER}


class SideWhy(Enum):
    """Why a side leg ended; each is its close code and its name in logs and metrics. None of them touches the call."""

    CALL_ENDED = (1000, "call_ended")  # and the code is the call's own
    CALL_LOST = (1011, "call_lost")  # nothing is known of it any more
    CLOSED = (1000, "closed")  # by its peer
    LOST = (1011, "lost")  # its connection is gone
    SLOW = (1013, "side_leg_slow")  # it takes events more slowly than the call makes them
    SILENT = (1011, "side_leg_silent")  # it answered no ping
    EVENTS_LOST = (1013, "events_lost")  # the bus could not keep them: what it saw has a hole
    PROTOCOL = (1002, "side_leg_protocol")
    TOKEN_REVOKED = (4001, "token_revoked")
    NODE_DRAINING = (1012, "node_draining")
    NODE_FAILED = (1011, "node_failed")

    @property
    def code(self) -> int:
        """Close code, unless another party gave one."""
        return self.value[0]

    @property
    def label(self) -> str:
        """Name in metrics and logs."""
        return self.value[1]


class Ending(NamedTuple):
    """One call's end: the row, the close that the client gets, and the model leg's own close code if it sent one."""

    why: Why
    close: Close
    model_code: int | None = None


class Loss(NamedTuple):
    """A model leg that is gone: how the call ends if no other can be had, and the event that its client gets then."""

    ending: Ending
    error: bytes | None = None
    is_final: bool = False  # no other leg would fare better


# Codes of the model's that mean the same to our client; the rest (1002, 1007, 1009 …) speak of the relay's own socket.
_CARRIED: Final = frozenset({1000, 1001, 1008, 1011, 1012, 1013})
_BY_VIOLATION: Final = {1003: Why.CLIENT_BINARY, 1007: Why.CLIENT_TEXT, 1009: Why.CLIENT_TOO_BIG}


def invites_redial(code: int) -> bool:
    """Whether a model's close code leaves hope: not where it refuses what we ask or who we are."""
    return code != 1008 and not 3000 <= code <= 4999


def ended(why: Why, reason: str = "") -> Ending:
    """End with the row's own code."""
    return Ending(why, Close(why.code, reason or why.label))


def client_closed(close: Close) -> Ending:
    """The client closed: it gets its own code back (RFC 6455, section 5.5.1)."""
    return Ending(Why.CLIENT_CLOSED, close)


def client_broke_protocol(code: int, reason: str) -> Ending:
    """The client's frames were wrong: ``code`` as the frame rules gave it."""
    return Ending(_BY_VIOLATION.get(code, Why.CLIENT_PROTOCOL), Close(code, reason))


def model_closed(close: Close) -> Ending:
    """The model closed: carry its code over where it means the same to the client, else say that the model was lost."""
    if close.code == 3000:  # OpenAI's code for a refused key: the relay's key, so nothing that the client can mend
        return Ending(Why.MODEL_KEY, Close(Why.MODEL_KEY.code, "upstream refused the relay's key"), close.code)
    if close.code == 1001:
        return Ending(Why.MODEL_EXPIRED, close, close.code)
    if close.code in _CARRIED or 3000 <= close.code <= 4999:
        return Ending(Why.MODEL_CLOSED, close, close.code)
    if close.code == NO_STATUS:
        return Ending(Why.MODEL_CLOSED, Close(1000, ""), close.code)
    return Ending(Why.MODEL_LOST, Close(Why.MODEL_LOST.code, f"the model closed with {close.code}"), close.code)
