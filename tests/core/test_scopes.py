"""What runs beside a block ends with it, in one of two ways."""

from __future__ import annotations

import pytest
import trio

from alknet.core.scopes import open_background


async def test_tasks_are_cancelled_when_the_block_ends() -> None:
    ended = []

    async def run() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("cancelled")

    async with open_background() as nursery:
        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
    assert ended == ["cancelled"]


@pytest.mark.parametrize("fails", [False, True])
async def test_tasks_that_are_told_to_end_are_waited_for(fails: bool) -> None:
    ended = []
    told = trio.Event()

    async def run() -> None:
        await told.wait()
        await trio.lowlevel.checkpoint()
        ended.append("by itself")

    async def use() -> None:
        async with open_background(end=told.set) as nursery:
            nursery.start_soon(run)
            await trio.testing.wait_all_tasks_blocked()
            if fails:
                raise LookupError("of the block")

    if fails:
        with pytest.raises(LookupError, match="of the block"):
            await use()
    else:
        await use()
    assert ended == ["by itself"]


async def test_a_cancel_does_not_wait_to_be_told() -> None:
    told = []
    with trio.move_on_after(0) as scope:
        async with open_background(end=lambda: told.append(1)) as nursery:
            nursery.start_soon(trio.sleep_forever)
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert not told
