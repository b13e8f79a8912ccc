"""What `batchrun verify` has found, and how it is reported."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

import orjson

from batchrun.scheduler.states import RowState

PROBLEMS = {
    "damaged": "damage to the state file itself",
    "no_input": "rows that belong to no input of the run",
    "no_failure": "failed rows without a recorded failure",
    "stray_failure": "recorded failures of rows that have not failed",
    "no_job": "rows whose job is not recorded",
    "stray_job": "jobs that belong to no row of the run",
    "failed_job": "succeeded rows whose own job failed",
    "no_leader": "rows that share the answer of a row that does not exist",
    "forgotten": "rows that have no result although their job gave one, or their run ended",
    "file": "files that are missing, too short or unreadable",
    "no_result": "lines in a results file that are not results",
    "unknown_row": "results that belong to no row of the run",
    "not_succeeded": "results of rows that have not succeeded",
    "altered": "results that differ from what was written",
    "twice": "duplicate results",
    "wrong_file": "results in another file than that of their row",
    "missing": "succeeded rows without a result",
    "changed": "input lines that have changed",
    "no_row": "input lines without a row, which the same command adds",
    "source": "inputs that have changed since they were copied",
    "no_error": "lines in an error file that are not error records",
    "error_twice": "duplicate error records",
    "stray_error": "error records of rows that have not failed and are not held",
    "missing_error": "failed rows that are not in the error file",
    "ended": "uncommitted results of rows that have failed or are held",
    "superseded": "replaced results that are missing or have changed",
    "manifest": "differences from the manifest",
}
"""Kind of problem -> its description, which a count follows."""
UNSETTLED = ("stray_error", "missing_error", "ended", "no_row")
"""Kinds that are not problems during a run, or after an interrupted one: the end of the next session resolves them."""


@dataclass(slots=True)
class Fault:
    """All problems of one kind."""

    kind: str
    """A key of `PROBLEMS`."""
    count: int = 0
    first: list[str] = field(default_factory=list)
    """Where the first few of them are."""

    def __str__(self) -> str:
        return f"{PROBLEMS[self.kind]}: {self.count:,}"


@dataclass(slots=True)
class Verification:
    """The outcome of a verification."""

    state: str
    pid: int | None
    """The process that is driving the run; None if none is."""
    rows: int = 0
    counts: dict[RowState, int] = field(default_factory=lambda: dict.fromkeys(RowState, 0))
    failures: int = 0
    """Recorded failures."""
    results: int = 0
    """Succeeded rows whose result is in a results file."""
    compared: int = 0
    """Those of them that equal what was written, by their digest; for the others an older version stored no digest."""
    cached: int = 0
    """Those whose answer came from the cache, without a job of this run."""
    lost: int = 0
    """Rows whose result is lost or damaged; `--repair` recovers them."""
    results_files: int = 0
    uncommitted: int = 0
    """Complete lines beyond the committed length."""
    superseded: int = 0
    """Results that `redo` has replaced, in their own files."""
    errors: int = 0
    """Failed rows whose record is in an error file."""
    lines: int = 0
    """Rows whose input line is unchanged."""
    problems: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def problem_count(self) -> int:
        """The number of all problems."""
        return sum(problem.count for problem in self.problems)

    @property
    def is_whole(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    @property
    def not_run(self) -> int:
        """Rows that have not finished."""
        return sum(count for state, count in self.counts.items() if state.is_open)


def to_json(found: Verification) -> bytes:
    """One JSON object and a newline."""
    data = {
        "state": found.state,
        "pid": found.pid,
        "whole": found.is_whole,
        "rows": found.rows,
        **{state.name.lower(): count for state, count in found.counts.items()},
        "failures": found.failures,
        "results": found.results,
        "compared": found.compared,
        "cached": found.cached,
        "lost": found.lost,
        "results_files": found.results_files,
        "uncommitted": found.uncommitted,
        "superseded": found.superseded,
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
    """The findings for a terminal."""
    counts = found.counts
    going = f"running (process {found.pid})" if found.pid is not None else "not running"
    files = "1 file" if found.results_files == 1 else f"{found.results_files:,} files"
    table = [
        ("rows", found.rows, f"unchanged input lines: {found.lines:,}"),
        ("= succeeded", counts[RowState.SUCCEEDED], f"results: {found.results:,}, in {files}"),
        (
            "+ failed",
            counts[RowState.FAILED],
            f"recorded failures: {found.failures:,}, in error files: {found.errors:,}",
        ),
        ("+ held", counts[RowState.HELD], ""),
        ("+ not run", found.not_run, ""),
    ]
    lines = [f"{found.state}  {going}", ""]
    lines += [f"  {name:<14} {count:>11,}  {note}".rstrip() for name, count, note in table]
    if found.notes:
        lines += ["", "notes", *(f"  {note}" for note in found.notes)]
    if found.problems:
        lines += ["", "problems"]
        for problem in found.problems:
            lines.append(f"  {problem}")
            lines += [f"    {where}" for where in problem.first]
            if problem.count > len(problem.first):
                lines.append(f"    ... and {problem.count - len(problem.first):,} more")
        if found.lost:
            again = f"batchrun resume {shlex.quote(found.state)} --repair"
            lines += ["", f"results lost or damaged: {found.lost:,}; recover them: {again}"]
        count = found.problem_count
        verdict = f"FAILED: {count:,} problem{'s' if count != 1 else ''}"
    else:
        verdict = "OK: every row accounted for, every result present once, every input line unchanged"
    return "\n".join([*lines, "", verdict]) + "\n"
