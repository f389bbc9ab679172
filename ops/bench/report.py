"""What the figures say: a table for each kind of upstream, with the targets and whether they were met."""

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from ops.bench.grid import VERDICTS, figure
from ops.bench.measure import middle

CPU_RATIO: Final = {"plain": 0.60, "tls": 0.75}  # of the aiohttp bridge's CPU time per frame, at most
ADDED_P99_MS: Final = 2.0
IDLE_KIB: Final = {"tls": 100.0}

_WIDTHS: Final = (34, 10, 10, 10, 8)


class Row(NamedTuple):
    """A line: a figure of each contender, and a verdict where there is a target."""

    label: str
    relay: float | None
    aiohttp: float | None
    direct: float | None = None
    target: str = ""
    met: bool | None = None
    has_ratio: bool = True  # a ratio of differences says little

    @property
    def ratio(self) -> float | None:
        """Relay to aiohttp."""
        return self.relay / self.aiohttp if self.has_ratio and self.relay is not None and self.aiohttp else None


def rows(kind: str, results: dict[str, Any]) -> list[Row]:
    """Make the lines for one kind of upstream, ``plain`` or ``tls``."""
    steady = results["steady"]
    return [
        *_cpu(kind, steady),
        *_latency(steady),
        *_scraped(results["scraped"]),
        *_memory(kind, results),
        *_dial(results),
    ]


def _cpu(kind: str, steady: dict[str, Any]) -> Iterable[Row]:
    for part in ("total", "user", "system"):
        relay, aiohttp = (middle(steady[name], "cpu_us", part) for name in ("relay", "aiohttp"))
        row = Row(f"CPU per frame, {part}, µs", relay, aiohttp)
        if part == "total" and row.ratio is not None:
            row = row._replace(target=f"ratio ≤ {CPU_RATIO[kind]:.2f}", met=row.ratio <= CPU_RATIO[kind])
        yield row
        if part == "total":
            yield Row("  a bare picows bridge's, µs", middle(steady["picows"], "cpu_us", part), aiohttp)


def _latency(steady: dict[str, Any]) -> Iterable[Row]:
    for way in ("up", "down"):
        for share in ("p50", "p99", "max"):
            found = {name: middle(runs, f"{way}_ms", share) for name, runs in steady.items()}
            yield Row(f"latency {way} {share}, ms", found["relay"], found["aiohttp"], found["direct"])
            if share != "max":
                yield _added(f"  added to direct, {share}, ms", found, share)


def _added(label: str, found: dict[str, float | None], share: str) -> Row:
    """Subtract what the load costs without a bridge; a target is judged only where that was small."""
    relay, aiohttp, direct = found["relay"], found["aiohttp"], found["direct"]
    if relay is None or aiohttp is None or direct is None:
        return Row(label, None, None)
    row = Row(label, relay - direct, aiohttp - direct, has_ratio=False)
    if share != "p99":
        return row
    met = relay - direct < ADDED_P99_MS if min(relay, direct) < ADDED_P99_MS else None
    return row._replace(target=f"< {ADDED_P99_MS:g} ms", met=met)


def _scraped(run: dict[str, Any]) -> Iterable[Row]:
    """The relay alone, under the same load, with /metrics read four times a second: what a render holds up."""
    for way in ("up", "down"):
        for share in ("p99", "max"):
            yield Row(f"latency {way} {share}, scraped, ms", run[f"{way}_ms"][share], None)
    for share in ("p50", "max"):
        yield Row(f"GET /metrics {share}, ms", run["scrapes_ms"][share], None)


def _memory(kind: str, results: dict[str, Any]) -> Iterable[Row]:
    idle = results["idle"]
    for part in ("rss", "pss"):
        row = Row(f"{part.upper()} per idle call, KiB", *(idle[name][f"{part}_kib"] for name in ("relay", "aiohttp")))
        if part == "rss" and kind in IDLE_KIB and row.relay is not None:
            row = row._replace(target=f"< {IDLE_KIB[kind]:g} KiB", met=row.relay < IDLE_KIB[kind])
        yield row


def _dial(results: dict[str, Any]) -> Iterable[Row]:
    for at_once, found in results["connects"].items():
        for share in ("p50", "p99"):
            label = f"dial to session.created ×{at_once} {share}, ms"
            yield Row(label, *(found[name][share] for name in ("relay", "aiohttp", "direct")))


def table(title: str, lines: Sequence[Row]) -> str:
    """Lay the lines out as text."""
    names = ("", "relay", "aiohttp", "direct", "ratio")
    head = "".join(name.rjust(width) for name, width in zip(names, _WIDTHS, strict=True))
    return "\n".join([title, head, *(_line(row) for row in lines)])


def _line(row: Row) -> str:
    figures = (row.relay, row.aiohttp, row.direct)
    cells = [row.label.ljust(_WIDTHS[0])]
    cells += [figure(value).rjust(width) for value, width in zip(figures, _WIDTHS[1:4], strict=True)]
    cells.append((f"{row.ratio:.2f}" if row.ratio is not None else "").rjust(_WIDTHS[4]))
    if row.target:
        cells.append(f"  {VERDICTS[row.met]}: {row.target}")
    return "".join(cells).rstrip()
