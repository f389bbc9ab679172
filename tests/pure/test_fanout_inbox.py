"""The inbox's rules: once, in order, nothing missed, nothing late; no loop, no Redis, time as an argument."""

import random
from collections.abc import Iterable

import pytest

from fanout.core.inbox import Entry, Inbox, Position, ReadTicket
from fanout.messages import Message, Status

NOW = 1000.0


def entry(number: int, message_id: str | None = None, *, expires_at: float = NOW + 60, response: bool = False) -> Entry:
    message_id = message_id or f"m{number}"
    message = Message(id=message_id, item=b"{}", expires_at=expires_at, response=response, item_id=f"item_{message_id}")
    return Entry(f"{number}-0", message_id, message)


def place(number: int) -> Position:
    return Position(f"{number}-0", f"m{number}") if number else Position()


def ring(inbox: Inbox, number: int) -> list[str]:
    return [message.id for message in inbox.on_bell(entry(number), place(number - 1), NOW)]


def read(inbox: Inbox, numbers: Iterable[int], ticket: ReadTicket | None = None) -> list[str]:
    numbers = list(numbers)
    ticket = ticket or inbox.begin_read()
    last = place(numbers[-1] if numbers else 0)
    found = [message.id for message in inbox.on_entries([entry(n) for n in numbers], NOW)]
    inbox.end_read(last, ticket)
    return found


def test_rings_that_follow_each_other_are_deliveries():
    """The fast path: no read of the stream for a message that comes in order."""
    inbox = Inbox()
    assert [ring(inbox, number) for number in (1, 2, 3)] == [["m1"], ["m2"], ["m3"]]
    assert not inbox.needs_read


def test_a_ring_after_a_gap_delivers_nothing_and_asks_for_a_read():
    """Delivering it would put it before the one that was missed."""
    inbox = Inbox()
    ring(inbox, 1)
    assert ring(inbox, 3) == []
    assert inbox.needs_read
    assert inbox.counts.gaps == 1
    assert read(inbox, [1, 2, 3]) == ["m2", "m3"]
    assert not inbox.needs_read
    assert ring(inbox, 4) == ["m4"]


def test_a_message_is_delivered_once_however_often_it_comes():
    """Publishers repeat, and the stream is read again and again."""
    inbox = Inbox()
    assert ring(inbox, 1) == ["m1"]
    assert ring(inbox, 1) == []
    assert read(inbox, [1]) == []
    assert inbox.on_bell(Entry("1-0", "m1", None), Position(), NOW) == []


def test_a_ring_while_the_stream_is_read_is_not_forgotten():
    """The read was begun before the entry was there, so its result doesn't hold it."""
    inbox = Inbox()
    ring(inbox, 2)
    ticket = inbox.begin_read()
    assert ring(inbox, 4) == []
    assert read(inbox, [1, 2], ticket) == ["m1", "m2"]
    assert inbox.needs_read
    assert read(inbox, [1, 2, 3, 4]) == ["m3", "m4"]


def test_a_read_that_a_ring_overtook_does_not_set_the_position_back():
    """It would make the next ring look like a gap."""
    inbox = Inbox()
    inbox.ask_read()
    ticket = inbox.begin_read()
    assert ring(inbox, 1) == ["m1"]
    assert read(inbox, [], ticket) == []
    assert ring(inbox, 2) == ["m2"]
    assert inbox.counts.gaps == 0


def test_a_new_owner_learns_the_place_from_the_read_even_if_nothing_is_left_in_the_stream():
    """What had its terminal receipt was trimmed; the next ring still names it as the one before."""
    inbox = Inbox()
    inbox.end_read(place(7), inbox.begin_read())
    assert ring(inbox, 8) == ["m8"]
    assert inbox.counts.gaps == 0


def test_the_sweep_reads_only_where_the_last_entry_is_another():
    """Ten thousand quiet calls must cost nothing but the look."""
    inbox = Inbox()
    ring(inbox, 1)
    inbox.on_last_entry(place(1))
    assert not inbox.needs_read
    inbox.on_last_entry(place(2))
    assert inbox.needs_read


def test_an_entry_id_that_recurs_with_another_message_is_a_gap():
    """After a roll-back the new primary may give the same id again; the chain compares both names."""
    inbox = Inbox()
    ring(inbox, 1)
    assert inbox.on_bell(entry(2), Position("1-0", "other"), NOW) == []
    assert inbox.needs_read


def test_a_ring_without_a_message_asks_for_a_read_if_the_message_is_unknown():
    """A publisher rang again for an entry whose first ring was lost."""
    inbox = Inbox()
    assert inbox.on_bell(Entry("1-0", "m1", None), Position(), NOW) == []
    assert inbox.needs_read
    assert read(inbox, [1]) == ["m1"]


def test_a_repeat_makes_the_verdict_be_written_again():
    """The publisher repeats because it missed the answer, or because Redis lost it."""
    inbox = Inbox()
    ring(inbox, 1)
    inbox.on_written("m1", Status.DELIVERED)
    assert not inbox.has_unwritten
    ring(inbox, 1)
    assert [message_id for message_id, _ in inbox.unwritten()] == ["m1"]


def test_a_known_message_that_comes_as_a_new_entry_moves_the_place():
    """Redis lost the entry and the publisher put it in again: no delivery, and the next ring still follows."""
    inbox = Inbox()
    ring(inbox, 1)
    assert inbox.on_bell(entry(5, "m1"), place(1), NOW) == []
    assert [m.id for m in inbox.on_bell(entry(6), Position("5-0", "m1"), NOW)] == ["m6"]


def test_a_message_past_its_deadline_expires_instead_of_being_delivered():
    """Never late: the owner judges, at the moment of delivery."""
    inbox = Inbox()
    assert inbox.on_bell(entry(1, expires_at=NOW), Position(), NOW) == []
    [(message_id, verdict)] = inbox.unwritten()
    assert (message_id, verdict.status, list(verdict.reached)) == ("m1", Status.EXPIRED, ["expired"])
    assert ring(inbox, 2) == ["m2"]


def test_an_entry_that_cannot_be_read_fails_and_does_not_block_the_rest():
    """A newer node may write what this version doesn't know; silence would leave its publisher waiting."""
    inbox = Inbox()
    inbox.ask_read()
    delivered = inbox.on_entries([Entry("1-0", "m1", None), entry(2)], NOW)
    assert [message.id for message in delivered] == ["m2"]
    assert dict(inbox.unwritten())["m1"].status is Status.FAILED


def test_a_message_that_an_earlier_owner_applied_does_not_expire():
    """The item is in the conversation; what may be missing is the response to it."""
    inbox = Inbox()
    late = entry(1, expires_at=NOW)._replace(is_applied=True)
    assert [message.id for message in inbox.on_entries([late], NOW)] == ["m1"]


def test_a_verdict_only_climbs():
    """A late "applied" must not cover the end, and a second end changes nothing."""
    inbox = Inbox()
    inbox.on_bell(entry(1, response=True), Position(), NOW)
    assert inbox.settle("m1", Status.APPLIED, NOW + 1, item_id="given")
    assert not inbox.settle("m1", Status.DELIVERED, NOW + 2)
    assert inbox.settle("m1", Status.ANSWERED, NOW + 3)
    assert not inbox.settle("m1", Status.FAILED, NOW + 4, error={"code": "late"})
    [(_, verdict)] = inbox.unwritten()
    assert verdict.reached == {"delivered": NOW, "applied": NOW + 1, "answered": NOW + 3}
    assert (verdict.status, verdict.item_id, verdict.error) == (Status.ANSWERED, "given", None)


def test_applied_is_the_end_where_no_answer_was_asked():
    """Then nothing follows that could be waited for."""
    inbox = Inbox()
    ring(inbox, 1)
    assert inbox.settle("m1", Status.APPLIED, NOW)
    assert not inbox.settle("m1", Status.ANSWERED, NOW)


def test_a_verdict_on_a_message_never_seen_is_ignored():
    """Nothing could be written for it."""
    assert not Inbox().settle("m1", Status.APPLIED, NOW)


def test_what_was_said_while_redis_answered_is_still_to_be_written():
    """The confirmation is for the status that was sent."""
    inbox = Inbox()
    ring(inbox, 1)
    inbox.settle("m1", Status.APPLIED, NOW)
    inbox.on_written("m1", Status.DELIVERED)
    assert inbox.has_unwritten
    inbox.on_written("m1", Status.APPLIED)
    assert not inbox.has_unwritten


def test_after_redis_lost_its_data_everything_is_said_again():
    """Else a message told "applied" would have no receipt any more, and its repeat would be taken for a new one."""
    inbox = Inbox()
    ring(inbox, 1)
    inbox.settle("m1", Status.APPLIED, NOW)
    inbox.on_written("m1", Status.APPLIED)
    inbox.rewrite()
    assert [message_id for message_id, _ in inbox.unwritten()] == ["m1"]
    assert inbox.needs_read


def test_at_the_end_of_the_call_what_is_open_has_failed():
    """Every message gets its end; one that had it keeps it."""
    inbox = Inbox()
    ring(inbox, 1)
    ring(inbox, 2)
    inbox.settle("m1", Status.APPLIED, NOW)
    inbox.settle_open(NOW + 1, {"code": "call_ended"})
    assert {message_id: verdict.status for message_id, verdict in inbox.unwritten()} == {
        "m1": Status.APPLIED,
        "m2": Status.FAILED,
    }


def test_what_is_open_is_never_forgotten():
    """The script's cap bounds it; forgetting here would deliver twice."""
    inbox = Inbox(known_max=1)
    assert [ring(inbox, number) for number in (1, 2)] == [["m1"], ["m2"]]
    assert read(inbox, [1, 2]) == []


def test_memory_is_bounded_by_forgetting_what_is_settled_and_written():
    """What is open or unwritten stays: forgetting it would deliver it twice or lose its verdict."""
    inbox = Inbox(known_max=3)
    for number in range(1, 7):
        ring(inbox, number)
        if number != 1:
            inbox.settle(f"m{number}", Status.APPLIED, NOW)
            inbox.on_written(f"m{number}", Status.APPLIED)
    assert ring(inbox, 1) == []  # open, so remembered though the oldest
    assert [n for n in range(1, 7) if not inbox.settle(f"m{n}", Status.FAILED, NOW)] == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("seed", range(50))
def test_whatever_rings_are_lost_or_doubled_all_is_delivered_once_and_in_order(seed):
    """The promise itself, against a stream that is read late and trimmed of what is done."""
    chance = random.Random(seed)
    inbox, stream, delivered, written = Inbox(), [], [], 0
    ticket, snapshot, last = None, [], 0
    for _ in range(400):
        match chance.randrange(5):
            case 0 | 1:
                written += 1
                stream.append(written)
                if chance.random() < 0.7:
                    delivered += ring(inbox, written)
            case 2 if stream:
                number = chance.choice(stream)
                delivered += [m.id for m in inbox.on_bell(Entry(f"{number}-0", f"m{number}", None), Position(), NOW)]
            case 3 if ticket is None:
                ticket, snapshot, last = inbox.begin_read(), list(stream), written
            case 3:
                delivered += [message.id for message in inbox.on_entries([entry(n) for n in snapshot], NOW)]
                inbox.end_read(place(last), ticket)
                ticket = None
            case _:
                done = {int(message_id[1:]) for message_id in delivered if chance.random() < 0.5}
                stream = [number for number in stream if number not in done]
    inbox.on_last_entry(place(written))
    if inbox.needs_read:
        delivered += [message.id for message in inbox.on_entries([entry(n) for n in stream], NOW)]
    assert delivered == [f"m{number}" for number in range(1, written + 1)]
