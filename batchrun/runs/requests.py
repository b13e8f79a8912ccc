"""The requests that a program gives a run: each is a line of a file beside the state file before it is a row.

So to everything else such a run is one on an input that grows, and a later session knows the rows by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from batchrun.errors import InputError, StateError, UsageError
from batchrun.files.exactjson import dump
from batchrun.prompts.identity import known_by
from batchrun.prompts.shapes import LineError, parse_line
from batchrun.results.writer import ResultsFile, writing
from batchrun.runs.locations import requests_path
from batchrun.state.appending import Arrival, append_rows, begin_arrivals
from batchrun.state.store import Store

_EXPECTED = "a request is what a line of an input file may be: a dict, or a string"


def request_line(request: Any, number: int) -> bytes:
    """A request as an input line, without the end.

    Args:
        request: Anything that an input line may be, parsed.
        number: Which it is, 1-based.

    Raises:
        InputError: it is not a JSON value, or not of a known shape.
    """
    try:
        line = dump(request, orjson.OPT_SERIALIZE_NUMPY)
        parse_line(line)
    except LineError as error:
        raise InputError(f"request {number:,}: {error.message}", error.hint or _EXPECTED) from error
    except (TypeError, ValueError) as error:
        raise InputError(f"request {number:,} cannot be written as JSON: {error}", _EXPECTED) from error
    return line


class RowAppender:
    """Makes rows of requests, each a line of the run's only input first. Blocks; for one thread at a time.

    Args:
        store: The run's state, with the rows of all lines that the input has.

    Raises:
        OutputError: the input cannot be written.
    """

    def __init__(self, store: Store) -> None:
        (source,) = store.sources()
        path = Path(source.file)
        size_bytes = path.stat().st_size
        self._store = store
        self._reading = store.reading
        self._file = ResultsFile(path, size_bytes)
        self._end = begin_arrivals(store, source.source, size_bytes)

    def close(self) -> None:
        """Close the input."""
        self._file.close()

    def add(self, lines: Sequence[bytes]) -> tuple[int, UsageError | None]:
        """Take in requests as lines, up to one that cannot be used.

        Returns:
            How many rows are new, and why the next line cannot be used: its id has come before, or another request had
            it in an earlier session. None: all lines are taken in.

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
        """All of them, or none."""

        def write(new: Sequence[int]) -> None:
            self._file.append([lines[index] + b"\n" for index in new])
            self._file.sync()

        count, self._end = append_rows(self._store, self._end, [_arrival(line, self._reading) for line in lines], write)
        return count


def _arrival(line: bytes, reading: int) -> Arrival:
    prompt = parse_line(line, reading)
    row_id, known = known_by(prompt, line)
    return Arrival(row_id, prompt.id is None, len(line), known)


def have_requests(requests: Path, state: Path, *, is_new: bool) -> None:
    """Make the file of a new run's requests; see that an earlier one has it.

    Raises:
        StateError: it has not.
        OutputError: it cannot be made.
    """
    if is_new:
        with writing(requests):
            requests.touch()
    elif not requests.exists():
        raise StateError(
            f"{state} belongs to a run whose requests are not in {requests}",
            "give another state file; or put the requests back, if they were there",
        )


def refuse_strange_requests(state: Path) -> None:
    """Refuse requests without a run in their state file: they may be anybody's.

    Raises:
        StateError: they are there.
    """
    path = requests_path(state)
    if path.exists() and path.stat().st_size:
        raise StateError(
            f"{path} exists, but its state file {state} does not, or holds no run",
            "move it away, or give another state",
        )
