"""The clocks of a session: one that nobody sets and that counts the machine's sleep, and the time of day with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

_COUNTS_SLEEP = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Jobs go on while the machine sleeps. On Linux only CLOCK_BOOTTIME does so, too; on macOS CLOCK_MONOTONIC does."""


steady_s: Callable[[], float] = partial(time.clock_gettime, _COUNTS_SLEEP)
"""Seconds since some moment in the past, with those that the machine has slept; nobody sets them."""


class WallClock:
    """UTC epoch seconds as the wall clock had them at first, counted on by another clock.

    So whoever sets the wall clock during a session moves none of its times against each other.

    Args:
        clock: Seconds that never go back.
        wall: UTC epoch seconds; read once.
    """

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._clock = clock
        self._offset_s = wall() - clock()

    def __call__(self) -> float:
        """The present."""
        return self._clock() + self._offset_s
