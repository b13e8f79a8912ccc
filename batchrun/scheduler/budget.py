"""The cost of workers: their time, integrated over samples of `/health`, and a budget for it.

The cost is that of the workers' time, not of the sum of executionTime: a vLLM worker runs about 30 jobs at once. Runpod
bills a worker from its start until it has stopped (Runpod docs, pricing), so also while it starts and during its idle
timeout. But `/health` also counts sleeping workers, which cost nothing, as idle. So there are two bounds: the running
workers alone, and all that are running, starting or idle. A budget uses the upper bound.

The samples are of the whole endpoint: jobs of other clients on it count too.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import astuple, dataclass, fields

from batchrun.errors import StoppedError
from batchrun.scheduler.health import EndpointHealth

_TRUSTED_GAP_S = 60.0
"""If samples are farther apart, the workers between them are unknown: each bound takes its own extreme."""
_JOBS_FOR_MEAN = 5
"""The number of ended jobs from which the mean cost of a job is estimated."""


def _counters(endpoint: int) -> list[str]:
    """The names of the counters of an endpoint, one for each field; those of the first endpoint have no suffix."""
    number = f" {endpoint}" * (endpoint > 0)
    return [f"{each.name.removesuffix('_s')}_ms{number}" for each in fields(WorkerTime)]


@dataclass(slots=True)
class WorkerTime:
    """Worker-seconds, unless a field says otherwise."""

    running_s: float = 0.0
    idle_s: float = 0.0
    initializing_s: float = 0.0
    unwatched_s: float = 0.0
    """Execution time of jobs that ran while no session was sampling: job-seconds, not worker-seconds."""
    packed_s: float = 0.0
    """Seconds in which jobs of several rows were in flight; for this and the next three, see `Shortage`."""
    short_s: float = 0.0
    """Seconds of that time in which there were too few of these jobs for the workers."""
    short_running_s: float = 0.0
    """In these seconds, the time of workers with a job."""
    short_idle_s: float = 0.0
    """In these seconds, the time of workers without a job."""

    @property
    def most_s(self) -> float:
        """The upper bound of the billed time while sessions were sampling."""
        return self.running_s + self.idle_s + self.initializing_s

    @classmethod
    def from_counters(cls, counters: Mapping[str, int], endpoint: int = 0, *, share: float = 1.0) -> WorkerTime:
        """The time stored in a run's counters for the endpoint of a number, or a share (0 to 1) of it."""
        return cls(*(counters.get(name, 0) / 1000 * share for name in _counters(endpoint)))

    def to_counters(self, endpoint: int = 0) -> dict[str, int]:
        """The time as counters to add to those of a run, in milliseconds; zero values are left out."""
        names = _counters(endpoint)
        return {name: round(time_s * 1000) for name, time_s in zip(names, astuple(self), strict=True) if time_s}

    def add(self, other: WorkerTime) -> None:
        """Add another time to this one."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


class WorkerMeter:
    """Integrates the workers of an endpoint over time.

    Args:
        before: The worker time of earlier sessions.
        endpoint: The number of the endpoint, by which its time is stored.
    """

    def __init__(self, before: WorkerTime, endpoint: int = 0) -> None:
        self.endpoint = endpoint
        self.total = before
        """The worker time of all sessions."""
        self._untold = WorkerTime()
        self._last: tuple[float, EndpointHealth] | None = None

    def sample(self, health: EndpointHealth, now: float) -> None:
        """`/health` answered at `now`."""
        if self._last is not None:
            self._count(now, self._last[1], health)
        self._last = (now, health)

    def close(self, now: float) -> None:
        """End the sampling: the last sample counts until `now`."""
        if self._last is not None:
            self._count(now, self._last[1], self._last[1])
            self._last = (now, self._last[1])

    def unwatched(self, started_at: float, execution_s: float, began_at: float) -> None:
        """Count a job that started at `started_at`, up to its end or to the session's start at `began_at`."""
        self.add(WorkerTime(unwatched_s=min(execution_s, max(began_at - started_at, 0.0))))

    def add(self, time: WorkerTime) -> None:
        """Add this time."""
        self.total.add(time)
        self._untold.add(time)

    def take(self) -> WorkerTime:
        """The time counted since the last call, to be stored."""
        taken, self._untold = self._untold, WorkerTime()
        return taken

    def _count(self, now: float, then: EndpointHealth, health: EndpointHealth) -> None:
        assert self._last is not None  # noqa: S101 - both callers have checked
        gap_s = max(now - self._last[0], 0.0)
        if gap_s <= _TRUSTED_GAP_S:
            running, idle, initializing = (
                (getattr(then, name) + getattr(health, name)) / 2 for name in ("running", "idle", "initializing")
            )
        else:
            running = min(then.running, health.running)
            most = max(then.running + then.idle + then.initializing, health.running + health.idle + health.initializing)
            idle, initializing = most - running, 0
        self.add(WorkerTime(running * gap_s, idle * gap_s, initializing * gap_s))


class Budget:
    """Limits the cost of a run.

    Args:
        meter: Measures the time of the workers.
        price_per_hour: The price of one worker; None for no budget.
        max_cost: The limit, in the same currency; None for no budget.
        ended: The number of jobs that ended in earlier sessions.
        execution_s: The sum of their execution times.
        shared: The budgets of a pool, which have one limit together; this one is added. None for one of its own.
        flights: The jobs in flight.
    """

    def __init__(
        self,
        meter: WorkerMeter,
        *,
        price_per_hour: float | None,
        max_cost: float | None,
        ended: int = 0,
        execution_s: float = 0.0,
        shared: list[Budget] | None = None,
        flights: Collection[int] = (),
    ) -> None:
        self._meter = meter
        self._price_per_s = (price_per_hour or 0.0) / 3600
        self._max_cost = max_cost if price_per_hour else None
        self._ended = ended
        self._execution_s = execution_s
        self._flights = flights
        self._all = [] if shared is None else shared
        self._all.append(self)

    def limit(self, max_cost: float) -> None:
        """Change the limit; infinite for no budget. Without a price there is no budget."""
        self._max_cost = max_cost if self._price_per_s and max_cost < math.inf else None

    def job_ended(self, execution_s: float | None) -> None:
        """A job has ended after this execution time; None if it was not reported."""
        self._ended += 1
        self._execution_s += execution_s or 0.0

    def room(self, in_flight: int) -> int | None:
        """How many more jobs the budget allows beside those in flight; None for no limit.

        Until the first jobs have ended, the cost of a job is unknown and there is no limit.
        """
        if self._max_cost is None:
            return None
        left = self._max_cost - sum(each.committed() for each in self._all if each is not self) - self.spent()
        if left <= 0:
            return 0
        if self._ended < _JOBS_FOR_MEAN:
            return None
        per_job = self.spent() / self._ended
        return max(int(left / per_job) - in_flight, 0) if per_job > 0 else None

    def is_spent(self) -> bool:
        """Whether to stop when there is no room, instead of waiting for jobs in flight to end.

        The first jobs to end seem to cost as much as all jobs that ran beside them, so as many as are in flight must
        have ended before the estimate counts.
        """
        return self._max_cost is not None and (
            self._all_spent() >= self._max_cost or all(each.is_known for each in self._all)
        )

    @property
    def is_known(self) -> bool:
        """Whether enough jobs have ended for the estimate to count."""
        return self._ended >= len(self._flights)

    def reached(self) -> StoppedError:
        """The reason to stop when the budget allows no more jobs."""
        return StoppedError(
            f"the budget is reached: at most ${self._all_spent():,.2f} spent, and about"
            f" ${sum(each.in_flight() for each in self._all):,.2f} in flight (--max-cost {self._max_cost:g})",
            "resume with a larger --max-cost",
        )

    def _all_spent(self) -> float:
        return sum(each.spent() for each in self._all)

    def in_flight(self) -> float:
        """The estimated cost of the jobs in flight."""
        return len(self._flights) * self.spent() / max(self._ended, 1)

    def committed(self) -> float:
        """The cost so far, and that of the jobs in flight as far as it is known."""
        return self.spent() + (self.in_flight() if self._ended >= _JOBS_FOR_MEAN else 0.0)

    def spent(self) -> float:
        """The upper bound of the cost so far."""
        total = self._meter.total
        share = min(total.running_s / self._execution_s, 1.0) if self._execution_s else 1.0
        return (total.most_s + total.unwatched_s * share) * self._price_per_s
