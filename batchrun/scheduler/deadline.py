"""The deadline of a session: when to stop submitting, and when to exit."""

from __future__ import annotations

import math
from collections.abc import Callable

from batchrun.errors import StoppedError
from batchrun.scheduler.backlog import Backlog
from batchrun.scheduler.stopping import Stopping

_MARGIN = 0.1
"""The share of a job's expected time that is kept in reserve."""
_KNOWN_WITHIN_S = 1.0
"""The usual time from the end of a job until its poll is answered and its result is on disk."""


class Deadline:
    """Stops a session in time.

    Args:
        after_s: Seconds from the session's start; None for no deadline.
        likely_end: When a job that is submitted now is likely to end; None if unknown.
        stopping: Stops the session.
        backlog: The rows that are left to submit.
    """

    def __init__(
        self,
        after_s: float | None,
        *,
        likely_end: Callable[[float], float | None],
        stopping: Stopping,
        backlog: Backlog,
    ) -> None:
        self._after_s = math.inf if after_s is None else after_s
        self._likely_end = likely_end
        self._stopping = stopping
        self._backlog = backlog
        self._began_at = math.inf
        self.spent_s = 0.0
        """How much time of the session has passed before `begin`."""

    def begin(self, now: float) -> None:
        """The scheduler starts."""
        self._began_at = now - self.spent_s

    def move(self, after_s: float) -> None:
        """Set the deadline, in seconds after the session's start; infinite for no deadline."""
        self._after_s = after_s

    @property
    def _at(self) -> float:
        """Infinite before `begin`, or without a deadline."""
        return self._began_at + self._after_s

    def keep(self, now: float) -> None:
        """Stop submitting when jobs would end too late, and stop at once at the deadline."""
        # If no row is left to submit, there is nothing to stop: the jobs in flight may still end in time.
        is_over = self._stopping.is_stopping or self._backlog.is_empty
        if not is_over and now >= self._last_submission_at(now):
            self._stopping.drain(self._reached())
        if now >= self._at:
            self._stopping.halt(self._reached())

    def next_at(self, now: float) -> float | None:
        """When to call `keep` next; None if there is no deadline."""
        if self._at == math.inf:
            return None
        last_at = self._at if self._stopping.is_stopping else self._last_submission_at(now)
        return last_at if last_at > now else self._at

    def _last_submission_at(self, now: float) -> float:
        if self._at == math.inf:
            return math.inf
        job_end_at = self._likely_end(now)
        time_s = 0.0 if job_end_at is None else max(job_end_at - now, 0.0)
        return self._at - time_s * (1 + _MARGIN) - _KNOWN_WITHIN_S

    def _reached(self) -> StoppedError:
        """Why the run stops."""
        return StoppedError(
            f"no time is left before the deadline ({self._after_s:,.0f} s after the start)",
            "resume: the deadline starts anew in each session",
        )
