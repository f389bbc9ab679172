"""The one connection that carries this node's subscriptions in one Redis, and the one task that owns it.

It reads, hands over and never waits for anything else. Every loss of the connection is taken to mean that messages were
lost: the acknowledgement of each channel on the next one tells its owner to read the stream.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Any

from fanout.core.subscriptions import Subscriptions
from fanout.link import REDIS_TROUBLE, Connection, Link
from fanout.settings import BusSettings
from fanout.tasks import Backoff

_CHANNELS_PER_COMMAND = 500  # bounds the server's and our time on one command
_MESSAGES_PER_TURN = 32  # then the loop, and with it the audio, gets its turn


class Subscriber:
    """Carries the wanted channels, over every loss of the connection, until the node stops."""

    def __init__(
        self,
        link: Link,
        settings: BusSettings,
        *,
        on_message: Callable[[str, bytes], None],
        on_subscribed: Callable[[str], None],
    ) -> None:
        self._link = link
        self._settings = settings
        self._on_message = on_message
        self._on_subscribed = on_subscribed
        self._subscriptions = Subscriptions()
        self._read_scope: asyncio.Timeout | None = None
        self._heard_at = 0.0
        self._is_silent = False
        self.connects = 0
        self.messages = 0

    @property
    def wanted(self) -> int:
        """How many channels should be carried."""
        return self._subscriptions.wanted

    @property
    def held(self) -> int:
        """How many the server has acknowledged."""
        return self._subscriptions.held

    def holds(self, channel: str) -> bool:
        """Whether the server has acknowledged this channel on the present connection."""
        return self._subscriptions.holds(channel)

    def want(self, channel: str) -> None:
        """Carry this channel from now on."""
        self._subscriptions.want(channel)
        self._interrupt_read()

    def unwant(self, channel: str) -> None:
        """Stop carrying this channel."""
        self._subscriptions.unwant(channel)
        self._interrupt_read()

    def check_silence(self) -> None:
        """Drop a connection on which not even our own heartbeat came back: TCP doesn't notice a frozen server."""
        if self._read_scope is not None:
            silent_for = asyncio.get_running_loop().time() - self._heard_at
            if silent_for > self._settings.silence_seconds:
                self._is_silent = True
                self._interrupt_read()

    async def work(self) -> None:
        """Connect, carry, and again; never returns."""
        backoff = Backoff(self._settings.backoff_seconds, self._settings.backoff_max_seconds)
        while True:
            connection = self._link.new_connection()
            try:
                async with asyncio.timeout(self._settings.socket_timeout):
                    await connection.connect()  # type: ignore[no-untyped-call]
                self.connects += 1
                await self._carry(connection, backoff)
            except REDIS_TROUBLE as exc:
                self._link.unreachable(exc)
            finally:
                self._read_scope = None
                self._subscriptions.on_connection_lost()
                await connection.disconnect(nowait=True)
            await backoff.wait()

    async def _carry(self, connection: Connection, backoff: Backoff) -> None:
        self._is_silent = False
        self._heard_at = asyncio.get_running_loop().time()
        while True:
            await self._send_wishes(connection)
            try:
                # No deadline of its own: want() and check_silence() set one that is over, to end the read from outside.
                # Bytes that came in meanwhile stay in the stream's buffer.
                async with asyncio.timeout(None) as self._read_scope:
                    await self._read_until_wishes(connection, backoff)
            except TimeoutError:
                if self._is_silent:
                    raise
            finally:
                self._read_scope = None

    async def _send_wishes(self, connection: Connection) -> None:
        async with asyncio.timeout(self._settings.socket_timeout):
            while diff := self._subscriptions.take(_CHANNELS_PER_COMMAND):
                if diff.unsubscribe:
                    await connection.send_command("UNSUBSCRIBE", *diff.unsubscribe)
                if diff.subscribe:
                    await connection.send_command("SUBSCRIBE", *diff.subscribe)

    async def _read_until_wishes(self, connection: Connection, backoff: Backoff) -> None:
        loop = asyncio.get_running_loop()
        read = 0
        while self._subscriptions.is_settled:
            response = await connection.read_response(timeout=math.inf, disconnect_on_error=False)
            self._heard_at = loop.time()
            backoff.reset()
            self._on_response(response)
            read += 1
            if read % _MESSAGES_PER_TURN == 0:
                await asyncio.sleep(0)

    def _on_response(self, response: Any) -> None:
        match response:
            case [b"message", bytes(channel), bytes(data)]:
                self.messages += 1
                self._on_message(channel.decode(), data)
            case [b"subscribe", bytes(channel), _]:
                name = channel.decode()
                if self._subscriptions.on_subscribed(name):
                    self._on_subscribed(name)
            case [b"unsubscribe", bytes(channel), _]:
                self._subscriptions.on_unsubscribed(channel.decode())
            case _:
                pass

    def _interrupt_read(self) -> None:
        if self._read_scope is not None and not self._read_scope.expired():
            self._read_scope.reschedule(asyncio.get_running_loop().time())
