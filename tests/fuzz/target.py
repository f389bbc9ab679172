"""What can be fuzzed: something that takes bytes, examples to begin with, and the shape of what it expects."""

from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis.strategies import SearchStrategy


@dataclass(frozen=True)
class Target:
    """One reader of bytes.

    ``check`` takes any bytes, and raises (AssertionError as a rule) if what was made of them breaks a promise.
    ``seeds`` are examples of what it is for; ``words`` are what a mutation may put in; ``shapes`` makes bytes that are
    nearly right, so that what lies behind the first check is reached as well.
    """

    name: str
    check: Callable[[bytes], None] = field(repr=False)
    seeds: tuple[bytes, ...] = field(repr=False)
    words: tuple[bytes, ...] = field(repr=False)
    shapes: SearchStrategy[bytes] = field(repr=False)
