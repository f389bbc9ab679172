"""Reading the machine: CPU time and memory of a process from /proc, quantiles of a sample. Linux only."""

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

_TICKS: Final = os.sysconf("SC_CLK_TCK")


class Cpu(NamedTuple):
    """CPU time of a process in seconds, all threads."""

    total: float
    user: float
    system: float

    def since(self, before: "Cpu") -> "Cpu":
        """Return what was used since then; the split of `total` is as fine as the kernel's sampling of it."""
        ticks = (self.user - before.user) + (self.system - before.system)
        total = self.total - before.total
        user = total * (self.user - before.user) / ticks if ticks else 0.0
        return Cpu(total, user, total - user)


def cpu(pid: int) -> Cpu:
    """Read the CPU time so far: the total in nanoseconds of run time, user and system in ticks of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = int(fields[11]) / _TICKS, int(fields[12]) / _TICKS
    run = sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return Cpu(run / 1e9 or user + system, user, system)


class Memory(NamedTuple):
    """Memory of a process in KiB."""

    rss: int
    pss: int


def memory(pid: int) -> Memory:
    """Read the memory of now."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in rollup.splitlines()[1:]}
    return Memory(sizes["Rss"], sizes["Pss"])


class Machine(NamedTuple):
    """The machine's CPU time in ticks."""

    idle: int
    stolen: int
    total: int

    def since(self, before: "Machine") -> dict[str, float]:
        """Return which share was idle, and which the hypervisor gave to others."""
        total = max(1, self.total - before.total)
        return {"idle": (self.idle - before.idle) / total, "stolen": (self.stolen - before.stolen) / total}


def machine() -> Machine:
    """Read the machine's CPU time so far."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return Machine(ticks[3] + ticks[4], ticks[7], sum(ticks))


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which that share of an ordered, not empty sample lies (nearest rank)."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def middle(runs: Sequence[dict[str, Any]], *path: str) -> float | None:
    """Return the median over the rounds of the figure at a path; None where no round has it."""
    values: list[Any] = list(runs)
    for key in path:
        values = [value[key] for value in values]
    known = [value for value in values if value is not None]
    return median(known) if known else None


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return number, median, 90th and 99th percentile and maximum of a sample."""
    ordered = sorted(values)
    if not ordered:
        return {"count": 0, "p50": None, "p90": None, "p99": None, "max": None}
    return {
        "count": len(ordered),
        "p50": quantile(ordered, 0.5),
        "p90": quantile(ordered, 0.9),
        "p99": quantile(ordered, 0.99),
        "max": ordered[-1],
    }
