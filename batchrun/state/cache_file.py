"""The file of an answer cache: its tables, and how it is created, opened and refused.

It is SQLite with a write-ahead log, so a killed process leaves it intact. `answers` has one row for each
request, endpoint and sample. `served` has the model as which an endpoint answered last.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from batchrun.errors import StateError
from batchrun.state.opening import retry_while_locked

APPLICATION_ID = 0x62616361
"""`baca`: distinguishes a cache from any other SQLite file."""
CACHE_VERSION = 1
WRITE_WAIT_S = 5.0
_CHECKED_BYTES = 64 << 20
"""A file of at most this size is checked completely when it is opened, which takes a tenth of a second."""
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)

_TABLES = f"""
CREATE TABLE answers (
    digest BLOB PRIMARY KEY,
    stored_ms INTEGER NOT NULL,
    seal BLOB NOT NULL,
    endpoint TEXT NOT NULL,
    sample INTEGER NOT NULL,
    asked TEXT NOT NULL,
    model TEXT NOT NULL,
    job BLOB NOT NULL,
    request BLOB NOT NULL,
    output BLOB NOT NULL
);
CREATE INDEX answers_by_age ON answers (stored_ms);
CREATE TABLE served (
    endpoint TEXT NOT NULL,
    asked TEXT NOT NULL,
    model TEXT NOT NULL,
    PRIMARY KEY (endpoint, asked)
) WITHOUT ROWID;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {CACHE_VERSION};
"""


def refuse_unusable_cache(path: Path) -> None:
    """Refuse a file that is not a cache, is damaged or newer, or cannot be written; it may be missing or empty.

    Raises:
        StateError: says which.
    """
    if path.is_dir():
        raise StateError(f"cache {path} is a folder", "give a file in it")
    if not path.parent.is_dir():
        raise StateError(f"cache {path}: its folder does not exist", "create it, or give another file")
    if not _size(path):
        return
    if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
        raise StateError(f"cache {path} cannot be written", "fix its permissions, and those of its folder")
    with refused(path), closing(connect(path, WRITE_WAIT_S)) as db:
        retry_while_locked(lambda: _refuse_foreign(db, path), path, None)


def _refuse_foreign(db: sqlite3.Connection, path: Path) -> bool:
    """Refuse a file that is not a usable cache; returns whether it has its tables yet."""
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application_id,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if application_id != APPLICATION_ID and (tables or application_id):
        raise StateError(f"cache {path} is not a cache of batchrun", "give another file; this one was left untouched")
    if version > CACHE_VERSION:
        raise StateError(
            f"cache {path} was written by a newer batchrun (version {version}; this one knows {CACHE_VERSION})",
            "upgrade: pip install -U runpod-batchrun; or give another file",
        )
    if tables:
        if _lacks_pages(db, path):
            raise sqlite3.DatabaseError("it is shorter than it was written")
        db.execute("SELECT seal, job, request, output FROM answers LIMIT 1").fetchall()
        db.execute("SELECT model FROM served LIMIT 1").fetchall()
        if _size(path) <= _CHECKED_BYTES and db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("its pages contradict each other")
    return bool(tables > 0)


def _lacks_pages(db: sqlite3.Connection, path: Path) -> bool:
    """Whether the file was cut off. If it has a log, its last pages may be there."""
    real = path.resolve()
    if _size(real.with_name(f"{real.name}-wal")):
        return False
    # By SQLite, not from the file: closing the file here would drop the locks of a run in this process.
    (pages,), (page_bytes,) = (db.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
    return int(pages) * int(page_bytes) > _size(path)


def create(path: Path) -> None:
    """Create a cache, unless there is one; its folder must exist.

    Raises:
        StateError, OSError, sqlite3.Error: it cannot be used; for the last two see `refused`.
    """
    refuse_unusable_cache(path)
    with suppress(FileExistsError):
        # Prompts and answers are for the user's eyes.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    with closing(connect(path, WRITE_WAIT_S)) as db:
        retry_while_locked(lambda: _make_tables(db, path), path, None)


def _make_tables(db: sqlite3.Connection, path: Path) -> None:
    if _refuse_foreign(db, path):
        return
    db.execute("PRAGMA auto_vacuum = INCREMENTAL")
    db.execute("PRAGMA journal_mode = WAL").fetchone()
    db.execute("BEGIN IMMEDIATE")
    try:
        if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            for statement in filter(str.strip, _TABLES.split(";")):
                db.execute(statement)
        db.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


def connect(path: Path, wait_s: float) -> sqlite3.Connection:
    """A connection that waits up to `wait_s` seconds for other processes.

    Raises:
        sqlite3.Error: it cannot be opened.
    """
    uri = f"{path.resolve().as_uri()}?mode=rw"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=wait_s)


@contextmanager
def refused(path: Path) -> Iterator[None]:
    """Turn errors of SQLite and the disk into one clear error, before a run or in `batchrun cache`."""
    try:
        yield
    except OSError as error:
        raise StateError(f"cache {path} cannot be used: {error.strerror}", "give another file") from error
    except (sqlite3.Error, UnicodeDecodeError) as error:
        if isinstance(error, sqlite3.Error) and is_busy(error):
            raise StateError(f"cache {path} is locked by another program", "close that program") from error
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if code == sqlite3.SQLITE_NOTADB:
            raise StateError(f"cache {path} is not a cache of batchrun: {error}", "give another file") from error
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR):
            raise StateError(
                f"cache {path} is damaged: {error}", "move it away, and a new one is created; or give another file"
            ) from error
        raise StateError(f"cache {path} cannot be used: {error}", "free disk space, or give another file") from error


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another process has the file locked."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
