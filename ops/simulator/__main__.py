"""`python -m ops.simulator`: runs the model simulator until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import signal
import sys
from pathlib import Path

import uvloop

from ops.simulator.output import Pace
from ops.simulator.server import Settings, Simulator, serve
from ops.simulator.session import Behaviour

_PR_SET_PDEATHSIG = 1


def main() -> None:
    options = _parser().parse_args()
    if options.parent_death:
        _end_with_parent()
    settings = Settings(
        host=options.host,
        port=options.port,
        key=options.key,
        certfile=options.certfile,
        keyfile=options.keyfile,
        behaviour=Behaviour(
            pace=Pace(options.speed, options.chunk_ms, options.delay_seconds),
            session_seconds=options.session_seconds,
            transcription_ms=options.transcription_ms,
        ),
    )
    uvloop.run(_run(settings, options.ready_file))


async def _run(settings: Settings, ready_file: Path | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serve(settings) as simulator:
        if ready_file is not None:
            _write_ready(ready_file, simulator)
        else:
            print(simulator.url, flush=True)
        await stop.wait()


def _write_ready(path: Path, simulator: Simulator) -> None:
    """By rename, so that a reader sees all of it or nothing."""
    body = {"url": simulator.url, "http_url": simulator.http_url, "pid": os.getpid()}
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    draft.write_text(json.dumps(body))
    draft.replace(path)


def _end_with_parent() -> None:
    """Linux: SIGTERM when the parent dies; elsewhere nothing."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent == 1 or os.getppid() != parent:  # it was gone before we asked
        sys.exit("the parent process has already ended")


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise ValueError(text)
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ops.simulator", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--ready-file", type=Path, help="written when listening: JSON with url, http_url, pid")
    parser.add_argument("--key", help="the only API key that is accepted; default: any")
    parser.add_argument("--certfile", help="PEM; makes the server speak TLS")
    parser.add_argument("--keyfile")
    parser.add_argument("--parent-death", action="store_true", help="end when the parent process ends (Linux)")
    parser.add_argument(
        "--speed", type=_positive, default=5.0, help="audio is streamed so many times faster than real time"
    )
    parser.add_argument(
        "--chunk-ms",
        type=int,
        choices=range(20, 2001),
        metavar="20..2000",
        default=200,
        help="audio per response.output_audio.delta",
    )
    parser.add_argument("--delay-seconds", type=float, default=0.05, help="before an answer's first event")
    parser.add_argument("--session-seconds", type=_positive, default=3600.0, help="a session's longest life")
    parser.add_argument("--transcription-ms", type=float, default=0.0, help="a turn's transcript comes so much later")
    return parser


if __name__ == "__main__":
    main()
