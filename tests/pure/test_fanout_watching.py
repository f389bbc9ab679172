"""The rules of watching a call's log: in order, once, and what is missing is said; no loop, no Redis."""

import random
from collections.abc import Iterable

import pytest

from fanout.core.envelope import Batch, LogKind
from fanout.core.records import pack_tombstone
from fanout.core.watching import HELD_MAX, HELD_MAX_BYTES, Cursor, Place, View, read_view
from fanout.messages import LogEntry, Tombstone, WatchEnd

EVENT, AUDIO, SNAPSHOT = LogKind.EVENT, LogKind.AUDIO, LogKind.SNAPSHOT
TOMBSTONE = Tombstone(
    id="rtc_iad_x", tenant="acme", node="a", region="iad", started_at=1.0, ended_at=2.0, why="left", fault="client"
)


def batch(first: int, count: int = 1, epoch: int = 7) -> Batch:
    """Events whose bodies are their numbers."""
    return Batch(epoch, first, [(EVENT, str(first + place).encode()) for place in range(count)])


def sound(next_number: int, *bodies: bytes, epoch: int = 7) -> Batch:
    return Batch(epoch, next_number, [(AUDIO, body) for body in bodies])


def view(*batches: Batch, first: str = "", last: str = "", state: str = "live", has_more: bool = False) -> View:
    """What a read found; unless told otherwise the log begins and ends with it."""
    ends = [Place(each.epoch, each.last) for each in batches] or [Place()]
    return View(
        state=state,
        first=Place.read(first) or ends[0],
        last=Place.read(last) or ends[-1],
        tombstone=TOMBSTONE if state == "ended" else None,
        batches=batches,
        has_more=has_more,
    )


def opened(after: str | None = None, found: View | None = None, *, wants_sound: bool = False) -> Cursor:
    cursor = Cursor(after, wants_sound=wants_sound)
    cursor.begin_read()
    cursor.on_view(found or view(last=after or ""))
    return cursor


def read(cursor: Cursor, found: View) -> list[str]:
    assert cursor.needs_read
    cursor.begin_read()
    return said(cursor.on_view(found))


def said(entries: Iterable[LogEntry]) -> list[str]:
    """Positions without the epoch's prefix where it is 7; the kind where there is no position."""
    return [entry.position.removeprefix("7-") or entry.kind for entry in entries]


def ring(cursor: Cursor, *args: int) -> list[str]:
    return said(cursor.on_batch(batch(*args)))


def test_batches_that_follow_each_other_are_handed_out_at_once():
    """The fast path: no read of the log while nothing is missing."""
    cursor = opened()
    assert [ring(cursor, 1), ring(cursor, 2, 2), ring(cursor, 4)] == [["1"], ["2", "3"], ["4"]]
    assert not cursor.needs_read


def test_an_entry_carries_its_body_and_its_position():
    """What a client gives back as Last-Event-ID is the number it has seen, of the owner that gave it."""
    [entry] = opened().on_batch(batch(1))
    assert entry == LogEntry(position="7-1", kind="event", body=b"1")


def test_who_begins_anew_gets_what_comes_and_not_what_was():
    """Its place is the end of the log."""
    cursor = Cursor(None, wants_sound=False)
    assert cursor.after == ""
    cursor.begin_read()
    assert cursor.on_view(view(first="7-1", last="7-57")) == []
    assert ring(cursor, 57) == []
    assert ring(cursor, 58) == ["58"]


def test_who_comes_back_gets_what_was_logged_since():
    """Also the rest of a batch of which it had a part."""
    cursor = Cursor("7-5", wants_sound=False)
    assert cursor.after == "7-5"
    cursor.begin_read()
    assert said(cursor.on_view(view(batch(4, 3), batch(7)))) == ["6", "7"]
    assert ring(cursor, 8) == ["8"]


def test_what_comes_before_the_first_answer_waits_for_it():
    """It is newer than what is read."""
    cursor = Cursor("7-1", wants_sound=False)
    cursor.begin_read()
    assert ring(cursor, 3) == []
    assert not cursor.needs_read  # whoever made the cursor is asking
    assert said(cursor.on_view(view(batch(2), batch(3)))) == ["2", "3"]


def test_a_repeat_is_handed_out_once():
    """Owners publish again what they don't know to be written."""
    cursor = opened()
    assert ring(cursor, 1, 2) == ["1", "2"]
    assert ring(cursor, 1, 2) == []
    assert not cursor.needs_read


def test_a_missing_number_is_read_before_what_follows_it():
    """Handing that out would put it before what was missed."""
    cursor = opened()
    ring(cursor, 1)
    assert ring(cursor, 4) == []
    assert ring(cursor, 5) == []
    assert cursor.after == "7-1"
    assert read(cursor, view(batch(2, 2), batch(4))) == ["2", "3", "4", "5"]
    assert cursor.counts.watch_gaps == 0


def test_what_the_log_no_longer_has_is_a_gap():
    """One, however much it is; and the rest goes on."""
    cursor = opened()
    ring(cursor, 1)
    ring(cursor, 9)
    assert read(cursor, view(batch(8), batch(9))) == ["gap", "8", "9"]
    assert cursor.counts.watch_gaps == 1


def test_what_the_owner_never_logged_is_a_gap():
    """It passes over the numbers of what it had to drop."""
    cursor = opened()
    ring(cursor, 1)
    ring(cursor, 3)
    assert read(cursor, view(batch(1), batch(3))) == ["gap", "3"]


def test_what_was_heard_before_the_read_and_is_in_no_log_comes_after_the_gap():
    """Redis lost it in between; another read would not find it either."""
    cursor = opened()
    ring(cursor, 1)
    ring(cursor, 3)
    assert read(cursor, view(batch(1))) == ["gap", "3"]
    assert not cursor.needs_read


def test_what_came_after_the_read_was_asked_is_missed_only_if_another_read_lacks_it():
    """The read may have been answered before it was written."""
    cursor = opened()
    ring(cursor, 1)
    cursor.ask_read()
    cursor.begin_read()
    assert ring(cursor, 3) == []
    assert said(cursor.on_view(view(batch(1)))) == []
    assert read(cursor, view(batch(2), batch(3))) == ["2", "3"]


def test_an_acknowledged_channel_is_a_reason_to_read():
    """Nothing says what was published before."""
    cursor = opened()
    ring(cursor, 1)
    cursor.ask_read()
    assert ring(cursor, 3) == []
    assert read(cursor, view(batch(2), batch(3))) == ["2", "3"]


def test_a_read_without_an_answer_is_asked_again():
    """With what came meanwhile."""
    cursor = opened()
    cursor.ask_read()
    cursor.begin_read()
    assert not cursor.needs_read
    cursor.fail_read()
    assert read(cursor, view(batch(1))) == ["1"]


def test_a_long_log_is_read_in_parts():
    """Each is handed out as it comes."""
    cursor = opened("7-0")
    cursor.ask_read()
    assert read(cursor, view(batch(1), batch(2), last="7-3", has_more=True)) == ["1", "2"]
    assert cursor.after == "7-2"
    assert read(cursor, view(batch(3))) == ["3"]
    assert not cursor.needs_read


def test_a_read_after_an_earlier_place_repeats_nothing():
    """Watches of one call share their reads."""
    cursor = opened()
    ring(cursor, 1, 5)
    cursor.ask_read()
    assert read(cursor, view(batch(1, 2), batch(3), batch(4, 3))) == ["6"]


def test_another_owners_log_goes_on_with_its_first_number():
    """After what the one before has left in the log."""
    cursor = opened()
    ring(cursor, 1)
    assert ring(cursor, 1, 1, 9) == []
    assert read(cursor, view(batch(1), batch(2), batch(1, epoch=9))) == ["2", "9-1"]
    assert cursor.counts.watch_gaps == 0
    assert ring(cursor, 3) == []  # a last word of the owner before
    assert ring(cursor, 2, 1, 9) == ["9-2"]


def test_another_owners_first_number_is_taken_at_once_where_there_was_none_before():
    """Most watches begin so: the owner logs because somebody watches."""
    cursor = opened()
    assert ring(cursor, 1, 1, 9) == ["9-1"]
    assert not cursor.needs_read


def test_numbers_that_are_missing_across_owners_are_a_gap():
    """At the new one's beginning, and where the log no longer reaches back to the old one's end."""
    cursor = opened()
    ring(cursor, 1)
    cursor.ask_read()
    assert read(cursor, view(batch(1), batch(2, epoch=9))) == ["gap", "9-2"]
    cursor.ask_read()
    assert read(cursor, view(batch(1, epoch=11), first="11-1")) == ["gap", "11-1"]


def test_the_session_is_an_entry_of_its_own_kind():
    """A snapshot of it is where the log begins."""
    cursor = opened()
    [entry] = cursor.on_batch(Batch(7, 1, [(SNAPSHOT, b"{}")]))
    assert entry == LogEntry(position="7-1", kind="session", body=b"{}")


def test_who_begins_anew_misses_nothing_of_a_log_that_begins_again_for_it():
    """The number that was passed over says to others that the log was not written for a while."""
    again = Batch(7, 59, [(SNAPSHOT, b"{}"), (EVENT, b"60")])
    assert said(opened(None, view(last="7-57")).on_batch(again)) == ["59", "60"]
    cursor = opened("7-57", view(last="7-57"))
    assert cursor.on_batch(again) == []
    assert read(cursor, view(again, first="7-1")) == ["gap", "59", "60"]


def test_a_position_that_the_log_has_not_reached_is_a_gap_from_now_on():
    """Redis has lost it. Nothing that is there now is above it, so nothing is told twice."""
    cursor = Cursor("7-57", wants_sound=False)
    cursor.begin_read()
    assert said(cursor.on_view(view(last="7-20"))) == ["gap"]
    assert ring(cursor, 21) == ["21"]


def test_one_gap_is_said_where_nothing_came_between_two():
    """It says the same."""
    cursor = Cursor("7-57", wants_sound=False)
    cursor.begin_read()
    assert said(cursor.on_view(view())) == ["gap"]
    ring(cursor, 58)
    assert read(cursor, view(batch(58))) == ["58"]


@pytest.mark.parametrize("after", ["", "7", "7-", "x-1", "7-1 ", "-7--1", f"{'9' * 20}-1"])
def test_a_position_that_is_none_is_one_that_no_log_has_any_more(after):
    """It comes from the outside, as Last-Event-ID, and Redis must not see it."""
    cursor = Cursor(after, wants_sound=False)
    assert cursor.after == "0-0"
    cursor.begin_read()
    assert said(cursor.on_view(view(batch(1)))) == ["gap", "1"]


def test_audio_is_handed_out_in_its_place_to_who_wants_it():
    """It has no number, so none to go on from."""
    mixed = Batch(7, 1, [(AUDIO, b"a"), (EVENT, b"1"), (AUDIO, b"b")])
    cursor = opened(wants_sound=True)
    assert said([*cursor.on_batch(mixed), *cursor.on_batch(sound(2, b"c"))]) == ["audio", "1", "audio", "audio"]
    assert said([*(deaf := opened()).on_batch(mixed), *deaf.on_batch(sound(2, b"c"))]) == ["1"]


def test_audio_of_a_repeat_is_not_heard_again():
    """Nor what a read has overtaken."""
    mixed = Batch(7, 1, [(AUDIO, b"a"), (EVENT, b"1"), (AUDIO, b"b")])
    cursor = opened(wants_sound=True)
    cursor.on_batch(mixed)
    assert cursor.on_batch(mixed) == []
    assert cursor.on_batch(sound(1, b"old")) == []
    assert cursor.on_batch(sound(1, b"old", epoch=6)) == []


def test_audio_of_a_batch_that_is_known_in_part_is_heard_from_there_on():
    """What came before was heard, or is over."""
    mixed = Batch(7, 1, [(AUDIO, b"a"), (EVENT, b"1"), (AUDIO, b"b"), (EVENT, b"2")])
    cursor = opened("7-1", wants_sound=True)
    assert [entry.body for entry in cursor.on_batch(mixed)] == [b"b", b"2"]


def test_audio_alone_tells_that_a_number_is_missing():
    """It names the next one."""
    cursor = opened(wants_sound=True)
    ring(cursor, 1)
    assert cursor.on_batch(sound(3, b"a")) == []
    assert read(cursor, view(batch(2))) == ["2", "audio"]


def test_what_was_in_the_log_at_the_look_before_has_come_or_is_read():
    """A channel may lose the last message for a while; what came with the look may still be under way."""
    cursor = opened()
    ring(cursor, 1)
    assert cursor.on_look(Place(7, 2))
    assert not cursor.needs_read
    assert cursor.on_look(Place(7, 2))
    assert read(cursor, view(batch(2))) == ["2"]
    assert not cursor.on_look(Place(7, 2))
    assert not cursor.needs_read


def test_what_is_in_the_log_and_cannot_be_read_is_a_gap():
    """A newer version wrote it."""
    cursor = opened()
    ring(cursor, 1)
    cursor.ask_read()
    assert read(cursor, view(last="7-3")) == ["gap"]
    assert ring(cursor, 4) == ["4"]


@pytest.mark.parametrize(("count", "size"), [(HELD_MAX + 1, 1), (2, HELD_MAX_BYTES)], ids=["items", "bytes"])
def test_what_is_held_during_a_read_is_bounded_and_read_instead(count, size):
    """Redis may be away for long, and it has the log."""
    cursor = opened()
    cursor.ask_read()
    cursor.begin_read()
    for number in range(1, count + 1):
        cursor.on_batch(Batch(7, number, [(EVENT, b"x" * size)]))
    assert cursor.on_view(view(last="")) == []
    assert read(cursor, view(*(batch(number) for number in range(1, count + 1)))) == [
        str(number) for number in range(1, count + 1)
    ]


def test_what_comes_after_too_much_was_held_is_not_taken_for_what_came_before_the_read():
    """Between it and the read lies what was let go."""
    cursor = opened()
    ring(cursor, 1)
    ring(cursor, 3)
    cursor.begin_read()
    for number in range(4, HELD_MAX + 5):
        ring(cursor, number)
    assert said(cursor.on_view(view(batch(2)))) == ["2"]
    assert read(cursor, view(batch(3, HELD_MAX + 2))) == [str(number) for number in range(3, HELD_MAX + 5)]


def test_the_calls_end_is_the_watchs_end_at_once():
    """The channel says it after everything else."""
    cursor = opened()
    ring(cursor, 1)
    cursor.on_ended(TOMBSTONE)
    assert cursor.end == WatchEnd(tombstone=TOMBSTONE, lost=False)
    assert not cursor.needs_read
    assert ring(cursor, 2) == []


def test_an_end_that_comes_while_something_is_missing_waits_for_the_rest_of_the_log():
    """It is kept for who comes late."""
    cursor = opened()
    ring(cursor, 2)
    cursor.on_ended(TOMBSTONE)
    assert cursor.end is None
    assert read(cursor, view(batch(1), last="7-3", state="ended", has_more=True)) == ["1"]
    assert cursor.end is None
    assert read(cursor, view(batch(2), batch(3), state="ended")) == ["2", "3"]
    assert cursor.end == WatchEnd(tombstone=TOMBSTONE, lost=False)


def test_an_end_that_comes_while_the_log_is_being_read_is_found_by_another_read():
    """The one that is under way may have been answered before it."""
    cursor = Cursor(None, wants_sound=False)
    cursor.begin_read()
    cursor.on_ended(TOMBSTONE)
    cursor.on_view(view())
    assert cursor.end is None
    assert read(cursor, view(state="ended")) == []
    assert cursor.end == WatchEnd(tombstone=TOMBSTONE, lost=False)


def test_a_call_that_is_gone_is_lost_and_the_first_end_holds():
    """Nobody knows how it ended."""
    cursor = opened()
    cursor.on_lost()
    cursor.on_ended(TOMBSTONE)
    cursor.begin_read()
    assert cursor.on_view(view(batch(1), state="ended")) == []
    assert cursor.end == WatchEnd(tombstone=None, lost=True)
    (ended := opened()).on_ended(TOMBSTONE)
    ended.on_lost()
    assert ended.end == WatchEnd(tombstone=TOMBSTONE, lost=False)


def test_the_answer_of_the_script_is_read_into_a_view():
    """Empty ids are an empty log; a batch that cannot be read is counted and left out."""
    found = read_view(
        [b"live", b"7-2", b"7-9", b"{}", b"record", batch(1, 2).pack(), b"\xc1", batch(3).pack()], max_bytes=1000
    )
    assert found == View(
        state="live",
        first=Place(7, 2),
        last=Place(7, 9),
        session=b"{}",
        batches=(batch(1, 2), batch(3)),
        has_more=True,
        unreadable=1,
    )
    assert read_view([b"reserved", b"", b"", b"", b""], max_bytes=1000) == View("reserved")
    assert read_view([b"absent"], max_bytes=1000) == View("absent")
    ended = read_view([b"ended", pack_tombstone(TOMBSTONE), b"7-1", b"7-1", b"", batch(1).pack()], max_bytes=1000)
    assert (ended.tombstone, ended.has_more) == (TOMBSTONE, False)
    assert read_view([b"live", b"7-1", b"7-1", b"", b"", batch(1).pack()], max_bytes=3).unreadable == 1


@pytest.mark.parametrize("seed", range(200))
def test_whatever_is_lost_late_or_repeated_the_order_holds_and_every_hole_is_said(seed):
    """Random owners, channels and logs: numbers only climb, each once, and a jump has a gap before it."""
    chance = random.Random(seed)
    epoch, number = 10, 0
    log: list[Batch] = []
    channel: list[Batch] = []
    got: list[LogEntry] = []
    pending: View | None = None
    cursor = Cursor("10-0", wants_sound=False)
    cursor.begin_read()
    got += cursor.on_view(View("live"))

    def look(after: Place) -> View:
        kept = [each for each in log if (each.epoch, each.last) > after]
        page = tuple(kept[: chance.randint(1, 4)])
        ends = [Place(each.epoch, each.last) for each in log]
        return View(
            "live",
            first=ends[0] if ends else Place(),
            last=ends[-1] if ends else Place(),
            batches=page,
            has_more=bool(page) and Place(page[-1].epoch, page[-1].last) < ends[-1],
        )

    def write() -> None:
        nonlocal epoch, number
        if chance.random() < 0.05:
            epoch, number = epoch + 1, 0
        number += 1 + (chance.random() < 0.1)  # or passes one over
        made = batch(number, chance.randint(1, 3), epoch)
        number = made.last
        log.append(made)
        channel.extend([made] * chance.choice([0, 1, 1, 1, 2]))
        if chance.random() < 0.2:
            del log[: chance.randint(0, len(log) - 1)]

    for step in range(200):
        if step < 150 and chance.random() < 0.5:
            write()
        if channel and chance.random() < 0.6:
            got += cursor.on_batch(channel.pop(0))
        if chance.random() < 0.05:
            channel.clear()
            cursor.ask_read()
        if pending is not None and chance.random() < 0.5:
            got += cursor.on_view(pending)
            pending = None
        elif pending is None and cursor.needs_read:
            cursor.begin_read()
            pending = look(cursor.place)
    if pending is not None:
        got += cursor.on_view(pending)
    for each in channel:
        got += cursor.on_batch(each)
    cursor.ask_read()
    while cursor.needs_read:
        cursor.begin_read()
        got += cursor.on_view(look(cursor.place))
    place = Place(10, 0)
    is_gap = False
    for entry in got:
        if entry.kind == "gap":
            is_gap = True
            continue
        here = Place.read(entry.position)
        assert here is not None
        assert here > place
        assert is_gap or here in {(place.epoch, place.number + 1), (here.epoch, 1)}
        place, is_gap = here, False
    assert place == (epoch, number) or not log
