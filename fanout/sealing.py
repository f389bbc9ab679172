"""Seals what a call's home keeps of the conversation: AES-256-GCM, under keys that Redis never sees.

Facts and the memory list go through it, each value by itself; names, and all else that Redis has, stay in the clear. It
never decides what is kept. A sealed value is: the byte 0, the length of the key's id, that id, a nonce of 12 random
bytes, ciphertext and tag. Call and name are authenticated with it.
"""

import base64
import hmac
import re
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import structlog

from fanout.core.seals import SEALED
from fanout.errors import Unsealable
from fanout.settings import MEMORY_KEY_BYTES

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_log = structlog.get_logger("fanout")

_NONCE_BYTES: Final = 12
_HEAD_BYTES: Final = 2  # before the key's id
_KEY_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,16}")  # no key fits in, so that none is taken for an id, and shown
_PURPOSE: Final = b"relay memory\0"


def read_memory_keys(text: str) -> dict[str, bytes]:
    """`id:base64 of 32 bytes`, separated by commas; the first seals, all open.

    Raises ValueError, which never shows a key.
    """
    keys: dict[str, bytes] = {}
    for number, part in enumerate(filter(str.strip, text.split(",")), start=1):
        key_id, _, encoded = (word.strip() for word in part.partition(":"))
        if not _KEY_ID.fullmatch(key_id):
            raise ValueError(f"key {number}: expected id:base64, an id of 1 to 16 letters, digits, - and _")
        if key_id in keys:
            raise ValueError(f"key {number}: its id is there twice")
        try:
            keys[key_id] = base64.b64decode(encoded, validate=True)
        except ValueError:
            raise ValueError(f"key {number}: is not base64") from None
        if len(keys[key_id]) != MEMORY_KEY_BYTES:
            raise ValueError(f"key {number}: must be 32 bytes, as of `openssl rand -base64 32`")
    return keys


class Seal:
    """See `Seals`: the first key seals, all open. Without keys nothing is sealed, and `cryptography` isn't needed."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self.keys = dict(keys)
        self.failures = 0  # values that could not be opened
        if keys:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM

            self.new_cipher, self.invalid_tag = AESGCM, InvalidTag

    def of(self, call_id: str) -> "SealOfCall":
        """See `Seals.of`."""
        return SealOfCall(self, call_id)

    def on_failure(self, call_id: str, name: str, error: Unsealable) -> None:
        """One more; the first is said."""
        self.failures += 1
        if self.failures == 1:
            _log.warning("unsealable", call=call_id, name=name, error=str(error))


class SealOfCall:
    """See `CallSeal`."""

    def __init__(self, seal: Seal, call_id: str) -> None:
        self._seal = seal
        self._call_id = call_id
        self._ciphers: dict[str, AESGCM] = {}

    def seal(self, name: str, value: bytes) -> bytes:
        """See `CallSeal.seal`."""
        key_id = next(iter(self._seal.keys), None)
        if key_id is None:
            return value
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = self._cipher(key_id).encrypt(nonce, value, self._place(name))
        return b"".join((SEALED, bytes([len(key_id)]), key_id.encode(), nonce, sealed))

    def open(self, name: str, kept: bytes) -> bytes:
        """See `CallSeal.open`."""
        if not kept.startswith(SEALED):
            return kept
        try:
            return self._open(name, kept)
        except Unsealable as error:
            self._seal.on_failure(self._call_id, name, error)
            raise

    def _open(self, name: str, kept: bytes) -> bytes:
        begin = _HEAD_BYTES + int.from_bytes(kept[1:_HEAD_BYTES])
        key_id, nonce = kept[_HEAD_BYTES:begin].decode(errors="replace"), kept[begin : begin + _NONCE_BYTES]
        if key_id not in self._seal.keys:
            raise Unsealable(f"its key {key_id!r} is not known here")
        if len(kept) < begin + _NONCE_BYTES:
            raise Unsealable("it is cut off")
        try:
            return self._cipher(key_id).decrypt(nonce, kept[begin + _NONCE_BYTES :], self._place(name))
        except self._seal.invalid_tag:
            raise Unsealable("it is damaged, from another place, or of another key under the same id") from None

    def _cipher(self, key_id: str) -> "AESGCM":
        """A key per call: under one for all, a busy fleet would have random nonces recur within the key's life."""
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            derived = hmac.digest(self._seal.keys[key_id], _PURPOSE + self._call_id.encode(), "sha256")
            cipher = self._ciphers[key_id] = self._seal.new_cipher(derived)
        return cipher

    def _place(self, name: str) -> bytes:
        return f"{self._call_id}\0{name}".encode()
