"""Repairs a state file: makes it agree with the results that are really in the results files.

The results found are staged first; then one transaction repairs everything: rows with a result have succeeded, rows
whose result is lost are open again, and no table contradicts another. A job whose result the endpoint may still have is
in flight again, so it is polled before anything is paid for again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import orjson

from batchrun.state.invariants import INVARIANTS, OWN
from batchrun.state.store import Store

UNDER_WAY = "repairing"
"""The setting that marks an unfinished repair: until it is done, the results files may be ahead of the state."""

_STAGE = """
CREATE TEMP TABLE kept (
    row INTEGER PRIMARY KEY,
    result INTEGER NOT NULL,
    remote_id TEXT,
    attempts INTEGER,
    submitted_ms INTEGER,
    delay_ms INTEGER,
    execution_ms INTEGER,
    endpoint INTEGER NOT NULL,
    input_tokens INTEGER,
    output_tokens INTEGER,
    marks TEXT NOT NULL
)
"""
_FIND_JOBS = """
CREATE TEMP TABLE made AS
SELECT dense_rank() OVER (ORDER BY o.first) + (SELECT coalesce(max(job), 0) FROM jobs) AS job, o.*
FROM (
    SELECT k.*, min(k.row) OVER (PARTITION BY coalesce(k.remote_id, k.row)) AS first
    FROM kept k JOIN rows r ON r.row = k.row
    WHERE r.job IS NULL AND r.same_as IS NULL AND k.submitted_ms IS NOT NULL
) o
"""
"""The jobs that only the results mention; rows with the same job ID were sent together."""
_ADD_JOBS = """
INSERT INTO jobs
SELECT job, CASE count(*) WHEN 1 THEN row ELSE json_group_array(row) END, CASE count(*) WHEN 1 THEN remote_id END,
    'COMPLETED', submitted_ms, delay_ms, execution_ms, endpoint
FROM made GROUP BY job
"""
"""The order of several rows of a job is unknown, so its ID is left out, and it will not be polled again."""
_NAME_JOBS = """
UPDATE rows SET job = m.job, attempts = max(rows.attempts, m.attempts) FROM made m WHERE m.row = rows.row
"""
_SHARE_JOBS = """
UPDATE rows SET job = l.job, attempts = max(rows.attempts, l.attempts) FROM rows l
WHERE l.row = rows.same_as AND rows.job IS NULL AND rows.row IN (SELECT row FROM kept)
"""
_SUCCEED = """
UPDATE rows SET state = 3, result = k.result FROM kept k
WHERE k.row = rows.row AND (rows.state <> 3 OR rows.result IS NOT k.result)
"""
_END_JOBS = f"""
UPDATE jobs SET status = 'COMPLETED', delay_ms = coalesce(jobs.delay_ms, k.delay_ms),
    execution_ms = coalesce(jobs.execution_ms, k.execution_ms)
FROM kept k JOIN rows r ON r.row = k.row
WHERE jobs.job = r.job AND {OWN} AND jobs.status IS NOT 'COMPLETED'
"""
_HEIRS = """
CREATE TEMP TABLE heirs AS
SELECT f.same_as AS leader, min(f.row) AS heir FROM rows f JOIN kept k ON k.row = f.row
WHERE f.same_as IS NOT NULL AND f.same_as NOT IN (SELECT row FROM kept) GROUP BY f.same_as
"""
_INHERIT = """
UPDATE rows SET same_as = nullif(h.heir, rows.row) FROM heirs h WHERE rows.same_as = h.leader OR rows.row = h.leader
"""
"""A row that has the answer becomes leader in the place of one that has lost it."""
_FIND_LOST = f"""
CREATE TEMP TABLE lost AS
SELECT r.row, r.job, r.same_as IS NOT NULL AS is_shared, {OWN} AS is_own,
    coalesce(j.remote_id IS NOT NULL AND j.status = 'COMPLETED' AND {OWN}
        AND coalesce(j.submitted_ms + j.delay_ms + j.execution_ms, ?) >= ?, 0) AS is_kept
FROM rows r LEFT JOIN jobs j ON j.job = r.job
WHERE r.row NOT IN (SELECT row FROM kept) AND (r.state = 3 OR (r.state < 3 AND j.status = 'COMPLETED'))
"""
_REOPEN_ROWS = """
UPDATE rows SET state = CASE WHEN l.is_kept AND NOT l.is_shared THEN 2 ELSE 0 END,
    job = CASE WHEN NOT l.is_shared THEN rows.job END, retries = 0, result = NULL
FROM lost l WHERE l.row = rows.row
"""
_REOPEN_JOBS = """
UPDATE jobs SET status = CASE WHEN l.is_kept THEN NULL ELSE 'EXPIRED' END
FROM lost l WHERE l.job = jobs.job AND l.is_own AND NOT l.is_shared
    AND (l.is_kept OR NOT EXISTS
        (SELECT 1 FROM job_rows b JOIN rows o ON o.row = b.row WHERE b.job = l.job AND o.state = 3))
"""
_PART = """
UPDATE rows SET job = NULL FROM lost l, jobs j
WHERE l.row = rows.row AND rows.state = 0 AND j.job = rows.job AND j.status = 'COMPLETED'
"""
"""A job stays if other rows still have their results of it; a row that has lost its own is submitted separately."""
_COUNTERS = """
INSERT OR REPLACE INTO counters
SELECT name, value FROM (
    SELECT 'input_tokens' AS name, sum(k.input_tokens) AS value FROM kept k JOIN rows r ON r.row = k.row
    WHERE r.same_as IS NULL
    UNION ALL
    SELECT 'output_tokens', sum(k.output_tokens) FROM kept k JOIN rows r ON r.row = k.row WHERE r.same_as IS NULL
) WHERE value IS NOT NULL
"""
_COUNT_MARKS = """
INSERT OR REPLACE INTO counters
SELECT n.value, (SELECT count(*) FROM kept k, json_each(k.marks) m WHERE m.value = n.value) FROM json_each(?) n
"""


class FoundResult(NamedTuple):
    """A row whose result exists, with what its result line says."""

    row: int
    result: int
    """The digest of the line."""
    remote_id: str | None
    attempts: int | None
    submitted_ms: int | None
    """None if the state knows the job."""
    delay_ms: int | None
    execution_ms: int | None
    endpoint: int
    """The number of its endpoint."""
    input_tokens: int | None
    output_tokens: int | None
    marks: str
    """What is notable about its answer: a JSON array of words."""


class RepairCounts(NamedTuple):
    """What a repair has changed."""

    taken_over: int
    """Rows that had not succeeded, but whose result exists."""
    polled: int
    """Rows whose result is lost, and whose job is polled for it."""
    paid: int
    """Rows whose result is lost, and that are submitted again."""
    shared: int
    """Rows whose result is lost, and that get the answer of another row."""


def begin(store: Store) -> None:
    """Record that a repair has begun, and prepare the staging table."""
    store.set_setting(UNDER_WAY, True)
    with store.transaction() as db:
        db.execute("DROP TABLE IF EXISTS temp.kept")
        db.execute(_STAGE)


def stage_results(store: Store, rows: Iterable[FoundResult]) -> None:
    """Stage rows whose results exist."""
    with store.transaction() as db:
        db.executemany(f"INSERT INTO kept VALUES ({', '.join('?' * len(FoundResult._fields))})", rows)


def reconcile(
    store: Store, sizes_bytes: Mapping[int, int], *, marks: Iterable[str], kept_since_ms: int, now_ms: int
) -> RepairCounts:
    """Make the state agree with the staged rows.

    Args:
        store: The state.
        sizes_bytes: Output -> length of its file.
        marks: All words that may be in `FoundResult.marks`; they are counted.
        kept_since_ms: The endpoint may still have the results of jobs that ended since then, UTC epoch milliseconds.
        now_ms: The current time, UTC epoch milliseconds.
    """
    with store.transaction() as db:
        before = db.execute("SELECT count(*) FROM rows WHERE state = 3 AND row IN (SELECT row FROM kept)").fetchone()
        db.execute(_HEIRS)
        db.execute(_INHERIT)
        db.execute(_FIND_JOBS)
        db.execute(_ADD_JOBS)
        db.execute(_NAME_JOBS)
        db.execute("DROP TABLE made")
        db.execute(_SHARE_JOBS)
        db.execute(_SUCCEED)
        db.execute(_END_JOBS)
        db.execute(_FIND_LOST, (now_ms, kept_since_ms))
        db.execute(_REOPEN_ROWS)
        db.execute(_REOPEN_JOBS)
        db.execute(_PART)
        for invariant in INVARIANTS.values():
            if invariant.repair:
                db.execute(invariant.repair)
        db.execute(_COUNTERS)
        db.execute(_COUNT_MARKS, (orjson.dumps(list(marks)).decode(),))
        db.executemany(
            "UPDATE outputs SET committed_bytes = ? WHERE output = ?",
            [(size_bytes, output) for output, size_bytes in sizes_bytes.items()],
        )
        db.execute("DELETE FROM settings WHERE name = ?", (UNDER_WAY,))
        return RepairCounts(_count(db, "kept") - before[0], *_lost(db))


def _lost(db: sqlite3.Connection) -> tuple[int, int, int]:
    polled = _count(db, "lost WHERE is_kept AND NOT is_shared")
    shared = _count(db, "lost WHERE is_shared")
    db.execute("DROP TABLE heirs")
    paid = _count(db, "lost") - polled - shared
    db.execute("DROP TABLE lost")
    return polled, paid, shared


def _count(db: sqlite3.Connection, what: str) -> int:
    return int(db.execute(f"SELECT count(*) FROM {what}").fetchone()[0])
