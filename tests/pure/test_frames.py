"""The frame rules that picows leaves to us: opcode order, reserved bits, UTF-8, message length, close codes."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.frames import NO_STATUS, Assembler, Close, Message, Opcode, Violation, close_body, parse_close

CONT, TEXT, BINARY = Opcode.CONTINUATION, Opcode.TEXT, Opcode.BINARY
LIMIT = 16
MAY_BE_SENT = {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, *range(3000, 5000)}


def run(*frames: tuple[int, bool, bytes], limit: int = LIMIT) -> list[Message | int]:
    """Feed frames; the messages that came out, and last the close code if one of the frames broke the protocol."""
    assembler, out = Assembler(limit), list[Message | int]()
    for opcode, fin, payload in frames:
        try:
            message = assembler.accept(opcode, fin, False, payload)
        except Violation as violation:
            return [*out, violation.code]
        if message is not None:
            out.append(message)
    return out


def fragments(kind: Opcode, payload: bytes, cuts: list[int]) -> list[tuple[int, bool, bytes]]:
    """Cut a message into frames at the given places."""
    places = [0, *sorted(cut % (len(payload) + 1) for cut in cuts), len(payload)]
    parts = [payload[start:end] for start, end in pairwise(places)]
    return [(CONT if n else kind, n == len(parts) - 1, part) for n, part in enumerate(parts)]


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        pytest.param([(TEXT, True, b"a")], [Message(TEXT, b"a")], id="text"),
        pytest.param([(BINARY, True, b"\xff")], [Message(BINARY, b"\xff")], id="binary need not be UTF-8"),
        pytest.param([(TEXT, True, b"")], [Message(TEXT, b"")], id="empty"),
        pytest.param([(TEXT, False, b"a"), (CONT, True, b"b")], [Message(TEXT, b"ab")], id="two fragments"),
        pytest.param([(BINARY, False, b""), (CONT, True, b"")], [Message(BINARY, b"")], id="empty fragments"),
        pytest.param(
            [(TEXT, False, b"a"), (CONT, False, b"b"), (CONT, True, b"c"), (BINARY, True, b"d")],
            [Message(TEXT, b"abc"), Message(BINARY, b"d")],
            id="the next message starts afresh",
        ),
        pytest.param([(CONT, True, b"a")], [1002], id="continuation of nothing"),
        pytest.param([(CONT, False, b"a")], [1002], id="unfinished continuation of nothing"),
        pytest.param([(TEXT, True, b"a"), (CONT, True, b"b")], [Message(TEXT, b"a"), 1002], id="after a whole message"),
        pytest.param([(TEXT, False, b"a"), (TEXT, True, b"b")], [1002], id="text inside a message"),
        pytest.param([(TEXT, False, b"a"), (BINARY, False, b"b")], [1002], id="binary inside a message"),
        pytest.param([(TEXT, False, b""), (TEXT, True, b"b")], [1002], id="text after an empty first fragment"),
    ],
)
def test_data_frames_make_messages_only_in_the_order_of_rfc_6455(frames, expected):
    """Section 5.4: a peer that mixes messages up cannot be understood, so the leg ends with 1002."""
    assert run(*frames) == expected


@pytest.mark.parametrize("opcode", [CONT, TEXT, BINARY], ids=lambda opcode: opcode.name.lower())
@pytest.mark.parametrize("fin", [True, False], ids=["fin", "more"])
def test_a_reserved_bit_is_a_violation_on_every_data_frame(opcode, fin):
    """No extension is negotiated that could give it a meaning (section 5.2)."""
    assembler = Assembler(LIMIT)
    if opcode == CONT:
        assembler.accept(TEXT, False, False, b"a")
    with pytest.raises(Violation) as caught:
        assembler.accept(opcode, fin, True, b"a")
    assert caught.value.code == 1002


@given(st.text(max_size=40), st.lists(st.integers(0, 200), max_size=6))
def test_text_may_be_cut_anywhere_even_inside_a_character(text, cuts):
    """UTF-8 holds for the message, not for its fragments (section 5.6)."""
    payload = text.encode()
    assert run(*fragments(TEXT, payload, cuts), limit=1000) == [Message(TEXT, payload)]


@given(st.binary(max_size=12), st.lists(st.integers(0, 20), max_size=4))
def test_text_is_accepted_exactly_if_it_is_utf8_however_it_is_cut(payload, cuts):
    """The model's server would close the call on it; the relay says whose fault it is."""
    try:
        payload.decode()
    except UnicodeDecodeError:
        expected: list[Message | int] = [1007]
    else:
        expected = [Message(TEXT, payload)]
    assert run(*fragments(TEXT, payload, cuts)) == expected


@pytest.mark.parametrize(
    "payload",
    [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"],
    ids=["no lead byte", "overlong", "surrogate", "above U+10FFFF", "cut off"],
)
def test_text_that_is_not_utf8_is_a_violation_with_1007(payload):
    """Each way of being wrong, in a message of one frame."""
    assert run((TEXT, True, b"ab" + payload)) == [1007]


def test_a_wrong_byte_is_refused_in_its_own_fragment():
    """Not at the end of the message: what is wrong already need not be waited for."""
    assert run((TEXT, False, b"ok"), (CONT, False, b"\xff")) == [1007]


def test_a_character_that_is_still_open_at_the_end_is_a_violation():
    """Its first bytes alone are no error yet; the end makes them one."""
    assert run((TEXT, False, b"\xe2\x82"), (CONT, True, b"")) == [1007]
    assert run((TEXT, False, b"\xe2\x82"), (CONT, True, b"\xac")) == [Message(TEXT, "€".encode())]


def test_an_open_character_does_not_leak_into_the_next_message():
    """The decoder belongs to the message."""
    assert run((BINARY, False, b"\xe2"), (CONT, True, b"\x82"), (TEXT, True, b"a"))[-1] == Message(TEXT, b"a")


@pytest.mark.parametrize("kind", [TEXT, BINARY], ids=["text", "binary"])
@pytest.mark.parametrize("cuts", [[], [4], [0, 5, 9], [LIMIT]], ids=["whole", "two", "four", "empty last"])
def test_a_message_may_be_as_long_as_the_limit_and_not_a_byte_longer(kind, cuts):
    """The limit protects memory, so that it counts over all fragments."""
    assert run(*fragments(kind, b"x" * LIMIT, cuts)) == [Message(kind, b"x" * LIMIT)]
    assert run(*fragments(kind, b"x" * (LIMIT + 1), cuts)) == [1009]


def test_a_message_that_is_too_long_is_refused_before_its_end():
    """Waiting for the last fragment would mean to keep what can't be used."""
    assert run((TEXT, False, b"x" * LIMIT), (CONT, False, b"x")) == [1009]


def test_the_limit_is_for_each_message():
    """A call has many messages."""
    whole = [(TEXT, False, b"x" * 9), (CONT, True, b"x" * 7)]
    assert run(*whole, *whole) == [Message(TEXT, b"x" * LIMIT)] * 2


def test_the_kind_says_whether_a_message_is_under_way():
    """The leg's fast path for whole text messages relies on it."""
    assembler = Assembler(LIMIT)
    assert assembler.kind is None
    assembler.accept(BINARY, False, False, b"")
    assert assembler.kind is BINARY
    assembler.accept(CONT, True, False, b"")
    assert assembler.kind is None


def test_a_close_code_is_accepted_exactly_if_it_may_be_sent():
    """Section 7.4: 1004, 1005, 1006 and 1015 never travel, and the rest is nobody's."""

    def answer(code: int) -> Close | int:
        try:
            return parse_close(code.to_bytes(2, "big"))
        except Violation as violation:
            return violation.code

    assert {code: answer(code) for code in range(65536)} == {
        code: Close(code, "") if code in MAY_BE_SENT else 1002 for code in range(65536)
    }


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(b"", Close(NO_STATUS, ""), id="no body"),
        pytest.param(b"\x03\xe8bye \xe2\x82\xac", Close(1000, "bye €"), id="reason"),
        pytest.param(b"\x03", 1002, id="half a code"),
        pytest.param(b"\x03\xe8\xff", 1007, id="reason is not UTF-8"),
        pytest.param(b"\x03\xe8\xe2\x82", 1007, id="reason is cut off"),
        pytest.param(b"\x03\xed\xff", 1002, id="wrong code and reason: the code counts"),
    ],
)
def test_the_body_of_a_close_is_a_code_and_a_reason_in_utf8(body, expected):
    """Section 5.5.1; a body that is neither is the peer's fault."""
    if isinstance(expected, Close):
        assert parse_close(body) == expected
        return
    with pytest.raises(Violation) as caught:
        parse_close(body)
    assert caught.value.code == expected


@given(st.sampled_from(sorted(MAY_BE_SENT)), st.text(max_size=30))
def test_a_close_survives_its_own_wire_form(code, reason):
    """Whatever code the model sends, the client can be told."""
    assert parse_close(close_body(Close(code, reason))) == Close(code, reason)


def test_no_status_is_an_empty_body():
    """1005 stands for the absence of a code and must not travel."""
    assert close_body(Close(NO_STATUS, "")) == b""
    assert close_body(Close(NO_STATUS, "why")) == b""


@given(st.text(max_size=200))
def test_a_reason_is_cut_at_the_last_whole_character_that_fits(reason):
    """A control frame has room for 125 bytes, and half a character would be a violation of our own."""
    kept = close_body(Close(1000, reason))[2:].decode()
    assert reason.startswith(kept)
    assert len(kept.encode()) <= 123
    assert kept == reason or len(reason[: len(kept) + 1].encode()) > 123


@pytest.mark.parametrize(
    ("reason", "kept"),
    [("x" * 200, 123), ("é" * 100, 61), ("€" * 100, 41), ("🎤" * 100, 30), ("x" + "🎤" * 40, 31), ("x" * 123, 123)],
    ids=["1 byte", "2 bytes", "3 bytes", "4 bytes", "mixed", "just fits"],
)
def test_a_long_reason_keeps_what_fits(reason, kept):
    """Characters of each width in UTF-8."""
    assert close_body(Close(1013, reason))[2:].decode() == reason[:kept]
