"""Python's garbage collector, set for a process that is one node."""

from __future__ import annotations

import gc

__all__ = ["calm_collector"]

# New containers before a collection, and how many of each generation make one of the next.
# Python's 700, 10, 10 has a node with a task per call look through all that lives every few
# seconds: calls that meet it wait 11 to 13 ms (99th percentile, 64 in flight, 2 vCPU); with these
# it is 2.2 ms, and 23 % more calls. What makes so rare a look bearable is that garbage in cycles
# is small: connections break theirs when they end (`Engine.let_go`), calls make none. So many
# containers are some 10 MB at most before the young ones are looked at.
THRESHOLDS = (50_000, 20, 100)


def calm_collector() -> None:
    """Look for garbage seldom, and never again among what is there now: modules, classes, tables.

    For a program's own process, once it has imported what it needs; a library must not do this.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
