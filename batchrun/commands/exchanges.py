"""Reads rows of a run to show them: prompt, answer, variant and scores."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from batchrun.evaluation.chosen_scores import RowScores
from batchrun.evaluation.scores_file import Score, scores_path
from batchrun.prompts.sweep import REPEAT, Sweep, shown
from batchrun.results.exchange import Exchange, exchange_of
from batchrun.runs.exported import RunResults
from batchrun.state.snapshot import StateSnapshot
from batchrun.state.stored_options import read_options

_GROUP = 10_000


class ShownRow(NamedTuple):
    """A row to show."""

    exchange: Exchange
    scores: list[Score]
    source: int
    """The number of its input."""
    question_id: str
    """The id of its line: its own id without the values of its variant."""
    variant: str
    """As in the report: `temperature=0.4 top_p=1`, or `all`."""
    sample: int
    """1-based; 0 if each variant has one sample."""


class Exchanges:
    """Some rows of a run, in input order each time they are iterated.

    Args:
        state: The run's state file.
        results: A snapshot of its results.
        rows: The numbers of the rows.

    Raises:
        StateError: the state file or the scores file cannot be read; iterating can also raise it.
    """

    def __init__(self, state: Path, results: RunResults, rows: Collection[int]) -> None:
        self._results = results
        self._rows = rows
        with StateSnapshot(state) as store:
            options = read_options(store)
            numbers = sorted(rows)
            groups = (numbers[at : at + _GROUP] for at in range(0, len(numbers), _GROUP))
            ids = {row.id for group in groups for row in store.rows(group)}
        self._sweep = Sweep(options.sweep)
        self._repeat = options.sweep.repeat
        self.scores = RowScores(scores_path(state), ids)

    def __iter__(self) -> Iterator[ShownRow]:
        for group in self._results.chosen(self._rows):
            for row, read in group:
                variant = self._sweep.variant(row.variant) if self._sweep else None
                values = {key: shown(value) for key, value in (variant.values if variant else {}).items()}
                values.pop(REPEAT, None)
                label = " ".join(f"{key}={value}" for key, value in values.items())
                exchange = exchange_of(read)
                yield ShownRow(
                    exchange,
                    self.scores.of(exchange.id, exchange.file),
                    row.source,
                    exchange.id.removesuffix(variant.suffix) if variant else exchange.id,
                    label or "all",
                    row.variant % self._repeat + 1 if self._repeat > 1 else 0,
                )
