"""The pilot of a run: random rows that are run before the others, and their measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import NamedTuple

import orjson

from batchrun.state.reader import ALL, StateReader
from batchrun.state.records import Share
from batchrun.state.store import Store

_SETTING = "pilot"
_TO_DRAW = "state = 0 AND same_as IS NULL AND row NOT IN (SELECT value FROM json_each(?))"


class RowJob(NamedTuple):
    """A job of a row of the pilot. Times are milliseconds; None if they are unknown."""

    row: int
    job: int
    rows: int
    """The rows of the job, of the pilot or not."""
    endpoint: int
    """The number of its endpoint, see `endpoints.endpoint_numbers`."""
    remote_id: str | None
    submitted_ms: int
    """UTC epoch milliseconds."""
    delay_ms: int | None
    execution_ms: int | None
    is_last: bool
    """Whether it is the row's last job."""
    has_ended: bool
    """Whether the row has ended."""


def pilot_rows(store: StateReader) -> list[int]:
    """The numbers of the rows of the pilot, in order; empty without one."""
    known = store.get_setting(_SETTING)
    rows = known.get("rows") if isinstance(known, dict) else None
    return rows if isinstance(rows, list) else []


def pilot_workers(store: StateReader) -> dict[str, int]:
    """Endpoint -> the number of its workers when the pilot ended, as far as it is known."""
    known = store.get_setting(_SETTING)
    workers = known.get("workers") if isinstance(known, dict) else None
    return workers if isinstance(workers, dict) else {}


def draw_pilot(store: Store, size: int, rng: Random) -> list[int]:
    """The rows of the pilot. If there are fewer than `size`, further ones are drawn from those that are pending."""
    rows = pilot_rows(store)
    array = orjson.dumps(rows).decode()
    ((count,),) = store.query(f"SELECT count(*) FROM rows WHERE {_TO_DRAW}", (array,))
    places = rng.sample(range(count), min(max(size - len(rows), 0), count))
    if places:
        sql = (
            f"SELECT row FROM (SELECT row, row_number() OVER (ORDER BY row) - 1 AS place FROM rows WHERE {_TO_DRAW})"
            " WHERE place IN (SELECT value FROM json_each(?))"
        )
        rows = sorted([*rows, *(row for (row,) in store.query(sql, (array, orjson.dumps(places).decode())))])
        store.set_setting(_SETTING, {"rows": rows, "workers": pilot_workers(store)})
    return rows


def note_workers(store: Store, workers: Mapping[str, int]) -> None:
    """Record how many workers each endpoint has at the end of the pilot."""
    store.set_setting(_SETTING, {"rows": pilot_rows(store), "workers": dict(workers)})


def count_pending(store: StateReader, rows: Sequence[int]) -> int:
    """The number of these rows that are pending and have jobs of their own."""
    sql = "SELECT count(*) FROM rows WHERE state = 0 AND same_as IS NULL AND row IN (SELECT value FROM json_each(?))"
    return int(store.query(sql, (orjson.dumps(rows).decode(),))[0][0])


def count_left(store: StateReader, share: Share = ALL) -> int:
    """The number of rows that are still to be paid for: those that are pending and have jobs of their own."""
    sql = f"SELECT count(*) FROM rows WHERE state = 0 AND same_as IS NULL AND {share.where()}"
    return int(store.query(sql)[0][0])


def count_free(store: StateReader, rows: Sequence[int], share: Share = ALL) -> int:
    """How many of these rows have succeeded without a job: their answers were in the cache."""
    sql = (
        "SELECT count(*) FROM rows WHERE state = 3 AND job IS NULL AND same_as IS NULL"
        f" AND row IN (SELECT value FROM json_each(?)) AND {share.where()}"
    )
    return int(store.query(sql, (orjson.dumps(rows).decode(),))[0][0])


def row_jobs(store: StateReader, rows: Sequence[int]) -> list[RowJob]:
    """The jobs of these rows, by row; a job of several rows occurs once for each."""
    sql = (
        "SELECT r.row, j.job, max(json_array_length(j.carried), 1), j.endpoint, j.remote_id, j.submitted_ms,"
        " j.delay_ms, j.execution_ms, j.job = r.job, r.state IN (3, 4)"
        " FROM (SELECT value AS row FROM json_each(?)) p JOIN rows r ON r.row = p.row"
        " JOIN job_rows b ON b.row = r.row JOIN jobs j ON j.job = b.job ORDER BY r.row, j.job"
    )
    found = store.query(sql, (orjson.dumps(rows).decode(),))
    return [RowJob._make((*row[:-2], bool(row[-2]), bool(row[-1]))) for row in found]
