"""Detects workers that fail job after job while others do not: the rows are not to blame for these failures.

A worker whose model server has died stays up and answers each job within milliseconds (worker-vllm does not exit when
vLLM dies). Its answers say nothing about the pace, and its failures do not use up the retries of the rows. Those wait
for another worker for about as long as a job takes, and longer each time.
"""

from __future__ import annotations

from batchrun.scheduler.events import JobEnded, Whole
from batchrun.scheduler.failures import FailureKind
from batchrun.scheduler.health import EndpointHealth

FAILED_BY, ENDED_BY = "failed_by ", "ended_by "
"""Prefixes of counter names, followed by a worker's ID: the jobs it failed by its own fault, and all its jobs."""
_ROWS = 3
"""If this many different rows fail on a worker without a success in between, the worker is at fault."""
_RECENT_S = 60.0
"""What a worker did within this time, or within a few executions, counts as its current behaviour."""
_RECENT_EXECUTIONS = 3.0
_PATIENCE_S = 900.0
"""How long other workers count as healthy without a success: a large model takes about this long to load."""
_MOST_WORKERS = 10_000
"""The number of workers tracked: an endpoint that makes up an ID for each job must not fill the memory."""


class _Failing:
    """The rows that a worker has failed since its last success."""

    __slots__ = ("at", "rows")

    def __init__(self) -> None:
        self.rows: set[int] = set()
        self.at = 0.0


class FaultyWorkers:
    """Distinguishes failures that workers cause from those that rows cause."""

    def __init__(self) -> None:
        self._failing: dict[str, _Failing] = {}
        self._failed: dict[str, int] = {}
        self._jobs: dict[str, int] = {}
        self._told: dict[str, tuple[int, int]] = {}
        self._succeeded_at = float("-inf")
        self._failed_from = float("inf")
        self._capacity = 0

    def saw_health(self, health: EndpointHealth) -> None:
        """`/health` answered."""
        self._capacity = health.workers

    def ended(self, row: int, event: JobEnded, now: float, usual_s: float) -> bool:
        """A job has ended; returns whether it failed and its worker is to blame."""
        worker = event.worker_id
        if worker is None:
            return False
        jobs = self._jobs
        if worker in jobs:
            jobs[worker] += 1
        elif len(jobs) < _MOST_WORKERS:
            jobs[worker] = 1
        failure = event.failure
        if failure is None:
            self._succeeded_at = now
            if self._failing:
                self._failing.pop(worker, None)
            return False
        is_answered = event.whole is Whole.GARBLED
        if failure.kind is not FailureKind.WORKER_ERROR or is_answered or worker not in jobs:
            return False
        self._failed_from = min(self._failed_from, now)
        self._failed[worker] = self._failed.get(worker, 0) + 1
        failing = self._failing.setdefault(worker, _Failing())
        failing.at = now
        if len(failing.rows) < _ROWS:
            failing.rows.add(row)
        return len(failing.rows) >= _ROWS and self._others_work(now, usual_s)

    def _others_work(self, now: float, usual_s: float) -> bool:
        since = now - max(_RECENT_S, _RECENT_EXECUTIONS * usual_s)
        if self._succeeded_at > since:
            return True
        if now > max(self._succeeded_at, self._failed_from) + _PATIENCE_S:
            return False
        failing = sum(worker.at > since and len(worker.rows) >= _ROWS for worker in self._failing.values())
        return self._capacity > failing

    def note(self) -> str:
        """Which workers fail every job, as a clause; empty if none does."""
        names = [worker for worker, failing in self._failing.items() if len(failing.rows) >= _ROWS]
        if not names:
            return ""
        who = f"worker {names[0]} fails" if len(names) == 1 else f"{len(names)} workers ({names[0]}, ...) fail"
        return f"slowed down: {who} every job immediately"

    def take(self) -> dict[str, int]:
        """What to add to the counters of the workers that have failed jobs, since the last call."""
        counters = {}
        for worker, failed in self._failed.items():
            jobs, (failed_told, jobs_told) = self._jobs[worker], self._told.get(worker, (0, 0))
            if jobs > jobs_told:
                counters[FAILED_BY + worker] = failed - failed_told
                counters[ENDED_BY + worker] = jobs - jobs_told
                self._told[worker] = (failed, jobs)
        return counters
