"""Carries out a drill of continuity: a fleet, people who talk, the upheaval, and the comparison of what all know."""

import asyncio
import os
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import aiohttp

from ops.simulator.ledger import MAX_TEXT
from relay.demo import declare_settled
from tests.drills.fleet import Fleet, Node, Placement
from tests.drills.homes import Home, Standalone, binary_of, version_of
from tests.drills.report import Survived
from tests.drills.survival import Call, Session, Survival, judge_calls, judge_messages
from tests.drills.talk import Person
from tests.drills.upheavals import PREFIX, TROUBLES, Extent, Scene, Upheaval
from tests.drills.verdict import Item, Message, Verdict

_LEAVE_SECONDS: Final = 30.0  # at most, to bring a turn to its end
_FINISH_SECONDS: Final = 30.0  # at most, until every message under way has its end
_SETTLE_SECONDS: Final = 30.0  # at most, until every receipt is terminal
_BEYOND_SECONDS: Final = 240.0  # to start and to end, beside the planned times
_TIMEOUT_MS: Final = 5000  # that backends give the relay
_TROUBLES: Final = 5000
_TOOL_SECONDS: Final = (1.5, 3.0)


async def carry_out(upheaval: Upheaval, extent: Extent, engine: str, seed: int, placement: Placement) -> Survived:
    """Run a drill and judge it.

    Raises:
        TimeoutError: it took longer than its limit.
        ProcessFailed: a process did not start, or the load or the model ended.
    """
    began = time.monotonic()
    binary = binary_of(engine)
    async with asyncio.timeout(extent.seconds * 2 + _BEYOND_SECONDS), AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"drill-{upheaval.name}-")))
        fleet = Fleet(placement, folder)

        def make_home(region: str) -> Home:
            return Standalone(binary, region, folder, placement.host(region), placement.prefix(region))

        async def settle() -> None:
            for home in fleet.homes.values():
                await declare_settled(home.url, PREFIX)

        await fleet.start(stack, make_home, extent.env, load="tests.drills.talk", before_nodes=settle)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        drill = _Drill(upheaval, extent, fleet, http, seed)
        await drill.run()
        survival = await drill.judge()
    average = os.getloadavg()[0]
    seconds = time.monotonic() - began
    return Survived(upheaval.name, version_of(binary), drill.verdict, survival, seconds, average, drill.scene.figures)


class _Drill:
    """One drill under way."""

    def __init__(
        self, upheaval: Upheaval, extent: Extent, fleet: Fleet, http: aiohttp.ClientSession, seed: int
    ) -> None:
        self._upheaval, self._extent, self._fleet, self._seed = upheaval, extent, fleet, seed
        self._persons: list[Person] = []
        self.verdict = Verdict(0, 0, {})
        self.scene = Scene(fleet, http, extent, self._open_more, self.verdict)

    async def run(self) -> None:
        """Up to the moment when everybody has hung up."""
        load, extent = self._fleet.load, self._extent
        await load.ask("nodes", nodes=self._fleet.described())
        if extent.trouble_after is not None:
            trouble = {"first": extent.calls, "count": _TROUBLES, "after": extent.trouble_after}
            await self._fleet.model.ask("trouble", kinds=TROUBLES, seed=self._seed, **trouble)
        await self._open_more(extent.calls, [node.name for node in self._fleet.nodes])
        if extent.messages_per_second:
            token = self._fleet.token("control", "read")
            await load.ask("publish", rate=extent.messages_per_second, token=token, timeout_ms=_TIMEOUT_MS)
        if extent.turns is None:
            await asyncio.sleep(extent.lull_seconds)
        await self._upheaval.act(self.scene)
        if extent.messages_per_second:
            await asyncio.sleep(extent.lull_seconds)
            await load.ask("finish", seconds=_FINISH_SECONDS)
            await load.ask("settle", seconds=_SETTLE_SECONDS)
        await load.ask("leave", seconds=_LEAVE_SECONDS)

    async def _open_more(self, count: int, through: list[str]) -> None:
        persons = [self._person(len(self._persons) + place, through) for place in range(count)]
        if self._extent.session_seconds is not None:
            persons += [replace(each, number=each.number + count, faults="") for each in persons]
        self._persons += persons
        tokens = {"call_token": self._fleet.token("call"), "mint_token": self._fleet.token("mint")}
        await self._fleet.load.ask("open", persons=[asdict(each) for each in persons], **tokens)

    def _person(self, number: int, through: list[str]) -> Person:
        capped, low, high = self._extent.session_seconds, *_TOOL_SECONDS
        fields: dict[str, Any] = {}
        if capped is not None:
            tool_seconds = low + (high - low) * number / self._extent.calls
            fields = {"faults": f"expire={capped:g}", "tool_seconds": tool_seconds, "turns": self._extent.turns}
        return Person(
            number,
            through,
            # To mint a token needs the Redis of the call's home; who comes later may find none.
            relay_events=number % 2 == 0 or number >= self._extent.calls,
            seed=self._seed * 1000 + number,
            turn_seconds=self._extent.turn_seconds,
            heartbeat=self._upheaval.heartbeat,
            **fields,
        )

    async def judge(self) -> Survival:
        """Compare all that is known."""
        calls = {call.number: call for call in await self._calls()}
        bound = len(calls) // 2 if self._extent.session_seconds is not None else len(calls)
        upset = [call for call in calls.values() if call.number < bound]
        twins = {call.number: calls[call.number + bound] for call in upset if call.number + bound in calls}
        allowed = replace(self._upheaval.allowed, sessions=self._extent.sessions)
        if self._extent.messages_per_second:
            await self._judge_messages()
        survival = judge_calls(self.verdict, upset, allowed, twins)
        ended = [each.name for each in self._fleet.processes if each.has_ended]
        self.verdict.blame("processes ended", ended)
        self.verdict.blame("nodes logged an error that nobody caught", self._fleet.troubles())
        return survival

    async def _calls(self) -> list[Call]:
        fleet = self._fleet
        talks, sessions, items = (
            await fleet.load.ask("talks"), await fleet.model.ask("sessions"), await fleet.model.ask("items"),
        )  # fmt: skip
        ids = await fleet.load.ask("calls")
        found = []
        for person in self._persons:
            key = str(person.number)
            facts = await self._facts(fleet.nodes[person.number % len(fleet.nodes)], ids[key]["id"])
            found.append(_call(person.number, talks[key], sessions.get(key, []), items.get(key, []), facts))
        return found

    async def _facts(self, node: Node, call_id: str) -> list[dict[str, Any]]:
        headers = {"Authorization": f"Bearer {self._fleet.token('read')}"}
        url = f"{node.url}/v1/realtime/calls/{call_id}/transcript"
        async with self.scene.http.get(url, headers=headers) as answer:
            found = await answer.json()
            if answer.status != 200:
                self.verdict.blame("transcripts could not be read", [f"{call_id}: {found}"])
                return []
            entries: list[dict[str, Any]] = found["data"]
            return entries

    async def _judge_messages(self) -> None:
        told = await self._fleet.load.ask("told")
        messages = [Message(**message) for message in told["messages"]]
        seen = await self._fleet.model.ask("conversations")
        known = {message.id for message in messages}
        items = {int(call): [Item(*each) for each in texts if each[0] in known] for call, texts in seen.items()}
        expired = judge_messages(self.verdict, messages, items, told["answers"], self._upheaval.allowed)
        if expired:
            self.scene.figures["messages that expired:"] = expired


def _call(
    number: int,
    talk: dict[str, Any],
    sessions: list[dict[str, Any]],
    items: list[dict[str, Any]],
    facts: list[dict[str, Any]],
) -> Call:
    greeted = [each for each in talk["connections"] if each["created_at"] is not None]
    return Call(
        number=number,
        ended=talk["ended"],
        created=talk["created"],
        codes=tuple(each["code"] or 0 for each in greeted),
        back=tuple(each["created"] for each in talk["recoveries"]),
        waits=tuple(talk["waits"]),
        gaps=tuple(talk["gaps"]),
        unanswered=talk["unanswered"],
        view=_cut(talk["items"]),
        sessions=tuple(Session(**each) for each in sessions),
        items=items,
        facts=_cut(facts),
    )


def _cut(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Texts as far as the simulator keeps them of sessions that ended."""
    return [item | {"text": (item.get("text") or "")[:MAX_TEXT]} for item in items]
