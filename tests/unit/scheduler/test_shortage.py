"""Few jobs of many rows leave an endpoint's workers idle or not started: what the run says, in virtual time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from batchrun.config import GuardOptions, HaltOptions, SchedulerOptions
from batchrun.endpoint.protocol import Health
from tests.support.world import Setting, World


class ScaledWorld(World):
    """An endpoint that starts with one worker, and gets more of them by the rule of an autoscaler.

    Args:
        setting: As many workers as `workers` says may be started.
        jobs_each: By request count, one worker for this many jobs; None: one more when a job has waited for 4 s.
        shows_sleeping: Whether `/health` counts workers that are not started as idle.
    """

    def __init__(self, setting: Setting, *, jobs_each: int | None = None, shows_sleeping: bool = False) -> None:
        super().__init__(setting)
        self.jobs_each, self.shows_sleeping = jobs_each, shows_sleeping
        self.workers = 1
        self.added_at = 0.0
        self.most_workers = 1
        self.at(0.5, self._scale)

    def _scale(self) -> None:
        wanted = self.workers
        if self.jobs_each is not None:
            wanted = math.ceil((len(self.queue) + self.busy) / self.jobs_each)
        elif self.queue and self.now - max(self.queue[0].arrived_at, self.added_at) >= 4.0:
            wanted, self.added_at = self.workers + 1, self.now
        if wanted > self.workers:
            self._set_workers(min(wanted, self.setting.workers))
        self.most_workers = max(self.most_workers, self.workers)
        self.at(self.now + 0.5, self._scale)

    def health(self) -> Health:
        health = super().health()
        asleep = (self.setting.workers - self.workers) * self.shows_sleeping
        return replace(health, idle=health.idle + asleep)


def packed(rows: int, rows_per_job: int, *, concurrency: int | None = None, job_s: float = 60.0) -> Setting:
    return Setting(
        rows=rows,
        rows_per_job=rows_per_job,
        workers=5,
        jobs_per_worker=30,
        service_s=lambda rng: rng.uniform(0.9, 1.1) * job_s,
        options=SchedulerOptions(concurrency=concurrency),
        guards=GuardOptions(halt=HaltOptions(automatic=False)),
    )


def share(world: World) -> float:
    """The share of the time with shared jobs in which they were too few."""
    time = world.scheduler.meter.total
    return time.short_s / time.packed_s if time.packed_s else 0.0


def idle(world: World) -> float:
    time = world.scheduler.meter.total
    return time.short_idle_s / time.short_s


@pytest.mark.parametrize(("shows_sleeping", "started"), [(False, 1), (True, 3)])
def test_workers_that_hold_all_rows_in_a_few_jobs_are_noticed_when_no_other_is_started(
    shows_sleeping: bool, started: int
):
    world = ScaledWorld(packed(1000, 64), shows_sleeping=shows_sleeping).run()
    assert world.most_workers == started
    assert share(world) > 0.8
    assert idle(world) == pytest.approx(2.5 * shows_sleeping, abs=1)


@pytest.mark.parametrize(
    ("shows_sleeping", "said"), [(False, "1 worker is at work, for"), (True, "3 workers are at work and 2 idle, for")]
)
def test_it_is_reported_once_while_it_lasts(shows_sleeping: bool, said: str):
    world = ScaledWorld(packed(1000, 64, job_s=300.0), shows_sleeping=shows_sleeping).run()
    (told,) = world.told
    assert said in told
    assert "jobs of 1,000 rows" in told


@pytest.mark.parametrize("shows_sleeping", [False, True])
def test_the_same_rows_in_smaller_jobs_get_all_workers_started_and_nothing_is_said(shows_sleeping: bool):
    world = ScaledWorld(packed(3000, 4), shows_sleeping=shows_sleeping).run()
    assert world.most_workers == 5
    assert share(world) < 0.25
    assert not world.told


@pytest.mark.parametrize(("jobs_each", "started"), [(4, 3), (None, 1)])
def test_a_small_window_that_the_user_chose_and_that_is_full_of_shared_jobs_counts_although_rows_wait(
    jobs_each: int | None, started: int
):
    world = ScaledWorld(packed(3000, 32, concurrency=10), jobs_each=jobs_each, shows_sleeping=True).run()
    assert world.most_workers == started
    assert share(world) > 0.8
    assert idle(world) > 5 - started - 0.5
    assert len(world.told) == 1


def test_a_long_run_whose_jobs_wait_for_its_workers_says_nothing():
    world = ScaledWorld(packed(60_000, 16, job_s=10.0), shows_sleeping=True).run()
    assert world.most_workers == 5
    assert share(world) < 0.1
    assert not world.told


def test_rows_that_the_rate_limit_holds_back_are_not_the_fault_of_their_jobs():
    world = World(replace(packed(64_000, 16, job_s=0.2), workers=100)).run()
    assert share(world) < 0.1
    assert not world.told


def test_jobs_of_one_row_are_never_too_few():
    world = ScaledWorld(packed(16, 1, job_s=300.0), shows_sleeping=True).run()
    assert world.scheduler.meter.total.packed_s == 0
    assert not world.told
