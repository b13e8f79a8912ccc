"""Read and write the amendments of rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from batchrun.files.exactjson import dump, load
from batchrun.state.reader import StateReader
from batchrun.state.records import Amendment


class Amendments:
    """Reads the amendments of a run's rows.

    A run that has none costs nothing; otherwise each row is looked up, so that any number of them takes no memory.

    Args:
        store: The run's state.
    """

    def __init__(self, store: StateReader) -> None:
        self._store = store
        self._are_there = bool(store.query("SELECT EXISTS (SELECT 1 FROM amendments)")[0][0])

    def get(self, row: int) -> Amendment | None:
        """The amendment of a row; None if it has none."""
        if not self._are_there:
            return None
        found = self._store.query("SELECT changes FROM amendments WHERE row = ?", (row,))
        return _read(found[0][0]) if found else None

    def note(self) -> None:
        """Record that rows have been amended since this object was made."""
        self._are_there = True


def write_amendments(db: sqlite3.Connection, amendments: Iterable[tuple[int, Amendment]]) -> None:
    """Replace the amendments of rows, within a transaction."""
    db.executemany(
        "INSERT OR REPLACE INTO amendments VALUES (?, ?)",
        ((row, dump(amendment._asdict())) for row, amendment in amendments),
    )


def _read(changes: bytes) -> Amendment:
    data = load(changes)
    return Amendment(data["override"], tuple(data["turns"]), data["asks"])
