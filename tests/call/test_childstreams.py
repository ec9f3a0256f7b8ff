"""Uploads and bidirectional operations, called by others of their node."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import msgspec
import pytest
import trio

from alknet.call.callers import UploadCall
from alknet.call.codes import CallError
from alknet.call.context import Context
from alknet.call.operations import Operation, operation, public
from alknet.errors import LocalError
from alknet.testing.contract import cancel_at_every_checkpoint
from alknet.testing.operations import call_operation


@operation("t/total", access=public(), internal=True)
async def total(items: AsyncIterator[int]) -> int:
    return sum([item async for item in items])


@operation("t/first", access=public(), internal=True)
async def first(items: AsyncIterator[int]) -> int:
    return await anext(aiter(items))


@operation("t/fails", access=public(), internal=True)
async def fails(items: AsyncIterator[int]) -> int:
    await anext(aiter(items))
    raise CallError("UNAVAILABLE", "no room")


@operation("t/double", access=public(), internal=True)
async def double(items: AsyncIterator[int]) -> AsyncGenerator[int]:
    async for item in items:
        yield 2 * item


@operation("t/short", access=public(), internal=True)
async def short(items: AsyncIterator[int]) -> AsyncGenerator[int]:
    yield await anext(aiter(items))
    raise CallError("UNAVAILABLE", "enough")


BESIDE: list[Operation[..., Any]] = [total, first, fails, double, short]
NAMES = [entry.spec.name for entry in BESIDE]


def _int(data: msgspec.Raw) -> int:
    return msgspec.json.decode(data, type=int)


async def _send_on(upload: UploadCall) -> None:
    while True:
        await upload.send(7)


async def _run(body: Any, *beside: Operation[..., Any]) -> object:
    """Run *body* as the handler of an operation that calls the others."""
    calls = [*NAMES, *(entry.spec.name for entry in beside)]

    @operation("t/parent", access=public(), calls=calls)
    async def parent(ctx: Context) -> Any:
        return await body(ctx)

    return await call_operation(parent, beside=[*BESIDE, *beside])


async def test_an_upload_takes_items_and_answers_once() -> None:
    async def body(ctx: Context) -> int:
        async with ctx.upload("t/total") as upload:
            for item in range(5):
                await upload.send(item)
            output = _int(await upload.finish())
            with pytest.raises(LocalError, match="after the input was finished"):
                await upload.send(1)
        return output

    assert await _run(body) == 10


async def test_an_upload_is_held_back_by_its_child() -> None:
    taken = sent = 0

    @operation("t/slow", access=public(), internal=True)
    async def slow(items: AsyncIterator[int]) -> None:
        nonlocal taken
        async for _ in items:
            taken += 1
            await trio.testing.wait_all_tasks_blocked()
            assert sent - taken <= 1

    async def body(ctx: Context) -> None:
        nonlocal sent
        async with ctx.upload("/t/slow") as upload:
            for _ in range(20):
                await upload.send(msgspec.Raw(b"1"))
                sent += 1
            await upload.finish()

    await _run(body, slow)
    assert taken == 20


async def test_a_child_that_has_answered_takes_no_more() -> None:
    async def body(ctx: Context) -> int:
        async with ctx.upload("t/first") as upload:
            with pytest.raises(trio.BrokenResourceError, match="takes no more"):
                await _send_on(upload)
            return _int(await upload.finish())

    assert await _run(body) == 7


async def test_a_child_that_failed_says_so_to_who_sends_and_who_waits() -> None:
    async def body(ctx: Context) -> str:
        async with ctx.upload("t/fails") as upload:
            with pytest.raises(CallError, match="no room"):
                await _send_on(upload)
            with pytest.raises(CallError, match="no room"):
                await upload.finish()
        async with ctx.upload("t/total") as upload:
            await upload.send("text")
            with pytest.raises(CallError, match="INVALID_INPUT"):
                await upload.finish()
        async with ctx.bidi("t/short") as talk:
            await talk.send(3)
            assert _int(await anext(talk)) == 3
            with pytest.raises(CallError, match="enough"):
                await anext(talk)
            with pytest.raises(CallError, match="enough"):
                await talk.send(4)
        return "ok"

    assert await _run(body) == "ok"


async def test_an_item_for_an_item_needs_one_task_only() -> None:
    async def body(ctx: Context) -> list[int]:
        got = []
        async with ctx.bidi("t/double") as talk:
            for item in range(3):
                await talk.send(item)
                got.append(_int(await anext(talk)))
            await talk.finish()
            await talk.finish()
            assert [item async for item in talk] == []
            with pytest.raises(LocalError):
                await talk.send(1)
        return got

    assert await _run(body) == [0, 2, 4]


async def test_a_bidirectional_child_that_ended_takes_no_more() -> None:
    @operation("t/ends", access=public(), internal=True)
    async def ends(items: AsyncIterator[int]) -> AsyncGenerator[int]:
        yield 1

    async def body(ctx: Context) -> str:
        async with ctx.bidi("t/ends") as talk:
            assert [_int(item) async for item in talk] == [1]
            with pytest.raises(trio.BrokenResourceError):
                await talk.send(1)
        return "ok"

    assert await _run(body, ends) == "ok"


@pytest.mark.parametrize("kind", ["upload", "bidi"])
async def test_leaving_early_ends_the_child(kind: str) -> None:
    running = 0

    @operation("t/wait", access=public(), internal=True)
    async def wait(items: AsyncIterator[int]) -> None:
        nonlocal running
        running += 1
        try:
            await trio.sleep_forever()
        finally:
            running -= 1

    @operation("t/hold", access=public(), internal=True)
    async def hold(items: AsyncIterator[int]) -> AsyncGenerator[int]:
        nonlocal running
        running += 1
        try:
            yield 1
        finally:
            running -= 1

    async def body(ctx: Context) -> str:
        if kind == "upload":
            async with ctx.upload("t/wait"):
                await trio.testing.wait_all_tasks_blocked()
                assert running == 1
        else:
            async with ctx.bidi("t/hold") as talk:
                await anext(talk)
                assert running == 1
        assert running == 0
        return "ok"

    assert await _run(body, wait, hold) == "ok"


async def test_a_slow_child_ends_at_its_own_deadline(
    autojump_clock: trio.testing.MockClock,
) -> None:
    @operation("t/late", access=public(), internal=True, max_duration_s=2)
    async def late(items: AsyncIterator[int]) -> None:
        await trio.sleep(60)

    @operation("t/later", access=public(), internal=True, max_duration_s=3)
    async def later(items: AsyncIterator[int]) -> AsyncGenerator[int]:
        await trio.sleep(60)
        yield 1

    async def body(ctx: Context) -> str:
        async with ctx.upload("t/late") as upload:
            with pytest.raises(CallError, match="TIMEOUT"):
                await upload.finish()
        assert trio.current_time() == pytest.approx(2, abs=0.1)
        async with ctx.bidi("t/later") as talk:
            with pytest.raises(CallError, match="TIMEOUT"):
                await anext(talk)
        assert trio.current_time() == pytest.approx(5, abs=0.1)
        return "ok"

    assert await _run(body, late, later) == "ok"


async def test_the_wrong_kind_runs_nothing() -> None:
    async def body(ctx: Context) -> str:
        for name in ("t/double", "t/total"):
            with pytest.raises(CallError, match="INVALID_OPERATION_TYPE"):
                await ctx.call(name)
        with pytest.raises(CallError, match="upload to it"):
            async with ctx.bidi("t/total"):
                pass
        with pytest.raises(CallError, match="use bidi"):
            async with ctx.upload("t/double"):
                pass
        with pytest.raises(CallError, match="NOT_FOUND"):
            async with ctx.upload("t/none"):
                pass
        return "ok"

    assert await _run(body) == "ok"


async def test_what_the_block_raises_comes_out_as_it_is() -> None:
    async def body(ctx: Context) -> str:
        with pytest.raises(ValueError, match="mine"):
            async with ctx.upload("t/total"):
                raise ValueError("mine")
        return "ok"

    assert await _run(body) == "ok"


async def test_cancelled_anywhere_nothing_is_left() -> None:
    running = 0

    @operation("t/step", access=public(), internal=True)
    async def step(items: AsyncIterator[int]) -> AsyncGenerator[int]:
        nonlocal running
        running += 1
        try:
            async for item in items:
                await trio.lowlevel.checkpoint()
                yield item
        finally:
            running -= 1

    async def body(ctx: Context) -> None:
        async with ctx.upload("t/total") as upload, ctx.bidi("t/step") as talk:
            for item in range(2):
                await talk.send(item)
                await upload.send(await anext(talk))
            await upload.finish()

    async def call() -> None:
        await _run(body, step)

    async def after() -> None:
        await trio.testing.wait_all_tasks_blocked()
        assert running == 0

    assert await cancel_at_every_checkpoint(call, after) >= 5
