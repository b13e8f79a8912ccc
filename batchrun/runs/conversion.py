"""Result lines from one format into the other, and the lines of rows without a result in either."""

from __future__ import annotations

import re
from collections.abc import Generator
from pathlib import Path
from typing import Any, Self

from batchrun.config import FormatChoice, ResultFormat
from batchrun.endpoint.worker_errors import decode_error
from batchrun.engine.rows import RowLines
from batchrun.files.exactjson import load
from batchrun.prompts.lines import LineReader
from batchrun.results.openai import batchrun_record, is_openai, openai_error_line, openai_line
from batchrun.results.record import write_line
from batchrun.scheduler.states import RowState
from batchrun.state.reader import StateReader
from batchrun.state.records import RowRecord
from batchrun.state.stored_options import find_options

_API_CODE = re.compile(r"HTTP (\d{3}): ")


def error_lines(
    store: StateReader,
    form: FormatChoice,
    lines: RowLines,
    output: int | None = None,
) -> Generator[tuple[RowRecord, bytes]]:
    """The records of the rows that have failed or are held, each with its row.

    Args:
        store: The run's state.
        form: The format of the lines.
        lines: Leads from a row to its lines.
        output: Only those of this results file, in the order of the rows; None: all, in input order.
    """
    with_held = store.counts()[RowState.HELD] > 0
    write = _openai_error_line if form == "openai" else None
    for row, failure, job in store.failures(output, with_held=with_held):
        yield row, lines.failure(row, failure, job, write)


def _openai_error_line(record: dict[str, Any]) -> bytes:
    """An error line in OpenAI's format, with the HTTP status that the model server or the API has answered with."""
    error = record["error"]
    if record["status"] == "REJECTED":
        code = _API_CODE.match(error["message"])
        return openai_error_line(record, None if code is None else int(code[1]))
    if record["status"] != "FAILED":
        return openai_error_line(record)
    said = decode_error(error["raw"])
    return openai_error_line(record, said.code, said.error_type)


class Conversion:
    """Turns the result lines of a run into a format.

    Where an answer does not tell whether a chat or a completion was asked for, or of which model, the row's input line
    does; where that is gone, or is not what it was, a chat is assumed.

    Args:
        state: The run's state file.
        form: The format; None: that of the run, and each result line as it stands.

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
        self._lines = RowLines.of(options, by_number, self._reader) if options else RowLines(by_number, self._reader)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        self._store.close()

    def line(self, row: int, raw: bytes) -> bytes:
        """A row's result line in the format; itself when it is in it."""
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

    def errors(self, store: StateReader) -> Generator[tuple[RowRecord, bytes]]:
        """The records of the rows without a result, in input order, each with its row.

        Args:
            store: The run's state as of the moment of its results.
        """
        return error_lines(store, self._form or self._run_form, self._lines)
