"""Wall-clock time, for what people and files mean by time: expiries, log lines, ticket dates.

Everything that measures a duration uses `trio.current_time`, which a test's clock can drive.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["WallClock", "wall_clock"]

WallClock = Callable[[], float]
"""Seconds since the Unix epoch, UTC."""

wall_clock: WallClock = time.time  # noqa: TID251  the one place that names it
