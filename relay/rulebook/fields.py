"""What stands in a table of the rulebook: read with its type, or refused with the path of its key. Pure.

A mistake names keys and says what is expected; it never repeats a value, which may be a key or a customer's words.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from relay.rulebook.lines import Path

NAME_CHARS: Final = 128  # of an agent, a plan, a tenant, an upstream
_LARGEST: Final = 10**9  # of any number: beyond it, it is a slip of the hand, and Redis would round it
_JSON_WHOLE: Final = 2**63
_DEEPEST: Final = 100  # steps of a path: dotted keys nest without an end, and what sends the value on would not


class Mistake(ValueError):
    """Something in the rulebook that cannot be used: where, as a path of keys, and what was expected."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{'.'.join(map(str, path))}: {what}" if path else what)
        self.path = path


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the document; every reader returns None for a key that is not there, and raises `Mistake`."""

    path: Path
    values: Mapping[str, Any] = field(repr=False)

    def mistake(self, key: str, what: str) -> Mistake:
        """Return the error that says what is wrong with a key."""
        return Mistake((*self.path, key), what)

    def only(self, known: Collection[str]) -> None:
        """Refuse keys that mean nothing: a misspelt one would be silently without effect."""
        unknown = sorted(set(self.values) - set(known))
        if unknown:
            raise self.mistake(unknown[0], f"unknown; known are {', '.join(sorted(known))}")

    def table(self, key: str) -> "Table | None":
        """Return a table within this one."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.mistake(key, "must be a table")
        return Table((*self.path, key), value)

    def tables(self, key: str) -> Iterator[tuple[str, "Table"]]:
        """Go through the tables within a table, by their names."""
        outer = self.table(key) or Table((), {})
        for name in outer.values:
            inner = outer.table(name)
            if not is_name(name):
                raise outer.mistake(name, f"a name has 1 to {NAME_CHARS} printable characters")
            if inner is not None:
                yield name, inner

    def text(self, key: str, *, empty: bool = False) -> str | None:
        """Return a string, which must not be empty unless that is said."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or not (value or empty):
            raise self.mistake(key, "must be a string" + ("" if empty else ", not an empty one"))
        return value

    def texts(self, key: str) -> tuple[str, ...] | None:
        """Return a list of strings."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
            raise self.mistake(key, "must be a list of strings")
        return tuple(value)

    def whole(self, key: str) -> int | None:
        """Return a whole number from 1 up."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST:
            raise self.mistake(key, f"must be a whole number from 1 to {_LARGEST}")
        return value

    def number(self, key: str) -> float | None:
        """Return a number above zero."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= _LARGEST:
            raise self.mistake(key, f"must be a number above zero, at most {_LARGEST}")
        return float(value)

    def json(self, key: str) -> Any:
        """Return what stands here, of any type that JSON has: it is sent to the model's server as it stands."""
        value = self.values.get(key)
        _check_json((*self.path, key), value)
        return value


def is_name(text: str) -> bool:
    """Whether a text can name an agent, a plan, a tenant or an upstream."""
    return 0 < len(text) <= NAME_CHARS and text.isprintable()


def _check_json(path: Path, value: Any) -> None:
    if len(path) > _DEEPEST:
        raise Mistake(path[:3], "is nested too deeply")  # agents, its name, the key
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_json((*path, key), inner)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            _check_json((*path, place), inner)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise Mistake(path, "JSON has no such number")
    elif isinstance(value, int):
        if not -_JSON_WHOLE <= value < _JSON_WHOLE:
            raise Mistake(path, "the number is too large")
    elif value is not None and not isinstance(value, str):
        raise Mistake(path, "JSON has no dates and times; write it as a string")
