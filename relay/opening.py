"""WebSockets that are asked for, new calls and side legs: checked to the end before the connection is handed over."""

from collections.abc import Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from fanout import (
    BusFull,
    CallEnded,
    CallNotFound,
    CallStateUnknown,
    CallTaken,
    FanoutError,
    RegionUnreachable,
    new_call_id,
)
from relay.admission import EVENTS_PROTOCOL, Refused, Room, admit, attachment, bearer, choose_protocol
from relay.api.refusals import bus_refusal
from relay.call import Request, Services
from relay.calls import Lives
from relay.handoff import BadHandshake, check_upgrade, hand_off
from relay.session import Session
from relay.sideband import SideLeg
from relay.tokens import Claims, authenticate
from relay.upstream import Target

_WEBRTC: Final = (
    "This relay speaks WebSocket, not WebRTC. In the Agents SDK pass "
    "transport: new OpenAIRealtimeWebSocket({url: 'wss://<relay>/v1/realtime?model=…'}) to RealtimeSession."
)
_NOT_SETTABLE: Final = frozenset({"model", "id", "object", "expires_at"})  # fields of a session that no update takes


class Opening:
    """The handlers of one node that upgrade."""

    def __init__(
        self,
        services: Services,
        calls: Lives[Session],
        side_legs: Lives[SideLeg],
        accepting: Callable[[], bool],
    ) -> None:
        self._services = services
        self._settings = services.settings
        self._calls = calls
        self._side_legs = side_legs
        self._accepting = accepting

    async def realtime(self, request: web.Request) -> web.StreamResponse:
        """``GET /v1/realtime``: a new call, wire-compatible with the Realtime API; with ``call_id`` a side leg."""
        if "call_id" in request.query:
            return await self._attach(request)
        return await self._open(request, voice=False)

    async def voice(self, request: web.Request) -> web.StreamResponse:
        """``GET /voice``, ``/ws``: a new call with the default agent's session, raw PCM allowed in binary frames."""
        return await self._open(request, voice=True)

    async def refuse_webrtc(self, _: web.Request) -> web.StreamResponse:
        """``POST /v1/realtime/calls``: the Agents SDK's default in browsers, which a WebSocket relay cannot serve."""
        raise Refused(501, "webrtc_not_supported", _WEBRTC)

    def _check(self, request: web.Request, scope: str) -> tuple[list[str], Claims]:
        """Check the handshake and the token; returns the subprotocols offered, and the claims."""
        try:
            check_upgrade(request)
        except BadHandshake as bad:
            raise Refused(bad.status, bad.code, str(bad)) from None
        lines = ",".join(request.headers.getall("Sec-WebSocket-Protocol", ()))
        offered = [part.strip() for part in lines.split(",") if part.strip()]
        return offered, authenticate(bearer(request.headers, offered), self._settings.jwt_secrets, scope)

    def _headers(self, call_id: str, protocol: str | None) -> dict[str, str]:
        headers = {"X-Call-Id": call_id, "X-Relay-Node": self._settings.node, "X-Relay-Region": self._settings.region}
        return headers if protocol is None else headers | {"Sec-WebSocket-Protocol": protocol}

    # New calls

    async def _open(self, request: web.Request, *, voice: bool) -> web.StreamResponse:
        settings = self._settings
        offered, claims = self._check(request, "call")
        agent = settings.agents.get(claims.agent)
        if agent is None:
            raise Refused(403, "unknown_agent", f"This node has no agent {claims.agent!r}.", kind="permission_error")
        minted = await self._reserved(claims)
        room = Room(self._accepting(), len(self._calls), settings.max_calls)
        wanted = admit(room, request.query, minted.get("model") or agent.model, minted.get("type"))
        protocol = choose_protocol(offered)
        opening = {key: value for key, value in minted.items() if key not in _NOT_SETTABLE}
        call = Request(
            call_id=claims.call or new_call_id(self._services.bus.new_home()),
            tenant=claims.tenant,
            agent=agent,
            target=Target(wanted.model, wanted.intent),
            max_message=settings.max_browser_message_bytes if claims.browser else settings.max_message_bytes,
            opening={**(agent.session if voice else {}), **opening},
            voice=voice,
            binary_audio=voice and request.query.get("audio") == "binary",
            relay_events=protocol == EVENTS_PROTOCOL,
        )
        session = Session(self._services, call)
        leg, headers = session.client, self._headers(call.call_id, protocol)
        response = hand_off(request, leg, headers, max_message=call.max_message, on_refused=leg.on_ws_refused)
        self._calls.start(session)
        return response

    async def _reserved(self, claims: Claims) -> dict[str, Any]:
        """The session with which the call of a client secret begins; empty where none was asked for."""
        if claims.call is None:
            return {}
        try:
            reservation = await self._services.bus.reservation(claims.call, claims.tenant)
        except CallTaken:
            raise Refused(
                409, "call_in_use", "The call of this key has its client: make a new client secret."
            ) from None
        except (RegionUnreachable, CallStateUnknown) as error:
            if claims.session:
                raise bus_refusal(error) from None
            return {}  # a call starts without its Redis, and is registered when that is back
        except FanoutError as error:
            raise bus_refusal(error) from None
        if reservation is None:
            raise Refused(404, "call_not_found", "The call of this key is not reserved any more: make a new one.")
        if not reservation.session:
            return {}
        return {"type": "realtime", **msgspec.json.decode(reservation.session, type=dict[str, Any])}

    # Side legs

    async def _attach(self, request: web.Request) -> web.StreamResponse:
        settings = self._settings
        offered, claims = self._check(request, "control")
        wanted = attachment(request.query)
        if claims.call not in {None, wanted.call_id}:
            raise _no_such_call(wanted.call_id)
        room = Room(self._accepting(), len(self._side_legs), settings.max_calls)
        room.check()
        side = SideLeg(self._services, wanted.call_id, claims.tenant, audio=wanted.audio)
        life = self._side_legs.start(side)
        try:
            await side.attached
            headers = self._headers(wanted.call_id, choose_protocol(offered))
            most = settings.max_message_bytes
            response = hand_off(request, side.leg, headers, max_message=most, on_refused=side.leg.on_ws_refused)
        except CallNotFound:
            raise _no_such_call(wanted.call_id) from None
        except (CallEnded, CallStateUnknown, RegionUnreachable, BusFull) as error:
            raise bus_refusal(error) from None
        finally:
            if side.leg.transport is None:
                life.cancel()
        if not side.connected.done():  # as it is where the peer went away meanwhile
            side.connected.set_result(None)
        return response


def _no_such_call(call_id: str) -> Refused:
    return Refused(404, "call_id_not_found", f"No live call {call_id!r}.", param="call_id")
