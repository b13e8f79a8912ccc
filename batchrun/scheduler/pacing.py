"""How many requests of one operation may start now: rate limit, concurrency, and backoff.

The rate. Runpod counts the requests of any 10 seconds by their arrival. Only two times are known here, when a request
was sent and when its answer came; it arrived in between. So a request takes a slot in the rate window when it starts
and returns it 10 s after its *answer*. Whatever the network does, the server never sees more requests in 10 s than the
limit. A full burst is still allowed, so 5,000 submissions take 40 s, not 50.

Trouble. A 429 pauses the operation (Retry-After, else backoff with full jitter) and cuts the rate once for each
episode; the rate grows back while no further 429 comes. A network failure pauses it too. After either, the operation
starts slowly, as TCP does: one request at a time, then one more with each success; after a 429 only up to half of the
requests that were open when it came, and from there on one more for each round. So no outage ends in a burst, and an
operation whose limit is unknown finds it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from random import Random

from batchrun.config import WINDOW_S, OperationLimit
from batchrun.scheduler.failures import backoff_s

_MARGIN_S = 0.02
"""The server's window may include both of its ends, and clocks are read at slightly different times."""
_CUT = 0.75
_REGROWTH = 0.05
"""The share of the limit that is restored after each window without a 429: one cut takes 5 windows, a minute."""
_LEAST_SHARE = 0.05
_BACKOFF_BASE_S = 0.5
_BACKOFF_CAP_S = 30.0


class Pacer:
    """Paces the requests of one operation.

    Args:
        limit: What the API allows; 0 is unlimited.
        rng: Source of jitter.
    """

    __slots__ = (
        "_cap",
        "_cut_at",
        "_limit",
        "_next_at",
        "_paused_until",
        "_quiet_since",
        "_rng",
        "_share",
        "_slots",
        "_slow_from",
        "_trouble",
        "_window",
        "in_use",
    )

    def __init__(self, limit: OperationLimit, rng: Random) -> None:
        self._limit = limit.per_window
        self._cap = float(limit.concurrent or 1_000_000)
        self._rng = rng
        self._slots: deque[float] = deque()
        self._window = self._cap
        self._slow_from = self._cap
        self._share = 1.0
        self._paused_until = 0.0
        self._next_at = 0.0
        self._trouble = 0
        self._cut_at = float("-inf")
        self._quiet_since = 0.0
        self.in_use = 0
        """The number of open requests."""

    def __repr__(self) -> str:
        return (
            f"<Pacer in_use={self.in_use} slots={len(self._slots)} window={self._window:.0f} share={self._share:.2f}>"
        )

    @property
    def trouble(self) -> int:
        """The number of failures in a row; 0 if the last request was answered."""
        return self._trouble

    def remember(self, times: Iterable[float]) -> None:
        """Count requests of an earlier session, given when they were answered, oldest first."""
        if self._limit:
            self._slots.extend(at + WINDOW_S + _MARGIN_S for at in times)

    def ready(self, now: float) -> int:
        """How many requests may start at `now`."""
        if now < self._paused_until:
            return 0
        count = int(self._window) - self.in_use
        if self._limit and count > 0:
            self._give_back(now)
            count = min(count, self._limit - len(self._slots) - self.in_use)
            if self._share < 1.0:
                count = min(count, 1 if now >= self._next_at else 0)
        return max(count, 0)

    def next_at(self, now: float) -> float | None:
        """When a request may start if none ends before: `now` or later; None if one must end first."""
        at = max(now, self._paused_until)
        if self.in_use >= int(self._window):
            return None
        if self._limit:
            self._give_back(now)
            taken = len(self._slots) + self.in_use - self._limit
            if taken >= 0:
                if taken >= len(self._slots):
                    return None
                at = max(at, self._slots[taken])
            if self._share < 1.0:
                at = max(at, self._next_at)
        return at

    def start(self, now: float) -> None:
        """A request is being sent."""
        self.in_use += 1
        if self._limit and self._share < 1.0:
            self._next_at = now + WINDOW_S / (self._limit * self._share)

    def abandon(self) -> None:
        """A request that was counted as started was not sent."""
        self.in_use -= 1

    def succeed(self, now: float) -> None:
        """A request was answered with anything but 408 or 429."""
        self._end(now)
        self._trouble = 0
        if self._window < self._cap:
            step = 1.0 if self._window < self._slow_from else 1.0 / self._window
            self._window = min(self._cap, self._window + step)
        if self._share < 1.0 and now - self._quiet_since >= WINDOW_S:
            self._share = min(1.0, self._share + _REGROWTH)
            self._quiet_since = now

    def throttle(self, now: float, sent_at: float, retry_after_s: float | None) -> None:
        """A request was refused with 408 or 429; the rate is cut once for each episode, however many are refused."""
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
        """The server answers again: resume at once, but slowly."""
        self._trouble = 0
        self._slow_from = self._cap
        self._window = 1.0
        self._paused_until = now

    def _end(self, now: float) -> None:
        self.in_use -= 1
        if self._limit:
            self._slots.append(now + WINDOW_S + _MARGIN_S)

    def _give_back(self, now: float) -> None:
        slots = self._slots
        while slots and slots[0] <= now:
            slots.popleft()

    def _pause(self, now: float) -> None:
        wait_s = backoff_s(self._trouble, self._rng, base_s=_BACKOFF_BASE_S, cap_s=_BACKOFF_CAP_S)
        self._paused_until = max(self._paused_until, now + wait_s)


TROUBLE_THRESHOLD = 3
"""The number of failures in a row that means an outage: one lost request must not stop a thousand others."""
