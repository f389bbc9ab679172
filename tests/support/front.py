"""One address before several nodes, as a load balancer has it: passes bytes on, to a node that says it is ready."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self
from urllib.parse import urlsplit

from tests.support.doors import Doors

_READ_BYTES = 65_536


class Front:
    """Each connection goes to one node, chosen when it comes, and stays there."""

    def __init__(self, doors: Doors) -> None:
        """Args: doors: choose the nodes."""
        self._doors = doors
        self._writers: set[asyncio.StreamWriter] = set()
        self.url = ""

    @classmethod
    @asynccontextmanager
    async def running(cls, doors: Doors) -> AsyncIterator[Self]:
        """Listen for the length of the block."""
        front = cls(doors)
        server = await asyncio.start_server(front._pass_on, "127.0.0.1", 0)
        front.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield front
        finally:
            front.cut()
            server.close()
            await server.wait_closed()

    def cut(self) -> None:
        """Take all connections away, on both sides, without a word."""
        for writer in self._writers:
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        url = await self._doors.choose()
        if url is None:
            writer.transport.abort()
            return
        place = urlsplit(url)
        to_node = await asyncio.open_connection(place.hostname, place.port)
        self._writers |= {writer, to_node[1]}
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_copy(reader, to_node[1]))
                tasks.create_task(_copy(to_node[0], writer))
        finally:
            self._writers -= {writer, to_node[1]}


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Until either side is gone; then the other learns of it."""
    with contextlib.suppress(ConnectionError):
        while data := await source.read(_READ_BYTES):
            target.write(data)
            await target.drain()
    target.close()
