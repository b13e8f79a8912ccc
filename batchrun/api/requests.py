"""The inputs that a program gives: files, or requests: dicts, strings, dataclasses, pydantic models, rows of a table.

A table is recognized by the name of its type, so no library is imported that the program has not imported.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

from batchrun.errors import InputError, UsageError, shown
from batchrun.prompts.parquetrows import as_url, plain

_AT_ONCE = 1000
"""Rows of a table that are converted together."""


def files_or_requests(inputs: Any) -> tuple[tuple[str, ...], Iterable[Any] | None]:
    """The names of input files, or the requests.

    Raises:
        UsageError: it is neither.
    """
    if isinstance(inputs, (str, os.PathLike)):
        return (os.fsdecode(inputs),), None
    if isinstance(inputs, AsyncIterable):
        raise UsageError("run does not accept an async iterable", "use `stream`")
    if (rows := rows_of(inputs)) is not None:
        return (), rows
    if isinstance(inputs, (bytes, Mapping)) or not isinstance(inputs, Iterable):
        raise UsageError(
            f"inputs is of type {type(inputs).__name__}, not files or requests", "for one request give a list with it"
        )
    if isinstance(inputs, (list, tuple)) and inputs and all(isinstance(item, os.PathLike) for item in inputs):
        return tuple(map(os.fsdecode, inputs)), None
    return (), inputs


def endpoint_ids(given: str | Sequence[str]) -> tuple[str, ...]:
    """The IDs of one endpoint, or of several as a list or with commas.

    Raises:
        UsageError: it is no such thing.
    """
    names = given.split(",") if isinstance(given, str) else given
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"endpoint={shown(given)} is not valid", "give an endpoint ID, or a list of them")
    return tuple([name.strip() for name in names])


def rows_of(table: object) -> Iterator[dict[str, Any]] | None:
    """The rows of a table; None if it is none of the known kinds.

    They are a DataFrame of pandas or polars, a Table or RecordBatch of pyarrow, and a Dataset of `datasets`. Each row
    is what it would be in a Parquet file: a null is an absent field, a date an ISO string, a picture a data URL.
    Only nulls within a struct stay, as in a dict.
    """
    for kind in type(table).__mro__:
        read = _TABLES.get((kind.__module__.partition(".")[0], kind.__name__))
        if read is not None:
            _refuse_wrong_names(table)
            return (_row(number, row) for number, row in enumerate(read(table), 1))
    return None


def _refuse_wrong_names(table: Any) -> None:
    """Refuse columns whose values would replace each other, or have no name in a line.

    Raises:
        InputError: there is one.
    """
    seen: set[Any] = set()
    names = getattr(table, "column_names", getattr(table, "columns", None))
    for name in () if names is None else names:
        if not isinstance(name, str):
            raise InputError(f"a column is named {shown(name)}, which is not a string", "rename the column")
        if name in seen:
            raise InputError(f"two columns are named `{name}`", "rename one of them")
        seen.add(name)


def _pandas_rows(frame: Any) -> Iterator[dict[Any, Any]]:
    for begin in range(0, len(frame), _AT_ONCE):
        yield from frame.iloc[begin : begin + _AT_ONCE].to_dict("records")


def _polars_rows(frame: Any) -> Iterable[dict[Any, Any]]:
    rows: Iterable[dict[Any, Any]] = frame.iter_rows(named=True)
    return rows


def _arrow_rows(table: Any) -> Iterator[dict[Any, Any]]:
    batches = table.to_batches(max_chunksize=_AT_ONCE) if hasattr(table, "to_batches") else [table]
    for batch in batches:
        yield from batch.to_pylist()


def _dataset_rows(dataset: Any) -> Iterator[dict[Any, Any]]:
    # Whatever its format is: tensors and decoded pictures are no cells of a line.
    for table in dataset.with_format("arrow").iter(_AT_ONCE):
        yield from table.to_pylist()


_TABLES: dict[tuple[str, str], Callable[[Any], Iterable[dict[Any, Any]]]] = {
    ("pandas", "DataFrame"): _pandas_rows,
    ("polars", "DataFrame"): _polars_rows,
    ("pyarrow", "Table"): _arrow_rows,
    ("pyarrow", "RecordBatch"): _arrow_rows,
    ("datasets", "Dataset"): _dataset_rows,
    ("datasets", "IterableDataset"): iter,
}
"""Package and type -> its rows."""


def _row(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    cells = {}
    for name, value in row.items():
        try:
            cell = _cell(value)
        except TypeError as error:
            raise InputError(
                f"request {number:,}, column `{name}`: {error}", "leave it out, or store it as text"
            ) from error
        if cell is not None:
            cells[name] = cell
    return cells


def _cell(cell: Any) -> Any:
    """A cell as JSON has it; None if it is a null."""
    kind = type(cell)
    if kind in (str, int, bool) or (kind is float and cell == cell):  # noqa: PLR0124 - it is no NaN
        return cell
    if _is_null(cell):
        return None
    if isinstance(cell, dict):
        if cell.keys() == {"bytes", "path"} and isinstance(cell["bytes"], bytes | None):
            return as_url(cell)
        return {name: _cell(each) for name, each in cell.items()}
    is_array = getattr(cell, "ndim", 0) > 0
    if isinstance(cell, (list, tuple)) or (is_array and cell.dtype.kind not in _NUMBERS):
        return [_cell(each) for each in cell]
    return plain(cell) if isinstance(cell, (date, time, timedelta, Decimal, bytes)) else cell


_NUMBERS = "biuf"
"""The kinds of numpy's arrays that orjson writes itself."""


def _is_null(cell: Any) -> bool:
    # pandas has three nulls besides None: NaN and NaT differ from themselves, and NA is neither equal nor different.
    return cell is None or type(cell).__name__ == "NAType" or (_is_scalar(cell) and cell != cell)  # noqa: PLR0124


def _is_scalar(cell: Any) -> bool:
    return not isinstance(cell, (str, bytes, list, tuple, dict)) and getattr(cell, "ndim", 0) == 0
