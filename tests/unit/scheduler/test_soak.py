"""A night in virtual time: eight hours, and everything that a night has in store.

`BATCHRUN_CHAOS=N` makes it one of 100,000 jobs instead of 25,000, with four times the workers.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from batchrun.config import GuardOptions, SchedulerOptions
from tests.support.world import Faults, Setting, World
from tests.support.worlds import assert_every_row_ended_once

HOUR = 3600.0
SIZE = 4 if os.environ.get("BATCHRUN_CHAOS") else 1


@pytest.mark.slow
def test_a_night_of_many_thousand_jobs_loses_none_and_stops_at_a_bad_deployment():
    faults = Faults(
        submit_lost_after=0.0002,
        poll_broken=0.002,
        job_lost=0.002,
        outage=(1 * HOUR, 2 * HOUR),
        suspended=((2.5 * HOUR, 2.5 * HOUR + 600), (6 * HOUR, 6 * HOUR + 900)),
        bad_deployment=(4 * HOUR, 4 * HOUR + 1200),
    )
    setting = Setting(
        rows=25_000 * SIZE,
        workers=0,
        workers_at=[(60.0, 5 * SIZE), (1800.0, 11 * SIZE), (5 * HOUR, 9 * SIZE)],
        service_s=lambda rng: rng.lognormvariate(2.0, 0.5),
        latency_s=lambda rng: rng.uniform(0.02, 0.08),
        options=SchedulerOptions(concurrency=50 * SIZE),
        guards=GuardOptions(price_per_hour=2.0, job_timeout_s=1800.0),
        faults=faults,
    )
    world = World(setting).run()
    assert "last 200 finished rows" in world.scheduler.stop.message
    assert 4 * HOUR < world.now < 4.5 * HOUR, "the bad deployment is noticed in its first minutes"
    assert not world.open_jobs
    failed = {row for row, finish in world.ended.items() if finish.failure}
    assert len(failed) <= 200 + 2 * setting.options.concurrency
    before = world.scheduler.meter.total

    world.now = max(world.now, 5 * HOUR)
    world.setting.guards = replace(setting.guards, price_per_hour=None)
    world.resume().run()
    assert_every_row_ended_once(world)
    assert world.throttled == 0, "neither the outage nor a sleep ends in a burst"
    assert {row for row, finish in world.ended.items() if finish.failure} <= failed
    assert world.now <= 8 * HOUR
    assert sum(world.unconfirmed.values()) <= 15 * SIZE
    expired = sum(job.outcome == "ok" for job in world.jobs.values()) - sum(
        finish.failure is None for finish in world.ended.values()
    )
    assert expired <= 2 * setting.options.concurrency + sum(world.unconfirmed.values())
    assert before.running_s <= before.most_s
