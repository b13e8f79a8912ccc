"""The database of a run's state: transactions, settings, and a write-ahead log that is checkpointed while it is small.

Each transaction of a session is counted, and before each checkpoint the count is recorded in the file. So a file that
has lost its log is recognised: its count equals the recorded one.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from batchrun.errors import OutputError, StateError
from batchrun.files.exactjson import dump, load
from batchrun.state.opening import (
    AT_CHECKPOINT,
    COMMITS,
    Tell,
    damaged_hint,
    log_preserved,
    retry_while_locked,
    sqlite_errors,
)
from batchrun.state.schema import connect

T = TypeVar("T")

_COMMITS_A_CHECKPOINT = 50
"""The most commits in the log of a run that is killed, a few MB."""
_COUNT_COMMIT = f"INSERT INTO counters VALUES ('{COMMITS}', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1"
_NOTE_COUNT = f"INSERT OR REPLACE INTO counters SELECT '{AT_CHECKPOINT}', value FROM counters WHERE name = '{COMMITS}'"


class Database:
    """A state file as a database.

    Args:
        path: The file; created if it does not exist, unless `read_only`.
        read_only: Only read, even while another process writes.
        tell: Called with a message if another program has the file locked for long; None to wait at most 10 s.

    Raises:
        StateError: see `schema.connect`; any method raises it for a damaged file, and OutputError for a full disk.
    """

    def __init__(self, path: Path, *, read_only: bool = False, tell: Tell | None = None) -> None:
        self.path = path
        self._read_only = read_only
        self._tell = tell
        self._is_underway = False
        self._commits = 0
        """The number of commits since the last checkpoint."""
        self._db = connect(path, read_only=read_only, tell=tell)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; at the end of a session SQLite checkpoints the write-ahead log."""
        if self._is_underway and not self._commits:
            # The count equals the recorded one, and no log will remain: without another commit it would look lost.
            with suppress(OutputError, StateError), self.transaction():
                pass
        with nullcontext() if self._read_only else log_preserved(self.path):
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction: commits at the end, rolls back on any exception."""
        with self._errors():
            self._retry_while_locked(lambda: self._db.execute("BEGIN IMMEDIATE"))
            try:
                yield self._db
                is_due = self._is_underway and self._count_commit()
            except BaseException:
                self._db.rollback()
                raise
            self._db.commit()
            self._commits += 1
            if is_due:
                self._checkpoint("PASSIVE")

    @contextmanager
    def first_transaction(self) -> Iterator[sqlite3.Connection]:
        """The first transaction of a session: from here on, the loss of the log is noticed."""
        self._is_underway = True
        self._commits = _COMMITS_A_CHECKPOINT
        with self.transaction() as db:
            yield db
        # After reading the inputs, the log may be as large as the file.
        self._checkpoint("TRUNCATE")

    def _count_commit(self) -> bool:
        """Count a commit in the file; returns whether a checkpoint is due, and if so, records the count."""
        self._db.execute(_COUNT_COMMIT)
        is_due = self._commits >= _COMMITS_A_CHECKPOINT
        if is_due:
            self._db.execute(_NOTE_COUNT)
        return is_due

    def _checkpoint(self, how: Literal["PASSIVE", "TRUNCATE"]) -> None:
        # On a full disk the log remains, and with it everything that was committed.
        with suppress(sqlite3.Error):
            self._db.execute(f"PRAGMA wal_checkpoint({how})").fetchone()
        self._commits = 0

    def _errors(self) -> AbstractContextManager[None]:
        return sqlite_errors(self.path, underway=self._is_underway)

    def _retry_while_locked(self, work: Callable[[], T]) -> T:
        try:
            return retry_while_locked(work, self.path, self._tell)
        except sqlite3.OperationalError:
            self._tell = None  # after one long wait in vain, do not wait that long again
            raise

    def query(self, sql: str, parameters: Iterable[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of a SELECT."""
        values = tuple(parameters)
        with self._errors():
            return self._retry_while_locked(lambda: self._db.execute(sql, values).fetchall())

    def each(self, sql: str, parameters: Iterable[object] = ()) -> Generator[tuple[Any, ...]]:
        """The rows of a SELECT, one in memory at a time."""
        values = tuple(parameters)
        with self._errors():
            # Not `yield from`: it would close the cursor, perhaps after the database is closed.
            for row in self._retry_while_locked(lambda: self._db.execute(sql, values)):  # noqa: UP028
                yield row

    def get_setting(self, name: str) -> object:
        """A setting's JSON value; None if it is not set.

        Raises:
            StateError: it is not JSON: the file is damaged.
        """
        # A value that another program has changed is text.
        rows = self.query("SELECT CAST(value AS BLOB) FROM settings WHERE name = ?", (name,))
        try:
            return load(rows[0][0]) if rows else None
        except ValueError as error:
            message = f"{self.path}: the state file is damaged (the setting `{name}` cannot be read)"
            raise StateError(message, damaged_hint(self.path)) from error

    def set_setting(self, name: str, value: object) -> None:
        """Store a JSON value under a name."""
        with self.transaction() as db:
            db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, dump(value)))

    @property
    def reading(self) -> int:
        """The version of the rules by which lines become requests, see `prompts.shapes.READING`; 1 if not stored."""
        reading = self.get_setting("reading")
        return reading if isinstance(reading, int) else 1

    @property
    def token(self) -> str:
        """A random word in the names of this run's temporary files."""
        token = self.get_setting("token")
        if not isinstance(token, str):
            token = os.urandom(4).hex()
            self.set_setting("token", token)
        return token
