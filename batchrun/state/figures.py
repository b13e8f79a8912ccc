"""Figures from a state file for people: times, failures, sessions, and the tables of reports.

Each function takes an open state file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from batchrun.config import RETENTION_S
from batchrun.scheduler.states import RowState
from batchrun.state.reader import StateReader
from batchrun.state.records import Execution, public_id

_EACH_ROW = "FROM jobs j JOIN job_rows b ON b.job = j.job JOIN rows r ON r.row = b.row"
TimeColumn = Literal["delay_ms", "execution_ms"]
"""The time of a job in the queue, or its execution time, in milliseconds."""


class JobTimes(NamedTuple):
    """A job that has completed."""

    row_id: str
    execution_ms: int
    delay_ms: int


class SubmittedJob(NamedTuple):
    """A job that is in flight."""

    row_id: str
    job_id: str
    submitted_ms: int
    """UTC epoch milliseconds."""


class FailedRow(NamedTuple):
    """A row that failed, and why."""

    row_id: str
    kind: str
    message: str


class LatestFailure(NamedTuple):
    """A row that failed, why, and when."""

    row_id: str
    kind: str
    message: str
    at_ms: int | None
    """UTC epoch milliseconds; None if unknown."""


class Session(NamedTuple):
    """A session: one process that worked on the run."""

    session: int
    pid: int
    began_ms: int
    """UTC epoch milliseconds, here and in the next."""
    seen_ms: int
    """When it last wrote."""
    outcome: str | None
    """How it ended; None: it is running or was cut off."""


class FailureCount(NamedTuple):
    """Failures of one kind within one second."""

    kind: str
    at_ms: int
    """The second, as UTC epoch milliseconds."""
    failures: int


class VariantCount(NamedTuple):
    """How many rows of one variant are in one state."""

    variant: int
    state: RowState
    rows: int


class VariantFailures(NamedTuple):
    """How many rows of one variant have failed in one way."""

    variant: int
    kind: str
    rows: int


class VariantTimes(NamedTuple):
    """How many completed jobs of one variant took the same time."""

    variant: int
    ms: int
    jobs: int


def failure_groups(store: StateReader) -> list[tuple[str, int, str, str]]:
    """Failed rows by kind, the most frequent first: kind, count, and the id and message of the first row."""
    groups = store.query(
        "SELECT g.kind, g.count, r.id, f.message"
        " FROM (SELECT kind, count(*) AS count, min(row) AS first FROM failures GROUP BY kind) g"
        " JOIN rows r ON r.row = g.first JOIN failures f ON f.row = g.first ORDER BY g.count DESC, g.first"
    )
    return [(kind, count, public_id(row_id), message) for kind, count, row_id, message in groups]


def kinds_of_failures(store: StateReader, among: int) -> list[tuple[str, int]]:
    """Kinds of failure, the most frequent first, among the last `among` failed rows in the order of their numbers."""
    sql = (
        "SELECT kind, count(*) FROM (SELECT kind FROM failures ORDER BY row DESC LIMIT ?) GROUP BY 1 ORDER BY 2 DESC, 1"
    )
    return store.query(sql, (among,))


def latest_failures(store: StateReader, most: int, among: int, message_chars: int) -> list[LatestFailure]:
    """The rows that failed last, newest first, at most `most`.

    Args:
        store: The state file.
        most: How many.
        among: They are searched among this many failed rows, the last ones in the order of their numbers.
        message_chars: How many characters of each message are read.
    """
    sql = (
        "SELECT r.id, f.kind, substr(m.message, 1, ?), f.completed_ms FROM"
        " (SELECT * FROM (SELECT row, kind, completed_ms FROM failures ORDER BY row DESC LIMIT ?)"
        " ORDER BY completed_ms DESC, row DESC LIMIT ?) f"
        " JOIN rows r ON r.row = f.row JOIN failures m ON m.row = f.row ORDER BY f.completed_ms DESC, f.row DESC"
    )
    return [LatestFailure(public_id(row_id), *why) for row_id, *why in store.query(sql, (message_chars, among, most))]


def percentiles(store: StateReader, column: TimeColumn, shares: tuple[float, ...]) -> tuple[int, ...] | None:
    """Nearest-rank percentiles of `delay_ms` or `execution_ms` over completed jobs; None if there are none.

    Above a second they are exact to three digits, so a million jobs need only be counted, not sorted.
    """
    sql = (
        f"SELECT CASE WHEN {column} < 1000 THEN {column} WHEN {column} < 10000 THEN {column} - {column} % 10"
        f" WHEN {column} < 100000 THEN {column} - {column} % 100 WHEN {column} < 1000000"
        f" THEN {column} - {column} % 1000 ELSE {column} - {column} % 10000 END AS value, count(*)"
        f" FROM jobs WHERE status = 'COMPLETED' AND {column} IS NOT NULL GROUP BY value ORDER BY value"
    )
    values = store.query(sql)
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


def execution(store: StateReader, endpoint: int | None = None) -> Execution:
    """The number and execution time of the jobs that have ended, at the endpoint of this number; None: at all."""
    sql = (
        "SELECT coalesce(sum(status IN ('COMPLETED', 'FAILED') OR execution_ms IS NOT NULL), 0),"
        " coalesce(sum(execution_ms), 0),"
        " coalesce(sum(CASE WHEN status <> 'COMPLETED' THEN execution_ms END), 0)"
        " FROM jobs WHERE status IS NOT NULL AND status NOT IN ('UNCONFIRMED', 'CANCELLING')"
        " AND (endpoint = ?1 OR ?1 IS NULL)"
    )
    return Execution(*store.query(sql, (endpoint,))[0])


def usual_time_ms(store: StateReader) -> int:
    """The mean total time of the last 1,000 completed jobs, in milliseconds; 0 if there are none."""
    sql = (
        "SELECT coalesce(avg(delay_ms + execution_ms), 0) FROM"
        " (SELECT delay_ms, execution_ms FROM jobs WHERE status = 'COMPLETED' ORDER BY job DESC LIMIT 1000)"
    )
    return int(store.query(sql)[0][0])


class SessionTimes(NamedTuple):
    """Start and end of a session, in UTC epoch milliseconds."""

    started_ms: int
    seen_ms: int
    """When it was last known to be running."""
    outcome: str | None
    """None: it was killed, or is running."""


def sessions(store: StateReader) -> list[SessionTimes]:
    """The sessions of a run, oldest first."""
    found = store.query("SELECT started_ms, seen_ms, outcome FROM sessions ORDER BY session")
    return [SessionTimes(*times) for times in found]


def last_session(store: StateReader) -> Session | None:
    """The last session; None if there was none."""
    rows = store.query("SELECT session, pid, started_ms, seen_ms, outcome FROM sessions ORDER BY session DESC LIMIT 1")
    return Session(*rows[0]) if rows else None


def sessions_ms(store: StateReader) -> int:
    """The wall time of all sessions together, in milliseconds."""
    return int(store.query("SELECT coalesce(sum(seen_ms - started_ms), 0) FROM sessions")[0][0])


def oldest_in_flight_ms(store: StateReader) -> int | None:
    """When the oldest job in flight was submitted, in UTC epoch milliseconds; None if there is none."""
    sql = "SELECT min(j.submitted_ms) FROM rows r JOIN jobs j ON j.job = r.job WHERE r.state = 2"
    ((earliest_ms,),) = store.query(sql)
    return None if earliest_ms is None else int(earliest_ms)


def rescue_by(store: StateReader, now: float) -> float | None:
    """The latest time to resume, in UTC epoch seconds like `now`; None if nothing is in flight.

    A result is kept for 30 minutes after its job's end. The oldest job is assumed to take as long as recent jobs did.
    """
    earliest_ms = oldest_in_flight_ms(store)
    if earliest_ms is None:
        return None
    return min(earliest_ms / 1000, now) + usual_time_ms(store) / 1000 + RETENTION_S


def jobs_in_flight(store: StateReader, most: int) -> list[SubmittedJob]:
    """The oldest jobs in flight, at most `most`."""
    sql = (
        "SELECT r.id, j.remote_id, j.submitted_ms FROM rows r JOIN jobs j ON j.job = r.job"
        " WHERE r.state = 2 ORDER BY j.submitted_ms LIMIT ?"
    )
    return [SubmittedJob(public_id(row_id), *job) for row_id, *job in store.query(sql, (most,))]


def longest_jobs(store: StateReader, most: int) -> list[JobTimes]:
    """The completed jobs that ran longest, at most `most`; of a job of several rows, the first row."""
    sql = (
        f"SELECT r.id, j.execution_ms, coalesce(j.delay_ms, 0) {_EACH_ROW}"
        " WHERE b.ordinal = 0 AND j.status = 'COMPLETED' AND j.execution_ms IS NOT NULL ORDER BY 2 DESC LIMIT ?"
    )
    return [JobTimes(public_id(row_id), *times) for row_id, *times in store.query(sql, (most,))]


def job_times(store: StateReader, column: TimeColumn) -> list[tuple[float, int]]:
    """For each time in seconds, how many completed jobs took it."""
    return store.query(
        f"SELECT {column} / 1000.0, count(*) FROM jobs WHERE status = 'COMPLETED' AND {column} IS NOT NULL GROUP BY 1"
    )


def count_failures(store: StateReader) -> int:
    """The number of recorded failures."""
    return int(store.query("SELECT count(*) FROM failures")[0][0])


def first_failures(store: StateReader, most: int, message_chars: int) -> list[FailedRow]:
    """The first failed rows, at most `most`, with the first `message_chars` characters of each message."""
    sql = (
        "SELECT r.id, f.kind, substr(f.message, 1, ?) FROM failures f JOIN rows r ON r.row = f.row"
        " WHERE r.state = 4 ORDER BY f.row LIMIT ?"
    )
    return [FailedRow(public_id(row_id), *why) for row_id, *why in store.query(sql, (message_chars, most))]


def failures_over_time(store: StateReader) -> list[FailureCount]:
    """Failures by kind and second."""
    sql = (
        "SELECT kind, completed_ms / 1000 * 1000, count(*) FROM failures"
        " WHERE completed_ms IS NOT NULL GROUP BY 1, 2 ORDER BY 1"
    )
    return [FailureCount(*row) for row in store.query(sql)]


def rows_by_endpoint(store: StateReader) -> dict[int, tuple[int, int, int]]:
    """Number of an endpoint -> rows whose last job is there: succeeded, failed and in flight."""
    sql = (
        "SELECT j.endpoint, sum(r.state = 3), sum(r.state = 4), sum(r.state = 2)"
        " FROM rows r JOIN jobs j ON j.job = r.job GROUP BY 1"
    )
    return {number: tuple(counts) for number, *counts in store.query(sql)}


def jobs_by_endpoint(store: StateReader) -> dict[int, tuple[int, int]]:
    """Number of an endpoint -> its jobs, and the milliseconds from its first submission to its last end."""
    sql = (
        "SELECT endpoint, count(*), coalesce(max(submitted_ms + delay_ms + execution_ms) - min(submitted_ms), 0)"
        " FROM jobs GROUP BY 1"
    )
    return {number: (count, span_ms) for number, count, span_ms in store.query(sql)}


def times_by_endpoint(store: StateReader) -> Iterator[tuple[int, int, int]]:
    """Completed jobs by endpoint and execution time, one in memory at a time: number, milliseconds, jobs."""
    sql = (
        "SELECT endpoint, execution_ms, count(*) FROM jobs"
        " WHERE status = 'COMPLETED' AND execution_ms IS NOT NULL GROUP BY 1, 2"
    )
    yield from store.each(sql)


def last_result_ms(store: StateReader) -> int:
    """When the last completed job ended, in UTC epoch milliseconds; 0 if none has."""
    sql = "SELECT coalesce(max(submitted_ms + coalesce(delay_ms, 0) + coalesce(execution_ms, 0)), 0) FROM jobs"
    return int(store.query(f"{sql} WHERE status = 'COMPLETED'")[0][0])


def rows_in_order(store: StateReader) -> Iterator[tuple[int, int, int, int]]:
    """Every row with its input, line and stored variant, one in memory at a time; the rows of a line are adjacent."""
    yield from store.each("SELECT row, source, line, variant FROM rows ORDER BY row")


# Below, a variant is a combination of sweep values: its `repeat` samples are counted together.


def last_variant(store: StateReader) -> int:
    """The largest stored variant number, which counts combinations and samples; 0 without rows."""
    return int(store.query("SELECT coalesce(max(variant), 0) FROM rows")[0][0])


def rows_by_variant(store: StateReader, repeat: int) -> list[VariantCount]:
    """Rows by variant and state."""
    sql = f"SELECT variant / {repeat}, state, count(*) FROM rows GROUP BY 1, 2"
    return [VariantCount(variant, RowState(state), count) for variant, state, count in store.query(sql)]


def failures_by_variant(store: StateReader, repeat: int) -> list[VariantFailures]:
    """Failed rows by variant and kind; the most frequent kind of a variant first."""
    sql = (
        f"SELECT r.variant / {repeat}, f.kind, count(*) FROM failures f JOIN rows r ON r.row = f.row"
        " WHERE r.state = 4 GROUP BY 1, 2 ORDER BY 1, 3 DESC, 2"
    )
    return [VariantFailures(*row) for row in store.query(sql)]


def times_by_variant(store: StateReader, column: TimeColumn, repeat: int) -> Iterator[VariantTimes]:
    """Completed jobs by variant and time, one in memory at a time."""
    sql = (
        f"SELECT r.variant / {repeat}, j.{column}, count(*) {_EACH_ROW}"
        f" WHERE j.status = 'COMPLETED' AND j.{column} IS NOT NULL GROUP BY 1, 2"
    )
    yield from map(VariantTimes._make, store.each(sql))


def execution_by_variant(store: StateReader, repeat: int) -> dict[int, int]:
    """The execution time of each variant's jobs, in milliseconds; that of a job is divided equally among its rows."""
    sql = (
        f"SELECT r.variant / {repeat}, coalesce(sum(j.execution_ms / max(json_array_length(j.carried), 1)), 0)"
        f" {_EACH_ROW}"
        " WHERE j.status NOT IN ('UNCONFIRMED', 'CANCELLING') GROUP BY 1"
    )
    return dict(store.query(sql))
