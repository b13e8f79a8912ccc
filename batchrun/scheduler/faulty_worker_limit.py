"""Bounds the jobs in flight while a faulty worker fails every job immediately.

Such a worker is always idle, so it drains the queue while the healthy workers are busy. A job is most likely to succeed
if it is submitted just when a healthy worker has become free. So the bound is the number of jobs that the healthy
workers have been observed to run at once, and each job that ends makes room for the next. From time to time twice as
many are tried; the interval doubles with each trial that fails. Where the platform picks an idle worker in turn or at
random, no client can do better than one failure for each result: one of two idle workers is the faulty one.
"""

from __future__ import annotations

from collections import deque

_TRIES = 6
"""After this many failures in a row of jobs within the bound, the bound is considered too high."""
_PAIR_FROM_TRIES = 2
"""After this many, one more job may be in flight: while the faulty worker fails one, it cannot take the other."""
_LEAST_GAP_S = 0.1
_MOST_GAP_S = 60.0
_QUIET_S = 30.0
"""A faulty worker that has failed no job for this long, although jobs were submitted, is gone."""
_MOST_HELD = 1024
_CLOCK_S = 0.05
"""How exactly the time of a submission is known. The execution time is shortened by this at both ends."""
_NOT_SWALLOWED_S = 0.25
"""A job that was queued for longer than this, and than half of a typical job, shows that no faulty worker is idle."""


class FaultyWorkerLimit:
    """A bound on the jobs in flight, applied while it is on."""

    __slots__ = ("_cut_at", "_held", "_limit", "_proven", "_trials", "_tries", "_until", "is_on")

    def __init__(self) -> None:
        self.is_on = False
        """Whether the bound applies."""
        self._held: deque[_Span] = deque(maxlen=_MOST_HELD)
        """The last jobs that healthy workers completed."""
        self._proven = 1
        """The most jobs that they have run at once."""
        self._limit = 0
        self._trials = 0
        self._tries = 0
        self._until = self._cut_at = float("-inf")

    @property
    def opens_at(self) -> float | None:
        """When the bound grows if nothing else happens; None while it is off."""
        return self._until if self.is_on else None

    def size(self, now: float) -> int:
        """The number of jobs that may be in flight while it is on."""
        return self._limit if now < self._until else max(self._limit, 2 * self._proven)

    def failed(self, submitted_at: float, in_flight: int, now: float, usual_s: float) -> None:
        """A faulty worker has failed another job.

        Args:
            submitted_at: When the job was submitted.
            in_flight: The number of jobs in flight without it.
            now: The current time.
            usual_s: The typical execution time on other workers; 0 if unknown.
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
        """A healthy worker has completed a job.

        Args:
            submitted_at: When the job was submitted.
            delay_s: How long it was in the queue.
            execution_s: How long it ran.
            now: The current time.
            usual_s: The typical execution time; 0 if unknown.
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
        """Add a job that a healthy worker completed; returns the most jobs that ran at once, counting it."""
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
    """When a job ran, and how many jobs were running at its start."""

    __slots__ = ("count", "end", "start")

    def __init__(self, start: float, end: float) -> None:
        self.start = start
        self.end = end
        self.count = 1
