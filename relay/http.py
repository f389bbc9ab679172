"""The public port: the table's routes and their handlers, errors in OpenAI's shape, origins. Knows nothing of calls."""

from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from aiohttp import HttpVersion11, hdrs, web

from relay import page
from relay.admission import Refused, check_origin
from relay.api.about import About
from relay.api.backend import Backend
from relay.api.binding import answer_refusal, bind
from relay.api.routes import ROUTES, Kind, Route
from relay.api.streams import Streams
from relay.api.tenants import Tenants
from relay.call import Services
from relay.calls import Lives
from relay.door import SlowBody
from relay.front import Front
from relay.opening import Opening
from relay.session import Session
from relay.sideband import SideLeg

_BODY_BYTES: Final = 1 << 20
_CODES: Final = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
_BEGUN: Final = web.RequestKey("begun", bool)

log = structlog.get_logger("relay")


class Api:
    """The application of one node."""

    def __init__(
        self,
        services: Services,
        calls: Lives[Session],
        side_legs: Lives[SideLeg],
        accepting: Callable[[], bool],
        front: Front,
    ) -> None:
        self._services = services
        self._front = front
        self._settings = services.settings
        self._accepting = accepting
        opening, backend = Opening(services, calls, side_legs, accepting), Backend(services)
        tenants = Tenants(services)
        self._streams = Streams(services, accepting)
        about = About(ROUTES)
        self._handlers: dict[str, Callable[..., Awaitable[web.StreamResponse]]] = {
            "realtime": opening.realtime,
            "voice": opening.voice,
            "refuse_webrtc": opening.refuse_webrtc,
            "create_client_secret": backend.create_client_secret,
            "list_calls": backend.list_calls,
            "show_call": backend.show_call,
            "show_transcript": backend.show_transcript,
            "watch_events": self._streams.watch_events,
            "hang_up": backend.hang_up,
            "put_item": backend.put_item,
            "put_event": backend.put_event,
            "show_receipt": backend.show_receipt,
            "show_usage": tenants.show_usage,
            "revoke_token": tenants.revoke_token,
            "show_openapi": about.show_openapi,
            "show_docs": about.show_docs,
        }

    def make_app(self) -> web.Application:
        """Make the application of the public port."""
        app = web.Application(middlewares=[self._answer], client_max_size=_BODY_BYTES)
        app.on_response_prepare.append(self._on_prepare)
        app.on_shutdown.append(self._streams.on_shutdown)
        for route in ROUTES:
            self._add(app, route)
        if self._settings.page is not None:
            page.add_routes(app, self._settings.page, node=self._settings.node, region=self._settings.region)
        return app

    def _add(self, app: web.Application, route: Route) -> None:
        handler = bind(route, self._handlers[route.name], self._services.gate)
        for path in filter(None, (route.path, route.also)):
            app.router.add_route(route.method, path, handler, expect_handler=_go_on)
            if route.method == hdrs.METH_GET and route.kind is Kind.PLAIN:
                app.router.add_route(hdrs.METH_HEAD, path, handler)

    @web.middleware
    async def _answer(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Check address and origin, answer preflights, and give every error OpenAI's shape."""
        try:
            with self._front.visit(request):
                check_origin(_origin(request), self._settings.allowed_origins)
                preflight = (
                    request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
                )
                response = web.Response(status=204) if preflight else await handler(request)
        except Refused as refused:
            response = answer_refusal(refused)
        except web.HTTPException as http:
            response = answer_refusal(Refused(http.status, _CODES.get(http.status, "invalid_request"), http.reason))
            if hdrs.ALLOW in http.headers:
                response.headers[hdrs.ALLOW] = http.headers[hdrs.ALLOW]
        except SlowBody:
            response = answer_refusal(Refused(408, "request_timeout", "The request's body did not come in time."))
        except web.RequestPayloadError:
            response = answer_refusal(Refused(400, "invalid_body", "The body is not encoded as its headers say."))
        except ConnectionError:
            raise  # the client is gone: there is nobody to answer
        except Exception as error:
            log.exception("request_failed", path=request.path, method=request.method)
            if request.get(_BEGUN):
                raise ConnectionAbortedError from error  # in the middle of an answer, which can only be cut off
            response = answer_refusal(
                Refused(500, "internal_error", "Internal error of the relay.", kind="server_error")
            )
        if response.status >= 400:
            self._services.tally.refuse(response.status)
        return response

    async def _on_prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Just before the head of an answer is written, other than that of an upgrade."""
        request[_BEGUN] = True
        # A draining node: a load balancer sends the next request elsewhere.
        if not self._accepting() or self._front.closes_after(request):
            response.force_close()
            response.headers[hdrs.CONNECTION] = "close"
        origin = _origin(request)
        if origin is not None:
            response.headers.update(_cors(origin))


async def _go_on(request: web.Request) -> None:
    """Tell a client that waits for it to send its body; other expectations may be ignored (RFC 9110, 10.1.1)."""
    if request.headers[hdrs.EXPECT].lower() == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # of the answer nothing was written yet


def _origin(request: web.Request) -> str | None:
    """Return the page's origin as an answer may repeat it: aiohttp takes bytes that are no UTF-8 as well."""
    origin = request.headers.get(hdrs.ORIGIN)
    return origin if origin is None or origin.isascii() else ascii(origin)


def _cors(origin: str) -> dict[str, str]:
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
        "Access-Control-Allow-Headers": "authorization, content-type, last-event-id, traceparent",
        "Access-Control-Expose-Headers": "retry-after, x-call-id",
        "Access-Control-Max-Age": "600",
        "Vary": "Origin",
    }
