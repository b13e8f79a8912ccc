"""What holds of a run that is whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchrun.commands import findings
from batchrun.commands.verify import verify
from tests.support.rehearsal import read_lines

if TYPE_CHECKING:
    from pathlib import Path

    from batchrun.commands.findings import Verification


def assert_adds_up(state: Path) -> Verification:
    """`batchrun verify` finds nothing wrong with a state file and its results; what it found."""
    found = verify(state)
    assert found.is_whole, findings.render(found)
    return found


def assert_each_id_once(results: Path, rows: int) -> None:
    """A results file has a line for each of so many rows, each with an id of its own."""
    ids = [record["id"] for record in read_lines(results)]
    assert len(ids) == len(set(ids)) == rows
