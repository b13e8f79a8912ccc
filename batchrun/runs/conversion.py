"""Converts result lines from one format to the other, and makes the error lines of either format."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from batchrun.config import FormatChoice, ResultFormat
from batchrun.endpoint.worker_errors import decode_error
from batchrun.engine.rows import LineChangedError, RowLines
from batchrun.files.exactjson import load
from batchrun.prompts.lines import LineReader
from batchrun.prompts.shapes import LineError, Prompt
from batchrun.results.openai import batchrun_record, is_openai, openai_error_line, openai_line
from batchrun.results.record import carry
from batchrun.results.tables import Row
from batchrun.results.written import write_line
from batchrun.scheduler.states import RowState
from batchrun.state.amendments import Amendments
from batchrun.state.endpoints import known_endpoints
from batchrun.state.reader import StateReader
from batchrun.state.records import RowRecord
from batchrun.state.stored_options import find_options


class Line(NamedTuple):
    """The line of a row that has ended."""

    row: int
    raw: bytes
    is_error: bool = False


_API_CODE = re.compile(r"HTTP (\d{3}): ")


def error_lines(
    store: StateReader,
    form: FormatChoice,
    lines: RowLines,
    output: int | None = None,
) -> Generator[tuple[RowRecord, bytes]]:
    """The error lines of the rows that have failed or are held, each with its row.

    Args:
        store: The run's state.
        form: The format of the lines.
        lines: Makes the lines of a row.
        output: Only the rows of this results file, in the order of the rows; None: all rows, in input order.
    """
    with_held = store.counts()[RowState.HELD] > 0
    write = _openai_error_line if form == "openai" else None
    for row, failure, job in store.failures(output, with_held=with_held):
        yield row, lines.failure(row, failure, job, write)


def _openai_error_line(record: dict[str, Any]) -> bytes:
    """An error line in OpenAI's format, with the HTTP status of the model server's or the API's answer."""
    error = record["error"]
    if record["status"] == "REJECTED":
        code = _API_CODE.match(error["message"])
        return openai_error_line(record, None if code is None else int(code[1]))
    if record["status"] != "FAILED":
        return openai_error_line(record)
    decoded = decode_error(error["raw"])
    return openai_error_line(record, decoded.code, decoded.error_type)


class Conversion:
    """Converts the result lines of a run to a format.

    If an answer does not tell whether a chat or a completion was requested, or from which model, the row's input line
    does; if that is missing or has changed, a chat is assumed.

    Args:
        state: The run's state file.
        form: The format; None: result lines are not converted.

    Raises:
        StateError: the state file cannot be read.
    """

    def __init__(self, state: Path, form: ResultFormat | None) -> None:
        self._store = StateReader(state)
        try:
            options, sources = find_options(self._store), self._store.sources()
        except BaseException:
            self._store.close()
            raise
        self._form = form
        self._run_form = options.format if options else "batchrun"
        files = {source.source: Path(source.file) for source in sources}
        self._reader = LineReader(files, missing_ok=True, reading=self._store.reading)
        by_number = {source.source: source for source in sources}
        self._lines = (
            RowLines.of(
                options,
                by_number,
                self._reader,
                Amendments(self._store),
                endpoints=known_endpoints(self._store, options),
            )
            if options
            else RowLines(by_number, self._reader)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        self._store.close()

    def line(self, row: int, raw: bytes) -> bytes:
        """A row's result line in the format; unchanged if it already has it."""
        if self._form is None:
            return raw
        data = load(raw)
        if is_openai(data) == (self._form == "openai"):
            return raw
        return (
            write_line(batchrun_record(data))
            if is_openai(data)
            else openai_line(data, lambda: self._lines.asked(self._store.row(row)))
        )

    def rows(self, lines: Sequence[Line], *, with_requests: bool) -> Iterator[Row]:
        """The lines of some rows, read for a table.

        Args:
            lines: The lines of results as they were written, and of failures in batchrun's own format.
            with_requests: Whether to read what was asked, too.
        """
        by_number: dict[int, RowRecord] = {}
        if with_requests:
            by_number = {row.row: row for row in self._store.rows([line.row for line in lines])}
        for line in lines:
            record = load(line.raw)
            if is_openai(record):
                record = batchrun_record(record)
            row = by_number.get(line.row)
            if row is None and not line.is_error:
                yield Row(record)
                continue
            asked = self._lines.line(self._store.row(line.row) if row is None else row)
            if isinstance(asked, LineChangedError):
                yield Row(record)
                continue
            if line.is_error:
                carry(record, asked.carried)
            yield Row(record, asked.line, None if row is None else self._request(row, asked))

    def _request(self, row: RowRecord, line: Prompt) -> dict[str, Any] | None:
        try:
            return self._lines.request(row, line, has_turns=False)
        except LineError:
            return None

    def errors(self, store: StateReader, form: ResultFormat | None = None) -> Generator[tuple[RowRecord, bytes]]:
        """The error lines of the rows without a result, in input order, each with its row.

        Args:
            store: The run's state at the same moment as its results.
            form: The format of the lines; None: that of the conversion, or else that of the run.
        """
        return error_lines(store, form or self._form or self._run_form, self._lines)
