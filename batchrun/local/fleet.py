"""Emulates the platform's autoscaler: when the workers of an endpoint start, and when idle ones go. Pure.

As documented: by *request count* there is a worker for every N jobs, waiting or running; by *queue delay* a worker is
added when a job has waited for longer than N seconds. A worker goes when it was idle for the idle timeout. All times
are seconds of the caller's clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from batchrun.config import ScalingRule
from batchrun.local.queue import JobQueue


@dataclass(frozen=True, slots=True)
class Scaling:
    """How the number of workers follows the jobs."""

    rule: ScalingRule
    value: float = 4.0
    """Seconds that a job waits before a worker is added; or jobs for each worker."""
    workers_min: int = 0
    """Workers that start at once and stay."""
    idle_timeout_s: float = 5.0


class Fleet:
    """The workers of one endpoint.

    Args:
        queue: Its jobs. It must have no worker yet.
        most: The maximum of workers.
        scaling: None: all workers start at once and stay.
        cold_start_s: Seconds from the start of a worker until it takes jobs.
        now: The present time.
    """

    def __init__(
        self, queue: JobQueue, most: int, scaling: Scaling | None, now: float, *, cold_start_s: float = 0.0
    ) -> None:
        self._queue = queue
        self._most = most
        self._scaling = scaling
        self._cold_start_s = cold_start_s
        self._least = most if scaling is None else min(scaling.workers_min, most)
        self._absent = list(range(most))[::-1]
        self._starting: dict[int, float] = {}
        """When each worker that starts is ready."""
        self._up: list[int] = []
        self._added_at = -math.inf
        self._start(self._least, now)

    @property
    def starting(self) -> int:
        """How many workers are about to be ready."""
        return len(self._starting)

    def step(self, now: float) -> float:
        """Start and stop the workers for which it is time.

        To be called after a job was submitted or has ended, and at the time that it returns: when something changes
        next; infinity: nothing does before then.
        """
        scaling, next_at = self._scaling, math.inf
        if scaling is not None and scaling.rule == "request-count":
            self._start(self._wanted() - self._count(), now)
        elif scaling is not None:
            next_at = self._add_if_waited(scaling.value, now)
        ready = [worker for worker, ready_at in self._starting.items() if ready_at <= now]
        for worker in ready:
            del self._starting[worker]
        self._up += ready
        self._queue.open_workers(ready, now)
        if scaling is not None and self._queue.waiting_since() is None:
            next_at = min(next_at, self._stop_idle(scaling.idle_timeout_s, now))
        return min((next_at, *self._starting.values()))

    def _add_if_waited(self, limit_s: float, now: float) -> float:
        """Add a worker if a job has waited for too long; the next is due when that one has had as long to help."""
        submitted_at = self._queue.waiting_since()
        if submitted_at is None or not self._absent:
            return math.inf
        due_at = max(submitted_at, self._added_at) + limit_s
        if now < due_at:
            return due_at
        self._added_at = now
        self._start(1, now)
        return now + limit_s if self._absent else math.inf

    def _stop_idle(self, timeout_s: float, now: float) -> float:
        """Stop the workers that were idle for too long, as far as they are not wanted; returns when the next one is."""
        next_at = math.inf
        for worker in self._up[::-1]:
            idle_since = self._queue.idle_since(worker)
            if idle_since is None or self._count() <= self._wanted():
                continue
            if idle_since + timeout_s > now:
                next_at = min(next_at, idle_since + timeout_s)
                continue
            self._up.remove(worker)
            self._queue.close_worker(worker)
            self._absent.append(worker)
        return next_at

    def _wanted(self) -> int:
        """How many workers are kept although they are idle."""
        scaling = self._scaling
        if scaling is None or scaling.rule == "queue-delay":
            return self._least
        return min(max(math.ceil(self._queue.open_jobs / scaling.value), self._least), self._most)

    def _count(self) -> int:
        return len(self._up) + len(self._starting)

    def _start(self, workers: int, now: float) -> None:
        for _ in range(workers):
            self._starting[self._absent.pop()] = now + self._cold_start_s
