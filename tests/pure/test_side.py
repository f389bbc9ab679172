"""What a side leg is shown: the session first, then each event once, in order."""

import json
from typing import Any

import pytest

from fanout.messages import LogEntry, Receipt, Status
from relay.core.endings import SideWhy
from relay.core.side import SideView, error_event, refusal


def event(kind: str, **fields: Any) -> bytes:
    return json.dumps({"type": kind, **fields}).encode()


def shown(events: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(each) for each in events]


@pytest.fixture
def view() -> SideView:
    return SideView()


@pytest.fixture
def greeted(view: SideView) -> SideView:
    view.on_session(b'{"model":"m"}', "e0")
    return view


SPOKEN = event("response.created", response={})


def test_the_session_as_it_is_greets_the_side_leg_as_a_new_one(view):
    """An SDK waits for ``session.created``; the session's bytes are the model's."""
    assert not view.is_greeted
    assert view.on_session(b'{"model": "m"}', "e0") == [
        b'{"type":"session.created","event_id":"e0","session":{"model": "m"}}'
    ]
    assert view.is_greeted


def test_a_session_that_is_shown_again_unchanged_is_no_event(greeted):
    """The log has a snapshot wherever it begins anew."""
    assert greeted.on_session(b'{ "model": "m" }', "e1") == []


def test_a_session_that_has_changed_unseen_is_an_update(greeted):
    """There may have been an update where the log was interrupted."""
    (update,) = shown(greeted.on_session(b'{"model":"n"}', "e1"))
    assert update == {"type": "session.updated", "event_id": "e1", "session": {"model": "n"}}
    assert greeted.on_session(b'{"model":"n"}', "e2") == []


def test_events_go_on_as_they_came(greeted):
    """Byte for byte, the unknown ones too."""
    for message in (SPOKEN, event("something.new"), b"no JSON", event("error", error={"event_id": "c.e1"})):
        assert greeted.on_event(message) == [message]


def test_what_comes_before_the_greeting_follows_it(view):
    """The call may be only reserved: its first events come before anybody knows its session."""
    first, second = event("a.b"), event("a.c")
    assert view.on_event(first) == []
    assert view.on_event(second) == []
    created = event("session.created", session={"model": "m"})
    assert view.on_event(created) == [created, first, second]
    assert view.on_event(first) == [first]


def test_what_comes_before_a_snapshot_follows_it(view):
    """As for the call's own greeting."""
    view.on_event(SPOKEN)
    assert shown(view.on_session(b"{}", "e0")) == [
        {"type": "session.created", "event_id": "e0", "session": {}},
        json.loads(SPOKEN),
    ]


def test_only_the_newest_events_are_held_for_the_greeting(view):
    """The limit protects the node: a call that never says what its session is has no end of them."""
    for number in range(300):
        view.on_event(event("a.b", n=number))
    created, *held = shown(view.on_session(b"{}", "e0"))
    assert created["type"] == "session.created"
    assert [each["n"] for each in held] == list(range(44, 300))


def test_an_update_can_be_the_greeting(view):
    """The call's own ``session.created`` came before this leg was there."""
    (created,) = shown(view.on_event(event("session.updated", event_id="e1", session={"model": "m"})))
    assert created == {"type": "session.created", "event_id": "e1", "session": {"model": "m"}}
    assert view.is_greeted


def test_an_update_is_an_update_for_those_who_were_greeted(greeted):
    """And a snapshot of the same session after it is none."""
    update = event("session.updated", session={"model": "n"})
    assert greeted.on_event(update) == [update]
    assert greeted.on_session(b'{"model":"n"}', "e1") == []


def test_nobody_is_greeted_twice(greeted):
    """Another model leg is not a side leg's matter, and SDKs set everything up at ``session.created``."""
    assert greeted.on_event(event("session.created", session={"model": "n"})) == []


@pytest.mark.parametrize("kind", ["session.created", "session.updated"])
def test_a_session_that_cannot_be_read_greets_nobody(view, kind):
    """A side leg that was greeted with nonsense could do nothing."""
    assert view.on_event(f'{{"type":"{kind}",!!'.encode()) == []
    assert not view.is_greeted


@pytest.mark.parametrize("session", [None, 7, []], ids=repr)
def test_a_session_in_another_shape_is_passed_on(view, session):
    """It is the model's to say; later ones are compared with nothing."""
    created = event("session.created", session=session)
    assert view.on_event(created) == [created]
    assert len(view.on_session(b'{"model":"m"}', "e1")) == 1


# Entries of the log


def test_each_kind_of_entry_is_shown_as_what_it_is(view):
    """A snapshot has an event id of its own, which says where in the log it stands."""
    audio = event("response.output_audio.delta", delta="AAAA")
    assert view.on_entry(LogEntry("", "audio", audio)) == []
    (created,) = shown(view.on_entry(LogEntry("7-1", "session", b"{}")))
    assert created == {"type": "session.created", "event_id": "event_7-1", "session": {}}
    assert view.on_entry(LogEntry("7-2", "event", SPOKEN)) == [SPOKEN]
    assert view.on_entry(LogEntry("", "audio", audio)) == [audio]


# Its end


@pytest.mark.parametrize("why", SideWhy, ids=lambda why: why.label)
def test_each_end_of_a_side_leg_has_a_code_that_a_server_may_send_and_a_label_of_its_own(why):
    """An SDK decides by the code whether to come back; metrics count by the label."""
    assert why.code in {1000, 1001, 1002, 1003, 1008, 1011, 1012, 1013} or 4000 <= why.code <= 4999
    assert [each.label for each in SideWhy].count(why.label) == 1


# What became of what it sent


def receipt(status: Status, error: dict[str, Any] | None) -> Receipt:
    fields = {"id": "m", "call_id": "c", "item_id": "", "wants_response": False, "reached": {}}
    return Receipt(status=status, node="n", region="r", error=error, **fields)


@pytest.mark.parametrize("status", Status, ids=lambda status: status.value)
def test_a_sender_is_owed_an_error_for_what_came_to_nothing(status):
    """As on a connection of its own: nothing is said of what the model took."""
    error = {"code": "x"}
    came_to_nothing = status in {Status.FAILED, Status.REJECTED, Status.EXPIRED}
    assert refusal(receipt(status, error)) == (error if came_to_nothing else None)


def test_an_end_without_an_error_owes_none():
    """There would be nothing to say."""
    assert refusal(receipt(Status.FAILED, None)) is None


def test_an_error_has_the_senders_own_event_id_and_the_models_words():
    """An SDK finds its event by it."""
    error = {"type": "t", "code": "x", "message": "m", "param": "p", "event_id": "r.7"}
    assert json.loads(error_event("e1", error, "mine")) == {
        "type": "error",
        "event_id": "e1",
        "error": {**error, "event_id": "mine"},
    }


def test_an_error_has_every_field_that_an_sdk_reads():
    """Other servers leave some out."""
    error = json.loads(error_event("e1", {"message": "m"}, None))["error"]
    assert error == {"type": "invalid_request_error", "code": None, "message": "m", "param": None, "event_id": None}
