"""Turns the lines of the inputs into rows, at the start and on each resume.

All lines are staged first and merged in one transaction, so a run either gets all of its rows or stays as it was.
Rows are matched by their id, not by their position: a reordered or extended input resumes well. If a line was submitted
and its request has changed, or it is gone, the input is refused, because the result would belong to another request.
The `digest` of a line comes from `prompts.identity.known_by`: 16 bytes for the bytes of the line, 8 for its request, 2
for its other fields; a row of an earlier version has only the first 16.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from itertools import chain, groupby, islice
from typing import NamedTuple, NoReturn

from batchrun.errors import InputError, StateError
from batchrun.files.urls import place_in
from batchrun.state.dedupe import choose_leaders
from batchrun.state.records import OutputRecord, SourceRecord, public_id
from batchrun.state.shared_ids import is_any_id_twice, make_ids_unique
from batchrun.state.store import Store

_STAGE = """
CREATE TEMP TABLE incoming (
    n INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    derived INTEGER NOT NULL,
    source INTEGER NOT NULL,
    line INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    length INTEGER NOT NULL,
    digest BLOB NOT NULL,
    row INTEGER,
    variant INTEGER NOT NULL DEFAULT 0,
    suffix TEXT NOT NULL DEFAULT '',
    key BLOB,
    problem TEXT
)
"""
_NAME_VARIANTS = "UPDATE incoming SET id = id || suffix WHERE suffix <> ''"
_NUMBER_DERIVED = """
UPDATE incoming SET id = substr(id, 1, length(id) - length(suffix)) || '-' || again.occurrence || suffix
FROM (
    SELECT n, row_number() OVER (PARTITION BY id, variant ORDER BY n) AS occurrence FROM incoming WHERE derived
) AS again
WHERE again.n = incoming.n AND again.occurrence > 1
"""
_TWICE = """
SELECT a.id, a.source, a.line, b.source, b.line FROM incoming a JOIN incoming b ON b.id = a.id AND b.n > a.n
ORDER BY b.n LIMIT 5
"""
_FIND_TWICE = """
CREATE TEMP TABLE twice AS SELECT n, variant, again FROM (
    SELECT i.n, i.variant, row_number() OVER (PARTITION BY i.id, i.digest ORDER BY i.n) AS again,
        row_number() OVER (PARTITION BY i.id ORDER BY r.digest IS NOT i.digest, i.n) AS place
    FROM incoming i LEFT JOIN rows r ON r.id = i.id
) WHERE place > 1
"""
"""The lines whose id another line has, except for the line that the run has already, or else the first one."""
_CALL_INVALID = """
UPDATE incoming SET id = 'invalid-' || lower(hex(substr(digest, 1, 8))) || iif(again > 1, '-' || again, ''),
    key = CAST('twice ' || incoming.n AS BLOB),
    problem = 'duplicate id ' || json_quote(substr(id, 1, length(id) - length(suffix)))
FROM temp.twice t WHERE t.n = incoming.n
"""
_MOST_NAMES = 5
_AT_ONCE = 100
"""Lines that one statement inserts: that takes two thirds of the time of as many statements."""
_UNSENT = "attempts = 0 AND (state = 0 OR (state = 4 AND same_as IS NULL))"
"""Rows that were never submitted, including invalid ones: their lines may change or disappear."""
_MISTAKEN = """
UPDATE incoming SET row = NULL WHERE row IS NOT NULL AND id IS NOT (SELECT r.id FROM rows r WHERE r.row = incoming.row)
"""
_FIND_ROWS = "UPDATE incoming SET row = (SELECT r.row FROM rows r WHERE r.id = incoming.id) WHERE row IS NULL"
_REWRITTEN = """
FROM incoming i JOIN rows r ON r.row = i.row
WHERE r.digest <> i.digest AND substr(r.digest, 1, 16) <> substr(i.digest, 1, 16)
    AND (r.attempts > 0 OR r.state <> 0)
"""
_CHANGED = f"""
SELECT r.id, i.source, i.line {_REWRITTEN}
    AND (length(r.digest) <= 16 OR substr(r.digest, 17, 8) <> substr(i.digest, 17, 8)) ORDER BY i.n LIMIT 5
"""
_CARRIED = f"SELECT count(*) {_REWRITTEN} AND substr(r.digest, 25) <> substr(i.digest, 25)"
_GONE = "row NOT IN (SELECT i.row FROM incoming i WHERE i.row IS NOT NULL)"
_MISSING = f"SELECT id, source, line FROM rows WHERE NOT ({_UNSENT}) AND {_GONE} ORDER BY row LIMIT 5"
_DROP_UNSENT = f"DELETE FROM rows WHERE {_UNSENT} AND {_GONE}"
_FORGET_FAILURES = "DELETE FROM failures WHERE row NOT IN (SELECT row FROM rows)"
_NOTE_INVALID = """
INSERT OR REPLACE INTO failures (row, status, kind, message, raw)
SELECT r.row, 'INVALID', 'invalid', i.problem, '' FROM incoming i JOIN rows r ON r.id = i.id
WHERE i.problem IS NOT NULL
"""
_FAIL_INVALID = """
UPDATE rows SET state = 4 WHERE id IN (SELECT id FROM incoming WHERE problem IS NOT NULL)
"""
_MOVE = """
UPDATE rows SET source = i.source, line = i.line, offset = i.offset, length = i.length, digest = i.digest,
    variant = i.variant
FROM incoming i
WHERE i.row = rows.row AND (rows.offset, rows.line, rows.source, rows.length, rows.digest, rows.variant)
    <> (i.offset, i.line, i.source, i.length, i.digest, i.variant)
"""
_ROOM = 1 << 46
"""Reserves space for a row's digest: a row that grows in place splits its page, and half-empty pages waste space."""
_ADD = f"""
INSERT INTO rows (id, source, line, offset, length, digest, variant, result)
SELECT i.id, i.source, i.line, i.offset, i.length, i.digest, i.variant, {_ROOM} FROM incoming i
WHERE i.row IS NULL ORDER BY i.n LIMIT ?
"""


class StagedLine(NamedTuple):
    """A line of an input, as one of its rows."""

    id: str
    """The id of the line."""
    derived: bool
    """Whether the id is derived from the content: equal lines are then numbered instead of rejected."""
    source: int
    line: int
    offset: int
    length: int
    digest: bytes
    row: int | None = None
    """The row that had the same line before; None if it is unknown. It need not be right for lines that are equal."""
    variant: int = 0
    suffix: str = ""
    """What the variant adds to the id."""
    key: bytes | None = None
    """Equal for rows with equal requests; None if that does not matter."""
    problem: str | None = None
    """Why the line is invalid, so that its row has failed already; None if it is valid."""


class MergedRows(NamedTuple):
    """How a merge has changed the run's rows."""

    rows: int
    """The number of rows that the run now has."""
    added: int
    dropped: int
    """Rows that were never submitted and whose lines are gone."""
    carried: int = 0
    """Rows that were submitted, and whose lines have changed only in fields outside the request."""
    twice: int = 0
    """Lines that are invalid because another line has their id."""


PlainLine = tuple[str, bool, int, int, int, int, bytes, int | None]
"""The fields of a `StagedLine` up to `row`; the others have their defaults."""


def stage(store: Store, lines: Iterable[StagedLine | PlainLine]) -> None:
    """Stage the lines of all inputs, in order; `merge` turns them into rows."""
    with store.transaction() as db:
        db.execute("DROP TABLE IF EXISTS temp.incoming")
        db.execute(_STAGE)
        for width, alike in groupby(lines, len):
            insert = f"INSERT INTO incoming ({', '.join(StagedLine._fields[:width])}) VALUES "
            values = f"({', '.join('?' * width)})"
            insert_many = insert + ", ".join([values] * _AT_ONCE)
            while batch := list(islice(alike, _AT_ONCE)):
                if len(batch) == _AT_ONCE:
                    db.execute(insert_many, list(chain.from_iterable(batch)))
                else:
                    db.executemany(insert + values, batch)


def merge(
    store: Store,
    sources: Sequence[SourceRecord],
    *,
    whole: bool,
    limit: int | None,
    dedupe: bool = False,
    skip_invalid: bool = False,
    may_be_empty: bool = True,
    outputs: Iterable[OutputRecord] = (),
) -> MergedRows:
    """Turn the staged lines into the run's rows.

    Args:
        store: The run's state.
        sources: The inputs that the lines' `source` numbers refer to; they replace the stored ones.
        whole: Whether every line of the inputs was staged; only then is a row without a line an error.
        limit: The most rows of the run; lines beyond it are left for a later session. None for no limit.
        dedupe: Whether rows with the same key share a job.
        skip_invalid: Whether invalid lines become failed rows; only then may some be staged.
        may_be_empty: Whether the run may have no rows.
        outputs: The results files of the inputs; new ones are added to the run.

    Raises:
        InputError: two lines of one results file have the same id, and invalid lines are not skipped; or none is left.
        StateError: a line that was submitted has changed or is gone.
    """
    names = {source.source: source.path for source in sources}
    with store.transaction() as db:
        db.execute(_NAME_VARIANTS)
        db.execute("CREATE INDEX temp.incoming_by_id ON incoming (id)")
        is_twice = is_any_id_twice(db)
        if is_twice:
            db.execute(_NUMBER_DERIVED)
            is_twice = is_any_id_twice(db)
        twice = 0
        if make_ids_unique(db, sources, is_twice=is_twice):
            if not skip_invalid:
                _refuse_twice(db, names)
            twice = _invalidate_twice(db)
        known = db.execute("SELECT count(*) FROM rows").fetchone()[0]
        carried = 0
        if known:
            carried = _match(store, db, names, known, whole=whole)
        kept = db.execute("SELECT count(*) FROM rows").fetchone()[0]
        room = -1 if limit is None else max(limit - kept, 0)
        added = db.execute(_ADD, (room,)).rowcount if known else _add_first(db, room)
        if not kept + added and not may_be_empty:
            _refuse_empty(names)
        if dedupe:
            choose_leaders(db)
        if skip_invalid:
            db.execute(_NOTE_INVALID)
            db.execute(_FAIL_INVALID)
        db.executemany("INSERT OR IGNORE INTO outputs (output, path, committed_bytes) VALUES (?, ?, ?)", outputs)
        _replace_sources(db, sources)
    with store.transaction() as db:
        db.execute("DROP TABLE temp.incoming")
    return MergedRows(rows=kept + added, added=added, dropped=known - kept, carried=carried, twice=twice)


def _match(store: Store, db: sqlite3.Connection, names: dict[int, str], known: int, *, whole: bool) -> int:
    """Find the rows of the staged lines, drop rows without a line, and note where the lines are now.

    Returns:
        How many lines have changed only in fields outside the request, although they were submitted.
    """
    db.execute(_MISTAKEN)
    db.execute(_FIND_ROWS)
    (rewritten,) = db.execute(f"SELECT count(*) {_REWRITTEN}").fetchone()
    (matched,) = db.execute("SELECT count(row) FROM incoming").fetchone()
    is_any_gone = whole and matched < known
    if rewritten:
        _refuse_changed(db, names)
    if is_any_gone:
        _refuse_missing(store, db)
    carried = db.execute(_CARRIED).fetchone()[0] if rewritten else 0
    if is_any_gone and db.execute(_DROP_UNSENT).rowcount:
        db.execute(_FORGET_FAILURES)
    db.execute(_MOVE)
    return int(carried)


def _replace_sources(db: sqlite3.Connection, sources: Sequence[SourceRecord]) -> None:
    db.execute("DELETE FROM sources")
    db.executemany("INSERT INTO sources (source, path, origin, file, stamp, output) VALUES (?, ?, ?, ?, ?, ?)", sources)


def _add_first(db: sqlite3.Connection, room: int) -> int:
    """Add the first rows of a run; returns how many. An index of ids in random order is made faster after them."""
    (index,) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'rows_by_id'").fetchone()
    db.execute("DROP INDEX rows_by_id")
    added = db.execute(_ADD, (room,)).rowcount
    db.execute(index)
    return added


def _invalidate_twice(db: sqlite3.Connection) -> int:
    """Mark lines with the id of another line as invalid, with one row each; returns how many there are."""
    db.execute("DROP TABLE IF EXISTS temp.twice")
    db.execute(_FIND_TWICE)
    db.execute("DELETE FROM incoming WHERE n IN (SELECT n FROM temp.twice WHERE variant > 0)")
    count = db.execute(_CALL_INVALID).rowcount
    db.execute("DROP TABLE temp.twice")
    return count


def _refuse_empty(names: dict[int, str]) -> NoReturn:
    raise InputError("the input has no lines", f"files: {', '.join(list(names.values())[:_MOST_NAMES])}")


def _refuse_twice(db: sqlite3.Connection, names: dict[int, str]) -> None:
    twice = [(public_id(row_id), *places) for row_id, *places in db.execute(_TWICE)]
    listed = "; ".join(
        f"{row_id!r}: {place_in(names[s1], l1)} and {place_in(names[s2], l2)}" for row_id, s1, l1, s2, l2 in twice
    )
    hint = "give each line its own id, or none at all, or name another column with --id-column"
    if all(first != second for _, first, _, second, _ in twice):
        hint += "; or use -o FOLDER/: each file then gets its own results, and may reuse the ids of others"
    raise InputError(f"duplicate id: {listed}", hint)


def _refuse_changed(db: sqlite3.Connection, names: dict[int, str]) -> None:
    changed = db.execute(_CHANGED).fetchall()
    if changed:
        listed = ", ".join(
            f"{place_in(names[source], line)} (id {public_id(row_id)!r})" for row_id, source, line in changed
        )
        raise StateError(
            f"a line has changed since it was submitted: {listed}",
            "restore the old line, give the new one another id, or start a new run with another --output",
        )


def _refuse_missing(store: Store, db: sqlite3.Connection) -> None:
    missing = db.execute(_MISSING).fetchall()
    if missing:
        old = dict(db.execute("SELECT source, path FROM sources").fetchall())
        listed = ", ".join(
            f"{place_in(old.get(source, '?'), line)} (id {public_id(row_id)!r})" for row_id, source, line in missing
        )
        raise StateError(
            f"a line that was submitted is missing from the input: {listed}",
            f"restore it, or start a new run with another --output; {store.path} belongs to the old input",
        )
