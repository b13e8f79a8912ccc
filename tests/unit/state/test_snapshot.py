from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from batchrun.errors import StateError
from batchrun.state.records import SourceRecord
from batchrun.state.snapshot import StateSnapshot
from batchrun.state.staging import StagedLine, merge, stage
from batchrun.state.store import Store

if TYPE_CHECKING:
    from pathlib import Path

IDS = ["a", "a\0b", "12", "\u00e9\U0001f600", 'q"\\']


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "run.state"
    with Store(path) as store:
        stage(store, [StagedLine(row_id, False, 1, n, n, 1, b"d") for n, row_id in enumerate(IDS, 1)])
        merge(store, [SourceRecord(1, "a", "/a", "/a", "", 1)], whole=True, limit=None)
    return path


def test_rows_are_found_by_whatever_text_their_id_is(state: Path):
    with StateSnapshot(state) as snapshot:
        found = snapshot.find(["none", *IDS, "a\0"])
    assert [row and row.row for row in found] == [None, 1, 2, 3, 4, 5, None]


def test_what_is_written_afterwards_is_not_seen(state: Path):
    with StateSnapshot(state) as snapshot, Store(state) as store:
        with store.transaction() as db:
            db.execute("UPDATE rows SET state = 3")
            db.execute("DELETE FROM rows WHERE row > 2")
        assert [row.state for row in snapshot.scan()] == [0] * 5
        assert snapshot.last_row() == 5


@pytest.mark.parametrize("at", range(0, 12288, 512))
def test_a_damaged_state_file_never_ends_in_a_traceback(state: Path, at: int):
    data = bytearray(state.read_bytes())
    data[at : at + 64] = b"\x92" * len(data[at : at + 64])
    state.write_bytes(data)
    try:
        with StateSnapshot(state) as snapshot:
            if not snapshot.damage():
                list(snapshot.scan())
    except StateError as error:
        assert error.hint  # noqa: PT017 - either way is fine, a traceback is not
