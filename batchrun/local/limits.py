"""Runpod's documented limits as the server side sees them. Pure."""

from __future__ import annotations

from collections import deque

from batchrun.config import WINDOW_S, OperationLimit


class RateLimit:
    """Requests of one operation: so many in any 10 s, so many at once.

    Args:
        limit: The documented limit; 0 is unlimited.
    """

    __slots__ = ("_arrivals", "_limit", "_under_way")

    def __init__(self, limit: OperationLimit) -> None:
        self._limit = limit
        self._arrivals: deque[float] = deque()
        self._under_way = 0

    def admit(self, now: float) -> float | None:
        """Let a request in, which is then under way until `leave`; else after how many seconds to come again."""
        limit, arrivals = self._limit, self._arrivals
        while arrivals and now - arrivals[0] > WINDOW_S:
            arrivals.popleft()
        if limit.per_window and len(arrivals) >= limit.per_window:
            return min(max(arrivals[0] + WINDOW_S - now, 0.0), WINDOW_S)
        if limit.concurrent and self._under_way >= limit.concurrent:
            return 0.0
        if limit.per_window:
            arrivals.append(now)
        self._under_way += 1
        return None

    def leave(self) -> None:
        """A request that was admitted has been answered."""
        self._under_way -= 1
