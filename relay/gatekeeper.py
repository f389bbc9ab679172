"""Who is let in: takes a token to the keys that count now and says what its bearer may do, or why not.

Decides which refusal it is. It knows no call, and keeps nothing of a token; a token that a secret signed waits for
nobody.
"""

from collections.abc import Callable, Sequence

from relay.admission import Refused
from relay.jwks import Jwks
from relay.keys import Keyring, UnknownKey
from relay.tokens import BadToken, Claims, mint


class Gatekeeper:
    """The door of one node."""

    def __init__(
        self,
        secrets: Callable[[], Sequence[str]],
        jwks: Jwks | None,
        *,
        issuer: str | None = None,
        audience: str | None = None,
        is_revoked: Callable[[str, str], bool],
    ) -> None:
        """Stand at the door.

        Args:
            secrets: those that count now, for HS256; the first one signs.
            jwks: public keys of those who sign elsewhere.
            issuer: what every token's ``iss`` must be, where it is asked for.
            audience: what every token's ``aud`` must be or contain, where it is asked for.
            is_revoked: whether a tenant's token with this ``jti`` counts no more.
        """
        self._secrets = secrets
        self._jwks = jwks
        self._issuer = issuer
        self._audience = audience
        self._is_revoked = is_revoked

    async def authenticate(self, token: str | None, scope: str, *, origin: str | None) -> Claims:
        """Return the claims of a token that has the scope; ``origin`` is the request's header of that name.

        Raises:
            Refused: 401 without a good token, 403 without the scope or from another page than the token is for, 503
                while nobody can say whether the token is good.
        """
        if token is None:
            text = (
                "No token: send 'Authorization: Bearer <token>' or the subprotocol 'openai-insecure-api-key.<token>'."
            )
            raise Refused(401, "missing_token", text, kind="authentication_error")
        claims = await self._verified(token)
        if claims.resumes and scope != "call":
            raise _bad("The token has expired.")
        self.check_revoked(claims)
        if scope not in claims.scope:
            raise Refused(403, "missing_scope", f"The token lacks the scope {scope!r}.", kind="permission_error")
        if claims.origin is not None and claims.origin != origin:
            text = f"The token is for pages of {claims.origin} alone."
            raise Refused(403, "origin_not_allowed", text, kind="permission_error")
        return claims

    def check_revoked(self, claims: Claims) -> None:
        """Look again, at the end of what was waited for: what is opened then may not be on any list of its own yet.

        Raises:
            Refused: 401.
        """
        if claims.jti is not None and self._is_revoked(claims.tenant, claims.jti):
            raise _bad("The token has been revoked.", "token_revoked")

    @property
    def can_sign(self) -> bool:
        """Whether there is a secret to sign with; where only others sign there is none."""
        return bool(self._secrets())

    def sign(
        self,
        *,
        tenant: str,
        scope: Sequence[str],
        expires_at: float,
        session: bool = False,
        resume_seconds: int = 0,
        browser: bool = True,
        **claims: str | None,
    ) -> str:
        """Sign a token, as ``relay.tokens.mint`` does; the prefix of client tokens is for the caller to add.

        Raises:
            Refused: 501 on a node that has no secret.
        """
        secrets = self._secrets()
        if not secrets:
            text = "This node has no secret of its own to sign keys with (RELAY_JWT_SECRET)."
            raise Refused(501, "minting_not_configured", text, kind="server_error")
        return mint(
            secrets[0],
            tenant=tenant,
            scope=scope,
            expires_at=expires_at,
            session=session,
            resume_seconds=resume_seconds,
            browser=browser,
            issuer=self._issuer,
            audience=self._audience,
            **claims,
        )

    async def _verified(self, token: str) -> Claims:
        try:
            found = self._keyring().verify(token)
            if isinstance(found, UnknownKey) and self._jwks is not None:
                can_be_told = await self._jwks.refresh()
                found = self._keyring().verify(token)
                if isinstance(found, UnknownKey) and not can_be_told:
                    raise self._unavailable(self._jwks)
        except BadToken as error:
            raise _bad(str(error)) from None
        if isinstance(found, UnknownKey):
            raise _bad("The token is signed with a key that is not known here.")
        return found

    def _keyring(self) -> Keyring:
        keys = self._jwks.keys if self._jwks is not None else ()
        return Keyring(self._secrets(), keys, issuer=self._issuer, audience=self._audience)

    @staticmethod
    def _unavailable(jwks: Jwks) -> Refused:
        return Refused(
            503,
            "keys_unavailable",
            "The keys to check this token with cannot be had at present: try again.",
            kind="server_error",
            retry_after=jwks.retry_seconds,
        )


def _bad(text: str, code: str = "invalid_api_key") -> Refused:
    return Refused(401, code, text, kind="authentication_error")
