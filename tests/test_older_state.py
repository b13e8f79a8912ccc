"""A state file of an earlier version: looked at as it is, and brought up to date by the run that goes on with it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from batchrun.local.echo import EchoWorker
from batchrun.prompts.shapes import READING
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


NEWLY_READ = [
    {"prompt": "one", "max_tokens": 5, "documents": ["a"], "temperature": None},
    {"prompt": "two", "max_tokens": 5, "user": "u", "seed": 3.0},
]


async def test_a_run_goes_on_asking_as_it_began(tmp_path: Path, monkeypatch):
    write_lines(tmp_path, NEWLY_READ[:1])
    state = tmp_path / "out.jsonl.state"
    asked: list[dict] = []

    class Asked(EchoWorker):
        def answer(self, request: dict) -> object:
            asked.append(request)
            return super().answer(request)

    async with serving(worker=Asked()) as server:
        with monkeypatch.context() as before:
            before.setattr("batchrun.intake.READING", 1)
            await rehearse(tmp_path, server.endpoint.base_url)
        with closing(sqlite3.connect(state)) as db:
            db.execute("DELETE FROM settings WHERE name = 'reading'")
            db.commit()
        write_lines(tmp_path, NEWLY_READ)
        again = await rehearse(tmp_path, server.endpoint.base_url)
    assert asked == [
        {"prompt": "one", "sampling_params": {"max_tokens": 5, "temperature": None}},
        {"prompt": "two", "sampling_params": {"max_tokens": 5, "seed": 3.0}},
    ]
    assert again.summary.succeeded == 2
    assert any("`user` is not sent: this run began" in text for text in again.listener.messages)
    assert verify(state).is_whole


async def test_a_new_run_of_the_same_lines_asks_for_all_that_they_say(tmp_path: Path):
    write_lines(tmp_path, NEWLY_READ)
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url)
    with closing(sqlite3.connect(tmp_path / "out.jsonl.state")) as db:
        assert db.execute("SELECT value FROM settings WHERE name = 'reading'").fetchone()[0] == str(READING).encode()
