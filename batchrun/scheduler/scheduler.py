"""The scheduler: which row to submit, which job to ask after, and what the end of either means.

It holds the rows that are in play, a few times the window, and nothing of the other million. The law:

- At most `concurrency` jobs are in flight, each operation keeps to its own budget (`pacing`), and neither polls nor
  submissions get so far ahead of the connections that they starve the other: the client holds back what exceeds them.
- Jobs of an earlier session are asked after once, each, before anything new is submitted.
- Nothing is submitted until `/health` has answered once, nor while submissions meet an outage: there `/health` is
  asked instead, so that an hour without network makes no unconfirmed submissions beyond those under way.
- A row is submitted again after a failure whose kind allows it, `max_retries` times; submissions whose answer was
  lost are counted apart, and bounded in the same way.
- A refused key, account or endpoint halts the run. Nothing else does.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING

from batchrun.errors import (
    AmbiguousError,
    CallError,
    DeniedError,
    NotFoundError,
    RejectedError,
    ThrottledError,
    UnreachableError,
)
from batchrun.scheduler import commands as cmd
from batchrun.scheduler import events as ev
from batchrun.scheduler.failures import Failure, FailureKind, backoff_s
from batchrun.scheduler.flight import Flight, Row
from batchrun.scheduler.pacing import TROUBLE_THRESHOLD, Pacer
from batchrun.scheduler.polling import MISSING_GAP_S, PollPlan
from batchrun.scheduler.prediction import Predictor
from batchrun.scheduler.refusal import refusal
from batchrun.scheduler.states import Move, RowState

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random

    from batchrun.config import SchedulerOptions

_RETRY_BASE_S = 2.0
_RETRY_CAP_S = 60.0
_PROBE_BASE_S = 1.0
_PROBE_CAP_S = 30.0
_BLOCK_CAP_S = 120.0
"""While `/health` answers and `/run` does not, one submission is risked this often: each may be a paid job."""
_LOAD_MOST = 1000
"""Rows kept ready at most: enough for one burst of submissions."""
_SUBMITTING_PER_CONNECTION = 2
"""One on the wire, one whose intent is being written: more would only mean more unconfirmed ones after a crash."""
_STALL_S = 5.0
"""A gap this long between two calls means that the machine slept: everything is due, and is to start slowly."""


class Scheduler:
    """Decides what to do next.

    Args:
        options: Window, connections, limits and retries.
        rng: Where jitter comes from.
        next_job: The number of the first job that this session makes; larger than any in the state file.
    """

    def __init__(self, options: SchedulerOptions, rng: Random, *, next_job: int = 1) -> None:
        self._options = options
        self._rng = rng
        self._next_job = next_job
        self._place = 0
        self._run = Pacer(options.limits.run, rng)
        self._status = Pacer(options.limits.status, rng)
        self._plan = PollPlan(Predictor(), rng)
        self._flights: dict[int, Flight] = {}
        self._ready: deque[Row] = deque()
        self._waiting: list[tuple[float, int, Row]] = []
        self._decided: list[cmd.Command] = []
        self._loading = False
        self._exhausted = False
        self._stopping = False
        self._halted = False
        self._blocked = True
        self._probing = False
        self._probe_at = float("-inf")
        self._probe_failures = 0
        self._probe_error = ""
        self._blocks = 0
        self._unasked = 0
        self._running = 0
        self._last_now: float | None = None

    def __repr__(self) -> str:
        return (
            f"<Scheduler ready={len(self._ready)} waiting={len(self._waiting)} in_flight={len(self._flights)}"
            f" running={self._running} run={self._run!r} status={self._status!r}"
            f"{' blocked' if self._blocked else ''}{' stopping' if self._stopping else ''}>"
        )

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do: every row ended, or none may be submitted and nothing is in flight."""
        if self._halted:
            return True
        if self._flights or self._loading or self._decided:
            return False
        return self._stopping or (self._exhausted and not self._ready and not self._waiting)

    @property
    def in_flight(self) -> int:
        """Jobs submitted, or being submitted, and not known to be final."""
        return len(self._flights)

    @property
    def running(self) -> int:
        """Jobs that were IN_PROGRESS when last asked after."""
        return self._running

    @property
    def waiting(self) -> int:
        """Rows that wait for a further submission."""
        return len(self._waiting)

    @property
    def note(self) -> str:
        """Why nothing is submitted at the moment, as a clause; empty when nothing is in the way."""
        if self._blocked and self._probe_error:
            return f"waiting for the endpoint: {self._probe_error}"
        if self._run.trouble or self._status.trouble >= TROUBLE_THRESHOLD:
            return "slowed down: the API is refusing or failing requests"
        return ""

    def remember_submissions(self, times: Iterable[float]) -> None:
        """Count submissions of an earlier session against the limit: they may be less than 10 s old."""
        self._run.remember(times)

    def handle(self, event: ev.Event, now: float) -> None:
        """Take note of what happened.

        Raises:
            IllegalMoveError: the event does not fit the row's state; nothing has changed then.
        """
        match event:
            case ev.JobEnded():
                self._job_ended(event, now)
            case ev.Submitted():
                self._submitted(event, now)
            case ev.JobSeen():
                self._job_seen(event, now)
            case ev.RowsLoaded():
                self._loading = False
                self._exhausted = event.exhausted
                self._ready.extend(Row(ticket, RowState.PENDING) for ticket in event.tickets)
            case ev.PollFailed():
                self._poll_failed(event, now)
            case ev.SubmitFailed():
                self._submit_failed(event, now)
            case ev.LineUnusable():
                self._line_unusable(event)
            case ev.JobAdopted():
                self._adopt(event)
            case ev.HealthSeen():
                self._health_seen(now)
            case ev.HealthFailed():
                self._health_failed(event.error, now)
            case ev.StopRequested():
                self._stopping = True

    def commands(self, now: float) -> list[cmd.Command]:
        """What to do now. Every command is given once, and counts as started."""
        if self._last_now is not None and now - self._last_now > _STALL_S and self._flights:
            self._status.restart(now)
            self._run.restart(now)
        self._last_now = now
        out = self.decided()
        if self._halted:
            return out
        self._load(out)
        self._poll(out, now)
        self._submit(out, now)
        if self._blocked and not self._probing and now >= self._probe_at and not self._stopping:
            self._probing = True
            out.append(cmd.CheckHealth())
        return out

    def decided(self) -> list[cmd.Command]:
        """What was decided about rows and is to be written down, without starting anything new."""
        out, self._decided = self._decided, []
        return out

    def next_wakeup(self, now: float) -> float | None:
        """When `commands` has something to say without a further event, later than `now`; None: only an event helps."""
        times = [self._plan_wakeup(now), self._submit_wakeup(now)]
        if self._blocked and not self._probing and not self._stopping:
            times.append(self._probe_at)
        later = [at for at in times if at is not None and at > now]
        return min(later) if later and not self._halted else None

    def _load(self, out: list[cmd.Command]) -> None:
        if self._exhausted or self._loading or self._stopping:
            return
        most = min(max(self._options.concurrency, 1), _LOAD_MOST)
        held = len(self._ready) + len(self._waiting)
        if held <= most // 2:
            self._loading = True
            out.append(cmd.LoadRows(count=most))

    def _poll(self, out: list[cmd.Command], now: float) -> None:
        self._plan.refresh(now)
        room = min(self._status.ready(now), self._options.connections - self._status.in_use)
        while room > 0 and (job := self._plan.take(now)) is not None:
            room -= 1
            self._status.start(now)
            out.append(cmd.Poll(job, self._flights[job].remote_id))

    def _submit(self, out: list[cmd.Command], now: float) -> None:
        if not self._may_submit(now):
            return
        room = min(
            self._run.ready(now),
            _SUBMITTING_PER_CONNECTION * self._options.connections - self._run.in_use,
            self._options.concurrency - len(self._flights),
        )
        while room > 0 and (row := self._next_row(now)) is not None:
            room -= 1
            self._run.start(now)
            job, self._next_job = self._next_job, self._next_job + 1
            row.move(Move.SUBMIT)
            row.attempts += 1
            self._flights[job] = Flight(job, row)
            out.append(cmd.Submit(job, row.row, row.attempts))

    def _may_submit(self, now: float) -> bool:
        if self._blocked or self._stopping or self._unasked or len(self._flights) >= self._options.concurrency:
            return False
        return bool(self._ready) or (bool(self._waiting) and self._waiting[0][0] <= now)

    def _next_row(self, now: float) -> Row | None:
        if self._waiting and self._waiting[0][0] <= now:
            return heapq.heappop(self._waiting)[2]
        return self._ready.popleft() if self._ready else None

    def _plan_wakeup(self, now: float) -> float | None:
        due_at, ready_at = self._plan.next_at(), self._status.next_at(now)
        return None if due_at is None or ready_at is None else max(due_at, ready_at)

    def _submit_wakeup(self, now: float) -> float | None:
        if self._blocked or self._stopping or self._unasked or len(self._flights) >= self._options.concurrency:
            return None
        ready_at = self._run.next_at(now)
        if ready_at is None or self._ready:
            return ready_at
        return max(ready_at, self._waiting[0][0]) if self._waiting else None

    def _submitted(self, event: ev.Submitted, now: float) -> None:
        flight = self._flights[event.job]
        flight.row.move(Move.ACCEPT)
        self._run.succeed(now)
        self._blocks = 0
        flight.remote_id = event.remote_id
        flight.submitted_at = flight.seen_at = (event.sent_at + now) / 2
        flight.place, self._place = self._place, self._place + 1
        self._plan.add(flight.job, flight.place, flight.submitted_at, now)

    def _adopt(self, event: ev.JobAdopted) -> None:
        row = Row(event.ticket, RowState.SUBMITTED)
        flight = self._flights[event.job] = Flight(event.job, row)
        flight.remote_id = event.remote_id
        flight.submitted_at = flight.seen_at = event.submitted_at
        flight.place, self._place = self._place, self._place + 1
        flight.adopted = True
        self._unasked += 1
        self._plan.add_overdue(event.job, flight.place, event.submitted_at)

    def _job_seen(self, event: ev.JobSeen, now: float) -> None:
        flight = self._asked(event.job)
        self._status.succeed(now)
        flight.missing = False
        flight.seen_at = event.sent_at
        self._running += event.in_progress - flight.in_progress
        flight.in_progress = event.in_progress
        self._plan.seen(event.job, event.sent_at, now, in_progress=event.in_progress)

    def _job_ended(self, event: ev.JobEnded, now: float) -> None:
        flight = self._asked(event.job)
        if event.failure is None:
            flight.row.move(Move.SUCCEED)
        self._status.succeed(now)
        age_s = max((flight.seen_at + now) / 2 - flight.submitted_at, 0.0)
        self._plan.ended(event.job, delay_s=event.delay_s, execution_s=event.execution_s, age_s=age_s)
        self._land(flight, watched=False)
        if event.failure is None:
            self._decided.append(
                cmd.Finish(
                    flight.job,
                    flight.row.row,
                    event.status,
                    None,
                    flight.row.attempts,
                    flight.row.unconfirmed,
                    event.answer,
                )
            )
        else:
            self._retry_or_fail(flight, event.status, event.failure, now, event.answer)

    def _poll_failed(self, event: ev.PollFailed, now: float) -> None:
        flight = self._asked(event.job)
        error = event.error
        match error:
            case NotFoundError() if flight.missing:
                self._status.succeed(now)
                self._land(flight)
                failure = Failure(FailureKind.EXPIRED, f"the job is gone ({error.message})", error.message)
                self._retry_or_fail(flight, "EXPIRED", failure, now, None)
            case NotFoundError():
                self._status.succeed(now)
                flight.missing = True
                self._plan.postponed(event.job, now, MISSING_GAP_S)
            case ThrottledError():
                self._status.throttle(now, event.sent_at, error.retry_after_s)
                self._plan.postponed(event.job, now, 0.0)
            case DeniedError():
                self._status.succeed(now)
                self._plan.postponed(event.job, now, 0.0)
                self._halt(error)
            case RejectedError():
                self._status.succeed(now)
                self._plan.failed(event.job, now)
            case _:
                self._status.fail(now, event.sent_at)
                self._plan.failed(event.job, now)

    def _submit_failed(self, event: ev.SubmitFailed, now: float) -> None:
        flight = self._flights[event.job]
        error = event.error
        match error:
            case RejectedError():
                self._run.succeed(now)
                self._land(flight)
                failure = Failure(FailureKind.REJECTED, error.message, error.message)
                self._fail(flight, "REJECTED", failure, None)
            case AmbiguousError():
                self._run.fail(now, event.sent_at)
                self._land(flight)
                self._unconfirmed(flight, error, now)
                self._block_in_trouble(error, now)
            case ThrottledError():
                self._run.throttle(now, event.sent_at, error.retry_after_s)
                self._put_back(flight, now)
            case UnreachableError():
                self._run.fail(now, event.sent_at)
                self._put_back(flight, now)
                self._block_in_trouble(error, now)
            case _:
                self._run.succeed(now)
                self._put_back(flight, now)
                self._halt(error)

    def _line_unusable(self, event: ev.LineUnusable) -> None:
        flight = self._flights[event.job]
        self._run.abandon()
        self._land(flight)
        flight.row.attempts -= 1
        self._fail(flight, "INVALID", Failure(FailureKind.INVALID, event.message, event.message), None)

    def _unconfirmed(self, flight: Flight, error: CallError, now: float) -> None:
        row = flight.row
        row.unconfirmed += 1
        if self._options.unconfirmed == "hold":
            row.move(Move.HOLD)
            self._decided.append(cmd.Hold(flight.job, row.row, row.unconfirmed, error.message))
            return
        failure = Failure(FailureKind.UNCONFIRMED, f"no answer to its submission: {error.message}", error.message)
        if row.unconfirmed <= self._options.max_retries:
            self._requeue(flight, "UNCONFIRMED", failure, now, None)
        else:
            self._fail(flight, "UNCONFIRMED", failure, None)

    def _retry_or_fail(self, flight: Flight, status: str, failure: Failure, now: float, answer: object) -> None:
        if failure.kind.is_retryable and flight.row.retries < self._options.max_retries:
            flight.row.retries += 1
            self._requeue(flight, status, failure, now, answer)
        else:
            self._fail(flight, status, failure, answer)

    def _requeue(self, flight: Flight, status: str, failure: Failure, now: float, answer: object) -> None:
        row = flight.row
        row.move(Move.REQUEUE)
        wait_s = backoff_s(row.retries + row.unconfirmed, self._rng, base_s=_RETRY_BASE_S, cap_s=_RETRY_CAP_S)
        heapq.heappush(self._waiting, (now + wait_s, flight.job, row))
        self._decided.append(cmd.Requeue(flight.job, row.row, status, failure, row.retries, row.unconfirmed, answer))

    def _put_back(self, flight: Flight, now: float) -> None:
        """Undo a submission that surely made no job; the pacer decides when to try again."""
        self._land(flight)
        row = flight.row
        row.move(Move.REQUEUE)
        row.attempts -= 1
        heapq.heappush(self._waiting, (now, flight.job, row))
        self._decided.append(cmd.Requeue(flight.job, row.row, None, None, row.retries, row.unconfirmed))

    def _fail(self, flight: Flight, status: str, failure: Failure, answer: object) -> None:
        row = flight.row
        row.move(Move.FAIL)
        self._decided.append(cmd.Finish(flight.job, row.row, status, failure, row.attempts, row.unconfirmed, answer))

    def _halt(self, error: CallError) -> None:
        if not self._halted:
            self._halted = True
            self._decided.append(cmd.Halt(refusal(error)))

    def _block_in_trouble(self, error: CallError, now: float) -> None:
        """Submit nothing more until `/health` answers; later and later while no submission succeeds in between."""
        enough = 1 if self._blocks else TROUBLE_THRESHOLD
        if self._run.trouble >= enough and not self._blocked:
            self._blocked = True
            self._probe_error = error.message
            self._probe_at = now
            if self._blocks:
                self._probe_at += backoff_s(self._blocks, self._rng, base_s=_PROBE_BASE_S, cap_s=_BLOCK_CAP_S)
            self._blocks += 1

    def _health_seen(self, now: float) -> None:
        self._probing = False
        self._probe_failures = 0
        self._probe_error = ""
        if self._blocked:
            self._blocked = False
            self._run.restart(now)

    def _health_failed(self, error: CallError, now: float) -> None:
        self._probing = False
        match error:
            case NotFoundError() | DeniedError():
                self._halt(error)
            case RejectedError():
                self._health_seen(now)
            case _:
                self._probe_failures += 1
                self._probe_error = error.message
                wait_s = backoff_s(self._probe_failures, self._rng, base_s=_PROBE_BASE_S, cap_s=_PROBE_CAP_S)
                self._probe_at = now + max(wait_s, error.retry_after_s or 0.0)

    def _asked(self, job: int) -> Flight:
        flight = self._flights[job]
        if flight.adopted:
            flight.adopted = False
            self._unasked -= 1
        return flight

    def _land(self, flight: Flight, *, watched: bool = True) -> None:
        """The job is in flight no longer."""
        del self._flights[flight.job]
        self._running -= flight.in_progress
        if watched and flight.remote_id:
            self._plan.remove(flight.job)
