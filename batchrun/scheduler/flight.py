"""Rows in play, and their jobs in flight: what the scheduler holds of each, and no more."""

from __future__ import annotations

from enum import Enum

from batchrun.scheduler.events import Ticket
from batchrun.scheduler.states import Move, RowState, moved

_GAP_S = 2.0
"""A 404 is believed when another confirms it this much later: an edge may err, and a new job costs money."""
_UNSURE_TIMES = 3
_UNSURE_SPAN_S = 10.0
"""One that is not in the API's own words is believed when it has come so often over so long."""


class CancelCause(Enum):
    """Why a job is cancelled."""

    WISH = "wish"
    """The user wants it: its row is as if it had not been submitted."""
    TIMEOUT = "timeout"
    """It was not over in time: its row counts it as TIMED_OUT."""


class Row:
    """A row in play."""

    __slots__ = ("attempts", "retries", "row", "state", "unconfirmed")

    def __init__(self, ticket: Ticket, state: RowState) -> None:
        self.row = ticket.row
        self.attempts = ticket.attempts
        self.retries = ticket.retries
        self.unconfirmed = ticket.unconfirmed
        self.state = state

    def move(self, move: Move) -> None:
        """Change the row's state by the table.

        Raises:
            IllegalMoveError: the state does not allow the move; nothing has changed.
        """
        self.state = moved(self.state, move, self.row)


class Flight:
    """A job of one or more rows, in flight or on its way there."""

    __slots__ = (
        "adopted",
        "asking",
        "called_off",
        "cancelling",
        "cause",
        "in_progress",
        "job",
        "listed",
        "missing",
        "missing_since",
        "numbers",
        "overdue",
        "place",
        "refusals",
        "remote_id",
        "rows",
        "seen_at",
        "submitted_at",
        "tries",
    )

    def __init__(self, job: int, rows: tuple[Row, ...], submitted_at: float) -> None:
        self.job = job
        self.carry(rows)
        self.place = 0
        self.remote_id = ""
        self.submitted_at = submitted_at
        self.seen_at = submitted_at
        """When the job was last known not to be over."""
        self.in_progress = False
        self.missing = 0
        """How often it was answered with 404 since it was last seen."""
        self.missing_since = 0.0
        """When that was the case first."""
        self.adopted = False
        """Whether it is a job of an earlier session that was not asked after yet."""
        self.asking = False
        """Whether it is being asked after."""
        self.overdue = False
        """Whether it has lived longer than it may."""
        self.called_off = False
        """Whether an earlier session has cancelled it, or was about to."""
        self.cause: CancelCause | None = None
        """Why it is to be cancelled; None: it is not."""
        self.listed = False
        """Whether its turn to be cancelled is still to come: each job has one."""
        self.cancelling = False
        """Whether a cancel is under way."""
        self.refusals = 0
        """How often a cancel, or a question after it became overdue, was answered with nothing of use."""
        self.tries = 0
        """How often it was cancelled without success."""

    def carry(self, rows: tuple[Row, ...]) -> None:
        """Its rows from now on."""
        self.rows = rows
        self.numbers = (rows[0].row,) if len(rows) == 1 else tuple([row.row for row in rows])

    def missed(self, now: float, *, is_sure: bool) -> float:
        """`/status` answered 404; returns in how many seconds to ask again, 0 when the job is believed to be gone.

        Args:
            now: The present.
            is_sure: Whether the answer is in the API's own words.
        """
        if not self.missing:
            self.missing_since = now
        self.missing += 1
        times, span_s = (2, _GAP_S) if is_sure else (_UNSURE_TIMES, _UNSURE_SPAN_S)
        rest_s = self.missing_since + span_s - now
        if self.missing >= times and rest_s <= 0:
            return 0.0
        return max(_GAP_S, rest_s if self.missing >= times - 1 else 0.0)
