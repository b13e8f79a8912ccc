"""Rows that are run again although they have ended, and what became of their results.

A redo has three steps, so that a crash leaves either the old results or rows to be run again. First it is recorded as
begun, and the old lines are copied. One transaction then makes the rows pending and shortens the results files, whose
new content is on disk under other names. At last, each of these takes the place of its results file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from batchrun.files.exactjson import dump
from batchrun.state.amendments import Amendments, write_amendments
from batchrun.state.reader import REDOING, StateReader
from batchrun.state.records import Amendment
from batchrun.state.store import Store

_SETTING = "superseded"

_TAKE_UP = """
UPDATE rows SET state = 0, retries = 0, unconfirmed = 0, job = NULL, result = NULL
WHERE row IN (SELECT row FROM temp.chosen) AND state IN (3, 4)
"""
_PART_COMPANY = """
UPDATE rows SET same_as = nullif(c.leader, rows.row)
FROM (
    SELECT row, min(row) OVER (PARTITION BY same_as) AS leader FROM rows
    WHERE state = 0 AND same_as IN (SELECT row FROM temp.chosen) AND row NOT IN (SELECT row FROM temp.chosen)
) AS c
WHERE c.row = rows.row
"""
"""Rows that wait for the answer of another have asked for something else once that one is amended: one leads them."""


class Superseded(NamedTuple):
    """The file with the replaced lines of a results file, as far as it is committed."""

    size_bytes: int = 0
    lines: int = 0
    sha256: str = ""


class EndedRow(NamedTuple):
    """A row that has succeeded or failed."""

    row: int
    state: int
    same_as: int | None
    kind: str | None
    """The kind of its failure; None if it has succeeded."""


def ended_rows(store: StateReader) -> Iterator[EndedRow]:
    """The rows that may be run again; lines that were invalid from the start are not among them."""
    sql = (
        "SELECT r.row, r.state, r.same_as, f.kind FROM rows r LEFT JOIN failures f ON f.row = r.row"
        " WHERE r.state = 3 OR (r.state = 4 AND NOT (r.attempts = 0 AND f.kind IS 'invalid')) ORDER BY r.row"
    )
    yield from map(EndedRow._make, store.each(sql))


def superseded_files(store: StateReader) -> dict[int, Superseded]:
    """Output -> what of its results was replaced; without the outputs of which nothing was."""
    found = store.get_setting(_SETTING)
    return {int(output): Superseded(*values) for output, values in found.items()} if isinstance(found, dict) else {}


def note_superseded(store: Store, files: Mapping[int, Superseded]) -> None:
    """Record what is in the files with replaced lines."""
    store.set_setting(_SETTING, _by_name(files))


def redo_under_way(store: StateReader) -> dict[int, str | None] | None:
    """The outputs of a redo that has begun; None if none has.

    Each has the path of its results file's new content, relative to the state file's folder: None until it is decided
    that the new content takes the place of the old.
    """
    found = store.get_setting(REDOING)
    return {int(output): part for output, part in found.items()} if isinstance(found, dict) else None


def begin_redo(store: Store, outputs: Iterable[int]) -> None:
    """Record that the lines of some outputs are about to be copied."""
    store.set_setting(REDOING, dict.fromkeys(map(str, outputs)))


def end_redo(store: Store) -> None:
    """Record that nothing is left to do."""
    with store.transaction() as db:
        db.execute("DELETE FROM settings WHERE name = ?", (REDOING,))


def take_up(
    store: Store,
    rows: Iterable[int],
    override: Mapping[str, Any],
    *,
    parts: Mapping[int, Path],
    sizes_bytes: Mapping[int, int],
    superseded: Mapping[int, Superseded],
    uncounted: Mapping[str, int],
) -> None:
    """Make rows that have ended pending again, with all their retries.

    Args:
        store: The state.
        rows: The rows, each once.
        override: Parameters of these rows alone, in addition to those of an earlier redo.
        parts: Output -> the new content of its results file.
        sizes_bytes: Output -> the length of that.
        superseded: Output -> what of its results is replaced now.
        uncounted: What is subtracted from the run's counters.
    """
    folder = store.path.absolute().parent
    with store.transaction() as db:
        db.execute("CREATE TEMP TABLE chosen (row INTEGER PRIMARY KEY)")
        db.executemany("INSERT INTO temp.chosen VALUES (?)", ((row,) for row in rows))
        write_amendments(db, _amended(store, override))
        if override:
            db.execute(_PART_COMPANY)
        db.execute(_TAKE_UP)
        db.execute("DELETE FROM failures WHERE row IN (SELECT row FROM temp.chosen)")
        db.execute("DROP TABLE temp.chosen")
        for output, size_bytes in sizes_bytes.items():
            db.execute("UPDATE outputs SET committed_bytes = ? WHERE output = ?", (size_bytes, output))
        for name, count in uncounted.items():
            db.execute("UPDATE counters SET value = max(value - ?, 0) WHERE name = ?", (count, name))
        moving = {str(output): os.path.relpath(part, folder) for output, part in parts.items()}
        for name, value in ((_SETTING, _by_name(superseded)), (REDOING, moving)):
            db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, dump(value)))


def _amended(store: Store, override: Mapping[str, Any]) -> Iterator[tuple[int, Amendment]]:
    """The new amendments of the chosen rows: each is asked from the beginning, with all parameters that were set.

    A row that never had a job also gets one: it must not be answered from the cache again.
    """
    amendments = Amendments(store)
    if override:
        amendments.note()
    chosen = "SELECT r.row, r.attempts FROM temp.chosen c JOIN rows r ON r.row = c.row"
    for row, attempts in store.each(chosen):
        before = amendments.get(row)
        if override or before is not None or not attempts:
            yield row, Amendment({**(before.override if before else {}), **override})


def _by_name(files: Mapping[int, Superseded]) -> dict[str, list[Any]]:
    return {str(output): list(file) for output, file in files.items()}
