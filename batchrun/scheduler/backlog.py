"""The rows to submit next: the few hundred that have been loaded, and those that wait for a retry."""

from __future__ import annotations

import heapq
from collections import deque

from batchrun.scheduler.events import RowsLoaded
from batchrun.scheduler.flight import Row
from batchrun.scheduler.states import RowState

_MOST = 1000
"""The maximum number of rows kept ready: enough for one burst of submissions."""


class Backlog:
    """Rows to submit.

    Args:
        window: The number of rows that may be in flight; about as many are kept ready.
    """

    def __init__(self, window: int) -> None:
        self._most = min(max(window, 1), _MOST)
        self._ready: deque[Row] = deque()
        self._waiting: list[tuple[float, int, int, Row]] = []
        self._exhausted = False
        self.loading = False
        """Whether more rows have been requested and not arrived yet."""

    def __len__(self) -> int:
        return len(self._ready) + len(self._waiting)

    def __repr__(self) -> str:
        return f"<Backlog ready={len(self._ready)} waiting={len(self._waiting)}>"

    @property
    def waiting(self) -> int:
        """Rows that wait to be submitted again."""
        return len(self._waiting)

    @property
    def is_exhausted(self) -> bool:
        """Whether all rows have been loaded."""
        return self._exhausted

    @property
    def is_empty(self) -> bool:
        """Whether no row is left, here or in the state file."""
        return self._exhausted and not self._ready and not self._waiting

    def wanted(self) -> int:
        """How many more rows to load, 0 if none; they count as requested from then on."""
        if self._exhausted or self.loading or len(self) > self._most // 2:
            return 0
        self.loading = True
        return self._most

    def loaded(self, event: RowsLoaded) -> None:
        """The requested rows have arrived."""
        self.loading = False
        self._exhausted = event.exhausted
        self._ready.extend(Row(ticket, RowState.PENDING) for ticket in event.tickets)

    def put_back(self, row: Row, at: float, job: int) -> None:
        """Submit a row again, at `at` or later."""
        heapq.heappush(self._waiting, (at, job, row.row, row))

    def written(self, rows: tuple[int, ...]) -> None:
        """The ends of these rows are on disk."""

    def take(self, now: float, *, fresh: bool) -> Row | None:
        """The next row to submit, or None. Unless `fresh`, only rows that were submitted before are considered."""
        if self._waiting and self._waiting[0][0] <= now:
            return heapq.heappop(self._waiting)[3]
        return self._ready.popleft() if fresh and self._ready else None

    def next_at(self, *, fresh: bool) -> float | None:
        """When the next row is due for submission, -inf if a loaded row is ready; None if there is none."""
        if fresh and self._ready:
            return float("-inf")
        return self._waiting[0][0] if self._waiting else None
