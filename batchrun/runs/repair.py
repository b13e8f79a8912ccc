"""Repairs lost or damaged results: makes the results files and the state agree again, whatever they contain.

A line that is proven to be the result of its row is kept, or taken over. Any other line is moved aside, so nothing that
was written is lost. A row whose line is missing becomes open again. The start of the repair is recorded before a
results file changes, and the state is updated in one transaction after all of them: after a crash in between, the next
start repairs again, with the same outcome.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import orjson

from batchrun.config import RETENTION_S, RunOptions
from batchrun.display.summary import Observer
from batchrun.results.reader import StoredLine, read_groups, read_lines, size_of
from batchrun.results.record import CACHED, read_job, read_record, result_digest, tells_of_job
from batchrun.results.text import MARKS
from batchrun.results.writer import ResultsFile, set_aside, write_whole
from batchrun.runs.superseding import adopt_superseded
from batchrun.scheduler.states import RowState
from batchrun.state.endpoints import known_endpoints
from batchrun.state.reader import StateReader
from batchrun.state.reconciliation import UNDER_WAY, FoundResult, RepairCounts, begin, reconcile, stage_results
from batchrun.state.shared_ids import stored_ids
from batchrun.state.snapshot import FoundRow, StateSnapshot
from batchrun.state.store import Store
from batchrun.state.stored_options import find_options, store_options

_BLANK, _STRANGE, _KEPT = 0, 1, 2
"""What a line of a results file is."""


def is_under_way(store: StateReader) -> bool:
    """Whether a repair was interrupted."""
    return store.get_setting(UNDER_WAY) is not None


def by_new_name(options: RunOptions) -> RunOptions:
    """The options with the new name of the results, if results and state were renamed together."""
    beside = options.state.with_name(options.state.name.removesuffix(".state"))
    if options.output_is_folder or options.output.exists() or beside == options.state or not beside.is_file():
        return options
    return replace(options, output=beside)


def by_old_name(store: StateReader, options: RunOptions) -> RunOptions:
    """The options with the name of the results that is in the state, if only a file with the new name exists."""
    stored, outputs = find_options(store), store.outputs()
    if stored is None or len(outputs) != 1 or options.output_is_folder:
        return options
    if store.results_path(outputs[0]).exists() or not options.output.is_file():
        return options
    return replace(options, output=stored.output)


def take_new_name(store: Store, options: RunOptions) -> None:
    """Store the new name of the results file in the state."""
    if by_old_name(store, options) is options:
        return
    stored, name = find_options(store), os.path.relpath(options.output, options.state.parent)
    store.rename_output(name)
    if stored is not None:
        store_options(store, replace(stored, output=options.output))


def repair_results(store: Store, options: RunOptions, now_ms: int, observer: Observer) -> None:
    """Make the results files and the state agree; reports what was lost, and how much must be paid for again.

    Args:
        store: The state, with all rows of the run; only this process may write it.
        options: The run's options.
        now_ms: UTC epoch milliseconds.
        observer: Receives the messages.

    Raises:
        StateError: a results file cannot be read.
        OutputError: results or state cannot be written; the next start repairs again.
    """
    begin(store)
    adopt_superseded(store, observer)
    sizes_bytes = {}
    counted_jobs: set[str] = set()
    numbers = {name: number for number, name in enumerate(known_endpoints(store, options))}
    with StateSnapshot(store.path) as rows:
        seen = bytearray(rows.last_row() + 1)
        for output in store.outputs():
            path = store.results_path(output)
            with _exclusively(path):
                marks = bytearray()
                for group in read_groups(path, end=size_of(path)):
                    kept = _kept(rows, output.output, numbers, group, seen, marks=marks, counted_jobs=counted_jobs)
                    stage_results(store, kept)
                sizes_bytes[output.output] = _rewrite(path.resolve(), marks, observer)
    # The local endpoint's jobs were lost with its process.
    kept_since_ms = now_ms + 1 if options.is_local else now_ms - round(RETENTION_S * 1000)
    amended = reconcile(store, sizes_bytes, marks=(*MARKS, CACHED), kept_since_ms=kept_since_ms, now_ms=now_ms)
    _tell(amended, observer)


@contextmanager
def _exclusively(path: Path) -> Iterator[None]:
    """Lock a results file until the end of the block.

    Raises:
        StateError: another run is writing it.
    """
    file = ResultsFile(path, size_of(path)) if path.exists() else None
    try:
        yield
    finally:
        if file is not None:
            file.close()


def _kept(
    rows: StateSnapshot,
    output: int,
    numbers: Mapping[str, int],
    lines: list[StoredLine],
    seen: bytearray,
    *,
    marks: bytearray,
    counted_jobs: set[str],
) -> Iterator[FoundResult]:
    """The lines that are results of rows; what each of the lines is, is appended to `marks`."""
    records = [read_record(line.raw) for line in lines]
    named = [("" if record is None else record.id, line.raw) for line, record in zip(lines, records, strict=True)]
    found = rows.find(stored_ids(rows, output, named, result_digest))
    for line, record, row in zip(lines, records, found, strict=True):
        digest = result_digest(line.raw)
        if not line.raw.strip():
            marks.append(_BLANK)
        elif record is None or row is None or seen[row.row] or not _is_result(line.raw, digest, row, numbers):
            marks.append(_STRANGE)
        else:
            marks.append(_KEPT)
            seen[row.row] = 1
            is_known = row.state == RowState.SUCCEEDED or record.is_cached
            job = None if is_known else read_job(line.raw)
            yield FoundResult(
                row.row,
                digest,
                None if job is None else job.id,
                None if job is None else job.attempts,
                None if job is None or job.submitted_at is None else round(job.submitted_at * 1000),
                None if record.delay_ms is None else round(record.delay_ms),
                None if record.execution_ms is None else round(record.execution_ms),
                numbers.get(job.endpoint, 0) if job else 0,
                *record.tokens_once(counted_jobs),
                orjson.dumps([*record.marks, *[CACHED] * record.counts_as_cached]).decode(),
            )


def _is_result(raw: bytes, digest: int, row: FoundRow, endpoints: Collection[str]) -> bool:
    """Whether a line that names a row is its result, judged by its digest, or without a digest by its endpoint."""
    if row.state == RowState.SUCCEEDED and row.result is not None:
        return row.result == digest
    return tells_of_job(raw, endpoints)


def _rewrite(path: Path, marks: bytearray, observer: Observer) -> int:
    """Remove all lines but the kept ones from a results file; returns its new length."""
    size_bytes = size_of(path)

    def marked(mark: int) -> Iterator[bytes]:
        for line, found in zip(read_lines(path, end=size_bytes), marks, strict=True):
            if found == mark:
                yield line.raw.rstrip() + b"\n"

    strange = marks.count(_STRANGE)
    kept_bytes = sum(map(len, marked(_KEPT)))
    if strange:
        aside = set_aside(path, marked(_STRANGE))
        observer.message(f"{path}: lines that are damaged, or not results of this run: {strange:,}; moved to {aside}")
    if kept_bytes != size_bytes or strange:
        write_whole(path, marked(_KEPT))
    return kept_bytes


def _tell(amended: RepairCounts, observer: Observer) -> None:
    if amended.taken_over:
        observer.message(f"results found that the state did not know of: {amended.taken_over:,}")
    lost = amended.polled + amended.paid + amended.shared
    if not lost:
        observer.message("no results of succeeded rows are lost")
        return
    remedies = [
        (amended.polled, "to be polled, because the jobs ended less than 30 minutes ago"),
        (amended.shared, "to be taken from an equal row"),
        (amended.paid, "to be paid for again"),
    ]
    listed = ", ".join(f"{count:,} {remedy}" for count, remedy in remedies if count)
    observer.message(f"results lost or damaged: {lost:,} ({listed})")
