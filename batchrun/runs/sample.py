"""Draws a stratified sample of a run's questions, so that it contains rare outcomes, too. Pure.

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
"""At least this many questions of each stratum are drawn, if it has them and the sample has room."""
_MOST_STRATA = 200
"""If there are more strata, the inputs are not distinguished."""

Stratum = TypeVar("Stratum")


@dataclass(frozen=True, slots=True)
class Sample:
    """The rows that were drawn."""

    rows: frozenset[int]
    """The numbers of the rows."""
    questions: int
    total_rows: int
    """The number of all rows that have ended; `total_questions` is the number of their questions."""
    total_questions: int

    @property
    def is_whole(self) -> bool:
        """Whether all rows were drawn."""
        return len(self.rows) == self.total_rows


def draw(ended: Callable[[], Iterator[Ended]], most_rows: int, most_bytes: int, random: Random) -> Sample:
    """Draw whole questions, at least one.

    Args:
        ended: Gives the rows in input order each time it is called. It is called twice if not all rows are drawn.
        most_rows: The most rows to draw, unless one question has more.
        most_bytes: The most bytes that the lines and results of the rows may have together, on average.
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
    """The number to draw from each stratum: some from each, and the rest in proportion to their sizes.

    Args:
        sizes: The size of each stratum, together at least `most`.
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
