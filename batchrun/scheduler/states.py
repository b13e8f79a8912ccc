"""The states of a row, the table of moves between them, and the function that applies it.

    PENDING ──submit──> SUBMITTING ──accept──> SUBMITTED ──succeed──> SUCCEEDED
       ^                    │                     │
       ├───requeue──────────┤<────────────────────┤
       │                    ├──hold──> HELD       │
       └──retry── FAILED <──┴────────fail─────────┘

A row is SUBMITTING from when the intent is on disk until the answer is; after a crash, such a row is an unconfirmed
submission. A SUBMITTING row may also succeed: if the crash came between the results file and the state file.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum

from batchrun.errors import IllegalMoveError


class RowState(IntEnum):
    """The state of a row. The state file stores these numbers."""

    PENDING = 0
    """Never submitted, or waiting to be submitted again."""
    SUBMITTING = 1
    """The intent to submit is on disk, the answer is not: a job may exist."""
    SUBMITTED = 2
    """Its job's ID is known, and the job is not known to have ended."""
    SUCCEEDED = 3
    """Its result is in the results file."""
    FAILED = 4
    """It ended without a result."""
    HELD = 5
    """Its submission is unconfirmed, and the user wants such rows held."""

    @property
    def is_open(self) -> bool:
        """Whether the run still has to process the row."""
        return self <= RowState.SUBMITTED


class Move(StrEnum):
    """What makes a row change its state."""

    SUBMIT = "submit"
    ACCEPT = "accept"
    REQUEUE = "requeue"
    SUCCEED = "succeed"
    FAIL = "fail"
    HOLD = "hold"
    RETRY = "retry"


MOVES: dict[RowState, dict[Move, RowState]] = {
    RowState.PENDING: {Move.SUBMIT: RowState.SUBMITTING},
    RowState.SUBMITTING: {
        Move.ACCEPT: RowState.SUBMITTED,
        Move.REQUEUE: RowState.PENDING,
        Move.SUCCEED: RowState.SUCCEEDED,
        Move.FAIL: RowState.FAILED,
        Move.HOLD: RowState.HELD,
    },
    RowState.SUBMITTED: {
        Move.REQUEUE: RowState.PENDING,
        Move.SUCCEED: RowState.SUCCEEDED,
        Move.FAIL: RowState.FAILED,
    },
    RowState.SUCCEEDED: {},
    RowState.FAILED: {Move.RETRY: RowState.PENDING},
    RowState.HELD: {Move.RETRY: RowState.PENDING},
}
"""State -> move -> next state. A move that is missing here is illegal."""


def moved(state: RowState, move: Move, row: int) -> RowState:
    """The state after a move.

    Raises:
        IllegalMoveError: the table has no such move.
    """
    try:
        return MOVES[state][move]
    except KeyError:
        raise IllegalMoveError(f"row {row} is {state.name} and cannot {move.value}") from None
