"""Real processes that are killed and interrupted at real moments."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.claims import assert_adds_up, assert_each_id_once
from tests.support.command import KEYED, batchrun, served, start, status
from tests.support.jobs import jobs, jobs_run
from tests.support.rehearsal import read_lines, write_lines
from tests.support.waiting import wait_for, wait_for_lines

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 600


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": f"prompt {n}", "max_tokens": 4} for n in range(ROWS)])
    return tmp_path


def assert_whole(folder: Path, rows: int = ROWS) -> None:
    assert_each_id_once(folder / "out.jsonl", rows)
    assert_adds_up(folder / "out.jsonl.state")


def cancel(folder: Path) -> subprocess.CompletedProcess[str]:
    return batchrun("cancel", str(folder / "out.jsonl.state"), "--progress", "none", env=KEYED)


def test_a_process_that_is_killed_at_any_moment_continues_with_the_same_command(folder: Path, base_url: str):
    for results in (0, 1, 60, 200, 350):
        process = start(folder, base_url)
        if results:
            wait_for_lines(folder / "out.jsonl", results)
        else:
            time.sleep(0.25)
        process.kill()
        process.communicate()
        if results:
            assert_adds_up(folder / "out.jsonl.state")
    process = start(folder, base_url)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    assert_whole(folder)
    standing = status(folder)
    assert (standing["succeeded"], standing["in_flight"], standing["pid"]) == (ROWS, 0, None)
    assert ROWS <= jobs_run(base_url) <= ROWS + standing["counters"].get("unconfirmed", 0)


def test_a_run_of_shared_jobs_that_is_killed_continues_with_another_number_of_rows_a_job(folder: Path, base_url: str):
    process = start(folder, base_url, "--pack", "16", "--pack-check", "off", "-j", "8")
    wait_for_lines(folder / "out.jsonl", 100)
    process.kill()
    process.communicate()
    assert_adds_up(folder / "out.jsonl.state")
    process = start(folder, base_url, "--pack", "3")
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    assert_whole(folder)
    assert all(record["text"] == f"prompt {record['id'][1:]}" for record in read_lines(folder / "out.jsonl"))
    counters = status(folder)["counters"]
    assert counters["input_tokens"] == counters["output_tokens"] == 2 * ROWS
    assert jobs_run(base_url) < ROWS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_collects_what_is_in_flight_and_the_run_can_continue(folder: Path, base_url: str, number):
    process = start(folder, base_url)
    wait_for_lines(folder / "out.jsonl", 50)
    process.send_signal(number)
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 130
    assert "interrupted" in said
    assert f"batchrun resume {folder / 'out.jsonl.state'}" in said
    standing = status(folder)
    assert standing["in_flight"] == standing["submitting"] == 0
    assert 0 < standing["succeeded"] < ROWS
    process = batchrun("resume", folder / "out.jsonl.state", "--progress", "none")
    assert process.returncode == 0, process.stderr
    assert_whole(folder)


def test_the_second_signal_leaves_at_once_and_what_it_left_is_rescued(folder: Path, base_url: str):
    process = start(folder, base_url)
    wait_for_lines(folder / "out.jsonl", 20)
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
    first = start(folder, base_url, "-j", "5")  # long enough for another process to start meanwhile
    wait_for_lines(folder / "out.jsonl", 1)
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


def test_twenty_kills_at_random_moments_under_load_lose_and_double_nothing(tmp_path: Path, base_url: str):
    rows, rng = 3000, random.Random(7)
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": f"prompt {n}", "max_tokens": 4} for n in range(rows)])
    for _ in range(20):
        process = start(tmp_path, base_url)
        time.sleep(rng.uniform(0.2, 0.9))
        process.kill()
        process.communicate()
    process = start(tmp_path, base_url)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    assert_whole(tmp_path, rows)
    unconfirmed = status(tmp_path)["counters"].get("unconfirmed", 0)
    assert rows <= jobs_run(base_url) <= rows + unconfirmed
    assert unconfirmed <= 20 * 128, "a kill leaves two submissions a connection without an answer at most"


def test_leaving_a_thousand_jobs_in_flight_takes_less_than_two_seconds(tmp_path: Path):
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": f"prompt {n}", "max_tokens": 4} for n in range(3000)])
    with served(latency_s=1.0) as base_url:
        process = start(tmp_path, base_url, "-j", "1000", "--on-interrupt", "detach")
        wait_for_lines(tmp_path / "out.jsonl", 20)
        wait_for(lambda: jobs(base_url)["inQueue"] > 900)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        said = process.communicate(timeout=20)[1]
        assert time.monotonic() - began < 2.0
        assert process.returncode == 130
        assert "jobs still at the endpoint: " in said
        assert f"batchrun resume {tmp_path / 'out.jsonl.state'}" in said
        assert status(tmp_path)["in_flight"] > 800


def test_an_interrupt_cancels_on_request_and_leaves_nothing_at_the_endpoint(folder: Path, base_url: str):
    process = start(folder, base_url, "--on-interrupt", "cancel")
    wait_for_lines(folder / "out.jsonl", 50)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "cancelling the 100 jobs in flight" not in said, "--progress none is silent"
    assert (jobs(base_url)["inQueue"], jobs(base_url)["inProgress"]) == (0, 0)
    standing = status(folder)
    assert (standing["in_flight"], standing["failed"]) == (0, 0)
    assert standing["counters"]["calls_cancel"] > 0
    process = start(folder, base_url)
    assert process.communicate(timeout=60) is not None
    assert process.returncode == 0
    assert_whole(folder)


def test_a_run_that_continues_is_cancelled_from_outside(folder: Path, base_url: str):
    process = start(folder, base_url, "-j", "5")  # long enough for another process to start meanwhile
    wait_for_lines(folder / "out.jsonl", 50)
    done = cancel(folder)
    assert done.returncode == 0, done.stderr
    said = process.communicate(timeout=10)[1]
    assert process.returncode == 130, said
    assert (jobs(base_url)["inQueue"], jobs(base_url)["inProgress"]) == (0, 0)


def test_a_cancel_of_a_process_that_does_not_answer_ends_and_says_so(folder: Path, base_url: str):
    process = start(folder, base_url)
    wait_for_lines(folder / "out.jsonl", 20)
    process.send_signal(signal.SIGSTOP)
    done = cancel(folder)
    assert done.returncode == 2
    assert f"in use by process {process.pid}, which does not respond" in done.stderr
    assert f"kill -CONT {process.pid}" in done.stderr
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode == 0, "what was asked for in vain is not done later"
    assert_whole(folder)


def test_a_killed_run_leaves_a_small_log_that_its_state_file_does_not_go_without(folder: Path, base_url: str):
    process = start(folder, base_url)
    wait_for_lines(folder / "out.jsonl", 300)
    process.kill()
    process.communicate()
    log = folder / "out.jsonl.state-wal"
    assert 0 < log.stat().st_size < 4_000_000
    assert status(folder)["log"] == str(log)
    log.rename(folder / "moved")
    process = start(folder, base_url)
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 2
    assert "out.jsonl.state-wal is missing" in said
    (folder / "moved").rename(log)
    process = start(folder, base_url)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert_whole(folder)


def test_what_a_killed_run_has_left_is_cancelled_even_when_its_input_is_gone(folder: Path, base_url: str):
    process = start(folder, base_url)
    wait_for_lines(folder / "out.jsonl", 50)
    process.kill()
    process.communicate()
    (folder / "in.jsonl").rename(folder / "kept.jsonl")
    done = cancel(folder)
    assert done.returncode == 0, done.stderr
    assert "cancelled:" in done.stderr
    (folder / "kept.jsonl").rename(folder / "in.jsonl")
    assert status(folder)["in_flight"] == 0
    process = start(folder, base_url)
    assert process.communicate(timeout=60) is not None
    assert process.returncode == 0
    assert_whole(folder)


def test_a_closed_terminal_leaves(folder: Path, base_url: str):
    process = start(folder, base_url)
    wait_for_lines(folder / "out.jsonl", 20)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=5)
    assert process.returncode == 130
    assert status(folder)["in_flight"] > 0
    assert (folder / "out.manifest.json").exists()


def test_a_sweep_over_endpoints_that_is_interrupted_and_then_killed_gives_each_of_its_rows_once(
    folder: Path, base_url: str
):
    sweep = ("--sweep", "endpoint=aa,bb", "--sweep", "temperature=0,0.5")
    write_lines(folder, [{"id": f"r{n}", "prompt": f"prompt {n}"} for n in range(ROWS // 4)])
    for number, count in ((signal.SIGTERM, 100), (signal.SIGKILL, 350)):
        process = start(folder, base_url, *sweep)
        wait_for_lines(folder / "out.jsonl", count)
        process.send_signal(number)
        process.communicate(timeout=30)
        assert process.returncode == (130 if number is signal.SIGTERM else -signal.SIGKILL)
    process = start(folder, base_url, *sweep)
    process.communicate(timeout=60)
    assert process.returncode == 0
    records = read_lines(folder / "out.jsonl")
    assert {record["id"] for record in records} == {
        f"r{n}/endpoint={endpoint}/temperature={temperature}"
        for n in range(ROWS // 4)
        for endpoint in ("aa", "bb")
        for temperature in (0, 0.5)
    }
    assert all(record["job"]["endpoint"] == record["variant"]["endpoint"] for record in records)
    assert_whole(folder)
