"""What a run writes down, in the one order that makes it safe.

For each batch: result lines are appended and synced first, then one transaction commits that their rows are done
and how long the results file is, together with the intents to submit further rows. Only then does the driver send
those. A crash between the two leaves result lines beyond the committed length, which the next session takes over;
a crash before leaves nothing, and the job's result is asked for again.

All methods are called from one thread at a time, and block: the driver keeps them off its event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from batchrun.config import RunOptions
from batchrun.endpoint.protocol import JobAnswer, run_body
from batchrun.endpoint.worker_errors import NO_ROUTE, named_route
from batchrun.engine.dedupe import Followers
from batchrun.engine.rows import InvalidLineError, LineChangedError, read_line
from batchrun.errors import OutputError
from batchrun.files.exactjson import load
from batchrun.prompts.lines import LineReader
from batchrun.prompts.shapes import LineError, Prompt, build_request
from batchrun.prompts.sweep import ENDPOINT, Sweep
from batchrun.results.completion import Asked, asked_of, is_context_full, most_tokens
from batchrun.results.openai import openai_line
from batchrun.results.record import JobInfo, error_line, part_bytes, result_digest, result_line
from batchrun.results.text import CONTEXT_FULL, AnswerTotals, extract
from batchrun.results.writer import ResultsFiles
from batchrun.scheduler import commands as cmd
from batchrun.scheduler.events import Ticket
from batchrun.scheduler.failures import Failure
from batchrun.scheduler.states import RowState
from batchrun.state.records import (
    Acceptance,
    Batch,
    FailedJob,
    FailureRecord,
    JobEnd,
    OpenJob,
    RowRecord,
    Share,
    SourceRecord,
    Submission,
)
from batchrun.state.store import Store

_REMEMBERED_LINE_BYTES = 4096
"""What longer lines carry is read again when their result comes, so that a window of them stays small."""


@dataclass(slots=True)
class PendingWrites:
    """What is to be written next, as the driver collects it."""

    submits: list[cmd.Submit] = field(default_factory=list)
    accepted: list[Acceptance] = field(default_factory=list)
    endings: list[cmd.Requeue | cmd.Finish | cmd.Hold] = field(default_factory=list)
    cancels: list[cmd.Cancel] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    timeline: list[Any] | None = None
    """How the run has gone so far; None: as it was written last."""
    followers_succeeded: int = 0
    """Rows that another's job has answered, as the journal has found."""
    followers_failed: int = 0
    followers_held: int = 0

    def __bool__(self) -> bool:
        return bool(self.submits or self.accepted or self.endings or self.cancels)

    def count(self, name: str, by: int = 1) -> None:
        """Add to one of the run's counters."""
        self.counters[name] = self.counters.get(name, 0) + by


class Loaded(NamedTuple):
    """Rows to submit next."""

    tickets: tuple[Ticket, ...]
    exhausted: bool
    """Whether there are no more."""
    added: int = 0
    """How many of them the run did not have before."""


class _Sent(NamedTuple):
    """What is kept of a line between its submission and its result."""

    carried: dict[str, Any]
    most_tokens: float | None
    """See `completion.most_tokens`."""


class Journal:
    """Writes what happens to a run, and reads back what is to be sent.

    Args:
        store: The state file, open for this session.
        session: The session's number.
        options: The run's options.
        sources: The inputs by number.
        reader: Leads from a row back to its line.
        results: The results files.
        endpoint: Where its jobs go.
        share: The rows that go there.
        followers: Ends the rows that follow others; None: no row does.
        deliver: Given the records of rows that have ended, as lines, once they are on disk; None: nobody waits.
    """

    def __init__(
        self,
        store: Store,
        session: int,
        options: RunOptions,
        *,
        sources: Mapping[int, SourceRecord],
        reader: LineReader,
        results: ResultsFiles,
        endpoint: str,
        share: Share,
        followers: Followers | None = None,
        deliver: Callable[[list[bytes]], None] | None = None,
    ) -> None:
        self._followers = followers
        self._endpoint = endpoint
        self._deliver = deliver
        self._delivered: list[bytes] = []
        self._share = share
        self._store = store
        self._session = session
        self._options = options
        self._sources = sources
        self._reader = reader
        self._results = results
        self._rows: dict[int, RowRecord] = {}
        self._jobs: dict[int, tuple[str, int]] = {}
        self._sent: dict[int, _Sent] = {}
        self._last_row = 0
        self._sweep = Sweep(options.sweep, reader.reading)
        self._is_openai = options.format == "openai"
        self.said = AnswerTotals()

    def load(self, count: int) -> Loaded:
        """Up to `count` further pending rows."""
        records = self._store.pending(self._last_row, count, self._share)
        if records:
            self._last_row = records[-1].row
        for record in records:
            self._rows[record.row] = record
        tickets = (Ticket(row.row, row.attempts, row.retries, row.unconfirmed) for row in records)
        return Loaded(tuple(tickets), exhausted=len(records) < count)

    def adopt(self) -> list[OpenJob]:
        """The jobs of earlier sessions that are still to be asked after."""
        jobs = self._store.open_jobs(self._share)
        for job in jobs:
            self._rows[job.row.row] = job.row
            self._jobs[job.job] = (job.remote_id, job.submitted_ms)
        return jobs

    def write(self, work: PendingWrites, now_ms: int) -> dict[int, bytes | LineChangedError]:
        """Write a batch down; it is on disk when this returns.

        Returns:
            For each job of `work.submits` the body to send, or why there is none.

        Raises:
            OutputError: results or state cannot be written, now or before: what follows a line that was not committed
                would commit it too. What was committed before is whole.
        """
        if self._store.has_failed:
            raise OutputError(f"{self._store.path}: nothing is written after a write that failed", "run it again")
        try:
            return self._write(work, now_ms)
        except BaseException:
            self._store.has_failed = True
            raise

    def _write(self, work: PendingWrites, now_ms: int) -> dict[int, bytes | LineChangedError]:
        for accepted in work.accepted:
            self._jobs[accepted.job] = (accepted.remote_id, accepted.submitted_ms)
        cancelling = [(cancel.job,) for cancel in work.cancels]
        batch = Batch(accepted=work.accepted, cancelling=cancelling, counters=work.counters, timeline=work.timeline)
        digests = self._append_results(work, batch, now_ms)
        for ending in work.endings:
            self._end(ending, batch, now_ms, digests.get(ending.row))
            if self._followers is None:
                continue
            if isinstance(ending, cmd.Hold):
                work.followers_held += self._followers.end_with(ending.row, batch)
            elif isinstance(ending, cmd.Finish) and ending.failure is not None:
                work.followers_failed += self._followers.end_with(ending.row, batch)
        bodies: dict[int, bytes | LineChangedError] = {}
        for submit in work.submits:
            body = bodies[submit.job] = self._body(submit.row)
            if isinstance(body, bytes):
                batch.submitted.append(Submission(submit.job, submit.row, submit.attempt, now_ms))
        self._store.commit(batch, self._session, now_ms)
        for ending in work.endings:
            self._jobs.pop(ending.job, None)
            if not isinstance(ending, cmd.Requeue):
                del self._rows[ending.row]
                self._sent.pop(ending.row, None)
        if self._deliver is not None and self._delivered:
            self._deliver(self._delivered)
            self._delivered = []
        return bodies

    def _append_results(self, work: PendingWrites, batch: Batch, now_ms: int) -> dict[int, int]:
        """Append and sync the results; returns the digest of each row's line."""
        digests: dict[int, int] = {}
        lines: dict[int, list[bytes]] = {}
        leaders: list[tuple[int, bytes, tuple[str, ...]]] = []
        for ending in work.endings:
            if isinstance(ending, cmd.Finish) and ending.failure is None:
                source = self._sources[self._rows[ending.row].source]
                line, marks = self._result_line(ending, source, batch, now_ms)
                lines.setdefault(source.output, []).append(line)
                digests[ending.row] = result_digest(line)
                if self._followers is not None:
                    leaders.append((ending.row, line, marks))
        for output, new in lines.items():
            self._results[output].append(new)
            self._keep(*new)
            batch.committed_bytes[output] = self._results[output].size_bytes
        if self._followers is not None:
            for row, line, marks in leaders:
                count = self._followers.answer(row, line, batch, marks)
                work.followers_succeeded += count
                self.said.marks.update(dict.fromkeys(marks, count))
        self._results.sync(batch.committed_bytes)
        return digests

    def _result_line(
        self, finish: cmd.Finish, source: SourceRecord, batch: Batch, now_ms: int
    ) -> tuple[bytes, tuple[str, ...]]:
        """A row's line, and what there is to say of its answer."""
        row, answer = self._rows[finish.row], finish.answer
        assert isinstance(answer, JobAnswer)  # noqa: S101 - the driver hands over what /status answered
        text = extract(answer.output)
        sent = self._sent_of(row)
        marks = text.marks
        if "truncated" in marks and is_context_full(text, sent.most_tokens):
            marks = (*marks, CONTEXT_FULL)
        batch.count_answer(text.input_tokens, text.output_tokens, marks)
        self.said.add(text, marks)
        remote_id, submitted_ms = self._jobs[finish.job]
        line = result_line(
            row_id=row.id,
            text=text,
            output=answer.output,
            carried=sent.carried,
            variant=self._sweep.variant(row.variant).values,
            file=source.path,
            line=row.line,
            job=JobInfo(
                id=remote_id,
                endpoint=self._endpoint,
                attempts=finish.attempts,
                delay_ms=answer.delay_ms,
                execution_ms=answer.execution_ms,
                worker_id=answer.worker_id,
                submitted_at=submitted_ms / 1000,
                completed_at=completed_ms(submitted_ms, answer, now_ms) / 1000,
                retries=answer.retries,
            ),
            possible_duplicate=finish.unconfirmed > 0,
            write=(lambda record: openai_line(record, lambda: self._asked(row))) if self._is_openai else None,
        )
        return line, marks

    def _asked(self, row: RowRecord) -> Asked:
        """What a row's request asked for: only answers that do not tell have need of it."""
        request = self._request(row)
        return Asked() if request is None else asked_of(request)

    def _request(self, row: RowRecord) -> dict[str, Any] | None:
        """A row's request, read again; None: its line has changed."""
        line = self._line(row)
        if isinstance(line, LineChangedError):
            return None
        return self._request_of(line, row)

    def _end(self, ending: cmd.Requeue | cmd.Finish | cmd.Hold, batch: Batch, now_ms: int, digest: int | None) -> None:
        row = self._rows[ending.row]
        retries, answer = row.retries, None
        status: str | None
        match ending:
            case cmd.Finish():
                state = RowState.FAILED if ending.failure else RowState.SUCCEEDED
                status, answer = ending.status, _answer(ending.answer)
                if ending.failure:
                    failure = self._failure(ending, ending.failure, answer, now_ms)
                    if failure.message.startswith(NO_ROUTE):
                        failure = failure._replace(message=named_route(failure.message, self._request(row)))
                    batch.failures.append(failure)
                    part = None
                    if answer is not None and answer.output is not None:
                        part = part_bytes(answer.output)
                        batch.parts.append((ending.job, part))
                    self._keep_failure(row._replace(attempts=ending.attempts), failure, ending.job, answer, part)
            case cmd.Hold():
                state, status = RowState.HELD, "UNCONFIRMED"
            case cmd.Requeue():
                state, status, retries, answer = RowState.PENDING, ending.status, ending.retries, _answer(ending.answer)
        batch.ended.append(
            JobEnd(
                ending.job,
                ending.row,
                state,
                status,
                retries,
                ending.unconfirmed,
                _whole(answer.delay_ms) if answer else None,
                _whole(answer.execution_ms) if answer else None,
                digest,
            )
        )
        if state is RowState.PENDING:
            self._rows[ending.row] = row._replace(retries=retries, unconfirmed=ending.unconfirmed)

    def _failure(self, ending: cmd.Finish, failure: Failure, answer: JobAnswer | None, now_ms: int) -> FailureRecord:
        submitted_ms = self._jobs.get(ending.job, ("", now_ms))[1]
        return FailureRecord(
            ending.row,
            ending.status,
            failure.kind.value,
            failure.message,
            failure.raw,
            answer.worker_id if answer else None,
            completed_ms(submitted_ms, answer, now_ms) if answer else None,
        )

    def _keep(self, *lines: bytes) -> None:
        if self._deliver is not None:
            self._delivered.extend(lines)

    def _keep_failure(
        self, row: RowRecord, failure: FailureRecord, job: int, answer: JobAnswer | None, part: bytes | None
    ) -> None:
        if self._deliver is None:
            return
        remote_id, submitted_ms = self._jobs.get(job) or self._store.submission(job)
        times = (_whole(answer.delay_ms), _whole(answer.execution_ms)) if answer else (None, None)
        self._delivered.append(
            failure_line(
                row,
                failure,
                FailedJob(remote_id, submitted_ms, None, part, *times),
                source=self._sources[row.source],
                reader=self._reader,
                sweep=self._sweep,
                endpoint=self._endpoint,
            )
        )

    def _body(self, row: int) -> bytes | LineChangedError:
        line = self._line(self._rows[row])
        if isinstance(line, LineChangedError):
            return line
        try:
            request = self._request_of(line, self._rows[row])
        except LineError as error:
            return LineChangedError(error.message)
        if self._rows[row].length <= _REMEMBERED_LINE_BYTES:
            self._sent[row] = _Sent(line.carried, most_tokens(request))
        return run_body(request, self._options.policy)

    def _request_of(self, line: Prompt, row: RowRecord) -> dict[str, Any]:
        return build_request(self._sweep.apply(line, row.variant), self._options.request)

    def _sent_of(self, row: RowRecord) -> _Sent:
        """What the row's result needs of its line: remembered since its submission, or read again."""
        sent = self._sent.pop(row.row, None)
        if sent is None:
            line = self._line(row)
            if isinstance(line, LineChangedError):
                return _Sent({}, None)
            sent = _Sent(line.carried, most_tokens(self._request_of(line, row)))
        return sent

    def _line(self, row: RowRecord) -> Prompt | LineChangedError:
        return read_line(self._reader, row, self._sources[row.source].path)


def failure_line(
    row: RowRecord,
    failure: FailureRecord,
    failed: FailedJob,
    *,
    source: SourceRecord,
    reader: LineReader,
    sweep: Sweep,
    endpoint: str,
    write: Callable[[dict[str, Any]], bytes] | None = None,
) -> bytes:
    """The error record of a row that has failed.

    Args:
        row: The row, with all of its attempts.
        failure: Why.
        failed: Its last job.
        source: Its input.
        reader: Leads to its line.
        sweep: Its run's.
        endpoint: Its run's; a sweep may say another.
        write: Makes the line from its record; None: in our own format.
    """
    variant = sweep.variant(row.variant).values
    line = read_line(reader, row, source.path)
    raw, request = failure.raw, None
    if isinstance(line, InvalidLineError):
        raw, request = line.raw.decode(errors="backslashreplace"), line.request
    elif not isinstance(line, LineChangedError):
        with suppress(LineError):  # of a line that is invalid because it has no place for a value of the sweep
            line = sweep.apply(line, row.variant)
        request = line.line
    job = JobInfo(
        id=failed.remote_id,
        endpoint=variant.get(ENDPOINT, endpoint),
        attempts=row.attempts,
        delay_ms=failed.delay_ms,
        execution_ms=failed.execution_ms,
        worker_id=failure.worker_id,
        submitted_at=None if failed.submitted_ms is None else failed.submitted_ms / 1000,
        completed_at=None if failure.completed_ms is None else failure.completed_ms / 1000,
    )
    return error_line(
        row_id=row.id,
        status=failure.status,
        kind=failure.kind,
        message=failure.message,
        raw=raw,
        request=request,
        variant=variant,
        file=source.path,
        line=row.line,
        job=job if row.attempts else None,
        same_as=failed.same_as,
        part=None if failed.output is None else load(failed.output),
        write=write,
    )


def completed_ms(submitted_ms: int, answer: JobAnswer, now_ms: int) -> int:
    """When a job was over: by its own times where it reports them, else now."""
    time_s = answer.time_in_system_s
    now_ms = max(now_ms, submitted_ms)  # the wall clock may have been set back since an earlier session
    return now_ms if time_s is None else min(now_ms, submitted_ms + round(time_s * 1000))


def _answer(answer: object) -> JobAnswer | None:
    return answer if isinstance(answer, JobAnswer) else None


def _whole(number: float | None) -> int | None:
    return None if number is None else round(number)
