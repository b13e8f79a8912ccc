"""What keeps watch over a run, in virtual time: cancel, timeouts, breaker, canary, budget, deadline, sleep."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.config import GuardOptions, HaltOptions, Limits, OperationLimit, SchedulerOptions
from batchrun.endpoint.protocol import Health
from batchrun.errors import AmbiguousError, StoppedError
from batchrun.scheduler import commands as cmd
from batchrun.scheduler import events as ev
from batchrun.scheduler.breaker import Breaker, Canary
from batchrun.scheduler.budget import Budget, WorkerMeter, WorkerTime
from batchrun.scheduler.gate import SubmissionGate
from batchrun.scheduler.health import obstacle
from batchrun.scheduler.scheduler import Scheduler
from tests.support.world import Faults, Setting, World
from tests.support.worlds import assert_every_row_ended_once, worlds

UNLIMITED = Limits(run=OperationLimit(0, 0), status=OperationLimit(0, 0))
UNGUARDED = GuardOptions(halt=HaltOptions(automatic=False))


def workers(*, idle=0, running=0, initializing=0, throttled=0, unhealthy=0, in_queue=0) -> Health:
    return Health(in_queue, running, 0, 0, idle, initializing, idle + running, running, throttled, unhealthy)


# Cancel


def assert_nothing_is_left_at_the_endpoint(world: World) -> None:
    assert not world.open_jobs
    assert all(job.ended_at is not None for job in world.jobs.values() if world.accepted[job.row])


@settings(max_examples=50)
@given(worlds, st.floats(0, 5), st.sampled_from([0.0, 0.3]))
def test_a_cancel_leaves_no_job_at_the_endpoint_and_the_run_can_continue(setting: Setting, cancel_at, cancel_broken):
    # A job that the endpoint denies twice is believed gone, and cannot be cancelled.
    faults = replace(setting.faults, cancel_broken=cancel_broken, submit_lost_after=0.0, poll_missing_once=0.0)
    setting = replace(setting, cancel_at=cancel_at, faults=faults, guards=UNGUARDED)
    world = World(setting).run()
    assert_nothing_is_left_at_the_endpoint(world)
    world.setting.cancel_at = float("inf")
    world.resume().run()
    assert_every_row_ended_once(world)


def test_queued_jobs_are_cancelled_before_those_at_work_and_the_youngest_first():
    setting = Setting(rows=40, workers=5, service_s=lambda _: 1000.0, cancel_at=30.5)
    world = World(setting)
    order: list[tuple[bool, float]] = []
    plain = world._send_cancel

    def noting(job: int, remote_id: str) -> None:
        remote = world.jobs[remote_id]
        order.append((remote.started_at is not None, -remote.arrived_at))
        plain(job, remote_id)

    world._send_cancel = noting  # type: ignore[method-assign]
    world.run()
    assert len(order) == 40
    assert order == sorted(order)


def test_a_cancel_of_a_thousand_jobs_keeps_to_the_limit_of_its_operation():
    options = SchedulerOptions(concurrency=1000)
    world = World(
        Setting(rows=1000, workers=1, service_s=lambda _: 1e5, options=options, cancel_at=60.0, guards=UNGUARDED)
    ).run()
    assert world.throttled == 0
    assert 90.0 <= world.now - 60.0 <= 105.0, "100 in any 10 s are allowed: a thousand take 90 s"


def test_a_job_that_is_over_before_its_cancel_is_collected_and_not_paid_again():
    setting = Setting(rows=20, workers=20, service_s=lambda _: 10.0, cancel_at=9.999, latency_s=lambda _: 0.05)
    world = World(setting).run()
    done = [job for job in world.jobs.values() if job.outcome == "ok" and job.ended_at]
    assert {world.jobs[f"job-{row}"].row for row in world.ended} == {job.row for job in done}


# Jobs that never end


@settings(max_examples=40)
@given(worlds, st.floats(0.5, 20), st.sampled_from([0.0, 0.3]))
def test_jobs_that_never_end_do_not_hold_a_run_for_ever(setting: Setting, job_timeout_s: float, cancel_broken: float):
    faults = replace(setting.faults, job_stuck=0.2, cancel_broken=cancel_broken)
    guards = replace(UNGUARDED, job_timeout_s=job_timeout_s)
    world = World(replace(setting, faults=faults, guards=guards))
    assert_every_row_ended_once(world.run(until=1e5))


def test_a_stuck_job_is_cancelled_counts_as_timed_out_and_is_tried_again():
    guards = replace(UNGUARDED, job_timeout_s=60.0)
    world = World(Setting(rows=10, workers=40, faults=Faults(job_stuck=1.0), guards=guards)).run(until=1e4)
    assert {finish.status for finish in world.ended.values()} == {"TIMED_OUT"}
    assert set(world.accepted.values()) == {1 + SchedulerOptions().max_retries}
    assert {job.outcome for job in world.jobs.values()} == {"cancelled"}


def test_without_a_job_timeout_the_ttl_bounds_a_job():
    setting = Setting(rows=3, faults=Faults(job_stuck=1.0), guards=UNGUARDED, life_s=3600.0, workers=20)
    assert set(World(setting).run(until=5 * 3600.0).accepted.values()) == {4}


def test_a_job_that_was_over_in_time_and_polled_late_is_not_cancelled():
    faults = Faults(suspended=((5.0, 600.0),))
    guards = replace(UNGUARDED, job_timeout_s=30.0)
    setting = Setting(rows=50, workers=50, service_s=lambda _: 20.0, faults=faults, guards=guards)
    world = World(setting).run()
    assert world.requests["cancel"] == 0
    assert all(finish.failure is None for finish in world.ended.values())


@pytest.mark.parametrize("answers", [False, True])
@pytest.mark.parametrize("rows", [1, 20])
def test_an_outage_is_no_reason_to_give_a_job_up(rows: int, answers: bool):
    guards = replace(UNGUARDED, job_timeout_s=30.0)
    faults = Faults(outage=(5.0, 900.0), outage_answers=answers)
    world = World(Setting(rows=rows, workers=20, service_s=lambda _: 20.0, faults=faults, guards=guards)).run()
    assert all(finish.failure is None for finish in world.ended.values())
    assert set(world.accepted.values()) == {1}


def test_a_job_whose_status_is_never_readable_ends_at_its_timeout():
    guards = replace(UNGUARDED, job_timeout_s=30.0)
    world = World(
        Setting(
            rows=4,
            faults=Faults(poll_broken=1.0),
            guards=guards,
            options=SchedulerOptions(max_retries=1, limits=UNLIMITED),
        )
    ).run(until=1e4)
    assert {finish.status for finish in world.ended.values()} == {"TIMED_OUT"}


# A machine that sleeps


def test_after_a_sleep_the_jobs_nearest_to_their_rescue_deadline_are_asked_first():
    options = SchedulerOptions(concurrency=400, connections=8, limits=Limits(status=OperationLimit(40, 0)))
    setting = Setting(
        rows=400,
        workers=20,
        service_s=lambda rng: rng.uniform(20, 40),
        options=options,
        faults=Faults(suspended=((100.0, 800.0),)),
        guards=UNGUARDED,
    )
    world = World(setting)
    asked: list[str] = []
    plain = world._send_poll
    world._send_poll = lambda job, remote_id: (  # type: ignore[method-assign]
        world.now >= 800.0 and asked.append(remote_id),
        plain(job, remote_id),
    )
    world.run()
    ends = [world.jobs[remote_id].ended_at for remote_id in asked[:40]]
    others = [world.jobs[remote_id].ended_at for remote_id in asked[200:]]
    assert max(ends) < sum(others) / len(others)
    assert sorted(ends[:20]) == sorted(ends)[:20] or max(ends[:20]) < min(others)
    assert all(finish.failure is None for finish in world.ended.values())


def test_a_sleep_ends_in_no_burst():
    setting = Setting(
        rows=3000, workers=50, faults=Faults(suspended=((20.0, 1200.0),)), options=SchedulerOptions(concurrency=1000)
    )
    world = World(setting).run()
    assert world.throttled == 0
    assert_every_row_ended_once(world)


# Breaker and canary


def outcomes(options: HaltOptions, failed: list[bool]) -> int | None:
    """After how many rows the breaker stops; None: it does not."""
    breaker = Breaker(options)
    for count, one in enumerate(failed, 1):
        if breaker.ended(failed=one) is not None:
            return count
    return None


def test_the_breaker_stops_when_the_first_twenty_or_the_last_two_hundred_failed():
    assert outcomes(HaltOptions(), [True] * 30) == 20
    assert outcomes(HaltOptions(), [True] * 19 + [False] + [True] * 199) is None
    assert outcomes(HaltOptions(), [False] + [True] * 300) == 201
    assert outcomes(HaltOptions(automatic=False), [True] * 1000) is None


def test_a_number_and_a_share_of_failed_rows_stop_a_run():
    assert outcomes(HaltOptions(rows=3), [False, True] * 10) == 6
    assert outcomes(HaltOptions(share=0.5), [True, False] * 40) == 50, "a share counts from the 50th row on"
    assert outcomes(HaltOptions(share=0.5), [False] * 100 + [True] * 101) == 200
    assert outcomes(HaltOptions(share=0.5), [False] * 100 + [True] * 99) is None


def test_a_bad_deployment_stops_the_run_and_nothing_is_lost():
    faults = Faults(bad_deployment=(40.0, 1e9))
    options = SchedulerOptions(concurrency=400)
    setting = Setting(rows=5000, workers=50, service_s=lambda _: 1.0, faults=faults, options=options)
    world = World(setting).run()
    assert "last 200 finished rows" in world.scheduler.stop.message
    assert world.drained is not None
    assert not world.open_jobs
    failed = sum(finish.failure is not None for finish in world.ended.values())
    assert 200 <= failed <= 200 + 400
    world.setting.faults.bad_deployment = (1e9, 1e9)
    world.resume().run()
    assert_every_row_ended_once(world)


def test_a_canary_goes_first_and_the_others_only_when_it_has_succeeded():
    guards = GuardOptions(canary=5)
    world = World(Setting(rows=100, workers=50, service_s=lambda _: 10.0, guards=guards)).run()
    arrivals = sorted(job.arrived_at for job in world.jobs.values())
    assert arrivals[4] < 1.0
    assert arrivals[5] > 10.0
    assert_every_row_ended_once(world)


def test_a_canary_that_fails_keeps_the_others_back():
    guards = GuardOptions(canary=5)
    world = World(Setting(rows=100, faults=Faults(job_bad=1.0), guards=guards)).run()
    assert len(world.jobs) == 5
    assert "canary" in world.scheduler.stop.message


@settings(max_examples=40)
@given(worlds, st.integers(1, 80))
def test_a_run_with_a_canary_ends_every_row_or_says_why_not(setting: Setting, rows: int):
    world = World(replace(setting, guards=replace(UNGUARDED, canary=rows))).run()
    if world.scheduler.stop is None:
        assert_every_row_ended_once(world)
    assert not world.open_jobs


def test_a_canary_lets_its_rows_be_tried_again():
    canary = Canary(1)
    canary.submitted(7)
    canary.submitted(7)
    assert not canary.room
    assert canary.ended(7, failed=False) is None
    assert canary.room


# Money


@pytest.mark.slow
def test_the_meter_knows_the_cost_of_workers_to_within_five_percent():
    guards = replace(UNGUARDED, price_per_hour=1.0)
    for seed, service in enumerate((lambda _: 2.0, lambda rng: rng.expovariate(1 / 5), lambda _: 40.0)):
        setting = Setting(
            rows=1000,
            workers=2,
            workers_at=[(30.0, 5), (60.0, 8)],
            jobs_per_worker=30,
            service_s=service,
            guards=guards,
            seed=seed,
        )
        world = World(setting).run()
        world.scheduler.meter.close(world.now)
        assert world.scheduler.meter.total.running_s == pytest.approx(world.worker_s, rel=0.05)


def test_across_a_gap_each_bound_takes_what_suits_it():
    meter = WorkerMeter(WorkerTime())
    meter.sample(workers(running=2, idle=1), 0.0)
    meter.sample(workers(running=4), 10.0)
    assert (meter.total.running_s, meter.total.idle_s) == (30.0, 5.0)
    meter.sample(workers(running=1, idle=5), 3610.0)
    assert meter.total.running_s == 30.0 + 3600.0
    assert meter.total.most_s == 35.0 + 6 * 3600.0
    taken = meter.take()
    assert taken == meter.total
    assert meter.take() == WorkerTime()


@pytest.mark.slow
def test_a_budget_is_kept_and_the_run_can_continue_with_a_larger_one():
    price = 3600.0
    guards = replace(UNGUARDED, price_per_hour=price, max_cost=500.0)
    setting = Setting(
        rows=1500, workers=10, service_s=lambda _: 1.0, options=SchedulerOptions(concurrency=40), guards=guards
    )
    world = World(setting).run()
    assert "the budget is reached" in world.scheduler.stop.message
    assert 450.0 <= world.worker_s <= 510.0
    world.setting.guards = UNGUARDED
    world.resume().run()
    assert_every_row_ended_once(world)


def test_without_a_price_or_a_known_cost_there_is_no_bound():
    meter = WorkerMeter(WorkerTime(running_s=1e6))
    assert Budget(meter, price_per_hour=None, max_cost=1.0).room(0) is None
    assert Budget(WorkerMeter(WorkerTime()), price_per_hour=1.0, max_cost=1.0).room(400) is None
    assert Budget(meter, price_per_hour=1.0, max_cost=1.0).room(0) == 0


# Deadline


def test_a_deadline_stops_submitting_in_time_to_be_drained():
    guards = replace(UNGUARDED, deadline_s=120.0)
    setting = Setting(
        rows=5000, workers=10, service_s=lambda _: 5.0, guards=guards, options=SchedulerOptions(concurrency=40)
    )
    world = World(setting).run()
    assert "deadline" in world.scheduler.stop.message
    assert world.halted is None, "what was in flight was collected in time"
    assert not world.open_jobs
    assert 90.0 <= world.now <= 120.0


def test_at_the_deadline_itself_the_run_ends_with_jobs_in_flight():
    guards = replace(UNGUARDED, deadline_s=60.0)
    world = World(Setting(rows=40, workers=10, service_s=lambda _: 1e4, guards=guards)).run()
    assert world.halted is not None
    assert world.now == pytest.approx(60.0, abs=0.1)
    assert len(world.open_jobs) == 40


# What is in the way


@pytest.mark.parametrize(
    ("health", "said"),
    [
        (workers(running=1), ""),
        (workers(idle=1), ""),
        (workers(), "no workers"),
        (workers(initializing=1), "its worker is still starting"),
        (workers(initializing=3), "its 3 workers are still starting"),
        (workers(throttled=3), "3 throttled, no GPU is free"),
        (workers(throttled=1, unhealthy=2), "1 throttled and 2 unhealthy, check their logs"),
    ],
)
def test_health_says_why_nobody_works(health, said):
    assert said in obstacle(health)
    assert bool(said) == bool(obstacle(health))


def test_a_run_that_stands_still_says_how_the_queue_is():
    gate = SubmissionGate(Random(0))
    for minute in range(5):
        gate.requested(minute * 60.0)
        gate.answered(workers(running=1, in_queue=10 + 100 * minute), minute * 60.0)
    assert gate.note(busy=True, quiet_s=30.0, usual_s=1.0) == ""
    assert gate.note(busy=True, quiet_s=300.0, usual_s=200.0) == ""
    note = gate.note(busy=True, quiet_s=300.0, usual_s=1.0)
    assert note == "no job has ended for 5 min: 410 queued, 1 running; 4 min ago 10 were queued"


def test_samples_for_a_cost_are_dense_at_first_and_never_farther_apart_than_ten_seconds():
    gate, now, times = SubmissionGate(Random(0), metered=True), 0.0, []
    while now < 2000:
        gate.requested(now)
        gate.answered(workers(running=1), now)
        times.append(now)
        now = gate.next_at()
    gaps = [b - a for a, b in pairwise(times)]
    assert gaps[0] == 0.25
    assert max(gaps) == 10.0
    assert all(gap <= max(0.25, 0.02 * at + 1e-9) for gap, at in zip(gaps, times, strict=False))


def test_an_open_gate_that_gets_no_health_stays_open_and_continues_asking():
    gate = SubmissionGate(Random(0))
    gate.requested(0.0)
    gate.answered(workers(running=1), 0.0)
    gate.requested(15.0)
    gate.failed(AmbiguousError("502"), 15.0)
    assert gate.is_open
    assert gate.health is None
    assert gate.next_at() >= 30.0


def test_what_stops_first_is_the_reason():
    scheduler = Scheduler(SchedulerOptions(), Random(0), guards=GuardOptions(deadline_s=1.0))
    scheduler.commands(0.0)
    scheduler.handle(ev.StopRequested(), 0.5)
    commands = scheduler.commands(2.0)
    assert scheduler.is_done
    (halt,) = [command for command in commands if isinstance(command, cmd.Halt)]
    assert isinstance(halt.error, StoppedError)
