"""Chooses the rows of a run that are to be run again. Nothing is changed; memory grows by one byte per row."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from batchrun.errors import InputError, UsageError, shown
from batchrun.files.exactjson import load
from batchrun.results.conditions import Conditions
from batchrun.results.openai import batchrun_record, is_openai
from batchrun.results.reader import read_groups
from batchrun.results.record import read_record, result_digest
from batchrun.runs.conversion import Conversion
from batchrun.scheduler.states import RowState
from batchrun.state.dedupe import waiting_groups
from batchrun.state.shared_ids import rows_of_ids, stored_ids
from batchrun.state.snapshot import StateSnapshot
from batchrun.state.superseded import ended_rows

_IDS_AT_ONCE = 1000
_LISTED = 5
_ENDED, _CANDIDATE, _CHOSEN = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Selection:
    """Which of the rows that have ended are to be run again."""

    where: Conditions
    """What the records of the rows must meet."""
    ids: Iterable[tuple[str, str]] | None = None
    """Only the rows with these ids, each after the place where it was given; None for any row."""
    failed: bool = False
    """Rows that failed, and no others. Without it and without ids, only rows that have a result."""
    kinds: tuple[str, ...] = ()
    """Only failures of these kinds; empty for all."""


@dataclass(slots=True)
class Chosen:
    """The rows that are to be run again."""

    session: int
    """The number of the run's last session: if another one has begun since, the rows must be chosen again."""
    marks: bytearray = field(repr=False)
    """One for each row; see `numbers`."""
    succeeded: int = 0
    failed: int = 0
    shared: int = 0
    """Rows among them that get the answer of another."""
    joined: int = 0
    """Rows that were not asked for, but share an answer with one that was."""
    unfinished: int = 0
    """Rows that were asked for by their ids, but have not ended, or were invalid from the start."""
    waiting: int = 0
    """Rows that have not ended; the session runs them, too."""
    answered: int = 0
    """Rows among those that wait for the answer of another."""
    parting: int = 0
    """How many jobs they need if the chosen rows ask for something else from now on."""

    @property
    def rows(self) -> int:
        """How many there are."""
        return self.succeeded + self.failed

    def jobs(self, *, amended: bool) -> int:
        """How many jobs are paid for; `amended`: the chosen rows ask for something else from now on."""
        return self.rows - self.shared + self.waiting - self.answered + (self.parting if amended else 0)

    def __contains__(self, row: int) -> bool:
        """Whether a row is among them."""
        return row < len(self.marks) and self.marks[row] == _CHOSEN

    def numbers(self) -> Iterator[int]:
        """The rows, in order."""
        row = -1
        while (row := self.marks.find(_CHOSEN, row + 1)) >= 0:
            yield row


def choose(state: Path, selection: Selection) -> Chosen:
    """Choose rows.

    Args:
        state: The run's state file.
        selection: Which rows.

    Raises:
        InputError: an id belongs to no row.
        UsageError: a condition names a field that no record has; or there is nothing to choose.
        StateError: the state file or a results file cannot be read.
    """
    with StateSnapshot(state) as store:
        store.refuse_damaged()
        found = Chosen(store.last_session()[0], bytearray(store.last_row() + 1))
        named = None if selection.ids is None else _named(store, selection.ids)
        for row, row_state, _, kind in ended_rows(store):
            is_failed = row_state == RowState.FAILED
            if named is None:
                is_candidate = is_failed is selection.failed
            else:
                is_candidate = bool(named[row]) and (is_failed or not selection.failed)
                named[row] = 0
            is_candidate = is_candidate and (not selection.kinds or kind in selection.kinds)
            found.marks[row] = _ENDED if not is_candidate else _CANDIDATE if selection.where else _CHOSEN
        found.unfinished = 0 if named is None else named.count(1)
        if selection.where:
            _keep_matching(store, found.marks, selection)
        _join_equal(store, found)
        found.waiting = sum(count for each, count in store.counts().items() if each.is_open)
        for leader, row_state, followers in waiting_groups(store):
            needs_job = row_state == RowState.FAILED and leader not in found
            found.answered += followers - needs_job
            found.parting += leader in found
    if not found.rows:
        left = f" (not finished, or never valid: {found.unfinished:,})" if found.unfinished else ""
        raise UsageError(
            f"no row of {state} is chosen{left}", f"see what there is: batchrun status {shlex.quote(str(state))}"
        )
    return found


def _named(store: StateSnapshot, ids: Iterable[tuple[str, str]]) -> bytearray:
    """For each row, whether its id was given: as in the results, or with `INPUT:` before it."""
    named = bytearray(store.last_row() + 1)
    sources = {f"{source.path}:": source.source for source in store.sources()}
    unknown, count = list[str](), 0
    given = iter(ids)
    while group := list(islice(given, _IDS_AT_ONCE)):
        for (place, row_id), rows in zip(group, rows_of_ids(store, [row_id for _, row_id in group]), strict=True):
            found = [row for row, _ in rows]
            for prefix, source in sources.items() if not found else ():
                if row_id.startswith(prefix):
                    (others,) = rows_of_ids(store, [row_id.removeprefix(prefix)])
                    found = [row for row, of in others if of == source]
            for row in found:
                named[row] = 1
            if not found:
                count += 1
                unknown += [f"{place}: {shown(row_id)}"] if count <= _LISTED else []
    if count:
        more = f" and {count - _LISTED:,} more" if count > _LISTED else ""
        raise InputError(
            f"ids that no row of {store.path} has: {', '.join(unknown)}{more}",
            "give ids as they are in the results, one a line",
        )
    return named


def _keep_matching(store: StateSnapshot, marks: bytearray, selection: Selection) -> None:
    """Choose the candidates whose records meet the conditions."""
    where = selection.where
    for output in store.outputs() if not selection.failed else ():
        for group in read_groups(store.lines_path(output), end=output.committed_bytes):
            named = [(record.id, line.raw) for line in group if (record := read_record(line.raw)) is not None]
            rows = store.find(stored_ids(store, output.output, named, result_digest))
            for row, (_, raw) in zip(rows, named, strict=True):
                if row is not None and marks[row.row] == _CANDIDATE and row.state == RowState.SUCCEEDED:
                    marks[row.row] = _CHOSEN if where.hold(_record(raw)) else _ENDED
    if selection.failed or selection.ids is not None:
        with Conversion(store.path, "batchrun") as conversion:
            for failed, raw in conversion.errors(store):
                if marks[failed.row] == _CANDIDATE:
                    marks[failed.row] = _CHOSEN if where.hold(load(raw)) else _ENDED
    if unknown := where.unknown_fields():
        raise UsageError(
            f"--where: no record has the field {' or '.join(map(shown, unknown))}",
            "with --failed, fields have the names that they have in the error file, for example error.message or"
            " request.metadata.topic"
            if selection.failed
            else "fields have the names that they have in the results, for example usage.output_tokens",
        )


def _record(raw: bytes) -> dict[str, Any]:
    data = load(raw)
    return batchrun_record(data) if is_openai(data) else data


def _join_equal(store: StateSnapshot, found: Chosen) -> None:
    """Add the rows that share an answer with a chosen one, and count all of them."""
    marks = found.marks
    before = marks.count(_CHOSEN)
    for row, _, leader, _ in ended_rows(store) if before else ():
        if leader is not None and marks[row] == _CHOSEN:
            # Without a leader that has ended, too, it would be given the old answer again.
            marks[leader if marks[leader] else row] = _CHOSEN if marks[leader] else _ENDED
    for row, state, leader, _ in ended_rows(store) if before else ():
        if leader is not None and marks[leader] == _CHOSEN:
            marks[row] = _CHOSEN
        if marks[row] == _CHOSEN:
            found.succeeded += state == RowState.SUCCEEDED
            found.failed += state == RowState.FAILED
            found.shared += leader is not None
    found.joined = found.rows - before
