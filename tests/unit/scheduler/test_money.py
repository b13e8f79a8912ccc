"""A budget stops a run when the money is gone, and not because the first jobs look dear."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from batchrun.config import GuardOptions, HaltOptions, SchedulerOptions
from batchrun.errors import AmbiguousError
from batchrun.scheduler import events as ev
from batchrun.scheduler.scheduler import Scheduler
from tests.support.world import Setting, World
from tests.support.worlds import assert_every_row_ended_once

PRICED = GuardOptions(halt=HaltOptions(automatic=False), price_per_hour=3600.0)
"""A dollar for each second of a worker."""


def test_a_budget_that_is_enough_for_all_rows_does_not_stop_a_run_when_the_first_jobs_end():
    setting = Setting(rows=1500, workers=100, service_s=lambda _: 10.0, guards=replace(PRICED, max_cost=22_000.0))
    world = World(setting).run()
    assert world.scheduler.stop is None
    assert_every_row_ended_once(world)


@pytest.mark.parametrize("max_cost", [2500.0, 5000.0, 10_000.0])
def test_a_budget_is_used_and_kept_to_from_the_first_window_on(max_cost: float):
    guards = replace(PRICED, max_cost=max_cost)
    setting = Setting(rows=5000, workers=50, service_s=lambda rng: rng.uniform(2, 10), guards=guards)
    world = World(setting).run()
    assert "the budget is reached" in world.scheduler.stop.message
    assert 0.85 * max_cost <= world.worker_s <= 1.02 * max_cost
    assert not world.open_jobs


@pytest.mark.parametrize("first", ["a failed poll", "at work", "over"])
def test_what_an_adopted_job_ran_unwatched_is_counted_however_its_first_poll_went(first: str):
    scheduler = Scheduler(SchedulerOptions(), Random(0))
    scheduler.handle(ev.JobAdopted((ev.Ticket(1, attempts=1),), 7, "remote", -100.0), 0.0)
    scheduler.commands(0.0)
    if first == "a failed poll":
        scheduler.handle(ev.PollFailed(7, AmbiguousError("502"), 0.0), 0.1)
    elif first == "at work":
        scheduler.handle(ev.JobSeen(7, in_progress=True, sent_at=0.0), 0.1)
    if first != "over":
        scheduler.commands(60.0)
    scheduler.handle(ev.JobEnded(7, "COMPLETED", (ev.RowAnswer(),), 20.0, 90.0, 60.0), 60.1)
    assert scheduler.meter.total.unwatched_s == pytest.approx(80.0), "from -80 to 0"
