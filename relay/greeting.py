"""What a client that knows relay events is told of its call: where it is, how to come back, what was kept and lost."""

import secrets
from typing import Any, Final

from relay.call import Request, Services
from relay.core import realtime
from relay.core.conversation import Gone
from relay.core.memory import Memory

_OFFER_SECONDS: Final = 7200.0  # as long as a live call's keys are kept


class Greeter:
    """The relay events of one call."""

    def __init__(self, services: Services, call_id: str) -> None:
        self._services = services
        self._call_id = call_id

    def started(self, request: Request) -> list[bytes]:
        """The call begins."""
        return self._event(request, "relay.started", resume=self._offer(request))

    def moving(self, request: Request) -> list[bytes]:
        """The call goes on elsewhere as soon as its client connects again."""
        return self._event(request, "relay.moving", reason="node_draining")

    def resumed(self, request: Request, memory: Memory, gone: Gone | None, *, missed: int, skipped: int) -> list[bytes]:
        """The client is back, or has another model leg; ``gone`` is what the one before left, if there is another."""
        return self._event(
            request,
            "relay.resumed",
            resume=self._offer(request),
            model="same" if gone is None else "rebuilt",
            kept={"items": len(memory.entries), "missed_events": missed},
            lost={
                "items": memory.dropped + skipped,
                "turn": gone.turn if gone is not None else None,
                "response": gone.response if gone is not None else None,
            },
        )

    def _offer(self, request: Request) -> dict[str, Any] | None:
        """Where to come back to, and with which token; it is for this call alone. None where nothing can be signed."""
        if not self._services.gate.can_sign:
            return None
        claims, expires_at = request.claims, int(self._services.wall() + _OFFER_SECONDS)
        token = self._services.gate.sign(
            tenant=request.tenant,
            scope=["call"],
            expires_at=expires_at,
            browser=claims.browser,
            agent=request.agent.name,
            plan=claims.plan,
            call=self._call_id,
            origin=claims.origin,
            jti=claims.jti or secrets.token_hex(8),  # revoked with the one that it takes the place of
            session=True,  # it begins no call: while nobody can say where this one lives it has to wait
        )
        return {"url": request.url, "token": f"ek_{token}" if claims.browser else token, "expires_at": expires_at}

    def _event(self, request: Request, kind: str, **fields: Any) -> list[bytes]:
        if not request.relay_events:
            return []
        settings = self._services.settings
        named = {"type": kind, "event_id": new_event_id(), "call_id": self._call_id}
        return [realtime.encode(named | {"node": settings.node, "region": settings.region} | fields)]


def new_event_id() -> str:
    """An id for an event that the relay makes itself."""
    return f"event_{secrets.token_hex(10)}"
