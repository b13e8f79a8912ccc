"""The server side of Runpod's documented rate limits. Pure."""

from __future__ import annotations

from collections import deque

from batchrun.config import WINDOW_S, Limits, OperationLimit
from batchrun.endpoint.protocol import Operation

_PURGE_LIMIT = OperationLimit(per_window=2, concurrent=0)
_UNLIMITED = OperationLimit(0, 0)


class RateLimit:
    """Limits the requests of one operation: in any 10 s, and at once.

    Args:
        limit: The limit; 0 means unlimited.
    """

    __slots__ = ("_arrivals", "_limit", "_under_way")

    def __init__(self, limit: OperationLimit) -> None:
        self._limit = limit
        self._arrivals: deque[float] = deque()
        self._under_way = 0

    def admit(self, now: float) -> float | None:
        """Admit a request until `leave` is called, and return None; or return the seconds after which to try again."""
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
        """Note that an admitted request has been answered."""
        self._under_way -= 1


def rate_limits(*, are_documented: bool) -> dict[Operation, RateLimit]:
    """The limit of each operation: the documented one, or none."""
    if not are_documented:
        return {operation: RateLimit(_UNLIMITED) for operation in Operation}
    limits = Limits()
    known = {Operation.RUN: limits.run, Operation.CANCEL: limits.cancel, Operation.PURGE_QUEUE: _PURGE_LIMIT}
    return {operation: RateLimit(known.get(operation, limits.status)) for operation in Operation}
