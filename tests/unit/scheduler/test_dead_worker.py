"""A worker whose model server has died answers each job at once, and is always free for the next one."""

from __future__ import annotations

import pytest

from batchrun.config import GuardOptions, HaltOptions, SchedulerOptions
from batchrun.scheduler.events import JobEnded, RowAnswer
from batchrun.scheduler.failures import Failure, FailureKind
from batchrun.scheduler.faulty_worker_limit import FaultyWorkerLimit
from batchrun.scheduler.faulty_workers import FaultyWorkers
from tests.support.world import Setting, World
from tests.support.worlds import assert_every_row_ended_once

UNGUARDED = GuardOptions(halt=HaltOptions(automatic=False))
TEXT = "vLLM server process is not running; worker is unhealthy"
DEAD = Failure(FailureKind.WORKER_ERROR, TEXT, TEXT)


def beside_a_dead_worker(**changes) -> World:
    setting = {"rows": 1000, "workers": 2, "dead": 1, "guards": UNGUARDED, **changes}
    return World(Setting(**setting)).run()


def failed(world: World) -> int:
    return sum(finish.failure is not None for finish in world.ended.values())


def work_s(world: World) -> float:
    """What the healthy workers need for their jobs."""
    setting = world.setting
    done_s = sum(job.service_s for job in world.jobs.values() if job.outcome == "ok")
    return done_s / (setting.workers - setting.dead) / setting.jobs_per_worker


@pytest.mark.parametrize(
    "changes",
    [
        {"service_s": lambda _: 1.0},
        {"service_s": lambda _: 0.05, "latency_s": lambda _: 0.001},
        {"service_s": lambda rng: rng.expovariate(5)},
        {"service_s": lambda rng: rng.uniform(3, 9), "jobs_per_worker": 30},
        {"service_s": lambda _: 1.0, "workers": 10},
        {"service_s": lambda _: 1.0, "options": SchedulerOptions(concurrency=100)},
    ],
    ids=["a second", "50 ms", "exponential", "thirty at once", "ten workers", "a fixed window"],
)
def test_one_dead_worker_costs_a_hundredth_of_the_rows_and_half_a_submission_at_most(changes):
    world = beside_a_dead_worker(**changes)
    assert set(world.ended) == set(range(1000))
    assert not world.open_jobs
    assert failed(world) <= 10
    assert sum(world.submissions.values()) <= 1500
    assert work_s(world) / world.now >= 0.6, "and the others have work"


@pytest.mark.parametrize("jobs_per_worker", [1, 8])
def test_where_idle_workers_are_chosen_by_chance_it_costs_little_more_than_one_submission_for_each_result(
    jobs_per_worker,
):
    """Less is not possible there: of two idle workers one is the dead one."""
    world = beside_a_dead_worker(prefers_healthy=0.5, jobs_per_worker=jobs_per_worker)
    assert failed(world) <= 10
    assert sum(world.submissions.values()) <= 2250
    assert work_s(world) / world.now >= 0.4


def test_a_worker_that_has_come_back_is_used_as_before():
    setting = Setting(rows=2000, workers=10, dead=1, guards=UNGUARDED)
    world = World(setting)
    world.at(60.0, lambda: setattr(setting, "dead", 0))
    sizes: list[int] = []
    world.at(59.0, lambda: sizes.append(len(world.scheduler._flights)))
    world.run()
    assert sizes[0] <= 10
    assert not world.scheduler.window.faulty_limit.is_on
    assert world.now <= 60.0 + (2000 - 9 * 60) / 10 + 30.0


def test_an_endpoint_that_has_no_other_worker_fails_rows_as_soon_as_before():
    for workers in (1, 2):
        world = beside_a_dead_worker(rows=100, workers=workers, dead=workers)
        assert failed(world) == 100
        assert world.now < 60.0
        assert sum(world.submissions.values()) <= 4 * 100 + 20


def test_no_retries_means_none_also_for_a_dead_worker():
    world = beside_a_dead_worker(options=SchedulerOptions(max_retries=0))
    assert set(world.submissions.values()) == {1}
    assert_every_row_ended_once(world)


def ended(worker: str, failure: Failure | None = DEAD) -> JobEnded:
    answers = (RowAnswer(failure),)
    return JobEnded(1, "FAILED" if failure else "COMPLETED", answers, 0.0, 0.005, 0.0, worker_id=worker)


def test_a_row_that_fails_everywhere_is_not_the_fault_of_a_worker():
    blame = FaultyWorkers()
    assert not blame.ended(0, ended("w", None), 0.0, 1.0)
    assert not any(blame.ended(7, ended("x"), 1.0, 1.0) for _ in range(10)), "one row only"
    assert not blame.ended(8, ended("x"), 1.0, 1.0)
    assert blame.ended(9, ended("x"), 1.0, 1.0)
    blame.ended(1, ended("x", None), 2.0, 1.0)
    assert not blame.ended(10, ended("x"), 2.0, 1.0), "it has worked again in between"


def test_workers_that_nobody_works_beside_are_not_to_blame():
    blame = FaultyWorkers()
    assert not any(blame.ended(row, ended("x"), 0.0, 1.0) for row in range(10))
    blame.ended(0, ended("w", None), 1.0, 1.0)
    assert blame.ended(11, ended("x"), 2.0, 1.0)
    assert not blame.ended(12, ended("x"), 200.0, 1.0), "that was long ago"


def test_what_is_new_of_failing_workers_is_told_once():
    blame = FaultyWorkers()
    blame.ended(0, ended("w", None), 0.0, 1.0)
    blame.ended(1, ended("x"), 0.0, 1.0)
    assert blame.take() == {"failed_by x": 1, "ended_by x": 1}
    assert blame.take() == {}
    blame.ended(2, ended("x", None), 0.0, 1.0)
    assert blame.take() == {"failed_by x": 0, "ended_by x": 1}


def test_as_many_jobs_are_in_flight_as_the_others_have_held_and_twice_as_many_are_tried_less_and_less():
    limit = FaultyWorkerLimit()
    for in_flight in (5, 4, 3):
        limit.failed(0.0, in_flight, 1.0, 1.0)
    assert (limit.is_on, limit.size(1.5)) == (True, 3), "a place that a failure had is not given again"
    for _ in range(3):
        limit.succeeded(0.0, 0.1, 1.0, 1.5, 1.0)
    assert limit.size(2.5) == 6
    gaps = []
    now = limit.opens_at
    for _ in range(4):
        limit.failed(now, 3, now, 1.0)
        assert limit.size(now) == 3
        gaps.append(limit.opens_at - now)
        now = limit.opens_at
    assert gaps == [1.0, 2.0, 4.0, 8.0]
    limit.succeeded(now, 2.0, 1.0, now + 3.0, 1.0)
    assert not limit.is_on, "a job that waited in the queue has met no such worker"
