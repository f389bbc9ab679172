"""Inputs that fuzzing found (docs/fuzzing.md), each with what it broke."""

import msgspec
import pytest

from fanout.core.envelope import Envelope, EnvelopeError
from fanout.core.memory import Memory
from fanout.core.records import (
    call_from_stored,
    message_from_envelope,
    pack_receipt,
    receipt_from_stored,
    tombstone_from_stored,
)
from fanout.messages import Receipt, Status
from relay.keys import Keyring
from relay.rulebook.book import BookError, Defaults, parse_rulebook
from relay.rulebook.upstreams import UpstreamConfig
from relay.tokens import BadToken, mint

DEEP = b"\x81\xa1x" + b"\x91" * 100_000 + b"\xc0"  # a map whose one field, which nobody knows, is lists in lists
RECEIPT = Receipt(
    id="m", call_id="c", item_id="i", status=Status.FAILED, wants_response=True, reached={}, node="n", region="r"
)
READERS = {
    "message": lambda data: message_from_envelope(Envelope("item", "m", "c", "n", 1.0, "", data)),
    "receipt": lambda data: receipt_from_stored("c", "m", data),
    "call": lambda data: call_from_stored(data, epoch=1, state="live"),
    "tombstone": tombstone_from_stored,
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("data", [DEEP, b"\x81\xa1\xff\xc0", b"\x81\xa4node\xa1\xff"], ids=["deep", "key", "name"])
def test_a_record_that_cannot_be_read_is_an_envelope_error(reader, data):
    """A RecursionError, or a UnicodeDecodeError, went past those who skip what they can't read."""
    with pytest.raises(EnvelopeError):
        reader(data)


@pytest.mark.parametrize("name", ["id", "tenant", "node", "why"])
def test_a_name_that_is_not_utf_8_is_an_envelope_error(name):
    """Where all the rest is good."""
    good = {"id": "c", "tenant": "t", "node": "n", "region": "r", "started_at": 1.0, "ended_at": 2.0, "why": "w"}
    packed = msgspec.msgpack.encode(good | {"fault": "f", name: "NAME"}).replace(b"NAME", b"\xff\xff\xff\xff")
    with pytest.raises(EnvelopeError):
        tombstone_from_stored(packed)


def test_an_error_that_is_nested_without_an_end_makes_its_receipt_unreadable():
    """It is the model's own words, as JSON in a string."""
    packed = msgspec.msgpack.encode(msgspec.msgpack.decode(pack_receipt(RECEIPT)) | {"error": '{"a":' * 5000})
    with pytest.raises(EnvelopeError):
        receipt_from_stored("c", "m", packed)


def test_a_memorys_entry_whose_name_is_not_utf_8_is_left_out():
    """As every other that can't be read: an owner that takes a call over must not fail on it."""
    memory = Memory(10, 1000)
    memory.restore(2, [b"\x92\xa1\xff\xc4\x02{}", b"\x92\xa6item.1\xc4\x02{}"])
    assert memory.total == 2


@pytest.mark.parametrize(
    "text",
    [
        f"[agents.a]\nsession{'.a' * 1500} = 1",
        f"[agents.a.session{'.a' * 1500}]\nb = 1",
        f"[agents.a]\ntools{'.a' * 990} = 1",
    ],
    ids=["keys", "header", "tools"],
)
def test_dotted_keys_nest_only_so_far(text):
    """TOML's parser takes any number of them, each a table in a table: a RecursionError, at start or in a call."""
    defaults = Defaults(UpstreamConfig("default", "wss://models.example"))
    with pytest.raises(BookError, match="nested too deeply"):
        parse_rulebook(text, lambda kind, name: "", defaults)


@pytest.mark.parametrize("name", ["agent", "plan", "call", "jti", "origin"])
def test_half_a_character_in_a_claim_is_refused(name):
    """JSON can name a lone surrogate; whatever writes it into Redis, a log or an answer would fail on it."""
    secret = "secret-" * 8
    token = mint(secret, tenant="acme", scope=["call"], expires_at=4e9, **{name: "\ud800"})
    with pytest.raises(BadToken, match=name):
        Keyring((secret,)).verify(token)
