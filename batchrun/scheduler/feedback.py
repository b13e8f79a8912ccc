"""Passes on what the end of a job reveals: the pace, the time that jobs take, and faulty workers."""

from __future__ import annotations

from batchrun.scheduler.events import JobEnded
from batchrun.scheduler.faulty_workers import FaultyWorkers
from batchrun.scheduler.flight import Flight
from batchrun.scheduler.health import EndpointHealth
from batchrun.scheduler.polling import PollPlan
from batchrun.scheduler.prediction import Predictor
from batchrun.scheduler.shortage import Shortage
from batchrun.scheduler.window import Window

_GLANCE_LEAST_S = 0.02
_GLANCE_SHARE = 0.25


class Feedback:
    """Passes on what the end of a job and `/health` reveal.

    Args:
        plan: When jobs are polled.
        predictor: Predicts when they end.
        flights: The jobs in flight; shared with the scheduler.
        window: The most jobs in flight.
        faulty_workers: Detects faulty workers.
        shortage: Notices that there are too few jobs; None if each job has one row.
    """

    def __init__(
        self,
        plan: PollPlan,
        predictor: Predictor,
        flights: dict[int, Flight],
        *,
        window: Window,
        faulty_workers: FaultyWorkers,
        shortage: Shortage | None = None,
    ) -> None:
        self._flights = flights
        self._window = window
        self._plan = plan
        self._predictor = predictor
        self._faulty_workers = faulty_workers
        self._shortage = shortage

    @property
    def usual_s(self) -> float:
        """The typical execution time of a job; 0 if unknown."""
        return self._predictor.execution_s

    def ended(self, flight: Flight, event: JobEnded, now: float, next_sequence: int) -> bool:
        """A job has ended; returns whether it failed and its worker is to blame.

        Args:
            flight: The job, already removed from those in flight.
            event: How it ended.
            now: The current time.
            next_sequence: The sequence number of the next job.
        """
        window, usual_s, delay_s, execution_s = (
            self._window,
            self._predictor.execution_s,
            event.delay_s,
            event.execution_s,
        )
        if self._faulty_workers.ended(flight.rows[0].row, event, now, usual_s):
            self._plan.remove(flight.job, now)
            window.faulty_limit.failed(flight.submitted_at, len(self._flights), now, usual_s)
            self._glance(2 * ((delay_s or 0.0) + (execution_s or 0.0)))
            return True
        if event.status == "COMPLETED" and delay_s is not None:
            if window.faulty_limit.is_on:
                window.faulty_limit.succeeded(flight.submitted_at, delay_s, execution_s or 0.0, now, usual_s)
            if not window.faulty_limit.is_on:
                self._plan.glance_s = None
            window.saw_start(flight.sequence, delay_s, len(self._flights) + 1, next_sequence, now)
        age_s = max((flight.seen_at + now) / 2 - flight.submitted_at, 0.0)
        self._plan.ended(flight.job, delay_s=delay_s, execution_s=execution_s, age_s=age_s, now=now)
        return False

    def saw_health(self, health: EndpointHealth, now: float, sequence: int, next_sequence: int) -> None:
        """`/health` answered.

        Args:
            health: The answer.
            now: The current time.
            sequence: The sequence number of the next job, when the request was sent.
            next_sequence: The same at `now`.
        """
        self._faulty_workers.saw_health(health)
        arrived = len(self._plan) - (next_sequence - sequence)
        if self._shortage is not None:
            self._shortage.saw_health(health, now, arrived=arrived)
        self._window.saw_health(health, len(self._flights), next_sequence, now, arrived=arrived)
        self._plan.saw_health(health, sequence, now, is_shared=self._window.is_shared)

    def _glance(self, after_s: float) -> None:
        """An early first poll of each new job pays while it comes early in the time that a job takes."""
        after_s, usual_s = max(after_s, _GLANCE_LEAST_S), self.usual_s
        self._plan.glance_s = after_s if not usual_s or after_s < _GLANCE_SHARE * usual_s else None
