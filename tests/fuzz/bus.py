"""What comes over the bus and out of Redis: an EnvelopeError or a value, which another msgpack reader reads alike."""

import math
from collections.abc import Callable
from typing import Any

import msgpack
import msgspec
from hypothesis import strategies as st

from fanout.core.envelope import (
    VERSION,
    Batch,
    Bell,
    Envelope,
    EnvelopeError,
    Farewell,
    Look,
    Ring,
    unpack_feed,
    unpack_ring,
)
from fanout.core.memory import Memory
from fanout.core.records import (
    call_from_stored,
    fingerprint,
    message_from_envelope,
    message_to_envelope,
    pack_call,
    pack_receipt,
    pack_tombstone,
    receipt_from_stored,
    tombstone_from_stored,
)
from fanout.messages import CallRecord, Message, Receipt, Status, Tombstone
from tests.fuzz.target import Target

MOST = 4096


def check_bus(data: bytes) -> None:
    """Whatever it is, every reader takes it or refuses it in the way that its callers count on."""
    fields = _fields(data)
    envelope = _read(lambda: Envelope.unpack(data, max_bytes=MOST))
    if envelope is not None:
        if fields is not None:
            fields = [*fields[:5], float(fields[5]), *fields[6:]]  # a deadline may be written as an integer
        _agrees(fields, list(envelope))
        again = Envelope.unpack(envelope.pack(), max_bytes=2 * MOST)
        assert again == envelope or math.isnan(envelope.deadline)
        assert len(fingerprint(envelope)) == 32
        _check_body(envelope)
    fields = _fields(data)
    rung = _read(lambda: unpack_ring(data, max_bytes=MOST))
    if isinstance(rung, Bell):
        _agrees(fields, list(rung))
        assert any(rung)  # else it is a look
    elif isinstance(rung, Ring):
        _agrees(fields, [b"watch", *rung])
    elif isinstance(rung, Look):
        _agrees(fields, [b""] * 5)
    fed = _read(lambda: unpack_feed(data, max_bytes=MOST))
    if isinstance(fed, Farewell):
        _agrees(fields, [b"ended", fed.tombstone])
    elif isinstance(fed, Batch):
        _agrees(fields, [fed.epoch, fed.first, [[int(kind), body] for kind, body in fed.entries]])
        assert Batch.unpack(fed.pack(), max_bytes=2 * MOST) == fed
        assert fed.first - 1 <= fed.last < fed.first + len(fed.entries)
        assert fed.size <= len(data)
    assert len(data) <= MOST or not (envelope or rung or fed)
    _check_stored(data)


def _check_body(envelope: Envelope) -> None:
    message = _read(lambda: message_from_envelope(envelope))
    if message is not None and not math.isnan(message.expires_at):
        assert message_from_envelope(message_to_envelope(message, envelope.call, envelope.sender)) == message


def _check_stored(data: bytes) -> None:
    """The same bytes as values of Redis: a receipt, a call, a tombstone, a memory's entry, a message's body."""
    receipt = _read(lambda: receipt_from_stored("c", "m", data))
    if receipt is not None and not any(map(math.isnan, receipt.reached.values())):
        assert _read(lambda: receipt_from_stored("c", "m", pack_receipt(receipt))) == receipt
        assert receipt.is_terminal in {True, False}
    call = _read(lambda: call_from_stored(data, epoch=7, state="live"))
    assert call is None or (call.epoch, call.state) == (7, "live")
    if call is not None:
        assert call == call_from_stored(pack_call(call), epoch=7, state="live") or math.isnan(call.started_at)
    tombstone = _read(lambda: tombstone_from_stored(data))
    if tombstone is not None:
        assert repr(tombstone) == repr(tombstone_from_stored(pack_tombstone(tombstone)))
    _check_body(Envelope("item", "m", "c", "n", 1.0, "", data))
    Memory(100, 1 << 20).restore(1, [data])


def _read(reader: Callable[[], Any]) -> Any:
    try:
        return reader()
    except EnvelopeError:
        return None


def _fields(data: bytes) -> Any:
    """What msgspec makes of it, which shares no code with msgpack; None where it reads nothing or doesn't know."""
    try:
        return msgspec.msgpack.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError, TypeError):
        return None


def _agrees(fields: Any, found: list[Any]) -> None:
    if fields is not None:
        assert _plain(fields) == _plain([VERSION, *found])


def _plain(value: Any) -> Any:
    """Text as bytes; a NaN, which equals nothing, as a word."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    return value.encode() if isinstance(value, str) else value


# Shapes

_MESSAGE = Message(id="m1", item=b'{"type":"message"}', response=True, expires_at=2.5, item_id="i1", traceparent="00-a")
_TOMBSTONE = Tombstone(
    id="c", tenant="t", node="n", region="r", started_at=1.0, ended_at=2.0, why="client_closed", fault="client"
)
_RECEIPT = Receipt(
    id="m",
    call_id="c",
    item_id="i",
    status=Status.FAILED,
    wants_response=True,
    reached={"accepted": 1.0, "failed": 2.0},
    node="n",
    region="r",
    error={"code": "x", "message": "é"},
    by={"accepted": ("n", "r")},
)
_CALL = CallRecord(id="c", tenant="t", node="n", region="r", agent="a", model="m", started_at=1.0)
_LEAVES = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from([0, 1, 2, 3, VERSION, b"", "", b"watch", b"ended", b"\xff", 1.5, math.inf, math.nan, None, True]),
    st.binary(max_size=8),
    st.text(max_size=8),
)
_VALUES = st.recursive(_LEAVES, lambda inner: st.lists(inner, max_size=7), max_leaves=10)
_TEXTS = st.sampled_from([b"", b"c1", b"watch", b"ended", "é".encode(), b"\xff"])
_RECORDS = st.dictionaries(
    st.sampled_from(
        [*_RECEIPT.__struct_fields__, *_CALL.__struct_fields__, "when", "item", "response", "visible", "x"]
    ),
    _LEAVES | st.dictionaries(_TEXTS | st.text(max_size=4), _VALUES, max_size=2),
    max_size=10,
)
_LISTS = st.one_of(
    st.tuples(*[_TEXTS] * 4, st.floats() | st.integers(0, 2**63), _TEXTS, st.binary(max_size=20)),
    st.tuples(*[_TEXTS] * 5),
    st.tuples(st.just(b"watch"), st.integers(-9, 2**40), st.integers(-9, 2**40)),
    st.tuples(
        st.integers(0, 2**40), st.integers(0, 2**40), st.lists(st.tuples(st.integers(-1, 3), _TEXTS), max_size=3)
    ),
    st.tuples(st.just(b"ended"), st.just(pack_tombstone(_TOMBSTONE)) | _TEXTS),
    st.lists(_VALUES, max_size=8),
)


def _packed(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


TARGET = Target(
    "bus",
    check_bus,
    (
        message_to_envelope(_MESSAGE, "c1", "n1").pack(),
        message_to_envelope(_MESSAGE, "c1", "n1").body,
        _packed([VERSION, b"2-0", b"m2", b"1-0", b"m1", message_to_envelope(_MESSAGE, "c1", "n1").pack()]),
        _packed([VERSION, b"watch", 30_000, 0]),
        _packed([VERSION, b"", b"", b"", b"", b""]),
        _packed([VERSION, 3, 17, [[2, b"{}"], [0, b"{}"], [1, b"\0\1"]]]),
        _packed([VERSION, b"ended", pack_tombstone(_TOMBSTONE)]),
        pack_tombstone(_TOMBSTONE),
        pack_receipt(_RECEIPT),
        pack_call(_CALL),
        _packed(["item.1", b"{}"]),
    ),
    (
        *(
            b"\x91",
            b"\x97\x01",
            b"\x96\x01",
            b"\xc0",
            b"\xc3",
            b"\xc4\x00",
            b"\xdd\xff\xff\xff\xff",
            b"\xc6\xff\xff\xff\xff",
        ),
        *(b"\xd4\xff\x00", b"\xd6\xff\x00\x00\x00\x00", b"\xcf" + b"\xff" * 8, b"\xcb\x7f\xf8\0\0\0\0\0\0", b"\xa1x"),
        *(b"\xa5watch", b"\xa5ended", b"\xdf\xff\xff\xff\xff", b"\x81\xa1x", b"\xa1\xff", b"\xa5error", b"\xd9\x03abc"),
    ),
    st.one_of(
        st.builds(lambda version, fields: _packed([version, *fields]), st.sampled_from([VERSION, VERSION, 2]), _LISTS),
        st.builds(_packed, _RECORDS),
        st.builds(
            lambda record, over: _packed(msgspec.to_builtins(record, builtin_types=[bytes]) | over),
            st.sampled_from([_TOMBSTONE, _RECEIPT, _CALL]),
            _RECORDS,
        ),
    ),
)
