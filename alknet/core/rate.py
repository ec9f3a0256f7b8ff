"""A rate that may be spent in bursts."""

from __future__ import annotations

from collections.abc import Callable

import trio

__all__ = ["RateLimit"]


class RateLimit:
    """So many at once, and so many a second after that (a "token bucket").

    Args:
        per_s: How fast it fills.
        burst: How much it holds; it begins full.
        now: Seconds of a monotonic clock.
    """

    def __init__(
        self, per_s: float, burst: float, *, now: Callable[[], float] = trio.current_time
    ) -> None:
        self._per_s = per_s
        self._burst = burst
        self._now = now
        self._left = burst
        self._counted_at: float | None = None

    def take(self) -> bool:
        """Spend one; False, and nothing is spent, if there is none."""
        self._fill()
        if self._left < 1:
            return False
        self._left -= 1
        return True

    @property
    def wait_s(self) -> float:
        """Seconds until there is one again; 0.0 if there is one now."""
        self._fill()
        return max(0.0, (1 - self._left) / self._per_s)

    def _fill(self) -> None:
        now = self._now()
        if self._counted_at is not None:
            self._left = min(self._burst, self._left + (now - self._counted_at) * self._per_s)
        self._counted_at = now
