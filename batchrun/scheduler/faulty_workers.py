"""Which workers fail job after job while others do not: their failures are not those of the rows.

A worker whose model server has died stays up, and answers each job within milliseconds (worker-vllm does not exit
when vLLM dies). Its answers say nothing of the pace, and its failures use up no row: those wait for about as long as
a job takes, longer each time, for another worker.
"""

from __future__ import annotations

from batchrun.scheduler.events import JobEnded
from batchrun.scheduler.failures import FailureKind
from batchrun.scheduler.health import EndpointHealth

FAILED_BY, ENDED_BY = "failed_by ", "ended_by "
"""Begin the names of counters that end in a worker's ID: jobs that it failed by its own fault, and all its jobs."""
_ROWS = 3
"""So many rows that failed on a worker, and none in between that did not, tell the worker's fault from a row's."""
_RECENT_S = 60.0
"""What a worker did within so long, or within some executions, it may do again."""
_RECENT_EXECUTIONS = 3.0
_PATIENCE_S = 900.0
"""So long others are believed in that have shown nothing: a large model takes about as long to load."""
_MOST_WORKERS = 10_000
"""So many are told apart: an endpoint that invents an ID for each job fills no memory."""


class _Failing:
    """A worker that has failed its last jobs."""

    __slots__ = ("at", "rows")

    def __init__(self) -> None:
        self.rows: set[int] = set()
        self.at = 0.0


class FaultyWorkers:
    """Tells the faults of workers from those of rows."""

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
        """A job has ended; returns whether its worker is to blame for its failure."""
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
        if failure.kind is not FailureKind.WORKER_ERROR or worker not in jobs:
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
        """Which workers fail each job, as a clause."""
        names = [worker for worker, failing in self._failing.items() if len(failing.rows) >= _ROWS]
        if not names:
            return ""
        who = f"worker {names[0]} fails" if len(names) == 1 else f"{len(names)} workers, {names[0]} among them, fail"
        return f"slowed down: {who} each job at once"

    def take(self) -> dict[str, int]:
        """What is to be added to the counters of the workers that have failed jobs."""
        counters = {}
        for worker, failed in self._failed.items():
            jobs, (failed_told, jobs_told) = self._jobs[worker], self._told.get(worker, (0, 0))
            if jobs > jobs_told:
                counters[FAILED_BY + worker] = failed - failed_told
                counters[ENDED_BY + worker] = jobs - jobs_told
                self._told[worker] = (failed, jobs)
        return counters
