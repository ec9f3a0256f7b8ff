"""How long to wait before something that failed is tried again."""

from __future__ import annotations

import secrets
from collections.abc import Callable

__all__ = ["Backoff"]

# A peer that restarts is back within seconds; one that is gone for good costs a dial a minute.
FIRST_S = 1.0
LONGEST_S = 60.0

_RANDOM = secrets.SystemRandom()


class Backoff:
    """Waits that double up to a bound, each drawn from the whole span below ("full jitter").

    A thousand workers that lost their hub at once come back spread out, not all at once.

    Args:
        first_s: The bound of the first wait.
        longest_s: The bound of any.
        random: Returns numbers from 0 up to, not including, 1.

    Attributes:
        attempts: How many waits there were since the beginning or `reset`.
    """

    def __init__(
        self,
        *,
        first_s: float = FIRST_S,
        longest_s: float = LONGEST_S,
        random: Callable[[], float] = _RANDOM.random,
    ) -> None:
        self.attempts = 0
        self._first_s = first_s
        self._longest_s = longest_s
        self._random = random

    def next_s(self) -> float:
        """Return how long to wait now, in seconds."""
        # Past 2^32 the bound holds for any sane figures, and powers would grow without end.
        bound_s = min(self._longest_s, self._first_s * 2.0 ** min(self.attempts, 32))
        self.attempts += 1
        return bound_s * self._random()

    def reset(self) -> None:
        """Begin anew: what was tried has worked."""
        self.attempts = 0
