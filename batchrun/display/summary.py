"""What a run looks like while it goes on, and what it came to. The summary owns the exit code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import orjson

from batchrun.display.cost import Cost, added
from batchrun.results.text import MARK_NAMES, MARKS

_BROKEN_FROM = 3
"""Failures that are no chance any more."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a run looks like at one moment. Rows are counted over the whole run, rates over the last half minute."""

    total: int
    succeeded: int
    failed: int
    held: int
    pending: int
    """Rows that nothing is under way for."""
    waiting: int
    """Rows that wait before a further submission."""
    queued: int
    """Jobs in flight that were in the queue when last asked after, or were not asked after yet."""
    running: int
    """Jobs in flight that were at work when last asked after."""
    retries: int
    unconfirmed: int
    ended_in_session: int
    elapsed_s: float
    """Of this session."""
    rows_per_s: float
    tokens_per_s: float | None
    """None when no tokens are reported."""
    input_tokens: int
    output_tokens: int
    window: int
    """Jobs that may be in flight."""
    note: str
    """What is in the way; empty when nothing is."""
    cost: Cost | None = None
    """None when no price was given."""
    truncated: int = 0
    """Rows that succeeded in this session by what there is to say of their answers, see `Summary`."""
    empty: int = 0
    filtered: int = 0
    reasoning_only: int = 0
    tool_calls: int = 0

    @property
    def done(self) -> int:
        """Rows that have ended."""
        return self.succeeded + self.failed + self.held

    @property
    def answers(self) -> list[tuple[str, int]]:
        """What there is to say of the answers, by its name; what there is none of is left out."""
        return _answers(self)

    @property
    def in_flight(self) -> int:
        """Jobs submitted and not known to be final."""
        return self.queued + self.running

    @property
    def eta_s(self) -> float | None:
        """How long the rest takes at the present rate; None when there is no rate yet."""
        return (self.total - self.done) / self.rows_per_s if self.rows_per_s > 0 else None

    def to_json(self) -> dict[str, Any]:
        """The snapshot as JSON values."""
        eta_s = self.eta_s
        return {
            "done": self.done,
            **asdict(self),
            "in_flight": self.in_flight,
            "elapsed_s": round(self.elapsed_s, 3),
            "rows_per_s": round(self.rows_per_s, 3),
            "tokens_per_s": None if self.tokens_per_s is None else round(self.tokens_per_s, 1),
            "eta_s": None if eta_s is None else round(eta_s, 1),
        }


def _answers(counted: Snapshot | Summary) -> list[tuple[str, int]]:
    return [(MARK_NAMES[mark], count) for mark in MARKS if (count := getattr(counted, mark))]


def merged(parts: Mapping[str, Snapshot]) -> Snapshot:
    """The picture of a run from those of its endpoints, by their IDs."""
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
        cost=added(costs, done=done, total=counts["total"]) if costs else None,
    )


_ADDED_UP = (
    *("total", "succeeded", "failed", "held", "pending", "waiting", "queued", "running", "retries", "unconfirmed"),
    *("ended_in_session", "rows_per_s", "input_tokens", "output_tokens", "window", *MARKS),
)


class Observer(Protocol):
    """Who is told how a run goes."""

    def begin(self, snapshot: Snapshot) -> None:
        """The run goes on from here."""

    def update(self, snapshot: Snapshot) -> None:
        """What it looks like now; several times a second."""

    def message(self, text: str) -> None:
        """Something that a person should read."""

    def end(self, snapshot: Snapshot) -> None:
        """The last that is said."""


def warn(observer: Observer, text: str) -> None:
    """Tell of what may be a mistake. It is seen without progress, too, unless nothing but errors is to be."""
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
    """Jobs of a worker that has failed some by its own fault: `worker_error`."""

    worker_id: str
    failed: int
    jobs: int
    """All that it has ended."""

    @property
    def is_broken(self) -> bool:
        """Whether the worker rather than chance explains it."""
        return self.failed >= _BROKEN_FROM and 2 * self.failed > self.jobs


@dataclass(slots=True)
class Summary:
    """What a run came to, over all of its sessions unless a field says otherwise."""

    outcome: Literal["finished", "stopped", "interrupted", "cancelled"]
    reason: str
    """Why it stopped; empty when it did not."""
    hint: str
    """What to do about that."""
    total: int
    succeeded: int
    failed: int
    held: int
    not_run: int
    in_flight: int
    """Jobs that go on at the endpoint."""
    wall_s: float
    session_s: float
    """Of this session."""
    rows_per_s: float
    state: Path
    failures: list[FailureGroup] = field(default_factory=list)
    workers: list[WorkerGroup] = field(default_factory=list)
    """Those that have failed jobs by their own fault, the most first."""
    delay_ms: Percentiles | None = None
    execution_ms: Percentiles | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    """None when the worker reports none."""
    truncated: int = 0
    """Rows of which a text was cut off, by max_tokens or the end of the context."""
    context_full: int = 0
    """Those of them that the end of the context has cut off, as far as is known."""
    empty: int = 0
    """Rows that succeeded without any text. Here and below a row is counted once."""
    filtered: int = 0
    """Rows whose answer a filter has taken away, or the model has refused."""
    reasoning_only: int = 0
    """Rows whose answer is the model's reasoning alone."""
    tool_calls: int = 0
    """Rows whose answer is a call of tools."""
    calls: dict[str, int] = field(default_factory=dict)
    """API calls by operation."""
    throttled: int = 0
    """Calls that were answered with 429 or 408."""
    retries: int = 0
    """Submissions made again."""
    unconfirmed: int = 0
    """Submissions whose answer never arrived: each may be a job that was paid for and is not known."""
    results: list[Path] = field(default_factory=list)
    errors: list[Path] = field(default_factory=list)
    manifest: Path | None = None
    windows: list[int] = field(default_factory=list)
    """Jobs that might be in flight, over time."""
    cost: Cost | None = None
    """None when no price was given."""
    rescue_by: float | None = None
    """UTC epoch seconds by when to go on, or results of jobs in flight expire; None when none are."""
    shared: int = 0
    """Rows that succeeded by the job of another row that asks for the same."""
    mismatched: int = 0
    """Answers that were those of other jobs, and were not used."""

    @property
    def exit_code(self) -> int:
        """0 all succeeded, 3 some did not, 4 stopped early, 130 interrupted; of a cancel 0 when nothing is left."""
        if self.outcome == "interrupted":
            return 130
        if self.outcome == "stopped":
            return 4
        if self.outcome == "cancelled":
            return 0
        return 0 if self.succeeded == self.total else 3

    @property
    def broken(self) -> list[WorkerGroup]:
        """The workers that failed most of their jobs by their own fault."""
        return [group for group in self.workers if group.is_broken]

    @property
    def rest(self) -> list[tuple[str, int]]:
        """The rows that did not succeed, by what became of them; what there is none of is left out."""
        counts = [
            ("failed", self.failed),
            ("held", self.held),
            ("in flight", self.in_flight),
            ("not run", self.not_run),
        ]
        return [(name, count) for name, count in counts if count]

    @property
    def answers(self) -> list[tuple[str, int]]:
        """What there is to say of the answers of the rows that succeeded; what there is none of is left out."""
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
        for key in ("delay_ms", "execution_ms"):
            value: Percentiles | None = getattr(self, key)
            data[key] = value._asdict() if value else None
        return {**data, "exit_code": self.exit_code}


def to_event(summary: Summary) -> bytes:
    """The summary as the last of the JSON events of a run, one line."""
    return orjson.dumps({"event": "summary", **summary.to_json()})
