"""Write a run's state and results, in the one order that makes it safe.

For each batch, result lines are appended and synced first. Then one transaction commits that their rows are done and
how long the results file is, together with the intents to submit further rows. Only then does the driver send those. A
crash between the two steps leaves result lines beyond the committed length, which the next session takes over. A crash
before them leaves nothing, and the job is polled again.

All methods block, and are called from one thread at a time: the driver keeps them off its event loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from batchrun.endpoint.protocol import JobAnswer, PackPart
from batchrun.endpoint.transport import Transport
from batchrun.endpoint.worker_errors import NO_ROUTE, named_route
from batchrun.engine.cached import CachedAnswer, CachedAnswers
from batchrun.engine.dedupe import SharedAnswers
from batchrun.engine.endings import Ending, failed_job, failure_record, job_end, job_info
from batchrun.engine.reasking import asked_again
from batchrun.engine.row_queue import Loaded, RowQueue
from batchrun.engine.rows import LineChangedError, RowLines
from batchrun.errors import OutputError
from batchrun.results.completion import is_context_full, target_of
from batchrun.results.error_record import part_bytes
from batchrun.results.record import CACHED, JobInfo, result_digest
from batchrun.results.text import CONTEXT_FULL, AnswerTotals
from batchrun.results.writer import ResultsFiles
from batchrun.scheduler import commands as cmd
from batchrun.scheduler.events import Ticket
from batchrun.scheduler.failures import Failure, FailureKind
from batchrun.state.records import Acceptance, Batch, FailureRecord, OpenJob, RowRecord, Share, Submission
from batchrun.state.store import Store


@dataclass(slots=True)
class PendingWrites:
    """What will be written next; the driver collects it."""

    submits: list[cmd.Submit] = field(default_factory=list)
    accepted: list[Acceptance] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)
    answers: dict[int, JobAnswer] = field(default_factory=dict)
    """Row -> the answer that ends it, for endings that are based on a job's answer."""
    cancels: list[cmd.Cancel] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings to write to the state file, by name: what other processes read about the run."""

    def __bool__(self) -> bool:
        return bool(self.submits or self.accepted or self.endings or self.cancels)

    def count(self, name: str, by: int = 1) -> None:
        """Add to one of the run's counters."""
        self.counters[name] = self.counters.get(name, 0) + by

    def take(self, hits: Collection[tuple[cmd.Finish, JobAnswer]]) -> int:
        """Add rows that ended with answers from the cache; returns how many."""
        new = {finish.row: answer for finish, answer in hits}
        self.endings += [finish for finish, _ in hits]
        self.answers |= new
        return len(new)


class Outgoing(NamedTuple):
    """A job that must be submitted now."""

    job: int
    rows: tuple[int, ...]
    """Its rows, in order."""
    body: bytes


class Unusable(NamedTuple):
    """A row that cannot be submitted."""

    job: int
    row: int
    message: str
    """Why."""


@dataclass(slots=True)
class Written:
    """The consequences of a batch that is on disk."""

    outgoing: list[Outgoing] = field(default_factory=list)
    unusable: list[Unusable] = field(default_factory=list)
    shared_succeeded: int = 0
    """Rows that got the answer of another row's job."""
    shared_failed: int = 0
    """Rows that failed because another row did."""
    shared_held: int = 0
    """Rows that are held because another row is."""


class Journal:
    """Writes what happens in a run, and reads the rows that are to be submitted.

    Args:
        store: The state file, open for this session.
        session: The session's number.
        lines: The lines of the rows.
        results: The results files.
        transport: Makes the bodies of jobs.
        share: The rows of this journal.
        queue: The rows that the journals of a pool share; None for its own.
        shared_answers: Gives rows the answers of others; None if no rows share answers.
        cached: Gives rows the answers of other runs, and stores new answers; None without a cache.
        deliver: Called with the records of rows that have ended, as lines, once they are on disk; None for no calls.
    """

    def __init__(
        self,
        store: Store,
        session: int,
        lines: RowLines,
        results: ResultsFiles,
        transport: Transport,
        *,
        share: Share,
        queue: RowQueue | None = None,
        shared_answers: SharedAnswers | None = None,
        cached: CachedAnswers | None = None,
        deliver: Callable[[list[bytes]], None] | None = None,
    ) -> None:
        self._store = store
        self._session = session
        self._lines = lines
        self._results = results
        self._transport = transport
        self._share = share
        self._shared_answers = shared_answers
        self._cached = cached
        self._deliver = deliver
        self._delivered: list[bytes] = []
        self._queue = queue or RowQueue(store, lines, share)
        self._requests = self._queue.requests
        self._rows = self._queue.rows
        self._jobs: dict[int | None, tuple[str, int]] = {}
        self._completed: set[int | None] = set()
        """Adopted jobs of which other rows already have results."""
        self._counted: set[int | None] = set()
        """Jobs of several rows whose tokens the present batch counts."""
        self.said = AnswerTotals()

    def load(self, count: int) -> Loaded:
        """Up to `count` further pending rows."""
        records = self._queue.load(count)
        tickets = [self.ticket(record) for record in records]
        found: dict[int, JobAnswer] = {}
        if self._transport.rows_per_job > 1 or self._cached is not None:
            for index, request in enumerate(self._requests.prepare(records)):
                tickets[index] = self._of_kind(tickets[index], request)
                if (answer := self._find(records[index], request)) is not None:
                    found[records[index].row] = answer
        if homes := self._queue.homes(records):
            tickets = [ticket._replace(home=homes.get(ticket.row)) for ticket in tickets]
        return Loaded(tuple(tickets), exhausted=len(records) < count, found=found)

    def ticket(self, row: RowRecord) -> Ticket:
        """A row as the scheduler knows it."""
        amendment = self._lines.amendment(row.row)
        asks = 0 if amendment is None else amendment.asks
        return Ticket(row.row, row.attempts, row.retries, row.unconfirmed, asks)

    def _of_kind(self, ticket: Ticket, request: dict[str, Any] | None) -> Ticket:
        if request is None or self._transport.rows_per_job == 1:
            return ticket
        number, most, size_bytes = self._transport.kind(request)
        return ticket._replace(kind=number, most=most, size_bytes=size_bytes)

    def _find(self, row: RowRecord, request: dict[str, Any] | None) -> CachedAnswer | None:
        """The answer of the cache for a row; None if there is none. `request` is None if it contains files."""
        if self._cached is None:
            return None
        made = self._requests.make(row) if request is None else request
        return None if isinstance(made, LineChangedError) else self._cached.find(row, made)

    def draft(self, row: int, answer: JobAnswer) -> bytes:
        """See `RowLines.draft`."""
        return self._lines.draft(self._rows[row], answer.output)

    def asked(self, row: int) -> str:
        """What a row asked for, but for its prompt: rows that ask for the same get the same form of answer."""
        request = self._lines.read_request(self._rows[row]) or {}
        return f"{'openai_input' in request} {target_of(request)}"

    def adopt(self) -> list[OpenJob]:
        """The jobs of earlier sessions that are still to be polled."""
        jobs = self._store.open_jobs(self._share)
        for job in jobs:
            for row in job.rows:
                self._rows[row.row] = row
            self._jobs[job.job] = (job.remote_id, job.submitted_ms)
            if len(job.all_rows) > len(job.rows):
                self._completed.add(job.job)
        return jobs

    def write(self, work: PendingWrites, now_ms: int) -> Written:
        """Write a batch; it is on disk when this returns.

        Raises:
            OutputError: results or state cannot be written, or could not before: a later write would also commit result
                lines that were never committed. Everything that was committed before is complete.
        """
        if self._store.has_failed:
            raise OutputError(f"{self._store.path}: not written, because an earlier write failed", "run it again")
        try:
            return self._write(work, now_ms)
        except BaseException:
            self._store.has_failed = True
            raise

    def _write(self, work: PendingWrites, now_ms: int) -> Written:
        for accepted in work.accepted:
            self._jobs[accepted.job] = (accepted.remote_id, accepted.submitted_ms)
        if self._transport.rows_per_job > 1:
            sizes = Counter([accepted.job for accepted in work.accepted]).values()
            for rows in [rows for rows in sizes if rows > 1]:
                work.count("packed_jobs")
                work.count("packed_rows", rows)
        cancelling = [(cancel.job,) for cancel in work.cancels]
        batch = Batch(accepted=work.accepted, cancelling=cancelling, counters=work.counters, settings=work.settings)
        written = Written()
        digests = self._append_results(work, batch, written, now_ms)
        self._end_rows(work, batch, written, digests, now_ms)
        if batch.amended:
            self._lines.amend(dict(batch.amended))
        for submit in work.submits:
            self._submit(submit, batch, written, now_ms)
        self._store.commit(batch, self._session, now_ms)
        if self._cached is not None:
            self._cached.flush(now_ms)
        if batch.amended:
            self._lines.amend(None)
        for ending in work.endings:
            self._jobs.pop(ending.job, None)
            if not isinstance(ending, cmd.Requeue):
                del self._rows[ending.row]
                self._requests.forget(ending.row)
        if self._deliver is not None and self._delivered:
            self._deliver(self._delivered)
            self._delivered = []
        return written

    def _append_results(self, work: PendingWrites, batch: Batch, written: Written, now_ms: int) -> dict[int, int]:
        """Append and sync the results; returns the digest of each row's line."""
        digests: dict[int, int] = {}
        lines: dict[int, list[bytes]] = {}
        leaders: list[tuple[int, bytes, tuple[str, ...]]] = []
        for ending in work.endings:
            if isinstance(ending, cmd.Finish) and ending.failure is None:
                line, marks = self._result_line(ending, work.answers[ending.row], batch, now_ms)
                lines.setdefault(self._lines.output(self._rows[ending.row]), []).append(line)
                digests[ending.row] = result_digest(line)
                if self._shared_answers is not None:
                    leaders.append((ending.row, line, marks))
        for output, new in lines.items():
            self._results[output].append(new)
            if self._deliver is not None:
                self._delivered.extend(new)
            batch.committed_bytes[output] = self._results[output].size_bytes
        if self._shared_answers is not None:
            for row, line, marks in leaders:
                count = self._shared_answers.answer(row, line, batch, marks)
                written.shared_succeeded += count
                self.said.marks.update(dict.fromkeys(marks, count))
        self._results.sync(batch.committed_bytes)
        return digests

    def _result_line(
        self, finish: cmd.Finish, answer: JobAnswer, batch: Batch, now_ms: int
    ) -> tuple[bytes, tuple[str, ...]]:
        """A row's result line, and the marks of its answer."""
        row = self._rows[finish.row]
        text = self._lines.text(answer.output)
        asked = self._requests.take(row)
        marks = text.marks
        if "truncated" in marks and is_context_full(text, asked.most_tokens):
            marks = (*marks, CONTEXT_FULL)
        job, used, made = self._job_of(finish, answer, now_ms), text.input_tokens, text.output_tokens
        if not isinstance(job, JobInfo):
            used = made = None
            batch.count(CACHED, 1)
        elif answer.pack is not None:
            used, made = self._tokens_once(finish.job, answer.pack)
        batch.count_answer(used, made, marks)
        self.said.add(used, made, marks)
        line = self._lines.result(
            row, text, answer.output, carried=asked.carried, job=job, possible_duplicate=finish.unconfirmed > 0
        )
        return line, marks

    def _job_of(self, finish: cmd.Finish, answer: JobAnswer, now_ms: int) -> JobInfo | Mapping[str, Any]:
        """The job of a result; for an answer from the cache, the job as the cache has it."""
        if isinstance(answer, CachedAnswer):
            return answer.job
        row = self._rows[finish.row]
        endpoint = self._lines.endpoint(row, self._share.endpoint)
        job = job_info(*self._jobs[finish.job], answer, endpoint=endpoint, attempts=finish.attempts, now_ms=now_ms)
        if self._cached is not None:
            self._cached.keep(row, endpoint, answer, job)
        return job

    def _tokens_once(self, job: int | None, pack: PackPart) -> tuple[int | None, int | None]:
        """The tokens of a job of several rows, for the first row with an answer; None for the others."""
        if job in self._counted or job in self._completed:
            return None, None
        self._counted.add(job)
        return pack.input_tokens, pack.output_tokens

    def _end_rows(
        self, work: PendingWrites, batch: Batch, written: Written, digests: dict[int, int], now_ms: int
    ) -> None:
        completed = {ending.job for ending in work.endings if ending.row in digests and ending.job is not None}
        for ending in work.endings:
            row, answer, digest = self._rows[ending.row], work.answers.get(ending.row), digests.get(ending.row)
            if isinstance(ending, cmd.Finish) and digest is None:
                self._fail(ending, answer, batch, now_ms)
                if self._shared_answers is not None:
                    written.shared_failed += self._shared_answers.end_with(ending.row, batch)
            elif isinstance(ending, cmd.Hold) and self._shared_answers is not None:
                written.shared_held += self._shared_answers.end_with(ending.row, batch)
            is_completed = ending.job in completed or ending.job in self._completed
            end = job_end(ending, answer, retries=row.retries, is_completed=is_completed, result=digest)
            batch.ended.append(end)
            if isinstance(ending, cmd.Requeue):
                if is_completed:
                    batch.left.append((ending.row,))
                self._rows[ending.row] = row._replace(retries=end.retries, unconfirmed=end.unconfirmed)
            match ending:
                case cmd.Requeue(failure=Failure(kind=FailureKind.INVALID_OUTPUT) as failure):
                    self._count_refused(ending.job, answer, batch)
                    self._amend(row, failure, answer, batch)
                case cmd.Finish(failure=Failure(kind=FailureKind.INVALID_OUTPUT)):
                    self._count_refused(ending.job, answer, batch)
        self._counted.clear()

    def _count_refused(self, job: int | None, answer: JobAnswer | None, batch: Batch) -> None:
        if answer is None:
            return
        if answer.pack is not None:
            batch.count_refused(*self._tokens_once(job, answer.pack))
            return
        text = self._lines.text(answer.output)
        batch.count_refused(text.input_tokens, text.output_tokens)

    def _amend(self, row: RowRecord, failure: Failure, answer: JobAnswer | None, batch: Batch) -> None:
        request, known = self._lines.read_request(row), self._lines.amendment(row.row)
        output = None if answer is None else answer.output
        batch.amended.append((row.row, asked_again(request, known, failure, output, row.row)))

    def _fail(self, finish: cmd.Finish, answer: JobAnswer | None, batch: Batch, now_ms: int) -> None:
        assert finish.failure is not None  # noqa: S101 - a row without a result line
        row, submitted_ms = self._rows[finish.row], self._jobs.get(finish.job, ("", now_ms))[1]
        failure = failure_record(finish, finish.failure, answer, submitted_ms, now_ms)
        if failure.message.startswith(NO_ROUTE):
            failure = failure._replace(message=named_route(failure.message, self._lines.read_request(row)))
        batch.failures.append(failure)
        part = None
        if finish.job is not None and answer is not None and answer.output is not None:
            part = part_bytes(answer.output)
            batch.parts.append((finish.job, finish.row, part))
        if self._deliver is not None:
            self._deliver_failure(row._replace(attempts=finish.attempts), failure, finish.job, answer, part)

    def _deliver_failure(
        self, row: RowRecord, failure: FailureRecord, job: int | None, answer: JobAnswer | None, part: bytes | None
    ) -> None:
        remote_id, submitted_ms = self._jobs.get(job) or self._store.submission(job)
        failed = failed_job(remote_id, submitted_ms, answer, part, self._share.endpoint)
        self._delivered.append(self._lines.failure(row, failure, failed))

    def _submit(self, submit: cmd.Submit, batch: Batch, written: Written, now_ms: int) -> None:
        rows, requests = [], []
        for row, attempt in zip(submit.rows, submit.attempts, strict=True):
            request = self._requests.make(self._rows[row])
            if isinstance(request, LineChangedError):
                written.unusable.append(Unusable(submit.job, row, request.message))
            else:
                rows.append((row, attempt))
                requests.append(request)
                if self._cached is not None:
                    self._cached.note_sent(self._rows[row], request)
        if not rows:
            return
        numbers = tuple([row for row, _ in rows])
        carried: int | tuple[int, ...] | None = numbers if len(numbers) > 1 else numbers[0]
        for row, attempt in rows:
            batch.submitted.append(Submission(submit.job, row, attempt, now_ms, carried, self._share.endpoint))
            carried = None
        written.outgoing.append(Outgoing(submit.job, numbers, self._transport.body(requests, submit.job)))
