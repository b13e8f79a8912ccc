"""Runs whose rows share jobs that end early: by their guards, by the time of the check; and rows that are run again."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from batchrun.commands.verify import verify
from batchrun.config import GuardOptions, HaltOptions, RequestOptions
from batchrun.local.workers import WorkerFailure
from batchrun.results.conditions import Conditions
from batchrun.runs.choosing import Selection, choose
from batchrun.runs.closing import conclude
from batchrun.runs.driving import drive
from batchrun.runs.opening import open_run
from batchrun.runs.superseding import Redo
from tests.support import packs
from tests.support.claims import assert_adds_up
from tests.support.rehearsal import (
    Listener,
    Rehearsal,
    hurried,
    options_for,
    read_lines,
    rehearse,
    serving,
    write_lines,
)
from tests.support.workers import Answering, Spoiling

if TYPE_CHECKING:
    from pathlib import Path

ASK = RequestOptions(default={"max_tokens": 64})
CHAT = replace(ASK, chat=True)
PACKED = {"pack": 4, "pack_check": "off", "concurrency": 4}
UNHALTED = HaltOptions(automatic=False)


def lines(count: int) -> list[dict]:
    return [{"id": f"r{n}", "prompt": f"p {n}"} for n in range(count)]


async def packed(folder: Path, base_url: str, **given: Any) -> Rehearsal:
    return await rehearse(folder, base_url, **{"request": ASK, "scheduler": PACKED, **given})


def assert_all_once(folder: Path, count: int) -> None:
    records = read_lines(folder / "out.jsonl")
    assert sorted(record["id"] for record in records) == sorted(f"r{n}" for n in range(count))
    assert all(record["text"] == f"p {record['id'][1:]}" for record in records)
    assert verify(folder / "out.jsonl.state").is_whole


async def test_a_budget_that_is_spent_stops_a_run_with_shared_jobs_and_more_money_ends_it(tmp_path):
    write_lines(tmp_path, lines(400))
    worker = Spoiling()
    async with serving(worker=worker, workers=2, latency_s=0.05) as server:
        # A dollar for a second by the client's clock, by which a job takes 1.5 s: 400 rows alone would be 300 dollars.
        guards = GuardOptions(price_per_hour=3600.0, max_cost=40.0, halt=UNHALTED)
        stopped = await packed(tmp_path, server.endpoint.base_url, guards=guards)
        assert stopped.summary.outcome == "stopped"
        assert "the budget is reached" in stopped.summary.reason
        assert stopped.summary.in_flight == 0
        assert 0 < stopped.summary.succeeded < 400, "on a slow machine the time of workers passes, too"
        assert_adds_up(tmp_path / "out.jsonl.state")
        more = replace(guards, max_cost=4000.0)
        ended = await packed(tmp_path, server.endpoint.base_url, guards=more)
    assert ended.summary.exit_code == 0
    assert_all_once(tmp_path, 400)
    assert sum(map(len, worker.asked)) == 400, "nothing was paid for twice"


async def test_a_deadline_stops_a_run_with_shared_jobs_and_the_next_session_ends_it(tmp_path):
    write_lines(tmp_path, lines(400))
    worker = Spoiling()
    async with serving(worker=worker, workers=2, latency_s=0.05) as server:
        guards = GuardOptions(deadline_s=30.0)  # one second: the clock is hurried
        stopped = await packed(tmp_path, server.endpoint.base_url, guards=guards)
        assert "no time is left before the deadline" in stopped.summary.reason
        assert 0 < stopped.summary.succeeded < 400
        assert_adds_up(tmp_path / "out.jsonl.state")
        ended = await packed(tmp_path, server.endpoint.base_url)
    assert ended.summary.exit_code == 0
    assert_all_once(tmp_path, 400)
    assert sum(map(len, worker.asked)) == 400


@pytest.mark.parametrize("outcome", ["they fail again", "they succeed"])
async def test_rows_that_are_run_again_share_jobs_with_the_changed_request(tmp_path, outcome):
    write_lines(tmp_path, lines(40))
    asked: list[tuple[int, int]] = []

    def answer(request: dict) -> Any:
        body = packs.request_of(request)[1]
        prompts = packs.prompts_of(request)
        asked.append((len(prompts), body["max_tokens"]))
        output = packs.right(request)
        for choice in output[0]["choices"]:
            choice["text"] = choice["text"].removeprefix("to ")
            choice["finish_reason"] = "length" if body["max_tokens"] == 64 else "stop"
        if body["max_tokens"] == 99 and outcome == "they fail again":
            return WorkerFailure(packs.POISONED)
        return output

    state = tmp_path / "out.jsonl.state"
    async with serving(worker=Answering(answer)) as server:
        first = await packed(tmp_path, server.endpoint.base_url)
        assert first.summary.truncated == 40
        before = len(asked)
        rows = choose(
            state, Selection(Conditions(("finish_reason=length",)), [(f"ids:{n}", f"r{n}") for n in range(18)])
        )
        options = options_for(tmp_path, request=ASK, scheduler=PACKED)
        with open_run(options, Listener(), clock=hurried, wall=time.time, redo=Redo(rows, {"max_tokens": 99})) as run:
            summary = conclude(run, await drive(run, server.endpoint.base_url, Random(0)))
    again = Counter(asked[before:])
    assert {most for _, most in again} == {99}
    assert again[4, 99] >= 3, "they shared jobs"
    assert (summary.failed, summary.succeeded) == ((18, 22) if outcome == "they fail again" else (0, 40))
    assert verify(state).is_whole
    if outcome == "they succeed":
        assert_all_once(tmp_path, 40)
        assert sum(size for size, _ in asked[before:]) == 18


# the time of the check


async def checked(folder: Path, *, jump_s: float = 0.0, **given: Any) -> tuple[Rehearsal, Counter[str]]:
    """A run with the check, whose first five jobs, those of the check, are never answered.

    The time jumps while it waits for them.
    """
    write_lines(folder, lines(16))
    held: set[str] = set()
    seen: Counter[str] = Counter()

    async def fault(request: web.BaseRequest, operation: str) -> web.StreamResponse | None:
        seen[operation] += 1
        job = request.path.split("/")[4] if operation in ("status", "cancel") else ""
        if operation == "status" and (job in held or len(held) < 5):
            held.add(job)
            return web.json_response({"id": job, "status": "IN_QUEUE"})
        return None

    def clock() -> float:
        return hurried() + jump_s * (seen["status"] > 5)

    options = options_for(folder, request=ASK, scheduler={**PACKED, "pack_check": "on"}, **given)
    listener = Listener()
    async with serving(fault) as server:
        with open_run(options, listener, clock=clock, wall=time.time) as run:
            summary = conclude(run, await drive(run, server.endpoint.base_url, Random(0)))
    return Rehearsal(summary, read_lines(options.output), [], listener), seen


async def test_a_check_without_an_answer_ends_and_the_run_continues_with_its_jobs_cancelled(tmp_path):
    run, seen = await checked(tmp_path, jump_s=900.0)
    assert any("the check got no answers in time" in message for message in run.listener.messages)
    assert seen["cancel"] == 5
    assert run.summary.exit_code == 0
    assert run.summary.packed_jobs > 0
    assert_all_once(tmp_path, 16)


async def test_a_deadline_counts_from_the_beginning_of_the_check(tmp_path):
    run, seen = await checked(tmp_path, guards=GuardOptions(deadline_s=30.0))
    assert seen["cancel"] == 5
    assert "no time is left before the deadline (30 s after the start)" in run.summary.reason
    assert (run.summary.exit_code, run.summary.not_run, seen["run"]) == (4, 16, 5)


# an endpoint that cannot do it any more


@pytest.mark.parametrize("after", [0, 4])
async def test_an_endpoint_of_a_pool_that_lacks_the_route_or_loses_it_is_named(tmp_path, after):
    write_lines(tmp_path, lines(200))
    jobs: Counter[str] = Counter()
    sent: dict[str, str] = {}

    async def fault(request: web.BaseRequest, operation: str) -> web.StreamResponse | None:
        endpoint = request.path.split("/")[2]
        if operation == "run":
            body = await request.json()
            is_batch = body["input"].get("openai_route") == packs.BATCH_ROUTE
            jobs[endpoint] += is_batch
            if is_batch and endpoint == "B" and jobs["B"] > after:
                job = f"failed-{jobs['B']}"
                sent[job] = endpoint
                return web.json_response({"id": job, "status": "IN_QUEUE"})
        job = request.path.split("/")[4] if operation == "status" else ""
        if job in sent:
            return web.json_response({"id": job, "status": "FAILED", "error": packs.NO_ROUTE})
        return None

    async with serving(fault, workers=4, latency_s=0.02) as server:
        pool = {"endpoint": "A", "pool": ("A", "B")}
        run = await packed(tmp_path, server.endpoint.base_url, request=CHAT, **pool)
    assert run.summary.exit_code == 0
    said = [message for message in run.listener.messages if "jobs of several rows" in message]
    how = "no longer answers" if after else "does not answer"
    assert len(said) == 1
    assert said[0].startswith(f"endpoint B: --pack: the endpoint {how} jobs of several rows (its model server has no")
