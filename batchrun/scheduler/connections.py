"""How many HTTP requests may be open at once: as many as the latency to the server requires, and no more.

A client is fastest with few connections (aiohttp with 20 to 64; with 1,000 it loses a quarter of its speed). But a
connection carries one request per round trip: at 50 ms, 64 connections carry 1,280 requests a second, and a burst of a
thousand submissions takes most of a second. So their number follows the shortest recent round trip; the shortest,
because the others include delays of the client itself.
"""

from __future__ import annotations

LEAST = 64
MOST = 256
_REQUESTS_PER_S = 5000
"""The most a client can do; at a round trip of 50 ms this takes 256 connections."""
_SPAN_S = 10.0
"""The shortest round trip is measured again after this time, since the route may change."""


class Connections:
    """The number of requests that may be open at once.

    Args:
        fixed: The number the user has chosen; None to follow the round trip.
    """

    def __init__(self, fixed: int | None) -> None:
        self._fixed = fixed
        self._since = float("-inf")
        self._shortest_s = float("inf")
        self._next_s = float("inf")
        self.count = LEAST if fixed is None else fixed
        """The number of requests of one operation that may be open at once."""

    def answered(self, sent_at: float, now: float) -> None:
        """A request sent at `sent_at` was answered."""
        if self._fixed is not None:
            return
        trip_s = max(now - sent_at, 0.0)
        self._next_s = min(self._next_s, trip_s)
        if self._next_s < self._shortest_s or now - self._since > _SPAN_S:
            self._shortest_s, self._next_s = self._next_s, float("inf")
            self._since = now
            self.count = min(max(round(_REQUESTS_PER_S * self._shortest_s), LEAST), MOST)
