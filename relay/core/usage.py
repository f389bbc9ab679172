"""What one call uses while it is on this node: tokens as the model says them, audio by what passed, time. Pure.

Counters by day (UTC) that only ever grow, so that a report of them may be lost, late or sent twice. A call that moves
to another node begins with none there. Nothing that a model or a client writes can make them fall or raise an error.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

DAY_SECONDS: Final = 86_400

_MOST: Final = 1e9  # of one number in a model's event: what a broken server may add at a time
_RATE: Final = 48_000.0  # bytes a second of 16-bit PCM at 24 kHz, which holds until a session says otherwise
_RATES: Final = {
    **dict.fromkeys(("audio/pcm", "pcm16"), _RATE),
    **dict.fromkeys(("audio/pcmu", "audio/pcma", "g711_ulaw", "g711_alaw"), 8_000.0),
}
_SAMPLE_RATES: Final = range(4_000, 192_001)
_APPEND: Final = len('{"type":"input_audio_buffer.append","audio":""}')
_DELTA: Final = len(
    '{"type":"response.output_audio.delta","event_id":"","response_id":"","item_id":"","output_index":0,'
    '"content_index":0,"delta":""}'
) + 3 * len("event_0123456789abcdefghi")
_AUDIO: Final = re.compile(rb'"(?:audio|delta)"\s*:\s*"([A-Za-z0-9+/]*)(={0,2})"')


class Audio:
    """The length of the audio of one direction: messages with base64 in them, of which only number and size are known.

    What of a message is no audio is learned from the first one: a client, and a model's server, always write the same
    envelope, and mostly frames of one length.
    """

    __slots__ = ("_messages", "_overhead", "_rate", "_size", "is_learned")

    def __init__(self, overhead: float) -> None:
        self._overhead = overhead
        self._rate = _RATE
        self._messages = self._size = 0
        self.is_learned = False

    def learn(self, message: bytes) -> None:
        """This is the first message, or one like all others."""
        self.is_learned = True
        found = _AUDIO.search(message)
        if found is not None:  # the padding's share is that of a message of this length
            letters, padding = len(found.group(1)), len(found.group(2))
            self._overhead = len(message) - letters - padding + padding / 3 * 4

    def on_format(self, given: object) -> None:
        """The session says in which format it is; what is not understood changes nothing."""
        kind = given.get("type") if isinstance(given, dict) else given
        rate = _RATES.get(kind) if isinstance(kind, str) else None
        if rate is None:
            return
        self._rate = rate
        sampled = given.get("rate") if isinstance(given, dict) else None
        if rate == _RATE and type(sampled) is int and sampled in _SAMPLE_RATES:
            self._rate = 2.0 * sampled

    def passed(self, messages: int, size: int) -> float:
        """So many messages and bytes of them have passed since the call began; returns the seconds that are new."""
        new, grown = messages - self._messages, size - self._size
        self._messages, self._size = messages, size
        return max(0.0, grown - new * self._overhead) * 3 / 4 / self._rate


class Usage:
    """The counters of one call on one node, from ``now`` (the loop's clock) and ``wall`` (since the epoch) on.

    What is counted belongs to the day of the last ``on_time``.
    """

    __slots__ = ("_days", "_now", "day", "given", "made")

    def __init__(self, now: float, wall: float, *, is_new: bool) -> None:
        self._now = now
        self.day = int(wall // DAY_SECONDS)  # today's number since the epoch; it never goes back
        self._days: dict[int, dict[str, int | float]] = {self.day: {}}
        self.given = Audio(_APPEND)  # what the client says
        self.made = Audio(_DELTA)  # what the model says
        if is_new:
            self._add("calls", 1)

    def _add(self, name: str, number: float) -> None:
        if number:
            counters = self._days[self.day]
            counters[name] = counters.get(name, 0) + number

    # What happens

    def on_time(self, now: float, wall: float) -> None:
        """Time has passed; what passed since midnight is the new day's."""
        elapsed, self._now = max(0.0, now - self._now), max(now, self._now)
        today = int(wall // DAY_SECONDS)
        if today > self.day:
            since_midnight = min(elapsed, wall - today * DAY_SECONDS)
            self._add("seconds", elapsed - since_midnight)
            self.day, elapsed = today, since_midnight
            self._days[today] = {}
        self._add("seconds", elapsed)

    def on_session(self, session: Mapping[str, Any]) -> None:
        """The session as the model has it now: its audio formats, in the shape of the GA or the beta API.

        They hold for all audio that has not been counted yet.
        """
        audio = _dict(session.get("audio"))
        self.given.on_format(_dict(audio.get("input")).get("format", session.get("input_audio_format")))
        self.made.on_format(_dict(audio.get("output")).get("format", session.get("output_audio_format")))

    def on_look(self, given: tuple[int, int], made: tuple[int, int]) -> None:
        """Count what has passed since the last look; see ``on_given`` and ``on_made``."""
        self.on_given(*given)
        self.on_made(*made)

    def on_given(self, messages: int, size: int) -> None:
        """So many of the client's audio messages, and bytes of them, have gone to the model since the call began."""
        self._add("audio_seconds_in", self.given.passed(messages, size))

    def on_made(self, messages: int, size: int) -> None:
        """So many of the model's audio events, and bytes of them, have gone to the client since the call began."""
        self._add("audio_seconds_out", self.made.passed(messages, size))

    def on_message(self) -> None:
        """The model took a backend's message."""
        self._add("messages", 1)

    def on_response(self, usage: object) -> None:
        """A response is done; ``usage`` is what the model says that it cost, if it does.

        What a server doesn't break down is text: the sum is never less than what it says.
        """
        self._add("responses", 1)
        block = _dict(usage)
        given, made = _dict(block.get("input_token_details")), _dict(block.get("output_token_details"))
        audio, image = _tokens(given.get("audio_tokens")), _tokens(given.get("image_tokens"))
        text = max(_tokens(given.get("text_tokens")), _tokens(block.get("input_tokens")) - audio - image)
        self._add("input_text_tokens", text)
        self._add("input_audio_tokens", audio)
        self._add("input_image_tokens", image)
        self._add("cached_tokens", _tokens(given.get("cached_tokens")))
        audio = _tokens(made.get("audio_tokens"))
        text = max(_tokens(made.get("text_tokens")), _tokens(block.get("output_tokens")) - audio)
        self._add("output_text_tokens", text)
        self._add("output_audio_tokens", audio)

    def on_transcription(self, usage: object) -> None:
        """What people said was written down; ``usage`` is its cost, in tokens or in seconds."""
        block = _dict(usage)
        both = _tokens(block.get("input_tokens")) + _tokens(block.get("output_tokens"))
        self._add("transcription_tokens", max(_tokens(block.get("total_tokens")), both))
        self._add("transcription_seconds", _number(block.get("seconds")))

    # What it comes to

    def counted(self) -> dict[int, dict[str, int | float]]:
        """Return the counters by day's number, those above zero; fractions to the millisecond."""
        return {
            day: {name: round(number, 3) if isinstance(number, float) else number for name, number in counters.items()}
            for day, counters in self._days.items()
            if counters
        }

    def forget_before(self, day: int) -> None:
        """What was counted before this day has been taken: nothing is added to it any more."""
        self._days = {each: counters for each, counters in self._days.items() if each >= min(day, self.day)}


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:  # nor not-a-number
        return 0.0
    return float(min(value, _MOST))


def _tokens(value: object) -> int:
    return int(_number(value))


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
