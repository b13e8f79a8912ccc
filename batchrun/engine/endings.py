"""Make the records for the state file of a row that has ended or is pending again. Pure: `now_ms` is a parameter."""

from __future__ import annotations

from batchrun.endpoint.protocol import JobAnswer
from batchrun.results.record import JobInfo, PackInfo
from batchrun.scheduler import commands as cmd
from batchrun.scheduler.failures import Failure
from batchrun.scheduler.states import RowState
from batchrun.state.records import FailedJob, FailureRecord, JobEnd

Ending = cmd.Requeue | cmd.Finish | cmd.Hold


def job_end(
    ending: Ending, answer: JobAnswer | None, *, retries: int, is_completed: bool, result: int | None
) -> JobEnd:
    """How a job ended for one of its rows.

    Args:
        ending: The scheduler's decision about the row.
        answer: The job's answer for it; None if the decision is not based on one.
        retries: The row's retries before.
        is_completed: Whether any row of the job has a result.
        result: The digest of the row's result line; None if there is none.
    """
    status: str | None
    match ending:
        case cmd.Finish():
            state, status = RowState.FAILED if ending.failure else RowState.SUCCEEDED, ending.status
        case cmd.Requeue():
            state, status, retries = RowState.PENDING, ending.status, ending.retries
        case cmd.Hold():
            state, status = RowState.HELD, "UNCONFIRMED"
    status = "COMPLETED" if is_completed else status
    delay_ms, execution_ms = _times_ms(answer)
    return JobEnd(ending.job, ending.row, state, status, retries, ending.unconfirmed, delay_ms, execution_ms, result)


def failure_record(
    finish: cmd.Finish, failure: Failure, answer: JobAnswer | None, submitted_ms: int, now_ms: int
) -> FailureRecord:
    """Why a row has no result."""
    return FailureRecord(
        finish.row,
        finish.status,
        failure.kind.value,
        failure.message,
        failure.raw,
        answer.worker_id if answer else None,
        completed_ms(submitted_ms, answer, now_ms) if answer else None,
    )


def failed_job(
    remote_id: str | None, submitted_ms: int | None, answer: JobAnswer | None, part: bytes | None, endpoint: int
) -> FailedJob:
    """The job of a row that has failed.

    Args:
        remote_id: Its ID; None if no submission was accepted.
        submitted_ms: UTC epoch milliseconds; None if nothing was submitted.
        answer: Its answer; None if there is none.
        part: Its partial output, as JSON; None if there is none.
        endpoint: The number of its endpoint.
    """
    return FailedJob(remote_id, submitted_ms, None, part, *_times_ms(answer), endpoint)


def job_info(
    remote_id: str, submitted_ms: int, answer: JobAnswer, *, endpoint: str, attempts: int, now_ms: int
) -> JobInfo:
    """What a result line says about its job."""
    return JobInfo(
        id=remote_id,
        endpoint=endpoint,
        attempts=attempts,
        delay_ms=answer.delay_ms,
        execution_ms=answer.execution_ms,
        worker_id=answer.worker_id,
        submitted_at=submitted_ms / 1000,
        completed_at=completed_ms(submitted_ms, answer, now_ms) / 1000,
        retries=answer.retries,
        pack=None if answer.pack is None else PackInfo(*answer.pack),
    )


def completed_ms(submitted_ms: int, answer: JobAnswer, now_ms: int) -> int:
    """When a job ended: by its own times if it reports them, else now."""
    time_s = answer.time_in_system_s
    now_ms = max(now_ms, submitted_ms)  # the wall clock may have been set back since an earlier session
    return now_ms if time_s is None else min(now_ms, submitted_ms + round(time_s * 1000))


def _times_ms(answer: JobAnswer | None) -> tuple[int | None, int | None]:
    """The delay and execution times of an answer; None if unknown."""
    if answer is None:
        return None, None
    delay_ms, execution_ms = answer.delay_ms, answer.execution_ms
    return None if delay_ms is None else round(delay_ms), None if execution_ms is None else round(execution_ms)
