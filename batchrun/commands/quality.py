"""The quality part of a report: joins the scores file with the rows of the state file."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from math import isnan, nan
from pathlib import Path
from typing import Any

import orjson

from batchrun.errors import UsageError, shown
from batchrun.evaluation.quality import Quality, Question, Sample, VariantInfo, measure
from batchrun.evaluation.scorers import reference_of
from batchrun.evaluation.scores_file import Score, read_scores, scores_path
from batchrun.files.exactjson import dump
from batchrun.runs.exported import RunResults
from batchrun.state import figures
from batchrun.state.shared_ids import rows_of_ids
from batchrun.state.snapshot import StateSnapshot

MOST_GROUPS = 1000
_GROUP_ROWS = 1000
_UNSCORED = -1.0


def read_quality(
    store: StateSnapshot, state: Path, variants: Mapping[int, VariantInfo], repeat: int, by: str | None
) -> list[Quality]:
    """What each scorer says about a run, in the order of the scores file; empty if it was not scored.

    Takes 16 bytes of memory per row, and 4 more with `by`.

    Args:
        store: The run.
        state: Its state file.
        variants: Number of a combination of sweep values -> the variant.
        repeat: The samples of each.
        by: The path of a field of the records by which questions are split; None: they are not.

    Raises:
        StateError: the scores or the results cannot be read.
        UsageError: there are no scores to split, or the field has no values, or too many.
    """
    scores = _Scores.read(store, scores_path(state))
    if by is None:
        groups: _Groups | None = None
    elif scores:
        groups = _Groups(store, state, by)
    else:
        raise UsageError(
            f"--by {by} splits scores, but the run has none", f"first run: batchrun score {state} --with SCORER"
        )
    return [
        measure(
            scorer,
            variants,
            lambda each=each: each.questions(store, repeat, groups),  # type: ignore[misc]
            repeat=repeat,
            extracts=each.extracts,
            by=by,
        )
        for scorer, each in scores.items()
    ]


def are_outdated(store: StateSnapshot, state: Path) -> bool:
    """Whether a result is newer than the scores file."""
    try:
        scored_ms = scores_path(state).stat().st_mtime_ns // 1_000_000
    except OSError:
        return False
    return figures.last_result_ms(store) > scored_ms


class _Scores:
    """The scores of one scorer, by row number."""

    def __init__(self, rows: int) -> None:
        self._values = array("d", [nan]) * rows
        self._answers = array("q", [0]) * rows
        self.extracts = False
        """Whether any answer was extracted."""

    @staticmethod
    def read(store: StateSnapshot, path: Path) -> dict[str, _Scores]:
        """Scorer -> its scores; those of rows that the run does not have are left out."""
        rows = store.last_row() + 1
        found = defaultdict[str, _Scores](lambda: _Scores(rows))
        each = read_scores(path)
        while scores := list(islice(each, _GROUP_ROWS)):
            numbers = _rows_of(store, [(score.id, score.file) for score in scores])
            for score, row in zip(scores, numbers, strict=True):
                if row is not None:
                    found[score.scorer].set(row, score)
        return found

    def set(self, row: int, score: Score) -> None:
        """Note the score of a row."""
        self._values[row] = _UNSCORED if score.value is None else score.value
        if score.extracted is not None:
            self.extracts = True
            self._answers[row] = hash(dump(score.extracted, orjson.OPT_SORT_KEYS))

    def questions(self, store: StateSnapshot, repeat: int, groups: _Groups | None) -> Iterator[Question]:
        """The questions with their scores, in input order."""
        for _, rows in groupby(figures.rows_in_order(store), key=lambda row: row[1:3]):
            samples: dict[int, list[Sample]] = {}
            unscored: dict[int, int] = {}
            group = 0
            for row, _, _, variant in rows:
                value, number = self._values[row], variant // repeat
                group = group or (0 if groups is None else groups.numbers[row])
                if value == _UNSCORED:
                    unscored[number] = unscored.get(number, 0) + 1
                elif not isnan(value):
                    samples.setdefault(number, []).append(Sample(value, self._answers[row]))
            if samples or unscored:
                yield Question(None if groups is None else groups.values[group], samples, unscored)


class _Groups:
    """The group that each row belongs to, by row number."""

    def __init__(self, store: StateSnapshot, state: Path, path: str) -> None:
        if not all(path.split(".")):
            raise UsageError(f"--by {shown(path)} is not a path", "for example metadata.topic")
        self.numbers = array("i", [0]) * (store.last_row() + 1)
        self.values: list[Any] = [None]
        """The value of each group; that of group 0 is None, for rows without the field."""
        known: dict[bytes, int] = {}
        with RunResults(state, "batchrun", with_errors=True) as results:
            for group in results.groups(with_requests=False):
                records = [row.record for row in group]
                keys = [(each["id"], each["source"]["file"] if results.shared_ids else None) for each in records]
                for record, row in zip(records, _rows_of(store, keys), strict=True):
                    value = reference_of(record, path)
                    if row is None or row >= len(self.numbers) or value is None:
                        continue
                    name = dump(value, orjson.OPT_SORT_KEYS)
                    if name not in known:
                        known[name] = len(self.values)
                        self.values.append(value if isinstance(value, str) else name.decode())
                    self.numbers[row] = known[name]
                if len(known) > MOST_GROUPS:
                    raise UsageError(f"--by {path} has more than {MOST_GROUPS:,} values", "choose a field with fewer")
        if not known:
            raise UsageError(f"--by {path}: no record has this field", "for example metadata.topic")


def _rows_of(store: StateSnapshot, keys: Sequence[tuple[str, str | None]]) -> list[int | None]:
    """The numbers of rows, given their ids and, where several inputs have an id, their input files."""
    if all(file is None for _, file in keys):
        return [None if found is None else found.row for found in store.find([row_id for row_id, _ in keys])]
    files = {source.source: source.path for source in store.sources()}
    candidates = rows_of_ids(store, [row_id for row_id, _ in keys])
    return [
        next((row for row, source in rows if file is None or files.get(source) == file), None)
        for rows, (_, file) in zip(candidates, keys, strict=True)
    ]
