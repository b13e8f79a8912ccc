"""Rows that are added during their run: recognised by their id, or appended to the run's last input.

The ids seen in this session are in a temporary table, on disk and not in memory: a stream may be endless.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import NamedTuple

from batchrun.errors import InputError, StateError
from batchrun.state.store import Store

_ARRIVED = "CREATE TEMP TABLE arrived (name TEXT PRIMARY KEY, times INTEGER NOT NULL) WITHOUT ROWID"
_COUNT = "INSERT INTO temp.arrived VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET times = times + 1 RETURNING times"
_ADD = "INSERT INTO rows (id, source, line, offset, length, digest) VALUES (?, ?, ?, ?, ?, ?)"


class Arrival(NamedTuple):
    """A request that has arrived."""

    id: str
    """Its own id, or one derived from its content."""
    derived: bool
    """Whether the id is derived: equal requests are then numbered instead of rejected."""
    length: int
    """The length of its line in bytes, without the line end."""
    digest: bytes


class InputEnd(NamedTuple):
    """The end of an input that is appended to."""

    source: int
    line: int
    """The number of its last line."""
    offset: int
    """Its length in bytes."""


def begin_arrivals(store: Store, source: int, size_bytes: int) -> InputEnd:
    """Forget the ids seen in earlier sessions; returns where the rows of an input end.

    Args:
        store: The run's state, with the rows of all lines of the input.
        source: The number of the input.
        size_bytes: The length of the input.
    """
    with store.transaction() as db:
        db.execute("DROP TABLE IF EXISTS temp.arrived")
        db.execute(_ARRIVED)
    ((line,),) = store.query("SELECT coalesce(max(line), 0) FROM rows WHERE source = ?", (source,))
    return InputEnd(source, int(line), size_bytes)


def append_rows(
    store: Store, end: InputEnd, arrivals: Sequence[Arrival], write: Callable[[Sequence[int]], None]
) -> tuple[int, InputEnd]:
    """Add rows for the requests that the run does not have yet, all or none.

    Args:
        store: The run's state.
        end: Where the rows of the input end.
        arrivals: The requests, in order of arrival.
        write: Called with the indexes of the new ones; their lines must be on disk when it returns.

    Returns:
        The number of new rows, and where the rows end now.

    Raises:
        InputError: a request has the id of an earlier one of this session.
        StateError: a row of the run has the id, but a different request.
        OutputError: the lines or the rows cannot be written.
    """
    new: list[int] = []
    rows: list[tuple[str, int, int, int, int, bytes]] = []
    names: dict[str, bytes] = {}
    source, line, offset = end
    with store.transaction() as db:
        for index, arrival in enumerate(arrivals):
            row_id = _numbered(db, arrival)
            known = names.get(row_id) or _known(db, row_id)
            if known is None:
                line += 1
                new.append(index)
                names[row_id] = arrival.digest
                rows.append((row_id, source, line, offset, arrival.length, arrival.digest))
                offset += arrival.length + 1
            elif not _is_same(known, arrival.digest):
                raise StateError(
                    f"the request with the id {row_id!r} has changed since it was first added",
                    "give it another id, or start a new run with another state file",
                )
        if new:
            write(new)
            db.executemany(_ADD, rows)
    return len(new), InputEnd(source, line, offset)


def _numbered(db: sqlite3.Connection, arrival: Arrival) -> str:
    """The row's id; a derived id that has been seen before gets a number."""
    times = int(db.execute(_COUNT, (f"{'-' if arrival.derived else '='}{arrival.id}",)).fetchone()[0])
    if times == 1:
        return arrival.id
    if not arrival.derived:
        raise InputError(f"duplicate id {arrival.id!r}", "give each request its own id, or none at all")
    return f"{arrival.id}-{times}"


def _is_same(one: bytes, other: bytes) -> bool:
    """Whether two lines are equal, or have equal requests and other fields: see `prompts.identity.known_by`."""
    return one[:16] == other[:16] or (len(one) == len(other) and one[16:] == other[16:] != b"")


def _known(db: sqlite3.Connection, row_id: str) -> bytes | None:
    found = db.execute("SELECT digest FROM rows WHERE id = ?", (row_id,)).fetchone()
    return None if found is None else bytes(found[0])
