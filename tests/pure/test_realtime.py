"""Events as bytes: what takes the fast path, whose type is what, and what a re-written event keeps."""

import contextlib
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from openai.types.realtime import RealtimeErrorEvent, RealtimeServerEvent
from pydantic import TypeAdapter

from relay.core import realtime
from relay.core.realtime import ClientEvent, NotAnEvent, event_type, is_whole_append

APPEND = "input_audio_buffer.append"
AUDIO = "AAEC/+8="
DEEP = b"[" * 100_000 + b"]" * 100_000
DIGITS = b"1" * 5000


def delta(audio: object) -> bytes:
    return dumped({"type": "response.output_audio.delta", "delta": audio})


def dumped(event: object, spaced: bool = False) -> bytes:
    return json.dumps(event, separators=None if spaced else (",", ":")).encode()


@pytest.mark.parametrize("audio", ["", AUDIO, AUDIO * 5000], ids=["empty", "short", "long"])
@pytest.mark.parametrize("spaced", [False, True], ids=["compact", "spaced"])
@pytest.mark.parametrize("keys", [("type", "audio"), ("audio", "type")], ids=" ".join)
def test_every_sdks_append_takes_the_fast_path(keys, spaced, audio):
    """JavaScript writes compact JSON, Python's json spaces it, and the SDKs differ in the order of keys."""
    values = {"type": APPEND, "audio": audio}
    assert is_whole_append(dumped({key: values[key] for key in keys}, spaced))


@pytest.mark.parametrize(
    "message",
    [
        pytest.param("", id="empty"),
        pytest.param("{}", id="no keys"),
        pytest.param(" \n", id="white space"),
        pytest.param(f'{{"type":"{APPEND}","audio":"', id="head alone"),
        pytest.param(f'{{"type":"{APPEND}","audio":"}}', id="audio never ends"),
        pytest.param(f'{{"audio":"","type":"{APPEND}"', id="tail cut off"),
        pytest.param(f'","type":"{APPEND}"}}', id="tail alone"),
        pytest.param(f' {{"type":"{APPEND}","audio":"AA"}}', id="white space before"),
        pytest.param(f'{{"type":"{APPEND}","audio":"AA"}}\n', id="white space after"),
        pytest.param(f'{{"type":"{APPEND}","audio":"AA"}}{{}}', id="second value"),
        pytest.param(f'{{"type":"{APPEND}","audio":"AA","type":"session.update"}}', id="second type, last"),
        pytest.param(f'{{"type":"session.update","type":"{APPEND}","audio":"AA"}}', id="second type, first"),
        pytest.param(f'{{"audio":"AA","type":"session.update","type":"{APPEND}"}}', id="second type, between"),
        pytest.param(f'{{"audio":"AA","type":"{APPEND}","type":"x"}}', id="second type, behind"),
        pytest.param(f'{{"audio":"AA","audio":"AA","type":"{APPEND}"}}', id="second audio"),
        pytest.param(f'{{"type":"{APPEND}","audio":"AA","event_id":"e"}}', id="event id, last"),
        pytest.param(f'{{"event_id":"e","type":"{APPEND}","audio":"AA"}}', id="event id, first"),
        pytest.param(f'{{"type":"{APPEND}","event_id":"e","audio":"AA"}}', id="event id, between"),
        pytest.param(f'{{"type":"{APPEND}","audio":"A\\"A"}}', id="escaped quote"),
        pytest.param(f'{{"type":"{APPEND}","audio":"A"A"}}', id="bare quote"),
        pytest.param(f'{{"type":"{APPEND}","audio":null}}', id="no string"),
        pytest.param(f'{{"type":"{APPEND}","audio":["AA"]}}', id="list"),
        pytest.param(f'{{"type":"{APPEND}"}}', id="no audio"),
        pytest.param('{"type":"input_audio_buffer.appendix","audio":"AA"}', id="longer type"),
        pytest.param('{"type":"input_audio_buffer.commit","audio":"AA"}', id="other type"),
        pytest.param('{"audio":"AA","type":"input_audio_buffer.commit"}', id="other type of the same length, last"),
        pytest.param(f'{{"type":"{APPEND}","audio":"AA"]', id="other bracket"),
        pytest.param('{"type":"session.update","session":{}}', id="other event"),
        pytest.param(f'{{"item":{{"type":"{APPEND}","audio":"AA"}}', id="nested"),
        pytest.param(f'[{{"type":"{APPEND}","audio":"AA"}}]', id="in a list"),
    ],
)
def test_nothing_else_takes_the_fast_path(message):
    """What goes on unread must have no room for anything that a token may not do."""
    assert not is_whole_append(message.encode())


_PIECES = ['{"type":"', '{"type": "', '{"audio":"', '{"audio": "', APPEND, '"', '","', '", "', "audio", "type", '":"']
_PIECES += ['": "', '"}', "}", "{", "\\", "\\u0022", ",", ":", " ", "AA=", "session.update", '","event_id":"e']
_PIECES += [f'{{"type":"{APPEND}","audio":"', f'","type":"{APPEND}"}}', f'", "type": "{APPEND}"}}']


@given(st.lists(st.sampled_from(_PIECES), max_size=12).map("".join))
@example(f'{{"type":"{APPEND}","audio":"AA\\"}}')
@example(f'{{"audio":"AA\\","type":"{APPEND}"}}')
def test_what_takes_the_fast_path_is_one_append_or_no_json_at_all(message):
    """Whatever a parser makes of it, it cannot be another event."""
    if not is_whole_append(message.encode()):
        return
    try:
        pairs = json.loads(message, object_pairs_hook=list)
    except ValueError:
        return
    assert sorted(key for key, _ in pairs) == ["audio", "type"]
    assert dict(pairs)["type"] == APPEND
    assert isinstance(dict(pairs)["audio"], str)


@given(st.binary(max_size=600))
def test_raw_audio_is_wrapped_in_an_append_that_takes_the_fast_path(pcm):
    """A /voice client's frame and an SDK's are the same to the model."""
    event = realtime.append_event(pcm)
    assert is_whole_append(event)
    assert realtime.delta_audio(delta(json.loads(event)["audio"])) == pcm


@pytest.mark.parametrize(
    ("message", "found"),
    [
        pytest.param('{"type":"error","event_id":"e"}', "error", id="first"),
        pytest.param('{"event_id":"e","type":"response.done","x":1}', "response.done", id="behind an id"),
        pytest.param('{"event_id":"a","item_id":"b","response_id":"c","type":"x.y"}', "x.y", id="behind ids"),
        pytest.param('\n{ "type" :\t"error" }', "error", id="white space"),
        pytest.param('{"event_id" : "e" , "type" : "error"}', "error", id="white space and id"),
        pytest.param('{"item":{"type":"message"},"type":"error"}', "error", id="nested first"),
        pytest.param('{"event_id":"e","item":{"type":"x"},"type":"error"}', "error", id="id, then nested"),
        pytest.param('{"item":[{"type":"x"}],"note":"\\"type\\":\\"y\\"","type":"error"}', "error", id="in a string"),
        pytest.param('{"event_id":"a\\",\\"type\\":\\"x","type":"error"}', "error", id="inside an event id"),
        pytest.param('{"item_id":"a\\\\","type":"error"}', "error", id="id ends in a backslash"),
        pytest.param('{"error":{"type":"x"}}', "", id="only nested"),
        pytest.param('{"type":5}', "", id="number"),
        pytest.param('{"type":null,"x":"type"}', "", id="null"),
        pytest.param('[{"type":"error"}]', "", id="list"),
        pytest.param('"type"', "", id="string"),
        pytest.param("", "", id="empty"),
        pytest.param("not JSON", "", id="not JSON"),
        pytest.param('{"type', "", id="cut off"),
    ],
)
def test_the_type_of_an_event_is_its_own_and_no_nested_one(message, found):
    """An item's or an error's ``type`` must not send the event the wrong way."""
    assert event_type(message.encode()) == found


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "item", "é"]), inner),
    max_leaves=8,
)
_keys = st.sampled_from(["type", "event_id", "response_id", "item_id", "item", "x"])
_types = st.sampled_from(["error", "response.done", "Ünknown", 'quo"te', "", "sp ace"])


@given(st.dictionaries(_keys, _json), _types, st.integers(0, 6), st.sampled_from([None, 1]))
def test_the_type_is_found_wherever_it_stands(fields, kind, place, indent):
    """Servers differ in key order and white space."""
    pairs = [(key, value) for key, value in fields.items() if key != "type"]
    pairs.insert(place, ("type", kind))
    assert event_type(json.dumps(dict(pairs), indent=indent).encode()) == kind


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_no_bytes_at_all_make_the_readers_raise_anything_but_not_an_event(message):
    """They run in the read callback: another exception would be the relay's own bug."""
    event_type(message)
    for read in (realtime.decode, ClientEvent):
        with contextlib.suppress(NotAnEvent):
            read(message)


@pytest.mark.parametrize(
    "value",
    [DEEP, b'{"a":' * 5000 + b"1" + b"}" * 5000, DIGITS, b"-" + DIGITS, b"1e999", b'"\\ud800"', b'"\xff"', b"\x00"],
    ids=["deep list", "deep object", "long number", "negative", "huge number", "half a pair", "not UTF-8", "NUL"],
)
@pytest.mark.parametrize("key", ["type", "event_id", "x"])
def test_values_made_to_break_parsers_raise_nothing_but_not_an_event(key, value):
    """Depth and size are the sender's choice."""
    message = b'{"%s":%s,"z":1,"type":"error"}' % (key.encode(), value)
    assert event_type(message) in {"error", ""}
    for read in (realtime.decode, lambda data: ClientEvent(data).encoded("c.e")):
        with contextlib.suppress(NotAnEvent):
            read(message)


@pytest.mark.parametrize(
    "message",
    ["", "nonsense", "[]", '"type"', "null", "{}", '{"type":""}', '{"type":null}', '{"type":7}', '{"type":["error"]}']
    + ['{"type":"x","event_id":7}', '{"type":"x","event_id":{}}', '{"type":"x"', '{"type":"x"}}', '{"type":"x"} {}'],
)
def test_a_client_event_is_an_object_with_a_type(message):
    """The client is told what is wrong with it; nothing of it reaches the model."""
    with pytest.raises(NotAnEvent, match=r"^The event"):
        ClientEvent(message.encode())


def test_repeated_keys_are_gone_and_the_last_one_counts():
    """What was checked is what is sent: two parsers must not see two different events."""
    event = ClientEvent(b'{"type":"session.update","x":1,"event_id":"a","type":"response.create","x":2,"event_id":"b"}')
    assert (event.type, event.event_id) == ("response.create", "b")
    pairs = json.loads(event.encoded("c.b"), object_pairs_hook=list)
    assert sorted(pairs) == [("event_id", "c.b"), ("type", "response.create"), ("x", 2)]


def test_a_key_that_is_written_with_escapes_is_the_same_key():
    """``\\u0074ype`` is ``type`` to the model's parser."""
    event = ClientEvent(b'{"type":"session.update","\\u0074ype":"response\\u002ecreate"}')
    assert event.type == "response.create"
    assert event.encoded().count(b"type") == 1


@given(st.dictionaries(st.text(max_size=4).filter(lambda key: key not in {"type", "event_id"}), _json, max_size=4))
def test_writing_an_event_again_changes_nothing_else(fields):
    """Order of keys and values stay; only the event id is the relay's."""
    event = {**fields, "type": "session.update", "event_id": "e"}
    assert json.loads(ClientEvent(dumped(event)).encoded("c.e")) == {**event, "event_id": "c.e"}
    assert json.loads(ClientEvent(dumped(event)).encoded()) == event


@pytest.mark.parametrize(
    "value",
    [b"1.0", b"1e400", DIGITS, b'"\\u00e9\\/"', b'{ "b" : 1, "b":2 , "a":[ ] }', b"-0.0", b'"\xc3\xa9"'],
    ids=["float", "huge", "long", "escapes", "inner spaces and repeats", "minus zero", "UTF-8"],
)
def test_values_are_written_as_they_came(value):
    """A number that Python cannot hold or a repeated inner key is the model's to judge."""
    event = ClientEvent(b'{ "x" : %s , "type" : "session.update" }' % value)
    assert event.encoded("c.1") == b'{"x":%s,"type":"session.update","event_id":"c.1"}' % value


@pytest.mark.parametrize(
    ("text", "event_id"),
    [('"event_id":"e"', "e"), ('"event_id":null', ""), ('"event_id":""', ""), ('"x":1', "")],
    ids=["given", "null", "empty", "absent"],
)
def test_an_event_id_is_optional(text, event_id):
    """Most events of the SDKs have none."""
    assert ClientEvent(f'{{"type":"x",{text}}}'.encode()).event_id == event_id


@pytest.mark.parametrize("message", ["[]", "1", "null", '"x"', "", "{"])
def test_decode_refuses_what_is_no_object(message):
    """Whoever decodes an event goes on to look up keys."""
    with pytest.raises(NotAnEvent):
        realtime.decode(message.encode())


@pytest.mark.parametrize("kind", ["response.output_audio.delta", "response.audio.delta"])
def test_audio_is_known_by_its_first_bytes(kind):
    """GA and beta names; the transcript's delta is no audio."""
    assert realtime.is_audio_delta(dumped({"type": kind, "delta": AUDIO}))
    assert not realtime.is_audio_delta(dumped({"type": "response.output_audio_transcript.delta", "delta": "hi"}))
    assert not realtime.is_audio_delta(dumped({"type": "response.output_audio.done"}))


@pytest.mark.parametrize("audio", [None, 5, [], "AAA", "A A=", "é"], ids=repr)
def test_a_delta_whose_audio_cannot_be_read_is_none(audio):
    """It then goes on as it came."""
    assert realtime.delta_audio(delta(audio)) is None
    assert realtime.delta_audio(b'{"type":"response.output_audio.delta",!!') is None


@pytest.mark.parametrize("kind", ["response.output_audio.done", "response.output_text.delta", "error", ""])
def test_only_audio_is_taken_for_audio(kind):
    """Text has deltas too."""
    assert realtime.delta_audio(dumped({"type": kind, "delta": AUDIO})) is None


@pytest.mark.parametrize("cause", [None, "evt_1"], ids=["no cause", "cause"])
def test_our_error_events_are_openais(cause):
    """The official SDKs must read them as what they are."""
    built = realtime.error_event("event_1", "invalid_request_error", "bad", 'say "what"', param="item.id", cause=cause)
    event = TypeAdapter(RealtimeServerEvent).validate_json(built)
    assert isinstance(event, RealtimeErrorEvent)
    assert event.event_id == "event_1"
    error = event.error
    assert (error.type, error.code, error.message) == ("invalid_request_error", "bad", 'say "what"')
    assert (error.param, error.event_id) == ("item.id", cause)
