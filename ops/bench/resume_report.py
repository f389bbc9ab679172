"""What the resumes' figures say: a column for each of the ways in which a call goes on."""

from typing import Any, Final

from ops.bench.grid import Line, grid
from ops.bench.measure import summary
from ops.bench.resume import ASKED, WAYS, ResumeShape

_STEPS: Final = {
    "open_ms": ("dial to open socket", ("p50", "p99")),
    "created_ms": ("open socket to session.created", ("p50", "p99")),
    "audio_ms": ("open socket to first audio", ("p50", "p90", "p99", "max")),
}


def resume_table(shape: ResumeShape, found: dict[str, Any]) -> str:
    """Lay the figures out; without a resume the time to the first audio is from the question."""
    title = (
        f"Resumes of calls with {2 * shape.turns} items, the model {shape.delay_ms:g} ms away (one way, TLS), "
        f"{shape.resumes} each way"
    )
    times = {way.name: _summaries(found["ways"][way.name]) for way in WAYS}
    lines = []
    for step, (label, shares) in _STEPS.items():
        for share in shares:
            figures = [times[way.name].get(step, {}).get(share) for way in WAYS]
            lines.append(Line(f"{label} {share}, ms", tuple(figures)))
    for share in ("p50", "p99"):
        asked = times[ASKED.name]["audio_ms"][share]
        added = [times[way.name]["audio_ms"][share] - asked if way is not ASKED else None for way in WAYS]
        lines.append(Line(f"  more than without resume, {share}, ms", tuple(added)))
    return grid(title, [way.name for way in WAYS], lines)


def resume_note(found: dict[str, Any]) -> str:
    """Say how far the machine can be believed."""
    shares = found["machine"]
    return f"The machine was {shares['idle']:.0%} idle, {shares['stolen']:.1%} of it was stolen."


def _summaries(samples: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    return {step: summary([sample[step] for sample in samples]) for step in _STEPS if samples and step in samples[0]}
