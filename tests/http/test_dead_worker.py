"""One dead worker of two, over HTTP: its failures are told as its own, and cost few submissions and hardly a row."""

from __future__ import annotations

import asyncio
import time
from random import Random
from typing import TYPE_CHECKING

import pytest

from batchrun.config import GuardOptions, HaltOptions
from batchrun.display.summary_text import render
from batchrun.local.echo import EchoWorker
from batchrun.local.queue import JobQueue
from batchrun.local.server import LocalEndpoint, LocalOptions
from batchrun.local.workers import worker_failure
from batchrun.runs.closing import conclude
from batchrun.runs.driving import drive
from batchrun.runs.opening import open_run
from tests.support.rehearsal import Listener, options_for, read_lines, write_lines

if TYPE_CHECKING:
    from pathlib import Path

    from batchrun.local.queue import Job

ROWS = 250
DEAD = 0
TEXT = str(worker_failure("Request to vLLM failed: Cannot connect to host 127.0.0.1:8000 ssl:default"))


class HealthyFirst(JobQueue):
    """A queue that gives a job to the dead worker only while the others are busy."""

    def _occupy(self, now: float) -> int:
        self._free.rotate(-next((n for n, slot in enumerate(self._free) if slot != DEAD), 0))
        return super()._occupy(now)


class HalfDead(LocalEndpoint):
    """An endpoint whose first worker fails each job within milliseconds."""

    def _start(self, job: Job, *, lost: bool) -> None:
        if job.slot == DEAD:
            asyncio.get_running_loop().call_later(0.002, self._fail, job, job.run)
        else:
            super()._start(job, lost=lost)

    def _fail(self, job: Job, run: int) -> None:
        self.queue.fail(job, run, TEXT, self._clock())
        self._dispatch()


@pytest.mark.parametrize("queue", [HealthyFirst, JobQueue])
async def test_one_dead_worker_of_two_is_named_and_costs_few_submissions(tmp_path: Path, queue):
    """On a busy machine no worker is idle in time; what a dead one costs where that is so is proven in virtual time."""
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": f"prompt {n}"} for n in range(ROWS)])
    guards = GuardOptions(halt=HaltOptions(automatic=False))
    options = options_for(tmp_path, scheduler={"concurrency": None}, guards=guards)
    async with HalfDead(LocalOptions(workers=2, latency_s=0.05), EchoWorker()) as endpoint:
        endpoint.queue = queue(2, 1, name="local")
        with open_run(options, Listener(), clock=time.monotonic, wall=time.time, api_key=None) as run:
            summary = conclude(run, await drive(run, endpoint.base_url, Random(0)))
    assert summary.failed <= ROWS // 100
    assert len(read_lines(options.output)) == ROWS - summary.failed
    assert summary.calls["run"] <= 2.5 * ROWS
    (group,) = summary.workers
    assert group.worker_id == f"local-{DEAD}"
    assert group.failed == group.jobs == summary.calls["run"] - summary.succeeded
    assert f"worker local-0 failed {group.jobs:,} of {group.jobs:,} jobs; other workers: none" in render(summary)
    assert summary.to_json()["workers"] == [{"worker_id": "local-0", "failed": group.jobs, "jobs": group.jobs}]
