"""How many requests of one operation may start now: rate, concurrency, and care after trouble.

The rate. Runpod counts the requests of any 10 seconds by their arrival. Only two moments are known here, when a
request left and when its answer came, and it arrived in between. So a place in the window is taken at the start of
a request and given back 10 s after its *answer*: whatever the network does, no 10 s at the server ever see more
than the limit, and a full burst is still allowed, which makes 5,000 submissions possible in 40 s, not in 50.

Trouble. A 429 pauses the operation (Retry-After, else backoff with full jitter), cuts the rate once for each
episode and lets it grow back while all is quiet. A dead network pauses it too. After either the operation starts
slowly, as TCP does: one request at a time, then one more with each success; after a 429 only up to half of what was
under way when it came, and from there on one more for each round. So no outage ends in a burst, and an operation
without a known limit finds its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from random import Random

from batchrun.config import WINDOW_S, OperationLimit
from batchrun.scheduler.failures import backoff_s

_MARGIN_S = 0.02
"""The server's window may be closed at both ends, and clocks are read a little apart."""
_CUT = 0.75
_REGROWTH = 0.05
"""Share of the limit that comes back with each quiet window: 5 windows, a minute, after one cut."""
_LEAST_SHARE = 0.05
_BACKOFF_BASE_S = 0.5
_BACKOFF_CAP_S = 30.0


class Pacer:
    """The budget of one operation.

    Args:
        limit: What the API allows; 0 is unlimited.
        rng: Where jitter comes from.
    """

    __slots__ = (
        "_cap",
        "_cut_at",
        "_limit",
        "_next_at",
        "_paused_until",
        "_places",
        "_quiet_since",
        "_rng",
        "_share",
        "_slow_from",
        "_trouble",
        "_window",
        "in_use",
    )

    def __init__(self, limit: OperationLimit, rng: Random) -> None:
        self._limit = limit.per_window
        self._cap = float(limit.concurrent or 1_000_000)
        self._rng = rng
        self._places: deque[float] = deque()
        self._window = self._cap
        self._slow_from = self._cap
        self._share = 1.0
        self._paused_until = 0.0
        self._next_at = 0.0
        self._trouble = 0
        self._cut_at = float("-inf")
        self._quiet_since = 0.0
        self.in_use = 0
        """Requests under way."""

    def __repr__(self) -> str:
        return (
            f"<Pacer in_use={self.in_use} places={len(self._places)} window={self._window:.0f} share={self._share:.2f}>"
        )

    @property
    def trouble(self) -> int:
        """Failures in a row, 0 when the last request was answered."""
        return self._trouble

    def remember(self, times: Iterable[float]) -> None:
        """Count requests of an earlier session, by when they were answered, oldest first."""
        if self._limit:
            self._places.extend(at + WINDOW_S + _MARGIN_S for at in times)

    def ready(self, now: float) -> int:
        """How many requests may start at `now`."""
        if now < self._paused_until:
            return 0
        count = int(self._window) - self.in_use
        if self._limit and count > 0:
            self._give_back(now)
            count = min(count, self._limit - len(self._places) - self.in_use)
            if self._share < 1.0:
                count = min(count, 1 if now >= self._next_at else 0)
        return max(count, 0)

    def next_at(self, now: float) -> float | None:
        """When a request may start, if none ends before: `now` or later; None when one must end first."""
        at = max(now, self._paused_until)
        if self.in_use >= int(self._window):
            return None
        if self._limit:
            self._give_back(now)
            taken = len(self._places) + self.in_use - self._limit
            if taken >= 0:
                if taken >= len(self._places):
                    return None
                at = max(at, self._places[taken])
            if self._share < 1.0:
                at = max(at, self._next_at)
        return at

    def start(self, now: float) -> None:
        """A request leaves."""
        self.in_use += 1
        if self._limit and self._share < 1.0:
            self._next_at = now + WINDOW_S / (self._limit * self._share)

    def abandon(self) -> None:
        """A request that was counted as started never left."""
        self.in_use -= 1

    def succeed(self, now: float) -> None:
        """A request was answered, whatever the answer says, unless it was 408 or 429."""
        self._end(now)
        self._trouble = 0
        if self._window < self._cap:
            step = 1.0 if self._window < self._slow_from else 1.0 / self._window
            self._window = min(self._cap, self._window + step)
        if self._share < 1.0 and now - self._quiet_since >= WINDOW_S:
            self._share = min(1.0, self._share + _REGROWTH)
            self._quiet_since = now

    def throttle(self, now: float, sent_at: float, retry_after_s: float | None) -> None:
        """A request was refused with 408 or 429: one episode is one cut, however many requests it hits."""
        self._end(now)
        self._quiet_since = now
        if sent_at >= self._cut_at:
            self._trouble += 1
            self._cut_at = now
            self._share = max(_LEAST_SHARE, self._share * _CUT)
            self._slow_from = max(1.0, (self.in_use + 1) / 2)
            self._window = 1.0
            self._next_at = now
            self._pause(now)
        if retry_after_s is not None:
            self._paused_until = max(self._paused_until, now + retry_after_s)

    def fail(self, now: float, sent_at: float) -> None:
        """A request got no usable answer: no network, reset, timeout, 5xx."""
        self._end(now)
        if sent_at >= self._cut_at:
            self._trouble += 1
            if self._trouble >= TROUBLE_THRESHOLD:
                self._cut_at = now
                self._slow_from = self._cap
                self._window = 1.0
                self._pause(now)

    def restart(self, now: float) -> None:
        """The server is known to answer again: go on at once, slowly."""
        self._trouble = 0
        self._slow_from = self._cap
        self._window = 1.0
        self._paused_until = now

    def _end(self, now: float) -> None:
        self.in_use -= 1
        if self._limit:
            self._places.append(now + WINDOW_S + _MARGIN_S)

    def _give_back(self, now: float) -> None:
        places = self._places
        while places and places[0] <= now:
            places.popleft()

    def _pause(self, now: float) -> None:
        wait_s = backoff_s(self._trouble, self._rng, base_s=_BACKOFF_BASE_S, cap_s=_BACKOFF_CAP_S)
        self._paused_until = max(self._paused_until, now + wait_s)


TROUBLE_THRESHOLD = 3
"""Failures in a row that mean an outage: one lost request in a thousand must not stop the other 999."""
