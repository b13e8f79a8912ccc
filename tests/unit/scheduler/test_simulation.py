"""The scheduler in whole runs of virtual time, under everything that can go wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.config import GuardOptions, HaltOptions, Limits, OperationLimit, SchedulerOptions
from batchrun.scheduler import commands as cmd
from batchrun.scheduler.failures import FailureKind
from tests.support.world import Faults, Setting, World
from tests.support.worlds import assert_every_row_ended_once, worlds


@settings(max_examples=100)
@given(worlds)
def test_every_row_ends_exactly_once_whatever_goes_wrong(setting: Setting):
    world = World(setting).run()
    assert_every_row_ended_once(world)


@settings(max_examples=40)
@given(worlds, st.integers(1, 200))
def test_a_run_that_crashes_anywhere_continues_and_reports_each_possible_duplicate(setting: Setting, crash_after: int):
    world = World(setting).run(crash_after=crash_after)
    if world.crashed:
        world.resume().run()
    assert_every_row_ended_once(world)


@pytest.mark.parametrize("rows_per_job", range(1, 9))
def test_rows_of_one_job_end_one_by_one_and_only_the_failed_ones_are_submitted_again(rows_per_job: int):
    faults = Faults(row_bad=0.3, submit_lost_after=0.05, job_lost=0.05)
    setting = Setting(
        rows=400, workers=7, faults=faults, rows_per_job=rows_per_job, guards=GuardOptions(halt=HaltOptions(share=1.0))
    )
    world = World(setting).run()
    assert_every_row_ended_once(world)
    sizes = {len(job.rows) for job in world.jobs.values()}
    assert max(sizes) == rows_per_job
    assert rows_per_job == 1 or len(sizes) > 1, "what is submitted again is in jobs of any size"
    for job in world.jobs.values():
        good = set(job.rows) - job.bad_rows
        assert job.outcome != "ok" or all(world.ended[row].failure is None for row in good)


@settings(max_examples=40)
@given(worlds, st.floats(0, 5))
def test_a_stop_ends_when_what_is_in_flight_is_collected(setting: Setting, stop_at: float):
    world = World(replace(setting, stop_at=stop_at)).run()
    assert not world.open_jobs


@pytest.mark.parametrize("seed", range(3))
def test_documented_limits_are_never_exceeded_even_with_uneven_latency(seed: int):
    setting = Setting(
        rows=3000,
        workers=500,
        service_s=lambda rng: rng.uniform(0.1, 2.0),
        latency_s=lambda rng: rng.uniform(0.005, 0.4),
        options=SchedulerOptions(concurrency=1000, connections=400),
        seed=seed,
    )
    world = World(setting).run()
    assert world.throttled == 0
    assert_every_row_ended_once(world)


def test_bursts_are_used_so_that_five_thousand_rows_are_submitted_in_little_more_than_forty_seconds():
    setting = Setting(rows=5000, workers=1000, service_s=lambda _: 0.2, latency_s=lambda _: 0.025)
    assert World(setting).run().now < 43.0


def test_polls_follow_a_queue_that_builds_up_at_little_more_than_one_request_a_job():
    unlimited = Limits(run=OperationLimit(0, 0), status=OperationLimit(0, 0))
    setting = Setting(
        rows=5000,
        workers=100,
        service_s=lambda _: 0.2,
        latency_s=lambda _: 0.001,
        options=SchedulerOptions(limits=unlimited),
    )
    world = World(setting).run()
    assert world.requests["status"] <= 1.3 * setting.rows
    assert 10.0 / world.now >= 0.96


def test_a_cold_start_is_waited_for_with_few_requests_and_forgotten_at_once():
    setting = Setting(
        rows=2000, workers=0, workers_at=[(60, 5), (120, 50)], service_s=lambda _: 2.0, latency_s=lambda _: 0.025
    )
    ideal_s = 120 + (2000 - 150) * 2.0 / 50
    world = World(setting).run()
    assert ideal_s / world.now >= 0.95
    assert world.requests["status"] <= 3.5 * setting.rows


def test_an_outage_of_an_hour_loses_nothing_and_makes_no_submissions_beyond_those_under_way():
    setting = Setting(
        rows=3000,
        workers=20,
        service_s=lambda _: 1.0,
        latency_s=lambda _: 0.05,
        options=SchedulerOptions(concurrency=100),
        faults=Faults(outage=(30.0, 3630.0)),
    )
    world = World(setting).run()
    assert_every_row_ended_once(world)
    assert all(finish.failure is None for finish in world.ended.values())
    expired = sum(world.requeued.values())
    assert expired <= setting.options.concurrency, "results of the outage's first half hour are gone"
    assert world.requests["run"] == setting.rows + expired
    assert world.throttled == 0
    assert world.now < 3630.0 + 3000 / 20 + 60.0


def test_when_only_run_is_broken_few_submissions_are_risked_and_the_run_continues_by_itself():
    world = World(Setting(rows=300, faults=Faults(submit_lost_before=1.0)))
    world.at(3600.0, lambda: setattr(world.setting.faults, "submit_lost_before", 0.0))
    world.run()
    assert_every_row_ended_once(world)
    assert sum(world.unconfirmed.values()) <= 120
    lost = [finish for finish in world.ended.values() if finish.failure]
    assert len(lost) <= 40, "an hour of refusals costs a few rows, which are reported as unconfirmed"
    assert {finish.status for finish in lost} <= {"UNCONFIRMED"}


def test_a_flaky_404_does_not_pay_for_a_job_twice():
    setting = Setting(rows=200, faults=Faults(poll_missing_once=0.05), seed=3)
    world = World(setting).run()
    doubled = [row for row, count in world.accepted.items() if count > 1]
    assert len(doubled) <= 3, "two wrong 404s in a row are rare, one is not"


def test_a_bad_request_is_not_paid_for_again_and_a_lost_worker_is_retried():
    unguarded = GuardOptions(halt=HaltOptions(automatic=False))
    bad = World(Setting(rows=40, faults=Faults(job_bad=1.0), guards=unguarded)).run()
    assert {finish.failure.kind for finish in bad.ended.values() if finish.failure} == {FailureKind.BAD_REQUEST}
    assert set(bad.accepted.values()) == {1}
    lost = World(Setting(rows=40, faults=Faults(job_lost=1.0), guards=unguarded)).run()
    assert set(lost.accepted.values()) == {1 + SchedulerOptions().max_retries}


@pytest.mark.parametrize("rows", [1000, 8000])
def test_rows_in_memory_are_bounded_by_the_window_and_not_by_their_number(rows: int):
    unlimited = Limits(run=OperationLimit(0, 0), status=OperationLimit(0, 0))
    options = SchedulerOptions(concurrency=100, limits=unlimited)
    world = World(Setting(rows=rows, workers=500, options=options, faults=Faults(job_lost=0.3)))
    assert world.run().most_in_play <= 4 * options.concurrency


@pytest.mark.parametrize("concurrency", [60, None])
def test_after_an_outage_what_ended_meanwhile_is_collected_at_once(concurrency: int | None):
    setting = Setting(
        rows=300,
        workers=10,
        service_s=lambda _: 3.0,
        latency_s=lambda _: 0.02,
        options=SchedulerOptions(concurrency=concurrency),
        faults=Faults(outage=(20.0, 80.0)),
    )
    world = World(setting)
    known: list[float] = []
    plain = world._do
    world._do = lambda command: (  # type: ignore[method-assign]
        known.append(world.now) if isinstance(command, cmd.Finish) else None,
        plain(command),
    )
    world.run()
    ended = sum(job.ended_at is not None and job.ended_at < 80.0 for job in world.jobs.values())
    late = sorted(known)[ended - 1]
    assert late < 80.0 + 35.0, "30 s of backoff at most, and a few seconds to ask"
    assert world.now < 80.0 + 35.0 + 3.0 * 300 / 10


def test_a_few_slow_jobs_are_not_polled_all_the_time():
    setting = Setting(rows=100, workers=0, workers_at=[(60.0, 100)], service_s=lambda _: 30.0)
    world = World(setting).run()
    assert world.requests["status"] <= 12 * setting.rows
    assert world.now < 60.0 + 30.0 + 6.0
