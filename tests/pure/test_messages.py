"""How a message of the inbox is read: what it puts into the conversation, and whom an error of it answers."""

import json
from typing import Any

import pytest

from fanout.messages import Message
from relay.core.messages import Injection, error, read

EXPIRES = 1_700_000_060.0


def message(body: Any, **changes: Any) -> Message:
    item = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Message(**{"id": "m1", "item": item, "expires_at": EXPIRES, "item_id": "item_1", **changes})


def read_event(body: dict[str, Any], **changes: Any) -> Injection:
    return read(message(body, kind="event", **changes))


ITEM = {"type": "message", "role": "system", "content": []}


# Items


def test_an_item_is_put_in_under_the_id_that_its_message_says():
    """The publisher derived it, so that a repeat is one item; nothing else of it is touched."""
    injection = read(message({**ITEM, "id": "other", "x": 1.5}))
    event = {"type": "conversation.item.create", "item": {**ITEM, "id": "item_1", "x": 1.5}}
    assert injection == Injection("m1", "item_1", event, None, EXPIRES)
    assert injection.item == event["item"]


@pytest.mark.parametrize(
    ("response", "fields"),
    [(False, None), (True, {}), (b"{}", {}), (b'{"instructions":"Hi"}', {"instructions": "Hi"})],
    ids=["none", "one", "bare", "with fields"],
)
def test_an_item_asks_for_the_response_that_its_message_wants(response, fields):
    """None and one without fields are not the same."""
    assert read(message(ITEM, response=response)).response == fields


def test_what_the_gate_needs_to_know_comes_with_it():
    """When it goes in, who sees it, and until when."""
    injection = read(message(ITEM, when="turn_end", visible=False, expires_at=5.0))
    assert (injection.when, injection.visible, injection.expires_at) == ("turn_end", False, 5.0)


@pytest.mark.parametrize("kind", ["item", "event"])
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"null", b"\xff", b"[" * 100_000, b'{"a":' * 100_000],
    ids=["empty", "cut", "list", "text", "null", "no UTF-8", "deep list", "deep object"],
)
def test_a_body_that_is_no_object_cannot_be_read(kind, body):
    """A node of another version may have let it through: it must not end the call."""
    with pytest.raises(ValueError, match=r"."):
        read(message(body, kind=kind))


@pytest.mark.parametrize("response", [b"", b"[]", b"null", b"!"], ids=repr)
def test_a_response_that_is_no_object_cannot_be_read(response):
    """As for the body."""
    with pytest.raises(ValueError, match=r"."):
        read(message(ITEM, response=response))


def test_a_when_of_a_later_version_cannot_be_read():
    """To guess at it could talk over somebody."""
    with pytest.raises(ValueError, match="when"):
        read(message(ITEM, when="tomorrow"))


# Events


@pytest.mark.parametrize("body", [{"type": "session.update", "session": {}}, {"type": "nonsense", "x": 1}], ids=str)
def test_an_event_goes_to_the_model_as_it_is(body):
    """What it means is the model's to say."""
    injection = read_event(dict(body))
    assert (injection.event, injection.response, injection.item_id) == (body, None, "")


@pytest.mark.parametrize(
    ("given", "cause"), [({"event_id": "e7"}, "e7"), ({}, None), ({"event_id": None}, None), ({"event_id": 7}, None)]
)
def test_a_senders_event_id_is_kept_for_the_error_that_answers_it(given, cause):
    """On the model leg the event has one of the relay's."""
    injection = read_event({"type": "session.update", **given})
    assert injection.cause == cause
    assert "event_id" not in (injection.event or {})
    assert injection.failed({"code": "x", "event_id": "r.1"}).error == {"code": "x", "event_id": cause}


@pytest.mark.parametrize("response", [{}, {"response": {"instructions": "Hi"}}, {"response": None}, {"response": 5}])
def test_a_response_that_is_asked_for_waits_its_turn(response):
    """There is nothing to send before that."""
    injection = read_event({"type": "response.create", **response}, response=True)
    fields = response.get("response")
    assert injection == Injection(
        "m1", "", None, fields if isinstance(fields, dict) else {}, EXPIRES, wants_answer=True
    )


@pytest.mark.parametrize("wants", [True, False])
def test_an_event_says_whether_anybody_waits_for_the_answer(wants):
    """A side leg sees the answer itself; its receipt ends where the response begins."""
    assert read_event({"type": "response.create"}, response=wants).wants_answer == wants


def test_a_response_outside_the_conversation_waits_for_nothing():
    """It is in nobody's way, so it goes as it is."""
    body = {"type": "response.create", "response": {"conversation": "none", "input": []}}
    injection = read_event(json.loads(json.dumps(body)))
    assert (injection.event, injection.response) == (body, None)


@pytest.mark.parametrize(
    ("given", "item_id"),
    [({}, "item_1"), ({"id": None}, "item_1"), ({"id": "own"}, "own"), ({"id": 7}, "7")],
    ids=["no id", "null", "its own", "no text"],
)
def test_an_event_that_puts_in_an_item_names_it(given, item_id):
    """The model acknowledges items by their ids: without one nobody would ever hear of it. Nonsense it refuses."""
    injection = read_event({"type": "conversation.item.create", "item": {**ITEM, **given}, "previous_item_id": "root"})
    assert injection.item_id == item_id
    assert injection.event == {
        "type": "conversation.item.create",
        "item": {**ITEM, "id": given.get("id") or item_id},
        "previous_item_id": "root",
    }


@pytest.mark.parametrize("item", [None, "x", []], ids=repr)
def test_an_event_that_puts_in_no_item_is_the_models_to_refuse(item):
    """And is of no item."""
    injection = read_event({"type": "conversation.item.create", "item": item})
    assert (injection.item_id, injection.item) == ("", None)


def test_an_event_about_an_item_names_it():
    """So that its answer is found."""
    assert read_event({"type": "conversation.item.delete", "item_id": "x"}).item_id == "x"


# What it says of itself


@pytest.mark.parametrize(
    ("item", "call_id"),
    [
        ({"type": "function_call_output", "call_id": "call_1"}, "call_1"),
        ({"type": "function_call_output", "call_id": ["call_1"]}, None),
        ({"type": "function_call_output"}, None),
        ({"type": "function_call", "call_id": "call_1"}, None),
    ],
    ids=["a result", "no text", "no call", "a call"],
)
def test_only_a_tools_result_is_keyed_by_its_tool_call(item, call_id):
    """What is no result has no place among them."""
    assert read(message(item)).tool_call_id == call_id


def test_an_event_that_puts_in_nothing_has_no_item():
    """Whatever fields it has."""
    assert read_event({"type": "session.update", "item": {"id": "x"}}).item is None
    assert read_event({"type": "response.create"}).tool_call_id is None


def test_an_end_has_its_reason_in_openais_shape():
    """A backend's developer reads it as any other error."""
    settled = read(message(ITEM)).ended("expired", "expired", "Too late.")
    assert (settled.message_id, settled.item_id, settled.status) == ("m1", "item_1", "expired")
    assert settled.error == error("expired", "Too late.")
    assert set(settled.error or {}) == {"type", "code", "message", "param"}
