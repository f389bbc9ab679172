"""``python -m ops.audit LOCK…``: asks a public database whether what lock files pin has known vulnerabilities.

It fails on one, and on an answer that it doesn't understand. Where there is no way to the database it says so and
doesn't fail: a machine without a network can check the rest.
"""

import argparse
import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

_SERVICE: Final = "https://api.osv.dev"  # which gathers the advisories of PyPI and GitHub; ``uv audit`` asks it as well
_SECONDS: Final = 10.0
_BATCH: Final = 500  # the service takes 1000
_PIN: Final = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE)


class _CannotAsk(Exception):
    """The service is not there, for us or at all."""


def read_pins(text: str) -> dict[str, str]:
    """Read the packages and versions that a lock file pins, whatever platform they are for."""
    return {name.lower().replace("_", "-"): version for name, version in _PIN.findall(text)}


def ask(service: str, pins: Iterable[tuple[str, str]]) -> Mapping[tuple[str, str], list[str]]:
    """Return the ids of the advisories on those pinned versions that have any.

    Raises:
        ValueError: the service answered something else than OSV's querybatch does.
    """
    wanted, found = sorted(set(pins)), dict[tuple[str, str], list[str]]()
    for start in range(0, len(wanted), _BATCH):
        part = wanted[start : start + _BATCH]
        queries = [{"package": {"name": name, "ecosystem": "PyPI"}, "version": version} for name, version in part]
        results = _post(f"{service}/v1/querybatch", {"queries": queries})["results"]
        for pin, result in zip(part, results, strict=True):
            ids = sorted(str(advisory["id"]) for advisory in result.get("vulns", ()))
            if ids:
                found[pin] = ids
    return found


def _post(url: str, body: Mapping[str, Any]) -> Any:
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310  # our own argument
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as response:  # noqa: S310
            text = response.read()
    except urllib.error.HTTPError as error:
        if error.code < 500:
            raise ValueError(f"status {error.code}") from None
        raise _CannotAsk(f"status {error.code}") from None
    except OSError as error:  # no name, no route, no answer in time, no trusted certificate
        raise _CannotAsk(str(error)) from None
    return json.loads(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0 if nothing is known or nobody could be asked, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m ops.audit", description="Known vulnerabilities of pinned packages."
    )
    parser.add_argument("locks", nargs="+", type=Path, metavar="LOCK", help="a lock file: name==version lines")
    parser.add_argument(
        "--ignore", action="append", default=[], metavar="ID", help="an advisory that is known to be harmless"
    )
    parser.add_argument(
        "--service", default=_SERVICE, help=f"another service with OSV's interface (default: {_SERVICE})"
    )
    given = parser.parse_args(arguments)
    pins = set[tuple[str, str]]()
    for lock in given.locks:
        read = read_pins(lock.read_text())
        if not read:
            print(f"audit: {lock} pins nothing", file=sys.stderr)
            return 1
        pins.update(read.items())
    try:
        found = ask(given.service, pins)
    except _CannotAsk as error:
        print(f"audit: could not ask {given.service} ({error}): {len(pins)} packages were NOT checked")
        return 0
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"audit: {given.service} did not answer as OSV does: {error!r}", file=sys.stderr)
        return 1
    bad = {pin: [name for name in ids if name not in given.ignore] for pin, ids in found.items()}
    for (name, version), ids in bad.items():
        if ids:
            print(f"audit: {name} {version}: {', '.join(ids)}", file=sys.stderr)
    if any(bad.values()):
        return 1
    print(f"audit: {len(pins)} packages, no known vulnerability" + (" that is not ignored" if found else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
