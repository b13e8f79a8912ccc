"""The parts of a scheduler, created and connected."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from random import Random

from batchrun.config import WINDOW_S, GuardOptions, SchedulerOptions
from batchrun.scheduler.backlog import Backlog
from batchrun.scheduler.breaker import Breaker, Canary
from batchrun.scheduler.budget import Budget, WorkerMeter, WorkerTime
from batchrun.scheduler.canceller import Canceller
from batchrun.scheduler.connections import Connections
from batchrun.scheduler.deadline import Deadline
from batchrun.scheduler.events import Tuned
from batchrun.scheduler.faulty_workers import FaultyWorkers
from batchrun.scheduler.feedback import Feedback
from batchrun.scheduler.flight import Flight
from batchrun.scheduler.gate import SubmissionGate
from batchrun.scheduler.pacing import Pacer
from batchrun.scheduler.poller import Poller
from batchrun.scheduler.polling import PollPlan
from batchrun.scheduler.pool import Member
from batchrun.scheduler.prediction import Predictor
from batchrun.scheduler.refusal import Refusals
from batchrun.scheduler.row_outcomes import RowOutcomes
from batchrun.scheduler.shortage import Shortage
from batchrun.scheduler.stopping import Stopping
from batchrun.scheduler.submitter import Submitter
from batchrun.scheduler.window import MOST, Window


class Parts:
    """The parts of a scheduler; see `Scheduler` for the arguments."""

    def __init__(
        self,
        options: SchedulerOptions,
        rng: Random,
        *,
        numbers: Iterator[int] | None,
        guards: GuardOptions,
        life_s: float,
        meter: WorkerMeter | None,
        jobs_ended: tuple[int, float],
        rows_per_job: int,
        member: Member | None,
        next_sequence: Callable[[], int],
    ) -> None:
        self.flights: dict[int, Flight] = {}
        """The jobs in flight, oldest first."""
        self.predictor = Predictor(options.limits.status.per_window / WINDOW_S)
        self.run_limit = options.limits.run
        self.next_sequence = next_sequence
        self.plan = PollPlan(self.predictor, rng)
        self.connections = Connections(options.connections)
        self.window = Window(options.concurrency, self.predictor, self.run_limit)
        self.faulty_workers = FaultyWorkers()
        life_s = min(guards.job_timeout_s or life_s, life_s)
        self.canceller = Canceller(
            options, rng, flights=self.flights, plan=self.plan, connections=self.connections, life_s=life_s
        )
        self.gate = SubmissionGate(rng, metered=guards.price_per_hour is not None)
        self._add_rows(options, rng, guards, rows_per_job, member)
        self._add_poller(options, rng)
        self.meter = meter or WorkerMeter(WorkerTime())
        self._add_feedback(shares_jobs=rows_per_job > 1)
        self._add_budget(guards, jobs_ended, member)
        self._add_submitter(options, rng, numbers or count(1), rows_per_job, member)
        if member is not None:
            member.connect(self)
        self._add_deadline(guards.deadline_s)

    @property
    def pacer(self) -> Pacer:
        """Paces the submissions."""
        return self.submitter.pacer

    @property
    def refusals(self) -> Refusals:
        """The submissions that the endpoint has refused."""
        return self.stopping.refusals

    @property
    def is_stopping(self) -> bool:
        """Whether nothing more is submitted."""
        return self.stopping.is_stopping

    def _add_rows(
        self, options: SchedulerOptions, rng: Random, guards: GuardOptions, rows_per_job: int, member: Member | None
    ) -> None:
        self.backlog: Backlog
        if member is None:
            self.backlog = Backlog(options.concurrency or MOST, rows_per_job)
            canary, breaker = Canary(guards.canary, allow=guards.canary_allow), Breaker(guards.halt)
        else:
            self.backlog, canary, breaker = member.backlog, member.pool.canary, member.pool.breaker
        self.outcomes = RowOutcomes(options, self.backlog, rng, canary=canary, breaker=breaker)
        self.stopping = Stopping(self.outcomes, member)

    def _add_poller(self, options: SchedulerOptions, rng: Random) -> None:
        self.poller = Poller(
            options.limits.status,
            rng,
            flights=self.flights,
            plan=self.plan,
            connections=self.connections,
            canceller=self.canceller,
            stopping=self.stopping,
        )

    def _add_feedback(self, *, shares_jobs: bool) -> None:
        self.feedback = Feedback(
            self.plan,
            self.predictor,
            self.flights,
            window=self.window,
            faulty_workers=self.faulty_workers,
            shortage=Shortage(self.flights, self.backlog, self.window, self.meter, self.outcomes)
            if shares_jobs
            else None,
        )

    def _add_budget(self, guards: GuardOptions, jobs_ended: tuple[int, float], member: Member | None) -> None:
        ended, execution_s = jobs_ended
        self.budget = Budget(
            self.meter,
            price_per_hour=guards.price_per_hour,
            max_cost=guards.max_cost,
            ended=ended,
            execution_s=execution_s,
            shared=None if member is None else member.pool.budgets,
            flights=self.flights,
        )

    def tune(self, change: Tuned, _: float) -> None:
        """Change the window, the budget or the deadline, or pause."""
        if change.concurrency is not None:
            self.window.fix(None if change.concurrency == "auto" else change.concurrency)
            self.backlog.keep_ready(MOST if change.concurrency == "auto" else change.concurrency)
        if change.max_cost is not None:
            self.budget.limit(change.max_cost)
        if change.deadline_s is not None:
            self.deadline.move(change.deadline_s)
        if change.is_paused is not None:
            self.gate.is_paused = change.is_paused

    def _add_deadline(self, after_s: float | None) -> None:
        self.deadline = Deadline(
            after_s,
            likely_end=lambda now: self.plan.likely_end(self.next_sequence(), now),
            stopping=self.stopping,
            backlog=self.backlog,
        )

    def _add_submitter(
        self, options: SchedulerOptions, rng: Random, numbers: Iterator[int], rows_per_job: int, member: Member | None
    ) -> None:
        self.submitter = Submitter(
            options,
            rng,
            numbers,
            window=self.window,
            backlog=self.backlog,
            gate=self.gate,
            outcomes=self.outcomes,
            budget=self.budget,
            flights=self.flights,
            connections=self.connections,
            rows_per_job=rows_per_job,
            member=member,
        )
