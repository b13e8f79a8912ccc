"""A budget stops a run when the money is gone, and not because the first jobs look dear."""

from __future__ import annotations

from dataclasses import replace

import pytest

from batchrun.config import GuardOptions, HaltOptions
from tests.scheduler.test_simulation import assert_every_row_ended_once
from tests.scheduler.world import Setting, World

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
