"""Upstreams: the models' servers, and what is said to each that it may not be read by anybody else. Pure.

These are the only hosts that a node dials. Keys come from variables and files through a function that is handed in.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

from relay.rulebook.fields import Mistake, Table

BEARER: Final[tuple[tuple[str, str], ...]] = (("Authorization", "Bearer {key}"),)

_KEYS: Final = frozenset({"url", "key_env", "key_file", "headers", "model_parameter", "models"})
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token of RFC 9110, section 5.6.2
_VISIBLE: Final = re.compile(r"[\x21-\x7e]+")
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e\t]*")

ReadSecret = Callable[[str, str], str]  # of a kind, "env" or "file", by name; raises ValueError, without the name


@dataclass(frozen=True, slots=True)
class UpstreamConfig:
    """A model's server."""

    name: str
    url: str = field(repr=False)  # its query may carry a key
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # with the key in them
    model_parameter: str = "model"  # of the query, which names the model
    models: Mapping[str, str] = field(
        default_factory=dict
    )  # this server's names of models, by those that are asked for


def parse_upstreams(
    document: Table, read_secret: ReadSecret, own: UpstreamConfig | None
) -> Mapping[str, UpstreamConfig]:
    """Read the ``[upstreams.*]`` tables; ``own`` is the environment's, which ``[upstreams.default]`` replaces.

    Raises:
        Mistake: an unknown key, a wrong type, a URL of another kind, or a secret that cannot be read.
    """
    upstreams = {} if own is None else {own.name: own}
    for name, table in document.tables("upstreams"):
        table.only(_KEYS)
        upstreams[name] = UpstreamConfig(
            name,
            url=_url(table),
            headers=_headers(table, read_secret),
            model_parameter=table.text("model_parameter") or "model",
            models=_strings(table, "models"),
        )
    return MappingProxyType(upstreams)


def websocket_url(text: str) -> str:
    """Return the URL of a model's server if it is one.

    Raises:
        ValueError: it is not. What is wrong with it is not said: it may carry a password.
    """
    try:
        parts = urlsplit(text)
        is_good = parts.scheme in {"ws", "wss"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_good = False
    if not is_good or not _VISIBLE.fullmatch(text):
        raise ValueError("a WebSocket URL begins with ws:// or wss:// and names a host")
    return text


def check_key(text: str) -> str:
    """Return a key that can stand in a header.

    Raises:
        ValueError: it is empty, or has blanks, line breaks or letters beyond ASCII.
    """
    if not _VISIBLE.fullmatch(text):
        raise ValueError("a key has visible ASCII characters only, at least one")
    return text


def _url(table: Table) -> str:
    text = table.text("url")
    if text is None:
        raise table.mistake("url", "must be set")
    try:
        return websocket_url(text)
    except ValueError as error:
        raise table.mistake("url", str(error)) from None


def _headers(table: Table, read_secret: ReadSecret) -> tuple[tuple[str, str], ...]:
    key = _key(table, read_secret)
    if "headers" in table.values:
        templates = tuple(_strings(table, "headers").items())
    else:
        templates = () if key is None else BEARER
    for name, value in templates:
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise table.mistake("headers", "must be names of headers and values of one line each")
    has_place = any("{key}" in value for _, value in templates)
    if has_place and key is None:
        raise table.mistake("headers", "has {key}: key_env or key_file must say where the key is")
    if key is not None and not has_place:
        raise table.mistake("headers", "has no {key}, where the key would go")
    return tuple((name, value.replace("{key}", key or "")) for name, value in templates)


def _key(table: Table, read_secret: ReadSecret) -> str | None:
    if "key_env" in table.values and "key_file" in table.values:
        raise table.mistake("key_file", "cannot stand beside key_env")
    for kind in ("env", "file"):
        name = table.text(f"key_{kind}")
        if name is not None:
            try:
                return check_key(read_secret(kind, name))
            except ValueError as error:
                raise table.mistake(f"key_{kind}", str(error)) from None
    return None


def _strings(table: Table, key: str) -> Mapping[str, str]:
    inner = table.table(key)
    if inner is None:
        return MappingProxyType({})
    strings = {name: inner.text(name) for name in inner.values}
    if not all(strings):
        raise Mistake(inner.path, "must have names")
    return MappingProxyType({name: value for name, value in strings.items() if value is not None})
