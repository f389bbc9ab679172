"""Keys of those who sign tokens elsewhere, in their three kinds, and what they sign; keys are made once a run."""

import json
import time
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import get_default_algorithms
from jwt.utils import base64url_encode

ALGORITHMS = ("RS256", "ES256", "EdDSA")


class Signer:
    """A private key with its name."""

    def __init__(self, kid: str | None, algorithm: str, bits: int = 2048) -> None:
        self.kid = kid
        self.algorithm = algorithm
        self._private: Any = _private_key(algorithm, bits)

    def sign(self, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """Sign a token of the tenant acme; a header that is None is left out."""
        named = {"kid": self.kid} | (headers or {})
        payload = {"tenant": "acme", "scope": ["call"], "exp": int(time.time() + 3600), **claims}
        kept = {name: value for name, value in named.items() if value is not None}
        return jwt.encode(payload, self._private, algorithm=self.algorithm, headers=kept)

    def sign_raw(self, head: str, body: str) -> str:
        """Sign what is given, however odd."""
        algorithm, text = get_default_algorithms()[self.algorithm], f"{head}.{body}"
        return f"{text}.{base64url_encode(algorithm.sign(text.encode(), self._private)).decode()}"

    def public(self, **more: Any) -> dict[str, Any]:
        """Return the key as an entry of a key set."""
        return self._entry(self._private.public_key()) | more

    def private(self) -> dict[str, Any]:
        """Return an entry that gives the private key away, as some servers do by mistake."""
        return self._entry(self._private)

    @property
    def pem(self) -> bytes:
        """The public key, which anybody may have."""
        return bytes(self._private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

    def _entry(self, key: Any) -> dict[str, Any]:
        entry = dict(get_default_algorithms()[self.algorithm].to_jwk(key, as_dict=True))
        entry.pop("key_ops", None)
        return entry if self.kid is None else entry | {"kid": self.kid}


def key_set(*entries: dict[str, Any]) -> bytes:
    """Return a JSON Web Key Set."""
    return json.dumps({"keys": entries}).encode()


def signer(kid: str | None, algorithm: str = "RS256", bits: int = 2048) -> Signer:
    """Return the key of this name and kind, the same one each time."""
    return _made(kid, algorithm, bits)


_made = cache(Signer)


def _private_key(algorithm: str, bits: int) -> Any:
    if algorithm.startswith("RS"):
        return rsa.generate_private_key(public_exponent=65537, key_size=bits)
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key({"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1()}[algorithm])
