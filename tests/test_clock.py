"""A clock that counts the time that the machine slept."""

from __future__ import annotations

from batchrun.clock import SteadyClock


class Machine:
    def __init__(self) -> None:
        self.monotonic_s, self.wall_s = 1000.0, 1_700_000_000.0
        self.clock = SteadyClock(lambda: self.monotonic_s, lambda: self.wall_s)

    def passes(self, monotonic_s: float, wall_s: float) -> float:
        """Let time pass as the two clocks show it; how much the steady clock shows of it."""
        before = self.clock()
        self.monotonic_s += monotonic_s
        self.wall_s += wall_s
        return round(self.clock() - before, 6)


def test_time_passes_as_it_does_and_a_sleep_counts_though_the_monotonic_clock_stood_still():
    machine = Machine()
    assert machine.passes(10.0, 10.0) == 10.0
    assert machine.passes(0.1, 3600.1) == 3600.1
    assert machine.clock.slept_s == 3600.0
    assert machine.passes(10.0, 10.0) == 10.0
    assert machine.passes(0.0, 60.0) == 60.0


def test_a_monotonic_clock_that_counts_sleep_is_not_counted_twice():
    machine = Machine()
    assert machine.passes(3600.0, 3600.0) == 3600.0


def test_small_steps_and_a_wall_clock_that_is_set_back_change_nothing():
    machine = Machine()
    assert sum(machine.passes(1.0, 1.5) for _ in range(100)) == 100.0
    assert machine.passes(1.0, -7200.0) == 1.0
    assert machine.passes(1.0, 1.0) == 1.0
    assert machine.passes(1.0, 601.0) == 601.0, "a sleep after it is still seen"
