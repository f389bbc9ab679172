"""Which call has something to do when: the earliest moment that was given, once, and somebody awake for it."""

import asyncio

from fanout.schedule import Schedule


def now() -> float:
    return asyncio.get_running_loop().time()


async def woken(schedule: Schedule[str], until: float | None = None) -> None:
    async with asyncio.timeout(5):
        await schedule.wait(until)


async def test_what_is_due_is_taken_once_in_the_order_of_its_moments():
    """The earliest moment of each holds; what is dropped is gone."""
    schedule = Schedule[str]()
    for item, due in (("b", 2.0), ("a", 1.0), ("c", 3.0), ("c", 0.5), ("c", 9.0), ("d", 1.5), ("e", 8.0)):
        schedule.put(item, due)
    schedule.drop("d")
    schedule.drop("nobody")
    assert schedule.take(2.0, 2) == ["c", "a"]
    assert schedule.take(2.0, 2) == ["b"]
    assert schedule.take(7.0, 2) == []
    schedule.put("c", 7.5)
    assert schedule.take(8.0, 9) == ["c", "e"]


async def test_what_is_dropped_and_put_again_is_due_at_its_new_moment():
    """Its old place in the order means nothing any more."""
    schedule = Schedule[str]()
    schedule.put("a", 1.0)
    schedule.drop("a")
    schedule.put("a", 5.0)
    assert schedule.take(4.0, 9) == []
    assert schedule.take(5.0, 9) == ["a"]


async def test_a_worker_sleeps_until_something_is_due():
    """Or until a moment of its own."""
    schedule, started = Schedule[str](), now()
    due = started + 0.02
    schedule.put("a", due)
    await woken(schedule, started + 60)
    assert now() > started + 0.01
    assert schedule.take(due, 9) == ["a"]
    await woken(schedule, started + 0.04)
    assert now() > started + 0.03
    await woken(schedule, 0.0)


async def test_one_worker_wakes_for_what_comes_first():
    """For the others there is nothing to do; what comes later than what is known wakes nobody."""
    schedule, awake = Schedule[str](), []

    async def work(name: str) -> None:
        await schedule.wait()
        awake.append(name)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work(name)) for name in "xyz"]
        await asyncio.sleep(0)
        schedule.put("a", now() + 60)
        schedule.put("b", now() + 61)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert awake == ["x"]
        schedule.put("c", now())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert awake == ["x", "y"]
        tasks[2].cancel()
    schedule.wake()  # nobody is there


async def test_a_worker_that_takes_its_fill_wakes_the_next():
    """So that one slow answer holds up few."""
    schedule, awake = Schedule[str](), []

    async def work() -> None:
        await schedule.wait(now() + 60)
        awake.append(schedule.take(now(), 2))

    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(work())
        await asyncio.sleep(0)
        for item in "abc":
            schedule.put(item, now())
    assert awake == [["a", "b"], ["c"]]
