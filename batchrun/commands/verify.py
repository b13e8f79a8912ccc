"""`batchrun verify`: every row is accounted for, every result is present once, every input line is unchanged.

The state file is read as a snapshot, and each results file up to the length that is committed in it, so a run that
another process is writing does not look broken. Nothing is written. Memory grows by one byte per row, and by more only
if an input has lines without a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from batchrun.commands.digests import against_manifest, changed_originals, replaced_results
from batchrun.commands.findings import PROBLEMS, UNSETTLED, Fault, Verification
from batchrun.commands.input_lines import InputLines, where
from batchrun.errors import StateError
from batchrun.files.urls import place_in
from batchrun.prompts.line_rules import LineRules
from batchrun.prompts.shard import LineSum, Shard
from batchrun.prompts.sweep import Sweep
from batchrun.results.error_record import read_error_id
from batchrun.results.reader import StoredLine, in_groups, read_groups, read_lines, size_of
from batchrun.results.record import read_record, result_digest, source_file
from batchrun.results.writer import errors_path
from batchrun.runs.checks import new_place
from batchrun.scheduler.states import RowState
from batchrun.state.figures import count_failures
from batchrun.state.invariants import INVARIANTS, count_breaches, forgotten_rows, name_breaches
from batchrun.state.lock import holder
from batchrun.state.records import OutputRecord
from batchrun.state.shared_ids import has_shared_ids, is_shared_id, stored_ids
from batchrun.state.snapshot import FoundRow, StateSnapshot
from batchrun.state.stored_options import find_options
from batchrun.state.superseded import redo_under_way, superseded_files

_NAMED = 5
"""The number of places that are named for each kind of problem."""
_RESULT, _ERROR, _ALTERED = 1, 2, 4
"""Flags of a row: its result was found, its error record was found, an altered result was found."""


def verify(state: Path, lost: Callable[[str], object] | None = None) -> Verification:
    """Verify the run of a state file.

    Args:
        state: The state file.
        lost: Called with the id of each row whose result is lost or damaged, as `file:id` if several rows have that
            id; None: not called.

    Raises:
        StateError: there is no such state file, or it cannot be read.
    """
    found = Verification(str(state), _pid_of(state))
    with StateSnapshot(state) as store:
        session, moved = store.last_session(), _moved(store)
        faults = store.damage()
        if faults:
            found.problems = [Fault("damaged", len(faults), faults)]
            return found
        check = _Check(store, found, lost)
        check.rows()
        for output in store.outputs():
            check.results(output, store.lines_path(output))
            check.errors(output, errors_path(store.results_path(output)))
        check.cached()
        check.superseded()
        check.lines()
    if found.pid is None:
        found.pid = _pid_of(state)
    with StateSnapshot(state) as now:
        if _moved(now) != moved:
            raise StateError(f"{state}: a redo has moved results while they were read", "give the same command again")
        is_settled = found.pid is None and session[1] is not None and session == now.last_session()
        check.conclude(now if is_settled else None)
    return found


def _pid_of(state: Path) -> int | None:
    who = holder(state)
    return None if who is None else who.pid


def _moved(store: StateSnapshot) -> tuple[object, object]:
    """What a redo changes when it moves results."""
    return superseded_files(store), redo_under_way(store)


class _Check:
    """The checks, to be called in this order: `rows`, `results` and `errors` of each output, the others, `conclude`."""

    def __init__(self, store: StateSnapshot, found: Verification, lost: Callable[[str], object] | None) -> None:
        self._store = store
        self._found = found
        self._lost = lost
        self._problems = {kind: Fault(kind) for kind in PROBLEMS}
        self._sources = {source.source: source for source in store.sources()}
        self._has_shared_ids = has_shared_ids(store)
        self._paths: dict[int, Path] = {}
        self._error_files: set[int] = set()
        self._moved = 0
        self._held = 0
        self._marks = bytearray(store.last_row() + 1)

    def rows(self) -> None:
        """Compare the tables of the state file with one another."""
        found, store = self._found, self._store
        found.counts = store.counts()
        found.rows = sum(found.counts.values())
        found.failures = count_failures(store)
        for kind, invariant in INVARIANTS.items():
            problem = self._problems[kind]
            problem.count = count_breaches(store, invariant)
            if problem.count:
                problem.first = name_breaches(store, invariant, _NAMED)
        for row_id, source in forgotten_rows(store):
            self._lose(row_id, source)

    def results(self, output: OutputRecord, path: Path) -> None:
        """Check a results file, up to its committed length and beyond."""
        self._paths[output.output] = path
        self._found.results_files += 1
        try:
            size_bytes = size_of(path)
            if size_bytes < output.committed_bytes:
                short = output.committed_bytes - size_bytes
                what = f"is {short:,} bytes shorter than the state file says" if size_bytes else "is missing or empty"
                self._add("file", f"{path} {what}")
            last = 0
            for group in read_groups(path, end=output.committed_bytes):
                last = group[-1].number
                for line, row_id, row in self._belonging(output, path, group, _result_id, "no_result"):
                    self._result(output, path, line, row_id, row)
            tail = read_lines(path, start=output.committed_bytes, end=size_bytes, first=last + 1)
            self._tail(output, path, tail)
        except StateError as error:
            self._add("file", error.message)

    def _result(self, output: OutputRecord, path: Path, line: StoredLine, row_id: str, row: FoundRow) -> None:
        if row.state != RowState.SUCCEEDED:
            self._add("not_succeeded", f"{path}:{line.number} ({row_id})")
        elif row.result is not None and row.result != result_digest(line.raw):
            self._marks[row.row] |= _ALTERED
            self._add("altered", f"{path}:{line.number} ({row_id})")
        elif self._marks[row.row] & _RESULT:
            self._add("twice", f"{path}:{line.number} ({row_id})")
        else:
            self._marks[row.row] |= _RESULT
            self._found.results += 1
            self._found.compared += row.result is not None
            self._found.cached += _is_cached(line.raw)
            source = self._sources.get(row.source)
            if source is not None and source.output != output.output:
                self._elsewhere(output, path, line, row_id)

    def _elsewhere(self, output: OutputRecord, path: Path, line: StoredLine, row_id: str) -> None:
        """Judge a result in the file of another input than its row's: that is fine if the line was moved since."""
        file = source_file(line.raw)
        if any(source.path == file and source.output != output.output for source in self._sources.values()):
            self._add("wrong_file", f"{path}:{line.number} ({row_id})")
        else:
            self._moved += 1

    def _tail(self, output: OutputRecord, path: Path, tail: Iterator[StoredLine]) -> None:
        count = torn_bytes = 0
        for group in in_groups(tail):
            if not group[-1].raw.endswith(b"\n"):
                torn_bytes = len(group.pop().raw)
            count += len(group)
            for line, row_id, row in self._belonging(output, path, group, _result_id, "no_result"):
                if row.state == RowState.SUCCEEDED or self._marks[row.row] & _RESULT:
                    self._add("twice", f"{path}:{line.number} ({row_id}), not committed")
                elif row.state in (RowState.FAILED, RowState.HELD):
                    self._add("ended", f"{path}:{line.number} ({row_id})")
                else:
                    self._marks[row.row] |= _RESULT
        self._found.uncommitted += count
        if count:
            self._found.notes.append(
                f"{path}: lines that are not committed yet: {count:,}; the next session takes them over"
            )
        if torn_bytes:
            self._found.notes.append(
                f"{path}: incomplete last line of {torn_bytes:,} bytes; the next session cuts it off"
            )

    def errors(self, output: OutputRecord, path: Path) -> None:
        """Check an error file, if there is one."""
        try:
            size_bytes = size_of(path)
            if not size_bytes:
                return
            self._error_files.add(output.output)
            for group in read_groups(path, end=size_bytes):
                for line, row_id, row in self._belonging(
                    output, path, group, read_error_id, "no_error", unknown="stray_error"
                ):
                    source = self._sources.get(row.source)
                    has_ended = row.state in (RowState.FAILED, RowState.HELD)
                    if not has_ended or (source is not None and source.output != output.output):
                        self._add("stray_error", f"{path}:{line.number} ({row_id})")
                    elif self._marks[row.row] & _ERROR:
                        self._add("error_twice", f"{path}:{line.number} ({row_id})")
                    else:
                        self._marks[row.row] |= _ERROR
                        self._found.errors += row.state == RowState.FAILED
                        self._held += row.state == RowState.HELD
        except StateError as error:
            self._add("file", error.message)

    def superseded(self) -> None:
        """Check the results that `redo` has replaced."""
        for count, wrong in replaced_results(self._store):
            self._found.superseded += count
            if wrong:
                self._add("superseded", wrong)
        if self._found.superseded:
            self._found.notes.append(f"older results, replaced by `redo` and kept: {self._found.superseded:,}")
        if redo_under_way(self._store) is not None:
            self._found.notes.append("a redo was interrupted; the next session finishes it, or undoes it")

    def cached(self) -> None:
        """Report how many results have an answer from the cache."""
        if self._found.cached:
            self._found.notes.append(f"results with an answer from the cache, without a job: {self._found.cached:,}")

    def lines(self) -> None:
        """Check the input line of each row, and find rows without a result or an error record."""
        absent: Counter[int] = Counter()
        options = find_options(self._store)
        rules = LineRules(None if options is None else options.request, self._store.reading)
        with InputLines(self._add, rules) as inputs:
            for row in self._store.scan():
                source = self._sources.get(row.source)
                if source is None:
                    self._add("no_input", row.id)
                    continue
                if row.state == RowState.SUCCEEDED and not self._marks[row.row] & _RESULT:
                    self._lose(row.id, row.source)
                    if not self._marks[row.row] & _ALTERED:
                        self._add("missing", where(source, row))
                elif row.state == RowState.FAILED and not self._marks[row.row] & _ERROR:
                    if source.output in self._error_files:
                        self._add("missing_error", where(source, row))
                    else:
                        absent[source.output] += 1
                if inputs.is_unchanged(source, row):
                    self._found.lines += 1
            self._find_lines_without_row(inputs)
            if inputs.missing and options is not None:
                again = new_place(options)
                self._found.notes.append(f"inputs not found: {len(inputs.missing):,}; say where they are: {again}")
        for copied in changed_originals(self._store):
            self._add("source", copied)
        if uncompared := self._found.results - self._found.compared:
            self._found.notes.append(f"results that cannot be compared (older version, no digest): {uncompared:,}")
        self._found.notes += inputs.notes()
        for output, count in absent.items():
            missing = errors_path(self._paths[output]) if output in self._paths else "the error file"
            self._found.notes.append(f"{missing} is missing (failed rows: {count:,}); the next session writes it")

    def _find_lines_without_row(self, inputs: InputLines) -> None:
        """Find input lines that have no row, or not all of their rows."""
        options = find_options(self._store)
        if options is None:
            return
        mark, whole = self._store.get_setting("intake"), self._store.get_setting("whole_input")
        size = Sweep(options.sweep).size
        lines, rows = inputs.count(self._sources.values()), self._store.rows_by_source(size)
        shard = None if options.shard is None else Shard.parse(options.shard)
        if shard is not None and isinstance(whole, dict):
            short = set(lines) if sum(lines.values()) > LineSum.from_json(whole).lines else set[int]()
        else:
            short = {number for number, count in lines.items() if count * size > rows.get(number, 0)}
        if short and options.limit is not None:
            self._found.notes.append(f"the input has more lines, but the run is limited to {options.limit:,} rows")
            short = set()
        for number in sorted(short):
            source = self._sources[number]
            for line in inputs.without_row(source, self._store.rows_by_line(number, size), size, shard):
                self._add("no_row", place_in(source.path, line))
        taken = mark.get("rows", 0) if isinstance(mark, dict) else 0
        gone = taken - self._found.rows - self._problems["no_row"].count
        if gone > 0:
            self._add("no_row", "rows that the run once had", gone)

    def _lose(self, row_id: str, source: int) -> None:
        self._found.lost += 1
        if self._lost is not None:
            is_shared = self._has_shared_ids and source in self._sources and is_shared_id(self._store, row_id)
            self._lost(f"{self._sources[source].path}:{row_id}" if is_shared else row_id)

    def conclude(self, settled: StateSnapshot | None) -> None:
        """List the problems; those that a session in progress will still resolve become notes.

        Args:
            settled: The present state, if no session has written to it during the checks or will; else None.
        """
        found = self._found
        if settled is not None and not any(problem.count for problem in self._problems.values()):
            for difference in against_manifest(settled):
                self._add("manifest", difference)
        for problem in self._problems.values():
            if problem.count and (settled is not None or problem.kind not in UNSETTLED):
                found.problems.append(problem)
            elif problem.count:
                found.notes.append(f"{problem} ({', '.join(problem.first)}); the end of the next session resolves this")
        if found.pid is None and (unlisted := found.counts[RowState.HELD] - self._held) > 0:
            found.notes.append(f"held rows missing from the error files: {unlisted:,}; the next session adds them")
        if self._moved:
            found.notes.append(
                f"results in the file of another input, from which their lines were moved since: {self._moved:,}"
            )

    def _belonging(
        self,
        output: OutputRecord,
        path: Path,
        lines: list[StoredLine],
        id_of: Callable[[bytes], str | None],
        wrong: str,
        *,
        unknown: str = "unknown_row",
    ) -> Iterator[tuple[StoredLine, str, FoundRow]]:
        """The lines that belong to a row, each with its row; the others are counted as problems."""
        named = []
        for line in lines:
            row_id = id_of(line.raw) if line.raw.endswith(b"\n") else None
            if row_id is None:
                self._add(wrong, f"{path}:{line.number}")
            else:
                named.append((line, row_id))
        ids = stored_ids(self._store, output.output, [(row_id, line.raw) for line, row_id in named], result_digest)
        rows = self._store.find(ids)
        for (line, row_id), row in zip(named, rows, strict=True):
            if row is None:
                self._add(unknown, f"{path}:{line.number} ({row_id})")
            else:
                yield line, row_id, row

    def _add(self, kind: str, where: str, count: int = 1) -> None:
        problem = self._problems[kind]
        problem.count += count
        if len(problem.first) < _NAMED:
            problem.first.append(where)


def _is_cached(raw: bytes) -> bool:
    record = read_record(raw) if b'"cached"' in raw else None
    return record is not None and record.counts_as_cached


def _result_id(raw: bytes) -> str | None:
    record = read_record(raw)
    return None if record is None else record.id
