"""Tokens: JWTs that say who may do what. Reads their claims and writes them; who may sign is for ``relay.keys``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jwt

BROWSER_PREFIX: Final = "ek_"  # client tokens look like OpenAI's: its SDKs accept no other in a browser
LEEWAY_SECONDS: Final = 5.0  # of clocks between whoever signs and this node
RESUME_SECONDS: Final = 7200  # at most, for which a client key may bring its call back after its own time is over
SCOPES: Final = frozenset({"call", "control", "read", "mint"})
_TENANT_LETTERS: Final = 128  # it is part of keys, of logs and of labels that people read
_ID_LETTERS: Final = 256  # of a jti, as many as can be revoked


class BadToken(Exception):
    """The token cannot be accepted; ``str()`` says why, without the token."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says."""

    tenant: str
    scope: frozenset[str]
    agent: str | None = None
    plan: str | None = None
    call: str | None = None
    jti: str | None = None
    origin: str | None = None  # the pages that may use it
    session: bool = False  # the call was reserved with a session of its own
    resumes: bool = False  # the token's time is over but for a call that lives
    browser: bool = False  # a client's token: tighter limits


def read_claims(payload: Mapping[str, Any], *, has_prefix: bool) -> Claims:
    """Read the claims of a token whose signature is good; ``has_prefix``: it came with the prefix of client tokens.

    The prefix alone proves nothing, for whoever holds the token can take it off: what was signed for a client says so.

    Raises:
        BadToken: a claim is of the wrong type.
    """
    tenant, scope = payload["tenant"], payload["scope"]
    if not isinstance(tenant, str) or not 0 < len(tenant) <= _TENANT_LETTERS or not tenant.isprintable():
        raise BadToken(f"The token's 'tenant' must be a string of 1 to {_TENANT_LETTERS} printable characters.")
    if isinstance(scope, str):  # as OAuth writes it (RFC 8693, section 4.2)
        scope = scope.split()
    if not isinstance(scope, list) or not all(isinstance(entry, str) for entry in scope):
        raise BadToken("The token's 'scope' must be a list of strings, or one string with spaces.")
    for name in ("agent", "plan", "call", "jti", "origin"):
        if name in payload and not _is_word(payload[name]):
            raise BadToken(f"The token's {name!r} must be a string that is not empty.")
    jti = payload.get("jti")
    if jti is not None and (len(jti) > _ID_LETTERS or not jti.isprintable()):
        raise BadToken(f"The token's 'jti' must have at most {_ID_LETTERS} printable characters: it must be revocable.")
    for name in ("session", "browser"):
        if not isinstance(payload.get(name, False), bool):
            raise BadToken(f"The token's {name!r} must be true or false.")
    origin = payload.get("origin")
    return Claims(
        tenant=tenant,
        scope=frozenset(scope),
        agent=payload.get("agent"),
        plan=payload.get("plan"),
        call=payload.get("call"),
        jti=jti,
        origin=origin,
        session=payload.get("session", False),
        browser=has_prefix or payload.get("browser", False) or origin is not None,
    )


def _is_word(claim: object) -> bool:
    """Whether it is a string that can be written again: JSON can name half a character (a lone surrogate)."""
    return isinstance(claim, str) and bool(claim) and not any("\ud800" <= letter <= "\udfff" for letter in claim)


def mint(
    secret: str,
    *,
    tenant: str,
    scope: Sequence[str],
    expires_at: float,
    session: bool = False,
    resume_seconds: int = 0,
    browser: bool = False,
    issuer: str | None = None,
    audience: str | None = None,
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
        browser: whether it is for a client, which is held to tighter limits.
        issuer: the ``iss`` claim, where nodes ask for one.
        audience: the ``aud`` claim, where nodes ask for one.
        claims: agent, plan, call, jti and origin; None leaves one out.
    """
    payload: dict[str, Any] = {"tenant": tenant, "scope": list(scope), "exp": int(expires_at)}
    named = {"iss": issuer, "aud": audience, **claims}
    payload |= {name: value for name, value in named.items() if value is not None}
    payload |= {name: True for name, holds in (("session", session), ("browser", browser)) if holds}
    if resume_seconds:
        payload["resume_seconds"] = resume_seconds
    return jwt.encode(payload, secret, algorithm="HS256")
