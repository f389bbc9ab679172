"""The public port's socket: accepts, does TLS handshakes, and has every connection looked at in time.

aiofastnet's own server does not say who connects before it has done the handshake, and spins when descriptors run out.
Whether somebody may connect is asked of ``relay.front``.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog
from aiohttp import web

from relay.front import Front, Guest
from relay.handoff import take

_ACCEPTS: Final = 128  # a turn of the loop: those who talk come before those who knock
_LOOK_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 1.0  # where the system has no descriptor for another connection

log = structlog.get_logger("relay")


@asynccontextmanager
async def listening(
    front: Front, runner: web.AppRunner, sock: socket.socket, context: ssl.SSLContext | None
) -> AsyncIterator[None]:
    """Let the application of ``runner`` answer what connects to a listening socket; the end of the block closes it.

    Connections that are there stay: they are the runner's, or whose they were handed off to.
    """
    server = runner.server
    if server is None:
        raise RuntimeError("the runner was not set up")
    async with asyncio.TaskGroup() as tasks:
        port = _Port(front, server, sock, context, tasks)
        port.open()
        try:
            yield
        finally:
            port.close()


class _Port:
    """A listening socket: accepts, does TLS handshakes, and looks after the connections."""

    def __init__(
        self,
        front: Front,
        server: web.Server,
        sock: socket.socket,
        context: ssl.SSLContext | None,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._front = front
        self._server = server
        self._sock = sock
        self._context = context
        self._look_seconds = min(_LOOK_SECONDS, front.handshake_seconds / 4)
        self._tasks = tasks
        self._greetings: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def open(self) -> None:
        self._sock.setblocking(False)
        self._listen()
        self._on_look()

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()
        for greeting in self._greetings:
            greeting.cancel()

    def _listen(self) -> None:
        self._loop.add_reader(self._sock, self._on_knock)

    def _on_knock(self) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, peer = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:  # no descriptor is left: those who knock wait in the kernel's queue
                log.error("accept_failed", error=error.strerror)  # noqa: TRY400  # it has no traceback worth reading
                self._loop.remove_reader(self._sock)
                self._timers["listen"] = self._loop.call_later(_RETRY_SECONDS, self._listen)
                return
            guest = self._front.meet(peer[0])
            if guest is None:
                sock.close()
                continue
            sock.setblocking(False)
            greeting = self._tasks.create_task(self._greet(sock, guest))
            self._greetings.add(greeting)
            greeting.add_done_callback(self._greetings.discard)

    async def _greet(self, sock: socket.socket, guest: Guest) -> None:
        door = self._front.make_door(self._server, guest)
        try:
            await take(sock, lambda: door, self._context, self._front.handshake_seconds)
        except OSError:  # TLS errors are some
            sock.close()
        except Exception:
            log.exception("handshake_failed")  # a bug of ours, which must not close the port
            sock.close()
        finally:
            if not door.was_connected:
                self._front.part(door)

    def _on_look(self) -> None:
        self._front.look()
        self._timers["look"] = self._loop.call_later(self._look_seconds, self._on_look)
