"""Write the journal in groups, at most every 20 ms, in a thread."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from batchrun.engine.journal import Journal, PendingWrites, Written
from batchrun.engine.published_status import PublishedStatus

T = TypeVar("T")

_COMMIT_GAP_S = 0.02
"""Time between the starts of two commits: events share one fsync, at the price of this delay."""
_SUBMITS_AT_ONCE = 96
"""This many submissions do not wait for the gap: the connections would run out of work before the next commit."""
_KEEP_S = 15.0
"""How often an idle run writes its duration and the cost of its workers."""
_SIGN_S = 2.0
"""The same if other processes watch for a sign: a change, or that a run that was asked to end is alive."""


class Commits:
    """Collects what must be written, and writes it.

    Args:
        journal: Writes it.
        published: What other processes read about the run; written with the rest.
        thread: The thread in which the journal is written, shared by all that write the same state file.
        clock: Monotonic seconds.
        wall: UTC epoch seconds.
    """

    def __init__(
        self,
        journal: Journal,
        published: PublishedStatus,
        thread: ThreadPoolExecutor,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._published = published
        self._thread = thread
        self._clock = clock
        self._wall = wall
        self._began_at = float("-inf")
        self.pending = PendingWrites()
        """What will be written next."""
        self.calls: Counter[str] = Counter()
        """API calls since the last commit, by operation."""
        self.has_failed = False
        """Whether a batch could not be written."""

    def is_due(self, now: float, *, is_ending: bool) -> bool:
        """Whether to begin a commit.

        Args:
            now: The current time.
            is_ending: Whether the session was asked to end.
        """
        gap_s = now - self._began_at
        if not self.pending:
            return gap_s > (_SIGN_S if is_ending or self._published.is_news else _KEEP_S)
        return gap_s >= _COMMIT_GAP_S or len(self.pending.submits) >= _SUBMITS_AT_ONCE

    def begin(self, now: float) -> None:
        """Record that a commit begins."""
        self._began_at = now

    def wait_s(self) -> float | None:
        """Seconds until the next commit is due; None if nothing is pending."""
        return max(self._began_at + _COMMIT_GAP_S - self._clock(), 0.0) if self.pending else None

    async def commit(self, counters: dict[str, int], *, is_last: bool) -> tuple[PendingWrites, Written]:
        """Write what is pending; returns it, and the consequences.

        Args:
            counters: Added to the run's counters, in addition to the calls.
            is_last: Whether no further commit will follow.

        Raises:
            OutputError: it cannot be written.
        """
        work, self.pending = self.pending, PendingWrites()
        for operation, count in self.calls.items():
            work.count(f"calls_{operation}", count)
        self.calls.clear()
        for name, count in counters.items():
            work.count(name, count)
        work.settings = self._published.take(self._clock(), is_last=is_last)
        now_ms = round(self._wall() * 1000)
        try:
            written = await self.in_thread(lambda: self._journal.write(work, now_ms))
        except BaseException:
            self.has_failed = True
            raise
        return work, written

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run a function in the journal's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
