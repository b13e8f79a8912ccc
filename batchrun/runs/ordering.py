"""Finds results in input order, and puts results files into that order.

A pass over the results files stores the position of each line in a table on disk; then the lines are read in order. So
memory grows by only one byte per row.

An ordered file has the same lines as before, and so the same length: the committed length in the state is right before
and after its rename, and a crash at any moment leaves one complete file or the other.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from batchrun.errors import OutputError, StateError
from batchrun.files.exactjson import dump
from batchrun.results.marks import Mark, mark, read_marks
from batchrun.results.reader import LinesByPosition, read_groups, read_parts, size_of
from batchrun.results.record import read_record
from batchrun.results.writer import write_whole
from batchrun.scheduler.states import RowState
from batchrun.state.positions import Position, Positions
from batchrun.state.records import OutputRecord
from batchrun.state.shared_ids import stored_ids
from batchrun.state.snapshot import FoundLine, StateSnapshot

ReadMarks = Callable[[Path, int], Iterator[list[Mark]]]
"""Reads the marks of the lines of a results file before a position, in groups of up to 15,000."""
_SUCCEEDED = RowState.SUCCEEDED.value


def order_results(state: Path, token: str | None = None) -> None:
    """Put the results files of a run into input order; each is replaced by a rename.

    Args:
        state: The run's state file. All results must be committed, and only this process may write them.
        token: The run's token, see `write_whole`; None: the one in the state file, which must have one.

    Raises:
        OutputError: a file cannot be written, or does not match the state; it is unchanged.
    """
    try:
        with StateSnapshot(state) as store:
            seen = bytearray(store.last_row() + 1)
            for output in store.outputs():
                _order(store, output, seen, token or store.token)
    except StateError as error:
        raise OutputError(error.message, error.hint) from error


def _order(store: StateSnapshot, output: OutputRecord, seen: bytearray, token: str) -> None:
    # A link stays a link: its target is put in order.
    path = store.results_path(output).resolve()
    with Positions() as positions, LinesByPosition({output.output: path}) as placed:
        _find_in(store, output, path, positions, seen)
        if (strange_bytes := size_of(path) - output.committed_bytes) > 0:
            raise StateError(
                f"{path} has {strange_bytes:,} bytes that this run did not write, so it was not put in order",
                "remove them from the file, then give the same command again",
            )
        if not _is_ordered(positions):
            lines = (placed.read(at.output, at.result_offset, at.result_length) for at in positions)
            write_whole(path, lines, token=token)


def find_positions(
    store: StateSnapshot,
    positions: Positions,
    succeeded: int,
    after: tuple[int, int] = (0, 0),
    *,
    only: Mapping[int, str] | None = None,
    read: ReadMarks = read_marks,
) -> None:
    """Find the positions of a run's committed results.

    Args:
        store: The run's state.
        positions: The positions are added to these.
        succeeded: How many there must be.
        after: Added to the numbers of outputs and of rows, if several runs are merged.
        only: Row -> id, for the few rows that are wanted; the lines of others are not looked up. None: all.
        read: Reads the marks of all lines of a results file.

    Raises:
        StateError: the results files and the state do not match.
    """
    seen = bytearray(store.last_row() + 1)
    count = 0
    for output in store.outputs():
        count += _find_in(store, output, store.lines_path(output), positions, seen, after=after, only=only, read=read)
    if count != succeeded:
        raise StateError(
            f"succeeded rows without a line in the results: {succeeded - count:,}",
            f"list all problems: batchrun verify {shlex.quote(str(store.path))}",
        )


def _find_in(
    store: StateSnapshot,
    output: OutputRecord,
    path: Path,
    positions: Positions,
    seen: bytearray,
    *,
    after: tuple[int, int] = (0, 0),
    only: Mapping[int, str] | None = None,
    read: ReadMarks = read_marks,
) -> int:
    size_bytes = size_of(path)
    if size_bytes < output.committed_bytes:
        raise StateError(
            f"{path} is {output.committed_bytes - size_bytes:,} bytes shorter than the state file says:"
            " results are missing",
            "restore the complete file; `batchrun verify` names the rows",
        )
    count = 0
    for group in read(path, output.committed_bytes) if only is None else _marks_near(path, output, only):
        found = _placed(store, path, group, seen, output.output)
        if only is not None:
            found = [at for at in found if at.row in only]
        if after != (0, 0):
            found = [at._replace(output=after[0] + at.output, row=after[1] + at.row) for at in found]
        positions.add(found)
        count += len(found)
    return count


def _marks_near(path: Path, output: OutputRecord, only: Mapping[int, str]) -> Iterator[list[Mark]]:
    """The marks of the lines in which one of the ids occurs."""
    names = [dump(row_id)[1:-1] for row_id in only.values()]
    for group in read_groups(path, end=output.committed_bytes):
        yield [mark(line) for line in group if any(name in line.raw for name in names)]


def _placed(store: StateSnapshot, path: Path, group: list[Mark], seen: bytearray, output: int) -> list[Position]:
    """The positions of some lines.

    Raises:
        StateError: a line is not the only result of a succeeded row.
    """
    ids = [line.likely_id for line in group]
    rows = _rows(store, group, ids, output)
    if not all(row and row.result == line.digest for row, line in zip(rows, group, strict=True)):
        ids = _read_ids(path, group)
        rows = _rows(store, group, ids, output)
    found = []
    for line, row_id, row in zip(group, ids, rows, strict=True):
        if row is not None and row.state == _SUCCEEDED and not seen[row.row]:
            seen[row.row] = 1
            numbers = (row.source, row.line, row.row, output, line.offset, line.length)
            found.append(Position(*numbers, row.offset, row.length, row.digest, row.variant))
            continue
        if row_id is None:
            wrong = "is not a result"
        elif row is None:
            wrong = f"belongs to no row of this run (id {row_id!r})"
        elif row.state != _SUCCEEDED:
            wrong = f"belongs to a row that has not succeeded (id {row_id!r})"
        else:
            wrong = f"is a duplicate (id {row_id!r})"
        raise StateError(
            f"{path}:{line.number} {wrong}",
            f"list all problems: batchrun verify {shlex.quote(str(store.path))}",
        )
    return found


def _rows(
    store: StateSnapshot, group: Sequence[Mark], ids: Sequence[str | None], output: int
) -> list[FoundLine | None]:
    named = [(row_id or "", line.digest) for row_id, line in zip(ids, group, strict=True)]
    return store.find_lines(stored_ids(store, output, named, int))


def _read_ids(path: Path, group: Sequence[Mark]) -> list[str | None]:
    """The ids in the records of some lines; None for what is not a record with a line end."""
    raws = read_parts(path, [(line.offset, line.length) for line in group])
    records = [read_record(raw) if raw.endswith(b"\n") else None for raw in raws]
    return [None if record is None else record.id for record in records]


def _is_ordered(positions: Positions) -> bool:
    return all(one.result_offset < next_one.result_offset for one, next_one in pairwise(positions))
