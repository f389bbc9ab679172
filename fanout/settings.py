"""Settings of the bus: frozen, checked once, each limit with what it protects. Reads no environment."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fanout.ids import is_home_name, region_of

KIB = 1024
MIB = 1024 * KIB
MEMORY_KEY_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class BusSettings:
    """Where the homes' Redises are and how much the bus may hold. URLs carry passwords, so `repr` leaves them out."""

    node: str
    region: str
    regions: Mapping[str, str] = field(repr=False)  # region, or region-shard → redis://…, see fanout/redis/target.py
    prefix: str = "relay"  # of every key and channel, so that regions can share a Redis in development

    memory_keys: Mapping[str, bytes] = field(default_factory=dict, repr=False)  # by id: the first seals, all open

    message_max_bytes: int = 1 * MIB  # one packed message
    inbox_max: int = 256  # unanswered messages of a call: beyond it `InboxFull`
    inbox_max_bytes: int = 16 * MIB  # and their bytes, in Redis's memory
    read_max: int = 32  # entries of an inbox that are read at once
    read_max_bytes: int = 256 * KIB  # after which no further one is: what one read may hold up the loop
    memory_max: int = 1000  # what a call remembers for a new owner; the oldest is forgotten
    memory_max_bytes: int = 4 * MIB  # and its bytes, on the owner and in Redis
    log_max: int = 1000  # events of a call that its log keeps, for who comes back; the oldest goes
    log_max_bytes: int = 1 * MIB  # and their bytes, in Redis; a larger event is left out
    log_pending_max: int = 1000  # events and sound of a call that wait for Redis on its owner; the newest is left out
    log_pending_max_bytes: int = 4 * MIB  # and their bytes
    sound_pending_max_bytes: int = 512 * KIB  # of which sound; the oldest goes
    facts_max: int = 2000  # what is known of a call, by name; beyond it a new name is left out
    facts_max_bytes: int = 4 * MIB  # and its bytes, on the owner and in Redis
    flush_max_bytes: int = 256 * KIB  # after which a flush of a call takes no further event or fact
    watches_max: int = 4096  # on this node: beyond it `BusFull`
    watch_read_max: int = 32  # batches of a log that are read at once, and `read_max_bytes` of them
    outgoing_max: int = 4096  # messages under way from this node: beyond it `BusFull`
    outgoing_max_bytes: int = 64 * MIB  # and their bytes, in this node's memory
    holds_max: int = 20_000  # messages that have their end and are kept a while, in case Redis forgets it
    holds_max_bytes: int = 64 * MIB  # and their bytes; the oldest is let go, and counted
    orphans_max: int = 100  # calls in one partition that are looked at at once, in case their node is gone
    endings_max: int = 10_000  # ended calls not yet written: beyond it the oldest is left to its TTL, and counted

    usage_days: int = 92  # that a tenant's usage is kept after its day
    call_ttl_seconds: float = 7200.0  # of a live call's keys, renewed by every sweep
    tombstone_seconds: float = 3600.0  # of the tombstone after a call's end, and of a receipt after the message's
    sweep_seconds: float = 10.0
    in_flight_seconds: float = 1.0  # how long an undelivered message keeps this node's next one to the call waiting
    repeat_seconds: float = 0.5  # first repeat of an unanswered publish; doubles up to repeat_max_seconds
    repeat_max_seconds: float = 5.0
    flush_seconds: float = 0.02  # the least time between two flushes of a call's log
    facts_seconds: float = 1.0  # the least time between two flushes of a call's facts, where no event takes them along
    facts_grid_seconds: float = 0.25  # and the moments at which they are: for all calls the same
    lease_seconds: float = 60.0  # how long a call's log is written for a node that watches, after it last said so
    renew_seconds: float = 15.0  # how often it says so
    hold_seconds: float = 10.0  # how far Redis's replicas may lag without a message's being lost
    keep_seconds: float = 60.0  # how long a node can tell Redis again of a call that it had

    heartbeat_seconds: float = 1.0
    silence_seconds: float = 3.0  # without anything heard, the subscriber's connection is dropped
    node_ttl_seconds: float = 8.0  # of the node's heartbeat key: one heartbeat lifetime
    take_seconds: float = 0.05  # that a call's owner, if it lives, has to write what it knows before it is taken over
    orphan_seconds: float = 45.0  # how long a call waits for its client after its node is gone, two heartbeat lifetimes
    orphan_far_seconds: float = 600.0  # and one whose owner is in another region, to which the link may be cut
    margin_seconds: float = 2.0  # on top of a heartbeat lifetime, for owners to restore their records in a new Redis
    rewrite_seconds: float = 2.0  # and then to rewrite what else they know
    clock_skew_seconds: float = 0.25  # how far a node's clock may be off; a deadline holds within twice as much
    circuit_seconds: float = 3.0  # of failing without a break, after which puts are refused at once
    socket_timeout: float = 2.0
    connections: int = 2  # for commands, per server; many commands share one
    backoff_seconds: float = 0.1  # first pause after a Redis error; doubles, with jitter, up to backoff_max_seconds
    backoff_max_seconds: float = 2.0
    close_seconds: float = 2.0  # for writing what is still to be written when the node stops

    @property
    def homes(self) -> list[str]:
        """The homes of this node's own region, where its new calls may live."""
        return [name for name in self.regions if region_of(name) == self.region]

    @property
    def settling_seconds(self) -> float:
        """How long after a server appeared nobody takes a call over or writes what a backend may rely on."""
        return self.node_ttl_seconds + self.margin_seconds

    def __post_init__(self) -> None:
        """A bad value names its setting; a URL is never repeated in the error."""
        for name in self.regions:
            if not is_home_name(name):
                raise ValueError(f"regions: {name!r} is not 1 to 24 letters and digits, or that, a dash and a shard")
        if self.region and not self.homes:
            raise ValueError(f"region: {self.region!r} is not among the regions")
        if self.silence_seconds <= self.heartbeat_seconds:
            raise ValueError("silence_seconds: must be longer than heartbeat_seconds")
        if self.node_ttl_seconds <= self.silence_seconds:
            raise ValueError("node_ttl_seconds: must be longer than silence_seconds")
        if any(len(key) != MEMORY_KEY_BYTES for key in self.memory_keys.values()):
            raise ValueError(f"memory_keys: each must have {MEMORY_KEY_BYTES} bytes")
        if not self.node or not self.prefix:
            raise ValueError("node and prefix: must not be empty")
        if set("{}") & set(self.prefix):
            raise ValueError("prefix: must have no braces, which mark the hash tag")
