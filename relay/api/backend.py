"""What backends ask of calls: look at them, put something into them, end them, make keys for their clients.

Each handler asks the bus and writes down its answer; nothing is decided here about a call.
"""

import secrets
from typing import Any

import msgspec
from aiohttp import web

from fanout import (
    CallFilter,
    CallNotFound,
    CallRecord,
    FanoutError,
    Message,
    Receipt,
    Status,
    Tombstone,
    home_of,
    new_call_id,
)
from fanout.core.envelope import EnvelopeError
from fanout.ids import region_of
from fanout.items import ItemBody, hangup_message
from relay.admission import Refused, choose_agent
from relay.api import minting, transcript
from relay.api.binding import Asked, answer_json, answer_refusal
from relay.api.reading import read_event, read_item
from relay.api.refusals import bus_refusal, rejection, unavailable
from relay.api.schema import (
    EventBody,
    EventQuery,
    ListQuery,
    PutQuery,
    SecretBody,
    Tracing,
    TranscriptQuery,
    Waiting,
)
from relay.call import Services
from relay.entitled import agent_of, plan_of
from relay.tokens import LEEWAY_SECONDS, RESUME_SECONDS, Claims


class Backend:
    """The handlers of one node."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._bus = services.bus

    # Reading

    async def list_calls(self, asked: Asked[ListQuery, None, None]) -> web.Response:
        """``GET …/calls``: the tenant's live calls."""
        query = asked.query
        where = CallFilter(region=query.region, node=query.node, agent=query.agent, state=query.state or "")
        try:
            found = await self._bus.calls(
                asked.caller.tenant, limit=query.limit, after=query.after or None, where=where
            )
        except FanoutError as error:
            raise bus_refusal(error) from None
        return answer_json(
            {
                "object": "list",
                "data": [self._call(call) for call in found.calls],
                "has_more": found.has_more,
                "last_id": found.last_id,
                "unreachable_regions": found.unreachable_regions,
            }
        )

    async def show_call(self, asked: Asked[None, None, None]) -> web.Response:
        """``GET …/calls/{id}``: a call, whatever its state."""
        return answer_json(await self._whole_call(asked))

    async def show_transcript(self, asked: Asked[TranscriptQuery, None, None]) -> web.Response:
        """``GET …/calls/{id}/transcript``: its conversation in words."""
        accepted = asked.request.headers.get("Accept", "")
        as_text = asked.query.format == "text" or (
            not asked.query.format and "text/plain" in accepted and "application/json" not in accepted
        )
        try:
            facts = await self._bus.facts(asked.call_id, asked.caller.tenant)
            found = await self._bus.call(asked.call_id, asked.caller.tenant) if as_text else None
        except FanoutError as error:
            raise bus_refusal(error) from None
        if as_text:
            return web.Response(text=transcript.as_text(facts, found.started_at if found else None))
        return answer_json(transcript.as_json(asked.call_id, facts))

    async def show_receipt(self, asked: Asked[None, None, None]) -> web.Response:
        """``GET …/items/{message_id}``: what became of a message."""
        message_id = asked.request.match_info["message_id"]
        try:
            receipt = await self._bus.receipt(asked.call_id, asked.caller.tenant, message_id)
        except FanoutError as error:
            raise bus_refusal(error) from None
        except EnvelopeError:
            text = "A newer version of the relay wrote this receipt and this node cannot read it: ask again."
            raise unavailable("receipt_unreadable", text) from None
        if receipt is None:
            raise Refused(404, "message_not_found", f"No message {message_id[:100]!r} in this call.")
        return answer_json(receipt.to_public())

    # Putting in

    async def put_item(self, asked: Asked[PutQuery, Tracing, ItemBody]) -> web.Response:
        """``POST …/items``: put a message or a tool result into a live call, through any node."""
        traceparent = asked.headers.traceparent or None
        message = read_item(asked.body, wall=self._services.wall(), traceparent=traceparent)
        await self._spend(asked.caller)
        return await self._put(asked, message, asked.query)

    async def put_event(self, asked: Asked[EventQuery, Tracing, EventBody]) -> web.Response:
        """``POST …/events``: send the model what the call's client could send it."""
        message = read_event(
            asked.raw,
            asked.body.type,
            message_id=asked.query.id or None,
            expires_at=self._services.wall() + asked.query.expires_in_ms / 1000,
            traceparent=asked.headers.traceparent or None,
        )
        await self._spend(asked.caller)
        return await self._put(asked, message, asked.query)

    async def hang_up(self, asked: Asked[Waiting, Tracing, None]) -> web.Response:
        """``POST …/hangup``: end a call, on OpenAI's path."""
        message = hangup_message(wall=self._services.wall(), traceparent=asked.headers.traceparent or None)
        receipt = await self._receipt(asked, message, Status.APPLIED, asked.query.timeout_ms)
        ended_meanwhile = (receipt.error or {}).get("code") == "call_ended"
        if receipt.status is Status.APPLIED or ended_meanwhile:
            return answer_json(await self._whole_call(asked))
        return self._answer_receipt(receipt, 202)

    async def _spend(self, caller: Claims) -> None:
        """Count a message against what the tenant's plan allows in a second."""
        services, rulebook = self._services, self._services.rulebook()
        plan, share = plan_of(rulebook, caller), rulebook.share(services.settings.region)
        await services.accounting.spend_message(caller.tenant, plan, share)

    async def _put(self, asked: Asked[Any, Any, Any], message: Message, query: PutQuery) -> web.Response:
        wait = Status(query.wait)
        receipt = await self._receipt(asked, message, wait, query.timeout_ms)
        return self._answer_receipt(receipt, 200 if receipt.has_reached(wait) else 202)

    async def _receipt(self, asked: Asked[Any, Any, Any], message: Message, wait: Status, timeout_ms: int) -> Receipt:
        try:
            return await self._bus.put(
                asked.call_id, asked.caller.tenant, message, wait=wait, timeout=timeout_ms / 1000
            )
        except FanoutError as error:
            raise bus_refusal(error) from None

    @staticmethod
    def _answer_receipt(receipt: Receipt, status: int) -> web.Response:
        if receipt.status is Status.REJECTED:
            return answer_refusal(rejection(receipt), receipt=receipt.to_public())
        return answer_json(receipt.to_public(), status)

    # Keys for clients

    async def create_client_secret(self, asked: Asked[None, None, SecretBody]) -> web.Response:
        """``POST …/client_secrets``: a short-lived key for one new call, in OpenAI's shape."""
        services, caller, body = self._services, asked.caller, asked.body
        name, origin = choose_agent(caller.agent, body.agent), minting.origin(body, caller.origin)
        agent = agent_of(services.rulebook(), name, caller)
        plan_of(services.rulebook(), caller)  # of a plan that nobody knows the key would open nothing
        session, seconds = minting.session_defaults(body), minting.lifetime(body)
        call_id = new_call_id(self._bus.new_home())
        expires_at = int(services.wall()) + seconds
        jti = secrets.token_hex(16)
        value = services.gate.sign(
            tenant=caller.tenant,
            scope=["call"],
            expires_at=expires_at,
            agent=agent.name,
            plan=caller.plan,
            call=call_id,
            jti=jti,
            origin=origin,
            session=bool(session),
            resume_seconds=RESUME_SECONDS,
        )
        try:
            kept = seconds + LEEWAY_SECONDS  # as long as some node may take the key
            await self._bus.reserve(call_id, caller.tenant, seconds=kept, session=session)
        except FanoutError as error:
            raise bus_refusal(error) from None
        answer = {
            "value": f"ek_{value}",
            "expires_at": expires_at,
            "session": minting.announced(body, f"sess_{secrets.token_hex(12)}", agent.model),
            "call_id": call_id,
            "jti": jti,
        }
        return answer_json(answer, headers={"X-Call-Id": call_id, "Cache-Control": "no-store"})

    # Writing down

    async def _whole_call(self, asked: Asked[Any, Any, Any]) -> dict[str, Any]:
        """A call with what its node has noted of it."""
        call_id, tenant = asked.call_id, asked.caller.tenant
        try:
            facts = await self._bus.facts(call_id, tenant)
            found = await self._bus.call(call_id, tenant)
        except FanoutError as error:
            raise bus_refusal(error) from None
        if found is not None:
            public = self._call(found)
        elif facts.state == "reserved":
            region = region_of(home_of(call_id) or "")
            public = {"object": "realtime.call", "id": call_id, "state": "reserved", "region": region}
        else:
            raise bus_refusal(CallNotFound(call_id))
        if "usage" in facts.values:
            public["usage"] = msgspec.Raw(facts.values["usage"])
        if entries := transcript.entries(facts):
            public |= {"transcript": entries, "dropped": transcript.dropped(facts)}
        return public

    def _call(self, found: CallRecord | Tombstone) -> dict[str, Any]:
        public = found.to_public()
        if isinstance(found, CallRecord):
            public["age"] = round(max(0.0, self._services.wall() - found.started_at), 3)
        return public
