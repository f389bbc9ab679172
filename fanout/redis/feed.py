"""The one connection that carries this node's channels of one primary, and the one task that owns it.

Sharded channels on every kind of Redis: one mechanism. It reads, hands over and never waits for anything else. Every
loss of the connection is taken to mean that messages were lost: the acknowledgement of each channel on the next one
tells its owner to read the stream.
"""

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

from fanout.core.partitions import tag_in
from fanout.core.subscriptions import Subscriptions
from fanout.core.topology import Address
from fanout.redis.dial import Dialler, read, write
from fanout.redis.trouble import REDIS_TROUBLE, Trouble
from fanout.settings import BusSettings
from fanout.tasks import Backoff

_CHANNELS_PER_COMMAND = 500  # bounds the server's time on one command
_CHANNELS_PER_TURN = 1500  # and our own, some milliseconds; what shares a tag goes together
_MESSAGES_PER_TURN = 32  # then the loop, and with it the audio, gets its turn


class Ear(Protocol):
    """What a feed tells; each returns at once and never raises."""

    def on_message(self, channel: str, data: bytes) -> None:
        """A message came."""

    def on_subscribed(self, channel: str) -> None:
        """The server carries a channel that is wanted."""

    def on_connected(self, address: Address, run_id: str) -> None:
        """The process at the other end of a new connection."""

    def on_deaf(self, channels: list[str], since: float) -> None:
        """These were carried and are not any more; nothing of them was heard since then."""

    def on_refused(self) -> None:
        """The server no longer serves, or never did, what it was asked for: find out who does."""


class Feed:
    """Carries the wanted channels, over every loss of the connection, until its task ends."""

    def __init__(self, dialler: Dialler, address: Address, settings: BusSettings, trouble: Trouble, ear: Ear) -> None:
        self._dialler = dialler
        self._address = address
        self._place = f"{address} feed"
        self._settings = settings
        self._trouble = trouble
        self._ear = ear
        self._subscriptions = Subscriptions()
        self._read_scope: asyncio.Timeout | None = None
        self._heard_at = 0.0
        self._is_silent = False
        self.is_connected = False
        self.connects = 0

    @property
    def held(self) -> int:
        """How many channels the server has acknowledged."""
        return self._subscriptions.held

    def holds(self, channel: str) -> bool:
        """Whether the server has acknowledged this channel on the present connection."""
        return self._subscriptions.holds(channel)

    def want(self, channels: Iterable[str]) -> None:
        """Carry these from now on."""
        for channel in channels:
            self._subscriptions.want(channel)
        self._interrupt_read()

    def unwant(self, channel: str) -> None:
        """Stop carrying this channel."""
        self._subscriptions.unwant(channel)
        self._interrupt_read()

    def forget(self, channels: Iterable[str]) -> None:
        """Another server carries these now."""
        for channel in channels:
            self._subscriptions.forget(channel)

    def renew(self, channel: str) -> None:
        """Subscribe to it once more."""
        self._subscriptions.renew(channel)
        self._interrupt_read()

    def retry(self) -> None:
        """Ask again for what the server refused: it is known now that this is the right one."""
        if self.is_connected and self._subscriptions.retry():
            self._interrupt_read()

    def check_silence(self) -> None:
        """Drop a connection on which not even our own heartbeat came back: TCP doesn't notice a frozen server."""
        if self._read_scope is not None and self._subscriptions.wanted:
            silent_for = asyncio.get_running_loop().time() - self._heard_at
            if silent_for > self._settings.silence_seconds:
                self._is_silent = True
                self._interrupt_read()

    async def work(self) -> None:
        """Connect, carry, and again; never returns."""
        backoff = Backoff(self._settings.backoff_seconds, self._settings.backoff_max_seconds)
        while True:
            try:
                async with self._dialler.primary(self._address) as (connection, run_id):
                    self.connects += 1
                    self.is_connected = True
                    self._ear.on_connected(self._address, run_id)
                    await self._carry(connection, backoff)
            except REDIS_TROUBLE as exc:
                self._trouble.report(self._place, exc)
            finally:
                self._on_lost()
            self._ear.on_refused()
            await backoff.wait()

    def _on_lost(self) -> None:
        self.is_connected = False
        self._read_scope = None
        since = self._heard_at if self._is_silent else asyncio.get_running_loop().time()
        self._is_silent = False
        carried = self._subscriptions.carried()
        self._subscriptions.on_connection_lost()
        if carried:
            self._ear.on_deaf(carried, since)

    async def _carry(self, connection: AbstractConnection, backoff: Backoff) -> None:
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
                    raise TimeoutError("nothing heard, not even the node's own heartbeat") from None
            finally:
                self._read_scope = None

    async def _send_wishes(self, connection: AbstractConnection) -> None:
        while not self._subscriptions.is_settled:
            diff = self._subscriptions.take(_CHANNELS_PER_TURN)
            async with asyncio.timeout(self._settings.socket_timeout):  # of one turn: new wishes may come all the time
                for verb, channels in (("SUNSUBSCRIBE", diff.unsubscribe), ("SSUBSCRIBE", diff.subscribe)):
                    for group in _groups(channels):
                        await write(connection, verb, *group)
            await asyncio.sleep(0)

    async def _read_until_wishes(self, connection: AbstractConnection, backoff: Backoff) -> None:
        loop = asyncio.get_running_loop()
        count = 0
        while self._subscriptions.is_settled:
            try:
                response = await read(connection)
            except ResponseError as exc:
                self._trouble.report(self._place, exc)
                self._subscriptions.on_refused()
                self._ear.on_refused()
                continue
            self._heard_at = loop.time()
            backoff.reset()
            self._on_response(response)
            count += 1
            if count % _MESSAGES_PER_TURN == 0:
                await asyncio.sleep(0)

    def _on_response(self, response: Any) -> None:
        match response:
            case [b"smessage", bytes(channel), bytes(data)]:
                self._ear.on_message(channel.decode(), data)
            case [b"ssubscribe", bytes(channel), _]:
                name = channel.decode()
                self._trouble.worked(self._place)
                if self._subscriptions.on_subscribed(name):
                    self._ear.on_subscribed(name)
            case [b"sunsubscribe", bytes(channel), _]:
                name = channel.decode()
                if self._subscriptions.on_unsubscribed(name):
                    self._ear.on_deaf([name], self._heard_at)
                    self._ear.on_refused()
            case _:
                pass

    def _interrupt_read(self) -> None:
        if self._read_scope is not None and not self._read_scope.expired():
            self._read_scope.reschedule(asyncio.get_running_loop().time())


def _groups(channels: list[str]) -> Iterator[list[str]]:
    """A cluster takes channels of one slot per command; what shares a tag shares a slot."""
    by_tag: dict[str, list[str]] = {}
    for channel in channels:
        by_tag.setdefault(tag_in(channel), []).append(channel)
    for group in by_tag.values():
        for start in range(0, len(group), _CHANNELS_PER_COMMAND):
            yield group[start : start + _CHANNELS_PER_COMMAND]
