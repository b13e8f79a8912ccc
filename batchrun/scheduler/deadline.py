"""The deadline of a session: when to submit nothing more, and when to be gone."""

from __future__ import annotations

from batchrun.errors import StoppedError

_MARGIN = 0.1
"""Share of a job's expected time that is kept in reserve."""
_KNOWN_WITHIN_S = 1.0
"""From the end of a job until its poll is answered and its result on disk, as a rule."""


class Deadline:
    """A moment by which the session is to be over.

    Args:
        after_s: From the session's start; None: there is none.
    """

    def __init__(self, after_s: float | None) -> None:
        self._after_s = after_s
        self.at: float | None = None
        """The moment itself; None before `begin`, or when there is none."""

    def begin(self, now: float) -> None:
        """The session starts."""
        self.at = None if self._after_s is None else now + self._after_s

    def last_submission_at(self, now: float, job_end_at: float | None) -> float | None:
        """Until when to submit, so that what is in flight is over by the deadline; None: there is no deadline.

        Args:
            now: The present.
            job_end_at: When a job that is submitted now is likely to be over; None: nobody knows yet.
        """
        if self.at is None:
            return None
        time_s = 0.0 if job_end_at is None else max(job_end_at - now, 0.0)
        return self.at - time_s * (1 + _MARGIN) - _KNOWN_WITHIN_S

    def reached(self) -> StoppedError:
        """Why the run stops."""
        return StoppedError(
            f"the deadline is reached ({self._after_s:,.0f} s after the start)",
            "a new session has a deadline of its own",
        )
