"""Decides what happens to a row when its submission or its job ends: it succeeds, fails, is held or submitted again.

After a retryable failure a row is submitted again, at most `max_retries` times. Unconfirmed submissions are counted
separately, with the same limit, and so are invalid answers, with `reask` as theirs: such a row is asked again at once,
because nothing is broken. The breaker and the canary see each row that ends.

If a job of several rows fails as a whole, one of them may be the cause. So its rows are submitted again in halves, down
to single rows, which fail with their own reasons. As long as a row shares jobs, it has not failed itself: that counts
as none of its retries, unless the failure may pass. Then the job is submitted again as it was, once, before it is
halved. A job whose answer cannot be divided among its rows is submitted again as it was, once, and then row by row.
Halves come before all other rows, the smallest first: so it shows early whether each row fails.
"""

from __future__ import annotations

from random import Random

from batchrun.config import SchedulerOptions
from batchrun.errors import CallError, StoppedError
from batchrun.scheduler import commands as cmd
from batchrun.scheduler.backlog import Backlog
from batchrun.scheduler.breaker import Breaker, Canary
from batchrun.scheduler.events import Flaw, JobEnded, Whole
from batchrun.scheduler.failures import Failure, FailureKind, backoff_s
from batchrun.scheduler.flight import Flight, Row
from batchrun.scheduler.states import Move

_RETRY_BASE_S = 2.0
_RETRY_CAP_S = 60.0
_AT_ONCE = float("-inf")
_FREE = (FailureKind.BAD_REQUEST, FailureKind.REJECTED)
"""Found before anything is generated: to submit the rows again pays for nothing twice."""
_NO_ROUTE = "its model server has no route for lists of chats"
_NOT_DIVIDED = "their answers cannot be divided among the rows"
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
        self.shares_jobs = True
        """Whether the endpoint answers jobs of several rows, as far as is known."""
        self._has_shared = False

    def answered(self, flight: Flight, event: JobEnded, now: float, *, usual_s: float | None) -> None:
        """The job has ended, and its answer says what that means for each of its rows.

        Args:
            flight: The job.
            event: Its end.
            now: The current time.
            usual_s: The typical execution time (0 if unknown), if the worker is to blame for the failure; else None.
        """
        whole, failure = event.whole, event.rows[0].failure
        if whole is not None and failure is not None:
            if usual_s is None:
                self._failed_together(flight, event.status, failure, now, whole)
            else:
                self._spare(flight, event.status, failure, now, usual_s=usual_s)
            return
        self._has_shared = self._has_shared or len(flight.rows) > 1
        # If only some rows have a result, the others have failed within a job that is COMPLETED.
        failed_status = "FAILED" if event.status == "COMPLETED" else event.status
        for row, answer in zip(flight.rows, event.rows, strict=True):
            if answer.failure is None:
                self._succeed(flight.job, row, event.status, answer.flaw)
            elif usual_s is None:
                self._retry_or_fail(flight.job, row, failed_status, answer.failure, now, is_answered=True)
            else:
                alone = Flight(flight.job, (row,), flight.submitted_at)
                self._spare(alone, failed_status, answer.failure, now, usual_s=usual_s)

    def lost(self, flight: Flight, status: str, failure: Failure, now: float) -> None:
        """The job has ended without a usable answer."""
        if len(flight.rows) > 1:
            self._failed_together(flight, status, failure, now, Whole.FAILED, is_answered=False)
        else:
            self._retry_or_fail(flight.job, flight.rows[0], status, failure, now)

    def _failed_together(
        self, flight: Flight, status: str, failure: Failure, now: float, whole: Whole, *, is_answered: bool = True
    ) -> None:
        """A job of several rows has failed as a whole."""
        rows, most_retries = flight.rows, self._options.max_retries
        is_suspect = any(row.is_suspect for row in rows)
        if failure.kind is FailureKind.CANCELLED or not (most_retries or failure.kind in _FREE):
            for row in rows:
                self.fail(flight.job, row, status, failure, is_answered=is_answered)
            return
        may_pass = whole is not Whole.UNKNOWN and failure.is_retryable
        is_counted = may_pass and all(row.retries < most_retries for row in rows)
        if whole is Whole.UNKNOWN or (whole is Whole.GARBLED and is_suspect and not self._has_shared):
            self._share_no_jobs(_NO_ROUTE if whole is Whole.UNKNOWN else _NOT_DIVIDED)
        at = _AT_ONCE
        if is_counted:
            for row in rows:
                row.retries += 1
                row.is_suspect = True
            at = _AT_ONCE if whole is Whole.GARBLED else now + self._backoff_s(rows[0])
        if whole is Whole.UNKNOWN or (whole is Whole.GARBLED and is_suspect):
            parts: list[tuple[Row, ...]] = [(row,) for row in rows]
        elif is_counted and not is_suspect:
            parts = [rows]
        else:
            half = (len(rows) + 1) // 2
            parts = [rows[:half], *([rows[half:]] if rows[half:] else [])]
        for part in parts:
            self._submit_again(flight.job, part, status, failure, at, is_answered=is_answered, is_retry=is_counted)

    def _share_no_jobs(self, why: str) -> None:
        if self.shares_jobs:
            self.shares_jobs = False
            answers = "does not answer jobs of several rows"
            if self._has_shared:
                answers = "no longer answers jobs of several rows"
            self.decided.append(
                cmd.Tell(f"--pack: the endpoint {answers} ({why}); from now on each row has a job of its own")
            )

    def _succeed(self, job: int, row: Row, status: str, flaw: Flaw | None) -> None:
        row.move(Move.SUCCEED)
        self.decided.append(cmd.Finish(job, row.row, status, None, row.attempts, row.unconfirmed, is_answered=True))
        self._ended(row.row, failed=False, flaw=flaw)

    def _retry_or_fail(
        self, job: int, row: Row, status: str, failure: Failure, now: float, *, is_answered: bool = False
    ) -> None:
        if failure.kind is FailureKind.INVALID_OUTPUT and row.reasks < self._options.reask:
            row.reasks += 1
            self._submit_again(job, (row,), status, failure, now, is_answered=is_answered)
        elif failure.is_retryable and row.retries < self._options.max_retries:
            row.retries += 1
            self._submit_again(job, (row,), status, failure, now + self._backoff_s(row), is_answered=is_answered)
        else:
            self.fail(job, row, status, failure, is_answered=is_answered)

    def _spare(self, flight: Flight, status: str, failure: Failure, now: float, *, usual_s: float) -> None:
        """The worker is to blame: submit the rows again after about a job's time, longer each time."""
        rows = flight.rows
        spared = self._spared.get(rows[0].row, 0)
        if spared >= _SPARED_MOST or not self._options.max_retries:
            if len(rows) > 1:
                self._failed_together(flight, status, failure, now, Whole.FAILED)
            else:
                self._retry_or_fail(flight.job, rows[0], status, failure, now, is_answered=True)
            return
        self._spared.update(dict.fromkeys([row.row for row in rows], spared + 1))
        span_s = min(_RETRY_CAP_S, (usual_s or _RETRY_BASE_S) * 2.0**spared)
        at = now + self._rng.uniform(span_s / 2, span_s)
        self._submit_again(flight.job, rows, status, failure, at, is_answered=True)

    def fail(self, job: int | None, row: Row, status: str, failure: Failure, *, is_answered: bool = False) -> None:
        """The row has failed for good. `job` is None if nothing was sent for it."""
        row.move(Move.FAIL)
        self.decided.append(cmd.Finish(job, row.row, status, failure, row.attempts, row.unconfirmed, is_answered))
        self._ended(row.row, failed=True)

    def unconfirmed(self, flight: Flight, error: CallError, now: float) -> None:
        """The answer to the submission was lost."""
        again: list[Row] = []
        failure = Failure(FailureKind.UNCONFIRMED, f"no answer to its submission: {error.message}", error.raw)
        for row in flight.rows:
            row.unconfirmed += 1
            row.is_unconfirmed = True
            if self._options.unconfirmed == "hold":
                row.move(Move.HOLD)
                self.decided.append(cmd.Hold(flight.job, row.row, row.unconfirmed, error.message))
                self._stop(self.canary.ended(row.row, failed=True))
            elif row.unconfirmed <= self._options.max_retries:
                again.append(row)
            else:
                self.fail(flight.job, row, "UNCONFIRMED", failure)
        if again:
            self._submit_again(flight.job, tuple(again), "UNCONFIRMED", failure, now + self._backoff_s(again[0]))

    def undo(self, flight: Flight, now: float) -> None:
        """The submission certainly created no job; the pacer decides when to try again."""
        for row in flight.rows:
            row.attempts -= 1
        if flight.rows:
            self._submit_again(flight.job, flight.rows, None, None, now)

    def recall(self, flight: Flight, now: float) -> None:
        """The job was cancelled as the user requested: its rows return to pending, and nothing has failed."""
        self._submit_again(flight.job, flight.rows, "CANCELLED", None, now)

    def _submit_again(
        self,
        job: int,
        rows: tuple[Row, ...],
        status: str | None,
        failure: Failure | None,
        at: float,
        *,
        is_answered: bool = False,
        is_retry: bool = True,
    ) -> None:
        """Submit rows of a job again, as one job, at `at` or later."""
        for row in rows:
            row.move(Move.REQUEUE)
            self.decided.append(
                cmd.Requeue(
                    job, row.row, status, failure, row.retries, row.unconfirmed, is_answered, row.reasks, is_retry
                )
            )
        self._backlog.put_back(rows, at)

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
