"""Whole runs over HTTP under guard: breaker, canary, budget, deadline, timeouts, cost, manifest."""

from __future__ import annotations

import asyncio
import hashlib
import time
from random import Random
from typing import TYPE_CHECKING

import orjson
import pytest
from aiohttp import web

from batchrun.config import GuardOptions, HaltOptions, SchedulerOptions
from batchrun.local.echo import EchoWorker
from batchrun.runs.closing import conclude
from batchrun.runs.driving import drive
from batchrun.runs.manifest import manifest_path
from batchrun.runs.opening import open_run
from tests.support.rehearsal import UNLIMITED, Listener, options_for, read_lines, rehearse, serving, write_lines
from tests.support.workers import Broken

if TYPE_CHECKING:
    from pathlib import Path

PROMPTS = [{"id": f"r{n}", "prompt": f"prompt {n}"} for n in range(60)]


async def test_a_deployment_that_refuses_everything_stops_the_run_after_twenty_rows(tmp_path: Path):
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": "x"} for n in range(200)])
    async with serving(worker=Broken()) as server:
        stopped = await rehearse(tmp_path, server.endpoint.base_url, scheduler={"concurrency": 10})
    summary = stopped.summary
    assert (summary.outcome, summary.exit_code) == ("stopped", 4)
    assert "the first 20 finished rows all failed" in summary.reason
    assert 20 <= summary.failed <= 20 + 10
    assert summary.in_flight == 0, "what was in flight is collected"
    assert [(group.kind, "no such model" in group.example_message) for group in summary.failures] == [
        ("bad_request", True)
    ]
    assert any("stopping: the first 20 finished rows" in message for message in stopped.listener.messages)
    async with serving() as server:
        again = await rehearse(tmp_path, server.endpoint.base_url, retry=())
    assert (again.summary.exit_code, len(set(again.ids()))) == (0, 200)


async def test_a_share_of_failed_rows_stops_the_run(tmp_path: Path):
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": "x"} for n in range(200)])
    guards = GuardOptions(halt=HaltOptions(share=0.1))
    async with serving(worker=Broken(good=60)) as server:
        stopped = await rehearse(tmp_path, server.endpoint.base_url, scheduler={"concurrency": 4}, guards=guards)
    assert "rows failed (--halt 10%)" in stopped.summary.reason
    assert stopped.summary.succeeded == 60
    assert stopped.summary.failed < 20


async def test_a_canary_that_fails_keeps_the_rest_of_the_money(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    async with serving(worker=Broken(good=2)) as server:
        stopped = await rehearse(tmp_path, server.endpoint.base_url, guards=GuardOptions(canary=3))
        assert server.seen["run"] == 3
    assert "--canary 3" in stopped.summary.reason
    async with serving() as server:
        again = await rehearse(tmp_path, server.endpoint.base_url, guards=GuardOptions(canary=3), retry=())
    assert again.summary.exit_code == 0


async def test_a_job_that_never_ends_is_cancelled_at_the_endpoint_and_its_row_is_tried_again(tmp_path: Path):
    class Stuck(EchoWorker):
        answer = None
        tried = 0

        async def run(self, request):
            self.tried += 1
            if self.tried == 1:
                await asyncio.sleep(3600)
            return "fine"

    write_lines(tmp_path, PROMPTS[:3])
    async with serving(worker=Stuck()) as server:
        rehearsal = await rehearse(
            tmp_path, server.endpoint.base_url, guards=GuardOptions(job_timeout_s=20.0), scheduler={"max_retries": 1}
        )
        assert server.seen["cancel"] == 1
    assert (rehearsal.summary.exit_code, rehearsal.summary.retries) == (0, 1)
    assert rehearsal.summary.calls["cancel"] == 1


async def test_at_its_deadline_a_run_is_gone_and_what_it_left_is_rescued(tmp_path: Path):
    class Slow(EchoWorker):
        answer = None

        async def run(self, request):
            await asyncio.sleep(1.0)
            return "fine"

    write_lines(tmp_path, PROMPTS[:20])
    async with serving(worker=Slow(), workers=20) as server:
        stopped = await rehearse(tmp_path, server.endpoint.base_url, guards=GuardOptions(deadline_s=9.0))
        assert (stopped.summary.exit_code, stopped.summary.in_flight) == (4, 20)
        assert "deadline" in stopped.summary.reason
        again = await rehearse(tmp_path, server.endpoint.base_url)
        assert server.seen["run"] == 20
    assert again.summary.exit_code == 0


async def test_a_budget_stops_the_run_and_a_larger_one_lets_it_continue(tmp_path: Path):
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": "x"} for n in range(400)])
    price = 3600.0
    options = {"scheduler": {"concurrency": 8}}
    async with serving(workers=4, latency_s=0.05) as server:
        guards = GuardOptions(price_per_hour=price, max_cost=100.0)
        stopped = await rehearse(tmp_path, server.endpoint.base_url, guards=guards, **options)
        assert (stopped.summary.exit_code, stopped.summary.in_flight) == (4, 0)
        assert "the budget is reached" in stopped.summary.reason
        assert 50 <= stopped.summary.cost.most <= 200
        assert stopped.summary.not_run > 100
        guards = GuardOptions(price_per_hour=price, max_cost=10_000.0)
        again = await rehearse(tmp_path, server.endpoint.base_url, guards=guards, **options)
    assert again.summary.exit_code == 0
    assert again.summary.cost.most > stopped.summary.cost.most, "the cost is that of all sessions"


async def test_the_cost_is_that_of_the_workers_and_within_five_percent(tmp_path: Path):
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": "x"} for n in range(500)])
    options = options_for(
        tmp_path,
        guards=GuardOptions(price_per_hour=3600.0),
        scheduler={"concurrency": 60},
    )
    async with serving(workers=5, jobs_per_worker=8, latency_s=0.5) as server:
        with open_run(options, Listener(), clock=time.monotonic, wall=time.time) as run:
            summary = conclude(run, await drive(run, server.endpoint.base_url, Random(0)))
        truth = server.endpoint.queue.worker_s(time.monotonic())
    assert summary.exit_code == 0
    assert truth > 25
    assert summary.cost.least == pytest.approx(truth, rel=0.05)
    assert summary.cost.least <= summary.cost.most


async def test_the_manifest_says_what_went_in_and_what_came_out(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    async with serving() as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url, key="rpa_SECRET")
    path = tmp_path / "out.manifest.json"
    assert rehearsal.summary.manifest == path
    raw = path.read_bytes()
    manifest = orjson.loads(raw)
    assert b"rpa_SECRET" not in raw
    for entry, name in ((manifest["inputs"][0], "in.jsonl"), (manifest["results"][0], "out.jsonl")):
        data = (tmp_path / name).read_bytes()
        assert (entry["size_bytes"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert manifest["summary"]["succeeded"] == len(PROMPTS)
    assert manifest["options"]["scheduler"]["max_retries"] == SchedulerOptions().max_retries
    assert [session["outcome"] for session in manifest["sessions"]] == ["finished"]
    assert manifest["endpoint"] == "local"


def test_a_manifest_stands_beside_its_results_or_in_their_folder(tmp_path: Path):
    file = options_for(tmp_path, output=tmp_path / "x.results.jsonl")
    folder = options_for(tmp_path, output=tmp_path / "folder", output_is_folder=True)
    assert manifest_path(file) == tmp_path / "x.results.manifest.json"
    assert manifest_path(folder) == tmp_path / "folder" / "batchrun.manifest.json"


async def test_a_password_in_the_url_is_not_in_the_manifest(tmp_path: Path):
    write_lines(tmp_path, PROMPTS[:1])
    options = options_for(tmp_path, endpoint="abc", base_url="https://user:hidden@proxy.example/v2")
    async with serving() as server:
        with open_run(options, Listener(), clock=time.monotonic, wall=time.time) as run:
            conclude(run, await drive(run, server.endpoint.base_url, Random(0)))
    raw = (tmp_path / "out.manifest.json").read_bytes()
    assert b"hidden" not in raw
    assert orjson.loads(raw)["base_url"] == "https://proxy.example/v2"


async def test_an_outage_is_said_in_one_line_and_so_is_its_end(tmp_path: Path):
    since = time.monotonic()

    async def fault(request, operation):
        down = 0.3 < time.monotonic() - since < 1.5
        return web.Response(status=502, text="<title>Bad gateway</title>") if down else None

    write_lines(tmp_path, [{"id": f"r{n}", "prompt": "x"} for n in range(300)])
    async with serving(fault, workers=8, latency_s=0.02) as server:
        rehearsal = await rehearse(
            tmp_path, server.endpoint.base_url, scheduler={"concurrency": 16, "limits": UNLIMITED}
        )
    assert (rehearsal.summary.exit_code, len(set(rehearsal.ids()))) == (0, 300)
    said = [message for message in rehearsal.listener.messages if "Bad gateway" in message or "slowed" in message]
    assert len(said) == 1
    assert any(message.startswith("continuing after") for message in rehearsal.listener.messages)
    assert read_lines(tmp_path / "out.errors.jsonl") == []


async def test_a_session_whose_error_file_cannot_be_written_has_ended_all_the_same(tmp_path: Path):
    write_lines(tmp_path, [{"id": "r0", "prompt": "x"}])

    async def fault(*_: object) -> None:
        (tmp_path / "out.errors.jsonl").mkdir(exist_ok=True)

    async with serving(fault, Broken()) as server:
        stopped = await rehearse(tmp_path, server.endpoint.base_url)
    assert stopped.summary.exit_code == 4
    manifest = orjson.loads((tmp_path / "out.manifest.json").read_bytes())
    assert [session["outcome"] for session in manifest["sessions"]] == ["stopped"]
