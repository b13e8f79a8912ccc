"""The invariants of a state file: what holds between its tables at any time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from batchrun.state.reader import StateReader
from batchrun.state.records import public_id


class Invariant(NamedTuple):
    """An invariant, in SQL."""

    breach: str
    """The FROM clause that selects the breaches; the row is `r`, and may be missing."""
    repair: str
    """The statement that restores it without a loss; empty if that depends on the results files."""
    name: str = "coalesce(r.id, 'row ' || r.row)"
    """The expression that names a breach."""


OWN = "EXISTS (SELECT 1 FROM job_rows b WHERE b.job = r.job AND b.row = r.row)"
"""Whether the job of row `r` has carried the row itself, and not only its leader."""

_FORGOTTEN = f"""
FROM rows r JOIN jobs j ON j.job = r.job
WHERE r.state < 3 AND ((j.status = 'COMPLETED' AND {OWN}) OR
    (r.attempts > 0 AND (SELECT outcome FROM sessions ORDER BY session DESC LIMIT 1) = 'finished'))
"""
"""Rows that are open although their job has given a result, or although their run has finished."""

INVARIANTS = {
    "no_failure": Invariant(
        "FROM rows r WHERE r.state = 4 AND NOT EXISTS (SELECT 1 FROM failures f WHERE f.row = r.row)",
        "UPDATE rows SET state = 0, retries = 0 WHERE state = 4 AND row NOT IN (SELECT row FROM failures)",
    ),
    "stray_failure": Invariant(
        "FROM failures f LEFT JOIN rows r ON r.row = f.row WHERE r.state IS NOT 4",
        "DELETE FROM failures WHERE row NOT IN (SELECT row FROM rows WHERE state = 4)",
        "coalesce(r.id, 'row ' || f.row)",
    ),
    "no_job": Invariant(
        "FROM rows r LEFT JOIN jobs j ON j.job = r.job"
        " WHERE (r.state = 2 AND j.remote_id IS NULL) OR (r.job IS NOT NULL AND j.job IS NULL)",
        "UPDATE rows SET state = CASE state WHEN 2 THEN 1 ELSE state END,"
        " job = (SELECT j.job FROM jobs j WHERE j.job = rows.job)"
        " WHERE (job IS NOT NULL OR state = 2) AND NOT EXISTS"
        " (SELECT 1 FROM jobs j WHERE j.job = rows.job AND (rows.state <> 2 OR j.remote_id IS NOT NULL))",
    ),
    "stray_job": Invariant(
        "FROM jobs j WHERE NOT EXISTS (SELECT 1 FROM job_rows b JOIN rows r ON r.row = b.row WHERE b.job = j.job)",
        "DELETE FROM jobs WHERE job NOT IN (SELECT b.job FROM job_rows b JOIN rows r ON r.row = b.row)",
        "'job ' || coalesce(j.remote_id, j.job) || ' of row ' || j.carried",
    ),
    "failed_job": Invariant(
        "FROM rows r JOIN jobs j ON j.job = r.job"
        " WHERE r.state = 3 AND r.same_as IS NULL AND j.status IN ('FAILED', 'CANCELLED', 'TIMED_OUT', 'EXPIRED')"
        f" AND {OWN}",
        "",
    ),
    "no_leader": Invariant(
        "FROM rows r LEFT JOIN rows l ON l.row = r.same_as WHERE r.same_as IS NOT NULL AND l.row IS NULL",
        "UPDATE rows SET same_as = NULL WHERE same_as NOT IN (SELECT row FROM rows)",
    ),
    "forgotten": Invariant(_FORGOTTEN, ""),
}
"""The kind of problem -> the invariant that it breaks."""


def count_breaches(store: StateReader, invariant: Invariant) -> int:
    """The number of breaches of an invariant."""
    return int(store.query(f"SELECT count(*) {invariant.breach}")[0][0])


def name_breaches(store: StateReader, invariant: Invariant, most: int) -> list[str]:
    """The names of the first breaches of an invariant, at most `most`."""
    named = store.query(f"SELECT {invariant.name} {invariant.breach} ORDER BY 1 LIMIT {most}")
    return [public_id(name) for (name,) in named]


def forgotten_rows(store: StateReader) -> Iterator[tuple[str, int]]:
    """The rows that break "forgotten": their id, and the number of their input."""
    for row_id, source in store.each(f"SELECT r.id, r.source {_FORGOTTEN}"):
        yield public_id(row_id), source
