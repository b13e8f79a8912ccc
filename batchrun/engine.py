"""The driver: persist, act, feed back, re-arm one timer. It decides nothing; the scheduler does.

One round: events go to the scheduler, its commands come back; requests start at once, whatever is to be on disk
first is collected and written in a thread, in groups; submissions leave when their intent is committed. Then it
sleeps until something happens or the scheduler wants to be asked.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from batchrun.endpoint.protocol import JobAnswer, JobStatus
from batchrun.endpoint.worker_errors import decode_error, find_hidden_error, is_empty_output
from batchrun.errors import CallError, StoppedError, ThrottledError
from batchrun.journal import LineChangedError, Work
from batchrun.scheduler import commands as cmd
from batchrun.scheduler import events as ev
from batchrun.scheduler.failures import Failure, FailureKind, classify_job
from batchrun.state.store import Acceptance

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from batchrun.endpoint.client import EndpointClient
    from batchrun.journal import Journal
    from batchrun.results.summary import Observer, Snapshot
    from batchrun.scheduler.scheduler import Scheduler
    from batchrun.tally import Tally

T = TypeVar("T")

_LOG = logging.getLogger(__name__)

_COMMIT_GAP_S = 0.01
"""Between the starts of two commits: groups of events share one fsync, at the price of so much delay."""
_GRACE_S = 1.0
"""How long a stop waits for requests under way: an answer to /run that is still heard is one less unconfirmed."""
_TICK_S = 0.25
"""How often the observer is told at least."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a session ended."""

    kind: Literal["finished", "stopped", "interrupted"]
    error: StoppedError | None = None
    """Why it stopped."""


class Engine:
    """Runs a scheduler against an endpoint.

    Args:
        scheduler: Decides.
        journal: Writes.
        client: Talks to the endpoint.
        tally: Counts for the observer.
        observer: Shows.
        inspect_output: Look for errors inside the output of completed jobs.
        clock: Monotonic seconds.
        wall: UTC epoch seconds.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        journal: Journal,
        client: EndpointClient,
        tally: Tally,
        observer: Observer,
        *,
        inspect_output: bool = True,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._scheduler = scheduler
        self._journal = journal
        self._client = client
        self._tally = tally
        self._observer = observer
        self._inspect_output = inspect_output
        self._clock = clock
        self._wall = wall
        self._events: deque[ev.Event] = deque()
        self._wake = asyncio.Event()
        self._work = Work()
        self._requests: set[asyncio.Task[None]] = set()
        self._writing: asyncio.Task[None] | None = None
        self._committed_at = float("-inf")
        self._stops = 0
        self._failure: BaseException | None = None
        self._leaving = False
        self._writable = True
        self._tick_at = float("-inf")
        self.calls: Counter[str] = Counter()
        """API calls of this session by operation."""

    async def run(self) -> Outcome:
        """Run until every row has ended, or something stops the run.

        Raises:
            BatchrunError: a defect; a StoppedError is returned in the outcome instead.
        """
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="journal") as self._thread:
            handled = self._catch_signals(loop)
            try:
                self._adopt()
                self._observer.begin(self.snapshot())
                return await self._rounds()
            finally:
                for number in handled:
                    loop.remove_signal_handler(number)
                await self._settle()
                self._observer.end(self.snapshot())

    def snapshot(self) -> Snapshot:
        """What the run looks like now."""
        return self._tally.snapshot(self._clock(), self._scheduler, self._journal.tokens)

    async def _rounds(self) -> Outcome:
        while True:
            now = self._clock()
            self._wake.clear()
            while self._events:
                self._scheduler.handle(self._events.popleft(), now)
            for command in self._scheduler.commands(now):
                self._do(command)
            if self._failure is not None:
                if isinstance(self._failure, StoppedError):
                    return Outcome("stopped", self._failure)
                raise self._failure
            if self._scheduler.is_done or self._stops > 1:
                return Outcome("interrupted" if self._stops else "finished")
            if self._work and self._writing is None:
                self._writing = self._start(self._write())
            await self._sleep(self._scheduler.next_wakeup(now))

    async def _sleep(self, wakeup: float | None) -> None:
        wait_s = _TICK_S if wakeup is None else min(max(wakeup - self._clock(), 0.0), _TICK_S)
        timer = asyncio.get_running_loop().call_later(wait_s, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()
        now = self._clock()
        if now >= self._tick_at:
            self._tick_at = now + _TICK_S
            self._observer.update(self.snapshot())

    def _do(self, command: cmd.Command) -> None:
        match command:
            case cmd.Poll():
                self._start(self._poll(command))
            case cmd.Submit():
                self._work.submits.append(command)
            case cmd.Finish() | cmd.Requeue() | cmd.Hold():
                self._work.endings.append(command)
                self._count(command)
            case cmd.LoadRows():
                self._start(self._load(command))
            case cmd.CheckHealth():
                self._start(self._check_health())
            case cmd.Halt():
                _LOG.error("stopped: %s", command.error.message)
                self._fail(command.error)

    def _count(self, command: cmd.Finish | cmd.Requeue | cmd.Hold) -> None:
        match command:
            case cmd.Finish(failure=None):
                self._tally.succeeded += 1
            case cmd.Finish(failure=Failure(kind=kind, message=message)):
                self._tally.failed += 1
                _LOG.info("row %d failed: %s: %s", command.row, kind, message)
            case cmd.Requeue(failure=Failure(message=message)):
                self._tally.retries += 1
                self._work.count("retries")
                _LOG.info("row %d is tried again: %s", command.row, message)
            case cmd.Hold():
                self._tally.held += 1
                _LOG.info("row %d is held: %s", command.row, command.message)
        if isinstance(command, cmd.Hold) or command.status == "UNCONFIRMED":
            self._tally.unconfirmed += 1
            self._work.count("unconfirmed")

    def _adopt(self) -> None:
        now, wall_ms = self._clock(), self._wall() * 1000
        for job in self._journal.adopt():
            ticket = ev.Ticket(job.row.row, job.row.attempts, job.row.retries, job.row.unconfirmed)
            submitted_at = now - max(wall_ms - job.submitted_ms, 0.0) / 1000
            self._scheduler.handle(ev.JobAdopted(ticket, job.job, job.remote_id, submitted_at), now)

    async def _load(self, command: cmd.LoadRows) -> None:
        tickets, exhausted = await self._in_thread(lambda: self._journal.load(command.count))
        self._tell(ev.RowsLoaded(tickets, exhausted))

    async def _write(self) -> None:
        gap_s = self._committed_at + _COMMIT_GAP_S - self._clock()
        if gap_s > 0:
            await asyncio.sleep(gap_s)
        self._committed_at = self._clock()
        await self._commit()
        self._writing = None
        self._wake.set()

    async def _commit(self) -> None:
        work, self._work = self._work, Work()
        for operation, count in self.calls.items():
            work.count(f"calls_{operation}", count)
        self.calls.clear()
        now_ms = round(self._wall() * 1000)
        try:
            bodies = await self._in_thread(lambda: self._journal.write(work, now_ms))
        except BaseException:
            self._writable = False
            raise
        for submit in work.submits:
            body = bodies[submit.job]
            if isinstance(body, LineChangedError):
                self._tell(ev.LineUnusable(submit.job, body.message))
            elif self._leaving:
                self._work.endings.append(cmd.Requeue(submit.job, submit.row, None, None, 0, 0))
            else:
                self._start(self._submit(submit, body))

    async def _submit(self, submit: cmd.Submit, body: bytes) -> None:
        sent_at = self._clock()
        self.calls["run"] += 1
        try:
            answer = await self._client.run(body)
        except CallError as error:
            self._note_failure("run", error)
            self._tell(ev.SubmitFailed(submit.job, error, sent_at))
            return
        submitted_ms = round((self._wall() - (self._clock() - sent_at) / 2) * 1000)
        self._work.accepted.append(Acceptance(submit.job, submit.row, answer.id, submitted_ms))
        self._tell(ev.Submitted(submit.job, answer.id, sent_at))

    async def _poll(self, poll: cmd.Poll) -> None:
        sent_at = self._clock()
        self.calls["status"] += 1
        try:
            answer = await self._client.status(poll.remote_id)
        except CallError as error:
            self._note_failure("status", error)
            self._tell(ev.PollFailed(poll.job, error, sent_at))
            return
        if not answer.status.is_final:
            self._tell(ev.JobSeen(poll.job, answer.status is JobStatus.IN_PROGRESS, sent_at))
            return
        failure = judge(answer, inspect_output=self._inspect_output)
        status = "FAILED" if failure and answer.status is JobStatus.COMPLETED else answer.status.value
        self._tell(
            ev.JobEnded(
                poll.job, status, failure, _seconds(answer.delay_ms), _seconds(answer.execution_ms), sent_at, answer
            )
        )

    async def _check_health(self) -> None:
        self.calls["health"] += 1
        try:
            health = await self._client.health()
        except CallError as error:
            self._note_failure("health", error)
            self._tell(ev.HealthFailed(error))
        else:
            _LOG.info("the endpoint answers: %s", health)
            self._tell(ev.HealthSeen())

    def _note_failure(self, operation: str, error: CallError) -> None:
        _LOG.debug("/%s failed: %s", operation, error.message)
        if isinstance(error, ThrottledError):
            self._work.count("throttled")

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

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _settle(self) -> None:
        """Hear the requests under way for a moment, write down what they said, and leave the rest for later."""
        self._leaving = True
        self._work.submits.clear()
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
            self._scheduler.handle(self._events.popleft(), now)
        for command in self._scheduler.decided():
            self._do(command)
        if self._writable:
            await self._commit()

    def _catch_signals(self, loop: asyncio.AbstractEventLoop) -> list[signal.Signals]:
        handled = []
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            try:
                loop.add_signal_handler(number, self._signalled, number)
            except (NotImplementedError, RuntimeError, ValueError):
                continue
            handled.append(number)
        return handled

    def _signalled(self, number: signal.Signals) -> None:
        self._stops += 2 if number == signal.SIGHUP else 1
        if self._stops == 1:
            self._observer.message(
                f"stopping: collecting the {self._scheduler.in_flight:,} jobs in flight, submitting nothing more;"
                " Ctrl-C again leaves at once"
            )
            self._tell(ev.StopRequested())
        self._wake.set()


def judge(answer: JobAnswer, *, inspect_output: bool) -> Failure | None:
    """Why a final answer is no result; None when it is one.

    A COMPLETED job may hide an error in its output, or have none at all (runpod-python issues 299 and 309).
    """
    status = answer.status
    if status is JobStatus.COMPLETED:
        if not inspect_output:
            return None
        raw = find_hidden_error(answer.output) or answer.error
        if not raw:
            empty = is_empty_output(answer.output, has_output=answer.has_output)
            return Failure(FailureKind.NO_OUTPUT, "the job completed without output", "") if empty else None
    else:
        raw = answer.error
        if not raw:
            kind, message = _SILENT[status]
            return Failure(kind, message, "")
    error = decode_error(raw)
    return Failure(classify_job(status.value, error.message, error.code, error.error_type), error.message, error.raw)


_SILENT = {
    JobStatus.FAILED: (FailureKind.PLATFORM, "the job failed without an error message"),
    JobStatus.CANCELLED: (FailureKind.CANCELLED, "the job was cancelled by somebody else"),
    JobStatus.TIMED_OUT: (FailureKind.TIMED_OUT, "the job overran its execution timeout or its ttl"),
}
"""What a failed job without an error message means."""


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000
