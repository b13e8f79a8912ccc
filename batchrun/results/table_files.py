"""Writes results as a file of the form that its suffix names: JSON lines, a JSON array, CSV or Parquet.

pyarrow and zstandard are imported only when they are needed.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol, cast

from batchrun.errors import UsageError
from batchrun.files.extras import needs_extra
from batchrun.results.cells import Found
from batchrun.results.kinds import FLOAT, JSON, Kind, Schema, json_text
from batchrun.results.tables import Columns
from batchrun.results.writer import replacing
from batchrun.results.written import write_line

FormName = Literal["jsonl", "json", "csv", "parquet"]
Groups = Callable[[], Iterator[Found]]
"""Gives the cells of all rows of a table in groups, each time that it is called."""

_FORMS: dict[str, FormName] = {
    "": "jsonl",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
_COMPRESSIONS = (".gz", ".zst")
_MOST_FIRST_BYTES = 16 << 20


class Form(NamedTuple):
    """The form of a file."""

    name: FormName = "jsonl"
    compression: str = ""
    """`.gz`, `.zst`, or empty."""

    @property
    def has_columns(self) -> bool:
        """Whether a file of this form always has columns."""
        return self.name in ("csv", "parquet")


JSON_LINES = Form()


def form_of(path: Path) -> Form:
    """The form that a file's suffix says: JSON lines if it has none.

    Raises:
        UsageError: the suffix is unknown.
    """
    name = path.with_name(path.name.lower())
    compression = name.suffix if name.suffix in _COMPRESSIONS else ""
    plain = name.with_suffix("") if compression else name
    form = _FORMS.get(plain.suffix)
    if form is None:
        raise UsageError(
            f"{path}: a file with the suffix {plain.suffix}{compression} cannot be written",
            "the suffix says the form: .jsonl, .json or .csv, also with .gz or .zst, or .parquet",
        )
    if form == "parquet" and compression:
        raise UsageError(f"{path}: a Parquet file is compressed by itself", f"leave out {compression}")
    return Form(form, compression)


def load_libraries(form: Form, path: Path) -> None:
    """Import what a file of a form needs.

    Raises:
        UsageError: a library is missing.
    """
    if form.name == "parquet":
        with needs_extra(f"{path} is a Parquet file"):
            from batchrun.results.parquet import load

            load()
    if form.compression == ".zst":
        with needs_extra(f"{path} is compressed with zstd"):
            import zstandard  # noqa: F401


def write_lines(path: Path, form: Form, lines: Iterable[bytes]) -> None:
    """Write JSON lines, or an array of them, replacing an older file by rename.

    Raises:
        OutputError: the file cannot be written; an older one is unchanged.
    """
    with replacing(path) as file, _compressed(file, form) as out:
        if form.name != "json":
            for line in lines:
                out.write(line)
            return
        array = _JsonArray(out, ())
        array.put(lines)
        array.end()


def write_table(path: Path, form: Form, columns: Columns, groups: Groups) -> list[str]:
    """Write a table, replacing an older file by rename.

    The rows are read once if the first group has all columns with their types, else twice.

    Returns:
        The names of the columns that have no one type, and so are text: each value as JSON.

    Raises:
        UsageError: there are too many columns, or no row has a chosen one.
        OutputError: the file cannot be written; an older one is unchanged.
    """
    with replacing(path) as file:
        if not _write_once(file, form, columns, groups):
            file.seek(0)
            file.truncate()
            _write_again(file, form, columns, groups)
    return _mixed(columns)


def write_table_to(stream: BinaryIO, columns: Columns, groups: Groups) -> list[str]:
    """Write a table as JSON lines to a stream; see `write_table`. The rows are read twice."""
    for group in groups():
        columns.learn(group)
    columns.refuse_unknown()
    _write_again(stream, JSON_LINES, columns, groups)
    return _mixed(columns)


def _mixed(columns: Columns) -> list[str]:
    return [column.name for column in columns.all() if column.kind is JSON]


def _write_once(file: BinaryIO, form: Form, columns: Columns, groups: Groups) -> bool:
    """Write a table with the columns of its first group; whether all others had the same."""
    schema: Schema = ()
    with _attempt(file, form) as attempt:
        for group in groups():
            values = columns.learn(group)
            if attempt.is_new:
                schema = columns.schema()
                attempt.begin(schema)
            if attempt.is_good and columns.schema() != schema:
                attempt.is_good = False
            if attempt.is_good:
                attempt.write(values)
        columns.refuse_unknown()
        if attempt.is_new:
            attempt.begin(columns.schema())
        return attempt.is_good


def _write_again(file: BinaryIO, form: Form, columns: Columns, groups: Groups) -> None:
    with _attempt(file, form) as attempt:
        attempt.begin(columns.schema())
        for group in groups():
            attempt.write(columns.learn(group))


class Writer(Protocol):
    """Writes the rows of a table in one form."""

    def write(self, values: list[list[Any]]) -> None:
        """Write some rows, column by column."""

    def end(self) -> None:
        """Write what follows the last row."""


class _Attempt:
    """One try to write a table."""

    def __init__(self, out: BinaryIO, form: Form) -> None:
        self._out = out
        self._form = form
        self._writer: Writer | None = None
        self._schema: Schema = ()
        self.is_good = True
        """Whether all rows so far had the columns that it began with."""

    @property
    def is_new(self) -> bool:
        return self._writer is None

    def begin(self, schema: Schema) -> None:
        self._schema = schema
        self._writer = _WRITERS[self._form.name](self._out, schema)

    def write(self, values: dict[str, list[Any]]) -> None:
        assert self._writer is not None  # noqa: S101 - it has begun
        self._writer.write([_written(values[name], kind) for name, kind in self._schema])

    def end(self) -> None:
        if self._writer is not None:
            self._writer.end()


@contextmanager
def _attempt(file: BinaryIO, form: Form) -> Iterator[_Attempt]:
    with _compressed(file, form) as out:
        attempt = _Attempt(out, form)
        try:
            yield attempt
        except BaseException:
            with suppress(Exception):
                attempt.end()
            raise
        attempt.end()


def _written(values: list[Any], kind: Kind) -> list[Any]:
    if kind is JSON:
        return [None if value is None else json_text(value) for value in values]
    if kind is FLOAT:
        return [float(value) if type(value) is int else value for value in values]
    return values


class _JsonLines:
    def __init__(self, out: BinaryIO, schema: Schema) -> None:
        self._out = out
        self._names = [name for name, _ in schema]

    def write(self, values: list[list[Any]]) -> None:
        self._out.write(b"".join(self._lines(values)))

    def _lines(self, values: list[list[Any]]) -> Iterator[bytes]:
        for row in zip(*values, strict=True):
            yield write_line(dict(zip(self._names, row, strict=True)))

    def end(self) -> None:
        pass


class _JsonArray(_JsonLines):
    def __init__(self, out: BinaryIO, schema: Schema) -> None:
        super().__init__(out, schema)
        self._before = b"[\n"

    def write(self, values: list[list[Any]]) -> None:
        self.put(self._lines(values))

    def put(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            self._out.write(self._before + line.removesuffix(b"\n"))
            self._before = b",\n"

    def end(self) -> None:
        self._out.write(b"[]\n" if self._before == b"[\n" else b"\n]\n")


class _Csv:
    """As RFC 4180 has it: lines end in CRLF, and a cell with a comma, a quote or a line end is quoted."""

    def __init__(self, out: BinaryIO, schema: Schema) -> None:
        self._out = out
        self._put([[name for name, _ in schema]])

    def _put(self, rows: Iterable[Sequence[Any]]) -> None:
        text = io.StringIO()
        csv.writer(text).writerows(rows)
        self._out.write(text.getvalue().encode())

    def write(self, values: list[list[Any]]) -> None:
        self._put(zip(*map(_cells, values), strict=True))

    def end(self) -> None:
        pass


def _cells(values: list[Any]) -> list[Any]:
    """The values of a column as CSV has them: objects and lists as JSON, true and false as JSON writes them."""
    if {bool, list, dict}.isdisjoint(map(type, values)):
        return values
    return [json_text(value) if isinstance(value, (bool, list, dict)) else value for value in values]


def _parquet(out: BinaryIO, schema: Schema) -> Writer:
    from batchrun.results.parquet import ParquetFile

    return ParquetFile(out, schema)


_WRITERS: dict[FormName, Callable[[BinaryIO, Schema], Writer]] = {
    "jsonl": _JsonLines,
    "json": _JsonArray,
    "csv": _Csv,
    "parquet": _parquet,
}


def first_lines(path: Path, form: Form) -> list[bytes]:
    """The first two lines of a text file, decompressed; empty where there are none, or it is damaged.

    Raises:
        OSError: it cannot be read.
    """
    with closing(_lines(path, form)) as lines:
        return [next(lines, b"") for _ in range(2)]


def header_of(path: Path, form: Form) -> list[str]:
    """The names of the columns of a CSV file; none if it is damaged.

    Raises:
        OSError: it cannot be read.
    """
    with closing(_lines(path, form)) as lines, suppress(csv.Error):
        return next(csv.reader(line.decode(errors="replace") for line in lines), [])
    return []


def _lines(path: Path, form: Form) -> Generator[bytes]:
    """The lines of a text file, decompressed, as far as it is not damaged."""
    damaged = suppress(EOFError, zlib.error, gzip.BadGzipFile, ValueError)
    with path.open("rb") as raw, damaged, _decompressed(raw, form.compression) as file:
        yield from iter(lambda: file.readline(_MOST_FIRST_BYTES), b"")


def is_own_parquet(path: Path) -> bool:
    """Whether a file is a Parquet file that batchrun wrote.

    Raises:
        OSError: it cannot be read.
    """
    from batchrun.results.parquet import has_mark

    return has_mark(path)


@contextmanager
def _compressed(file: BinaryIO, form: Form) -> Iterator[BinaryIO]:
    if form.compression == ".gz":
        # Without a name and a time in its header, equal results make equal files.
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0) as out:
            yield cast("BinaryIO", out)
    elif form.compression == ".zst":
        import zstandard

        with zstandard.ZstdCompressor().stream_writer(file, closefd=False) as out:
            yield cast("BinaryIO", out)
    else:
        yield file


@contextmanager
def _decompressed(file: BinaryIO, compression: str) -> Iterator[BinaryIO]:
    if compression == ".gz":
        with gzip.GzipFile(fileobj=file) as plain:
            yield cast("BinaryIO", plain)
    elif compression == ".zst":
        import zstandard

        try:
            with zstandard.ZstdDecompressor().stream_reader(file, closefd=False) as plain:
                yield cast("BinaryIO", io.BufferedReader(plain))
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error
    else:
        yield file
