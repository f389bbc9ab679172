"""A TCP link between regions with a delay, which can be cut as a network is cut: silently, for both sides.

While it is cut it neither reads, writes, accepts nor closes; what was under way waits, and goes on after the healing.
A connection that is opened over the link costs no round trip of its own, unlike a real one.
"""

import asyncio
import contextlib
import socket
from collections import deque
from typing import Final, Self, cast

_HELD_BYTES: Final = 4 << 20  # of each direction of a connection; beyond it the sender is not read


class Link:
    """Listens on a port of its own and connects each client with the target."""

    def __init__(self, target: tuple[str, int], delay_seconds: float) -> None:
        self.delay_seconds = delay_seconds
        self._target = target
        self._whole = asyncio.Event()
        self._whole.set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.setblocking(False)
        self._ends: set[_End] = set()

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def is_cut(self) -> bool:
        """Whether nothing passes."""
        return not self._whole.is_set()

    def cut(self) -> None:
        """Let nothing pass from now on."""
        self._whole.clear()
        for end in self._ends:
            end.look()

    def heal(self) -> None:
        """Let everything pass again, what waited first."""
        self._whole.set()
        for end in tuple(self._ends):
            end.look()

    async def serve(self) -> None:
        """Accept connections until cancelled, then drop them all."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    await self._whole.wait()
                    client, _ = await loop.sock_accept(self._listener)
                    tasks.create_task(self._join(client))
        finally:
            self._listener.close()
            for end in tuple(self._ends):
                end.abort()

    async def _join(self, client: socket.socket) -> None:
        """Connect a client with the target; where the target refuses, the client is closed."""
        loop = asyncio.get_running_loop()
        near, far = _End(self), _End(self)
        near.peer, far.peer = far, near
        try:
            await self._whole.wait()
            await loop.create_connection(lambda: far, *self._target)
        except OSError:
            client.close()
            return
        except asyncio.CancelledError:
            client.close()
            raise
        with contextlib.suppress(OSError):
            await loop.connect_accepted_socket(lambda: near, client)

    def add(self, end: "_End") -> None:
        """Note a connection's end, to be told when the link is cut or healed."""
        self._ends.add(end)

    def drop(self, end: "_End") -> None:
        """Forget it."""
        self._ends.discard(end)


class _End(asyncio.Protocol):
    """One side of a connection; holds what is on its way to this side."""

    peer: Self

    def __init__(self, link: Link) -> None:
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._coming: deque[tuple[float, bytes | None]] = deque()  # when due, what; None: the other side is gone
        self._held = 0
        self._timer: asyncio.TimerHandle | None = None
        self._can_write = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """This side is there; what came for it before is written."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._link.add(self)
        self.look()

    def data_received(self, data: bytes) -> None:
        """Send it on its way to the other side."""
        self.peer.take(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the other side, as late as everything else."""
        self._transport = None
        self._link.drop(self)
        self._coming.clear()
        self.peer.take(None)

    def pause_writing(self) -> None:
        """The kernel takes no more."""
        self._can_write = False

    def resume_writing(self) -> None:
        """It takes some again."""
        self._can_write = True
        self.look()

    def take(self, data: bytes | None) -> None:
        """Hold what the other side sent until it is due."""
        self._coming.append((self._loop.time() + self._link.delay_seconds, data))
        self._held += len(data or b"")
        self.look()

    def look(self) -> None:
        """Write what is due, and read only while there is room and the link is whole."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._loop.time()
        while self._coming and self._can_write and not self._link.is_cut and self._transport is not None:
            due, data = self._coming[0]
            if due > now:
                self._timer = self._loop.call_at(due, self.look)
                break
            self._coming.popleft()
            if data is None:
                self._transport.close()
                break
            self._held -= len(data)
            self._transport.write(data)
        self._throttle()
        self.peer._throttle()

    def abort(self) -> None:
        """Drop this side at once."""
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()

    def _throttle(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._link.is_cut or self.peer._held > _HELD_BYTES:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()
