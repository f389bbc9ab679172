"""Many schedules over several processes. Neither their number nor the order of their work changes any outcome."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context

from tests.simulation.schedule import Outcome, simulate

_CHUNK = 200  # schedules that one process is given at a time


def run_chunk(first: int, count: int, fault: str | None = None, faults: int = 1, crowd: int = 1) -> list[Outcome]:
    """Schedules of so many seeds, in order."""
    return [simulate(seed, fault=fault, faults=faults, crowd=crowd) for seed in range(first, first + count)]


def run_many(
    first: int, count: int, processes: int, fault: str | None = None, faults: int = 1, crowd: int = 1
) -> Iterator[Outcome]:
    """The same, spread over processes; order and outcomes don't depend on how many there are."""
    starts = range(first, first + count, _CHUNK)
    counts = [min(_CHUNK, first + count - start) for start in starts]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for outcomes in pool.map(run_chunk, starts, counts, repeat(fault), repeat(faults), repeat(crowd)):
            yield from outcomes


def replay_command(outcome: Outcome) -> str:
    """What shows this schedule again."""
    return " ".join(["python -m tests.simulation --trace --seed", str(outcome.seed), *outcome.options])
