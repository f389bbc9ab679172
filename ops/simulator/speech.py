"""Audio as bytes: formats, durations, conversion between them, and the soft beeps that stand for a synthetic voice.

Never touches a socket or a clock. G.711 is decoded by table; numpy and audioop are not available everywhere.
"""

from __future__ import annotations

import math
import sys
from array import array
from bisect import bisect_left
from dataclasses import dataclass
from enum import Enum
from functools import cache
from itertools import pairwise

BEEP_MS, PAUSE_MS = 120, 60
MIN_BEEPS, MAX_BEEPS = 2, 16  # 0.36 s to 2.88 s


class Format(Enum):
    """An audio format of the Realtime API: its wire name, samples per second, bytes per millisecond."""

    PCM = ("audio/pcm", 24_000, 48)
    PCMU = ("audio/pcmu", 8_000, 8)
    PCMA = ("audio/pcma", 8_000, 8)

    def __init__(self, wire: str, rate: int, bytes_per_ms: int) -> None:
        self.wire = wire
        self.rate = rate
        self.bytes_per_ms = bytes_per_ms

    @classmethod
    def named(cls, wire: str) -> Format:
        return next(each for each in cls if each.wire == wire)


@dataclass(frozen=True, slots=True)
class Clip:
    """A stretch of audio in one format."""

    format: Format
    data: bytes

    @property
    def ms(self) -> int:
        return len(self.data) // self.format.bytes_per_ms

    def first(self, ms: int) -> Clip:
        return Clip(self.format, self.data[: max(ms, 0) * self.format.bytes_per_ms])

    def to(self, wanted: Format) -> Clip:
        """The same sound in another format; the very same bytes when it already is in that format."""
        if wanted is self.format:
            return self
        samples = resample(decode(self.format, self.data), self.format.rate, wanted.rate)
        return Clip(wanted, encode(wanted, samples))


def pcm_samples(data: bytes) -> array[int]:
    """PCM16 little-endian as integers; an odd byte at the end is dropped."""
    samples = array("h", data[: len(data) & ~1])
    if sys.byteorder == "big":
        samples.byteswap()
    return samples


def decode(source: Format, data: bytes) -> array[int]:
    if source is Format.PCM:
        return pcm_samples(data)
    return array("h", map(decode_table(source).__getitem__, data))


def encode(target: Format, samples: array[int]) -> bytes:
    if target is Format.PCM:
        if sys.byteorder == "big":
            samples = array("h", samples)
            samples.byteswap()
        return samples.tobytes()
    table = _encode_table(target)
    return bytes([table[sample >> 2] for sample in samples])  # a negative index lands in the table's upper half


def resample(samples: array[int], rate: int, wanted: int) -> array[int]:
    """Between 8 and 24 kHz only: the mean of three samples down, a straight line up."""
    if rate == wanted or not samples:
        return samples
    if rate > wanted:
        thirds = zip(samples[0::3], samples[1::3], samples[2::3], strict=False)
        return array("h", [(a + b + c) // 3 for a, b, c in thirds])
    out = array("h")
    for a, b in pairwise(samples):
        out.extend((a, (2 * a + b) // 3, (a + 2 * b) // 3))
    out.extend((samples[-1],) * 3)
    return out


@cache
def decode_table(source: Format) -> tuple[int, ...]:
    """G.711: the 16-bit sample of each of the 256 codes (ITU-T G.711)."""
    return tuple(map(_mu_law if source is Format.PCMU else _a_law, range(256)))


def _mu_law(code: int) -> int:
    code = ~code & 0xFF
    size = ((((code & 0x0F) << 3) + 0x84) << ((code >> 4) & 7)) - 0x84
    return -size if code & 0x80 else size


def _a_law(code: int) -> int:
    code ^= 0x55
    exponent, mantissa = (code >> 4) & 7, (code & 0x0F) << 4
    size = mantissa + 8 if exponent == 0 else (mantissa + 0x108) << (exponent - 1)
    return size if code & 0x80 else -size


@cache
def _encode_table(target: Format) -> bytes:
    """The nearest code of each 14-bit sample: 0…8191, then -8192…-1."""
    codes = sorted(range(256), key=decode_table(target).__getitem__)
    levels = [decode_table(target)[code] for code in codes]

    def nearest(sample: int) -> int:
        above = min(bisect_left(levels, sample), 255)
        below = max(above - 1, 0)
        return codes[above] if levels[above] - sample < sample - levels[below] else codes[below]

    return bytes(nearest(step * 4 + 2) for step in (*range(8192), *range(-8192, 0)))


@cache
def _beep(hertz: int, coding: Format) -> bytes:
    """One soft beep (-20 dBFS, raised-cosine envelope) and the pause after it."""
    count = BEEP_MS * coding.rate // 1000
    tone = array("h", bytes(2 * (BEEP_MS + PAUSE_MS) * coding.rate // 1000))
    for i in range(count):
        envelope = 0.5 - 0.5 * math.cos(2 * math.pi * i / count)
        tone[i] = round(3277 * envelope * math.sin(2 * math.pi * hertz * i / coding.rate))
    return encode(coding, tone)


def beeps(text: str, coding: Format, ms: int | None = None) -> Clip:
    """A synthetic voice: one beep per word of `text`, its pitch from the word's length, 0.36 to 2.88 s.

    With `ms` it says the words again and again until it has spoken for so long.
    """
    words = (text.split() or [""])[:MAX_BEEPS]
    words += [""] * (MIN_BEEPS - len(words))
    once = Clip(coding, b"".join(_beep(330 + 55 * (len(word) % 8), coding) for word in words))
    return once if ms is None else Clip(coding, once.data * -(-ms // once.ms)).first(ms)


def tone(seconds: float, hertz: float = 440.0, dbfs: float = -20.0) -> bytes:
    """PCM16 24 kHz: a sine whose level (RMS against full scale) is `dbfs`; what the tests speak with."""
    peak = min(32767.0, 32768 * 10 ** (dbfs / 20) * math.sqrt(2))
    step = 2 * math.pi * hertz / Format.PCM.rate
    return encode(Format.PCM, array("h", [round(peak * math.sin(step * i)) for i in range(round(seconds * 24_000))]))
