"""A call as it was admitted, what its node lends it, and what is written of it at its end. Plain values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from fanout import CallRecord, Fanout, Tombstone
from relay.config import Agent, Settings
from relay.core.endings import Ending
from relay.legs import Leg
from relay.tally import Tally
from relay.upstream import Target, Upstream


@dataclass(frozen=True, slots=True)
class Services:
    """What a node's calls share."""

    settings: Settings
    upstream: Upstream
    bus: Fanout
    tally: Tally
    wall: Callable[[], float]  # seconds since the epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A call as it was admitted."""

    call_id: str
    tenant: str
    agent: Agent
    target: Target
    max_message: int
    opening: Mapping[str, Any] = field(default_factory=dict)  # session fields that hold before the client says anything
    voice: bool = False  # /voice: the client may send raw PCM
    binary_audio: bool = False
    relay_events: bool = False  # the client selected relay.events.v1

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
    legs: tuple[Leg, Leg],
    *,
    seconds: float,
    connect_seconds: float | None,
) -> None:
    """Write the call's one line; ``legs`` are the client's and the model's."""
    client, model = legs
    log.info(
        "call_ended",
        why=ending.why.label,
        fault=ending.why.fault,
        close_code=ending.close.code,
        model_close_code=ending.model_code,
        tenant=request.tenant,
        agent=request.agent.name,
        seconds=round(seconds, 3),
        connect_seconds=round(connect_seconds, 4) if connect_seconds is not None else None,
        client_frames=client.frames_in,
        client_bytes=client.bytes_in,
        model_frames=model.frames_in,
        model_bytes=model.bytes_in,
        largest_buffer=max(client.largest_buffer, model.largest_buffer),
    )
