"""The work of a process that reads the rows of a table; see `table_workers` for who asks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from batchrun.results.cells import CellFinder
from batchrun.results.marks import Marks, marks_between
from batchrun.results.reader import LinesByPosition
from batchrun.runs.conversion import Conversion, Line
from batchrun.state.positions import Position
from batchrun.state.records import RowRecord


def setup_of(state: Path, placed: LinesByPosition, chosen: Sequence[str] | None) -> dict[str, Any]:
    """What `TableReading.begin` needs: the state file, its results files, the columns."""
    return {
        "state": str(state.absolute()),
        "paths": {output: str(path) for output, path in placed.paths.items()},
        "found": dict(placed.found),
        "chosen": None if chosen is None else list(chosen),
    }


class TableReading:
    """What is done in such a process. What is given and returned is as `marshal` can write it.

    Raises:
        StateError: a file cannot be read; any method raises it.
    """

    def __init__(self) -> None:
        self._find: Callable[[Sequence[Any]], Any] | None = None

    def mark(self, part: tuple[str, int, int, int]) -> Marks:
        """The marks of a part of a results file; see `marks_between`."""
        return marks_between(*part)

    def begin(self, setup: dict[str, Any]) -> None:
        """Open the files, to find cells."""
        paths = {output: Path(path) for output, path in setup["paths"].items()}
        placed, conversion = LinesByPosition(paths, setup["found"]), Conversion(Path(setup["state"]), None)
        finder = CellFinder(setup["chosen"])

        def find(group: Sequence[Any]) -> Any:
            rows = conversion.rows_at(placed, list(map(_unpacked, group)), with_requests=finder.needs_requests)
            return finder.find(rows).plain()

        self._find = find

    def find(self, group: Sequence[Any]) -> Any:
        """The cells of a group of rows, which `packed` has made."""
        assert self._find is not None  # noqa: S101 - it has begun
        return self._find(group)


def packed(each: Position | Line) -> tuple[Any, ...]:
    """The position of a result, or an error line, as `marshal` can write it."""
    return tuple(each) if isinstance(each, Position) else (tuple(map(_plain, each.row)), each.raw)


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, int) else value


def _unpacked(data: tuple[Any, ...]) -> Position | Line:
    return Position._make(data) if isinstance(data[0], int) else Line(RowRecord._make(data[0]), data[1], is_error=True)
