"""A snapshot of a run's state, to read all of its rows consistently."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import NamedTuple, TypeVar

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
"""Table -> the condition for rows that batchrun cannot have written. A line has at most 64 MiB."""
_ROWS = "sum(CASE WHEN state = 4 AND attempts = 0 AND id GLOB 'invalid-*' THEN ? ELSE 1 END)"


class FoundRow(NamedTuple):
    """A row that was found by its id."""

    row: int
    source: int
    line: int
    """1-based."""
    state: int
    """A RowState's number."""
    result: int | None
    """The digest of its result line; None if an older version wrote it."""


class FoundLine(NamedTuple):
    """A row that was found by its id, and where its line is."""

    row: int
    source: int
    line: int
    """1-based."""
    state: int
    """As in `FoundRow`."""
    result: int | None
    """As in `FoundRow`."""
    offset: int
    length: int
    """The length of the line in bytes, without the line end."""
    digest: bytes
    variant: int


class ScannedRow(NamedTuple):
    """A row and where its line is."""

    row: int
    id: str
    source: int
    line: int
    """1-based."""
    offset: int
    length: int
    """The length of the line in bytes, without the line end."""
    digest: bytes
    state: int
    """As in `Found`."""


Found = TypeVar("Found", FoundRow, FoundLine)


class StateSnapshot(StateReader):
    """A state file, read-only, as it was when this object was created, even while another process writes it.

    The length of each results file and the states of its rows are committed together, so they agree here.

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
        """The first problems with the file itself; empty if it is intact. Read nothing more from a damaged file."""
        try:
            faults = [text for (text,) in self.query("PRAGMA integrity_check(5)") if text != "ok"]
            for table, wrong in _WRONG.items():
                count = self.query(f"SELECT count(*) FROM {table} WHERE {wrong}")[0][0]
                faults += [f"table {table}: {count:,} rows with impossible values"] * bool(count)
        except StateError as error:
            return [error.message]
        return faults

    def refuse_damaged(self) -> None:
        """Refuse a damaged file, before anything else is read from it.

        Raises:
            StateError: it is damaged.
        """
        _refuse(self.path, self.damage())

    @contextmanager
    def refusing_damaged(self) -> Iterator[None]:
        """Refuse a damaged file at the end of a `with` block, whatever went wrong in it.

        A thread checks the file meanwhile: SQLite does so on another core.

        Raises:
            StateError: it is damaged.
        """
        faults: list[str] = []

        def check() -> None:
            try:
                with StateSnapshot(self.path) as other:
                    faults.extend(other.damage())
            except StateError as error:
                faults.append(error.message)

        thread = Thread(target=check, daemon=True)
        thread.start()
        try:
            yield
        except Exception:
            thread.join()
            _refuse(self.path, faults)
            raise
        thread.join()
        _refuse(self.path, faults)

    def last_row(self) -> int:
        """The largest row number; 0 without rows."""
        return int(self.query("SELECT coalesce(max(row), 0) FROM rows")[0][0])

    def last_session(self) -> tuple[int, str | None]:
        """The number of the last session, and how it ended: None if it is running or was cut off."""
        rows = self.query("SELECT session, outcome FROM sessions ORDER BY session DESC LIMIT 1")
        return (int(rows[0][0]), rows[0][1]) if rows else (0, None)

    def find(self, ids: Sequence[str]) -> list[FoundRow | None]:
        """The rows with these stored ids (see `shared_ids`), in order; None for each missing one. At most 30,000."""
        return self._find(FoundRow, ids)

    def find_lines(self, ids: Sequence[str]) -> list[FoundLine | None]:
        """The rows as `find` finds them, each with where its line is."""
        return self._find(FoundLine, ids)

    def _find(self, kind: type[Found], ids: Sequence[str]) -> list[Found | None]:
        # Not as one JSON array: SQLite would truncate an id at a NUL.
        sql = f"SELECT {', '.join(kind._fields)}, id FROM rows WHERE id IN ({','.join('?' * len(ids))})"
        found = {row[-1]: kind._make(row[:-1]) for row in self.query(sql, ids)}
        return list(map(found.get, ids))

    def rows_by_source(self, size: int) -> dict[int, int]:
        """Input -> the number of its rows; an invalid line counts as `size` rows, as many as it would have."""
        return dict(self.query(f"SELECT source, {_ROWS} FROM rows GROUP BY source", (size,)))

    def rows_by_line(self, source: int, size: int) -> dict[bytes, int]:
        """Digest of a line of an input -> the number of its rows, counted as above; takes 150 bytes a line."""
        sql = f"SELECT digest, {_ROWS} FROM rows WHERE source = ? GROUP BY digest"
        return dict(self.query(sql, (size, source)))

    def variants(self, ids: Sequence[str]) -> dict[str, int]:
        """Row id -> its variant, for the ids that exist. At most 30,000 at a time."""
        return dict(self.query(f"SELECT id, variant FROM rows WHERE id IN ({','.join('?' * len(ids))})", ids))

    def line_digests(self) -> Iterator[bytes]:
        """The digest of the bytes of each line that has rows, once for each line."""
        for (digest,) in self.each("SELECT substr(digest, 1, 16) FROM rows WHERE variant = 0"):
            yield digest

    def scan(self) -> Iterator[ScannedRow]:
        """Every row in order, one in memory at a time."""
        sql = "SELECT row, id, source, line, offset, length, digest, state FROM rows ORDER BY row"
        for row, row_id, *rest in self.each(sql):
            yield ScannedRow(row, public_id(row_id), *rest)


def _refuse(path: Path, faults: list[str]) -> None:
    if faults:
        raise StateError(f"{path}: the state file is damaged ({faults[0]})", "restore it from a copy")
