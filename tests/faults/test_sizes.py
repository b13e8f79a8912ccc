"""Answers that are large, slow, or not the row's own, in whole runs."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from batchrun.commands.status import read_status, render
from tests.support.fault_server import DONE, KEY, Answer, FaultServer, Script, job
from tests.support.rehearsal import rehearse, write_lines

ROWS = [{"id": f"r{n}", "prompt": f"p{n}"} for n in range(8)]
LARGE = 16
MEASURE = """
import asyncio, sys, time
from pathlib import Path
from random import Random
from batchrun.runs.closing import conclude
from batchrun.runs.driving import drive
from batchrun.runs.opening import open_run
from tests.support.rehearsal import Listener, options_for

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

before = peak()
options = options_for(Path(sys.argv[1]), timeout_s=60.0)
with open_run(options, Listener(), clock=time.monotonic, wall=time.time, api_key=sys.argv[3]) as run:
    summary = conclude(run, asyncio.run(drive(run, sys.argv[2], Random(0))))
print(summary.succeeded, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("output", ["x" * 10_000_000, ["é🙂 text " * 100_000] * 7], ids=["ASCII", "emoji"])
async def test_many_results_of_ten_megabytes_stay_below_the_budget(tmp_path: Path, output):
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": f"p{n}"} for n in range(LARGE)])
    large = Answer(json.dumps({"id": "$ID", "status": "COMPLETED", "output": output}, ensure_ascii=False).encode())
    async with FaultServer({"": Script(status=(large,))}) as server:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", MEASURE, str(tmp_path), server.base_url, KEY),
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        said, _ = await child.communicate()
    succeeded, grown_bytes = map(int, said.split())
    assert succeeded == LARGE
    assert grown_bytes < 256_000_000


async def test_an_answer_that_is_too_large_fails_its_row_and_no_other(tmp_path: Path):
    write_lines(tmp_path, ROWS)
    large = Answer(json.dumps({"id": "$ID", "status": "COMPLETED", "output": "x" * 25_000_001}).encode())
    async with FaultServer({"": Script(), "p2": Script(status=(large, DONE))}) as server:
        rehearsal = await rehearse(tmp_path, server.base_url, key=KEY)
    assert (rehearsal.summary.exit_code, rehearsal.summary.succeeded, server.seen["run"]) == (3, 7, len(ROWS))
    (error,) = rehearsal.errors
    assert (error["id"], error["error"]["kind"]) == ("r2", "too_large")
    assert "larger than 25 MB" in error["error"]["message"]


async def test_a_job_is_not_polled_again_while_its_answer_is_arriving(tmp_path: Path):
    write_lines(tmp_path, ROWS[:1])
    async with FaultServer({"": Script(status=(Answer(DONE.body, fault="slow"),))}) as server:
        rehearsal = await rehearse(tmp_path, server.base_url, key=KEY, timeout_s=1.0)
    assert (rehearsal.summary.exit_code, server.seen["status"]) == (0, 1)


async def test_the_answers_of_other_jobs_are_counted_and_shown(tmp_path: Path):
    write_lines(tmp_path, ROWS)
    other = Answer(b'{"id": "3f0c-p1-1-u1", "status": "COMPLETED", "output": "of another"}')
    async with FaultServer({"": Script(), "p2": Script(status=(other, other, DONE))}) as server:
        rehearsal = await rehearse(tmp_path, server.base_url, key=KEY)
    assert {record["text"] for record in rehearsal.results} == {"fine"}
    assert (rehearsal.summary.exit_code, rehearsal.summary.mismatched) == (0, 2)
    assert "dropped answers that belonged to other jobs: 2" in render(read_status(tmp_path / "out.jsonl.state"))


async def test_a_submission_that_gets_the_id_of_a_job_in_flight_is_unconfirmed_and_the_other_row_keeps_its_job(
    tmp_path: Path,
):
    write_lines(tmp_path, ROWS)
    scripts = {"p0": Script(status=(*[job("IN_PROGRESS")] * 6, DONE), job_id="same"), "p5": Script()}
    scripts["p5"] = Script(run=(Answer(b'{"id": "same", "status": "IN_QUEUE"}'), job("IN_QUEUE")))
    async with FaultServer({"": Script(), **scripts}) as server:
        rehearsal = await rehearse(tmp_path, server.base_url, key=KEY, scheduler={"concurrency": 2})
    records = {record["id"]: record["job"] for record in rehearsal.results}
    assert (rehearsal.summary.exit_code, rehearsal.summary.unconfirmed, rehearsal.summary.mismatched) == (0, 1, 1)
    assert (records["r0"]["id"], records["r0"]["attempts"]) == ("same", 1)
    assert (records["r5"]["id"], records["r5"]["possible_duplicate"]) == ("3f0c-p5-2-u1", True)
