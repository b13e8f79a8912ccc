"""A run's state as of one moment, for those who look at all of its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from batchrun.errors import StateError
from batchrun.state.reader import StateReader
from batchrun.state.records import public_id

_NO_NUMBERS = "max(typeof({0}) <> 'integer', {0} < 0)"
_WRONG = {
    "rows": " OR ".join(
        [
            "row NOT BETWEEN 1 AND 2147483647 OR typeof(id) <> 'text' OR typeof(digest) <> 'blob' OR state > 5",
            *(_NO_NUMBERS.format(column) for column in ("source", "line", "offset", "length", "state", "variant")),
            "length > 67108864",
        ]
    ),
    "outputs": f"typeof(path) <> 'text' OR {_NO_NUMBERS.format('committed_bytes')}",
    "sources": f"typeof(path) <> 'text' OR typeof(file) <> 'text' OR {_NO_NUMBERS.format('output')}",
}
"""Table -> which of its rows no batchrun has written. A line has at most 64 MiB."""
_ROWS = "sum(CASE WHEN state = 4 AND attempts = 0 AND id GLOB 'invalid-*' THEN ? ELSE 1 END)"


class Found(NamedTuple):
    """A row that was looked up by its id."""

    row: int
    source: int
    line: int
    """1-based."""
    state: int
    """A RowState's number."""
    result: int | None
    """The digest of its result line; None when an older version has written it."""


class ScannedRow(NamedTuple):
    """A row and the way back to its line."""

    row: int
    id: str
    source: int
    line: int
    """1-based."""
    offset: int
    length: int
    """Of the line in bytes, without its end."""
    digest: bytes
    state: int
    """As in `Found`."""


class StateSnapshot(StateReader):
    """A state file, read-only, as it was when this was made, whatever another process writes meanwhile.

    The length of each results file and the states of its rows are committed together, so here they agree.

    Args:
        path: The state file.

    Raises:
        StateError: there is no such state file, or it cannot be read; any method raises it for a damaged one.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            with self._errors():
                self._db.execute("BEGIN")
            # The transaction begins with its first read.
            self.query("SELECT 1 FROM settings LIMIT 1")
        except BaseException:
            self.close()
            raise

    def damage(self) -> list[str]:
        """What is wrong with the file itself, a few things at most; none as a rule. Of a damaged one, read no more."""
        try:
            faults = [text for (text,) in self.query("PRAGMA integrity_check(5)") if text != "ok"]
            for table, wrong in _WRONG.items():
                count = self.query(f"SELECT count(*) FROM {table} WHERE {wrong}")[0][0]
                faults += [f"table {table}, values that cannot be: {count:,}"] * bool(count)
        except StateError as error:
            return [error.message]
        return faults

    def refuse_damaged(self) -> None:
        """Refuse a damaged file, before more is read of it.

        Raises:
            StateError: it is damaged.
        """
        if faults := self.damage():
            raise StateError(f"{self.path}: the state file is damaged ({faults[0]})", "restore it from a copy")

    def last_row(self) -> int:
        """The largest number that a row has; 0 without any."""
        return int(self.query("SELECT coalesce(max(row), 0) FROM rows")[0][0])

    def last_session(self) -> tuple[int, str | None]:
        """The number of the last session and how it ended; None while it goes on, or when it was cut off."""
        rows = self.query("SELECT session, outcome FROM sessions ORDER BY session DESC LIMIT 1")
        return (int(rows[0][0]), rows[0][1]) if rows else (0, None)

    def find(self, ids: Sequence[str]) -> list[Found | None]:
        """The rows with these ids, see `shared_ids`, in order; None where there is none. At most 30,000 at a time."""
        # Not as one JSON array: SQLite would end an id there at a NUL.
        sql = f"SELECT id, row, source, line, state, result FROM rows WHERE id IN ({','.join('?' * len(ids))})"
        found = {row[0]: Found(*row[1:]) for row in self.query(sql, ids)}
        return [found.get(row_id) for row_id in ids]

    def rows_by_source(self, size: int) -> dict[int, int]:
        """Input -> how many rows it has; a line that was invalid counts for all the rows that it would have: `size`."""
        return dict(self.query(f"SELECT source, {_ROWS} FROM rows GROUP BY source", (size,)))

    def rows_by_line(self, source: int, size: int) -> dict[bytes, int]:
        """By what a line of an input is known -> how many rows were made of it, as above: 150 bytes a line."""
        sql = f"SELECT digest, {_ROWS} FROM rows WHERE source = ? GROUP BY digest"
        return dict(self.query(sql, (size, source)))

    def variants(self, ids: Sequence[str]) -> dict[str, int]:
        """Row id -> the number of its variant, for the rows that there are. At most 30,000 at a time."""
        return dict(self.query(f"SELECT id, variant FROM rows WHERE id IN ({','.join('?' * len(ids))})", ids))

    def line_digests(self) -> Iterator[bytes]:
        """The digest of the bytes of each line that rows were made of, once for all of its rows."""
        for (digest,) in self.each("SELECT substr(digest, 1, 16) FROM rows WHERE variant = 0"):
            yield digest

    def scan(self) -> Iterator[ScannedRow]:
        """Every row in order, one in memory at a time."""
        sql = "SELECT row, id, source, line, offset, length, digest, state FROM rows ORDER BY row"
        for row, row_id, *rest in self.each(sql):
            yield ScannedRow(row, public_id(row_id), *rest)
