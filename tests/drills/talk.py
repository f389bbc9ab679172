"""`python -m tests.drills.talk`: people who talk and come back to their calls, and the backends that write to them."""

import asyncio
import contextlib
import random
from dataclasses import asdict, dataclass
from typing import Any, Final

import aiohttp
import uvloop

from tests.drills.backends import Backend
from tests.drills.orders import obey
from tests.drills.publishers import Desk, Plan, Readers, client_timeout
from tests.support.doors import Doors
from tests.support.talker import Talker, Turn, spoken_turns

_ENDLESS: Final = 10_000  # turns: more than any drill lasts
_STAGGER_SECONDS: Final = 0.1  # between two calls' beginnings
_OPEN_SECONDS: Final = 30.0
_TOOL: Final = {"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}}


@dataclass(frozen=True, slots=True)
class Person:
    """Who calls, and how. The model knows the call by the number."""

    number: int
    through: list[str]  # names of the nodes that it may come to
    relay_events: bool = False  # resumes as the relay tells it; otherwise by a minted token
    seed: int = 0  # what it says
    turns: int = _ENDLESS
    turn_seconds: tuple[float, float] = (1, 3)
    tool_seconds: float | None = None  # every other turn asks for a tool, which takes so long
    faults: str = ""  # of each of its sessions, as the simulator reads them behind the model's name
    heartbeat: float | None = None  # of its client; None: it waits


class Talks:
    """What the runner can order."""

    def __init__(self, tasks: asyncio.TaskGroup, http: aiohttp.ClientSession) -> None:
        self._tasks = tasks
        self._http = http
        self._nodes: list[dict[str, str]] = []
        self._doors: dict[tuple[str, ...], Doors] = {}
        self._talkers: dict[int, Talker] = {}
        self._persons: dict[int, Person] = {}
        self._talking: list[asyncio.Task[None]] = []
        self._publishing: list[asyncio.Task[None]] = []
        self._desk: Desk

    def nodes(self, nodes: list[dict[str, str]]) -> None:
        """Learn where the nodes are, now."""
        self._nodes = nodes
        for names, doors in self._doors.items():
            doors.nodes = self._places(names)

    def _places(self, names: tuple[str, ...]) -> dict[str, tuple[str, str]]:
        return {node["name"]: (node["url"], node["ops_url"]) for node in self._nodes if node["name"] in names}

    def _doors_to(self, through: list[str]) -> Doors:
        names = tuple(sorted(through))
        if names not in self._doors:
            self._doors[names] = Doors(self._http, self._places(names))
        return self._doors[names]

    async def open(self, persons: list[dict[str, Any]], call_token: str, mint_token: str) -> None:
        """Let people call, one a little after the other; returns when all have an answer."""
        begun = []
        for fields in persons:
            person = Person(**fields)
            token = call_token if person.relay_events else await self._mint(person, mint_token)
            talker = self._talkers[person.number] = self._talker(person, token)
            self._persons[person.number] = person
            self._talking.append(self._tasks.create_task(talker.talk(_turns(person))))
            begun.append(talker)
            await asyncio.sleep(_STAGGER_SECONDS)
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                for talker in begun:
                    await talker.wait_answered()
        except TimeoutError:
            without = [f"{talker.call_id}: {talker.notes}" for talker in begun if not talker.notes.events]
            raise RuntimeError(f"{len(without)} calls have no answer: {without[:1]}") from None

    async def _mint(self, person: Person, token: str) -> str:
        url = await self._doors_to(person.through).choose()
        headers = {"Authorization": f"Bearer {token}"}
        async with self._http.post(f"{url}/v1/realtime/client_secrets", json={}, headers=headers) as response:
            return str((await response.json())["value"])

    def _talker(self, person: Person, token: str) -> Talker:
        model = ";".join(filter(None, (f"sim-{person.number}", person.faults)))
        return Talker(
            self._http,
            self._doors_to(person.through),
            token,
            relay_events=person.relay_events,
            path=f"/v1/realtime?model={model}",
            session={"tools": [_TOOL]} if person.tool_seconds is not None else {},
            tool_seconds=person.tool_seconds,
            heartbeat=person.heartbeat,
            seed=person.seed,
        )

    def publish(self, rate: float, token: str, timeout_ms: int) -> None:
        """Begin to put so many messages a second into all calls together, through every node that is ready."""
        plan = Plan(len(self._talkers) / rate, timeout_ms)
        self._desk = Desk(self._http, {"Authorization": f"Bearer {token}"})
        doors = self._doors_to([node["name"] for node in self._nodes])
        for place, (number, talker) in enumerate(self._talkers.items()):
            backend = Backend(self._desk, plan, doors, number, talker.call_id)
            self._publishing.append(self._tasks.create_task(backend.run(place / rate)))

    async def finish(self, seconds: float) -> int:
        """Send nothing new, and give what is under way so long; returns how many backends were given up."""
        self._desk.stop.set()
        _, late = await asyncio.wait(self._publishing, timeout=seconds)
        for task in late:
            task.cancel()
        return len(late)

    async def settle(self, seconds: float) -> int:
        """Read receipts until all are terminal; returns how many are not."""
        urls = {}
        for place, sending in enumerate(self._desk.sendings):
            node = self._nodes[place % len(self._nodes)]
            call_id = self._talkers[sending.call].call_id
            urls[sending.id] = f"{node['url']}/v1/realtime/calls/{call_id}/items/{sending.id}"
        return await Readers(self._desk, urls).run(seconds)

    def drop(self, numbers: list[int]) -> None:
        """Let connections be lost without a word."""
        for number in numbers:
            self._talkers[number].drop()

    async def hear_out(self, seconds: float) -> None:
        """Until all people have said what they had to say, or for so long."""
        await asyncio.wait(self._talking, timeout=seconds)

    async def leave(self, seconds: float) -> None:
        """Let everybody hang up after this turn; who has not for so long is cut off."""
        for talker in self._talkers.values():
            talker.leave()
        _, late = await asyncio.wait(self._talking, timeout=seconds)
        for task in late:
            task.cancel()

    def calls(self) -> dict[int, dict[str, Any]]:
        """Return the calls' ids, and on which node each is now."""
        return {
            number: {"id": talker.call_id, "node": talker.notes.connections[-1].node if talker.is_connected else ""}
            for number, talker in self._talkers.items()
        }

    def told(self) -> dict[str, Any]:
        """Return all that was sent and answered."""
        return {"messages": [asdict(sending.told()) for sending in self._desk.sendings], "answers": self._desk.answers}

    def talks(self) -> dict[int, dict[str, Any]]:
        """Return what the people noticed."""
        return {number: _described(talker) for number, talker in self._talkers.items()}

    def end(self) -> None:
        """End whatever still goes on."""
        for task in (*self._talking, *self._publishing):
            task.cancel()


def _turns(person: Person) -> list[Turn]:
    turns = spoken_turns(random.Random(person.seed), person.turns, person.turn_seconds)
    if person.tool_seconds is None:
        return turns
    return [
        Turn(text="get weather, please", pause=turn.pause) if place % 2 else turn for place, turn in enumerate(turns)
    ]


def _described(talker: Talker) -> dict[str, Any]:
    notes = talker.notes
    return {
        "ended": talker.ended,
        "items": talker.view.items(),
        "connections": [asdict(each) for each in notes.connections],
        "recoveries": [asdict(each) for each in notes.recoveries],
        "created": notes.events["session.created"],
        "turns": notes.turns,
        "unanswered": notes.unanswered,
        "waits": list(notes.waits),
        "gaps": [gap.seconds for gap in talker.playout.gaps],
        "dropped_frames": notes.dropped_frames,
        "repeated": notes.repeated,
        "refusals": list(notes.refusals),
        "errors": list(notes.errors),
        "resumed": [each for each in notes.relay_events if each["type"] == "relay.resumed"],
    }


async def _main() -> None:
    timeout = client_timeout(Plan(0.0, 5000))
    http = aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0))
    async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        talks = Talks(tasks, await stack.enter_async_context(http))
        orders = (talks.nodes, talks.open, talks.publish, talks.finish, talks.settle, talks.drop, talks.hear_out)
        await obey((*orders, talks.leave, talks.calls, talks.told, talks.talks))
        talks.end()


if __name__ == "__main__":
    uvloop.run(_main())
