"""One node, put together: the only place that knows ``ops``, ``fanout`` and the call's parts at once."""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import structlog
from aiohttp import web

from fanout import BusSettings, Fanout
from ops.endpoints import make_app
from ops.health import Health, moved
from ops.looplag import LoopLag
from ops.metrics import Metrics
from ops.tasks import Supervisor
from relay import handoff
from relay.call import Services
from relay.calls import Lives
from relay.config import ConfigError, Settings
from relay.draining import Draining
from relay.http import Api
from relay.pulse import Pulse
from relay.session import Session
from relay.sideband import SideLeg
from relay.spares import Spares
from relay.tally import Tally
from relay.upstream import Upstream

_BACKLOG = 1024

log = structlog.get_logger("relay")


@dataclass
class Node:
    """A running node, for whoever started it."""

    url: str
    ops_url: str
    drain: Callable[[], None]
    hurry: Callable[[], None]  # drain, and wait for nobody
    wait_drained: Callable[[], Awaitable[None]]  # until a drain is through


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Node]:
    """Run a node for the length of the block; leaving it drains it at once.

    Raises:
        ConfigError: a certificate cannot be used, or a port is taken.
    """
    context, upstream = settings.server_context(), _upstream(settings)
    tally, lag = Tally(), LoopLag()
    async with AsyncExitStack() as stack:
        supervisor = await stack.enter_async_context(Supervisor.running())
        supervisor.start(lag.watch, name="loop_lag")
        bus = await stack.enter_async_context(Fanout.running(_bus(settings), clock=time.time))  # noqa: TID251  # the clock
        bus.on_orphan = lambda tombstone: tally.end_orphan(tombstone.why)
        calls: Lives[Session] = await stack.enter_async_context(Lives.running())
        side_legs: Lives[SideLeg] = await stack.enter_async_context(Lives.running())
        draining = Draining(settings, calls, side_legs, wall=time.time)  # noqa: TID251  # the clock
        sizes = {"write_bytes": settings.write_buffer_bytes, "socket_bytes": settings.socket_buffer_bytes}
        spares = await stack.enter_async_context(Spares.running(upstream, settings.upstream_spares, **sizes))
        state = _State(settings, calls, side_legs, draining, spares)
        pulse = stack.enter_context(Pulse(asyncio.get_running_loop()).beating())
        pulse.on_stop = partial(_doubt, calls)
        services = Services(settings, upstream, bus, tally, time.time, pulse, spares)  # noqa: TID251  # the clock
        public = Api(services, calls, side_legs, lambda: state.health.accepts_calls).make_app()
        metrics = _metrics(state, tally, lag, supervisor, bus)
        _drain_metrics(metrics, draining)
        ops = make_app(
            health=lambda: state.health, metrics=metrics, status=lambda: state.status(bus, lag), drain=state.drain
        )
        url = await _listen(stack, public, settings.host, settings.port, context, settings.socket_buffer_bytes)
        state.ready()  # before anybody can ask for a drain
        ops_url = await _listen(stack, ops, settings.ops_host, settings.ops_port, None, None)
        await stack.enter_async_context(draining.running())
        stack.callback(state.hurry)
        log.info("node_ready", node=settings.node, region=settings.region, url=url, ops_url=ops_url)
        yield Node(url, ops_url, state.drain, state.hurry, draining.wait_over)


def _doubt(calls: Lives[Session]) -> None:
    """This node stood still: its calls may be somebody else's by now."""
    for call in calls.all():
        call.doubt()


class _State:
    """The node's health, and what its operators see of it."""

    def __init__(
        self,
        settings: Settings,
        calls: Lives[Session],
        side_legs: Lives[SideLeg],
        draining: Draining,
        spares: Spares,
    ) -> None:
        self.health = Health.STARTING
        self._settings = settings
        self._calls = calls
        self._side_legs = side_legs
        self._draining = draining
        self._spares = spares

    def ready(self) -> None:
        self.health = moved(self.health, Health.READY)

    def drain(self) -> None:
        self.health = moved(self.health, Health.DRAINING)  # first: no new call comes between
        self._spares.stop()
        self._draining.begin()

    def hurry(self) -> None:
        self.drain()
        self._draining.hurry()

    def status(self, bus: Fanout, lag: LoopLag) -> dict[str, Any]:
        """What this node sees."""
        settings = self._settings
        return {
            "node": settings.node,
            "region": settings.region,
            "version": release(),
            "state": self.health.value,
            "calls": {"live": len(self._calls), "max": settings.max_calls},
            "side_legs": {"live": len(self._side_legs), "max": settings.max_calls},
            "drain": self._draining.progress(),
            "loop_lag_seconds": {"largest": round(lag.largest, 6)},
            "bus": bus.status(),
        }

    @property
    def live(self) -> int:
        return len(self._calls)

    @property
    def away(self) -> int:
        return sum(call.is_away for call in self._calls.all())

    @property
    def attached(self) -> int:
        return len(self._side_legs)


def release() -> str:
    """Return the version of the installed package, or say that it runs from a checkout."""
    try:
        return version("relay-fleet")
    except PackageNotFoundError:
        return "0+checkout"


def _upstream(settings: Settings) -> Upstream:
    return Upstream(
        url=settings.upstream_url,
        headers=(*settings.upstream_headers, ("User-Agent", f"relay-fleet/{release()}")),
        dial_seconds=settings.dial_seconds,
        max_message=settings.max_message_bytes,
        context=settings.upstream_context(),
        model_parameter=settings.upstream_model_parameter,
    )


def _bus(settings: Settings) -> BusSettings:
    return BusSettings(
        node=settings.node,
        region=settings.region,
        regions=settings.regions,
        prefix=settings.prefix,
        tombstone_seconds=settings.tombstone_seconds,
        silence_seconds=settings.bus_silence_seconds,
        node_ttl_seconds=settings.bus_node_ttl_seconds,
        sweep_seconds=settings.bus_sweep_seconds,
        socket_timeout=settings.bus_socket_timeout,
        # A call that was handed over waits no shorter for its client than one that kept its node.
        orphan_seconds=max(BusSettings.orphan_seconds, settings.resume_seconds + 15.0),
        memory_keys=settings.memory_keys,
    )


async def _listen(
    stack: AsyncExitStack,
    app: web.Application,
    host: str,
    port: int,
    context: ssl.SSLContext | None,
    receive_bytes: int | None,
) -> str:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    if receive_bytes is not None:  # accepted sockets inherit it, before their window is offered
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.5)
    stack.push_async_callback(runner.cleanup)
    await runner.setup()
    bound = sock.getsockname()
    server = await handoff.listen(runner, sock, context)
    stack.callback(server.close)
    name = f"[{bound[0]}]" if family == socket.AF_INET6 else bound[0]
    return f"{'https' if context else 'http'}://{name}:{bound[1]}"


def _metrics(state: _State, tally: Tally, lag: LoopLag, supervisor: Supervisor, bus: Fanout) -> Metrics:
    metrics = Metrics()
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
    metrics.histogram("relay_loop_lag_seconds", "Lateness of the event loop.", lag)
    metrics.counters(
        "relay_task_restarts_total", "Background tasks started again.", "task", lambda: supervisor.restarts
    )
    _bus_metrics(metrics, bus)
    return metrics


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
