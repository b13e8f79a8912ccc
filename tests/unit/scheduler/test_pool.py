"""A pool: each row at the endpoint that has it done first, whatever happens to one of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.config import GuardOptions, HaltOptions, SchedulerOptions
from batchrun.scheduler import commands as cmd
from tests.support.pools import PoolWorld, assert_every_row_ended_once
from tests.support.world import Faults, Setting
from tests.support.worlds import faults, latencies, limits, services

ROWS = 1000


def endpoint(service_s: float, workers: int = 4, **given: object) -> Setting:
    return Setting(workers=workers, service_s=lambda _: service_s, latency_s=lambda _: 0.05, **given)


def rate(setting: Setting) -> float:
    return setting.workers / setting.service_s(None)


def leaves(pools: PoolWorld, index: int) -> list[str]:
    return [command.error.message for _, command in pools.worlds[index].said if isinstance(command, cmd.Leave)]


@pytest.mark.parametrize(
    "pair",
    [(endpoint(3.0), endpoint(1.0)), (endpoint(1.0, 2), endpoint(1.0, 6)), (endpoint(30.0, 8), endpoint(10.0, 8))],
)
def test_endpoints_of_unequal_speed_end_together(pair: tuple[Setting, Setting]):
    pools = PoolWorld(pair, ROWS).run()
    assert_every_row_ended_once(pools)
    assert ROWS / sum(map(rate, pair)) / pools.now >= 0.95


def test_the_last_rows_are_left_to_the_faster_endpoint():
    pools = PoolWorld([endpoint(60.0, 1), endpoint(1.0, 4)], 2000).run()
    assert_every_row_ended_once(pools)
    last = max(job.ended_at for job in pools.worlds[1].jobs.values())
    assert max(job.ended_at for job in pools.worlds[0].jobs.values()) < last + 130


@pytest.mark.parametrize("refuses", [False, True])
@pytest.mark.parametrize("dead", [0, 1])
def test_an_endpoint_that_dies_at_half_time_and_comes_back_costs_little(dead: int, *, refuses: bool):
    start, end = 90.0, 150.0
    pair = [endpoint(3.0), endpoint(1.0)]
    rates = [rate(setting) for setting in pair]
    pair[dead] = replace(pair[dead], faults=Faults(outage=(start, end)))
    pools = PoolWorld(pair, ROWS)
    pools.worlds[dead].refuses = refuses
    pools.run()
    assert_every_row_ended_once(pools)
    before, without = sum(rates) * start, rates[1 - dead] * (end - start)
    ideal_s = end + max(ROWS - before - without, 0) / sum(rates) if before + without < ROWS else end
    assert ideal_s / pools.now >= 0.9
    kinds = [type(command) for _, command in pools.worlds[dead].said]
    assert kinds == ([cmd.Leave, cmd.Return] if refuses else [])


def test_the_run_stops_with_the_reason_if_an_endpoint_with_open_jobs_never_comes_back():
    pools = PoolWorld([endpoint(3.0), endpoint(1.0, faults=Faults(outage=(90.0, 1e9)))], ROWS)
    pools.worlds[1].refuses = True
    pools.run()
    other, dead = pools.worlds
    assert other.scheduler.stop is None
    assert "401" in dead.scheduler.stop.message
    assert len(pools.ended) + len(dead.open_jobs) == ROWS
    assert not other.open_jobs


def test_the_run_stops_when_no_endpoint_is_left():
    pools = PoolWorld([endpoint(1.0, faults=Faults(outage=(at, 1e9))) for at in (20.0, 40.0)], ROWS)
    for world in pools.worlds:
        world.refuses = True
    pools.run(until=200)
    assert all("401" in world.scheduler.stop.message for world in pools.worlds)
    assert 0 < len(pools.ended) < ROWS


def test_an_endpoint_that_fails_every_job_leaves_and_no_row_fails_for_it():
    pools = PoolWorld([endpoint(0.5, faults=Faults(job_lost=1.0)), endpoint(1.0)], 300).run()
    assert_every_row_ended_once(pools)
    assert all(finish.failure is None for finish in pools.ended.values())
    assert "jobs all failed" in leaves(pools, 0)[0]
    assert len(pools.worlds[0].jobs) < 150


@pytest.mark.parametrize("fails_for_s", [10.0, math.inf])
def test_an_endpoint_that_failed_at_first_gets_another_try_at_the_rows_that_only_it_may_submit(fails_for_s: float):
    pools = PoolWorld([endpoint(0.5, faults=Faults(job_lost=1.0)), endpoint(0.1)], 50)
    failing = pools.worlds[0]
    failing.at(fails_for_s, lambda: setattr(failing, "setting", replace(failing.setting, faults=Faults())))
    pools.homes |= dict.fromkeys(range(1, 11), 0)
    pending = pools.worlds[0].pending
    pending.extend([pending.popleft()._replace(home=pools.homes.get(row)) for row in range(50)])
    pools.run(until=200.0)
    if math.isinf(fails_for_s):
        assert len(pools.ended) == 43, "two rows have been tried, and one more after 30 s"
        assert "jobs all failed" in failing.scheduler.stop.message
    else:
        assert_every_row_ended_once(pools)
        assert leaves(pools, 0)
        assert 30 < pools.now < 60, "it is away for 30 s"


def test_an_endpoint_that_comes_back_no_better_costs_few_rows():
    broken = endpoint(0.5, faults=Faults(job_bad=1.0), options=SchedulerOptions(max_retries=0))
    pools = PoolWorld([broken, endpoint(1.0)], 600).run()
    assert_every_row_ended_once(pools)
    assert len(leaves(pools, 0)) > 1
    assert sum(finish.failure is not None for finish in pools.ended.values()) < 20 + len(leaves(pools, 0))


def test_the_others_end_if_the_driver_of_one_has_failed():
    pools = PoolWorld([endpoint(1.0), endpoint(1.0)], 200).run(crash_at=15.0)
    failed, other = pools.worlds
    assert failed.open_jobs
    failed.is_done = True
    failed.scheduler.member.end()
    pools.run(until=200)
    assert not other.open_jobs
    assert len(pools.ended) > 190 - len(failed.open_jobs)


def test_an_endpoint_without_workers_leaves_until_it_has_some():
    pair = [endpoint(1.0, workers_at=[(30.0, 0), (150.0, 4)]), endpoint(1.0)]
    pools = PoolWorld(pair, 1200).run()
    assert_every_row_ended_once(pools)
    assert leaves(pools, 0) == ["it has no workers: scaled to zero, or its maximum is 0"]
    assert any(isinstance(command, cmd.Return) for _, command in pools.worlds[0].said)
    assert sum(job.started_at > 150 for job in pools.worlds[0].jobs.values()) > 50


def test_different_models_are_refused_before_much_is_paid_for():
    pools = PoolWorld([endpoint(1.0), endpoint(1.0)], ROWS)
    pools.worlds[1].kind = "other"
    pools.run()
    assert all("answers with" in world.scheduler.stop.message for world in pools.worlds)
    assert len(pools.ended) < 100
    assert not any(world.open_jobs for world in pools.worlds)


def test_different_models_are_accepted_on_demand():
    pools = PoolWorld([endpoint(1.0), endpoint(1.0)], 200, mixed=True)
    pools.worlds[1].kind = "other"
    assert_every_row_ended_once(pools.run())
    assert all(len(world.jobs) > 50 for world in pools.worlds)


def test_an_endpoint_gets_one_row_until_it_has_answered():
    pools = PoolWorld([endpoint(1.0), endpoint(1.0, workers_at=[(60.0, 4)], workers=0)], 600).run()
    assert_every_row_ended_once(pools)
    slow = pools.worlds[1]
    assert sum(job.arrived_at < 60 for job in slow.jobs.values()) == 1


def test_a_budget_is_of_the_pool_as_a_whole():
    guards = GuardOptions(price_per_hour=3600.0, max_cost=400.0)
    pools = PoolWorld([endpoint(3.0), endpoint(1.0)], ROWS, guards=guards).run()
    assert all("the budget is reached" in world.scheduler.stop.message for world in pools.worlds)
    spent = sum(world.scheduler.meter.total.most_s for world in pools.worlds)
    assert 320 < spent < 440


def test_a_number_of_failures_stops_the_pool_as_a_whole():
    guards = GuardOptions(halt=HaltOptions(rows=10))
    options = SchedulerOptions(max_retries=0)
    pair = [endpoint(1.0, options=options, faults=Faults(job_bad=0.2)) for _ in range(2)]
    pools = PoolWorld(pair, ROWS, guards=guards).run()
    assert all("--halt 10" in world.scheduler.stop.message for world in pools.worlds)
    assert 10 <= sum(finish.failure is not None for finish in pools.ended.values()) < 60


pooled = st.builds(
    Setting,
    workers=st.integers(1, 10),
    service_s=services,
    latency_s=latencies,
    options=st.builds(
        SchedulerOptions,
        concurrency=st.integers(1, 30),
        connections=st.integers(1, 12),
        limits=limits,
        max_retries=st.integers(0, 3),
        unconfirmed=st.just("resubmit"),
    ),
    faults=faults,
    seed=st.integers(0, 2**32),
)
FREELY = GuardOptions(halt=HaltOptions(automatic=False))


@settings(max_examples=25)
@given(st.lists(pooled, min_size=2, max_size=3), st.integers(0, 60), st.sampled_from([1, 1, 3]))
def test_in_any_world_each_row_of_a_pool_ends_once(worlds: list[Setting], rows: int, rows_per_job: int):
    retries = worlds[0].options.max_retries
    made = [
        replace(world, rows_per_job=rows_per_job, options=replace(world.options, max_retries=retries))
        for world in worlds
    ]
    assert_every_row_ended_once(PoolWorld(made, rows, guards=FREELY).run())


@settings(max_examples=25)
@given(st.lists(pooled, min_size=2, max_size=3), st.integers(0, 60), st.floats(0, 20))
def test_a_crash_loses_no_row_of_a_pool_and_moves_no_unconfirmed_one(worlds: list[Setting], rows: int, at: float):
    pools = PoolWorld(worlds, rows, guards=FREELY).run(crash_at=at)
    assert_every_row_ended_once(pools.resume().run())
