"""A call as it was admitted, what its node lends it, and what is written of it at its end. Plain values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from fanout import CallRecord, Fanout, Tombstone
from relay.accounting import Accounting
from relay.config import Settings
from relay.core.actions import Side
from relay.core.bridge import Rules
from relay.core.endings import Ending
from relay.core.locks import Locks
from relay.gatekeeper import Gatekeeper
from relay.pulse import Pulse
from relay.revoked import Revoked
from relay.rulebook.agents import Agent
from relay.rulebook.book import Rulebook
from relay.rulebook.plans import Plan
from relay.spares import Spares
from relay.tally import Tally
from relay.tokens import Claims
from relay.traffic import Traffic
from relay.upstream import Target, Upstreams


@dataclass(frozen=True, slots=True)
class Services:
    """What a node's calls share."""

    settings: Settings
    upstreams: Upstreams
    bus: Fanout
    tally: Tally
    wall: Callable[[], float]  # seconds since the epoch
    pulse: Pulse
    rulebook: Callable[[], Rulebook]  # as it is now
    gate: Gatekeeper
    accounting: Accounting
    revoked: Revoked
    spares: Spares | None = None  # where some are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A call as it was admitted."""

    call_id: str
    tenant: str
    agent: Agent
    plan: Plan
    share: float  # of the plan's numbers, this region's
    target: Target
    max_message: int
    claims: Claims  # of its client's token
    locks: Locks | None = None  # what its client may not say
    opening: Mapping[str, Any] = field(default_factory=dict)  # session fields that hold before the client says anything
    voice: bool = False  # /voice: the client may send raw PCM
    binary_audio: bool = False
    relay_events: bool = False  # the client selected relay.events.v1
    can_resume: bool = False  # the client can come back to the call
    url: str = ""  # where to
    last_event_id: str = ""  # of a client that comes back: what it saw last
    resumes: bool = False  # the call lives already, elsewhere
    started_at: float = 0.0  # of such a call, in seconds since the epoch

    def rules(self, settings: Settings) -> Rules:
        """Say what holds for this call, and for its client."""
        is_conversation = self.target.intent is None
        return Rules(
            hold_bytes=settings.hold_bytes,
            apply_seconds=settings.apply_seconds,
            binary_client=self.voice,
            binary_audio=self.binary_audio,
            expects_opening=bool(self.opening),
            told_to_clear=self.voice or self.relay_events,
            transcription=self.agent.transcription if is_conversation else None,
            redials=bool(settings.redial_seconds),
            locks=self.locks,
        )

    def record(self, settings: Settings, started_at: float) -> CallRecord:
        """Describe the call for the bus, at its start."""
        return CallRecord(
            id=self.call_id,
            tenant=self.tenant,
            node=settings.node,
            region=settings.region,
            agent=self.agent.name,
            model=self.target.model or "",
            started_at=started_at,
        )

    def tombstone(self, settings: Settings, ending: Ending, started_at: float, ended_at: float) -> Tombstone:
        """Describe the call for the bus, at its end."""
        return Tombstone(
            id=self.call_id,
            tenant=self.tenant,
            node=settings.node,
            region=settings.region,
            started_at=started_at,
            ended_at=ended_at,
            why=ending.why.label,
            fault=ending.why.fault,
            close_code=ending.close.code,
            upstream_close_code=ending.model_code,
        )


def log_end(
    log: structlog.stdlib.BoundLogger,
    request: Request,
    ending: Ending,
    traffic: Traffic,
    *,
    seconds: float,
    connect_seconds: float | None,
) -> None:
    """Write the call's one line."""
    client, model = traffic.received(Side.CLIENT), traffic.received(Side.MODEL)
    log.info(
        "call_left" if ending.why.goes_on else "call_ended",
        why=ending.why.label,
        fault=ending.why.fault,
        close_code=ending.close.code,
        model_close_code=ending.model_code,
        tenant=request.tenant,
        agent=request.agent.name,
        seconds=round(seconds, 3),
        connect_seconds=round(connect_seconds, 4) if connect_seconds is not None else None,
        client_frames=client[0],
        client_bytes=client[1],
        model_frames=model[0],
        model_bytes=model[1],
        largest_buffer=traffic.largest_buffer,
    )
