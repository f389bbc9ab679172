"""What a call uses: tokens by kind, seconds of audio out of what passed, days; whatever a model or a client writes."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanout.core.accounts import COUNTERS
from relay.core.usage import DAY_SECONDS, Usage

DAY = 20_000
MORNING = DAY * DAY_SECONDS + 30_000.0

RESPONSE = {
    "total_tokens": 1140,
    "input_tokens": 1000,
    "output_tokens": 140,
    "input_token_details": {
        "text_tokens": 600,
        "audio_tokens": 300,
        "image_tokens": 100,
        "cached_tokens": 512,
        "cached_tokens_details": {"text_tokens": 512, "audio_tokens": 0, "image_tokens": 0},
    },
    "output_token_details": {"text_tokens": 40, "audio_tokens": 100},
}


def usage(*, is_new: bool = False) -> Usage:
    return Usage(100.0, MORNING, is_new=is_new)


def today(counted: Usage) -> dict[str, int | float]:
    return counted.counted().get(DAY, {})


# Tokens


def test_tokens_are_counted_by_kind():
    """They cost differently; cached ones are among the input's."""
    counted = usage()
    counted.on_response(RESPONSE)
    counted.on_response(RESPONSE)
    assert today(counted) == {
        "responses": 2,
        "input_text_tokens": 1200,
        "input_audio_tokens": 600,
        "input_image_tokens": 200,
        "cached_tokens": 1024,
        "output_text_tokens": 80,
        "output_audio_tokens": 200,
    }


def test_what_a_server_does_not_break_down_is_text():
    """Some give only sums, some leave reasoning out of the details: nothing that was billed may be missing."""
    counted = usage()
    counted.on_response({"input_tokens": 10, "output_tokens": 7, "output_token_details": {"audio_tokens": 2}})
    assert today(counted) == {
        "responses": 1,
        "input_text_tokens": 10,
        "output_text_tokens": 5,
        "output_audio_tokens": 2,
    }


def test_a_response_without_usage_is_a_response():
    """A failed one has none."""
    counted = usage()
    counted.on_response(None)
    assert today(counted) == {"responses": 1}


def test_transcription_costs_tokens_or_seconds():
    """By the model that does it."""
    counted = usage()
    counted.on_transcription({"type": "tokens", "total_tokens": 20, "input_tokens": 15, "output_tokens": 5})
    counted.on_transcription({"type": "tokens", "input_tokens": 3, "output_tokens": 4})
    counted.on_transcription({"type": "duration", "seconds": 2.5})
    assert today(counted) == {"transcription_tokens": 27, "transcription_seconds": 2.5}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(RESPONSE)) | st.text(), inner),
    max_leaves=20,
)


@given(st.lists(JSON, max_size=5))
def test_no_json_can_break_it_or_make_a_counter_fall(blocks):
    """A model's server writes these numbers; ours are what is charged for."""
    counted, before = usage(is_new=True), {}
    for block in blocks:
        counted.on_response(block)
        counted.on_transcription(block)
        counted.on_session(block if isinstance(block, dict) else {})
        after = today(counted)
        assert set(after) <= set(COUNTERS)
        assert all(0 <= before.get(name, 0) <= after[name] < 1e11 for name in after)
        before = after


def test_one_absurd_number_is_cut():
    """A counter must go on fitting where it is kept."""
    counted = usage()
    counted.on_response({"input_tokens": 10**300, "output_tokens": float("inf")})
    assert today(counted)["input_text_tokens"] == today(counted)["output_text_tokens"] == 10**9


# Audio


def append(audio: bytes, dumps=json.dumps) -> bytes:
    return dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(audio).decode()}).encode()


def compact(event: object) -> str:
    return json.dumps(event, separators=(",", ":"))


def with_id(event: dict[str, str]) -> str:
    return json.dumps({"event_id": "event_123456", **event})


@pytest.mark.parametrize("dumps", [json.dumps, compact, with_id], ids=["spaced", "compact", "with an id"])
@pytest.mark.parametrize("size", [960, 1920, 4800, 3201, 160], ids=str)
def test_the_clients_audio_is_as_long_as_its_bytes_say(dumps, size):
    """The envelope and the padding are learned from its first message, and are in no way audio."""
    counted, message = usage(), append(bytes(size), dumps)
    counted.given.learn(message)
    counted.on_given(500, 500 * len(message))
    assert counted.given.is_learned
    assert today(counted)["audio_seconds_in"] == pytest.approx(500 * size / 48_000, abs=0.001)


def test_without_a_first_message_the_common_envelope_is_assumed():
    """It is off by a few bytes at most: two in a hundred of the shortest frames."""
    message = append(bytes(960))
    counted = usage()
    counted.on_given(500, 500 * len(message))
    assert today(counted)["audio_seconds_in"] == pytest.approx(10.0, rel=0.01)


@pytest.mark.parametrize("first", [b"", b"{}", append(b""), b'{"audio":null}', b'{"audio":"\\/\\/8="}', b"\xff"])
def test_a_strange_first_message_teaches_nothing_absurd(first):
    """What it is not understood from, the common envelope is assumed for."""
    counted, message = usage(), append(bytes(960), compact)
    counted.given.learn(first)
    counted.on_given(500, 500 * len(message))
    assert today(counted)["audio_seconds_in"] == pytest.approx(10.0, rel=0.01)


def delta(audio: bytes) -> bytes:
    ids = {"event_id": "event_x", "response_id": "resp_1234", "item_id": "item_1"}
    places = {"output_index": 0, "content_index": 0}
    event = {"type": "response.output_audio.delta", **ids, **places, "delta": base64.b64encode(audio).decode()}
    return json.dumps(event).encode()


def test_the_models_audio_is_as_long_as_its_bytes_say():
    """The same, with the other envelope."""
    counted, message = usage(), delta(bytes(9600))
    counted.made.learn(message)
    counted.on_made(50, 50 * len(message))
    assert today(counted) == {"audio_seconds_out": 10.0}


@pytest.mark.parametrize(
    ("session", "rate"),
    [
        ({"audio": {"input": {"format": {"type": "audio/pcm", "rate": 24000}}}}, 48_000),
        ({"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16000}}}}, 32_000),
        ({"audio": {"input": {"format": {"type": "audio/pcm", "rate": "fast"}}}}, 48_000),
        ({"audio": {"input": {"format": {"type": "audio/pcm", "rate": 0}}}}, 48_000),
        ({"audio": {"input": {"format": {"type": "audio/pcmu"}}}}, 8_000),
        ({"audio": {"input": {"format": {"type": "audio/pcma"}}}}, 8_000),
        ({"input_audio_format": "pcm16"}, 48_000),
        ({"input_audio_format": "g711_ulaw"}, 8_000),
        ({"input_audio_format": "g711_alaw"}, 8_000),
        ({"audio": {"input": {"format": {"type": "audio/opus"}}}}, 48_000),
        ({"audio": {"input": {"format": {"type": ["audio/pcmu"]}}}}, 48_000),
        ({"audio": None, "input_audio_format": 7}, 48_000),
    ],
)
def test_the_format_says_how_many_bytes_a_second_has(session, rate):
    """As the session has it, in the shape of the GA or the beta API; of what is unknown nothing is concluded."""
    counted, message = usage(), append(bytes(960))
    counted.on_session(session)
    counted.given.learn(message)
    counted.on_given(100, 100 * len(message))
    assert today(counted)["audio_seconds_in"] == pytest.approx(100 * 960 / rate, abs=0.001)


def test_the_other_direction_has_a_format_of_its_own():
    """A phone may be heard in one and spoken to in another."""
    counted, message = usage(), delta(bytes(9600))
    counted.on_session(
        {"audio": {"input": {"format": {"type": "audio/pcm"}}, "output": {"format": {"type": "audio/pcmu"}}}}
    )
    counted.made.learn(message)
    counted.on_made(10, 10 * len(message))
    assert today(counted) == {"audio_seconds_out": 12.0}


def test_a_format_holds_for_the_audio_before_the_next_look():
    """The first look comes seconds after the first audio, and the session was there before both."""
    counted = usage()
    message, answer = append(bytes(160)), delta(bytes(800))
    counted.given.learn(message)
    counted.made.learn(answer)
    phone = {"format": {"type": "audio/pcmu"}}
    counted.on_session({"audio": {"input": phone, "output": phone}})
    counted.on_look((50, 50 * len(message)), (10, 10 * len(answer)))
    assert today(counted) == {"audio_seconds_in": 1.0, "audio_seconds_out": 1.0}


def test_looks_add_up_to_what_one_look_would_have_said():
    """The counts are cumulative; how often they are looked at changes nothing."""
    often, once, size = usage(), usage(), len(append(bytes(960)))
    for number in range(1, 1001):
        often.on_given(number, number * size)
    once.on_given(1000, 1000 * size)
    assert today(often)["audio_seconds_in"] == pytest.approx(today(once)["audio_seconds_in"], abs=0.001)


def test_messages_without_audio_take_none_away():
    """Empty appends are shorter than an envelope that was learned."""
    counted = usage()
    counted.on_given(100, 100)
    assert "audio_seconds_in" not in today(counted)


# Time


def test_a_new_call_is_counted_once_wherever_it_goes():
    """It is one of the day on which it began."""
    assert today(usage(is_new=True)) == {"calls": 1}
    assert today(usage()) == {}


def test_seconds_are_those_of_the_loops_clock():
    """The wall clock may be set; that neither makes a call longer nor shorter."""
    counted = usage()
    counted.on_time(110.0, MORNING + 5_000)
    counted.on_time(120.5, MORNING - 5_000)
    counted.on_time(119.0, MORNING)
    assert today(counted) == {"seconds": 20.5}


def test_at_midnight_the_time_is_divided_and_the_rest_counts_for_the_new_day():
    """What a day cost must not change when the next one comes."""
    counted = Usage(0.0, DAY * DAY_SECONDS - 4.0, is_new=True)
    counted.on_message()
    counted.on_time(10.0, DAY * DAY_SECONDS + 6.0)
    counted.on_message()
    assert counted.counted() == {
        DAY - 1: {"calls": 1, "messages": 1, "seconds": 4.0},
        DAY: {"messages": 1, "seconds": 6.0},
    }


def test_a_wall_clock_that_goes_back_over_midnight_opens_no_day_again():
    """What was reported of it as its last may have been forgotten."""
    counted = Usage(0.0, DAY * DAY_SECONDS + 1.0, is_new=False)
    counted.on_time(5.0, DAY * DAY_SECONDS - 60.0)
    assert counted.counted() == {DAY: {"seconds": 5.0}}


def test_days_that_were_taken_are_forgotten_and_today_never_is():
    """A call may live for days: its reports must not grow."""
    counted = Usage(0.0, DAY * DAY_SECONDS - 4.0, is_new=True)
    counted.forget_before(DAY + 5)
    assert set(counted.counted()) == {DAY - 1}
    counted.on_time(10.0, DAY * DAY_SECONDS + 6.0)
    counted.forget_before(DAY - 1)
    assert set(counted.counted()) == {DAY - 1, DAY}
    counted.forget_before(DAY)
    assert counted.counted() == {DAY: {"seconds": 6.0}}
