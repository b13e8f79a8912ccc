"""The requests that a program gives to a run: each is written to a file beside the state file before it becomes a row.

So for everything else, such a run has one input that grows, and a later session recognizes the rows by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import orjson

from batchrun.errors import InputError, StateError, UsageError
from batchrun.files.exactjson import dump
from batchrun.prompts.identity import known_by
from batchrun.prompts.line_rules import LineRules
from batchrun.prompts.shapes import LineError
from batchrun.results.writer import ResultsFile, writing
from batchrun.runs.locations import requests_path
from batchrun.state.appending import Arrival, append_rows, begin_arrivals
from batchrun.state.store import Store
from batchrun.state.stored_options import find_options

_EXPECTED = "a request must be a dict or a string, like a line of an input file"
_TEMPLATE = "fix the template or the request"


def request_line(request: Any, number: int, rules: LineRules) -> bytes:
    """A request as an input line, without the newline.

    Args:
        request: What a parsed input line may be, a dataclass, or a model of pydantic.
        number: Its number, 1-based.
        rules: The rules of its run.

    Raises:
        InputError: it is not a JSON value, or not of a known shape.
    """
    try:
        line = _as_json(request)
        rules.parse(line)
    except LineError as error:
        hint = error.hint or (_EXPECTED if rules.template is None else _TEMPLATE)
        raise InputError(f"request {number:,}: {error.message}", hint) from error
    except (TypeError, ValueError) as error:
        reason = _of_a_field(request, error)
        hint = "leave it out, or give it as text" if isinstance(request, dict) else _EXPECTED
        raise InputError(f"request {number:,} cannot be written as JSON: {reason}", hint) from error
    return line


def _as_json(value: Any) -> bytes:
    line = dump(value, orjson.OPT_SERIALIZE_NUMPY, _plain)
    if b"null" in line and _has_infinity(value):
        raise ValueError("an infinite number")
    return line


def _plain(value: Any) -> Any:
    dump_model = getattr(type(value), "model_dump", None)
    if dump_model is None:
        raise TypeError
    return dump_model(value, mode="json", exclude_none=True)


def _has_infinity(value: Any) -> bool:
    """Whether there is an infinite number in a value: orjson would write null."""
    if isinstance(value, dict):
        return any(map(_has_infinity, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_has_infinity, value))
    if is_dataclass(value):
        return any(_has_infinity(getattr(value, each.name)) for each in fields(value))
    if hasattr(value, "tolist"):
        return _has_infinity(value.tolist())
    return isinstance(value, float) and math.isinf(value)


def _of_a_field(request: Any, error: Exception) -> str:
    """Why a request cannot be written, with the name of the field if it is one field's fault."""
    for name, value in request.items() if isinstance(request, dict) else ():
        try:
            _as_json(value)
        except (TypeError, ValueError) as wrong:
            return f"`{name}`: {wrong}"
    return str(error)


class RowAppender:
    """Makes rows from requests, after writing each to the run's only input. Blocks; not thread-safe.

    Args:
        store: The run's state, with the rows of all lines that the input has so far.

    Raises:
        OutputError: the input cannot be written.
    """

    def __init__(self, store: Store) -> None:
        (source,) = store.sources()
        path = Path(source.file)
        size_bytes = path.stat().st_size
        self._store = store
        options = find_options(store)
        self.rules = LineRules(None if options is None else options.request, store.reading)
        """The rules of the run."""
        self._media = self.rules.media(source.origin)
        self._file = ResultsFile(path, size_bytes)
        self._end = begin_arrivals(store, source.source, size_bytes)

    def close(self) -> None:
        """Close the input."""
        self._file.close()

    def add(self, lines: Sequence[bytes]) -> tuple[int, UsageError | None]:
        """Add requests as lines, up to an invalid one.

        Returns:
            The number of new rows, and why the next line is invalid: its id is a duplicate, or belonged to another
            request in an earlier session. None: all lines were added.

        Raises:
            OutputError: they cannot be written.
        """
        try:
            return self._add(lines), None
        except UsageError as error:
            if len(lines) == 1:
                return 0, error
        added = 0
        for line in lines:
            new, refused = self.add([line])
            added += new
            if refused is not None:
                return added, refused
        return added, None

    def _add(self, lines: Sequence[bytes]) -> int:
        """Add all lines, or none."""

        def write(new: Sequence[int]) -> None:
            self._file.append([lines[index] + b"\n" for index in new])
            self._file.sync()

        count, self._end = append_rows(self._store, self._end, [self._arrival(line) for line in lines], write)
        return count

    def _arrival(self, line: bytes) -> Arrival:
        prompt = self.rules.parse(line)
        if self._media is not None:
            try:
                self._media.check(prompt.request)
            except LineError as error:
                name = "a request" if prompt.id is None else f"request {prompt.id!r}"
                raise InputError(f"{name}: {error.message}", "correct it, or leave out the request") from error
        row_id, known = known_by(prompt, line)
        return Arrival(row_id, prompt.id is None, len(line), known)


def have_requests(requests: Path, state: Path, *, is_new: bool) -> None:
    """Create the file for a new run's requests; check that it exists for an existing run.

    Raises:
        StateError: it does not exist.
        OutputError: it cannot be created.
    """
    if is_new:
        with writing(requests):
            requests.touch()
    elif not requests.exists():
        raise StateError(
            f"{state} belongs to a run whose requests should be in {requests}, which does not exist",
            "restore that file, or give another state file",
        )


def refuse_strange_requests(state: Path) -> None:
    """Refuse a file with requests if the state file holds no run: it may belong to somebody else.

    Raises:
        StateError: there is such a file.
    """
    path = requests_path(state)
    if path.exists() and path.stat().st_size:
        raise StateError(
            f"{path} exists, but its state file {state} does not, or holds no run",
            "move it away, or give another state file",
        )
