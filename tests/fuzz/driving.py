"""Drives one target for a time: with the plain mutator, with shapes, or with atheris where that is installed.

atheris (libFuzzer) sees which branches an input takes and keeps what takes new ones. It ends its process, so it runs in
one of its own (tests/fuzz/guided.py).
"""

import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.mutating import LONGEST, mutations
from tests.fuzz.target import Target

_SLOW_SECONDS = 30  # for one input: then it is a find as well
_EXECUTED = re.compile(r"stat::number_of_executed_units:\s*(\d+)")


class Outcome(NamedTuple):
    """What a run of a target came to; ``found`` are inputs that broke a promise, with what happened."""

    executions: int
    seconds: float
    found: list[tuple[bytes, str]]


def has_atheris() -> bool:
    """Whether atheris can be used here."""
    return find_spec("atheris") is not None


def run_mutator(target: Target, seconds: float, seed: int) -> Outcome:
    """Feed what the plain mutator makes until the time is up; stops at the first find."""
    started, executions = time.monotonic(), 0
    for data in mutations(target.seeds, target.words, seed):
        executions += 1
        problem = _problem(target.check, data)
        if problem is not None:
            return Outcome(executions, time.monotonic() - started, [(data, problem)])
        if time.monotonic() - started >= seconds:
            break
    return Outcome(executions, time.monotonic() - started, [])


def run_shapes(target: Target, seconds: float, seed: int) -> Outcome:
    """Feed what hypothesis makes of the target's shapes until the time is up; stops at the first find."""
    started, executions, found = time.monotonic(), 0, list[tuple[bytes, str]]()

    def check(data: bytes) -> None:
        nonlocal executions
        if time.monotonic() - started < seconds and not found:
            executions += 1
            problem = _problem(target.check, data)
            if problem is not None:
                found.append((data, problem))

    chosen = settings(
        max_examples=100,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    while time.monotonic() - started < seconds and not found:
        hypothesis.seed(seed)(chosen(given(target.shapes)(check)))()
        seed += 1
    return Outcome(executions, time.monotonic() - started, found)


def _problem(check: Callable[[bytes], None], data: bytes) -> str | None:
    try:
        check(data)
    except Exception:  # noqa: BLE001 - whatever it is, it is a find
        return traceback.format_exc()
    return None


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def run_atheris(target: Target, seconds: float, seed: int, folder: Path) -> Outcome:
    """Have a process of its own fuzz the target with atheris; ``folder`` keeps what it learns, and its finds."""
    corpus = folder / target.name.replace(" ", "_")
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(data)
    words = folder / f"{corpus.name}.dict"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
    finds = folder / f"{corpus.name}-find-"
    limits = [f"-max_total_time={max(1, round(seconds))}", f"-max_len={LONGEST}", f"-timeout={_SLOW_SECONDS}"]
    limits += [f"-seed={seed + 1}", f"-dict={words}", f"-artifact_prefix={finds}"]
    limits += ["-print_final_stats=1", "-rss_limit_mb=2048"]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.guided", target.name, *limits, str(corpus)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    counted = _EXECUTED.search(done.stderr)
    found = [(path.read_bytes(), done.stdout[-4000:] + done.stderr[-4000:]) for path in folder.glob(f"{finds.name}*")]
    if done.returncode and not found:
        raise RuntimeError(f"atheris could not run {target.name}:\n{done.stderr[-4000:]}")
    return Outcome(int(counted.group(1)) if counted else 0, time.monotonic() - started, found)
