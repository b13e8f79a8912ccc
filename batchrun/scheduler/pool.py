"""What the schedulers of a pool share: its rows, and whatever concerns the run as a whole.

A pool is several endpoints that do the same rows, each row on whichever will have it done first. Each has a scheduler
with its own limits, window, predictions and breaker. They take rows from one backlog, so none hoards rows that another
could submit. A row whose submission is unconfirmed stays with its endpoint, because no other can know of that job.

An endpoint that refuses requests, has no workers, or fails one job after the other leaves the pool: it gets no more
rows, and its jobs are still polled. It comes back when `/health` says so. The run stops when none is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from batchrun.config import WINDOW_S, GuardOptions, OperationLimit
from batchrun.errors import StoppedError
from batchrun.scheduler import commands as cmd
from batchrun.scheduler.backlog import Backlog
from batchrun.scheduler.breaker import FIRST_ROWS, Breaker, Canary
from batchrun.scheduler.budget import Budget
from batchrun.scheduler.events import RowAnswer, RowsLoaded
from batchrun.scheduler.failures import FailureKind
from batchrun.scheduler.flight import Flight
from batchrun.scheduler.gate import SubmissionGate
from batchrun.scheduler.health import EndpointHealth, obstacle
from batchrun.scheduler.pacing import Pacer
from batchrun.scheduler.pooled_backlog import PooledBacklog
from batchrun.scheduler.prediction import Predictor
from batchrun.scheduler.refusal import Refusals
from batchrun.scheduler.row_outcomes import RowOutcomes
from batchrun.scheduler.window import Window

_AWAY_S = 30.0
_AWAY_MOST_S = 600.0
"""How long an endpoint is away at least: twice as long each time, until it has done a row."""
_QUIET_S, _QUIET_TIMES = 5.0, 2.0
"""An endpoint of which no job has ended for this long, plus this many times what one takes, may have stopped."""
_IDLE_S = 60.0
"""An endpoint without workers leaves when no job of it has ended for this long."""
_HINT = "fix the endpoint, then resume: the other endpoints of the pool had no part in this"
_TRIALS = 2
"""An endpoint that has not done a row yet leaves after this many failures, if there is another."""
_PER_WORKER, _PER_END, _FIRST = 2, 2, 4
_LONGEST_S, _LONGEST_TIMES = 20.0, 0.25
"""The longest wait in the queue of an endpoint: this, plus this many times what a job takes, but always one job."""
_NOT_OF_ENDPOINT = (FailureKind.INVALID_OUTPUT, FailureKind.CANCELLED)
_DIFFER = "give endpoints that serve the same model; --mixed accepts these"


class Pool:
    """The schedulers of a pool.

    Args:
        guards: What stops the run.
        ready: The number of rows that may be in flight at all endpoints; about as many are kept ready, up to 1,000.
        mixed: Whether endpoints may answer with different models.
        rows_per_job: The most rows of one job.
    """

    def __init__(self, guards: GuardOptions, *, ready: int, mixed: bool = False, rows_per_job: int = 1) -> None:
        self.rows = Backlog(ready, rows_per_job)
        """The rows that any endpoint may submit."""
        self.canary = Canary(guards.canary, allow=guards.canary_allow)
        self.breaker = Breaker(replace(guards.halt, automatic=False))
        self.leaves_on_failures = guards.halt.automatic
        """Whether an endpoint that only fails leaves the pool."""
        self.mixed = mixed
        self.rows_per_job = rows_per_job
        self.members: list[Member] = []
        self.budgets: list[Budget] = []
        self.stop: StoppedError | None = None
        """Why the run stops at every endpoint; None if it does not."""
        self.first: dict[str, tuple[str, str]] = {}
        """What was asked for -> the endpoint that answered it first, and with what."""

    def join(self, name: str, number: int) -> Member:
        """The place of another scheduler, for the endpoint of this ID and number."""
        member = Member(self, name, number)
        self.members.append(member)
        return member

    @property
    def is_deserted(self) -> bool:
        """Whether every endpoint has left."""
        return all(member.is_away for member in self.members)

    @property
    def has_answered(self) -> bool:
        """Whether any endpoint answers."""
        return any(member.answers for member in self.members)

    def has_others(self, member: Member) -> bool:
        """Whether any other endpoint may submit rows."""
        return any(other.is_active for other in self.members if other is not member)

    @property
    def is_over(self) -> bool:
        """Whether no endpoint can do anything more."""
        can_submit = any(member.is_active for member in self.members)
        return not (can_submit and not self.rows.is_empty) and all(member.is_settled for member in self.members)

    def loaded(self, event: RowsLoaded) -> None:
        """Rows have arrived. Those that belong to one endpoint are kept for it alone."""
        homes = {member.number for member in self.members}
        bound = [ticket for ticket in event.tickets if ticket.home in homes]
        for member in self.members:
            own = tuple([ticket for ticket in bound if ticket.home == member.number])
            member.backlog.keep(own, exhausted=event.exhausted)
        free = tuple([ticket for ticket in event.tickets if ticket.home not in homes]) if bound else event.tickets
        self.rows.loaded(RowsLoaded(free, event.exhausted))


class Parts(Protocol):
    """The parts of a scheduler that its place in a pool uses."""

    flights: dict[int, Flight]
    predictor: Predictor
    window: Window
    gate: SubmissionGate
    outcomes: RowOutcomes
    run_limit: OperationLimit
    next_sequence: Callable[[], int]

    @property
    def pacer(self) -> Pacer:
        """Paces the submissions."""

    @property
    def refusals(self) -> Refusals:
        """The submissions that the endpoint has refused."""

    @property
    def is_stopping(self) -> bool:
        """Whether the scheduler submits nothing more."""


class Member:
    """The place of one scheduler in its pool; see `Pool.join`."""

    def __init__(self, pool: Pool, name: str, number: int) -> None:
        self.pool = pool
        self.name = name
        self.number = number
        self.backlog = PooledBacklog(pool.rows, pool.loaded)
        self.reason: StoppedError | None = None
        """Why it has left the pool; None if it has not."""
        self.is_proven = pool.mixed
        """Whether it has done a row since it joined or came back: until then it gets one job at a time."""
        self._has_ended = False
        self._back_at = 0.0
        self._until_workers = False
        self._has_failed = False
        """Whether it is away because jobs of it failed."""
        self._empty_since: float | None = None
        self._away_s = _AWAY_S
        self._failures = 0
        self._ended, self._ended_at = 0, 0.0

    def connect(self, parts: Parts) -> None:
        """Connect the parts of its scheduler."""
        self._parts = parts

    @property
    def is_away(self) -> bool:
        """Whether it has left the pool."""
        return self.reason is not None

    @property
    def is_active(self) -> bool:
        """Whether it may submit rows."""
        return not self.is_away and not self._parts.is_stopping and not self._has_ended

    @property
    def answers(self) -> bool:
        """Whether the endpoint answers."""
        return self._parts.gate.is_open

    def end(self) -> None:
        """Its driver has ended, maybe with an error: nothing more is to be expected of it."""
        self._has_ended = True
        self.pool.rows.loading = False

    @property
    def is_lost(self) -> bool:
        """Whether it has left the pool, and its jobs cannot be polled."""
        return self.is_away and self._parts.refusals.is_refused("status")

    @property
    def is_settled(self) -> bool:
        """Whether no row of it can come back to the pool, as far as can be known."""
        if self._has_ended:
            return True
        if self._parts.flights and not self.is_lost:
            return False
        return not self.backlog.has_unwritten and not ((self.is_active or self._is_expected) and self.backlog.has_own)

    @property
    def _is_expected(self) -> bool:
        """Whether it has left only once since a row of it was done, because jobs failed: it is worth another try."""
        is_first = self._away_s <= 2 * _AWAY_S
        return self._has_failed and is_first and not self._parts.is_stopping

    def room(self, in_flight: int) -> int:
        """How many more jobs its place in the pool allows beside those in flight.

        It gets no jobs that would wait for long: another endpoint may have done them by then. While no job waits in its
        queue the pace is unknown. It then gets a few for each worker, and two for each job that has ended.
        """
        if self.is_away:
            return 0
        if not self.is_proven:
            return 1 - in_flight
        predictor = self._parts.predictor
        if predictor.has_queue:
            waiting = (_LONGEST_S + _LONGEST_TIMES * predictor.execution_s) / predictor.pace_s
            return int(predictor.execution_s / predictor.pace_s + max(waiting, 1.0)) + 1 - in_flight
        health = self._parts.gate.health
        first = _PER_WORKER * health.serving if health is not None else 0
        return max(first, _FIRST) + _PER_END * self._ended - in_flight

    def answered(self, rows: tuple[RowAnswer, ...], now: float, *, is_blamed: bool) -> None:
        """A job has ended: if the endpoint only fails, it leaves.

        Args:
            rows: What the answer means for the rows of the job.
            now: The current time.
            is_blamed: Whether one worker is to blame for the failure.
        """
        self._ended_at = now
        self._ended += 1
        good = next((row for row in rows if row.failure is None), None)
        if good is not None:
            self._failures = 0
            if not self.is_proven:
                self._prove(good.kind)
            return
        failures = [row.failure for row in rows if row.failure and row.failure.kind not in _NOT_OF_ENDPOINT]
        if is_blamed or not failures or not self.pool.leaves_on_failures:
            return
        self._failures += 1
        # Another try of the row may succeed elsewhere, and must not be used up here. One that has left must not fail
        # 20 rows for good each time that it comes back.
        has_left = self._away_s > _AWAY_S
        is_trial = not self.is_proven and (has_left or failures[0].is_retryable) and self.pool.has_others(self)
        if self._failures < (_TRIALS if is_trial else FIRST_ROWS):
            return
        told = f"the last {self._failures} jobs all failed"
        self.leave(StoppedError(f"{told}: {failures[0].message}", _HINT), now)
        self._has_failed = True

    def _prove(self, kind: tuple[str, str] | None) -> None:
        """Its first row is done: stop the run if another endpoint answers with something else."""
        self.is_proven, self._away_s = True, _AWAY_S
        if kind is None:
            return
        asked, answer = kind
        name, first = self.pool.first.setdefault(asked, (self.name, answer))
        if first != answer and self.pool.stop is None:
            told = f"endpoint {self.name} answers with {answer}, and {name} with {first}"
            self.pool.stop = StoppedError(told, _DIFFER)

    def leave(self, reason: StoppedError, now: float, *, until_workers: bool = False) -> bool:
        """Leave the pool, unless it is away; returns whether any other endpoint is left.

        Args:
            reason: Why.
            now: The current time.
            until_workers: Whether it comes back only when it has workers.
        """
        if not self.is_away:
            self.reason = reason
            self.is_proven, self._ended = False, 0
            self._until_workers = until_workers
            self._has_failed = False
            self._failures = _TRIALS - 1
            self._back_at = now + self._away_s
            self._away_s = min(2 * self._away_s, _AWAY_MOST_S)
            if not self.pool.is_deserted:
                self._parts.outcomes.decided.append(cmd.Leave(reason))
        return not self.pool.is_deserted

    def saw_health(self, health: EndpointHealth | None, now: float) -> None:
        """`/health` answered (None: without usable data): come back, or leave if there are no workers."""
        if self.is_away:
            if now >= self._back_at and (not self._until_workers or health is None or health.workers):
                self.reason, self._has_failed = None, False
                self._parts.refusals.forget()
                self._parts.outcomes.decided.append(cmd.Return())
        elif health is None or health.workers or not self._parts.flights:
            self._empty_since = None
        elif self._empty_since is None:
            self._empty_since = now
        elif now - self._empty_since >= _IDLE_S and self.pool.has_others(self):
            self._empty_since = None
            self.leave(StoppedError(obstacle(health), _HINT), now, until_workers=True)

    def reason_to_stop(self, found: StoppedError | None) -> StoppedError | None:
        """Why its scheduler stops for good; None if it does not.

        Args:
            found: Why it has just found that the run must stop, at all endpoints; None if it has not.
        """
        pool = self.pool
        pool.stop = pool.stop or found
        return pool.stop or (self.reason if pool.is_deserted else None)

    def yields(self, now: float) -> bool:
        """Whether to leave the last rows to another endpoint: it would end all of them before this one ends its next.

        Otherwise a slow endpoint would take a row at last, and the whole run would wait for it.
        """
        rows = self.pool.rows
        if not rows.is_exhausted or self.backlog.has_own or (mine := self._end(1, now)) is None:
            return False
        jobs = math.ceil(len(rows) / self.pool.rows_per_job)
        ends = (other._end(jobs, now) for other in self.pool.members if other is not self and other._is_at_work(now))  # noqa: SLF001
        return any(end is not None and end < mine for end in ends)

    def _is_at_work(self, now: float) -> bool:
        """Whether its predictions count: it takes rows, and jobs of it end."""
        quiet_s = now - self._ended_at
        is_quiet = quiet_s > _QUIET_S + _QUIET_TIMES * self._parts.predictor.execution_s
        return self.is_active and self.is_proven and self._parts.gate.is_open and not is_quiet

    def _end(self, jobs: int, now: float) -> float | None:
        """When the last of this many more jobs would end here; None if nothing has been learnt yet."""
        parts, predictor, window = self._parts, self._parts.predictor, self._parts.window
        if not predictor.execution_s:
            return None
        start = max(predictor.expected_start(parts.next_sequence() + parts.pacer.in_use + jobs - 1, now), now)
        beyond = jobs - (window.size - len(parts.flights))
        if beyond > 0:
            start = max(start, now + beyond * predictor.execution_s / max(window.size, 1))
        if parts.run_limit.per_window and (late := jobs - parts.pacer.ready(now)) > 0:
            start = max(start, now + late * WINDOW_S / parts.run_limit.per_window)
        return start + predictor.execution_s
