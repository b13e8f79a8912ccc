"""Writes a table as a Parquet file. The only module that imports pyarrow; it is imported only when it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import parquet

from batchrun.config import VERSION
from batchrun.errors import OutputError
from batchrun.results.kinds import Kind, Schema

_ROW_GROUP_ROWS = 100_000
_ROW_GROUP_BYTES = 32 << 20
"""A row group is written as soon as it has this many rows or bytes, so that memory stays flat."""
_MARK = b"batchrun"
"""The key in a file's metadata by which an export is recognized."""
_TYPES = {"bool": pa.bool_(), "int": pa.int64(), "long": pa.int64(), "float": pa.float64()}


def load() -> None:
    """Import what pyarrow imports at its first array: pandas, if that is there, which takes as long as pyarrow."""
    pa.array([])


class ParquetFile:
    """A Parquet file that is written by row groups.

    Args:
        out: Where it is written.
        schema: The names and types of its columns.
    """

    def __init__(self, out: BinaryIO, schema: Schema) -> None:
        fields = [(name, _type(kind)) for name, kind in schema]
        self._schema = pa.schema(fields, metadata={_MARK: VERSION.encode()})
        self._writer = parquet.ParquetWriter(out, self._schema, write_page_checksum=True)
        self._batches: list[Any] = []
        self._rows = self._bytes = 0

    def write(self, values: list[list[Any]]) -> None:
        """Write some rows, column by column.

        Raises:
            OutputError: pyarrow cannot write them.
        """
        try:
            arrays = [pa.array(column, field.type) for column, field in zip(values, self._schema, strict=True)]
        except pa.ArrowException as error:
            raise OutputError(f"the results cannot be written as Parquet: {error}", "write .csv or .json") from error
        batch = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        self._batches.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows >= _ROW_GROUP_ROWS or self._bytes >= _ROW_GROUP_BYTES:
            self._put()

    def _put(self) -> None:
        self._writer.write_table(pa.Table.from_batches(self._batches, self._schema), self._rows)
        self._batches = []
        self._rows = self._bytes = 0

    def end(self) -> None:
        """Write the last row group and the end of the file."""
        if self._batches:
            self._put()
        self._writer.close()


def has_mark(path: Path) -> bool:
    """Whether a file is a Parquet file that batchrun wrote.

    Raises:
        OSError: it cannot be read.
    """
    try:
        return _MARK in (parquet.read_schema(path).metadata or {})
    except pa.ArrowException:
        return False


def _type(kind: Kind) -> Any:
    if kind.item is not None:
        return pa.list_(_type(kind.item))
    if kind.name == "object":
        return pa.struct([(name, _type(each)) for name, each in kind.fields])
    return _TYPES.get(kind.name, pa.string())
