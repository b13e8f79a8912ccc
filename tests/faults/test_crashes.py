"""A run that dies again and again, at every call to the disk and at every request, and is started again each time."""

from __future__ import annotations

import time
from contextlib import suppress
from itertools import chain
from random import Random
from typing import TYPE_CHECKING

import pytest

from batchrun.runs.closing import conclude
from batchrun.runs.driving import drive
from batchrun.runs.opening import open_run
from tests.support.claims import assert_adds_up
from tests.support.crashes import Crash, Doom, Doomed, Nights, after_every, at_random
from tests.support.rehearsal import Listener, hurried, options_for, read_lines, rehearse, serving, write_lines
from tests.support.workers import Picky

if TYPE_CHECKING:
    pass


@pytest.mark.parametrize("calls", [12, 14, 17, 20, 24, 29, 35, 42])
async def test_a_run_that_dies_after_every_kth_call_to_the_disk_loses_nothing_and_doubles_nothing(tmp_path, calls):
    nights = Nights(tmp_path)
    await nights.until_it_is_over(after_every(calls))
    nights.assert_whole()
    assert nights.crashes > 0


@pytest.mark.parametrize("seed", range(6))
async def test_a_run_that_dies_at_random_calls_and_requests_loses_nothing_and_doubles_nothing(tmp_path, seed):
    nights = Nights(tmp_path)
    await nights.until_it_is_over(at_random(seed))
    nights.assert_whole()
    assert nights.crashes > 0


@pytest.mark.parametrize("calls", range(8, 33))
async def test_rows_that_share_a_job_are_each_answered_once_wherever_the_run_dies(tmp_path, calls):
    nights = Nights(tmp_path, copies=5)
    await nights.until_it_is_over(chain([Doom(calls, 10**9)] * 2, at_random(calls)))
    nights.assert_whole()
    assert nights.crashes > 0


async def test_answers_that_were_cut_off_are_taken_from_the_one_that_was_written(tmp_path):
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": "bad", "metadata": n} for n in range(8)])
    options, listener = options_for(tmp_path, dedupe=True), Listener()
    async with serving(worker=Picky()) as server:
        await rehearse(tmp_path, server.endpoint.base_url, dedupe=True)
    async with serving() as server:
        with suppress(Crash), open_run(options, Listener(), clock=hurried, wall=time.time) as run:
            run.store.retry_failed(())
            doom = Doom(2, 10**9)
            run.results.update({number: Doomed(file, doom) for number, file in run.results.items()})
            await drive(run, server.endpoint.base_url, Random(0))
        assert 1 < options.output.read_bytes().count(b"\n") < 8
        with open_run(options, listener, clock=hurried, wall=time.time) as run:
            summary = conclude(run, await drive(run, server.endpoint.base_url, Random(0)))
            statuses = run.store.query("SELECT status FROM jobs ORDER BY job")
        assert server.seen["run"] == 1
    assert statuses == [("FAILED",), ("COMPLETED",)]
    assert (summary.succeeded, summary.shared, summary.input_tokens) == (8, 7, 1)
    assert any("rows that get the answer to an equal request" in message for message in listener.messages)
    results = read_lines(options.output)
    assert sorted((record["id"], record["metadata"]) for record in results) == [(f"r{n}", n) for n in range(8)]
    assert_adds_up(options.state)
