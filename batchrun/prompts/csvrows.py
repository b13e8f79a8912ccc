"""Read CSV and TSV: each row becomes one JSON line, and the number of the line is that of the row.

The file is UTF-8 and has a header. Cells are text, and an empty cell is absent. Only the cells of columns that are not
text in a prompt line are read as JSON: sampling parameters such as `temperature`, and objects such as `messages`.
"""

from __future__ import annotations

import csv
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Collection, Iterator
from math import isfinite
from typing import Any, BinaryIO, NamedTuple

import orjson

from batchrun.errors import InputError
from batchrun.files.exactjson import dump, load
from batchrun.prompts.formats import not_utf8, refuse_binary
from batchrun.prompts.lines import MAX_LINE_BYTES, in_blocks
from batchrun.prompts.sampling import TYPES

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?P<fraction>(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)")
_MOST_DIGITS = 4000
"""Python reads no integers of many more."""
_OBJECTS = frozenset({"messages", "input", "body", "sampling_params", "metadata"})
"""Columns whose cells may be objects or lists, besides the parameters."""


class Record(NamedTuple):
    """A row that is not blank."""

    number: int
    """1-based; the header does not count, blank rows do."""
    line: int
    """The line of the file on which it begins, 1-based."""
    cells: list[str]


class CsvRows:
    """The rows of a CSV or TSV file.

    Args:
        file: The file, at its beginning.
        path: Its path in messages.
        is_tabbed: Whether tabs separate the cells. Else commas do, or semicolons if the header has no comma, which is
            what spreadsheets write where the comma is the decimal mark; a first line `sep=;` also says so.

    Raises:
        InputError: it has no header, or an empty or repeated name in it, or is no text.
    """

    def __init__(self, file: BinaryIO, path: str, *, is_tabbed: bool) -> None:
        self._path = path
        self._lines = _Lines(file, path)
        first = next(self._lines, "")
        told = re.fullmatch(r"sep=(.)\s*", first, re.IGNORECASE)
        if told:
            first = next(self._lines, "")
        self._delimiter = "\t" if is_tabbed else told[1] if told else _delimiter(first)
        self._lines.again = first
        self._reader = csv.reader(self._lines, delimiter=self._delimiter, strict=True)
        self.columns = self._header()

    def _header(self) -> list[str]:
        columns = self._next(0, 1)
        if not columns:
            raise InputError(f"{self._path}: the file has no header", "its first line must name the columns")
        first: dict[str, int] = {}
        for at, name in enumerate(columns, 1):
            if not name.strip():
                raise InputError(
                    f"{self._path}: column {at} has no name in the header",
                    "name it, or leave it out (in pandas: to_csv(..., index=False))",
                )
            if first.setdefault(name, at) != at:
                raise InputError(
                    f"{self._path}: columns {first[name]} and {at} are both named `{name}`", "rename one of them"
                )
        return columns

    def __iter__(self) -> Iterator[Record]:
        """The rows after the header, in order.

        Raises:
            InputError: a row has more or fewer cells than the header, an open quote, or bytes that are not UTF-8.
        """
        number, width, lines = 0, len(self.columns), self._lines
        while True:
            number += 1
            line = lines.count + 1
            cells = self._next(number, line)
            if cells is None:
                return
            if len(cells) != width:
                if not any(cells):
                    continue
                raise self._ragged(number, line, cells)
            yield Record(number, line, cells)

    def _next(self, number: int, line: int) -> list[str] | None:
        # The limit is one for the whole process, which may be that of a user's own program.
        limit = csv.field_size_limit(MAX_LINE_BYTES)
        try:
            return next(self._reader, None)
        except csv.Error as error:
            place = f"{self._path}: {f'row {number} (line {line})' if number else 'the header'}"
            if "end of data" in str(error) or "field limit" in str(error):
                raise InputError(
                    f"{place}: a quoted cell does not end", "close its quote; a quote within a cell is written twice"
                ) from error
            if "new-line" in str(error):
                raise InputError(f"{place}: its line ends with CR only", "convert it: tr '\\r' '\\n'") from error
            raise InputError(f"{place}: {error}", "a quote within a quoted cell is written twice") from error
        finally:
            csv.field_size_limit(limit)

    def _ragged(self, number: int, line: int, cells: list[str]) -> InputError:
        found, width = len(cells), len(self.columns)
        hint = "put a cell that contains the separator or a line end into double quotes"
        if found < width:
            hint = f"its first missing column is `{self.columns[found]}`; every row needs the same number of cells"
        return InputError(
            f"{self._path}: row {number} (line {line}): {found} cell{'s' * (found != 1)}, but the header has {width}"
            f" column{'s' * (width != 1)}",
            hint,
        )


class _Lines:
    """The lines of a text file, for the csv module; `count` of them have been read."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self._file = file
        self._path = path
        self.count = 0
        self.again = ""
        """A line that is given once more; empty for none."""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.again:
            line, self.again = self.again, ""
            return line
        raw = self._file.readline(MAX_LINE_BYTES)
        if not raw:
            raise StopIteration
        if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
            place = f"{self._path}: line {self.count + 1}"
            raise InputError(f"{place}: longer than {MAX_LINE_BYTES >> 20} MiB", "is this a CSV file?")
        if not self.count:
            refuse_binary(self._path, raw)
            raw = raw.removeprefix(BOM_UTF8)
        self.count += 1
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{self._path}: line {self.count}, character {not_utf8(raw)}", "") from error


def _delimiter(header: str) -> str:
    bare = re.sub(r'"[^"]*"', "", header)
    return next((mark for mark in ",;\t" if mark in bare), ",")


def csv_lines(file: BinaryIO, path: str, *, is_tabbed: bool) -> Iterator[bytes]:
    """The rows of a CSV or TSV file as JSON lines, in blocks; a blank row is a blank line.

    Args:
        file: The file, at its beginning.
        path: Its path in messages.
        is_tabbed: Whether tabs separate the cells.

    Raises:
        InputError: see `CsvRows`.
    """
    yield from in_blocks(_json_lines(CsvRows(file, path, is_tabbed=is_tabbed)))


def _json_lines(rows: CsvRows) -> Iterator[bytes]:
    columns = rows.columns
    readers = [(name, reader) for name in columns if (reader := _reader_of(name))]
    write = dump if readers else orjson.dumps
    written = 0
    for number, _, cells in rows:
        row: dict[str, Any] = {name: cell for name, cell in zip(columns, cells, strict=True) if cell}
        for name, read in readers:
            if name in row:
                row[name] = read(row[name])
        while written < number - 1:
            yield b""
            written += 1
        yield write(row) if row else b""
        written += 1


def lines_of_rows(file: BinaryIO, path: str, numbers: Collection[int], *, is_tabbed: bool) -> dict[int, int]:
    """On which lines of a CSV or TSV file these rows begin.

    Raises:
        InputError: see `CsvRows`.
    """
    found: dict[int, int] = {}
    for number, line, _ in CsvRows(file, path, is_tabbed=is_tabbed) if numbers else ():
        if number in numbers:
            found[number] = line
            if len(found) == len(numbers):
                break
    return found


def _reader_of(name: str) -> Callable[[str], Any] | None:
    """How the cells of a column are read; None if they are text."""
    if name in _OBJECTS:
        return _json_if_structured
    kinds = {types[name] for types in TYPES.values() if name in types}
    if kinds & {"number", "integer"}:
        return _number_if_one
    if "boolean" in kinds:
        return lambda text: {"true": True, "false": False}.get(text.lower(), text)
    if kinds - {"string", "any"}:
        return _json_if_structured
    return None


def _number_if_one(text: str) -> int | float | str:
    number = _NUMBER.fullmatch(text.strip())
    if number is None:
        return text
    if not number["fraction"]:
        return int(number[0]) if len(number[0]) <= _MOST_DIGITS else text
    value = float(number[0])
    return value if isfinite(value) else text


def _json_if_structured(text: str) -> Any:
    if text.lstrip()[:1] not in ("{", "["):
        return text
    try:
        return load(text.encode())
    except orjson.JSONDecodeError:
        return text
