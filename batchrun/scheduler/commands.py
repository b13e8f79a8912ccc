"""What is to be done: everything that the scheduler ever asks for.

What there is one of for each job is a tuple: a frozen dataclass takes three times as long to make.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from batchrun.errors import StoppedError
from batchrun.scheduler.failures import Failure


@dataclass(frozen=True, slots=True)
class LoadRows:
    """Hand over up to `count` further pending rows, answered by RowsLoaded."""

    count: int


class Submit(NamedTuple):
    """Write the intent down, then send the rows as one job.

    Answered by Submitted, SubmitFailed or NotSubmitted, after a LineUnusable for each row that cannot be sent.
    """

    job: int
    rows: tuple[int, ...]
    """At least one."""
    attempts: tuple[int, ...]
    """For each row the 1-based number of this submission among its own."""


class Poll(NamedTuple):
    """Poll a job; answered by JobSeen, JobEnded or PollFailed."""

    job: int
    remote_id: str
    rows: tuple[int, ...]
    """Its rows that have not ended, in order."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Write the intent down, then cancel the job; answered by JobCancelled or CancelFailed."""

    job: int
    remote_id: str


@dataclass(frozen=True, slots=True)
class CheckHealth:
    """Ask `/health`; answered by HealthSeen or HealthFailed."""


@dataclass(frozen=True, slots=True)
class Requeue:
    """The row is pending again."""

    job: int
    row: int
    status: str | None
    """How the job ended, for the books; None when the submission surely made no job and is to be forgotten."""
    failure: Failure | None
    """None: nothing failed, the submission was undone or its job cancelled on the user's wish."""
    retries: int
    """The row's counted retries from now on."""
    unconfirmed: int
    """The row's unconfirmed submissions from now on."""
    is_answered: bool = False
    """Whether the job's answer says so."""


class Finish(NamedTuple):
    """The row has ended: write its result or its failure down."""

    job: int | None
    """None: the row could not be sent."""
    row: int
    status: str
    """COMPLETED, or the status word of the failure."""
    failure: Failure | None
    """None: it succeeded."""
    attempts: int
    unconfirmed: int
    is_answered: bool = False
    """Whether the job's answer says so."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Keep the row aside: its submission is unconfirmed, and the user does not want to pay twice."""

    job: int
    row: int
    unconfirmed: int
    message: str


@dataclass(frozen=True, slots=True)
class Halt:
    """Stop the run at once: no further request can succeed, or no time is left. Jobs in flight stay as they are."""

    error: StoppedError


@dataclass(frozen=True, slots=True)
class Drain:
    """Tell people that nothing more is submitted, and that the run stops when what is in flight is collected."""

    error: StoppedError


Command = LoadRows | Submit | Poll | Cancel | CheckHealth | Requeue | Finish | Hold | Halt | Drain
