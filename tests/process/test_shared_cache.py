"""Real processes that share a cache: none waits for another, and a killed one leaves it intact."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.support.claims import assert_adds_up, assert_each_id_once
from tests.support.command import batchrun, start
from tests.support.jobs import jobs_run
from tests.support.rehearsal import read_lines, write_lines
from tests.support.waiting import wait_for_lines

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

ROWS = 150


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two runs that ask for the same, in opposite order."""
    made = [tmp_path / name for name in ("one", "two")]
    rows = [{"id": f"r{n}", "prompt": f"prompt {n}", "max_tokens": 4, "temperature": 0} for n in range(ROWS)]
    for folder, lines in zip(made, (rows, rows[::-1]), strict=True):
        folder.mkdir()
        write_lines(folder, lines)
    return made


def assert_whole(folder: Path) -> int:
    """Each row has its own answer once; returns how many are from the cache."""
    assert_each_id_once(folder / "out.jsonl", ROWS)
    assert_adds_up(folder / "out.jsonl.state")
    records = read_lines(folder / "out.jsonl")
    assert all(record["text"] == f"prompt {record['id'][1:]}" for record in records)
    return sum("cached" in record for record in records)


def finish(process: subprocess.Popen[str]) -> None:
    said = process.communicate(timeout=100)[1]
    assert process.returncode == 0, said


def test_of_two_processes_on_one_cache_one_is_killed_and_both_come_to_their_end(folders: list[Path], base_url: str):
    cache = folders[0].parent / "answers.cache"
    options = ("--cache", str(cache), "-j", "10")
    one, two = (start(folder, base_url, *options) for folder in folders)
    wait_for_lines(folders[0] / "out.jsonl", 40)
    one.kill()
    one.communicate()
    with closing(sqlite3.connect(cache)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert_adds_up(folders[0] / "out.jsonl.state")
    finish(start(folders[0], base_url, *options))
    finish(two)
    assert sum(map(assert_whole, folders)) > 0  # each found what the other one had stored meanwhile
    assert jobs_run(base_url) < 2 * ROWS
    seen = orjson.loads(batchrun("cache", cache, "--json").stdout)
    assert seen["answers"] == ROWS
    before = jobs_run(base_url)
    third = folders[0].parent / "three"
    third.mkdir()
    (third / "in.jsonl").write_bytes((folders[0] / "in.jsonl").read_bytes())
    finish(start(third, base_url, *options))
    assert assert_whole(third) == ROWS
    assert jobs_run(base_url) == before


def test_a_run_that_only_reads_its_cache_is_killed_at_any_moment_and_continues(folders: list[Path], base_url: str):
    folder, other = folders
    options = ("--cache", str(folder.parent / "answers.cache"))
    finish(start(other, base_url, *options))
    for done in (1, 75):
        process = start(folder, base_url, *options)
        wait_for_lines(folder / "out.jsonl", done)
        process.kill()
        process.communicate()
        assert_adds_up(folder / "out.jsonl.state")
    finish(start(folder, base_url, *options))
    assert assert_whole(folder) == ROWS
    assert jobs_run(base_url) == ROWS
