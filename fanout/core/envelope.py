"""How things look on the wire: versioned msgpack. Pure; knows nothing of what a body means.

An envelope is an array `[version, kind, id, call, sender, deadline, traceparent, body]`. The scripts build the same
array for receipts (fanout/lua/common.lua), so a change here is a change there and a new version.
"""

from typing import NamedTuple

import msgpack  # type: ignore[import-untyped]

VERSION = 1


class EnvelopeError(Exception):
    """Not an envelope, or of a version that this node doesn't know: to be counted and skipped, never to be fatal."""


class Envelope(NamedTuple):
    """`deadline` is in seconds since the epoch, 0 for none; `traceparent` is empty where there is none."""

    kind: str
    id: str
    call: str
    sender: str
    deadline: float
    traceparent: str
    body: bytes

    def pack(self) -> bytes:
        """The wire form."""
        packed: bytes = msgpack.packb((VERSION, *self), use_bin_type=True)
        return packed

    @classmethod
    def unpack(cls, data: bytes, *, max_bytes: int) -> "Envelope":
        """From the wire; anything unexpected is an EnvelopeError."""
        match _fields(data, max_bytes):
            # Lua writes whole numbers as integers.
            case [bytes(kind), bytes(id_), bytes(call), bytes(by), int() | float() as at, bytes(trace), bytes(body)]:
                return cls(_text(kind), _text(id_), _text(call), _text(by), float(at), _text(trace), body)
            case _:
                raise EnvelopeError("fields missing or of the wrong type")


class Bell(NamedTuple):
    """One ring on a call's channel: an entry of its inbox, the one before it, and the packed message.

    `envelope` is empty when a publisher rings again for an entry that is in the stream anyhow.
    """

    entry_id: str
    message_id: str
    previous_entry_id: str
    previous_message_id: str
    envelope: bytes

    @classmethod
    def unpack(cls, data: bytes, *, max_bytes: int) -> "Bell":
        """From the wire form of fanout/lua/publish.lua: `[version, entry, message, the same before it, envelope]`."""
        match _fields(data, max_bytes):
            case [bytes(entry), bytes(message), bytes(before), bytes(message_before), bytes(envelope)]:
                return cls(_text(entry), _text(message), _text(before), _text(message_before), envelope)
            case _:
                raise EnvelopeError("fields missing or of the wrong type")


def _fields(data: bytes, max_bytes: int) -> list[object]:
    """What follows the version. Strings come as bytes: Lua has but one type for both."""
    if len(data) > max_bytes:
        raise EnvelopeError(f"{len(data)} bytes, limit {max_bytes}")
    try:
        unpacked = msgpack.unpackb(data, raw=True)
    except (msgpack.UnpackException, ValueError) as exc:
        raise EnvelopeError("not msgpack") from exc
    match unpacked:
        case [int(version), *fields] if version == VERSION:
            return fields
        case [int(version), *_]:
            raise EnvelopeError(f"version {version}, known is {VERSION}")
        case _:
            raise EnvelopeError("not an envelope")


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as exc:
        raise EnvelopeError("a name is not UTF-8") from exc
