"""Failure kinds: which short word a failure gets, and whether to submit the row again.

Two questions matter for the cost: can another attempt succeed, and may the work have started already? The class of a
CallError answers the second, the table here the first. A job is paid for each time it runs, so a failure is retried
only if its cause is not the request: a lost worker, a full GPU, a 5xx inside the worker, a lost connection of the
worker. Other exceptions of a handler are not retried automatically, nor is a job that overran its execution timeout:
use `--retry-failed` for them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from random import Random


class FailureKind(StrEnum):
    """The stable word for why a row has no result, used in the error file and by `--only`."""

    BAD_REQUEST = "bad_request"
    """The worker or its model server refuses the request (4xx inside the worker)."""
    HANDLER_ERROR = "handler_error"
    """The worker's own code failed on this request."""
    WORKER_ERROR = "worker_error"
    """The worker could not serve the request: 5xx, connection lost, model server not running."""
    OUT_OF_MEMORY = "out_of_memory"
    PLATFORM = "platform"
    """Runpod lost the job or its worker."""
    TIMED_OUT = "timed_out"
    """The job overran its execution timeout or its ttl. A retry would exceed the same execution timeout again."""
    CANCELLED = "cancelled"
    """Somebody else cancelled the job."""
    NO_OUTPUT = "no_output"
    """COMPLETED without output: the upload of the result failed, or a generator does not aggregate its output."""
    REJECTED = "rejected"
    """The API refused the submission."""
    EXPIRED = "expired"
    """The job's ID returns 404: its result is gone, or it outlived its ttl."""
    TOO_LARGE = "too_large"
    """The answer is larger than any that the API gives."""
    UNCONFIRMED = "unconfirmed"
    """The answers to all its submissions were lost."""
    INVALID = "invalid"
    """The input line is invalid, or changed during the run."""
    INVALID_OUTPUT = "invalid_output"
    """The answer does not fit the schema, or a check refuses it. The row is asked again, which is no retry."""

    @property
    def is_retryable(self) -> bool:
        """Whether another submission may succeed."""
        return self in _RETRYABLE


_RETRYABLE = frozenset(
    {
        FailureKind.WORKER_ERROR,
        FailureKind.OUT_OF_MEMORY,
        FailureKind.PLATFORM,
        FailureKind.EXPIRED,
        FailureKind.UNCONFIRMED,
    }
)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job or a submission has no result."""

    kind: FailureKind
    message: str
    """An explanation that a person can act on, one line."""
    raw: str
    """Exactly what the worker or the API sent."""
    may_pass: bool = False
    """Whether to retry although failures of this kind are not retried."""

    @property
    def is_retryable(self) -> bool:
        """Whether another submission may succeed."""
        return self.may_pass or self.kind.is_retryable


_PLATFORM = re.compile(r"job timed out after \d+ retries|(worker|pod) (was )?(lost|exited|terminated)", re.IGNORECASE)
_OUT_OF_MEMORY = re.compile(r"out of memory|OutOfMemoryError|CUDA OOM", re.IGNORECASE)
_UNAVAILABLE = re.compile(
    r"Request to vLLM failed|vLLM (server )?(process )?(is )?not running|worker is unhealthy"
    r"|engine (is )?dead|EngineDeadError|EngineCore (encountered an issue|(proc \S+ )?died)|CUDA error"
    r"|connection (was )?(reset|refused|aborted|error|lost|closed|time-?out)|cannot connect to host|connect call failed"
    r"|server disconnected|remote end closed|broken pipe|\btimed out\b"
    r"|service unavailable|bad gateway|gateway time-?out",
    re.IGNORECASE,
)
_LOST = re.compile(
    r"\w*(Timeout|TimedOut)(Error|Exception)?|\w*Connect(ion|or)?\w*Error|\w*Disconnected(Error)?|BrokenPipeError"
    r"|(Remote)?ProtocolError|IncompleteRead(Error)?|ClientOSError|ClientPayloadError|ReadError|WriteError|MaxRetryError",
    re.IGNORECASE,
)
"""What Python's common HTTP clients raise when a connection is lost or an answer does not arrive in time."""
_OVERRUN = re.compile(r"\bexecution ?timeout exceeded\b", re.IGNORECASE)
_BY_TEXT = (
    (_PLATFORM, FailureKind.PLATFORM),
    (_OUT_OF_MEMORY, FailureKind.OUT_OF_MEMORY),
    (_OVERRUN, FailureKind.TIMED_OUT),
)
_BY_STATUS = {"CANCELLED": FailureKind.CANCELLED, "TIMED_OUT": FailureKind.TIMED_OUT}
_SLOW_DOWN_CODES = frozenset({408, 425, 429})


def classify_job(status: str, message: str, code: int | None, error_type: str | None) -> FailureKind:
    """The kind of a job's failure.

    Args:
        status: The job's final state, in Runpod's words; COMPLETED if its output hides an error.
        message: The decoded error message; empty if there was none.
        code: An HTTP status found inside the error; None if there was none.
        error_type: The exception's or error's type as the worker named it; None if it did not.
    """
    by_status = _BY_STATUS.get(status)
    if by_status is not None:
        return by_status
    text = f"{error_type}: {message}" if error_type else message
    for pattern, kind in _BY_TEXT:
        if pattern.search(text):
            return kind
    if code is not None and code // 100 == 4:  # noqa: PLR2004 - a client error in HTTP
        return FailureKind.WORKER_ERROR if code in _SLOW_DOWN_CODES else FailureKind.BAD_REQUEST
    is_server_error = code is not None and code // 100 == 5  # noqa: PLR2004 - a server error in HTTP
    is_lost = error_type is not None and _LOST.fullmatch(error_type)
    if is_server_error or is_lost or _UNAVAILABLE.search(text):
        return FailureKind.WORKER_ERROR
    return FailureKind.HANDLER_ERROR


def is_overrun(message: str) -> bool:
    """Whether, according to its message, a TIMED_OUT job overran its execution timeout and not its ttl."""
    return re.search(r"execution ?timeout", message, re.IGNORECASE) is not None


def backoff_s(failures: int, rng: Random, *, base_s: float, cap_s: float) -> float:
    """Seconds to wait after `failures` (>= 1) failures in a row: exponential backoff with full jitter.

    With base 1 and cap 60 the wait is a random time of up to 1, 2, 4, ... 60 s, so clients that failed together do not
    return together.
    """
    span_s = min(cap_s, base_s * 2.0 ** min(failures - 1, 30))
    return rng.uniform(0.0, span_s)
