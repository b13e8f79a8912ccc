"""What the state file holds, as records: rows, jobs, sources, and what one transaction writes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from batchrun.scheduler.states import RowState

ID_MARK = "\x1f"
"""Between the id of a line and the number of a results file, see `shared_ids`; no id has it: ids are printable."""


def public_id(stored: str) -> str:
    """The id of a row's line, by the one that the row has in the state file."""
    return stored.partition(ID_MARK)[0] if ID_MARK in stored else stored


class RowRecord(NamedTuple):
    """A row as the state file has it."""

    row: int
    id: str
    source: int
    line: int
    """1-based."""
    offset: int
    length: int
    """Of the line in bytes, without its end."""
    digest: bytes
    state: RowState
    attempts: int
    retries: int
    unconfirmed: int
    variant: int
    """Its combination of sweep values; 0 without a sweep."""
    same_as: int | None = None
    """The row whose job answers this one too; None: it has jobs of its own."""


@dataclass(frozen=True, slots=True)
class Share:
    """Rows of some variants only: those whose variant, divided by `stride`, leaves `index` over modulo `count`."""

    index: int = 0
    count: int = 1
    stride: int = 1

    def where(self, variant: str = "variant") -> str:
        """The condition in SQL."""
        return f"({variant} / {self.stride}) % {self.count} = {self.index}" if self.count > 1 else "1"


class OpenJob(NamedTuple):
    """A job whose ID is known and whose end is not."""

    rows: tuple[RowRecord, ...]
    """Its rows that have not ended, in order; at least one."""
    all_rows: tuple[int, ...]
    """The numbers of all of its rows, in order."""
    job: int
    remote_id: str
    submitted_ms: int
    is_cancelling: bool
    """Whether the session that saw it last has cancelled it, or was about to."""


class SourceRecord(NamedTuple):
    """An input of the run."""

    source: int
    path: str
    """As the user named it."""
    origin: str
    """Its absolute path, `-` for stdin: by this it is known again from another folder."""
    file: str
    """The file to read: the input itself, or its spooled copy."""
    stamp: str
    """Size, time and inode when it was read; another stamp means that it is to be read again."""
    output: int


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
    """None: nothing was accepted."""
    submitted_ms: int | None
    """None: nothing was submitted."""
    same_as: str | None
    """The id of the row whose job it was; None: the row's own."""
    output: bytes | None = None
    """What it has put out, as JSON; None: nothing."""
    delay_ms: int | None = None
    """Here and below None: its answer did not say, or it had none."""
    execution_ms: int | None = None


class Submission(NamedTuple):
    """The intent to submit a row; one for each row of the job."""

    job: int
    row: int
    attempt: int
    submitted_ms: int
    carried: int | tuple[int, ...] | None
    """With the first row the numbers of all of them in order, or of the only one; None with the others."""


class Acceptance(NamedTuple):
    """The answer to a submission; one for each row of the job."""

    job: int
    row: int
    remote_id: str
    submitted_ms: int


class JobEnd(NamedTuple):
    """How a job ended, and the state of one of its rows from then on."""

    job: int | None
    """None: the row could not be sent."""
    row: int
    state: RowState
    status: str | None
    """The job's, the same for all of its rows; None: the submission surely made no job, and is forgotten."""
    retries: int
    unconfirmed: int
    delay_ms: int | None
    execution_ms: int | None
    result: int | None = None
    """The digest of the row's result line; None without one."""


class Execution(NamedTuple):
    """Jobs that were at work and have ended, and their time there: one cancelled in the queue has cost nothing."""

    jobs: int
    total_ms: int
    failed_ms: int
    """Of jobs without a result."""


@dataclass(slots=True)
class Batch:
    """What one transaction writes, in the order of the fields."""

    accepted: list[Acceptance] = field(default_factory=list)
    cancelling: list[tuple[int]] = field(default_factory=list)
    """Jobs that are about to be cancelled."""
    ended: list[JobEnd] = field(default_factory=list)
    left: list[tuple[int]] = field(default_factory=list)
    """Rows that are pending again while others have got results of their job: they have no job from then on."""
    failures: list[FailureRecord] = field(default_factory=list)
    parts: list[tuple[int, int, bytes]] = field(default_factory=list)
    """What jobs that failed have put out: job, row, and the output as JSON."""
    leaders: list[tuple[int]] = field(default_factory=list)
    """Rows that have ended, and those that ask for the same end with them."""
    answered: list[tuple[int, int]] = field(default_factory=list)
    """Rows that end with a leader, each with the digest of its result line."""
    submitted: list[Submission] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    """Added to the run's counters."""
    committed_bytes: dict[int, int] = field(default_factory=dict)
    """Output -> length of its file that the ended rows have reached."""
    timeline: list[Any] | None = None
    """How the run has gone so far; None: as it was written last."""
    may_end_in_part: bool = False
    """Whether rows of the jobs that ended may still be open: these jobs are then to be polled again."""

    def count_answer(self, used: int | None, made: int | None, marks: Iterable[str], rows: int = 1) -> None:
        """Count what a result says of its tokens, and what there is to say of the answer, once for each of its rows."""
        counts = [("input_tokens", used), ("output_tokens", made)]
        counts += [(mark, rows) for mark in marks]
        for name, count in counts:
            if count is not None:
                self.counters[name] = self.counters.get(name, 0) + count
