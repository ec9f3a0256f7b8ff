"""Strangers who come and go: what their connections have cost, by the address they had proven.

A handshake takes 2 ms, which nobody who attacks has to fear: they can be made one after the other,
each within all other limits. Sans-IO: time comes in as ``now``.

Only connections whose handshake was complete count, for the address where it was: the other side
has heard us there. To write an address on packets, or to move there later, costs its owner nothing.
"""

from __future__ import annotations

from alknet.core.datagram import NetworkPath, format_address
from alknet.core.source import source_of

__all__ = ["CHURN_S", "MAX_SOURCES", "VIOLATION_COSTS", "Churn"]

# An address that has used up its limit of connections gets it back within this: 10 a second of the
# usual 100. They are 2 % of a core.
CHURN_S = 10.0
# A connection that we had to close for what came on it: ten of them, then one a second.
VIOLATION_COSTS = 10.0
# Sources that are remembered, 200 bytes each. Beyond, those of whom least is known are forgotten.
MAX_SOURCES = 4_096


class Churn:
    """What each source may still begin."""

    def __init__(self) -> None:
        self._spent: dict[str, tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._spent)

    def charge(self, address: NetworkPath, cost: float, limit: int, now: float) -> None:
        """Count a connection that has ended, up to *limit* and never beyond.

        Args:
            address: What had been proven.
            cost: 1, or `VIOLATION_COSTS`.
            limit: How much a source may spend at once.
        """
        source = source_of(format_address(address))
        if source not in self._spent and len(self._spent) >= MAX_SOURCES:
            self._forget_half(limit, now)
        self._spent[source] = min(float(limit), self._left_over(source, limit, now) + cost), now

    def is_worn_out(self, address: NetworkPath, limit: int, now: float) -> bool:
        """Whether the source at *address* has to wait."""
        if not self._spent:
            return False
        source = source_of(format_address(address))
        return source in self._spent and self._left_over(source, limit, now) > limit - 1

    def _left_over(self, source: str, limit: int, now: float) -> float:
        """Return what *source* has spent and time has not given back yet."""
        spent, counted_at = self._spent.get(source, (0.0, now))
        return max(0.0, spent - (now - counted_at) * limit / CHURN_S)

    def _forget_half(self, limit: int, now: float) -> None:
        by_debt = sorted(self._spent, key=lambda source: self._left_over(source, limit, now))
        for source in by_debt[: MAX_SOURCES // 2]:
            del self._spent[source]
