"""The rows of a session that were read from the state file, for one journal or for all journals of a pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from batchrun.endpoint.protocol import JobAnswer
from batchrun.engine.requests import RowRequests
from batchrun.engine.rows import RowLines
from batchrun.scheduler.commands import Finish
from batchrun.scheduler.events import Ticket
from batchrun.state.records import RowRecord, Share
from batchrun.state.store import Store

_NONE: Mapping[int, JobAnswer] = MappingProxyType({})


class Loaded(NamedTuple):
    """Rows to submit next."""

    tickets: tuple[Ticket, ...]
    exhausted: bool
    """Whether there are no more rows."""
    added: int = 0
    """How many of them are new to the run."""
    found: Mapping[int, JobAnswer] = _NONE
    """Answers from the cache for some of these rows, not judged yet."""
    hits: tuple[tuple[Finish, JobAnswer], ...] = ()
    """Other rows, which ended with answers from the cache."""


class RowQueue:
    """The pending rows, read in order, and all that are in memory.

    Args:
        store: The state file.
        lines: The lines of the rows.
        share: The rows that are read; of a pool, all of them.
        chosen: Only these rows are read; None for all.
    """

    def __init__(self, store: Store, lines: RowLines, share: Share, chosen: Sequence[int] | None = None) -> None:
        self._store = store
        self._share = share
        self._chosen = chosen
        self._last_row = 0
        self.rows: dict[int, RowRecord] = {}
        """The rows that have been read and have not ended."""
        self.requests = RowRequests(lines)

    def load(self, count: int) -> list[RowRecord]:
        """Up to `count` further pending rows."""
        records = self._store.pending(self._last_row, count, self._share, self._chosen)
        if records:
            self._last_row = records[-1].row
        for record in records:
            self.rows[record.row] = record
        return records

    def homes(self, records: list[RowRecord]) -> dict[int, int]:
        """See `StateReader.homes`; empty without a pool."""
        doubtful = [record.row for record in records if record.unconfirmed] if self._share.is_pool else []
        return self._store.homes(doubtful) if doubtful else {}
