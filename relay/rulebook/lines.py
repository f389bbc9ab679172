"""On which line of a TOML text a key stands, which the standard library's parser doesn't say. Pure.

A statement of TOML ends with its line unless a string or a bracket is open, and then it doesn't parse: so the text is
cut into the shortest runs of lines that do, and the first run that says something of a key is where it stands.
"""

import re
import tomllib
from collections.abc import Iterator
from typing import Any, Final

Path = tuple[str | int, ...]  # from the document's top: names of keys, and places in arrays

_BEGINS: Final = re.compile(r"\s*(\[|[\w\"'-][^=]*=)")  # what a line with a header or a key looks like


def line_of(text: str, path: Path) -> int:
    """Return the line, from 1, on which the key at ``path`` stands in a text that is TOML.

    Where the key itself can't be found, such as one that is missing, it is the line of the table around it; 1 if there
    is none either.
    """
    best, depth = 1, 0
    header: Path = ()
    arrays: dict[Path, int] = {}  # the last place in each array of tables
    for line, statement in _statements(text):
        values = _loaded(statement)
        if statement.lstrip().startswith("["):
            header = _header(values, arrays)
            found = _common(header, path)
        else:
            within = len(header)
            found = within + _agreeing(values, path[within:]) if header == path[:within] else 0
        if found > depth:
            best, depth = line, found
    return best


def _statements(text: str) -> Iterator[tuple[int, str]]:
    lines, begin = text.replace("\r\n", "\n").split("\n"), 0
    for end in range(1, len(lines) + 1):
        if end < len(lines) and not _BEGINS.match(lines[end]):
            continue  # a long string or array is not parsed again for each of its lines
        statement = "\n".join(lines[begin:end])
        if _loaded(statement) is not None:
            yield begin + 1, statement
            begin = end


def _loaded(statement: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(statement)
    except (ValueError, RecursionError):
        return None


def _header(values: Any, arrays: dict[Path, int]) -> Path:
    """Return the path of the table that a header begins."""
    path: Path = ()
    while isinstance(values, dict) and values:
        key, values = next(iter(values.items()))
        path = (*path, key)
        if isinstance(values, list):
            arrays[path] = arrays.get(path, -1) + 1
            values = values[-1]
        if path in arrays:
            path = (*path, arrays[path])
    return path


def _common(one: Path, other: Path) -> int:
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _agreeing(value: Any, path: Path) -> int:
    """Return how many steps of the path, from the first one, lead into the value."""
    found = 0
    for step in path:
        is_there = step in value if isinstance(value, dict) else isinstance(value, list) and step in range(len(value))
        if not is_there:
            break
        value, found = value[step], found + 1
    return found
