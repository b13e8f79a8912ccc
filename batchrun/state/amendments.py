"""Read and write the amendments of rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from batchrun.files.exactjson import dump, load
from batchrun.state.reader import StateReader
from batchrun.state.records import Amendment

_TEXT = "CAST(a.changes AS TEXT)"
_ASKS = f"json_extract({_TEXT}, '$.asks')"
_NONE: Mapping[int, Amendment] = MappingProxyType({})


class Amendments:
    """Reads the amendments of a run's rows.

    A run that has none costs nothing; otherwise each row is looked up, so that any number of them takes no memory.

    Args:
        store: The run's state.
    """

    def __init__(self, store: StateReader) -> None:
        self._store = store
        self._are_there = bool(store.query("SELECT EXISTS (SELECT 1 FROM amendments)")[0][0])
        self._uncommitted = _NONE

    def get(self, row: int) -> Amendment | None:
        """The amendment of a row; None if it has none."""
        if not self._are_there:
            return None
        if row in self._uncommitted:
            return self._uncommitted[row]
        found = self._store.query("SELECT changes FROM amendments WHERE row = ?", (row,))
        return _read(found[0][0]) if found else None

    def note(self, uncommitted: Mapping[int, Amendment] = _NONE) -> None:
        """Record that rows have been amended since this object was made.

        Args:
            uncommitted: Those that the next commit writes; they hold until the next call.
        """
        self._are_there = True
        self._uncommitted = uncommitted


def count_tries(store: StateReader) -> dict[int, int]:
    """For each number of tries, from 2 on, how many rows have a result that took that many."""
    sql = (
        f"SELECT {_ASKS} + 1, count(*) FROM amendments a JOIN rows r ON r.row = a.row"
        f" WHERE r.state = 3 AND {_ASKS} > 0 GROUP BY 1 ORDER BY 1"
    )
    return dict(store.query(sql))


def forget_asks(db: sqlite3.Connection, rows: str, values: tuple[str, ...]) -> None:
    """Let rows be asked as if none of their answers had been refused, within a transaction.

    Args:
        db: The state file.
        rows: The query for their numbers.
        values: Its values.
    """
    db.execute(
        f"UPDATE amendments AS a SET changes = CAST(json_set({_TEXT}, '$.asks', 0, '$.turns', json('[]')) AS BLOB)"
        f" WHERE row IN ({rows}) AND {_ASKS} > 0",
        values,
    )


ASKING_OTHERWISE = f"SELECT a.row FROM amendments a WHERE json_extract({_TEXT}, '$.override') <> '{{}}'"
"""The query for the rows that ask for something else than their lines."""


def write_amendments(db: sqlite3.Connection, amendments: Iterable[tuple[int, Amendment]]) -> None:
    """Replace the amendments of rows, within a transaction."""
    db.executemany(
        "INSERT OR REPLACE INTO amendments VALUES (?, ?)",
        ((row, dump(amendment._asdict())) for row, amendment in amendments),
    )


def _read(changes: bytes) -> Amendment:
    data = load(changes)
    return Amendment(data["override"], tuple(data["turns"]), data["asks"], data.get("seed"))
