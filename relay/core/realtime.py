"""Reading and writing Realtime API events as bytes: just enough to route them.

Knows the wire format (facts: OpenAI's Realtime API, GA shape) and nothing of calls, sockets or clocks. Audio is never
decoded here, and an event is looked into only as far as its routing needs.
"""

import re
from collections.abc import Container
from typing import Any, Final

import msgspec
import pybase64

_APPEND = b"input_audio_buffer.append"
# The envelopes that the official SDKs and common clients write: compact or spaced, either key first. Each is what
# stands before and after the audio.
_ENVELOPES: Final = tuple(
    (head, tail)
    for colon, comma in ((b":", b","), (b": ", b", "))
    for head, tail in (
        (b'{"type"' + colon + b'"' + _APPEND + b'"' + comma + b'"audio"' + colon + b'"', b'"}'),
        (b'{"audio"' + colon + b'"', b'"' + comma + b'"type"' + colon + b'"' + _APPEND + b'"}'),
    )
)
_AUDIO_HEAD, _AUDIO_TAIL = _ENVELOPES[0]
_AUDIO_AT: Final = len(_AUDIO_HEAD)
_OTHER_ENVELOPES: Final = _ENVELOPES[1:]

# The type of an event, where it stands first or behind ids, as every known server writes it.
_TYPE: Final = re.compile(
    rb'\s*\{\s*(?:"(?:event_id|response_id|item_id|session_id)"\s*:\s*"[^"\\]*"\s*,\s*)*"type"\s*:\s*"([a-z0-9_.]+)"'
)
_ITEM_ID: Final = re.compile(rb'"id"\s*:\s*"([^"\\]*)"')
_AUDIO_FIELD: Final = re.compile(rb'"audio"\s*:\s*"[A-Za-z0-9+/=]*"')
AUDIO_TYPES: Final = frozenset({"response.output_audio.delta", "response.audio.delta"})
_AUDIO_DELTAS: Final = (
    b'{"type":"response.output_audio.delta"',
    b'{"type": "response.output_audio.delta"',
    b'{"type":"response.audio.delta"',
)


class _TypeOnly(msgspec.Struct, gc=False):
    type: str = ""


class _IdOnly(msgspec.Struct, gc=False):
    event_id: str = ""


class NotAnEvent(ValueError):
    """The message is not a JSON object with a ``type``; ``str()`` says what is wrong."""


_object: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_any: Final = msgspec.json.Decoder()
_type_only: Final = msgspec.json.Decoder(_TypeOnly)
_id_only: Final = msgspec.json.Decoder(_IdOnly)
_string: Final = msgspec.json.Decoder(str)
encode: Final = msgspec.json.Encoder().encode


def is_whole_append(message: bytes) -> bool:
    """Whether the *whole* message is one plain ``input_audio_buffer.append`` and can go on as it is.

    The audio reaches to the first quote, and that quote begins the known tail: so there is no room for a second
    ``type`` key, an event id or anything else. Under half a microsecond for 20 ms of audio.
    """
    if message.startswith(_AUDIO_HEAD):  # by far the most common one, without a loop
        return message.find(b'"', _AUDIO_AT) == len(message) - 2 and message.endswith(_AUDIO_TAIL)
    for head, tail in _OTHER_ENVELOPES:
        if message.startswith(head):
            return message.find(b'"', len(head)) == len(message) - len(tail) and message.endswith(tail)
    return False


def is_audio_delta(message: bytes) -> bool:
    """Whether a model message is plain audio, by its first bytes: nothing else needs to be known of it."""
    return message.startswith(_AUDIO_DELTAS)


def event_type(message: bytes) -> str:
    """Return the ``type`` of a model's event from as few bytes as possible; "" if it has none or is not JSON."""
    match = _TYPE.match(message)
    if match is not None:
        return match.group(1).decode()
    try:
        return _type_only.decode(message).type
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def event_id(message: bytes) -> str:
    """Return an event's id; "" if it has none or is not JSON."""
    try:
        return _id_only.decode(message).event_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def decode(message: bytes) -> Any:
    """Decode an event whole.

    Raises:
        NotAnEvent: it is not a JSON object.
    """
    try:
        event = _any.decode(message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotAnEvent(f"not JSON: {error}") from None
    if not isinstance(event, dict):
        raise NotAnEvent("not a JSON object")
    return event


class ClientEvent:
    """A client's event, its top level parsed, its values as they came."""

    __slots__ = ("_fields", "event_id", "type")

    def __init__(self, message: bytes) -> None:
        """Parse the message.

        Raises:
            NotAnEvent: not a JSON object, or ``type`` or ``event_id`` is no string.
        """
        try:
            self._fields = _object.decode(message)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise NotAnEvent(f"The event is not a JSON object: {error}.") from None
        self.type = self._text("type")
        if not self.type:
            raise NotAnEvent("The event has no type.")
        self.event_id = self._text("event_id")

    def _text(self, key: str) -> str:
        raw = self._fields.get(key)
        if raw is None or bytes(raw) == b"null":
            return ""
        try:
            return _string.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise NotAnEvent(f"The event's {key} must be a string.") from None

    def text_of(self, key: str) -> str:
        """Return a field that is a string; "" if it is none."""
        try:
            return self._text(key)
        except NotAnEvent:
            return ""

    @property
    def keys(self) -> frozenset[str]:
        """The names of its fields."""
        return frozenset(self._fields)

    def keep(self, keys: Container[str]) -> None:
        """Drop all other fields."""
        self._fields = {key: value for key, value in self._fields.items() if key in keys}

    def value(self, key: str) -> Any:
        """Decode a field whole; None if there is none.

        Raises:
            NotAnEvent: it is not JSON.
        """
        try:
            return _any.decode(self._fields.get(key, b"null"))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise NotAnEvent(f"The event's {key} is not JSON.") from None

    def put(self, key: str, value: Any) -> None:
        """Set a field."""
        self._fields[key] = msgspec.Raw(encode(value))

    def named_item(self, new_id: str, *, largest: int) -> str:
        """Return the id of the item that the event puts in; one that has none gets this one, unless it is too large.

        "" if there is no item, or it stays without: the model says what it thinks of it.
        """
        raw = self._fields.get("item")
        if raw is None or len(bytes(raw)) > largest:
            return ""
        try:
            item = _object.decode(raw)
            known = _string.decode(item["id"]) if bytes(item.get("id", b"null")) != b"null" else ""
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return ""
        if not known:
            known = new_id
            self.put("item", {**item, "id": known})
        return known

    def encoded(self, event_id: str | None = None) -> bytes:
        """Write the event again, with another event id if one is given.

        Repeated keys are gone (the last one counts, as in most parsers): what was checked is what is sent.
        """
        if event_id is not None:
            self.put("event_id", event_id)
        return encode(self._fields)


def append_event(pcm: bytes) -> bytes:
    """Wrap raw audio in an ``input_audio_buffer.append`` event."""
    return _AUDIO_HEAD + pybase64.b64encode(pcm) + _AUDIO_TAIL


def delta_audio(message: bytes) -> bytes | None:
    """Return the audio bytes of an audio delta, however its keys are ordered; None if it is none or cannot be read."""
    if event_type(message) not in AUDIO_TYPES:
        return None
    try:
        return pybase64.b64decode(decode(message).get("delta"), validate=True)
    except (NotAnEvent, TypeError, ValueError):
        return None


def item_id(message: bytes) -> str:
    """Return the id of the item in an event, without parsing the rest of it, which may be megabytes of audio."""
    match = _ITEM_ID.search(message)
    return match.group(1).decode(errors="replace") if match is not None else ""


def without_audio(message: bytes) -> bytes:
    """Blank out the audio in an event, without parsing it: it may be megabytes."""
    return _AUDIO_FIELD.sub(b'"audio":null', message)


def error_event(
    event_id: str, kind: str, code: str, message: str, *, param: str | None = None, cause: str | None = None
) -> bytes:
    """Build an ``error`` event in OpenAI's shape; ``cause`` is the event id of the client's event that caused it."""
    error = {"type": kind, "code": code, "message": message, "param": param, "event_id": cause}
    return encode({"type": "error", "event_id": event_id, "error": error})
