"""Ids that occur in several inputs: with a results file for each input, an id may belong to one row of each of them.

The ids in the table of rows are unique. If an id occurs in several inputs, the row of the results file that had it
first keeps it unchanged; in the others, the number of the results file is appended to it. Outside the state file a row
always has the id of its line.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from batchrun.state.reader import StateReader
from batchrun.state.records import ID_MARK, SourceRecord

Line = TypeVar("Line")

_SETTING = "shared_ids"
"""The setting that says whether there are such rows; without it, no search for them is needed."""

_HOMES = "CREATE TEMP TABLE homes (source INTEGER PRIMARY KEY, output INTEGER NOT NULL)"
_IS_TWICE = "SELECT 1 FROM incoming GROUP BY id HAVING count(*) > 1 LIMIT 1"
_KNOWN = f"""
UPDATE incoming SET id = incoming.id || '{ID_MARK}' || h.output FROM temp.homes h
WHERE h.source = incoming.source AND EXISTS (SELECT 1 FROM rows r WHERE r.id = incoming.id || '{ID_MARK}' || h.output)
"""
_OTHERS = f"""
UPDATE incoming SET id = incoming.id || '{ID_MARK}' || c.output
FROM (
    SELECT i.n, h.output, first_value(h.output) OVER (
        PARTITION BY i.id ORDER BY s.output IS NOT h.output, i.n
    ) AS holder
    FROM incoming i JOIN temp.homes h ON h.source = i.source
    LEFT JOIN rows r ON r.id = i.id LEFT JOIN sources s ON s.source = r.source
) AS c
WHERE c.n = incoming.n AND c.output <> c.holder
"""
"""The id stays with the results file of the row that has it; if no row has it, with that of the first line."""
_PUBLIC = f"CASE WHEN instr(id, '{ID_MARK}') THEN substr(id, 1, instr(id, '{ID_MARK}') - 1) ELSE id END"


def is_any_id_twice(db: sqlite3.Connection) -> bool:
    """Whether two staged lines have the same id."""
    return bool(db.execute(_IS_TWICE).fetchone())


def make_ids_unique(db: sqlite3.Connection, sources: Iterable[SourceRecord], *, is_twice: bool) -> bool:
    """Give staged lines of different results files different ids; lines of known rows get the stored ids.

    A row with a unique id may move to another input, if its line was moved to another file; one with a shared id stays
    in its input.

    Args:
        db: The state file, in a transaction, with the lines staged as `incoming`.
        sources: The inputs of these lines.
        is_twice: See `is_any_id_twice`.

    Returns:
        Whether two lines may still have the same id.
    """
    homes = {source.source: source.output for source in sources}
    is_shared = bool(db.execute("SELECT 1 FROM settings WHERE name = ?", (_SETTING,)).fetchone())
    if not is_shared and not (is_twice and len(set(homes.values())) > 1):
        return is_twice
    db.execute(_HOMES)
    db.executemany("INSERT INTO temp.homes VALUES (?, ?)", homes.items())
    if is_shared:
        db.execute(_KNOWN)
    if db.execute(_OTHERS).rowcount:
        db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (_SETTING, b"true"))
    db.execute("DROP TABLE temp.homes")
    return is_any_id_twice(db)


def has_shared_ids(store: StateReader) -> bool:
    """Whether ids may occur in several inputs of a run."""
    return store.get_setting(_SETTING) is not None


def is_shared_id(store: StateReader, row_id: str) -> bool:
    """Whether several rows of a run have the same public id."""
    sql = "SELECT count(*) FROM rows WHERE id = ? OR (id > ? AND id < ?)"
    return bool(store.query(sql, (row_id, row_id + ID_MARK, row_id + chr(ord(ID_MARK) + 1)))[0][0] > 1)


def rows_of_ids(store: StateReader, ids: Sequence[str]) -> list[list[tuple[int, int]]]:
    """For each public id, the rows that have it, each with the number of its input. At most 30,000 ids."""
    known = [row_id for row_id in ids if ID_MARK not in row_id]
    sql = f"SELECT id, row, source FROM rows WHERE id IN ({','.join('?' * len(known))})"
    found: dict[str, list[tuple[int, int]]] = {row_id: [(row, of)] for row_id, row, of in store.query(sql, known)}
    for row_id in known if has_shared_ids(store) else ():
        of_others = (row_id + ID_MARK, row_id + chr(ord(ID_MARK) + 1))
        others = store.query("SELECT row, source FROM rows WHERE id > ? AND id < ?", of_others)
        found[row_id] = [*found.get(row_id, []), *others]
    return [found.get(row_id, []) for row_id in ids]


def rows_of_line_id(store: StateReader, line_id: str, most: int) -> list[int]:
    """The rows of a sweep that belong to the lines with this id, at most `most`."""
    below = (f"{line_id}/", f"{line_id}{chr(ord('/') + 1)}", most)
    return [row for (row,) in store.query("SELECT row FROM rows WHERE id > ? AND id < ? ORDER BY row LIMIT ?", below)]


def count_shared_ids(store: StateReader, *, with_errors: bool = False) -> int:
    """How many public ids belong to several rows that have succeeded (with errors: or have failed or are held)."""
    if not has_shared_ids(store):
        return 0
    states = "3, 4, 5" if with_errors else "3"
    sql = f"SELECT 1 FROM rows WHERE state IN ({states}) GROUP BY {_PUBLIC} HAVING count(*) > 1"
    return int(store.query(f"SELECT count(*) FROM ({sql})")[0][0])


def stored_ids(
    store: StateReader, output: int, lines: Sequence[tuple[str, Line]], digest_of: Callable[[Line], int] | None = None
) -> list[str]:
    """The stored ids of rows, given lines of a results or error file with their public ids.

    Args:
        store: The state file.
        output: The number of the results file.
        lines: Pairs of public id and line, or what has the line's digest; at most 15,000.
        digest_of: Returns the digest of a result line. It is needed only if the id leads to two rows: the older one may
            have moved to another input while its result is still in this file. None for lines without digests.
    """
    ids = [row_id for row_id, _ in lines]
    if not has_shared_ids(store):
        return ids
    own = [f"{row_id}{ID_MARK}{output}" for row_id in ids]
    sql = f"SELECT id, result FROM rows WHERE id IN ({','.join('?' * (2 * len(ids)))})"
    results = dict(store.query(sql, (*ids, *own)))
    found = []
    for name, (row_id, line) in zip(own, lines, strict=True):
        if ID_MARK in row_id:
            found.append("")
        elif name not in results:
            found.append(row_id)
        elif row_id not in results or digest_of is None:
            found.append(name)
        else:
            found.append(row_id if results[row_id] == digest_of(line) != results[name] else name)
    return found
