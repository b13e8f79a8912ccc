"""Decides which jobs to poll now, and what a poll without a usable answer means for its job."""

from __future__ import annotations

from random import Random
from typing import Literal

from batchrun.config import OperationLimit
from batchrun.errors import (
    DeniedError,
    NotFoundError,
    RejectedError,
    ThrottledError,
    TooLargeError,
    UnreachableError,
)
from batchrun.scheduler import commands as cmd
from batchrun.scheduler import events as ev
from batchrun.scheduler.canceller import Canceller
from batchrun.scheduler.connections import Connections
from batchrun.scheduler.failures import Failure, FailureKind
from batchrun.scheduler.flight import Flight
from batchrun.scheduler.pacing import TROUBLE_THRESHOLD, Pacer
from batchrun.scheduler.polling import PollPlan
from batchrun.scheduler.stopping import Stopping

_DOUBT_S = 2.0
"""A job that may be gone is polled again after this time, until the endpoint has answered."""


class Poller:
    """Polls jobs.

    Args:
        limit: The limit of `/status`.
        rng: Source of jitter.
        flights: The jobs in flight; shared with the scheduler.
        plan: When each of them is polled.
        connections: How many requests may be open at once.
        canceller: Cancels jobs; it is told about unusable answers.
        stopping: Decides whether a refusal stops the run.
    """

    def __init__(
        self,
        limit: OperationLimit,
        rng: Random,
        *,
        flights: dict[int, Flight],
        plan: PollPlan,
        connections: Connections,
        canceller: Canceller,
        stopping: Stopping,
    ) -> None:
        self.pacer = Pacer(limit, rng)
        self._flights = flights
        self._plan = plan
        self._connections = connections
        self._canceller = canceller
        self._stopping = stopping
        self._message = ""

    @property
    def trouble(self) -> str:
        """Why polls currently fail; empty if they do not."""
        return self._message if self.pacer.trouble >= TROUBLE_THRESHOLD else ""

    def commands(self, out: list[cmd.Command], now: float) -> None:
        """Add the commands to poll jobs now."""
        self._plan.refresh(now)
        room = min(self.pacer.ready(now), self._connections.count - self.pacer.in_use)
        while room > 0 and (job := self._plan.take(now)) is not None:
            room -= 1
            self.pacer.start(now)
            flight = self._flights[job]
            flight.polling = True
            out.append(cmd.Poll(job, flight.remote_id, flight.numbers))

    def next_at(self, now: float) -> float | None:
        """When a job may be polled; None if only an event can change that."""
        due_at, ready_at = self._plan.next_at(), self.pacer.next_at(now)
        return None if due_at is None or ready_at is None else max(due_at, ready_at)

    def answered(self, sent_at: float, now: float) -> None:
        """`/status` returned a usable answer."""
        self.pacer.succeed(now)
        self._stopping.refusals.answered("status", now)
        self._connections.answered(sent_at, now)

    def failed(self, flight: Flight, event: ev.PollFailed, now: float) -> Failure | Literal["given up"] | None:
        """`/status` gave no usable answer; returns why the job has ended, or that it is given up; None if neither."""
        error = event.error
        self._message = error.message
        match error:
            case NotFoundError():
                self.pacer.succeed(now)
                wait_s = flight.missed(now, is_sure=error.from_api)
                if wait_s <= 0 and not self._stopping.is_doubtful("status", flight.missing_since, now):
                    return Failure(FailureKind.EXPIRED, f"the job is gone ({error.message})", error.raw)
                self._plan.postponed(event.job, now, wait_s or _DOUBT_S)
            case TooLargeError():
                self.pacer.succeed(now)
                return Failure(FailureKind.TOO_LARGE, error.message, error.raw)
            case ThrottledError():
                self.pacer.throttle(now, event.sent_at, error.retry_after_s)
                self._plan.postponed(event.job, now, 0.0)
            case DeniedError() if self._stopping.is_refused("status", error, now):
                self.pacer.succeed(now)
                self._plan.failed(event.job, now)
            case _:
                return self._unanswered(flight, event, now)
        return None

    def _unanswered(self, flight: Flight, event: ev.PollFailed, now: float) -> Literal["given up"] | None:
        if isinstance(event.error, RejectedError):
            self.pacer.succeed(now)
            self._canceller.heard_at = now
        else:
            self.pacer.fail(now, event.sent_at)
        self._plan.failed(event.job, now)
        if isinstance(event.error, (UnreachableError, DeniedError)):
            return None
        return "given up" if self._canceller.unanswered(flight, now) else None
