"""Configuration: environment variables and one TOML file, parsed once; a bad value names its variable.

The only module of the package that reads the environment, with the command line's entry points.
"""

import math
import os
import socket
import ssl
import string
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar
from urllib.parse import SplitResult, urlsplit

from fanout import BusSettings
from fanout.ids import is_region_name, region_of
from fanout.redis import check_url
from fanout.regions import read_regions
from fanout.sealing import read_memory_keys

KIB: Final = 1024
MIB: Final = 1024 * KIB
_SECRET_BYTES: Final = 32  # an HS256 key is at least as long as its hash (RFC 7518, section 3.2)

_MINUTE: Final = 60.0
_PREFIX_LETTERS: Final = frozenset(string.ascii_letters + string.digits + "-_.:")
_NO_WORDS: Final[tuple[str, ...]] = ()
_NO_KEYS: Final[Mapping[str, bytes]] = MappingProxyType({})
_SPARES_MAX: Final = 100  # warm connections of a node: each is a session at the model
_BEARER: Final[tuple[tuple[str, str], ...]] = (("Authorization", "Bearer {key}"),)

T = TypeVar("T")


class ConfigError(ValueError):
    """A setting that cannot be used; ``str()`` names it and says what is expected."""


def read(env: Mapping[str, str], name: str, parse: Callable[[str], T], default: T) -> T:
    """Return the parsed variable, or the default where it is unset or empty.

    Raises:
        ConfigError: the value cannot be parsed.
    """
    text = env.get(name, "").strip()
    if not text:
        return default
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None


def positive(text: str) -> float:
    """Parse seconds or another quantity that must be above zero."""
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError(f"{text!r} is no number above zero")
    return value


def count(text: str) -> int:
    """Parse a whole number of at least one."""
    value = int(text)
    if value < 1:
        raise ValueError(f"{text!r} is not at least 1")
    return value


def port(text: str) -> int:
    """Parse a TCP port; 0 lets the system choose."""
    value = int(text)
    if not 0 <= value <= 65535:
        raise ValueError(f"{text!r} is no port")
    return value


def listed(text: str) -> tuple[str, ...]:
    """Parse a list with commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _spares(text: str) -> int:
    value = int(text)
    if not 0 <= value <= _SPARES_MAX:
        raise ValueError(f"{text!r} is not from 0 to {_SPARES_MAX}")
    return value


def _not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError(f"{text!r} is no number from zero up")
    return value


def _up_to_a_minute(text: str) -> float:
    """Seconds of the bus: longer ones would leave a fault unnoticed for longer than a call can bear."""
    value = positive(text)
    if value > _MINUTE:
        raise ValueError(f"{text!r} is more than {_MINUTE:g} seconds")
    return value


def _region(text: str) -> str:
    if not is_region_name(text):
        raise ValueError(f"{text!r} is not 1 to 24 letters and digits")
    return text


def _split(url: str) -> SplitResult:
    """Split a URL. What is wrong with it is not said: it may carry a password."""
    try:
        return urlsplit(url)
    except ValueError:
        raise ValueError("not a URL") from None


def _redis_url(text: str) -> str:
    check_url(text)  # its errors never repeat the URL
    return text


def _prefix(text: str) -> str:
    if set(text) - _PREFIX_LETTERS:
        raise ValueError(f"{text!r} is not only letters, digits, '-', '_', '.' and ':'")
    return text


def _websocket_url(text: str) -> str:
    parts = _split(text)
    if parts.scheme not in {"ws", "wss"} or not parts.hostname:
        raise ValueError("a WebSocket URL begins with ws:// or wss:// and names a host")
    return text


def _secrets(text: str) -> tuple[str, ...]:
    secrets = listed(text)
    if any(len(secret.encode()) < _SECRET_BYTES for secret in secrets):
        raise ValueError(f"a secret must have at least {_SECRET_BYTES} bytes")
    return secrets


def _headers(text: str) -> tuple[tuple[str, str], ...]:
    headers = []
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise ValueError("expected one 'Name: value' a line")
        headers.append((name.strip(), value.strip()))
    return tuple(headers)


def _readable(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise ValueError(f"{text} is no file")
    return path


_TRANSCRIPTION: Final = MappingProxyType({"model": "gpt-4o-mini-transcribe"})


@dataclass(frozen=True, slots=True)
class Agent:
    """Who answers: the model, and the session that a /voice call begins with."""

    name: str
    model: str | None = None
    session: Mapping[str, Any] = field(default_factory=dict)  # body of the session.update
    transcription: Mapping[str, Any] | None = field(  # of what people say, for the call's memory; None: none
        default_factory=lambda: dict(_TRANSCRIPTION)
    )


_AGENT_KEYS: Final = {"model", "voice", "instructions", "turn_detection", "transcription", "tools", "session"}


def parse_agents(document: Mapping[str, Any]) -> Mapping[str, Agent]:
    """Read the ``[agents.*]`` tables.

    ``voice``, ``instructions``, ``turn_detection``, ``transcription`` and ``tools`` are put where the Realtime API (GA)
    has them; ``session`` is laid over that as it stands, for servers whose session has another shape.

    Raises:
        ConfigError: an unknown key or a wrong type.
    """
    tables = document.get("agents", {})
    if not isinstance(tables, Mapping):
        raise ConfigError("agents: must be a table")
    agents = {"default": Agent("default")}
    for name, table in tables.items():
        if not isinstance(table, Mapping):
            raise ConfigError(f"agents.{name}: must be a table")
        unknown = set(table) - _AGENT_KEYS
        if unknown:
            raise ConfigError(f"agents.{name}.{min(unknown)}: unknown; known are {', '.join(sorted(_AGENT_KEYS))}")
        for key in ("model", "voice", "instructions"):
            if not isinstance(table.get(key, ""), str):
                raise ConfigError(f"agents.{name}.{key}: must be a string")
        if not isinstance(table.get("session", {}), Mapping):
            raise ConfigError(f"agents.{name}.session: must be a table")
        transcription = table.get("transcription", _TRANSCRIPTION)
        if transcription is not False and not isinstance(transcription, Mapping):
            raise ConfigError(f"agents.{name}.transcription: must be a table, or false")
        remembered = dict(transcription) if transcription is not False else None
        agents[name] = Agent(name, table.get("model"), MappingProxyType(_session(table)), remembered)
    return MappingProxyType(agents)


def _session(table: Mapping[str, Any]) -> dict[str, Any]:
    session: dict[str, Any] = {}
    if "instructions" in table:
        session["instructions"] = table["instructions"]
    if "tools" in table:
        session["tools"] = table["tools"]
    audio_in = {key: table[key] for key in ("turn_detection", "transcription") if table.get(key, False) is not False}
    audio_out = {"voice": table["voice"]} if "voice" in table else {}
    audio = {key: value for key, value in (("input", audio_in), ("output", audio_out)) if value}
    if audio:
        session["audio"] = audio
    session.update(table.get("session", {}))
    return {"type": "realtime", **session} if session else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that a node is told. Secrets are kept out of ``repr``."""

    host: str
    port: int
    ops_host: str
    ops_port: int
    region: str
    node: str
    regions: Mapping[str, str] = field(repr=False)
    prefix: str
    agents: Mapping[str, Agent]
    upstream_url: str = field(repr=False)  # its query may carry a key
    upstream_headers: tuple[tuple[str, str], ...] = field(repr=False)
    upstream_model_parameter: str
    upstream_ca: Path | None
    jwt_secrets: tuple[str, ...] = field(repr=False)
    allowed_origins: frozenset[str]
    tls_cert: Path | None
    tls_key: Path | None
    page: Path | None  # tokens and nodes for the page; development and demo only
    max_calls: int
    max_message_bytes: int
    max_browser_message_bytes: int
    hold_bytes: int
    write_buffer_bytes: int
    side_buffer_bytes: int
    socket_buffer_bytes: int
    dial_seconds: float
    register_seconds: float
    apply_seconds: float
    stall_seconds: float
    ping_seconds: float
    pong_seconds: float
    close_seconds: float
    drain_seconds: float
    tombstone_seconds: float
    resume_seconds: float
    redial_seconds: float
    roll_over_seconds: float
    memory_keys: Mapping[str, bytes] = field(repr=False)
    upstream_spares: int
    bus_silence_seconds: float
    bus_node_ttl_seconds: float
    bus_sweep_seconds: float
    bus_socket_timeout: float

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> "Settings":
        """Read the environment and the TOML file that it names.

        Raises:
            ConfigError: a bad or a missing value; it names the variable.
        """
        region = read(env, "RELAY_REGION", _region, "dev")
        redis_url = read(env, "REDIS_URL", _redis_url, "redis://127.0.0.1:6379")
        path = read(env, "RELAY_CONFIG", _readable, None)
        key = env.get("RELAY_UPSTREAM_KEY", "") or env.get("OPENAI_API_KEY", "")
        templates = read(env, "RELAY_UPSTREAM_HEADERS", _headers, _BEARER)
        settings = cls(
            host=read(env, "RELAY_HOST", str, "127.0.0.1"),
            port=read(env, "RELAY_PORT", port, 8080),
            ops_host=read(env, "RELAY_OPS_HOST", str, "127.0.0.1"),
            ops_port=read(env, "RELAY_OPS_PORT", port, 9090),
            region=region,
            node=read(env, "RELAY_NODE", str, f"{socket.gethostname()}-{os.getpid()}"),
            regions=read(env, "RELAY_REGIONS", read_regions, {region: redis_url}),
            prefix=read(env, "RELAY_PREFIX", _prefix, "relay"),
            agents=load_agents(path),
            upstream_url=read(env, "RELAY_UPSTREAM_URL", _websocket_url, "wss://api.openai.com/v1/realtime"),
            upstream_headers=tuple((name, value.replace("{key}", key)) for name, value in templates),
            upstream_model_parameter=read(env, "RELAY_UPSTREAM_MODEL_PARAMETER", str, "model"),
            upstream_ca=read(env, "RELAY_UPSTREAM_CA", _readable, None),
            jwt_secrets=read(env, "RELAY_JWT_SECRET", _secrets, _NO_WORDS),
            allowed_origins=frozenset(read(env, "RELAY_ALLOWED_ORIGINS", listed, _NO_WORDS)),
            tls_cert=read(env, "RELAY_TLS_CERT", _readable, None),
            tls_key=read(env, "RELAY_TLS_KEY", _readable, None),
            page=read(env, "RELAY_PAGE", _readable, None),
            max_calls=read(env, "RELAY_MAX_CALLS", count, 2000),
            max_message_bytes=read(env, "RELAY_MAX_MESSAGE_BYTES", count, 21 * MIB),
            max_browser_message_bytes=read(env, "RELAY_MAX_BROWSER_MESSAGE_BYTES", count, 1 * MIB),
            hold_bytes=read(env, "RELAY_HOLD_BYTES", count, 1 * MIB),
            write_buffer_bytes=read(env, "RELAY_WRITE_BUFFER_BYTES", count, 128 * KIB),
            side_buffer_bytes=read(env, "RELAY_SIDE_BUFFER_BYTES", count, 4 * MIB),
            socket_buffer_bytes=read(env, "RELAY_SOCKET_BUFFER_BYTES", count, 64 * KIB),
            dial_seconds=read(env, "RELAY_DIAL_SECONDS", positive, 10.0),
            register_seconds=read(env, "RELAY_REGISTER_SECONDS", positive, 1.0),
            apply_seconds=read(env, "RELAY_APPLY_SECONDS", positive, 10.0),
            stall_seconds=read(env, "RELAY_STALL_SECONDS", positive, 15.0),
            ping_seconds=read(env, "RELAY_PING_SECONDS", positive, 20.0),
            pong_seconds=read(env, "RELAY_PONG_SECONDS", positive, 20.0),
            close_seconds=read(env, "RELAY_CLOSE_SECONDS", positive, 2.0),
            drain_seconds=read(env, "RELAY_DRAIN_SECONDS", _not_negative, 300.0),
            tombstone_seconds=read(env, "RELAY_TOMBSTONE_SECONDS", positive, 3600.0),
            resume_seconds=read(env, "RELAY_RESUME_SECONDS", _not_negative, 30.0),
            redial_seconds=read(env, "RELAY_REDIAL_SECONDS", _not_negative, 30.0),
            roll_over_seconds=read(env, "RELAY_ROLL_OVER_SECONDS", positive, 120.0),
            memory_keys=read(env, "RELAY_MEMORY_KEYS", read_memory_keys, _NO_KEYS),
            upstream_spares=read(env, "RELAY_UPSTREAM_SPARES", _spares, 0),
            bus_silence_seconds=read(env, "RELAY_BUS_SILENCE_SECONDS", _up_to_a_minute, 3.0),
            bus_node_ttl_seconds=read(env, "RELAY_BUS_NODE_TTL_SECONDS", _up_to_a_minute, 8.0),
            bus_sweep_seconds=read(env, "RELAY_BUS_SWEEP_SECONDS", _up_to_a_minute, 10.0),
            bus_socket_timeout=read(env, "RELAY_BUS_SOCKET_TIMEOUT", _up_to_a_minute, 2.0),
        )
        settings._check(key)
        return settings

    def _check(self, key: str) -> None:
        if not self.jwt_secrets:
            raise ConfigError(
                f"RELAY_JWT_SECRET: must be set, at least {_SECRET_BYTES} bytes; it signs the clients' tokens"
            )
        if not key and urlsplit(self.upstream_url).hostname == "api.openai.com":
            raise ConfigError("OPENAI_API_KEY: must be set (or RELAY_UPSTREAM_URL, for another server)")
        if not any(region_of(home) == self.region for home in self.regions):
            raise ConfigError(f"RELAY_REGIONS: has no {self.region!r}, which RELAY_REGION names")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("RELAY_TLS_CERT, RELAY_TLS_KEY: set both or neither")
        if self.stall_seconds >= self.ping_seconds + self.pong_seconds:
            raise ConfigError("RELAY_STALL_SECONDS: must be below RELAY_PING_SECONDS + RELAY_PONG_SECONDS")
        heartbeat = BusSettings.heartbeat_seconds
        if self.bus_silence_seconds <= heartbeat:
            raise ConfigError(f"RELAY_BUS_SILENCE_SECONDS: must be above {heartbeat:g}, the time between heartbeats")
        if self.bus_node_ttl_seconds <= self.bus_silence_seconds:
            raise ConfigError("RELAY_BUS_NODE_TTL_SECONDS: must be above RELAY_BUS_SILENCE_SECONDS")

    def server_context(self) -> ssl.SSLContext | None:
        """Return the TLS context of the public port, None without a certificate.

        Raises:
            ConfigError: the certificate cannot be used.
        """
        if self.tls_cert is None or self.tls_key is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self.tls_cert, self.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"RELAY_TLS_CERT, RELAY_TLS_KEY: {error}") from None
        return context

    def upstream_context(self) -> ssl.SSLContext:
        """Return the TLS context of the model legs: certificates are verified, always.

        Raises:
            ConfigError: the extra authority cannot be used.
        """
        try:
            return ssl.create_default_context(cafile=self.upstream_ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"RELAY_UPSTREAM_CA: {error}") from None


def load_agents(path: Path | None) -> Mapping[str, Agent]:
    """Read the agents from the TOML file; without one there is a default agent with no settings.

    Raises:
        ConfigError: the file is not TOML, or a table is wrong.
    """
    if path is None:
        return parse_agents({})
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"RELAY_CONFIG: {path}: {error}") from None
    try:
        return parse_agents(document)
    except ConfigError as error:
        raise ConfigError(f"RELAY_CONFIG: {path}: {error}") from None
