"""Who may have signed a token: the secrets and public keys that count, and what each of them can prove.

Decides from values alone: where the keys come from is the business of others. A token names its algorithm and its key,
but has no choice in them: HS256 is checked with secrets and nothing else, and a public key with its own algorithm.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import jwt
import msgspec

from relay.tokens import BROWSER_PREFIX, LEEWAY_SECONDS, RESUME_SECONDS, BadToken, Claims, read_claims

TOKEN_BYTES: Final = 8192  # a token is work for whoever reads it, and anybody may send one
KEYS_MAX: Final = 100
_SECRETS: Final = "HS256"
_PUBLIC: Final = ("RS256", "ES256", "EdDSA")
_KINDS: Final = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}
_LONGEST_NUMBER: Final = 1400  # letters of an RSA key of 8192 bits: checking takes time with the cube of its length
# Ways to hand a key over with the token (RFC 7515, section 4.1), and `crit`: extensions that must be understood.
_FORBIDDEN: Final = ("jku", "jwk", "x5u", "x5c", "crit")


class BadKeySet(Exception):
    """What should be a JSON Web Key Set is none; ``str()`` says why."""


class _Jwk(msgspec.Struct):
    """A key as RFC 7517 and 7518 write it; the private parts are not even read."""

    kty: str
    kid: str | None = None
    use: str | None = None
    key_ops: list[str] | None = None
    alg: str | None = None
    crv: str | None = None
    n: str | None = None
    e: str | None = None
    x: str | None = None
    y: str | None = None


class _KeySet(msgspec.Struct):
    keys: list[msgspec.Raw]


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that proves who signed, with the one algorithm that it is for."""

    kid: str | None
    key: jwt.PyJWK = field(repr=False)

    @property
    def algorithm(self) -> str:
        """RS256, ES256 or EdDSA."""
        return str(self.key.algorithm_name)


@dataclass(frozen=True, slots=True)
class UnknownKey:
    """The token may be good, but its key is not known (yet)."""

    kid: str | None


def read_key_set(body: bytes) -> tuple[PublicKey, ...]:
    """Read a JSON Web Key Set (RFC 7517); keys for anything but RS256, ES256 or EdDSA signatures are left out.

    Raises:
        BadKeySet: it is none, or has more than ``KEYS_MAX`` keys.
    """
    try:
        entries = msgspec.json.decode(body, type=_KeySet).keys
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise BadKeySet("the answer is no JSON Web Key Set") from None
    if len(entries) > KEYS_MAX:
        raise BadKeySet(f"the set has {len(entries)} keys, the limit is {KEYS_MAX}")
    return tuple(found for found in map(_public_key, entries) if found is not None)


def _public_key(entry: msgspec.Raw) -> PublicKey | None:
    try:
        found = msgspec.json.decode(entry, type=_Jwk)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    algorithm = _KINDS.get((found.kty, found.crv))
    is_for_signatures = found.use in {None, "sig"} and (found.key_ops is None or "verify" in found.key_ops)
    if algorithm is None or found.alg not in {None, algorithm} or not is_for_signatures:
        return None
    if len(found.n or "") > _LONGEST_NUMBER or len(found.e or "") > _LONGEST_NUMBER:
        return None
    numbers = {name: text for name in ("crv", "n", "e", "x", "y") if (text := getattr(found, name)) is not None}
    try:
        key = jwt.PyJWK({"kty": found.kty, **numbers}, algorithm)
    except jwt.PyJWTError:
        return None
    if key.Algorithm.check_key_length(key.key) is not None:  # an RSA key of less than 2048 bits
        return None
    return PublicKey(found.kid, key)


class Keyring:
    """All that may have signed a token, and for whom it must have been made."""

    def __init__(
        self,
        secrets: Sequence[str],
        keys: Iterable[PublicKey] = (),
        *,
        issuer: str | None = None,
        audience: str | None = None,
    ) -> None:
        """Hold the keys.

        Args:
            secrets: for HS256; any of them may have signed.
            keys: for RS256, ES256 and EdDSA.
            issuer: what every token's ``iss`` must be; None: not looked at.
            audience: what every token's ``aud`` must be or contain; None: not looked at.
        """
        self._secrets = tuple(secrets)
        self._keys = tuple(keys)
        self._issuer = issuer
        self._audience = audience

    def verify(self, token: str) -> Claims | UnknownKey:
        """Check a token's signature, times, issuer and audience and return its claims.

        Raises:
            BadToken: wrong signature or algorithm, expired, too long, not for us, or a claim is missing or of the
                wrong type.
        """
        if len(token) > TOKEN_BYTES:
            raise BadToken(f"The token is longer than {TOKEN_BYTES} bytes.")
        text = token.removeprefix(BROWSER_PREFIX)
        algorithm, kid = _named(text)
        if algorithm == _SECRETS:
            return self._claims(text, self._secrets, _SECRETS, has_prefix=text != token)
        fitting = self._fitting(algorithm, kid)
        if isinstance(fitting, UnknownKey):
            return fitting
        return self._claims(text, [fitting.key], fitting.algorithm, has_prefix=text != token)

    def _fitting(self, algorithm: str, kid: str | None) -> PublicKey | UnknownKey:
        """The one key that can have made such a signature."""
        named = [each for each in self._keys if kid is None or each.kid == kid]
        fitting = [each for each in named if each.algorithm == algorithm]
        if kid is None and len(fitting) > 1:
            raise BadToken("The token's header must name its key ('kid'): there are several.")
        if fitting:
            return fitting[0]
        if kid is not None and named:
            raise BadToken("The token's algorithm is not that of its key.")
        return UnknownKey(kid)

    def _claims(self, text: str, keys: Sequence[str | jwt.PyJWK], algorithm: str, *, has_prefix: bool) -> Claims:
        for key in keys:
            try:
                return read_claims(self._payload(text, key, algorithm, LEEWAY_SECONDS), has_prefix=has_prefix)
            except jwt.InvalidSignatureError:
                continue
            except jwt.ExpiredSignatureError:
                payload = self._expired(text, key, algorithm)
                return replace(read_claims(payload, has_prefix=has_prefix), resumes=True)
            except jwt.MissingRequiredClaimError as error:
                raise BadToken(f"The token has no {error.claim!r} claim.") from None
            except jwt.ImmatureSignatureError:
                raise BadToken("The token is not valid yet.") from None
            except (jwt.InvalidIssuerError, jwt.InvalidAudienceError) as error:
                what = "issuer ('iss')" if isinstance(error, jwt.InvalidIssuerError) else "audience ('aud')"
                raise BadToken(f"The token's {what} is not the one that is accepted here.") from None
            except (jwt.PyJWTError, ValueError, OverflowError):  # the last: an exp beyond all time
                raise BadToken("The token is malformed.") from None
        raise BadToken("The token's signature is wrong.")

    def _payload(self, text: str, key: str | jwt.PyJWK, algorithm: str, leeway: float) -> dict[str, Any]:
        options: Any = {"require": ["exp", "tenant", "scope"], "verify_aud": self._audience is not None}
        found: dict[str, Any] = jwt.decode(
            text,
            key,
            algorithms=[algorithm],
            leeway=leeway,
            options=options,
            issuer=self._issuer,
            audience=self._audience,
        )
        return found

    def _expired(self, text: str, key: str | jwt.PyJWK, algorithm: str) -> dict[str, Any]:
        """What a token says that is too old to begin anything: one for a call may still resume it for a while."""
        try:
            payload = self._payload(text, key, algorithm, LEEWAY_SECONDS + RESUME_SECONDS)
            seconds = payload.get("resume_seconds")
            if not payload.get("call") or not isinstance(seconds, int) or seconds <= 0:
                raise BadToken("The token has expired.")
            return self._payload(text, key, algorithm, LEEWAY_SECONDS + min(seconds, RESUME_SECONDS))
        except jwt.InvalidTokenError:
            raise BadToken("The token has expired.") from None


def _named(text: str) -> tuple[str, str | None]:
    """The algorithm and the key that a token's header names; nothing of it is proved yet."""
    try:
        header = jwt.get_unverified_header(text)
    except (jwt.PyJWTError, UnicodeError):
        raise BadToken("The token is malformed.") from None
    for name in _FORBIDDEN:
        if name in header:
            raise BadToken(f"The token's header may not have {name!r}.")
    algorithm = header.get("alg")
    if algorithm != _SECRETS and algorithm not in _PUBLIC:
        raise BadToken(f"The token's algorithm is none of {', '.join((_SECRETS, *_PUBLIC))}.")
    return algorithm, header.get("kid")
