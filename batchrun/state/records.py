"""Records of the state file: rows, jobs, inputs, and what one transaction writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from batchrun.scheduler.states import RowState

ID_MARK = "\x1f"
"""Separates the id of a line from the number of a results file, see `shared_ids`. Ids are printable, so none has it."""


def public_id(stored: str) -> str:
    """The id of a row's line, from the row's stored id."""
    return stored.partition(ID_MARK)[0] if ID_MARK in stored else stored


class RowRecord(NamedTuple):
    """A row as it is stored."""

    row: int
    id: str
    source: int
    line: int
    """1-based."""
    offset: int
    length: int
    """The length of the line in bytes, without the line end."""
    digest: bytes
    state: RowState
    attempts: int
    retries: int
    unconfirmed: int
    variant: int
    """Its combination of sweep values; 0 without a sweep."""
    same_as: int | None = None
    """The row whose job also answers this one; None if the row has its own jobs."""


@dataclass(frozen=True, slots=True)
class Share:
    """The rows and jobs of one endpoint.

    Of a sweep over endpoints, these are the rows of some variants, those with `variant // stride % count == index`, and
    their jobs. Of a pool, these are all rows, and the jobs at the endpoint.
    """

    index: int = 0
    count: int = 1
    stride: int = 1
    endpoint: int = 0
    """The number of the endpoint, see `endpoints.endpoint_numbers`."""
    is_pool: bool = False

    def where(self, variant: str = "variant") -> str:
        """The condition as SQL."""
        if self.is_pool or self.count == 1:
            return "1"
        return f"({variant} / {self.stride}) % {self.count} = {self.index}"

    def where_job(self, variant: str, endpoint: str) -> str:
        """The condition for a job of a row, as SQL."""
        return f"{endpoint} = {self.endpoint}" if self.is_pool else self.where(variant)


class OpenJob(NamedTuple):
    """A job in flight with a known ID."""

    rows: tuple[RowRecord, ...]
    """Its rows that have not ended, in order; at least one."""
    all_rows: tuple[int, ...]
    """The numbers of all of its rows, in order."""
    job: int
    remote_id: str
    submitted_ms: int
    is_cancelling: bool
    """Whether the last session that polled it has cancelled it, or was about to."""


class SourceRecord(NamedTuple):
    """An input of the run."""

    source: int
    path: str
    """The path as the user gave it."""
    origin: str
    """Its absolute path, or `-` for stdin, by which it is recognised from any working directory."""
    file: str
    """The file to read: the input itself, or its spooled copy."""
    stamp: str
    """Its size, time and inode when it was read; if they differ, it has to be read again."""
    output: int


class Amendment(NamedTuple):
    """How the request of a row differs from that of its line."""

    override: Mapping[str, Any]
    """Sampling parameters of this row alone; they win over those of its line and of the run."""
    turns: tuple[dict[str, Any], ...] = ()
    """Messages that follow those of the line. A prompt has no messages, so it is sent without them."""
    asks: int = 0
    """Answers so far that were refused, each of them paid for."""
    seed: int | None = None
    """The seed of the next try, because of such an answer; None: that of the row. What is asked is still the same."""


class OutputRecord(NamedTuple):
    """A results file of the run."""

    output: int
    path: str
    """Relative to the state file's folder, so that the two can be moved together."""
    committed_bytes: int


class FailureRecord(NamedTuple):
    """Why a row has no result."""

    row: int
    status: str
    kind: str
    message: str
    raw: str
    worker_id: str | None
    completed_ms: int | None


class FailedJob(NamedTuple):
    """The last job of a row that failed, or is held."""

    remote_id: str | None
    """None if no submission was accepted."""
    submitted_ms: int | None
    """None if nothing was submitted."""
    same_as: str | None
    """The id of the row whose job it was; None if it was the row's own."""
    output: bytes | None = None
    """Its output as JSON; None if it had none."""
    delay_ms: int | None = None
    """This and `execution_ms` are None if they were not reported, or if there was no answer."""
    execution_ms: int | None = None
    endpoint: int = 0
    """The number of its endpoint."""


class Submission(NamedTuple):
    """The intent to submit a row; one for each row of the job."""

    job: int
    row: int
    attempt: int
    submitted_ms: int
    carried: int | tuple[int, ...] | None
    """For the first row of the job, the numbers of all its rows in order, or of its only row; None for the others."""
    endpoint: int = 0
    """The number of the endpoint, see `endpoints.endpoint_numbers`."""


class Acceptance(NamedTuple):
    """The answer to a submission; one for each row of the job."""

    job: int
    row: int
    remote_id: str
    submitted_ms: int


class JobEnd(NamedTuple):
    """How a job ended, and the new state of one of its rows."""

    job: int | None
    """None if the row could not be sent."""
    row: int
    state: RowState
    status: str | None
    """The job's status, the same for all its rows; None if the submission certainly created no job and is forgotten."""
    retries: int
    unconfirmed: int
    delay_ms: int | None
    execution_ms: int | None
    result: int | None = None
    """The digest of the row's result line; None without one."""


class Execution(NamedTuple):
    """Ended jobs that ran, and their execution time. Jobs cancelled in the queue do not count: they cost nothing."""

    jobs: int
    total_ms: int
    failed_ms: int
    """The execution time of jobs without a result."""


@dataclass(slots=True)
class Batch:
    """What one transaction writes, in the order of the fields."""

    accepted: list[Acceptance] = field(default_factory=list)
    cancelling: list[tuple[int]] = field(default_factory=list)
    """Jobs that are about to be cancelled."""
    ended: list[JobEnd] = field(default_factory=list)
    left: list[tuple[int]] = field(default_factory=list)
    """Rows that are pending again while other rows of their job have results: they lose their job."""
    failures: list[FailureRecord] = field(default_factory=list)
    amended: list[tuple[int, Amendment]] = field(default_factory=list)
    """Rows that are submitted again with another request."""
    parts: list[tuple[int, int, bytes]] = field(default_factory=list)
    """The output of failed jobs: job, row, and the output as JSON."""
    leaders: list[tuple[int]] = field(default_factory=list)
    """Leaders that have ended; their pending followers end with them."""
    answered: list[tuple[int, int]] = field(default_factory=list)
    """Followers that end with a leader, each with the digest of its result line."""
    submitted: list[Submission] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    """Added to the run's counters."""
    committed_bytes: dict[int, int] = field(default_factory=dict)
    """Output -> the new committed length of its file."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings to write, by name; their values are JSON."""
    may_end_in_part: bool = False
    """Whether rows of the ended jobs may still be open: these jobs are then polled again."""

    def count_refused(self, used: int | None, made: int | None) -> None:
        """Count the tokens of an answer that was not valid."""
        for name, count in (("refused_input_tokens", used), ("refused_output_tokens", made)):
            if count is not None:
                self.counters[name] = self.counters.get(name, 0) + count

    def count(self, name: str, by: int) -> None:
        """Add to one of the run's counters."""
        self.counters[name] = self.counters.get(name, 0) + by

    def count_answer(self, used: int | None, made: int | None, marks: Iterable[str], rows: int = 1) -> None:
        """Count the tokens of an answer once, and what is notable about it once for each of its rows."""
        if used is not None:
            self.count("input_tokens", used)
        if made is not None:
            self.count("output_tokens", made)
        for mark in marks:
            self.count(mark, rows)
