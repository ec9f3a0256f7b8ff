"""A worker's loop on asyncio, for the libraries that know no other."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any

from benchmarks.driver import Client, Server, obey


class AsyncioRuntime:
    """See `benchmarks.driver.Runtime`."""

    def __init__(self) -> None:
        self._held: list[AbstractAsyncContextManager[Any]] = []

    async def gather(self, jobs: Iterable[Callable[[], Awaitable[None]]]) -> None:
        await asyncio.gather(*(job() for job in jobs))

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def hold(self, manager: AbstractAsyncContextManager[Any]) -> Any:
        value = await manager.__aenter__()
        self._held.append(manager)
        return value

    async def release(self) -> None:
        held, self._held = self._held, []
        await asyncio.gather(*(manager.__aexit__(None, None, None) for manager in held))


def run(target: Server | Client) -> None:
    """Obey commands until standard input ends."""
    asyncio.run(_run(target))


async def _run(target: Server | Client) -> None:
    runtime = AsyncioRuntime()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        await obey(target, runtime, line)
    await runtime.release()
