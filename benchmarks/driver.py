"""What a worker does when told, with either async library: serve, dial, call, transfer, mix."""

from __future__ import annotations

import gc
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Protocol

import msgspec

PIECE_BYTES = 4 * 1024 * 1024


class Tally:
    """Bulk that was received so far, until somebody stops it."""

    def __init__(self) -> None:
        self.received = 0
        self.is_over = False


class Link:
    """One connection of a peer. Each implements what its benchmarks need."""

    async def call(self) -> None:
        """Make one small call and wait for its answer."""
        raise NotImplementedError

    async def download(self, size: int) -> None:
        """Have so many bytes sent to us over one stream."""
        raise NotImplementedError

    async def upload(self, size: int) -> None:
        """Send so many bytes over one stream, until the other side says that it has them."""
        raise NotImplementedError

    async def touch(self) -> None:
        """Make sure that the other side took the connection."""
        await self.call()

    async def pour(self, tally: Tally) -> None:
        """Receive bulk beside calls until the tally is over."""
        while not tally.is_over:
            await self.download(PIECE_BYTES)
            tally.received += PIECE_BYTES


class Runtime(Protocol):
    """The async library."""

    async def gather(self, jobs: Iterable[Callable[[], Awaitable[None]]]) -> None:
        """Run all jobs until all have ended."""

    async def sleep(self, seconds: float) -> None: ...

    async def hold(self, manager: AbstractAsyncContextManager[Any]) -> Any:
        """Enter *manager* and keep it until `release`; returns what it yields."""

    async def release(self) -> None:
        """Leave all that is held."""


class Server:
    """The commands of a server's process."""

    def __init__(self, serve: Callable[[str], AbstractAsyncContextManager[Any]]) -> None:
        self._serve = serve

    async def serve(self, runtime: Runtime, *, directory: str) -> object:
        return await runtime.hold(self._serve(directory))


class Client:
    """The commands of a client's process."""

    def __init__(self, dial: Callable[[Any], AbstractAsyncContextManager[Link]]) -> None:
        self._dial = dial
        self._links: list[Link] = []

    async def open(self, runtime: Runtime, *, address: Any, links: int, parallel: int) -> object:
        """Connect *links* times, *parallel* at once, each until the other side answered."""
        remaining = iter(range(links))

        async def worker() -> None:
            for _ in remaining:
                link = await runtime.hold(self._dial(address))
                await link.touch()
                self._links.append(link)

        started_at = time.perf_counter()
        await runtime.gather([worker] * min(parallel, links))
        return {"seconds": time.perf_counter() - started_at}

    async def close(self, runtime: Runtime) -> object:
        self._links.clear()
        await runtime.release()
        gc.collect()
        return {}

    async def calls(
        self, runtime: Runtime, seconds: float, in_flight: int, skip: int = 0
    ) -> dict[str, float]:
        """Keep *in_flight* calls going, over all links but the first *skip*, for *seconds*."""
        links = self._links[skip:]
        ends_at = time.perf_counter() + seconds
        took: list[float] = []

        async def worker(at: int) -> None:
            started_at = time.perf_counter()
            is_first = True  # one call each, even where all the time passed before this task ran
            while is_first or started_at < ends_at:
                is_first = False
                await links[at % len(links)].call()
                ended_at = time.perf_counter()
                took.append(ended_at - started_at)
                started_at, at = ended_at, at + in_flight

        began_at = time.perf_counter()
        await runtime.gather([partial(worker, number) for number in range(in_flight)])
        elapsed = time.perf_counter() - began_at
        took.sort()
        return {
            "calls": len(took),
            "seconds": elapsed,
            "p50": took[len(took) // 2],
            "p99": took[len(took) * 99 // 100],
        }

    async def transfer(
        self, runtime: Runtime, *, direction: str, size: int, limit_s: float
    ) -> object:
        """Move *size* bytes over the first link, or what passes within *limit_s*, in pieces."""
        run = self._links[0].download if direction == "download" else self._links[0].upload
        moved = 0
        started_at = time.perf_counter()
        while moved < size and time.perf_counter() - started_at < limit_s:
            piece = min(PIECE_BYTES, size - moved)
            await run(piece)
            moved += piece
        return {"seconds": time.perf_counter() - started_at, "moved": moved}

    async def mix(
        self, runtime: Runtime, *, seconds: float, in_flight: int, is_apart: bool
    ) -> object:
        """Make calls beside bulk on the first link; *is_apart* keeps calls off that link.

        With nothing in flight, bulk flows alone.
        """
        tally = Tally()
        found: dict[str, float] = {}

        async def wait() -> None:
            try:
                if in_flight:
                    found.update(await self.calls(runtime, seconds, in_flight, int(is_apart)))
                else:
                    await runtime.sleep(seconds)
                while not tally.received:  # a rate of nothing is no figure
                    await runtime.sleep(0.01)
            finally:
                tally.is_over = True
                found["seconds"] = time.perf_counter() - started_at
                found["received"] = tally.received

        started_at = time.perf_counter()
        await runtime.gather([partial(self._links[0].pour, tally), wait])
        return found


async def obey(target: Server | Client, runtime: Runtime, line: str) -> None:
    """Run the command in *line* and write its answer."""
    command = msgspec.json.decode(line)
    try:
        answer = {"ok": await getattr(target, command.pop("do"))(runtime, **command)}
    except Exception as exc:  # boundary: the process that asked is to hear of it  # noqa: BLE001
        traceback.print_exc()
        answer = {"error": repr(exc)}
    sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
    sys.stdout.flush()
