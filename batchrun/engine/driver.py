"""The driver of one endpoint: persist, act, feed back, re-arm one timer. It decides nothing; the scheduler does.

One round: events go to the scheduler, and its commands come back. Polls start at once. Whatever must be on disk first
is collected and written in a thread, in groups; submissions and cancels are sent once their intent is committed. Then
the driver sleeps until something happens or the scheduler wants to be asked again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from batchrun.config import MAX_TTL_S
from batchrun.display.summary import Snapshot
from batchrun.endpoint.client import EndpointClient
from batchrun.endpoint.protocol import JobAnswer, JobStatus
from batchrun.engine.answers import Answers, Look
from batchrun.engine.commits import Commits
from batchrun.engine.counts import SessionCounts
from batchrun.engine.endings import Ending
from batchrun.engine.journal import Journal, Outgoing
from batchrun.engine.notices import EngineObserver, Notices, Stop, message_of
from batchrun.engine.published_status import PublishedStatus
from batchrun.engine.row_queue import Loaded
from batchrun.engine.signals import Wish
from batchrun.errors import CallError, MismatchedError, StoppedError, ThrottledError
from batchrun.scheduler import commands as cmd
from batchrun.scheduler import events as ev
from batchrun.scheduler.failures import Failure
from batchrun.scheduler.scheduler import Scheduler
from batchrun.state.records import Acceptance

_LOG = logging.getLogger(__name__)

_GRACE_S = 1.0
"""How long a stop waits for running requests: each answer of /run that still arrives is one unconfirmed job less."""
_TICK_S = 0.25
"""The longest time between two updates of the observer."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a session ended."""

    kind: Literal["finished", "stopped", "interrupted", "cancelled", "pilot"]
    error: StoppedError | None = None
    """Why it stopped; None if it did not."""


class Engine:
    """Runs a scheduler against an endpoint.

    Args:
        scheduler: Decides what to do.
        journal: Writes state and results.
        client: Talks to the endpoint.
        counts: Counts rows for the observer.
        observer: Shows the progress.
        answers: Keeps and judges the answers of jobs.
        published: What other processes read about the run; written regularly.
        thread: The thread in which the journal is written, shared by all that write the same state file.
        load: Loads further rows; None if all rows are in the journal.
        clock: Monotonic seconds.
        wall: UTC epoch seconds.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        journal: Journal,
        client: EndpointClient,
        counts: SessionCounts,
        observer: EngineObserver,
        *,
        answers: Answers,
        published: PublishedStatus,
        thread: ThreadPoolExecutor,
        load: Callable[[int], Awaitable[Loaded]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.scheduler = scheduler
        """Decides what to do."""
        self._journal = journal
        self._client = client
        self._counts = counts
        self._observer = observer
        self._commits = Commits(journal, published, thread, clock, wall)
        self._load_rows = load or (lambda count: self._commits.in_thread(lambda: journal.load(count)))
        self._clock = clock
        self._wall = wall
        self._events: deque[ev.Event] = deque()
        self._wake = asyncio.Event()
        self._answers = answers
        self._requests: set[asyncio.Task[None]] = set()
        self._writing: asyncio.Task[None] | None = None
        self._interrupted = self._goes_at_once = self._leaving = False
        self._notices = Notices()
        self._failure: BaseException | None = None
        self._tick_at = float("-inf")
        self._calls = answers.streamed.calls = self._commits.calls

    def adopt(self) -> None:
        """Take over the jobs in flight of earlier sessions; call it before `run`."""
        now, wall_ms = self._clock(), self._wall() * 1000
        for job in self._journal.adopt():
            tickets = tuple(self._journal.ticket(row) for row in job.rows)
            self._answers.adopt(job)
            # If the wall clock was set since then, the job may seem to be in the future, or older than possible.
            age_s = min(max(wall_ms - job.submitted_ms, 0.0) / 1000, MAX_TTL_S)
            self._client.ids.add(job.remote_id)
            adopted = ev.JobAdopted(tickets, job.job, job.remote_id, now - age_s, cancelling=job.is_cancelling)
            self.scheduler.handle(adopted, now)

    async def run(self, *, cancel: bool = False) -> Outcome:
        """Run until every row has ended, or something stops the run.

        Args:
            cancel: Submit nothing, and cancel the jobs in flight of earlier sessions.

        Raises:
            BatchrunError: a bug; a StoppedError is returned in the outcome instead.
        """
        try:
            if cancel:
                self._tell(ev.CancelRequested())
            await self._rounds()
        finally:
            await self._settle()
            if self.scheduler.member is not None:
                self.scheduler.member.end()
        return self._outcome(cancel=cancel)

    def _outcome(self, *, cancel: bool) -> Outcome:
        """How the session ended. To be called last, because writing the last batch may fail."""
        if self._failure is None and self._interrupted:
            return Outcome("interrupted")
        error = self._failure or self.scheduler.stop
        if isinstance(error, StoppedError):
            return Outcome("stopped", error)
        if error is not None:
            raise error
        return Outcome("cancelled" if cancel else "finished")

    def snapshot(self) -> Snapshot:
        """The state of the run now."""
        return self._counts.snapshot(self._clock(), self.scheduler, self._journal.said)

    async def _rounds(self) -> None:
        scheduler = self.scheduler
        while True:
            now = self._clock()
            self._wake.clear()
            while self._events:
                scheduler.handle(self._events.popleft(), now)
            for command in scheduler.commands(now):
                self._do(command)
            if self._failure is not None or self._goes_at_once or scheduler.is_done:
                return
            if self._writing is None and self._commits.is_due(now, is_ending=self._interrupted):
                self._commits.begin(now)
                self._writing = self._start(self._write())
            await self._sleep(scheduler.next_wakeup(now))

    async def _sleep(self, wakeup: float | None) -> None:
        wait_s = _TICK_S if wakeup is None else min(max(wakeup - self._clock(), 0.0), _TICK_S)
        if self._writing is None and (commit_s := self._commits.wait_s()) is not None:
            wait_s = min(wait_s, commit_s)
        timer = asyncio.get_running_loop().call_later(wait_s, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()
        if (now := self._clock()) >= self._tick_at:
            self._tick_at = now + _TICK_S
            said = self._notices.look(self.scheduler.note(now), now)
            if said is not None:
                _LOG.info(said)
                self._observer.message(said)
            self._observer.update(self.snapshot())

    def _do(self, command: cmd.Command) -> None:
        match command:
            case cmd.Poll():
                self._start(self._poll(command))
            case cmd.Submit():
                self._commits.pending.submits.append(command)
            case cmd.Finish() | cmd.Requeue() | cmd.Hold():
                self._end_row(command)
            case cmd.LoadRows():
                self._start(self._load(command))
            case cmd.Cancel():
                self._commits.pending.cancels.append(command)
            case cmd.CheckHealth():
                self._start(self._check_health())
            case cmd.Drain():
                _LOG.error("stopping: %s", command.error.message)
                self._observer.stopping(self._stop(command.error.message))
            case cmd.Tell() | cmd.Leave() | cmd.Return():
                self._observer.message(message_of(command))
            case cmd.Halt():
                _LOG.error("stopped: %s", command.error.message)
                self._fail(command.error)

    def _end_row(self, ending: Ending) -> None:
        work = self._commits.pending
        work.endings.append(ending)
        answer = self._answers.pop(ending.row)
        if answer is not None:
            if not isinstance(ending, cmd.Hold) and ending.is_answered:
                work.answers[ending.row] = answer
            else:
                self._client.release(answer)
        for name in self._counts.count(ending):
            work.count(name)
        match ending:
            case cmd.Finish(failure=Failure(kind=kind, message=message)):
                _LOG.info("row %d failed: %s: %s", ending.row, kind, message)
            case cmd.Requeue(failure=Failure(message=message)):
                _LOG.info("row %d is submitted again: %s", ending.row, message)
            case cmd.Hold():
                _LOG.info("row %d is held: %s", ending.row, ending.message)

    async def _load(self, command: cmd.LoadRows) -> None:
        loaded = await self._load_rows(command.count)
        self._counts.loaded(loaded.added, cached=self._commits.pending.take(loaded.hits))
        self._tell(ev.RowsLoaded(loaded.tickets, loaded.exhausted))

    async def _write(self) -> None:
        await self._commit()
        self._writing = None
        self._wake.set()

    async def _commit(self) -> None:
        meter = self.scheduler.meter
        counters = meter.take().to_counters(meter.endpoint) | self.scheduler.faulty_workers.take()
        work, written = await self._commits.commit(counters, is_last=self._leaving)
        for answer in work.answers.values():
            self._client.release(answer)
        self._counts.share(written.shared_succeeded, written.shared_failed, written.shared_held)
        if not self._leaving:
            for cancel in work.cancels:
                self._start(self._cancel(cancel))
        if requeued := [ending.row for ending in work.endings if isinstance(ending, cmd.Requeue)]:
            self._tell(ev.Requeued(tuple(requeued)))
        for unusable in written.unusable:
            self._tell(ev.LineUnusable(*unusable))
        for outgoing in written.outgoing:
            if self._leaving:
                self._tell(ev.NotSubmitted(outgoing.job))
            else:
                self._start(self._submit(outgoing))

    async def _submit(self, outgoing: Outgoing) -> None:
        job, rows, body = outgoing
        sent_at = self._clock()
        self._calls["run"] += 1
        try:
            answer = await self._client.run(body)
        except CallError as error:
            self._note_failure("run", error)
            self._tell(ev.SubmitFailed(job, error, sent_at))
            return
        submitted_ms = round((self._wall() - (self._clock() - sent_at) / 2) * 1000)
        for row in rows:
            self._commits.pending.accepted.append(Acceptance(job, row, answer.id, submitted_ms))
        self._tell(ev.Submitted(job, answer.id, sent_at))
        if answer.status.is_final:
            self._tell(await self._end(job, rows, answer, sent_at, was_polled=False))

    async def _poll(self, poll: cmd.Poll) -> None:
        sent_at = self._clock()
        self._calls["status"] += 1
        try:
            answer = await self._client.status(poll.remote_id)
        except CallError as error:
            self._note_failure("status", error)
            self._tell(ev.PollFailed(poll.job, error, sent_at))
            return
        if not answer.status.is_final:
            self._tell(ev.JobSeen(poll.job, answer.status is JobStatus.IN_PROGRESS, sent_at))
            return
        self._tell(await self._end(poll.job, poll.rows, answer, sent_at, was_polled=True))

    async def _end(
        self, job: int, rows: tuple[int, ...], answer: JobAnswer, sent_at: float, *, was_polled: bool
    ) -> ev.JobEnded:
        scheduler, arrived_at = self.scheduler, self._clock()
        is_on_trial = scheduler.member is not None and not scheduler.member.is_proven
        look = Look(flaws=scheduler.canary.is_out, kind=is_on_trial)
        status, said, whole = await self._answers.take(job, rows, answer, look)
        sent_at += self._clock() - arrived_at  # a slow check is no slow server
        delay_s = None if answer.delay_ms is None else answer.delay_ms / 1000
        execution_s = None if answer.execution_ms is None else answer.execution_ms / 1000
        return ev.JobEnded(job, status, said, delay_s, execution_s, sent_at, was_polled, answer.worker_id, whole)

    async def _cancel(self, cancel: cmd.Cancel) -> None:
        sent_at = self._clock()
        self._calls["cancel"] += 1
        try:
            answer = await self._client.cancel(cancel.remote_id)
        except CallError as error:
            self._note_failure("cancel", error)
            self._tell(ev.CancelFailed(cancel.job, error, sent_at))
        else:
            self._tell(ev.JobCancelled(cancel.job, answer.status.value))

    async def _check_health(self) -> None:
        self._calls["health"] += 1
        try:
            health = await self._client.health()
        except CallError as error:
            self._note_failure("health", error)
            self._tell(ev.HealthFailed(error))
        else:
            _LOG.debug("the endpoint answers: %s", health)
            self._tell(ev.HealthSeen(health))

    def _note_failure(self, operation: str, error: CallError) -> None:
        _LOG.debug("/%s failed: %s", operation, error.message)
        for kind, name in ((ThrottledError, "throttled"), (MismatchedError, "mismatched")):
            if isinstance(error, kind):
                self._commits.pending.count(name)

    def _tell(self, event: ev.Event) -> None:
        self._events.append(event)
        self._wake.set()

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
        self._wake.set()

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._requests.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._requests.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    async def _settle(self) -> None:
        """Wait briefly for running requests, write their results, and leave everything else to a later session."""
        self._leaving = True
        self._commits.pending.submits.clear()
        self._commits.pending.cancels.clear()
        if self._writing is not None:
            await asyncio.wait([self._writing])
        if self._requests:
            await asyncio.wait(self._requests, timeout=_GRACE_S)
        for task in self._requests:
            task.cancel()
        if self._requests:
            await asyncio.wait(self._requests)
        now = self._clock()
        while self._events:
            self.scheduler.handle(self._events.popleft(), now)
        for command in self.scheduler.decided():
            self._do(command)
        self.scheduler.meter.close(now)
        if not self._commits.has_failed:
            try:
                await self._commit()
            except StoppedError as error:
                self._fail(error)

    def leave(self, wish: Wish) -> None:
        """Leave in the requested way."""
        # If the run had stopped before, that remains the reason.
        self._interrupted = self._interrupted or self.scheduler.stop is None
        match wish:
            case Wish.DRAIN:
                self._observer.stopping(self._stop(""))
                self._tell(ev.StopRequested())
            case Wish.CANCEL:
                self._observer.stopping(self._stop("", is_cancel=True))
                self._tell(ev.CancelRequested())
            case Wish.LEAVE:
                self._goes_at_once = True
        self._wake.set()

    def tune(self, change: ev.Tuned) -> None:
        """Change the window, the budget or the deadline, or pause."""
        self._tell(change)

    def _stop(self, why: str, *, is_cancel: bool = False) -> Stop:
        return Stop(why, self.scheduler.in_flight, self.scheduler.drain_s(self._clock()), is_cancel)
