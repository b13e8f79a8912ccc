"""Decides what happens to a row when its submission or its job ends: it succeeds, fails, is held or submitted again.

After a retryable failure a row is submitted again, at most `max_retries` times. Unconfirmed submissions are counted
separately, with the same limit, and so are invalid answers, with `reask` as theirs: such a row is asked again at once,
because nothing is broken. The breaker and the canary see each row that ends.
"""

from __future__ import annotations

from random import Random

from batchrun.config import SchedulerOptions
from batchrun.errors import CallError, StoppedError
from batchrun.scheduler import commands as cmd
from batchrun.scheduler.backlog import Backlog
from batchrun.scheduler.breaker import Breaker, Canary
from batchrun.scheduler.events import Flaw, JobEnded
from batchrun.scheduler.failures import Failure, FailureKind, backoff_s
from batchrun.scheduler.flight import Flight, Row
from batchrun.scheduler.states import Move

_RETRY_BASE_S = 2.0
_RETRY_CAP_S = 60.0
_SPARED_MOST = 8
"""How many failures blamed on workers a row may have before they count as retries: the blame may be wrong."""


class RowOutcomes:
    """Decides the outcome of rows.

    Args:
        options: How often a row may be submitted.
        backlog: Takes the rows that are submitted again.
        rng: Source of jitter.
        canary: The first rows.
        breaker: Stops the run when too many rows fail.
    """

    def __init__(
        self,
        options: SchedulerOptions,
        backlog: Backlog,
        rng: Random,
        *,
        canary: Canary,
        breaker: Breaker,
    ) -> None:
        self._options = options
        self._backlog = backlog
        self._rng = rng
        self._breaker = breaker
        self.canary = canary
        self._spared: dict[int, int] = {}
        self.decided: list[cmd.Command] = []
        """Commands that the driver has not been given yet."""
        self.stop: StoppedError | None = None
        """Why the run should stop; None if it should not."""

    def answered(self, flight: Flight, event: JobEnded, now: float, *, usual_s: float | None) -> None:
        """The job has ended, and its answer says what that means for each of its rows.

        Args:
            flight: The job.
            event: Its end.
            now: The current time.
            usual_s: The typical execution time (0 if unknown), if the worker is to blame for the failure; else None.
        """
        # If only some rows have a result, the others have failed within a job that is COMPLETED.
        failed_status = "FAILED" if event.status == "COMPLETED" else event.status
        for row, answer in zip(flight.rows, event.rows, strict=True):
            if answer.failure is None:
                self._succeed(flight.job, row, event.status, answer.flaw)
            elif usual_s is None:
                self._retry_or_fail(flight.job, row, failed_status, answer.failure, now, is_answered=True)
            else:
                self._spare(flight.job, row, failed_status, answer.failure, now, usual_s=usual_s)

    def lost(self, flight: Flight, status: str, failure: Failure, now: float) -> None:
        """The job has ended without a usable answer."""
        for row in flight.rows:
            self._retry_or_fail(flight.job, row, status, failure, now)

    def _succeed(self, job: int, row: Row, status: str, flaw: Flaw | None) -> None:
        row.move(Move.SUCCEED)
        self.decided.append(cmd.Finish(job, row.row, status, None, row.attempts, row.unconfirmed, is_answered=True))
        self._ended(row.row, failed=False, flaw=flaw)

    def _retry_or_fail(
        self, job: int, row: Row, status: str, failure: Failure, now: float, *, is_answered: bool = False
    ) -> None:
        if failure.kind is FailureKind.INVALID_OUTPUT and row.reasks < self._options.reask:
            row.reasks += 1
            self._requeue(job, row, status, failure, now, is_answered=is_answered)
        elif failure.is_retryable and row.retries < self._options.max_retries:
            row.retries += 1
            self._requeue(job, row, status, failure, now + self._backoff_s(row), is_answered=is_answered)
        else:
            self.fail(job, row, status, failure, is_answered=is_answered)

    def _spare(self, job: int, row: Row, status: str, failure: Failure, now: float, *, usual_s: float) -> None:
        """The worker is to blame: submit the row again after about a job's time, longer each time."""
        spared = self._spared.get(row.row, 0)
        if spared >= _SPARED_MOST or not self._options.max_retries:
            self._retry_or_fail(job, row, status, failure, now, is_answered=True)
            return
        self._spared[row.row] = spared + 1
        span_s = min(_RETRY_CAP_S, (usual_s or _RETRY_BASE_S) * 2.0**spared)
        self._requeue(job, row, status, failure, now + self._rng.uniform(span_s / 2, span_s), is_answered=True)

    def fail(self, job: int | None, row: Row, status: str, failure: Failure, *, is_answered: bool = False) -> None:
        """The row has failed for good. `job` is None if nothing was sent for it."""
        row.move(Move.FAIL)
        self.decided.append(cmd.Finish(job, row.row, status, failure, row.attempts, row.unconfirmed, is_answered))
        self._ended(row.row, failed=True)

    def unconfirmed(self, job: int, row: Row, error: CallError, now: float) -> None:
        """The answer to the submission was lost."""
        row.unconfirmed += 1
        row.is_unconfirmed = True
        if self._options.unconfirmed == "hold":
            row.move(Move.HOLD)
            self.decided.append(cmd.Hold(job, row.row, row.unconfirmed, error.message))
            self._stop(self.canary.ended(row.row, failed=True))
            return
        failure = Failure(FailureKind.UNCONFIRMED, f"no answer to its submission: {error.message}", error.raw)
        if row.unconfirmed <= self._options.max_retries:
            self._requeue(job, row, "UNCONFIRMED", failure, now + self._backoff_s(row))
        else:
            self.fail(job, row, "UNCONFIRMED", failure)

    def undo(self, flight: Flight, now: float) -> None:
        """The submission certainly created no job; the pacer decides when to try again."""
        for row in flight.rows:
            row.attempts -= 1
            self._requeue(flight.job, row, None, None, now)

    def recall(self, flight: Flight, now: float) -> None:
        """The job was cancelled as the user requested: its rows return to pending, and nothing has failed."""
        for row in flight.rows:
            self._requeue(flight.job, row, "CANCELLED", None, now)

    def _requeue(
        self, job: int, row: Row, status: str | None, failure: Failure | None, at: float, *, is_answered: bool = False
    ) -> None:
        row.move(Move.REQUEUE)
        self._backlog.put_back(row, at, job)
        self.decided.append(
            cmd.Requeue(job, row.row, status, failure, row.retries, row.unconfirmed, is_answered, row.reasks)
        )

    def _backoff_s(self, row: Row) -> float:
        failures = row.retries + row.unconfirmed
        return backoff_s(failures, self._rng, base_s=_RETRY_BASE_S, cap_s=_RETRY_CAP_S)

    def _ended(self, row: int, *, failed: bool, flaw: Flaw | None = None) -> None:
        if self._spared:
            self._spared.pop(row, None)
        self._stop(self.canary.ended(row, failed=failed, flaw=flaw))
        self._stop(self._breaker.ended(failed=failed))

    def _stop(self, error: StoppedError | None) -> None:
        if self.stop is None:
            self.stop = error
