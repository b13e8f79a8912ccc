"""How a run stops early: it submits nothing more and collects the jobs in flight, or it stops immediately."""

from __future__ import annotations

from batchrun.errors import AmbiguousError, CallError, DeniedError, NotFoundError, RefusedError, StoppedError
from batchrun.scheduler import commands as cmd
from batchrun.scheduler.pool import Member
from batchrun.scheduler.refusal import Refusals, refusal
from batchrun.scheduler.row_outcomes import RowOutcomes

_OF_JOBS = ("status", "cancel")
"""Operations without which the jobs in flight cannot be collected or cancelled."""


class Stopping:
    """Whether a run stops early, and why.

    Args:
        outcomes: Takes the commands for the driver.
        member: Its place in a pool; None without one.
    """

    def __init__(self, outcomes: RowOutcomes, member: Member | None = None) -> None:
        self._outcomes = outcomes
        self._member = member
        self.refusals = Refusals()
        self.is_stopping = False
        """Whether nothing more is submitted."""
        self.is_halted = False
        """Whether the run has stopped, even with jobs in flight."""
        self.error: StoppedError | None = None
        """Why the run stops early; None if it does not, or if the user stops it."""

    def leave(self) -> None:
        """Submit nothing more, as the user requested."""
        self.is_stopping = True

    def drain(self, error: StoppedError) -> None:
        """Submit nothing more, and stop once the jobs in flight are collected."""
        if not self.is_stopping:
            self.is_stopping = True
            self.error = error
            self._outcomes.decided.append(cmd.Drain(error))

    def halt(self, error: StoppedError) -> None:
        """Stop immediately. An earlier reason to stop is kept."""
        if not self.is_halted:
            self.is_halted = True
            self._outcomes.decided.append(cmd.Halt(self.error or error))

    def is_refused(self, operation: str, error: CallError, now: float) -> bool:
        """A call failed; returns whether it is a refusal that is believed, so that the run stops.

        In a pool, the endpoint leaves instead. The jobs in flight are collected, unless polls or cancels are refused,
        or the API has never answered.
        """
        if error.hint and not self.refusals.has_answered:
            # A web page with a success status may be a passing error of an edge server.
            is_page = isinstance(error, AmbiguousError)
            if is_page and not self.refusals.is_lasting(operation, now):
                return False
            self._refused(RefusedError(error.message, error.hint), now, at_once=True)
            return True
        if not isinstance(error, (DeniedError, NotFoundError)) or not self.refusals.is_believed(operation, error, now):
            return False
        self._refused(refusal(error), now, at_once=operation in _OF_JOBS or not self.refusals.has_answered)
        return True

    def is_doubtful(self, operation: str, since: float, now: float) -> bool:
        """Whether 404s since a time may mean the endpoint rather than a job.

        In a pool another endpoint would run the job again, and this one may come back with it.
        """
        if self._member is None or self.refusals.answered_at > since:
            return False
        self.refusals.is_lasting(operation, now)
        return True

    def _refused(self, error: RefusedError, now: float, *, at_once: bool) -> None:
        if self._member is not None and self._member.leave(error, now):
            return
        if at_once:
            self.halt(error)
        else:
            self.drain(error)
