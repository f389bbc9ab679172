"""What one reader of a call's events is sent: order, format, bounds, and how it ends."""

import json
from typing import Any, NamedTuple

import pytest

from fanout import LogEntry, Tombstone, WatchEnd
from relay.api.sse import Feed

SESSION = b'{"type":"realtime","model":"sim"}'


class Sent(NamedTuple):
    id: str
    type: str
    data: Any


def read(stream: bytes) -> list[Sent]:
    """As an EventSource does (HTML standard, section 9.2.6)."""
    events, fields = [], {"id": "", "event": "", "data": []}
    for line in stream.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line and fields["data"]:
            events.append(Sent(fields["id"], fields["event"], json.loads("\n".join(fields["data"]))))
        if not line:
            fields = {"id": "", "event": "", "data": []}
        elif name == "data":
            fields["data"].append(value)
        else:
            fields[name] = value
    return events


def feed(*, resumed: bool = False, session: bytes | None = SESSION, **limits: int) -> Feed:
    made = Feed("rtc_iad_1", resumed=resumed, **limits)
    made.begin(session, "event_1", "7-3")
    return made


def event(number: int, body: bytes = b'{"type":"response.created","event_id":"e"}') -> LogEntry:
    return LogEntry(f"7-{number}", "event", body)


def tombstone() -> Tombstone:
    return Tombstone(
        id="rtc_iad_1", tenant="t", node="a", region="iad", started_at=1.0, ended_at=2.0, why="hung_up", fault="client"
    )


def test_it_begins_with_the_session_and_then_has_events_as_they_are():
    """With their positions, so that a reader can come again."""
    made = feed()
    made.add(event(1))
    first, second = read(made.take())
    assert first == (
        "7-3",
        "session.created",
        {"type": "session.created", "event_id": "event_1", "session": json.loads(SESSION)},
    )
    assert second == ("7-1", "response.created", {"type": "response.created", "event_id": "e"})
    assert made.take() == b""


def test_one_who_comes_again_is_not_greeted_again():
    """It goes on with what came since."""
    made = feed(resumed=True)
    made.add(event(5))
    assert [sent.id for sent in read(made.take())] == ["7-5"]


def test_what_an_ended_call_left_needs_no_session():
    """There is none any more, and the rest must not wait for one."""
    made = feed(resumed=True, session=None)
    made.add(event(5))
    assert [sent.id for sent in read(made.take())] == ["7-5"]


def test_a_call_that_has_not_begun_greets_when_it_does():
    """Nothing before it, and once."""
    made = feed(session=None)
    made.add(event(1))
    assert made.take() == b""
    made.add(LogEntry("7-2", "session", SESSION))
    made.add(LogEntry("7-3", "session", SESSION))
    made.add(event(4))
    assert [(sent.id, sent.type) for sent in read(made.take())] == [
        ("7-2", "session.created"),
        ("7-2", "response.created"),
        ("7-4", "response.created"),
    ]


def test_a_gap_is_said_where_it_is():
    """A reader that believes it saw all would be wrong for ever."""
    made = feed()
    made.take()
    made.add(event(1))
    made.add(LogEntry("", "gap"))
    made.add(event(9))
    assert [sent.type for sent in read(made.take())] == ["response.created", "relay.gap", "response.created"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_an_event_of_several_lines_is_one_event(end):
    """JSON allows line ends between its values; to the stream they would end a field."""
    made = feed(session=None, resumed=True)
    made.add(event(1, f'{{{end}  "type": "response.created",{end}  "event_id": "a"{end}}}'.encode()))
    (sent,) = read(made.take())
    assert sent.data == {"type": "response.created", "event_id": "a"}


def test_a_type_cannot_break_out_of_its_line():
    """A model's event is foreign text."""
    made = feed(session=None, resumed=True)
    made.add(event(1, b'{"a":1,"type":"x\\nid: 9-9"}'))
    (sent,) = read(made.take())
    assert (sent.id, sent.type, sent.data["type"]) == ("7-1", "message", "x\nid: 9-9")


def test_the_end_says_why_and_is_the_last():
    """What comes after it would be about another call."""
    made = feed()
    made.end(WatchEnd(tombstone=tombstone(), lost=False))
    made.add(event(1))
    last = read(made.take())[-1]
    assert made.is_closed
    assert (last.type, last.data["why"], last.data["fault"], last.data["state"]) == (
        "relay.ended",
        "hung_up",
        "client",
        "ended",
    )
    assert "tenant" not in last.data


def test_a_call_of_which_nothing_is_known_any_more_ends_too():
    """And doesn't pretend to know why."""
    made = feed()
    made.end(WatchEnd(tombstone=None, lost=True))
    last = read(made.take())[-1]
    assert (last.data["id"], last.data["state"], last.data["why"]) == ("rtc_iad_1", "unknown", None)


def test_a_node_that_drains_sends_what_waits_and_says_nothing_of_an_end():
    """The call goes on; so does the reader, elsewhere."""
    made = feed()
    made.add(event(1))
    made.close()
    made.add(event(2))
    assert [sent.type for sent in read(made.take())] == ["session.created", "response.created"]


@pytest.mark.parametrize("limits", [{"events": 3}, {"size": 400}], ids=["events", "bytes"])
def test_a_reader_that_is_too_slow_is_told_and_what_waited_is_dropped(limits):
    """Once; its memory is free at once, and it knows where it was."""
    made = feed(**limits)
    for number in range(1, 8):
        made.add(event(number))
    (last,) = read(made.take())
    assert (last.id, last.type) == ("", "relay.too_slow")
    assert made.is_closed
    assert made.take() == b""


def test_a_reader_that_takes_what_waits_has_room_again():
    """The bound is on what waits, not on what was sent."""
    made = feed(events=3)
    for number in range(1, 100):
        made.add(event(number))
        assert read(made.take())[-1].id == f"7-{number}"
    assert not made.is_closed
