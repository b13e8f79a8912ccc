"""What the proof of a run has found, and how it is told."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

import orjson

from batchrun.scheduler.states import RowState

PROBLEMS = {
    "damaged": "faults of the state file itself",
    "no_input": "rows of no input of the run",
    "no_failure": "failed rows without a failure on record",
    "stray_failure": "failures on record of rows that have not failed",
    "no_job": "rows whose job is not on record",
    "stray_job": "jobs of no row of the run",
    "failed_job": "succeeded rows whose own job failed",
    "no_leader": "rows that follow a row that is not there",
    "forgotten": "rows that have no result although their job gave one, or their run ended",
    "file": "files that are missing, too short or unreadable",
    "no_result": "lines in a results file that are no result",
    "unknown_row": "results of no row of the run",
    "not_succeeded": "results of rows that have not succeeded",
    "altered": "results that are not what was written",
    "twice": "results that are there once more",
    "wrong_file": "results in another file than their row's",
    "missing": "succeeded rows without a result",
    "changed": "input lines that are not what they were",
    "no_row": "input lines without a row, which the same command takes up",
    "source": "inputs that are not what they were when they were copied",
    "no_error": "lines in an error file that are no error record",
    "error_twice": "error records that are there once more",
    "stray_error": "error records of rows that have not failed and are not held",
    "missing_error": "failed rows that are not in the error file",
    "ended": "results of rows that have ended otherwise, not committed",
    "manifest": "figures that the manifest tells otherwise",
}
"""Kind of problem -> what there is of it."""
UNSETTLED = ("stray_error", "missing_error", "ended", "no_row")
"""No problems while a process runs, or after one was cut off: the end of the next session settles them."""


@dataclass(slots=True)
class Fault:
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
    compared: int = 0
    """Those of them that are proven to be what was written; of the others an older version kept no digest."""
    lost: int = 0
    """Rows whose result is lost or damaged: `--repair` takes them up."""
    results_files: int = 0
    uncommitted: int = 0
    """Whole lines beyond the committed length."""
    errors: int = 0
    """Failed rows with their record in an error file."""
    lines: int = 0
    """Input lines that are what they were."""
    problems: list[Fault] = field(default_factory=list)
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
        "compared": found.compared,
        "lost": found.lost,
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
        if found.lost:
            again = f"batchrun resume {shlex.quote(found.state)} --repair"
            lines += ["", f"results lost or damaged: {found.lost:,}; get them again: {again}"]
        count = found.problem_count
        verdict = f"NOT whole: {count:,} problem{'s' if count != 1 else ''}"
    else:
        verdict = "whole: each row is accounted for, each result is there once, each input line is what it was"
    return "\n".join([*lines, "", verdict]) + "\n"
