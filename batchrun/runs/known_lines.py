"""Recognizes the lines of a run whose input has changed, so that only new and changed ones are parsed again.

A line with the digest of a line that the run has already has the same bytes, so it has the same id and is as valid. The
lines of the run are read in input order, and some are held at once: memory does not depend on their number. A line that
has moved further than that is parsed like a new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import NamedTuple

from batchrun.prompts.identity import DIGEST_BYTES, given_id
from batchrun.state.reader import StateReader
from batchrun.state.records import public_id

_HELD = 2048
"""A run that has lost or gained fewer lines in one place than this is recognized behind it, too."""


class KnownLine(NamedTuple):
    """A line that the run has already."""

    id: str
    is_derived: bool
    known: bytes
    """See `known_by`."""
    row: int


class KnownLines:
    """The lines of the inputs of a run.

    Args:
        store: The run's state. Call `close` before a table of it is created or dropped.
        numbers: For each input, by its present number, the number that it has in the state; None: it is new.
        suffix: What the first variant of a line adds to its id.
    """

    def __init__(self, store: StateReader, numbers: Mapping[int, int | None], suffix: str = "") -> None:
        self._rows = store.each_line()
        self._numbers = numbers
        self._suffix = suffix
        self._old: dict[bytes, tuple[int, int, str, bytes]] = {}
        self._new: dict[bytes, tuple[int, int, str, bytes]] = {}
        self._source = -1
        """The input of the last line that is held."""
        self.found = 0
        """How many lines were recognized."""

    def close(self) -> None:
        """Read no further."""
        self._rows.close()

    def begin(self, source: int) -> None:
        """The next lines are those of this input."""
        number = self._numbers.get(source)
        while number is not None and self._source < number:
            if not self._advance():
                return

    def find(self, written: bytes) -> KnownLine | None:
        """The line with a digest; None if it is not among those that are held.

        Args:
            written: See `line_digest`.
        """
        found = self._old.get(written)
        if found is None:
            found = self._new.get(written)
            if found is None:
                return None
            self._advance()
        _, row, row_id, known = found
        row_id = public_id(row_id)
        if self._suffix:
            row_id = row_id.removesuffix(self._suffix)
        self.found += 1
        return KnownLine(*given_id(row_id, known), known, row)

    def _advance(self) -> bool:
        """Forget the lines that were held the longest, and read further; returns whether there were more."""
        self._old, self._new = self._new, {row[3][:DIGEST_BYTES]: row for row in islice(self._rows, _HELD)}
        if self._new:
            self._source = next(reversed(self._new.values()))[0]
        return bool(self._new)
