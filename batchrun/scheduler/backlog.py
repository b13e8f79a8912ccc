"""The rows to submit next: the few hundred that have been loaded, and those that wait for a retry.

Rows of one kind may share a job. The oldest row determines whose turn it is. Rows that are submitted again stay with
those of their job, so that a prompt which makes its job fail is found by halving, and never meets further rows.
"""

from __future__ import annotations

import heapq
from collections import deque

from batchrun.scheduler.events import RowsLoaded
from batchrun.scheduler.flight import Row
from batchrun.scheduler.states import RowState

_MOST = 1000
"""The maximum number of rows kept ready: enough for one burst of submissions."""
_JOBS_AHEAD = 100
"""For how many jobs of several rows there are rows ready: enough for what is sent while further rows are read."""
JOB_BYTES = 8_000_000
"""The maximum size of a job of several rows: `/run` accepts 10 MB."""


class Backlog:
    """Rows to submit.

    Args:
        window: The number of jobs that may be in flight; rows for about as many are kept ready.
        rows_per_job: The most rows of one job.
    """

    def __init__(self, window: int, rows_per_job: int = 1) -> None:
        self._rows_per_job = rows_per_job
        self._most = self._rows_ready(window)
        self._ready: deque[Row] = deque()
        """In order; those that are no longer the first of their kind have been taken already."""
        self._kinds: dict[int, deque[Row]] = {}
        self._count = 0
        self._waiting: list[tuple[float, int, int, tuple[Row, ...]]] = []
        """When to submit them, their count, and the first of them, by which no two are alike."""
        self.waiting = 0
        """Rows that wait to be submitted again."""
        self.is_exhausted = False
        """Whether no row is left in the state file."""
        self.loading = False
        """Whether more rows have been requested and not arrived yet."""

    def keep_ready(self, window: int) -> None:
        """Keep enough rows ready for about as many jobs as may be in flight."""
        self._most = self._rows_ready(window)

    def _rows_ready(self, window: int) -> int:
        jobs = _MOST if self._rows_per_job == 1 else max(_JOBS_AHEAD, _MOST // self._rows_per_job)
        return min(max(window, 1), jobs) * self._rows_per_job

    def __len__(self) -> int:
        return self._count + self.waiting

    def __repr__(self) -> str:
        return f"<Backlog ready={self._count} waiting={self.waiting}>"

    @property
    def is_empty(self) -> bool:
        """Whether no row is left, here or in the state file."""
        return self.is_exhausted and not self._count and not self._waiting

    def wanted(self) -> int:
        """How many more rows to load, 0 if none; they count as requested from then on."""
        if self.is_exhausted or self.loading or len(self) > self._most // 2:
            return 0
        self.loading = True
        return self._most

    def loaded(self, event: RowsLoaded) -> None:
        """The requested rows have arrived."""
        self.loading = False
        self.is_exhausted = event.exhausted
        self._count += len(event.tickets)
        for ticket in event.tickets:
            row = Row(ticket, RowState.PENDING)
            self._ready.append(row)
            if row.kind:
                self._kinds.setdefault(row.kind, deque()).append(row)

    def put_back(self, rows: tuple[Row, ...], at: float) -> None:
        """Submit rows again, at `at` or later, as one job; of several that are due at the same time, the smallest."""
        self.waiting += len(rows)
        heapq.heappush(self._waiting, (at, len(rows), rows[0].row, rows))

    def written(self, rows: tuple[int, ...]) -> None:
        """The ends of these rows are on disk."""

    def take(self, now: float, most: int, *, fresh: int) -> tuple[Row, ...]:
        """The rows of the next job; empty if there are none.

        Args:
            now: The current time.
            most: The most rows of one job.
            fresh: How many rows may be submitted for the first time.
        """
        if self._waiting and self._waiting[0][0] <= now:
            at, *_, rows = heapq.heappop(self._waiting)
            self.waiting -= len(rows)
            if len(rows) > most:
                self.put_back(rows[most:], at)
            return rows[:most]
        if not fresh or not self._count:
            return ()
        first = self._next()
        rows = self._of_kind(first, min(most, first.most, fresh)) if first.kind else (first,)
        self._count -= len(rows)
        return rows

    def _next(self) -> Row:
        while True:
            row = self._ready.popleft()
            if not row.kind:
                return row
            same = self._kinds.get(row.kind)
            if same and same[0] is row:
                return row

    def _of_kind(self, first: Row, most: int) -> tuple[Row, ...]:
        same = self._kinds[first.kind]
        rows, size_bytes = [same.popleft()], first.size_bytes
        while same and len(rows) < most and (size_bytes := size_bytes + same[0].size_bytes) <= JOB_BYTES:
            rows.append(same.popleft())
        if not same:
            del self._kinds[first.kind]
        return tuple(rows)

    def next_at(self, *, fresh: bool) -> float | None:
        """When the next row is due for submission, -inf if a loaded row is ready; None if there is none."""
        if fresh and self._count:
            return float("-inf")
        return self._waiting[0][0] if self._waiting else None
