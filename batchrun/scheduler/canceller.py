"""Decides which jobs to cancel: all of them if the user says so, and those that exceed their maximum age.

Queued jobs are cancelled first, the youngest before the others, because it is the farthest from its start. An overdue
job is polled once more before it is cancelled: it may have ended, and only the poll was late. `/cancel` has its own
rate limit, a tenth of that of submissions. Other people's jobs are never touched.
"""

from __future__ import annotations

import heapq
from collections import deque
from random import Random

from batchrun.config import RETENTION_S, SchedulerOptions
from batchrun.errors import NotFoundError, RejectedError, ThrottledError, UnreachableError
from batchrun.scheduler import commands as cmd
from batchrun.scheduler import events as ev
from batchrun.scheduler.connections import Connections
from batchrun.scheduler.failures import Failure, FailureKind, backoff_s
from batchrun.scheduler.flight import CancelCause, Flight
from batchrun.scheduler.pacing import Pacer
from batchrun.scheduler.polling import PollPlan

_RETRY_BASE_S = 1.0
_RETRY_CAP_S = 30.0
_ASK_AGAIN_S = 1.0
_REFUSALS = 5
"""After this many unusable answers an overdue job is cancelled without a poll; after twice as many it is given up."""

_SILENCE_S = 10.0
"""If no `/status` request was answered for this long, failed polls say nothing about a job."""


class Canceller:
    """Cancels jobs.

    Args:
        options: Limits.
        rng: Source of jitter.
        flights: The jobs in flight, oldest first; shared with the scheduler.
        plan: When they are polled; shared with the scheduler.
        connections: How many requests may be open at once.
        life_s: The maximum age of a job, from its submission.
    """

    def __init__(
        self,
        options: SchedulerOptions,
        rng: Random,
        *,
        flights: dict[int, Flight],
        plan: PollPlan,
        connections: Connections,
        life_s: float,
    ) -> None:
        self._connections = connections
        self._rng = rng
        self._flights = flights
        self._plan = plan
        self._life_s = life_s
        self._next: deque[int] = deque()
        self._later: list[tuple[float, int]] = []
        self._overdue_at: float | None = None
        self.pacer = Pacer(options.limits.cancel, rng)
        self.heard_at = float("-inf")
        """When a `/status` request was last answered."""
        self.recalling = False
        """Whether the user has requested to cancel all jobs."""

    def recall_all(self) -> None:
        """Cancel all jobs in flight, as the user requested."""
        self.recalling = True
        flights = [flight for flight in self._flights.values() if flight.remote_id and flight.cause is None]
        for flight in sorted(flights, key=lambda flight: (flight.in_progress, -flight.sequence)):
            flight.cause = CancelCause.USER
            self._queue_cancel(flight)

    def submitted(self, flight: Flight) -> None:
        """A job is in flight, with a known ID."""
        if self._overdue_at is None:
            self._overdue_at = flight.submitted_at + self._life_s
        if self.recalling:
            flight.cause = CancelCause.USER
            flight.cancel_queued = True
            self._next.appendleft(flight.job)

    def find_overdue(self, now: float) -> None:
        """Poll the jobs that have exceeded their maximum age once more."""
        if self._overdue_at is None or now < self._overdue_at:
            return
        self._overdue_at = None
        for flight in self._flights.values():
            if flight.overdue or not flight.remote_id:
                continue
            until = flight.submitted_at + self._life_s
            if until > now:
                self._overdue_at = until
                return
            flight.overdue = True
            if not flight.polling and not flight.cancelling:
                self._plan.postponed(flight.job, now, 0.0)

    def seen(self, flight: Flight, sent_at: float, now: float) -> None:
        """A poll sent at `sent_at` says that the job has not ended."""
        self.heard_at = now
        if flight.cause is not None:
            self._again(flight, now)
        elif flight.overdue and sent_at >= flight.submitted_at + self._life_s:
            self._time_out(flight)
        elif flight.overdue:
            self._plan.postponed(flight.job, now, 0.0)

    def unanswered(self, flight: Flight, now: float) -> bool:
        """A poll got an unusable answer; returns whether the job is given up."""
        if not flight.overdue or flight.cause is CancelCause.USER or self._is_outage(flight, now):
            return False
        flight.refusals += 1
        if flight.cause is None and flight.refusals >= _REFUSALS:
            self._time_out(flight)
        return flight.refusals >= 2 * _REFUSALS

    def commands(self, out: list[cmd.Command], now: float) -> None:
        """Add the commands to cancel jobs now."""
        room = min(self.pacer.ready(now), self._connections.count - self.pacer.in_use)
        while room > 0 and (job := self._take(now)) is not None:
            flight = self._flights.get(job)
            if flight is None or flight.cancelling:
                continue
            if flight.polling:
                heapq.heappush(self._later, (now + _ASK_AGAIN_S, job))
                continue
            room -= 1
            self.pacer.start(now)
            flight.cancel_queued = False
            flight.cancelling = True
            self._plan.hold(job)
            out.append(cmd.Cancel(job, flight.remote_id))

    def next_at(self, now: float) -> float | None:
        """When a job can be cancelled or becomes overdue; None if only an event can change that."""
        ready_at = self.pacer.next_at(now)
        due_at = float("-inf") if self._next else self._later[0][0] if self._later else None
        times = [None if due_at is None or ready_at is None else max(due_at, ready_at), self._overdue_at]
        return min((at for at in times if at is not None), default=None)

    def answered(self, flight: Flight, status: str, now: float) -> bool:
        """`/cancel` answered; returns whether it ended the job. If not, the job had ended before, and is polled."""
        flight.cancelling = False
        self.pacer.succeed(now)
        if status == "CANCELLED":
            return True
        self._plan.postponed(flight.job, now, 0.0)
        return False

    def failed(self, flight: Flight, event: ev.CancelFailed, now: float) -> bool:
        """`/cancel` gave no usable answer; returns whether the job is given up."""
        flight.cancelling = False
        error = event.error
        wait_s = _ASK_AGAIN_S
        match error:
            case ThrottledError():
                self.pacer.throttle(now, event.sent_at, error.retry_after_s)
                flight.cancel_queued = True
                self._next.appendleft(flight.job)
            case NotFoundError():
                self.pacer.succeed(now)
                wait_s = 0.0
            case UnreachableError():
                self.pacer.fail(now, event.sent_at)
                self._again(flight, now)
            case _:
                if isinstance(error, RejectedError):
                    self.pacer.succeed(now)
                else:
                    self.pacer.fail(now, event.sent_at)
                flight.refusals += not self._is_outage(flight, now)
                if flight.cause is CancelCause.TIMEOUT and flight.refusals >= _REFUSALS:
                    return True
                self._again(flight, now)
        self._plan.postponed(flight.job, now, wait_s)
        return False

    def failure(self) -> Failure:
        """Why the row of an overdue job has no result."""
        message = f"the job had not finished {self._life_s:,.0f} s after its submission and was cancelled"
        return Failure(FailureKind.TIMED_OUT, message, "", may_pass=True)

    def _is_outage(self, flight: Flight, now: float) -> bool:
        """Whether the API seems to be failing rather than this job, whose result, if any, can still be fetched."""
        return now - self.heard_at > _SILENCE_S and now < flight.submitted_at + self._life_s + RETENTION_S

    def _time_out(self, flight: Flight) -> None:
        flight.cause = CancelCause.TIMEOUT
        self._queue_cancel(flight)

    def _queue_cancel(self, flight: Flight) -> None:
        if not flight.cancel_queued:
            flight.cancel_queued = True
            self._next.append(flight.job)

    def _again(self, flight: Flight, now: float) -> None:
        if flight.cancel_queued:
            return
        flight.cancel_queued = True
        flight.cancel_retries += 1
        wait_s = backoff_s(flight.cancel_retries, self._rng, base_s=_RETRY_BASE_S, cap_s=_RETRY_CAP_S)
        heapq.heappush(self._later, (now + wait_s, flight.job))

    def _take(self, now: float) -> int | None:
        if self._later and self._later[0][0] <= now:
            return heapq.heappop(self._later)[1]
        return self._next.popleft() if self._next else None
