"""Draws a stratified sample of a run's questions, so that rare outcomes are in it, too. Pure.

A question is a line of the input with all its rows. Its stratum is its input and its first failure, if any.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from random import Random
from typing import TypeVar

from batchrun.runs.exported import Ended
from batchrun.state.positions import Position

_LEAST = 20
"""Of a stratum, so many questions are drawn if it has them, and the sample has room."""
_MOST_STRATA = 200
"""With more, the inputs are not told apart."""

Stratum = TypeVar("Stratum")


@dataclass(frozen=True, slots=True)
class Sample:
    """The rows that were drawn."""

    rows: frozenset[int]
    """The numbers of the rows."""
    questions: int
    total_rows: int
    """All rows that have ended, and in `total_questions` their questions."""
    total_questions: int

    @property
    def is_whole(self) -> bool:
        """Whether all rows were drawn."""
        return len(self.rows) == self.total_rows


def draw(ended: Callable[[], Iterator[Ended]], most_rows: int, most_bytes: int, random: Random) -> Sample:
    """Draw whole questions, one at least.

    Args:
        ended: Gives the rows in input order, each time it is called; twice if not all rows are drawn.
        most_rows: How many rows to draw at most, unless one question has more.
        most_bytes: How long the lines and results of the rows may be together, on average.
        random: Decides which questions of a stratum are drawn.
    """
    sizes: Counter[tuple[int, str | None]] = Counter()
    total_rows = total_bytes = 0
    for rows in _questions(ended()):
        sizes[_stratum(rows)] += 1
        total_rows += len(rows)
        total_bytes += sum(map(_bytes, rows))
    questions = sum(sizes.values())
    if total_rows <= most_rows and total_bytes <= most_bytes:
        return Sample(frozenset(each.row.row for each in ended()), questions, total_rows, questions)
    of_source = len(sizes) <= _MOST_STRATA
    if not of_source:
        sizes = Counter({(0, kind): _count(sizes, kind) for _, kind in sizes})
    most = min(questions * most_rows // total_rows, questions * most_bytes // total_bytes)
    wanted = allocated(sizes, max(1, most))
    drawn: list[int] = []
    count = 0
    for rows in _questions(ended()):
        source, kind = _stratum(rows)
        stratum = (source if of_source else 0, kind)
        if random.random() * sizes[stratum] < wanted[stratum]:
            wanted[stratum] -= 1
            count += 1
            drawn += [each.row.row for each in rows]
        sizes[stratum] -= 1
    return Sample(frozenset(drawn), count, total_rows, questions)


def allocated(sizes: Mapping[Stratum, int], most: int) -> dict[Stratum, int]:
    """How many to draw of each stratum: some of each, and the rest in proportion to their sizes.

    Args:
        sizes: How many each stratum has, together at least `most`.
        most: How many to draw.
    """
    least = min(_LEAST, most // (2 * len(sizes)))
    found = {stratum: min(size, least) for stratum, size in sizes.items()}
    left = most - sum(found.values())
    others = {stratum: size - found[stratum] for stratum, size in sizes.items()}
    rest = sum(others.values())
    exact = {stratum: left * size / max(rest, 1) for stratum, size in others.items()}
    for stratum, share in exact.items():
        found[stratum] += int(share)
    by_part = sorted(exact, key=lambda stratum: int(exact[stratum]) - exact[stratum])
    for stratum in by_part[: most - sum(found.values())]:
        found[stratum] += 1
    return found


def _questions(ended: Iterator[Ended]) -> Iterator[list[Ended]]:
    for _, rows in groupby(ended, key=lambda each: (each.row.source, each.row.line)):
        yield list(rows)


def _stratum(rows: list[Ended]) -> tuple[int, str | None]:
    return rows[0].row.source, next((each.failure for each in rows if each.failure is not None), None)


def _count(sizes: Counter[tuple[int, str | None]], kind: str | None) -> int:
    return sum(count for (_, other), count in sizes.items() if other == kind)


def _bytes(each: Ended) -> int:
    return each.row.length + (each.row.result_length if isinstance(each.row, Position) else 0)
