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
from ops.tasks import Supervisor
from relay.accounting import Accounting
from relay.api.binding import answer_refusal
from relay.call import Services
from relay.calls import Lives
from relay.config import ConfigError, Settings
from relay.draining import Draining
from relay.front import Front
from relay.gatekeeper import Gatekeeper
from relay.http import Api
from relay.jwks import Jwks
from relay.measures import Parts, make_metrics
from relay.port import listening
from relay.pulse import Pulse
from relay.revoked import Revoked
from relay.rulebook.shelf import Shelf
from relay.session import Session
from relay.sideband import SideLeg
from relay.spares import Spares
from relay.tally import Tally
from relay.upstream import Upstreams

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
    reload: Callable[[], None]  # read the rulebook's files again


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Node]:
    """Run a node for the length of the block; leaving it drains it at once.

    Raises:
        ConfigError: a certificate cannot be used, or a port is taken.
    """
    context, wall = settings.server_context(), time.time  # noqa: TID251  # the clock
    tally, lag = Tally(), LoopLag()
    async with AsyncExitStack() as stack:
        supervisor = await stack.enter_async_context(Supervisor.running())
        supervisor.start(lag.watch, name="loop_lag")
        shelf = Shelf(settings.sources, settings.rulebook)
        supervisor.start(shelf.watch, name="rulebook")
        upstreams = _upstreams(settings, shelf)
        bus = await stack.enter_async_context(Fanout.running(_bus(settings), clock=wall))
        bus.on_orphan = lambda tombstone: tally.end_orphan(tombstone.why)
        accounting = await stack.enter_async_context(
            Accounting.running(bus.accounts, settings, tally, wall, supervisor)
        )
        calls: Lives[Session] = await stack.enter_async_context(Lives.running())
        side_legs: Lives[SideLeg] = await stack.enter_async_context(Lives.running())
        revoked = Revoked(bus.accounts, partial(_check_tokens, calls, side_legs))
        supervisor.start(revoked.watch, name="revocations")
        gate, jwks = _gate(settings, shelf, revoked, supervisor)
        draining = Draining(settings, calls, side_legs, wall=wall)
        sizes = {"write_bytes": settings.write_buffer_bytes, "socket_bytes": settings.socket_buffer_bytes}
        spares = await stack.enter_async_context(Spares.running(upstreams, settings.upstream_spares, **sizes))
        state = _State(settings, calls, side_legs, draining, spares)
        pulse = stack.enter_context(Pulse(asyncio.get_running_loop()).beating())
        pulse.on_stop = partial(_doubt, calls)
        services = Services(
            settings, upstreams, bus, tally, wall, pulse, shelf.current, gate, accounting, revoked, spares
        )
        front = Front(settings, answer_refusal)
        public = Api(services, calls, side_legs, lambda: state.health.accepts_calls, front).make_app()
        parts = Parts(state, tally, lag, supervisor, bus, draining, front, shelf, accounting, revoked, jwks)
        status = partial(state.status, bus, lag, shelf)
        ops = make_app(health=lambda: state.health, metrics=make_metrics(parts), status=status, drain=state.drain)
        url = await _listen_to_all(stack, public, front, settings, context)
        state.ready()  # before anybody can ask for a drain
        ops_url = await _listen_to_operators(stack, ops, settings)
        await stack.enter_async_context(draining.running())
        stack.callback(state.hurry)
        log.info("node_ready", node=settings.node, region=settings.region, url=url, ops_url=ops_url)
        yield Node(url, ops_url, state.drain, state.hurry, draining.wait_over, shelf.ask)


def _doubt(calls: Lives[Session]) -> None:
    """This node stood still: its calls may be somebody else's by now."""
    for call in calls.all():
        call.doubt()


def _check_tokens(calls: Lives[Session], side_legs: Lives[SideLeg]) -> None:
    """Some token has been revoked."""
    for call in calls.all():
        call.check_token()
    for side in side_legs.all():
        side.check_token()


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

    def status(self, bus: Fanout, lag: LoopLag, shelf: Shelf) -> dict[str, Any]:
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
            "rulebook": {"stale": shelf.is_stale, **shelf.outcomes},
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


def _upstreams(settings: Settings, shelf: Shelf) -> Upstreams:
    return Upstreams(
        lambda: shelf.current().upstreams,
        dial_seconds=settings.dial_seconds,
        max_message=settings.max_message_bytes,
        context=settings.upstream_context(),
        user_agent=f"relay-fleet/{release()}",
    )


def _gate(settings: Settings, shelf: Shelf, revoked: Revoked, supervisor: Supervisor) -> tuple[Gatekeeper, Jwks | None]:
    jwks = Jwks(settings.jwks_url) if settings.jwks_url else None
    if jwks is not None:
        supervisor.start(jwks.watch, name="jwks")
    gate = Gatekeeper(
        lambda: shelf.current().jwt_secrets,
        jwks,
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        is_revoked=revoked.has,
    )
    return gate, jwks


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
        usage_days=settings.usage_days,
    )


async def _listen_to_all(
    stack: AsyncExitStack, app: web.Application, front: Front, settings: Settings, context: ssl.SSLContext | None
) -> str:
    """Open the public port; returns its URL."""
    sock = _bind(settings.host, settings.port)
    # Accepted sockets inherit it, before their window is offered.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, settings.socket_buffer_bytes)
    runner = await _set_up(stack, app)
    await stack.enter_async_context(listening(front, runner, sock, context))
    return _url(sock, "https" if context else "http")


async def _listen_to_operators(stack: AsyncExitStack, app: web.Application, settings: Settings) -> str:
    """Open the operations port; returns its URL."""
    sock = _bind(settings.ops_host, settings.ops_port)
    runner = await _set_up(stack, app)
    await web.SockSite(runner, sock).start()
    return _url(sock, "http")


async def _set_up(stack: AsyncExitStack, app: web.Application) -> web.AppRunner:
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.5)
    stack.push_async_callback(runner.cleanup)
    await runner.setup()
    return runner


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None


def _url(sock: socket.socket, scheme: str) -> str:
    bound = sock.getsockname()
    name = f"[{bound[0]}]" if sock.family == socket.AF_INET6 else bound[0]
    return f"{scheme}://{name}:{bound[1]}"
