"""What a job's final answer means: a result, or a failure with its kind. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchrun.endpoint.protocol import JobAnswer, JobStatus
from batchrun.endpoint.worker_errors import decode_error, find_hidden_error, is_empty_output
from batchrun.scheduler.failures import Failure, FailureKind, classify_job, is_overrun

if TYPE_CHECKING:
    from collections.abc import Callable


def judge(answer: JobAnswer, *, inspect_output: bool, hide: Callable[[str], str] = str) -> Failure | None:
    """Why a final answer is no result; None when it is one.

    A COMPLETED job may hide an error in its output, or have none at all (runpod-python issues 299 and 309).

    Args:
        answer: The job's final answer.
        inspect_output: Whether to look for errors inside the output of a completed job.
        hide: Takes secrets out of what a failure says; the default takes nothing out.
    """
    status = answer.status
    if status is JobStatus.COMPLETED:
        if not inspect_output:
            return None
        raw = find_hidden_error(answer.output) or answer.error
        if not raw:
            empty = is_empty_output(answer.output, has_output=answer.has_output)
            return Failure(FailureKind.NO_OUTPUT, "the job completed without output", "") if empty else None
    else:
        raw = answer.error or find_hidden_error(answer.output)
        if not raw:
            kind, message = _SILENT[status]
            return Failure(kind, message, "", may_pass=kind is FailureKind.TIMED_OUT)
    error = decode_error(raw)
    kind = classify_job(status.value, error.message, error.code, error.error_type)
    may_pass = status is JobStatus.TIMED_OUT and not is_overrun(error.message)
    return Failure(kind, hide(error.message), hide(error.raw), may_pass)


def part_of(answer: JobAnswer) -> Any:
    """What a job without a result has put out beside its error, its paid part; None when that is nothing."""
    output = answer.output
    if not output or (answer.status is JobStatus.COMPLETED and not (isinstance(output, list) and len(output) > 1)):
        return None
    return output if answer.error or isinstance(output, list) else None


_SILENT = {
    JobStatus.FAILED: (FailureKind.PLATFORM, "the job failed without an error message"),
    JobStatus.CANCELLED: (FailureKind.CANCELLED, "the job was cancelled by somebody else"),
    JobStatus.TIMED_OUT: (FailureKind.TIMED_OUT, "the job overran its execution timeout or its ttl"),
}
"""What a failed job without an error message means."""
