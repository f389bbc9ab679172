"""Asks a node over HTTP for the shell commands. An answer that is none becomes a `Trouble` that says what to do.

Decides nothing about calls; repeats nothing by itself.
"""

import base64
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, Self
from urllib.parse import quote, urlsplit

import aiohttp

from relay.shell.events import BadStream, Decoder, Sent
from relay.shell.words import hint, missing_token, plain

NO: Final = 1  # exit codes: the answer is no;
WRONG: Final = 2  # the question was wrong, or nobody could be asked
_NOS: Final = frozenset({404, 409, 410, 429})
_CONNECT_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 15.0
_SILENCE_SECONDS: Final = 45.0  # nodes send a comment every 15 s
_STREAM: Final = "text/event-stream"
_TEXTS: Final = frozenset({"text/plain", "text/csv", "application/jsonl"})


class Trouble(Exception):
    """There is no answer, or it is no; ``str()`` is for a person, `error` for a script.

    `passing` says that the same question may be answered later; `retry_after` that many seconds from now, if known.
    """

    def __init__(
        self,
        exit_code: int,
        code: str,
        message: str,
        *,
        status: int = 0,
        retry_after: float | None = None,
        reason: str = "",
    ) -> None:
        super().__init__(message)
        self.reason = reason or message  # without what to do
        self.exit_code = exit_code
        self.status = status
        self.passing = status >= 500 or status == 429 or code == "unreachable"
        self.retry_after = retry_after
        self.error: dict[str, Any] = {"type": "shell_error", "code": code, "message": message, "param": None}

    @classmethod
    def usage(cls, message: str) -> Self:
        """The command was given something that cannot be right."""
        return cls(WRONG, "usage", message)


class Place(NamedTuple):
    """Which node, and the token for it."""

    url: str
    token: str


def place(url: str, token: str) -> Place:
    """Check where to ask, and with what.

    Raises:
        Trouble: no URL of a node, no token, or something that cannot be one.
    """
    address = url.strip().rstrip("/").removesuffix("/realtime").removesuffix("/v1")
    parts = urlsplit(address)
    schemes = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
    try:
        good = parts.scheme in schemes and parts.hostname and not parts.query and (parts.port or 1)
    except ValueError:  # the port
        good = False
    if not good:
        raise Trouble.usage(
            f"{plain(url)!r} is no node's URL: set RELAY_URL or --url to one like http://127.0.0.1:8080"
        )
    if not token.strip():
        raise Trouble.usage(missing_token())
    if not token.strip().isascii() or not token.strip().isprintable() or " " in token.strip():
        raise Trouble.usage(
            "the token has characters that no token has: is it whole, and alone in its variable or file?"
        )
    return Place(parts._replace(scheme=schemes[parts.scheme]).geturl(), token.strip())


def read_token(path: Path) -> str:
    """Return what is in a token file.

    Raises:
        Trouble: it cannot be read.
    """
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise Trouble.usage(f"--token-file {path}: {reason}") from None


def read_claims(text: str) -> dict[str, Any] | None:
    """Return what a token says of itself, unchecked; None for a text that is no token."""
    parts = text.strip().split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except ValueError:  # no base64, no UTF-8, no JSON
        return None
    return claims if isinstance(claims, dict) else None


class Answer(NamedTuple):
    """A node's answer: the HTTP status, 200 or 202, and the JSON, or the text where a text was asked for."""

    status: int
    body: Any


class Node:
    """Any node of the fleet, as a backend asks it."""

    def __init__(self, http: aiohttp.ClientSession, where: Place) -> None:
        self._http = http
        self._where = where

    @property
    def token(self) -> str:
        """With which it is asked."""
        return self._where.token

    @classmethod
    @asynccontextmanager
    async def at(cls, where: Place) -> AsyncIterator[Self]:
        """Hold what connects to a node for the length of the block."""
        headers = {"Authorization": f"Bearer {where.token}"}
        # A kept connection would lead back to a node that drains, past the load balancer that knows others.
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector, headers=headers) as http:
            yield cls(http, where)

    async def get(self, call_id: str = "", path: str = "", query: Mapping[str, str] | None = None) -> Answer:
        """Ask about calls, or about one call.

        Raises:
            Trouble: see the class.
        """
        return await self._ask("GET", self._url(call_id, path), query or {}, call_id=call_id)

    async def post(
        self,
        call_id: str,
        path: str,
        query: Mapping[str, str],
        body: Mapping[str, Any],
        *,
        seconds: float,
        message_id: str | None = None,
    ) -> Answer:
        """Have something done with a call, which may take so many seconds.

        Raises:
            Trouble: see the class.
        """
        url = self._url(call_id, path)
        return await self._ask("POST", url, query, body, seconds=seconds, call_id=call_id, message_id=message_id)

    async def usage(self, query: Mapping[str, str]) -> Answer:
        """Ask what the tenant's calls used.

        Raises:
            Trouble: see the class.
        """
        return await self._ask("GET", f"{self._where.url}/v1/usage", query)

    async def revoke(self, body: Mapping[str, Any]) -> Answer:
        """Have a token revoked.

        Raises:
            Trouble: see the class.
        """
        return await self._ask("POST", f"{self._where.url}/v1/tokens/revoke", {}, body)

    async def _ask(
        self,
        method: str,
        url: str,
        query: Mapping[str, str],
        body: Mapping[str, Any] | None = None,
        *,
        seconds: float = 0.0,
        call_id: str = "",
        message_id: str | None = None,
    ) -> Answer:
        timeout = aiohttp.ClientTimeout(total=seconds + _ANSWER_SECONDS, sock_connect=_CONNECT_SECONDS)
        options: dict[str, Any] = {"params": query, "timeout": timeout, "allow_redirects": False}
        try:
            async with self._http.request(method, url, json=body, **options) as response:
                if response.status not in {200, 202}:
                    raise await self._refused(response, call_id, message_id)
                if response.content_type in _TEXTS:
                    return Answer(response.status, await response.text(errors="replace"))
                found = _json(await response.text(errors="replace"))
                if not isinstance(found, dict):
                    raise self._no_relay(response)
                return Answer(response.status, found)
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(error, message_id) from error

    async def events(
        self, call_id: str, position: str | None, on_open: Callable[[], None]
    ) -> AsyncGenerator[Sent, None]:
        """Yield a call's events, from behind a position if one is given, until the stream ends.

        `on_open` is called when the node has agreed, which may be long before the first event.

        Raises:
            Trouble: also when the stream breaks off.
        """
        headers = {"Accept": _STREAM} | ({"Last-Event-ID": position} if position is not None else {})
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS)
        options: dict[str, Any] = {"headers": headers, "timeout": timeout, "allow_redirects": False}
        decoder = Decoder()
        try:
            async with self._http.get(self._url(call_id, "/events"), **options) as response:
                if response.status != 200:
                    raise await self._refused(response, call_id, None)
                if response.content_type != _STREAM:
                    raise self._no_relay(response)
                on_open()
                async for data in response.content.iter_any():
                    for sent in decoder.feed(data):
                        yield sent
        except (aiohttp.ClientError, OSError, BadStream) as error:
            raise self._unreachable(error, None) from error

    def _url(self, call_id: str, path: str) -> str:
        call = f"/{quote(call_id, safe='')}" if call_id else ""
        return f"{self._where.url}/v1/realtime/calls{call}{path}"

    async def _refused(self, response: aiohttp.ClientResponse, call_id: str, message_id: str | None) -> Trouble:
        body = _json(await response.text(errors="replace"))
        error = body.get("error") if isinstance(body, dict) else None
        if not isinstance(error, dict):
            return self._no_relay(response)
        code, message = str(error.get("code")), plain(str(error.get("message")))
        param = f" ({plain(str(error['param']))})" if error.get("param") else ""
        advice = hint(response.status, code, call_id=plain(call_id) or "CALL", message_id=message_id)
        retry_after = response.headers.get("Retry-After", "")
        trouble = Trouble(
            NO if response.status in _NOS else WRONG,
            code,
            f"{message.removesuffix('.')}{param}" + (f": {advice}" if advice else ""),
            status=response.status,
            reason=message,
            retry_after=float(retry_after) if retry_after.isascii() and retry_after.isdigit() else None,
        )
        trouble.error |= {key: error[key] for key in ("type", "message", "param") if key in error}
        return trouble

    def _no_relay(self, response: aiohttp.ClientResponse) -> Trouble:
        where = f" (it points to {plain(response.headers['Location'])})" if "Location" in response.headers else ""
        text = f"{self._where.url} answered {response.status}, and not as a relay does{where}: is RELAY_URL a node's?"
        return Trouble(WRONG, "no_relay", text, status=response.status)

    def _unreachable(self, error: Exception, message_id: str | None) -> Trouble:
        reason = plain(str(error)) or type(error).__name__
        if isinstance(error, aiohttp.ClientConnectorError):
            code = error.os_error.errno
            reason = os.strerror(code) if code and code > 0 else plain(error.os_error.strerror or str(error.os_error))
        elif isinstance(error, TimeoutError):
            reason = "no answer in time"
        again = f"; if you repeat it, use --id {message_id}: it may have been taken" if message_id else ""
        text = f"{self._where.url} cannot be reached ({reason}): set RELAY_URL or --url to a node that runs{again}"
        return Trouble(WRONG, "unreachable", text, reason=reason)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
