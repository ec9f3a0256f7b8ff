"""A bell: something changed, and whoever waits looks again."""

from __future__ import annotations

import trio

__all__ = ["Changes"]


class Changes:
    """Counts changes and wakes those who wait for one. Costs nobody anything who does not wait.

    Attributes:
        version: Grows with each change.
    """

    __slots__ = ("_waiting", "version")

    def __init__(self) -> None:
        self.version = 0
        self._waiting = trio.lowlevel.ParkingLot()

    def ring(self) -> None:
        """Count a change and wake those who wait; never waits."""
        self.version += 1
        self._waiting.unpark_all()

    async def wait_changed(self, version: int) -> int:
        """Wait until `version` differs from *version* and return it. Cancelled, nothing happens."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while self.version == version:
            await self._waiting.park()
        return self.version
