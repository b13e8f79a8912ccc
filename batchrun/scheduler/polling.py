"""Decides which job to poll, and when: the poll plan of all jobs in flight.

While the duration of jobs is unknown, a few of the oldest jobs ("scouts") are polled often and the rest hardly ever. So
a cold start of a minute with 400 jobs in flight costs some hundred requests, not ten thousand, and the end of the first
job is noticed within a tenth of its time. From then on all polls are planned by prediction, and planned again as the
predictions change. `/health` tells how many jobs are queued. The queue is first in, first out, so these are the newest
ones, and the others have started: so each job's start is known to within one sample, without a poll.

When nothing more is submitted, only the job that ends last delays the end of the run. So the newest jobs become the
scouts, a few at a time, and the others are polled as before. Each scout that has ended doubles their number, and one
that has not resets it: jobs that have ended unnoticed are found in a few round trips.

If the rate limit does not allow all polls that are due, the job whose predicted end is longest ago goes first: it is
the most likely to have ended, and the closest to losing its result, which is kept for 30 minutes.
"""

from __future__ import annotations

import heapq
from itertools import islice
from random import Random

from batchrun.scheduler.failures import backoff_s
from batchrun.scheduler.flight import Flight
from batchrun.scheduler.health import EndpointHealth
from batchrun.scheduler.prediction import Predictor

_SCOUTS = 8
_SCOUT_LEAST_GAP_S = 0.05
_SCOUT_SHARE = 0.1 / _SCOUTS
_SCOUT_LEAST_SHARE = 1 / 32
"""The interval between two polls of any scout, as a share of its time at work: 10% for 8 of them, 3% for one."""
_SCOUT_QUEUED_MOST_GAP_S = 5.0
"""The longest interval between two polls of a scout that is queued."""
_BLIND_GAP_S = 600.0
"""The interval for the rest: a third of the time that results are kept. `/health` shows earlier if many have ended."""
_LAST_SCOUTS = 2
_LAST_SCOUTS_MOST = 32
_FAILED_MOST_GAP_S = 30.0
_OTHERS_SHARE = 0.1
"""If other people's jobs are more than this share of ours, the length of the queue does not tell which have started."""
_HEALTH_SHARE = 0.1
"""How often `/health` is asked, as a share of what a job takes."""
_REPLAN_GAP_S = 0.5
_JOBS_PER_REPLAN_SECOND = 10_000
"""Planning a job costs about 2 µs; at this rate, planning all jobs again takes at most 2% of the time."""
_MOSTLY_OVER = 0.5
_FEW = 8
"""If `/health` shows that more jobs than this, and than that share, have ended unnoticed, the predictions are wrong:
the oldest jobs are due. If no more than this are in flight, `/health` is not asked for them."""


class _Watch:
    """A job in the plan."""

    __slots__ = (
        "due_at",
        "failures",
        "job",
        "polled_at",
        "polls",
        "postponed_until",
        "queued_at",
        "sequence",
        "started_by",
        "submitted_at",
        "urgent",
    )

    def __init__(self, job: int, sequence: int, submitted_at: float) -> None:
        self.job = job
        self.sequence = sequence
        self.submitted_at = submitted_at
        self.polled_at = submitted_at
        """When it was last known not to have ended."""
        self.queued_at = submitted_at
        """When it was last known not to have started."""
        self.started_by = float("inf")
        """The latest time by which it had started, or is likely to have; inf if unknown."""
        self.polls = 0
        self.failures = 0
        self.postponed_until = float("-inf")
        self.urgent = False
        """Whether its time is fixed, whatever is learnt meanwhile."""
        self.due_at: float | None = None
        """When to poll it; None while it is being polled."""


class PollPlan:
    """When to poll each of the jobs in flight.

    Args:
        predictor: Predicts when jobs end.
        rng: Source of jitter.
    """

    def __init__(self, predictor: Predictor, rng: Random) -> None:
        self._predictor = predictor
        self._rng = rng
        self._watches: dict[int, _Watch] = {}
        self._heap: list[tuple[float, int]] = []
        self._scouts: set[int] = set()
        self._planned_version = 0
        self._replan_at = float("-inf")
        self._is_tail = False
        self._last_scouts = _LAST_SCOUTS
        self.glance_s: float | None = None
        """The longest time from a submission to the job's first poll; None for no bound."""

    def __len__(self) -> int:
        return len(self._watches)

    def add(self, job: int, sequence: int, submitted_at: float, now: float) -> None:
        """Add a job."""
        watch = self._watches[job] = _Watch(job, sequence, submitted_at)
        if self._is_tail or (self._predictor.version == 0 and len(self._scouts) < _SCOUTS):
            self._scouts.add(job)
        self._schedule(watch, self._due(watch, now))

    def add_overdue(self, job: int, sequence: int, submitted_at: float) -> None:
        """Add a job whose state is unknown: it has been due since its submission."""
        watch = self._watches[job] = _Watch(job, sequence, submitted_at)
        watch.polls = 1
        watch.urgent = True
        self._schedule(watch, submitted_at)

    def remove(self, job: int, now: float) -> None:
        """Remove a job, without learning from it."""
        del self._watches[job]
        self._replace_scout(job, now)

    def ended(self, job: int, *, delay_s: float | None, execution_s: float | None, age_s: float, now: float) -> None:
        """The job ended at `now` or before: remove it and learn from it; see `Predictor.learn`."""
        watch = self._watches.pop(job)
        self._predictor.learn(
            watch.sequence,
            watch.submitted_at,
            delay_s=delay_s,
            execution_s=execution_s,
            age_s=age_s,
        )
        self._replace_scout(job, now)

    def seen(self, job: int, sent_at: float, now: float, *, in_progress: bool) -> None:
        """A poll sent at `sent_at` says that the job has not ended."""
        watch = self._watches[job]
        watch.polls += 1
        watch.failures = 0
        watch.urgent = False
        watch.polled_at = sent_at
        if self._is_tail and job in self._scouts and self._last_scouts > _LAST_SCOUTS:
            self._last_scouts = _LAST_SCOUTS
            self._pick_scouts(now)
        if in_progress:
            watch.started_by = min(watch.started_by, sent_at)
        else:
            watch.queued_at = sent_at
            watch.started_by = float("inf")
            self._predictor.saw_queued(watch.sequence, sent_at)
        self._schedule(watch, self._due(watch, now))

    def saw_health(self, health: EndpointHealth, sequence: int, now: float, *, is_shared: bool) -> None:
        """`/health` answered: it tells how far the queue has advanced, and how many jobs have ended.

        Args:
            health: The answer.
            sequence: The sequence number of the next job, when the request was sent.
            now: The current time.
            is_shared: Whether most jobs of the endpoint are other people's.
        """
        at_work = 0 if is_shared else health.in_progress
        is_queue = health.in_queue > 0
        self._predictor.saw_started(sequence - health.in_queue - 1, now, at_work=at_work, is_queue=is_queue)
        others = health.in_queue + health.in_progress - len(self._watches)
        if others <= _OTHERS_SHARE * len(self._watches):
            self._place(health.in_queue, sequence, now)
        over = len(self._watches) - health.in_queue - health.in_progress
        if over > max(len(self._watches) * _MOSTLY_OVER, _FEW):
            for watch in islice(self._watches.values(), over):
                if watch.due_at is not None:
                    watch.due_at, watch.urgent = min(watch.due_at, now), True
            self._rebuild()

    def _place(self, in_queue: int, sequence: int, now: float) -> None:
        """The last `in_queue` jobs have not started; the others have, if they were submitted before `sequence`."""
        for place, watch in enumerate(reversed(self._watches.values())):
            if place < in_queue:
                watch.queued_at = max(watch.queued_at, now)
            elif watch.sequence < sequence - in_queue:
                watch.started_by = min(watch.started_by, now)

    def enter_tail(self, now: float) -> None:
        """Nothing more is submitted: from now on the scouts are the newest jobs."""
        if self._predictor.version and not self._is_tail:
            self._is_tail = True
            self._pick_scouts(now)

    def failed(self, job: int, now: float) -> None:
        """A poll of the job failed: poll it again, with backoff."""
        watch = self._watches[job]
        watch.failures += 1
        self._schedule(watch, now + backoff_s(watch.failures, self._rng, base_s=1.0, cap_s=_FAILED_MOST_GAP_S))

    def postponed(self, job: int, now: float, wait_s: float) -> None:
        """Poll the job again in `wait_s` seconds."""
        watch = self._watches[job]
        watch.postponed_until = now + wait_s
        self._schedule(watch, watch.postponed_until)

    def hold(self, job: int) -> None:
        """Do not poll the job until `postponed` sets a time."""
        self._watches[job].due_at = None

    def health_gap_s(self, now: float) -> float | None:
        """How often `/health` should tell which jobs have started; None if there are too few to ask for."""
        if len(self._watches) <= _FEW:
            return None
        oldest = next(iter(self._watches.values()))
        return _HEALTH_SHARE * (self._predictor.execution_s or now - oldest.submitted_at)

    def rush(self, now: float) -> None:
        """Time has passed unnoticed: poll all jobs that have probably ended, in the order of their ends.

        A result is kept for 30 minutes from the job's end, so those that ended first expire first.
        """
        for watch in self._watches.values():
            if watch.due_at is None:
                continue
            end_at = self._predictor.first_poll_at(watch.sequence, watch.submitted_at)
            end_at = watch.submitted_at if end_at is None else end_at
            if end_at <= now:
                watch.due_at, watch.urgent = end_at, True
        self._rebuild()

    def likely_end(self, sequence: int, submitted_at: float) -> float | None:
        """When a job of that sequence and age will almost certainly have ended; None if nothing has been learnt yet."""
        return self._predictor.likely_end(sequence, submitted_at)

    def drain_s(self, last: Flight | None, next_sequence: int, now: float) -> float | None:
        """How long it may take until the last job in flight has ended; None if nothing has been learnt yet."""
        if last is None:
            return 0.0
        end_at = self.likely_end(last.sequence if last.remote_id else next_sequence, last.submitted_at)
        return None if end_at is None else max(end_at - now, 0.0)

    def take(self, now: float) -> int | None:
        """The job to poll now, or None if none is due. It counts as being polled from then on."""
        heap = self._heap
        while heap:
            due_at, job = heap[0]
            watch = self._watches.get(job)
            if watch is None or watch.due_at != due_at:
                heapq.heappop(heap)
                continue
            if due_at > now:
                return None
            heapq.heappop(heap)
            settled = watch.urgent or watch.failures or not self._predictor.version
            later = now if settled else self._due(watch, now)
            if later > now:
                self._schedule(watch, later)
                continue
            watch.due_at = None
            return job
        return None

    def next_at(self) -> float | None:
        """When the next job is due; None if there is none."""
        heap = self._heap
        while heap:
            due_at, job = heap[0]
            watch = self._watches.get(job)
            if watch is not None and watch.due_at == due_at:
                return due_at
            heapq.heappop(heap)
        return None

    def refresh(self, now: float) -> None:
        """Plan the jobs again if the predictions have changed."""
        version = self._predictor.version
        if version == self._planned_version or (now < self._replan_at and self._planned_version > 0):
            return
        self._planned_version = version
        self._replan_at = now + max(_REPLAN_GAP_S, len(self._watches) / _JOBS_PER_REPLAN_SECOND)
        if not self._is_tail:
            self._scouts.clear()
        for watch in self._watches.values():
            if watch.due_at is not None and not watch.failures and not watch.urgent:
                watch.due_at = self._due(watch, now)
        self._rebuild()

    def _replace_scout(self, job: int, now: float) -> None:
        if job in self._scouts:
            self._scouts.discard(job)
            self._last_scouts = min(2 * self._last_scouts, _LAST_SCOUTS_MOST)
            self._pick_scouts(now)

    def _pick_scouts(self, now: float) -> None:
        """Scouts are the oldest jobs while nothing is known, the newest ones while nothing more is submitted."""
        old = self._scouts
        if self._is_tail:
            self._scouts = set(islice(reversed(self._watches), self._last_scouts))
        else:
            self._scouts = set() if self._predictor.version else set(islice(self._watches, _SCOUTS))
        for job in self._scouts - old:
            watch = self._watches[job]
            if watch.due_at is not None and not watch.failures and not watch.urgent:
                self._schedule(watch, self._due(watch, now))

    def _rebuild(self) -> None:
        self._heap = [(w.due_at, w.job) for w in self._watches.values() if w.due_at is not None]
        heapq.heapify(self._heap)

    def _schedule(self, watch: _Watch, due_at: float) -> None:
        watch.due_at = due_at
        heapq.heappush(self._heap, (due_at, watch.job))

    def _due(self, watch: _Watch, now: float) -> float:
        if watch.postponed_until > now:
            return watch.postponed_until
        predictor = self._predictor
        if not predictor.version:
            return now + self._blind_gap_s(watch, now)
        sequence, queued_at, started_by = watch.sequence, watch.queued_at, watch.started_by
        if self._is_tail and watch.job in self._scouts:
            return predictor.last_poll_at(sequence, queued_at, watch.polled_at, started_by=started_by)
        if watch.polls:
            return predictor.next_poll_at(sequence, queued_at, watch.polled_at, watch.polls, started_by=started_by)
        at = predictor.first_poll_at(sequence, queued_at, started_by=started_by) or now
        return at if self.glance_s is None else min(at, watch.submitted_at + self.glance_s)

    def _blind_gap_s(self, watch: _Watch, now: float) -> float:
        if watch.job not in self._scouts:
            return _BLIND_GAP_S * self._rng.uniform(0.75, 1.25)
        scouts = len(self._scouts)
        if watch.started_by == float("inf") and watch.polls:
            age_s = max(now - watch.submitted_at, 0.0)
            gap_s = min(_SCOUT_QUEUED_MOST_GAP_S, _SCOUT_LEAST_SHARE * scouts * age_s)
        else:
            gap_s = max(_SCOUT_SHARE * scouts, _SCOUT_LEAST_SHARE) * scouts * (now - watch.queued_at)
        return max(gap_s, _SCOUT_LEAST_GAP_S) * self._rng.uniform(0.8, 1.2)
