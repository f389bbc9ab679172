"""Streams of a call's events to those without a socket of their own: written, kept awake, ended. Owns no decision.

A stream costs a watch and what ``relay.api.sse.Feed`` may hold. It ends when its call does, when its reader is gone or
takes nothing, and when the node drains: the reader then goes on at another node, from its position.
"""

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

from fanout import FanoutError, LogEntry, WatchEnd
from relay.api.binding import Asked
from relay.api.refusals import bus_refusal, unavailable
from relay.api.schema import StreamHeaders, StreamQuery
from relay.api.sse import COMMENT, GREETING, Feed
from relay.call import Services

_COMMENT_SECONDS: Final = 15.0  # proxies cut what is silent for a minute
_LOOK_SECONDS: Final = 1.0
_PIECE_BYTES: Final = 64 * 1024  # each has the time of a stall: a slow reader that takes something is healthy
_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}


class _Stream:
    """One reader."""

    def __init__(self, asked: Asked[StreamQuery, StreamHeaders, None], after: str | None) -> None:
        self.request = asked.request
        self.caller = asked.caller
        self.feed = Feed(asked.call_id, resumed=after is not None)
        self.wake = asyncio.Event()

    def on_entry(self, entry: LogEntry) -> None:
        self.feed.add(entry)
        self.wake.set()

    def on_end(self, end: WatchEnd) -> None:
        self.feed.end(end)
        self.wake.set()

    def close(self) -> None:
        self.feed.close()
        self.wake.set()

    @property
    def is_gone(self) -> bool:
        """Whether the reader has left; aiohttp doesn't tell a handler that writes nothing."""
        transport = self.request.transport
        return transport is None or transport.is_closing()


class Streams:
    """All streams of one node."""

    def __init__(self, services: Services, accepting: Callable[[], bool]) -> None:
        self._services = services
        self._accepting = accepting
        self._open: set[_Stream] = set()
        self._look: asyncio.TimerHandle | None = None

    async def watch_events(self, asked: Asked[StreamQuery, StreamHeaders, None]) -> web.StreamResponse:
        """``GET …/events``: the call's events, until it ends."""
        if not self._accepting():
            raise unavailable("node_draining", "This node is shutting down: connect again.")
        after = asked.headers.last_event_id or asked.query.after or None
        stream, bus = _Stream(asked, after), self._services.bus
        response = web.StreamResponse(headers=_HEADERS)
        try:
            async with bus.watch(asked.call_id, asked.caller.tenant, stream.on_entry, after=after) as watch:
                stream.feed.begin(watch.session, f"event_{secrets.token_hex(10)}", watch.position)
                async with self._listed(stream), asyncio.TaskGroup() as tasks:
                    ending = tasks.create_task(_tell_end(watch.wait_ended, stream))
                    await self._write(stream, response)
                    ending.cancel()
        except FanoutError as error:
            raise bus_refusal(error) from None
        return response

    async def _write(self, stream: _Stream, response: web.StreamResponse) -> None:
        """Until all is sent, or the reader is gone or takes nothing."""
        try:
            await response.prepare(stream.request)
            self._bound(stream)
            await self._send(response, GREETING)
            stream.wake.set()
            while not stream.is_gone:
                try:
                    async with asyncio.timeout(_COMMENT_SECONDS):
                        await stream.wake.wait()
                except TimeoutError:
                    await self._send(response, COMMENT)
                    continue
                stream.wake.clear()
                is_last = stream.feed.is_closed
                await self._send(response, stream.feed.take())
                if is_last:
                    await self._finish(response)
                    return
        except ConnectionError:
            return  # the reader is gone
        except TimeoutError:  # it takes nothing: there is no way to tell it
            if stream.request.transport is not None:
                stream.request.transport.abort()

    def _bound(self, stream: _Stream) -> None:
        """Let the kernel hold no more for a reader than for a client."""
        transport = stream.request.transport
        sock = transport.get_extra_info("socket") if transport is not None else None
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._services.settings.socket_buffer_bytes)

    async def _send(self, response: web.StreamResponse, data: bytes) -> None:
        for start in range(0, len(data), _PIECE_BYTES):
            async with asyncio.timeout(self._services.settings.stall_seconds):
                await response.write(data[start : start + _PIECE_BYTES])

    async def _finish(self, response: web.StreamResponse) -> None:
        async with asyncio.timeout(self._services.settings.stall_seconds):
            await response.write_eof()

    # Readers that left, and the node's drain, are looked for; nothing announces them

    @asynccontextmanager
    async def _listed(self, stream: _Stream) -> AsyncIterator[None]:
        self._open.add(stream)
        if self._look is None:
            self._plan()
        try:
            yield
        finally:
            self._open.discard(stream)

    def _plan(self) -> None:
        self._look = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._on_look)

    def _on_look(self) -> None:
        self._look = None
        for stream in self._open:
            if not self._accepting() or self._services.revoked.has(stream.caller.tenant, stream.caller.jti):
                stream.close()
            elif stream.is_gone:
                stream.wake.set()
        if self._open:
            self._plan()

    async def on_shutdown(self, _: web.Application) -> None:
        """End them all, since the node's port closes."""
        for stream in self._open:
            stream.close()


async def _tell_end(wait_ended: Callable[[], Awaitable[WatchEnd]], stream: _Stream) -> None:
    stream.on_end(await wait_ended())
