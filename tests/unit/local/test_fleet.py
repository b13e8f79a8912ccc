"""The autoscaler in virtual time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.local.fleet import Fleet, Scaling
from batchrun.local.queue import Job, JobQueue


@dataclass
class Emulation:
    """An endpoint whose clock stands at the next event."""

    most: int
    scaling: Scaling | None
    jobs_per_worker: int = 1
    cold_start_s: float = 0.0
    job_s: float = 10.0
    now: float = 0.0
    seen: list[tuple[float, int, int]] = field(default_factory=list)
    """When the numbers of ready and starting workers changed, and to what."""

    def __post_init__(self) -> None:
        self.queue = JobQueue(self.most, self.jobs_per_worker, name="test", is_open=False)
        self.fleet = Fleet(self.queue, self.most, self.scaling, 0.0, cold_start_s=self.cold_start_s)
        self._at_work: list[tuple[float, int, Job]] = []
        self._next_step = 0.0
        self.started: list[Job] = []
        self.look()

    def submit(self, jobs: int) -> None:
        for _ in range(jobs):
            self.queue.submit({"n": 1}, {}, self.now)
        self.look()

    def look(self) -> None:
        self._next_step = self.fleet.step(self.now)
        while (job := self.queue.take(self.now)) is not None:
            self.started.append(job)
            heapq.heappush(self._at_work, (self.now + self.job_s, len(self.started), job))
            self._next_step = self.fleet.step(self.now)
        health, _ = self.queue.health()
        if not self.seen or self.seen[-1][1:] != (health.ready, self.fleet.starting):
            self.seen.append((self.now, health.ready, self.fleet.starting))

    def until(self, end: float) -> None:
        while (at := min(self._next_step, self._at_work[0][0] if self._at_work else math.inf)) <= end:
            self.now = at
            while self._at_work and self._at_work[0][0] <= self.now:
                job = heapq.heappop(self._at_work)[2]
                self.queue.complete(job, job.run, "done", self.now)
            self.look()
        self.now = end

    def ready_at(self) -> Iterable[tuple[float, int]]:
        return [(at, ready) for at, ready, _ in self.seen]


@pytest.mark.parametrize(("jobs", "workers"), [(1, 1), (4, 1), (5, 2), (16, 4), (17, 5), (1000, 10)])
def test_by_request_count_there_is_a_worker_for_every_few_jobs(jobs: int, workers: int):
    emulation = Emulation(10, Scaling("request-count"), cold_start_s=20)
    assert emulation.seen == [(0.0, 0, 0)]
    emulation.submit(jobs)
    assert emulation.seen[-1] == (0.0, 0, workers)
    emulation.until(20)
    assert emulation.seen[-1] == (20.0, workers, 0)
    assert len(emulation.started) == min(jobs, workers)


def test_packed_jobs_are_few_to_it_and_the_first_worker_takes_them_all():
    emulation = Emulation(10, Scaling("request-count"), jobs_per_worker=30)
    emulation.submit(16)
    assert emulation.seen[-1] == (0.0, 4, 0)
    emulation = Emulation(10, Scaling("queue-delay"), jobs_per_worker=30)
    emulation.submit(16)
    emulation.until(100)
    assert max(ready for _, ready in emulation.ready_at()) == 1


def test_by_queue_delay_a_worker_is_added_when_a_job_has_waited_and_another_when_that_did_not_help():
    emulation = Emulation(3, Scaling("queue-delay"), job_s=100)
    emulation.submit(10)
    emulation.until(50)
    assert emulation.seen == [(0.0, 0, 0), (4.0, 1, 0), (8.0, 2, 0), (12.0, 3, 0)]


def test_by_queue_delay_no_worker_is_added_while_nothing_waits_too_long():
    emulation = Emulation(3, Scaling("queue-delay", workers_min=1), job_s=2)
    for second in range(0, 40, 4):
        emulation.until(second)
        emulation.submit(2)
    emulation.until(100)
    assert emulation.seen == [(0.0, 1, 0)]


@pytest.mark.parametrize("rule", ["queue-delay", "request-count"])
def test_idle_workers_go_after_the_idle_timeout_down_to_the_minimum(rule):
    emulation = Emulation(4, Scaling(rule, workers_min=1, idle_timeout_s=7), job_s=30)
    emulation.submit(13)
    emulation.until(1000)
    idle_since = {job.slot: job.ended_at for job in emulation.started}
    assert (len(emulation.started), len(idle_since)) == (13, 4)
    went = [(at, ready) for at, ready in emulation.ready_at() if at > 12 and ready < 4]
    *first, _ = sorted(idle_since.values())
    assert went[-1] == (first[-1] + 7, 1)
    assert {at for at, _ in went} == {at + 7 for at in first}


def test_a_worker_that_went_starts_cold_again():
    emulation = Emulation(1, Scaling("request-count"), cold_start_s=20, job_s=1)
    emulation.submit(1)
    emulation.until(100)
    emulation.submit(1)
    emulation.until(200)
    assert emulation.seen[1:] == [
        *[(0.0, 0, 1), (20.0, 1, 0), (26.0, 0, 0)],
        *[(100.0, 0, 1), (120.0, 1, 0), (126.0, 0, 0)],
    ]


def test_without_autoscaling_all_workers_are_ready_after_the_cold_start_and_stay():
    emulation = Emulation(3, None, cold_start_s=60)
    emulation.submit(2)
    emulation.until(10_000)
    assert emulation.seen == [(0.0, 0, 3), (60.0, 3, 0)]


@given(
    st.integers(0, 2**32),
    st.sampled_from(["queue-delay", "request-count"]),
    st.integers(1, 5),
    st.integers(0, 2),
    st.integers(1, 3),
    st.sampled_from([0.0, 3.0, 40.0]),
)
def test_every_job_is_done_and_the_workers_stay_within_their_bounds(seed, rule, most, least, per_worker, cold_start_s):
    rng = Random(seed)
    emulation = Emulation(most, Scaling(rule, 3.0, least), per_worker, cold_start_s)
    jobs = 0
    for _ in range(12):
        emulation.job_s = rng.choice([0.5, 5.0, 20.0])
        emulation.submit(count := rng.randrange(6))
        jobs += count
        emulation.until(emulation.now + rng.choice([0.0, 1.0, 6.0, 60.0]))
        health, _ = emulation.queue.health()
        assert health.idle + health.running == health.ready
        assert emulation.queue.open_jobs == health.in_queue + health.in_progress
        assert min(least, most) <= health.ready + emulation.fleet.starting <= most
    emulation.until(emulation.now + 10_000)
    assert emulation.queue.health()[0].completed == jobs
    assert emulation.seen[-1][1:] == (min(least, most), 0)
    assert all(emulation.queue.idle_since(worker) is not None for worker in range(most))
