"""The clocks of a session: one that cannot be set and counts the machine's sleep, and a time of day based on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

_COUNTS_SLEEP = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Jobs keep running while the machine sleeps. On Linux, only CLOCK_BOOTTIME does, too; on macOS, CLOCK_MONOTONIC."""


steady_s: Callable[[], float] = partial(time.clock_gettime, _COUNTS_SLEEP)
"""Seconds since some moment in the past, including sleep; unlike the wall clock, it cannot be set."""


class WallClock:
    """UTC epoch seconds: read once from the wall clock, then advanced by another clock.

    So setting the wall clock during a session does not shift its times against each other.

    Args:
        clock: Seconds that never go backwards.
        wall: UTC epoch seconds; read once.
    """

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._clock = clock
        self._offset_s = wall() - clock()

    def __call__(self) -> float:
        """The current time."""
        return self._clock() + self._offset_s
