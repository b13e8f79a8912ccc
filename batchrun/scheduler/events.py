"""The events: everything that the driver can report to the scheduler.

Events that occur for every job are tuples: a frozen dataclass takes three times as long to create.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple

from batchrun.errors import CallError
from batchrun.scheduler.failures import Failure
from batchrun.scheduler.health import EndpointHealth

Flaw = Literal["empty", "cut off"]
"""Why a result may be useless: it has no text, or not all of it."""


class Ticket(NamedTuple):
    """A row as the scheduler knows it. Its request stays in the input file."""

    row: int
    """The row's number in the run."""
    attempts: int = 0
    """Submissions so far that may have created a job."""
    retries: int = 0
    """Those made after a retryable failure, at most `max_retries`."""
    unconfirmed: int = 0
    """Submissions whose answer never arrived."""
    reasks: int = 0
    """Those made because the answer before was not valid, at most `reask`."""
    kind: int = 0
    """Rows of one kind may share a job; 0: the row has a job of its own."""
    most: int = 1
    """How many rows of its kind may share a job, because their answers come as one."""
    size_bytes: int = 0
    """The size of its prompt."""
    home: int | None = None
    """The number of the only endpoint that may submit it, because an unconfirmed job of it may be there; else None."""


@dataclass(frozen=True, slots=True)
class RowsLoaded:
    """The answer to LoadRows: the rows to submit, in order."""

    tickets: tuple[Ticket, ...]
    exhausted: bool
    """True if there are no more pending rows."""


@dataclass(frozen=True, slots=True)
class JobAdopted:
    """A job of an earlier session whose ID is known; it is polled before anything new is submitted."""

    tickets: tuple[Ticket, ...]
    """Its rows that have not ended, in order; at least one."""
    job: int
    remote_id: str
    submitted_at: float
    """On the scheduler's clock; it may be negative."""
    cancelling: bool = False
    """Whether the earlier session had cancelled it, or was about to."""


class Submitted(NamedTuple):
    """`/run` answered with a job ID."""

    job: int
    remote_id: str
    sent_at: float


@dataclass(frozen=True, slots=True)
class SubmitFailed:
    """`/run` did not answer with a job ID."""

    job: int
    error: CallError
    sent_at: float


@dataclass(frozen=True, slots=True)
class LineUnusable:
    """A row of a Submit cannot be sent, because its line has changed since the run began. The others are sent."""

    job: int
    row: int
    message: str


@dataclass(frozen=True, slots=True)
class NotSubmitted:
    """The session ended before the request of a Submit was sent."""

    job: int


@dataclass(frozen=True, slots=True)
class Requeued:
    """The commands that made these rows pending again are on disk."""

    rows: tuple[int, ...]


class JobSeen(NamedTuple):
    """`/status` says that the job has not ended."""

    job: int
    in_progress: bool
    sent_at: float


class RowAnswer(NamedTuple):
    """What the answer of a job means for one of its rows."""

    failure: Failure | None = None
    """None if the row has a result."""
    flaw: Flaw | None = None
    """What is wrong with the result; None if nothing, or if no canary is out and it was not checked."""
    kind: tuple[str, str] | None = None
    """What was asked for, and which model answered, in which form; None if unknown, or if nobody wants to know."""


class Whole(StrEnum):
    """What happened to a job of several rows as a whole, if it has no answer for each of them."""

    FAILED = "failed"
    GARBLED = "garbled"
    """It completed, but its answer cannot be divided among the rows."""
    UNKNOWN = "unknown"
    """The worker does not know how to answer several rows."""


class JobEnded(NamedTuple):
    """`/status` says that the job has ended; or `/run` itself did, right after Submitted."""

    job: int
    status: str
    """The final state, in Runpod's words; COMPLETED only if at least one row has a result, or an invalid answer."""
    rows: tuple[RowAnswer, ...]
    """One for each of the job's rows that have not ended, in order."""
    delay_s: float | None
    """Time in the queue; None if not reported."""
    execution_s: float | None
    """Execution time; None if not reported."""
    sent_at: float
    was_polled: bool = True
    """Whether this is the answer to a Poll."""
    worker_id: str | None = None
    """The worker that ran it; None if not reported."""
    whole: Whole | None = None
    """Set if the job of several rows has one failure, which is that of each row; None: each row has its own answer."""

    @property
    def failure(self) -> Failure | None:
        """Why the worker has failed; None if it has answered at least one row."""
        if self.status == "COMPLETED":
            return None
        return self.rows[0].failure


@dataclass(frozen=True, slots=True)
class PollFailed:
    """`/status` gave no usable answer."""

    job: int
    error: CallError
    sent_at: float


@dataclass(frozen=True, slots=True)
class JobCancelled:
    """`/cancel` answered."""

    job: int
    status: str
    """The job's state, in Runpod's words; CANCELLED unless it had ended before."""


@dataclass(frozen=True, slots=True)
class CancelFailed:
    """`/cancel` gave no usable answer."""

    job: int
    error: CallError
    sent_at: float


@dataclass(frozen=True, slots=True)
class HealthSeen:
    """`/health` answered."""

    health: EndpointHealth


@dataclass(frozen=True, slots=True)
class HealthFailed:
    """`/health` gave no usable answer."""

    error: CallError


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The user wants to stop: submit nothing more, and collect the jobs in flight."""


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """The user wants to stop: submit nothing more, and cancel the jobs in flight."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """The user changes the run. None leaves a value as it is."""

    concurrency: int | Literal["auto"] | None = None
    """The number of jobs in flight; `auto`: just enough to keep every worker busy."""
    max_cost: float | None = None
    """The budget in dollars; infinite for none."""
    deadline_s: float | None = None
    """Seconds from the session's start; infinite for no deadline."""
    is_paused: bool | None = None
    """Whether nothing is submitted; the jobs in flight are collected."""


Event = (
    RowsLoaded
    | JobAdopted
    | Submitted
    | SubmitFailed
    | LineUnusable
    | NotSubmitted
    | Requeued
    | JobSeen
    | JobEnded
    | PollFailed
    | JobCancelled
    | CancelFailed
    | HealthSeen
    | HealthFailed
    | StopRequested
    | CancelRequested
    | Tuned
)
