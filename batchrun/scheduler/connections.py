"""How many HTTP requests may be under way: as many as the distance to the server needs, and no more.

A client is fastest with few connections (aiohttp with 20 to 64 of them; 1,000 cost it a quarter). But a connection
carries one request a round trip: 64 of them carry 1,280 requests a second over 50 ms, and a burst of a thousand
submissions takes most of a second. So their number follows the shortest round trip that was seen lately; the shortest,
because the others also hold what the client itself was late by.
"""

from __future__ import annotations

LEAST = 64
MOST = 256
_REQUESTS_PER_S = 5000
"""What a client can do at most: 256 connections at a round trip of 50 ms."""
_SPAN_S = 10.0
"""The shortest round trip is looked for anew after so long: a line may change."""


class Connections:
    """The number of requests that may be under way.

    Args:
        fixed: What the user has chosen; None: it follows the round trip.
    """

    def __init__(self, fixed: int | None) -> None:
        self._fixed = fixed
        self._since = float("-inf")
        self._shortest_s = float("inf")
        self._next_s = float("inf")
        self.count = LEAST if fixed is None else fixed
        """Requests of one operation that may be under way."""

    def answered(self, sent_at: float, now: float) -> None:
        """A request that left at `sent_at` was answered."""
        if self._fixed is not None:
            return
        trip_s = max(now - sent_at, 0.0)
        self._next_s = min(self._next_s, trip_s)
        if self._next_s < self._shortest_s or now - self._since > _SPAN_S:
            self._shortest_s, self._next_s = self._next_s, float("inf")
            self._since = now
            self.count = min(max(round(_REQUESTS_PER_S * self._shortest_s), LEAST), MOST)
