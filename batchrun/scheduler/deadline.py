"""The deadline of a session: when to stop submitting, and when to exit."""

from __future__ import annotations

from batchrun.errors import StoppedError

_MARGIN = 0.1
"""The share of a job's expected time that is kept in reserve."""
_KNOWN_WITHIN_S = 1.0
"""The usual time from the end of a job until its poll is answered and its result is on disk."""


class Deadline:
    """The time by which the session has to end.

    Args:
        after_s: Seconds from the session's start; None for no deadline.
    """

    def __init__(self, after_s: float | None) -> None:
        self._after_s = after_s
        self.at: float | None = None
        """The time of the deadline; None before `begin`, or without a deadline."""

    def begin(self, now: float) -> None:
        """The session starts."""
        self.at = None if self._after_s is None else now + self._after_s

    def last_submission_at(self, now: float, job_end_at: float | None) -> float | None:
        """When to stop submitting, so that the jobs in flight end by the deadline; None without a deadline.

        Args:
            now: The current time.
            job_end_at: When a job that is submitted now is likely to end; None if unknown.
        """
        if self.at is None:
            return None
        time_s = 0.0 if job_end_at is None else max(job_end_at - now, 0.0)
        return self.at - time_s * (1 + _MARGIN) - _KNOWN_WITHIN_S

    def reached(self) -> StoppedError:
        """Why the run stops."""
        return StoppedError(
            f"no time is left before the deadline ({self._after_s:,.0f} s after the start)",
            "resume: the deadline starts anew in each session",
        )
