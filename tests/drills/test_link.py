"""The drills' own link between regions: it delays, and when it is cut it says nothing to anybody."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import cast

import pytest

from tests.drills.link import Link

DELAY = 0.03
TICK = 0.002  # the loop's clock goes in milliseconds


class Echo(asyncio.Protocol):
    """Sends back what it gets."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


@asynccontextmanager
async def linked_echo() -> AsyncIterator[Link]:
    """A link to a server that sends back what it gets."""
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    async with server, asyncio.TaskGroup() as tasks:
        link = Link(server.sockets[0].getsockname()[:2], DELAY)
        serving = tasks.create_task(link.serve())
        yield link
        serving.cancel()


@asynccontextmanager
async def connected(link: Link) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client's connection over the link."""
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def test_each_way_over_the_link_takes_its_delay():
    """A region's messages to another meet it twice: there, and for the answer."""
    async with linked_echo() as link, connected(link) as (reader, writer):
        began = time.monotonic()
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        assert 2 * DELAY - TICK <= time.monotonic() - began < 2 * DELAY + 0.2


async def test_a_cut_link_is_silent_and_gives_back_everything_when_healed():
    """No byte, no end and no refusal passes a cut; both sides only find out by their own clocks."""
    async with linked_echo() as link, connected(link) as (reader, writer):
        writer.write(b"1")
        assert await reader.readexactly(1) == b"1"
        link.cut()
        writer.write(b"2")
        async with connected(link) as (new_reader, new_writer):
            new_writer.write(b"3")
            for each in (reader, new_reader):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await each.read(1)
            link.heal()
            assert await reader.readexactly(1) == b"2"
            assert await new_reader.readexactly(1) == b"3"


async def test_the_end_of_a_side_reaches_the_other():
    """Also through the link: a killed Redis closes its clients' connections."""
    async with linked_echo() as link, connected(link) as (reader, writer):
        writer.write_eof()
        assert await reader.read() == b""


async def test_more_than_the_link_may_hold_passes_in_order():
    """The sender is paused, nothing is dropped."""
    async with linked_echo() as link, connected(link) as (reader, writer):
        sent = b"".join(number.to_bytes(4) for number in range(3_000_000))
        writer.write(sent)
        assert await reader.readexactly(len(sent)) == sent


async def test_where_the_target_refuses_the_client_is_closed():
    """As it would be without the link."""
    async with asyncio.TaskGroup() as tasks:
        link = Link(("127.0.0.1", 1), DELAY)
        serving = tasks.create_task(link.serve())
        async with connected(link) as (reader, _):
            assert await reader.read() == b""
        serving.cancel()
