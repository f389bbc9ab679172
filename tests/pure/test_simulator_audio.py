"""The simulator's ears and voice: VAD edges in audio time, formats and their conversion."""

from __future__ import annotations

from array import array

import pytest

from ops.simulator.listening import HOLD_MS, QUIET_HOLD_MS, InputBuffer, SpeechStarted, SpeechStopped
from ops.simulator.speech import Clip, Format, beeps, decode, encode, resample, tone
from ops.simulator.vad import Change, Edge, Vad

SERVER_VAD = {"type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": 500}


def silence(seconds: float) -> bytes:
    return bytes(int(seconds * 1000) * 48)


def as_format(pcm: bytes, wanted: Format) -> bytes:
    return Clip(Format.PCM, pcm).to(wanted).data


@pytest.mark.parametrize("audio_format", list(Format), ids=lambda each: each.wire)
@pytest.mark.parametrize("piece_ms", [1, 7, 20, 100, 5000])
def test_edges_are_where_the_speech_is_however_the_audio_is_cut(audio_format: Format, piece_ms: int):
    """Twilio sends 20 ms, browsers 40 to 200, tests everything at once: the edges must not depend on it."""
    data = as_format(silence(1) + tone(1) + silence(1), audio_format)
    vad, size = Vad(audio_format), piece_ms * audio_format.bytes_per_ms
    changes = [change for i in range(0, len(data), size) for change in vad.feed(data[i : i + size])]
    assert changes == [Change(Edge.STARTED, 700), Change(Edge.STOPPED, 2500, 1000)]


@pytest.mark.parametrize(("dbfs", "is_speech"), [(-6, True), (-20, True), (-35, True), (-50, False), (-70, False)])
def test_a_quiet_voice_is_speech_and_a_quiet_room_is_not(dbfs: float, is_speech: bool):
    assert bool(Vad(Format.PCM).feed(tone(0.5, dbfs=dbfs))) is is_speech


@pytest.mark.parametrize("hertz", [80, 300, 1000, 3400, 7900])
def test_every_pitch_of_a_voice_is_heard(hertz: float):
    """The VAD looks at every third sample: no frequency may fall through."""
    assert Vad(Format.PCM).feed(tone(0.5, hertz=hertz, dbfs=-30))


def test_a_click_is_not_speech():
    assert Vad(Format.PCM).feed(silence(0.2) + tone(0.04) + silence(1)) == []


def test_a_pause_shorter_than_the_silence_duration_does_not_end_the_turn():
    vad = Vad(Format.PCM)
    assert [change.edge for change in vad.feed(tone(0.5) + silence(0.4) + tone(0.5))] == [Edge.STARTED]


def test_a_stop_cuts_the_turn_with_its_prefix_and_its_silence():
    buffer = InputBuffer(Format.PCM, SERVER_VAD)
    data = silence(1) + tone(1) + silence(1)
    started, stopped = buffer.append(data)
    assert started == SpeechStarted(700)
    assert isinstance(stopped, SpeechStopped)
    assert stopped.clip.data == data[700 * 48 : 2500 * 48]
    assert stopped.heard.ms == 300 + 1000 + 100  # the silence would only delay the parrot
    assert buffer.ms == 500


def test_two_turns_in_one_append_are_two_turns():
    heard = InputBuffer(Format.PCM, SERVER_VAD).append((tone(0.5) + silence(1)) * 2)
    assert [type(each) for each in heard] == [SpeechStarted, SpeechStopped] * 2


def test_without_vad_everything_waits_for_the_commit():
    buffer = InputBuffer(Format.PCM, None)
    assert buffer.append(tone(1) + silence(2)) == []
    assert buffer.commit().ms == 3000
    assert buffer.ms == 0


@pytest.mark.parametrize(
    ("detection", "limit_ms"), [(None, HOLD_MS), (SERVER_VAD, QUIET_HOLD_MS)], ids=["manual", "vad"]
)
def test_the_buffer_is_bounded(detection: dict[str, object] | None, limit_ms: int):
    """A client that never commits costs a constant."""
    buffer = InputBuffer(Format.PCMU, detection)
    for _ in range(13):
        buffer.append(b"\xff" * 80_000)
    assert buffer.ms == limit_ms
    assert buffer.received_ms == 130_000


def test_an_utterance_after_a_trimmed_silence_still_has_its_prefix():
    buffer = InputBuffer(Format.PCM, SERVER_VAD)
    for _ in range(20):
        buffer.append(silence(1))
    started, stopped = buffer.append(tone(1) + silence(1))
    assert started == SpeechStarted(19_700)
    assert isinstance(stopped, SpeechStopped)
    assert stopped.clip.ms == 1800


@pytest.mark.parametrize("audio_format", [Format.PCMU, Format.PCMA], ids=lambda each: each.wire)
def test_g711_codes_survive_a_round_trip(audio_format: Format):
    codes = bytes(range(256))
    back = encode(audio_format, decode(audio_format, codes))
    assert decode(audio_format, back) == decode(audio_format, codes)  # mu-law has two zeros


def test_g711_decodes_to_the_values_of_the_standard():
    """ITU-T G.711: silence, the loudest, and the quietest codes."""
    assert decode(Format.PCMU, b"\xff\x00\x80").tolist() == [0, -32124, 32124]
    assert decode(Format.PCMA, b"\xd5\x55\x2a\xaa").tolist() == [8, -8, -32256, 32256]


def test_resampling_keeps_length_and_level():
    samples = array("h", [1000] * 240)
    down = resample(samples, 24_000, 8_000)
    assert (len(down), set(down)) == (80, {1000})
    up = resample(down, 8_000, 24_000)
    assert (len(up), set(up)) == (240, {1000})


def test_the_same_format_is_copied_verbatim():
    """A phone's mu-law comes back bit for bit."""
    clip = Clip(Format.PCMU, bytes(range(256)))
    assert clip.to(Format.PCMU) is clip


@pytest.mark.parametrize(("words", "low", "high"), [("", 300, 400), ("hi", 300, 400), ("a " * 50, 2500, 3000)])
def test_a_synthetic_voice_is_short(words: str, low: int, high: int):
    for audio_format in Format:
        assert low <= beeps(words, audio_format).ms <= high
