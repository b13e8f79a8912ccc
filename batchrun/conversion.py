"""Result lines from one format into the other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

from batchrun.config import RequestOptions, RunOptions, SweepOptions
from batchrun.exactjson import load
from batchrun.inputlines import LineChangedError, read_line
from batchrun.prompts.lines import LineReader
from batchrun.prompts.shapes import build_request
from batchrun.prompts.sweep import Sweep
from batchrun.results.completion import Asked, asked_of
from batchrun.results.openai import batchrun_record, is_openai, openai_line
from batchrun.results.record import write_line
from batchrun.state.store import Store

if TYPE_CHECKING:
    from batchrun.config import ResultFormat


class Conversion:
    """Turns the result lines of a run into a format.

    Where an answer does not tell whether a chat or a completion was asked for, or of which model, the row's input line
    does; where that is gone, or is not what it was, a chat is assumed.

    Args:
        state: The run's state file.
        form: The format.

    Raises:
        StateError: the state file cannot be read.
    """

    def __init__(self, state: Path, form: ResultFormat) -> None:
        self._form = form
        self._store = Store(state, read_only=True)
        try:
            stored, sources = self._store.get_setting("options"), self._store.sources()
        except BaseException:
            self._store.close()
            raise
        options = RunOptions.from_json(stored, state) if isinstance(stored, dict) else None
        self._request = options.request if options else RequestOptions()
        self._sweep = Sweep(options.sweep if options else SweepOptions(), self._store.reading)
        self._paths = {source.source: source.path for source in sources}
        files = {source.source: Path(source.file) for source in sources}
        self._reader = LineReader(files, missing_ok=True, reading=self._store.reading)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        self._store.close()

    def line(self, row: int, raw: bytes) -> bytes:
        """A row's result line in the format; itself when it is in it."""
        data = load(raw)
        if is_openai(data) == (self._form == "openai"):
            return raw
        return write_line(batchrun_record(data)) if is_openai(data) else openai_line(data, lambda: self._asked(row))

    def _asked(self, row: int) -> Asked:
        record = self._store.row(row)
        line = read_line(self._reader, record, self._paths.get(record.source, ""))
        if isinstance(line, LineChangedError):
            return Asked()
        return asked_of(build_request(self._sweep.apply(line, record.variant), self._request))
