"""Programs that use the Python API, in processes that are killed, interrupted and cancelled at real moments."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from batchrun.state.reader import StateReader
from tests.support.claims import assert_adds_up
from tests.support.command import KEYED, batchrun
from tests.support.jobs import jobs, jobs_run
from tests.support.rehearsal import read_lines
from tests.support.waiting import wait_for_lines

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 300
STREAM = """
import asyncio, sys, batchrun

async def requests():
    for n in range(300):
        await asyncio.sleep(0)
        yield {"id": f"r{n}", "prompt": f"prompt {n}"} if n % 3 else f"prompt {n % 50}"

async def main():
    async for record in batchrun.stream(
        requests(), endpoint="abc", base_url=sys.argv[1], state=sys.argv[2], concurrency=40
    ):
        print(record["id"], flush=True)

try:
    asyncio.run(main())
except batchrun.BatchrunError as error:
    sys.exit(f"{type(error).__name__}: {error.message}")
"""
NOTEBOOK = """
import asyncio, sys, batchrun

async def cell():
    summary = batchrun.run(
        [{"prompt": f"prompt {n}"} for n in range(300)],
        endpoint="abc", base_url=sys.argv[1], state=sys.argv[2], output=sys.argv[2] + ".out.jsonl",
        concurrency=40, progress="plain", on_interrupt=sys.argv[3],
    )
    print(summary.outcome, summary.in_flight, flush=True)

asyncio.run(cell())
"""


def start(program: str, url: str, state: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, url, str(state), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=KEYED)


def test_a_stream_that_is_killed_again_and_again_gives_each_record_once_and_pays_once(tmp_path: Path, base_url: str):
    state, rng = tmp_path / "s.state", random.Random(3)
    for results in (0, 1, 20, 60, 110, 160):
        process = start(STREAM, base_url, state)
        if results:
            wait_for_lines(tmp_path / "s.results.jsonl", results)
        time.sleep(rng.uniform(0, 0.3 if results else 0.5))
        process.kill()
        process.communicate()
    process = start(STREAM, base_url, state)
    ids, words = process.communicate(timeout=60)
    assert process.returncode == 0, words
    assert len(ids.split()) == len(set(ids.split())) == ROWS
    assert len(read_lines(tmp_path / "s.state.requests.jsonl")) == ROWS
    assert_adds_up(state)
    with StateReader(state) as store:
        unconfirmed = store.counters().get("unconfirmed", 0)
    assert ROWS <= jobs_run(base_url) <= ROWS + unconfirmed


def test_an_interrupted_stream_collects_what_is_in_flight_and_continues(tmp_path: Path, base_url: str):
    state = tmp_path / "s.state"
    process = start(STREAM, base_url, state)
    wait_for_lines(tmp_path / "s.results.jsonl", 50)
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in words
    with StateReader(state) as store:
        counts = store.counts()
        assert (counts[1], counts[2]) == (0, 0), "something is in flight still"
    process = start(STREAM, base_url, state)
    ids, words = process.communicate(timeout=60)
    assert process.returncode == 0, words
    assert len(set(ids.split())) == jobs_run(base_url) == ROWS
    assert_adds_up(state)


def test_a_stream_is_cancelled_from_outside(tmp_path: Path, base_url: str):
    state = tmp_path / "s.state"
    # Far more than can be over before the command has started, however slow the machine.
    process = start(STREAM.replace("range(300)", "range(50_000)"), base_url, state)
    wait_for_lines(tmp_path / "s.results.jsonl", 20)
    done = batchrun("cancel", state, "--progress", "none", env=KEYED)
    assert done.returncode == 0, done.stderr
    _, words = process.communicate(timeout=20)
    assert words == "RunInterrupted: the run was cancelled by another process\n"
    assert (jobs(base_url)["inQueue"], jobs(base_url)["inProgress"]) == (0, 0)
    assert_adds_up(state)


@pytest.mark.parametrize("policy", ["drain", "leave"])
def test_an_interrupted_cell_of_a_notebook_leaves_as_it_was_told_to(tmp_path: Path, base_url: str, policy: str):
    state = tmp_path / "n.state"
    process = start(NOTEBOOK, base_url, state, policy)
    wait_for_lines(tmp_path / "n.state.out.jsonl", 30)
    process.send_signal(signal.SIGINT)
    words, _ = process.communicate(timeout=20)
    outcome, in_flight = words.split()
    assert outcome == "interrupted"
    assert (int(in_flight) > 0) == (policy == "leave")
    assert_adds_up(state)
