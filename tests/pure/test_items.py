"""The body of POST …/items: defaults, and each way of being wrong answered with the field."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanout import Message
from fanout.items import ItemBody
from relay.admission import Refused
from relay.api.reading import read_body, read_item

WALL = 1_700_000_000.0
TEXT = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}
RESULT = {"type": "function_call_output", "call_id": "call_1", "output": "{}"}
DEEP = b"[" * 100_000 + b"]" * 100_000


def parse(body: bytes, *, traceparent: str | None = None) -> Message:
    return read_item(read_body(body, ItemBody), wall=WALL, traceparent=traceparent)


def parsed(body: object = None, **fields: Any) -> Message:
    data = body if isinstance(body, bytes) else json.dumps({"item": TEXT, **fields}).encode()
    return parse(data)


def refused(body: object = None, **fields: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        parsed(body, **fields)
    return caught.value


def test_the_least_that_can_be_said_is_an_item():
    """Everything else has a default: an id, a minute to live, no response."""
    message = parsed()
    assert json.loads(message.item) == TEXT
    assert message.id.startswith("msg_")
    assert message.id != parsed().id
    assert (message.response, message.when, message.visible, message.kind) == (False, "now", True, "item")
    assert (message.expires_at, message.item_id, message.traceparent) == (WALL + 60, "", None)


def test_all_that_can_be_said_is_carried():
    """The item and the response's fields travel as JSON; the deadline counts from the node's clock."""
    fields = {"item": {**TEXT, "id": "i" * 32}, "response": {"instructions": "é"}, "expires_in_ms": 1500, "id": "m-1_A"}
    message = parse(json.dumps(fields).encode(), traceparent="00-ab-cd-01")
    assert (message.id, message.item_id, message.expires_at) == ("m-1_A", "i" * 32, WALL + 1.5)
    assert isinstance(message.response, bytes)
    assert json.loads(message.response) == {"instructions": "é"}
    assert message.traceparent == "00-ab-cd-01"


@pytest.mark.parametrize(
    ("item", "response", "expected"),
    [
        (TEXT, None, False),
        (TEXT, False, False),
        (TEXT, True, True),
        (TEXT, {}, b"{}"),
        (RESULT, None, True),
        (RESULT, False, False),
        (RESULT, {"x": 1}, b'{"x":1}'),
    ],
    ids=["message", "no", "yes", "fields", "tool result", "tool result, no", "tool result, fields"],
)
def test_a_tool_result_asks_for_a_response_unless_told_otherwise(item, response, expected):
    """The model waits for it in order to speak; a message by itself must not make it speak."""
    assert parsed(item=item, response=response).response == expected


@pytest.mark.parametrize(
    ("role", "part"),
    [
        ("system", "input_text"),
        ("user", "input_text"),
        ("user", "input_audio"),
        ("user", "input_image"),
        ("assistant", "output_text"),
    ],
)
def test_each_role_has_the_parts_that_the_api_allows(role, part):
    """What stands inside a part is the model's to judge."""
    parsed(item={"type": "message", "role": role, "content": [{"type": part}]})


def message_item(**changes: Any) -> dict[str, Any]:
    return {"item": {**TEXT, **changes}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        pytest.param({"item": 5}, "item", id="item is no object"),
        pytest.param({"item": None}, "item", id="item is null"),
        pytest.param({"item": {}}, "item.type", id="item is empty"),
        pytest.param({"item": {"type": "function_call"}}, "item.type", id="item of another type"),
        pytest.param({"item": {"type": ["message"]}}, "item.type", id="type is a list"),
        pytest.param(message_item(id=7), "item.id", id="item id is a number"),
        pytest.param(message_item(id=None), "item.id", id="item id is null"),
        pytest.param(message_item(id="x" * 33), "item.id", id="item id is too long"),
        pytest.param(message_item(role="tool"), "item.role", id="role"),
        pytest.param(message_item(role=["user"]), "item.role", id="role is a list"),
        pytest.param(message_item(role=None), "item.role", id="no role"),
        pytest.param(message_item(content="hi"), "item.content", id="content is text"),
        pytest.param(message_item(content=[]), "item.content", id="content is empty"),
        pytest.param(message_item(content=None), "item.content", id="no content"),
        pytest.param(message_item(content=["hi"]), "item.content[0]", id="part is text"),
        pytest.param(message_item(content=[{}]), "item.content[0].type", id="part without type"),
        pytest.param(
            message_item(role="system", content=[{}]), "item.content[0].type", id="system's part without type"
        ),
        pytest.param(
            message_item(role="assistant", content=[{}]), "item.content[0].type", id="assistant's part without"
        ),
        pytest.param(message_item(content=[{"type": []}]), "item.content[0].type", id="part's type is a list"),
        pytest.param(message_item(content=[{"type": {}}]), "item.content[0].type", id="part's type is an object"),
        pytest.param(
            message_item(content=[*TEXT["content"], {"type": "output_text"}]), "item.content[1].type", id="second part"
        ),
        pytest.param(message_item(role="assistant"), "item.content[0].type", id="another role's part"),
        pytest.param({"item": {**RESULT, "call_id": None}}, "item.call_id", id="tool result without call"),
        pytest.param({"item": {**RESULT, "output": {}}}, "item.output", id="tool result is no text"),
        pytest.param({"response": "yes"}, "response", id="response is text"),
        pytest.param({"response": 1}, "response", id="response is a number"),
        pytest.param({"response": []}, "response", id="response is a list"),
        pytest.param({"when": "later"}, "when", id="when"),
        pytest.param({"when": 1}, "when", id="when is a number"),
        pytest.param({"visible": "no"}, "visible", id="visible is text"),
        pytest.param({"visible": None}, "visible", id="visible is null"),
        pytest.param({"expires_in_ms": 0}, "expires_in_ms", id="no time to live"),
        pytest.param({"expires_in_ms": 3_600_001}, "expires_in_ms", id="more than an hour"),
        pytest.param({"expires_in_ms": 1.5}, "expires_in_ms", id="half milliseconds"),
        pytest.param({"expires_in_ms": "60"}, "expires_in_ms", id="time is text"),
        pytest.param({"id": ""}, "id", id="empty id"),
        pytest.param({"id": "x" * 65}, "id", id="id is too long"),
        pytest.param({"id": "a b"}, "id", id="id with a space"),
        pytest.param({"id": "a\n"}, "id", id="id with a line end"),
        pytest.param({"id": 7}, "id", id="id is a number"),
        pytest.param({"reponse": True}, "reponse", id="unknown field"),
    ],
)
def test_a_wrong_field_is_answered_with_422_and_its_name(fields, param):
    """A backend's developer must not have to guess; a misspelt field must not be overlooked."""
    error = refused(**fields)
    assert (error.status, error.code, error.param) == (422, "invalid_value", param)
    assert str(error)


@pytest.mark.parametrize(
    ("fields", "when"),
    [
        ({}, "now"),
        ({"item": RESULT}, "turn_end"),
        ({"item": RESULT, "response": False}, "now"),
        ({"response": True}, "turn_end"),
        ({"response": {}}, "turn_end"),
        ({"when": None, "response": True}, "turn_end"),
        ({"when": "now", "response": True}, "now"),
        ({"when": "interrupt"}, "interrupt"),
        ({"when": "turn_end"}, "turn_end"),
    ],
)
def test_what_asks_for_a_response_waits_for_its_turn_unless_told_otherwise(fields, when):
    """A response in the middle of somebody's words would be an interruption, or an error of the model's."""
    assert parsed(**fields).when == when


def test_an_item_can_be_hidden_from_the_calls_client():
    """A supervisor's hint is for the model alone."""
    assert not parsed(visible=False).visible


def test_what_an_error_quotes_of_a_body_is_bounded():
    """An answer must not be as large as the request that was refused."""
    for fields in ({"when": "x" * 10_000}, {"x" * 10_000: 1}, {"item": {**TEXT, "id": "x" * 10_000}}):
        error = refused(**fields)
        assert len(str(error)) + len(error.param or "") < 1000


def test_a_wrong_choice_is_answered_with_the_right_ones():
    """Nobody should have to look it up."""
    assert str(refused(when="later")).endswith("use one of now, turn_end, interrupt")
    assert "'system', 'user' or 'assistant'" in str(refused(item={**TEXT, "role": "tool"}))
    assert "output_text of an assistant's" in str(refused(item={**TEXT, "content": [{"type": "text"}]}))


def test_a_missing_item_is_named():
    """The one field without a default."""
    error = refused(b'{"response":true}')
    assert (error.status, error.param) == (422, "item")


@pytest.mark.parametrize(
    "limits",
    [{"expires_in_ms": 1}, {"expires_in_ms": 60000.0}, {"expires_in_ms": 3_600_000}, {"id": "x" * 64}, {"id": "0"}],
)
def test_the_limits_themselves_are_allowed(limits):
    """They are the last good values."""
    parsed(**limits)


@pytest.mark.parametrize("body", [b"[]", b'"item"', b"7", b"null"])
def test_a_body_that_is_no_object_is_422(body):
    """It is JSON, and no message."""
    assert refused(body).status == 422


@pytest.mark.parametrize("body", [b"", b"item=1", b'{"item":', b'{"item":{}} x', b"\xff", b'{"item":{"id":"\\ud800"}}'])
def test_a_body_that_is_no_json_is_400(body):
    """Another mistake than a wrong field."""
    error = refused(body)
    assert (error.status, error.code) == (400, "invalid_json")


@pytest.mark.parametrize(
    "value", [DEEP, b'"\xff"', b"1" * 5000, b"1e999"], ids=["deep", "not UTF-8", "long number", "huge number"]
)
@pytest.mark.parametrize("key", ["item", "response", "id", "unknown"])
def test_values_made_to_break_parsers_are_refused(key, value):
    """Depth and size are the sender's choice; a 500 would wake somebody up."""
    body = b'{"item":%s,"%s":{"x":%s}}' % (json.dumps(TEXT).encode(), key.encode(), value)
    assert refused(body).status in {400, 422}


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*TEXT, *RESULT, "id"]), inner),
    max_leaves=10,
)
_kinds = st.sampled_from([{}, TEXT, RESULT, {"type": "message", "role": "user"}])


@given(_kinds, st.dictionaries(st.sampled_from([*TEXT, *RESULT, "id"]), _json), _json, st.binary(max_size=20))
def test_every_body_is_a_message_or_a_refusal(kind, changes, response, raw):
    """No body makes the node fail, and what is taken can be sent on."""
    for body in (json.dumps({"item": {**kind, **changes}, "response": response}).encode(), raw):
        answer: Message | Refused
        try:
            answer = parse(body)
        except Refused as error:
            answer = error
        if isinstance(answer, Refused):
            assert answer.status in {400, 422}
        else:
            assert json.loads(answer.item) == {**kind, **changes}
