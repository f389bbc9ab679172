"""How things look on the wire: versioned msgpack. Pure; knows nothing of what a body means.

An envelope is an array `[version, kind, id, call, sender, deadline, traceparent, body]`. The scripts build the same
array for receipts (fanout/lua/common.lua), so a change here is a change there and a new version.
"""

from collections.abc import Sequence
from enum import IntEnum
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


class Ring(NamedTuple):
    """A ring on a call's channel that is about its watchers: for how long they want events, and sound, in milliseconds.

    Of fanout/lua/watch.lua: `[version, "watch", events, sound]`; 0 for nobody.
    """

    events_ms: int
    sound_ms: int


class Look(NamedTuple):
    """A ring on a call's channel that says only that its owner should look whether it still is: a bell of no message.

    Of fanout/lua/claim.lua. To who knows it as a bell it is one that follows nothing: it reads, and learns it so.
    """


def unpack_ring(data: bytes, *, max_bytes: int) -> Bell | Ring | Look:
    """What came on a call's channel; anything unexpected is an EnvelopeError."""
    match _fields(data, max_bytes):
        case [b"watch", int(events_ms), int(sound_ms)]:
            return Ring(events_ms, sound_ms)
        case [b"", b"", b"", b"", b""]:
            return Look()
        case _:
            return Bell.unpack(data, max_bytes=max_bytes)


class LogKind(IntEnum):
    """What an entry of a batch is. Audio takes no number; the others take the next one."""

    EVENT = 0
    AUDIO = 1
    SNAPSHOT = 2  # the fact `session` as it is now; comes first where the log begins, or is written again


_LOG_KINDS = {kind.value for kind in LogKind}


class Batch(NamedTuple):
    """What a call's log gets at once, and its feed: `[version, epoch, first number, [[kind, body], …]]`.

    The numbers of an owner's epoch begin at 1, and each entry but audio takes one. `first` is the number of the first
    that does, or of the next one ever where there is audio only.
    """

    epoch: int
    first: int
    entries: Sequence[tuple[LogKind, bytes]]

    @property
    def last(self) -> int:
        """The number of its last entry; below `first` where there is audio only."""
        return self.first - 1 + sum(kind is not LogKind.AUDIO for kind, _ in self.entries)

    @property
    def id(self) -> str:
        """Of its entry in the stream, and the position after it."""
        return f"{self.epoch}-{self.last}"

    @property
    def begins_with_snapshot(self) -> bool:
        """Whether the log begins here, or is written again after a time when nobody watched."""
        return bool(self.entries) and self.entries[0][0] is LogKind.SNAPSHOT

    @property
    def size(self) -> int:
        """Bytes of what it carries."""
        return sum(len(body) for _, body in self.entries)

    def pack(self) -> bytes:
        """The wire form."""
        packed: bytes = msgpack.packb((VERSION, *self), use_bin_type=True)
        return packed

    @classmethod
    def unpack(cls, data: bytes, *, max_bytes: int) -> "Batch":
        """From the wire; anything unexpected is an EnvelopeError."""
        match _fields(data, max_bytes):
            case [int(epoch), int(first), list(entries)]:
                return cls(epoch, first, [_log_entry(each) for each in entries])
            case _:
                raise EnvelopeError("fields missing or of the wrong type")


class Farewell(NamedTuple):
    """The call's end, on its feed: `[version, "ended", packed tombstone]` of fanout/lua/end.lua."""

    tombstone: bytes


def unpack_feed(data: bytes, *, max_bytes: int) -> Batch | Farewell:
    """What came on a call's feed; anything unexpected is an EnvelopeError."""
    match _fields(data, max_bytes):
        case [b"ended", bytes(tombstone)]:
            return Farewell(tombstone)
        case _:
            return Batch.unpack(data, max_bytes=max_bytes)


def _log_entry(found: object) -> tuple[LogKind, bytes]:
    match found:
        case [int(kind), bytes(body)] if kind in _LOG_KINDS:
            return LogKind(kind), body
        case _:
            raise EnvelopeError("an entry of another kind")


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
