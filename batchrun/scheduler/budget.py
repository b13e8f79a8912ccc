"""What workers cost: their time, integrated over samples of `/health`, and a budget for it.

The cost is that of the workers and not the sum of executionTime: a vLLM worker runs 30 jobs at once. Runpod bills a
worker from its start until it has stopped (Runpod docs, pricing): surely while it runs, also while it starts and
during its idle timeout; but `/health` counts as idle those too that sleep and cost nothing. So there are two bounds:
running workers alone, and all that run, start or idle. A budget goes by the upper one.

The samples are of the endpoint: what other clients let run on it counts here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from batchrun.errors import StoppedError
from batchrun.scheduler.health import EndpointHealth

_TRUSTED_GAP_S = 60.0
"""Between samples farther apart nobody knows how many workers there were: each bound takes what suits it."""
_JOBS_FOR_MEAN = 5
"""Ended jobs that make a cost of one."""


_COUNTERS = ("running_ms", "idle_ms", "initializing_ms", "unwatched_ms")


@dataclass(slots=True)
class WorkerTime:
    """Worker-seconds."""

    running_s: float = 0.0
    idle_s: float = 0.0
    initializing_s: float = 0.0
    unwatched_s: float = 0.0
    """Execution time of jobs that ran while no session was there to look: that of jobs, not of workers."""

    @property
    def most_s(self) -> float:
        """All that may be billed of what was watched."""
        return self.running_s + self.idle_s + self.initializing_s

    @classmethod
    def from_counters(cls, counters: Mapping[str, int], *, share: float = 1.0) -> WorkerTime:
        """The time that was kept in a run's counters, or a share (0 to 1) of it."""
        return cls(*(counters.get(name, 0) / 1000 * share for name in _COUNTERS))

    def to_counters(self) -> dict[str, int]:
        """The time as counters to add to a run's, in milliseconds; without those that are nothing."""
        times = (self.running_s, self.idle_s, self.initializing_s, self.unwatched_s)
        return {name: round(time_s * 1000) for name, time_s in zip(_COUNTERS, times, strict=True) if time_s}

    def add(self, other: WorkerTime) -> None:
        """Add to it."""
        self.running_s += other.running_s
        self.idle_s += other.idle_s
        self.initializing_s += other.initializing_s
        self.unwatched_s += other.unwatched_s


class WorkerMeter:
    """Integrates the workers of an endpoint over time.

    Args:
        before: What earlier sessions have counted.
    """

    def __init__(self, before: WorkerTime) -> None:
        self.total = before
        """Over all sessions."""
        self._untold = WorkerTime()
        self._last: tuple[float, EndpointHealth] | None = None

    def sample(self, health: EndpointHealth, now: float) -> None:
        """`/health` answered at `now`."""
        if self._last is not None:
            self._count(now, self._last[1], health)
        self._last = (now, health)

    def close(self, now: float) -> None:
        """Nothing more is sampled: the last sample holds until now."""
        if self._last is not None:
            self._count(now, self._last[1], self._last[1])
            self._last = (now, self._last[1])

    def unwatched(self, started_at: float, execution_s: float, began_at: float) -> None:
        """A job that started at `started_at` ran unwatched until the session began at `began_at`, or until its end."""
        self._add(WorkerTime(unwatched_s=min(execution_s, max(began_at - started_at, 0.0))))

    def take(self) -> WorkerTime:
        """What was counted since the last call, to be kept."""
        taken, self._untold = self._untold, WorkerTime()
        return taken

    def _count(self, now: float, then: EndpointHealth, health: EndpointHealth) -> None:
        assert self._last is not None  # noqa: S101 - both callers have looked
        gap_s = max(now - self._last[0], 0.0)
        if gap_s <= _TRUSTED_GAP_S:
            running, idle, initializing = (
                (getattr(then, name) + getattr(health, name)) / 2 for name in ("running", "idle", "initializing")
            )
        else:
            running = min(then.running, health.running)
            most = max(then.running + then.idle + then.initializing, health.running + health.idle + health.initializing)
            idle, initializing = most - running, 0
        self._add(WorkerTime(running * gap_s, idle * gap_s, initializing * gap_s))

    def _add(self, time: WorkerTime) -> None:
        self.total.add(time)
        self._untold.add(time)


class Budget:
    """Bounds what a run may cost.

    Args:
        meter: What its workers have been counted for.
        price_per_hour: Of one worker; None: there is no budget.
        max_cost: In the same money; None: there is no budget.
        ended: Jobs that earlier sessions have seen the end of.
        execution_s: How long those were at work, added up.
    """

    def __init__(
        self,
        meter: WorkerMeter,
        *,
        price_per_hour: float | None,
        max_cost: float | None,
        ended: int = 0,
        execution_s: float = 0.0,
    ) -> None:
        self._meter = meter
        self._price_per_s = (price_per_hour or 0.0) / 3600
        self._max_cost = max_cost if price_per_hour else None
        self._ended = ended
        self._execution_s = execution_s

    def job_ended(self, execution_s: float | None) -> None:
        """A job has ended, after so long at work; None: it did not say."""
        self._ended += 1
        self._execution_s += execution_s or 0.0

    def room(self, in_flight: int) -> int | None:
        """How many further jobs there is money for, beside those in flight; None: as many as you like.

        Before the first jobs have ended nobody knows what one costs, and there is no bound.
        """
        if self._max_cost is None:
            return None
        left = self._max_cost - self._spent()
        if left <= 0:
            return 0
        if self._ended < _JOBS_FOR_MEAN:
            return None
        per_job = self._spent() / self._ended
        return max(int(left / per_job) - in_flight, 0) if per_job > 0 else None

    def is_spent(self, in_flight: int) -> bool:
        """Whether to stop where there is no room, rather than to wait for the end of jobs in flight.

        The first jobs to end look as dear as all those at work beside them: a whole window has to end first.
        """
        return self._max_cost is not None and (self._spent() >= self._max_cost or self._ended >= in_flight)

    def reached(self, in_flight: int) -> StoppedError:
        """The reason to stop when there is no room left."""
        return StoppedError(
            f"the budget is reached: ${self._spent():,.2f} spent at most, and about"
            f" ${in_flight * self._spent() / max(self._ended, 1):,.2f} in flight (--max-cost {self._max_cost:g})",
            "go on with a larger --max-cost",
        )

    def _spent(self) -> float:
        total = self._meter.total
        share = min(total.running_s / self._execution_s, 1.0) if self._execution_s else 1.0
        return (total.most_s + total.unwatched_s * share) * self._price_per_s
