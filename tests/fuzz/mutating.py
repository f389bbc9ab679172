"""A plain mutator: the same inputs for the same seed on every machine. It knows nothing of the code that it feeds."""

import random
from collections.abc import Callable, Iterator, Sequence

LONGEST = 8192
_NUMBERS = (0, 1, 0x7E, 0x7F, 0x80, 0xC0, 0xDC, 0xFE, 0xFF)
_DEEP = (b"[", b"{", b'{"a":', b"\x91", b"a.", b'[{"a":')
_EDGES = (b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\\ud800", b"\\u0000", b"\0", b"\n", b'"', b"\\", b"1e999")

_Mutation = Callable[[random.Random, bytearray, Sequence[bytes], Sequence[bytes]], None]


def mutations(seeds: Sequence[bytes], words: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """Make inputs without an end: the seeds as they are, then what comes of them."""
    rng = random.Random(seed)
    yield from seeds
    while True:
        data = bytearray(rng.choice(seeds) if rng.random() < 0.95 else rng.randbytes(rng.randint(0, 64)))
        for _ in range(rng.choice((1, 1, 2, 3, 5, 8))):
            rng.choice(_MUTATIONS)(rng, data, seeds, words)
        yield bytes(data[:LONGEST])


def _flip(rng: random.Random, data: bytearray, seeds: Sequence[bytes], words: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set(rng: random.Random, data: bytearray, seeds: Sequence[bytes], words: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice((*_NUMBERS, rng.randrange(256)))


def _word(rng: random.Random, data: bytearray, seeds: Sequence[bytes], words: Sequence[bytes]) -> None:
    place = rng.randint(0, len(data))
    over = rng.choice((0, 0, 1, 4))
    data[place : place + over] = rng.choice((*words, *_EDGES))


def _drop(rng: random.Random, data: bytearray, seeds: Sequence[bytes], words: Sequence[bytes]) -> None:
    place = rng.randint(0, len(data))
    del data[place : place + rng.choice((1, 2, 8, 64))]


def _double(rng: random.Random, data: bytearray, seeds: Sequence[bytes], words: Sequence[bytes]) -> None:
    place = rng.randint(0, len(data))
    piece = data[place : place + rng.choice((1, 4, 16, 64, 256))]
    data[place:place] = piece * rng.choice((1, 1, 2, 30))


def _splice(rng: random.Random, data: bytearray, seeds: Sequence[bytes], words: Sequence[bytes]) -> None:
    other = rng.choice(seeds)
    data[rng.randint(0, len(data)) :] = other[rng.randint(0, len(other)) :]


def _nest(rng: random.Random, data: bytearray, seeds: Sequence[bytes], words: Sequence[bytes]) -> None:
    place = rng.randint(0, len(data))
    data[place:place] = rng.choice(_DEEP) * rng.choice((2, 20, 200, 1200, 5000))


_MUTATIONS: tuple[_Mutation, ...] = (_flip, _set, _set, _word, _word, _word, _drop, _double, _splice, _nest)
