"""The commands: everything that the scheduler can ask the driver to do.

Commands that are issued for every job are tuples: a frozen dataclass takes three times as long to create.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from batchrun.errors import StoppedError
from batchrun.scheduler.failures import Failure


@dataclass(frozen=True, slots=True)
class LoadRows:
    """Load up to `count` more pending rows; answered by RowsLoaded."""

    count: int


class Submit(NamedTuple):
    """Commit the intent to submit, then send the rows as one job.

    Answered by Submitted, SubmitFailed or NotSubmitted, after a LineUnusable for each row that cannot be sent.
    """

    job: int
    rows: tuple[int, ...]
    """At least one."""
    attempts: tuple[int, ...]
    """For each row, the 1-based number of this submission."""


class Poll(NamedTuple):
    """Poll a job; answered by JobSeen, JobEnded or PollFailed."""

    job: int
    remote_id: str
    rows: tuple[int, ...]
    """Its rows that have not ended, in order."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Commit the intent to cancel, then cancel the job; answered by JobCancelled or CancelFailed."""

    job: int
    remote_id: str


@dataclass(frozen=True, slots=True)
class CheckHealth:
    """Request `/health`; answered by HealthSeen or HealthFailed."""


@dataclass(frozen=True, slots=True)
class Requeue:
    """The row is pending again."""

    job: int
    row: int
    status: str | None
    """The job's final status, for the record; None if the submission certainly created no job and is forgotten."""
    failure: Failure | None
    """None if nothing failed: the submission was undone, or the user had the job cancelled."""
    retries: int
    """The row's retries so far."""
    unconfirmed: int
    """The row's unconfirmed submissions so far."""
    is_answered: bool = False
    """Whether this follows from an answer of the job."""
    reasks: int = 0
    """How often the row was asked again so far because of an invalid answer; with such a failure, including now."""
    is_retry: bool = True
    """Whether the failure is the row's own; False if it shared a job that failed, perhaps because of another row."""


class Finish(NamedTuple):
    """The row has ended: write its result or its failure."""

    job: int | None
    """None if the row could not be sent."""
    row: int
    status: str
    """COMPLETED, or the status of the failure."""
    failure: Failure | None
    """None if the row succeeded."""
    attempts: int
    unconfirmed: int
    is_answered: bool = False
    """Whether this follows from an answer of the job."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Hold the row: its submission is unconfirmed, and the user does not want to risk paying twice."""

    job: int
    row: int
    unconfirmed: int
    message: str


@dataclass(frozen=True, slots=True)
class Halt:
    """Stop the run immediately: no request can succeed, or no time is left. Jobs in flight are left alone."""

    error: StoppedError


@dataclass(frozen=True, slots=True)
class Drain:
    """Report that nothing more is submitted, and that the run stops once the jobs in flight are collected."""

    error: StoppedError


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell the user something that concerns the whole run."""

    message: str


@dataclass(frozen=True, slots=True)
class Leave:
    """Report that the endpoint leaves its pool: it gets no more rows, and its jobs are still collected."""

    error: StoppedError


@dataclass(frozen=True, slots=True)
class Return:
    """Report that the endpoint is back in its pool."""


Command = (
    LoadRows | Submit | Poll | Cancel | CheckHealth | Requeue | Finish | Hold | Halt | Drain | Tell | Leave | Return
)
