"""A table of figures as text: labelled lines, named columns, a target and its verdict behind a line."""

from collections.abc import Sequence
from typing import Final, NamedTuple

VERDICTS: Final = {True: "met", False: "MISSED", None: "not judged, the machine was too busy"}
_LABEL_WIDTH: Final = 40
_WIDTH: Final = 13


class Line(NamedTuple):
    """A line; columns that are not given, or None, stay empty."""

    label: str
    figures: tuple[float | None, ...]
    target: str = ""
    met: bool | None = None


def grid(title: str, columns: Sequence[str], lines: Sequence[Line]) -> str:
    """Lay the lines out."""
    head = " " * _LABEL_WIDTH + "".join(name.rjust(_WIDTH) for name in columns)
    return "\n".join([title, head, *(_laid_out(line, len(columns)) for line in lines)])


def figure(value: float | None) -> str:
    """Three digits or so; nothing for None."""
    if value is None:
        return ""
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _laid_out(line: Line, columns: int) -> str:
    figures = (*line.figures, *[None] * columns)[:columns]
    text = line.label.ljust(_LABEL_WIDTH) + "".join(figure(value).rjust(_WIDTH) for value in figures)
    return f"{text}  {VERDICTS[line.met]}: {line.target}" if line.target else text.rstrip()
