"""What a run writes down, in the one order that makes it safe.

For each batch: result lines are appended and synced first, then one transaction commits that their rows are done
and how long the results file is, together with the intents to submit further rows. Only then does the driver send
those. A crash between the two leaves result lines beyond the committed length, which the next session takes over;
a crash before leaves nothing, and the job's result is asked for again.

All methods are called from one thread at a time, and block: the driver keeps them off its event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from batchrun.config import JobPolicy
from batchrun.endpoint.protocol import JobAnswer, run_body
from batchrun.endpoint.worker_errors import NO_ROUTE, named_route
from batchrun.engine.dedupe import Followers
from batchrun.engine.rows import LineChangedError, RowLines
from batchrun.errors import OutputError
from batchrun.prompts.shapes import LineError
from batchrun.results.completion import is_context_full, most_tokens
from batchrun.results.record import JobInfo, part_bytes, result_digest
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
        lines: Leads from a row to its lines.
        results: The results files.
        policy: What is asked of Runpod for each job.
        share: The rows that it is for.
        followers: Ends the rows that follow others; None: no row does.
        deliver: Given the records of rows that have ended, as lines, once they are on disk; None: nobody waits.
    """

    def __init__(
        self,
        store: Store,
        session: int,
        lines: RowLines,
        results: ResultsFiles,
        *,
        policy: JobPolicy,
        share: Share,
        followers: Followers | None = None,
        deliver: Callable[[list[bytes]], None] | None = None,
    ) -> None:
        self._followers = followers
        self._deliver = deliver
        self._delivered: list[bytes] = []
        self._share = share
        self._store = store
        self._session = session
        self._lines = lines
        self._policy = policy
        self._results = results
        self._rows: dict[int, RowRecord] = {}
        self._jobs: dict[int, tuple[str, int]] = {}
        self._sent: dict[int, _Sent] = {}
        self._last_row = 0
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
                line, marks = self._result_line(ending, batch, now_ms)
                lines.setdefault(self._lines.output(self._rows[ending.row]), []).append(line)
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

    def _result_line(self, finish: cmd.Finish, batch: Batch, now_ms: int) -> tuple[bytes, tuple[str, ...]]:
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
        line = self._lines.result(
            row,
            text,
            answer.output,
            carried=sent.carried,
            job=JobInfo(
                id=remote_id,
                endpoint=self._lines.endpoint(row),
                attempts=finish.attempts,
                delay_ms=answer.delay_ms,
                execution_ms=answer.execution_ms,
                worker_id=answer.worker_id,
                submitted_at=submitted_ms / 1000,
                completed_at=completed_ms(submitted_ms, answer, now_ms) / 1000,
                retries=answer.retries,
            ),
            possible_duplicate=finish.unconfirmed > 0,
        )
        return line, marks

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
                        failure = failure._replace(message=named_route(failure.message, self._lines.read_request(row)))
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
        failed = FailedJob(remote_id, submitted_ms, None, part, *times)
        self._delivered.append(self._lines.failure(row, failure, failed))

    def _body(self, row: int) -> bytes | LineChangedError:
        line = self._lines.line(self._rows[row])
        if isinstance(line, LineChangedError):
            return line
        try:
            request = self._lines.request(self._rows[row], line)
        except LineError as error:
            return LineChangedError(error.message)
        if self._rows[row].length <= _REMEMBERED_LINE_BYTES:
            self._sent[row] = _Sent(line.carried, most_tokens(request))
        return run_body(request, self._policy)

    def _sent_of(self, row: RowRecord) -> _Sent:
        """What the row's result needs of its line: remembered since its submission, or read again."""
        sent = self._sent.pop(row.row, None)
        if sent is None:
            line = self._lines.line(row)
            if isinstance(line, LineChangedError):
                return _Sent({}, None)
            sent = _Sent(line.carried, most_tokens(self._lines.request(row, line)))
        return sent


def completed_ms(submitted_ms: int, answer: JobAnswer, now_ms: int) -> int:
    """When a job was over: by its own times where it reports them, else now."""
    time_s = answer.time_in_system_s
    now_ms = max(now_ms, submitted_ms)  # the wall clock may have been set back since an earlier session
    return now_ms if time_s is None else min(now_ms, submitted_ms + round(time_s * 1000))


def _answer(answer: object) -> JobAnswer | None:
    return answer if isinstance(answer, JobAnswer) else None


def _whole(number: float | None) -> int | None:
    return None if number is None else round(number)
