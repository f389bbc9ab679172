"""The table of the many calls: a column for each kind of server, with the targets and whether they were met."""

from collections.abc import Iterable
from typing import Any, Final

from ops.bench.grid import Line, grid

STALL_MS: Final = 10.0
HELD_SECONDS: Final = 1.0

_STEPS: Final = {
    "register": "while the calls come",
    "sweep": "during a sweep",
    "cut": "after the cut",
    "restart": "after the restart",
}


def table(calls: int, found: dict[str, dict[str, Any]]) -> str:
    """Lay out the figures of each server, by its name."""
    title = f"One node that owns {calls} calls on the bus, nothing else"
    return grid(title, tuple(found), [*_lines(tuple(found.values()))])


def _lines(columns: tuple[dict[str, Any], ...]) -> Iterable[Line]:
    yield _line("all calls registered, s", columns, "register", "seconds")
    yield _line("node's memory per call, KiB", columns, "node_kib")
    yield _line("Redis's memory per call, KiB", columns, "redis_kib")
    yield _line("CPU of a sweep, ms", columns, "sweep", "cpu_ms")
    held = _line("subscriber cut: channels held again, s", columns, "cut", "held_seconds")
    yield _judged(held, HELD_SECONDS, "s", bool(columns) and all(_is_calm(each["cut"]) for each in columns))
    yield _line("subscriber cut: inboxes read, s", columns, "cut", "read_seconds")
    yield _line("Redis restarted: records restored, s", columns, "restart", "restored_seconds")
    for step, when in _STEPS.items():
        yield _stall(f"longest stall {when}, ms", columns, step)
        yield _line("  of it the loop's own CPU, at most", columns, step, "busy_ms")
    yield _line("Fanout.status() holds the loop, ms", columns, "status_ms")
    yield _line("longest way to applied, over all that, s", columns, "messages", "longest_seconds")
    yield _line("messages that were not applied", columns, "messages", "not_applied")


def _line(label: str, columns: tuple[dict[str, Any], ...], *path: str) -> Line:
    figures = []
    for column in columns:
        value: Any = column
        for key in path:
            value = value[key]
        figures.append(value)
    return Line(label, tuple(figures))


def _stall(label: str, columns: tuple[dict[str, Any], ...], step: str) -> Line:
    """A stall without CPU time of the loop's own is the machine's."""
    line = _line(label, columns, step, "stall_ms")
    return _judged(line, STALL_MS, "ms", any(column[step]["busy_ms"] >= STALL_MS for column in columns))


def _judged(line: Line, limit: float, unit: str, is_ours: bool) -> Line:
    met = max(figure or 0.0 for figure in line.figures) < limit or (False if is_ours else None)
    return line._replace(target=f"< {limit:g} {unit}", met=met)


def _is_calm(step: dict[str, float]) -> bool:
    """Whether the loop had the CPU when it needed it."""
    return step["stall_ms"] < STALL_MS
