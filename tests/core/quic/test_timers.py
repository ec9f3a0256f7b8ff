"""One heap of deadlines: whatever is armed and forgotten, all surface in time and nothing stays."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from alknet.core.quic.timers import Deadlines, Timer


def test_the_earliest_surfaces_first() -> None:
    deadlines: Deadlines[str] = Deadlines()
    late, soon = Timer("late"), Timer("soon")
    assert deadlines.arm(late, 5.0)
    assert deadlines.arm(soon, 3.0)
    assert not deadlines.arm(soon, 4.0)
    assert deadlines.next_at == 3.0
    assert deadlines.due(2.9, 9) == []
    assert deadlines.due(6.0, 9) == ["soon", "late"]
    assert deadlines.next_at is None


def test_forgotten_timers_never_surface() -> None:
    deadlines: Deadlines[str] = Deadlines()
    timer = Timer("gone")
    deadlines.arm(timer, 1.0)
    deadlines.forget(timer)
    deadlines.forget(timer)
    assert not deadlines.arm(timer, 0.5)
    assert deadlines.due(2.0, 9) == []
    assert len(deadlines) == 0


def test_forgotten_timers_do_not_pile_up() -> None:
    deadlines: Deadlines[int] = Deadlines()
    for number in range(10_000):
        timer = Timer(number)
        deadlines.arm(timer, 1000.0 + number)
        deadlines.forget(timer)
    assert len(deadlines) < 200


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.floats(0.001, 30.0), st.floats(0.0, 2.0)), max_size=200
    )
)
def test_an_owner_is_never_called_late_and_its_entries_stay_few(
    steps: list[tuple[int, float, float]],
) -> None:
    """Each owner wants to be called by its latest word; called early, it says so again."""
    deadlines: Deadlines[int] = Deadlines()
    timers = [Timer(number) for number in range(4)]
    wanted: dict[int, float] = {}
    now = 0.0
    for number, delay, passed in steps:
        wanted[number] = now + delay
        deadlines.arm(timers[number], wanted[number])
        now += passed
        for owner in deadlines.due(now, 9):
            if owner not in wanted:
                continue  # called once too often: harmless
            if wanted[owner] <= now:
                del wanted[owner]
            else:
                deadlines.arm(timers[owner], wanted[owner])
        assert all(when > now for when in wanted.values())
        assert all(timer.times == sorted(timer.times, reverse=True) for timer in timers)
        assert len(deadlines) == sum(len(timer.times) for timer in timers)
