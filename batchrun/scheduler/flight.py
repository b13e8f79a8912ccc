"""A row in play, and its job in flight: what the scheduler holds of each, and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchrun.scheduler.states import Move, RowState, moved

if TYPE_CHECKING:
    from batchrun.scheduler.events import Ticket


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
    """A row's job in flight, or on its way there."""

    __slots__ = (
        "adopted",
        "in_progress",
        "job",
        "missing",
        "place",
        "remote_id",
        "row",
        "seen_at",
        "submitted_at",
    )

    def __init__(self, job: int, row: Row) -> None:
        self.job = job
        self.row = row
        self.place = 0
        self.remote_id = ""
        self.submitted_at = 0.0
        self.seen_at = 0.0
        """When the job was last known not to be over."""
        self.in_progress = False
        self.missing = False
        """Whether the last answer was a 404."""
        self.adopted = False
        """Whether it is a job of an earlier session that was not asked after yet."""
