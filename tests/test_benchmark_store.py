"""The store's benchmark measures what it says, in a form so small that the figures mean nothing."""

from __future__ import annotations

import pytest

from benchmarks import bench_store

pytestmark = pytest.mark.slow


def test_stores_are_measured_beside_apsw_alone() -> None:
    rows = bench_store.measure(seconds=0, rounds=1, wakes=3, peers=100)
    first = [(row.case, next(iter(row.values.values()))) for row in rows]
    # Who listens may see a commit before the one who made it has read the clock.
    assert all(value > 0 for case, value in first if case != bench_store.WAKES)
    assert [row.case for row in rows if row.peer == bench_store.ALONE] == [
        "1 writers",
        "16 writers",
        "256 writers",
        bench_store.READS,
        bench_store.WAKES,
    ]
    assert rows[-1].case == "load 100 peers"
