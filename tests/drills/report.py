"""The drills' table, and under it what was broken. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.drills.survival import Survival, percentile
from tests.drills.verdict import Latency, Verdict

_COLUMNS: Final = (
    ("drill", 26),
    ("engine", 14),
    ("sent", 6),
    ("2xx", 6),
    ("lost", 5),
    ("twice", 6),
    ("order", 6),
    ("ended", 6),
    ("frames", 7),
    ("lost", 5),
    ("held", 6),
    ("near p50/p99/max", 18),
    ("far p50/p99/max", 18),
    ("hit p50/p99/max", 18),
    ("idle", 6),
    ("verdict", 9),
)

_SURVIVAL: Final = (
    ("drill", 26),
    ("engine", 14),
    ("calls", 6),
    ("ended", 6),
    ("sessions", 9),
    ("returns", 8),
    ("p50/p99/max", 15),
    ("gap", 6),
    ("answer p50/p99/max", 19),
    ("twin", 6),
    ("silent", 7),
    ("missing", 8),
    ("unseen", 7),
    ("sent", 6),
    ("lost", 5),
    ("twice", 6),
    ("verdict", 9),
)

_SURVIVAL_LEGEND: Final = (
    "sessions: at the model; returns: of clients, seconds from the end of a connection to session.created; gap: the",
    "longest silence within an answer, s; answer: from the end of speech to the first audio, s; twin: the most by",
    "which it was later than in the same talk undisturbed; silent: turns that nothing answered; missing: items that",
    "the last session lacks; unseen: items that the client lacks. Answers, figures, and what was broken:",
)

_LEGEND: Final = (
    "frames: of audio; held: the longest that one was under way, ms. Latency from the first sending to applied, ms;",
    "near, far: of what the drill leaves alone, from a node in the call's region or another; hit: of the rest.",
    "Answers, CPU in cores, and what was broken:",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One drill, carried out."""

    drill: str
    engine: str
    verdict: Verdict
    seconds: float
    idle: float  # share of the machine's CPU that nobody used while messages were sent
    cpu: dict[str, float]  # cores used, by kind of process
    notes: dict[str, float]


@dataclass(frozen=True, slots=True)
class Survived:
    """One drill of continuity, carried out."""

    drill: str
    engine: str
    verdict: Verdict
    survival: Survival
    seconds: float
    load_average: float
    figures: dict[str, float]


def table(outcomes: Sequence[Outcome]) -> str:
    """Lay the outcomes out as text, with the answers other than 2xx and the broken promises below."""
    lines = [_line([name for name, _ in _COLUMNS]), *(_line(_cells(outcome)) for outcome in outcomes), ""]
    lines += _LEGEND
    for outcome in outcomes:
        lines.append(f"  {outcome.drill}: {_answers(outcome.verdict)}")
        lines.append(f"    {_big(outcome.verdict)}{_figures(outcome)}")
        lines += [f"    BROKEN: {what}" for what in outcome.verdict.broken]
    return "\n".join(lines)


def survival_table(outcomes: Sequence[Survived]) -> str:
    """Lay the drills of continuity out as text, with the answers other than 2xx and the broken promises below."""
    lines = [_line([name for name, _ in _SURVIVAL], _SURVIVAL)]
    lines += [_line(_survival_cells(outcome), _SURVIVAL) for outcome in outcomes]
    lines += ["", *_SURVIVAL_LEGEND]
    for outcome in outcomes:
        figures = ", ".join(f"{name} {value:.2f}" for name, value in outcome.figures.items())
        lines.append(f"  {outcome.drill}: {_answers(outcome.verdict)}")
        lines.append(f"    {outcome.seconds:.0f} s, load average {outcome.load_average:.1f}; {figures}")
        lines += [f"    BROKEN: {what}" for what in outcome.verdict.broken]
    return "\n".join(lines)


def _survival_cells(outcome: Survived) -> list[str]:
    found, verdict = outcome.survival, outcome.verdict
    later = found.later_than_twin
    return [
        outcome.drill,
        outcome.engine,
        str(found.calls),
        str(verdict.calls_ended),
        str(found.sessions),
        str(len(found.back)),
        _spread(found.back),
        f"{found.longest_gap:.2f}",
        _spread(found.waits),
        "-" if later is None else f"{later:.2f}",
        str(found.unanswered),
        str(found.missing),
        str(found.unseen),
        str(verdict.sent),
        str(verdict.lost),
        str(verdict.repeated),
        "BROKEN" if verdict.broken else "kept",
    ]


def _spread(seconds: Sequence[float]) -> str:
    if not seconds:
        return "-"
    return f"{percentile(seconds, 0.5):.2f}/{percentile(seconds, 0.99):.2f}/{max(seconds):.2f}"


def _cells(outcome: Outcome) -> list[str]:
    found = outcome.verdict
    return [
        outcome.drill,
        outcome.engine,
        str(found.sent),
        str(found.accepted),
        str(found.lost),
        str(found.repeated),
        str(found.disordered),
        str(found.calls_ended),
        str(found.frames_sent),
        str(found.frames_lost),
        f"{found.held_ms:.0f}",
        _latency(found.latency.get("near")),
        _latency(found.latency.get("far")),
        _latency(found.latency.get("hit")),
        f"{outcome.idle:.0%}",
        "BROKEN" if found.broken else "kept",
    ]


def _line(cells: Sequence[str], columns: Sequence[tuple[str, int]] = _COLUMNS) -> str:
    padded = (
        cell.ljust(width) if place < 2 else cell.rjust(width)
        for place, (cell, (_, width)) in enumerate(zip(cells, columns, strict=True))
    )
    return " ".join(padded).rstrip()


def _latency(latency: Latency | None) -> str:
    if latency is None:
        return "-"
    return f"{latency.p50:.1f}/{latency.p99:.0f}/{latency.longest:.0f}"


def _answers(verdict: Verdict) -> str:
    return (
        ", ".join(f"{count}× {answer}" for answer, count in sorted(verdict.answers.items(), key=_most)) or "no answers"
    )


def _most(entry: tuple[str, int]) -> int:
    return -entry[1]


def _big(verdict: Verdict) -> str:
    latency = verdict.latency.get("big")
    return "" if latency is None else f"big messages: {latency.count}, p50/p99/max {_latency(latency)} ms; "


def _figures(outcome: Outcome) -> str:
    cpu = ", ".join(f"{name} {cores:.2f}" for name, cores in outcome.cpu.items())
    notes = ", ".join(f"{name} {value:.0f}" for name, value in outcome.notes.items())
    return f"{outcome.seconds:.0f} s; {cpu}; {notes}"
