"""Reads groups of rows for a table in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from batchrun.results.cells import CellFinder
from batchrun.results.reader import LinesByPosition
from batchrun.runs.conversion import Conversion, Line
from batchrun.state.positions import Position
from batchrun.state.records import RowRecord


def setup_of(state: Path, placed: LinesByPosition, chosen: Sequence[str] | None) -> dict[str, Any]:
    """What `reader_of` needs, for another process: the state file, its results files, the columns."""
    return {
        "state": str(state.absolute()),
        "paths": {output: str(path) for output, path in placed.paths.items()},
        "found": dict(placed.found),
        "chosen": None if chosen is None else list(chosen),
    }


def reader_of(setup: dict[str, Any]) -> Callable[[Sequence[Any]], Any]:
    """What finds the cells of a group of rows; both as `marshal` can write them.

    Raises:
        StateError: a file cannot be read; the function raises it, too.
    """
    paths = {output: Path(path) for output, path in setup["paths"].items()}
    placed, conversion = LinesByPosition(paths, setup["found"]), Conversion(Path(setup["state"]), None)
    finder = CellFinder(setup["chosen"])

    def find(group: Sequence[Any]) -> Any:
        rows = conversion.rows_at(placed, list(map(_unpacked, group)), with_requests=finder.needs_requests)
        return finder.find(rows).plain()

    return find


def packed(each: Position | Line) -> tuple[Any, ...]:
    """The position of a result, or an error line, as `marshal` can write it."""
    return tuple(each) if isinstance(each, Position) else (tuple(map(_plain, each.row)), each.raw)


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, int) else value


def _unpacked(data: tuple[Any, ...]) -> Position | Line:
    return Position._make(data) if isinstance(data[0], int) else Line(RowRecord._make(data[0]), data[1], is_error=True)
