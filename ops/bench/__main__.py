"""`python -m ops.bench`: options, the order of the measurements, the tables."""

import argparse
import asyncio
import datetime
import json
import os
import platform
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

from ops.bench.bus import PLACES, BusBench, BusShape
from ops.bench.bus_report import bus_note, bus_table
from ops.bench.processes import (
    ChildFailed,
    Peer,
    raise_file_limit,
    running_peer,
    running_redis,
)
from ops.bench.report import rows, table
from ops.bench.resume import WAYS, ResumeBench, ResumeShape
from ops.bench.resume_report import resume_note, resume_table
from ops.bench.runs import Bench, Contender, Shape, rounds
from ops.bench.side import MODES, SideBench, SideShape
from ops.bench.side_report import side_note, side_table
from ops.bench.site import Site

_UPSTREAMS: Final = ("plain", "tls")
_BUS: Final = "bus"
_SIDE: Final = "side"
_RESUME: Final = "resume"
_AT_ONCE: Final = (1, 50)
_DIRECT: Final = "direct"
_WINDOWS: Final = 5  # relay, aiohttp, picows, direct in each round; the scraped one once, counted as a full round
_AROUND_SECONDS: Final = 60.0  # for all that is not a window, per kind of upstream and for the bus
_AROUND_SIDE_SECONDS: Final = 20.0  # the same for the side legs
_AROUND_RESUMES_SECONDS: Final = 40.0  # most of it until Redis counts as settled
_RESUME_SECONDS: Final = 1.0  # of one call, its beginning included
_PATIENCE: Final = 2.0  # how much longer than planned it may take


class Shapes(NamedTuple):
    """How much of everything, in each part."""

    plain: Shape
    bus: BusShape
    side: SideShape
    resume: ResumeShape


def main() -> int:
    """Run the benchmark; returns the process's exit code."""
    options = _options()
    shapes = Shapes(_shape(options), _bus_shape(options), _side_shape(options), _resume_shape(options))
    kinds = [options.only] if options.only else [*_UPSTREAMS, _BUS, _SIDE, _RESUME]
    raise_file_limit()
    limit = _PATIENCE * sum(_planned_seconds(kind, shapes) for kind in kinds)
    try:
        results = asyncio.run(_within(limit, shapes, kinds))
    except ChildFailed as error:
        print(error, file=sys.stderr)
        return 1
    except TimeoutError:
        print(f"The benchmark took longer than {limit:.0f} s, its limit, and was stopped.", file=sys.stderr)
        return 1
    _show(results, shapes)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    return 0


def _show(results: dict[str, Any], shapes: Shapes) -> None:
    for kind, found in results["upstreams"].items():
        print(table(_title(kind, shapes.plain), rows(kind, found)), end="\n\n")
    if results["upstreams"]:
        print(_note(results), end="\n\n")
    for place, found in zip(PLACES, results["bus"].values(), strict=False):
        print(bus_table(place, shapes.bus, found), bus_note(found), sep="\n\n", end="\n\n")
    if results["side"]:
        print(side_table(shapes.side, results["side"]), side_note(results["side"]), sep="\n\n", end="\n\n")
    if results["resume"]:
        found = results["resume"]
        print(resume_table(shapes.resume, found), resume_note(found), sep="\n\n", end="\n\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ops.bench", description="The relay beside a plain aiohttp bridge, under the same load."
    )
    parser.add_argument("--seconds", type=float, help="length of each measured window (10; 4 for the side legs)")
    parser.add_argument("--calls", type=int, help="calls under load (200; 20 for the bus, 50 with side legs)")
    parser.add_argument("--idle", type=int, help="calls in the memory measurement (500)")
    parser.add_argument("--rounds", type=int, help="how often each contender has its turn; medians are shown (2)")
    parser.add_argument(
        "--only",
        choices=(*_UPSTREAMS, _BUS, _SIDE, _RESUME),
        help="one kind of upstream, the bus, the side legs, the resumes",
    )
    parser.add_argument("--quick", action="store_true", help="a look of a minute, whose figures mean little")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    return parser.parse_args()


def _shape(options: argparse.Namespace) -> Shape:
    quick = options.quick
    return Shape(
        calls=options.calls or (50 if quick else 200),
        seconds=options.seconds or (2.0 if quick else 10.0),
        warm_up_seconds=1.0 if quick else 2.0,
        idle_calls=options.idle or (100 if quick else 500),
        connects=20 if quick else 100,
        rounds=options.rounds or (1 if quick else 2),
    )


def _bus_shape(options: argparse.Namespace) -> BusShape:
    quick = options.quick
    return BusShape(
        calls=options.calls or 20,
        seconds=options.seconds or (1.0 if quick else 10.0),
        warm_up_seconds=0.5 if quick else 2.0,
        rounds=options.rounds or (1 if quick else 2),
        settles=not quick,
    )


def _side_shape(options: argparse.Namespace) -> SideShape:
    quick = options.quick
    return SideShape(
        calls=options.calls or 50,
        seconds=options.seconds or (1.0 if quick else 4.0),
        warm_up_seconds=0.5 if quick else 1.0,
        rounds=options.rounds or (1 if quick else 2),
    )


def _resume_shape(options: argparse.Namespace) -> ResumeShape:
    return ResumeShape(resumes=5 if options.quick else 60, calls=options.calls or 10)


def _planned_seconds(kind: str, shapes: Shapes) -> float:
    shape, bus_shape, side_shape, resume_shape = shapes
    if kind == _RESUME:
        return len(WAYS) * resume_shape.resumes * _RESUME_SECONDS + _AROUND_RESUMES_SECONDS
    if kind == _SIDE:
        windows = len(MODES) * side_shape.rounds
        return windows * (side_shape.seconds + side_shape.warm_up_seconds) + _AROUND_SIDE_SECONDS
    if kind == _BUS:
        windows = len(PLACES) * bus_shape.rounds * 2
        return windows * (bus_shape.seconds + bus_shape.warm_up_seconds) + _AROUND_SECONDS
    return shape.rounds * _WINDOWS * (shape.seconds + shape.warm_up_seconds) + _AROUND_SECONDS


async def _within(limit: float, shapes: Shapes, kinds: list[str]) -> dict[str, Any]:
    async with asyncio.timeout(limit):
        return await _run(shapes, kinds)


async def _run(shapes: Shapes, kinds: list[str]) -> dict[str, Any]:
    shape = shapes.plain
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-bench-")))
        home = await stack.enter_async_context(running_redis(folder))
        load = await stack.enter_async_context(running_peer("load", "ops.bench.load", folder))
        model = await stack.enter_async_context(running_peer("model", "ops.bench.model", folder))
        site = Site(folder, home.url)
        bench = Bench(shape, load, model)
        upstreams = {kind: await _against(kind, shape, site, bench, model) for kind in kinds if kind in _UPSTREAMS}
        bus = BusBench(shapes.bus, load, model, site, home)
        places = {place.name: await bus.measure(place) for place in PLACES} if _BUS in kinds else {}
        side = await SideBench(shapes.side, load, model, site, home).measure() if _SIDE in kinds else {}
        resume = await ResumeBench(shapes.resume, site, home).measure() if _RESUME in kinds else {}
    return {
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("aiohttp", "picows", "uvloop")},
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release()},
        "shape": asdict(shape),
        "upstreams": upstreams,
        "bus_shape": asdict(shapes.bus),
        "bus": places,
        "side_shape": asdict(shapes.side),
        "side": side,
        "resume_shape": asdict(shapes.resume),
        "resume": resume,
    }


async def _against(kind: str, shape: Shape, site: Site, bench: Bench, model: Peer) -> dict[str, Any]:
    """Do all measurements against one kind of upstream."""
    tls = kind == "tls"
    port = await model.ask("listen", cert=str(site.cert) if tls else None, key=str(site.key) if tls else None)
    upstream = f"{'wss' if tls else 'ws'}://127.0.0.1:{port}/v1/realtime"
    direct = Contender(_DIRECT, upstream, {}, ca=str(site.cert) if tls else None)
    async with site.relay(upstream) as relay, site.aiohttp(upstream) as aiohttp:
        contenders = (relay, aiohttp, direct)
        async with site.picows(upstream) as picows:
            steady = await rounds(bench, shape, (relay, aiohttp, picows, direct))
        scraped = await bench.steady(relay, scraped=True)
        connects = {
            str(at_once): {each.name: await bench.connects(each, at_once) for each in contenders}
            for at_once in _AT_ONCE
        }
    idle = {}
    for start in (site.relay, site.aiohttp):
        async with start(upstream) as fresh:
            idle[fresh.name] = await bench.idle_memory(fresh)
    return {"steady": steady, "scraped": scraped, "connects": connects, "idle": idle}


def _title(kind: str, shape: Shape) -> str:
    return (
        f"Upstream {'wss (TLS)' if kind == 'tls' else 'ws'}: {shape.calls} calls × ({shape.up_frames:g} × 1.3 kB up + "
        f"{shape.down_frames:g} × 12.9 kB down) a second, {shape.seconds:g} s, median of {shape.rounds}"
    )


def _note(results: dict[str, Any]) -> str:
    """Say how far the machine can be believed."""
    runs = [run for found in results["upstreams"].values() for each in found["steady"].values() for run in each]
    idle = min(run["machine"]["idle"] for run in runs)
    stolen = max(run["machine"]["stolen"] for run in runs)
    late = max(max(run["senders_latest_ms"].values()) for run in runs)
    lost = sum(run["lost_calls"] for run in runs)
    return (
        f"{os.cpu_count()} CPUs, {idle:.0%} idle and {stolen:.1%} stolen at worst; "
        f"a sender was {late:.1f} ms late at worst; {lost} calls were lost."
    )


if __name__ == "__main__":
    sys.exit(main())
