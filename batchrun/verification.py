"""Whether a run is whole: every row accounted for, every result there once, every input line as it was.

The state file is read as of one moment, and each results file up to the length that is committed in it, so that a
run that another process is writing does not look broken. Nothing is written. Memory does not grow with the run, but
for one byte a row.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson

from batchrun.errors import StateError
from batchrun.inputlines import InputLines, where
from batchrun.results.reader import in_groups, read_lines, size_of
from batchrun.results.record import read_error_id, read_record, source_file
from batchrun.results.writer import errors_path
from batchrun.scheduler.states import RowState
from batchrun.state.lock import holder
from batchrun.state.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from batchrun.results.reader import StoredLine
    from batchrun.state.records import OutputRecord
    from batchrun.state.snapshot import Found

_NAMED = 5
"""Of each kind of problem so many are named."""
_RESULT, _ERROR = 1, 2
"""Marks of a row: it was found in a results file, in an error file."""

PROBLEMS = {
    "damaged": "faults of the state file itself",
    "no_input": "rows of no input of the run",
    "no_failure": "failed rows without a failure on record",
    "stray_failure": "failures on record of rows that have not failed",
    "no_job": "rows in flight without a job on record",
    "file": "files that are missing, too short or unreadable",
    "no_result": "lines in a results file that are no result",
    "unknown_row": "results of no row of the run",
    "not_succeeded": "results of rows that have not succeeded",
    "twice": "results that are there once more",
    "wrong_file": "results in another file than their row's",
    "missing": "succeeded rows without a result",
    "changed": "input lines that are not what they were",
    "no_error": "lines in an error file that are no error record",
    "error_twice": "error records that are there once more",
    "stray_error": "error records of rows that have not failed",
    "missing_error": "failed rows that are not in the error file",
    "ended": "results of rows that have ended otherwise, not committed",
}
"""Kind of problem -> what there is of it."""
_UNSETTLED = ("stray_error", "missing_error", "ended")
"""No problems while a process runs, or after one was cut off: the end of the next session settles them."""


@dataclass(slots=True)
class Problem:
    """What is wrong in one way."""

    kind: str
    """A key of `PROBLEMS`."""
    count: int = 0
    first: list[str] = field(default_factory=list)
    """Where the first of them are."""

    def __str__(self) -> str:
        return f"{PROBLEMS[self.kind]}: {self.count:,}"


@dataclass(slots=True)
class Verification:
    """What was found."""

    state: str
    pid: int | None
    """The process that runs it now; None when none does."""
    rows: int = 0
    counts: dict[RowState, int] = field(default_factory=lambda: dict.fromkeys(RowState, 0))
    failures: int = 0
    """Failures on record."""
    results: int = 0
    """Succeeded rows with their result in a results file."""
    results_files: int = 0
    uncommitted: int = 0
    """Whole lines beyond the committed length."""
    errors: int = 0
    """Failed rows with their record in an error file."""
    lines: int = 0
    """Input lines that are what they were."""
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def problem_count(self) -> int:
        """All problems together."""
        return sum(problem.count for problem in self.problems)

    @property
    def is_whole(self) -> bool:
        """Whether all adds up."""
        return not self.problems

    @property
    def not_run(self) -> int:
        """Rows that the run still has to do something about."""
        return sum(count for state, count in self.counts.items() if state.is_open)


def verify(state: Path) -> Verification:
    """Look whether the run of a state file is whole.

    Raises:
        StateError: there is no such state file, or it cannot be read.
    """
    found = Verification(str(state), _pid_of(state))
    with Snapshot(state) as store:
        session = store.last_session()
        faults = store.damage()
        if faults:
            found.problems = [Problem("damaged", len(faults), faults)]
            return found
        check = _Check(store, found)
        check.rows()
        for output in store.outputs():
            path = store.results_path(output)
            check.results(output, path)
            check.errors(output, errors_path(path))
        check.lines()
    if found.pid is None:
        found.pid = _pid_of(state)
    with Snapshot(state) as now:
        is_settled = found.pid is None and session[1] is not None and session == now.last_session()
    check.conclude(is_settled=is_settled)
    return found


def _pid_of(state: Path) -> int | None:
    who = holder(state)
    return None if who is None else who.pid


class _Check:
    """The checks, one after the other; `lines` comes after all results and errors."""

    def __init__(self, store: Snapshot, found: Verification) -> None:
        self._store = store
        self._found = found
        self._problems = {kind: Problem(kind) for kind in PROBLEMS}
        self._sources = {source.source: source for source in store.sources()}
        self._paths: dict[int, Path] = {}
        self._error_files: set[int] = set()
        self._moved = 0
        self._marks = bytearray(store.last_row() + 1)

    def rows(self) -> None:
        """The rows against the failures and the jobs."""
        found, query = self._found, self._store.query
        found.counts = self._store.counts()
        found.rows = sum(found.counts.values())
        found.failures = query("SELECT count(*) FROM failures")[0][0]
        self._add_rows(
            "no_failure",
            "FROM rows r WHERE r.state = 4 AND NOT EXISTS (SELECT 1 FROM failures f WHERE f.row = r.row)",
        )
        self._add_rows(
            "stray_failure", "FROM failures f LEFT JOIN rows r ON r.row = f.row WHERE r.state IS NOT 4", "f.row"
        )
        self._add_rows(
            "no_job",
            "FROM rows r LEFT JOIN jobs j ON j.job = r.job WHERE r.state = 2 AND j.remote_id IS NULL",
        )

    def results(self, output: OutputRecord, path: Path) -> None:
        """A results file, line by line, and what stands beyond its committed length."""
        self._paths[output.output] = path
        self._found.results_files += 1
        try:
            size_bytes = size_of(path)
            if size_bytes < output.committed_bytes:
                short = output.committed_bytes - size_bytes
                what = f"is {short:,} bytes shorter than the state file says" if size_bytes else "is missing or empty"
                self._add("file", f"{path} {what}")
            last = 0
            for group in in_groups(read_lines(path, end=output.committed_bytes)):
                last = group[-1].number
                for line, row_id, row in self._belonging(path, group, _result_id, "no_result"):
                    self._result(output, path, line, row_id, row)
            tail = read_lines(path, start=output.committed_bytes, end=size_bytes, first=last + 1)
            self._tail(path, tail)
        except StateError as error:
            self._add("file", error.message)

    def _result(self, output: OutputRecord, path: Path, line: StoredLine, row_id: str, row: Found) -> None:
        if row.state != RowState.SUCCEEDED:
            self._add("not_succeeded", f"{path}:{line.number} ({row_id})")
        elif self._marks[row.row] & _RESULT:
            self._add("twice", f"{path}:{line.number} ({row_id})")
        else:
            self._marks[row.row] |= _RESULT
            self._found.results += 1
            source = self._sources.get(row.source)
            if source is not None and source.output != output.output:
                self._elsewhere(output, path, line, row_id)

    def _elsewhere(self, output: OutputRecord, path: Path, line: StoredLine, row_id: str) -> None:
        """A result in the file of another input than its row's: fine when that is where the prompt once stood."""
        file = source_file(line.raw)
        if any(source.path == file and source.output != output.output for source in self._sources.values()):
            self._add("wrong_file", f"{path}:{line.number} ({row_id})")
        else:
            self._moved += 1

    def _tail(self, path: Path, tail: Iterator[StoredLine]) -> None:
        count = torn_bytes = 0
        for group in in_groups(tail):
            if not group[-1].raw.endswith(b"\n"):
                torn_bytes = len(group.pop().raw)
            count += len(group)
            for line, row_id, row in self._belonging(path, group, _result_id, "no_result"):
                if row.state == RowState.SUCCEEDED or self._marks[row.row] & _RESULT:
                    self._add("twice", f"{path}:{line.number} ({row_id}), not committed")
                elif row.state in (RowState.FAILED, RowState.HELD):
                    self._add("ended", f"{path}:{line.number} ({row_id})")
                else:
                    self._marks[row.row] |= _RESULT
        self._found.uncommitted += count
        if count:
            self._found.notes.append(
                f"{path}: lines that are not committed yet: {count:,}; the next start takes them over"
            )
        if torn_bytes:
            self._found.notes.append(
                f"{path}: a torn last line of {torn_bytes:,} bytes; it is cut off at the next start"
            )

    def errors(self, output: OutputRecord, path: Path) -> None:
        """An error file, line by line, where there is one."""
        try:
            size_bytes = size_of(path)
            if not size_bytes:
                return
            self._error_files.add(output.output)
            for group in in_groups(read_lines(path, end=size_bytes)):
                for line, row_id, row in self._belonging(path, group, read_error_id, "no_error", unknown="stray_error"):
                    source = self._sources.get(row.source)
                    if row.state != RowState.FAILED or (source is not None and source.output != output.output):
                        self._add("stray_error", f"{path}:{line.number} ({row_id})")
                    elif self._marks[row.row] & _ERROR:
                        self._add("error_twice", f"{path}:{line.number} ({row_id})")
                    else:
                        self._marks[row.row] |= _ERROR
                        self._found.errors += 1
        except StateError as error:
            self._add("file", error.message)

    def lines(self) -> None:
        """The input line of each row; and which rows have no result, or no error record."""
        absent: Counter[int] = Counter()
        with InputLines(self._add) as inputs:
            for row in self._store.scan():
                source = self._sources.get(row.source)
                if source is None:
                    self._add("no_input", row.id)
                    continue
                if row.state == RowState.SUCCEEDED and not self._marks[row.row] & _RESULT:
                    self._add("missing", where(source, row))
                elif row.state == RowState.FAILED and not self._marks[row.row] & _ERROR:
                    if source.output in self._error_files:
                        self._add("missing_error", where(source, row))
                    else:
                        absent[source.output] += 1
                if inputs.is_unchanged(source, row):
                    self._found.lines += 1
        if inputs.moved:
            self._found.notes.append(
                f"input lines that stand elsewhere now: {inputs.moved:,}; the next start finds them"
            )
        for output, count in absent.items():
            path = errors_path(self._paths[output]) if output in self._paths else "the error file"
            self._found.notes.append(f"{path} is not there, failed rows: {count:,}; the next session writes it")

    def conclude(self, *, is_settled: bool) -> None:
        """Make a list of the problems; what a session that is under way has still to settle is noted instead."""
        found = self._found
        for problem in self._problems.values():
            if problem.count and (is_settled or problem.kind not in _UNSETTLED):
                found.problems.append(problem)
            elif problem.count:
                found.notes.append(f"{problem} ({', '.join(problem.first)}); the end of the next session settles that")
        if self._moved:
            found.notes.append(
                f"results in the file of the input that their prompts were in before they were moved: {self._moved:,}"
            )

    def _belonging(
        self,
        path: Path,
        lines: list[StoredLine],
        id_of: Callable[[bytes], str | None],
        wrong: str,
        unknown: str = "unknown_row",
    ) -> Iterator[tuple[StoredLine, str, Found]]:
        """The lines that belong to a row, with it; the others are problems."""
        named = []
        for line in lines:
            row_id = id_of(line.raw) if line.raw.endswith(b"\n") else None
            if row_id is None:
                self._add(wrong, f"{path}:{line.number}")
            else:
                named.append((line, row_id))
        rows = self._store.find([row_id for _, row_id in named])
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

    def _add_rows(self, kind: str, sql: str, row: str = "r.row") -> None:
        problem = self._problems[kind]
        problem.count = self._store.query(f"SELECT count(*) {sql}")[0][0]
        named = self._store.query(f"SELECT coalesce(r.id, 'row ' || {row}) {sql} ORDER BY {row} LIMIT {_NAMED}")
        problem.first = [name for (name,) in named]


def _result_id(raw: bytes) -> str | None:
    record = read_record(raw)
    return None if record is None else record.id


def to_json(found: Verification) -> bytes:
    """One JSON object and a line end."""
    data = {
        "state": found.state,
        "pid": found.pid,
        "whole": found.is_whole,
        "rows": found.rows,
        **{state.name.lower(): count for state, count in found.counts.items()},
        "failures": found.failures,
        "results": found.results,
        "results_files": found.results_files,
        "uncommitted": found.uncommitted,
        "errors": found.errors,
        "lines": found.lines,
        "problem_count": found.problem_count,
        "problems": [
            {"kind": problem.kind, "count": problem.count, "what": PROBLEMS[problem.kind], "first": problem.first}
            for problem in found.problems
        ],
        "notes": found.notes,
    }
    return orjson.dumps(data, option=orjson.OPT_APPEND_NEWLINE)


def render(found: Verification) -> str:
    """For a terminal."""
    counts = found.counts
    going = f"running (process {found.pid})" if found.pid is not None else "not running"
    files = "1 file" if found.results_files == 1 else f"{found.results_files:,} files"
    table = [
        ("rows", found.rows, f"{found.lines:,} of their input lines are what they were"),
        ("= succeeded", counts[RowState.SUCCEEDED], f"{found.results:,} have their result, in {files}"),
        (
            "+ failed",
            counts[RowState.FAILED],
            f"{found.failures:,} failures on record, {found.errors:,} in error files",
        ),
        ("+ held", counts[RowState.HELD], ""),
        ("+ not yet run", found.not_run, ""),
    ]
    lines = [f"{found.state}  {going}", ""]
    lines += [f"  {name:<14} {count:>11,}  {told}".rstrip() for name, count, told in table]
    if found.notes:
        lines += ["", "notes", *(f"  {note}" for note in found.notes)]
    if found.problems:
        lines += ["", "problems"]
        for problem in found.problems:
            lines.append(f"  {problem}")
            lines += [f"    {where}" for where in problem.first]
            if problem.count > len(problem.first):
                lines.append(f"    ... and {problem.count - len(problem.first):,} more")
        count = found.problem_count
        verdict = f"NOT whole: {count:,} problem{'s' if count != 1 else ''}"
    else:
        verdict = "whole: each row is accounted for, each result is there once, each input line is what it was"
    return "\n".join([*lines, "", verdict]) + "\n"
