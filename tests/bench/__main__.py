"""`python -m tests.bench`: options, the measurements in turn, the tables."""

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any, Final

import uvloop

from ops import logs
from ops.bench.processes import ChildFailed, raise_file_limit
from tests.bench import remembering
from tests.bench.many_calls import Size, measure
from tests.bench.report import memory_note, memory_table, table
from tests.drills.homes import binary_of, version_of
from tests.drills.processes import ProcessFailed

_CALLS, _MEMORY = "calls", "memory"
_ENGINES: Final = ("redis", "valkey")
_QUICK_CALLS: Final = 1000


def main() -> int:
    """Run the benchmark; returns the process's exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="One node that owns thousands of calls; what their memory costs a node.",
    )
    parser.add_argument("--calls", type=int, help=f"on the node that owns many ({Size().calls})")
    parser.add_argument("--engine", choices=_ENGINES, help="instead of each of them")
    parser.add_argument("--only", choices=(_CALLS, _MEMORY), help="the many calls, or the memory")
    parser.add_argument("--quick", action="store_true", help="a look whose figures mean little")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    given = parser.parse_args()
    logs.configure("ERROR")  # the outages are ours
    found: dict[str, Any] = {}
    try:
        if given.only != _MEMORY:
            found |= _many_calls(given)
        if given.only != _CALLS:
            found[_MEMORY] = _memory(given)
    except (ProcessFailed, ChildFailed, TimeoutError) as error:
        print(f"The benchmark was given up: {error!r}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))
    return 0


def _many_calls(given: argparse.Namespace) -> dict[str, Any]:
    size = Size(calls=given.calls or (_QUICK_CALLS if given.quick else Size().calls), sweeps=1 if given.quick else 2)
    engines = [given.engine] if given.engine else list(_ENGINES[: 1 if given.quick else None])
    binaries = [binary_of(engine) for engine in engines]
    found = {version_of(binary): uvloop.run(measure(binary, size)) for binary in dict.fromkeys(binaries)}
    print(table(size.calls, found))
    return found


def _memory(given: argparse.Namespace) -> dict[str, Any]:
    raise_file_limit()
    load = remembering.Load(rounds=1, seconds=2.0, calls=50) if given.quick else remembering.Load()
    found = asyncio.run(remembering.measure(load))
    print(memory_table(load, found), memory_note(found), sep="\n\n")
    return found


if __name__ == "__main__":
    sys.exit(main())
