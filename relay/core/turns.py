"""Who has the floor: whether somebody speaks, is about to, or is still being heard. Pure; time comes in as ``now``.

The model sends audio faster than it is played, so how far a person has heard is an estimate: what was sent begins to
play when it arrives, each part after the one before. A client that stops playing says so with a truncate.
"""

import math
from typing import Any, Final, NamedTuple

SETTLE_SECONDS: Final = 0.3  # after speech stopped: the server's turn detection may still commit and answer
_SEGMENTS_MAX: Final = 64  # parts of audio not played yet; more are one with the last
_BYTES_PER_SECOND: Final = {"audio/pcm": 48_000, "audio/pcmu": 8_000, "audio/pcma": 8_000}
_ENVELOPE: Final = len(
    '{"type":"response.output_audio.delta","event_id":"","response_id":"","item_id":"","output_index":0,'
    '"content_index":0,"delta":""}'
)
_ID_BYTES: Final = 25  # of an id whose length is not known


class Unplayed(NamedTuple):
    """Audio that was sent and not heard to its end: ``played_ms`` of this content part were."""

    item_id: str
    content_index: int
    played_ms: int


class _Part:
    """A content part of audio on its way to the person's ear."""

    __slots__ = ("content_index", "ends_at", "item_id", "starts_at")

    def __init__(self, item_id: str, content_index: int, starts_at: float) -> None:
        self.item_id, self.content_index = item_id, content_index
        self.starts_at = self.ends_at = starts_at


class Turns:
    """The floor of one conversation, as far as the model's events and the audio that passed tell."""

    __slots__ = (
        "_answers",
        "_appended",
        "_committed",
        "_envelope",
        "_frames",
        "_interrupts",
        "_is_manual",
        "_part",
        "_parts",
        "_quiet_at",
        "_rate",
        "_said_seconds",
        "_size",
        "_speaking",
    )

    def __init__(self) -> None:
        self._speaking = False
        self._quiet_at = -math.inf
        self._is_manual = False  # no turn detection: the client commits its audio
        self._interrupts = True  # speech stops the model, and the client's playing
        self._answers = True  # the server answers by itself what a person said
        self._appended = 0  # the client's audio messages so far
        self._committed = 0  # the client's audio messages up to its last commit or clear
        self._rate = _BYTES_PER_SECOND["audio/pcm"]
        self._envelope = _ENVELOPE + 3 * _ID_BYTES
        self._part: tuple[str, int] = ("", 0)  # to which new audio belongs
        self._said_seconds = 0.0  # of that part
        self._parts: list[_Part] = []
        self._frames = self._size = 0  # of the model's audio seen so far

    # What happens

    def on_session(self, session: dict[str, Any]) -> None:
        """The session as the model has it now."""
        audio = _dict(session.get("audio"))
        given = _dict(audio.get("input"))
        detection = given.get("turn_detection", {})
        if detection is None and not self._is_manual:  # so far turn detection saw to the buffer
            self._committed = self._appended
        self._is_manual = detection is None
        self._interrupts = _dict(detection).get("interrupt_response") is not False
        self._answers = detection is not None and _dict(detection).get("create_response") is not False
        if self._is_manual:
            self._speaking = False
        kind = _dict(_dict(audio.get("output")).get("format")).get("type")
        self._rate = _BYTES_PER_SECOND.get(str(kind), _BYTES_PER_SECOND["audio/pcm"])

    def on_speech_started(self) -> None:
        """The person speaks; a client stops playing then, unless it was told otherwise."""
        self._speaking = True
        if self._interrupts:
            self._parts.clear()

    def on_speech_stopped(self, now: float) -> None:
        """The person is silent."""
        self._speaking, self._quiet_at = False, now

    def on_appended(self, appended: int) -> None:
        """The client has sent so many messages of audio since the call began."""
        self._appended = appended

    def on_buffer_empty(self, now: float) -> None:
        """The input audio so far was committed or cleared by the model: speech in it ends with that, unsaid."""
        if self._speaking:
            self.on_speech_stopped(now)

    def on_buffer_taken(self, appended: int) -> None:
        """The input audio so far, ``appended`` messages of it ever, was committed or cleared."""
        self._committed = appended

    def on_part(self, item_id: str, content_index: int, *, ids_bytes: int | None = None) -> None:
        """The audio that follows belongs to this content part; ``ids_bytes`` is the length of its events' ids."""
        self._part, self._said_seconds = (item_id, content_index), 0.0
        if ids_bytes is not None:
            self._envelope = _ENVELOPE + ids_bytes

    def on_audio(self, frames: int, size: int, now: float) -> None:
        """So many audio events of the model's, and bytes of them, have gone to the client since the call began."""
        new, grown = frames - self._frames, size - self._size
        self._frames, self._size = frames, size
        if not new:
            return
        seconds = max(0, grown - new * self._envelope) * 3 / 4 / self._rate
        self._said_seconds += seconds
        parts, (item_id, index) = self._parts, self._part
        self._forget_played(now)
        last = parts[-1] if parts else None
        if last is None or ((last.item_id, last.content_index) != self._part and len(parts) < _SEGMENTS_MAX):
            last = _Part(item_id, index, max(now, last.ends_at if last else now))
            parts.append(last)
        last.starts_at += max(0.0, now - last.ends_at)  # it had run dry: that time was not played
        last.ends_at = max(last.ends_at, now) + seconds

    def _forget_played(self, now: float) -> None:
        # A part that has run dry may get more: it is kept until another one follows it.
        while len(self._parts) > 1 and self._parts[0].ends_at <= now:
            del self._parts[0]

    def on_model_gone(self, now: float) -> None:
        """Another model leg takes over: audio that was not committed is gone, what was said is still being heard."""
        self.on_buffer_empty(now)
        self._committed = self._appended
        for part in self._parts:
            part.item_id = ""  # the other leg has no audio of it that could be cut

    def on_cut(self, item_id: str | None = None) -> None:
        """An item was truncated, or everything (None) is silenced: it is not played any more."""
        self._parts = [part for part in self._parts if item_id is not None and part.item_id != item_id]

    # What it means

    def said_ms(self, item_id: str) -> int:
        """About how much audio there is of the item that is being said, or was said last; 0 of any other."""
        return round(self._said_seconds * 1000) if item_id == self._part[0] else 0

    @property
    def is_speaking(self) -> bool:
        """Whether the person speaks."""
        return self._speaking

    @property
    def are_answered(self) -> bool:
        """Whether the server answers by itself what a person says."""
        return self._answers

    @property
    def settled_from(self) -> float | None:
        """From when on a person who spoke is done speaking; None while they do."""
        return None if self._speaking else self._quiet_at + SETTLE_SECONDS

    def quiet_from(self, appended: int) -> float | None:
        """From when on nobody speaks and nothing is left to be heard, as it looks now; None if no time tells.

        ``appended`` is how many messages of audio the client has sent: without turn detection, what was not committed
        is a turn under way.
        """
        if self._speaking or (self._is_manual and appended > self._committed):
            return None
        heard = max((part.ends_at for part in self._parts), default=-math.inf)
        return max(self._quiet_at + SETTLE_SECONDS, heard)

    def unplayed(self, now: float) -> list[Unplayed]:
        """What of the audio that was sent the person has not heard to its end."""
        return [
            Unplayed(part.item_id, part.content_index, int(max(0.0, now - part.starts_at) * 1000))
            for part in self._parts
            if part.ends_at > now and part.item_id
        ]


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
