"""What a Redis URL says, as a value. Decides what a URL may contain; connects to nothing. Errors never repeat the URL.

    redis://[user:password@]host[:port][/db]
    redis+sentinel://[user:password@]host[:port],host…/master[?db=0&sentinel_username=…&sentinel_password=…]
    redis+cluster://[user:password@]host[:port],host…

`rediss` in place of `redis` means TLS, to the sentinels too, with redis-py's options ssl_ca_certs, ssl_certfile,
ssl_keyfile, ssl_cert_reqs (none, optional, required) and ssl_check_hostname (true, false). Credentials are
percent-encoded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from fanout.core.topology import Address


class Kind(Enum):
    """How the servers of a home stand together."""

    STANDALONE = ""
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


_PORTS = {Kind.STANDALONE: 6379, Kind.SENTINEL: 26379, Kind.CLUSTER: 6379}
_TLS_OPTIONS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"}
_SENTINEL_OPTIONS = {"db", "sentinel_username", "sentinel_password"}
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True, kw_only=True)
class Target:
    """One home's Redis. What is secret is left out of `repr`."""

    kind: Kind
    addresses: tuple[Address, ...]  # the server, the sentinels, or nodes of the cluster
    master: str = ""  # the name that the sentinels know it by
    db: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = field(default=None, repr=False)
    sentinel_password: str | None = field(default=None, repr=False)
    tls: Mapping[str, Any] | None = field(default=None, repr=False)  # redis-py's options; None is no TLS


def parse_url(url: str) -> Target:
    """Read a URL. Raises ValueError that says what is wrong without any part of the URL, which has a password."""
    try:
        scheme, netloc, path, query, fragment = urlsplit(url)
    except ValueError:
        raise ValueError("not a URL") from None
    base, _, suffix = scheme.partition("+")
    if base not in {"redis", "rediss"} or suffix not in {"", "sentinel", "cluster"} or scheme.endswith("+"):
        raise ValueError("the scheme must be redis or rediss, alone or with +sentinel or +cluster")
    if fragment or "#" in url:
        raise ValueError("a # must be percent-encoded")
    kind = Kind(suffix)
    credentials, _, hosts = netloc.rpartition("@")
    username, colon, password = credentials.partition(":")
    if credentials and not (colon and password):
        raise ValueError("before the @ there must be user:password or :password, percent-encoded")
    addresses = tuple(_read_address(host, _PORTS[kind]) for host in hosts.split(","))
    if kind is Kind.STANDALONE and len(addresses) > 1:
        raise ValueError("several hosts need redis+sentinel or redis+cluster")
    options = _read_options(query, is_tls=base == "rediss", is_sentinel=kind is Kind.SENTINEL)
    name = unquote(path.strip("/"))
    if kind is Kind.SENTINEL and not name:
        raise ValueError("redis+sentinel needs the master's name after the hosts")
    if kind is Kind.CLUSTER and name not in {"", "0"}:
        raise ValueError("a cluster has no databases")
    return Target(
        kind=kind,
        addresses=addresses,
        master=name if kind is Kind.SENTINEL else "",
        db=_read_number(options.pop("db", "0") if kind is Kind.SENTINEL else name or "0", "the database", 0, 1 << 20),
        username=unquote(username) or None,
        password=unquote(password) or None,
        sentinel_username=options.pop("sentinel_username", None),
        sentinel_password=options.pop("sentinel_password", None),
        tls=_read_tls(options) if base == "rediss" else None,
    )


def check_url(url: str) -> None:
    """Raises ValueError for a URL that can't be used, in words that never repeat it."""
    parse_url(url)


def _read_address(text: str, default_port: int) -> Address:
    host, bracket, rest = text.removeprefix("[").partition("]")
    if not (text.startswith("[") and bracket):
        host, colon, port = text.partition(":")
        rest = colon + port
    if not host or "[" in host or (rest and not rest.startswith(":")):
        raise ValueError("a host cannot be read")
    return Address(host, _read_number(rest[1:], "a port", 1, 65535) if rest else default_port)


def _read_options(query: str, *, is_tls: bool, is_sentinel: bool) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, strict_parsing=True) if query else []
    except ValueError:
        raise ValueError("the options after the ? cannot be read") from None
    allowed = (_TLS_OPTIONS if is_tls else set()) | (_SENTINEL_OPTIONS if is_sentinel else set())
    if {name for name, _ in pairs} - allowed or len(dict(pairs)) < len(pairs):
        # Not by name: an unencoded ? in a password would put a part of it here.
        raise ValueError("an option after the ? is unknown here or repeated; a ? in a password must be percent-encoded")
    return dict(pairs)


def _read_tls(options: Mapping[str, str]) -> dict[str, Any]:
    tls: dict[str, Any] = dict(options)
    if options.get("ssl_cert_reqs", "required") not in {"none", "optional", "required"}:
        raise ValueError("ssl_cert_reqs must be none, optional or required")
    if "ssl_check_hostname" in options:
        wanted = _TRUTH.get(options["ssl_check_hostname"].lower())
        if wanted is None:
            raise ValueError("ssl_check_hostname must be true or false")
        tls["ssl_check_hostname"] = wanted
    elif options.get("ssl_cert_reqs") == "none":
        tls["ssl_check_hostname"] = False  # Python's ssl refuses the pair none and true
    return tls


def _read_number(text: str, what: str, lowest: int, highest: int) -> int:
    if not (text.isascii() and text.isdigit() and lowest <= int(text) <= highest):
        raise ValueError(f"{what} must be a number from {lowest} to {highest}")
    return int(text)
