"""A worker's loop on Trio."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any

import trio

from benchmarks.driver import Client, Server, obey


class TrioRuntime:
    """See `benchmarks.driver.Runtime`. Each held manager lives in a task of its own."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._released = trio.Event()
        self._held = 0
        self._empty = trio.Event()

    async def gather(self, jobs: Iterable[Callable[[], Awaitable[None]]]) -> None:
        async with trio.open_nursery() as nursery:
            for job in jobs:
                nursery.start_soon(job)

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def hold(self, manager: AbstractAsyncContextManager[Any]) -> Any:
        return await self._nursery.start(self._hold, manager, self._released)

    async def _hold(
        self,
        manager: AbstractAsyncContextManager[Any],
        released: trio.Event,
        *,
        task_status: trio.TaskStatus[Any],
    ) -> None:
        self._held += 1
        try:
            async with manager as value:
                task_status.started(value)
                await released.wait()
        finally:
            self._held -= 1
            if not self._held:
                self._empty.set()

    async def release(self) -> None:
        self._empty = trio.Event()
        self._released.set()
        self._released = trio.Event()
        if self._held:
            await self._empty.wait()


def run(target: Server | Client) -> None:
    """Obey commands until standard input ends."""
    trio.run(_run, target)


async def _run(target: Server | Client) -> None:
    async with trio.open_nursery() as nursery:
        runtime = TrioRuntime(nursery)
        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            await obey(target, runtime, line)
        nursery.cancel_scope.cancel()
