"""Who may knock at the public port, and how often: before TLS, before a head is read, before any token.

It counts what an address has open and begins, and a node's connections in all. The socket is ``relay.port``, what a
connection may do with its time is ``relay.door``, the counts are ``relay.core.visitors``. Tenants and calls are unknown
here.
"""

import asyncio
import math
from collections.abc import Callable
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, cast

import structlog
from aiohttp import web

from relay.admission import Refused
from relay.config import Settings
from relay.core.addresses import Address, client_behind, counted_as, is_trusted, read_address
from relay.core.visitors import Crowd, Visitors
from relay.core.waiting import Late, Waiting
from relay.door import Door, keepalive_seconds

TURNED_AWAY: Final = ("connections", "flood", "full", "starts", "slow_head", "slow_body", "slow_reader", "unreadable")
_SPARE_CONNECTIONS: Final = 1024  # of a node, beyond two for each call: its client and a side leg
_CONNECTIONS_RETRY_SECONDS: Final = 10
_LATE: Final = {Late.HEAD: "slow_head", Late.REQUEST: "slow_head", Late.BODY: "slow_body", Late.READER: "slow_reader"}
_TEXTS: Final = {"connections": "too many connections", "starts": "begun too many requests"}

log = structlog.get_logger("relay")


class Guest:
    """A connection as it was accepted."""

    __slots__ = ("address", "is_over", "is_proxy", "name")

    def __init__(self, address: Address | None, name: str, *, is_proxy: bool, is_over: bool) -> None:
        self.address = address
        self.name = name  # under which its address is counted, unless it is a proxy
        self.is_proxy = is_proxy
        self.is_over = is_over  # its address had as many as it may have


class Front:
    """The front of one node's public port."""

    def __init__(self, settings: Settings, answer: Callable[[Refused], web.Response]) -> None:
        """Args: ``answer`` makes the response of a refusal."""
        self._proxies = settings.trusted_proxies
        self.handshake_seconds = settings.handshake_seconds
        self._stall_seconds = settings.stall_seconds
        self._most = 2 * settings.max_calls + _SPARE_CONNECTIONS
        self._answer = answer
        self._visitors = Visitors(connections=settings.ip_connections, starts_per_minute=settings.ip_starts_per_minute)
        self._guests: dict[Door, Guest] = {}  # of all that speak HTTP, or do their TLS handshake
        self._open = 0
        self._has_warned = False
        self.turned_away: dict[str, int] = dict.fromkeys(TURNED_AWAY, 0)

    @property
    def connections(self) -> int:
        """How many there are, WebSockets and those in their TLS handshake included."""
        return self._open

    def visit(self, request: web.Request) -> "Visit":
        """Return the context in which a request has to be handled; entering it may refuse the request."""
        return Visit(self, request)

    def closes_after(self, request: web.Request) -> bool:
        """Whether the connection ends with this answer: it should not be, or more of the body may come."""
        guest = self._guest(request)
        return not request.content.is_eof() or (guest is not None and guest.is_over)

    # Connections, for the port

    def meet(self, peer: str) -> Guest | None:
        """Decide on a connection that was accepted; None if it gets no answer."""
        if self._open >= self._most:
            self.turned_away["full"] += 1
            return None
        address = read_address(peer)
        name = counted_as(address)
        if is_trusted(address, self._proxies):
            self._open += 1
            return Guest(address, name, is_proxy=True, is_over=False)
        crowd = self.enter(name)
        if crowd is Crowd.FLOOD or self._visitors.is_failing(name, _now()):
            self.leave(name)
            self.turned_away["flood"] += 1
            return None
        return Guest(address, name, is_proxy=False, is_over=crowd is not Crowd.WITHIN)

    def make_door(self, server: web.Server, guest: Guest) -> Door:
        """Make the protocol of a guest's connection."""
        waiting = Waiting(_now(), handshake_seconds=self.handshake_seconds, stall_seconds=self._stall_seconds)
        door = Door(server, waiting, keepalive_seconds(self.handshake_seconds), self._answer_unread, self.part)
        self._guests[door] = guest
        return door

    def _answer_unread(self, refused: Refused) -> web.Response:
        """Answer where there is no request, past all that counts refused ones."""
        if refused.status != HTTPStatus.REQUEST_TIMEOUT:  # which is counted as late
            self.turned_away["unreadable"] += 1
        return self._answer(refused)

    def part(self, door: Door) -> None:
        """Its connection speaks HTTP no more, or never did."""
        guest = self._guests.pop(door, None)
        if guest is None:
            return
        if door.came_to_nothing and not guest.is_proxy:
            self._visitors.fail(guest.name, _now())
        if guest.is_proxy:
            self._open -= 1
        else:
            self.leave(guest.name)

    def look(self) -> None:
        """Do something about what is late."""
        for door in list(self._guests):
            late = door.look()
            if late in _LATE:
                self.turned_away[_LATE[late]] += 1

    def enter(self, name: str) -> Crowd:
        """Count a connection of an address."""
        self._open += 1
        return self._visitors.enter(name)

    def leave(self, name: str) -> None:
        """Count it no more."""
        self._open -= 1
        self._visitors.leave(name)

    # Requests, for their visits

    def admit(self, request: web.Request) -> tuple[str, bool]:
        """Count the start of a request, and a connection of whom a proxy passes on.

        Returns:
            The name under which the client's address is counted, and whether a connection was counted.

        Raises:
            Refused: 429.
            ConnectionResetError: the client is gone.
        """
        guest = self._guest(request)
        if guest is None:
            raise ConnectionResetError("client gone before its request")
        name, visitors = guest.name, self._visitors
        if guest.is_proxy:
            client = client_behind(guest.address, request.headers.getall("X-Forwarded-For", ()), self._proxies)
            name = counted_as(client)
            is_over = self.enter(name) is not Crowd.WITHIN
        else:
            is_over = guest.is_over = guest.is_over and visitors.crowd(name) is not Crowd.WITHIN
        try:
            if is_over:
                raise self._refusal("connections", "too_many_connections", _CONNECTIONS_RETRY_SECONDS, request)
            wait = visitors.start(name, _now())
            if wait:
                raise self._refusal("starts", "too_many_requests", math.ceil(wait), request)
        except Refused:
            if guest.is_proxy:
                self.leave(name)
            raise
        return name, guest.is_proxy

    def refund(self, name: str) -> None:
        """Count the start of a request no more."""
        self._visitors.refund(name)

    def _guest(self, request: web.Request) -> Guest | None:
        door = request.protocol
        return self._guests.get(door) if isinstance(door, Door) else None

    def _refusal(self, kind: str, code: str, retry_after: int, request: web.Request) -> Refused:
        self.turned_away[kind] += 1
        guest = self._guest(request)
        if not self._has_warned and guest is not None and not guest.is_proxy and "X-Forwarded-For" in request.headers:
            self._has_warned = True
            log.warning("proxy_not_trusted", limit=kind, setting="RELAY_TRUSTED_PROXIES")
        text = f"Your address has {_TEXTS[kind]}: try again in {retry_after} s."
        return Refused(429, code, text, kind="rate_limit_error", retry_after=retry_after)


class Visit:
    """One request while it is handled: ``with front.visit(request):``."""

    __slots__ = ("_front", "_is_counted", "_name", "_request")

    def __init__(self, front: Front, request: web.Request) -> None:
        self._front = front
        self._request = request
        self._name = ""
        self._is_counted = False

    def __enter__(self) -> None:
        """Begin.

        Raises:
            Refused: 429.
            ConnectionResetError: the client is gone.
        """
        request = self._request
        _door(request).begin(request)
        try:
            self._name, self._is_counted = self._front.admit(request)
        except BaseException:
            _door(request).end()
            raise
        request[_VISIT] = self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """It was answered, or handed off."""
        _door(self._request).end()
        self._request = cast(Any, None)  # it refers back
        if self._is_counted:
            self._front.leave(self._name)

    def welcome(self) -> None:
        """Its token was accepted: it is counted against a tenant's limits, not against its address."""
        self._front.refund(self._name)

    def stay(self, gone: asyncio.Future[None]) -> None:
        """It was handed off: count its connection until it is gone."""
        front, name = self._front, self._name
        front.enter(name)
        gone.add_done_callback(lambda _: front.leave(name))


_VISIT: Final = web.RequestKey("visit", Visit)


def welcome(request: web.Request) -> None:
    """Say that the token of a request was accepted: it doesn't count as a start of its address.

    Backends put many messages in from one address. What opens a WebSocket counts, whoever asks.
    """
    if _VISIT in request:
        request[_VISIT].welcome()


def stay(request: web.Request, gone: asyncio.Future[None]) -> None:
    """Count the connection of a request that was handed off just now, until ``gone`` is done."""
    if _VISIT in request:
        request[_VISIT].stay(gone)


def _door(request: web.Request) -> Door:
    return cast(Door, request.protocol)


def _now() -> float:
    return asyncio.get_running_loop().time()
