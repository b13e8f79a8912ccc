"""The scores of some rows, found in the scores file. Memory does not grow with the file."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from batchrun.evaluation.scores_file import Score, read_scores


class RowScores:
    """The scores of the rows with these ids, grouped by scorer.

    Args:
        path: The scores file; it may be missing.
        ids: The ids of the rows, as in their records.

    Raises:
        StateError: it cannot be read, or a line is not a score.
    """

    def __init__(self, path: Path, ids: Collection[str]) -> None:
        self._scores: dict[tuple[str, str | None], dict[str, Score]] = {}
        self.scorers: list[str] = []
        """The scorers of these scores, in the order of the file."""
        for score in read_scores(path):
            if score.id in ids:
                self._scores.setdefault((score.id, score.file), {})[score.scorer] = score
                if score.scorer not in self.scorers:
                    self.scorers.append(score.scorer)

    def of(self, row_id: str, file: str) -> list[Score]:
        """The scores of a row, by its id and its input file."""
        found = self._scores.get((row_id, None), {}) | self._scores.get((row_id, file), {})
        return [found[scorer] for scorer in self.scorers if scorer in found]
