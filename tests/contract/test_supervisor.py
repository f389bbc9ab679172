"""The node's own tasks: what dies or returns is started again, with growing pauses, and counted."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from ops.tasks import Supervisor
from tests.support.fleet import until


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were asked for; they take no time."""
    asked: list[float] = []
    sleep = asyncio.sleep

    async def no_sleep(seconds: float) -> None:
        asked.append(seconds)
        await sleep(0)

    monkeypatch.setattr("ops.tasks.asyncio.sleep", no_sleep)
    return asked


@pytest.fixture
async def supervisor() -> AsyncIterator[Supervisor]:
    async with Supervisor.running() as running:
        yield running


class Work:
    """Work that ends in a given way a number of times, and then goes on for ever."""

    def __init__(self, *ends: BaseException | None) -> None:
        self._ends = list(ends)
        self.going = asyncio.Event()
        self.cancelled = False

    async def __call__(self) -> None:
        if self._ends:
            end = self._ends.pop(0)
            if end is not None:
                raise end
            return
        self.going.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled = True


@pytest.mark.parametrize(
    ("end", "event"),
    [(OSError("Redis is away"), "task_died"), (None, "task_returned"), (asyncio.CancelledError(), "task_died")],
    ids=["dies", "returns", "is cancelled by what it waits for"],
)
async def test_work_that_ends_is_started_again_counted_and_told(pauses, supervisor, end, event):
    """A heartbeat that stops silently takes the node out of the fleet. Nobody asked this work to end."""
    work = Work(end)
    with capture_logs() as logs:
        supervisor.start(work, name="heartbeat")
        async with asyncio.timeout(5):
            await work.going.wait()
    assert supervisor.restarts == {"heartbeat": 1}
    assert [(entry["event"], entry["task"]) for entry in logs] == [(event, "heartbeat")]


async def test_pauses_grow_to_a_limit(pauses, supervisor):
    """A Redis that is away must not be hammered, and must be found again within seconds."""
    work = Work(*[OSError() for _ in range(9)])
    supervisor.start(work, name="w")
    async with asyncio.timeout(5):
        await work.going.wait()
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]


async def test_work_that_never_ended_has_a_count_of_zero(supervisor):
    """A metric that appears only with the first failure cannot be alerted on."""
    work = Work()
    supervisor.start(work, name="w")
    await work.going.wait()
    assert supervisor.restarts == {"w": 0}


async def test_one_works_death_does_not_touch_another(pauses, supervisor):
    """They share a task group, which would end all of them."""
    steady, shaky = Work(), Work(OSError(), ValueError())
    supervisor.start(steady, name="steady")
    supervisor.start(shaky, name="shaky")
    async with asyncio.timeout(5):
        await shaky.going.wait()
    assert supervisor.restarts == {"steady": 0, "shaky": 2}
    assert not steady.cancelled


async def test_the_end_of_the_block_ends_the_work():
    """Also while it pauses; no task is left."""
    before = asyncio.all_tasks()
    going, pausing = Work(), Work(OSError())
    async with Supervisor.running() as supervisor:
        supervisor.start(going, name="going")
        supervisor.start(pausing, name="pausing")
        await until(lambda: going.going.is_set() and supervisor.restarts["pausing"] == 1)
    assert going.cancelled
    assert asyncio.all_tasks() == before


async def test_a_cancel_of_the_node_ends_the_work_too():
    """As Ctrl-C does; it is no death to be restarted after."""
    work = Work()

    async def node() -> None:
        async with Supervisor.running() as supervisor:
            supervisor.start(work, name="w")
            await asyncio.Event().wait()

    running = asyncio.create_task(node())
    await work.going.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert work.cancelled
