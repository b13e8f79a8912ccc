"""Real processes that are killed and interrupted at real moments."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.rehearsal import read_lines, write_lines

if TYPE_CHECKING:
    from pathlib import Path

BATCHRUN = [sys.executable, "-m", "batchrun"]
ROWS = 600


@pytest.fixture
def base_url():
    """A local endpoint in a process of its own: 20 workers, 50 ms a job, no limits."""
    command = [*BATCHRUN, "serve", "--worker", "echo", "--port", "0", "--workers", "20", "--latency", "0.05"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        said = server.stderr.readline()
        yield said.split("at ")[1].split("/ID")[0]
        server.terminate()
        assert server.wait(10) == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": f"prompt {n}", "max_tokens": 4} for n in range(ROWS)])
    return tmp_path


def command(folder: Path, base_url: str) -> list[str]:
    return [
        *BATCHRUN,
        *("run", str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl"), "-e", "abc", "--base-url", base_url),
        *("--run-limit", "0", "--status-limit", "0", "-j", "100", "--progress", "none"),
    ]


def start(folder: Path, base_url: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(folder, base_url), stderr=subprocess.PIPE, text=True, env={**os.environ, "RUNPOD_API_KEY": "rpa_SECRET"}
    )


def wait_for_results(folder: Path, count: int) -> None:
    until = time.monotonic() + 30
    path = folder / "out.jsonl"
    while time.monotonic() < until:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.005)
    raise AssertionError(f"no {count} results in time")


def assert_whole(folder: Path) -> None:
    ids = [record["id"] for record in read_lines(folder / "out.jsonl")]
    assert len(ids) == len(set(ids)) == ROWS


def jobs_run(base_url: str) -> int:
    """How many jobs the endpoint has run: what would have been paid for."""
    with urllib.request.urlopen(f"{base_url}/abc/health") as answer:
        return orjson.loads(answer.read())["jobs"]["completed"]


def status(folder: Path) -> dict:
    said = subprocess.run(
        [*BATCHRUN, "status", "--json", str(folder / "out.jsonl.state")], capture_output=True, check=True
    )
    return orjson.loads(said.stdout)


def test_a_process_that_is_killed_at_any_moment_goes_on_with_the_same_command(folder: Path, base_url: str):
    for results in (0, 1, 60, 200, 350):
        process = start(folder, base_url)
        if results:
            wait_for_results(folder, results)
        else:
            time.sleep(0.25)
        process.kill()
        process.communicate()
    process = start(folder, base_url)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    assert_whole(folder)
    standing = status(folder)
    assert (standing["succeeded"], standing["in_flight"], standing["pid"]) == (ROWS, 0, None)
    assert ROWS <= jobs_run(base_url) <= ROWS + standing["counters"].get("unconfirmed", 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_collects_what_is_in_flight_and_the_run_can_go_on(folder: Path, base_url: str, number):
    process = start(folder, base_url)
    wait_for_results(folder, 50)
    process.send_signal(number)
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 130
    assert "interrupted" in said
    assert f"batchrun resume {folder / 'out.jsonl.state'}" in said
    standing = status(folder)
    assert standing["in_flight"] == standing["submitting"] == 0
    assert 0 < standing["succeeded"] < ROWS
    process = subprocess.run(
        [*BATCHRUN, "resume", str(folder / "out.jsonl.state"), "--progress", "none"], capture_output=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert_whole(folder)


def test_the_second_signal_leaves_at_once_and_what_it_left_is_rescued(folder: Path, base_url: str):
    process = start(folder, base_url)
    wait_for_results(folder, 20)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGHUP)
    began = time.monotonic()
    process.communicate(timeout=20)
    assert time.monotonic() - began < 3
    assert process.returncode == 130
    standing = status(folder)
    assert standing["submitting"] == 0, "an answer that was still to come was not waited for"
    process = start(folder, base_url)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    assert_whole(folder)
    assert jobs_run(base_url) == ROWS, "a job in flight was submitted again"


def test_a_second_process_on_the_same_state_file_is_refused(folder: Path, base_url: str):
    first = start(folder, base_url)
    wait_for_results(folder, 1)
    second = start(folder, base_url)
    said = second.communicate(timeout=20)[1]
    assert second.returncode == 2
    assert f"in use by another batchrun (process {first.pid})" in said
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert_whole(folder)


def test_the_key_is_nowhere(folder: Path, base_url: str):
    process = start(folder, base_url)
    said = process.communicate(timeout=60)[1]
    assert "rpa_SECRET" not in said
    for path in folder.iterdir():
        assert b"rpa_SECRET" not in path.read_bytes()
