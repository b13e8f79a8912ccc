"""Recovers results files after a crash: complete lines are taken over, an incomplete last line is cut off."""

from __future__ import annotations

from dataclasses import replace

from batchrun.display.summary import Observer
from batchrun.display.units import counted
from batchrun.errors import StateError
from batchrun.results.record import CACHED, Record, read_record, result_digest
from batchrun.results.writer import end_line, recover, truncate
from batchrun.scheduler.states import RowState
from batchrun.state.opening import log_of
from batchrun.state.reader import StateReader
from batchrun.state.records import Batch, JobEnd, OutputRecord
from batchrun.state.shared_ids import stored_ids
from batchrun.state.store import Store


def recover_results(store: Store, session: int, now_ms: int, observer: Observer) -> None:
    """Make the results files and the state agree after a crash.

    Raises:
        StateError: a results file is shorter than its committed length, or has a line that this run did not write.
        OutputError: a results file cannot be read or truncated.
    """
    for output in store.outputs():
        path = store.results_path(output)
        tail = recover(path, output.committed_bytes)
        if tail.lacks_end:
            end_line(path)
            observer.message(f"{path}: restored the newline at the end of the last line")
        if not tail.lines and not tail.cut_bytes:
            continue
        batch, size_bytes = Batch(), output.committed_bytes
        taken: set[int] = set()
        counted_jobs: set[str] = set()
        for line in tail.lines:
            record = _take_over(store, output, line, batch, taken)
            batch.count_answer(*record.tokens_once(counted_jobs), record.marks)
            if record.counts_as_cached:
                batch.count(CACHED, 1)
            size_bytes += len(line)
        for line in tail.behind_hole:
            _take_over(store, output, line, Batch(), set())  # only checked: ours are written again
        batch.committed_bytes[output.output] = size_bytes
        batch.may_end_in_part = True
        store.commit(batch, session, now_ms)
        truncate(path, size_bytes)
        taken_over = f"took over {counted(len(tail.lines), 'uncommitted result')}" if tail.lines else ""
        cut_off = f"cut off {counted(tail.cut_bytes, 'byte')} of incomplete lines" if tail.cut_bytes else ""
        observer.message(f"{path}: {', '.join(filter(None, (taken_over, cut_off)))}")


def refuse_strange_lines(store: StateReader) -> None:
    """Refuse what `recover_results` would refuse, without changing anything.

    Raises:
        StateError, OutputError: see `recover_results`.
    """
    for output in store.outputs():
        path = store.results_path(output)
        tail = recover(path, output.committed_bytes)
        taken: set[int] = set()
        for line in tail.lines:
            _take_over(store, output, line, Batch(), taken)
        for line in tail.behind_hole:
            _take_over(store, output, line, Batch(), set())


def _take_over(store: StateReader, output: OutputRecord, line: bytes, batch: Batch, taken: set[int]) -> Record:
    path, record = store.results_path(output), read_record(line)
    row = store.row_by_id(*stored_ids(store, output.output, [(record.id, line)])) if record else None
    if record is None or row is None or not row.state.is_open or row.row in taken:
        raise StateError(
            f"{path} has a line that this run did not write: {line[:80].decode('utf-8', 'replace').strip()}…",
            "remove it from the file, or let --repair do that; if the state file is an older copy, restore the last"
            " one",
        )
    owner = row.row if row.same_as is None else row.same_as
    job = None if record.is_cached else store.job_of(owner)
    if job is None and not record.is_cached:
        # A submission is committed before it is sent, so this state file is an old copy.
        raise StateError(
            f"{store.path} is older than its results: {path} has a result of {record.id!r}, which it has not submitted",
            f"restore the latest state file, together with {log_of(store.path).name} if there was one; or add --repair"
            " to continue from the results: jobs that were in flight may be paid for twice",
        )
    taken.add(row.row)
    batch.ended.append(
        JobEnd(
            job,
            row.row,
            RowState.SUCCEEDED,
            "COMPLETED",
            row.retries,
            row.unconfirmed,
            None if record.delay_ms is None else round(record.delay_ms),
            None if record.execution_ms is None else round(record.execution_ms),
            result_digest(line),
        )
    )
    return record if row.same_as is None else replace(record, input_tokens=None, output_tokens=None)
