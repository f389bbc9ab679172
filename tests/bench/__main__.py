"""`python -m tests.bench`: options, the servers in turn, the table."""

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Final

import uvloop

from ops import logs
from tests.bench.many_calls import Size, measure
from tests.bench.report import table
from tests.drills.homes import binary_of, version_of
from tests.drills.processes import ProcessFailed

_ENGINES: Final = ("redis", "valkey")
_QUICK_CALLS: Final = 1000


def main() -> int:
    """Run the benchmark; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="One node that owns thousands of calls.")
    parser.add_argument("--calls", type=int, help=f"on the node ({Size().calls})")
    parser.add_argument("--engine", choices=_ENGINES, help="instead of each of them")
    parser.add_argument("--quick", action="store_true", help=f"{_QUICK_CALLS} calls on one engine; means little")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    given = parser.parse_args()
    size = Size(calls=given.calls or (_QUICK_CALLS if given.quick else Size().calls), sweeps=1 if given.quick else 2)
    engines = [given.engine] if given.engine else list(_ENGINES[: 1 if given.quick else None])
    logs.configure("ERROR")  # the outages are ours
    binaries = [binary_of(engine) for engine in engines]
    try:
        found = {version_of(binary): uvloop.run(measure(binary, size)) for binary in dict.fromkeys(binaries)}
    except (ProcessFailed, TimeoutError) as error:
        print(f"The benchmark was given up: {error!r}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    print(table(size.calls, found))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
