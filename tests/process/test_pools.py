"""A pool whose process is killed, and that resumes with another pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.claims import assert_adds_up, assert_each_id_once
from tests.support.command import KEYED, batchrun, start, status
from tests.support.rehearsal import read_lines, write_lines
from tests.support.waiting import wait_for_lines

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 300


def killed(folder: Path, base_url: str, endpoints: str) -> None:
    write_lines(folder, [{"id": f"r{n}", "prompt": f"prompt {n}", "max_tokens": 4} for n in range(ROWS)])
    process = start(folder, base_url, f"--endpoint={endpoints}")
    wait_for_lines(folder / "out.jsonl", 40)
    process.kill()
    process.communicate()


def test_a_pool_that_is_killed_continues_with_one_more_endpoint(tmp_path: Path, base_url: str):
    killed(tmp_path, base_url, "one,two")
    process = start(tmp_path, base_url, "--endpoint=three,two,one")
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    assert_each_id_once(tmp_path / "out.jsonl", ROWS)
    assert_adds_up(tmp_path / "out.jsonl.state")
    assert {each["endpoint"] for each in status(tmp_path)["endpoints"]} == {"one", "two", "three"}
    assert {record["job"]["endpoint"] for record in read_lines(tmp_path / "out.jsonl")} == {"one", "two", "three"}


def test_a_killed_pool_loses_an_endpoint_only_with_its_jobs_given_up(tmp_path: Path, base_url: str):
    killed(tmp_path, base_url, "one,two")
    process = start(tmp_path, base_url, "--endpoint=one")
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 2, said
    assert "endpoint two has" in said
    assert "--abandon" in said
    process = start(tmp_path, base_url, "--endpoint=one", "--abandon")
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    assert_each_id_once(tmp_path / "out.jsonl", ROWS)
    assert_adds_up(tmp_path / "out.jsonl.state")


def test_the_jobs_of_a_pool_are_cancelled_and_resumed_where_they_are(tmp_path: Path, base_url: str):
    killed(tmp_path, base_url, "one,two")
    done = batchrun("cancel", tmp_path / "out.jsonl.state", "--progress", "none", env=KEYED)
    assert done.returncode == 0, done.stderr
    assert status(tmp_path)["in_flight"] == 0
    done = batchrun("resume", tmp_path / "out.jsonl.state", "--progress", "none", env=KEYED)
    assert done.returncode == 0, done.stderr
    assert_each_id_once(tmp_path / "out.jsonl", ROWS)
    assert_adds_up(tmp_path / "out.jsonl.state")
