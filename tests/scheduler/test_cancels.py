"""Cancelling a large window under the limit of `/cancel`: the order, the requests that it takes, and what it keeps."""

from __future__ import annotations

from batchrun.config import GuardOptions, HaltOptions, SchedulerOptions
from tests.scheduler.world import Faults, Setting, World

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


def test_jobs_that_are_asked_after_meanwhile_are_not_cancelled_before_queued_ones_and_none_twice():
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
