"""Makes aiohttp's handlers of the table's routes: token first, then query, headers and body, each as the table says."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec
from aiohttp import hdrs, web

from relay.admission import Refused, bearer
from relay.api.reading import read_body, read_headers, read_query
from relay.api.routes import Kind, Route
from relay.front import welcome
from relay.gatekeeper import Gatekeeper
from relay.tokens import Claims

Q = TypeVar("Q")
H = TypeVar("H")
B = TypeVar("B")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Asked(Generic[Q, H, B]):
    """A request that may be made and can be read."""

    request: web.Request
    caller: Claims
    query: Q
    headers: H
    body: B
    raw: bytes  # the body as it came

    @property
    def call_id(self) -> str:
        """The call that the path names."""
        return self.request.match_info["call_id"]


def bind(route: Route, handler: Callable[..., Awaitable[web.StreamResponse]], gate: Gatekeeper) -> Handler:
    """Make the handler that aiohttp calls. One of a route without a scope, or that upgrades, gets the bare request."""
    if route.scope is None or route.kind is Kind.UPGRADE:
        return handler
    scope = route.scope

    async def answer(request: web.Request) -> web.StreamResponse:
        origin = request.headers.get(hdrs.ORIGIN)
        caller = await gate.authenticate(bearer(request.headers), scope, origin=origin)
        _check_call(caller, request.match_info.get("call_id"))
        welcome(request)
        query = read_query(request.query, route.query) if route.query else None
        headers = read_headers(request.headers, route.headers) if route.headers else None
        raw = await request.read() if route.body else b""
        body = read_body(raw, route.body) if route.body else None
        return await handler(Asked(request, caller, query, headers, body, raw))

    return answer


def _check_call(caller: Claims, call_id: str | None) -> None:
    """A token that names a call is for nothing else."""
    if caller.call is None or caller.call == call_id:
        return
    if call_id is None:
        raise Refused(403, "token_for_one_call", "The token is for one call alone.", kind="permission_error")
    raise Refused(404, "call_not_found", f"No live call {call_id!r}.")


def answer_json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Make a JSON response."""
    return web.Response(
        body=msgspec.json.encode(body), status=status, headers=headers, content_type="application/json", charset="utf-8"
    )


def answer_refusal(refused: Refused, **more: Any) -> web.Response:
    """Make the response of a refusal, in OpenAI's shape."""
    error = {"type": refused.kind, "code": refused.code, "message": str(refused), "param": refused.param}
    headers = {}
    if refused.retry_after is not None:
        headers["Retry-After"] = str(refused.retry_after)
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if refused.status == 426:
        headers |= {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    return answer_json({"error": error, **more}, refused.status, headers)
