"""Converts result lines from one format to the other, and makes the error lines of either format."""

from __future__ import annotations

import re
from collections.abc import Collection, Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from batchrun.config import FormatChoice, ResultFormat
from batchrun.endpoint.worker_errors import decode_error
from batchrun.engine.rows import LineChangedError, RowLines
from batchrun.files.exactjson import load, load_all
from batchrun.prompts.lines import LineReader
from batchrun.prompts.shapes import LineError, Prompt
from batchrun.results.cells import Row
from batchrun.results.openai import batchrun_record, is_openai, openai_error_line, openai_line
from batchrun.results.reader import LinesByPosition
from batchrun.results.record import carry
from batchrun.results.written import write_line
from batchrun.scheduler.states import RowState
from batchrun.state.amendments import Amendments
from batchrun.state.endpoints import known_endpoints
from batchrun.state.positions import Position, RowWithLine
from batchrun.state.reader import StateReader
from batchrun.state.records import RowRecord
from batchrun.state.stored_options import find_options


class Line(NamedTuple):
    """The line of a row that has ended."""

    row: RowWithLine
    raw: bytes
    is_error: bool = False


_API_CODE = re.compile(r"HTTP (\d{3}): ")


def lines_at(placed: LinesByPosition, group: Sequence[Position | Line]) -> list[Line]:
    """The result lines at some positions, and the error lines between them.

    Raises:
        StateError: a results file cannot be read, or has changed.
    """
    places = [(at.output, at.result_offset, at.result_length) for at in group if isinstance(at, Position)]
    raws = iter(placed.read_all(places))
    return [Line(each, next(raws)) if isinstance(each, Position) else each for each in group]


def error_lines(
    store: StateReader,
    form: FormatChoice,
    lines: RowLines,
    output: int | None = None,
    only: Collection[int] | None = None,
) -> Generator[tuple[RowRecord, bytes]]:
    """The error lines of the rows that have failed or are held, each with its row.

    Args:
        store: The run's state.
        form: The format of the lines.
        lines: Makes the lines of a row.
        output: Only the rows of this results file, in the order of the rows; None: all rows, in input order.
        only: Only rows with these numbers; None: all.
    """
    with_held = store.counts()[RowState.HELD] > 0
    write = _openai_error_line if form == "openai" else None
    for row, failure, job in store.failures(output, with_held=with_held, only=only):
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

    def line(self, row: RowWithLine, raw: bytes) -> bytes:
        """A row's result line in the format; unchanged if it already has it."""
        if self._form is None:
            return raw
        data = load(raw)
        if is_openai(data) == (self._form == "openai"):
            return raw
        return (
            write_line(batchrun_record(data)) if is_openai(data) else openai_line(data, lambda: self._lines.asked(row))
        )

    def rows_at(self, placed: LinesByPosition, group: Sequence[Position | Line], *, with_requests: bool) -> list[Row]:
        """The results at some positions, read for a table, and the failures between them; see `rows`."""
        return self.rows(lines_at(placed, group), with_requests=with_requests)

    def rows(self, lines: Sequence[Line], *, with_requests: bool) -> list[Row]:
        """The lines of some rows, read for a table.

        Args:
            lines: The lines of results as they were written, and of failures in batchrun's own format.
            with_requests: Whether to read what was asked, too.
        """
        records = load_all([line.raw for line in lines])
        records = [batchrun_record(record) if is_openai(record) else record for record in records]
        asked: list[Prompt | LineChangedError | None]
        if with_requests:
            asked = [*self._lines.lines([line.row for line in lines])]
        else:
            asked = [self._lines.line(line.row) if line.is_error else None for line in lines]
        rows = []
        for line, record, prompt in zip(lines, records, asked, strict=True):
            if prompt is None or isinstance(prompt, LineChangedError):
                rows.append(Row(record))
                continue
            if line.is_error:
                carry(record, prompt.carried)
            rows.append(Row(record, prompt.line, self._request(line.row, prompt) if with_requests else None))
        return rows

    def _request(self, row: RowWithLine, line: Prompt) -> dict[str, Any] | None:
        try:
            return self._lines.request(row, line, has_turns=False)
        except LineError:
            return None

    def errors(
        self, store: StateReader, form: ResultFormat | None = None, only: Collection[int] | None = None
    ) -> Generator[tuple[RowRecord, bytes]]:
        """The error lines of the rows without a result, in input order, each with its row.

        Args:
            store: The run's state at the same moment as its results.
            form: The format of the lines; None: that of the conversion, or else that of the run.
            only: Only rows with these numbers; None: all.
        """
        return error_lines(store, form or self._form or self._run_form, self._lines, only=only)
