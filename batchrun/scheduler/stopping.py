"""How a run ends before its last row: it submits nothing more and collects what is in flight, or it stops at once."""

from __future__ import annotations

from batchrun.errors import AmbiguousError, CallError, DeniedError, NotFoundError, RefusedError, StoppedError
from batchrun.scheduler import commands as cmd
from batchrun.scheduler.refusal import Refusals, refusal
from batchrun.scheduler.settlement import Settlement

_OF_JOBS = ("status", "cancel")
"""Operations without which nothing that is in flight can be collected."""


class Stopping:
    """Whether a run is about to end, and why.

    Args:
        settlement: Takes the commands that tell the driver.
    """

    def __init__(self, settlement: Settlement) -> None:
        self._settlement = settlement
        self.refusals = Refusals()
        self.is_stopping = False
        """Whether nothing more is submitted."""
        self.is_halted = False
        """Whether the run is over, whatever is in flight."""
        self.error: StoppedError | None = None
        """Why the run stops before its end; None: it does not, or the user stops it."""

    def leave(self) -> None:
        """Submit nothing more, on the user's wish."""
        self.is_stopping = True

    def drain(self, error: StoppedError) -> None:
        """Submit nothing more, and stop when what is in flight is collected."""
        if not self.is_stopping:
            self.is_stopping = True
            self.error = error
            self._settlement.decided.append(cmd.Drain(error))

    def halt(self, error: StoppedError) -> None:
        """Stop at once, for an earlier reason if there is one."""
        if not self.is_halted:
            self.is_halted = True
            self._settlement.decided.append(cmd.Halt(self.error or error))

    def is_refused(self, operation: str, error: CallError, now: float) -> bool:
        """A call failed; returns whether that is a refusal that is believed, and the run ends by it.

        What is in flight is collected, unless that is what is refused, or the API has never answered.
        """
        if error.hint and not self.refusals.has_answered:
            # A page that came with a success may be an edge's that is about to go.
            is_page = isinstance(error, AmbiguousError)
            if is_page and not self.refusals.is_lasting(operation, now):
                return False
            self.halt(RefusedError(error.message, error.hint))
            return True
        if not isinstance(error, (DeniedError, NotFoundError)) or not self.refusals.is_believed(operation, error, now):
            return False
        if operation in _OF_JOBS or not self.refusals.has_answered:
            self.halt(refusal(error))
        else:
            self.drain(refusal(error))
        return True
