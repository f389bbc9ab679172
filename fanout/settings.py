"""Settings of the bus: frozen, checked once, each limit with what it protects. Reads no environment."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fanout.ids import is_region_name

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, kw_only=True)
class BusSettings:
    """Where the regions' Redises are and how much the bus may hold. URLs carry passwords, so `repr` leaves them out."""

    node: str
    region: str
    regions: Mapping[str, str] = field(repr=False)  # name → redis://…
    prefix: str = "relay"  # of every key and channel, so that regions can share a Redis in development

    message_max_bytes: int = 1 * MIB  # one packed message
    inbox_max: int = 256  # unanswered messages of a call: beyond it `InboxFull`
    inbox_max_bytes: int = 16 * MIB  # and their bytes, in Redis's memory
    outgoing_max: int = 4096  # messages under way from this node: beyond it `BusFull`
    outgoing_max_bytes: int = 64 * MIB  # and their bytes, in this node's memory
    endings_max: int = 10_000  # ended calls not yet written: beyond it the oldest is left to its TTL, and counted

    call_ttl_seconds: float = 7200.0  # of a live call's keys, renewed by every sweep
    tombstone_seconds: float = 3600.0  # of the tombstone and the receipts after the end
    sweep_seconds: float = 10.0
    in_flight_seconds: float = 5.0  # how long an undelivered message keeps this node's next one to the call waiting
    repeat_seconds: float = 0.5  # first repeat of an unanswered publish; doubles up to repeat_max_seconds
    repeat_max_seconds: float = 5.0

    heartbeat_seconds: float = 1.0
    silence_seconds: float = 3.0  # without anything heard, the subscriber's connection is dropped
    node_ttl_seconds: float = 10.0  # of the node's heartbeat key: one heartbeat lifetime
    socket_timeout: float = 2.0
    connections: int = 32  # for commands, per region
    backoff_seconds: float = 0.1  # first pause after a Redis error; doubles, with jitter, up to backoff_max_seconds
    backoff_max_seconds: float = 2.0
    close_seconds: float = 2.0  # for writing what is still to be written when the node stops

    def __post_init__(self) -> None:
        """A bad value names its setting; a URL is never repeated in the error."""
        for name in self.regions:
            if not is_region_name(name):
                raise ValueError(f"regions: {name!r} is not 1 to 24 letters and digits")
        if self.region not in self.regions:
            raise ValueError(f"region: {self.region!r} is not among the regions")
        if self.silence_seconds <= self.heartbeat_seconds:
            raise ValueError("silence_seconds: must be longer than heartbeat_seconds")
        if not self.node or not self.prefix:
            raise ValueError("node and prefix: must not be empty")
