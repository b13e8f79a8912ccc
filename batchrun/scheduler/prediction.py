"""Predicts when a job ends, from the jobs that have ended.

The final answer of a job has delayTime and executionTime, so its exact start and end are known however late it was
polled: late polls do not distort the predictions. Runpod's queue is first in, first out: jobs start in the order of
their submission. Two things are learnt from the last jobs that ended:

- *The pace of the queue*: the time between two starts while jobs were waiting. A start without a wait says nothing
  about the pace, so a pause in the submissions does not look like a slow endpoint. The expected start of a job is
  extrapolated with the pace from the last known start, but is never before its submission. It follows the number of
  workers immediately: after a cold start no job is expected to wait the minute that the first jobs did, and while a
  queue builds up each job is expected to wait longer than the one before.
- *The spread around it*: how long after their expected starts jobs end. It is the sum of the unevenness of the starts
  and of what jobs take, and is kept as a distribution, not as one number. What jobs take is learnt from those that
  *ended* last, whenever they started: of those that started last, only the short ones have ended.

Other answers refine the pace. IN_QUEUE means that no later job has started by then either. `/health` gives the length
of the queue, and so the last job that has started, minutes before that job ends. It also gives the number of running
jobs, which together with the typical execution time yields a second pace: starts come in clusters, so the observed pace
is limited to a range around that one. So workers that come or go are noticed within one sample. Where such answers say
when a job started, to within a quarter of a typical job, they replace the extrapolation.

A job is polled when most of the spread has passed. If it has not ended by then, it is polled again according to the
rest of the spread, but never more often than is useful for its age. If the limit allows many status requests for each
job that ends, jobs are polled earlier: half a request more for half the lateness. If requests are scarce, the plan
polls the job that has been due longest. The last jobs of a run, whose lateness delays its end, are polled from the
time on that a short job takes, at intervals of a fortieth of their age.

The same code handles an endpoint that reports no delayTime: the start is then the submission, and the spread is that of
the total time. `max_tokens` and the length of the prompt are not used: in simulations of long answers (log-normal
times, 90 slots) workers are 97% busy without them, so there is little to gain.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from itertools import cycle
from typing import NamedTuple

_KEEP = 256
"""The ended jobs that count: enough for a 90% quantile, few enough to follow a change within one window of jobs."""
_KEEP_FOR_PACE = 32
"""The least number of starts that determine a pace."""
_REFRESH_EVERY = 32
"""The predictions are updated each time this many jobs have ended: an update takes some 0.2 ms."""
_REFRESH_GAP_S = 0.05
"""The least time between two updates, if jobs end faster than that."""
_REFRESH_EACH_OF_FIRST = 16
"""The predictions are updated after each of the first jobs, which teach the most."""
_SPAN_IN_EXECUTIONS = 2.0
"""Workers that start together end together: the pace is measured over at least this many typical execution times."""
_WAITED_S = 0.005
_IDLE_DELAY_MOST_S = 0.25
"""The most time the platform needs to hand a job to an idle worker; a longer delay is a wait."""
_CREDIBLE = 2.0
"""The factor by which the pace may differ from that of the running jobs."""
_WAITS_GROW = 2.0
"""The longest expected wait, as a multiple of the longest recent wait: the pace of a few starts is unreliable."""
_NEWS_IN_EXECUTIONS = 1.25
_NEWS_S = 0.5
"""The time from a job's start until its end is known: this, plus that many typical execution times."""
_LEAST_WAITING = 8
"""A queue exists if at least this many jobs had to wait."""
FIRST_QUANTILE = 0.85
"""The share of jobs expected to have ended at their first poll."""
NEXT_QUANTILE = 0.7
"""The same for a later poll, among those that have not ended."""
_EAGER_FIRST_QUANTILE = 0.6
_EAGER_NEXT_QUANTILE = 0.5
"""The same if many requests are allowed: half a request more for each job, half the lateness."""
_PLENTY = 6.0
"""This many status requests allowed for each job that ends are many."""
_UNLIMITED_PER_S = 1000.0
"""The status requests a second that are assumed to be allowed if there is no limit."""
_NEARLY_ALL = 0.98
_LEAST_GAP_S = 0.02
_DOUBLINGS = 5
"""How many times the least gap doubles: a job that has not ended is polled less and less often."""
_MOST_GAP_S = 15.0
_AGE_SHARE = 0.05
_KNOWN_SHARE = 0.25
"""A start is known if it was observed to within this share of a typical execution time."""
_LAST_SHARE = 0.025
"""The interval between two polls of a last job, as a share of its age."""
_LAST_QUANTILE = 0.15
"""A last job is polled first when this share of jobs would have ended."""
_LAST_WAIT_SHARE = 0.05
"""While a last job is queued, this share of its expected wait is waited: the pace of the last starts is uneven."""


class _Seen(NamedTuple):
    """What `/health` said about the queue."""

    sequence: int
    at: float
    at_work: int
    is_queue: bool


class Predictor:
    """Predicts when jobs start and end.

    Jobs are identified by their sequence number, their position in the order of submission (0, 1, 2, ...).

    Args:
        polls_per_s: The status requests a second that are allowed; 0 for no limit.
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
        "_took",
        "_unseen",
        "execution_s",
        "has_queue",
        "pace_s",
        "version",
        "waited_s",
    )

    def __init__(self, polls_per_s: float = 0.0) -> None:
        self._polls_per_s = polls_per_s or _UNLIMITED_PER_S
        self._first_quantile = FIRST_QUANTILE
        self._next_quantile = NEXT_QUANTILE
        self._jobs: list[tuple[int, float, float, float]] = []
        self._ages: deque[float] = deque(maxlen=_KEEP)
        self._spread: list[float] = []
        self._executions: list[float] = []
        self._took: deque[float] = deque(maxlen=_KEEP)
        self._seen: _Seen | None = None
        self._last: tuple[int, float] | None = None
        self.pace_s = 0.0
        """Seconds from one start to the next while jobs waited; 0 if none did."""
        self.has_queue = False
        """Whether the last jobs had to wait: only then does the pace depend on the workers."""
        self.waited_s = _WAITED_S
        """A job that was queued for longer than this had to wait; the others found a free worker."""
        self.execution_s = 0.0
        """The median execution time; 0 if unknown."""
        self._longest_wait_s = float("inf")
        self._queued: tuple[int, float] | None = None
        self._unseen = 0
        self._refresh_every = _REFRESH_EVERY
        self.version = 0
        """Increases whenever the predictions may have changed; 0 until something has been learnt."""

    def learn(
        self, sequence: int, submitted_at: float, *, delay_s: float | None, execution_s: float | None, age_s: float
    ) -> None:
        """A job ended.

        Args:
            sequence: Its sequence number.
            submitted_at: When it was submitted.
            delay_s: How long it was in the queue; None if not reported.
            execution_s: How long it ran; None if not reported.
            age_s: The best estimate of its age at its end, used if one of them is not reported.
        """
        if delay_s is None or execution_s is None:
            self._ages.append(age_s)
        else:
            start = submitted_at + delay_s
            self._took.append(execution_s)
            insort(self._jobs, (sequence, submitted_at, start, start + execution_s))
            if len(self._jobs) > _KEEP:
                del self._jobs[0]
        self._unseen += 1
        if self._unseen >= self._refresh_every or self.version <= _REFRESH_EACH_OF_FIRST:
            self._refresh()

    def saw_queued(self, sequence: int, at: float) -> None:
        """A job was still in the queue at `at`."""
        if self._queued is None or at > self._queued[1] or sequence < self._queued[0]:
            self._queued = (sequence, at)

    def saw_started(self, sequence: int, at: float, *, at_work: int, is_queue: bool) -> None:
        """`/health` shows that all jobs up to this sequence number had started by `at`.

        Args:
            sequence: The sequence number of the last of them.
            at: When `/health` answered.
            at_work: The number of jobs that were running; 0 if unknown, or if they were other people's.
            is_queue: Whether jobs were waiting, so that no more could run.
        """
        self._seen = _Seen(sequence, at, at_work, is_queue)
        if self._last is not None:
            self.pace_s = self._credible(self.pace_s)
            self._hurry()

    def _credible(self, pace_s: float) -> float:
        """The pace, limited to a range that agrees with the number of running jobs: starts come in clusters."""
        seen = self._seen
        if seen is None or not seen.at_work or not pace_s or not self.execution_s:
            return pace_s
        level_s = self.execution_s / seen.at_work
        least_s = level_s / _CREDIBLE if seen.is_queue else 0.0
        return min(max(pace_s, least_s), level_s * _CREDIBLE)

    def _hurry(self) -> None:
        """Extrapolate from the last job that `/health` knows to have started, if it is ahead of the pace."""
        if self._last is None or self._seen is None:
            return
        (last_sequence, last_start), seen = self._last, self._seen
        if seen.sequence > last_sequence and last_start + (seen.sequence - last_sequence) * self.pace_s > seen.at:
            self._last = (seen.sequence, seen.at)
            self.version += 1

    def expected_start(self, sequence: int, submitted_at: float) -> float:
        """When a job is likely to start, or to have started."""
        start = submitted_at
        if self._last is not None:
            last_sequence, last_start = self._last
            start = max(
                start, min(last_start + (sequence - last_sequence) * self.pace_s, submitted_at + self._longest_wait_s)
            )
        if self._queued is not None and sequence >= self._queued[0]:
            start = max(start, self._queued[1])
        return start

    def least_wait_s(self, sequence: int) -> float:
        """The least time that a job submitted now waits, assuming that jobs whose ends are overdue have not started.

        Without this, starts that are only expected would make room for more submissions.
        """
        if self._last is None:
            return 0.0
        return (sequence - self._last[0]) * self.pace_s - _NEWS_IN_EXECUTIONS * self.execution_s - _NEWS_S

    def first_poll_at(self, sequence: int, queued_at: float, *, started_by: float = float("inf")) -> float | None:
        """When to poll a job first; None if nothing has been learnt yet. See `next_poll_at`."""
        if not self._spread:
            return None
        start, spread = self._start(sequence, queued_at, started_by)
        return start + _quantile(spread, self._first_quantile)

    def likely_end(self, sequence: int, submitted_at: float) -> float | None:
        """When a job will almost certainly have ended; None if nothing has been learnt yet."""
        if not self._spread:
            return None
        return self.expected_start(sequence, submitted_at) + max(
            _quantile(self._spread, _NEARLY_ALL), _NEWS_IN_EXECUTIONS * self.execution_s + _NEWS_S
        )

    def next_poll_at(
        self, sequence: int, queued_at: float, polled_at: float, polls: int, *, started_by: float = float("inf")
    ) -> float:
        """When to poll a job again that had not ended at `polled_at`, after `polls` (>= 1) polls.

        Args:
            sequence: Its sequence number.
            queued_at: When it was last known not to have started.
            polled_at: When it was last polled.
            polls: How often it was polled.
            started_by: The latest time by which it had started; inf if unknown.
        """
        start, spread = self._start(sequence, queued_at, started_by)
        passed_s = polled_at - start
        most_s = max(_MOST_GAP_S, _AGE_SHARE * self.execution_s)
        gap_s = min(most_s, max(_AGE_SHARE * passed_s, _LEAST_GAP_S * 2.0 ** min(polls - 1, _DOUBLINGS)))
        above = bisect_right(spread, passed_s)
        left = len(spread) - above
        if left:
            gap_s = max(gap_s, spread[above + min(int(left * self._next_quantile), left - 1)] - passed_s)
        return polled_at + gap_s

    def _start(self, sequence: int, queued_at: float, started_by: float) -> tuple[float, list[float]]:
        """When a job has started, and how long after that jobs end."""
        if started_by - queued_at <= _KNOWN_SHARE * self.execution_s:
            return (queued_at + started_by) / 2, self._executions
        return min(self.expected_start(sequence, queued_at), started_by), self._spread

    def last_poll_at(self, sequence: int, queued_at: float, polled_at: float, *, started_by: float) -> float:
        """When to poll one of the last jobs of a run, whose lateness delays the end of the run; see `next_poll_at`."""
        start = queued_at
        if started_by == float("inf"):
            start += _LAST_WAIT_SHARE * (self.expected_start(sequence, queued_at) - queued_at)
        gap_s = max(_LAST_SHARE * (polled_at - queued_at), _LEAST_GAP_S)
        return max(start + _quantile(self._executions or self._spread, _LAST_QUANTILE), polled_at + gap_s)

    def _refresh(self) -> None:
        self._unseen = 0
        self.version += 1
        jobs = self._jobs
        if not jobs:
            self._spread = sorted(self._ages)
            return
        last_sequence, _, last_start, _ = jobs[-1]
        delays = [start - submitted for _, submitted, start, _ in jobs]
        self.waited_s = waited_from_s = _WAITED_S + min(*delays, _IDLE_DELAY_MOST_S)
        executions = self._executions = sorted(self._took)
        least_span_s = _SPAN_IN_EXECUTIONS * executions[len(executions) // 2]
        waited_s, waiting, first = 0.0, 0, len(jobs) - 1
        while first > 0:
            after_sequence, after_submitted, after_start, _ = jobs[first]
            first -= 1
            sequence, _, start, _ = jobs[first]
            if after_start - after_submitted > waited_from_s:
                waited_s += after_start - max(start, after_submitted)
                waiting += after_sequence - sequence
            if waiting >= _KEEP_FOR_PACE and last_start - start >= least_span_s:
                break
        pace_s = max(waited_s / waiting, 0.0) if waiting else 0.0
        self.execution_s = executions[len(executions) // 2]
        self._last, self.pace_s = (last_sequence, last_start), self._credible(pace_s)
        self._hurry()
        self.has_queue = self.pace_s > 0 and waiting >= min(_LEAST_WAITING, len(jobs) - first)
        self._longest_wait_s = _WAITS_GROW * max(delays) + self.execution_s
        lates, expected = [], last_start
        for index in range(len(jobs) - 1, first - 1, -1):
            sequence, submitted_at, start, _ = jobs[index]
            lates.append(start - max(submitted_at, expected))
            if start - submitted_at > waited_from_s:
                expected -= (sequence - jobs[index - 1][0]) * pace_s
            else:
                expected = jobs[index - 1][2]
        self._spread = sorted(map(sum, zip(cycle(self._took), lates * -(-len(self._took) // len(lates)), strict=False)))
        ends = [end for *_, end in jobs]
        span_s = max(ends) - min(ends)
        in_gap = int(_REFRESH_GAP_S * len(jobs) / max(span_s, _REFRESH_GAP_S))
        self._refresh_every = max(in_gap, _REFRESH_EVERY)
        per_job = self._polls_per_s * span_s / len(jobs)
        eager = per_job >= _PLENTY
        self._first_quantile = _EAGER_FIRST_QUANTILE if eager else FIRST_QUANTILE
        self._next_quantile = _EAGER_NEXT_QUANTILE if eager else NEXT_QUANTILE


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
