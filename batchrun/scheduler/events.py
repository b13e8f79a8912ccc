"""What happened: everything that the scheduler is ever told.

What there is one of for each job is a tuple: a frozen dataclass takes three times as long to make.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from batchrun.errors import CallError
from batchrun.scheduler.failures import Failure
from batchrun.scheduler.health import EndpointHealth

Flaw = Literal["empty", "cut off"]
"""Why a result may be of no use: it has no text, or not all of it."""


class Ticket(NamedTuple):
    """A row as the scheduler knows it. What it asks for stays in the input file."""

    row: int
    """The row's number in the run."""
    attempts: int = 0
    """Submissions so far that may have made a job."""
    retries: int = 0
    """Those that were made because of a retryable failure; `max_retries` bounds them."""
    unconfirmed: int = 0
    """Submissions whose answer never arrived."""


@dataclass(frozen=True, slots=True)
class RowsLoaded:
    """The answer to LoadRows: rows to be submitted, in order."""

    tickets: tuple[Ticket, ...]
    exhausted: bool
    """True: there are no further pending rows."""


@dataclass(frozen=True, slots=True)
class JobAdopted:
    """A job of an earlier session whose ID is known; it is polled before anything new is submitted."""

    tickets: tuple[Ticket, ...]
    """Its rows that have not ended, in order; at least one."""
    job: int
    remote_id: str
    submitted_at: float
    """On the scheduler's clock, so it may lie before the clock's zero."""
    cancelling: bool = False
    """Whether the earlier session has cancelled it, or was about to."""


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
    """A row of a Submit cannot be sent: its line is not what it was when the run began. The others go without it."""

    job: int
    row: int
    message: str


@dataclass(frozen=True, slots=True)
class NotSubmitted:
    """The session ended before the request of a Submit was sent."""

    job: int


class JobSeen(NamedTuple):
    """`/status` says that the job is not over."""

    job: int
    in_progress: bool
    sent_at: float


class RowAnswer(NamedTuple):
    """What the answer of a job means for one of its rows."""

    failure: Failure | None = None
    """None: the row has a result."""
    flaw: Flaw | None = None
    """What is wrong with the result, while a canary is out; None: nothing, or nobody has looked."""


class JobEnded(NamedTuple):
    """`/status` says that the job is over; or `/run` itself did, right after Submitted."""

    job: int
    status: str
    """The final state in Runpod's word; COMPLETED only when at least one row has a result."""
    rows: tuple[RowAnswer, ...]
    """For each of the job's rows that have not ended, in order."""
    delay_s: float | None
    """Time in the queue; None when the answer did not say."""
    execution_s: float | None
    """Time at work; None when the answer did not say."""
    sent_at: float
    was_polled: bool = True
    """Whether it is the answer to a Poll."""
    worker_id: str | None = None
    """Who ran it; None when the answer did not say."""

    @property
    def failure(self) -> Failure | None:
        """Why no row has a result; None: at least one has."""
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
    """The job's state in Runpod's word; CANCELLED unless it was over before."""


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
    """Submit nothing more, collect what is in flight."""


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """Submit nothing more, cancel what is in flight."""


Event = (
    RowsLoaded
    | JobAdopted
    | Submitted
    | SubmitFailed
    | LineUnusable
    | NotSubmitted
    | JobSeen
    | JobEnded
    | PollFailed
    | JobCancelled
    | CancelFailed
    | HealthSeen
    | HealthFailed
    | StopRequested
    | CancelRequested
)
