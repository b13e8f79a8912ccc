"""A run is stopped early only where something is left that it keeps from being done."""

from __future__ import annotations

from random import Random

import pytest

from batchrun.config import GuardOptions, HaltOptions, SchedulerOptions
from batchrun.endpoint.protocol import Health
from batchrun.errors import DeniedError, NotFoundError, TooLargeError
from batchrun.scheduler import commands as cmd
from batchrun.scheduler import events as ev
from batchrun.scheduler.failures import FailureKind
from batchrun.scheduler.flight import Flight, Row
from batchrun.scheduler.refusal import Refusals
from batchrun.scheduler.scheduler import Scheduler
from batchrun.scheduler.states import RowState
from tests.support.world import Faults, Setting, World
from tests.support.worlds import assert_every_row_ended_once


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


def test_a_health_that_answers_404_again_and_again_ends_a_run_once_its_jobs_are_collected():
    scheduler = opened(Scheduler(SchedulerOptions(), Random(0)))
    for now in (15.0, 30.0, 45.0):
        assert scheduler.stop is None
        scheduler.handle(ev.HealthFailed(NotFoundError("404", http_status=404)), now)
    assert "no such endpoint" in scheduler.stop.message
    assert not scheduler.is_done
    for job in list(scheduler._flights):
        scheduler.handle(ev.JobEnded(job, "COMPLETED", (ev.RowAnswer(),), 0.1, 0.1, 45.0), 46.0)
    scheduler.commands(46.0)
    assert scheduler.is_done


def denied(http_status: int = 403, *, from_api: bool = False) -> DeniedError:
    return DeniedError(str(http_status), http_status=http_status, from_api=from_api)


@pytest.mark.parametrize("from_api", [False, True])
def test_a_run_with_jobs_in_flight_has_been_answered_before_whatever_its_first_poll_meets(*, from_api: bool):
    scheduler = Scheduler(SchedulerOptions(), Random(0))
    scheduler.handle(ev.JobAdopted((ev.Ticket(1, attempts=1),), 7, "remote", -100.0), 0.0)
    scheduler.commands(0.0)
    scheduler.handle(ev.PollFailed(7, denied(from_api=from_api), 0.0), 0.1)
    halted = [command for command in scheduler.commands(0.1) if isinstance(command, cmd.Halt)]
    assert bool(halted) == from_api, "a page of an edge says nothing yet"


@pytest.mark.parametrize("operation", ["run", "status", "cancel", "health"])
def test_a_refusal_is_believed_when_it_has_come_three_times_over_ten_seconds(operation: str):
    for times, believed in (
        ((0.0, 1.0, 2.0, 9.9), [False] * 4),
        ((0.0, 10.0), [False] * 2),
        ((0.0, 5.0, 10.0), [False, False, True]),
        ((0.0, 0.1, 30.0), [False, False, True]),
    ):
        refusals = Refusals()
        refusals.answered("health", 0.0)
        assert [refusals.is_believed(operation, denied(), at) for at in times] == believed


def test_a_refusal_is_believed_at_once_at_first_contact_or_in_the_words_of_the_api_or_without_credit():
    refusals = Refusals()
    assert refusals.is_believed("health", denied(), 0.0)
    refusals.answered("health", 0.0)
    assert not refusals.is_believed("health", denied(), 1.0)
    assert refusals.is_believed("health", denied(from_api=True), 2.0)
    refusals.answered("health", 0.0)
    assert refusals.is_believed("status", denied(402), 3.0)


def test_a_good_answer_to_the_same_operation_shows_that_a_refusal_was_not_meant():
    refusals = Refusals()
    refusals.answered("health", 0.0)
    for at in range(0, 100, 10):
        assert not refusals.is_believed("run", denied(), float(at))
        assert not refusals.is_believed("run", denied(), at + 5.0)
        refusals.answered("run", 0.0)
    refusals.is_believed("run", denied(), 200.0)
    refusals.answered("status", 0.0)
    refusals.is_believed("health", denied(), 205.0)
    assert refusals.is_believed("run", denied(), 210.0), "what /health says counts, and what /status says does not"


def test_a_refused_status_ends_a_run_that_collects_for_the_reason_that_it_had():
    scheduler = opened(Scheduler(SchedulerOptions(), Random(0)))
    job, *_ = scheduler._flights
    scheduler.handle(ev.HealthFailed(NotFoundError("404", http_status=404, from_api=True)), 15.0)
    scheduler.handle(ev.PollFailed(job, denied(401), 15.0), 15.5)
    assert not scheduler.is_done
    scheduler.handle(ev.PollFailed(job, denied(401, from_api=True), 16.0), 16.5)
    assert scheduler.is_done
    assert "no such endpoint" in scheduler.stop.message


@pytest.mark.parametrize(
    ("answers", "gone_at"),
    [
        ([(0.0, True), (2.0, True)], 2.0),
        ([(0.0, False), (2.0, True)], 2.0),
        ([(0.0, False), (2.0, False), (10.0, False)], 10.0),
        ([(0.0, False), (4.0, False), (9.0, False), (11.0, False)], 11.0),
    ],
)
def test_a_job_is_gone_when_the_api_says_so_twice_or_anybody_three_times_over_ten_seconds(answers, gone_at):
    flight = Flight(1, (Row(ev.Ticket(0), RowState.SUBMITTED),), 0.0)
    for at, is_sure in answers:
        wait_s = flight.missed(at, is_sure=is_sure)
        assert (wait_s == 0) == (at == gone_at)
        assert wait_s == 0 or wait_s >= 2


def test_a_row_whose_answer_is_too_large_fails_and_is_not_paid_for_again():
    scheduler = opened(Scheduler(SchedulerOptions(), Random(0)))
    job, *_ = scheduler._flights
    scheduler.handle(ev.PollFailed(job, TooLargeError("larger than 25 MB", http_status=200), 1.0), 1.5)
    (finish,) = [command for command in scheduler.commands(2.0) if isinstance(command, cmd.Finish)]
    assert (finish.status, finish.failure.kind, finish.attempts) == ("FAILED", FailureKind.TOO_LARGE, 1)
