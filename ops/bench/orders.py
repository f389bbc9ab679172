"""A peer's life: a JSON line on stdin asks, a JSON line on stdout answers; at the end of stdin it ends."""

import asyncio
import fcntl
import gc
import inspect
import json
import logging
import os
import resource
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final

import uvloop

_FILES: Final = 8192  # more than any measurement opens

Order = Callable[..., Any]  # called with the order's fields; gives what JSON can say, or an awaitable of it


def run_peer(
    make: Callable[[], Iterable[Order]],
    new_loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop,
) -> None:
    """Run a peer; `make` is called on its loop and gives its orders, which are known by their names.

    Pauses of the peer's own would be read as the bridge's: so no garbage is collected, and the kernel's table of open
    files has its size from the start (its growth stops a process with threads for ten milliseconds and more).
    """
    gc.disable()
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(fcntl.fcntl(sys.stdin.fileno(), fcntl.F_DUPFD, min(_FILES, most) - 1))
    logging.getLogger("picows").setLevel(logging.ERROR)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(_take_orders(make))


async def _take_orders(make: Callable[[], Iterable[Order]]) -> None:
    """Carry out one order after the other until stdin ends."""
    orders = {order.__name__: order for order in make()}
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async for line in reader:
        order = json.loads(line)
        answer = orders[order["do"]](**order["with"])
        if inspect.isawaitable(answer):
            answer = await answer
        print(json.dumps(answer), flush=True)
