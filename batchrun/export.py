"""The results of a run in the order of its input, in one file.

A pass over the results files keeps where each line stands, in a table on disk; then the lines are read in order. So
memory does not grow with the run, but for one byte a row.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from batchrun.errors import StateError, UsageError
from batchrun.results.reader import PlacedLines, in_groups, read_lines, size_of
from batchrun.results.record import read_record
from batchrun.results.writer import errors_path, part_of, write_whole
from batchrun.scheduler.states import RowState
from batchrun.state.positions import Position, Positions
from batchrun.state.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from batchrun.results.reader import StoredLine


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export came to."""

    target: str
    results: int
    rows: int
    """Of the run."""
    failed: int
    """Rows without a result that will have none; those of the rest are still to come."""

    def __str__(self) -> str:
        rest = self.rows - self.results - self.failed
        parts = [f"{self.failed:,} failed"] * bool(self.failed) + [f"{rest:,} have not ended"] * bool(rest)
        missing = f" ({', '.join(parts)})" if parts else ""
        return f"{self.results:,} of {self.rows:,} rows exported to {self.target}{missing}"


def export(state: Path, target: Path | None, stdout: BinaryIO) -> Exported:
    """Write the results that are committed, in input order.

    Args:
        state: The run's state file; another process may be writing it.
        target: The file to write, whole by rename; None: `stdout`.
        stdout: Where the lines go without a target.

    Raises:
        UsageError: the target is a folder, a device, or a file of the run.
        StateError: the state file or a results file cannot be read, or they do not fit together.
        OutputError: the target cannot be written.
    """
    with Positions() as positions:
        with Snapshot(state) as store:
            if faults := store.damage():
                raise StateError(f"{state}: the state file is damaged ({faults[0]})", "restore it from a copy")
            refuse_own_files(store, target, stdout)
            paths = {output.output: store.results_path(output) for output in store.outputs()}
            counts = store.counts()
            find_positions(store, positions, counts[RowState.SUCCEEDED], {number: number for number in paths})
        with PlacedLines(paths) as placed:
            lines = (placed.read(at.output, at.offset, at.length) for at in positions)
            if target is not None:
                write_whole(target, lines)
            else:
                stdout.writelines(lines)
                stdout.flush()
    name = "stdout" if target is None else str(target)
    return Exported(name, counts[RowState.SUCCEEDED], sum(counts.values()), counts[RowState.FAILED])


def find_positions(
    store: Snapshot, positions: Positions, succeeded: int, numbers: Mapping[int, int], *, first_row: int = 0
) -> None:
    """Note where the committed results of a run stand.

    Args:
        store: The run's state.
        positions: Takes them.
        succeeded: How many there have to be.
        numbers: Output -> the number by which its file is known to the reader.
        first_row: Added to the numbers of its rows, which tell them apart where several runs are put together.

    Raises:
        StateError: a results file cannot be read, or does not fit the state.
    """
    seen = bytearray(store.last_row() + 1)
    count = 0
    for output in store.outputs():
        path = store.results_path(output)
        size_bytes = size_of(path)
        if size_bytes < output.committed_bytes:
            raise StateError(
                f"{path} is {output.committed_bytes - size_bytes:,} bytes shorter than the state file says:"
                " results are missing",
                "put the whole file back; `batchrun verify` names the rows",
            )
        for group in in_groups(read_lines(path, end=output.committed_bytes)):
            found = list(_placed(store, path, group, seen, numbers[output.output]))
            positions.add(at._replace(row=first_row + at.row) for at in found)
            count += len(found)
    if count != succeeded:
        raise StateError(
            f"{succeeded - count:,} rows that succeeded have no line in the results",
            f"look at all that is wrong: batchrun verify {store.path}",
        )


def _placed(store: Snapshot, path: Path, group: list[StoredLine], seen: bytearray, output: int) -> Iterator[Position]:
    """The places of some lines.

    Raises:
        StateError: a line is not the one result of a row that succeeded.
    """
    records = [read_record(line.raw) if line.raw.endswith(b"\n") else None for line in group]
    rows = store.find(["" if record is None else record.id for record in records])
    for line, record, row in zip(group, records, rows, strict=True):
        if record is None:
            wrong = "is no result"
        elif row is None:
            wrong = f"belongs to no row of this run (id {record.id!r})"
        elif row.state != RowState.SUCCEEDED:
            wrong = f"belongs to a row that has not succeeded (id {record.id!r})"
        elif seen[row.row]:
            wrong = f"is there a second time (id {record.id!r})"
        else:
            seen[row.row] = 1
            yield Position(row.source, row.line, row.row, output, line.offset, len(line.raw))
            continue
        raise StateError(f"{path}:{line.number} {wrong}", f"look at all that is wrong: batchrun verify {store.path}")


def refuse_own_files(store: Snapshot, target: Path | None, stdout: BinaryIO) -> None:
    """Refuse to write over anything of the run, or over what is no file.

    Raises:
        UsageError: the target is one of these.
    """
    if target is None:
        for path in _own_files(store):
            if _is_file_of(stdout, path):
                raise UsageError(f"stdout goes to {path}, a file of the run itself", "send it to another file")
        return
    if target.is_dir():
        raise UsageError(f"{target} is a folder", "give -o the name of a file in it")
    if target.exists() and not target.is_file():
        raise UsageError(f"{target} is no file", "-o - writes to stdout")
    for path in _own_files(store):
        if any(_same(written, path) for written in (target, part_of(target))):
            raise UsageError(f"{target} would write over {path}, a file of the run itself", "give another -o")


def _own_files(store: Snapshot) -> Iterator[Path]:
    """What the run reads and writes."""
    for suffix in ("", "-wal", "-shm", ".lock"):
        yield store.path.with_name(store.path.name + suffix)
    for output in store.outputs():
        path = store.results_path(output)
        yield from (path, errors_path(path))
    for source in store.sources():
        yield from (Path(source.file), Path(source.origin))


def _same(one: Path, other: Path) -> bool:
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return one.samefile(other)
    except OSError:
        return False


def _is_file_of(stream: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except OSError:
        return False
