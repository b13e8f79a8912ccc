"""Writes the state of a run during a session.

Writes come in batches, one transaction each, with `synchronous=FULL`: when `commit` returns, the batch is on disk.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from batchrun.config import UnconfirmedPolicy
from batchrun.errors import OutputError
from batchrun.scheduler.states import RowState
from batchrun.state.amendments import forget_asks, write_amendments
from batchrun.state.opening import Tell, with_log
from batchrun.state.reader import StateReader
from batchrun.state.records import Batch, SourceRecord

REQUEST = "tuning"
"""The setting with the last requests to tune the run, see `tunings`."""


class Store(StateReader):
    """A run's state file, opened for writing; created if it does not exist.

    Args:
        path: The file.
        tell: See `Database`.

    Raises:
        StateError, OutputError: see `Database`.
    """

    def __init__(self, path: Path, *, tell: Tell | None = None) -> None:
        super().__init__(path, tell=tell, read_only=False)
        self.has_failed = False
        """Whether writing a batch has failed."""
        self._stat = path.stat()
        request = self.get_setting(REQUEST)
        self.requested_before: int = request["number"] if isinstance(request, dict) else 0
        """The number of the last request to tune the run from before it was opened here."""

    def _refuse_gone(self) -> None:
        try:
            is_there = os.path.samestat(self._stat, self.path.stat())
        except OSError:
            is_there = False
        if not is_there:
            raise OutputError(
                f"{self.path}: the state file was removed or replaced during the run",
                f"put {with_log(self.path)} back, then run the same command; without it, start a new run with another"
                " --output",
            )

    def settle_unconfirmed(self, policy: UnconfirmedPolicy) -> int:
        """Decide about unconfirmed submissions that a crash has left; returns how many there were.

        With `resubmit`, rows that an earlier session held become pending, too.
        """
        next_state = RowState.PENDING if policy == "resubmit" else RowState.HELD
        with self.transaction() as db:
            db.execute("UPDATE jobs SET status = 'UNCONFIRMED' WHERE job IN (SELECT job FROM rows WHERE state = 1)")
            count = db.execute(
                "UPDATE rows SET state = ?, unconfirmed = unconfirmed + 1 WHERE state = 1", (int(next_state),)
            ).rowcount
            if policy == "resubmit":
                db.execute("UPDATE rows SET state = 0 WHERE state = 5")
            else:
                db.execute(_HOLD_FOLLOWERS)
            if count:
                _add(db, {"unconfirmed": count})
        return count

    def abandon_jobs_at(self, endpoint: int) -> int:
        """Give up the jobs at the endpoint of this number that are, or may be, in flight.

        Their rows become pending, and may be submitted anywhere; returns how many were in flight.
        """
        at_it = "state IN (1, 2) AND job IN (SELECT job FROM jobs WHERE endpoint = ?)"
        with self.transaction() as db:
            db.execute(
                f"UPDATE jobs SET status = 'ABANDONED' WHERE job IN (SELECT job FROM rows WHERE {at_it})", (endpoint,)
            )
            # A row whose last submission there is unconfirmed no longer belongs to that endpoint.
            db.execute(
                "UPDATE jobs SET status = 'ABANDONED' WHERE endpoint = ? AND status = 'UNCONFIRMED'", (endpoint,)
            )
            changed = db.execute(
                f"UPDATE rows SET state = 0, unconfirmed = unconfirmed + 1 WHERE {at_it}", (endpoint,)
            ).rowcount
            if changed:
                _add(db, {"unconfirmed": changed})
        return changed

    def retry_failed(self, kinds: tuple[str, ...]) -> int:
        """Make failed rows pending again, with all their retries and re-asks; returns how many.

        Lines that were invalid from the start stay failed: once fixed, such a line is another row.

        Args:
            kinds: Only these failure kinds; empty for all.
        """
        chosen = f" WHERE kind IN ({', '.join('?' * len(kinds))})" if kinds else ""
        with self.transaction() as db:
            forget_asks(db, f"SELECT row FROM failures{chosen}", kinds)
            count = db.execute(
                f"UPDATE rows SET state = 0, retries = 0, unconfirmed = 0"
                f" WHERE state = 4 AND row IN (SELECT row FROM failures{chosen})"
                " AND NOT (attempts = 0 AND id GLOB 'invalid-*')",
                kinds,
            ).rowcount
            db.execute("DELETE FROM failures WHERE row IN (SELECT row FROM rows WHERE state = 0)")
        return count

    def start_over(self) -> None:
        """Forget rows, options and results files, so that the inputs are read as at the first start."""
        with self.transaction() as db:
            db.execute("DELETE FROM rows")
            db.execute("DELETE FROM outputs")
            db.execute(
                "DELETE FROM settings WHERE name IN ('options', 'intake', 'format', 'whole_input', 'shared_ids',"
                " 'endpoints', 'pilot')"
            )

    def begin_session(self, pid: int, now_ms: int, holder: object = None) -> int:
        """Record that a session has begun; returns its number.

        Args:
            pid: The ID of this process.
            now_ms: The current time, UTC epoch milliseconds.
            holder: What identifies this process, a JSON value; see `lock.identity`.
        """
        with self.first_transaction() as db:
            cursor = db.execute(
                "INSERT INTO sessions (pid, started_ms, seen_ms) VALUES (?, ?, ?)", (pid, now_ms, now_ms)
            )
            db.execute("INSERT OR REPLACE INTO settings VALUES ('holder', ?)", (orjson.dumps(holder),))
        return int(cursor.lastrowid or 0)

    def end_session(self, session: int, now_ms: int, outcome: str, reason: str = "") -> None:
        """Record how a session ended, and why it stopped."""
        with self.transaction() as db:
            db.execute("UPDATE sessions SET seen_ms = ?, outcome = ? WHERE session = ?", (now_ms, outcome, session))
            ending = orjson.dumps({"session": session, "reason": reason})
            db.execute("INSERT OR REPLACE INTO settings VALUES ('ending', ?)", (ending,))

    def note_stamp(self, source: SourceRecord) -> None:
        """Record the present size, time and inode of an input."""
        with self.transaction() as db:
            db.execute("UPDATE sources SET stamp = ? WHERE source = ?", (source.stamp, source.source))

    def rename_output(self, path: str) -> None:
        """Record the new path of the only results file, relative to the state file's folder."""
        with self.transaction() as db:
            db.execute("UPDATE outputs SET path = ?", (path,))

    def commit(self, batch: Batch, session: int, now_ms: int) -> None:
        """Write a batch; it is on disk when this returns.

        Raises:
            OutputError: it cannot be written; or the state file was removed or replaced, so it would be lost.
        """
        self._refuse_gone()
        with self.transaction() as db:
            _write(db, batch.accepted, _NAME_JOBS, _MARK_SUBMITTED)
            _write(db, batch.cancelling, _MARK_CANCELLING)
            _write(db, [e for e in batch.ended if e.status is not None], _END_JOBS, _END_ROWS)
            _write(db, batch.left, _LEAVE_JOBS)
            if batch.may_end_in_part:
                db.execute(_REOPEN_JOBS)
            _write(db, [e for e in batch.ended if e.status is None], _FORGET_JOBS, _FORGET_ROWS)
            if batch.failures:
                db.executemany("INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?, ?, ?, ?)", batch.failures)
            if batch.amended:
                write_amendments(db, batch.amended)
            if batch.parts:
                db.executemany("INSERT OR REPLACE INTO parts VALUES (?, ?, ?)", batch.parts)
            _write(db, batch.answered, _NOTE_RESULTS)
            _write(db, batch.leaders, _FAIL_FOLLOWERS, _END_FOLLOWERS)
            _write(db, batch.submitted, _INSERT_JOBS, _MARK_SUBMITTING)
            _add(db, batch.counters)
            for output, size_bytes in batch.committed_bytes.items():
                db.execute("UPDATE outputs SET committed_bytes = ? WHERE output = ?", (size_bytes, output))
            for name, value in batch.settings.items():
                db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, orjson.dumps(value)))
            db.execute("UPDATE sessions SET seen_ms = ? WHERE session = ?", (now_ms, session))

    def note_results(self, answered: Sequence[tuple[int, int]]) -> None:
        """Record the digests of rows' result lines before the batch that ends the rows; until then they are unused."""
        with self.transaction() as db:
            _write(db, answered, _NOTE_RESULTS)


def _add(db: sqlite3.Connection, counters: dict[str, int]) -> None:
    db.executemany(
        "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
        counters.items(),
    )


# A batch is passed to each statement as one JSON array, so SQLite processes all rows in one step, without Python's
# GIL. Row by row, the GIL would change hands each time, in competition with a busy event loop.

_INSERT_JOBS = """
INSERT INTO jobs (job, carried, submitted_ms, endpoint)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[4]'), json_extract(value, '$[3]'),
    json_extract(value, '$[5]') FROM json_each(?)
WHERE json_extract(value, '$[4]') IS NOT NULL
"""
_MARK_SUBMITTING = """
UPDATE rows SET state = 1, job = b.job, attempts = b.attempt
FROM (SELECT json_extract(value, '$[0]') AS job, json_extract(value, '$[1]') AS row,
    json_extract(value, '$[2]') AS attempt FROM json_each(?)) AS b
WHERE rows.row = b.row
"""
_NAME_JOBS = """
UPDATE jobs SET remote_id = b.remote_id, submitted_ms = b.submitted_ms
FROM (SELECT json_extract(value, '$[0]') AS job, json_extract(value, '$[2]') AS remote_id,
    json_extract(value, '$[3]') AS submitted_ms FROM json_each(?)) AS b
WHERE jobs.job = b.job
"""
_MARK_SUBMITTED = """
UPDATE rows SET state = 2 WHERE row IN (SELECT json_extract(value, '$[1]') FROM json_each(?))
"""
_MARK_CANCELLING = """
UPDATE jobs SET status = 'CANCELLING' WHERE job IN (SELECT json_extract(value, '$[0]') FROM json_each(?))
"""
_END_JOBS = """
UPDATE jobs SET status = b.status, delay_ms = b.delay_ms, execution_ms = b.execution_ms
FROM (SELECT json_extract(value, '$[0]') AS job, json_extract(value, '$[3]') AS status,
    json_extract(value, '$[6]') AS delay_ms, json_extract(value, '$[7]') AS execution_ms FROM json_each(?)) AS b
WHERE jobs.job = b.job
"""
_END_ROWS = """
UPDATE rows SET state = b.state, retries = b.retries, unconfirmed = b.unconfirmed, result = b.result
FROM (SELECT json_extract(value, '$[1]') AS row, json_extract(value, '$[2]') AS state,
    json_extract(value, '$[4]') AS retries, json_extract(value, '$[5]') AS unconfirmed,
    json_extract(value, '$[8]') AS result FROM json_each(?)) AS b
WHERE rows.row = b.row
"""
_LEAVE_JOBS = """
UPDATE rows SET job = NULL WHERE row IN (SELECT json_extract(value, '$[0]') FROM json_each(?))
"""
_REOPEN_JOBS = """
UPDATE jobs SET status = NULL WHERE status = 'COMPLETED' AND job IN (SELECT job FROM rows WHERE state = 2)
"""
_NOTE_RESULTS = """
UPDATE rows SET result = b.result
FROM (SELECT json_extract(value, '$[0]') AS row, json_extract(value, '$[1]') AS result FROM json_each(?)) AS b
WHERE rows.row = b.row
"""
_FAIL_FOLLOWERS = """
INSERT OR REPLACE INTO failures
SELECT r.row, f.status, f.kind, f.message, f.raw, f.worker_id, f.completed_ms
FROM rows r JOIN failures f ON f.row = r.same_as
WHERE r.state = 0 AND r.same_as IN (SELECT json_extract(value, '$[0]') FROM json_each(?))
"""
_END_FOLLOWERS = """
UPDATE rows SET state = l.state, job = l.job, attempts = l.attempts
FROM rows l
WHERE l.row = rows.same_as AND rows.state = 0
    AND rows.same_as IN (SELECT json_extract(value, '$[0]') FROM json_each(?))
"""
_HOLD_FOLLOWERS = """
UPDATE rows SET state = l.state, job = l.job, attempts = l.attempts
FROM rows l WHERE l.row = rows.same_as AND rows.state = 0 AND l.state = 5
"""
_FORGET_JOBS = """
DELETE FROM jobs WHERE job IN (SELECT json_extract(value, '$[0]') FROM json_each(?))
"""
_FORGET_ROWS = """
UPDATE rows SET state = 0, attempts = attempts - 1, job = CASE WHEN unconfirmed > 0 THEN
    (SELECT b.job FROM job_rows b WHERE b.row = rows.row ORDER BY b.job DESC LIMIT 1) END
WHERE row IN (SELECT json_extract(value, '$[1]') FROM json_each(?))
"""


def _write(db: sqlite3.Connection, records: Sequence[tuple[Any, ...]], *statements: str) -> None:
    if records:
        array = orjson.dumps([tuple(record) for record in records]).decode()
        for statement in statements:
            db.execute(statement, (array,))
