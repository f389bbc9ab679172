"""Subscriptions, envelopes and stored forms: the pure parts around the wire."""

import random

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanout.core.envelope import (
    VERSION,
    Batch,
    Bell,
    Envelope,
    EnvelopeError,
    Farewell,
    LogKind,
    Ring,
    unpack_feed,
    unpack_ring,
)
from fanout.core.records import fingerprint, message_from_envelope, message_to_envelope, receipt_from_stored
from fanout.core.subscriptions import Subscriptions
from fanout.messages import Message, Receipt, Status, Tombstone

ROOMY = 1 << 20
INTEGERS = st.integers(-(2**63), 2**64 - 1)


def message(**changes: object) -> Message:
    return Message(**{"id": "m1", "item": b'{"type":"message"}', "expires_at": 2.5, "item_id": "i1", **changes})


@pytest.mark.parametrize(
    "changes",
    [{}, {"response": True}, {"response": b"{}"}, {"traceparent": "00-a-b-01"}, {"when": "turn_end", "visible": False}],
    ids=repr,
)
def test_a_message_is_the_same_after_its_way(changes):
    """Every field matters to the owner."""
    sent = message(**changes)
    envelope = Envelope.unpack(message_to_envelope(sent, "c", "n").pack(), max_bytes=ROOMY)
    assert message_from_envelope(envelope) == sent


def test_a_repeat_with_a_new_deadline_or_trace_is_the_same_message():
    """An HTTP client that retries sends the same body at a later time, in another span."""
    first = message_to_envelope(message(), "c", "n")
    assert fingerprint(first) == fingerprint(message_to_envelope(message(expires_at=9.0, traceparent="x"), "c", "o"))


@pytest.mark.parametrize(
    "changes",
    [{"item": b"{}"}, {"response": True}, {"when": "interrupt"}, {"visible": False}, {"kind": "event"}],
    ids=repr,
)
def test_another_body_is_another_message(changes):
    """The same id with any of these is a mistake that its sender must hear of."""
    envelopes = [message_to_envelope(m, "c", "n") for m in (message(), message(**changes))]
    assert fingerprint(envelopes[0]) != fingerprint(envelopes[1])


def test_an_envelope_of_another_version_is_refused_by_name():
    """During a rolling upgrade old nodes meet new envelopes: to be skipped, not guessed at."""
    with pytest.raises(EnvelopeError, match=f"version {VERSION + 1}"):
        Envelope.unpack(msgpack.packb([VERSION + 1, "anything"]), max_bytes=ROOMY)


def test_an_envelope_beyond_the_limit_is_not_even_parsed():
    """The limit protects memory."""
    with pytest.raises(EnvelopeError, match="limit 10"):
        Envelope.unpack(b"\xc1" * 11, max_bytes=10)


@given(st.binary() | st.recursive(st.none() | INTEGERS | st.binary() | st.text(), st.lists).map(msgpack.packb))
def test_whatever_comes_is_an_envelope_or_an_envelope_error(data):
    """A poisoned message must never kill the reader that all calls share."""
    for kind in (Envelope, Bell):
        with pytest.raises(EnvelopeError):
            kind.unpack(data, max_bytes=ROOMY)


@given(st.lists(st.binary() | INTEGERS | st.floats(), min_size=5, max_size=7))
def test_fields_of_wrong_types_are_an_envelope_error(fields):
    """Half right is wrong, too; what passes has its types."""
    for kind in (Envelope, Bell):
        try:
            value = kind.unpack(msgpack.packb([VERSION, *fields]), max_bytes=ROOMY)
        except EnvelopeError:
            continue
        assert isinstance(value[0], str)


@pytest.mark.parametrize("reads", [unpack_feed, unpack_ring, Batch.unpack])
@given(st.binary() | st.recursive(st.none() | INTEGERS | st.binary() | st.text(), st.lists).map(msgpack.packb))
def test_whatever_comes_on_a_calls_channels_is_known_or_an_envelope_error(reads, data):
    """Anybody who may ring may ring wrongly."""
    with pytest.raises(EnvelopeError):
        reads(data, max_bytes=ROOMY)


@pytest.mark.parametrize(
    "fields",
    [[5, 1, [[9, b"x"]]], [5, 1, [[0]]], [5, 1, [["0", b"x"]]], [5, 1, 7], ["ended"], ["ended", 7], ["watch", 1, "x"]],
    ids=repr,
)
def test_half_a_batch_is_none(fields):
    """A kind that is not known might take a number or not: what follows could not be counted."""
    packed = msgpack.packb([VERSION, *fields])
    for reads in (unpack_feed, unpack_ring, Batch.unpack):
        with pytest.raises(EnvelopeError):
            reads(packed, max_bytes=ROOMY)


def test_what_comes_on_a_calls_channels_is_told_apart():
    """Messages and watchers ring one bell; the end of a call comes where its events come."""
    assert unpack_ring(msgpack.packb([VERSION, "watch", 60_000, 0]), max_bytes=ROOMY) == Ring(60_000, 0)
    bell = Bell("1-0", "m", "", "", b"x")
    assert unpack_ring(msgpack.packb([VERSION, *bell]), max_bytes=ROOMY) == bell
    assert unpack_feed(msgpack.packb([VERSION, "ended", b"t"]), max_bytes=ROOMY) == Farewell(b"t")
    batch = Batch(5, 3, [(LogKind.SNAPSHOT, b"ss"), (LogKind.AUDIO, b"a"), (LogKind.EVENT, b"e")])
    assert unpack_feed(batch.pack(), max_bytes=ROOMY) == batch


@pytest.mark.parametrize(
    ("kinds", "last", "begins"),
    [
        ([LogKind.SNAPSHOT, LogKind.EVENT, LogKind.AUDIO], 4, True),
        ([LogKind.AUDIO, LogKind.SNAPSHOT], 3, False),
        ([LogKind.AUDIO], 2, False),
        ([], 2, False),
    ],
    ids=["all", "audio-first", "audio", "nothing"],
)
def test_audio_takes_no_number(kinds, last, begins):
    """It comes in no log, and who doesn't listen must not see gaps where it was."""
    batch = Batch(5, 3, [(kind, b"12") for kind in kinds])
    assert (batch.last, batch.id, batch.size) == (last, f"5-{last}", 2 * len(kinds))
    assert batch.begins_with_snapshot == begins


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x80"], ids=repr)
def test_a_body_that_cannot_be_read_is_an_envelope_error(body):
    """The envelope may be fine and its content of another make."""
    with pytest.raises(EnvelopeError):
        message_from_envelope(Envelope("item", "m", "c", "n", 0.0, "", body))
    with pytest.raises(EnvelopeError):
        receipt_from_stored("c", "m", body)


def test_a_receipt_of_an_unknown_status_is_an_envelope_error():
    """A later version may have further steps."""
    stored = {"status": "pondered", "wants_response": False, "item_id": "", "node": "", "region": "", "error": ""}
    with pytest.raises(EnvelopeError):
        receipt_from_stored("c", "m", msgpack.packb({**stored, "reached": {}}))


def receipt(status: Status, *, wants_response: bool = False) -> Receipt:
    return Receipt(
        id="m", call_id="c", item_id="i", status=status, wants_response=wants_response, reached={}, node="n", region="r"
    )


@pytest.mark.parametrize(
    ("status", "wants_response", "terminal"),
    [
        (Status.ACCEPTED, False, False),
        (Status.DELIVERED, False, False),
        (Status.APPLIED, False, True),
        (Status.APPLIED, True, False),
        (Status.ANSWERED, True, True),
        (Status.FAILED, True, True),
    ],
)
def test_applied_is_terminal_only_where_no_response_was_asked(status, wants_response, terminal):
    """An end answers whoever waits for more."""
    assert receipt(status, wants_response=wants_response).is_terminal is terminal
    assert receipt(status, wants_response=wants_response).has_reached(Status.ANSWERED) is terminal


def test_the_public_shapes_have_nothing_internal():
    """They go out as they are."""
    assert list(receipt(Status.APPLIED).to_public()) == [
        "object", "id", "call_id", "item_id", "status", "reached", "by", "node", "region", "error"
    ]  # fmt: skip
    tombstone = Tombstone(
        id="c", tenant="t", node="n", region="r", started_at=1.0, ended_at=2.0, why="client_left", fault="client"
    )
    assert "tenant" not in tombstone.to_public()
    assert tombstone.to_public()["state"] == "ended"


def test_a_wanted_channel_is_sent_once_and_again_after_a_loss():
    """The server forgets with the connection; we don't."""
    subscriptions = Subscriptions()
    subscriptions.want("a")
    assert subscriptions.take(10).subscribe == ["a"]
    assert not subscriptions.take(10)
    assert subscriptions.on_subscribed("a")
    assert (subscriptions.wanted, subscriptions.held) == (1, 1)
    subscriptions.on_connection_lost()
    assert not subscriptions.holds("a")
    assert subscriptions.take(10).subscribe == ["a"]


def test_what_is_unwanted_before_it_was_sent_is_never_sent():
    """A call that ends within a reconnect costs the server nothing."""
    subscriptions = Subscriptions()
    subscriptions.want("a")
    subscriptions.unwant("a")
    assert not subscriptions.take(10)
    assert subscriptions.is_settled


def test_an_acknowledgement_that_nobody_wants_any_more_says_so():
    """Its stream is not worth reading."""
    subscriptions = Subscriptions()
    subscriptions.want("a")
    subscriptions.take(10)
    subscriptions.unwant("a")
    assert not subscriptions.on_subscribed("a")


def test_a_large_difference_is_sent_in_pieces_oldest_first():
    """Ten thousand names in one command would stall the server and our loop."""
    subscriptions = Subscriptions()
    for number in range(5):
        subscriptions.want(str(number))
    assert [subscriptions.take(2).subscribe for _ in range(3)] == [["0", "1"], ["2", "3"], ["4"]]


@pytest.mark.parametrize("seed", range(30))
def test_however_wishes_change_the_server_ends_with_what_is_wanted(seed):
    """Commands and acknowledgements keep their order, so the last wish wins."""
    chance = random.Random(seed)
    subscriptions, wanted, server, acknowledgements = Subscriptions(), set(), set(), []

    def send() -> None:
        diff = subscriptions.take(chance.randrange(1, 4))
        server.difference_update(diff.unsubscribe)
        server.update(diff.subscribe)
        acknowledgements.extend([(False, c) for c in diff.unsubscribe] + [(True, c) for c in diff.subscribe])

    def hear() -> None:
        subscribed, channel = acknowledgements.pop(0)
        (subscriptions.on_subscribed if subscribed else subscriptions.on_unsubscribed)(channel)

    for _ in range(300):
        channel = chance.choice("abcd")
        match chance.randrange(8):
            case 0 | 1:
                wanted.add(channel)
                subscriptions.want(channel)
            case 2 | 3:
                wanted.discard(channel)
                subscriptions.unwant(channel)
            case 4 | 5:
                send()
            case 6 if acknowledgements:
                hear()
            case 7 if chance.random() < 0.2:
                server.clear()
                acknowledgements.clear()
                subscriptions.on_connection_lost()
            case _:
                pass
    while not subscriptions.is_settled:
        send()
    while acknowledgements:
        hear()
    assert server == wanted
    assert {channel for channel in "abcd" if subscriptions.holds(channel)} == wanted
