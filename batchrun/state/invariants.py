"""What always holds between the tables of a state file, whatever moment it is looked at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from batchrun.state.reader import StateReader
from batchrun.state.records import public_id


class Invariant(NamedTuple):
    """One of them, by what breaks it."""

    breach: str
    """What a FROM clause finds for each breach; the row is `r`, and may be none."""
    repair: str
    """The statement that makes it hold again without a loss; empty: that depends on the results that are there."""
    name: str = "coalesce(r.id, 'row ' || r.row)"
    """The SQL of what a breach is called."""


OWN = "EXISTS (SELECT 1 FROM job_rows b WHERE b.job = r.job AND b.row = r.row)"
"""Whether the job that the row `r` names has carried it, and not only the row that it follows."""

_FORGOTTEN = f"""
FROM rows r JOIN jobs j ON j.job = r.job
WHERE r.state < 3 AND ((j.status = 'COMPLETED' AND {OWN}) OR
    (r.attempts > 0 AND (SELECT outcome FROM sessions ORDER BY session DESC LIMIT 1) = 'finished'))
"""
"""Rows that are open although their job has given a result, or their run has come to its end."""

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
"""Kind of problem -> the invariant that it breaks."""


def count_breaches(store: StateReader, invariant: Invariant) -> int:
    """How often an invariant is broken."""
    return int(store.query(f"SELECT count(*) {invariant.breach}")[0][0])


def name_breaches(store: StateReader, invariant: Invariant, most: int) -> list[str]:
    """What the first breaches of an invariant are called, `most` of them at most."""
    named = store.query(f"SELECT {invariant.name} {invariant.breach} ORDER BY 1 LIMIT {most}")
    return [public_id(name) for (name,) in named]


def forgotten_rows(store: StateReader) -> Iterator[tuple[str, int]]:
    """The rows whose result is forgotten: id, and the number of the input."""
    for row_id, source in store.each(f"SELECT r.id, r.source {_FORGOTTEN}"):
        yield public_id(row_id), source
