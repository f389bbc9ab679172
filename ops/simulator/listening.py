"""The input audio buffer: holds what the person sends, and cuts it into turns where the VAD hears silence.

Positions are milliseconds of audio received since the session began. Holds at most `HOLD_MS`; the oldest goes first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ops.simulator.speech import Clip, Format
from ops.simulator.vad import Edge, Vad

HOLD_MS = 120_000  # 5.8 MB of PCM: what a client that never commits may cost
QUIET_HOLD_MS = 5_000  # before speech, only the prefix can matter; a manual commit may want a little more


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    at_ms: int


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """`clip` is what is committed: prefix, speech and silence; `heard` has only a little of the silence."""

    at_ms: int
    clip: Clip
    heard: Clip
    spoken_ms: int


Heard = SpeechStarted | SpeechStopped


class InputBuffer:
    def __init__(self, coding: Format, turn_detection: dict[str, Any] | None) -> None:
        self.format = coding
        self.received_ms = 0
        self._data = bytearray()
        self._base_ms = 0  # where `_data` begins
        self._rest = 0  # bytes that don't fill a millisecond yet
        self._vad: Vad | None = None
        self._start_ms: int | None = None  # of the utterance in progress
        self.configure(coding, turn_detection)

    @property
    def ms(self) -> float:
        """How much uncommitted audio is held."""
        return len(self._data) / self.format.bytes_per_ms

    @property
    def speaking(self) -> bool:
        return self._vad is not None and self._vad.speaking

    def configure(self, coding: Format, turn_detection: dict[str, Any] | None) -> None:
        """Take new settings; audio held in another format is dropped, an utterance in progress is forgotten."""
        if coding is not self.format:
            self.format = coding
            self._rest = 0
            self._drop_all()
        self._start_ms = None
        self._vad = None
        if turn_detection is None:
            return
        named = {key: turn_detection[key] for key in _VAD_KEYS if key in turn_detection}
        self._vad = Vad(coding, at_ms=self.received_ms, **named)

    def append(self, data: bytes) -> list[Heard]:
        self._data += data
        fill = self._rest + len(data)
        self.received_ms += fill // self.format.bytes_per_ms
        self._rest = fill % self.format.bytes_per_ms
        heard: list[Heard] = []
        for change in self._vad.feed(data) if self._vad is not None else ():
            if change.edge is Edge.STARTED:
                self._start_ms = max(change.at_ms, self._base_ms)
                heard.append(SpeechStarted(self._start_ms))
            else:
                heard.append(self._cut(change.at_ms, change.spoken_ms))
        self._trim()
        return heard

    def commit(self) -> Clip:
        """Everything that is held, as one turn."""
        clip = Clip(self.format, bytes(self._data))
        self.clear()
        return clip

    def clear(self) -> None:
        self._drop_all()
        self._start_ms = None
        if self._vad is not None:
            self._vad.reset()

    def _cut(self, end_ms: int, spoken_ms: int) -> SpeechStopped:
        start_ms = max(self._base_ms if self._start_ms is None else self._start_ms, self._base_ms)
        per_ms = self.format.bytes_per_ms
        clip = Clip(
            self.format, bytes(self._data[(start_ms - self._base_ms) * per_ms : (end_ms - self._base_ms) * per_ms])
        )
        del self._data[: (end_ms - self._base_ms) * per_ms]
        self._base_ms = end_ms
        self._start_ms = None
        silence_ms = self._vad.silence_ms if self._vad is not None else 0
        return SpeechStopped(end_ms, clip, clip.first(clip.ms - silence_ms + 100), spoken_ms)

    def _trim(self) -> None:
        limit_ms = HOLD_MS if self._vad is None or self.speaking else QUIET_HOLD_MS
        surplus_ms = int(self.ms) - limit_ms
        if surplus_ms > 0:
            del self._data[: surplus_ms * self.format.bytes_per_ms]
            self._base_ms += surplus_ms

    def _drop_all(self) -> None:
        self._data.clear()
        self._base_ms = self.received_ms


_VAD_KEYS = ("threshold", "prefix_padding_ms", "silence_duration_ms")
