"""The results of a run in input order, as they were at one moment: as lines, or as the rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack
from heapq import merge
from pathlib import Path
from typing import NamedTuple, Self

from batchrun.config import ResultFormat
from batchrun.results.cells import CellFinder, Found, Row
from batchrun.results.marks import read_marks
from batchrun.results.reader import LinesByPosition
from batchrun.runs.conversion import Conversion, Line, lines_at
from batchrun.runs.ordering import ReadMarks, find_positions
from batchrun.runs.table_workers import TableWorkers
from batchrun.scheduler.states import RowState
from batchrun.state.positions import Position, Positions, RowWithLine
from batchrun.state.shared_ids import count_shared_ids
from batchrun.state.snapshot import StateSnapshot

_GROUP_ROWS = 1000
_GROUP_BYTES = 4 << 20
_ROWS_FOR_WORKERS = 20_000
"""Reading fewer takes about as long as starting a process."""


class Ended(NamedTuple):
    """A row that has succeeded, has failed or is held."""

    row: RowWithLine
    failure: str | None
    """The kind of its failure; None: it has succeeded."""


class RunResults:
    """The committed results of a run in input order, with the error records of its failed and held rows if wanted.

    Another process may be writing the run meanwhile. To be used in a `with` statement.

    Args:
        state: The run's state file.
        form: The format of the lines; None: results are unchanged.
        with_results: Whether to give the results.
        with_errors: Whether to give the error records.
        check: Called with the state before anything else is read; returns whether a table is made of the results.
        prepare: Called next, while other processes start and the state is checked for damage.
        only: Row -> id, for the few succeeded rows that are wanted. None: all.
        errors_of: The few rows whose error records are wanted. None: all.

    Raises:
        StateError: the state file or a results file cannot be read, or the two do not match; any method raises it.
    """

    def __init__(
        self,
        state: Path,
        form: ResultFormat | None = None,
        *,
        with_results: bool = True,
        with_errors: bool = False,
        check: Callable[[StateSnapshot], bool] = lambda _: False,
        prepare: Callable[[], None] = lambda: None,
        only: Mapping[int, str] | None = None,
        errors_of: Collection[int] | None = None,
    ) -> None:
        with ExitStack() as stack:
            self._positions = stack.enter_context(Positions())
            self._store = stack.enter_context(StateSnapshot(state))
            with self._store.refusing_damaged():
                is_table = check(self._store)
                self.counts = self._store.counts()
                self._workers: TableWorkers | None = None
                if is_table and with_results and self.counts[RowState.SUCCEEDED] >= _ROWS_FOR_WORKERS:
                    self._workers = stack.enter_context(TableWorkers())
                prepare()
                paths = {output.output: self._store.lines_path(output) for output in self._store.outputs()}
                self._placed = stack.enter_context(LinesByPosition(paths))
                if with_results:
                    wanted = self.counts[RowState.SUCCEEDED] if only is None else len(only)
                    find_positions(self._store, self._positions, wanted, only=only, read=self._reader())
            self.shared_ids = count_shared_ids(self._store, with_errors=with_errors) if with_results else 0
            """Ids that more than one row has."""
            self._conversion = stack.enter_context(Conversion(state, form))
            self._with_errors, self._errors_of = with_errors, errors_of
            self._state = state
            if not with_errors:
                self._store.close()  # so that a run in progress can truncate its log meanwhile
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _reader(self) -> ReadMarks:
        if self._workers is not None and self._workers.are_ready():
            return self._workers.read_marks
        return read_marks

    def lines(self) -> Iterator[bytes]:
        """All lines in the format, with their line ends."""
        for group in self._grouped():
            for line in lines_at(self._placed, group):
                yield line.raw if line.is_error else self._conversion.line(line.row, line.raw)

    def groups(self, *, with_requests: bool) -> Iterator[list[Row]]:
        """All rows as for a table, in groups of up to a thousand, fewer if they are long.

        Args:
            with_requests: Whether to read what was asked, too.
        """
        for group in self._grouped("batchrun"):
            yield self._conversion.rows_at(self._placed, group, with_requests=with_requests)

    def cells(self, chosen: Sequence[str] | None) -> Iterator[Found]:
        """The cells of all rows for a table, in such groups.

        Many rows are read in several processes; what is found is the same.

        Args:
            chosen: The columns, see `Columns`.
        """
        if self._workers is not None and self._workers.begin(self._state, self._placed, chosen):
            yield from self._workers.find(self._grouped("batchrun"))
            return
        finder = CellFinder(chosen)
        for group in self._grouped("batchrun"):
            rows = self._conversion.rows_at(self._placed, group, with_requests=finder.needs_requests)
            yield finder.find(rows)

    def ended(self) -> Iterator[Ended]:
        """All rows, in input order, without reading their results."""
        found: Iterator[Ended] = (Ended(at, None) for at in self._positions)
        if not self._with_errors:
            return found
        with_held = self.counts[RowState.HELD] > 0
        failed = (
            Ended(row, why.kind) for row, why, _ in self._store.failures(with_held=with_held, only=self._errors_of)
        )
        return merge(found, failed, key=lambda each: _place(each.row))

    def chosen(self, rows: Container[int]) -> Iterator[list[tuple[RowWithLine, Row]]]:
        """Some rows, by their numbers, each with its request and its answer, grouped as in `groups`."""
        wanted = (each for each in self._merged("batchrun") if _number(each) in rows)
        for group in _in_groups(wanted):
            read = self._conversion.rows_at(self._placed, group, with_requests=True)
            places = (each if isinstance(each, Position) else each.row for each in group)
            yield list(zip(places, read, strict=True))

    def _grouped(self, errors_form: ResultFormat | None = None) -> Iterator[list[Position | Line]]:
        return _in_groups(self._merged(errors_form))

    def _merged(self, errors_form: ResultFormat | None) -> Iterator[Position | Line]:
        """The positions of the results and the error lines, in input order."""
        if not self._with_errors:
            return iter(self._positions)
        errors = self._conversion.errors(self._store, errors_form, self._errors_of)
        failed = (Line(row, raw, is_error=True) for row, raw in errors)
        return merge(self._positions, failed, key=_place)


def _number(each: Position | Line) -> int:
    return each.row if isinstance(each, Position) else each.row.row


def _place(each: RowWithLine | Line) -> tuple[int, int, int]:
    row = each.row if isinstance(each, Line) else each
    return row.source, row.line, row.row


def _in_groups(merged: Iterator[Position | Line]) -> Iterator[list[Position | Line]]:
    group: list[Position | Line] = []
    size_bytes = 0
    for each in merged:
        group.append(each)
        size_bytes += each.result_length if isinstance(each, Position) else len(each.raw)
        if len(group) == _GROUP_ROWS or size_bytes > _GROUP_BYTES:
            yield group
            group, size_bytes = [], 0
    if group:
        yield group
