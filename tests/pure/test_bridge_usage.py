"""What the bridge lets a call's usage know of audio that comes its way, and whom it spares an error that is mended."""

import json
from base64 import b64encode
from itertools import count
from typing import Any

import pytest

from relay.core.actions import Passed, Send, Side
from relay.core.bridge import Bridge, Rules
from relay.core.usage import Usage

NOW, WALL = 50.0, 1_700_000_000.0
NONE_PASSED = Passed()


def append(pcm: bytes) -> bytes:
    return b'{"type":"input_audio_buffer.append","audio":"%s"}' % b64encode(pcm)


def delta(pcm: bytes) -> bytes:
    head = b'{"type":"response.output_audio.delta","event_id":"e","response_id":"r","item_id":"i"'
    return head + b',"output_index":0,"content_index":0,"delta":"%s"}' % b64encode(pcm)


def playing(passed: Passed = NONE_PASSED, **rules: Any) -> Bridge:
    """A call that is open and counts what it uses; ``passed`` went straight from leg to leg."""
    ids = count(1)
    bridge = Bridge(Rules(**rules), lambda: f"event_{next(ids)}", lambda: passed)
    bridge.conversation.usage = Usage(NOW, WALL, is_new=False)
    bridge.on_model_opened(None, NOW)
    bridge.on_announced((), NOW, WALL)
    return bridge


def seconds(bridge: Bridge) -> dict[str, int | float]:
    """What has been counted of the call."""
    usage = bridge.conversation.usage
    assert usage is not None
    usage.on_look(*bridge.audio())
    return usage.counted()[usage.day]


@pytest.mark.parametrize("ms", [20, 33, 100, 1000])
def test_audio_that_comes_through_the_bridge_is_counted_by_what_its_first_message_is(ms: int):
    """What of a message is no audio is learned from the first: of each later one that much is left out."""
    bridge, pcm = playing(), bytes(48 * ms)
    for _ in range(5):
        bridge.on_client_text(append(pcm), NOW)
        bridge.on_model_text(delta(pcm), NOW, WALL)
    assert seconds(bridge) == pytest.approx({"audio_seconds_in": 5 * ms / 1000, "audio_seconds_out": 5 * ms / 1000})


def test_audio_is_counted_together_with_what_went_past_the_bridge():
    """While a call is open most of it does; messages and bytes, the client's and the model's."""
    bridge = playing(Passed(3, 300, 4, 400))
    assert bridge.audio() == ((3, 300), (4, 400))
    given, made = append(bytes(960)), delta(bytes(4_800))
    bridge.on_client_text(given, NOW)
    bridge.on_model_text(made, NOW, WALL)
    assert bridge.audio() == ((4, 300 + len(given)), (5, 400 + len(made)))


def test_raw_audio_is_counted_as_the_model_gets_it():
    """A binary frame of a voice client's is an append like any other by then."""
    bridge = playing(binary_client=True)
    for _ in range(3):
        bridge.on_client_binary(bytes(960))
    assert seconds(bridge) == pytest.approx({"audio_seconds_in": 0.06})


def test_audio_that_nobody_counts_passes_as_well():
    """A call has no account until it is started."""
    bridge = playing()
    bridge.conversation.usage = None
    (send,) = bridge.on_client_text(append(bytes(960)), NOW)
    (back,) = bridge.on_model_text(delta(bytes(960)), NOW, WALL)
    assert isinstance(send, Send)
    assert isinstance(back, Send)
    assert (send.side, back.side) == (Side.MODEL, Side.CLIENT)
    assert [messages for messages, _ in bridge.audio()] == [1, 1]


@pytest.mark.parametrize("goes_on", [True, False], ids=["another server", "none"])
@pytest.mark.parametrize(
    "event",
    [
        {"type": "error", "error": {"code": "insufficient_quota", "message": "Pay first."}},
        {
            "type": "response.done",
            "response": {"status": "failed", "status_details": {"error": {"code": "insufficient_quota"}}},
        },
    ],
    ids=["error", "response"],
)
def test_a_refusal_is_not_the_clients_matter_where_another_server_takes_the_call(event: dict[str, Any], goes_on: bool):
    """It is mended: an SDK would end the call for it. Without another server the client must know."""
    bridge = playing()
    bridge.conversation.serving.fails_over = lambda: goes_on
    actions = bridge.on_model_text(json.dumps(event).encode(), NOW, WALL)
    told = [json.loads(each.payload)["type"] for each in actions if isinstance(each, Send)]
    assert told == ([] if goes_on else [event["type"]])
    assert bridge.conversation.serving.refusal == "insufficient_quota"
