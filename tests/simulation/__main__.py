"""Replay one schedule, or run many: `python -m tests.simulation --seed 7 --trace`, `--seeds 100000 --processes 2`."""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator

from tests.simulation.faults import FAULTS
from tests.simulation.many import replay_command, run_many
from tests.simulation.schedule import Outcome, simulate

_SHOWN = 10


def main() -> int:
    """The command line; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seed", type=int, default=0, help="the schedule, or the first of several")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from --seed on")
    parser.add_argument("--trace", action="store_true", help="show every event of a single schedule")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--fault", choices=list(FAULTS), help="this one in every schedule, not one by chance")
    parser.add_argument("--faults", type=int, default=1, help="how many per schedule; nothing is promised for two")
    parser.add_argument("--crowd", type=int, default=1, help="so many times as many messages")
    chosen = parser.parse_args()
    if chosen.seeds == 1:
        return _replay(
            simulate(chosen.seed, fault=chosen.fault, faults=chosen.faults, crowd=chosen.crowd, is_traced=chosen.trace)
        )
    started = time.monotonic()
    outcomes = run_many(chosen.seed, chosen.seeds, chosen.processes, chosen.fault, chosen.faults, chosen.crowd)
    return _summarise(outcomes, started, chosen.seeds)


def _replay(outcome: Outcome) -> int:
    sys.stdout.writelines(f"{line}\n" for line in outcome.trace)
    print(f"seed {outcome.seed}: {', '.join(outcome.faults)}; {outcome.events} events")
    sys.stdout.writelines(f"BROKEN: {text}\n" for text in outcome.broken)
    return int(bool(outcome.broken))


def _summarise(outcomes: Iterator[Outcome], started: float, count: int) -> int:
    faults: Counter[str] = Counter()
    told: Counter[str] = Counter()
    failures: list[Outcome] = []
    broken: Counter[str] = Counter()
    for outcome in outcomes:
        names = " + ".join(outcome.faults)
        faults[names] += 1
        told.update(outcome.told)
        if outcome.broken:
            broken[names] += 1
            failures.append(outcome)
    for names, number in faults.most_common():
        print(f"{number:8} {names}" + (f", broken in {broken[names]}" if broken[names] else ""))
    print("messages: " + ", ".join(f"{number} {status}" for status, number in told.most_common()))
    for outcome in failures[:_SHOWN]:
        print(f"{replay_command(outcome)}\n    " + "\n    ".join(outcome.broken))
    print(f"{count} schedules, {len(failures)} broken, {count / (time.monotonic() - started):.0f} a second")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
