"""Streams made of streams: what subscriptions yield, mapped, filtered and merged.

```python
@operation("site/alarms", access=scopes("site"), calls=["@w1/alarms", "@w2/alarms"])
async def alarms(ctx: Context) -> AsyncIterator[Alarm]:
    '''Yield what any of the machines reports, if it is urgent.'''
    reports = merge_items(*(ctx.subscribe("alarms/all", peer=peer) for peer in MACHINES))
    async with filter_items(map_items(reports, Decoder(Alarm).decode), is_urgent) as urgent:
        async for alarm in urgent:
            yield alarm
```

Each takes what `alknet.call.context.Context.subscribe` returns, and returns the same: an async
context manager that gives an async iterator.

- A stream ends once, with its last item or with an error; then it has no more items.
- An error of a source or function comes out as it is.
- Leaving the block leaves those of all sources, which ends their operations.
- Nothing is taken ahead, but for one item of each source of `merge_items`: who does not ask for the
  next item holds back all that is behind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Generic, Self, TypeAlias, TypeVar

import trio

from alknet.core.scopes import open_background

__all__ = ["Items", "filter_items", "map_items", "merge_items"]

T = TypeVar("T")
R = TypeVar("R")

Items: TypeAlias = AbstractAsyncContextManager[AsyncIterator[T]]
"""A stream that has not begun; entered once, it gives its items."""


@asynccontextmanager
async def map_items(
    source: Items[T], function: Callable[[T], R]
) -> AsyncGenerator[AsyncIterator[R]]:
    """Give what *function* makes of each item."""
    async with source as items:
        yield _Mapped(items, function)


@asynccontextmanager
async def filter_items(
    source: Items[T], predicate: Callable[[T], bool]
) -> AsyncGenerator[AsyncIterator[T]]:
    """Give the items of which *predicate* is true."""
    async with source as items:
        yield _Filtered(items, predicate)


@asynccontextmanager
async def merge_items(*sources: Items[T]) -> AsyncGenerator[AsyncIterator[T]]:
    """Give the items of all *sources* as they come, those of each in their order.

    Each source runs in a task beside the block; they are entered one after the other. The stream
    ends when all of them have ended, or with the first error of one, which ends the others.
    """
    send, receive = trio.open_memory_channel[T | _Failure](0)
    scopes = [trio.CancelScope() for _ in sources]
    # Left in this order: tasks that still have an item end before the channel does.
    async with receive, open_background() as nursery:
        async with send:
            for source, scope in zip(sources, scopes, strict=True):
                await nursery.start(_forward, source, send.clone(), scope, name="merged items")
        yield _Merged(receive, scopes)


async def _forward(
    source: Items[T],
    send: trio.MemorySendChannel[T | _Failure],
    scope: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    has_begun = False
    with send, scope:
        try:
            async with source as items:
                has_begun = True
                task_status.started()
                async for item in items:
                    await send.send(item)
        except Exception as exc:  # boundary: it is raised again where the items are taken
            if not has_begun:
                raise
            await send.send(_Failure(exc))


class _Failure:
    def __init__(self, error: Exception) -> None:
        self.error = error


class _Once(ABC, Generic[R]):
    """An async iterator that ends once, whatever its source does when it is asked again."""

    def __init__(self) -> None:
        self._is_over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> R:
        if self._is_over:
            raise StopAsyncIteration
        try:
            return await self._next()
        except Exception:  # raised again: the end, whatever it is
            self._is_over = True
            raise

    @abstractmethod
    async def _next(self) -> R: ...


class _Mapped(_Once[R], Generic[T, R]):
    def __init__(self, items: AsyncIterator[T], function: Callable[[T], R]) -> None:
        super().__init__()
        self._items = items
        self._function = function

    async def _next(self) -> R:
        return self._function(await anext(self._items))


class _Filtered(_Once[T]):
    def __init__(self, items: AsyncIterator[T], predicate: Callable[[T], bool]) -> None:
        super().__init__()
        self._items = items
        self._predicate = predicate

    async def _next(self) -> T:
        while not self._predicate(item := await anext(self._items)):
            # A source that never waits, of which nothing fits, ends by a cancel all the same.
            await trio.lowlevel.checkpoint_if_cancelled()
        return item


class _Merged(_Once[T]):
    def __init__(
        self,
        receive: trio.MemoryReceiveChannel[T | _Failure],
        scopes: Sequence[trio.CancelScope],
    ) -> None:
        super().__init__()
        self._receive = receive
        self._scopes = scopes

    async def _next(self) -> T:
        item = await anext(self._receive)
        if not isinstance(item, _Failure):
            return item
        for scope in self._scopes:
            scope.cancel()
        raise item.error
