"""What the side legs' figures say: a column for each of the modes, with the target and whether it was met."""

from collections.abc import Iterable
from typing import Any, Final

from ops.bench.bus_report import LATE_MS, latest_ms
from ops.bench.grid import Line, grid
from ops.bench.measure import middle
from ops.bench.side import ALONE, AUDIO, DIRECT, MODES, SideShape

ADDED_P99_MS: Final = 5.0
OTHERS_CPUS: Final = 0.2  # used by processes that are not ours: beyond it, a missed target is not judged

_PROCESSES: Final = {"owner": "the calls' node", "other": "the side legs' node", "redis": "Redis"}
_KINDS: Final = {"up": "client's audio", "down": "model's audio", "words": "transcript"}  # by direction


def side_table(shape: SideShape, found: dict[str, list[dict[str, Any]]]) -> str:
    """Lay the figures out."""
    title = (
        f"Side legs on another node, one on each of {shape.calls} calls × ({shape.up_frames:g} × 1.3 kB up + "
        f"{shape.down_frames:g} × 12.9 kB and {shape.words:g} events down) a second, {shape.seconds:g} s, "
        f"median of {shape.rounds}"
    )
    lines = [*_audio(found), *_side_legs(found), *_cpu(shape, found)]
    return grid(title, [mode.name for mode in MODES], lines)


def side_note(found: dict[str, list[dict[str, Any]]]) -> str:
    """Say what became of the frames, and how far the machine can be believed."""
    runs = [run for each in found.values() for run in each]
    listened = [run for run in runs if "heard" in run]
    due = sum(sum(run["due"].values()) for run in listened)
    missing = sum(frames - run["heard"][kind]["frames"] for run in listened for kind, frames in run["due"].items())
    dropped, legs = sum(run["dropped"] for run in listened), sum(run["heard"]["lost"] for run in listened)
    idle, lost = min(run["machine"]["idle"] for run in runs), sum(run["lost_calls"] for run in runs)
    return (
        f"{due} frames for side legs, {missing} did not arrive, {dropped} of them left out by the calls' node; "
        f"{legs} side legs and {lost} calls were lost; the machine was {idle:.0%} idle, others "
        f"had {_others(runs):.2f} of its CPUs, a sender was {latest_ms(runs):.1f} ms late at worst."
    )


def _audio(found: dict[str, list[dict[str, Any]]]) -> Iterable[Line]:
    for way in ("up", "down"):
        for share in ("p50", "p99", "max"):
            figures = [middle(found[mode.name], f"{way}_ms", share) for mode in MODES]
            yield Line(f"audio {way} {share}, ms", tuple(figures))
            if share != "max":
                line = _added(f"  added to direct, {share}, ms", figures)
                yield _judged(line, found[AUDIO.name]) if share == "p99" else line


def _added(label: str, figures: list[float | None]) -> Line:
    """What the node adds in each mode to what the load costs without one."""
    direct = figures[MODES.index(DIRECT)]
    added = [None if figure is None or direct is None else figure - direct for figure in figures]
    added[MODES.index(DIRECT)] = None
    return Line(label, tuple(added))


def _judged(line: Line, runs: list[dict[str, Any]]) -> Line:
    """With audio it counts, if the machine did nothing else meanwhile."""
    added = line.figures[MODES.index(AUDIO)]
    if added is None:
        return line
    is_busy = latest_ms(runs) > LATE_MS or _others(runs) > OTHERS_CPUS
    return line._replace(target=f"< {ADDED_P99_MS:g} ms", met=added < ADDED_P99_MS or (None if is_busy else False))


def _others(runs: list[dict[str, Any]]) -> float:
    """How many CPUs were used at worst by what is not the benchmark's."""
    return float(max(run["others_cpus"] for run in runs))


def _side_legs(found: dict[str, list[dict[str, Any]]]) -> Iterable[Line]:
    """From the sender to the side leg's socket."""
    for kind, name in _KINDS.items():
        for share in ("p50", "p99", "max"):
            figures = [
                middle(found[mode.name], "heard", kind, "latency_ms", share) if mode.has_side_legs else None
                for mode in MODES
            ]
            yield Line(f"{name} to side leg {share}, ms", tuple(figures))


def _cpu(shape: SideShape, found: dict[str, list[dict[str, Any]]]) -> Iterable[Line]:
    for key, name in _PROCESSES.items():
        seconds = [middle(found[mode.name], "cpu_seconds", key) for mode in MODES]
        yield Line(f"CPU of {name}, %", tuple(_percent(each, shape.seconds) for each in seconds))
    frames = shape.calls * shape.seconds * (shape.up_frames + shape.down_frames + shape.words)
    for key, name in _PROCESSES.items():
        alone, spent = (middle(found[mode.name], "cpu_seconds", key) for mode in (ALONE, AUDIO))
        if alone is not None and spent is not None:
            yield Line(f"CPU per frame, {name}, µs", (None, None, None, (spent - alone) / frames * 1e6))


def _percent(seconds: float | None, of: float) -> float | None:
    return None if seconds is None else seconds / of * 100
