"""A bell: something changed, and whoever waits looks again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import trio

__all__ = ["Changes", "wait_any"]


class Changes:
    """Counts changes and wakes those who wait for one. Costs nobody anything who does not wait.

    Attributes:
        version: Grows with each change.
    """

    __slots__ = ("_waiting", "version")

    def __init__(self) -> None:
        self.version = 0
        self._waiting: set[trio.Event] = set()

    def ring(self) -> None:
        """Count a change and wake those who wait; never waits."""
        self.version += 1
        for waiting in self._waiting:
            waiting.set()

    async def wait_changed(self, version: int) -> int:
        """Wait until `version` differs from *version* and return it. Cancelled, nothing happens."""
        await wait_any((self, version))
        return self.version

    @contextmanager
    def waking(self, event: trio.Event) -> Iterator[None]:
        """Set *event* at each change during the block."""
        self._waiting.add(event)
        try:
            yield
        finally:
            self._waiting.discard(event)


async def wait_any(*seen: tuple[Changes, int]) -> None:
    """Wait until the version of one of several bells is not the one that was seen of it.

    Cancelled, nothing happens.
    """
    await trio.lowlevel.checkpoint_if_cancelled()
    if any(changes.version != version for changes, version in seen):
        return
    rung = trio.Event()
    with ExitStack() as stack:
        for changes, _ in seen:
            stack.enter_context(changes.waking(rung))
        await rung.wait()
