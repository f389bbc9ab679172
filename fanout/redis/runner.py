"""Carries out runs of scripts: on which wire, in which order, and what each error answer of a server means.

Every script is safe to repeat, so a redirected run is simply sent again, and with it all later runs of its tag, whose
place is after it. A run whose connection was lost is not repeated here: its caller knows
better whether it still matters.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    TryAgainError,
)

from fanout.core.runs import Run
from fanout.core.topology import Address
from fanout.errors import RegionUnreachable
from fanout.redis.scripts import Scripts
from fanout.redis.server import Server
from fanout.redis.trouble import ConnectionLost, Trouble
from fanout.redis.wire import Command, Wire
from fanout.settings import KIB
from fanout.store import Outcome

_LARGE_BYTES = 64 * KIB  # of one run's arguments: beyond it, it goes where it delays no small one
_PAUSE_SECONDS = 0.02  # before a repeat that the server asked for, or a second redirection in a row
_ASKING: Command = ("ASKING",)


class Directory(Protocol):
    """Who serves what, and whom to tell when that turns out to be wrong."""

    def server_of(self, tag: str) -> Server | None:
        """The present primary of a tag, if one is known."""
        ...

    def server_at(self, address: Address) -> Server | None:
        """A server that another one named; connected to if it is new. None while the store doesn't work."""
        ...

    def on_moved(self, tag: str, address: Address) -> None:
        """A server says that another one is the tag's primary now."""

    def on_refused(self) -> None:
        """A server can't serve what it was asked: find out who does."""

    async def wait_changed(self) -> None:
        """Until a wire came or went or a primary changed."""


class _Job:
    """One call of `run`."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self.outcomes: list[Outcome] = [None] * len(runs)
        self.pending = list(range(len(runs)))
        self.large_tags = {run.tag for run in runs if _is_large(run)}
        self.asked: dict[int, Address] = {}  # runs that one server sent to another, once
        self.redirects = 0
        self.must_pause = False


class _Part:
    """What goes to one wire at once."""

    def __init__(self, server: Server, wire: Wire) -> None:
        self.server = server
        self.wire = wire
        self.places: list[int | None] = []  # of a run in its job, for each command; None for ASKING
        self.commands: list[Command] = []


class Runner:
    """One home's."""

    def __init__(self, home: str, scripts: Scripts, directory: Directory, trouble: Trouble, *, timeout: float) -> None:
        self._home = home
        self._scripts = scripts
        self._directory = directory
        self._trouble = trouble
        self._timeout = timeout
        self.redirected = 0

    async def run(self, runs: Sequence[Run]) -> list[Outcome]:
        """Outcomes in the order of `runs`; see `Store.run`."""
        job = _Job(runs)
        try:
            async with asyncio.timeout(self._timeout):
                while job.pending:
                    await self._attempt(job)
        except TimeoutError:
            self._trouble.report("scripts", ConnectionLost("not done in time"))
        for place in job.pending:
            job.outcomes[place] = RegionUnreachable(self._home)
        return job.outcomes

    async def _attempt(self, job: _Job) -> None:
        if job.must_pause:
            job.must_pause = False
            await asyncio.sleep(_PAUSE_SECONDS)
        parts, later = self._parts(job)
        if not parts:
            await self._directory.wait_changed()
            return
        sent = []
        for part in parts:
            if part.wire.is_full:
                await part.wire.wait_room()
            self._prepare(job, part)
            sent.append((part, part.wire.send(part.commands)))
        again: set[int] = set()
        for part, future in sent:
            answers = await future
            for place, answer in zip(part.places, answers, strict=True):
                if place is not None and not self._settle(job, part, place, answer):
                    again.add(place)
        if again or later:
            job.pending = _with_followers(job, again, later)
        else:
            job.pending = []

    def _parts(self, job: _Job) -> tuple[list[_Part], list[int]]:
        """What can be sent now, and what has to wait: for a wire, or for an earlier run of its tag on another wire."""
        parts: dict[Wire, _Part] = {}
        later: list[int] = []
        wires: dict[str, Wire | None] = {}  # of each tag; None holds back what comes after
        for place in job.pending:
            tag = job.runs[place].tag
            address = job.asked.get(place)
            server = self._directory.server_of(tag) if address is None else self._directory.server_at(address)
            wire = None if server is None else server.wire(is_large=tag in job.large_tags)
            if server is None or wire is None or wires.get(tag, wire) is not wire:
                wires[tag] = None
                later.append(place)
                continue
            wires[tag] = wire
            part = parts.get(wire) or parts.setdefault(wire, _Part(server, wire))
            if address is not None:
                part.places.append(None)
            part.places.append(place)
        return list(parts.values()), later

    def _prepare(self, job: _Job, part: _Part) -> None:
        wire = part.wire
        for place in part.places:
            if place is None:
                part.commands.append(_ASKING)
                continue
            run = job.runs[place]
            script = self._scripts.get(run.script)
            tail = (len(run.keys), *run.keys, wire.run_id, *run.args)
            if script.sha in wire.loaded:
                part.commands.append(("EVALSHA", script.sha, *tail))
            else:
                # The text the first time: finding out by NOSCRIPT would let later runs of the tag overtake this one.
                wire.loaded.add(script.sha)
                part.commands.append(("EVAL", script.text, *tail))

    def _settle(self, job: _Job, part: _Part, place: int, answer: Any) -> bool:
        """Whether the run is done, for better or worse; otherwise it is to be sent again."""
        if not isinstance(answer, Exception):
            self._trouble.worked(part.server.place)
            job.outcomes[place] = answer
            return True
        run = job.runs[place]
        job.asked.pop(place, None)
        match answer:
            case NoScriptError():
                part.wire.loaded.clear()
                return False
            case TryAgainError():
                job.must_pause = True
                return False
            case MovedError():
                self._redirected(job)
                self._directory.on_moved(run.tag, _address(answer, part.wire))
                return False
            case AskError():
                self._redirected(job)
                job.asked[place] = _address(answer, part.wire)
                return False
            case ReadOnlyError():
                part.wire.give_up()
                self._directory.on_refused()
            case ClusterDownError():  # and MASTERDOWN, which is one
                self._directory.on_refused()
            case _:
                pass  # a lost connection, no memory, no permission, or a bug in a script: the log says which
        self._trouble.report(part.server.place, answer)
        job.outcomes[place] = RegionUnreachable(self._home)
        return True

    def _redirected(self, job: _Job) -> None:
        self.redirected += 1
        job.redirects += 1
        job.must_pause = job.must_pause or job.redirects > len(job.runs)


def _with_followers(job: _Job, again: set[int], later: list[int]) -> list[int]:
    """Runs to send again, with those of their tags that come after them, in their order."""
    first: dict[str, int] = {}
    for place in again:
        tag = job.runs[place].tag
        first[tag] = min(place, first.get(tag, place))
    waiting = set(later)
    end = len(job.runs)
    return [place for place in job.pending if place in waiting or place >= first.get(job.runs[place].tag, end)]


def _is_large(run: Run) -> bool:
    size = 0
    for arg in run.args:
        if type(arg) is bytes or type(arg) is str:  # a third of the time of isinstance with a union, for every run
            size += len(arg)
    return size > _LARGE_BYTES


def _address(redirection: AskError, wire: Wire) -> Address:
    """An empty host means the one that answered."""
    return Address(str(redirection.host) or wire.address.host, int(redirection.port))
