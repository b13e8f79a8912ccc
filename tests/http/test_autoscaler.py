"""Jobs of many rows against an endpoint whose workers follow the jobs: what the run says when they are too few."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from batchrun.commands.status import read_status, render
from batchrun.config import RequestOptions
from batchrun.local.fleet import Scaling
from tests.support.rehearsal import Rehearsal, rehearse, serving, write_lines

if TYPE_CHECKING:
    from pathlib import Path


async def scaled(folder: Path, scaling: Scaling, **scheduler: object) -> Rehearsal:
    """400 rows; the client's clock is fast, so that a job of 3 s takes 90 s for it."""
    write_lines(folder, [{"id": f"r{n}", "prompt": f"p {n}"} for n in range(400)])
    async with serving(workers=5, jobs_per_worker=30, latency_s=3.0, scaling=scaling) as server:
        return await rehearse(
            folder,
            server.endpoint.base_url,
            request=RequestOptions(default={"max_tokens": 64}),
            scheduler={"pack_check": "off", "concurrency": None, **scheduler},
        )


@pytest.mark.parametrize("rule", ["queue-delay", "request-count"])
async def test_a_run_whose_shared_jobs_all_go_to_one_worker_says_so_and_what_to_do(tmp_path, rule):
    run = await scaled(tmp_path, Scaling(rule, 30, workers_min=1), pack=64)
    assert len({record["job"]["worker_id"] for record in run.results}) == 1
    (found,) = run.summary.few_jobs
    assert (found.running, found.idle, found.endpoint) == (1, 0, "")
    assert found.share > 0.8
    assert any(message.startswith("--pack: 1 worker is at work, for") for message in run.listener.messages)
    status = render(read_status(tmp_path / "out.jsonl.state"))
    assert "too few jobs for the workers: 1.0 workers at work and 0.0 idle on average" in status


async def test_a_run_that_keeps_all_workers_busy_says_nothing(tmp_path):
    run = await scaled(tmp_path, Scaling("request-count", 8, workers_min=1), pack=4)
    assert len({record["job"]["worker_id"] for record in run.results}) > 1
    assert run.summary.few_jobs == []
    assert not any("autoscaler" in message for message in run.listener.messages)
