"""WebSockets that are asked for, new calls, clients that come back, side legs: checked before the hand-over."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import msgspec
from aiohttp import hdrs, web

from fanout import (
    BusFull,
    CallEnded,
    CallNotFound,
    CallRecord,
    CallStateUnknown,
    RegionUnreachable,
    Reservation,
    Tombstone,
    new_call_id,
)
from relay.admission import EVENTS_PROTOCOL, Refused, Room, admit, attachment, bearer, choose_agent, choose_protocol
from relay.api.refusals import bus_refusal
from relay.call import Request, Services
from relay.calls import Lives
from relay.clientside import Arrival
from relay.core.locks import Locks, lock
from relay.core.sessions import merged
from relay.entitled import agent_of, plan_of, unknown_agent
from relay.front import stay
from relay.handoff import BadHandshake, check_upgrade, hand_off
from relay.legs import Leg
from relay.session import Session
from relay.sideband import SideLeg
from relay.tokens import Claims
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

    async def _check(self, request: web.Request, scope: str) -> tuple[list[str], Claims]:
        """Check the handshake and the token; returns the subprotocols offered, and the claims."""
        try:
            check_upgrade(request)
        except BadHandshake as bad:
            raise Refused(bad.status, bad.code, str(bad)) from None
        lines = ",".join(request.headers.getall("Sec-WebSocket-Protocol", ()))
        offered = [part.strip() for part in lines.split(",") if part.strip()]
        token, origin = bearer(request.headers, offered), request.headers.get(hdrs.ORIGIN)
        return offered, await self._services.gate.authenticate(token, scope, origin=origin)

    def _headers(self, call_id: str, protocol: str | None) -> dict[str, str]:
        headers = {"X-Call-Id": call_id, "X-Relay-Node": self._settings.node, "X-Relay-Region": self._settings.region}
        return headers if protocol is None else headers | {"Sec-WebSocket-Protocol": protocol}

    # Calls

    async def _open(self, request: web.Request, *, voice: bool) -> web.StreamResponse:
        offered, claims = await self._check(request, "call")
        live = self._live_here(claims)
        if live is not None:
            return self._arrive(request, live, claims, offered, voice=voice)
        found = await self._found(claims)
        if isinstance(found, CallRecord):
            call = self._resumed(request, found, claims, offered, voice=voice)
        else:
            call = self._new(request, found, claims, offered, voice=voice)
            await self._services.accounting.admit(call.call_id, call.tenant, call.plan, call.share)
        live = self._live_here(claims)
        try:  # all that may have changed meanwhile
            self._services.gate.check_revoked(claims)
            if live is not None:  # another connection of this client was faster
                return self._arrive(request, live, claims, offered, voice=voice)
            self._room.check()
            session = Session(self._services, call)
            response = self._hand_off(request, session.client.leg, call.call_id, offered, call.max_message)
        except BaseException:
            if live is None and not call.resumes:
                self._services.accounting.give_back(call.call_id, call.tenant, call.plan, call.share)
            raise
        self._calls.start(session)
        return response

    def _hand_off(
        self, request: web.Request, leg: Leg, call_id: str, offered: list[str], max_message: int
    ) -> web.StreamResponse:
        headers = self._headers(call_id, choose_protocol(offered))
        response = hand_off(request, leg, headers, max_message=max_message, on_refused=leg.on_ws_refused)
        stay(request, leg.closed)
        return response

    @property
    def _room(self) -> Room:
        """What this node can still take."""
        return Room(self._accepting(), len(self._calls), self._settings.max_calls)

    def _new(
        self, request: web.Request, reserved: Reservation | None, claims: Claims, offered: list[str], *, voice: bool
    ) -> Request:
        """A call that begins here."""
        asked = request.query.get("agent")
        rulebook = self._services.rulebook()
        agent = agent_of(rulebook, choose_agent(claims.agent, asked), claims)
        minted = _session_of(reserved)
        is_locked = claims.browser and "model" in agent.locked
        default = minted.get("model") or agent.model
        wanted = admit(self._room, request.query, default, minted.get("type"), locked=is_locked)
        if claims.browser and request.query.get("intent") and lock(agent.locked, agent.session) - {"model"}:
            text = "This agent's session is its server's to set: another kind of session would have none of it."
            raise Refused(403, "not_allowed", text, kind="permission_error", param="intent")
        opening = {key: value for key, value in minted.items() if key not in _NOT_SETTABLE}
        # The client of an agent that nobody chose, and that is no browser, brings its own session.
        is_chosen = voice or claims.browser or bool(claims.agent or asked)
        if is_chosen and wanted.intent is None:
            opening = merged(agent.session, opening)
        names = lock(agent.locked, opening)
        return Request(
            call_id=claims.call or new_call_id(self._services.bus.new_home()),
            tenant=claims.tenant,
            agent=agent,
            target=Target(wanted.model, wanted.intent),
            opening=opening,
            plan=plan_of(rulebook, claims),
            share=rulebook.share(self._settings.region),
            locks=Locks(names, agent.events, agent.locked) if claims.browser else None,
            **self._client(request, claims, offered, voice=voice),
        )

    def _resumed(
        self, request: web.Request, found: CallRecord, claims: Claims, offered: list[str], *, voice: bool
    ) -> Request:
        """A call that lives elsewhere, or lived on a node that is gone, and whose client comes here."""
        self._room.check()
        rulebook = self._services.rulebook()
        known = rulebook.agent_for(found.agent, claims.tenant)  # another node's rulebook may be another one
        if known is None and claims.browser:  # which another agent would let do more
            raise unknown_agent(found.agent)
        agent = known or agent_of(rulebook, claims.agent or "default", claims)
        plan = rulebook.plan_for(claims.tenant, claims.plan) or rulebook.plan_for(claims.tenant, None)
        return Request(
            call_id=found.id,
            tenant=found.tenant,
            agent=agent,
            target=Target(found.model or None, request.query.get("intent") if not found.model else None),
            resumes=True,
            started_at=found.started_at,
            plan=plan or plan_of(rulebook, claims),
            share=rulebook.share(self._settings.region),
            locks=Locks(agent.locked, agent.events, agent.locked) if claims.browser else None,
            **self._client(request, claims, offered, voice=voice),
        )

    def _arrive(
        self, request: web.Request, live: Session, claims: Claims, offered: list[str], *, voice: bool
    ) -> web.StreamResponse:
        """The client of a call that lives here has a new connection."""
        client = self._client(request, claims, offered, voice=voice)
        agent, locks = live.request.agent, live.request.locks
        client["locks"] = (locks or Locks(frozenset(), agent.events, agent.locked)) if claims.browser else None
        arrival = Arrival(self._services, replace(live.request, **client))
        most = arrival.request.max_message
        response = self._hand_off(request, arrival.leg, live.call_id, offered, most)
        live.arrive(arrival)
        return response

    def _client(self, request: web.Request, claims: Claims, offered: list[str], *, voice: bool) -> dict[str, Any]:
        """What of a call is its client's."""
        settings, relay_events = self._settings, choose_protocol(offered) == EVENTS_PROTOCOL
        secure = request.headers.get("X-Forwarded-Proto", request.scheme) in {"https", "wss"}
        return {
            "claims": claims,
            "max_message": settings.max_browser_message_bytes if claims.browser else settings.max_message_bytes,
            "voice": voice,
            "binary_audio": voice and request.query.get("audio") == "binary",
            "relay_events": relay_events,
            "can_resume": (relay_events and self._services.gate.can_sign) or claims.call is not None,
            "url": f"{'wss' if secure else 'ws'}://{request.host}{request.path}",
            "last_event_id": request.query.get("last_event_id", ""),
        }

    def _live_here(self, claims: Claims) -> Session | None:
        """The call that the token is for, if it lives on this node and can have its client back."""
        if claims.call is None or not self._accepting():
            return None
        live = (call for call in self._calls.all() if call.call_id == claims.call)
        return next((call for call in live if call.can_arrive(claims.tenant)), None)

    async def _found(self, claims: Claims) -> CallRecord | Reservation | None:
        """The call that the token is for, or what was reserved for it; None for a token that is for no call."""
        if claims.call is None:
            return None
        try:
            found = await self._services.bus.find(claims.call, claims.tenant)
        except (RegionUnreachable, CallStateUnknown) as error:
            if claims.session or claims.resumes:
                raise bus_refusal(error) from None
            return None  # a call starts without its Redis, and is registered when that is back
        if isinstance(found, Tombstone):
            raise bus_refusal(CallEnded(found))
        if claims.resumes and not isinstance(found, CallRecord):
            raise Refused(401, "invalid_api_key", "The token has expired.", kind="authentication_error")
        if found is None:
            raise Refused(404, "call_not_found", "The call of this key is not reserved any more: make a new one.")
        return found

    # Side legs

    async def _attach(self, request: web.Request) -> web.StreamResponse:
        settings = self._settings
        offered, claims = await self._check(request, "control")
        wanted = attachment(request.query)
        if claims.call not in {None, wanted.call_id}:
            raise _no_such_call(wanted.call_id)
        room = Room(self._accepting(), len(self._side_legs), settings.max_calls)
        room.check()
        side = SideLeg(self._services, wanted.call_id, claims, audio=wanted.audio)
        life = self._side_legs.start(side)
        try:
            await side.attached
            response = self._hand_off(request, side.leg, wanted.call_id, offered, settings.max_message_bytes)
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


def _session_of(reserved: Reservation | None) -> dict[str, Any]:
    """The session with which the call of a client secret begins; empty where none was asked for."""
    if reserved is None or not reserved.session:
        return {}
    return {"type": "realtime", **msgspec.json.decode(reserved.session, type=dict[str, Any])}


def _no_such_call(call_id: str) -> Refused:
    return Refused(404, "call_id_not_found", f"No live call {call_id!r}.", param="call_id")
