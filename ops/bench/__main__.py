"""`python -m ops.bench`: options, the order of the measurements, the table."""

import argparse
import asyncio
import datetime
import json
import os
import platform
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import jwt

from ops.bench.processes import (
    ChildFailed,
    Peer,
    Server,
    raise_file_limit,
    running_peer,
    running_redis,
    running_server,
)
from ops.bench.report import rows, table
from ops.bench.runs import Bench, Contender, Shape, rounds

_PATH: Final = "/v1/realtime?model=bench"
_AT_ONCE: Final = (1, 50)
_DIRECT: Final = "direct"
_WINDOWS: Final = 5  # relay, aiohttp, picows, direct in each round; the scraped one once, counted as a full round
_AROUND_SECONDS: Final = 60.0  # for all that is not a window, per kind of upstream
_PATIENCE: Final = 2.0  # how much longer than planned it may take


def main() -> int:
    """Run the benchmark; returns the process's exit code."""
    options = _options()
    shape = _shape(options)
    kinds = [options.only] if options.only else ["plain", "tls"]
    raise_file_limit()
    limit = (
        _PATIENCE * len(kinds) * (shape.rounds * _WINDOWS * (shape.seconds + shape.warm_up_seconds) + _AROUND_SECONDS)
    )
    try:
        results = asyncio.run(_within(limit, shape, kinds))
    except ChildFailed as error:
        print(error, file=sys.stderr)
        return 1
    except TimeoutError:
        print(f"The benchmark took longer than {limit:.0f} s, its limit, and was stopped.", file=sys.stderr)
        return 1
    for kind in kinds:
        print(table(_title(kind, shape), rows(kind, results["upstreams"][kind])), end="\n\n")
    print(_note(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ops.bench", description="The relay beside a plain aiohttp bridge, under the same load."
    )
    parser.add_argument("--seconds", type=float, help="length of each measured window (10)")
    parser.add_argument("--calls", type=int, help="calls under load (200)")
    parser.add_argument("--idle", type=int, help="calls in the memory measurement (500)")
    parser.add_argument("--rounds", type=int, help="how often each contender has its turn; medians are shown (2)")
    parser.add_argument("--only", choices=("plain", "tls"), help="one kind of upstream")
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


async def _within(limit: float, shape: Shape, kinds: list[str]) -> dict[str, Any]:
    async with asyncio.timeout(limit):
        return await _run(shape, kinds)


async def _run(shape: Shape, kinds: list[str]) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-bench-")))
        redis_url = await stack.enter_async_context(running_redis(folder))
        load = await stack.enter_async_context(running_peer("load", "ops.bench.load", folder))
        model = await stack.enter_async_context(running_peer("model", "ops.bench.model", folder))
        site = _Site(folder, redis_url, secrets.token_hex(32))
        bench = Bench(shape, load, model)
        upstreams = {kind: await _against(kind, shape, site, bench, model) for kind in kinds}
    return {
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("aiohttp", "picows", "uvloop")},
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release()},
        "shape": asdict(shape),
        "upstreams": upstreams,
    }


class _Site:
    """How the bridges are started: with what, and against which upstream."""

    def __init__(self, folder: Path, redis_url: str, secret: str) -> None:
        self._folder = folder
        self._redis_url = redis_url
        self._secret = secret
        self.cert, self.key = folder / "cert.pem", folder / "key.pem"
        subprocess.run([sys.executable, "-m", "relay", "cert", str(folder)], check=True, capture_output=True)

    @asynccontextmanager
    async def relay(self, upstream: str) -> AsyncIterator[Contender]:
        """Run a relay node with everything on: tokens, Redis, metrics, verified certificates."""
        env = {
            "RELAY_PORT": "0",
            "RELAY_OPS_PORT": "0",
            "RELAY_JWT_SECRET": self._secret,
            "REDIS_URL": self._redis_url,
            "RELAY_UPSTREAM_URL": upstream,
            "RELAY_UPSTREAM_KEY": "bench",
            "RELAY_UPSTREAM_CA": str(self.cert),
            "RELAY_DRAIN_SECONDS": "0",  # where the benchmark fails, calls are left
        }
        async with running_server("relay", ["relay", "serve"], env, self._folder) as server:
            claims = {"tenant": "bench", "scope": ["call"], "exp": int(time.time()) + 86400}
            token = jwt.encode(claims, self._secret, algorithm="HS256")
            yield _contender("relay", server, {"Authorization": f"Bearer {token}"})

    def aiohttp(self, upstream: str) -> AbstractAsyncContextManager[Contender]:
        """Run the aiohttp bridge."""
        return self._plain_bridge("aiohttp", upstream)

    def picows(self, upstream: str) -> AbstractAsyncContextManager[Contender]:
        """Run the bare picows bridge."""
        return self._plain_bridge("picows", upstream)

    @asynccontextmanager
    async def _plain_bridge(self, name: str, upstream: str) -> AsyncIterator[Contender]:
        arguments = [f"ops.bench.{name}_bridge", "--upstream", upstream, "--ca", str(self.cert)]
        async with running_server(name, arguments, {}, self._folder) as server:
            yield _contender(name, server, {})


def _contender(name: str, server: Server, headers: dict[str, str]) -> Contender:
    return Contender(
        name=name,
        url=server.url.replace("http", "ws", 1) + _PATH,
        headers=headers,
        pid=server.pid,
        ops_url=server.ops_url,
    )


async def _against(kind: str, shape: Shape, site: _Site, bench: Bench, model: Peer) -> dict[str, Any]:
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
