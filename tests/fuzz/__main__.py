"""Fuzz for a while: `python -m tests.fuzz --seconds 300`; one target: `--target bus`; a find again: `--replay FILE`.

Half of a target's time goes to atheris, or to the plain mutator where that isn't installed; the other half to shapes.
"""

import argparse
import sys
from pathlib import Path

from tests.fuzz.driving import Outcome, has_atheris, run_atheris, run_mutator, run_shapes
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS


def main() -> int:
    """The command line; 1 if an input broke a promise."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together")
    parser.add_argument("--target", choices=list(TARGETS), action="append", help="this one; may be given again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="the plain mutator, whether atheris is there or not")
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"), help="for corpora and finds")
    parser.add_argument("--replay", type=Path, help="feed this file to the targets and do nothing else")
    chosen = parser.parse_args()
    targets = [TARGETS[name] for name in chosen.target or TARGETS]
    if chosen.replay is not None:
        for target in targets:
            target.check(chosen.replay.read_bytes())
        return 0
    chosen.folder.mkdir(parents=True, exist_ok=True)
    share = chosen.seconds / len(targets) / 2
    finds = 0
    for target in targets:
        if has_atheris() and not chosen.plain:
            engine, outcome = "atheris", run_atheris(target, share, chosen.seed, chosen.folder)
        else:
            engine, outcome = "mutator", run_mutator(target, share, chosen.seed)
        finds += _told(target, engine, outcome, chosen.folder)
        finds += _told(target, "shapes", run_shapes(target, share, chosen.seed), chosen.folder)
    return int(finds > 0)


def _told(target: Target, engine: str, outcome: Outcome, folder: Path) -> int:
    rate = outcome.executions / outcome.seconds
    figures = f"{outcome.executions:>12} executions {outcome.seconds:>8.1f} s {rate:>9.0f} a second"
    print(f"{target.name:12}{engine:10}{figures}{len(outcome.found):>4} found", flush=True)
    for number, (data, problem) in enumerate(outcome.found):
        path = folder / f"{target.name.replace(' ', '_')}-{engine}-{number}.input"
        path.write_bytes(data)
        print(f"{problem}\n{path}: {data[:200]!r}", flush=True)
    return len(outcome.found)


if __name__ == "__main__":
    sys.exit(main())
