"""What the bus's figures say: one table for each place, with the targets and whether they were met."""

from collections.abc import Iterable
from statistics import median
from typing import Any, Final

from ops.bench.bus import BusShape, Place
from ops.bench.grid import Line, grid
from ops.bench.measure import middle

LATE_MS: Final = 10.0  # of a sender: beyond it, the machine did something else, and a missed target is not judged
NEAR_MS: Final = {"p50": 1.0, "p99": 5.0}
BEYOND_LINK_MS: Final = {"p50": 2.0}
_COLUMNS: Final = ("with", "without", "added")


def bus_table(place: Place, shape: BusShape, found: dict[str, Any]) -> str:
    """Lay out one place's figures."""
    title = (
        f"Bus, {place.name}: {place.rate:g} messages a second for {shape.calls} calls on another node"
        f"{f', a link of {place.delay_ms:g} ms between them' if place.delay_ms else ''}, "
        f"{shape.seconds:g} s, median of {shape.rounds}"
    )
    lines = [*_arrivals(place, found["with"]), *_audio(found), *_cpu(found)]
    return grid(title, _COLUMNS, lines)


def bus_note(found: dict[str, Any]) -> str:
    """Say what became of the messages, and how far the machine can be believed."""
    runs = found["with"]
    sent = sum(run["sent"]["end"] - run["sent"]["first"] for run in runs)
    missing, repeated = (sum(run["arrived"][what] for run in runs) for what in ("missing", "repeated"))
    odd = sum(number for run in runs for status, number in run["sent"]["statuses"].items() if status != "200")
    lost = sum(run["lost_calls"] for run in (*runs, *found["without"]))
    idle = min(run["machine"]["idle"] for run in runs)
    return (
        f"{sent} messages, {odd} not answered 200, {missing} did not arrive, {repeated} arrived twice; {lost} calls "
        f"were lost; the machine was {idle:.0%} idle, a sender {latest_ms(runs):.1f} ms late at worst."
    )


def latest_ms(runs: list[dict[str, Any]]) -> float:
    """How late a sender ever was."""
    return float(max(max(run["senders_latest_ms"].values()) for run in runs))


def _arrivals(place: Place, runs: list[dict[str, Any]]) -> Iterable[Line]:
    limits = {share: place.delay_ms + ms for share, ms in (BEYOND_LINK_MS if place.delay_ms else NEAR_MS).items()}
    for share in ("p50", "p90", "p99", "max"):
        figure = middle(runs, "arrived", "latency_ms", share)
        line = Line(f"publish to model {share}, ms", (figure,))
        if share in limits and figure is not None:
            met = figure < limits[share] or (None if latest_ms(runs) > LATE_MS else False)
            line = line._replace(target=f"< {limits[share]:g} ms", met=met)
        yield line
    for share in ("p50", "p99"):
        yield Line(f"POST to its answer {share}, ms", (middle(runs, "sent", "answer_ms", share),))
    if place.delay_ms:
        yield Line("the link's own lateness p50, ms", (middle(runs, "link_late_ms", "p50"),))


def _audio(found: dict[str, Any]) -> Iterable[Line]:
    for way in ("up", "down"):
        for share in ("p50", "p99", "max"):
            loaded, plain = (middle(found[name], f"{way}_ms", share) for name in ("with", "without"))
            added = loaded - plain if loaded is not None and plain is not None and share != "max" else None
            yield Line(f"audio {way} {share}, ms", (loaded, plain, added))


def _cpu(found: dict[str, Any]) -> Iterable[Line]:
    """What a message costs each process more than the same calls without messages."""
    names = {"owner": "the calls' node", "other": "the posts' node", "redis": "the calls' Redis"}
    for key, name in names.items():
        spent = [
            (loaded["cpu_seconds"][key] - plain["cpu_seconds"][key])
            / max(1, loaded["sent"]["end"] - loaded["sent"]["first"])
            for loaded, plain in zip(found["with"], found["without"], strict=True)
        ]
        yield Line(f"CPU per message, {name}, µs", (median(spent) * 1e6,))
