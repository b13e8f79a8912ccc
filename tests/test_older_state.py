"""A state file of an earlier version: looked at as it is, and brought up to date by the run that goes on with it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from batchrun.standing import look
from batchrun.state.schema import SCHEMA_VERSION
from batchrun.verification import verify
from tests.rehearsal import rehearse, serving, write_lines

if TYPE_CHECKING:
    from pathlib import Path

LINES = [{"id": f"r{n}", "prompt": f"prompt {n}"} for n in range(6)]


def version_of(state: Path) -> int:
    with closing(sqlite3.connect(state)) as db:
        return db.execute("PRAGMA user_version").fetchone()[0]


def make_old(state: Path, version: int) -> None:
    added = {2: ("result",), 1: ("result", "variant", "same_as")}[version]
    columns = " ".join(f"ALTER TABLE rows DROP COLUMN {column};" for column in added)
    with closing(sqlite3.connect(state)) as db:
        db.executescript(f"{columns} PRAGMA user_version = {version};")


@pytest.mark.parametrize("version", [1, 2])
async def test_who_only_looks_changes_nothing(tmp_path: Path, version: int):
    write_lines(tmp_path, LINES)
    state = tmp_path / "out.jsonl.state"
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url)
    make_old(state, version)
    assert look(state).succeeded == 6
    assert verify(state).is_whole
    assert version_of(state) == version


@pytest.mark.parametrize("version", [1, 2])
async def test_a_run_resumes_it_and_brings_it_up_to_date(tmp_path: Path, version: int):
    write_lines(tmp_path, LINES[:4])
    state = tmp_path / "out.jsonl.state"
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url)
        make_old(state, version)
        write_lines(tmp_path, LINES)
        again = await rehearse(tmp_path, server.endpoint.base_url)
        assert server.seen["run"] == 6
    assert sorted(again.ids()) == [f"r{n}" for n in range(6)]
    assert version_of(state) == SCHEMA_VERSION
    assert verify(state).is_whole
