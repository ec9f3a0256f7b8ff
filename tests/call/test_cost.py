"""What a call costs, counted: it must not grow unnoticed."""

from __future__ import annotations

import pytest

from benchmarks import bench_session


@pytest.mark.parametrize(
    ("links", "in_flight", "calls", "most_steps"),
    [
        (1, 1, 100, 4.2),  # the caller, a reader each side, and the task that runs it
        (1, 64, 1_000, 1.9),  # the caller; all else is shared
        (16, 16, 200, 4.6),
    ],
)
async def test_a_call_takes_few_steps_and_no_task(
    links: int, in_flight: int, calls: int, most_steps: float
) -> None:
    rows = await bench_session.measure(calls, 1, [(links, in_flight)])
    (sessions,) = [row for row in rows if row.peer == bench_session.SESSIONS]
    assert sessions.values["steps/call"] <= most_steps
    assert sessions.values["tasks/call"] <= 0.05
    assert sessions.values["CPU us/call"] > 0
