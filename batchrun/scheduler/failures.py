"""Failure classes: which short word a failure gets, and whether a further submission may help.

Two questions decide about money: may another try succeed, and may the work have been started already. The second
is answered by the class of a CallError; the first by the table here. A job is paid for each time it runs, so a
failure is retried only when something other than the request explains it: a lost worker, a full GPU, a 5xx inside
the worker, a connection of the worker's own. Another exception of a handler is not retried by itself, nor is a job that
overran its execution timeout: `--retry-failed` is there for them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from random import Random


class FailureKind(StrEnum):
    """The stable word for why a row has no result; it stands in the error file and behind `--only`."""

    BAD_REQUEST = "bad_request"
    """The worker or its model server refuses the request (4xx inside the worker)."""
    HANDLER_ERROR = "handler_error"
    """The worker's own code failed on this request."""
    WORKER_ERROR = "worker_error"
    """The worker could not serve just now: 5xx, connection lost, model server not running."""
    OUT_OF_MEMORY = "out_of_memory"
    PLATFORM = "platform"
    """Runpod lost the job or its worker."""
    TIMED_OUT = "timed_out"
    """The job overran its execution timeout or its ttl. After the former the same limit would end it again."""
    CANCELLED = "cancelled"
    """Somebody else cancelled the job."""
    NO_OUTPUT = "no_output"
    """COMPLETED without data: a failed upload of the result, or a generator that does not aggregate."""
    REJECTED = "rejected"
    """The API refused the submission."""
    EXPIRED = "expired"
    """The job's ID answers 404: its result is gone, or it outlived its ttl."""
    TOO_LARGE = "too_large"
    """The answer is larger than any that the API gives."""
    UNCONFIRMED = "unconfirmed"
    """The answers to all its submissions were lost."""
    INVALID = "invalid"
    """The input line changed while the run was going on."""

    @property
    def is_retryable(self) -> bool:
        """Whether a further submission may succeed where this one failed."""
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
    """What a person can act on, one line."""
    raw: str
    """Exactly what the worker or the API sent."""
    may_pass: bool = False
    """Whether a further submission may succeed although that is not so for its kind."""

    @property
    def is_retryable(self) -> bool:
        """Whether a further submission may succeed where this one failed."""
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
"""The exceptions of Python's usual clients for a connection that was lost, and an answer that did not come in time."""
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
        status: The job's final state in Runpod's word; COMPLETED when its output hides an error.
        message: The decoded error message; empty when there was none.
        code: An HTTP status found inside the error; None when there was none.
        error_type: The exception's or error's type as the worker named it; None when it did not.
    """
    by_status = _BY_STATUS.get(status)
    if by_status is not None:
        return by_status
    text = f"{error_type}: {message}" if error_type else message
    for pattern, kind in _BY_TEXT:
        if pattern.search(text):
            return kind
    if code is not None and code // 100 == 4:  # noqa: PLR2004 - the client's fault, as HTTP counts
        return FailureKind.WORKER_ERROR if code in _SLOW_DOWN_CODES else FailureKind.BAD_REQUEST
    is_server_error = code is not None and code // 100 == 5  # noqa: PLR2004 - the server's fault
    is_lost = error_type is not None and _LOST.fullmatch(error_type)
    if is_server_error or is_lost or _UNAVAILABLE.search(text):
        return FailureKind.WORKER_ERROR
    return FailureKind.HANDLER_ERROR


def is_overrun(message: str) -> bool:
    """Whether a job that TIMED_OUT has overrun its execution timeout, and not its ttl, as far as it says."""
    return re.search(r"execution ?timeout", message, re.IGNORECASE) is not None


def backoff_s(failures: int, rng: Random, *, base_s: float, cap_s: float) -> float:
    """How long to wait after `failures` (>= 1) failures in a row: full jitter over a doubling span.

    With base 1 and cap 60 the spans are 1, 2, 4, ... 60 s, and the wait is anywhere within: clients that failed
    together do not come back together.
    """
    span_s = min(cap_s, base_s * 2.0 ** min(failures - 1, 30))
    return rng.uniform(0.0, span_s)
