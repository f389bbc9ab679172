"""Child processes of the demo: started with a log file, ended in order, and never outliving this process."""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

_PR_SET_PDEATHSIG: Final = 1
_POLL_SECONDS: Final = 0.02


class ChildFailed(RuntimeError):
    """A child ended before it was ready; ``str()`` has the end of its log."""


def _die_with_parent() -> None:
    """In the new process, before exec: the kernel ends it when its parent dies, however that dies (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Child:
    """A started process with a name; its output is in ``log``."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process

    @classmethod
    async def start(cls, name: str, command: Sequence[str], *, env: Mapping[str, str], folder: Path) -> "Child":
        """Start a command in a session of its own, so that Ctrl-C reaches only us and the end has an order."""
        log = folder / f"{name}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=dict(env),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform.startswith("linux") else None,
            )
        return cls(name, process, log)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def wait_file(self, path: Path, seconds: float) -> dict[str, Any]:
        """Until the child has written its ready file; returns the JSON in it.

        Raises:
            ChildFailed: it ended before, or took too long.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._process.returncode is None:
                    if path.exists():
                        found: dict[str, Any] = json.loads(path.read_text())
                        return found
                    await asyncio.sleep(_POLL_SECONDS)
        raise ChildFailed(f"{self.name} did not start:\n{self.tail()}")

    async def wait(self) -> int:
        """Until the process has ended; returns its exit code, negative for a signal."""
        return await self._process.wait()

    def tail(self) -> str:
        """The end of its output."""
        return self.log.read_text(errors="replace")[-2000:].strip()

    async def stop(self, seconds: float) -> None:
        """End it: politely, and by force after ``seconds``."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(seconds):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


def write_ready_file(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON so that whoever waits for the file finds it whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(value))
    partial.replace(path)
