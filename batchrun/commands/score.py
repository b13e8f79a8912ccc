"""`batchrun score`: scores the answers of a run, and writes the scores file beside its state file."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchrun.config import SCORE_TIMEOUT_S
from batchrun.engine.checking import CheckFailedError, Functions, refuse_missing
from batchrun.errors import StateError, UsageError, shown
from batchrun.evaluation.scorers import FUNCTION, Judgement, Rules, Scorer, scorer_of
from batchrun.evaluation.scores_file import Score, replace_scores, scores_path
from batchrun.results.written import write_line
from batchrun.runs.exported import RunResults
from batchrun.scheduler.states import RowState

_MOST_SILENT = 20
"""A function that has not answered for any of the first rows is given up: each may have taken the whole timeout."""
_MOST_REASONS = 5
_RULES = Rules()
_Record = dict[str, Any]
_Judge = Callable[[Sequence[_Record]], list[Judgement]]


@dataclass(slots=True)
class ScoreReport:
    """The result of scoring a run."""

    path: str
    """The scores file."""
    scorer: str
    scored: int = 0
    """Rows with a score, including failed ones if these count as wrong."""
    right: int = 0
    """Those with a score of 1."""
    total: float = 0.0
    """The sum of all scores."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Reason why rows could not be scored -> number of rows."""
    first_unscored: str = ""
    """The id of the first such row, and its whole reason; empty if there is none."""
    failed: int = 0
    """Rows that failed and were not scored."""
    unfinished: int = 0
    """Rows that have not ended yet."""

    @property
    def unscored(self) -> int:
        """Rows that the scorer could not score."""
        return self.reasons.total()

    def count(self, row_id: str, judgement: Judgement) -> None:
        """Count a row."""
        if judgement.value is None:
            self.first_unscored = self.first_unscored or f"{row_id}: {judgement.reason}"
            # What follows the colon may differ from row to row.
            self.reasons[(judgement.reason or "").partition(": ")[0]] += 1
            return
        self.scored += 1
        self.right += judgement.value == 1
        self.total += judgement.value

    def __str__(self) -> str:
        share = f", mean score {self.total / self.scored:.3f}" if self.scored else ""
        lines = [f"{self.scored:,} rows scored with {self.scorer}: {self.right:,} right{share}; written to {self.path}"]
        if self.unscored:
            reasons = "; ".join(f"{reason} ({count:,})" for reason, count in self.reasons.most_common(_MOST_REASONS))
            lines.append(f"rows that could not be scored: {self.unscored:,}: {reasons}")
            lines.append(f"  the first: {self.first_unscored}")
        if self.failed:
            lines.append(f"failed rows, which have no score: {self.failed:,}; --with-errors counts them as wrong")
        if self.unfinished:
            lines.append(f"rows that have not finished: {self.unfinished:,}; score again when they have")
        return "\n".join(lines)


def score(
    state: Path, scorer: str, rules: Rules = _RULES, *, timeout_s: float = SCORE_TIMEOUT_S, with_errors: bool = False
) -> ScoreReport:
    """Score the committed results of a run; scores of the same scorer are replaced, those of other scorers stay.

    Args:
        state: The run's state file; another process may be writing it.
        scorer: Its name, such as `exact` or `py:FILE:FUNCTION`.
        rules: How answers are compared.
        timeout_s: How long a function or a pattern may take per row.
        with_errors: Whether failed and held rows get the score 0.

    Raises:
        UsageError: there is no such scorer, it cannot be used, or it can score no row.
        StateError: there is no such state file, it cannot be read, or no row has a result.
        OutputError: the scores cannot be written.
    """
    path = scores_path(state)
    found = ScoreReport(str(path), scorer)
    with _judge(scorer, rules, timeout_s) as judge, RunResults(state, "batchrun", with_errors=with_errors) as results:
        counts = results.counts
        failed = counts[RowState.FAILED] + counts[RowState.HELD]
        rows = counts[RowState.SUCCEEDED] + (failed if with_errors else 0)
        if not rows:
            raise StateError(f"{state}: no row has a result yet", f"see `batchrun status {state}`")
        found.failed = 0 if with_errors else failed
        found.unfinished = sum(counts.values()) - counts[RowState.SUCCEEDED] - failed
        replace_scores(path, scorer, _scores(results, judge, found))
    return found


def _scores(results: RunResults, judge: _Judge, found: ScoreReport) -> Iterator[Score]:
    first = Judgement(None)
    for group in results.groups(with_requests=False):
        records = [row.record for row in group]
        answers = iter(judge([record for record in records if "error" not in record]))
        for record in records:
            judgement = Judgement(0.0, None, _failure(record)) if "error" in record else next(answers)
            first = first if found.scored or found.unscored else judgement
            found.count(record["id"], judgement)
            file = record["source"]["file"] if results.shared_ids else None
            yield Score(record["id"], found.scorer, *judgement, file)
    if not found.scored:
        reason = first.reason or "no reason was given"
        raise UsageError(
            f"{found.scorer} can score none of the {found.unscored:,} rows; the first: {reason}",
            _advice(found.scorer, reason),
        )


def _advice(scorer: str, reason: str) -> str:
    if "took longer than" in reason:
        return "give it more time with --timeout, or make it faster"
    if scorer.startswith(FUNCTION):
        return "the function must take a record, a line of the results file, and return a number from 0 to 1"
    if reason.startswith("there is no "):
        return "name the field of the right answer, for example --reference metadata.answer"
    return "try another scorer, or another --reference"


def _failure(record: _Record) -> str:
    return f"failed: {record['error']['kind']}"


@contextmanager
def _judge(scorer: str, rules: Rules, timeout_s: float) -> Iterator[_Judge]:
    """Gives the function that judges a group of records."""
    if scorer.startswith(FUNCTION):
        name = scorer.removeprefix(FUNCTION)
        if ":" not in name:
            raise UsageError(f"--with {shown(scorer)} names no function", "give py:FILE.py:FUNCTION")
        scorer_of("exact", rules)  # only to refuse invalid rules
        refuse_missing(name, f"--with {FUNCTION}", "scorer")
        with closing(Functions(name, timeout_s, "scorer")) as functions:
            yield lambda records: _asked(functions, records)
        return
    compare = scorer_of(scorer, rules)
    with _alarm() as limited:
        yield lambda records: [limited(timeout_s, compare, record) for record in records]


class _TooLongError(Exception):
    """A pattern takes too long for a text."""


@contextmanager
def _alarm() -> Iterator[Callable[[float, Scorer, _Record], Judgement]]:
    """Calls a scorer for at most a number of seconds: some regular expressions take years for some texts.

    The limit is a signal, which only the main thread receives; in another thread there is none.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda _, scorer, record: scorer(record)
        return

    def ring(*_: object) -> None:
        raise _TooLongError

    def limited(limit_s: float, scorer: Scorer, record: _Record) -> Judgement:
        try:
            signal.setitimer(signal.ITIMER_REAL, limit_s)
            try:
                return scorer(record)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except _TooLongError:
            return Judgement(None, None, f"the scorer took longer than {limit_s:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    try:
        yield limited
    finally:
        signal.signal(signal.SIGALRM, before)


def _asked(functions: Functions, records: Sequence[_Record]) -> list[Judgement]:
    asked = [functions.ask(write_line(record)) for record in records]
    judgements: list[Judgement] = []
    for each in asked:
        try:
            judgements.append(Judgement(**each.result()))
        except CheckFailedError as error:
            judgements.append(Judgement(None, None, str(error)))
            if len(judgements) == _MOST_SILENT and not functions.has_answered:
                raise UsageError(
                    f"{FUNCTION}{functions.name} gave no answer for the first {_MOST_SILENT} rows: {error}",
                    _advice(FUNCTION, str(error)),
                ) from error
    return judgements
