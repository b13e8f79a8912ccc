"""A run from its options to its summary: opens what it needs, recovers, drives, concludes.

The order of opening is the order of safety: the lock, the state file, the check that the options fit it, the
inputs, then the results files and what a crash has left in them. Nothing is sent before all of that is well.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from batchrun.config import RETENTION_S, WINDOW_S
from batchrun.endpoint.client import EndpointClient
from batchrun.engine import Engine, Outcome
from batchrun.errors import InputError, StateError, StoppedError
from batchrun.intake import output_paths, take_in
from batchrun.journal import Journal, LineChangedError, read_line
from batchrun.prompts.lines import LineReader
from batchrun.prompts.sources import find_sources
from batchrun.results.record import JobInfo, error_line, read_record
from batchrun.results.summary import FailureGroup, Percentiles, Summary
from batchrun.results.writer import ResultsFile, recover, truncate, write_errors
from batchrun.scheduler.scheduler import Scheduler
from batchrun.scheduler.states import RowState
from batchrun.state.lock import StateLock
from batchrun.state.store import Batch, Ending, Store
from batchrun.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

    from batchrun.config import RunOptions
    from batchrun.results.summary import Observer
    from batchrun.state.store import OutputRecord, RowRecord

_IDENTITY = {"endpoint": "--endpoint", "base_url": "--base-url", "output": "--output"}
_REQUEST_IDENTITY = {"override": "--set", "default": "--default", "chat": "--chat", "system": "--system"}


class Run:
    """A run that is open in this process: its lock, its state, its files.

    Args:
        options: What was asked for.
        observer: Told what a person should know.
        clock: Monotonic seconds.
        wall: UTC epoch seconds.
        from_spool: Whether stdin is to be taken from its spooled copy.

    Raises:
        UsageError: anything that is wrong before something is sent; nothing is left behind by a run that never began.
        OutputError: something cannot be written.
    """

    def __init__(
        self,
        options: RunOptions,
        observer: Observer,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
        from_spool: bool = False,
    ) -> None:
        self.options = options
        self._observer = observer
        self._clock = clock
        self._wall = wall
        self._stack = ExitStack()
        self._session = 0
        self._session_from = clock()
        try:
            self._open(from_spool=from_spool)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self, *, from_spool: bool) -> None:
        options, stack = self.options, self._stack
        if options.state.is_dir():
            raise StateError(f"{options.state} is a folder, not a state file", "give --state a file name")
        is_new = not options.state.exists()
        if is_new:
            _refuse_strange_results(options)
        lock = StateLock(options.state)
        stack.callback(lock.release)
        with ExitStack() as undo:
            if is_new:
                undo.callback(_remove_state, options.state)
            self.store = Store(options.state)
            undo.callback(self.store.close)
            if not is_new:
                refuse_other_options(self.store, options)
            merged = take_in(options, self.store, self._observer, from_spool=from_spool)
            if merged and not merged.rows:
                raise InputError("there is no line in the input", f"looked at {', '.join(options.inputs)}")
            self.store.set_setting("options", options.to_json())
            undo.pop_all()
        stack.callback(self.store.close)
        if merged and not is_new and (merged.added or merged.dropped):
            self._observer.message(f"the input has changed: {merged.added} rows new, {merged.dropped} gone")
        self._session = self.store.begin_session(os.getpid(), self._now_ms())
        self._recover()
        self._sources = {source.source: source for source in self.store.sources()}
        self._reader = stack.enter_context(LineReader({n: Path(s.file) for n, s in self._sources.items()}))
        self._results = {}
        for output in self.store.outputs():
            file = ResultsFile(self._path(output), output.committed_bytes)
            stack.callback(file.close)
            self._results[output.output] = file

    def retry_failed(self, kinds: tuple[str, ...]) -> int:
        """Take up failed rows again: those of some kinds, or all; returns how many."""
        return self.store.retry_failed(kinds)

    async def drive(self, base_url: str, api_key: str | None, rng: Random) -> Outcome:
        """Submit, poll and collect until the run ends or is stopped."""
        options = self.options
        unconfirmed = self.store.settle_unconfirmed(options.scheduler.unconfirmed)
        if unconfirmed:
            fate = "submitted again" if options.scheduler.unconfirmed == "resubmit" else "held"
            self._observer.message(
                f"{unconfirmed} submissions were cut off before their answer: unconfirmed, they are {fate}"
            )
        counts = self.store.counts()
        if not any(counts[state] for state in RowState if state.is_open):
            return Outcome("finished")
        scheduler = Scheduler(options.scheduler, rng, next_job=self.store.next_job())
        now, now_ms = self._clock(), self._now_ms()
        recent_ms = self.store.recent_submissions_ms(now_ms - round(WINDOW_S * 1000))
        scheduler.remember_submissions(now - (now_ms - at_ms) / 1000 for at_ms in recent_ms)
        journal = Journal(
            self.store,
            self._session,
            options,
            sources=self._sources,
            reader=self._reader,
            results=self._results,
        )
        async with EndpointClient(
            base_url,
            options.endpoint,
            api_key,
            connections=options.scheduler.connections,
            timeout_s=options.timeout_s,
            use_proxy=not options.is_local,
        ) as client:
            engine = Engine(
                scheduler,
                journal,
                client,
                Tally(counts, self._clock()),
                self._observer,
                inspect_output=options.inspect_output,
                clock=self._clock,
                wall=self._wall,
            )
            return await engine.run()

    def conclude(self, outcome: Outcome) -> Summary:
        """Write the error files, close the session, and sum up.

        An error file that cannot be written makes a stopped run of a finished one: its rows are in the state.
        """
        errors: list[Path] = []
        try:
            errors = self._write_errors()
            self.store.end_session(self._session, self._now_ms(), outcome.kind)
        except StoppedError as error:
            outcome = Outcome("stopped", outcome.error or error)
        return self._summary(outcome, errors)

    def _now_ms(self) -> int:
        return round(self._wall() * 1000)

    def _path(self, output: OutputRecord) -> Path:
        return Path(os.path.normpath(self.options.state.absolute().parent / output.path))

    def _recover(self) -> None:
        """Take over result lines that a crash left uncommitted, and cut off a torn one."""
        for output in self.store.outputs():
            path = self._path(output)
            tail = recover(path, output.committed_bytes)
            if not tail.lines and not tail.cut_bytes:
                continue
            batch, size_bytes = Batch(), output.committed_bytes
            for line in tail.lines:
                self._take_over(path, line, batch)
                size_bytes += len(line)
            batch.committed_bytes[output.output] = size_bytes
            self.store.commit(batch, self._session, self._now_ms())
            truncate(path, size_bytes)
            self._observer.message(
                f"{path}: took over {len(tail.lines)} results that were not committed"
                + (f", cut off a torn line of {tail.cut_bytes} bytes" if tail.cut_bytes else "")
            )

    def _take_over(self, path: Path, line: bytes, batch: Batch) -> None:
        record = read_record(line)
        row = self.store.row_by_id(record.id) if record else None
        if record is None or row is None or not row.state.is_open:
            raise StateError(
                f"{path} has a line that this run did not write: {line[:80].decode('utf-8', 'replace').strip()}…",
                "take it out of the file, or start a new run with another --output",
            )
        batch.ended.append(
            Ending(
                self.store.query("SELECT job FROM rows WHERE row = ?", (row.row,))[0][0],
                row.row,
                RowState.SUCCEEDED,
                "COMPLETED",
                row.retries,
                row.unconfirmed,
                None if record.delay_ms is None else round(record.delay_ms),
                None if record.execution_ms is None else round(record.execution_ms),
            )
        )
        batch.count_tokens(record.input_tokens, record.output_tokens, record.finish_reason)

    def _write_errors(self) -> list[Path]:
        written = []
        for output in self.store.outputs():
            path = errors_path(self._path(output))
            if write_errors(path, self._error_lines(output.output)):
                written.append(path)
        return written

    def _error_lines(self, output: int) -> Iterator[bytes]:
        for row, failure, (remote_id, submitted_ms) in self.store.failures(output):
            job = JobInfo(
                id=remote_id,
                endpoint=self.options.endpoint,
                attempts=row.attempts,
                delay_ms=None,
                execution_ms=None,
                worker_id=failure.worker_id,
                submitted_at=None if submitted_ms is None else submitted_ms / 1000,
                completed_at=None if failure.completed_ms is None else failure.completed_ms / 1000,
            )
            yield error_line(
                row_id=row.id,
                status=failure.status,
                kind=failure.kind,
                message=failure.message,
                raw=failure.raw,
                request=self._request_of(row),
                file=self._sources[row.source].path,
                line=row.line,
                job=job if row.attempts else None,
            )

    def _request_of(self, row: RowRecord) -> Any:
        line = read_line(self._reader, row, self._sources[row.source].path)
        return None if isinstance(line, LineChangedError) else line.line

    def _summary(self, outcome: Outcome, errors: list[Path]) -> Summary:
        counts, counters = self.store.counts(), self.store.counters()
        wall_s = self.store.sessions_ms() / 1000
        ended = counts[RowState.SUCCEEDED] + counts[RowState.FAILED] + counts[RowState.HELD]
        tokens = "input_tokens" in counters or "output_tokens" in counters
        return Summary(
            outcome=outcome.kind,
            reason=outcome.error.message if outcome.error else "",
            hint=outcome.error.hint if outcome.error else "",
            total=sum(counts.values()),
            succeeded=counts[RowState.SUCCEEDED],
            failed=counts[RowState.FAILED],
            held=counts[RowState.HELD],
            not_run=counts[RowState.PENDING],
            in_flight=counts[RowState.SUBMITTING] + counts[RowState.SUBMITTED],
            failures=[FailureGroup(*group) for group in self.store.failure_groups()],
            wall_s=wall_s,
            session_s=self._clock() - self._session_from,
            rows_per_s=ended / wall_s if wall_s else 0.0,
            delay_ms=_percentiles(self.store, "delay_ms"),
            execution_ms=_percentiles(self.store, "execution_ms"),
            input_tokens=counters.get("input_tokens", 0) if tokens else None,
            output_tokens=counters.get("output_tokens", 0) if tokens else None,
            truncated=counters.get("truncated", 0),
            calls={name.removeprefix("calls_"): n for name, n in counters.items() if name.startswith("calls_")},
            throttled=counters.get("throttled", 0),
            retries=counters.get("retries", 0),
            unconfirmed=counters.get("unconfirmed", 0),
            results=[self._path(output) for output in self.store.outputs()],
            errors=errors,
            state=self.options.state,
            rescue_by=rescue_by(self.store),
        )


def refuse_other_options(store: Store, options: RunOptions) -> None:
    """Refuse to go on with a state file under options that ask for something else.

    Raises:
        StateError: names each option that differs, with both values.
    """
    stored = store.get_setting("options")
    if not isinstance(stored, dict):
        return
    now = options.to_json()
    pairs = [(option, stored[key], now[key]) for key, option in _IDENTITY.items()]
    pairs += [(option, stored["request"][key], now["request"][key]) for key, option in _REQUEST_IDENTITY.items()]
    differing = [
        f"{option} {_shown(was)} (now {_shown(is_now)})"
        for option, was, is_now in pairs
        if was != is_now and not (option == "--base-url" and options.is_local)
    ]
    if differing:
        raise StateError(
            f"{options.state} belongs to a run with {', '.join(differing)}",
            "go on with the same options, or start a new run with another --output",
        )


def _shown(value: Any) -> str:
    """An option's value as it would be given on the command line."""
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items()) or "nothing"
    return "nothing" if value in (None, False) else "" if value is True else str(value)


def rescue_by(store: Store) -> float | None:
    """By when to resume at the latest, UTC epoch seconds; None when nothing is in flight.

    A result is kept for 30 minutes after its job's end; the oldest job is taken to need as long as the last ones did.
    """
    earliest = store.query("SELECT min(j.submitted_ms) FROM rows r JOIN jobs j ON j.job = r.job WHERE r.state = 2")
    if earliest[0][0] is None:
        return None
    return (float(earliest[0][0]) + store.usual_time_ms()) / 1000 + RETENTION_S


def errors_path(results: Path) -> Path:
    """The error file that belongs to a results file."""
    return results.with_name(f"{results.name.removesuffix('.jsonl')}.errors.jsonl")


def _percentiles(store: Store, column: str) -> Percentiles | None:
    values = store.percentiles(column, (0.5, 0.9, 0.99))
    return Percentiles(*values) if values else None


def _refuse_strange_results(options: RunOptions) -> None:
    """Results without their state file may be anybody's: they are never written to."""
    for path in output_paths(options, find_sources(options.inputs)):
        if path.exists() and path.stat().st_size:
            raise StateError(
                f"{path} exists, but its state file {options.state} does not",
                "move the results away, or give another --output",
            )


def _remove_state(state: Path) -> None:
    for path in (state, *(state.with_name(state.name + suffix) for suffix in ("-wal", "-shm"))):
        path.unlink(missing_ok=True)
    for spooled in state.parent.glob(f"{state.name}.*.jsonl"):
        spooled.unlink()
