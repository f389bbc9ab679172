"""A call whose model is an echo: what the Autobahn WebSocket testsuite is run against, see docs/autobahn.md.

Everything on the client's side is the relay's own: handshake, hand-off, leg, frame rules, and the session's answers to
violations, closes, losses and full buffers. Stood in for are the model and the bus, which no frame of the client meets.
"""

import argparse
import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack, suppress
from typing import Any, Final, cast

import structlog
import uvloop
from aiohttp import web

from fanout import new_call_id
from relay.call import Request, Services
from relay.calls import Lives
from relay.config import MIB, Settings
from relay.core.frames import Opcode
from relay.handoff import BadHandshake, check_upgrade, hand_off
from relay.pulse import Pulse
from relay.session import Session
from relay.tally import Tally
from relay.tokens import Claims
from relay.upstream import Target

MAX_MESSAGE_BYTES: Final = 64 * MIB  # cases 9.* send 16 MiB


class EchoSession(Session):
    """A session that sends each message of its client back to it."""

    def on_client_text(self, message: bytes) -> None:
        """Echo a message."""
        self.client.send(message)

    def on_client_binary(self, payload: bytes) -> None:
        """Echo a binary message."""
        self.client.send(payload, Opcode.BINARY)

    def on_client_blocked(self, blocked: bool) -> None:
        """A leg that cannot be written pauses the reading of its peer: here it is its own peer."""
        if blocked:
            self.client.leg.pause()
        else:
            self.client.leg.resume()


class _NoModel:
    """Stands in for ``Upstreams``: a model that never answers the dial."""

    def known(self, names: Iterable[str]) -> list[str]:
        return list(names)

    order = known

    async def dial(self, *_: object) -> None:
        await asyncio.Event().wait()


class _NoBus:
    """Stands in for ``Fanout`` and for the ``OwnedCall`` that it hands out."""

    def own(self, *_: object) -> "_NoBus":
        return self

    is_watched = is_heard = False

    async def wait_lost(self) -> None:
        await asyncio.Event().wait()

    async def wait_logged(self) -> None:
        """There is no log."""

    def end(self, *_: object) -> None:
        """There is nowhere to write the tombstone."""


class _NoAccounting:
    """Stands in for ``Accounting`` and for the ``Account`` that it hands out: nobody pays."""

    usage = None

    def open(self, *_: object, **__: object) -> "_NoAccounting":
        return self

    def close(self, **_: object) -> None:
        """There is nobody to tell what was used."""


def make_services(settings: Settings) -> Services:
    """What the sessions share; ``settings`` are a node's, with the longest message raised."""
    pulse = Pulse(asyncio.get_running_loop())
    nobody = cast(Any, None)
    return Services(
        settings,
        cast(Any, _NoModel()),
        cast(Any, _NoBus()),
        Tally(),
        time.time,
        pulse,
        rulebook=lambda: settings.rulebook,
        gate=nobody,
        accounting=cast(Any, _NoAccounting()),
        revoked=nobody,
    )


def make_settings() -> Settings:
    """A node's defaults, but for the longest message."""
    return Settings.from_env(
        {
            "RELAY_JWT_SECRET": "-" * 32,  # nothing is signed
            "RELAY_UPSTREAM_URL": "ws://model.invalid",
            "RELAY_MAX_MESSAGE_BYTES": str(MAX_MESSAGE_BYTES),
        }
    )


def make_app(services: Services, calls: Lives[Session]) -> web.Application:
    """An application that upgrades every request."""

    async def upgrade(request: web.Request) -> web.StreamResponse:
        try:
            check_upgrade(request)
        except BadHandshake as bad:
            return web.Response(status=bad.status, text=str(bad))
        settings = services.settings
        call = Request(
            call_id=new_call_id(settings.region),
            tenant="autobahn",
            agent=settings.rulebook.agents["default"],
            plan=settings.rulebook.plans["default"],
            share=1.0,
            claims=Claims("autobahn", frozenset({"call"})),
            target=Target("echo"),
            max_message=settings.max_message_bytes,
        )
        session = EchoSession(services, call)
        leg = session.client.leg
        response = hand_off(request, leg, {}, max_message=call.max_message, on_refused=leg.on_ws_refused)
        calls.start(session)
        return response

    app = web.Application()
    app.router.add_get("/{path:.*}", upgrade)
    return app


async def serve(port: int, on_ready: Callable[[int], None]) -> None:
    """Serve until cancelled; ``on_ready`` gets the port, which the system chose if it was 0."""
    services = make_services(make_settings())
    async with AsyncExitStack() as stack:
        calls: Lives[Session] = await stack.enter_async_context(Lives.running())
        sock = socket.create_server(("127.0.0.1", port), backlog=128)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, services.settings.socket_buffer_bytes)
        runner = web.AppRunner(make_app(services, calls), access_log=None, handle_signals=False)
        stack.push_async_callback(runner.cleanup)
        await runner.setup()
        await web.SockSite(runner, sock).start()
        on_ready(sock.getsockname()[1])
        await asyncio.Event().wait()


def main() -> None:
    """Run the server until it is interrupted."""
    parser = argparse.ArgumentParser(description="Echo through the relay's client leg, for the Autobahn testsuite.")
    parser.add_argument("--port", type=int, default=9001, help="on 127.0.0.1; 0 lets the system choose")
    parser.add_argument("--verbose", action="store_true", help="log each connection's end")
    arguments = parser.parse_args()
    level = logging.INFO if arguments.verbose else logging.WARNING
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))
    with suppress(KeyboardInterrupt):
        uvloop.run(serve(arguments.port, lambda port: print(f"ws://127.0.0.1:{port}", flush=True)))


if __name__ == "__main__":
    main()
