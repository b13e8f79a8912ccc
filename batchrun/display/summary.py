"""The progress of a run (`Snapshot`) and its outcome (`Summary`), which determines the exit code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import orjson

from batchrun.display.cost import Cost, added
from batchrun.display.units import duration
from batchrun.results.text import MARK_NAMES, MARKS

_BROKEN_FROM = 3
"""A worker with this many failures is not just unlucky."""
_SOME = 0.1
"""An average below this counts as no idle workers."""


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers of an endpoint and its jobs, including other people's, when `/health` last answered."""

    running: int
    """Workers with a job."""
    idle: int
    initializing: int
    throttled: int
    """Workers that wait for a free GPU."""
    unhealthy: int
    queued: int
    """Jobs that wait for a worker."""
    executing: int
    """Jobs that are running."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run at one moment. Rows are counted over the whole run, rates are those of the last half minute."""

    total: int
    succeeded: int
    failed: int
    held: int
    pending: int
    """Rows that are not submitted."""
    waiting: int
    """Rows that wait for a retry."""
    queued: int
    """Rows in flight whose jobs were in the queue at their last poll, or were not polled yet."""
    running: int
    """Rows in flight whose jobs were being executed at their last poll."""
    retries: int
    unconfirmed: int
    ended_in_session: int
    elapsed_s: float
    """Duration of this session so far."""
    rows_per_s: float
    tokens_per_s: float | None
    """None if the worker reports no tokens."""
    input_tokens: int
    output_tokens: int
    window: int
    """How many jobs may be in flight."""
    jobs: int
    """Jobs in flight; fewer than rows if jobs carry several."""
    note: str
    """Why the run waits; empty if it does not."""
    cost: Cost | None = None
    """None if no price was given."""
    cached: int = 0
    """Rows that were answered from the cache; the rates exclude them."""
    truncated: int = 0
    """This and the next four: rows that succeeded in this session with such an answer, see `Summary`."""
    empty: int = 0
    filtered: int = 0
    reasoning_only: int = 0
    tool_calls: int = 0
    is_under_way: bool | None = False
    """Whether the endpoint has answered and no canary row is still running; None if nothing more is submitted."""
    workers: Workers | None = None
    """None if `/health` has not answered, or did not answer the last time."""
    stopping: str = ""
    """Why the run stops early; empty if it does not, or if the user stopped it."""

    @property
    def done(self) -> int:
        """Rows that have ended."""
        return self.succeeded + self.failed + self.held

    @property
    def answers(self) -> list[tuple[str, int]]:
        """Names and counts of remarkable answers; zero counts are left out."""
        return _answers(self)

    @property
    def in_flight(self) -> int:
        """Rows whose jobs were submitted and are not known to have ended."""
        return self.queued + self.running

    @property
    def eta_s(self) -> float | None:
        """Seconds that the remaining rows take at the present rate; None if there is no rate yet."""
        return (self.total - self.done) / self.rows_per_s if self.rows_per_s > 0 else None

    def to_json(self) -> dict[str, Any]:
        """The snapshot as JSON values."""
        eta_s, data = self.eta_s, asdict(self)
        del data["is_under_way"]
        return {
            "done": self.done,
            **data,
            "in_flight": self.in_flight,
            "elapsed_s": round(self.elapsed_s, 3),
            "rows_per_s": round(self.rows_per_s, 3),
            "tokens_per_s": None if self.tokens_per_s is None else round(self.tokens_per_s, 1),
            "eta_s": None if eta_s is None else round(eta_s, 1),
        }


def _answers(counted: Snapshot | Summary) -> list[tuple[str, int]]:
    return [(MARK_NAMES[mark], count) for mark in MARKS if (count := getattr(counted, mark))]


def merged(parts: Mapping[str, Snapshot]) -> Snapshot:
    """The snapshot of a run from those of its endpoints, by endpoint ID."""
    if len(parts) == 1:
        return next(iter(parts.values()))
    pieces = list(parts.values())
    counts = {name: sum(getattr(piece, name) for piece in pieces) for name in _ADDED_UP}
    speeds = [piece.tokens_per_s for piece in pieces if piece.tokens_per_s is not None]
    costs = [piece.cost for piece in pieces if piece.cost is not None]
    done = counts["succeeded"] + counts["failed"] + counts["held"]
    return Snapshot(
        **counts,
        elapsed_s=max(piece.elapsed_s for piece in pieces),
        tokens_per_s=sum(speeds) if speeds else None,
        note="; ".join(f"{endpoint}: {piece.note}" for endpoint, piece in parts.items() if piece.note),
        cost=added(costs, done=done - counts["cached"], total=counts["total"] - counts["cached"]) if costs else None,
        is_under_way=all(stages) if (stages := [s for p in pieces if (s := p.is_under_way) is not None]) else None,
        workers=_all_workers(pieces),
        stopping="; ".join(f"{endpoint}: {piece.stopping}" for endpoint, piece in parts.items() if piece.stopping),
    )


def _all_workers(pieces: Sequence[Snapshot]) -> Workers | None:
    known = [astuple(piece.workers) for piece in pieces if piece.workers is not None]
    return Workers(*map(sum, zip(*known, strict=True))) if known else None


_ADDED_UP = (
    *("total", "succeeded", "failed", "held", "pending", "waiting", "queued", "running", "retries", "unconfirmed"),
    *("cached", "ended_in_session", "rows_per_s", "input_tokens", "output_tokens", "window", "jobs", *MARKS),
)


class Observer(Protocol):
    """Receives the progress and the messages of a run."""

    def begin(self, snapshot: Snapshot) -> None:
        """Called when a session begins, with the state that earlier sessions have left."""

    def update(self, snapshot: Snapshot) -> None:
        """Called several times a second with the present state."""

    def message(self, text: str) -> None:
        """Called with a message for the user."""

    def end(self, snapshot: Snapshot) -> None:
        """Called once at the end."""


def warn(observer: Observer, text: str) -> None:
    """Send a warning. It is shown even without progress, unless the user wants only errors."""
    getattr(observer, "warn", observer.message)(text)


class Percentiles(NamedTuple):
    """Nearest-rank percentiles of durations in milliseconds."""

    p50: int
    p90: int
    p99: int


class FailureGroup(NamedTuple):
    """Failed rows of one kind."""

    kind: str
    rows: int
    example_id: str
    example_message: str


class WorkerGroup(NamedTuple):
    """The jobs of a worker that has failed some of them through its own fault, with `worker_error`."""

    worker_id: str
    failed: int
    jobs: int
    """All jobs that have ended on it."""

    @property
    def is_broken(self) -> bool:
        """Whether the failures are more than chance."""
        return self.failed >= _BROKEN_FROM and 2 * self.failed > self.jobs


@dataclass(frozen=True, slots=True)
class EndpointWork:
    """What one endpoint of a run has done."""

    endpoint: str
    jobs: int
    """Jobs that were submitted to it."""
    succeeded: int
    """Rows whose last job was there, here and in the next two."""
    failed: int
    in_flight: int
    rows_per_s: float
    """Succeeded rows, from its first submission to its last end; 0 if nothing has ended."""

    def __str__(self) -> str:
        return (
            f"endpoint {self.endpoint}: {self.succeeded:,} succeeded, {self.failed:,} failed,"
            f" {self.in_flight:,} in flight, {self.rows_per_s:,.1f} rows/s"
        )


class FewJobs(NamedTuple):
    """A time in which there were too few jobs of several rows for the workers of an endpoint."""

    endpoint: str
    """Empty if the run has only one endpoint."""
    lasted_s: float
    share: float
    """The share of the time with such jobs, 0 to 1."""
    running: float
    """The average number of workers with a job; the next is the number without one."""
    idle: float

    def __str__(self) -> str:
        where = f" at {self.endpoint}" if self.endpoint else ""
        waits = "" if self.idle >= _SOME else ", and no job waited"
        return (
            f"{self.running:.1f} workers at work and {self.idle:.1f} idle{where} on average for"
            f" {duration(self.lasted_s)} ({self.share:.0%} of the time with shared jobs){waits}"
        )


@dataclass(slots=True)
class Summary:
    """The outcome of a run, over all of its sessions unless a field says otherwise."""

    outcome: Literal["finished", "stopped", "interrupted", "cancelled", "pilot"]
    """`pilot`: the rows of its pilot have ended, and no others were to be run."""
    reason: str
    """Why it stopped; empty if it did not."""
    hint: str
    """What to do about it."""
    total: int
    succeeded: int
    failed: int
    held: int
    not_run: int
    in_flight: int
    """Rows whose jobs are still at the endpoint."""
    wall_s: float
    session_s: float
    """Duration of this session."""
    rows_per_s: float
    state: Path
    failures: list[FailureGroup] = field(default_factory=list)
    workers: list[WorkerGroup] = field(default_factory=list)
    """Workers that have failed jobs through their own fault, the worst first."""
    delay_ms: Percentiles | None = None
    execution_ms: Percentiles | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    """None if the worker reports none."""
    refused_input_tokens: int = 0
    refused_output_tokens: int = 0
    """Tokens of answers that were not valid, which are paid for as well and not in the two above."""
    truncated: int = 0
    """Rows with a text that was cut off, by max_tokens or by the end of the context."""
    context_full: int = 0
    """Those of them that are known to have been cut off by the end of the context."""
    empty: int = 0
    """Rows that succeeded without any text. This and the next three count each row once."""
    filtered: int = 0
    """Rows whose answer was removed by a filter, or refused by the model."""
    reasoning_only: int = 0
    """Rows whose answer consists only of the model's reasoning."""
    tool_calls: int = 0
    """Rows whose answer is a tool call."""
    calls: dict[str, int] = field(default_factory=dict)
    """API calls by operation."""
    throttled: int = 0
    """API calls that were answered with 429 or 408."""
    retries: int = 0
    """Repeated submissions."""
    packed_rows: int = 0
    """Rows that were sent in jobs of several rows; each such submission counts."""
    packed_jobs: int = 0
    """Those jobs."""
    separated: int = 0
    """Rows of such jobs that were sent again in smaller ones, because the job failed as a whole."""
    few_jobs: list[FewJobs] = field(default_factory=list)
    """Where there were too few shared jobs for the workers."""
    reasks: int = 0
    """Submissions made because the answer before was not valid; each is paid for."""
    tries: dict[str, int] = field(default_factory=dict)
    """For each number of answers that it took, how many rows have a result; empty if answers are not checked."""
    unconfirmed: int = 0
    """Submissions whose answer never arrived: each may have become a job that costs money."""
    results: list[Path] = field(default_factory=list)
    errors: list[Path] = field(default_factory=list)
    manifest: Path | None = None
    windows: list[int] = field(default_factory=list)
    """The window over time."""
    cost: Cost | None = None
    """None if no price was given."""
    rescue_by: float | None = None
    """UTC epoch seconds by which to resume, or results of jobs in flight may expire; None if none are in flight."""
    shared: int = 0
    """Rows that succeeded with the answer to the equal request of another row."""
    cached: int = 0
    """Other rows that succeeded with an answer from the cache, for which this run paid nothing."""
    mismatched: int = 0
    """Answers that belonged to other jobs, and were dropped."""
    endpoints: list[EndpointWork] = field(default_factory=list)
    """What each endpoint has done, for a run that has had several of its own."""
    to_confirm: list[str] = field(default_factory=list)
    """Arguments that `resume` and `redo` need, because no API key proves that the user chose them."""

    @property
    def exit_code(self) -> int:
        """0: all rows that were to run succeeded, or cancelled; 3: some did not; 4: stopped early; 130: interrupted."""
        if self.outcome == "interrupted":
            return 130
        if self.outcome == "stopped":
            return 4
        if self.outcome == "cancelled":
            return 0
        if self.outcome == "pilot":
            return 3 if self.failed or self.held else 0
        return 0 if self.succeeded == self.total else 3

    @property
    def broken(self) -> list[WorkerGroup]:
        """The workers that failed most of their jobs through their own fault."""
        return [group for group in self.workers if group.is_broken]

    @property
    def rest(self) -> list[tuple[str, int]]:
        """Names and counts of the rows that did not succeed; zero counts are left out."""
        counts = [
            ("failed", self.failed),
            ("held", self.held),
            ("in flight", self.in_flight),
            ("not run", self.not_run),
        ]
        return [(name, count) for name, count in counts if count]

    @property
    def answers(self) -> list[tuple[str, int]]:
        """Names and counts of remarkable answers; zero counts are left out."""
        return _answers(self)

    def to_json(self) -> dict[str, Any]:
        """The summary as JSON values."""
        data = asdict(self)
        data["state"] = str(self.state)
        data["results"] = [str(path) for path in self.results]
        data["errors"] = [str(path) for path in self.errors]
        data["manifest"] = None if self.manifest is None else str(self.manifest)
        data["failures"] = [group._asdict() for group in self.failures]
        data["workers"] = [group._asdict() for group in self.workers]
        data["few_jobs"] = [each._asdict() for each in self.few_jobs]
        for key in ("delay_ms", "execution_ms"):
            value: Percentiles | None = getattr(self, key)
            data[key] = value._asdict() if value else None
        return {**data, "exit_code": self.exit_code}


def to_event(summary: Summary) -> bytes:
    """The summary as the last JSON event of a run, without a newline."""
    return orjson.dumps({"event": "summary", **summary.to_json()})
