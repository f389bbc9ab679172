"""Reads the rulebook's files: the TOML file, the tokens' secrets, the upstreams' keys. Decides nothing about them.

With what was read comes the state in which each file was (its stamp), so that a later look can tell whether it changed.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from relay.rulebook.book import BookError, Defaults, Rulebook, parse_rulebook
from relay.rulebook.upstreams import UpstreamConfig, check_key

SECRET_BYTES: Final = 32  # an HS256 key is at least as long as its hash (RFC 7518, section 3.2)

_BOOK_BYTES: Final = 4 * 1024 * 1024
_SECRETS_BYTES: Final = 64 * 1024

Stamp = tuple[int, ...] | None  # of a file: another one says that it changed; None: there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the rulebook comes from. The environment's part of it stays as it is; the files are read again."""

    config: Path | None = None
    regions: frozenset[str] = frozenset()
    jwt_secrets: tuple[str, ...] = field(default=(), repr=False)
    jwt_secret_file: Path | None = None  # one a line; the first signs
    upstream: UpstreamConfig | None = None  # the environment's, with {key} in its headers
    upstream_key: str = field(default="", repr=False)
    upstream_key_file: Path | None = None  # goes before the variable
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)


class SourceError(ValueError):
    """A file that cannot be used: ``variable`` is the setting that names it; ``str()`` says what is wrong with it."""

    def __init__(self, variable: str, file: Path | None, line: int | None, what: str) -> None:
        super().__init__(what)
        self.variable = variable
        self.file = file
        self.line = line

    @property
    def place(self) -> str:
        """The file and the line, as they stand before a message."""
        return "".join(f"{part}:" for part in (self.file, self.line) if part is not None) + (" " if self.file else "")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a look at the files found, and in what state they were."""

    found: Rulebook | SourceError
    stamps: Mapping[Path, Stamp]


def read_sources(sources: Sources) -> Reading:
    """Read the files and make a rulebook of them."""
    reader = _Reader(sources)
    try:
        return Reading(reader.rulebook(), reader.stamps)
    except SourceError as error:
        return Reading(error, reader.stamps)


def stamp_of(path: Path) -> Stamp:
    """Return the state in which a file is; through symbolic links, so that a swapped link is another state."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class _Reader:
    """One look at the files."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self.stamps: dict[Path, Stamp] = {}

    def rulebook(self) -> Rulebook:
        """Raises: SourceError."""
        sources, path = self._sources, self._sources.config
        defaults = Defaults(self._own_upstream(), self._jwt_secrets(), sources.regions)
        text = "" if path is None else self._text(path, "RELAY_CONFIG", _BOOK_BYTES)
        try:
            return parse_rulebook(text, self._secret, defaults)
        except BookError as error:
            raise SourceError("RELAY_CONFIG", path, error.line, str(error)) from None

    def _own_upstream(self) -> UpstreamConfig | None:
        sources, key = self._sources, self._sources.upstream_key
        own, path = sources.upstream, sources.upstream_key_file
        if path is not None:
            text = self._text(path, "RELAY_UPSTREAM_KEY_FILE", _SECRETS_BYTES).strip()
            try:
                key = check_key(text)
            except ValueError as error:
                raise SourceError("RELAY_UPSTREAM_KEY_FILE", path, None, str(error)) from None
        if own is None:
            return None
        headers = tuple((name, value.replace("{key}", key)) for name, value in own.headers)
        return UpstreamConfig(own.name, own.url, headers, own.model_parameter, own.models)

    def _jwt_secrets(self) -> tuple[str, ...]:
        path = self._sources.jwt_secret_file
        if path is None:
            return self._sources.jwt_secrets
        lines = self._text(path, "RELAY_JWT_SECRET_FILE", _SECRETS_BYTES).splitlines()
        secrets = {number: line.strip() for number, line in enumerate(lines, 1) if line.strip()}
        for number, secret in secrets.items():
            if len(secret.encode()) < SECRET_BYTES:
                what = f"a secret must have at least {SECRET_BYTES} bytes"
                raise SourceError("RELAY_JWT_SECRET_FILE", path, number, what)
        if not secrets:
            raise SourceError("RELAY_JWT_SECRET_FILE", path, None, "has no secret")
        return tuple(dict.fromkeys((*secrets.values(), *self._sources.jwt_secrets)))

    def _secret(self, kind: str, name: str) -> str:
        """Return an upstream's key. The name is never said again: somebody may have written the key itself there."""
        if kind == "file":
            folder = self._sources.config.parent if self._sources.config else Path()
            return self._read(folder / name, _SECRETS_BYTES).decode(errors="replace").strip()
        if name == "REDIS_URL" or name.startswith("RELAY_") and not name.startswith("RELAY_UPSTREAM_"):
            raise ValueError("names a setting of the relay itself, which no upstream may see")
        key = self._sources.variables.get(name, "").strip()
        if not key:
            raise ValueError("no such variable is set")
        return key

    def _text(self, path: Path, variable: str, most: int) -> str:
        try:
            return self._read(path, most).decode()
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise SourceError(variable, path, line, "is not UTF-8") from None
        except ValueError as error:
            raise SourceError(variable, path, None, str(error)) from None

    def _read(self, path: Path, most: int) -> bytes:
        """Raises: ValueError, with words that name neither the file nor what is in it."""
        self.stamps[path] = stamp_of(path)  # by its name, as later: of an open file some systems say something else
        try:
            # Without waiting, for a pipe would have one wait for somebody who writes into it.
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise ValueError("is no file")
                data = file.read(most + 1)
        except OSError as error:
            raise ValueError(f"cannot be read: {error.strerror}") from None
        if len(data) > most:
            raise ValueError(f"is larger than {most} bytes")
        return data
