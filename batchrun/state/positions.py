"""The positions of all result lines, sorted by the positions of their prompt lines, in a temporary file."""

from __future__ import annotations

import marshal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from heapq import merge
from tempfile import TemporaryFile
from typing import NamedTuple, Self

from batchrun.errors import OutputError
from batchrun.state.records import RowRecord

_MOST_IN_MEMORY = 1 << 15
"""They take some 10 MB."""
_BLOCK = 128
"""Of each sorted part, this many are in memory while the parts are merged: some 10 MB for ten million positions."""


class Position(NamedTuple):
    """The positions of a row's result line and of its own line. The first three fields determine the order."""

    source: int
    line: int
    """The number of the prompt line, 1-based."""
    row: int
    output: int
    result_offset: int
    """Where the result line begins in the results file, in bytes."""
    result_length: int
    """The length of the result line in bytes, with the line end."""
    offset: int
    """Where the row's line begins in its input, in bytes."""
    length: int
    """The length of that line in bytes, without the line end."""
    digest: bytes
    """What that line is recognized by."""
    variant: int
    """The row's combination of sweep values; 0 without a sweep."""


RowWithLine = RowRecord | Position
"""What tells where the line of a row is."""


class Positions:
    """The positions of the result lines of a run, and of the lines that they answer.

    All but the last are in a temporary file in the folder for temporary files (TMPDIR), some 80 bytes a line. It is
    deleted when it is closed, or when the process ends.

    Raises:
        OutputError: the disk is full; any method raises it.
    """

    def __init__(self) -> None:
        with _errors():
            self._file = TemporaryFile()  # noqa: SIM115 - closed at the end
        self._last: list[Position] = []
        self._parts: list[list[tuple[int, int]]] = []
        """For each sorted part in the file, the offset and length of each of its blocks."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, positions: Iterable[Position]) -> None:
        """Add the positions of rows that have none yet."""
        self._last += positions
        if len(self._last) >= _MOST_IN_MEMORY:
            with _errors():
                self._put()

    def _put(self) -> None:
        self._last.sort()
        at = self._file.seek(0, 2)
        part = []
        for first in range(0, len(self._last), _BLOCK):
            block = marshal.dumps(list(map(tuple, self._last[first : first + _BLOCK])))
            self._file.write(block)
            part.append((at, len(block)))
            at += len(block)
        self._parts.append(part)
        self._last = []

    def __iter__(self) -> Iterator[Position]:
        """All of them in input order, few in memory at a time."""
        self._last.sort()
        with _errors():
            yield from merge(*map(self._read, self._parts), self._last)

    def _read(self, part: list[tuple[int, int]]) -> Iterator[Position]:
        for offset, length in part:
            self._file.seek(offset)
            yield from map(Position._make, marshal.loads(self._file.read(length)))  # noqa: S302 - our own file


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"the positions of the results cannot be stored in the folder for temporary files: {error.strerror}",
            "free disk space there, or set TMPDIR to another folder",
        ) from error
