"""New connections to a home's servers and sentinels. Decides how they are opened and what a primary must say.

redis-py connects: addresses, TLS, AUTH, SELECT. Its own retries, health check and socket timeout are off: when to
repeat is our decision; the health check never leaves a dead Sentinel master; and the timeout of a send is
asyncio.wait_for, which before Python 3.12 can swallow a cancellation, and then the node would never stop (seen).
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from fanout.core.topology import Address
from fanout.redis.target import Target
from fanout.redis.trouble import ConnectionLost, NotPrimary


class Dialler:
    """Opens connections as the URL says."""

    def __init__(self, target: Target, *, timeout: float) -> None:
        self.target = target
        self._timeout = timeout

    @asynccontextmanager
    async def primary(self, address: Address) -> AsyncIterator[tuple[AbstractConnection, str]]:
        """A connection to a primary, and the run id of its process. Raises NotPrimary, and what redis-py raises."""
        async with self._connected(address) as connection:
            async with asyncio.timeout(self._timeout):
                run_id = await _greet(connection)
            yield connection, run_id

    async def ask(self, address: Address, *commands: tuple[str, ...], is_sentinel: bool = False) -> list[Any]:
        """Answers of a server, or a sentinel, on a connection of their own. Raises what redis-py raises."""
        async with self._connected(address, is_sentinel=is_sentinel) as connection, asyncio.timeout(self._timeout):
            for command in commands:
                await write(connection, *command)
            return [await read(connection) for _ in commands]

    async def listen(self, sentinel: Address, channels: tuple[str, ...], on_message: Callable[[], None]) -> NoReturn:
        """Calls for each message on a sentinel's channels, and at first. Raises what redis-py raises."""
        async with self._connected(sentinel, is_sentinel=True) as connection:
            async with asyncio.timeout(self._timeout):
                await write(connection, "SUBSCRIBE", *channels)
            while True:
                await read(connection)
                on_message()

    @asynccontextmanager
    async def _connected(self, address: Address, *, is_sentinel: bool = False) -> AsyncIterator[AbstractConnection]:
        target = self.target
        options: dict[str, Any] = {
            "host": address.host,
            "port": address.port,
            "db": 0 if is_sentinel else target.db,
            "username": target.sentinel_username if is_sentinel else target.username,
            "password": target.sentinel_password if is_sentinel else target.password,
            "socket_timeout": None,
            "socket_connect_timeout": self._timeout,
            "health_check_interval": 0,
            "protocol": 2,  # a third less CPU per published message than 3, and a round trip less to connect
            "driver_info": None,
            "retry": Retry(NoBackoff(), 0),
        }
        connection = Connection(**options) if target.tls is None else SSLConnection(**options, **target.tls)
        try:
            async with asyncio.timeout(self._timeout):
                await connection.connect()  # type: ignore[no-untyped-call]
            yield connection
        finally:
            await connection.disconnect(nowait=True)


async def read(connection: AbstractConnection) -> Any:
    """The next answer or message, however long it takes. Raises error answers, and what redis-py raises."""
    return await connection.read_response(timeout=math.inf, disconnect_on_error=False)


async def write(connection: AbstractConnection, *command: str) -> None:
    """Send a command. Raises what redis-py raises; ConnectionLost where uvloop finds that the transport was closed."""
    try:
        await connection.send_command(*command)
    except RuntimeError as exc:
        raise ConnectionLost(str(exc)) from exc


async def _greet(connection: AbstractConnection) -> str:
    await write(connection, "INFO", "server", "replication")
    lines = bytes(await read(connection)).decode().splitlines()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    if facts.get("role") != "master":
        raise NotPrimary(f"the server is a {facts.get('role', 'stranger')}")
    return facts["run_id"]
