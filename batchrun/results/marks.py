"""What finds the row of a line in a results file, without reading the record in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import accumulate, count, starmap
from pathlib import Path
from typing import NamedTuple

from batchrun.results.reader import StoredLine, lines_between
from batchrun.results.record import result_digest

_ID = re.compile(rb'\{"id":"([^"\\]*)"(?:,"custom_id":"([^"\\]*)")?[,}]')
"""The id of a record in batchrun's own format, and in OpenAI's."""

Marks = tuple[list[int], list[str | None], list[int]]
"""The lengths, likely ids and digests of some lines, as `marshal` can write them."""
MarkParts = Callable[[Iterator[tuple[str, int, int, int]]], Iterator[Marks]]
"""Gives the marks of each of some parts, in order; a part is what `marks_between` is called with."""
_PART_BYTES = 1 << 20
_GROUP_LINES = 1000


class Mark(NamedTuple):
    """Where a line is, and what it is recognized by."""

    number: int
    """1-based."""
    offset: int
    """The position of its first byte in the file."""
    length: int
    """In bytes, with the line end."""
    likely_id: str | None
    """The id at its beginning; None if there is none, or the line has no end. If the row of that id has the line's
    digest, the line is proven to be its result."""
    digest: int
    """See `result_digest`."""


def mark(line: StoredLine) -> Mark:
    """The mark of a line."""
    return Mark(line.number, line.offset, len(line.raw), _likely_id(line.raw), result_digest(line.raw))


def read_marks(
    path: Path, end: int, mark_all: MarkParts = lambda parts: starmap(marks_between, parts)
) -> Iterator[list[Mark]]:
    """The marks of all lines of a file before a position, in groups of up to a thousand.

    Args:
        path: The file.
        end: The position to stop at, in bytes; a line that extends beyond it is cut off there.
        mark_all: Calls `marks_between` for each part, perhaps in other processes.

    Raises:
        StateError: it cannot be read.
    """
    parts = ((str(path), start, min(start + _PART_BYTES, end), end) for start in range(0, end, _PART_BYTES))
    number, offset = 1, 0
    for found in mark_all(parts):
        marks = placed_marks(found, number, offset)
        number, offset = number + len(marks), offset + sum(found[0])
        for at in range(0, len(marks), _GROUP_LINES):
            yield marks[at : at + _GROUP_LINES]


def marks_between(path: str | Path, start: int, stop: int, end: int) -> Marks:
    """The marks of the lines that begin in a part of a file; see `lines_between`."""
    lengths: list[int] = []
    ids: list[str | None] = []
    digests: list[int] = []
    for raws in lines_between(Path(path), start, stop, end):
        lengths += map(len, raws)
        ids += map(_likely_id, raws)
        digests += map(result_digest, raws)
    return lengths, ids, digests


def placed_marks(found: Marks, number: int, offset: int) -> list[Mark]:
    """Marks as objects, given the number and the position of the first line."""
    return list(map(Mark, count(number), accumulate(found[0], initial=offset), *found))


def _likely_id(raw: bytes) -> str | None:
    found = _ID.match(raw) if raw.endswith(b"\n") else None
    return None if found is None else (found[2] or found[1]).decode(errors="replace")
