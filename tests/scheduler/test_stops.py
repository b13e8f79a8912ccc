"""A run is stopped early only where something is left that it keeps from being done."""

from __future__ import annotations

from random import Random

from batchrun.config import GuardOptions, HaltOptions, SchedulerOptions
from batchrun.endpoint.protocol import Health
from batchrun.errors import NotFoundError
from batchrun.scheduler import commands as cmd
from batchrun.scheduler import events as ev
from batchrun.scheduler.scheduler import Scheduler
from tests.scheduler.test_simulation import assert_every_row_ended_once
from tests.scheduler.world import Faults, Setting, World


def test_a_deadline_does_not_stop_a_run_whose_rows_are_all_submitted_and_end_in_time():
    guards = GuardOptions(deadline_s=60.0)
    world = World(Setting(rows=40, workers=20, service_s=lambda _: 25.0, guards=guards)).run()
    assert world.now < 60.0
    assert_every_row_ended_once(world)
    assert world.scheduler.stop is None
    assert world.drained is None


def test_a_deadline_stops_a_row_that_would_be_tried_again_too_late():
    guards = GuardOptions(halt=HaltOptions(automatic=False), deadline_s=60.0)
    faults = Faults(job_lost=1.0)
    world = World(Setting(rows=40, workers=20, service_s=lambda _: 25.0, guards=guards, faults=faults)).run()
    assert "deadline" in world.scheduler.stop.message
    assert world.now <= 60.1


def test_a_breaker_or_a_canary_that_trips_with_the_last_rows_has_stopped_nothing():
    for guards in (GuardOptions(), GuardOptions(canary=50), GuardOptions(halt=HaltOptions(rows=20))):
        world = World(Setting(rows=20, faults=Faults(job_bad=1.0), guards=guards)).run()
        assert_every_row_ended_once(world)
        assert world.scheduler.stop is None


def test_a_breaker_that_trips_while_the_last_jobs_are_in_flight_stops_those_that_would_be_tried_again():
    faults = Faults(job_lost=0.3, job_bad=0.3)
    options = SchedulerOptions(concurrency=1000)
    guards = GuardOptions(halt=HaltOptions(rows=1))
    world = World(Setting(rows=200, workers=5, faults=faults, guards=guards, options=options)).run()
    assert "--halt 1" in world.scheduler.stop.message
    assert not world.open_jobs
    assert len(world.ended) < 200


def opened(scheduler: Scheduler) -> Scheduler:
    """A scheduler with a job in flight at an endpoint that has answered."""
    scheduler.commands(0.0)
    scheduler.handle(ev.HealthSeen(Health(0, 0, 0, 0, 0, 0, 1, 1, 0, 0)), 0.1)
    scheduler.handle(ev.RowsLoaded((ev.Ticket(0), ev.Ticket(1)), exhausted=True), 0.1)
    for command in scheduler.commands(0.2):
        if isinstance(command, cmd.Submit):
            scheduler.handle(ev.Submitted(command.job, f"remote-{command.job}", 0.2), 0.3)
    return scheduler


def test_one_404_of_health_does_not_end_a_run_whose_endpoint_has_answered():
    scheduler = opened(Scheduler(SchedulerOptions(), Random(0)))
    for now in (15.0, 16.0):
        scheduler.handle(ev.HealthFailed(NotFoundError("404", http_status=404)), now)
        assert not scheduler.is_done
        scheduler.handle(ev.HealthSeen(Health(0, 0, 0, 0, 0, 0, 1, 1, 0, 0)), now + 0.5)
    assert not scheduler.is_done


def test_a_health_that_answers_404_again_and_again_ends_a_run():
    scheduler = opened(Scheduler(SchedulerOptions(), Random(0)))
    for now in (15.0, 30.0, 45.0):
        assert not scheduler.is_done
        scheduler.handle(ev.HealthFailed(NotFoundError("404", http_status=404)), now)
    assert scheduler.is_done
