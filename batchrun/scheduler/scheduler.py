"""The scheduler: decides which row to submit, which job to poll or to cancel, and when to stop.

It keeps a few times as many rows in memory as the window has, however many the run has. The rules:

- At most `concurrency` jobs are in flight, each operation keeps to its own rate limit (`pacing`), and neither polls nor
  submissions take so many connections that they starve the other.
- Each job of an earlier session is polled once before anything new is submitted or cancelled.
- Nothing is submitted while the gate is closed: before `/health` has answered once, and while submissions meet an
  outage. So an hour without network causes no unconfirmed submissions beyond those already open.
- A job that exceeds its maximum age is polled once more and then cancelled, so no job can keep a run waiting forever.
- Whatever stops a run early (breaker, canary, budget, deadline, refusal, the user) stops submissions only. The jobs in
  flight are paid for, so they are collected, unless `/status` is refused too or the deadline has passed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from random import Random
from typing import Any

from batchrun.config import DEFAULT_TTL_S, TTL_GRACE_S, GuardOptions, SchedulerOptions
from batchrun.errors import DeniedError, RejectedError, StoppedError
from batchrun.scheduler import commands as cmd
from batchrun.scheduler import events as ev
from batchrun.scheduler.budget import WorkerMeter
from batchrun.scheduler.failures import Failure, FailureKind
from batchrun.scheduler.flight import CancelCause, Flight, Row
from batchrun.scheduler.health import EndpointHealth
from batchrun.scheduler.parts import Parts
from batchrun.scheduler.pool import Member
from batchrun.scheduler.states import RowState

_STALL_S = 5.0
"""A gap this long between two calls means that the machine slept: all jobs are due, and requests start slowly."""


class Scheduler:
    """Decides what to do next.

    Args:
        options: Window, connections, limits and retries.
        rng: Source of jitter.
        numbers: The numbers for the jobs of this session: increasing, and larger than any in the state file.
        guards: What stops the run early; the deadline counts from the first call of `commands`.
        life_s: The maximum age of a job, from its submission: its ttl plus some grace. `guards` may lower it.
        meter: Measures the time of the workers; None for one that starts at 0.
        jobs_ended: The number of jobs that ended in earlier sessions, and their execution time in seconds.
        rows_per_job: The most rows of one job.
        member: Its place in a pool; None if its endpoint does all of the rows.
    """

    def __init__(
        self,
        options: SchedulerOptions,
        rng: Random,
        *,
        numbers: Iterator[int] | None = None,
        guards: GuardOptions = GuardOptions(),  # noqa: B008 - frozen
        life_s: float = DEFAULT_TTL_S + TTL_GRACE_S,
        meter: WorkerMeter | None = None,
        jobs_ended: tuple[int, float] = (0, 0.0),
        rows_per_job: int = 1,
        member: Member | None = None,
    ) -> None:
        parts = Parts(
            options,
            rng,
            numbers=numbers,
            guards=guards,
            life_s=life_s,
            meter=meter,
            jobs_ended=jobs_ended,
            rows_per_job=rows_per_job,
            member=member,
            next_sequence=lambda: self._next_sequence,
        )
        self.member, self._flights = member, parts.flights
        self._poller, self._plan, self._canceller = parts.poller, parts.plan, parts.canceller
        self._submitter, self._backlog, self.gate = parts.submitter, parts.backlog, parts.gate
        self._outcomes, self._stopping, self.deadline = parts.outcomes, parts.stopping, parts.deadline
        self._feedback, self._budget, self.canary = parts.feedback, parts.budget, parts.outcomes.canary
        self.window, self.meter, self.faulty_workers = parts.window, parts.meter, parts.faulty_workers
        self._next_sequence, self._ended_at = 0, 0.0
        self._is_one_each = rows_per_job == 1
        """Whether every job in flight has one row."""
        self._recall_wanted, self._health_sequence, self._unpolled = False, 0, 0
        self.running = 0
        """The number of jobs that were IN_PROGRESS when last polled."""
        self._began_at: float | None = None
        self._last_now: float | None = None
        self._handlers: dict[type[ev.Event], Callable[[Any, float], None]] = {
            ev.RowsLoaded: lambda event, _: self._backlog.loaded(event),
            ev.JobAdopted: self._adopt,
            ev.Submitted: self._submitted,
            ev.SubmitFailed: self._submit_failed,
            ev.Requeued: lambda event, _: self._backlog.written(event.rows),
            ev.LineUnusable: self._line_unusable,
            ev.NotSubmitted: self._not_submitted,
            ev.JobSeen: self._job_seen,
            ev.JobEnded: self._job_ended,
            ev.PollFailed: self._poll_failed,
            ev.JobCancelled: self._job_cancelled,
            ev.CancelFailed: self._cancel_failed,
            ev.HealthSeen: self._health_seen,
            ev.HealthFailed: self._health_failed,
            ev.StopRequested: self._stop_requested,
            ev.CancelRequested: self._stop_requested,
            ev.Tuned: parts.tune,
        }

    def __repr__(self) -> str:
        return (
            f"<Scheduler {self._backlog!r} in_flight={len(self._flights)} running={self.running}"
            f" run={self._submitter.pacer!r} status={self._poller.pacer!r} open={self.gate.is_open}>"
        )

    @property
    def stop(self) -> StoppedError | None:
        """Why the run stops early; None if it does not, or if the user stops it."""
        if self._stopping.error is not None or self.member is None:
            return self._stopping.error
        is_over = self.member.is_lost if self._stopping.is_stopping else self.member.pool.is_over
        return self.member.reason if is_over else None

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do: every row has ended, or submitting has stopped and no job is in flight."""
        if self._stopping.is_halted:
            return True
        if self._outcomes.decided:
            return False
        if self.member is None or self._stopping.is_stopping:
            is_settled = not self._flights or (self.member is not None and self.member.is_lost)
            return is_settled and (self._stopping.is_stopping or self._backlog.is_empty)
        return self.member.pool.is_over

    @property
    def is_under_way(self) -> bool | None:
        """Whether the endpoint, or any one of a pool, has answered and the canary is back; None if the run stops."""
        if self._stopping.is_stopping or self._outcomes.stop is not None:
            return None
        has_answered = self.gate.is_open if self.member is None else self.member.pool.has_answered
        return has_answered and not self.canary.is_out

    @property
    def in_flight(self) -> int:
        """The number of jobs that are being submitted, or were and are not known to have ended."""
        return len(self._flights)

    @property
    def rows_in_flight(self) -> int:
        """The number of rows of the jobs in flight."""
        flights = self._flights
        return len(flights) if self._is_one_each else sum(len(flight.rows) for flight in flights.values())

    @property
    def rows_running(self) -> int:
        """The number of rows of the jobs that were IN_PROGRESS when last polled."""
        if self._is_one_each:
            return self.running
        return sum(len(flight.rows) for flight in self._flights.values() if flight.in_progress)

    @property
    def waiting(self) -> int:
        """The number of rows that wait to be submitted again."""
        return self._backlog.waiting

    def note(self, now: float) -> str:
        """What holds the run up at the moment, as a clause; empty if nothing does."""
        trouble = self._submitter.trouble if self._submitter.pacer.trouble else self._poller.trouble
        if self.gate.is_open and trouble:
            return f"slowed down: {trouble}"
        if self._stopping.is_stopping and self._flights:
            return "cancelling" if self._canceller.recalling else "collecting the rest"
        if self.window.faulty_limit.is_on:
            return self.faulty_workers.note()
        usual_s = (self._plan.likely_end(self._next_sequence, now) or now) - now
        return self.gate.note(busy=bool(self._flights), quiet_s=now - self._ended_at, usual_s=usual_s)

    def drain_s(self, now: float) -> float | None:
        """How long it may take until all jobs in flight have ended; None if nothing has been learnt yet."""
        last = next(reversed(self._flights.values()), None)
        return self._plan.drain_s(last, self._next_sequence, now)

    def remember_submissions(self, times: Iterable[float]) -> None:
        """Count submissions of an earlier session towards the rate limit: they may be less than 10 s old."""
        self._submitter.pacer.remember(times)

    def handle(self, event: ev.Event, now: float) -> None:
        """Process an event.

        Raises:
            IllegalMoveError: the event does not fit the row's state; nothing has changed.
        """
        self._handlers[type(event)](event, now)

    def commands(self, now: float) -> list[cmd.Command]:
        """What to do now. Each command is returned once, and counts as started from then on."""
        if self._began_at is None:
            self._began_at = self._ended_at = now
            self.deadline.begin(now)
        if self._last_now is not None and now - self._last_now > _STALL_S and self._flights:
            self._poller.pacer.restart(now)
            self._submitter.pacer.restart(now)
            self._plan.rush(now)
        self._last_now = now
        self.deadline.keep(now)
        self._canceller.find_overdue(now)
        if self._recall_wanted and not self._unpolled:
            self._recall_wanted = False
            self._canceller.recall_all()
        out = self.decided()
        if self._stopping.is_halted:
            return out
        if not self._stopping.is_stopping and (count := self._backlog.wanted()):
            out.append(cmd.LoadRows(count))
        if self._backlog.is_empty or self._stopping.is_stopping:
            self._plan.enter_tail(now)
        self._poller.commands(out, now)
        self._canceller.commands(out, now)
        self._submit(out, now)
        if self.window.follows and len(self._flights) >= self.window.size:
            self.gate.hasten(now)
        elif (after_s := self._plan.health_gap_s(now)) is not None:
            self.gate.hasten(now, after_s)
        if self.gate.due(now):
            self.gate.requested(now)
            self._health_sequence = self._next_sequence
            out.append(cmd.CheckHealth())
        return out

    def decided(self) -> list[cmd.Command]:
        """The commands that record what was decided about rows; they start nothing new."""
        outcomes = self._outcomes
        stop = outcomes.stop if self.member is None else self.member.reason_to_stop(outcomes.stop)
        if stop is not None and not self._backlog.is_empty:
            self._stopping.drain(stop)
        out, outcomes.decided = outcomes.decided, []
        return out

    def next_wakeup(self, now: float) -> float | None:
        """When to call `commands` again if no event comes, later than `now`; None if only an event can help."""
        times = (
            self._poller.next_at(now),
            self._canceller.next_at(now),
            None if self._stopping.is_stopping or self._unpolled else self._submitter.next_at(now),
            self.window.faulty_limit.opens_at,
            self.gate.next_at(),
            self.deadline.next_at(now),
        )
        later = [at for at in times if at is not None and at > now]
        return min(later, default=None) if not self._stopping.is_halted else None

    def _submit(self, out: list[cmd.Command], now: float) -> None:
        if self._stopping.is_stopping or self._unpolled:
            return
        self.window.update(now, len(self._flights), self._next_sequence + self._submitter.pacer.in_use)
        if (stop := self._submitter.commands(out, now)) is not None:
            self._stopping.drain(stop)
            out.extend(self.decided())

    def _submitted(self, event: ev.Submitted, now: float) -> None:
        flight = self._flights[event.job]
        self._stopping.refusals.answered("run", now)
        self._submitter.accepted(flight, event, now)
        flight.sequence, self._next_sequence = self._next_sequence, self._next_sequence + 1
        self._plan.add(flight.job, flight.sequence, flight.submitted_at, now)
        self._canceller.submitted(flight)

    def _adopt(self, event: ev.JobAdopted, _: float) -> None:
        self._stopping.refusals.has_answered = True  # in an earlier session
        rows = tuple(Row(ticket, RowState.SUBMITTED) for ticket in event.tickets)
        flight = self._flights[event.job] = Flight(event.job, rows, event.submitted_at)
        self._is_one_each = self._is_one_each and len(rows) == 1
        flight.remote_id = event.remote_id
        flight.sequence, self._next_sequence = self._next_sequence, self._next_sequence + 1
        flight.adopted, flight.cancelled_before = True, event.cancelling
        self._unpolled += 1
        self._plan.add_overdue(event.job, flight.sequence, event.submitted_at)
        self._canceller.submitted(flight)

    def _job_seen(self, event: ev.JobSeen, now: float) -> None:
        flight = self._polled(event.job)
        self._poller.answered(event.sent_at, now)
        flight.missing = 0
        flight.seen_at = event.sent_at
        self.running += event.in_progress - flight.in_progress
        flight.in_progress = event.in_progress
        self._plan.seen(event.job, event.sent_at, now, in_progress=event.in_progress)
        self._canceller.seen(flight, event.sent_at, now)

    def _job_ended(self, event: ev.JobEnded, now: float) -> None:
        flight = self._polled(event.job)
        if event.was_polled:
            self._poller.answered(event.sent_at, now)
            self._canceller.heard_at = now
        self._remove(flight, now, watched=False)
        is_blamed = self._feedback.ended(flight, event, now, self._next_sequence)
        self._budget.job_ended(event.execution_s)
        if event.execution_s and self._began_at is not None:
            self.meter.unwatched(flight.submitted_at + (event.delay_s or 0.0), event.execution_s, self._began_at)
        if event.status == "CANCELLED" and (flight.cause is not None or flight.cancelled_before):
            self._call_off(flight, now)
        else:
            self._outcomes.answered(flight, event, now, usual_s=self._feedback.usual_s if is_blamed else None)
            if self.member is not None:
                self.member.answered(event.rows, now, is_blamed=is_blamed)

    def _poll_failed(self, event: ev.PollFailed, now: float) -> None:
        flight = self._polled(event.job)
        match self._poller.failed(flight, event, now):
            case Failure() as failure:
                self._remove(flight, now)
                status = "EXPIRED" if failure.kind is FailureKind.EXPIRED else "FAILED"
                self._outcomes.lost(flight, status, failure, now)
            case "given up":
                self._call_off(flight, now)

    def _submit_failed(self, event: ev.SubmitFailed, now: float) -> None:
        flight = self._flights[event.job]
        self._remove(flight, now)
        self._stopping.is_refused("run", event.error, now)
        self._submitter.failed(flight, event, now)

    def _line_unusable(self, event: ev.LineUnusable, now: float) -> None:
        if not self._submitter.unusable(self._flights[event.job], event):
            self._not_submitted(ev.NotSubmitted(event.job), now)

    def _not_submitted(self, event: ev.NotSubmitted, now: float) -> None:
        flight = self._flights[event.job]
        self._remove(flight, now)
        self._submitter.abandoned(flight, now)

    def _job_cancelled(self, event: ev.JobCancelled, now: float) -> None:
        flight = self._flights[event.job]
        self._stopping.refusals.answered("cancel", now)
        if self._canceller.answered(flight, event.status, now):
            self._call_off(flight, now)

    def _cancel_failed(self, event: ev.CancelFailed, now: float) -> None:
        flight = self._flights[event.job]
        if self._canceller.failed(flight, event, now):
            self._call_off(flight, now)
        elif isinstance(event.error, DeniedError):
            self._stopping.is_refused("cancel", event.error, now)

    def _call_off(self, flight: Flight, now: float) -> None:
        """The job was cancelled, or is given up."""
        if flight.job in self._flights:
            self._remove(flight, now)
        if flight.cause is CancelCause.TIMEOUT:
            self._outcomes.lost(flight, "TIMED_OUT", self._canceller.failure(), now)
        else:
            self._outcomes.recall(flight, now)

    def _health_seen(self, event: ev.HealthSeen, now: float) -> None:
        self._stopping.refusals.answered("health", now)
        self.meter.sample(event.health, now)
        self._submitter.workers = max(event.health.workers, 1)
        self._feedback.saw_health(event.health, now, self._health_sequence, self._next_sequence)
        self._is_reachable(event.health, now)

    def _health_failed(self, event: ev.HealthFailed, now: float) -> None:
        if isinstance(event.error, RejectedError):
            self._is_reachable(None, now)
        else:
            self._stopping.is_refused("health", event.error, now)
            self.gate.failed(event.error, now)

    def _is_reachable(self, health: EndpointHealth | None, now: float) -> None:
        """`/health` answered (None: without usable data)."""
        if self.gate.answered(health, now):
            self._submitter.pacer.restart(now)
        if self.member is not None:
            self.member.saw_health(health, now)

    def _stop_requested(self, event: ev.StopRequested | ev.CancelRequested, _: float) -> None:
        self._stopping.leave()
        self._recall_wanted = self._recall_wanted or isinstance(event, ev.CancelRequested)

    def _polled(self, job: int) -> Flight:
        flight = self._flights[job]
        flight.polling = False
        if flight.adopted:
            flight.adopted = False
            self._unpolled -= 1
        return flight

    def _remove(self, flight: Flight, now: float, *, watched: bool = True) -> None:
        """Remove a job from those in flight."""
        del self._flights[flight.job]
        self._ended_at = now
        self.running -= flight.in_progress
        if watched and flight.remote_id:
            self._plan.remove(flight.job, now)
