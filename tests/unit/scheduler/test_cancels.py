"""Cancelling a large window under the limit of `/cancel`: the order, the requests that it takes, and what it keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.config import GuardOptions, HaltOptions, SchedulerOptions
from batchrun.scheduler.failures import FailureKind
from tests.support.world import Faults, Setting, World
from tests.support.worlds import assert_every_row_ended_once, worlds

UNGUARDED = GuardOptions(halt=HaltOptions(automatic=False))


def cancelled(world: World) -> list[tuple[int, str]]:
    """Runs the world; each cancel in order, with whether its job was at work (1) or queued (0)."""
    order: list[tuple[int, str]] = []
    plain = world._send_cancel

    def noting(job: int, remote_id: str) -> None:
        order.append((int(world.jobs[remote_id].started_at is not None), remote_id))
        plain(job, remote_id)

    world._send_cancel = noting  # type: ignore[method-assign]
    world.run()
    return order


def test_jobs_that_are_polled_meanwhile_are_not_cancelled_before_queued_ones_and_none_twice():
    options = SchedulerOptions(concurrency=600)
    setting = Setting(rows=600, workers=100, service_s=lambda _: 1e5, options=options, cancel_at=60.0, guards=UNGUARDED)
    order = cancelled(World(setting))
    assert len(order) == 600, "one request for each job"
    assert [at_work for at_work, _ in order] == sorted(at_work for at_work, _ in order)


def test_a_cancel_that_fails_for_an_hour_is_repeated_for_each_job_no_more_often_than_its_backoff_says():
    options = SchedulerOptions(concurrency=20)
    setting = Setting(
        rows=20,
        workers=20,
        service_s=lambda _: 3600.0,
        options=options,
        cancel_at=10.0,
        guards=UNGUARDED,
        faults=Faults(cancel_broken=1.0),
    )
    world = World(setting)
    order = cancelled(world)
    assert len(order) < 20 * 3600 / 10, "backoff goes up to 30 s, 15 s on average"
    assert len(world.scheduler._canceller._later) <= 20


def failed_as_cancelled(world: World) -> list[int]:
    return [row for row, end in world.ended.items() if end.failure and end.failure.kind is FailureKind.CANCELLED]


@pytest.mark.parametrize("crash_after", range(195, 270, 6))
@pytest.mark.parametrize("job_timeout_s", [None, 5.0])
def test_a_job_that_a_session_cancelled_before_it_died_is_nobody_elses_cancel(crash_after: int, job_timeout_s):
    guards = replace(UNGUARDED, job_timeout_s=job_timeout_s)
    cancel_at = 5.0 if job_timeout_s is None else float("inf")
    setting = Setting(rows=40, workers=2, service_s=lambda _: 2.0, cancel_at=cancel_at, guards=guards)
    world = World(setting).run(crash_after=crash_after)
    world.setting.cancel_at = float("inf")
    world.setting.guards = UNGUARDED
    world.resume().run()
    assert_every_row_ended_once(world)
    assert failed_as_cancelled(world) == []


@settings(max_examples=60)
@given(worlds, st.floats(0, 3), st.integers(1, 150), st.sampled_from([None, 2.0]))
def test_a_cancel_that_dies_anywhere_loses_no_row(setting: Setting, cancel_at: float, crash_after: int, job_timeout_s):
    guards = replace(UNGUARDED, job_timeout_s=job_timeout_s)
    world = World(replace(setting, cancel_at=cancel_at, guards=guards)).run(crash_after=crash_after)
    world.setting.cancel_at = float("inf")
    world.resume().run(until=1e5)
    assert_every_row_ended_once(world)
    assert failed_as_cancelled(world) == []
