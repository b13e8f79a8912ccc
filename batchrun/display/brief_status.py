"""The status of a run as far as it is cheap to read, for a screen that is redrawn every second and for a list. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from batchrun.display.cost import Cost
from batchrun.display.pace import Pace
from batchrun.display.summary import Snapshot, Workers


class KindOfFailure(NamedTuple):
    """The number of rows that failed in one way."""

    kind: str
    rows: int


class LastFailure(NamedTuple):
    """A row that failed recently."""

    id: str
    kind: str
    message: str
    at: float | None
    """UTC epoch seconds; None if unknown."""


class Failures(NamedTuple):
    """The failures of a run that were read."""

    kinds: Sequence[KindOfFailure] = ()
    """The most frequent first."""
    latest: Sequence[LastFailure] = ()
    """The newest first."""
    among: int = 0
    """`kinds` counts only this many rows; 0: all."""


_NO_FAILURES = Failures()


@dataclass(frozen=True, slots=True)
class BriefStatus:
    """The status of a run."""

    state: str
    endpoint: str
    """Its endpoints, separated by commas."""
    process: str = ""
    """The process that drives it, such as `process 4242`; empty if none does."""
    is_paused: bool = False
    """Whether it was told to submit nothing more for now."""
    outcome: str | None = None
    """How the last session ended: finished, stopped, interrupted or cancelled; None if it is running or was cut off."""
    reason: str = ""
    """Why it stopped; empty if it did not, or if unknown."""
    began_at: float | None = None
    """When the last session began, UTC epoch seconds; None if none has."""
    seen_at: float | None = None
    """When it last wrote."""
    total: int = 0
    succeeded: int = 0
    failed: int = 0
    held: int = 0
    in_flight: int = 0
    resume_by: float | None = None
    """When the first result of a job in flight may expire, UTC epoch seconds; None if a process collects them."""
    cost: Cost | None = None
    """None if no price was given."""
    pace: Pace | None = None
    """None if unknown, or if no process drives the run."""
    ended: list[int] = field(default_factory=list)
    """Rows that ended in each interval of the last minutes, oldest first; the last interval is not over."""
    every_s: int = 1
    """Length of such an interval in seconds."""
    parts: dict[str, Snapshot] = field(default_factory=dict)
    """Endpoint ID -> its part of the run; empty if no process drives the run, or it has not written it yet."""
    whole: Snapshot | None = None
    """The same for all endpoints together."""
    obstacles: Sequence[str] = ()
    """The obstacles: why the run stops, and what it waits for."""
    silent_s: float = 0.0
    """The age of the last three in seconds."""
    failures: Failures = _NO_FAILURES
    problem: str = ""
    """Why the state file cannot be read; then nothing else is known."""

    @property
    def done(self) -> int:
        """Rows that have ended."""
        return self.succeeded + self.failed + self.held

    @property
    def share(self) -> float:
        """The share of the rows that have ended, 0 to 1."""
        return self.done / self.total if self.total else 0.0

    @property
    def workers(self) -> Workers | None:
        """The workers of all endpoints; None if unknown."""
        return None if self.whole is None else self.whole.workers

    @property
    def ending(self) -> str:
        """The outcome of the last session in a few words; if it is running, the process that drives it."""
        if self.problem:
            return self.problem
        if self.process:
            doing = "paused" if self.is_paused else "running" if self.total else "starting"
            return f"{doing}, {self.process}"
        if self.began_at is None:
            return "not started"
        if self.outcome is None:
            return "cut off"
        if self.outcome == "finished":
            left = [f"{count:,} {word}" for count, word in ((self.failed, "failed"), (self.held, "held")) if count]
            return ", ".join(["finished", *left])
        outcome = "pilot done" if self.outcome == "pilot" else self.outcome
        return f"{outcome}: {self.reason}" if self.reason else outcome

    def to_json(self) -> dict[str, Any]:
        """The status as JSON values."""
        w = self.whole
        return {
            "state": self.state,
            "endpoint": self.endpoint,
            "process": self.process or None,
            "is_paused": self.is_paused,
            "outcome": self.outcome,
            "reason": self.reason,
            "status": self.ending,
            "began_at": self.began_at,
            "seen_at": self.seen_at,
            "total": self.total,
            "done": self.done,
            "succeeded": self.succeeded,
            "failed": self.failed,
            "held": self.held,
            "in_flight": self.in_flight,
            "resume_by": self.resume_by,
            "cost": self.cost,
            "pace": self.pace,
            "queued": None if w is None else w.queued,
            "running": None if w is None else w.running,
            "window": None if w is None else w.window,
            "workers": self.workers,
            "obstacles": self.obstacles,
            "failures": [each._asdict() for each in self.failures.kinds],
            "latest_failures": [each._asdict() for each in self.failures.latest],
            "problem": self.problem or None,
        }
