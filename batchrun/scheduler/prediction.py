"""When a job is likely to be over, learnt from the jobs that are.

The final answer of a job carries delayTime and executionTime, so the exact moments of its start and its end are
known however late it was asked for: late polls teach no lateness. Runpod's queue is first in, first out, so that
jobs start in the order of their submission. Two things are learnt from the last jobs that ended:

- *The pace of the queue*: the time between two starts while jobs were waiting. A start that waited for nothing says
  nothing about the pace, so a pause in the submissions does not look like a slow endpoint. The expected start of a
  job is where the pace leads from the last known start, but never before its submission. It follows the number of
  workers at once: after a cold start nobody is expected to wait the minute that the first jobs did, and while a
  queue builds up each job is expected to wait longer than the one before.
- *The spread around it*: how long after the start that the pace gives them the same jobs really ended. That holds
  the execution time and the unevenness of the starts, and is kept as a spread of values, not as one number.

Other answers help the pace. An answer IN_QUEUE says that neither has any later job started by then. `/health` knows
the length of the queue, and so the farthest job that has started, minutes before any of the new ones ends; and the
number of jobs at work, which with the time that a job takes is a pace of its own: starts come in clusters, and a pace
that differs much from that one is not believed. So workers that come or go are followed within a sample.

A job is asked after when most of the spread has passed, and a job that was not over by then again by what is left
of the spread, and never more often than its time at work makes useful. Where status requests are plenty for each job
that ends, and times vary much, it is asked after earlier: twice the questions for half the lateness. So it is for the
last jobs of a run, whose lateness is the run's. Where they are scarce the plan asks for what has been due longest.

An endpoint that reports no delayTime is handled by the same code: the start is then the submission, and the spread is
that of the whole time in the system. `max_tokens` or the prompt's length are not looked at: in simulations of long
answers (log-normal times, 90 slots) the workers are kept busy to 97% without, so that there is little to gain.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from typing import NamedTuple

_KEEP = 256
"""Ended jobs that count: enough for a 90% quantile, few enough to follow a change within one window of jobs."""
_KEEP_FOR_PACE = 32
"""The least number of starts that make a pace."""
_REFRESH_EVERY = 32
"""Ended jobs between two looks at the samples: each look takes some 0.2 ms."""
_REFRESH_GAP_S = 0.05
"""The same in time, where so many jobs end that this would be sooner; within the samples that are kept."""
_REFRESH_EACH_OF_FIRST = 16
"""The first jobs are looked at one by one: each says much."""
_SPAN_IN_EXECUTIONS = 2.0
"""Workers that started together end together: the pace is taken over at least so many typical executions."""
_WAITED_S = 0.005
_IDLE_DELAY_MOST_S = 0.25
"""What the platform needs to hand a job to a worker that is free; what is longer is a wait."""
_CREDIBLE = 2.0
"""A pace that differs more than so many times from what the jobs at work make is not believed."""
_WAITS_GROW = 2.0
"""No job is expected to wait much longer than so many times the longest wait lately: a pace of few starts misleads."""
_NEWS_IN_EXECUTIONS = 1.25
_NEWS_S = 0.5
"""From a job's start to the news of its end."""
_LEAST_WAITING = 8
"""Jobs that must have waited, so that there is a queue."""
FIRST_QUANTILE = 0.85
"""The share of jobs expected to be over at their first poll."""
NEXT_QUANTILE = 0.7
"""The same, of those that are left, at a further poll."""
_EAGER_FIRST_QUANTILE = 0.6
_EAGER_NEXT_QUANTILE = 0.5
"""The same where requests are plenty and times vary much: twice the questions, half the lateness."""
_PLENTY = 6.0
"""Status requests that are allowed for each job that ends."""
_WIDE = 0.25
"""The spread without its outer parts, as a share of what a job takes."""
_UNLIMITED_PER_S = 1000.0
"""Status requests a second that a server without limits is asked at most for the sake of lateness."""
_NEARLY_ALL = 0.98
_LEAST_GAP_S = 0.02
_DOUBLINGS = 5
"""Of the least gap, from poll to poll: what is asked after in vain is asked after less and less."""
_TAIL_DOUBLINGS = 2
_MOST_GAP_S = 15.0
_AGE_SHARE = 0.05


class _Seen(NamedTuple):
    """What `/health` said of the queue."""

    place: int
    at: float
    at_work: int
    is_queue: bool


class Predictor:
    """What is known of how long jobs take.

    Jobs are known by their place in the order of submission (0, 1, 2, ...).

    Args:
        polls_per_s: Status requests that are allowed; 0: unlimited.
    """

    __slots__ = (
        "_ages",
        "_executions",
        "_first_quantile",
        "_jobs",
        "_last",
        "_longest_wait_s",
        "_next_quantile",
        "_polls_per_s",
        "_queued",
        "_refresh_every",
        "_seen",
        "_spread",
        "_unseen",
        "execution_s",
        "has_queue",
        "is_tail",
        "pace_s",
        "steady_s",
        "version",
        "waited_s",
    )

    def __init__(self, polls_per_s: float = 0.0) -> None:
        self._polls_per_s = polls_per_s or _UNLIMITED_PER_S
        self._first_quantile = FIRST_QUANTILE
        self._next_quantile = NEXT_QUANTILE
        self.is_tail = False
        """Whether nothing more is submitted."""
        self.steady_s = 0.0
        """What a job takes at least, where all take about the same; 0 where they do not."""
        self._jobs: list[tuple[int, float, float, float]] = []
        self._ages: deque[float] = deque(maxlen=_KEEP)
        self._spread: list[float] = []
        self._executions: list[float] = []
        self._seen: _Seen | None = None
        self._last: tuple[int, float] | None = None
        self.pace_s = 0.0
        """Seconds from one start to the next while jobs waited; 0 when none did."""
        self.has_queue = False
        """Whether the last jobs had to wait: only then the pace says something about the workers."""
        self.waited_s = _WAITED_S
        """A job that was in the queue for no longer found a free worker."""
        self.execution_s = 0.0
        """What a job typically takes; 0 when nobody knows."""
        self._longest_wait_s = float("inf")
        self._queued: tuple[int, float] | None = None
        self._unseen = 0
        self._refresh_every = _REFRESH_EVERY
        self.version = 0
        """Grows whenever the predictions may have changed."""

    def learn(
        self, place: int, submitted_at: float, *, delay_s: float | None, execution_s: float | None, age_s: float
    ) -> None:
        """A job ended.

        Args:
            place: Its place in the order of submission.
            submitted_at: When it was submitted.
            delay_s: How long it was in the queue; None when the endpoint did not say.
            execution_s: How long it ran; None when the endpoint did not say.
            age_s: The best guess of its age at its end, for an endpoint that says neither.
        """
        if delay_s is None or execution_s is None:
            self._ages.append(age_s)
        else:
            start = submitted_at + delay_s
            insort(self._jobs, (place, submitted_at, start, start + execution_s))
            if len(self._jobs) > _KEEP:
                del self._jobs[0]
        self._unseen += 1
        if self._unseen >= self._refresh_every or self.version <= _REFRESH_EACH_OF_FIRST:
            self._refresh()

    def enter_tail(self) -> None:
        """Nothing more is submitted: what is found out late from now on makes the run end late."""
        if self._spread and not self.is_tail:
            self.is_tail = True
            self._refresh()

    def saw_queued(self, place: int, at: float) -> None:
        """A job was still in the queue at `at`."""
        if self._queued is None or at > self._queued[1] or place < self._queued[0]:
            self._queued = (place, at)

    def saw_started(self, place: int, at: float, *, at_work: int, is_queue: bool) -> None:
        """All jobs up to this place had started by `at`: `/health` knows it before any of them ends.

        Args:
            place: In the order of submission.
            at: When `/health` answered.
            at_work: Jobs that were at work then; 0: nobody knows, or they were other people's.
            is_queue: Whether jobs were waiting, so that no more can be at work.
        """
        self._seen = _Seen(place, at, at_work, is_queue)
        if self._last is not None:
            self.pace_s = self._credible(self.pace_s)
            self._hurry()

    def _credible(self, pace_s: float) -> float:
        """A pace that agrees with the number of jobs at work: starts come in clusters, which mislead."""
        seen = self._seen
        if seen is None or not seen.at_work or not pace_s:
            return pace_s
        level_s = self.execution_s / seen.at_work
        least_s = level_s / _CREDIBLE if seen.is_queue else 0.0
        return min(max(pace_s, least_s), level_s * _CREDIBLE)

    def _hurry(self) -> None:
        """Count from the last job that is known to have started, if that is farther than the pace leads."""
        if self._last is None or self._seen is None:
            return
        (last_place, last_start), seen = self._last, self._seen
        if seen.place > last_place and last_start + (seen.place - last_place) * self.pace_s > seen.at:
            self._last = (seen.place, seen.at)
            self.version += 1

    def expected_start(self, place: int, submitted_at: float) -> float:
        """When a job is likely to start, or to have started."""
        start = submitted_at
        if self._last is not None:
            last_place, last_start = self._last
            start = max(
                start, min(last_start + (place - last_place) * self.pace_s, submitted_at + self._longest_wait_s)
            )
        if self._queued is not None and place >= self._queued[0]:
            start = max(start, self._queued[1])
        return start

    def least_wait_s(self, place: int) -> float:
        """How long a job submitted now waits at least, if those that have started were to be known by now.

        Silence is no progress: without it, starts that are only expected would make room for more.
        """
        if self._last is None:
            return 0.0
        return (place - self._last[0]) * self.pace_s - _NEWS_IN_EXECUTIONS * self.execution_s - _NEWS_S

    def first_poll_at(self, place: int, submitted_at: float) -> float | None:
        """When to ask first after a job; None when nothing has been learnt yet."""
        if not self._spread:
            return None
        return self.expected_start(place, submitted_at) + _quantile(self._spread, self._first_quantile)

    def likely_end(self, place: int, submitted_at: float) -> float | None:
        """When nearly every such job would be over; None when nothing has been learnt yet."""
        if not self._spread:
            return None
        return self.expected_start(place, submitted_at) + _quantile(self._spread, _NEARLY_ALL)

    def next_poll_at(
        self, place: int, submitted_at: float, polled_at: float, polls: int, *, started_by: float = float("inf")
    ) -> float:
        """When to ask again after a job that was not over at `polled_at`, after `polls` (>= 1) polls.

        `started_by` is when it had started at the latest; inf: nobody knows.
        """
        start = self.expected_start(place, submitted_at)
        gap_s = self._gap_s(polled_at - start, polls, self._spread)
        if self.is_tail and started_by < float("inf"):
            gap_s = min(gap_s, self._gap_s(polled_at - min(start, started_by), polls, self._executions))
        return polled_at + gap_s

    def _gap_s(self, passed_s: float, polls: int, spread: list[float]) -> float:
        most_s = max(_MOST_GAP_S, _AGE_SHARE * self.execution_s)
        share = _AGE_SHARE / 2 if self.is_tail else _AGE_SHARE
        doublings = min(polls - 1, _TAIL_DOUBLINGS if self.is_tail else _DOUBLINGS)
        gap_s = min(most_s, max(share * passed_s, _LEAST_GAP_S * 2.0**doublings))
        above = bisect_right(spread, passed_s)
        left = len(spread) - above
        if left:
            gap_s = max(gap_s, spread[above + min(int(left * self._next_quantile), left - 1)] - passed_s)
        return gap_s

    def _refresh(self) -> None:
        self._unseen = 0
        self.version += 1
        jobs = self._jobs
        if not jobs:
            self._spread = sorted(self._ages)
            return
        last_place, _, last_start, _ = jobs[-1]
        delays = [start - submitted for _, submitted, start, _ in jobs]
        self.waited_s = waited_from_s = _WAITED_S + min(*delays, _IDLE_DELAY_MOST_S)
        executions = self._executions = sorted(end - start for _, _, start, end in jobs[-_KEEP_FOR_PACE:])
        least_span_s = _SPAN_IN_EXECUTIONS * executions[len(executions) // 2]
        waited_s, waiting, first = 0.0, 0, len(jobs) - 1
        while first > 0:
            after_place, after_submitted, after_start, _ = jobs[first]
            first -= 1
            place, _, start, _ = jobs[first]
            if after_start - after_submitted > waited_from_s:
                waited_s += after_start - max(start, after_submitted)
                waiting += after_place - place
            if waiting >= _KEEP_FOR_PACE and last_start - start >= least_span_s:
                break
        pace_s = max(waited_s / waiting, 0.0) if waiting else 0.0
        self.execution_s = executions[len(executions) // 2]
        least_s = _quantile(executions, 0.15)
        self.steady_s = least_s if _quantile(executions, 0.85) - least_s <= _WIDE * self.execution_s else 0.0
        self._last, self.pace_s = (last_place, last_start), self._credible(pace_s)
        self._hurry()
        self.has_queue = self.pace_s > 0 and waiting >= min(_LEAST_WAITING, len(jobs) - first)
        self._longest_wait_s = _WAITS_GROW * max(delays) + self.execution_s
        spread, expected = [], last_start
        for index in range(len(jobs) - 1, first - 1, -1):
            place, submitted_at, start, end = jobs[index]
            spread.append(end - max(submitted_at, expected))
            if start - submitted_at > waited_from_s:
                expected -= (place - jobs[index - 1][0]) * pace_s
            else:
                expected = jobs[index - 1][2]
        spread.sort()
        self._spread = spread
        ends = [end for *_, end in jobs]
        span_s = max(ends) - min(ends)
        in_gap = int(_REFRESH_GAP_S * len(jobs) / max(span_s, _REFRESH_GAP_S))
        self._refresh_every = max(in_gap, _REFRESH_EVERY)
        per_job = self._polls_per_s * span_s / len(jobs)
        is_wide = _quantile(spread, 0.85) - _quantile(spread, 0.15) > _WIDE * self.execution_s
        eager = self.is_tail or (is_wide and per_job >= _PLENTY)
        self._first_quantile = _EAGER_FIRST_QUANTILE if eager else FIRST_QUANTILE
        self._next_quantile = _EAGER_NEXT_QUANTILE if eager else NEXT_QUANTILE


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
