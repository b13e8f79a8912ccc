"""From a state and one event to the exact commands: each decision of the scheduler, one by one."""

from __future__ import annotations

from random import Random

import pytest

from batchrun.config import GuardOptions, HaltOptions, SchedulerOptions
from batchrun.endpoint.protocol import Health
from batchrun.errors import (
    AmbiguousError,
    CallError,
    DeniedError,
    NotFoundError,
    RefusedError,
    RejectedError,
    StoppedError,
    ThrottledError,
    TooLargeError,
    UnreachableError,
)
from batchrun.scheduler import commands as cmd
from batchrun.scheduler import events as ev
from batchrun.scheduler.failures import Failure, FailureKind
from batchrun.scheduler.scheduler import Scheduler

WELL = ev.HealthSeen(Health(0, 0, 0, 0, 1, 0, 1, 0, 0, 0))
BAD_GATEWAY = AmbiguousError("502 Bad Gateway", http_status=502)
NO_NETWORK = UnreachableError("no route to host")
GONE = NotFoundError("job not found", http_status=404, from_api=True)
CRASHED = Failure(FailureKind.WORKER_ERROR, "CUDA error", "CUDA error")
MALFORMED = Failure(FailureKind.BAD_REQUEST, "vLLM returned HTTP 400", "vLLM returned HTTP 400")
OVERRAN = Failure(FailureKind.TIMED_OUT, "executionTimeout exceeded", "executionTimeout exceeded")
OUTLIVED = Failure(FailureKind.TIMED_OUT, "the job overran its ttl", "", may_pass=True)
DROPPED = Failure(FailureKind.CANCELLED, "the job was cancelled by somebody else", "")


TICK_S = 4.0
"""A scheduler that is not asked for longer believes that the machine slept."""


class Middle(Random):
    """Jitter that is always in the middle of its span, so that each time is exact."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


class Desk:
    """A scheduler of some rows, with a clock that is moved by hand.

    Args:
        rows: How many rows the run has.
        tickets: The same, where they were submitted before.
        guards: What stops the run.
        options: Of the scheduler; two jobs may be in flight unless they say otherwise.
    """

    def __init__(
        self,
        rows: int = 1,
        *,
        tickets: tuple[ev.Ticket, ...] = (),
        guards: GuardOptions | None = None,
        **options: object,
    ) -> None:
        self.tickets = tickets or tuple(ev.Ticket(row) for row in range(rows))
        options = {"concurrency": 2, **options}
        self.scheduler = Scheduler(SchedulerOptions(**options), Middle(0), guards=guards or GuardOptions())

    def at(self, now: float) -> list[cmd.Command]:
        return self.scheduler.commands(now)

    def after(self, event: ev.Event, now: float = 0.0) -> list[cmd.Command]:
        self.scheduler.handle(event, now)
        return self.scheduler.commands(now)

    def wait(self, now: float = 0.0) -> tuple[float | None, list[cmd.Command]]:
        """When the scheduler wants to be asked without an event, and what it then says; before, it says nothing."""
        while (at := self.scheduler.next_wakeup(now)) is not None and at - now > TICK_S:
            now += TICK_S
            assert self.scheduler.commands(now) == []
        return at, [] if at is None else self.scheduler.commands(at)

    def idle(self, until: float) -> None:
        """Let time pass in which nothing happens but that `/health` answers."""
        now = 0.0
        while (now := now + TICK_S) < until:
            if cmd.CheckHealth() in self.scheduler.commands(now):
                self.scheduler.handle(WELL, now)

    @property
    def is_done(self) -> bool:
        return self.scheduler.is_done


def opened(*args, **kwargs) -> Desk:
    """Job 1 is being submitted, to an endpoint that answers; all rows are loaded."""
    desk = Desk(*args, **kwargs)
    desk.at(0.0)
    desk.after(ev.RowsLoaded(desk.tickets, exhausted=True))
    assert desk.after(WELL)[0].job == 1
    return desk


def flying(jobs: int, *args, **kwargs) -> Desk:
    """So many jobs were submitted and accepted at 0.0; where there is room for one more, it is being submitted."""
    desk = opened(*args, **kwargs)
    for job in range(1, jobs + 1):
        desk.after(accepted(job))
    return desk


def polled(jobs: int, *args, **kwargs) -> Desk:
    """So many jobs are in flight since 0.0, and each is being polled since 0.05."""
    desk = flying(jobs, *args, **kwargs)
    assert desk.wait() == (0.05, [poll(job) for job in range(1, jobs + 1)])
    return desk


def submit(job: int, row: int, attempt: int = 1) -> cmd.Submit:
    return cmd.Submit(job, (row,), (attempt,))


def poll(job: int) -> cmd.Poll:
    return cmd.Poll(job, f"job-{job}", (job - 1,))


def cancel(job: int) -> cmd.Cancel:
    return cmd.Cancel(job, f"job-{job}")


def undone(job: int, row: int) -> cmd.Requeue:
    """The submission surely made no job."""
    return cmd.Requeue(job, row, None, None, 0, 0)


def succeeded(job: int, row: int, attempts: int = 1) -> cmd.Finish:
    return cmd.Finish(job, row, "COMPLETED", None, attempts, 0, is_answered=True)


def accepted(job: int, sent_at: float = 0.0) -> ev.Submitted:
    return ev.Submitted(job, f"job-{job}", sent_at)


def refused(error: CallError, job: int = 1, sent_at: float = 0.0) -> ev.SubmitFailed:
    return ev.SubmitFailed(job, error, sent_at)


def unanswered(error: CallError, job: int = 1, sent_at: float = 0.0) -> ev.PollFailed:
    return ev.PollFailed(job, error, sent_at)


def completed(job: int = 1, sent_at: float = 1.0, worker: str | None = None) -> ev.JobEnded:
    return ev.JobEnded(job, "COMPLETED", (ev.RowAnswer(),), 0.0, 0.5, sent_at, worker_id=worker)


def failed(failure: Failure, status: str = "FAILED", job: int = 1, worker: str | None = None) -> ev.JobEnded:
    return ev.JobEnded(job, status, (ev.RowAnswer(failure),), 0.0, 0.5, 1.0, worker_id=worker)


# The beginning


def test_a_run_begins_by_loading_rows_and_checking_the_endpoint():
    assert Desk().at(0.0) == [cmd.LoadRows(2), cmd.CheckHealth()]


def test_nothing_is_submitted_before_the_endpoint_has_answered():
    desk = Desk(rows=3)
    desk.at(0.0)
    assert desk.after(ev.RowsLoaded(desk.tickets, exhausted=True)) == []
    assert desk.wait() == (None, []), "only an answer helps"
    assert desk.after(WELL) == [submit(1, row=0)], "one at first, as after any outage"


def test_a_health_that_says_nothing_of_use_is_an_answer():
    desk = Desk()
    desk.at(0.0)
    desk.after(ev.RowsLoaded(desk.tickets, exhausted=True))
    assert desk.after(ev.HealthFailed(RejectedError("400", http_status=400))) == [submit(1, row=0)]


@pytest.mark.parametrize(("retry_after_s", "at"), [(None, 0.5), (7.0, 7.0)])
def test_a_health_that_fails_is_asked_again_after_a_backoff_or_when_it_says(retry_after_s: float | None, at: float):
    desk = Desk()
    desk.at(0.0)
    assert desk.after(ev.HealthFailed(AmbiguousError("503", retry_after_s=retry_after_s))) == []
    assert desk.wait() == (at, [cmd.CheckHealth()])


def test_a_key_that_the_first_answer_refuses_halts_the_run():
    desk = Desk()
    desk.at(0.0)
    (halt,) = desk.after(ev.HealthFailed(DeniedError("401", http_status=401)))
    assert isinstance(halt, cmd.Halt)
    assert isinstance(halt.error, RefusedError)
    assert desk.is_done


def test_a_job_of_an_earlier_session_is_polled_before_anything_is_submitted():
    desk = Desk(rows=1)
    desk.scheduler.handle(ev.JobAdopted((ev.Ticket(9, attempts=1),), 7, "job-7", -100.0), 0.0)
    assert desk.at(0.0) == [cmd.LoadRows(2), cmd.Poll(7, "job-7", (9,)), cmd.CheckHealth()]
    desk.after(WELL)
    assert desk.after(ev.RowsLoaded(desk.tickets, exhausted=True)) == []
    assert desk.after(ev.JobSeen(7, in_progress=False, sent_at=0.0)) == [submit(1, row=0)]


# Submissions


def test_with_the_window_full_the_next_command_is_a_poll():
    desk = flying(2, rows=3)
    assert desk.at(0.0) == []
    assert desk.wait() == (0.05, [poll(1), poll(2)])


def test_an_accepted_submission_makes_way_for_the_next():
    assert opened(rows=3).after(accepted(1)) == [submit(2, row=1)]


def test_a_job_that_has_ended_makes_room_in_the_window():
    assert polled(2, rows=3).after(completed(1), 1.0) == [succeeded(1, row=0), submit(3, row=2)]


def test_a_job_that_is_over_when_it_is_accepted_is_never_polled():
    desk = opened()
    desk.scheduler.handle(accepted(1), 0.0)
    assert desk.after(completed(1)._replace(was_polled=False)) == [succeeded(1, row=0)]
    assert desk.is_done


def lost(unconfirmed: int, attempts: int = 1) -> cmd.Requeue:
    failure = Failure(FailureKind.UNCONFIRMED, "no answer to its submission: 502 Bad Gateway", "502 Bad Gateway")
    return cmd.Requeue(attempts, 0, "UNCONFIRMED", failure, 0, unconfirmed)


@pytest.mark.parametrize(("before", "wait_s"), [(0, 1.0), (1, 2.0), (2, 4.0)])
def test_a_lost_answer_makes_the_row_unconfirmed_and_it_is_submitted_again_later(before: int, wait_s: float):
    desk = opened(tickets=(ev.Ticket(0, attempts=before, unconfirmed=before),))
    assert desk.after(refused(BAD_GATEWAY)) == [lost(unconfirmed=before + 1)]
    assert desk.wait() == (wait_s, [submit(2, row=0, attempt=before + 2)])


def test_a_row_whose_answers_were_lost_more_often_than_it_may_be_retried_has_failed():
    desk = opened(tickets=(ev.Ticket(0, attempts=3, unconfirmed=3),))
    failure = lost(4).failure
    assert desk.after(refused(BAD_GATEWAY)) == [cmd.Finish(1, 0, "UNCONFIRMED", failure, attempts=4, unconfirmed=4)]


def test_a_lost_answer_holds_the_row_where_the_user_wants_that():
    desk = opened(rows=2, unconfirmed="hold")
    assert desk.after(refused(BAD_GATEWAY)) == [cmd.Hold(1, 0, 1, "502 Bad Gateway"), submit(2, row=1)]


def test_a_submission_that_surely_made_no_job_is_made_again_at_once_and_is_no_attempt():
    assert opened().after(refused(NO_NETWORK)) == [undone(1, row=0), submit(2, row=0, attempt=1)]


@pytest.mark.parametrize("error", [NO_NETWORK, BAD_GATEWAY])
def test_the_third_failed_submission_in_a_row_shuts_the_gate_and_only_health_opens_it(error: CallError):
    desk = opened(rows=9, concurrency=9)
    desk.after(refused(error, job=1))
    desk.after(refused(error, job=2))
    *_, last = desk.after(refused(error, job=3))
    assert last == cmd.CheckHealth()
    assert desk.wait() == (None, [])
    assert isinstance(desk.after(WELL)[0], cmd.Submit)


@pytest.mark.parametrize(("retry_after_s", "at"), [(None, 0.25), (7.0, 7.0)])
def test_a_429_pauses_submissions_for_as_long_as_it_says_and_is_no_attempt(retry_after_s: float | None, at: float):
    desk = opened(rows=2)
    error = ThrottledError("429", http_status=429, retry_after_s=retry_after_s)
    assert desk.after(refused(error)) == [undone(1, row=0)]
    assert desk.wait() == (at, [submit(2, row=0, attempt=1)])


def test_a_request_that_the_api_rejects_fails_its_row_and_the_next_one_goes():
    failure = Failure(FailureKind.REJECTED, "400: input is empty", "400: input is empty")
    commands = opened(rows=2).after(refused(RejectedError("400: input is empty", http_status=400)))
    assert commands == [cmd.Finish(1, 0, "REJECTED", failure, attempts=1, unconfirmed=0), submit(2, row=1)]


def test_a_key_that_the_api_refuses_later_stops_submissions_and_what_is_in_flight_is_collected():
    desk = flying(1, rows=2)
    drain, requeue = desk.after(refused(DeniedError("401", http_status=401, from_api=True), job=2))
    assert requeue == undone(2, row=1)
    assert isinstance(drain, cmd.Drain)
    assert desk.wait() == (0.05, [poll(1)])
    assert desk.after(completed(1), 1.0) == [succeeded(1, row=0)]
    assert desk.is_done


def test_a_line_that_cannot_be_sent_fails_its_row_without_a_job():
    failure = Failure(FailureKind.INVALID, "in.jsonl:1 has changed", "in.jsonl:1 has changed")
    commands = opened(rows=2).after(ev.LineUnusable(1, 0, "in.jsonl:1 has changed"))
    finish = cmd.Finish(None, 0, "INVALID", failure, attempts=0, unconfirmed=0)
    assert commands == [finish, submit(2, row=1)]


def test_a_submission_that_the_end_of_the_session_kept_back_is_no_attempt():
    desk = opened()
    desk.scheduler.handle(ev.StopRequested(), 0.0)
    assert desk.after(ev.NotSubmitted(1)) == [undone(1, row=0)]
    assert desk.is_done


# Polls


def test_before_anything_is_known_eight_jobs_are_polled_soon_and_the_others_seldom():
    desk = flying(10, rows=10, concurrency=10)
    assert desk.wait() == (0.05, [poll(job) for job in range(1, 9)])
    assert desk.wait(0.05) == (2.0, [cmd.CheckHealth()]), "which tells whether the others have ended"


def test_a_job_is_polled_first_when_what_has_been_learnt_says_that_it_is_over():
    desk = polled(1, rows=2, concurrency=1)
    assert desk.after(completed(1), 1.0)[1:] == [submit(2, row=1)]
    desk.after(accepted(2, sent_at=1.0), 1.0)
    assert desk.wait(1.0) == (1.5, [poll(2)]), "the first one took 0.5 s"


@pytest.mark.parametrize(
    ("age_s", "gap_s"), [(0.0, 0.05), (1.0, 0.05), (16.0, 0.5), (96.0, 3.0), (160.0, 5.0), (4800.0, 150.0)]
)
def test_the_older_the_oldest_job_the_longer_until_the_next_poll(age_s: float, gap_s: float):
    desk = polled(1)
    desk.idle(age_s)
    desk.after(ev.JobSeen(1, in_progress=True, sent_at=age_s), age_s)
    assert desk.wait(age_s) == (age_s + gap_s, [poll(1)])


def test_a_poll_without_a_usable_answer_is_repeated_with_backoff_for_ever():
    desk, now, waits = polled(1), 1.0, []
    for _ in range(40):
        failed_at = now
        desk.after(unanswered(NO_NETWORK, sent_at=now), now)
        while True:
            now, commands = desk.wait(now)
            if poll(1) in commands:
                break
            desk.after(WELL, now)
        waits.append(now - failed_at)
    assert waits[:7] == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]
    assert set(waits[7:]) == {15.0}


@pytest.mark.parametrize(("retry_after_s", "at"), [(None, 1.25), (7.0, 8.0)])
def test_a_429_pauses_polls_for_as_long_as_it_says(retry_after_s: float | None, at: float):
    desk = polled(1)
    error = ThrottledError("429", http_status=429, retry_after_s=retry_after_s)
    assert desk.after(unanswered(error, sent_at=1.0), 1.0) == []
    assert desk.wait(1.0) == (at, [poll(1)])


def test_a_completed_job_ends_its_row():
    desk = polled(1)
    assert desk.after(completed(1), 1.0) == [succeeded(1, row=0)]
    assert desk.is_done


@pytest.mark.parametrize(("retries", "wait_s"), [(0, 1.0), (1, 2.0), (2, 4.0)])
@pytest.mark.parametrize(("status", "failure"), [("FAILED", CRASHED), ("TIMED_OUT", OUTLIVED)])
def test_a_failure_that_may_pass_is_retried_and_waits_twice_as_long_each_time(
    status: str, failure: Failure, retries: int, wait_s: float
):
    desk = polled(1, tickets=(ev.Ticket(0, attempts=retries, retries=retries),))
    requeue = cmd.Requeue(1, 0, status, failure, retries + 1, 0, is_answered=True)
    assert desk.after(failed(failure, status), 1.0) == [requeue]
    assert desk.wait(1.0) == (1.0 + wait_s, [submit(2, row=0, attempt=retries + 2)])


@pytest.mark.parametrize(("status", "failure"), [("FAILED", CRASHED), ("TIMED_OUT", OUTLIVED)])
def test_a_failure_is_given_up_after_the_last_retry(status: str, failure: Failure):
    desk = polled(1, tickets=(ev.Ticket(0, attempts=3, retries=3),))
    finish = cmd.Finish(1, 0, status, failure, attempts=4, unconfirmed=0, is_answered=True)
    assert desk.after(failed(failure, status), 1.0) == [finish]


@pytest.mark.parametrize(("status", "failure"), [("FAILED", MALFORMED), ("TIMED_OUT", OVERRAN), ("CANCELLED", DROPPED)])
def test_a_failure_that_would_come_again_is_not_paid_for_again(status: str, failure: Failure):
    finish = cmd.Finish(1, 0, status, failure, attempts=1, unconfirmed=0, is_answered=True)
    assert polled(1).after(failed(failure, status), 1.0) == [finish]


NOT_VALID = Failure(FailureKind.INVALID_OUTPUT, "$.age: 3 is not of type", "{}")


@pytest.mark.parametrize("status", ["COMPLETED", "FAILED"])
def test_a_row_whose_answer_is_not_valid_is_asked_again_at_once_and_no_retry_is_used_up(status: str):
    desk = polled(1, tickets=(ev.Ticket(0, attempts=2, retries=1, reasks=1),), reask=2)
    requeue = cmd.Requeue(1, 0, "FAILED", NOT_VALID, 1, 0, is_answered=True, reasks=2)
    assert desk.after(failed(NOT_VALID, status), 1.0) == [requeue, submit(2, row=0, attempt=4)]


def test_a_row_whose_answer_is_not_valid_fails_after_the_last_re_ask_whatever_retries_are_left():
    desk = polled(1, tickets=(ev.Ticket(0, attempts=2, reasks=2),), reask=2)
    finish = cmd.Finish(1, 0, "FAILED", NOT_VALID, attempts=3, unconfirmed=0, is_answered=True)
    assert desk.after(failed(NOT_VALID), 1.0) == [finish]


def test_an_answer_that_is_too_large_fails_its_row():
    failure = Failure(FailureKind.TOO_LARGE, "larger than 25 MB", "larger than 25 MB")
    commands = polled(1).after(unanswered(TooLargeError("larger than 25 MB")), 1.0)
    assert commands == [cmd.Finish(1, 0, "FAILED", failure, attempts=1, unconfirmed=0)]


EXPIRED = Failure(FailureKind.EXPIRED, "the job is gone (job not found)", "job not found")


def missed_once(**kwargs) -> Desk:
    """The job was answered with 404 at 1.0, and is being polled again."""
    desk = polled(1, **kwargs)
    assert desk.after(unanswered(GONE, sent_at=1.0), 1.0) == []
    assert desk.wait(1.0) == (3.0, [poll(1)]), "one 404 may be an error of an edge"
    return desk


def test_a_job_that_two_404s_say_is_gone_is_submitted_again_as_a_retry():
    desk = missed_once()
    requeue = cmd.Requeue(1, 0, "EXPIRED", EXPIRED, retries=1, unconfirmed=0)
    assert desk.after(unanswered(GONE, sent_at=3.0), 3.0) == [requeue]
    assert desk.wait(3.0) == (4.0, [submit(2, row=0, attempt=2)])


def test_a_job_that_is_gone_without_retries_left_has_failed():
    finish = cmd.Finish(1, 0, "EXPIRED", EXPIRED, attempts=1, unconfirmed=0)
    assert missed_once(max_retries=0).after(unanswered(GONE, sent_at=3.0), 3.0) == [finish]


def test_a_404_that_is_followed_by_another_answer_is_forgotten():
    desk = missed_once()
    desk.after(ev.JobSeen(1, in_progress=True, sent_at=3.0), 3.0)
    assert desk.after(unanswered(GONE, sent_at=4.0), 4.0) == []


def test_a_key_that_polls_are_refused_with_halts_the_run_and_its_job_stays_in_flight():
    desk = polled(1)
    (halt,) = desk.after(unanswered(DeniedError("401", http_status=401, from_api=True)), 1.0)
    assert isinstance(halt, cmd.Halt)
    assert isinstance(halt.error, RefusedError)
    assert (desk.is_done, desk.scheduler.in_flight) == (True, 1)


# Leaving


def test_a_stop_submits_nothing_more_and_collects_what_is_in_flight():
    desk = flying(1, rows=9, concurrency=1)
    assert desk.after(ev.StopRequested()) == []
    assert desk.wait() == (0.05, [poll(1)])
    assert desk.after(completed(1), 1.0) == [succeeded(1, row=0)]
    assert desk.is_done


def test_a_cancel_takes_the_youngest_queued_job_first_and_the_one_at_work_last():
    desk = polled(3, rows=9, concurrency=3)
    for job in (1, 2, 3):
        desk.scheduler.handle(ev.JobSeen(job, in_progress=job == 2, sent_at=1.0), 1.0)
    assert desk.after(ev.CancelRequested(), 1.0) == [cancel(3), cancel(1), cancel(2)]


def cancelling() -> Desk:
    """Job 1 is being cancelled since 1.0."""
    desk = polled(1)
    desk.scheduler.handle(ev.JobSeen(1, in_progress=False, sent_at=1.0), 1.0)
    assert desk.after(ev.CancelRequested(), 1.0) == [cancel(1)]
    return desk


def test_a_row_whose_job_was_cancelled_is_pending_again_and_nothing_has_failed():
    desk = cancelling()
    assert desk.after(ev.JobCancelled(1, "CANCELLED"), 1.0) == [cmd.Requeue(1, 0, "CANCELLED", None, 0, 0)]
    assert desk.is_done


@pytest.mark.parametrize(
    ("event", "at"), [(ev.JobCancelled(1, "COMPLETED"), 1.0), (ev.CancelFailed(1, GONE, 1.0), 1.0)]
)
def test_a_job_that_was_over_before_its_cancel_is_polled_for_its_result(event: ev.Event, at: float):
    desk = cancelling()
    assert desk.after(event, at) == [poll(1)]
    assert desk.after(completed(1), 1.0) == [succeeded(1, row=0)]


@pytest.mark.parametrize(
    ("error", "at"), [(ThrottledError("429", retry_after_s=7.0), 8.0), (BAD_GATEWAY, 1.5), (NO_NETWORK, 1.5)]
)
def test_a_cancel_that_fails_is_repeated_after_a_backoff_or_when_it_says(error: CallError, at: float):
    desk = cancelling()
    assert desk.after(ev.CancelFailed(1, error, 1.0), 1.0) == []
    now, commands = desk.wait(1.0)
    while commands == [poll(1)]:
        desk.after(ev.JobSeen(1, in_progress=False, sent_at=now), now)
        now, commands = desk.wait(now)
    assert (now, commands) == (at, [cancel(1)])


def test_a_job_that_lives_too_long_is_polled_once_more_and_then_cancelled_and_its_row_retried():
    desk = polled(1, guards=GuardOptions(job_timeout_s=4.0))
    desk.after(ev.JobSeen(1, in_progress=True, sent_at=3.99), 3.99)
    assert desk.wait(3.99) == (4.0, [poll(1)])
    assert desk.after(ev.JobSeen(1, in_progress=True, sent_at=4.0), 4.0) == [cancel(1)]
    (requeue,) = desk.after(ev.JobCancelled(1, "CANCELLED"), 4.0)
    assert (requeue.status, requeue.failure.kind, requeue.retries) == ("TIMED_OUT", FailureKind.TIMED_OUT, 1)


# Guards


def test_the_breaker_stops_submissions_with_the_failure_that_is_one_too_many():
    desk = polled(2, rows=9, guards=GuardOptions(halt=HaltOptions(rows=1)))
    finish, drain = desk.after(failed(MALFORMED, job=1), 1.0)
    assert finish.failure == MALFORMED
    assert isinstance(drain, cmd.Drain)
    assert drain.error is desk.scheduler.stop
    assert "--halt 1" in drain.error.message
    assert desk.after(completed(2), 1.0) == [succeeded(2, row=1)], "what is in flight is collected"
    assert desk.is_done


def test_no_row_follows_the_canary_before_its_rows_have_succeeded():
    desk = polled(1, rows=3, guards=GuardOptions(canary=1))
    assert desk.at(1.0) == []
    assert desk.after(completed(1), 1.0) == [succeeded(1, row=0), submit(2, row=1), submit(3, row=2)]


def test_a_row_of_the_canary_that_fails_stops_the_run():
    desk = polled(1, rows=3, guards=GuardOptions(canary=1))
    finish, drain = desk.after(failed(MALFORMED), 1.0)
    assert finish.failure == MALFORMED
    assert isinstance(drain, cmd.Drain)
    assert desk.is_done


def test_the_deadline_halts_the_run_and_its_job_stays_in_flight():
    desk = polled(1, rows=9, concurrency=1, guards=GuardOptions(deadline_s=4.0))
    desk.after(ev.JobSeen(1, in_progress=True, sent_at=3.99), 3.99)
    commands = desk.wait(3.99)[1]
    assert isinstance(commands[-1], cmd.Halt)
    assert isinstance(commands[-1].error, StoppedError)
    assert (desk.is_done, desk.scheduler.in_flight) == (True, 1)


# A dead worker


def beside_a_dead_worker() -> Desk:
    """Worker `well` has ended a job, worker `dead` has failed two rows, and job 4 is about to be the third."""
    desk = polled(4, rows=9, concurrency=4)
    assert desk.after(completed(1, worker="well"), 1.0) == [succeeded(1, row=0), submit(5, row=4)]
    for job in (2, 3):
        requeue, *_ = desk.after(failed(CRASHED, job=job, worker="dead"), 1.0)
        assert requeue.retries == 1, "nobody knows yet whose fault it is"
    return desk


def test_the_third_row_that_a_worker_fails_beside_others_that_work_is_put_back_without_a_retry_and_makes_no_room():
    desk = beside_a_dead_worker()
    requeue = cmd.Requeue(4, 3, "FAILED", CRASHED, retries=0, unconfirmed=0, is_answered=True)
    assert desk.after(failed(CRASHED, job=4, worker="dead"), 1.0) == [requeue]
    assert desk.scheduler.window.size == desk.scheduler.in_flight == 3, "the brake is on"
    assert "worker dead fails every job immediately" in desk.scheduler.note(1.0)


def test_a_job_that_waited_in_the_queue_shows_that_the_dead_worker_is_gone():
    desk = beside_a_dead_worker()
    desk.after(failed(CRASHED, job=4, worker="dead"), 1.0)
    assert desk.after(accepted(5, sent_at=1.0), 1.0) == [], "the brake is on"
    commands = desk.after(completed(5, sent_at=2.0, worker="well")._replace(delay_s=0.3), 2.0)
    assert commands == [succeeded(5, row=4), submit(8, row=3, attempt=2), submit(9, row=1, attempt=2)]
    assert desk.scheduler.window.size == 4


# The machine sleeps


def test_after_a_sleep_the_job_that_has_been_over_longest_is_polled_first_and_alone():
    desk = polled(2, rows=3)
    desk.after(completed(1), 1.0)
    desk.after(accepted(3, sent_at=1.0), 1.0)
    desk.after(ev.JobSeen(2, in_progress=True, sent_at=1.0), 1.0)
    assert desk.at(3600.0) == [poll(2), cmd.CheckHealth()]
    assert desk.after(completed(2, sent_at=3600.0), 3600.0) == [succeeded(2, row=1), poll(3)]
