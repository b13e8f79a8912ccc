from __future__ import annotations

import itertools

import pytest

from batchrun.errors import IllegalMoveError
from batchrun.scheduler.states import MOVES, Move, RowState, moved


@pytest.mark.parametrize(("state", "move"), list(itertools.product(RowState, Move)))
def test_only_the_moves_of_the_table_are_legal(state: RowState, move: Move):
    if move in MOVES[state]:
        assert moved(state, move, 7) is MOVES[state][move]
    else:
        with pytest.raises(IllegalMoveError, match=f"row 7 is {state.name} and cannot {move.value}"):
            moved(state, move, 7)


def test_a_row_that_succeeded_never_moves_again():
    assert MOVES[RowState.SUCCEEDED] == {}


def test_every_state_can_be_reached_from_pending():
    reached, new = set(), {RowState.PENDING}
    while new:
        reached |= new
        new = {after for state in new for after in MOVES[state].values()} - reached
    assert reached == set(RowState)


def test_the_numbers_in_the_state_file_are_fixed():
    assert [state.name for state in RowState] == ["PENDING", "SUBMITTING", "SUBMITTED", "SUCCEEDED", "FAILED", "HELD"]
    assert [int(state) for state in RowState] == list(range(6))
    assert [state.is_open for state in RowState] == [True, True, True, False, False, False]
