"""The database under a run's state: transactions, settings, and a log that is folded in before it grows large.

Each transaction of a session is counted, and before the log is folded into the file, the file notes the count. So a
file that has lost its log is known: its count is still the one that was noted.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from batchrun.errors import OutputError, StateError
from batchrun.files.exactjson import dump, load
from batchrun.state.opening import AT_CHECKPOINT, COMMITS, Tell, log_kept, patiently, sqlite_errors
from batchrun.state.schema import connect

T = TypeVar("T")

_COMMITS_A_CHECKPOINT = 50
"""A run that is killed leaves a log of no more commits than that, a few MB."""
_COUNT_COMMIT = f"INSERT INTO counters VALUES ('{COMMITS}', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1"
_NOTE_COUNT = f"INSERT OR REPLACE INTO counters SELECT '{AT_CHECKPOINT}', value FROM counters WHERE name = '{COMMITS}'"


class Database:
    """A state file as a database.

    Args:
        path: The file; made when it does not exist, unless `read_only`.
        read_only: Look on, also while another process writes.
        tell: Told when another program keeps us waiting; None: then there is no long wait.

    Raises:
        StateError: see `schema.connect`; any method raises it for a damaged file, and OutputError for a full disk.
    """

    def __init__(self, path: Path, *, read_only: bool = False, tell: Tell | None = None) -> None:
        self.path = path
        self._read_only = read_only
        self._tell = tell
        self._is_underway = False
        self._commits = 0
        """Since the last checkpoint."""
        self._db = connect(path, read_only=read_only, tell=tell)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; at the end of a session SQLite folds the write-ahead log into it."""
        if self._is_underway and not self._commits:
            # The count is the one noted, and no log will be left: without a further commit it would look lost.
            with suppress(OutputError, StateError), self.transaction():
                pass
        with nullcontext() if self._read_only else log_kept(self.path):
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing: commits at the end, rolls back on any exception."""
        with self._errors():
            self._patiently(lambda: self._db.execute("BEGIN IMMEDIATE"))
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
        """That of a session: from here on a log that is lost is noticed."""
        self._is_underway = True
        self._commits = _COMMITS_A_CHECKPOINT
        with self.transaction() as db:
            yield db
        # The log of the intake may be as large as the file.
        self._checkpoint("TRUNCATE")

    def _count_commit(self) -> bool:
        """Count a commit in the file; returns whether a checkpoint is due, for which the count is noted."""
        self._db.execute(_COUNT_COMMIT)
        is_due = self._commits >= _COMMITS_A_CHECKPOINT
        if is_due:
            self._db.execute(_NOTE_COUNT)
        return is_due

    def _checkpoint(self, how: Literal["PASSIVE", "TRUNCATE"]) -> None:
        # On a full disk the log remains, and with it all that was committed.
        with suppress(sqlite3.Error):
            self._db.execute(f"PRAGMA wal_checkpoint({how})").fetchone()
        self._commits = 0

    def _errors(self) -> AbstractContextManager[None]:
        return sqlite_errors(self.path, underway=self._is_underway)

    def _patiently(self, work: Callable[[], T]) -> T:
        try:
            return patiently(work, self.path, self._tell)
        except sqlite3.OperationalError:
            self._tell = None  # who has waited in vain does not wait as long again
            raise

    def query(self, sql: str, parameters: Iterable[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of a reading statement."""
        values = tuple(parameters)
        with self._errors():
            return self._patiently(lambda: self._db.execute(sql, values).fetchall())

    def each(self, sql: str, parameters: Iterable[object] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a reading statement, one in memory at a time."""
        values = tuple(parameters)
        with self._errors():
            # Not `yield from`, which would close the cursor of a database that may be closed by then.
            for row in self._patiently(lambda: self._db.execute(sql, values)):  # noqa: UP028
                yield row

    def get_setting(self, name: str) -> object:
        """A setting's JSON value; None when there is none."""
        # What another program has changed is text.
        rows = self.query("SELECT CAST(value AS BLOB) FROM settings WHERE name = ?", (name,))
        return load(rows[0][0]) if rows else None

    def set_setting(self, name: str, value: object) -> None:
        """Keep a JSON value under a name."""
        with self.transaction() as db:
            db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, dump(value)))

    @property
    def reading(self) -> int:
        """By which rules the run's lines become requests, see `prompts.shapes.READING`; 1 where none is kept."""
        reading = self.get_setting("reading")
        return reading if isinstance(reading, int) else 1

    @property
    def token(self) -> str:
        """A word that only files of this run have in their names."""
        token = self.get_setting("token")
        if not isinstance(token, str):
            token = os.urandom(4).hex()
            self.set_setting("token", token)
        return token
