"""How messages, receipts, calls and tombstones are written into envelopes and Redis, and read back. Pure.

What only Python reads is msgspec's msgpack of a struct; receipts are written by the scripts (fanout/lua/common.lua).
"""

import hashlib
from typing import Any

import msgspec

from fanout.core.envelope import Envelope, EnvelopeError
from fanout.messages import CallRecord, Message, Receipt, Status, Tombstone


class _Body(msgspec.Struct):
    """The part of a message that makes it the same message: what the fingerprint covers."""

    item: bytes
    response: bytes | bool
    item_id: str
    when: str
    visible: bool


class _StoredReceipt(msgspec.Struct):
    """A receipt as the scripts keep it; their further fields are their own."""

    status: str
    wants_response: bool
    item_id: str
    reached: dict[str, float]
    by: dict[str, tuple[str, str]]
    node: str
    region: str
    error: str


_encode = msgspec.msgpack.encode
_body = msgspec.msgpack.Decoder(_Body)
_stored_receipt = msgspec.msgpack.Decoder(_StoredReceipt)
_call = msgspec.msgpack.Decoder(CallRecord)
_tombstone = msgspec.msgpack.Decoder(Tombstone)
# The second is a name that is not UTF-8, or an unknown status; the last an unknown field with lists in lists in lists.
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


def message_to_envelope(message: Message, call_id: str, sender: str) -> Envelope:
    """What goes on the wire and into the inbox."""
    body = _Body(message.item, message.response, message.item_id, message.when, message.visible)
    return Envelope(
        kind=message.kind,
        id=message.id,
        call=call_id,
        sender=sender,
        deadline=message.expires_at,
        traceparent=message.traceparent or "",
        body=_encode(body),
    )


def message_from_envelope(envelope: Envelope) -> Message:
    """The message again; a body that cannot be read is an EnvelopeError."""
    try:
        body = _body.decode(envelope.body)
    except _UNREADABLE as exc:
        raise EnvelopeError("body cannot be read") from exc
    return Message(
        id=envelope.id,
        item=body.item,
        response=body.response,
        expires_at=envelope.deadline,
        traceparent=envelope.traceparent or None,
        item_id=body.item_id,
        when=body.when,
        visible=body.visible,
        kind=envelope.kind,
    )


def fingerprint(envelope: Envelope) -> str:
    """Tells an honest repeat from another message under the same id; deadline and trace may differ between repeats."""
    return hashlib.sha256(envelope.kind.encode() + b"\0" + envelope.body).hexdigest()[:32]


def receipt_from_stored(call_id: str, message_id: str, packed: bytes) -> Receipt:
    """A receipt out of the receipts hash or a reply; one that cannot be read is an EnvelopeError."""
    try:
        stored = _stored_receipt.decode(packed)
        error = msgspec.json.decode(stored.error, type=dict[str, Any]) if stored.error else None
        return Receipt(
            id=message_id,
            call_id=call_id,
            item_id=stored.item_id,
            status=Status(stored.status),
            wants_response=stored.wants_response,
            reached=dict(sorted(stored.reached.items(), key=lambda step: step[1])),
            by=stored.by,
            node=stored.node,
            region=stored.region,
            error=error,
        )
    except _UNREADABLE as exc:
        raise EnvelopeError("receipt cannot be read") from exc


def pack_receipt(receipt: Receipt) -> bytes:
    """A receipt for a server that may have lost it."""
    return _encode(
        {
            "status": receipt.status.value,
            "wants_response": receipt.wants_response,
            "item_id": receipt.item_id,
            "reached": receipt.reached,
            "by": receipt.by,
            "node": receipt.node,
            "region": receipt.region,
            "error": pack_error(receipt.error).decode(),
        }
    )


def pack_reached(reached: dict[str, float]) -> bytes:
    """Times for the settle script."""
    return _encode(reached)


def pack_error(error: dict[str, Any] | None) -> bytes:
    """An error for a receipt, JSON so that it reaches the caller verbatim; empty for none."""
    return msgspec.json.encode(error) if error is not None else b""


def pack_call(record: CallRecord) -> bytes:
    """For the call's hash."""
    return _encode(record)


def call_from_stored(record: bytes, *, epoch: int, state: str) -> CallRecord:
    """Out of the call's hash, whose own fields for epoch and state hold; one that cannot be read: an EnvelopeError."""
    try:
        return msgspec.structs.replace(_call.decode(record), epoch=epoch, state=state)
    except _UNREADABLE as exc:
        raise EnvelopeError("call cannot be read") from exc


def pack_tombstone(tombstone: Tombstone) -> bytes:
    """For the tombstone's hash."""
    return _encode(tombstone)


def tombstone_from_stored(record: bytes) -> Tombstone:
    """Out of the tombstone's hash; one that cannot be read is an EnvelopeError."""
    try:
        return _tombstone.decode(record)
    except _UNREADABLE as exc:
        raise EnvelopeError("tombstone cannot be read") from exc
