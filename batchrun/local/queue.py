"""Emulates the platform's part of an endpoint: a FIFO queue, the workers' slots, job states, expiry. Pure.

As documented: a result is kept for 30 minutes after the job's end. A job lives for its ttl after its submission, and
then is gone even if it is running. A job that is gone answers 404, like one that never existed. A job that overruns its
`executionTimeout` becomes TIMED_OUT. An empty `input` is dropped by the platform, so the job fails with "job timed out
after 1 retries" (observed on the live API).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from batchrun.config import DEFAULT_TTL_S, RETENTION_S
from batchrun.endpoint.protocol import Health, JobAnswer, JobStatus

DEFAULT_EXECUTION_TIMEOUT_S = 600.0


@dataclass(slots=True)
class Job:
    """A job at the endpoint. Times are seconds of the caller's clock."""

    id: str
    request: dict[str, Any]
    """The `input` object."""
    submitted_at: float
    execution_timeout_s: float
    ttl_s: float
    status: JobStatus = JobStatus.IN_QUEUE
    slot: int | None = None
    started_at: float = 0.0
    ended_at: float = 0.0
    output: Any = None
    has_output: bool = False
    error: Any = None
    retries: int = 0
    run: int = field(default=0)
    """How often it was started; tells a late end of an earlier start from the end of the present one."""

    def answer(self) -> JobAnswer:
        """The job's answer to `/status`."""
        started = self.slot is not None
        return JobAnswer(
            id=self.id,
            status=self.status,
            delay_ms=(self.started_at - self.submitted_at) * 1000 if started else None,
            execution_ms=(self.ended_at - self.started_at) * 1000 if started and self.status.is_final else None,
            worker_id=f"local-{self.slot}" if started else None,
            retries=self.retries,
            output=self.output,
            has_output=self.has_output,
            error=self.error,
        )


class JobQueue:
    """The jobs of one endpoint.

    Args:
        workers: Number of workers.
        jobs_per_worker: Number of jobs that each worker runs at once.
        name: Prefix of each job ID, so that the IDs of different servers never coincide.
        retention_s: Seconds for which a job is known after its end.
        is_open: Whether all workers take jobs from the beginning; else each of them from `open_workers` on.
    """

    def __init__(
        self,
        workers: int,
        jobs_per_worker: int,
        *,
        name: str,
        retention_s: float = RETENTION_S,
        is_open: bool = True,
    ) -> None:
        self._name = name
        self._workers = workers if is_open else 0
        self._jobs_per_worker = jobs_per_worker
        self._retention_s = retention_s
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._free = deque(slot for _ in range(jobs_per_worker) for slot in range(self._workers))
        self._at_work = [0] * workers
        self._idle_since = [0.0] * workers
        self._running = 0
        self._worker_s = 0.0
        self._counted_at = 0.0
        self._ended: deque[Job] = deque()
        self._number = 0
        self._queued = 0
        self._completed = 0
        self._failed = 0
        self._retried = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def submit(self, request: dict[str, Any], policy: dict[str, Any], now: float) -> Job:
        """Add a job; `policy` is that of the request body, in milliseconds."""
        self._expire(now)
        self._number += 1
        job = Job(
            id=f"{self._name}-{self._number:08x}-u1",
            request=request,
            submitted_at=now,
            execution_timeout_s=_seconds(policy.get("executionTimeout"), DEFAULT_EXECUTION_TIMEOUT_S),
            ttl_s=_seconds(policy.get("ttl"), DEFAULT_TTL_S),
        )
        self._jobs[job.id] = job
        if not request:
            job.retries = 1
            self._end(job, JobStatus.FAILED, now)
            job.error = "job timed out after 1 retries"
            return job
        self._enqueue(job)
        return job

    def take(self, now: float) -> Job | None:
        """Start the oldest waiting job; None if no job waits or no slot is free."""
        while self._waiting and self._free:
            job = self._waiting.popleft()
            if not self._is_waiting(job):
                continue
            self._queued -= 1
            if now >= job.submitted_at + job.ttl_s:
                del self._jobs[job.id]
                continue
            job.slot = self._occupy(now)
            job.status = JobStatus.IN_PROGRESS
            job.started_at = now
            job.run += 1
            return job
        return None

    def complete(self, job: Job, run: int, output: Any, now: float) -> None:
        """End a job with its worker's output; no effect if that start of the job has already ended."""
        if job.run == run and job.status is JobStatus.IN_PROGRESS:
            job.output, job.has_output = output, True
            self._end(job, JobStatus.COMPLETED, now)

    def fail(self, job: Job, run: int, error: Any, now: float, status: JobStatus = JobStatus.FAILED) -> None:
        """End a job with its worker's error; no effect if that start of the job has already ended."""
        if job.run == run and job.status is JobStatus.IN_PROGRESS:
            job.error = error
            self._end(job, status, now)

    def find(self, job_id: str, now: float) -> Job | None:
        """Find a job by its ID; None if it is unknown or gone."""
        job = self._jobs.get(job_id)
        if job is None:
            return None
        kept_until = job.ended_at + self._retention_s if job.status.is_final else float("inf")
        if now >= min(kept_until, job.submitted_at + job.ttl_s):
            self._forget(job, now)
            return None
        return job

    def cancel(self, job_id: str, now: float) -> Job | None:
        """Cancel a queued or running job; one that has ended is not changed. None if it is unknown or gone."""
        job = self.find(job_id, now)
        if job is not None and not job.status.is_final:
            self._end(job, JobStatus.CANCELLED, now)
        return job

    def retry(self, job_id: str, now: float) -> Job | None:
        """Queue a FAILED or TIMED_OUT job again, with the same ID; others are not changed. None if it is unknown."""
        job = self.find(job_id, now)
        if job is not None and job.status in (JobStatus.FAILED, JobStatus.TIMED_OUT):
            job.status, job.slot, job.error, job.output, job.has_output = JobStatus.IN_QUEUE, None, None, None, False
            job.submitted_at = now
            self._retried += 1
            self._enqueue(job)
        return job

    def open_workers(self, workers: Sequence[int], now: float) -> None:
        """Let workers, numbers from 0, take jobs."""
        self._workers += len(workers)
        for worker in workers:
            self._idle_since[worker] = now
        self._free.extend(worker for _ in range(self._jobs_per_worker) for worker in workers)

    def close_worker(self, worker: int) -> None:
        """Let an idle worker take no more jobs."""
        self._workers -= 1
        self._free = deque(slot for slot in self._free if slot != worker)

    def idle_since(self, worker: int) -> float | None:
        """When an open worker has ended its last job, or was opened; None if it is at work."""
        return None if self._at_work[worker] else self._idle_since[worker]

    def waiting_since(self) -> float | None:
        """When the job that has waited longest was submitted; None if no job waits."""
        while self._waiting and not self._is_waiting(self._waiting[0]):
            self._waiting.popleft()
        return self._waiting[0].submitted_at if self._waiting else None

    @property
    def open_jobs(self) -> int:
        """How many jobs wait or are at work."""
        return self._queued + self._busy_slots

    @property
    def _busy_slots(self) -> int:
        return self._workers * self._jobs_per_worker - len(self._free)

    def _is_waiting(self, job: Job) -> bool:
        return job.status is JobStatus.IN_QUEUE and self._jobs.get(job.id) is job

    def worker_s(self, now: float) -> float:
        """Seconds for which workers have run, added up over all workers: what would be billed."""
        return self._worker_s + self._running * (now - self._counted_at)

    def purge(self) -> int:
        """Drop every job in the queue, whoever submitted it; returns their number."""
        dropped = [job for job in self._waiting if job.status is JobStatus.IN_QUEUE]
        for job in dropped:
            self._jobs.pop(job.id, None)
        self._waiting.clear()
        self._queued = 0
        return len(dropped)

    def health(self) -> tuple[Health, int]:
        """The answer to `/health`, and the number of retried jobs."""
        health = Health(
            in_queue=self._queued,
            in_progress=self._busy_slots,
            completed=self._completed,
            failed=self._failed,
            idle=self._workers - self._running,
            initializing=0,
            ready=self._workers,
            running=self._running,
            throttled=0,
            unhealthy=0,
        )
        return health, self._retried

    def _enqueue(self, job: Job) -> None:
        self._queued += 1
        self._waiting.append(job)

    def _end(self, job: Job, status: JobStatus, now: float) -> None:
        if job.status is JobStatus.IN_QUEUE and job.slot is None and job.request:
            self._queued -= 1
        if job.status is JobStatus.IN_PROGRESS and job.slot is not None:
            self._release(job.slot, now)
        job.status, job.ended_at = status, now
        if status is JobStatus.COMPLETED:
            self._completed += 1
        else:
            self._failed += status is not JobStatus.CANCELLED
        self._ended.append(job)

    def _occupy(self, now: float) -> int:
        """Take a free slot; returns its worker."""
        worker = self._free.popleft()
        self._at_work[worker] += 1
        self._count_workers(now, int(self._at_work[worker] == 1))
        return worker

    def _release(self, worker: int, now: float) -> None:
        self._free.append(worker)
        self._at_work[worker] -= 1
        self._idle_since[worker] = now
        self._count_workers(now, -int(self._at_work[worker] == 0))

    def _count_workers(self, now: float, change: int) -> None:
        self._worker_s = self.worker_s(now)
        self._counted_at = now
        self._running += change

    def _forget(self, job: Job, now: float) -> None:
        del self._jobs[job.id]
        if job.status is JobStatus.IN_PROGRESS and job.slot is not None:
            self._release(job.slot, now)
            job.run += 1
        elif job.status is JobStatus.IN_QUEUE:
            self._queued -= 1

    def _expire(self, now: float) -> None:
        """Forget expired jobs, so that a million jobs do not pile up."""
        while self._ended and now >= self._ended[0].ended_at + self._retention_s:
            job = self._ended.popleft()
            if job.status.is_final and now >= job.ended_at + self._retention_s:
                self._jobs.pop(job.id, None)


def _seconds(milliseconds: Any, default_s: float) -> float:
    return milliseconds / 1000 if isinstance(milliseconds, (int, float)) and milliseconds > 0 else default_s
