"""Decides from the energy of the audio when a person starts and stops speaking.

Time is audio time: milliseconds of audio received, never a clock. Works in windows of 20 ms and looks at 8,000 samples
a second, which is about 8 µs a window: twenty sessions cost about one percent of a core.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from operator import mul

from ops.simulator.speech import Format, decode_table, pcm_samples

WINDOW_MS = 20
CONFIRM_MS = 60  # a click is not speech
DEFAULT_DBFS = -42.0  # at threshold 0.5: a -35 dBFS tone is speech, a quiet room (-50 dBFS) is not


class Edge(Enum):
    STARTED = "started"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Change:
    """An edge between silence and speech.

    `at_ms` is what the API reports: with the prefix padding for a start, with the silence for a stop. `spoken_ms` is
    the speech alone, known at a stop.
    """

    edge: Edge
    at_ms: int
    spoken_ms: int = 0


class Vad:
    """Energy against a threshold, with the padding and the silence of `server_vad`."""

    def __init__(
        self,
        coding: Format,
        *,
        threshold: float = 0.5,
        prefix_padding_ms: int = 300,
        silence_duration_ms: int = 500,
        at_ms: int = 0,
    ) -> None:
        self.format = coding
        self.speaking = False
        self._prefix_ms = prefix_padding_ms
        self.silence_ms = silence_duration_ms
        self._at_ms = at_ms
        self._rest = b""
        self._window_bytes = WINDOW_MS * coding.bytes_per_ms
        amplitude = 32768 * 10 ** ((DEFAULT_DBFS + 40 * (threshold - 0.5)) / 20)
        self._loud = amplitude * amplitude * (WINDOW_MS * 8)
        self._first_ms: int | None = None  # where the present run of loud windows began
        self._last_ms = at_ms  # the end of the last loud window
        self._squares = () if coding is Format.PCM else tuple(sample * sample for sample in decode_table(coding))

    def feed(self, data: bytes) -> list[Change]:
        """The changes in what came in, in order; what doesn't fill a window waits for the next call."""
        data = self._rest + data
        whole = len(data) - len(data) % self._window_bytes
        self._rest = data[whole:]
        changes: list[Change] = []
        for energy in self._energies(data[:whole]):
            change = self._window(energy >= self._loud)
            if change is not None:
                changes.append(change)
        return changes

    def reset(self) -> None:
        """Forget the utterance in progress, keep the time."""
        self.speaking = False
        self._first_ms = None

    def _energies(self, data: bytes) -> list[int]:
        if self.format is not Format.PCM:
            size = self._window_bytes
            square = self._squares.__getitem__
            return [sum(map(square, data[i : i + size])) for i in range(0, len(data), size)]
        samples = pcm_samples(data)[::3]
        size = WINDOW_MS * 8
        windows = [samples[i : i + size] for i in range(0, len(samples), size)]
        return [sum(map(mul, window, window)) for window in windows]

    def _window(self, loud: bool) -> Change | None:
        start = self._at_ms
        self._at_ms = end = start + WINDOW_MS
        if loud:
            self._last_ms = end
            if self._first_ms is None:
                self._first_ms = start
            if not self.speaking and end - self._first_ms >= CONFIRM_MS:
                self.speaking = True
                return Change(Edge.STARTED, max(self._first_ms - self._prefix_ms, 0))
            return None
        if not self.speaking:
            self._first_ms = None
        elif end - self._last_ms >= self.silence_ms and self._first_ms is not None:
            spoken = self._last_ms - self._first_ms
            self.reset()
            return Change(Edge.STOPPED, end, spoken)
        return None
