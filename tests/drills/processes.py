"""The drills' processes: started with a log, asked, frozen, killed. None outlives the runner."""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

_PR_SET_PDEATHSIG: Final = 1
_START_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.02
_LONGEST_ANSWER_BYTES: Final = 64 << 20  # all that a drill's load has seen
_LOG_TAIL: Final = 3000
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class ProcessFailed(RuntimeError):
    """A process ended, or did not start; `str()` has the end of its log."""


class Process:
    """A started process with a name, a log and, if asked for, pipes to give it orders."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process

    @classmethod
    async def start(
        cls,
        name: str,
        command: Sequence[str],
        *,
        folder: Path,
        env: Mapping[str, str] | None = None,
        takes_orders: bool = False,
    ) -> "Process":
        """Start a command in a session of its own, so that Ctrl-C reaches the runner only; appends to the log."""
        log = folder / f"{name}.log"
        pipe = PIPE if takes_orders else None
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=inherited() | dict(env or {}),
                stdin=pipe or DEVNULL,
                stdout=pipe or output,
                stderr=output,
                limit=_LONGEST_ANSWER_BYTES,
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform.startswith("linux") else None,
            )
        return cls(name, process, log)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.returncode is not None

    async def wait_file(self, path: Path) -> dict[str, Any]:
        """Until the process has written its ready file; returns the JSON in it.

        Raises:
            ProcessFailed: it ended before, or took too long.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_SECONDS):
                while not self.has_ended:
                    found = _read_ready(path)
                    if found is not None:
                        return found
                    await asyncio.sleep(_POLL_SECONDS)
        raise ProcessFailed(f"{self.name} did not start:\n{self.tail()}")

    async def ask(self, do: str, **arguments: Any) -> Any:
        """Give an order and return the answer.

        Raises:
            ProcessFailed: the process ended instead.
        """
        if self._process.stdin is None or self._process.stdout is None:
            raise ProcessFailed(f"{self.name} takes no orders")
        self._process.stdin.write(json.dumps({"do": do, "with": arguments}).encode() + b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise ProcessFailed(f"{self.name} ended when told to {do}:\n{self.tail()}")
        return json.loads(line)

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT: it goes on with what came in meanwhile."""
        self._process.send_signal(signal.SIGCONT)

    async def stop(self) -> int:
        """SIGTERM; returns its exit code."""
        self._process.terminate()
        return await self._process.wait()

    async def kill(self) -> None:
        """SIGKILL, also of a frozen one; returns when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    def cpu_seconds(self) -> float:
        """User and system time so far (Linux); 0 where that cannot be read."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def tail(self) -> str:
        """The end of its output."""
        return self.log.read_text(errors="replace")[-_LOG_TAIL:].strip()


def _read_ready(path: Path) -> dict[str, Any] | None:
    """What a ready file says, None while there is none: it is written by rename."""
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def inherited() -> dict[str, str]:
    """The environment without what would configure a node."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("RELAY_", "OPENAI_", "REDIS_"))}


def _die_with_parent() -> None:
    """In the new process, before exec: the kernel kills it when the runner is gone, however it went (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
