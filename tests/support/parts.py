"""Optional parts of the machine that some tests need, and how to say that one is missing."""

import shutil
import subprocess
from functools import cache
from pathlib import Path

CLIENTS = Path(__file__).parent.parent / "clients"
_PROGRAMS = {
    "chromium": ("chromium",),
    "speech": ("espeak-ng", "sox"),
    "prometheus": ("prometheus", "promtool"),
    "node": ("node", "npm"),
}


@cache
def missing(part: str) -> str | None:
    """Return why a part cannot be used, None if it can."""
    absent = [program for program in _PROGRAMS[part] if shutil.which(program) is None]
    if absent:
        return f"{part}: {', '.join(absent)} not on the PATH"
    return _install_clients() if part == "node" else None


def _install_clients() -> str | None:
    """Install the npm clients from their lock file, once."""
    stamp = CLIENTS / "node_modules" / ".package-lock.json"
    if stamp.exists() and stamp.stat().st_mtime >= (CLIENTS / "package-lock.json").stat().st_mtime:
        return None
    done = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"],
        cwd=CLIENTS,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return None if done.returncode == 0 else f"node: npm ci failed: {done.stderr[-500:]}"
