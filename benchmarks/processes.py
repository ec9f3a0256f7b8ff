"""Processes and those that they have started, as ``/proc`` shows them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

# The clock of another process's CPU time: CPUCLOCK_SCHED of Linux's make_process_cpuclock.
CPUCLOCK_SCHED = 2


def descendants(pid: int) -> Iterator[int]:
    """Yield the children of *pid*, and theirs."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, rest = stat.read_text().rpartition(")")
        except OSError:
            continue  # it has just ended
        children.setdefault(int(rest.split()[1]), []).append(int(stat.parent.name))
    waiting = [pid]
    while waiting:
        found = children.get(waiting.pop(), [])
        waiting += found
        yield from found


def cpu_s(pid: int) -> float:
    """Return the CPU time of all threads of *pid* so far."""
    return time.clock_gettime((~pid << 3) | CPUCLOCK_SCHED)


def family_cpu_s(pid: int) -> float:
    """Return that of *pid* and of its descendants that live."""
    total = cpu_s(pid)
    for one in descendants(pid):
        try:
            total += cpu_s(one)
        except OSError:
            continue
    return total
