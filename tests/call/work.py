"""An operation whose every run is counted, for tests of what becomes of calls."""

from __future__ import annotations

import trio

from alknet.call.operations import operation, public


class Work:
    """An operation that counts, and ends when it is told to."""

    def __init__(self) -> None:
        self.go = trio.Event()
        self.started = self.running = self.finished = self.cancelled = 0

    @operation("t/work", access=public())
    async def work(self) -> str:
        self.started += 1
        self.running += 1
        try:
            await self.go.wait()
            self.finished += 1
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return "done"
