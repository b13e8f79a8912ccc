"""The tables of the state file, and how a file is created and upgraded.

A row contains no prompt text: its source, offset, length and digest lead back to the line. It does contain its id, by
which results, failures and people refer to it. Jobs have their own table: a row may have several over time, and a job
carries one or more rows. `carried` has their numbers in the order in which they were sent: an integer for one row,
which takes four bytes, or a JSON array for several. `rows.job` is the row's last job, or the leader's if that answered.
`jobs.endpoint` is the number of the endpoint that a job was submitted to, see `endpoints.endpoint_numbers`.

`amendments` says how the requests of some rows differ from those of their lines, as a JSON object.

`variant` is the number of a row's combination of sweep values, `same_as` the row whose job also answers this one, and
`result` the digest of its result line: 48 bits, NULL if there is none or an older version wrote it.

Times are UTC epoch milliseconds; unlike the scheduler's clock, they survive a reboot.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from batchrun.config import FOLDER_STATE
from batchrun.errors import OutputError, StateError
from batchrun.files.folders import make_folder
from batchrun.files.locks import is_held_here
from batchrun.state.opening import (
    Tell,
    damaged_hint,
    did_you_mean,
    open_to_read,
    open_to_write,
    refuse_without_log,
    retry_while_locked,
    sqlite_errors,
)

APPLICATION_ID = 0x62617263
"""`barc`: distinguishes a state file from any other SQLite file."""
SCHEMA_VERSION = 6
_UPGRADES = (
    (("variant", "INTEGER NOT NULL DEFAULT 0"), ("same_as", "INTEGER")),
    (("result", "INTEGER"),),
)
"""The columns that versions 2 and 3 added to `rows`."""
_LOG_BYTES = 4 << 20
_HEAD_BYTES, _ID_AT = 100, 68
"""The header of an SQLite file, and where the application's ID is in it."""

_JOB_ROWS = """
VIEW job_rows AS SELECT j.job, coalesce(e.key, 0) AS ordinal, e.value AS row FROM jobs j, json_each(j.carried) e
"""
"""The rows of each job, numbered in the order in which they were sent."""
_ENDPOINT = "endpoint INTEGER NOT NULL DEFAULT 0"
"""A column of `jobs`, which version 6 added."""
_ENDPOINT_FROM = 6
_JOBS = f"""
CREATE TABLE jobs (
    job INTEGER PRIMARY KEY,
    carried NOT NULL,
    remote_id TEXT,
    status TEXT,
    submitted_ms INTEGER NOT NULL,
    delay_ms INTEGER,
    execution_ms INTEGER,
    {_ENDPOINT}
);
CREATE {_JOB_ROWS};
CREATE TABLE parts (job INTEGER, row INTEGER, output BLOB NOT NULL, PRIMARY KEY (job, row)) WITHOUT ROWID;
"""
"""`parts` contains the output of failed jobs, as JSON."""
_SEVERAL_ROWS_FROM = 4
"""The first version in which a job can carry several rows."""
_AMENDMENTS = "TABLE amendments (row INTEGER PRIMARY KEY, changes BLOB NOT NULL)"
_AMENDMENTS_FROM = 5
"""The first version that has them."""
_UPGRADE_JOBS = f"""
ALTER TABLE jobs RENAME TO old_jobs;
ALTER TABLE parts RENAME TO old_parts;
{_JOBS}
INSERT INTO jobs (job, carried, remote_id, status, submitted_ms, delay_ms, execution_ms)
    SELECT job, row, remote_id, status, submitted_ms, delay_ms, execution_ms FROM old_jobs;
INSERT INTO parts SELECT p.job, j.row, p.output FROM old_parts p JOIN old_jobs j ON j.job = p.job;
DROP TABLE old_jobs;
DROP TABLE old_parts;
"""
_OLD_PARTS = "TABLE IF NOT EXISTS parts (job INTEGER PRIMARY KEY, output BLOB NOT NULL)"
"""Files of versions 1 to 3 may lack it."""

_TABLES = f"""{_JOBS}
CREATE {_AMENDMENTS};
CREATE TABLE settings (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE outputs (output INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, committed_bytes INTEGER NOT NULL);
CREATE TABLE sources (
    source INTEGER PRIMARY KEY,
    path TEXT NOT NULL,
    origin TEXT NOT NULL UNIQUE,
    file TEXT NOT NULL,
    stamp TEXT NOT NULL,
    output INTEGER NOT NULL REFERENCES outputs
);
CREATE TABLE rows (
    row INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    source INTEGER NOT NULL,
    line INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    length INTEGER NOT NULL,
    digest BLOB NOT NULL,
    state INTEGER NOT NULL DEFAULT 0,
    job INTEGER,
    attempts INTEGER NOT NULL DEFAULT 0,
    retries INTEGER NOT NULL DEFAULT 0,
    unconfirmed INTEGER NOT NULL DEFAULT 0,
    variant INTEGER NOT NULL DEFAULT 0,
    same_as INTEGER,
    result INTEGER
);
CREATE UNIQUE INDEX rows_by_id ON rows (id);
CREATE TABLE failures (
    row INTEGER PRIMARY KEY,
    status TEXT NOT NULL,
    kind TEXT NOT NULL,
    message TEXT NOT NULL,
    raw TEXT NOT NULL,
    worker_id TEXT,
    completed_ms INTEGER
);
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE sessions (session INTEGER PRIMARY KEY, pid INTEGER NOT NULL, started_ms INTEGER NOT NULL,
    seen_ms INTEGER NOT NULL, outcome TEXT);
"""


def connect(path: Path, *, read_only: bool = False, tell: Tell | None = None) -> sqlite3.Connection:
    """Open a state file; it is created if it does not exist, unless `read_only`.

    Args:
        path: The file.
        read_only: Whether it is only read; then it may belong to another user, or be on a read-only disk.
        tell: Called with a message if another program has the file locked for long; None to wait at most 10 s.

    Raises:
        StateError: it is not a state file of batchrun, is newer than this batchrun, or is damaged.
        OutputError: it cannot be created or written.
    """
    if path.is_dir():
        raise StateError(
            f"{path} is a folder, not a state file",
            did_you_mean(path, f"in a folder of results, it is {FOLDER_STATE}"),
        )
    if read_only and not path.exists():
        raise StateError(f"{path}: there is no such state file", "it is beside the results: <output>.state")
    if not path.exists():
        try:
            make_folder(path.parent)
        except OSError as error:
            raise OutputError(f"{path.parent}: the folder cannot be created: {error.strerror}") from error
    refuse_without_log(path)
    with sqlite_errors(path, reading=read_only):
        if not read_only and path.exists():
            retry_while_locked(lambda: _refuse_damaged(path), path, tell)
        connection = retry_while_locked(lambda: open_to_read(path), path, tell) if read_only else open_to_write(path)
        try:
            retry_while_locked(lambda: _prepare(connection, path, read_only=read_only), path, tell)
        except BaseException:
            connection.close()
            raise
    return connection


def may_be_state(path: Path) -> bool:
    """Whether a file begins like a state file, even a damaged one; or is empty, as at the first start.

    Raises:
        OSError: it cannot be read.
    """
    if is_held_here(path):
        return True  # closing it here would drop SQLite's locks
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return not head or head[_ID_AT : _ID_AT + 4] == APPLICATION_ID.to_bytes(4)


def holds_run(path: Path, tell: Tell | None = None) -> bool:
    """Whether a file may hold a run: False if it is missing, empty, or was cut off before a run began.

    Nothing is written. For another program's database this is True, unless it is empty.

    Raises:
        StateError: it is damaged, or not a database.
        OutputError: it cannot be opened.
    """
    if not path.exists():
        return False
    with sqlite_errors(path, reading=True):
        return retry_while_locked(lambda: _holds_run(path), path, tell)


def _holds_run(path: Path) -> bool:
    with closing(open_to_read(path)) as connection:
        if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            return bool(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
        return bool(connection.execute("SELECT count(*) FROM settings WHERE name = 'options'").fetchone()[0])


def _refuse_damaged(path: Path) -> None:
    """Check the whole file, 0.3 s for a million rows, before opening a connection that may write to it.

    Such a connection checkpoints the log when it is closed, even if it has written nothing.
    """
    with closing(open_to_read(path)) as connection:
        _refuse_foreign(connection, path)
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise StateError(f"{path}: the state file is damaged ({' '.join(verdict.split())})", damaged_hint(path))


def _refuse_foreign(connection: sqlite3.Connection, path: Path, *, may_be_empty: bool = True) -> int:
    """Refuse a file that is neither a state file nor empty; returns the number of its tables and indexes."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    if not tables and not may_be_empty:
        raise StateError(f"{path} holds no run: it is empty", "if its start was interrupted, run that command again")
    if tables and application_id != APPLICATION_ID:
        raise StateError(f"{path} is not a state file of batchrun", "use another --state; this file was left untouched")
    if version > SCHEMA_VERSION:
        raise StateError(
            f"{path} was written by a newer batchrun (schema {version}; this one supports up to {SCHEMA_VERSION})",
            "upgrade: pip install -U runpod-batchrun",
        )
    return int(tables)


def _prepare(connection: sqlite3.Connection, path: Path, *, read_only: bool) -> None:
    tables = _refuse_foreign(connection, path, may_be_empty=not read_only)
    version = connection.execute("PRAGMA user_version").fetchone()[0] if tables else SCHEMA_VERSION
    if read_only:
        _show_as_new(connection, version)
        return
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    # The store does the checkpoints itself; the limit returns disk space after a large batch.
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
    if version < SCHEMA_VERSION:
        columns = "".join(f"ALTER TABLE rows ADD COLUMN {name} {kind};" for name, kind in _added_since(version))
        jobs = f"ALTER TABLE jobs ADD COLUMN {_ENDPOINT};"
        if version < _SEVERAL_ROWS_FROM:
            jobs = f"CREATE {_OLD_PARTS}; {_UPGRADE_JOBS}"
        amendments = f"CREATE {_AMENDMENTS};" if version < _AMENDMENTS_FROM else ""
        _in_one(connection, f"{columns} {jobs} {amendments}")
    if not tables:
        _in_one(connection, f"{_TABLES} PRAGMA application_id = {APPLICATION_ID};")


def _added_since(version: int) -> list[tuple[str, str]]:
    return [column for columns in _UPGRADES[version - 1 :] for column in columns]


def _show_as_new(connection: sqlite3.Connection, version: int) -> None:
    """Let a file of an older version be read like one of this version.

    A temporary view takes precedence over the table of the same name.
    """
    if added := _added_since(version):
        defaults = ", ".join(f"{0 if 'DEFAULT 0' in kind else 'NULL'} AS {name}" for name, kind in added)
        connection.execute(f"CREATE TEMP VIEW rows AS SELECT *, {defaults} FROM main.rows")
    if version < _AMENDMENTS_FROM:
        connection.execute("CREATE TEMP VIEW amendments AS SELECT NULL AS row, NULL AS changes WHERE 0")
    if version < _ENDPOINT_FROM:
        carried = ", row AS carried" if version < _SEVERAL_ROWS_FROM else ""
        connection.execute(f"CREATE TEMP VIEW jobs AS SELECT *{carried}, 0 AS endpoint FROM main.jobs")
    if version < _SEVERAL_ROWS_FROM:
        connection.execute(f"CREATE TEMP {_JOB_ROWS}")
        has_parts = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'parts'").fetchone()
        parts = (
            "SELECT p.job, j.row, p.output FROM main.parts p JOIN main.jobs j ON j.job = p.job"
            if has_parts
            else "SELECT NULL AS job, NULL AS row, NULL AS output WHERE 0"
        )
        connection.execute(f"CREATE TEMP VIEW parts AS {parts}")


def _in_one(connection: sqlite3.Connection, script: str) -> None:
    """Run a script and set the version, in one transaction."""
    connection.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
