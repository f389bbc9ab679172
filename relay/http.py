"""The public port: routes, their checks in order, errors in OpenAI's shape. No decision about a call is made here."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog
from aiohttp import hdrs, web

from fanout import (
    BusFull,
    BusTimeout,
    CallEnded,
    CallNotFound,
    CallNotStarted,
    CallRecord,
    CallStateUnknown,
    FanoutError,
    IdempotencyConflict,
    InboxFull,
    MessageTooLarge,
    Receipt,
    RegionUnreachable,
    Status,
    new_call_id,
)
from fanout.core.envelope import EnvelopeError
from relay import items, page
from relay.admission import EVENTS_PROTOCOL, Refused, Room, admit, bearer, check_origin, choose_protocol
from relay.calls import Calls
from relay.config import Settings
from relay.handoff import BadHandshake, check_upgrade, hand_off
from relay.session import Request, Services, Session
from relay.tokens import Claims, authenticate
from relay.upstream import Target

_BODY_BYTES: Final = 1 << 20
_WAITS: Final = {
    status.value: status for status in (Status.ACCEPTED, Status.DELIVERED, Status.APPLIED, Status.ANSWERED)
}
_DEFAULT_TIMEOUT_MS: Final = 5000
_LONGEST_TIMEOUT_MS: Final = 60_000
_PAGE_SIZE: Final = 100
_LIST_SIZE: Final = 20
_SETTLING_RETRY_SECONDS: Final = 2  # a new Redis takes about twelve to know

log = structlog.get_logger("relay")


class Api:
    """The handlers of one node."""

    def __init__(self, services: Services, calls: Calls, accepting: Callable[[], bool]) -> None:
        self._services = services
        self._settings: Settings = services.settings
        self._calls = calls
        self._accepting = accepting

    def make_app(self) -> web.Application:
        """Make the application of the public port."""
        app = web.Application(middlewares=[self._answer], client_max_size=_BODY_BYTES)
        app.add_routes(
            [
                web.get("/v1/realtime", self.realtime, allow_head=False),
                web.get("/voice", self.voice, allow_head=False),
                web.get("/ws", self.voice, allow_head=False),
                web.post("/v1/realtime/calls", self.webrtc),
                web.get("/v1/realtime/calls", self.list_calls),
                web.get("/v1/realtime/calls/{call_id}", self.show_call),
                web.post("/v1/realtime/calls/{call_id}/items", self.put_item),
                web.get("/v1/realtime/calls/{call_id}/items/{message_id}", self.show_receipt),
            ]
        )
        if self._settings.page is not None:
            page.add_routes(app, self._settings.page, node=self._settings.node, region=self._settings.region)
        return app

    @web.middleware
    async def _answer(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Check the origin, answer preflights, and give every error OpenAI's shape."""
        origin = request.headers.get(hdrs.ORIGIN)
        try:
            check_origin(origin, self._settings.allowed_origins)
            preflight = request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
            response = web.Response(status=204) if preflight else await handler(request)
        except Refused as refused:
            response = _refusal(refused)
        except web.HTTPException as http:
            code = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}.get(
                http.status, "invalid_request"
            )
            response = _refusal(Refused(http.status, code, http.reason))
        except ConnectionError:
            raise  # the client is gone: there is nobody to answer
        except Exception:
            log.exception("request_failed", path=request.path, method=request.method)
            response = _refusal(Refused(500, "internal_error", "Internal error of the relay.", kind="server_error"))
        if response.status >= 400:
            self._services.tally.refuse(response.status)
        if origin is not None and response.status != 101 and not response.prepared:
            response.headers.update(_cors(origin))
        return response

    # Calls

    async def realtime(self, request: web.Request) -> web.StreamResponse:
        """``GET /v1/realtime``: a new call, wire-compatible with the Realtime API."""
        return self._open(request, voice=False)

    async def voice(self, request: web.Request) -> web.StreamResponse:
        """``GET /voice``, ``/ws``: a new call with the default agent's session, raw PCM allowed in binary frames."""
        return self._open(request, voice=True)

    def _open(self, request: web.Request, *, voice: bool) -> web.StreamResponse:
        settings = self._settings
        try:
            check_upgrade(request)
        except BadHandshake as bad:
            raise Refused(bad.status, bad.code, str(bad)) from None
        lines = ",".join(request.headers.getall("Sec-WebSocket-Protocol", ()))
        offered = [part.strip() for part in lines.split(",") if part.strip()]
        claims = authenticate(bearer(request.headers, offered), settings.jwt_secrets, "call")
        agent = settings.agents.get(claims.agent)
        if agent is None:
            raise Refused(403, "unknown_agent", f"This node has no agent {claims.agent!r}.", kind="permission_error")
        room = Room(self._accepting(), len(self._calls), settings.max_calls)
        wanted = admit(room, request.query, agent.model)
        protocol = choose_protocol(offered)
        call = Request(
            call_id=new_call_id(self._services.bus.new_home()),
            tenant=claims.tenant,
            agent=agent,
            target=Target(wanted.model, wanted.intent),
            max_message=settings.max_browser_message_bytes if claims.browser else settings.max_message_bytes,
            voice=voice,
            binary_audio=voice and request.query.get("audio") == "binary",
            relay_events=protocol == EVENTS_PROTOCOL,
        )
        headers = {"X-Call-Id": call.call_id, "X-Relay-Node": settings.node, "X-Relay-Region": settings.region}
        if protocol is not None:
            headers["Sec-WebSocket-Protocol"] = protocol
        session = Session(self._services, call)
        leg = session.client
        response = hand_off(request, leg, headers, max_message=call.max_message, on_refused=leg.on_ws_refused)
        self._calls.start(session)
        return response

    async def webrtc(self, _: web.Request) -> web.StreamResponse:
        """``POST /v1/realtime/calls``: the Agents SDK's default in browsers, which a WebSocket relay cannot serve."""
        text = (
            "This relay speaks WebSocket, not WebRTC. In the Agents SDK pass "
            "transport: new OpenAIRealtimeWebSocket({url: 'wss://<relay>/v1/realtime?model=…'}) to RealtimeSession."
        )
        raise Refused(501, "webrtc_not_supported", text)

    # Backends

    def _claims(self, request: web.Request, scope: str) -> Claims:
        return authenticate(bearer(request.headers), self._settings.jwt_secrets, scope)

    async def put_item(self, request: web.Request) -> web.StreamResponse:
        """``POST …/items``: put a message or a tool result into a live call, through any node."""
        claims = self._claims(request, "control")
        wait, timeout = _wait(request)
        call_id, body = request.match_info["call_id"], await request.read()
        message = items.parse(body, wall=self._services.wall(), traceparent=request.headers.get("traceparent"))
        try:
            receipt = await self._services.bus.put(call_id, claims.tenant, message, wait=wait, timeout=timeout)
        except FanoutError as error:
            raise _bus_refusal(error) from None
        if receipt.status is Status.REJECTED:
            return _rejected(receipt)
        return web.json_response(receipt.to_public(), status=200 if receipt.has_reached(wait) else 202)

    async def show_receipt(self, request: web.Request) -> web.StreamResponse:
        """``GET …/items/{message_id}``: what became of a message."""
        claims = self._claims(request, "read")
        call_id, message_id = request.match_info["call_id"], request.match_info["message_id"]
        try:
            receipt = await self._services.bus.receipt(call_id, claims.tenant, message_id)
        except FanoutError as error:
            raise _bus_refusal(error) from None
        except EnvelopeError:
            text = "A newer version of the relay wrote this receipt and this node cannot read it: ask again."
            raise _unavailable("receipt_unreadable", text) from None
        if receipt is None:
            raise Refused(404, "message_not_found", f"No message {message_id!r} in this call.")
        return web.json_response(receipt.to_public())

    async def list_calls(self, request: web.Request) -> web.StreamResponse:
        """``GET …/calls``: the tenant's live calls."""
        claims = self._claims(request, "read")
        limit = _number(request, "limit", _LIST_SIZE, _PAGE_SIZE)
        try:
            found = await self._services.bus.calls(claims.tenant, limit=limit, after=request.query.get("after"))
        except FanoutError as error:
            raise _bus_refusal(error) from None
        data = [call.to_public() for call in found.calls]
        return web.json_response(
            {
                "object": "list",
                "data": data,
                "has_more": found.has_more,
                "last_id": data[-1]["id"] if data else None,
                "unreachable_regions": found.unreachable_regions,
            }
        )

    async def show_call(self, request: web.Request) -> web.StreamResponse:
        """``GET …/calls/{id}``: a live call, or the tombstone of one that ended."""
        claims = self._claims(request, "read")
        call_id = request.match_info["call_id"]
        try:
            found = await self._services.bus.call(call_id, claims.tenant)
        except FanoutError as error:
            raise _bus_refusal(error) from None
        if found is None:
            raise _bus_refusal(CallNotFound(call_id))
        public = found.to_public()
        if isinstance(found, CallRecord):
            public["age"] = round(max(0.0, self._services.wall() - found.started_at), 3)
        return web.json_response(public)


def _number(request: web.Request, name: str, default: int, most: int) -> int:
    text = request.query.get(name, str(default))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= most:
        raise Refused(422, "invalid_value", f"must be a number from 1 to {most}", param=name)
    return int(text)


def _wait(request: web.Request) -> tuple[Status, float]:
    wait = _WAITS.get(request.query.get("wait", Status.ACCEPTED.value))
    if wait is None:
        raise Refused(422, "invalid_value", f"must be one of {', '.join(_WAITS)}", param="wait")
    return wait, _number(request, "timeout_ms", _DEFAULT_TIMEOUT_MS, _LONGEST_TIMEOUT_MS) / 1000


def _bus_refusal(error: FanoutError) -> Refused:
    match error:
        case CallNotFound():
            return Refused(404, "call_not_found", f"No live call {error.call_id!r}.")
        case CallNotStarted():
            return Refused(409, "call_not_started", "The call is reserved: its client has not connected yet.")
        case CallEnded():
            tomb = error.tombstone
            return Refused(
                410, "call_ended", f"The call ended at {tomb.ended_at:.3f}: {tomb.why} (fault: {tomb.fault})."
            )
        case InboxFull():
            text = "The call has as many unanswered messages as it may: wait for their receipts."
            return Refused(429, "inbox_full", text, kind="rate_limit_error", retry_after=1)
        case IdempotencyConflict():
            return Refused(
                409, "idempotency_conflict", f"{error.message_id!r} was used for another message.", param="id"
            )
        case MessageTooLarge():
            return Refused(413, "message_too_large", f"The message has {error.size} bytes, the limit is {error.limit}.")
        case BusFull() | BusTimeout():
            return _unavailable("bus_busy", "This node has too many messages under way: repeat with the same id.")
        case RegionUnreachable():
            text = f"The Redis of {error.region!r} did not answer: repeat with the same id."
            return _unavailable("region_unreachable", text)
        case CallStateUnknown():
            text = "The call's Redis is new and does not know yet which calls there are: repeat with the same id."
            return _unavailable("call_state_unknown", text, _SETTLING_RETRY_SECONDS)
        case _:
            raise error  # a case is missing above


def _unavailable(code: str, text: str, retry_after: int = 1) -> Refused:
    """Not the caller's fault, and over soon."""
    return Refused(503, code, text, kind="server_error", retry_after=retry_after)


def _rejected(receipt: Receipt) -> web.Response:
    error = receipt.error or {}
    refused = Refused(409, str(error.get("code", "rejected")), str(error.get("message", "The message was rejected.")))
    return _refusal(refused, receipt=receipt.to_public())


def _refusal(refused: Refused, **more: Any) -> web.Response:
    error = {"type": refused.kind, "code": refused.code, "message": str(refused), "param": refused.param}
    headers = {}
    if refused.retry_after is not None:
        headers["Retry-After"] = str(refused.retry_after)
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if refused.status == 426:
        headers |= {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    return web.json_response({"error": error, **more}, status=refused.status, headers=headers)


def _cors(origin: str) -> dict[str, str]:
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
        "Access-Control-Allow-Headers": "authorization, content-type, traceparent",
        "Access-Control-Max-Age": "600",
        "Vary": "Origin",
    }
