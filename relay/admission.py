"""Who may open a call or use the API: pure decisions on headers, limits and the node's health.

Every refusal is an HTTP status and an error in OpenAI's shape, before any work is done and before the upgrade.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

_KEY_PROTOCOL: Final = "openai-insecure-api-key."
EVENTS_PROTOCOL: Final = "relay.events.v1"
_REALTIME_PROTOCOL: Final = "realtime"


class Refused(Exception):
    """The request is refused: HTTP status, code and type of the error, and the field that it is about."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.kind = kind
        self.param = param
        self.retry_after = retry_after


def check_origin(origin: str | None, allowed: frozenset[str]) -> None:
    """Refuse a browser page of a site that is not listed; other clients send no ``Origin``.

    Raises:
        Refused: 403.
    """
    if origin is not None and origin not in allowed and "*" not in allowed:
        raise Refused(
            403, "origin_not_allowed", f"Pages of {origin[:200]} may not use this relay (RELAY_ALLOWED_ORIGINS)."
        )


def bearer(headers: Mapping[str, str], protocols: Sequence[str] = ()) -> str | None:
    """Find the token: the ``Authorization`` header, else the subprotocol with which browsers carry it."""
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    found = (protocol.removeprefix(_KEY_PROTOCOL) for protocol in protocols if protocol.startswith(_KEY_PROTOCOL))
    return next(found, None)


def choose_protocol(offered: Sequence[str]) -> str | None:
    """Select a subprotocol: the relay's own events if offered, else ``realtime``, never the one that bears a key."""
    for protocol in (EVENTS_PROTOCOL, _REALTIME_PROTOCOL):
        if protocol in offered:
            return protocol
    return None


class Wanted(NamedTuple):
    """What a new call asks for: the model, or OpenAI's ``intent`` without one."""

    model: str | None
    intent: str | None


@dataclass(frozen=True, slots=True)
class Room:
    """What a node can still take."""

    accepting: bool
    live: int
    max_calls: int

    def check(self) -> None:
        """Refuse one more where there is no room.

        Raises:
            Refused: 503.
        """
        if not self.accepting:
            raise Refused(
                503, "node_draining", "This node is shutting down: connect again.", kind="server_error", retry_after=1
            )
        if self.live >= self.max_calls:
            text = f"This node holds {self.max_calls} calls, its limit: connect again."
            raise Refused(503, "node_full", text, kind="server_error", retry_after=2)


def choose_agent(claimed: str | None, asked: str | None) -> str:
    """Return the agent's name: the token's, else the one that the query asks for, else ``default``.

    Raises:
        Refused: 403 where the token names another one.
    """
    if claimed is not None and asked and asked != claimed:
        text = f"The token is for the agent {claimed!r}."
        raise Refused(403, "agent_not_allowed", text, kind="permission_error", param="agent")
    return claimed or asked or "default"


def admit(
    room: Room,
    query: Mapping[str, str],
    default_model: str | None,
    session_type: str | None = None,
    *,
    locked: bool = False,
) -> Wanted:
    """Decide on a new call.

    Args:
        room: what the node can still take.
        query: of the request.
        default_model: the client secret's, or the agent's.
        session_type: what its client secret was made for.
        locked: the client may not have another model than that; SDKs always name one, so it is no error.

    Raises:
        Refused: 400 for a query that names no model, 503 where there is no room.
    """
    if "call_id" in query:
        text = "Attach to a live call at /v1/realtime?call_id=…; this path begins new ones."
        raise Refused(400, "call_id_not_supported", text, param="call_id")
    intent = query.get("intent") or None  # one without words asks for nothing
    if intent is None and session_type == "transcription" and "model" not in query:
        return _admitted(room, Wanted(None, session_type))
    asked = query.get("model")
    model = default_model or asked if locked else asked or default_model
    return _admitted(room, Wanted(model, intent))


def _admitted(room: Room, wanted: Wanted) -> Wanted:
    if not wanted.model and not wanted.intent:
        text = "Say which model: ?model=… (the default agent has none)."
        raise Refused(400, "missing_model", text, param="model")
    room.check()
    return wanted


class Attachment(NamedTuple):
    """What a side leg asks for: the call, and whether it wants to hear it."""

    call_id: str
    audio: bool


def attachment(query: Mapping[str, str]) -> Attachment:
    """Read the query of a side leg.

    Raises:
        Refused: 400 if it asks for a new call as well, 422 for an unknown ``audio``.
    """
    for name in ("model", "intent"):
        if name in query:
            text = f"'call_id' attaches to a live call, {name!r} begins a new one: send one of them."
            raise Refused(400, "contradictory_query", text, param=name)
    audio = query.get("audio", "0")
    if audio not in {"0", "1"}:
        raise Refused(422, "invalid_value", "must be 0 or 1", param="audio")
    return Attachment(query["call_id"], audio == "1")
