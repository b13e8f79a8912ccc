"""Reads a run's state: its inputs and results files, rows, jobs and counts."""

from __future__ import annotations

import os
from collections.abc import Collection, Generator, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson

from batchrun.errors import StateError
from batchrun.scheduler.states import RowState
from batchrun.state.database import Database
from batchrun.state.opening import AT_CHECKPOINT, COMMITS, Tell
from batchrun.state.records import (
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
_HELD = "its submission got no answer: a job may exist and cost money, so the row is held"
_OWNER = (
    "(SELECT coalesce(max(CASE WHEN b.row = r.row THEN b.row END), max(CASE WHEN b.row = r.same_as THEN b.row END),"
    " min(b.row)) FROM job_rows b WHERE b.job = r.job)"
)
"""The row that the job of row `r` belongs to: `r` itself, or its leader."""
ALL = Share()
REDOING = "redoing"
"""The setting of an unfinished redo, see `superseded.redo_under_way`."""
_WIDTH = len(RowRecord._fields)
_STATES = {state.value: state for state in RowState}
"""Looking a state up takes a tenth of the time of calling its class."""


class StateReader(Database):
    """A run's state file, opened read-only, even while another process writes it.

    Args:
        path: The file.
        tell: See `Database`.
        read_only: False only for the `Store`.

    Raises:
        StateError, OutputError: see `Database`.
    """

    def __init__(self, path: Path, *, tell: Tell | None = None, read_only: bool = True) -> None:
        super().__init__(path, tell=tell, read_only=read_only)

    def outputs(self) -> list[OutputRecord]:
        """The results files, in order."""
        return [OutputRecord(*row) for row in self.query("SELECT * FROM outputs ORDER BY output")]

    def results_path(self, output: OutputRecord) -> Path:
        """The absolute path of an output's results file, for messages."""
        return Path(os.path.abspath(self.path.parent / output.path))  # noqa: PTH100 - pathlib would keep a `..`

    def lines_path(self, output: OutputRecord) -> Path:
        """The file that has an output's committed lines: its results file, or what has yet to take the place of it."""
        moving = self.get_setting(REDOING)
        name = moving.get(str(output.output)) if isinstance(moving, dict) else None
        path = self.results_path(output._replace(path=name)) if name else None
        return path if path is not None and path.exists() else self.results_path(output)

    def sources(self) -> list[SourceRecord]:
        """The inputs, in order; if the state file was moved or copied, with their paths as seen from its new place."""
        sql = "SELECT source, path, origin, file, stamp, output FROM sources ORDER BY source"
        sources = [SourceRecord(*row) for row in self.query(sql)]
        found = [
            each._replace(origin=self.present_path(each.origin), file=self.present_path(each.file)) for each in sources
        ]
        return [self._with_copy(source) for source in found]

    def present_path(self, name: str) -> str:
        """The present path of an input, given its stored absolute path.

        Its place relative to the state file is tried first, since the two may have been moved together. A file inside
        the state file's folder is never looked for at its old place: if this folder is a copy, the original is there.
        """
        was, now = self.get_setting("folder"), str(self.path.absolute().parent)
        if not isinstance(was, str) or was == now or not os.path.isabs(name):  # noqa: PTH117
            return name
        way = os.path.relpath(name, was)
        beside = os.path.normpath(os.path.join(now, way))  # noqa: PTH118
        return name if way.startswith(os.pardir + os.sep) and not os.path.exists(beside) else beside  # noqa: PTH110

    def _with_copy(self, source: SourceRecord) -> SourceRecord:
        """The input with its spooled copy beside this state file, wherever the two were when it was made."""
        copy = self.path.absolute().with_name(Path(source.file).name)
        return source._replace(file=str(copy)) if source.file != source.origin and copy.exists() else source

    def count_rows(self) -> int:
        """The number of rows of the run."""
        return int(self.query("SELECT count(*) FROM rows")[0][0])

    def each_line(self) -> Generator[tuple[int, int, str, bytes]]:
        """The source, row, id and digest of each valid line, in the order of the inputs, one in memory at a time.

        If a line has several rows, the first; lines that are known by 16 bytes alone are left out.
        """
        return self.each(
            "SELECT source, row, id, digest FROM rows"
            " WHERE variant = 0 AND length(digest) > 16 AND id NOT GLOB 'invalid-*' ORDER BY source, line"
        )

    def next_job(self) -> int:
        """A job number larger than all used ones."""
        return int(self.query("SELECT coalesce(max(job), 0) + 1 FROM jobs")[0][0])

    def pending(
        self, after_row: int, count: int, share: Share = ALL, chosen: Sequence[int] | None = None
    ) -> list[RowRecord]:
        """Up to `count` pending rows after `after_row`, in order, without followers; with `chosen`, only of these."""
        among = "" if chosen is None else "AND row IN (SELECT value FROM json_each(?))"
        sql = (
            f"SELECT {_COLUMNS} FROM rows WHERE row > ? AND state = 0 AND same_as IS NULL AND {share.where()} {among}"
            " ORDER BY row LIMIT ?"
        )
        given = () if chosen is None else (orjson.dumps(chosen).decode(),)
        return [_row(row) for row in self.query(sql, (after_row, *given, count))]

    def homes(self, rows: Sequence[int]) -> dict[int, int]:
        """The number of the endpoint for each of these rows whose last submission is unconfirmed."""
        sql = (
            "SELECT r.row, j.endpoint FROM rows r JOIN jobs j ON j.job = r.job"
            f" WHERE j.status = 'UNCONFIRMED' AND r.row IN ({','.join('?' * len(rows))})"
        )
        return dict(self.query(sql, rows))

    def count_jobs_at(self, endpoint: int) -> int:
        """How many rows are of jobs that are, or may be, in flight at the endpoint of this number."""
        sql = "SELECT count(*) FROM rows r JOIN jobs j ON j.job = r.job WHERE r.state IN (1, 2) AND j.endpoint = ?"
        return int(self.query(sql, (endpoint,))[0][0])

    def count_unconfirmed_at(self, endpoint: int, *, is_held: bool) -> int:
        """The number of pending rows, or also held ones, whose submission to this endpoint is unconfirmed."""
        sql = (
            "SELECT count(*) FROM rows r JOIN jobs j ON j.job = r.job"
            f" WHERE r.state IN ({'0, 5' if is_held else '0'}) AND j.status = 'UNCONFIRMED' AND j.endpoint = ?"
        )
        return int(self.query(sql, (endpoint,))[0][0])

    def followers(self, leader: int, after_row: int, count: int) -> list[RowRecord]:
        """Up to `count` pending followers of `leader` after `after_row`, in order."""
        sql = f"SELECT {_COLUMNS} FROM rows WHERE same_as = ? AND state = 0 AND row > ? ORDER BY row LIMIT ?"
        return [_row(row) for row in self.query(sql, (leader, after_row, count))]

    def row(self, row: int) -> RowRecord:
        """One row by its number."""
        return _row(self.query(f"SELECT {_COLUMNS} FROM rows WHERE row = ?", (row,))[0])

    def rows(self, rows: Sequence[int]) -> list[RowRecord]:
        """Rows by their numbers, in any order; at most 30,000."""
        sql = f"SELECT {_COLUMNS} FROM rows WHERE row IN ({','.join('?' * len(rows))})"
        return [_row(row) for row in self.query(sql, rows)]

    def first_ended(self, most: int, *, only_failed: bool) -> list[RowRecord]:
        """The first rows that have succeeded, have failed or are held, at most `most`; or only failed and held ones."""
        states = "4, 5" if only_failed else "3, 4, 5"
        sql = f"SELECT {_COLUMNS} FROM rows WHERE state IN ({states}) ORDER BY source, line, row LIMIT ?"
        return [_row(row) for row in self.query(sql, (most,))]

    def row_by_id(self, row_id: str) -> RowRecord | None:
        """One row by its stored id (see `shared_ids`); None if there is none."""
        rows = self.query(f"SELECT {_COLUMNS} FROM rows WHERE id = ?", (row_id,))
        return _row(rows[0]) if rows else None

    def open_jobs(self, share: Share = ALL) -> list[OpenJob]:
        """The jobs in flight with a known ID, oldest first; at most about a window of them."""
        columns = ", ".join(f"r.{column}" for column in _COLUMNS.split(", "))
        sql = (
            f"SELECT {columns}, j.job, j.remote_id, j.submitted_ms, j.status IS 'CANCELLING',"
            " (SELECT json_group_array(o.row) FROM (SELECT row FROM job_rows WHERE job = r.job ORDER BY ordinal) o)"
            " FROM rows r JOIN jobs j ON j.job = r.job LEFT JOIN job_rows b ON b.job = r.job AND b.row = r.row"
            f" WHERE r.state = 2 AND {share.where_job('r.variant', 'j.endpoint')}"
            " ORDER BY j.submitted_ms, j.job, b.ordinal"
        )
        jobs = []
        for (job, remote_id, submitted_ms, is_cancelling, all_rows), found in groupby(
            self.query(sql), key=lambda values: values[_WIDTH:]
        ):
            rows = tuple(_row(values[:_WIDTH]) for values in found)
            numbers = tuple(orjson.loads(all_rows)) or tuple(row.row for row in rows)
            jobs.append(OpenJob(rows, numbers, job, remote_id, submitted_ms, bool(is_cancelling)))
        return jobs

    def recent_submissions_ms(self, since_ms: int, share: Share = ALL) -> list[int]:
        """When the submissions since `since_ms` were answered, oldest first; among the last 10,000 jobs."""
        sql = (
            "SELECT j.submitted_ms FROM (SELECT submitted_ms, job, endpoint FROM jobs ORDER BY job DESC LIMIT 10000) j"
            " JOIN job_rows b ON b.job = j.job AND b.ordinal = 0 JOIN rows r ON r.row = b.row"
            f" WHERE j.submitted_ms >= ? AND {share.where_job('r.variant', 'j.endpoint')}"
        )
        return sorted(row[0] for row in self.query(sql, (since_ms,)))

    @property
    def is_untouched(self) -> bool:
        """Whether nothing has been submitted, and no row has ended."""
        sql = "SELECT NOT EXISTS (SELECT 1 FROM jobs) AND NOT EXISTS (SELECT 1 FROM rows WHERE state != 0)"
        return bool(self.query(sql)[0][0])

    def job_of(self, row: int) -> int | None:
        """The number of a row's last job; None if it has none."""
        ((job,),) = self.query("SELECT job FROM rows WHERE row = ?", (row,))
        return None if job is None else int(job)

    def counts(self, share: Share = ALL) -> dict[RowState, int]:
        """How many rows are in each state."""
        counts = dict.fromkeys(RowState, 0)
        for state, count in self.query(f"SELECT state, count(*) FROM rows WHERE {share.where()} GROUP BY state"):
            if state not in counts:
                raise StateError(
                    f"{self.path}: the state file is damaged: {count:,} rows are in state {state!r}",
                    "check it with `batchrun verify`, and restore it from a copy",
                )
            counts[RowState(state)] = int(count)
        return counts

    def counters(self) -> dict[str, int]:
        """The run's counters over all sessions."""
        return dict(self.query("SELECT name, value FROM counters WHERE name NOT IN (?, ?)", (COMMITS, AT_CHECKPOINT)))

    def failures(
        self, output: int | None = None, *, with_held: bool = False, only: Collection[int] | None = None
    ) -> Iterator[tuple[RowRecord, FailureRecord, FailedJob]]:
        """The failed rows in input order, each with its failure and its last job.

        Args:
            output: Only those of this results file, in the order of the rows; None for all.
            with_held: Whether to include held rows; then all rows are read, but for `only`.
            only: Only rows with these numbers; None for all.
        """
        columns = ", ".join(f"r.{column}" for column in _COLUMNS.split(", "))
        sql = (
            f"SELECT {columns}, r.row, coalesce(f.status, 'UNCONFIRMED'), coalesce(f.kind, 'unconfirmed'),"
            f" coalesce(f.message, '{_HELD}'), coalesce(f.raw, ''), f.worker_id, f.completed_ms,"
            " j.remote_id, j.submitted_ms, l.id, p.output, j.delay_ms, j.execution_ms, coalesce(j.endpoint, 0)"
            f" FROM rows r {'LEFT' if with_held else ''} JOIN failures f ON f.row = r.row AND r.state = 4"
            " JOIN sources s ON s.source = r.source LEFT JOIN jobs j ON j.job = r.job"
            f" LEFT JOIN rows l ON l.row = {_OWNER} AND l.row <> r.row"
            " LEFT JOIN parts p ON p.job = r.job AND p.row = coalesce(l.row, r.row)"
            f" WHERE (f.row IS NOT NULL {'OR r.state = 5' if with_held else ''})"
            f" {'' if output is None else 'AND s.output = ?'}"
            f" {'' if only is None else 'AND r.row IN (SELECT value FROM json_each(?))'} ORDER BY"
            f" {'r.source, r.line, r.row' if output is None else 'r.row'}"
        )
        given = [] if output is None else [output]
        for row in self.each(sql, given if only is None else [*given, orjson.dumps(list(only)).decode()]):
            failed = FailedJob(*row[-7:])
            if failed.same_as is not None:
                failed = failed._replace(same_as=public_id(failed.same_as))
            yield _row(row[:_WIDTH]), FailureRecord(*row[_WIDTH:-7]), failed

    def submission(self, job: int | None) -> tuple[str | None, int | None]:
        """A job's ID, and when it was submitted, in UTC epoch milliseconds; each None if unknown."""
        found = self.query("SELECT remote_id, submitted_ms FROM jobs WHERE job = ?", (job,))
        return (found[0][0], found[0][1]) if found else (None, None)


def _row(values: tuple[Any, ...]) -> RowRecord:
    state = _STATES.get(values[7]) or RowState(values[7])
    return RowRecord._make((values[0], public_id(values[1]), *values[2:7], state, *values[8:]))
