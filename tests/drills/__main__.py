"""`python -m tests.drills`: options, the order of the drills, the table; exit code 1 if a promise was broken."""

import argparse
import asyncio
import dataclasses
import json
import shlex
import signal
import sys
from pathlib import Path
from typing import Final

import uvloop

from tests.drills import outlive
from tests.drills.faults import DRILLS, Drill
from tests.drills.fleet import REGIONS, Placement
from tests.drills.processes import ProcessFailed
from tests.drills.report import Outcome, Survived, survival_table, table
from tests.drills.run import Size, carry_out
from tests.drills.upheavals import UPHEAVALS, Upheaval

ENGINES: Final = ("redis", "valkey")


def main() -> int:
    """Run the drills; returns the process's exit code."""
    given = _parse()
    try:
        return uvloop.run(_run(given))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.drills", description="Break a fleet under load, and judge.")
    names = [drill.name for drill in (*DRILLS, *UPHEAVALS)]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--seconds-scale", type=float, default=1.0, help="of all times (1)")
    parser.add_argument("--short", action="store_true", help="the drills of continuity as CI runs them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=ENGINES, help="for all drills (default: they take turns)")
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--rate", type=float, default=200.0, help="messages a second to all calls together (200)")
    parser.add_argument("--frame-ms", type=int, default=20, help="length of an audio frame (20)")
    parser.add_argument("--link-ms", type=float, default=40.0, help="one way between the regions (40)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    where = parser.add_argument_group("network namespaces", "for drills whose regions have one Redis server each")
    where.add_argument("--exec", action="append", default=[], metavar="REGION=PREFIX", help="before its commands")
    where.add_argument("--host", action="append", default=[], metavar="REGION=ADDRESS", help="or model=ADDRESS")
    where.add_argument("--cut", help="shell command that cuts the regions' link; {iad_redis} and {lhr_redis} are ports")
    where.add_argument("--heal", help="shell command that heals it")
    given = parser.parse_args()
    if (given.cut is None) != (given.heal is None):
        parser.error("--cut and --heal: both or neither")
    if given.exec or given.host:
        far = [drill.name for drill in _chosen(given) if drill.home != "one server"]
        far += [upheaval.name for upheaval in _upheavals(given)]
        if far and given.only:
            parser.error(f"--exec and --host: not for {', '.join(far)}")
    return given


def _chosen(given: argparse.Namespace) -> list[Drill]:
    return [drill for drill in DRILLS if not given.only or drill.name in given.only]


def _upheavals(given: argparse.Namespace) -> list[Upheaval]:
    return [upheaval for upheaval in UPHEAVALS if not given.only or upheaval.name in given.only]


def _placement(given: argparse.Namespace) -> Placement:
    prefixes = {name: shlex.split(prefix) for name, prefix in _pairs(given.exec, REGIONS)}
    hosts = dict(_pairs(given.host, (*REGIONS, "model")))
    return Placement(prefixes, hosts, cut=given.cut, heal=given.heal, link_ms=given.link_ms)


def _pairs(texts: list[str], names: tuple[str, ...]) -> list[tuple[str, str]]:
    pairs = [(name, value) for name, _, value in (text.partition("=") for text in texts)]
    unknown = [name for name, _ in pairs if name not in names]
    if unknown:
        raise SystemExit(f"{unknown[0]!r} is none of {', '.join(names)}")
    return pairs


async def _run(given: argparse.Namespace) -> int:
    placement, size = _placement(given), _size(given)
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    is_local = not (placement.prefixes or placement.hosts)
    drills = [drill for drill in _chosen(given) if is_local or drill.home == "one server"]
    outcomes: list[Outcome] = []
    broken = False
    for place, drill in enumerate(drills):
        engine = given.engine or ENGINES[place % len(ENGINES)]
        print(f"{drill.name} ({drill.fault.__doc__}) …", file=sys.stderr, flush=True)
        try:
            outcomes.append(await carry_out(drill, engine, size, placement, given.seed))
        except* (ProcessFailed, TimeoutError) as failed:
            print(f"{drill.name}: {failed.exceptions[0]!r}", file=sys.stderr)
            broken = True
    survived: list[Survived] = []
    for place, upheaval in enumerate(_upheavals(given) if is_local else ()):
        engine = given.engine or ENGINES[place % len(ENGINES)]
        extent = upheaval.short if given.short else upheaval.full
        print(f"{upheaval.name} ({upheaval.act.__doc__}) …", file=sys.stderr, flush=True)
        try:
            survived.append(await outlive.carry_out(upheaval, extent, engine, given.seed, placement))
        except* (ProcessFailed, TimeoutError) as failed:
            print(f"{upheaval.name}: {failed.exceptions[0]!r}", file=sys.stderr)
            broken = True
    if outcomes:
        print(table(outcomes))
    if survived:
        print(survival_table(survived))
    found = [*outcomes, *survived]
    if given.json:
        given.json.write_text(json.dumps([dataclasses.asdict(outcome) for outcome in found], indent=1))
    return int(broken or any(outcome.verdict.broken for outcome in found))


def _size(given: argparse.Namespace) -> Size:
    size, scale = Size(), given.seconds_scale
    return dataclasses.replace(
        size,
        calls=given.calls,
        messages_per_second=given.rate,
        frame_ms=given.frame_ms,
        scale=scale,
        warm_seconds=size.warm_seconds * scale,
        recovery_seconds=size.recovery_seconds * scale,
    )


if __name__ == "__main__":
    sys.exit(main())
