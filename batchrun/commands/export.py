"""`batchrun export`: writes the results of a run in input order to one file, in their own format or in the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from heapq import merge
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO

from batchrun.config import ResultFormat
from batchrun.errors import BatchrunError, UsageError
from batchrun.prompts.sources import first_line, is_own_line
from batchrun.results.reader import LinesByPosition
from batchrun.results.superseded import superseded_path
from batchrun.results.writer import errors_path, write_whole, writing
from batchrun.runs.conversion import Conversion
from batchrun.runs.manifest import manifest_path
from batchrun.runs.ordering import find_positions
from batchrun.scheduler.states import RowState
from batchrun.state.positions import Positions
from batchrun.state.shared_ids import count_shared_ids
from batchrun.state.snapshot import StateSnapshot
from batchrun.state.stored_options import find_options


@dataclass(frozen=True, slots=True)
class Exported:
    """What was exported."""

    target: str
    results: int
    rows: int
    """All rows of the run."""
    failed: int
    """Failed rows. The results of the remaining rows are still to come."""
    errors: int = 0
    """Error records that were written, of failed and held rows."""
    shared_ids: int = 0
    """Ids that more than one written line has."""

    def __str__(self) -> str:
        failed = 0 if self.errors else self.failed
        rest = self.rows - self.results - (self.errors or self.failed)
        parts = [f"{failed:,} failed"] * bool(failed) + [f"{rest:,} not finished"] * bool(rest)
        missing = f" ({', '.join(parts)})" if parts else ""
        with_errors = f", {self.errors:,} of them as error records" if self.errors else ""
        text = f"{self.results + self.errors:,} of {self.rows:,} rows exported to {self.target}{with_errors}{missing}"
        return text + note_on(self.shared_ids)


def note_on(shared_ids: int) -> str:
    """A note, on a line of its own, that several lines of the written file have the same id; empty if none have."""
    note = "ids used in several inputs; the lines that share an id differ in `source`"
    return f"\n{note}: {shared_ids:,}" if shared_ids else ""


def export(
    state: Path, target: Path | None, stdout: BinaryIO, form: ResultFormat | None = None, *, with_errors: bool = False
) -> Exported:
    """Write the committed results in input order.

    Args:
        state: The run's state file; another process may be writing it.
        target: The file to write, replaced by a rename; None: write to `stdout`.
        stdout: Where the lines go if there is no target.
        form: The format to write; None: each line unchanged.
        with_errors: Whether to write the error records of failed and held rows, too.

    Raises:
        UsageError: the target is a folder, a device, or a file of the run.
        StateError: the state file or a results file cannot be read, or the two do not match.
        OutputError: the target cannot be written.
    """
    with ExitStack() as stack:
        positions = stack.enter_context(Positions())
        looking = stack.enter_context(ExitStack())
        store = looking.enter_context(StateSnapshot(state))
        store.refuse_damaged()
        refuse_own_files(store, target, stdout)
        paths = {output.output: store.lines_path(output) for output in store.outputs()}
        counts = store.counts()
        placed = stack.enter_context(LinesByPosition(paths))
        find_positions(store, positions, counts[RowState.SUCCEEDED])
        shared_ids = count_shared_ids(store, with_errors=with_errors)
        conversion = stack.enter_context(Conversion(state, form))
        results = ((at[:3], conversion.line(at.row, placed.read(at.output, at.offset, at.length))) for at in positions)
        errors = 0
        if with_errors:
            failed = (((row.source, row.line, row.row), line) for row, line in conversion.errors(store))
            errors = counts[RowState.FAILED] + counts[RowState.HELD]
            put((line for _, line in merge(results, failed, key=itemgetter(0))), target, stdout)
        else:
            looking.close()  # so that a run in progress can truncate its log meanwhile
            put((line for _, line in results), target, stdout)
    name = "stdout" if target is None else str(target)
    rows = sum(counts.values())
    return Exported(name, counts[RowState.SUCCEEDED], rows, counts[RowState.FAILED], errors, shared_ids)


def put(lines: Iterable[bytes], target: Path | None, stdout: BinaryIO) -> None:
    """Write lines to a file, which is replaced by a rename, or to `stdout` if there is no target.

    Raises:
        OutputError: the file cannot be written.
    """
    if target is not None:
        write_whole(target, lines)
    else:
        stdout.writelines(lines)
        stdout.flush()


def refuse_own_files(
    store: StateSnapshot, target: Path | None, stdout: BinaryIO, is_ours: Callable[[bytes], bool] = is_own_line
) -> None:
    """Refuse to overwrite a file of this run or of another, anything but a file, or a file that batchrun did not write.

    Args:
        store: The run.
        target: The file to be written; None: `stdout`.
        stdout: Where the lines go if there is no target.
        is_ours: Whether batchrun wrote the file that begins with this line, so that it may be replaced.

    Raises:
        UsageError: the target must not be overwritten.
    """
    if target is None:
        for path in _files_of(store):
            if _is_file_of(stdout, path):
                raise UsageError(f"stdout goes to {path}, a file of the run itself", "redirect it to another file")
        return
    if target.is_dir():
        raise UsageError(f"{target} is a folder", "give the name of a file in it")
    if target.exists() and not target.is_file():
        raise UsageError(f"{target} is not a regular file", "give the name of a file; `-o -` writes to stdout")
    for path in _files_of(store):
        if _is_same_file(target, path):
            raise UsageError(f"{target} would overwrite {path}, a file of the run itself", "give another name")
    if not target.exists() or not target.stat().st_size:
        return
    with writing(target):
        if not is_ours(first_line(target)):
            raise UsageError(f"{target} exists, and batchrun did not write it", "move it away, or give another name")
    for state in sorted(target.absolute().parent.glob("*.state")):
        is_taken = False
        with suppress(BatchrunError), StateSnapshot(state) as other:
            is_taken = any(_is_same_file(target, path) for path in _files_of(other))
        if is_taken:
            raise UsageError(f"{target} belongs to the run of {state}", "give another name")


def _files_of(store: StateSnapshot) -> Iterator[Path]:
    """The files that a run reads and writes."""
    for suffix in ("", "-wal", "-shm", ".lock"):
        yield store.path.with_name(store.path.name + suffix)
    options = find_options(store)
    if options is not None:
        yield manifest_path(options)
    for output in store.outputs():
        path = store.results_path(output)
        yield from (path, errors_path(path), superseded_path(path))
    for source in store.sources():
        yield from (Path(source.file), Path(source.origin))


def _is_same_file(one: Path, other: Path) -> bool:
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
