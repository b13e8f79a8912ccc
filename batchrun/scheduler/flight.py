"""What the scheduler stores for each row in memory and for each job in flight."""

from __future__ import annotations

from enum import Enum

from batchrun.scheduler.events import Ticket
from batchrun.scheduler.states import Move, RowState, moved

_GAP_S = 2.0
"""A 404 is believed if another one confirms it after this time: edge servers make mistakes, and a new job costs."""
_UNSURE_TIMES = 3
_UNSURE_SPAN_S = 10.0
"""A 404 that is not the API's own JSON is believed if it came this often, over this time."""


class CancelCause(Enum):
    """Why a job is cancelled."""

    USER = "user"
    """The user requested it: its rows return to pending."""
    TIMEOUT = "timeout"
    """It did not end in time: it counts as TIMED_OUT."""


class Row:
    """A row in memory: to be submitted, or of a job in flight."""

    __slots__ = (
        "attempts",
        "is_suspect",
        "is_unconfirmed",
        "kind",
        "most",
        "reasks",
        "retries",
        "row",
        "size_bytes",
        "state",
        "unconfirmed",
    )

    def __init__(self, ticket: Ticket, state: RowState) -> None:
        self.row = ticket.row
        self.attempts = ticket.attempts
        self.retries = ticket.retries
        self.unconfirmed = ticket.unconfirmed
        self.reasks = ticket.reasks
        self.kind = ticket.kind
        self.most = ticket.most
        self.size_bytes = ticket.size_bytes
        self.is_unconfirmed = ticket.home is not None
        """Whether its last submission is unconfirmed: only the same endpoint may know its job."""
        self.state = state
        self.is_suspect = False
        """Whether a job that it shared has failed, and was submitted again as it was."""

    def move(self, move: Move) -> None:
        """Change the row's state.

        Raises:
            IllegalMoveError: the state does not allow the move; nothing has changed.
        """
        self.state = moved(self.state, move, self.row)


class Flight:
    """A job of one or more rows that is in flight or being submitted."""

    __slots__ = (
        "adopted",
        "cancel_queued",
        "cancel_retries",
        "cancelled_before",
        "cancelling",
        "cause",
        "in_progress",
        "job",
        "missing",
        "missing_since",
        "numbers",
        "overdue",
        "polling",
        "refusals",
        "remote_id",
        "rows",
        "seen_at",
        "sequence",
        "submitted_at",
    )

    def __init__(self, job: int, rows: tuple[Row, ...], submitted_at: float) -> None:
        self.job = job
        self.carry(rows)
        self.sequence = 0
        """Its number in the order of submission, from 0."""
        self.remote_id = ""
        self.submitted_at = submitted_at
        self.seen_at = submitted_at
        """When the job was last known not to have ended."""
        self.in_progress = False
        self.missing = 0
        """How many polls in a row were answered with 404."""
        self.missing_since = 0.0
        """When the first of them was."""
        self.adopted = False
        """Whether it is a job of an earlier session that has not been polled yet."""
        self.polling = False
        """Whether it is being polled."""
        self.overdue = False
        """Whether it has exceeded its maximum age."""
        self.cancelled_before = False
        """Whether an earlier session had cancelled it, or was about to."""
        self.cause: CancelCause | None = None
        """Why it is to be cancelled; None if it is not."""
        self.cancel_queued = False
        """Whether it waits to be cancelled; a job is queued for that at most once."""
        self.cancelling = False
        """Whether it is being cancelled."""
        self.refusals = 0
        """How many cancel requests, and polls since it became overdue, got an unusable answer."""
        self.cancel_retries = 0
        """How many times another cancel was scheduled."""

    def carry(self, rows: tuple[Row, ...]) -> None:
        """Set its rows."""
        self.rows = rows
        self.numbers = (rows[0].row,) if len(rows) == 1 else tuple([row.row for row in rows])

    def missed(self, now: float, *, is_sure: bool) -> float:
        """`/status` returned 404; returns after how many seconds to poll again, 0 if the job is believed to be gone.

        Args:
            now: The current time.
            is_sure: Whether the answer is the API's own JSON.
        """
        if not self.missing:
            self.missing_since = now
        self.missing += 1
        times, span_s = (2, _GAP_S) if is_sure else (_UNSURE_TIMES, _UNSURE_SPAN_S)
        rest_s = self.missing_since + span_s - now
        if self.missing >= times and rest_s <= 0:
            return 0.0
        return max(_GAP_S, rest_s if self.missing >= times - 1 else 0.0)
