"""Any file of prompts as JSON lines: unpacked, and a table with one line for each row."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedReader, RawIOBase
from typing import Any, BinaryIO, cast

from batchrun.prompts.forms import Form, form_of, packing_of

_BLOCK_BYTES = 1 << 17


@contextmanager
def json_lines(file: BinaryIO, name: str, path: str) -> Iterator[BinaryIO]:
    """The JSON lines of a file; those of JSON lines are unchanged.

    Args:
        file: The file, at its beginning.
        name: Its name, whose suffixes tell its form.
        path: Its path in messages.

    Raises:
        InputError: a library is missing; also while it is read, if it has not the form that it should have.
    """
    with ExitStack() as stack:
        plain, packing, form = _open(file, name, path)
        if form is Form.LINES:
            yield plain
            return
        if form is Form.PARQUET and (packing is not None or not file.seekable()):
            import shutil
            from tempfile import TemporaryFile

            # The end of a Parquet file says where everything is.
            whole = stack.enter_context(TemporaryFile())
            shutil.copyfileobj(plain, whole)
            whole.seek(0)
            plain = cast("BinaryIO", whole)
        yield cast("BinaryIO", BufferedReader(_Blocks(_rows(plain, form, path)), _BLOCK_BYTES))


def lines_of_rows(file: BinaryIO, name: str, path: str, numbers: Collection[int]) -> dict[int, int]:
    """On which lines of a CSV or TSV file these rows begin; empty for a file of another form.

    Raises:
        InputError: it cannot be read.
    """
    plain, _, form = _open(file, name, path)
    if form not in (Form.CSV, Form.TSV):
        return {}
    from batchrun.prompts import csvrows

    return csvrows.lines_of_rows(plain, path, numbers, is_tabbed=form is Form.TSV)


def _open(file: BinaryIO, name: str, path: str) -> tuple[BinaryIO, object, Form]:
    plain = cast("Any", file)
    packing = packing_of(name, plain.peek())
    if packing is not None:
        from batchrun.prompts.packing import unpacked

        plain = unpacked(file, packing, path)
    return plain, packing, form_of(name, plain.peek())


def _rows(file: BinaryIO, form: Form, path: str) -> Iterator[bytes]:
    match form:
        case Form.PARQUET:
            from batchrun.prompts.parquetrows import parquet_lines

            return parquet_lines(file, path)
        case Form.JSON:
            from batchrun.prompts.jsonrows import json_values

            return json_values(file, path)
        case _:
            from batchrun.prompts.csvrows import csv_lines

            return csv_lines(file, path, is_tabbed=form is Form.TSV)


class _Blocks(RawIOBase):
    """Blocks of bytes, read as a file."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        super().__init__()
        self._blocks = blocks
        self._block = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any, /) -> int:
        while not self._block:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._block = memoryview(block)
        target = memoryview(into)
        count = min(len(target), len(self._block))
        target[:count] = self._block[:count]
        self._block = self._block[count:]
        return count
