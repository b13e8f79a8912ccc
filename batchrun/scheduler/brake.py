"""How many jobs may be in flight beside a worker that fails each job at once.

Such a worker is always free, so it empties the queue while the others are busy: a job does best that is submitted
just when another worker has become free. So there are to be as many jobs in flight as the other workers have been seen
to hold, and the end of one makes room for the next. Whether they could take more is tried now and then: twice as many,
at gaps that double with each such trial that fails. No client can do better than one failure for each result where
the platform gives jobs to idle workers in turn, or by chance: one of two idle workers is the dead one.
"""

from __future__ import annotations

from collections import deque

_TRIES = 6
"""Failures one after the other, of jobs that the others have had room for, until that is not believed any more."""
_PAIR_FROM_TRIES = 2
"""After so many there is one job more in flight: while the dead worker fails the one, it cannot take the other."""
_LEAST_GAP_S = 0.1
_MOST_GAP_S = 60.0
_QUIET_S = 30.0
"""A worker that has failed nothing for so long, though it was tried, is gone."""
_MOST_HELD = 1024
_CLOCK_S = 0.05
"""When a job was submitted is known only about so well: so much less of its time at work counts, at either end."""
_NOT_SWALLOWED_S = 0.25
"""A job that was in the queue for longer, and for half of what a job takes, has met no such worker."""


class Brake:
    """Bounds the jobs in flight while it is on."""

    __slots__ = ("_cut_at", "_held", "_limit", "_proven", "_trials", "_tries", "_until", "is_on")

    def __init__(self) -> None:
        self.is_on = False
        """Whether there is a bound."""
        self._held: deque[_Span] = deque(maxlen=_MOST_HELD)
        """The last jobs that others have ended."""
        self._proven = 1
        """The most that they have held at once."""
        self._limit = 0
        self._trials = 0
        self._tries = 0
        self._until = self._cut_at = float("-inf")

    @property
    def opens_at(self) -> float | None:
        """When the bound grows, if nothing happens before; None while there is none."""
        return self._until if self.is_on else None

    def size(self, now: float) -> int:
        """Jobs that may be in flight while it is on."""
        return self._limit if now < self._until else max(self._limit, 2 * self._proven)

    def failed(self, submitted_at: float, in_flight: int, now: float, usual_s: float) -> None:
        """A worker that fails each job has failed another one.

        Args:
            submitted_at: When the job was submitted.
            in_flight: Jobs in flight without it.
            now: The present.
            usual_s: What a job takes elsewhere; 0 when nobody knows.
        """
        if not self.is_on:
            self.is_on, self._trials, self._tries = True, 0, 0
            self._until = self._cut_at = float("-inf")
            self._prove(1)
        is_over = in_flight >= self._proven
        if is_over:
            self._limit = in_flight
        if submitted_at < self._cut_at:
            return
        self._cut_at = now
        gap_s = max(usual_s, _LEAST_GAP_S)
        if is_over:
            if submitted_at >= self._until:
                self._until = now + min(gap_s * 2.0 ** min(self._trials, 30), _MOST_GAP_S)
                self._trials += 1
            return
        self._tries += 1
        if self._tries < _TRIES:
            self._limit = self._proven + (self._tries >= _PAIR_FROM_TRIES)
            return
        self._limit, self._trials = in_flight, 0
        self._prove(max(in_flight, 1))
        self._until = now + min(gap_s * 2.0 ** min(self._tries - _TRIES, 30), _MOST_GAP_S)

    def succeeded(self, submitted_at: float, delay_s: float, execution_s: float, now: float, usual_s: float) -> None:
        """Another worker has ended a job.

        Args:
            submitted_at: When it was submitted.
            delay_s: How long it was in the queue.
            execution_s: How long it was at work.
            now: The present.
            usual_s: What a job takes.
        """
        waited = submitted_at >= self._cut_at and delay_s > max(usual_s / 2, _NOT_SWALLOWED_S)
        if waited or now > max(2 * self._until - self._cut_at, self._cut_at + _QUIET_S):
            self.is_on = False
            self._held.clear()
            return
        if self._tries >= _PAIR_FROM_TRIES:
            self._limit = self._proven
        self._tries = 0
        held = self._hold(submitted_at + delay_s, execution_s)
        if held > self._proven:
            self._proven = held
            self._trials = 0

    def _prove(self, count: int) -> None:
        self._proven = count
        self._held.clear()

    def _hold(self, start: float, execution_s: float) -> int:
        """Add a job to those that others have ended; returns the most that were held at once with it."""
        margin_s = min(execution_s / 4, _CLOCK_S)
        new = _Span(start + margin_s, start + execution_s - margin_s)
        most = 1
        for span in self._held:
            if span.start <= new.start < span.end:
                new.count += 1
            elif new.start < span.start < new.end:
                span.count += 1
                most = max(most, span.count)
        self._held.append(new)
        return max(most, new.count)


class _Span:
    """When a job was at work, and how many were at its start."""

    __slots__ = ("count", "end", "start")

    def __init__(self, start: float, end: float) -> None:
        self.start = start
        self.end = end
        self.count = 1
