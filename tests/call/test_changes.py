from __future__ import annotations

import pytest
import trio
import trio.testing

from alknet.call.changes import Changes, wait_any


async def test_whoever_waits_is_woken_by_the_next_change() -> None:
    changes = Changes()
    found: list[int] = []

    async def wait(version: int) -> None:
        found.append(await changes.wait_changed(version))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait, 0)
        await trio.testing.wait_all_tasks_blocked()
        assert not found
        changes.ring()
    assert found == [1, 1, 1]
    assert await changes.wait_changed(0) == 1


@pytest.mark.parametrize("rung", [0, 1])
async def test_one_of_several_is_enough(rung: int) -> None:
    bells = [Changes(), Changes()]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_any, (bells[0], 0), (bells[1], 0))
        await trio.testing.wait_all_tasks_blocked()
        bells[rung].ring()
    await wait_any((bells[0], 0), (bells[1], 0))


async def test_a_cancelled_wait_leaves_nothing() -> None:
    bells = [Changes(), Changes()]
    with trio.move_on_after(0):
        await wait_any((bells[0], 0), (bells[1], 0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_any, (bells[0], 0), (bells[1], 0))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert not any(bell._waiting for bell in bells)
