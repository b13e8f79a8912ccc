"""Read Parquet: each row becomes one JSON line. Integers stay integers, dates become ISO strings, nulls are absent.

A picture or a sound of a dataset of the Hub, a struct of `bytes` and `path`, becomes a data URL, or its path; so does
each of a list.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from math import isinf
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from batchrun.errors import InputError
from batchrun.files.exactjson import dump
from batchrun.files.extras import needs_extra

_ROWS = 1000
"""Rows that are made of a row group at once; fewer if they are large."""
_BLOCK_BYTES = 8 << 20
_MEDIA = (
    (b"\x89PNG", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"RIFF....WEBP", "image/webp"),
    (b"RIFF....WAVE", "audio/wav"),
    (b"fLaC", "audio/flac"),
    (b"OggS", "audio/ogg"),
    (b"ID3", "audio/mpeg"),
    (b"\xff\xfb", "audio/mpeg"),
    (b"....ftyp", "video/mp4"),
)
"""How a file of each type begins; a dot is any byte."""


def parquet_lines(file: Path | BinaryIO, path: str) -> Iterator[bytes]:
    """The rows of a Parquet file as JSON lines, in blocks. Memory holds one row group.

    Args:
        file: The file, or its path.
        path: Its path in messages.

    Raises:
        InputError: pyarrow is missing, the file is not a complete Parquet file, or a column has values that JSON
            cannot have.
    """
    with needs_extra(f"{path} is a Parquet file", kind=InputError):
        import pyarrow as pa
        import pyarrow.parquet as pq
    try:
        table = pq.ParquetFile(file, pre_buffer=False, page_checksum_verification=True)
        schema = table.schema_arrow
        repeated = [name for at, name in enumerate(schema.names) if name in schema.names[:at]]
        if repeated:
            raise InputError(f"{path}: two columns are named `{repeated[0]}`", "rename one of them")
        media = {field.name for field in schema if _is_media(pa, field.type)}
        nested = {field.name for field in schema if pa.types.is_nested(field.type)} - media
        size = max(1, min(_ROWS, _BLOCK_BYTES // max(1, _bytes_a_row(table))))
        first = 1
        for batch in table.iter_batches(batch_size=size):
            columns = {name: _column(pa, path, name, batch.column(at)) for at, name in enumerate(schema.names)}
            yield b"".join(_lines(path, first, columns, media=media, nested=nested))
            first += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is not a complete Parquet file: {reason}", "create it again") from error


def column_names(path: Path) -> list[str]:
    """The names of the columns of a Parquet file; none if it cannot be read, or pyarrow is missing."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return []
    try:
        return list(pq.read_schema(path).names)
    except (pa.ArrowException, OSError):
        return []


def _bytes_a_row(table: Any) -> int:
    groups = [table.metadata.row_group(at) for at in range(table.metadata.num_row_groups)]
    return max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)


def _column(pa: Any, path: str, name: str, column: Any) -> list[Any]:
    """The values of a column, as Python's."""
    import pyarrow.compute as pc

    types = pa.types
    if types.is_floating(column.type):
        if pc.any(pc.is_inf(column)).as_py():
            raise InputError(f"{path}: column `{name}` has infinite values", "JSON has none: replace or remove them")
        column = pc.if_else(pc.is_nan(column), None, column)
    elif types.is_binary(column.type) or types.is_large_binary(column.type) or types.is_fixed_size_binary(column.type):
        if types.is_fixed_size_binary(column.type):
            column = column.cast(pa.binary())
        try:
            column = column.cast(pa.large_string())
        except pa.ArrowInvalid as error:
            raise InputError(
                f"{path}: column `{name}` has bytes that are not UTF-8 text", "leave it out, or store it as base64"
            ) from error
    elif (types.is_timestamp(column.type) or types.is_time64(column.type)) and column.type.unit == "ns":
        to = pa.time64("us") if types.is_time64(column.type) else pa.timestamp("us", column.type.tz)
        try:
            column = column.cast(to)
        except pa.ArrowInvalid:  # it has nanoseconds, which Python's time has not
            column = pc.replace_substring(column.cast(pa.string()), pattern=" ", replacement="T")
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path}: column `{name}`: {error}", "write it as text or as numbers") from error
    return values


def _lines(
    path: str, first: int, columns: dict[str, list[Any]], *, media: set[str], nested: set[str]
) -> Iterator[bytes]:
    for number, cells in enumerate(zip(*columns.values(), strict=True), first):
        row = {name: cell for name, cell in zip(columns, cells, strict=True) if cell is not None}
        for name in media & row.keys():
            row[name] = as_url(row[name])
        for name in nested & row.keys():
            try:
                row[name] = _without_nulls(row[name])
            except ValueError as error:
                raise InputError(
                    f"{path}: row {number}, column `{name}`: {error}", "JSON has none: replace or remove them"
                ) from error
        yield _line(path, number, row) + b"\n"


def _line(path: str, number: int, row: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(row, default=plain)
    except TypeError as error:
        for name, value in row.items():
            try:
                orjson.dumps(value, default=plain)
            except TypeError as wrong:
                reason = wrong.__cause__ or wrong
                raise InputError(
                    f"{path}: row {number}, column `{name}`: {reason}", "leave it out, or store it as text"
                ) from error
        return dump(row)


def plain(value: Any) -> Any:
    """A value that JSON has no type for: a decimal is a number with all of its digits, a duration is in seconds."""
    if isinstance(value, Decimal) and value.is_finite():
        return orjson.Fragment(f"{value:f}".encode())
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise TypeError("bytes that are not UTF-8 text") from None
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")


def _without_nulls(value: Any) -> Any:
    """A nested value without null fields: a struct has every field that any row has.

    `content` of a message stays: by the API's rules it is null in a tool call.

    Raises:
        ValueError: it has infinite values.
    """
    if isinstance(value, dict):
        return {
            key: _without_nulls(item)
            for key, item in value.items()
            if item is not None or (key == "content" and value.get("role") is not None)
        }
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    if type(value) is float and isinf(value):
        raise ValueError("infinite values")
    return value


def _is_media(pa: Any, kind: Any) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    if not pa.types.is_struct(kind) or {kind.field(at).name for at in range(kind.num_fields)} != {"bytes", "path"}:
        return False
    held = kind.field("bytes").type
    return bool(pa.types.is_binary(held) or pa.types.is_large_binary(held))


def as_url(value: Any) -> Any:
    """A picture or a sound, a struct of `bytes` and `path`, as a data URL, or else its path; so each of a list."""
    if type(value) is not dict:
        return [as_url(each) for each in value if each is not None]
    data: bytes | None = value["bytes"]
    if data is None:
        path: str | None = value["path"]
        return path
    kind = next((kind for begin, kind in _MEDIA if _begins(data, begin)), "application/octet-stream")
    return f"data:{kind};base64,{b64encode(data).decode()}"


def _begins(data: bytes, begin: bytes) -> bool:
    return len(data) >= len(begin) and all(mark in (byte, ord(".")) for byte, mark in zip(data, begin, strict=False))
