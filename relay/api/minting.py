"""What a client secret says and promises, from the request for it. Pure: ids and times come in."""

from typing import Any, Final

import msgspec

from relay.admission import Refused
from relay.api.reading import read_body
from relay.api.schema import ExpiresAfter, SecretBody, SessionDefaults

_SESSION_BYTES: Final = 64 * 1024
_OBJECTS: Final = {"realtime": "realtime.session", "transcription": "realtime.transcription_session"}
_KNOWN_PORTS: Final = {"https": ":443", "http": ":80"}


def lifetime(body: SecretBody) -> int:
    """Return for how many seconds the secret can be used."""
    return int((body.expires_after or ExpiresAfter()).seconds)


def origin(body: SecretBody, callers: str | None) -> str | None:
    """Return the origin whose pages alone may use the secret, as browsers write it; None for all that the node allows.

    Raises:
        Refused: 403 if the caller's token is for pages of another.
    """
    wanted = body.origin
    if wanted is not None:
        scheme = wanted.partition(":")[0]
        wanted = wanted.removesuffix(_KNOWN_PORTS.get(scheme, ""))  # which no browser writes
    if callers is not None and wanted not in {None, callers}:
        text = f"The token is for pages of {callers} alone."
        raise Refused(403, "origin_not_allowed", text, kind="permission_error", param="origin")
    return wanted or callers


def session_defaults(body: SecretBody) -> bytes:
    """Return the session that was asked for as JSON, empty if none was.

    Raises:
        Refused: 422 with the field that is wrong, 413 if it is too large.
    """
    if body.session is None:
        return b""
    packed = msgspec.json.encode(body.session)
    if len(packed) > _SESSION_BYTES:
        text = f"The session has {len(packed)} bytes, the limit is {_SESSION_BYTES}."
        raise Refused(413, "session_too_large", text, param="session")
    try:
        read_body(packed, SessionDefaults)
    except Refused as wrong:
        param = f"session.{wrong.param}" if wrong.param else "session"
        raise Refused(wrong.status, wrong.code, str(wrong), param=param) from None
    return packed


def announced(body: SecretBody, session_id: str, agent_model: str | None) -> dict[str, Any]:
    """Return the session as the answer names it: what was asked for, and what it is without that."""
    asked = body.session or {}
    kind = asked.get("type", "realtime")
    model = {"model": agent_model} if agent_model else {}
    given = {key: value for key, value in asked.items() if key != "model" or value is not None}
    return {**model, **given, "type": kind, "object": _OBJECTS[kind], "id": session_id}
