"""Takes rows up again that have ended: moves their result lines to another file, and makes the rows pending.

See `state.superseded` for the steps. A crash before the state is updated leaves everything as it was, and the copied
lines are cut off again; a crash after it leaves results files that have yet to be replaced, by files that are on disk.
"""

from __future__ import annotations

import hashlib
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchrun.display.summary import Observer
from batchrun.engine.rows import RowLines
from batchrun.errors import StateError
from batchrun.results.completion import is_context_full, most_tokens
from batchrun.results.reader import StoredLine, in_groups, read_groups, read_lines, size_of
from batchrun.results.record import CACHED, read_record, result_digest
from batchrun.results.superseded import part_of, superseded_path, take_place, write_part
from batchrun.results.text import CONTEXT_FULL, extract
from batchrun.results.writer import ResultsFile, cut_torn_line, errors_path, is_private, truncate, writing
from batchrun.runs.checks import OwnFiles
from batchrun.runs.choosing import Chosen
from batchrun.scheduler.states import RowState
from batchrun.state.reader import StateReader
from batchrun.state.records import OutputRecord, RowRecord
from batchrun.state.shared_ids import stored_ids
from batchrun.state.snapshot import FoundRow, StateSnapshot
from batchrun.state.store import Store
from batchrun.state.superseded import (
    Superseded,
    begin_redo,
    end_redo,
    note_superseded,
    redo_under_way,
    superseded_files,
    take_up,
)

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Redo:
    """What is to be run again."""

    chosen: Chosen
    override: Mapping[str, Any]
    """Parameters of these rows alone."""


@dataclass(frozen=True, slots=True)
class _Lines:
    """The lines of a results file, up to its committed length."""

    output: OutputRecord
    path: Path
    are_chosen: bytearray
    """For each line, whether it is replaced."""

    def marked(self, mark: int) -> Iterator[StoredLine]:
        """The lines that are replaced (1), or those that are kept (0)."""
        lines = read_lines(self.path, end=self.output.committed_bytes)
        return (line for line, is_chosen in zip(lines, self.are_chosen, strict=True) if is_chosen == mark)


def supersede(store: Store, redo: Redo, lines: RowLines, observer: Observer, *, session: int) -> None:
    """Take rows up again.

    Args:
        store: The state; the results files agree with it, and only this process may write them.
        redo: The rows.
        lines: The lines of the rows.
        observer: Receives a message that says where the old results are.
        session: The number of this session.

    Raises:
        StateError: the run has gone on since the rows were chosen; or is missing or not as
            it was written. Nothing has changed.
        OutputError: a file cannot be written. The next session does the rest, or undoes it.
    """
    if session != redo.chosen.session + 1:
        raise StateError(f"another process has resumed {store.path} meanwhile", "give the same command again")
    uncounted: Counter[str] = Counter()
    with StateSnapshot(store.path) as rows:
        found = [_find(rows, output, redo.chosen, lines, uncounted) for output in rows.outputs()]
    there = sum(sum(each.are_chosen) for each in found)
    if there != redo.chosen.succeeded:
        raise StateError(
            f"results to be replaced: {redo.chosen.succeeded:,}, but {there:,} are there as they were written",
            f"recover the others first: batchrun resume {shlex.quote(str(store.path))} --repair",
        )
    found = [each for each in found if any(each.are_chosen)]
    files, own = superseded_files(store), OwnFiles(store)
    for each in found:
        own.claim(superseded_path(each.path))
    begin_redo(store, [each.output.output for each in found])
    parts = {}
    for each in found:
        output = each.output.output
        files[output] = _copy(each, files.get(output, Superseded()))
        parts[output] = write_part(each.path.resolve(), (line.raw for line in each.marked(0)), store.token)
    take_up(
        store,
        redo.chosen.numbers(),
        redo.override,
        parts=parts,
        sizes_bytes={output: size_of(part) for output, part in parts.items()},
        superseded=files,
        uncounted=uncounted,
    )
    settle_redo(store)
    for each in found:
        observer.message(f"old results moved to {superseded_path(each.path)}: {sum(each.are_chosen):,}")


def settle_redo(store: Store) -> None:
    """Finish a redo that was interrupted, or undo it if its rows are not pending yet; nothing happens without one.

    Raises:
        OutputError: a file cannot be written.
    """
    outputs = redo_under_way(store)
    if outputs is None:
        return
    files = superseded_files(store)
    for output in store.outputs():
        path, part = store.results_path(output), outputs.get(output.output)
        if part is not None:
            take_place(store.results_path(output._replace(path=part)), path.resolve())
        elif output.output in outputs:
            _undo(path, files.get(output.output, Superseded()).size_bytes, store.token)
    end_redo(store)


def refuse_foreign_superseded(store: StateReader) -> None:
    """Refuse files in the place of those for replaced results, unless they are as this run has left them.

    Raises:
        StateError: a file is not, or cannot be accessed.
    """
    files, own, is_settled = superseded_files(store), OwnFiles(store), redo_under_way(store) is None
    for output in store.outputs():
        path, known = superseded_path(store.results_path(output)), files.get(output.output, Superseded()).size_bytes
        size_bytes = size_of(path)
        if size_bytes and path not in own:
            raise StateError(
                f"{path} exists, and this run did not write it, but replaced results would go there", "move it away"
            )
        if size_bytes < known or (is_settled and size_bytes > known):
            raise StateError(
                f"{path} has {size_bytes:,} bytes, but {known:,} bytes of replaced results were written to it",
                f"restore it, or take it as it is: batchrun resume {shlex.quote(str(store.path))} --repair",
            )


def committed_superseded(store: StateReader) -> dict[Path, Superseded]:
    """The files with replaced results, and what must be in each."""
    paths = {output.output: superseded_path(store.results_path(output)) for output in store.outputs()}
    return {paths[output]: file for output, file in superseded_files(store).items() if output in paths}


def adopt_superseded(store: Store, observer: Observer) -> None:
    """Record the replaced results that are really there, in the course of a repair.

    Raises:
        StateError, OutputError: a file cannot be read or written.
    """
    files, own, outputs = superseded_files(store), OwnFiles(store), store.outputs()
    paths = {output.output: superseded_path(store.results_path(output)) for output in outputs}
    own.adopt([*paths.values(), *(errors_path(store.results_path(output)) for output in outputs)])
    found = {}
    for output, path in paths.items():
        known = files.get(output, Superseded())
        if size_of(path) and path in own:
            cut_torn_line(path)
            found[output] = look_at_superseded(path, size_of(path))
        if found.get(output, Superseded()) != known:
            lines = found.get(output, Superseded()).lines
            observer.message(f"{path}: replaced results that are there: {lines:,}, instead of {known.lines:,}")
    if found != files:
        note_superseded(store, found)


def look_at_superseded(path: Path, size_bytes: int) -> Superseded:
    """What is in the first bytes of a file with replaced results; with fewer bytes if it is shorter.

    Raises:
        OutputError: it cannot be read.
    """
    sha256, lines, left = hashlib.sha256(), 0, size_bytes
    with writing(path), path.open("rb") as file:
        while left and (block := file.read(min(_BLOCK_BYTES, left))):
            sha256.update(block)
            lines += block.count(b"\n")
            left -= len(block)
    return Superseded(size_bytes - left, lines, sha256.hexdigest())


def _find(
    rows: StateSnapshot, output: OutputRecord, chosen: Chosen, lines: RowLines, uncounted: Counter[str]
) -> _Lines:
    """Find the lines that are replaced; what was counted of their answers is added to `uncounted`."""
    found = _Lines(output, rows.results_path(output), bytearray())
    for group in read_groups(found.path, end=output.committed_bytes):
        records = [read_record(line.raw) for line in group]
        named = [("" if record is None else record.id, line.raw) for line, record in zip(group, records, strict=True)]
        of_rows = rows.find(stored_ids(rows, output.output, named, result_digest))
        for line, record, row in zip(group, records, of_rows, strict=True):
            is_chosen = record is not None and row is not None and row.row in chosen and _is_result(line.raw, row)
            found.are_chosen.append(is_chosen)
            if record is not None and row is not None and is_chosen:
                uncounted.update(_marks(record.output, rows.row(row.row), lines))
                uncounted[CACHED] += record.counts_as_cached
    return found


def _is_result(raw: bytes, row: FoundRow) -> bool:
    return row.state == RowState.SUCCEEDED and row.result in (None, result_digest(raw))


def _marks(output: Any, row: RowRecord, lines: RowLines) -> tuple[str, ...]:
    """What was counted of an answer, see `Journal`."""
    text = extract(output)
    if "truncated" in text.marks:
        request = lines.read_request(row)
        if request is not None and is_context_full(text, most_tokens(request)):
            return (*text.marks, CONTEXT_FULL)
    return text.marks


def _copy(lines: _Lines, before: Superseded) -> Superseded:
    """Append the replaced lines to their file, on disk."""
    path = superseded_path(lines.path)
    with closing(ResultsFile(path, before.size_bytes, private=is_private(lines.path))) as file:
        for group in in_groups(lines.marked(1)):
            file.append([line.raw for line in group])
        file.sync()
        return look_at_superseded(path, file.size_bytes)


def _undo(results: Path, size_bytes: int, token: str) -> None:
    """Cut off what was copied from a results file, and remove what was made for it."""
    copied = superseded_path(results)
    if size_of(copied) > size_bytes:
        truncate(copied, size_bytes)
    with writing(copied):
        part_of(results.resolve(), token).unlink(missing_ok=True)
        if not size_bytes:
            copied.unlink(missing_ok=True)
