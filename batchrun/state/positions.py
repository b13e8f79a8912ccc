"""The positions of all result lines, sorted by the positions of their prompt lines, in a temporary file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Self

from batchrun.errors import OutputError

_TABLE = """
CREATE TABLE positions (source INTEGER, line INTEGER, row INTEGER, output INTEGER, offset INTEGER, length INTEGER,
    PRIMARY KEY (source, line, row)) WITHOUT ROWID
"""


class Position(NamedTuple):
    """The position of a row's result line. The first three fields determine the order."""

    source: int
    line: int
    """The number of the prompt line, 1-based."""
    row: int
    output: int
    offset: int
    """Where the result line begins in the results file, in bytes."""
    length: int
    """The length of the result line in bytes, with the line end."""


class Positions:
    """The positions of the result lines of a run.

    They are in a temporary SQLite database in the folder for temporary files (TMPDIR), some 25 bytes a line. It is
    deleted when it is closed, or when the process ends.

    Raises:
        OutputError: the disk is full; any method raises it.
    """

    def __init__(self) -> None:
        with _errors():
            self._db = sqlite3.connect("", isolation_level=None)
            self._db.execute("PRAGMA journal_mode = OFF")
            self._db.execute("PRAGMA synchronous = OFF")
            self._db.execute(_TABLE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def add(self, positions: Iterable[Position]) -> None:
        """Add the positions of rows that have none yet."""
        with _errors():
            self._db.execute("BEGIN")
            self._db.executemany("INSERT INTO positions VALUES (?, ?, ?, ?, ?, ?)", positions)
            self._db.execute("COMMIT")

    def __iter__(self) -> Iterator[Position]:
        """All of them in input order, one in memory at a time."""
        with _errors():
            yield from map(Position._make, self._db.execute("SELECT * FROM positions ORDER BY source, line, row"))


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise OutputError(
            f"the positions of the results cannot be stored in the folder for temporary files: {error}",
            "free disk space there, or set TMPDIR to another folder",
        ) from error
