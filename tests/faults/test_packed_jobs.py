"""Runs whose jobs carry one to eight rows, which die again and again: every row ends exactly once."""

from __future__ import annotations

import time
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

import orjson
import pytest

from batchrun.commands import findings
from batchrun.commands import verify as verification
from batchrun.config import RequestOptions
from batchrun.runs.closing import conclude
from batchrun.runs.driving import drive
from batchrun.runs.opening import open_run
from batchrun.state.reader import StateReader
from tests.support.crashes import Doom, Nights, after_every, at_random
from tests.support.packing import PackedWorker, prompts_in
from tests.support.rehearsal import Listener, hurried, options_for, read_lines, serving, write_lines

if TYPE_CHECKING:
    from pathlib import Path

    from batchrun.config import RunOptions


class PackedNights(Nights):
    """A run of up to some rows a job that is started again until it is over."""

    worker = PackedWorker
    workers = 1

    def __init__(self, folder: Path, rows: int) -> None:
        super().__init__(folder)
        self.options = packed(self.options, rows)

    def prompts_of(self, body: dict) -> list[str]:
        return prompts_in(body["input"])


def packed(options: RunOptions, rows: int) -> RunOptions:
    return replace(
        options,
        request=RequestOptions(default={"max_tokens": 64}),
        scheduler=replace(options.scheduler, pack=rows, pack_check="off"),
    )


def sizes(state: Path) -> set[int]:
    with StateReader(state) as store:
        return {count for (count,) in store.query("SELECT count(*) FROM job_rows GROUP BY job")}


@pytest.mark.parametrize("rows", range(1, 9))
async def test_every_row_of_a_job_has_an_outcome_of_its_own(tmp_path: Path, rows: int):
    nights = PackedNights(tmp_path, rows)
    await nights.until_it_is_over(iter([Doom(10**9, 10**9)]))
    nights.assert_whole()
    assert max(sizes(nights.options.state)) == rows


@pytest.mark.parametrize("calls", range(4, 30))
async def test_a_run_of_packed_jobs_that_dies_at_any_call_to_the_disk_loses_and_doubles_nothing(tmp_path, calls):
    nights = PackedNights(tmp_path, 8)
    await nights.until_it_is_over(crashing_once_in(calls))
    nights.assert_whole()


@pytest.mark.parametrize("rows", [2, 3, 5, 8])
async def test_a_run_of_packed_jobs_that_dies_again_and_again_loses_and_doubles_nothing(tmp_path, rows):
    nights = PackedNights(tmp_path, rows)
    await nights.until_it_is_over(at_random(rows) if rows % 2 else after_every(20))
    nights.assert_whole()
    assert nights.crashes > 0


def crashing_once_in(calls: int):
    """Three sessions that die after so many calls to the disk; the next comes to its end."""
    for _ in range(3):
        yield Doom(calls, 10**9)
    while True:
        yield Doom(10**9, 10**9)


@pytest.mark.parametrize("endpoint", ["local", "ep"])
async def test_a_lost_line_of_a_packed_job_is_made_good_and_the_others_stay(tmp_path: Path, endpoint: str):
    """The job's result is there for half an hour, unless it is of the built-in endpoint, which has forgotten it."""
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": f"p {n}"} for n in range(4)])
    options = packed(options_for(tmp_path, endpoint=endpoint), 4)
    async with serving() as server:
        with open_run(options, Listener(), clock=hurried, wall=time.time) as run:
            conclude(run, await drive(run, server.endpoint.base_url, Random(0)))
        jobs = server.seen["run"]
        kept = [line for line in options.output.read_bytes().splitlines(True) if orjson.loads(line)["id"] != "r2"]
        options.output.write_bytes(b"".join(kept))
        with open_run(options, Listener(), clock=hurried, wall=time.time, repair=True) as run:
            conclude(run, await drive(run, server.endpoint.base_url, Random(0)))
        assert (server.seen["run"] > jobs) == (endpoint == "local")
    assert sorted(record["id"] for record in read_lines(options.output)) == [f"r{n}" for n in range(4)]
    found = verification.verify(options.state)
    assert found.is_whole, findings.render(found)
