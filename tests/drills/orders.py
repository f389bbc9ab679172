"""A child's side of the conversation with the runner: a JSON line on stdin asks, a JSON line on stdout answers."""

import asyncio
import inspect
import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

Order = Callable[..., Any]  # called with the order's fields; gives what JSON can say, or an awaitable of it


async def obey(orders: Iterable[Order]) -> None:
    """Carry out one order after the other, known by their names, until stdin ends."""
    known = {order.__name__: order for order in orders}
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async for line in reader:
        asked = json.loads(line)
        answer = known[asked["do"]](**asked["with"])
        if inspect.isawaitable(answer):
            answer = await answer
        print(json.dumps(answer), flush=True)
