"""Configuration: environment variables, parsed once; a bad value names its variable.

What is in the files that they name is read by ``relay/rulebook``, now and whenever it changes. The only module of the
package that reads the environment, with the command line's entry points.
"""

import math
import os
import re
import socket
import ssl
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, TypeVar, cast
from urllib.parse import urlsplit

from fanout import BusSettings
from fanout.ids import is_region_name, region_of
from fanout.redis import check_url
from fanout.regions import read_regions
from fanout.sealing import read_memory_keys
from relay.rulebook.book import Rulebook
from relay.rulebook.reading import SECRET_BYTES, SourceError, Sources, read_sources
from relay.rulebook.upstreams import BEARER, UpstreamConfig, check_key, websocket_url

KIB: Final = 1024
MIB: Final = 1024 * KIB

_MINUTE: Final = 60.0
_PREFIX_LETTERS: Final = frozenset(string.ascii_letters + string.digits + "-_.:")
_NO_WORDS: Final[tuple[str, ...]] = ()
_NO_KEYS: Final[Mapping[str, bytes]] = MappingProxyType({})
_SPARES_MAX: Final = 100  # warm connections of a node: each is a session at the model
_OPENAI: Final = "wss://api.openai.com/v1/realtime"

Network = IPv4Network | IPv6Network
_NO_NETWORKS: Final[tuple[Network, ...]] = ()

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


def _redis_url(text: str) -> str:
    check_url(text)  # its errors never repeat the URL
    return text


def _prefix(text: str) -> str:
    if set(text) - _PREFIX_LETTERS:
        raise ValueError(f"{text!r} is not only letters, digits, '-', '_', '.' and ':'")
    return text


def _jwks_url(text: str) -> str:
    try:
        parts = urlsplit(text)
    except ValueError:
        raise ValueError("not a URL") from None
    if not parts.hostname or parts.scheme != "https" and (parts.scheme != "http" or not _is_loopback(parts.hostname)):
        raise ValueError("must begin with https:// and name a host (http:// only on this machine)")
    return text


def _is_loopback(host: str) -> bool:
    return host in {"localhost", "::1"} or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


def _networks(text: str) -> tuple[Network, ...]:
    return tuple(ip_network(part) for part in listed(text))


def _policy(text: str) -> Literal["open", "closed"]:
    if text not in {"open", "closed"}:
        raise ValueError(f"{text!r} is neither 'open' nor 'closed'")
    return cast(Literal["open", "closed"], text)


def _count_or_none(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(f"{text!r} is not at least 0")
    return value


def _secrets(text: str) -> tuple[str, ...]:
    secrets = listed(text)
    if any(len(secret.encode()) < SECRET_BYTES for secret in secrets):
        raise ValueError(f"a secret must have at least {SECRET_BYTES} bytes")
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
    sources: Sources = field(repr=False)  # of the rulebook
    rulebook: Rulebook = field(repr=False)  # as it was at the start
    upstream_ca: Path | None
    jwks_url: str | None = field(repr=False)
    jwt_issuer: str | None
    jwt_audience: str | None
    trusted_proxies: tuple[Network, ...]
    ip_connections: int  # of one address; 0: no limit
    ip_starts_per_minute: int  # of one address; 0: no limit
    handshake_seconds: float
    lease_seconds: float  # of a place in a plan's concurrent calls, unless it is renewed
    usage_days: int
    limits_away: Literal["open", "closed"]  # for new calls of limited plans while Redis is away
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
        regions = read(env, "RELAY_REGIONS", read_regions, {region: redis_url})
        sources = _sources(env, frozenset(map(region_of, regions)))
        settings = cls(
            host=read(env, "RELAY_HOST", str, "127.0.0.1"),
            port=read(env, "RELAY_PORT", port, 8080),
            ops_host=read(env, "RELAY_OPS_HOST", str, "127.0.0.1"),
            ops_port=read(env, "RELAY_OPS_PORT", port, 9090),
            region=region,
            node=read(env, "RELAY_NODE", str, f"{socket.gethostname()}-{os.getpid()}"),
            regions=regions,
            prefix=read(env, "RELAY_PREFIX", _prefix, "relay"),
            sources=sources,
            upstream_ca=read(env, "RELAY_UPSTREAM_CA", _readable, None),
            allowed_origins=frozenset(read(env, "RELAY_ALLOWED_ORIGINS", listed, _NO_WORDS)),
            tls_cert=read(env, "RELAY_TLS_CERT", _readable, None),
            tls_key=read(env, "RELAY_TLS_KEY", _readable, None),
            page=read(env, "RELAY_PAGE", _readable, None),
            memory_keys=read(env, "RELAY_MEMORY_KEYS", read_memory_keys, _NO_KEYS),
            **_tenancy(env),
            **_sizes(env),
            **_seconds(env),
            rulebook=_first_rulebook(sources),
        )
        settings._check()
        return settings

    def _check(self) -> None:
        if not self.rulebook.jwt_secrets and self.jwks_url is None:
            raise ConfigError(
                f"RELAY_JWT_SECRET: must be set, at least {SECRET_BYTES} bytes (or RELAY_JWT_SECRET_FILE, or"
                " RELAY_JWKS_URL); it signs the clients' tokens"
            )
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


def _sizes(env: Mapping[str, str]) -> dict[str, Any]:
    """How much, and how many."""
    return {
        "max_calls": read(env, "RELAY_MAX_CALLS", count, 2000),
        "max_message_bytes": read(env, "RELAY_MAX_MESSAGE_BYTES", count, 21 * MIB),
        "max_browser_message_bytes": read(env, "RELAY_MAX_BROWSER_MESSAGE_BYTES", count, 1 * MIB),
        "hold_bytes": read(env, "RELAY_HOLD_BYTES", count, 1 * MIB),
        "write_buffer_bytes": read(env, "RELAY_WRITE_BUFFER_BYTES", count, 128 * KIB),
        "side_buffer_bytes": read(env, "RELAY_SIDE_BUFFER_BYTES", count, 4 * MIB),
        "socket_buffer_bytes": read(env, "RELAY_SOCKET_BUFFER_BYTES", count, 64 * KIB),
        "upstream_spares": read(env, "RELAY_UPSTREAM_SPARES", _spares, 0),
    }


def _seconds(env: Mapping[str, str]) -> dict[str, Any]:
    """How long."""
    return {
        "dial_seconds": read(env, "RELAY_DIAL_SECONDS", positive, 10.0),
        "register_seconds": read(env, "RELAY_REGISTER_SECONDS", positive, 1.0),
        "apply_seconds": read(env, "RELAY_APPLY_SECONDS", positive, 10.0),
        "stall_seconds": read(env, "RELAY_STALL_SECONDS", positive, 15.0),
        "ping_seconds": read(env, "RELAY_PING_SECONDS", positive, 20.0),
        "pong_seconds": read(env, "RELAY_PONG_SECONDS", positive, 20.0),
        "close_seconds": read(env, "RELAY_CLOSE_SECONDS", positive, 2.0),
        "drain_seconds": read(env, "RELAY_DRAIN_SECONDS", _not_negative, 300.0),
        "tombstone_seconds": read(env, "RELAY_TOMBSTONE_SECONDS", positive, 3600.0),
        "resume_seconds": read(env, "RELAY_RESUME_SECONDS", _not_negative, 30.0),
        "redial_seconds": read(env, "RELAY_REDIAL_SECONDS", _not_negative, 30.0),
        "roll_over_seconds": read(env, "RELAY_ROLL_OVER_SECONDS", positive, 120.0),
        "bus_silence_seconds": read(env, "RELAY_BUS_SILENCE_SECONDS", _up_to_a_minute, 3.0),
        "bus_node_ttl_seconds": read(env, "RELAY_BUS_NODE_TTL_SECONDS", _up_to_a_minute, 8.0),
        "bus_sweep_seconds": read(env, "RELAY_BUS_SWEEP_SECONDS", _up_to_a_minute, 10.0),
        "bus_socket_timeout": read(env, "RELAY_BUS_SOCKET_TIMEOUT", _up_to_a_minute, 2.0),
    }


def _tenancy(env: Mapping[str, str]) -> dict[str, Any]:
    """Whom a node believes, and how much of it anybody may take."""
    return {
        "jwks_url": read(env, "RELAY_JWKS_URL", _jwks_url, None),
        "jwt_issuer": read(env, "RELAY_JWT_ISSUER", str, None),
        "jwt_audience": read(env, "RELAY_JWT_AUDIENCE", str, None),
        "trusted_proxies": read(env, "RELAY_TRUSTED_PROXIES", _networks, _NO_NETWORKS),
        "ip_connections": read(env, "RELAY_IP_CONNECTIONS", _count_or_none, 256),
        "ip_starts_per_minute": read(env, "RELAY_IP_STARTS_PER_MINUTE", _count_or_none, 600),
        "handshake_seconds": read(env, "RELAY_HANDSHAKE_SECONDS", positive, 10.0),
        "lease_seconds": read(env, "RELAY_LEASE_SECONDS", positive, 30.0),
        "usage_days": read(env, "RELAY_USAGE_DAYS", count, 92),
        "limits_away": read(env, "RELAY_LIMITS_AWAY", _policy, "open"),
    }


def _sources(env: Mapping[str, str], regions: frozenset[str]) -> Sources:
    """Where the rulebook comes from. Without a key the environment's upstream is one only if it is not OpenAI's."""
    url = read(env, "RELAY_UPSTREAM_URL", websocket_url, _OPENAI)
    key_variable = "RELAY_UPSTREAM_KEY" if env.get("RELAY_UPSTREAM_KEY", "").strip() else "OPENAI_API_KEY"
    key, key_file = read(env, key_variable, check_key, ""), read(env, "RELAY_UPSTREAM_KEY_FILE", _readable, None)
    config = read(env, "RELAY_CONFIG", _readable, None)
    own = UpstreamConfig(
        "default",
        url,
        read(env, "RELAY_UPSTREAM_HEADERS", _headers, BEARER),
        read(env, "RELAY_UPSTREAM_MODEL_PARAMETER", str, "model"),
    )
    is_usable = bool(key or key_file) or urlsplit(url).hostname != urlsplit(_OPENAI).hostname
    return Sources(
        config=config,
        regions=regions,
        jwt_secrets=read(env, "RELAY_JWT_SECRET", _secrets, _NO_WORDS),
        jwt_secret_file=read(env, "RELAY_JWT_SECRET_FILE", _readable, None),
        upstream=own if is_usable else None,
        upstream_key=key,
        upstream_key_file=key_file,
        variables=env,
    )


def _first_rulebook(sources: Sources) -> Rulebook:
    """Raises: ConfigError, with the variable that names the file, the file and the line."""
    if sources.config is None and sources.upstream is None:
        raise ConfigError("OPENAI_API_KEY: must be set (or RELAY_UPSTREAM_URL, for another server)")
    found = read_sources(sources).found
    if isinstance(found, SourceError):
        raise ConfigError(f"{found.variable}: {found.place}{found}")
    return found
