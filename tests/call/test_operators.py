"""Streams made of streams: their order, their one end, and who holds back whom."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.context import Context
from alknet.call.operations import Operation, operation, public
from alknet.call.operators import Items, filter_items, map_items, merge_items
from alknet.call.session import CallSession
from alknet.core.limits import Limits
from alknet.testing.contract import cancel_at_every_checkpoint
from alknet.testing.operations import collect_items
from tests.call.nodes import open_hop
from tests.call.sessions import CARRIERS


class Source:
    """Numbers from *first* on, and what became of them."""

    def __init__(self, first: int, count: int, error: Exception | None = None) -> None:
        self.made = 0
        self.is_open = False
        self._range = range(first, first + count)
        self._error = error

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[AsyncIterator[int]]:
        self.is_open = True
        made = self._make()
        try:
            yield made
        finally:
            await made.aclose()
            self.is_open = False

    async def _make(self) -> AsyncGenerator[int]:
        for number in self._range:
            await trio.lowlevel.checkpoint()
            self.made += 1
            yield number
        if self._error is not None:
            raise self._error


async def _all(stream: Items[int]) -> list[int]:
    async with stream as items:
        return [item async for item in items]


def _is_even(number: int) -> bool:
    return number % 2 == 0


async def test_items_are_mapped_filtered_and_merged_in_their_order() -> None:
    assert await _all(map_items(Source(0, 4).open(), lambda n: n * n)) == [0, 1, 4, 9]
    assert await _all(filter_items(Source(0, 5).open(), _is_even)) == [0, 2, 4]
    assert await _all(merge_items()) == []
    merged = await _all(merge_items(*(Source(first, 5).open() for first in (0, 100, 200))))
    assert len(merged) == 15
    for first in (0, 100, 200):
        assert [n for n in merged if first <= n < first + 100] == list(range(first, first + 5))


MAKERS: list[Callable[..., Items[int]]] = [
    lambda *sources: map_items(sources[0], lambda n: n),
    lambda *sources: filter_items(sources[0], lambda _: True),
    merge_items,
]


@pytest.mark.parametrize("make", MAKERS, ids=["map", "filter", "merge"])
@pytest.mark.parametrize("error", [None, CallError("UNAVAILABLE", "gone"), ValueError("bad")])
async def test_a_stream_ends_once(make: Callable[..., Items[int]], error: Exception | None) -> None:
    sources = [Source(0, 2, error), Source(10, 1000)]
    made = [source.open() for source in sources[: 1 if error is None else 2]]
    async with make(*made) as items:
        ended_with: Exception | None = None
        try:
            async for _ in items:
                pass
        except (CallError, ValueError) as exc:
            ended_with = exc
        assert ended_with is error
        for _ in range(3):
            with pytest.raises(StopAsyncIteration):
                await anext(items)
        await trio.testing.wait_all_tasks_blocked()
        if make is merge_items and error is not None:  # the others end with the first that fails
            assert not any(source.is_open for source in sources)
    assert not any(source.is_open for source in sources)
    assert sources[1].made < 1000


@pytest.mark.parametrize("make", [map_items, filter_items])
async def test_an_error_of_the_function_ends_the_stream(make: Any) -> None:
    def fail(number: int) -> bool:
        if number == 1:
            raise ValueError("one")
        return True

    source = Source(0, 5)
    async with make(source.open(), fail) as items:
        await anext(items)
        with pytest.raises(ValueError, match="one"):
            await anext(items)
        with pytest.raises(StopAsyncIteration):
            await anext(items)
    assert source.made == 2


async def test_a_source_that_cannot_begin_is_an_error_at_the_door() -> None:
    first = Source(0, 5)

    class Refused(AbstractAsyncContextManager[AsyncIterator[int]]):
        async def __aenter__(self) -> AsyncIterator[int]:
            raise CallError("NOT_FOUND", "no such stream")

        async def __aexit__(self, *exc: object) -> None: ...

    with pytest.raises(CallError, match="NOT_FOUND"):
        await _all(merge_items(first.open(), Refused()))
    assert not first.is_open


@pytest.mark.parametrize("make", MAKERS, ids=["map", "filter", "merge"])
async def test_leaving_early_closes_every_source(make: Callable[..., Items[int]]) -> None:
    sources = [Source(0, 1000), Source(0, 1000)]

    async def leave() -> None:
        async with make(*(source.open() for source in sources)) as items:
            await anext(items)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await leave()
    assert not any(source.is_open for source in sources)


async def test_one_item_of_each_source_is_taken_ahead_and_no_more() -> None:
    sources = [Source(0, 1000) for _ in range(3)]
    made = [map_items(source.open(), lambda n: n) for source in sources]
    async with filter_items(merge_items(*made), lambda _: True) as items:
        for taken in range(20):
            await trio.testing.wait_all_tasks_blocked()
            assert sum(source.made for source in sources) == taken + 3
            await anext(items)


async def test_a_cancelled_wait_loses_no_item() -> None:
    source = Source(0, 50)
    async with merge_items(source.open()) as items:
        got: list[int] = []
        while len(got) < 50:
            with trio.CancelScope() as scope:
                scope.cancel()
                got.append(await anext(items))
            if scope.cancelled_caught:
                got.append(await anext(items))
        assert got == list(range(50))


async def test_a_filter_of_which_nothing_comes_can_be_left() -> None:
    @asynccontextmanager
    async def endless() -> AsyncGenerator[AsyncIterator[int]]:
        async def make() -> AsyncGenerator[int]:
            while True:
                yield 1

        made = make()
        try:
            yield made
        finally:
            await made.aclose()

    seen = 0

    def none(_: int) -> bool:
        nonlocal seen
        seen += 1
        if seen == 100:
            scope.cancel()
        return False

    with trio.CancelScope() as scope:
        await _all(filter_items(endless(), none))
    assert seen == 100


async def test_cancelled_anywhere_nothing_is_left_open() -> None:
    sources: list[Source] = []

    async def run() -> None:
        sources[:] = [Source(0, 3), Source(10, 3)]
        merged = merge_items(*(source.open() for source in sources))
        assert len(await _all(filter_items(map_items(merged, lambda n: 2 * n), _is_even))) == 6

    async def after() -> None:
        assert not any(source.is_open for source in sources)

    assert await cancel_at_every_checkpoint(run, after) >= 6


async def test_subscriptions_of_an_operation_are_merged() -> None:
    @operation("t/count", access=public(), internal=True)
    async def count(upto: int) -> AsyncIterator[int]:
        for number in range(upto):
            yield number

    @operation("t/merged", access=public(), calls=["t/count"])
    async def merged(ctx: Context) -> AsyncIterator[int]:
        both = merge_items(ctx.subscribe("t/count", 3), ctx.subscribe("t/count", 5))
        async with map_items(both, msgspec.json.Decoder(int).decode) as items:
            async for item in items:
                yield item

    assert sorted(await collect_items(merged, beside=[count])) == [0, 0, 1, 1, 2, 2, 3, 4]


# Three hops: a producer, a node that merges and maps, and a consumer that takes its time.

ITEM_BYTES = 16 * 1024
WINDOW = 4
# Where credit counts, it counts items; else a window of unread and one of unsent bytes bound them,
# and on each side a few are in the hands of who handles them.
LIMITS = Limits(
    subscription_window=WINDOW,
    stream_receive_window_bytes=4 * ITEM_BYTES,
    connection_receive_window_bytes=8 * ITEM_BYTES,
    stream_send_buffer_bytes=4 * ITEM_BYTES,
)
MOST_AHEAD = {"memory": 16, "unix": WINDOW + 2}


class Counted:
    """What the producer and the middle have made."""

    def __init__(self) -> None:
        self.produced = self.passed = self.running = 0

    @operation("far/items", access=public())
    async def far_items(self) -> AsyncIterator[str]:
        self.running += 1
        try:
            while True:
                self.produced += 1
                yield "x" * ITEM_BYTES
        finally:
            self.running -= 1

    def middle(self, far: CallSession) -> Operation[..., Any]:
        @operation("mid/items", access=public())
        async def items() -> AsyncIterator[str]:
            self.running += 1
            try:
                both = merge_items(far.subscribe("far/items"), far.subscribe("far/items"))
                async with map_items(both, msgspec.json.Decoder(str).decode) as merged:
                    async for item in merged:
                        self.passed += 1
                        yield item
            finally:
                self.running -= 1

        return items


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_the_last_consumer_holds_back_the_first_producer(carrier: str) -> None:
    counted = Counted()
    most = MOST_AHEAD[carrier]
    async with AsyncExitStack() as stack:
        far = await stack.enter_async_context(open_hop(counted.far_items, limits=LIMITS))
        between = await stack.enter_async_context(far.connect(carrier=carrier))
        middle = counted.middle(between)
        near = await stack.enter_async_context(open_hop(middle, limits=LIMITS))
        session = await stack.enter_async_context(near.connect(carrier=carrier))
        async with session.subscribe("mid/items") as items:
            for taken in range(0, 120, 10):
                await _settled(counted)
                assert counted.passed - taken <= most
                assert counted.produced - counted.passed <= 2 * most  # of two sources
                for _ in range(10):
                    await anext(items)
        await _settled(counted)
        assert counted.running == 0
        assert between.calling.pending == {}


async def _settled(counted: Counted) -> None:
    """Wait until nothing moves any more: sockets take a few rounds of the scheduler."""
    seen = None
    while seen != (counted.produced, counted.passed, counted.running):
        seen = (counted.produced, counted.passed, counted.running)
        for _ in range(10):
            await trio.testing.wait_all_tasks_blocked(0.002)
