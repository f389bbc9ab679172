"""How long a connection is waited for: a slow peer is served, an endless one is cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.waiting import HEAD_BYTES, IDLE_SECONDS, LEAVE_SECONDS, LINGER_SECONDS, Late, Size, Waiting

HEAD = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


def waiting(now: float = 0.0) -> Waiting:
    return Waiting(now, handshake_seconds=10.0, stall_seconds=15.0)


def look(one: Waiting, now: float, unsent: int = 0, is_whole: bool = True) -> Late | None:
    return one.on_look(now, unsent=unsent, is_whole=is_whole)


def test_a_peer_that_says_nothing_is_late_after_the_handshake_time():
    """A socket costs memory."""
    one = waiting(100.0)
    assert look(one, 109.9) is None
    assert look(one, 110.0) is Late.REQUEST


def test_bytes_of_a_head_do_not_move_its_deadline():
    """One byte a second would hold a connection for hours."""
    one = waiting()
    for second in range(10):
        assert one.on_data(b"x", float(second)) is Size.FITS
        assert look(one, float(second)) is None
    assert look(one, 10.0) is Late.HEAD


@pytest.mark.parametrize("blank", [b"\r\n", b"\r\n\r\n", b"\n\n\r\n\r\n"])
def test_blank_lines_are_no_head(blank):
    """Parsers skip them before a request line; the deadline and the limit hold for what comes after."""
    one = waiting()
    for second in range(9):
        assert one.on_data(blank, float(second)) is Size.FITS
    assert look(one, 10.0) is Late.REQUEST
    one = waiting()
    one.on_data(blank, 0.0)
    assert one.on_data(b"x" * (HEAD_BYTES + 1), 1.0) is Size.LONG_LINE


def test_the_end_of_a_head_is_not_yet_a_request():
    """aiohttp may see none in it."""
    one = waiting()
    assert one.on_data(HEAD, 0.0) is Size.FITS
    assert look(one, 10.0) is Late.HEAD


def test_a_request_has_the_time_that_its_handler_gives_itself():
    """A stream of events lasts as long as its call."""
    one = waiting()
    one.on_data(HEAD, 0.0)
    one.on_request(1.0, is_whole=True)
    assert look(one, 1e6) is None


def test_after_an_answer_the_next_request_has_the_time_of_a_kept_connection():
    """And its head the same as the first one's."""
    one = waiting()
    one.on_request(0.0, is_whole=True)
    one.on_answer(5.0, is_whole=True)
    assert look(one, 5.0 + IDLE_SECONDS - 0.1) is None
    assert look(one, 5.0 + IDLE_SECONDS) is Late.REQUEST
    one.on_data(b"G", 20.0)
    assert look(one, 29.9) is None
    assert look(one, 30.0) is Late.HEAD


def test_a_body_is_late_once_and_only_if_it_is_not_there():
    """The handler then answers; its answer has its own time."""
    one = waiting()
    one.on_request(3.0, is_whole=False)
    assert look(one, 12.9, is_whole=False) is None
    assert look(one, 13.0, is_whole=False) is Late.BODY
    assert look(one, 14.0, is_whole=False) is None
    one = waiting()
    one.on_request(3.0, is_whole=False)
    assert look(one, 13.0, is_whole=True) is None
    assert look(one, 1e6, is_whole=False) is None


def test_a_body_that_was_answered_before_it_came_is_read_for_a_while():
    """Else the peer, still sending, would be reset before it reads the answer."""
    one = waiting()
    one.on_request(0.0, is_whole=False)
    one.on_answer(1.0, is_whole=False)
    assert one.on_data(b"x" * (HEAD_BYTES + 1), 1.0) is Size.FITS
    assert not one.is_leaving
    assert look(one, 1.0 + 2 * LINGER_SECONDS - 0.1) is None
    assert look(one, 1.0 + 2 * LINGER_SECONDS) is Late.LEAVER


def test_who_was_turned_away_has_time_to_read_it():
    """No longer: nothing comes after."""
    one = waiting()
    one.on_leave(7.0)
    assert one.is_leaving
    one.on_request(7.5, is_whole=True)
    one.on_answer(7.5, is_whole=True)
    assert look(one, 7.0 + LEAVE_SECONDS - 0.1) is None
    assert look(one, 7.0 + LEAVE_SECONDS) is Late.LEAVER


def test_a_reader_that_takes_nothing_is_cut_and_a_slow_one_is_not():
    """A long answer to a phone may take minutes."""
    one = waiting()
    one.on_request(0.0, is_whole=True)
    one.on_answer(0.0, is_whole=True)
    for second in range(100):
        assert look(one, float(second), unsent=1000 - second) is None
    assert look(one, 99.0 + 15.0, unsent=901) is None
    assert look(one, 99.0 + 15.1, unsent=901) is Late.READER


def test_after_a_long_answer_was_taken_the_connection_is_kept_as_long_as_after_a_short_one():
    """Its reader may ask again."""
    one = waiting()
    one.on_request(0.0, is_whole=True)
    one.on_answer(0.0, is_whole=True)
    assert look(one, 31.0, unsent=5) is None
    assert look(one, 32.0) is None
    assert look(one, 31.0 + IDLE_SECONDS) is Late.REQUEST


@settings(derandomize=True)
@given(st.integers(0, HEAD_BYTES + 100), st.lists(st.integers(1, 5000), min_size=1), st.booleans())
def test_a_head_is_measured_the_same_however_it_is_cut(size, cuts, body):
    """TCP cuts where it likes."""
    head = b"GET / HTTP/1.1\r\nX: " + b"y" * size + b"\r\n\r\n"
    data = head + (b"z" * 2 * HEAD_BYTES if body else b"")
    one, at, found, turn = waiting(), 0, Size.FITS, 0
    while at < len(data) and found is Size.FITS:
        piece = data[at : at + cuts[turn % len(cuts)]]
        found = one.on_data(piece, 0.0)
        at, turn = at + len(piece), turn + 1
    assert found is (Size.FITS if len(head) <= HEAD_BYTES else Size.TOO_LARGE)
    if found is not Size.FITS:
        assert at <= HEAD_BYTES + max(cuts)


@pytest.mark.parametrize("size", [HEAD_BYTES, HEAD_BYTES + 1])
@pytest.mark.parametrize("back", range(1, 8))
def test_the_limit_is_exact_wherever_the_end_of_a_head_is_cut(size, back):
    """In its last line, or between the bytes that end it."""
    one, start = waiting(), b"GET / HTTP/1.1\r\nX: "
    head = start + b"y" * (size - len(start) - 4) + b"\r\n\r\n"
    one.on_data(head[:-back], 0.0)
    assert one.on_data(head[-back:] + b"body", 0.0) is (Size.FITS if size == HEAD_BYTES else Size.TOO_LARGE)


def test_the_next_head_is_measured_from_its_own_beginning():
    """A kept connection may carry many."""
    one = waiting()
    for _ in range(1000):
        assert one.on_data(HEAD + b"x" * 500, 0.0) is Size.FITS
        one.on_request(0.0, is_whole=True)
        assert one.on_data(b"y" * 10_000, 0.0) is Size.FITS
        one.on_answer(0.0, is_whole=True)
    assert one.on_data(b"x" * (HEAD_BYTES + 1), 0.0) is Size.LONG_LINE
