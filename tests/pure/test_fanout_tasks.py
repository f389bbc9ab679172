"""Who owns the bus's tasks: a bug in one is counted and survived, and none outlives the node."""

import asyncio

import pytest

from fanout.tasks import Tasks


async def test_a_kept_task_that_dies_or_returns_is_started_again():
    """The node cannot work without it; the count is what an alert looks at."""
    turns = 0
    third = asyncio.Event()

    async def work() -> None:
        nonlocal turns
        turns += 1
        await asyncio.sleep(0)
        if turns == 1:
            raise KeyError("bug")
        if turns == 3:
            third.set()
            await asyncio.Event().wait()

    async with Tasks(first_pause=0.001, longest_pause=0.01) as tasks:
        tasks.keep(work, name="work")
        async with asyncio.timeout(5):
            await third.wait()
        assert tasks.failures == 1
    assert len(asyncio.all_tasks()) == 1


async def test_a_task_that_runs_once_fails_alone():
    """One message's bug must not end the node."""

    async def work() -> None:
        await asyncio.sleep(0)
        raise KeyError("bug")

    async with Tasks(first_pause=0.001, longest_pause=0.01) as tasks:
        await tasks.start(work(), name="work")
        assert tasks.failures == 1


async def test_an_error_of_the_block_comes_out_as_it_is():
    """Not in an exception group, and with every task ended."""

    async def block() -> None:
        async with Tasks(first_pause=0.001, longest_pause=0.01) as tasks:
            tasks.keep(work, name="work")
            raise KeyError("of the block")

    async def work() -> None:
        await asyncio.Event().wait()

    with pytest.raises(KeyError):
        await block()
    assert len(asyncio.all_tasks()) == 1
