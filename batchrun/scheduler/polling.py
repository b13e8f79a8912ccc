"""Which job to ask after, and when: the poll plan of all jobs in flight.

While nothing is known of how long jobs take, a few of the oldest ("scouts") are asked often, and the rest seldom:
a cold start of a minute with 400 jobs in flight costs some hundred requests, not ten thousand, and the first
job's end is seen within a quarter of its age. Its answer places all the others by prediction; they are placed again
as the predictions change. When the budget is scarce, the job whose predicted end lies farthest back goes first: it
is the likeliest to be over, and also the nearest to the end of the 30 minutes for which its result is kept.
"""

from __future__ import annotations

import heapq
from itertools import islice
from random import Random

from batchrun.scheduler.failures import backoff_s
from batchrun.scheduler.health import EndpointHealth
from batchrun.scheduler.prediction import Predictor

_SCOUTS = 8
_SCOUT_LEAST_GAP_S = 0.05
_SCOUT_MOST_GAP_S = 5.0
_SCOUT_AGE_SHARE = 0.25
"""Of all of them: they take turns, so that the first end is seen within a small part of it."""
_WAVE_SHARE = 0.05
"""Of what a job takes: so often the end of one is taken for that of many."""
_SMALL_WAVE = 32
"""Where more jobs are in flight, those that nobody has asked after yet are better predicted than the wave is."""
_BLIND_LEAST_GAP_S = 4.0
_BLIND_MOST_GAP_S = 30.0
_REPLAN_GAP_S = 0.5
_JOBS_PER_REPLAN_SECOND = 10_000
"""Placing a job costs about 2 µs, so plans are made again at most so often that they cost 2% of the time."""
_MOSTLY_OVER = 0.5
_FEW = 8
"""When `/health` sees that more jobs than these are over and unknown, the predictions are wrong: the oldest are due.
So few may be asked after at each end."""


class _Watch:
    """A job that is being watched."""

    __slots__ = (
        "due_at",
        "failures",
        "job",
        "place",
        "polled_at",
        "polls",
        "postponed_until",
        "queued_at",
        "started_by",
        "submitted_at",
        "urgent",
    )

    def __init__(self, job: int, place: int, submitted_at: float) -> None:
        self.job = job
        self.place = place
        self.submitted_at = submitted_at
        self.polled_at = submitted_at
        """When it was last known not to be over."""
        self.queued_at = submitted_at
        """When it was last known not to have started."""
        self.started_by = float("inf")
        """When it had started, or is likely to have, at the latest; inf: nobody knows."""
        self.polls = 0
        self.failures = 0
        self.postponed_until = float("-inf")
        self.urgent = False
        """Whether its time stands, whatever is learnt meanwhile: nobody knows how it is."""
        self.due_at: float | None = None
        """None while the job is being asked after."""


class PollPlan:
    """When to ask after each of the jobs in flight.

    Args:
        predictor: What has been learnt of how long jobs take.
        rng: Where jitter comes from.
    """

    def __init__(self, predictor: Predictor, rng: Random) -> None:
        self._predictor = predictor
        self._rng = rng
        self._watches: dict[int, _Watch] = {}
        self._heap: list[tuple[float, int]] = []
        self._scouts: set[int] = set()
        self._planned_version = 0
        self._replan_at = float("-inf")
        self._wave_at = float("-inf")
        self.glance_s: float | None = None
        """How long after its submission a job is asked after for the first time, if that is sooner; None: it is not."""

    def add(self, job: int, place: int, submitted_at: float, now: float) -> None:
        """Watch a job from now on."""
        watch = self._watches[job] = _Watch(job, place, submitted_at)
        if self._predictor.version == 0 and len(self._scouts) < _SCOUTS:
            self._scouts.add(job)
        self._place(watch, self._due(watch, now))

    def add_overdue(self, job: int, place: int, submitted_at: float) -> None:
        """Watch a job of which nobody knows how it stands: it is due since its submission."""
        watch = self._watches[job] = _Watch(job, place, submitted_at)
        watch.polls = 1
        watch.urgent = True
        self._place(watch, submitted_at)

    def remove(self, job: int) -> None:
        """Watch a job no longer, without learning from it."""
        self._scouts.discard(job)
        del self._watches[job]

    def ended(self, job: int, *, delay_s: float | None, execution_s: float | None, age_s: float, now: float) -> None:
        """The job is over at `now` or before, and the others are expected accordingly; see `Predictor.learn`."""
        self._scouts.discard(job)
        watch = self._watches.pop(job)
        self._predictor.learn(
            watch.place,
            watch.submitted_at,
            delay_s=delay_s,
            execution_s=execution_s,
            age_s=age_s,
        )
        is_time = now >= self._wave_at or len(self._watches) <= _FEW
        if is_time and self._predictor.is_tail and delay_s is not None:
            self._wave(watch.place, watch.submitted_at + delay_s, now)

    def _wave(self, place: int, start: float, now: float) -> None:
        """Ask after all jobs that are likely to be over with one that started at `start`.

        Jobs that take about the same time end as they started: together, where workers were many or waited for them.
        """
        least_s = self._predictor.steady_s
        if not least_s:
            return
        self._wave_at = now + _WAVE_SHARE * least_s
        is_small = len(self._watches) <= _SMALL_WAVE
        for watch in self._watches.values():
            if watch.failures or not (watch.polls or is_small):
                continue
            is_behind = watch.place > place and watch.queued_at <= start
            started_at = start if is_behind else watch.queued_at
            if started_at + least_s > now:
                continue
            if is_behind or watch.started_by < float("inf"):
                watch.started_by = min(watch.started_by, started_at)
            if watch.due_at is not None and watch.due_at > now:
                watch.urgent = watch.polled_at < started_at + least_s
                self._place(watch, now if watch.urgent else max(self._due(watch, now), now))

    def seen(self, job: int, sent_at: float, now: float, *, in_progress: bool) -> None:
        """The job was asked after at `sent_at` and is not over."""
        watch = self._watches[job]
        watch.polls += 1
        watch.failures = 0
        watch.urgent = False
        watch.polled_at = sent_at
        if in_progress:
            watch.started_by = min(watch.started_by, sent_at)
        else:
            watch.queued_at = sent_at
            watch.started_by = float("inf")
            self._predictor.saw_queued(watch.place, sent_at)
        self._place(watch, self._due(watch, now))

    def saw_health(self, health: EndpointHealth, place: int, now: float, *, is_shared: bool) -> None:
        """`/health` answered: it knows how far the queue is, and how many of the jobs are over.

        Args:
            health: What it said.
            place: That of the next job when it was asked.
            now: The present.
            is_shared: Whether most jobs of the endpoint are other people's.
        """
        at_work = 0 if is_shared else health.in_progress
        is_queue = health.in_queue > 0
        self._predictor.saw_started(place - health.in_queue - 1, now, at_work=at_work, is_queue=is_queue)
        over = len(self._watches) - health.in_queue - health.in_progress
        if over > max(len(self._watches) * _MOSTLY_OVER, _FEW):
            for watch in islice(self._watches.values(), over):
                if watch.due_at is not None:
                    watch.due_at, watch.urgent = min(watch.due_at, now), True
            self._rebuild()

    def enter_tail(self) -> None:
        """Nothing more is submitted: be early rather than sparing."""
        self._predictor.enter_tail()

    def failed(self, job: int, now: float) -> None:
        """The job was asked after in vain; a job is never given up for that."""
        watch = self._watches[job]
        watch.failures += 1
        self._place(watch, now + backoff_s(watch.failures, self._rng, base_s=1.0, cap_s=_BLIND_MOST_GAP_S))

    def postponed(self, job: int, now: float, wait_s: float) -> None:
        """Ask after the job again in `wait_s`."""
        watch = self._watches[job]
        watch.postponed_until = now + wait_s
        self._place(watch, watch.postponed_until)

    def hold(self, job: int) -> None:
        """Do not ask after the job until `postponed` says when."""
        self._watches[job].due_at = None

    def rush(self, now: float) -> None:
        """Ask first after the jobs that have been over longest: time has passed that nobody saw.

        Their results are kept for 30 minutes from their end, so the order of their ends is that of their rescue.
        """
        for watch in self._watches.values():
            if watch.due_at is None:
                continue
            end_at = self._predictor.first_poll_at(watch.place, watch.submitted_at)
            end_at = watch.submitted_at if end_at is None else end_at
            if end_at <= now:
                watch.due_at, watch.urgent = end_at, True
        self._rebuild()

    def likely_end(self, place: int, submitted_at: float) -> float | None:
        """When nearly every job of that place and age would be over; None: nothing is known."""
        return self._predictor.likely_end(place, submitted_at)

    def take(self, now: float) -> int | None:
        """The job to ask after now, which is then being asked after; None when none is due."""
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
                self._place(watch, later)
                continue
            watch.due_at = None
            return job
        return None

    def next_at(self) -> float | None:
        """When the next job is due; None when none is."""
        heap = self._heap
        while heap:
            due_at, job = heap[0]
            watch = self._watches.get(job)
            if watch is not None and watch.due_at == due_at:
                return due_at
            heapq.heappop(heap)
        return None

    def refresh(self, now: float) -> None:
        """Place the jobs again when the predictions have changed."""
        version = self._predictor.version
        if version == self._planned_version or (now < self._replan_at and self._planned_version > 0):
            return
        self._planned_version = version
        self._replan_at = now + max(_REPLAN_GAP_S, len(self._watches) / _JOBS_PER_REPLAN_SECOND)
        self._scouts.clear()
        for watch in self._watches.values():
            if watch.due_at is not None and not watch.failures and not watch.urgent:
                watch.due_at = self._due(watch, now)
        self._rebuild()

    def _rebuild(self) -> None:
        self._heap = [(w.due_at, w.job) for w in self._watches.values() if w.due_at is not None]
        heapq.heapify(self._heap)

    def _place(self, watch: _Watch, due_at: float) -> None:
        watch.due_at = due_at
        heapq.heappush(self._heap, (due_at, watch.job))

    def _due(self, watch: _Watch, now: float) -> float:
        if watch.postponed_until > now:
            return watch.postponed_until
        predictor = self._predictor
        if not predictor.version:
            return now + self._blind_gap_s(watch, now)
        if watch.polls:
            place, submitted_at, started_by = watch.place, watch.submitted_at, watch.started_by
            return predictor.next_poll_at(place, submitted_at, watch.polled_at, watch.polls, started_by=started_by)
        at = predictor.first_poll_at(watch.place, watch.submitted_at) or now
        return at if self.glance_s is None else min(at, watch.submitted_at + self.glance_s)

    def _blind_gap_s(self, watch: _Watch, now: float) -> float:
        age_s = max(now - watch.submitted_at, 0.0)
        if watch.job in self._scouts:
            share = _SCOUT_AGE_SHARE * len(self._scouts) / _SCOUTS
            gap_s = min(_SCOUT_MOST_GAP_S, max(_SCOUT_LEAST_GAP_S, age_s * share))
            return gap_s * self._rng.uniform(0.5, 1.5)
        return min(_BLIND_MOST_GAP_S, max(_BLIND_LEAST_GAP_S, age_s)) * self._rng.uniform(0.75, 1.25)
