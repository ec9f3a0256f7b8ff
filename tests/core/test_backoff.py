"""Waits between attempts, and rates."""

from __future__ import annotations

import pytest

from alknet.core.backoff import Backoff
from alknet.core.rate import RateLimit


def test_bounds_double_up_to_the_longest() -> None:
    backoff = Backoff(random=lambda: 0.5)
    assert [2 * backoff.next_s() for _ in range(9)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert backoff.attempts == 9
    backoff.reset()
    assert 2 * backoff.next_s() == 1


def test_a_wait_may_be_anything_below_its_bound() -> None:
    drawn = iter([0.0, 0.25, 0.999])
    backoff = Backoff(first_s=10, longest_s=15, random=lambda: next(drawn))
    assert [backoff.next_s() for _ in range(3)] == pytest.approx([0.0, 3.75, 14.985])


def test_waits_differ_and_never_exceed_the_longest_however_many_there_were() -> None:
    backoff = Backoff()
    waits = [backoff.next_s() for _ in range(5_000)]
    assert all(0 <= wait < 60 for wait in waits)
    assert len(set(waits)) > 4_900
    late = waits[100:]
    assert min(late) < 6
    assert max(late) > 54


def test_a_rate_is_spent_at_once_and_comes_back_with_time() -> None:
    now = 100.0
    rate = RateLimit(2.0, 3, now=lambda: now)
    assert [rate.take() for _ in range(5)] == [True, True, True, False, False]
    assert rate.wait_s == pytest.approx(0.5)
    now += 0.5
    assert rate.wait_s == 0
    assert [rate.take() for _ in range(2)] == [True, False]
    now += 1_000
    assert [rate.take() for _ in range(4)] == [True, True, True, False]
