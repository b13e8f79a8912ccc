"""Make the requests of rows, and keep what their results will need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from batchrun.engine.rows import LineChangedError, RowLines
from batchrun.prompts.shapes import LineError, Prompt
from batchrun.results.completion import most_tokens
from batchrun.state.records import RowRecord

_REMEMBERED_LINE_BYTES = 4096
"""Longer lines are read again when their result arrives, so that a window of them takes little memory."""
_PART_BYTES = 1 << 20


class Asked(NamedTuple):
    """What a row's result needs from its line."""

    carried: dict[str, Any]
    """The fields that are copied to the result."""
    most_tokens: float | None
    """See `completion.most_tokens`."""


class RowRequests:
    """Makes the requests of rows.

    Args:
        lines: The lines of the rows.
    """

    def __init__(self, lines: RowLines) -> None:
        self._lines = lines
        self._asked: dict[int, Asked] = {}
        self._made: dict[int, dict[str, Any]] = {}

    def prepare(self, rows: Sequence[RowRecord]) -> Iterator[dict[str, Any] | None]:
        """The requests of rows that will be submitted soon; None if nothing can be sent, or it contains files."""
        for part in _parts(rows):
            for row, line in zip(part, self._lines.lines(part), strict=True):
                request = self._request(row, line)
                if isinstance(request, LineChangedError) or self._lines.has_files(row):
                    yield None
                    continue
                if row.length <= _REMEMBERED_LINE_BYTES:
                    self._made[row.row] = request
                yield request

    def make(self, row: RowRecord) -> dict[str, Any] | LineChangedError:
        """The request of a row. An error is returned, not raised, if nothing can be sent."""
        request = self._made.pop(row.row, None) or self._request(row, self._lines.line(row))
        if isinstance(request, LineChangedError):
            return request
        try:
            return self._lines.inlined(row, request)
        except LineError as error:
            return LineChangedError(error.message)

    def _request(self, row: RowRecord, line: Prompt | LineChangedError) -> dict[str, Any] | LineChangedError:
        if isinstance(line, LineChangedError):
            return line
        try:
            request = self._lines.request(row, line)
        except LineError as error:
            return LineChangedError(error.message)
        if row.length <= _REMEMBERED_LINE_BYTES:
            self._asked[row.row] = Asked(line.carried, most_tokens(request))
        return request

    def take(self, row: RowRecord) -> Asked:
        """What a row's result needs from its line: remembered since its submission, or read again."""
        asked = self._asked.pop(row.row, None)
        if asked is not None:
            return asked
        line = self._lines.line(row)
        if isinstance(line, LineChangedError):
            return Asked({}, None)
        return Asked(line.carried, most_tokens(self._lines.request(row, line)))

    def forget(self, row: int) -> None:
        """Forget a row that has ended."""
        self._asked.pop(row, None)
        self._made.pop(row, None)


def _parts(rows: Sequence[RowRecord]) -> Iterator[list[RowRecord]]:
    """Rows in parts of at most some size, so that their lines take little memory."""
    part: list[RowRecord] = []
    size_bytes = 0
    for row in rows:
        part.append(row)
        size_bytes += row.length
        if size_bytes > _PART_BYTES:
            yield part
            part, size_bytes = [], 0
    if part:
        yield part
