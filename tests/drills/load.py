"""`python -m tests.drills.load`: the callers and the publishers of a drill, all of them in one process."""

import asyncio
import contextlib
import random
from dataclasses import asdict
from typing import Any, Final

import aiohttp
import uvloop

from tests.drills.callers import Caller, Speakers, describe
from tests.drills.orders import obey
from tests.drills.publishers import Desk, Plan, Publisher, Readers, client_timeout, stagger

_BIG_BYTES: Final = 900_000  # of text: what fits into the API's 1 MiB, with room for the envelope
_BIG_PERIODS: Final = 4  # a publisher of big messages sends so many times less often


class Load:
    """What the runner can order."""

    def __init__(self, tasks: asyncio.TaskGroup, stack: contextlib.AsyncExitStack) -> None:
        self._tasks = tasks
        self._stack = stack
        self._callers: list[Caller] = []
        self._nodes: list[dict[str, str]] = []  # name, region, url
        self._running: list[asyncio.Task[None]] = []
        self._hit: dict[str, str] = {}
        self._speakers: Speakers
        self._desk: Desk

    async def open(self, nodes: list[dict[str, str]], calls: int, token: str, frame_ms: int) -> None:
        """Open calls, spread over the nodes, and let their people speak."""
        self._nodes = nodes
        for number in range(calls):
            node = nodes[number % len(nodes)]
            caller = Caller(number, node["name"])
            url = f"{node['url'].replace('http', 'ws', 1)}/v1/realtime?model=sim-{number}"
            await caller.dial(url, {"Authorization": f"Bearer {token}"})
            self._callers.append(caller)
        self._speakers = Speakers(self._callers, frame_ms)
        self._speakers.start()

    async def warm(self, token: str, timeout_ms: int, seconds: float) -> None:
        """Until every node has put a message into a call of every region: a new Redis is not trusted at once."""
        plan = Plan(period_seconds=0.0, timeout_ms=timeout_ms)
        http = aiohttp.ClientSession(timeout=client_timeout(plan), connector=aiohttp.TCPConnector(limit=0))
        self._desk = Desk(await self._stack.enter_async_context(http), {"Authorization": f"Bearer {token}"})
        calls = {_home(caller): caller for caller in self._callers}
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as tasks:
            for caller in calls.values():
                for node in self._nodes:
                    tasks.create_task(self._publisher(plan, caller, node, "warm").run_until_applied())
        self._desk.answers.clear()
        self._desk.longest_answer_ms = 0.0

    async def publish(
        self, rate: float, plan: dict[str, Any], hit: dict[str, str], big_to: str | None, seed: int
    ) -> None:
        """Begin to send so many messages a second to all calls together, through every node to every call.

        `hit` says what the drill breaks: a `region`'s Redis, a `node`, `far` ways, or `all`. Calls on the node `big_to`
        also get messages of about the largest size, each from one publisher more.
        """
        self._hit = hit
        pairs = [(caller, node) for caller in self._callers for node in self._nodes]
        given = Plan(period_seconds=len(pairs) / rate, **plan)
        chance = random.Random(seed)
        chance.shuffle(pairs)
        starts = stagger(len(pairs), given.period_seconds, iter(chance.random, None))
        for (caller, node), first in zip(pairs, starts, strict=True):
            self._start(self._publisher(given, caller, node, self._lane(caller, node)), first)
        rare = Plan(given.period_seconds * _BIG_PERIODS, given.timeout_ms, given.copies)
        listeners = [caller for caller in self._callers if caller.node == big_to]
        for place, caller in enumerate(listeners):
            publisher = self._publisher(rare, caller, self._nodes[-1 - place % 2], "big")
            self._start(publisher, place * rare.period_seconds / len(listeners))

    def _publisher(self, plan: Plan, caller: Caller, node: dict[str, str], lane: str) -> Publisher:
        return Publisher(
            self._desk,
            plan,
            name=f"{node['name']}-{lane}",
            node=node["name"],
            call=caller.number,
            url=_items_url(node, caller),
            lane=lane,
            size=_BIG_BYTES if lane == "big" else 0,
        )

    def _lane(self, caller: Caller, node: dict[str, str]) -> str:
        home = _home(caller)
        is_far = home != node["region"]
        is_hit = (
            self._hit.get("region") == home
            or self._hit.get("node") in {caller.node, node["name"]}
            or ("far" in self._hit and is_far)
            or "all" in self._hit
        )
        return "hit" if is_hit else "far" if is_far else "near"

    def _start(self, publisher: Publisher, first_seconds: float) -> None:
        self._running.append(self._tasks.create_task(publisher.run(first_seconds)))

    async def finish(self, seconds: float) -> int:
        """Send nothing new, and give what is under way so long; returns how many publishers were given up."""
        self._desk.stop.set()
        _, late = await asyncio.wait(self._running, timeout=seconds)
        for task in late:
            task.cancel()
        return len(late)

    async def settle(self, seconds: float) -> int:
        """Read receipts until all are terminal; returns how many are not."""
        places = {node["name"]: place for place, node in enumerate(self._nodes)}
        urls = {}
        for sending in self._desk.sendings:
            place = places[sending.node]
            other = self._nodes[(place + 1) % len(self._nodes)]
            urls[sending.id] = f"{_items_url(other, self._callers[sending.call])}/{sending.id}"
        return await Readers(self._desk, urls).run(seconds)

    def hush(self) -> None:
        """Let everybody fall silent."""
        self._speakers.stop()

    def calls(self) -> list[dict[str, Any]]:
        """Return what became of the calls."""
        return describe(self._callers)

    def told(self) -> dict[str, Any]:
        """Return all that was sent and answered."""
        return {
            "messages": [asdict(sending.told()) for sending in self._desk.sendings],
            "answers": self._desk.answers,
            "longest_answer_ms": self._desk.longest_answer_ms,
            "latest_frame_ms": self._speakers.latest_ms,
        }

    def hang_up(self) -> None:
        """End all calls, and whatever is still being sent."""
        for task in self._running:
            task.cancel()
        for caller in self._callers:
            caller.hang_up()


def _home(caller: Caller) -> str:
    return caller.call_id.split("_")[1]


def _items_url(node: dict[str, str], caller: Caller) -> str:
    return f"{node['url']}/v1/realtime/calls/{caller.call_id}/items"


async def _main() -> None:
    async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        load = Load(tasks, stack)
        await obey((load.open, load.warm, load.publish, load.finish, load.settle, load.hush, load.calls, load.told))
        load.hang_up()


if __name__ == "__main__":
    uvloop.run(_main())
