from __future__ import annotations

import pytest
import trio

from alknet.testing.contract import cancel_at_every_checkpoint


async def test_each_checkpoint_is_tried_once_and_in_order() -> None:
    reached: list[int] = []

    async def three_checkpoints() -> None:
        done = 0
        try:
            for _ in range(3):
                await trio.lowlevel.checkpoint()
                done += 1
        finally:
            reached.append(done)

    assert await cancel_at_every_checkpoint(three_checkpoints) == 3
    assert reached == [0, 1, 2, 3]


async def test_code_without_checkpoints_has_none_to_try() -> None:
    async def nothing() -> None:
        pass

    assert await cancel_at_every_checkpoint(nothing) == 0


async def test_a_wait_that_nobody_ends_is_cancelled() -> None:
    event = trio.Event()

    async def waits_at_first_only() -> None:
        with trio.move_on_after(0):
            await event.wait()

    assert await cancel_at_every_checkpoint(waits_at_first_only) >= 1


async def test_a_leak_at_one_checkpoint_is_found() -> None:
    held: list[str] = []

    async def leaks_when_cancelled_at_the_second() -> None:
        await trio.lowlevel.checkpoint()
        held.append("lock")
        await trio.lowlevel.checkpoint()
        held.clear()

    async def nothing_is_held() -> None:
        assert held == []

    with pytest.raises(AssertionError):
        await cancel_at_every_checkpoint(leaks_when_cancelled_at_the_second, nothing_is_held)


async def test_checkpoints_inside_a_nursery_end_its_children() -> None:
    running: set[object] = set()

    async def child() -> None:
        key = object()
        running.add(key)
        try:
            await trio.sleep_forever()
        finally:
            running.discard(key)

    async def parent() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    async def no_child_runs() -> None:
        assert not running

    assert await cancel_at_every_checkpoint(parent, no_child_runs) >= 3


async def test_more_checkpoints_than_the_limit_is_an_error() -> None:
    async def many() -> None:
        for _ in range(10):
            await trio.lowlevel.checkpoint()

    assert await cancel_at_every_checkpoint(many, limit=10) == 10
    with pytest.raises(AssertionError, match="checkpoint 9"):
        await cancel_at_every_checkpoint(many, limit=9)


async def test_an_error_of_the_code_itself_passes() -> None:
    async def fails() -> None:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await cancel_at_every_checkpoint(fails)
