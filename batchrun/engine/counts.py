"""The counts of a running session, as observers see them. Pure: `now` is a parameter."""

from __future__ import annotations

from collections import deque

from batchrun.display.cost import Cost, WorkCost, cost_of
from batchrun.display.summary import Snapshot, Workers
from batchrun.engine.endings import Ending
from batchrun.results.text import MARKS, AnswerTotals
from batchrun.scheduler import commands as cmd
from batchrun.scheduler.budget import WorkerTime
from batchrun.scheduler.failures import Failure, FailureKind
from batchrun.scheduler.health import EndpointHealth
from batchrun.scheduler.scheduler import Scheduler
from batchrun.scheduler.states import RowState

_RATE_SPAN_S = 30.0
"""Rates are averages over this time: long enough for slow jobs, short enough to show a change."""
_SAMPLE_S = 0.5


class SessionCounts:
    """Counts rows and derives rates.

    Args:
        counts: The number of rows in each state when the session began.
        started_at: When the session began, on the driver's monotonic clock.
        cached: The number of rows that earlier sessions answered from the cache.
        price_per_hour: Price of one worker; None if the cost is not shown.
    """

    def __init__(
        self,
        counts: dict[RowState, int],
        started_at: float,
        *,
        cached: int = 0,
        price_per_hour: float | None = None,
    ) -> None:
        self._price_per_hour = price_per_hour
        self.total = sum(counts.values())
        """The rows so far; a stream may add more."""
        self._started_at = started_at
        self._samples: deque[tuple[float, int, int]] = deque([(started_at, 0, 0)])
        self.succeeded = counts[RowState.SUCCEEDED]
        self.failed = counts[RowState.FAILED]
        self.held = counts[RowState.HELD]
        self.cached = cached
        """Rows answered from the cache."""
        self.retries = 0
        """Submissions made again after a failure, in this session."""
        self.unconfirmed = 0
        self._ended_before = self._ended

    @property
    def _ended(self) -> int:
        return self.succeeded + self.failed + self.held

    def loaded(self, added: int, cached: int) -> None:
        """Count rows that were added, and rows that were answered from the cache, which took no worker time."""
        self.total += added
        self.succeeded += cached
        self.cached += cached
        self._ended_before += cached

    def count(self, ending: Ending) -> tuple[str, ...]:
        """Count the ending of a row; returns the run's counters that it increases."""
        retried: tuple[str, ...] = ()
        match ending:
            case cmd.Finish(failure=None):
                self.succeeded += 1
                return ()
            case cmd.Finish():
                self.failed += 1
            case cmd.Requeue(failure=Failure(kind=FailureKind.INVALID_OUTPUT)):
                return ("reasks",)
            case cmd.Requeue(failure=Failure(), is_retry=False):
                retried = ("separated",)
            case cmd.Requeue(failure=Failure()):
                self.retries += 1
                retried = ("retries",)
            case cmd.Hold():
                self.held += 1
        if isinstance(ending, cmd.Hold) or ending.status == "UNCONFIRMED":
            self.unconfirmed += 1
            return (*retried, "unconfirmed")
        return retried

    def share(self, succeeded: int, failed: int, held: int) -> None:
        """Count rows that have ended with the job of another row."""
        self.succeeded += succeeded
        self.failed += failed
        self.held += held

    def snapshot(self, now: float, scheduler: Scheduler, said: AnswerTotals) -> Snapshot:
        """The state of the run at `now`."""
        ended = self._ended - self._ended_before
        samples = self._samples
        if now - samples[-1][0] >= _SAMPLE_S:
            samples.append((now, ended, said.output))
            while len(samples) > 2 and now - samples[1][0] >= _RATE_SPAN_S:  # noqa: PLR2004 - a rate needs two
                samples.popleft()
        since, ended_then, output_then = samples[0]
        span_s = max(now - since, 1e-9)
        pending = self.total - self._ended - scheduler.rows_in_flight
        return Snapshot(
            total=self.total,
            succeeded=self.succeeded,
            failed=self.failed,
            held=self.held,
            pending=pending - scheduler.waiting,
            waiting=scheduler.waiting,
            queued=scheduler.rows_in_flight - scheduler.rows_running,
            running=scheduler.rows_running,
            retries=self.retries,
            unconfirmed=self.unconfirmed,
            cached=self.cached,
            ended_in_session=ended,
            elapsed_s=now - self._started_at,
            rows_per_s=(ended - ended_then) / span_s,
            tokens_per_s=(said.output - output_then) / span_s if said.reported else None,
            input_tokens=said.input,
            output_tokens=said.output,
            window=scheduler.window.size,
            jobs=scheduler.in_flight,
            note=scheduler.note(now),
            is_under_way=scheduler.is_under_way,
            cost=self._cost(scheduler.meter.total),
            workers=_workers(scheduler.gate.health),
            stopping=scheduler.stop.message if scheduler.stop else "",
            **{mark: said.marks[mark] for mark in MARKS},
        )

    def _cost(self, time: WorkerTime) -> Cost | None:
        if self._price_per_hour is None:
            return None
        work = WorkCost(time.running_s, time.most_s, time.unwatched_s)
        return cost_of(
            work, price_per_hour=self._price_per_hour, done=self._ended - self.cached, total=self.total - self.cached
        )


def _workers(health: EndpointHealth | None) -> Workers | None:
    if health is None:
        return None
    h = health
    return Workers(h.running, h.idle, h.initializing, h.throttled, h.unhealthy, h.in_queue, h.in_progress)
