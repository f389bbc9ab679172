"""The command line: ``relay serve``, ``demo``, ``cert``, ``token``, and those of ``relay/shell`` for live calls."""

import argparse
import asyncio
import fcntl
import gc
import io
import os
import resource
import secrets
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop

from ops import logs
from relay import demo, handoff
from relay.app import Node, running
from relay.children import write_ready_file
from relay.config import ConfigError, Settings
from relay.devcert import make_certificate
from relay.shell import commands as shell
from relay.tokens import SCOPES, mint

# Young objects are collected in small lots, each well under 2 ms; a full collection, which stops the loop for 5 ms with
# 200 calls and longer with more, as good as never: ended calls leave it nothing (tests/e2e/test_leaks.py).
_GC_THRESHOLDS = (2000, 10, 1000)
_FILES = 8192  # two sockets for each of RELAY_MAX_CALLS, and room


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="relay", description="Voice relay between people and Realtime models.")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="run one node; configured by RELAY_* variables")
    serve.add_argument(
        "--ready-file", type=Path, help="write {url, ops_url, pid} here, by rename, when the node is ready"
    )
    demo.add_arguments(
        commands.add_parser("demo", help="run a small fleet with a model simulator and a page to talk to")
    )
    certificate = commands.add_parser("cert", help="make a self-signed certificate for development")
    certificate.add_argument("folder", type=Path, help="where cert.pem and key.pem are written")
    certificate.add_argument(
        "--host", action="append", default=[], help="a name or address beside localhost; repeatable"
    )
    token = commands.add_parser("token", help="sign a token with RELAY_JWT_SECRET_FILE's first, or RELAY_JWT_SECRET")
    token.add_argument("--tenant", default="dev")
    token.add_argument("--scope", action="append", choices=sorted(SCOPES), help="repeatable; default: call")
    token.add_argument("--seconds", type=int, default=3600, help="how long it is good for")
    token.add_argument("--agent", help="the agent of its calls (default: whoever has the token may choose)")
    token.add_argument("--plan", help="the plan that holds (default: the tenant's)")
    token.add_argument("--jti", help="the id by which it can be revoked (default: a new one)")
    shell.add_commands(commands)
    given = parser.parse_args(arguments)
    try:
        match given.command:
            case "serve":
                _make_room_for_sockets()
                return uvloop.run(_serve(Settings.from_env(), given.ready_file))
            case "demo":
                return uvloop.run(demo.run(given))
            case "cert":
                return _cert(given.folder, given.host)
            case "token":
                return _token(given)
            case _:
                return _shell(given)
    except ConfigError as error:
        print(f"relay: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _shell(given: argparse.Namespace) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a person may say what the terminal cannot show
    try:
        return uvloop.run(shell.run(given, os.environ, time.time))
    except BrokenPipeError:  # whoever read it has enough, as in `relay watch CALL | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains once more at its end
        return 1


class _Signals:
    """The first signal drains the node, the second waits for nobody. One that comes before the node is up is kept."""

    def __init__(self) -> None:
        self._heard = 0
        self._node: Node | None = None

    def on_signal(self) -> None:
        self._heard += 1
        self._obey()

    def on_reload(self) -> None:
        if self._node is not None:  # before that, the files have only just been read
            self._node.reload()

    def lead_to(self, node: Node) -> None:
        self._node = node
        self._obey()

    def _obey(self) -> None:
        if self._node is not None and self._heard:
            self._node.drain()
            if self._heard > 1:
                self._node.hurry()


async def _serve(settings: Settings, ready_file: Path | None) -> int:
    logs.configure(os.environ.get("RELAY_LOG_LEVEL", "INFO"))
    loop, signals = asyncio.get_running_loop(), _Signals()
    loop.add_signal_handler(signal.SIGTERM, signals.on_signal)
    loop.add_signal_handler(signal.SIGINT, signals.on_signal)
    loop.add_signal_handler(signal.SIGHUP, signals.on_reload)
    async with running(settings) as node:
        gc.collect()
        gc.freeze()  # what is there now stays: the collector need not walk it while calls are on the line
        gc.set_threshold(*_GC_THRESHOLDS)
        loop.set_exception_handler(handoff.quiet_refusals)
        signals.lead_to(node)
        if ready_file is not None:
            write_ready_file(ready_file, {"url": node.url, "ops_url": node.ops_url, "pid": os.getpid()})
        await node.wait_drained()
    return 0


def _make_room_for_sockets() -> None:
    """Allow as many open files as the system does, and let their table grow now.

    The kernel stalls a process with threads for 10 to 25 ms whenever its table outgrows a power of two (measured).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with socket.socket() as any_file:
        os.close(fcntl.fcntl(any_file, fcntl.F_DUPFD, min(hard, _FILES) - 1))


def _cert(folder: Path, hosts: Sequence[str]) -> int:
    cert, key = make_certificate(folder, hosts)
    print(f"RELAY_TLS_CERT={cert}\nRELAY_TLS_KEY={key}\nNODE_EXTRA_CA_CERTS={cert}\nSSL_CERT_FILE={cert}")
    return 0


def _token(given: argparse.Namespace) -> int:
    issuer, audience = (os.environ.get(f"RELAY_JWT_{name}") or None for name in ("ISSUER", "AUDIENCE"))
    signed = mint(
        _first_secret(),
        tenant=given.tenant,
        scope=given.scope or ["call"],
        expires_at=time.time() + given.seconds,
        issuer=issuer,
        audience=audience,
        agent=given.agent,
        plan=given.plan,
        jti=given.jti or secrets.token_hex(16),
    )
    print(signed)
    return 0


def _first_secret() -> str:
    """The one with which nodes sign, too."""
    path = os.environ.get("RELAY_JWT_SECRET_FILE")
    try:
        listed = Path(path).read_text().splitlines() if path else os.environ.get("RELAY_JWT_SECRET", "").split(",")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"RELAY_JWT_SECRET_FILE: {path}: {reason}") from None
    found = next(filter(None, map(str.strip, listed)), None)
    if found is None:
        raise ConfigError("RELAY_JWT_SECRET: must be set to sign a token (or RELAY_JWT_SECRET_FILE)")
    return found
