"""The gate: it holds submissions back until the endpoint answers, and decides when to request `/health`.

It is closed until `/health` has answered once, and when submissions meet an outage: then `/health` is requested, with
backoff, instead of risking unconfirmed submissions. While it is open `/health` is still sampled: the answers say what
workers cost, and why a run makes no progress.
"""

from __future__ import annotations

from collections import deque
from random import Random

from batchrun.errors import CallError
from batchrun.scheduler.failures import backoff_s
from batchrun.scheduler.health import EndpointHealth, obstacle
from batchrun.scheduler.pacing import TROUBLE_THRESHOLD

_PROBE_BASE_S = 1.0
_PROBE_CAP_S = 30.0
_BLOCK_CAP_S = 120.0
"""While `/health` answers and `/run` does not, one submission is risked this often: each may be a paid job."""
_SAMPLE_S = 15.0
"""The interval of samples if no cost is estimated: short enough to explain why a run makes no progress."""
_HASTE_S = 2.0
"""The interval of samples while the window limits the run."""
_METER_LEAST_S = 0.25
_METER_MOST_S = 10.0
_METER_SHARE = 0.02
"""The interval of samples for the cost, as a share of the session's age: the last gap is at most 2% of it."""
_QUEUE_SAMPLES = 40
"""Ten minutes of samples: the queue is compared with the oldest of them."""
_GROWTH = 1.2
_QUIET_S = 90.0
_QUIET_TIMES = 3.0
"""A run is quiet if no job has ended for this long, and for this many times the usual time of a job."""


PAUSED = "paused by `batchrun tune --pause`"


class SubmissionGate:
    """Decides whether to submit, and when to request `/health`.

    Args:
        rng: Source of jitter.
        metered: Whether to sample often enough to estimate a cost.
    """

    def __init__(self, rng: Random, *, metered: bool = False) -> None:
        self._rng = rng
        self._metered = metered
        self._requesting = False
        self._ask_at = float("-inf")
        self._began_at: float | None = None
        self._failures = 0
        self._blocks = 0
        self.is_open = self.is_paused = False
        self.error = ""
        """Why it is closed; empty if it is open, or if nothing is known yet."""
        self._queues: deque[tuple[float, int]] = deque(maxlen=_QUEUE_SAMPLES)
        self.health: EndpointHealth | None = None
        """The last answer; None before the first one and after a failure."""

    def due(self, now: float) -> bool:
        """Whether to request `/health` now."""
        return not self._requesting and now >= self._ask_at

    def next_at(self) -> float | None:
        """When to request `/health` next; None while a request is open."""
        return None if self._requesting else self._ask_at

    def requested(self, now: float) -> None:
        """`/health` is being requested."""
        self._requesting = True
        if self._began_at is None:
            self._began_at = now

    def answered(self, health: EndpointHealth | None, now: float) -> bool:
        """`/health` answered (None: without usable data); returns whether that has opened the gate."""
        self._requesting = False
        self._failures = 0
        self.error = ""
        self.health = health
        if health is not None:
            self._queues.append((now, health.in_queue))
        self._ask_at = now + self._gap_s(now)
        opened, self.is_open = not self.is_open, True
        return opened

    def failed(self, error: CallError, now: float) -> None:
        """`/health` gave no usable answer. An open gate stays open: submissions show better whether `/run` works."""
        self._requesting = False
        self._failures += 1
        self.health = None
        if not self.is_open:
            self.error = error.message
        wait_s = backoff_s(self._failures, self._rng, base_s=_PROBE_BASE_S, cap_s=_PROBE_CAP_S)
        if self.is_open:
            wait_s = max(wait_s, self._gap_s(now))
        self._ask_at = now + max(wait_s, error.retry_after_s or 0.0)

    def note(self, *, busy: bool, quiet_s: float, usual_s: float) -> str:
        """What holds the run up, as a clause; empty if nothing does.

        Args:
            busy: Whether jobs are in flight.
            quiet_s: How long no job has ended.
            usual_s: How long a job usually takes; 0 if unknown.
        """
        health = self.health
        if self.is_paused:
            return PAUSED
        if not self.is_open:
            return f"waiting for the endpoint: {self.error}" if self.error else ""
        if not busy or health is None:
            return ""
        hindrance = obstacle(health)
        if hindrance:
            return f"waiting for the endpoint: {hindrance}"
        if quiet_s <= max(_QUIET_S, _QUIET_TIMES * usual_s):
            return ""
        note = (
            f"no job has ended for {quiet_s / 60:.0f} min: {health.in_queue:,} queued, {health.in_progress:,} running"
        )
        (first_at, first), (last_at, last) = self._queues[0], self._queues[-1]
        if last > first * _GROWTH + 1:
            note += f"; {(last_at - first_at) / 60:.0f} min ago {first:,} were queued"
        return note

    def hasten(self, now: float, after_s: float = 0.0) -> None:
        """Request `/health` in `after_s` seconds, or somewhat later: the next answer is needed."""
        if not self._requesting and self.is_open:
            self._ask_at = min(self._ask_at, now + max(after_s, _HASTE_S))

    def submitted(self) -> None:
        """A submission succeeded."""
        self._blocks = 0

    def submission_failed(self, error: CallError, now: float, failures: int) -> None:
        """`failures` submissions in a row have failed: after enough of them, close until `/health` answers.

        The gate stays closed longer each time if no submission succeeds in between.
        """
        enough = 1 if self._blocks else TROUBLE_THRESHOLD
        if failures < enough or not self.is_open:
            return
        self.is_open = False
        self.error = error.message
        self._ask_at = now
        if self._blocks:
            self._ask_at += backoff_s(self._blocks, self._rng, base_s=_PROBE_BASE_S, cap_s=_BLOCK_CAP_S)
        self._blocks += 1

    def _gap_s(self, now: float) -> float:
        if not self._metered:
            return _SAMPLE_S
        age_s = now - (now if self._began_at is None else self._began_at)
        return min(max(age_s * _METER_SHARE, _METER_LEAST_S), _METER_MOST_S)
