"""When the journal is written: in groups, at most every 20 ms, in a thread."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from batchrun.display.timeline import Timeline
from batchrun.engine.journal import Journal, PendingWrites, Written

T = TypeVar("T")

_COMMIT_GAP_S = 0.02
"""Between the starts of two commits: groups of events share one fsync, at the price of this much delay."""
_SUBMITS_AT_ONCE = 96
"""This many submissions do not wait for that: else the connections would run dry before the next commit."""
_KEEP_S = 15.0
"""A quiet run writes down this often how long it has been going on, and what its workers cost."""
_SIGN_S = 2.0
"""One that is asked to end writes it this often: who has asked from outside sees that it is alive."""


class Commits:
    """Collects what is to be on disk, and writes it.

    Args:
        journal: Writes it.
        timeline: How the run has gone so far; written down now and then.
        thread: Where the journal is written: one thread, shared by all who write the same state file.
        clock: Monotonic seconds.
        wall: UTC epoch seconds.
    """

    def __init__(
        self,
        journal: Journal,
        timeline: Timeline,
        thread: ThreadPoolExecutor,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._timeline = timeline
        self._thread = thread
        self._clock = clock
        self._wall = wall
        self._began_at = self._kept_at = float("-inf")
        self.pending = PendingWrites()
        """What is to be written next."""
        self.calls: Counter[str] = Counter()
        """API calls since the last commit, by operation."""
        self.has_failed = False
        """Whether a batch could not be written."""

    def is_due(self, now: float, *, is_ending: bool) -> bool:
        """Whether to begin a commit.

        Args:
            now: The present.
            is_ending: Whether the session was asked to end.
        """
        gap_s = now - self._began_at
        if not self.pending:
            return gap_s > (_SIGN_S if is_ending else _KEEP_S)
        return gap_s >= _COMMIT_GAP_S or len(self.pending.submits) >= _SUBMITS_AT_ONCE

    def begin(self, now: float) -> None:
        """A commit begins."""
        self._began_at = now

    def wait_s(self) -> float | None:
        """In how many seconds the next commit is due; None: when something happens."""
        return max(self._began_at + _COMMIT_GAP_S - self._clock(), 0.0) if self.pending else None

    async def commit(self, counters: dict[str, int], *, is_last: bool) -> tuple[PendingWrites, Written]:
        """Write what is pending; returns it, and what follows from it.

        Args:
            counters: Added to the run's counters, beside the calls.
            is_last: Whether no further commit will come.

        Raises:
            OutputError: it cannot be written.
        """
        work, self.pending = self.pending, PendingWrites()
        for operation, count in self.calls.items():
            work.count(f"calls_{operation}", count)
        self.calls.clear()
        for name, count in counters.items():
            work.count(name, count)
        now = self._clock()
        if self._timeline.is_new and (is_last or now - self._kept_at > _KEEP_S):
            self._kept_at = now
            work.timeline = self._timeline.to_json()
        now_ms = round(self._wall() * 1000)
        try:
            written = await self.in_thread(lambda: self._journal.write(work, now_ms))
        except BaseException:
            self.has_failed = True
            raise
        return work, written

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do something in the journal's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
