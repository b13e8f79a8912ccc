"""Decides which rows to submit now, and what the answer to a submission means.

A submission must pass the gate, the pacer of `/run`, the window, the canary and the budget, in this order.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from random import Random

from batchrun.config import SchedulerOptions
from batchrun.errors import AmbiguousError, RejectedError, StoppedError, ThrottledError
from batchrun.scheduler import commands as cmd
from batchrun.scheduler import events as ev
from batchrun.scheduler.backlog import Backlog
from batchrun.scheduler.budget import Budget
from batchrun.scheduler.connections import Connections
from batchrun.scheduler.failures import Failure, FailureKind
from batchrun.scheduler.flight import Flight, Row
from batchrun.scheduler.gate import SubmissionGate
from batchrun.scheduler.pacing import Pacer
from batchrun.scheduler.pool import Member
from batchrun.scheduler.row_outcomes import RowOutcomes
from batchrun.scheduler.states import Move
from batchrun.scheduler.window import Window

_SUBMITTING_PER_CONNECTION = 2
"""One that is being sent, and one whose intent is being committed: more would only mean more unconfirmed submissions
after a crash."""
_LAST_JOBS = 4
"""For each worker there are at least this many further jobs as long as jobs have several rows."""
ASSUMED_WORKERS = 3
"""The most workers of an endpoint by default (Runpod docs, endpoint settings), until `/health` counts them."""


class Submitter:
    """Submits rows.

    Args:
        options: Limits.
        rng: Source of jitter.
        numbers: The numbers for new jobs.
        flights: The jobs in flight; shared with the scheduler.
        window: How many jobs may be in flight.
        connections: How many requests may be open at once.
        backlog: The rows to submit.
        gate: Whether the endpoint answers.
        outcomes: Decides what happens to rows whose submission failed.
        budget: How many jobs the budget allows.
        rows_per_job: The most rows of one job.
        member: The place of the endpoint in a pool; None without one.
    """

    def __init__(
        self,
        options: SchedulerOptions,
        rng: Random,
        numbers: Iterator[int],
        *,
        flights: dict[int, Flight],
        window: Window,
        connections: Connections,
        backlog: Backlog,
        gate: SubmissionGate,
        outcomes: RowOutcomes,
        budget: Budget,
        rows_per_job: int = 1,
        member: Member | None = None,
    ) -> None:
        self._member = member
        self._rows_per_job = rows_per_job
        self.workers = ASSUMED_WORKERS
        """The workers of the endpoint, >= 1."""
        self._window = window
        self._connections = connections
        self._numbers = numbers
        self._flights = flights
        self._backlog = backlog
        self._gate = gate
        self._outcomes = outcomes
        self._budget = budget
        self.pacer = Pacer(options.limits.run, rng)
        self.trouble = ""
        """Why the last failed submission failed."""

    def commands(self, out: list[cmd.Command], now: float) -> StoppedError | None:
        """Add the commands to submit rows now; returns the reason to stop if the budget is spent."""
        if not self._is_open():
            return None
        flights, canary = self._flights, self._outcomes.canary
        at_once = _SUBMITTING_PER_CONNECTION * self._connections.count
        room = min(self.pacer.ready(now), at_once - self.pacer.in_use, self._window.size - len(flights))
        if self._member is not None:
            room = min(room, self._member.room(len(flights)))
        affordable = self._budget.room(len(flights)) if room > 0 else None
        if affordable == 0:
            due_at = self._backlog.next_at(fresh=canary.room > 0)
            is_over = due_at is not None and due_at <= now and self._budget.is_spent()
            return self._budget.reached() if is_over else None
        room = room if affordable is None else min(room, affordable)
        while room > 0 and not self._yields(now) and (rows := self._take(now)):
            room -= 1
            self.pacer.start(now)
            job = next(self._numbers)
            flight = flights[job] = Flight(job, rows, now)
            attempts = (rows[0].attempts,) if len(rows) == 1 else tuple([row.attempts for row in rows])
            out.append(cmd.Submit(job, flight.numbers, attempts))
        return None

    def _yields(self, now: float) -> bool:
        return self._member is not None and self._member.yields(now)

    def _take(self, now: float) -> tuple[Row, ...]:
        """The rows of the next job; empty if there are no rows to submit."""
        canary = self._outcomes.canary
        rows = self._backlog.take(now, self._most_rows(), fresh=canary.room)
        for row in rows:
            row.move(Move.SUBMIT)
            row.attempts += 1
            canary.submitted(row.row)
        return rows

    def _most_rows(self) -> int:
        """The most rows of the next job: fewer near the end if the workers are the bound, so that they end together."""
        most = self._rows_per_job if self._outcomes.shares_jobs else 1
        if most == 1 or not self._backlog.is_exhausted or self._window.has_idle_workers:
            return most
        return min(most, ceil(len(self._backlog) / (_LAST_JOBS * self.workers)) or 1)

    def next_at(self, now: float) -> float | None:
        """When a row may be submitted; None if only an event can change that."""
        if not self._is_open():
            return None
        due_at = self._backlog.next_at(fresh=self._outcomes.canary.room > 0)
        ready_at = self.pacer.next_at(now)
        return None if due_at is None or ready_at is None else max(due_at, ready_at)

    def accepted(self, flight: Flight, event: ev.Submitted, now: float) -> None:
        """`/run` answered with a job ID."""
        for row in flight.rows:
            row.move(Move.ACCEPT)
            row.is_unconfirmed = False
        self.pacer.succeed(now)
        self._connections.answered(event.sent_at, now)
        self._gate.submitted()
        flight.remote_id = event.remote_id
        flight.submitted_at = flight.seen_at = (event.sent_at + now) / 2

    def failed(self, flight: Flight, event: ev.SubmitFailed, now: float) -> None:
        """`/run` did not answer with a job ID; the job is already removed from those in flight."""
        error = event.error
        self.trouble = error.message
        match error:
            case RejectedError():
                self.pacer.succeed(now)
                self._outcomes.lost(flight, "REJECTED", Failure(FailureKind.REJECTED, error.message, error.raw), now)
            case AmbiguousError():
                self.pacer.fail(now, event.sent_at)
                self._outcomes.unconfirmed(flight, error, now)
                self._gate.submission_failed(error, now, self.pacer.trouble)
            case ThrottledError():
                self.pacer.throttle(now, event.sent_at, error.retry_after_s)
                self._window.refused(len(self._flights), now)
                self._outcomes.undo(flight, now)
            case _:
                # It certainly did not reach the API, or was refused by the API or by something in front of it.
                self.pacer.fail(now, event.sent_at)
                self._outcomes.undo(flight, now)
                self._gate.submission_failed(error, now, self.pacer.trouble)

    def unusable(self, flight: Flight, event: ev.LineUnusable) -> bool:
        """The line of a row cannot be sent; returns whether the job has other rows."""
        row = next(row for row in flight.rows if row.row == event.row)
        row.attempts -= 1
        flight.carry(tuple([other for other in flight.rows if other is not row]))
        self._outcomes.fail(None, row, "INVALID", Failure(FailureKind.INVALID, event.message, event.message))
        return bool(flight.rows)

    def abandoned(self, flight: Flight, now: float) -> None:
        """Nothing was sent for the job, which is already removed from those in flight."""
        self.pacer.abandon()
        self._outcomes.undo(flight, now)

    def _is_open(self) -> bool:
        return self._gate.is_open and not self._gate.is_paused and len(self._flights) < self._window.size
