"""The tables: of the many calls a column for each kind of server, of the memory one for each of the node's modes.

With the targets and whether they were met.
"""

from collections.abc import Iterable
from statistics import median
from typing import Any, Final

from ops.bench.grid import Line, grid
from ops.bench.measure import middle
from tests.bench.remembering import MEMORY, MODES, NO_MEMORY, Load

STALL_MS: Final = 10.0
HELD_SECONDS: Final = 1.0
ADDED_PERCENT: Final = 3.0
_OTHERS_CPUS: Final = 0.2  # used by processes that are not ours: beyond it, a missed target is not judged

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


def memory_table(load: Load, found: dict[str, list[dict[str, Any]]]) -> str:
    """Lay out the figures of each mode."""
    title = (
        f"Memory of {load.calls} calls × ({load.up_frames:g} × 1.3 kB up + {load.down_frames:g} × 12.9 kB down) a "
        f"second, a turn in {load.turn_seconds:g} s on each, {load.seconds:g} s, median of {load.rounds}"
    )
    return grid(title, MODES, [*_memory_lines(load, found)])


def memory_note(found: dict[str, list[dict[str, Any]]]) -> str:
    """Say what was lost, and how far the machine can be believed."""
    runs = [run for each in found.values() for run in each]
    idle, lost = min(run["machine"]["idle"] for run in runs), sum(run["lost_calls"] for run in runs)
    dropped = sum(run["facts_dropped"] for run in runs)
    return (
        f"{lost} calls were lost, {dropped} facts left out; the machine was {idle:.0%} idle at worst, others had "
        f"{_others(runs):.2f} of its CPUs."
    )


def _memory_lines(load: Load, found: dict[str, list[dict[str, Any]]]) -> Iterable[Line]:
    for key, name in (("node", "the node"), ("redis", "Redis")):
        seconds = [middle(found[mode], "cpu_seconds", key) for mode in MODES]
        yield Line(f"CPU of {name}, %", tuple(_percent(each, load.seconds) for each in seconds))
    added = tuple(_added(found[mode], found[NO_MEMORY]) if mode is not NO_MEMORY else None for mode in MODES)
    line = Line("  the node's more than without, %", added, target=f"< {ADDED_PERCENT:g} %")
    is_busy = _others(found[MEMORY] + found[NO_MEMORY]) > _OTHERS_CPUS
    whole = added[MODES.index(MEMORY)]
    yield line._replace(met=(whole is not None and whole < ADDED_PERCENT) or (None if is_busy else False))
    for share in ("p50", "p99"):
        for way in ("up", "down"):
            figures = tuple(middle(found[mode], f"{way}_ms", share) for mode in MODES)
            yield Line(f"audio {way} {share}, ms", figures)
    yield Line("facts written a second", tuple(_a_second(found[mode], "facts_written", load) for mode in MODES))
    yield Line("events of turns a second", tuple(_a_second(found[mode], "turn_events", load) for mode in MODES))


def _percent(seconds: float | None, of_seconds: float) -> float | None:
    return None if seconds is None else 100 * seconds / of_seconds


def _added(runs: list[dict[str, Any]], without: list[dict[str, Any]]) -> float:
    """What the node used more than without, in percent: by round, since the machine's pace changes."""
    used = (
        (run["cpu_seconds"]["node"], other["cpu_seconds"]["node"]) for run, other in zip(runs, without, strict=True)
    )
    return median(100 * (one - other) / other for one, other in used)


def _a_second(runs: list[dict[str, Any]], key: str, load: Load) -> float:
    return median(run[key] for run in runs) / load.seconds


def _others(runs: list[dict[str, Any]]) -> float:
    """How many CPUs were used at worst by what is not the benchmark's."""
    return float(max(run["others_cpus"] for run in runs))
