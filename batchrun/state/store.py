"""The state of a run on disk: what the driver writes while it goes on, and what a new session starts from.

Writes come in batches, one transaction each, with `synchronous=FULL`: when `commit` returns, the batch is on disk.
Every statement that the run depends on stands at the top of its part, once.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from batchrun.config import UnconfirmedPolicy
from batchrun.errors import OutputError, StateError
from batchrun.scheduler.states import RowState
from batchrun.state.database import Database
from batchrun.state.opening import AT_CHECKPOINT, COMMITS, Tell, with_log
from batchrun.state.records import (
    Batch,
    Execution,
    FailedJob,
    FailureRecord,
    OpenJob,
    OutputRecord,
    RowRecord,
    Share,
    SourceRecord,
    public_id,
)

_COLUMNS = "row, id, source, line, offset, length, digest, state, attempts, retries, unconfirmed, variant, same_as"
_HELD = "no answer to its submission: the job may exist, and cost money; it is held"
ALL = Share()
_WIDTH = len(RowRecord._fields)


class Store(Database):
    """A run's state file, see `Database`."""

    def __init__(self, path: Path, *, read_only: bool = False, tell: Tell | None = None) -> None:
        super().__init__(path, read_only=read_only, tell=tell)
        self.has_failed = False
        """Whether a batch could not be written."""
        self._stat = path.stat()

    def _refuse_gone(self) -> None:
        try:
            is_there = os.path.samestat(self._stat, self.path.stat())
        except OSError:
            is_there = False
        if not is_there:
            raise OutputError(
                f"{self.path}: the state file was removed or replaced while the run went on",
                f"put {with_log(self.path)} back, then run the same command; without it, start a new run with another"
                " --output",
            )

    # What a session starts from

    def outputs(self) -> list[OutputRecord]:
        """The results files, in order."""
        return [OutputRecord(*row) for row in self.query("SELECT * FROM outputs ORDER BY output")]

    def results_path(self, output: OutputRecord) -> Path:
        """Where an output's results file stands; relative when the state file's path is."""
        return Path(os.path.normpath(self.path.parent / output.path))

    def sources(self) -> list[SourceRecord]:
        """The inputs, in order; where the state file was moved or copied, as they are seen from its new place."""
        sql = "SELECT source, path, origin, file, stamp, output FROM sources ORDER BY source"
        sources = [SourceRecord(*row) for row in self.query(sql)]
        found = [each._replace(origin=self.now_at(each.origin), file=self.now_at(each.file)) for each in sources]
        return [self._with_copy(source) for source in found]

    def now_at(self, name: str) -> str:
        """Where an input is now that was known by an absolute path.

        It is looked for from the state file first, as the two may have been moved together. What was within the state
        file's folder is not looked for at its old place: there it is the original, where this is a copy.
        """
        was, now = self.get_setting("folder"), str(self.path.absolute().parent)
        if not isinstance(was, str) or was == now or not os.path.isabs(name):  # noqa: PTH117
            return name
        way = os.path.relpath(name, was)
        beside = os.path.normpath(os.path.join(now, way))  # noqa: PTH118
        return name if way.startswith(os.pardir + os.sep) and not os.path.exists(beside) else beside  # noqa: PTH110

    def _with_copy(self, source: SourceRecord) -> SourceRecord:
        """With its copy beside this state file, wherever the two were when it was made."""
        copy = self.path.absolute().with_name(Path(source.file).name)
        return source._replace(file=str(copy)) if source.file != source.origin and copy.exists() else source

    def count_rows(self) -> int:
        """How many rows the run has."""
        return int(self.query("SELECT count(*) FROM rows")[0][0])

    def next_job(self) -> int:
        """A job number larger than all that were given."""
        return int(self.query("SELECT coalesce(max(job), 0) + 1 FROM jobs")[0][0])

    def pending(self, after_row: int, count: int, share: Share = ALL) -> list[RowRecord]:
        """Up to `count` pending rows behind `after_row`, in order, without those that another's job answers."""
        sql = (
            f"SELECT {_COLUMNS} FROM rows WHERE row > ? AND state = 0 AND same_as IS NULL AND {share.where()}"
            " ORDER BY row LIMIT ?"
        )
        return [_row(row) for row in self.query(sql, (after_row, count))]

    def followers(self, leader: int, after_row: int, count: int) -> list[RowRecord]:
        """Up to `count` pending rows behind `after_row`, in order, that the job of another row answers."""
        sql = f"SELECT {_COLUMNS} FROM rows WHERE same_as = ? AND state = 0 AND row > ? ORDER BY row LIMIT ?"
        return [_row(row) for row in self.query(sql, (leader, after_row, count))]

    def row(self, row: int) -> RowRecord:
        """One row by its number."""
        return _row(self.query(f"SELECT {_COLUMNS} FROM rows WHERE row = ?", (row,))[0])

    def row_by_id(self, row_id: str) -> RowRecord | None:
        """One row by the id that it has here, see `naming`; None when there is none."""
        rows = self.query(f"SELECT {_COLUMNS} FROM rows WHERE id = ?", (row_id,))
        return _row(rows[0]) if rows else None

    def open_jobs(self, share: Share = ALL) -> list[OpenJob]:
        """The jobs whose ID is known and whose end is not, oldest first. There are about a window of them."""
        columns = ", ".join(f"r.{column}" for column in _COLUMNS.split(", "))
        sql = (
            f"SELECT {columns}, j.job, j.remote_id, j.submitted_ms, j.status IS 'CANCELLING'"
            " FROM rows r JOIN jobs j ON j.job = r.job"
            f" WHERE r.state = 2 AND {share.where('r.variant')} ORDER BY j.submitted_ms, j.job"
        )
        return [OpenJob(_row(row[:-4]), row[-4], row[-3], row[-2], bool(row[-1])) for row in self.query(sql)]

    def recent_submissions_ms(self, since_ms: int, share: Share = ALL) -> list[int]:
        """When the last submissions since then were answered, oldest first; of the last 10,000 jobs."""
        sql = (
            "SELECT j.submitted_ms FROM (SELECT submitted_ms, row FROM jobs ORDER BY job DESC LIMIT 10000) j"
            f" JOIN rows r ON r.row = j.row WHERE j.submitted_ms >= ? AND {share.where('r.variant')}"
        )
        return sorted(row[0] for row in self.query(sql, (since_ms,)))

    def settle_unconfirmed(self, policy: UnconfirmedPolicy) -> int:
        """Decide about the rows whose submission a crash left without an answer; returns how many there were.

        With `resubmit`, rows that an earlier session held are submitted again too: that is what it asks for.
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

    def retry_failed(self, kinds: tuple[str, ...]) -> int:
        """Make failed rows pending again, with all their retries; returns how many.

        A line that was invalid before any attempt is invalid still: once it is fixed, it is another row.

        Args:
            kinds: Only these failure kinds; empty: all.
        """
        chosen = f" WHERE kind IN ({', '.join('?' * len(kinds))})" if kinds else ""
        with self.transaction() as db:
            count = db.execute(
                f"UPDATE rows SET state = 0, retries = 0, unconfirmed = 0"
                f" WHERE state = 4 AND row IN (SELECT row FROM failures{chosen})"
                " AND NOT (attempts = 0 AND row IN (SELECT row FROM failures WHERE kind = 'invalid'))",
                kinds,
            ).rowcount
            db.execute("DELETE FROM failures WHERE row IN (SELECT row FROM rows WHERE state = 0)")
        return count

    @property
    def is_untouched(self) -> bool:
        """Whether nothing was ever submitted, and no row has ended."""
        sql = "SELECT NOT EXISTS (SELECT 1 FROM jobs) AND NOT EXISTS (SELECT 1 FROM rows WHERE state != 0)"
        return bool(self.query(sql)[0][0])

    def start_over(self) -> None:
        """Forget rows, options and results files, so that the inputs are taken in as at the first start."""
        with self.transaction() as db:
            db.execute("DELETE FROM rows")
            db.execute("DELETE FROM outputs")
            db.execute(
                "DELETE FROM settings WHERE name IN ('options', 'intake', 'format', 'whole_input', 'shared_ids')"
            )

    def begin_session(self, pid: int, now_ms: int, holder: object = None) -> int:
        """Note that a session has begun; returns its number.

        Args:
            pid: This process.
            now_ms: UTC epoch milliseconds.
            holder: What tells it from every other, a JSON value; see `lock.identity`.
        """
        with self.first_transaction() as db:
            cursor = db.execute(
                "INSERT INTO sessions (pid, started_ms, seen_ms) VALUES (?, ?, ?)", (pid, now_ms, now_ms)
            )
            db.execute("INSERT OR REPLACE INTO settings VALUES ('holder', ?)", (orjson.dumps(holder),))
        return int(cursor.lastrowid or 0)

    def end_session(self, session: int, now_ms: int, outcome: str) -> None:
        """Note how a session ended."""
        with self.transaction() as db:
            db.execute("UPDATE sessions SET seen_ms = ?, outcome = ? WHERE session = ?", (now_ms, outcome, session))

    # What the driver writes while it goes on

    def commit(self, batch: Batch, session: int, now_ms: int) -> None:
        """Write a batch; it is on disk when this returns.

        Raises:
            OutputError: it cannot be written; or the file was removed or replaced, and no later session would find it.
        """
        self._refuse_gone()
        with self.transaction() as db:
            _write(db, batch.accepted, _NAME_JOBS, _MARK_SUBMITTED)
            _write(db, batch.cancelling, _MARK_CANCELLING)
            _write(db, [e for e in batch.ended if e.status is not None], _END_JOBS, _END_ROWS)
            _write(db, [e for e in batch.ended if e.status is None], _FORGET_JOBS, _FORGET_ROWS)
            if batch.failures:
                db.executemany("INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?, ?, ?, ?)", batch.failures)
            if batch.parts:
                db.executemany("INSERT OR REPLACE INTO parts VALUES (?, ?)", batch.parts)
            _write(db, batch.answered, _NOTE_RESULTS)
            _write(db, batch.leaders, _FAIL_FOLLOWERS, _END_FOLLOWERS)
            _write(db, batch.submitted, _INSERT_JOBS, _MARK_SUBMITTING)
            _add(db, batch.counters)
            for output, size_bytes in batch.committed_bytes.items():
                db.execute("UPDATE outputs SET committed_bytes = ? WHERE output = ?", (size_bytes, output))
            if batch.timeline is not None:
                db.execute("INSERT OR REPLACE INTO settings VALUES ('timeline', ?)", (orjson.dumps(batch.timeline),))
            db.execute("UPDATE sessions SET seen_ms = ? WHERE session = ?", (now_ms, session))

    def note_results(self, answered: Sequence[tuple[int, int]]) -> None:
        """Note the digests of rows' result lines ahead of the batch that ends them; until then they mean nothing."""
        with self.transaction() as db:
            _write(db, answered, _NOTE_RESULTS)

    # What people ask for

    def counts(self, share: Share = ALL) -> dict[RowState, int]:
        """How many rows are in each state."""
        counts = dict.fromkeys(RowState, 0)
        for state, count in self.query(f"SELECT state, count(*) FROM rows WHERE {share.where()} GROUP BY state"):
            if state not in counts:
                raise StateError(
                    f"{self.path}: the state file is damaged: {count:,} rows are in state {state!r}",
                    "look at it with `batchrun verify`, and restore it from a copy",
                )
            counts[RowState(state)] = int(count)
        return counts

    def counters(self) -> dict[str, int]:
        """The run's counters over all sessions."""
        return dict(self.query("SELECT name, value FROM counters WHERE name NOT IN (?, ?)", (COMMITS, AT_CHECKPOINT)))

    def failures(
        self, output: int | None = None, *, with_held: bool = False
    ) -> Iterator[tuple[RowRecord, FailureRecord, FailedJob]]:
        """The failed rows in input order, each with its failure and its last job.

        Args:
            output: Only those of this results file, in the order of the rows; None: all.
            with_held: Those that are held, too; then all rows are looked through.
        """
        columns = ", ".join(f"r.{column}" for column in _COLUMNS.split(", "))
        sql = (
            f"SELECT {columns}, r.row, coalesce(f.status, 'UNCONFIRMED'), coalesce(f.kind, 'unconfirmed'),"
            f" coalesce(f.message, '{_HELD}'), coalesce(f.raw, ''), f.worker_id, f.completed_ms,"
            " j.remote_id, j.submitted_ms, l.id, p.output, j.delay_ms, j.execution_ms"
            f" FROM rows r {'LEFT' if with_held else ''} JOIN failures f ON f.row = r.row AND r.state = 4"
            " JOIN sources s ON s.source = r.source LEFT JOIN jobs j ON j.job = r.job"
            " LEFT JOIN parts p ON p.job = r.job"
            " LEFT JOIN rows l ON l.row = j.row AND l.row <> r.row"
            f" WHERE (f.row IS NOT NULL {'OR r.state = 5' if with_held else ''})"
            f" {'' if output is None else 'AND s.output = ?'} ORDER BY"
            f" {'r.source, r.line, r.row' if output is None else 'r.row'}"
        )
        for row in self.each(sql, () if output is None else (output,)):
            failed = FailedJob(*row[-6:])
            if failed.same_as is not None:
                failed = failed._replace(same_as=public_id(failed.same_as))
            yield _row(row[:_WIDTH]), FailureRecord(*row[_WIDTH:-6]), failed

    def submission(self, job: int) -> tuple[str | None, int | None]:
        """A job's ID, and when it was submitted in UTC epoch milliseconds; None: not known."""
        found = self.query("SELECT remote_id, submitted_ms FROM jobs WHERE job = ?", (job,))
        return (found[0][0], found[0][1]) if found else (None, None)

    def failure_groups(self) -> list[tuple[str, int, str, str]]:
        """Failed rows by kind, most first: kind, count, and the id and message of the first."""
        groups = self.query(
            "SELECT g.kind, g.count, r.id, f.message"
            " FROM (SELECT kind, count(*) AS count, min(row) AS first FROM failures GROUP BY kind) g"
            " JOIN rows r ON r.row = g.first JOIN failures f ON f.row = g.first ORDER BY g.count DESC, g.first"
        )
        return [(kind, count, public_id(row_id), message) for kind, count, row_id, message in groups]

    def percentiles(self, column: str, shares: tuple[float, ...]) -> tuple[int, ...] | None:
        """Nearest-rank percentiles of `delay_ms` or `execution_ms` over completed jobs; None without any.

        Above a second they are exact to three digits: so a million jobs are counted in one pass, and not sorted.
        """
        sql = (
            f"SELECT CASE WHEN {column} < 1000 THEN {column} WHEN {column} < 10000 THEN {column} - {column} % 10"
            f" WHEN {column} < 100000 THEN {column} - {column} % 100 WHEN {column} < 1000000"
            f" THEN {column} - {column} % 1000 ELSE {column} - {column} % 10000 END AS value, count(*)"
            f" FROM jobs WHERE status = 'COMPLETED' AND {column} IS NOT NULL GROUP BY value ORDER BY value"
        )
        values = self.query(sql)
        total = sum(count for _, count in values)
        if not total:
            return None
        found = []
        for share in shares:
            rank, seen = min(int(share * total), total - 1), 0
            for value, count in values:
                seen += count
                if seen > rank:
                    found.append(int(value))
                    break
        return tuple(found)

    def execution(self) -> Execution:
        """What the jobs that have ended come to."""
        sql = (
            "SELECT coalesce(sum(status IN ('COMPLETED', 'FAILED') OR execution_ms IS NOT NULL), 0),"
            " coalesce(sum(execution_ms), 0),"
            " coalesce(sum(CASE WHEN status <> 'COMPLETED' THEN execution_ms END), 0)"
            " FROM jobs WHERE status IS NOT NULL AND status NOT IN ('UNCONFIRMED', 'CANCELLING')"
        )
        return Execution(*self.query(sql)[0])

    def usual_time_ms(self) -> int:
        """How long the last jobs were in the system, on average; 0 without any."""
        sql = (
            "SELECT coalesce(avg(delay_ms + execution_ms), 0) FROM"
            " (SELECT delay_ms, execution_ms FROM jobs WHERE status = 'COMPLETED' ORDER BY job DESC LIMIT 1000)"
        )
        return int(self.query(sql)[0][0])

    def sessions(self) -> list[tuple[int, int, str | None]]:
        """When the sessions began and last gave a sign, UTC epoch milliseconds, and how they ended (None: cut off)."""
        return self.query("SELECT started_ms, seen_ms, outcome FROM sessions ORDER BY session")

    def sessions_ms(self) -> int:
        """Wall time of all sessions together."""
        return int(self.query("SELECT coalesce(sum(seen_ms - started_ms), 0) FROM sessions")[0][0])


def _row(values: tuple[Any, ...]) -> RowRecord:
    return RowRecord._make((values[0], public_id(values[1]), *values[2:7], RowState(values[7]), *values[8:]))


def _add(db: sqlite3.Connection, counters: dict[str, int]) -> None:
    db.executemany(
        "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
        counters.items(),
    )


# A batch goes into each statement as one JSON array: SQLite then does all of its rows in one step, without Python's
# lock. Row by row the lock would change hands for each, against a busy event loop.

_INSERT_JOBS = """
INSERT INTO jobs (job, row, attempt, submitted_ms)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
    json_extract(value, '$[3]')
FROM json_each(?)
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
UPDATE rows SET state = 0, job = NULL, attempts = attempts - 1
WHERE row IN (SELECT json_extract(value, '$[1]') FROM json_each(?))
"""


def _write(db: sqlite3.Connection, records: Sequence[tuple[Any, ...]], *statements: str) -> None:
    if records:
        array = orjson.dumps([tuple(record) for record in records]).decode()
        for statement in statements:
            db.execute(statement, (array,))
