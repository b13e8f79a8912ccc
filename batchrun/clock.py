"""A clock for nights on a laptop: monotonic seconds that also count the time that the machine slept."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_JUMP_S = 5.0
"""A smaller step of the wall clock is NTP at work."""


class SteadyClock:
    """Seconds that never go back, and that a suspended machine does not lose.

    A monotonic clock may stand still while the machine sleeps (on Linux it does), and jobs do not. So when the wall
    clock has run ahead of it by more than a few seconds, that much time has passed too. A wall clock that is set
    forward looks the same, and only makes jobs be asked after early; one that is set back changes nothing.

    Args:
        monotonic: Seconds that never go back.
        wall: UTC epoch seconds.
    """

    def __init__(self, monotonic: Callable[[], float], wall: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self._gap = wall() - monotonic()
        self.slept_s = 0.0
        """What the monotonic clock has missed so far."""

    def __call__(self) -> float:
        """The present."""
        now = self._monotonic()
        gap = self._wall() - now
        if gap - self._gap > _JUMP_S:
            self.slept_s += gap - self._gap
        self._gap = gap
        return now + self.slept_s
