"""Tokens: JWTs that say who may do what. Reads, checks and writes them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import jwt

from relay.admission import Refused

_BROWSER_PREFIX: Final = "ek_"  # client tokens look like OpenAI's: its SDKs accept no other in a browser
LEEWAY_SECONDS: Final = 5.0  # of clocks between whoever signs and this node
RESUME_SECONDS: Final = 7200  # at most, for which a client key may bring its call back after its own time is over
SCOPES: Final = frozenset({"call", "control", "read", "mint"})


class BadToken(Exception):
    """The token cannot be accepted; ``str()`` says why, without the token."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says."""

    tenant: str
    scope: frozenset[str]
    agent: str = "default"
    plan: str | None = None
    call: str | None = None
    jti: str | None = None
    session: bool = False  # the call was reserved with a session of its own
    resumes: bool = False  # the token's time is over but for a call that lives
    browser: bool = field(default=False)  # a client token: tighter limits


def verify(token: str, secrets: Sequence[str]) -> Claims:
    """Check a token's signature and time and return its claims; any of ``secrets`` may have signed it.

    Raises:
        BadToken: wrong signature, expired, or a claim is missing or of the wrong type.
    """
    browser = token.startswith(_BROWSER_PREFIX)
    text = token.removeprefix(_BROWSER_PREFIX)
    for secret in secrets:
        try:
            return _claims(_decode(text, secret, LEEWAY_SECONDS), browser)
        except jwt.InvalidSignatureError:
            continue
        except jwt.ExpiredSignatureError:
            return replace(_claims(_expired(text, secret), browser), resumes=True)
        except jwt.MissingRequiredClaimError as error:
            raise BadToken(f"The token has no {error.claim!r} claim.") from None
        except (jwt.InvalidTokenError, UnicodeError, ValueError, OverflowError):  # the last: an exp beyond all time
            raise BadToken("The token is malformed.") from None
    raise BadToken("The token's signature is wrong.")


def _decode(text: str, secret: str, leeway: float) -> dict[str, Any]:
    options: Any = {"require": ["exp", "tenant", "scope"], "verify_aud": False}
    payload: dict[str, Any] = jwt.decode(text, secret, algorithms=["HS256"], leeway=leeway, options=options)
    return payload


def _expired(text: str, secret: str) -> dict[str, Any]:
    """What a token says that is too old to begin anything: one for a call may still resume it for a while."""
    try:
        payload = _decode(text, secret, LEEWAY_SECONDS + RESUME_SECONDS)
        seconds = payload.get("resume_seconds")
        if not payload.get("call") or not isinstance(seconds, int) or seconds <= 0:
            raise BadToken("The token has expired.")
        return _decode(text, secret, LEEWAY_SECONDS + min(seconds, RESUME_SECONDS))
    except jwt.InvalidTokenError:
        raise BadToken("The token has expired.") from None


def authenticate(token: str | None, secrets: Sequence[str], scope: str) -> Claims:
    """Return the claims of a token that has the scope.

    Raises:
        Refused: 401 without a good token, 403 without the scope.
    """
    if token is None:
        text = "No token: send 'Authorization: Bearer <token>' or the subprotocol 'openai-insecure-api-key.<token>'."
        raise Refused(401, "missing_token", text, kind="authentication_error")
    try:
        claims = verify(token, secrets)
    except BadToken as error:
        raise Refused(401, "invalid_api_key", str(error), kind="authentication_error") from None
    if claims.resumes and scope != "call":
        raise Refused(401, "invalid_api_key", "The token has expired.", kind="authentication_error")
    if scope not in claims.scope:
        raise Refused(403, "missing_scope", f"The token lacks the scope {scope!r}.", kind="permission_error")
    return claims


def _claims(payload: dict[str, Any], browser: bool) -> Claims:
    tenant, scope = payload["tenant"], payload["scope"]
    if not isinstance(tenant, str) or not tenant:
        raise BadToken("The token's 'tenant' must be a string.")
    if not isinstance(scope, list) or not all(isinstance(entry, str) for entry in scope):
        raise BadToken("The token's 'scope' must be a list of strings.")
    for name in ("agent", "plan", "call", "jti"):
        if not isinstance(payload.get(name, ""), str):
            raise BadToken(f"The token's {name!r} must be a string.")
    if not isinstance(payload.get("session", False), bool):
        raise BadToken("The token's 'session' must be true or false.")
    return Claims(
        tenant=tenant,
        scope=frozenset(scope),
        agent=payload.get("agent", "default"),
        plan=payload.get("plan"),
        call=payload.get("call"),
        jti=payload.get("jti"),
        session=payload.get("session", False),
        browser=browser,
    )


def mint(
    secret: str,
    *,
    tenant: str,
    scope: Sequence[str],
    expires_at: float,
    session: bool = False,
    resume_seconds: int = 0,
    **claims: str | None,
) -> str:
    """Sign a token.

    Args:
        secret: one that the nodes know.
        tenant: whose calls it is for.
        scope: some of ``SCOPES``.
        expires_at: seconds since the epoch.
        session: whether its call was reserved with a session of its own.
        resume_seconds: for how long after that it may bring its call back, if that lives.
        claims: agent, plan, call and jti; None leaves one out.
    """
    payload: dict[str, Any] = {"tenant": tenant, "scope": list(scope), "exp": int(expires_at)}
    payload |= {name: value for name, value in claims.items() if value is not None}
    if session:
        payload["session"] = True
    if resume_seconds:
        payload["resume_seconds"] = resume_seconds
    return jwt.encode(payload, secret, algorithm="HS256")
