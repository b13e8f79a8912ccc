"""Rows with equal requests: one of them is the leader, and its job answers the others, its followers.

A follower is pending until its leader has ended, and ends with it. A leader is never a follower itself, so `same_as`
leads directly to the row whose job answers.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence

from batchrun.state.amendments import ASKING_OTHERWISE
from batchrun.state.reader import StateReader
from batchrun.state.store import Store

_INDEX = "CREATE INDEX IF NOT EXISTS rows_by_leader ON rows (same_as) WHERE same_as IS NOT NULL"
_CHOOSE = f"""
UPDATE rows SET same_as = nullif(c.leader, rows.row)
FROM (
    SELECT r.row, first_value(r.row) OVER (
        PARTITION BY i.key
        ORDER BY CASE r.state WHEN 3 THEN 0 WHEN 2 THEN 1 WHEN 1 THEN 1 WHEN 5 THEN 2 WHEN 0 THEN 3 ELSE 4 END,
            r.same_as IS NOT NULL, r.attempts = 0, r.row
    ) AS leader
    FROM incoming i JOIN rows r ON r.id = i.id
    WHERE r.row NOT IN ({ASKING_OTHERWISE})
) AS c
WHERE c.row = rows.row AND rows.state IN (0, 4, 5) AND rows.same_as IS NOT nullif(c.leader, rows.row)
"""
"""The row closest to an answer leads. The order is: succeeded, in flight, held, pending, failed.

No other row follows a row that asks for something else than its line from now on.
"""
_ANSWERED = """
FROM rows l WHERE l.state = 3 AND EXISTS (SELECT 1 FROM rows f WHERE f.same_as = l.row AND f.state = 0)
"""
_LEAD_AGAIN = """
UPDATE rows SET same_as = nullif(c.leader, rows.row)
FROM (
    SELECT f.row, min(f.row) OVER (PARTITION BY f.same_as) AS leader
    FROM rows f JOIN rows l ON l.row = f.same_as
    WHERE f.same_as IS NOT NULL AND f.state = 0 AND l.state IN (3, 4)
) AS c
WHERE c.row = rows.row
"""


def choose_leaders(db: sqlite3.Connection) -> None:
    """Choose the leader of each row that has not succeeded, by the keys of the staged lines."""
    db.execute(_INDEX)
    db.execute(_CHOOSE)


def count_followers(store: StateReader, leader: int) -> int:
    """The number of pending followers of a row."""
    return int(store.query("SELECT count(*) FROM rows WHERE same_as = ? AND state = 0", (leader,))[0][0])


def waiting_groups(store: StateReader) -> Iterator[tuple[int, int, int]]:
    """Each leader with pending followers: its row and state, and how many they are."""
    sql = "FROM rows f JOIN rows l ON l.row = f.same_as WHERE f.same_as IS NOT NULL AND f.state = 0 GROUP BY l.row"
    yield from store.each(f"SELECT l.row, l.state, count(*) {sql}")


def has_unanswered(store: StateReader) -> bool:
    """Whether a row is pending although its leader has succeeded."""
    sql = "FROM rows f JOIN rows l ON l.row = f.same_as WHERE f.same_as IS NOT NULL AND f.state = 0 AND l.state = 3"
    return bool(store.query(f"SELECT EXISTS (SELECT 1 {sql})")[0][0])


def answered_leaders(store: StateReader, ids: Sequence[str]) -> dict[str, int]:
    """Of these rows, those that succeeded and have pending followers: id (see `shared_ids`) -> row. At most 30,000."""
    return dict(store.query(f"SELECT l.id, l.row {_ANSWERED} AND l.id IN ({','.join('?' * len(ids))})", ids))


def promote_followers(store: Store) -> None:
    """If a leader has ended without its pending followers, make the first of them the leader of the others."""
    with store.transaction() as db:
        db.execute(_LEAD_AGAIN)


def count_shared(store: StateReader) -> int:
    """The number of rows that another row's job has answered."""
    return int(store.query("SELECT count(*) FROM rows WHERE same_as IS NOT NULL AND state = 3")[0][0])
