"""A world in virtual time for the scheduler: an endpoint with workers, a network with latency and faults, a driver.

Everything that a run can meet is drawn from one seeded generator, so that a failing example can be run again. The
world holds the scheduler to its law while it runs: the window, the connections and the limits are asserted at every
step, and a scheduler that neither acts nor waits for anything is a deadlock.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, deque
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from batchrun.config import RETENTION_S, GuardOptions, OperationLimit, SchedulerOptions
from batchrun.endpoint.protocol import Health
from batchrun.errors import AmbiguousError, CallError, NotFoundError, RejectedError, ThrottledError, UnreachableError
from batchrun.scheduler import commands as cmd
from batchrun.scheduler import events as ev
from batchrun.scheduler.connections import MOST as LANES
from batchrun.scheduler.failures import Failure, FailureKind
from batchrun.scheduler.scheduler import Scheduler
from batchrun.scheduler.window import MOST as WINDOW

if TYPE_CHECKING:
    from collections.abc import Callable
FREE = ("poisoned", "unknown")
"""Outcomes of jobs that cost nothing."""
TICK_S = 4.0
"""The driver asks four times a second at least. So seldom is enough for it not to look like a sleep of the machine."""


@dataclass
class Faults:
    """Shares of requests or jobs that go wrong, 0..1."""

    submit_lost_before: float = 0.0
    submit_lost_after: float = 0.0
    submit_rejected: float = 0.0
    submit_unreachable: float = 0.0
    poll_broken: float = 0.0
    poll_missing_once: float = 0.0
    job_lost: float = 0.0
    job_bad: float = 0.0
    job_expired: float = 0.0
    """Jobs whose result is gone when it is asked for."""
    garbled: float = 0.0
    """Jobs of several rows whose answer cannot be divided among them."""
    row_bad: float = 0.0
    """Rows that fail within a job of several."""
    row_poisoned: float = 0.0
    """Rows that make whatever job they are in fail, before it costs anything."""
    poisoned: frozenset[int] = frozenset()
    """The same rows by their numbers."""
    garbling: frozenset[int] = frozenset()
    """Rows that make the answer of any job that they share one that cannot be divided."""
    has_no_route: bool = False
    """Whether the worker does not know jobs of several rows."""
    throttled: float = 0.0
    job_stuck: float = 0.0
    """Jobs that are at work for ever."""
    cancel_broken: float = 0.0
    outage: tuple[float, float] = (math.inf, math.inf)
    """From when to when nothing can be reached."""
    outage_answers: bool = False
    """Whether something answers meanwhile, with a 502."""
    bad_deployment: tuple[float, float] = (math.inf, math.inf)
    """From when to when every job that starts fails."""
    suspended: tuple[tuple[float, float], ...] = ()
    """From when to when the client's machine sleeps."""


@dataclass
class Setting:
    """A world to run in."""

    rows: int = 50
    workers: int = 4
    service_s: Callable[[Random], float] = lambda _: 1.0
    latency_s: Callable[[Random], float] = lambda _: 0.02
    commit_s: float = 0.005
    options: SchedulerOptions = field(default_factory=SchedulerOptions)
    enforce_limits: bool = True
    workers_at: list[tuple[float, int]] = field(default_factory=list)
    """Changes of the number of workers: (when, how many)."""
    faults: Faults = field(default_factory=Faults)
    seed: int = 0
    stop_at: float = math.inf
    """When the user asks to stop."""
    cancel_at: float = math.inf
    """When the user asks to cancel."""
    guards: GuardOptions = field(default_factory=GuardOptions)
    life_s: float = math.inf
    jobs_per_worker: int = 1
    rows_per_job: int = 1
    """The most rows of one job."""
    dead: int = 0
    """How many of the workers fail each job, at once."""
    dead_s: float = 0.005
    """What they need for that."""
    prefers_healthy: float = 1.0
    """How likely a job goes to a healthy worker when one of either kind is free: nobody knows how they are chosen."""


@dataclass
class Job:
    """A job at the endpoint."""

    remote_id: str
    rows: tuple[int, ...]
    arrived_at: float
    service_s: float
    started_at: float | None = None
    ended_at: float | None = None
    outcome: str = "ok"
    worker_id: str = "well"
    bad_rows: frozenset[int] = frozenset()
    """Rows that have no result, although the job has."""

    @property
    def row(self) -> int:
        """Its first row."""
        return self.rows[0]


class World:
    """An endpoint, a network and a driver around one scheduler."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.rng = Random(setting.seed)
        self.now = 0.0
        self.jobs: dict[str, Job] = {}
        self.queue: deque[Job] = deque()
        self.busy = 0
        """Jobs at work with healthy workers."""
        self.dying = 0
        """The same with dead ones."""
        self.workers = setting.workers
        self.arrivals: dict[str, deque[float]] = {name: deque() for name in ("run", "status", "cancel")}
        self.requests: Counter[str] = Counter()
        self.throttled = 0
        self.under_way: Counter[str] = Counter()
        self.lanes = setting.options.connections or LANES
        """Connections that are free."""
        self.jammed: deque[Callable[[], None]] = deque()
        """Requests that wait for a connection."""
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.order = 0
        share, draw = setting.faults.row_poisoned, Random(setting.seed)
        self.poisoned = setting.faults.poisoned.union(row for row in range(setting.rows) if draw.random() < share)
        self.told: list[str] = []
        # what the store would know
        self.pending: deque[ev.Ticket] = deque(self._new(row) for row in range(setting.rows))
        self.ended: dict[int, cmd.Finish] = {}
        self.held: set[int] = set()
        self.submissions: Counter[int] = Counter()
        self.accepted: Counter[int] = Counter()
        self.requeued: Counter[int] = Counter()
        self.unconfirmed: Counter[int] = Counter()
        self.recalled: Counter[int] = Counter()
        """Submissions that were cancelled on the user's wish."""
        self.excused: Counter[int] = Counter()
        """Failures that count as none of the row's retries: of a faulty worker, or of a job that it shared."""
        self.requeued_pending: dict[int, ev.Ticket] = {}
        self.open_jobs: dict[int, tuple[tuple[int, ...], str]] = {}
        self.cancelling: set[int] = set()
        """Jobs whose cancel was written down."""
        self.attempts: dict[int, int] = {}
        self.lateness_s: list[float] = []
        self.halted: cmd.Halt | None = None
        self.drained: cmd.Drain | None = None
        self.worker_s = 0.0
        """Time of running workers: what would be paid for."""
        self.metered_at = 0.0
        self.crashed = False
        self.crashes = 0
        self.steps = 0
        self.heard = 0
        """How many events the scheduler was told."""
        self.most_in_play = 0
        self.scheduler = self._scheduler(1)
        for at, count in setting.workers_at:
            self.at(at, lambda count=count: self._set_workers(count))
        if setting.stop_at < math.inf:
            self.at(setting.stop_at, lambda: self.tell(ev.StopRequested()))
        if setting.cancel_at < math.inf:
            self.at(setting.cancel_at, lambda: self.tell(ev.CancelRequested()))

    def _scheduler(self, next_job: int) -> Scheduler:
        setting = self.setting
        return Scheduler(
            setting.options,
            Random(setting.seed + next_job),
            numbers=itertools.count(next_job),
            guards=setting.guards,
            life_s=setting.life_s,
            rows_per_job=setting.rows_per_job,
        )

    def at(self, when: float, action: Callable[[], None]) -> None:
        self.order += 1
        heapq.heappush(self.agenda, (when, self.order, action))

    def tell(self, event: ev.Event) -> None:
        self.heard += 1
        self.scheduler.handle(event, self.now)

    def run(self, *, until: float = 1e7, crash_after: int | None = None) -> World:
        """Run to the end, or up to a crash after so many commands."""
        while True:
            for command in self.scheduler.commands(self.now):
                self.steps += 1
                if crash_after is not None and self.steps > crash_after:
                    self.crashed = True
                    return self
                self._do(command)
            self._check()
            if self.scheduler.is_done:
                return self
            self._sleep(until)

    def _sleep(self, until: float) -> None:
        """Let time pass until the scheduler is told something or wants to be asked, as the driver does."""
        wakeup = self.scheduler.next_wakeup(self.now)
        assert wakeup is None or wakeup > self.now, "a wakeup that is due has nothing to say"
        assert wakeup is not None or self.agenda, f"deadlock: {self.scheduler!r}"
        heard, asked_at = self.heard, min(math.inf if wakeup is None else wakeup, self.now + TICK_S)
        while self.heard == heard and self.now < asked_at:
            self.now = min(asked_at, self.agenda[0][0]) if self.agenda else asked_at
            assert self.now < until, f"too long: {self.scheduler!r}"
            self._happen()

    def _happen(self) -> None:
        """Let everything happen that is due; what reaches a machine that sleeps waits until it wakes."""
        wakes_at = next((end for start, end in self.setting.faults.suspended if start <= self.now < end), None)
        while self.agenda and self.agenda[0][0] <= (self.now if wakes_at is None else wakes_at):
            when, _, action = heapq.heappop(self.agenda)
            if wakes_at is None or getattr(action, "endpoint", False):
                self.now = max(self.now, when)
                action()
            else:
                self.at(wakes_at, action)
                if when >= wakes_at:
                    break
        if wakes_at is not None:
            self.now = wakes_at

    def resume(self) -> World:
        """A new session on what the store and the endpoint know after a crash."""
        self.agenda = [entry for entry in self.agenda if getattr(entry[2], "endpoint", False)]
        heapq.heapify(self.agenda)
        self.under_way.clear()
        self.jammed.clear()
        self.lanes = self.setting.options.connections or LANES
        self.crashed = False
        self.crashes += 1
        self.steps = 0
        self.scheduler = self._scheduler(max(self.open_jobs, default=0) + 100_000)
        open_rows = set()
        for job, (rows, remote_id) in list(self.open_jobs.items()):
            open_rows.update(rows)
            if remote_id:
                at = self.jobs[remote_id].arrived_at
                tickets = tuple(self._ticket(row) for row in rows)
                self.tell(ev.JobAdopted(tickets, job, remote_id, at, cancelling=job in self.cancelling))
            else:
                del self.open_jobs[job]
                for row in rows:
                    self.unconfirmed[row] += 1
                    self.requeued_pending[row] = self._ticket(row)
        self.pending = deque(
            self.requeued_pending.get(
                row, self._new(row, self.attempts.get(row, 0), self.requeued[row], self.unconfirmed[row])
            )
            for row in range(self.setting.rows)
            if row not in self.ended and row not in self.held and (row not in open_rows or row in self.requeued_pending)
        )
        self.requeued_pending.clear()
        return self

    def _ticket(self, row: int) -> ev.Ticket:
        return self._new(row, self.attempts[row], self.requeued[row], self.unconfirmed[row])

    def _new(self, row: int, *counts: int) -> ev.Ticket:
        """A row that may share its job with any other."""
        return ev.Ticket(row, *counts)._replace(kind=1, most=self.setting.rows_per_job)

    # the driver

    def _land(self, job: int | None, row: int) -> None:
        """A row of a job has ended, or is pending again."""
        if job is not None:
            rows, remote_id = self.open_jobs.pop(job)
            if left := tuple(other for other in rows if other != row):
                self.open_jobs[job] = left, remote_id

    def _do(self, command: cmd.Command) -> None:
        match command:
            case cmd.LoadRows(count):
                tickets = tuple(self.pending.popleft() for _ in range(min(count, len(self.pending))))
                event = ev.RowsLoaded(tickets, exhausted=not self.pending)
                self.at(self.now + self.setting.commit_s, lambda: self.tell(event))
            case cmd.Submit(job, rows, attempts):
                assert 1 <= len(rows) <= self.setting.rows_per_job
                for row, attempt in zip(rows, attempts, strict=True):
                    assert row not in self.ended
                    self.submissions[row] += 1
                    self.attempts[row] = attempt
                self.open_jobs[job] = (rows, "")
                self.under_way["run"] += 1
                self.at(self.now + self.setting.commit_s, lambda: self._on_wire(lambda: self._send_submit(job, rows)))
            case cmd.Poll(job, remote_id, rows):
                assert rows == self.open_jobs[job][0]
                self.under_way["status"] += 1
                self._on_wire(lambda: self._send_poll(job, remote_id))
            case cmd.Cancel(job, remote_id):
                self.under_way["cancel"] += 1
                self.cancelling.add(job)
                self.at(
                    self.now + self.setting.commit_s, lambda: self._on_wire(lambda: self._send_cancel(job, remote_id))
                )
            case cmd.CheckHealth():
                self._send_health()
            case cmd.Requeue(job, row, status, failure, retries, unconfirmed):
                self._land(job, row)
                counted = retries > self.requeued[row] or unconfirmed > self.unconfirmed[row]
                self.excused[row] += failure is not None and not counted
                self.requeued[row] = retries
                self.unconfirmed[row] = unconfirmed
                self.recalled[row] += status == "CANCELLED"
                if status is None:
                    self.submissions[row] -= 1
                    self.attempts[row] -= 1
            case cmd.Finish(job, row):
                assert row not in self.ended, f"row {row} ended twice"
                self._land(job, row)
                self.ended[row] = command
                self.unconfirmed[row] = command.unconfirmed
            case cmd.Hold(job, row):
                self._land(job, row)
                self.held.add(row)
            case cmd.Halt() | cmd.Drain() | cmd.Tell():
                self._note(command)

    def _note(self, command: cmd.Halt | cmd.Drain | cmd.Tell) -> None:
        match command:
            case cmd.Halt():
                self.halted = command
            case cmd.Drain():
                self.drained = command
            case cmd.Tell(message):
                self.told.append(message)

    def _check(self) -> None:
        options, scheduler = self.setting.options, self.scheduler
        in_play = len(scheduler._backlog) + len(scheduler._flights)
        self.most_in_play = max(self.most_in_play, in_play)
        window, lanes = options.concurrency or WINDOW, options.connections or LANES
        assert self.scheduler.in_flight <= window or self.scheduler.in_flight == len(self.open_jobs)
        assert self.under_way["run"] <= 2 * lanes
        assert self.under_way["status"] <= lanes
        assert self.under_way["cancel"] <= lanes
        limits = options.limits
        for operation, limit in (("run", limits.run), ("status", limits.status), ("cancel", limits.cancel)):
            assert not limit.concurrent or self.under_way[operation] <= limit.concurrent

    # the network

    def _on_wire(self, send: Callable[[], None]) -> None:
        """Send a request once there is a connection for it."""
        if self.lanes:
            self.lanes -= 1
            send()
        else:
            self.jammed.append(send)

    def _off_wire(self) -> None:
        self.lanes += 1
        if self.jammed:
            self.lanes -= 1
            self.at(self.now, self.jammed.popleft())

    def _arrive(self, operation: str) -> bool:
        """Whether the limits let a request in."""
        self.requests[operation] += 1
        limit: OperationLimit = getattr(self.setting.options.limits, operation)
        times = self.arrivals[operation]
        while times and times[0] <= self.now - 10.0:
            times.popleft()
        if self.setting.enforce_limits and limit.per_window and len(times) >= limit.per_window:
            self.throttled += 1
            return False
        times.append(self.now)
        return self.rng.random() >= self.setting.faults.throttled

    def _down(self) -> bool:
        start, end = self.setting.faults.outage
        return start <= self.now < end

    def _no_answer(self) -> CallError:
        return AmbiguousError("502", http_status=502) if self.setting.faults.outage_answers else UnreachableError("no")

    def _answer(self, operation: str, event: ev.Event) -> None:
        """The answer to a request is heard."""
        self.under_way[operation] -= 1
        self._off_wire()
        self.tell(event)

    def _send_submit(self, job: int, rows: tuple[int, ...]) -> None:
        faults, sent_at = self.setting.faults, self.now
        there, back = self.setting.latency_s(self.rng), self.setting.latency_s(self.rng)

        def answer(event: ev.Event) -> None:
            if isinstance(event, ev.Submitted):
                self.open_jobs[job] = (rows, event.remote_id)
            self._answer("run", event)

        def fail(error: Exception, after: float) -> None:
            self.at(self.now + after, lambda: answer(ev.SubmitFailed(job, error, sent_at)))  # type: ignore[arg-type]

        if self._down():
            fail(self._no_answer(), there)
            return
        if self.rng.random() < faults.submit_unreachable:
            fail(UnreachableError("connection refused"), there)
            return
        if self.rng.random() < faults.submit_lost_before:
            fail(AmbiguousError("reset"), there + back)
            return
        lost_after = self.rng.random() < faults.submit_lost_after

        def arrive() -> None:
            if not self._arrive("run"):
                fail(ThrottledError("429", http_status=429), back)
            elif self.rng.random() < faults.submit_rejected:
                fail(RejectedError("400", http_status=400), back)
            else:
                remote_id = self._accept(rows)
                if lost_after:
                    fail(AmbiguousError("reset"), back)
                else:
                    self.at(self.now + back, lambda: answer(ev.Submitted(job, remote_id, sent_at)))

        self.at(self.now + there, arrive)

    def _send_poll(self, job: int, remote_id: str) -> None:
        faults, sent_at = self.setting.faults, self.now
        there, back = self.setting.latency_s(self.rng), self.setting.latency_s(self.rng)

        def arrive() -> None:
            error: Exception | None = None
            if self._down():
                error = self._no_answer()
            elif not self._arrive("status"):
                error = ThrottledError("429", http_status=429, retry_after_s=1.0)
            elif self.rng.random() < faults.poll_broken:
                error = AmbiguousError("502", http_status=502)
            elif self.rng.random() < faults.poll_missing_once:
                error = NotFoundError("404", http_status=404)
            if error is not None:
                event: ev.Event = ev.PollFailed(job, error, sent_at)  # type: ignore[arg-type]
            else:
                event = self._status(job, remote_id, sent_at)
            self.at(self.now + back, lambda: self._answer("status", event))

        self.at(self.now + there, arrive)

    def _send_cancel(self, job: int, remote_id: str) -> None:
        sent_at = self.now
        there, back = self.setting.latency_s(self.rng), self.setting.latency_s(self.rng)

        def arrive() -> None:
            error: Exception | None = None
            if self._down():
                error = self._no_answer()
            elif not self._arrive("cancel"):
                error = ThrottledError("429", http_status=429)
            elif self.rng.random() < self.setting.faults.cancel_broken:
                error = AmbiguousError("502", http_status=502)
            if error is not None:
                event: ev.Event = ev.CancelFailed(job, error, sent_at)  # type: ignore[arg-type]
            else:
                event = self._cancel(job, remote_id)
            self.at(self.now + back, lambda: self._answer("cancel", event))

        self.at(self.now + there, arrive)

    def _cancel(self, job: int, remote_id: str) -> ev.Event:
        remote = self.jobs[remote_id]
        if remote.ended_at is None:
            if remote.started_at is None:
                self.queue.remove(remote)
            else:
                remote.ended_at = self.now
                self._free(remote)
            remote.ended_at, remote.outcome = self.now, "cancelled"
        return ev.JobCancelled(job, "CANCELLED" if remote.outcome == "cancelled" else "COMPLETED")

    def _send_health(self) -> None:
        self.requests["health"] += 1
        event: ev.Event = ev.HealthSeen(self.health())
        if self._down():
            event = ev.HealthFailed(self._no_answer())
        self.at(self.now + self.setting.latency_s(self.rng), lambda: self.tell(event))

    # the endpoint

    def _accept(self, rows: tuple[int, ...]) -> str:
        remote_id = f"job-{len(self.jobs)}"
        job = Job(remote_id, rows, self.now, self.setting.service_s(self.rng))
        faults = self.setting.faults
        shares = {
            "lost": faults.job_lost,
            "bad": faults.job_bad,
            "stuck": faults.job_stuck,
            "expired": faults.job_expired,
        }
        outcomes, weights = zip(*shares.items(), strict=True)
        draw = self.rng.random()
        if draw < sum(weights):
            job.outcome = self.rng.choices(outcomes, weights)[0]
        if len(rows) > 1:
            if faults.has_no_route:
                job.outcome = "unknown"
            elif not faults.garbling.isdisjoint(rows) or self.rng.random() < faults.garbled:
                job.outcome = "garbled"
        if job.outcome != "unknown" and not self.poisoned.isdisjoint(rows):
            job.outcome = "poisoned"
        if job.outcome in FREE:
            job.service_s = min(job.service_s, 0.02)
        self.jobs[remote_id] = job
        self.accepted.update(rows)
        if len(rows) > 1:
            job.bad_rows = frozenset(row for row in rows if self.rng.random() < faults.row_bad)
        self.queue.append(job)
        self._dispatch()
        return remote_id

    def _set_workers(self, count: int) -> None:
        self._meter()
        self.workers = count
        self._dispatch()

    def _running(self) -> int:
        return min(self.workers, math.ceil((self.busy + self.dying) / self.setting.jobs_per_worker))

    def _meter(self) -> None:
        """Count the time of the workers that ran until now."""
        self.worker_s += self._running() * (self.now - self.metered_at)
        self.metered_at = self.now

    def health(self) -> Health:
        running = self._running()
        at_work = self.busy + self.dying
        return Health(len(self.queue), at_work, 0, 0, self.workers - running, 0, self.workers, running, 0, 0)

    def _free(self, job: Job) -> None:
        self._meter()
        if job.outcome == "dead":
            self.dying -= 1
        else:
            self.busy -= 1
        self._dispatch()

    def _take_worker(self, job: Job) -> bool:
        """Give the job to a worker; whether there was a free one."""
        setting = self.setting
        healthy = self.busy < (self.workers - setting.dead) * setting.jobs_per_worker
        dead = self.dying < setting.dead * setting.jobs_per_worker
        if dead and not (healthy and self.rng.random() < setting.prefers_healthy):
            self.dying += 1
            job.worker_id = f"dead-{len(self.jobs) % setting.dead}"
            job.outcome, job.service_s = "dead", setting.dead_s
            return True
        self.busy += healthy
        return healthy

    def _dispatch(self) -> None:
        self._meter()
        while self.queue and self._take_worker(self.queue[0]):
            job = self.queue.popleft()
            job.started_at = self.now
            start, end_of_it = self.setting.faults.bad_deployment
            if start <= self.now < end_of_it:
                job.outcome = "bad"

            def end(job: Job = job) -> None:
                if job.ended_at is None:
                    job.ended_at = self.now
                    self._free(job)

            end.endpoint = True  # type: ignore[attr-defined]
            if job.outcome != "stuck":
                self.at(self.now + job.service_s, end)

    def _status(self, job: int, remote_id: str, sent_at: float) -> ev.Event:
        remote = self.jobs[remote_id]
        is_gone = remote.ended_at is not None and self.now >= remote.ended_at + RETENTION_S
        if is_gone or (remote.outcome == "expired" and remote.ended_at is not None):
            return ev.PollFailed(job, NotFoundError("404", http_status=404, from_api=True), sent_at)
        if remote.ended_at is None:
            return ev.JobSeen(job, in_progress=remote.started_at is not None, sent_at=sent_at)
        self.lateness_s.append(self.now - remote.ended_at)
        times = (remote.ended_at - remote.service_s - remote.arrived_at, remote.service_s)
        if remote.outcome == "lost":
            failure = Failure(FailureKind.PLATFORM, "job timed out after 1 retries", "")
            return self._ended(job, remote, "FAILED", failure, *times, sent_at)
        if remote.outcome == "cancelled":
            failure = Failure(FailureKind.CANCELLED, "cancelled", "")
            return self._ended(job, remote, "CANCELLED", failure, None, None, sent_at)
        failure = None
        if remote.outcome == "garbled":
            failure = Failure(FailureKind.WORKER_ERROR, "its choices have wrong numbers", "")
        elif remote.outcome in FREE:
            failure = Failure(FailureKind.BAD_REQUEST, remote.outcome, "")
        elif remote.outcome == "bad":
            failure = Failure(FailureKind.BAD_REQUEST, "bad", "")
        elif remote.outcome == "dead":
            failure = Failure(FailureKind.WORKER_ERROR, "vLLM server process is not running; worker is unhealthy", "")
        status = "FAILED" if failure else "COMPLETED"
        return self._ended(job, remote, status, failure, *times, sent_at)

    def _ended(
        self,
        job: int,
        remote: Job,
        status: str,
        failure: Failure | None,
        delay_s: float | None,
        execution_s: float | None,
        sent_at: float,
    ) -> ev.JobEnded:
        """The end of a job for all of its rows."""
        own = Failure(FailureKind.WORKER_ERROR, "only this row", "")
        rows, _ = self.open_jobs[job]
        answers = tuple(ev.RowAnswer(failure or (own if row in remote.bad_rows else None)) for row in rows)
        if status == "COMPLETED" and all(answer.failure for answer in answers):
            status = "FAILED"
        whole = {"garbled": ev.Whole.GARBLED, "unknown": ev.Whole.UNKNOWN}.get(remote.outcome, ev.Whole.FAILED)
        return ev.JobEnded(
            job,
            status,
            answers,
            delay_s,
            execution_s,
            sent_at,
            worker_id=remote.worker_id,
            whole=whole if failure and len(remote.rows) > 1 else None,
        )
