"""What a node's metrics page shows: every family, its text, and where its number is read. Part of the composition root.

Reads plain counts that others keep; nothing is counted here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from fanout import Fanout
from ops.health import Health
from ops.looplag import LoopLag
from ops.metrics import Metrics
from ops.tasks import Supervisor
from relay.accounting import Accounting
from relay.draining import Draining
from relay.front import Front
from relay.jwks import Jwks
from relay.revoked import Revoked
from relay.rulebook.shelf import Shelf
from relay.tally import Tally


class Node(Protocol):
    """What is asked of the node itself."""

    health: Health

    @property
    def live(self) -> int:
        """Calls on this node now."""
        ...

    @property
    def away(self) -> int:
        """Those whose client is gone and may come back."""
        ...

    @property
    def attached(self) -> int:
        """Side legs on this node now."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """Whose counts are shown."""

    node: Node
    tally: Tally
    lag: LoopLag
    supervisor: Supervisor
    bus: Fanout
    draining: Draining
    front: Front
    shelf: Shelf
    accounting: Accounting
    revoked: Revoked
    jwks: Jwks | None


def make_metrics(parts: Parts) -> Metrics:
    """Make the families of one node's page."""
    metrics, state, tally = Metrics(), parts.node, parts.tally
    metrics.gauge("relay_calls_live", "Calls on this node now.", lambda: state.live)
    metrics.gauge("relay_side_legs_live", "Side legs on this node now.", lambda: state.attached)
    metrics.counter("relay_side_legs_started_total", "Side legs that were admitted.", lambda: tally.side_legs)
    metrics.counters(
        "relay_side_legs_ended_total",
        "Side legs that ended, by why.",
        "why",
        lambda: {why.label: number for why, number in tally.side_ended.items()},
    )
    metrics.gauge("relay_ready", "1 while the node takes calls.", lambda: float(state.health.accepts_calls))
    metrics.counter("relay_calls_started_total", "Calls that were admitted.", lambda: tally.started)
    metrics.counters(
        "relay_calls_ended_total",
        "Calls that ended, by row of the table of endings.",
        "why",
        lambda: {why.label: number for why, number in tally.ended.items()},
    )
    metrics.counters(
        "relay_requests_refused_total",
        "Requests and upgrades refused, by HTTP status.",
        "status",
        lambda: {str(status): number for status, number in tally.refused.items()},
    )
    _continuity_metrics(metrics, tally)
    metrics.gauge("relay_calls_away", "Calls that wait for their client to come back.", lambda: state.away)
    metrics.counters("relay_frames_received_total", "Frames received, by leg.", "leg", lambda: tally.frames)
    metrics.counters("relay_received_bytes_total", "Payload bytes received, by leg.", "leg", lambda: tally.bytes)
    metrics.counters(
        "relay_messages_settled_total",
        "Messages of backends, by what became of them.",
        "status",
        lambda: tally.injected,
    )
    metrics.histogram("relay_model_connect_seconds", "From admission to an open model leg.", tally.connect)
    metrics.histogram("relay_call_duration_seconds", "Length of calls that ended.", tally.duration)
    metrics.histogram(
        "relay_message_apply_seconds", "From the owner's receipt of a message to the model's.", tally.apply
    )
    metrics.histogram("relay_loop_lag_seconds", "Lateness of the event loop.", parts.lag)
    metrics.counters(
        "relay_task_restarts_total", "Background tasks started again.", "task", lambda: parts.supervisor.restarts
    )
    _tenant_metrics(metrics, parts)
    _bus_metrics(metrics, parts.bus)
    _drain_metrics(metrics, parts.draining)
    return metrics


def _tenant_metrics(metrics: Metrics, parts: Parts) -> None:
    """Who was let in, and how far; never a tenant's name."""
    front, shelf, tally, jwks = parts.front, parts.shelf, parts.tally, parts.jwks
    metrics.gauge("relay_connections_open", "Connections of the public port.", lambda: front.connections)
    metrics.counters(
        "relay_connections_turned_away_total",
        "Connections and requests turned away before authentication, by why.",
        "why",
        lambda: front.turned_away,
    )
    metrics.counters(
        "relay_limits_hit_total",
        "Calls and messages refused because of a plan, by limit.",
        "limit",
        lambda: tally.limited,
    )
    metrics.counter(
        "relay_limits_unchecked_total",
        "Calls and messages that Redis could not count against a plan.",
        lambda: tally.limits_unchecked,
    )
    metrics.gauge(
        "relay_usage_waiting",
        "Calls that are over and whose usage Redis does not have yet.",
        lambda: parts.accounting.waiting,
    )
    metrics.counter("relay_usage_dropped_total", "Calls whose last usage was given up.", lambda: tally.usage_dropped)
    metrics.counters(
        "relay_rulebook_reloads_total",
        "Readings of the rulebook's files, by outcome.",
        "outcome",
        lambda: shelf.outcomes,
    )
    metrics.gauge(
        "relay_rulebook_stale",
        "1 while the rulebook's files are refused and an older one holds.",
        lambda: float(shelf.is_stale),
    )
    metrics.gauge(
        "relay_revocations_age_seconds",
        "Since this node last read which tokens are revoked; -1 before the first time.",
        lambda: parts.revoked.age,
    )
    if jwks is not None:
        metrics.counters(
            "relay_jwks_fetches_total", "Fetches of the key set, by outcome.", "outcome", lambda: jwks.fetches
        )
        metrics.gauge("relay_jwks_keys", "Public keys that tokens may be signed with.", lambda: len(jwks.keys))


def _continuity_metrics(metrics: Metrics, tally: Tally) -> None:
    """How calls outlive what carries them."""
    metrics.counter(
        "relay_calls_unregistered_total",
        "Calls that went on before the bus had registered them.",
        lambda: tally.unregistered,
    )
    metrics.counters(
        "relay_resumes_total",
        "Clients that came back: to the same model leg, with their call from another node, or in vain.",
        "kind",
        lambda: tally.resumes,
    )
    metrics.counters(
        "relay_model_redials_total", "Lost model legs, by what became of the call.", "outcome", lambda: tally.redials
    )
    metrics.counters(
        "relay_upstream_failovers_total",
        "Model legs of agents with several upstreams: served by another one after a failure, at once by another one "
        "for the first had failed lately, or by none.",
        "outcome",
        lambda: tally.failovers,
    )
    metrics.counters(
        "relay_model_roll_overs_total",
        "Model legs that neared the end of their session: replaced between two turns, in one, or not in time.",
        "outcome",
        lambda: tally.roll_overs,
    )
    metrics.counter(
        "relay_items_skipped_total",
        "Items that a new model leg refused when a conversation was rebuilt.",
        lambda: tally.items_skipped,
    )
    metrics.counters(
        "relay_orphans_ended_total",
        "Calls that nobody held any more and this node ended, by why.",
        "why",
        lambda: tally.orphans,
    )
    metrics.histogram(
        "relay_rebuild_seconds",
        "From the loss of a model leg to another one that knows the conversation.",
        tally.rebuild,
    )


def _drain_metrics(metrics: Metrics, draining: Draining) -> None:
    metrics.gauge("relay_draining", "1 since a drain was begun.", lambda: float(draining.is_begun))
    metrics.gauges(
        "relay_drain_calls",
        "Calls of a draining node: being moved, unable to move, waiting to be moved.",
        "state",
        draining.by_state,
    )
    metrics.counter("relay_drain_moved_total", "Calls that a drain moved to other nodes.", lambda: draining.moved)
    metrics.counter("relay_drain_ended_total", "Calls that a drain had to end.", lambda: draining.ended)


# What Fanout.status() says of each home, by its key there.
_BUS_GAUGES = {
    "connected": "1 while the home's Redis answers and every channel of this node's own is subscribed.",
    "circuit_open": "1 while new messages to the home's calls are refused at once, because its Redis does not answer.",
    "settling": "1 while the home's Redis is new: receipts wait, unknown calls get 503, no call changes its owner.",
    "heartbeat_age_seconds": "Since Redis last answered this node's heartbeat; -1 before the first answer.",
    "round_trip_seconds": "Of the last heartbeat.",
    "lag_seconds": "From sending the last heartbeat to hearing it on this node's own channel.",
    "clock_offset_seconds": "This node's clock minus that of the home's Redis.",
    "servers": "Primaries that serve the home.",
    "wanted": "Channels that this node should be subscribed to.",
    "held": "Channels that it is subscribed to.",
    "owned": "Calls of this node that live in the home.",
    "unregistered": "Owned calls that Redis does not have yet.",
    "unwritten": "Owned calls with verdicts on messages that Redis does not have yet.",
    "ending": "Ended calls whose tombstone Redis does not have yet.",
    "orphans_watched": "Calls that seem to have lost their node, or wait for their client after being handed over.",
    "kept": "Calls over here that are remembered in case Redis is replaced.",
    "outgoing": "Messages under way from this node.",
    "outgoing_bytes": "And their bytes.",
    "outgoing_held": "Messages that have their end and are kept for as long as Redis's replicas may lag.",
    "watched": "Calls of this node whose events somebody watches.",
    "heard": "Calls of this node whose audio somebody hears.",
    "watches": "Side legs and event streams of this node.",
    "watched_channels": "Channels that they are subscribed to.",
}
_BUS_COUNTERS = {
    "connects": "Connections made.",
    "redis_errors": "Commands and connections that failed.",
    "resolves": "Times that the topology was asked for.",
    "new_servers": "Times that another Redis process than before served the home, or a part of it.",
    "moved": "Commands that one Redis node sent to another.",
    "deaf_periods": "Times that a subscription was lost.",
    "deaf_seconds": "How long some subscription was lost, in all.",
    "messages": "Messages received on channels.",
    "delivered": "Messages handed to calls.",
    "recovered": "Of these, those that no bell brought: they were found by reading the inbox.",
    "gaps": "Gaps in the chain of a call's messages, closed by reading its inbox.",
    "duplicates": "Bells for messages that were known.",
    "unheard_bells": "Times that Redis said that nobody hears a bell that this node thought it heard.",
    "expired": "Messages that reached their owner after their deadline.",
    "restored": "Records of calls written again into a Redis that lacked them.",
    "lost": "Calls that another node took or ended.",
    "handed_over": "Calls that this node gave up for another to take.",
    "orphans_ended": "Calls of nobody that this node ended.",
    "endings_dropped": "Ended calls whose tombstone was given up, for there were too many.",
    "unsealable": "Sealed facts and items of conversations left out, for no key of this node opens them.",
    "unreadable": "Bells and messages skipped: malformed, or of a newer version.",
    "unreadable_envelopes": "Envelopes on this node's channels skipped: malformed, or of a newer version.",
    "unreadable_receipts": "Receipts skipped: malformed, or of a newer version.",
    "published": "Publications, repeats included.",
    "repeated": "Publications of messages that had been published before.",
    "abandoned": "Messages given up long after their deadline, without an answer from an owner.",
    "holds_dropped": "Held messages let go early, for there were too many.",
    "logged": "Events written to the logs of calls.",
    "logged_bytes": "And their bytes.",
    "log_dropped": "Events left out of logs: there was no room, or they were too large.",
    "sounds": "Audio events sent to those who listen.",
    "sounds_dropped": "Audio events let go: there was no room, or they were late, or nobody listened any more.",
    "facts_written": "Facts about calls written.",
    "facts_dropped": "Facts left out, for there was no room.",
    "watch_entries": "Events and audio handed to side legs and event streams.",
    "watch_gaps": "Times that one of them was told that events are missing.",
    "watch_reads": "Logs read, at the start of a watch and where something was missing.",
    "watch_failures": "Entries that a watcher of ours failed to take.",
    "watch_unheard": "Times that a feed of a call turned out not to be heard though it was subscribed.",
    "watch_unreadable": "Batches of logs skipped: malformed, or of a newer version.",
    "lease_renewals": "Times that this node told a call's owner that somebody here watches it.",
}


def _bus_metrics(metrics: Metrics, bus: Fanout) -> None:
    """The bus's own counts, by home, under the label that alerts know; see ``fanout.Fanout.status``."""
    taken: dict[str, Any] = {}

    def failures() -> float:
        taken.update(bus.status())  # once per page: it walks all calls, and the families below read from it
        return float(taken["task_failures"])

    def by_region(key: str) -> Callable[[], dict[str, float]]:
        return lambda: {name: home[key] for name, home in taken.get("regions", {}).items() if key in home}

    metrics.counter("relay_bus_task_failures_total", "Tasks of the bus that died and were started again.", failures)
    for key, text in _BUS_GAUGES.items():
        metrics.gauges(f"relay_bus_{key}", text, "region", by_region(key))
    for key, text in _BUS_COUNTERS.items():
        metrics.counters(f"relay_bus_{key}_total", text, "region", by_region(key))
