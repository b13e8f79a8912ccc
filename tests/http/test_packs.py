"""Whole runs whose rows share jobs, over real HTTP, with workers that go wrong in all the ways that concern them."""

from __future__ import annotations

import time
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from aiohttp import web

from batchrun.config import AnswerOptions, GuardOptions, RequestOptions, SweepOptions
from batchrun.errors import StoppedError
from batchrun.local.workers import WorkerFailure
from batchrun.prompts.schemas import read_schema
from batchrun.runs.closing import conclude
from batchrun.runs.driving import drive
from batchrun.runs.opening import open_run
from batchrun.state.reader import StateReader
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
from tests.support.workers import LOST, Answering, Spoiling

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ASK = RequestOptions(default={"max_tokens": 64})
CHAT = RequestOptions(default={"max_tokens": 64}, chat=True)
PACKED = {"pack": 4, "pack_check": "off", "concurrency": 4}


def lines(count: int = 48, **more: Any) -> list[dict]:
    return [{"id": f"r{n}", "prompt": f"p {n}", **more} for n in range(count)]


async def packed(
    folder: Path, worker: object | None = None, *, rows: list[dict] | None = None, pack: object = 4, **given: Any
) -> Rehearsal:
    """A run with up to four rows a job, against the local endpoint with this worker."""
    write_lines(folder, lines() if rows is None else rows)
    scheduler = {**PACKED, "pack": pack, **given.pop("scheduler", {})}
    async with serving(worker=worker) as server:
        return await rehearse(folder, server.endpoint.base_url, **{"request": ASK, "scheduler": scheduler, **given})


def assert_whole(folder: Path, run: Rehearsal, rows: int = 48) -> None:
    """Each row has ended once, with the answer to its own prompt."""
    ended = [record["id"] for record in [*run.results, *run.errors]]
    assert sorted(ended) == sorted(f"r{n}" for n in range(rows))
    for record in run.results:
        assert record["text"] == f"p {record['id'][1:]}"
    assert_adds_up(folder / "out.jsonl.state")


def sizes(worker: Spoiling) -> list[int]:
    return [len(prompts) for prompts in worker.asked]


def jobs_with(worker: Spoiling, text: str) -> list[list[str]]:
    return [prompts for prompts in worker.asked if text in prompts]


# what goes wrong with a job


@pytest.mark.parametrize("request_", [ASK, CHAT], ids=["prompts", "chats"])
@pytest.mark.parametrize("spoil", [packs.one_short, packs.one_more, packs.repeated, packs.of_another])
async def test_nothing_of_a_wrong_answer_is_written_and_its_rows_are_asked_again_together_once(
    tmp_path, spoil, request_
):
    worker = Spoiling([None, spoil, None, spoil])
    run = await packed(tmp_path, worker, request=request_, rows=lines(200))
    assert_whole(tmp_path, run, 200)
    assert (run.errors, run.summary.separated, run.summary.retries) == ([], 0, 8)
    assert sizes(worker)[:12] == [4] * 12
    assert {record["job"]["attempts"] for record in run.results} == {1, 2}


async def test_an_answer_that_is_wrong_twice_is_asked_for_row_by_row(tmp_path):
    def spoiled(output: packs.Output) -> packs.Output:
        return packs.one_short(output) if "p 5" in str(output) else output

    worker = Spoiling([spoiled] * 100)
    run = await packed(tmp_path, worker)
    assert_whole(tmp_path, run)
    assert [len(prompts) for prompts in jobs_with(worker, "p 5")] == [4, 4, 1]
    assert [len(prompts) for prompts in jobs_with(worker, "p 9")] == [4]
    assert not run.errors


async def test_the_order_of_the_choices_does_not_matter(tmp_path):
    run = await packed(tmp_path, Spoiling([packs.shuffled] * 100))
    assert_whole(tmp_path, run)
    assert run.summary.retries == 0


async def test_a_row_whose_generation_was_broken_off_is_submitted_again_alone(tmp_path):
    worker = Spoiling([packs.aborted])
    run = await packed(tmp_path, worker)
    assert_whole(tmp_path, run)
    last = worker.asked[0][-1]
    assert [len(prompts) for prompts in jobs_with(worker, last)] == [4, 1]
    assert (run.errors, run.summary.retries) == ([], 1)


@pytest.mark.parametrize("error", [packs.AFTER_THE_WORK, str(LOST)])
async def test_a_job_that_may_succeed_next_time_is_submitted_again_as_it_was(tmp_path, error):
    worker = Spoiling([WorkerFailure(error)])
    run = await packed(tmp_path, worker, rows=lines(200))
    assert_whole(tmp_path, run, 200)
    first = worker.asked[0]
    assert worker.asked.count(first) == 2
    assert (run.errors, run.summary.retries, run.summary.separated) == ([], 4, 0)


async def test_a_prompt_that_is_refused_fails_with_its_own_reason_and_its_neighbours_do_not_notice(tmp_path):
    worker = Spoiling(poison="p 17")
    run = await packed(tmp_path, worker)
    assert_whole(tmp_path, run)
    assert [(error["id"], error["error"]["kind"]) for error in run.errors] == [("r17", "bad_request")]
    assert "maximum context length is 1024" in run.errors[0]["error"]["message"]
    assert [len(prompts) for prompts in jobs_with(worker, "p 17")] == [4, 2, 1]
    assert (run.summary.retries, run.summary.separated) == (0, 6)


async def test_an_endpoint_without_the_route_for_chats_gets_single_ones_and_it_is_said_once(tmp_path):
    worker = Spoiling(has_batches=False)
    run = await packed(tmp_path, worker, request=CHAT)
    assert_whole(tmp_path, run)
    assert not run.errors
    assert sizes(worker).count(4) <= 8
    assert [said for said in run.listener.messages if "each row has a job of its own" in said]
    assert run.summary.retries == 0


@pytest.mark.parametrize("fault", [packs.one_short, LOST, WorkerFailure(packs.AFTER_THE_WORK)])
async def test_without_retries_no_row_is_run_twice(tmp_path, fault):
    worker = Spoiling([None, fault])
    run = await packed(tmp_path, worker, scheduler={"max_retries": 0})
    assert_whole(tmp_path, run)
    assert len(run.errors) == 4
    prompts = [prompt for asked in worker.asked for prompt in asked]
    assert len(prompts) == len(set(prompts)) == 48
    for error in run.errors:
        assert error["job"]["attempts"] == 1


async def test_a_line_that_changes_is_left_out_of_its_job_and_the_others_are_sent(tmp_path):
    """The lines are long, so they are read again when their job is sent."""
    write_lines(tmp_path, lines(40, metadata="x" * 5000))
    polled: list[int] = []

    async def fault(_: Any, operation: str) -> None:
        if operation == "status" and not polled:
            polled.append(1)
            data = (tmp_path / "in.jsonl").read_bytes()
            (tmp_path / "in.jsonl").write_bytes(data.replace(b"p 6", b"P 6").replace(b"p 7", b"P 7"))

    worker = Spoiling()
    async with serving(fault, worker, latency_s=0.2) as server:
        scheduler = {**PACKED, "concurrency": 1}
        run = await rehearse(tmp_path, server.endpoint.base_url, request=ASK, scheduler=scheduler)
    assert {error["id"]: error["status"] for error in run.errors} == {"r6": "INVALID", "r7": "INVALID"}
    assert ["p 4", "p 5"] in worker.asked
    texts = {record["id"]: record["text"] for record in run.results}
    assert texts == {f"r{n}": f"p {n}" for n in range(40) if n not in (6, 7)}


# what the files say


async def test_a_record_has_its_share_of_the_time_and_the_tokens_of_the_job_are_counted_once(tmp_path):
    run = await packed(tmp_path)
    record = next(record for record in run.results if record["id"] == "r2")
    assert record["usage"] == {"input_tokens": None, "output_tokens": None}
    pack = record["job"]["pack"]
    assert (pack["size"], pack["index"], pack["usage"]) == (4, 2, {"input_tokens": 8, "output_tokens": 8})
    assert record["job"]["execution_ms"] == pytest.approx(pack["execution_ms"] / 4, abs=0.01)
    assert (run.summary.input_tokens, run.summary.output_tokens) == (96, 96)
    assert run.summary.packed_rows > run.summary.packed_jobs


async def test_the_tokens_of_each_row_are_exact_if_the_worker_gives_them(tmp_path):
    asked = RequestOptions(default={"max_tokens": 64}, override={"return_token_ids": True})
    run = await packed(tmp_path, request=asked)
    assert {record["usage"]["output_tokens"] for record in run.results} == {2}
    assert (run.summary.input_tokens, run.summary.output_tokens) == (96, 96)


async def test_the_format_of_openai_has_a_body_for_each_row(tmp_path):
    run = await packed(tmp_path, request=CHAT, format="openai")
    for record in run.results:
        body = record["response"]["body"]
        assert len(body["choices"]) == 1
        assert body["choices"][0]["index"] == 0
        assert body["choices"][0]["message"]["content"] == f"p {record['custom_id'][1:]}"
        if pack := record["batchrun"]["job"].get("pack"):
            assert set(body["usage"].values()) == {0}, "readers add them up without checking for null"
            assert pack["usage"]["input_tokens"] == 2 * pack["size"]
    shared = [record for record in run.results if "pack" in record["batchrun"]["job"]]
    assert len({record["response"]["body"]["id"] for record in shared}) == len(shared) > 0


@pytest.mark.parametrize("keeps_others", [True, False])
async def test_a_repair_knows_the_tokens_and_the_times_of_shared_jobs(tmp_path, keeps_others):
    """A line that is lost is made good; if all of a job's are, too."""
    run = await packed(tmp_path)
    lost = {"r4"} if keeps_others else {"r4", "r5", "r6", "r7"}
    output, before = tmp_path / "out.jsonl", executed(tmp_path)
    kept = [line for line in output.read_bytes().splitlines(True) if orjson.loads(line)["id"] not in lost]
    output.write_bytes(b"".join(kept))
    options = options_for(tmp_path, request=ASK, scheduler=PACKED)
    worker = Spoiling()
    async with serving(worker=worker) as server:
        with open_run(options, Listener(), clock=hurried, wall=time.time, repair=True) as opened:
            counted = opened.store.counters()
            conclude(opened, await drive(opened, server.endpoint.base_url, Random(0)))
    assert counted["input_tokens"] == (96 if keeps_others else 88)
    assert sum(map(len, worker.asked)) == len(lost)
    assert executed(tmp_path)[: len(before)] == before or not keeps_others
    again = Rehearsal(run.summary, read_lines(output), [], run.listener)
    assert_whole(tmp_path, again)


def executed(folder: Path) -> list[tuple]:
    with StateReader(folder / "out.jsonl.state") as store:
        return store.query("SELECT job, execution_ms FROM jobs ORDER BY job")


async def test_a_state_that_has_forgotten_its_jobs_learns_their_whole_time_from_the_results(tmp_path):
    await packed(tmp_path, rows=lines(8))
    options = options_for(tmp_path, request=ASK, scheduler=PACKED)
    results = read_lines(options.output)
    options.state.unlink()
    with open_run(options, Listener(), clock=hurried, wall=time.time, repair=True) as run:
        counters = run.store.counters()
    wanted = {
        record["job"]["id"]: record["job"]["pack"]["execution_ms"] for record in results if "pack" in record["job"]
    }
    known = sorted(ms for _, ms in executed(tmp_path))
    assert [ms for ms in sorted(round(ms) for ms in wanted.values()) if ms not in known] == []
    assert (counters["input_tokens"], counters["output_tokens"]) == (16, 16)


# what else a run may ask for


async def test_equal_rows_share_the_answer_of_one_and_different_ones_share_a_job(tmp_path):
    rows = [{"id": f"r{n}", "prompt": f"p {n % 24}"} for n in range(48)]
    worker = Spoiling()
    run = await packed(tmp_path, worker, rows=rows, dedupe=True)
    assert sum(map(len, worker.asked)) == 24
    assert {(record["id"], record["text"]) for record in run.results} == {(f"r{n}", f"p {n % 24}") for n in range(48)}
    assert (run.summary.input_tokens, run.summary.shared) == (48, 24)
    assert_adds_up(tmp_path / "out.jsonl.state")


async def test_rows_of_different_sweep_values_never_share_a_job(tmp_path):
    seen: list[tuple[Any, int]] = []

    def answer(request: dict) -> Any:
        _, body = packs.request_of(request)
        seen.append((body["temperature"], len(packs.prompts_of(request))))
        return packs.right(request)

    sweep = SweepOptions((("temperature", (0, 0.5, 1)),))
    run = await packed(tmp_path, Answering(answer), rows=lines(16), sweep=sweep)
    assert len(run.results) == 48
    assert all(record["text"] == f"to p {record['source']['line'] - 1}" for record in run.results)
    assert {value for value, _ in seen} == {0, 0.5, 1}
    assert max(size for _, size in seen) == 4
    assert_adds_up(tmp_path / "out.jsonl.state")


async def test_samples_with_different_seeds_have_jobs_of_their_own(tmp_path):
    worker = Spoiling()
    run = await packed(tmp_path, worker, rows=lines(4, seed=7), sweep=SweepOptions(repeat=3))
    assert len(run.results) == 12
    assert max(sizes(worker)) <= 4


@pytest.mark.parametrize(
    "given",
    [{"ordered": True}, {"with_request": True}, {"limit": 21}, {"shard": "2/3"}, {"split_think": True}],
    ids=str,
)
async def test_other_options_do_with_shared_jobs_what_they_do_without(tmp_path, given):
    folders = []
    for pack in (1, 4):
        folder = tmp_path / str(pack)
        folder.mkdir()
        await packed(folder, pack=pack, **given)
        assert_adds_up(folder / "out.jsonl.state")
        folders.append(read_lines(folder / "out.jsonl"))
    alone, together = ([without_job(record) for record in records] for records in folders)
    if not given.get("ordered"):
        alone, together = (sorted(records, key=lambda record: record["id"]) for records in (alone, together))
    assert alone == together


def without_job(record: dict) -> dict:
    (body,) = record["output"]
    said = [(choice["index"], choice["text"]) for choice in body["choices"]]
    kept = {key: record[key] for key in record if key not in ("job", "usage", "output", "source")}
    return {**kept, "line": record["source"]["line"], "said": said}


async def test_a_row_that_is_asked_again_is_asked_alone_and_its_tokens_are_counted_once(tmp_path):
    asked: list[list[str]] = []

    def answer(request: dict) -> Any:
        prompts = packs.prompts_of(request)
        asked.append(prompts)
        output = packs.right(request)
        for choice, prompt in zip(output[0]["choices"], prompts, strict=True):
            is_wrong = prompt == "p 2" and len(prompts) > 1
            choice["message"]["content"] = "no" if is_wrong else orjson.dumps({"name": prompt}).decode()
        return output

    request = replace(CHAT, schema=read_schema("name"))
    run = await packed(tmp_path, Answering(answer), request=request, rows=lines(16), scheduler={"reask": 1})
    assert {record["id"]: record["parsed"] for record in run.results}["r3"] == {"name": "p 3"}
    assert len(run.results) == 16
    assert [len(prompts) > 1 for prompts in asked if "p 2" in prompts] == [True]
    (again,) = [prompts for prompts in asked if not all(prompt.startswith("p ") for prompt in prompts)]
    assert len(again) == 1
    assert run.summary.reasks == 1
    total = (run.summary.input_tokens or 0) + run.summary.refused_input_tokens
    assert total == sum(map(len, asked))
    assert_adds_up(tmp_path / "out.jsonl.state")


async def test_the_tokens_of_a_job_whose_answers_are_all_refused_count_as_refused(tmp_path):
    asked = RequestOptions({"max_tokens": 1})
    run = await packed(tmp_path, answers=AnswerOptions(require_text=True), request=asked, rows=lines(16))
    assert len(run.errors) == 16
    assert run.summary.refused_input_tokens == 32
    assert run.summary.input_tokens in (None, 0)


async def test_a_canary_is_no_larger_than_asked_for_and_then_jobs_are_full(tmp_path):
    worker = Spoiling()
    run = await packed(tmp_path, worker, guards=GuardOptions(canary=3))
    assert_whole(tmp_path, run)
    assert sizes(worker)[0] == 3
    assert sizes(worker)[1] == 4


async def test_a_canary_that_is_refused_stops_the_run_after_its_halves(tmp_path):
    worker = Spoiling(poison="p 1")
    run = await packed(tmp_path, worker, guards=GuardOptions(canary=4))
    assert run.summary.outcome == "stopped"
    assert {prompt for prompts in worker.asked for prompt in prompts} == {f"p {n}" for n in range(4)}


async def test_held_rows_are_all_rows_of_the_job_whose_submission_was_not_answered(tmp_path):
    write_lines(tmp_path, lines())
    lost: list[int] = []

    async def fault(request: Any, operation: str) -> None:
        if operation == "run" and not lost:
            lost.append(1)
            await request.read()
            request.transport.abort()

    async with serving(fault) as server:
        scheduler = {**PACKED, "unconfirmed": "hold"}
        run = await rehearse(tmp_path, server.endpoint.base_url, request=ASK, scheduler=scheduler)
    assert (run.summary.held, len(run.results)) == (4, 44)
    assert_adds_up(tmp_path / "out.jsonl.state")


async def test_a_budget_counts_the_time_of_a_job_once(tmp_path):
    guards = GuardOptions(price_per_hour=3600.0, max_cost=1e6)
    run = await packed(tmp_path, guards=guards)
    assert_whole(tmp_path, run)
    assert run.summary.cost is not None


async def test_the_limit_of_jobs_in_flight_counts_jobs(tmp_path):
    run = await packed(tmp_path, scheduler={"concurrency": 2})
    assert max(snapshot.jobs for snapshot in run.listener.snapshots) <= 2
    assert_whole(tmp_path, run)


@pytest.mark.parametrize("later", [1, 2, 7])
async def test_a_run_continues_with_another_number_of_rows_a_job(tmp_path, later):
    first = await packed(tmp_path, limit=None, guards=GuardOptions(canary=6), worker=Spoiling(poison="p 3"))
    assert first.summary.outcome == "stopped"
    worker = Spoiling()
    async with serving(worker=worker) as server:
        scheduler = {**PACKED, "pack": later}
        run = await rehearse(tmp_path, server.endpoint.base_url, request=ASK, scheduler=scheduler, retry=())
    assert_whole(tmp_path, run)
    assert max(sizes(worker)) <= later
    assert not run.errors


async def test_rows_with_the_content_of_files_have_jobs_of_their_own(tmp_path):
    worker = Spoiling()
    run = await packed(tmp_path, worker, request=replace(ASK, inline_files="in_folder"))
    assert_whole(tmp_path, run)
    assert set(sizes(worker)) == {1}


async def test_a_submission_that_is_refused_for_now_is_not_counted_as_a_shared_job(tmp_path):
    write_lines(tmp_path, lines())
    seen: list[int] = []

    async def fault(_: Any, operation: str) -> web.Response | None:
        if operation == "run":
            seen.append(1)
            return web.json_response({}, status=429) if len(seen) % 2 else None
        return None

    worker = Spoiling()
    async with serving(fault, worker) as server:
        run = await rehearse(tmp_path, server.endpoint.base_url, request=ASK, scheduler=PACKED)
    assert_whole(tmp_path, run)
    shared = [size for size in sizes(worker) if size > 1]
    assert (run.summary.packed_jobs, run.summary.packed_rows) == (len(shared), sum(shared))


@pytest.mark.parametrize("more", [{}, {"seed": range(48)}])
async def test_a_run_whose_rows_cannot_share_jobs_says_so(tmp_path, more):
    rows = [{**line, **{key: values[n] for key, values in more.items()}} for n, line in enumerate(lines())]
    run = await packed(tmp_path, rows=rows, request=ASK if more else RequestOptions())
    assert_whole(tmp_path, run)
    assert [said for said in run.listener.messages if "--default max_tokens" in said]
    assert run.summary.packed_jobs == 0


# the check before the run


async def checked(
    folder: Path, worker: object, **given: Any
) -> tuple[Rehearsal | None, list[str], StoppedError | None]:
    write_lines(folder, lines(16))
    options, listener = (
        options_for(folder, **{"request": CHAT, "scheduler": {**PACKED, "pack_check": "on"}, **given}),
        Listener(),
    )
    async with serving(worker=worker) as server:
        with open_run(options, listener, clock=hurried, wall=time.time) as run:
            outcome = await drive(run, server.endpoint.base_url, Random(0))
            summary = conclude(run, outcome)
    results = read_lines(options.output)
    return Rehearsal(summary, results, [], listener), listener.messages, outcome.error


async def test_the_check_compares_four_rows_and_the_run_begins(tmp_path):
    worker = Spoiling()
    run, said, error = await checked(tmp_path, worker)
    assert error is None
    assert sorted(sizes(worker)[:5]) == [1, 1, 1, 1, 4]
    assert "--pack: 4 rows have the same answers together and alone (5 jobs)" in said
    assert_whole(tmp_path, run, 16)


async def test_the_check_is_not_repeated_once_it_has_succeeded(tmp_path):
    await checked(tmp_path, Spoiling())
    write_lines(tmp_path, lines(16) + [{"id": f"n{n}", "prompt": f"n {n}"} for n in range(8)])
    worker = Spoiling()
    options, listener = options_for(tmp_path, request=CHAT, scheduler={**PACKED, "pack_check": "on"}), Listener()
    async with serving(worker=worker) as server:
        with open_run(options, listener, clock=hurried, wall=time.time) as run:
            conclude(run, await drive(run, server.endpoint.base_url, Random(0)))
    assert sum(map(len, worker.asked)) == 8
    assert not [message for message in listener.messages if "--pack" in message]


def differing(change: Callable[[dict, str], None]) -> Answering:
    """A worker that answers otherwise when several rows share a job."""

    def answer(request: dict) -> Any:
        output = packs.right(request)
        if packs.is_pack(request):
            change(output[0]["choices"][1], "x")
        return output

    return Answering(answer)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda choice, _: choice.update(finish_reason="length"), "finish_reason length together, stop alone"),
        (lambda choice, _: choice["message"].update(content="something else altogether"), "together"),
        (lambda choice, _: choice["message"].update(content=""), "together"),
        (lambda choice, _: choice.update(index=0), "none together"),
        (lambda choice, _: choice.update(finish_reason="abort"), "only alone"),
    ],
    ids=["end", "text", "empty", "index", "broken off"],
)
async def test_a_run_whose_rows_are_answered_otherwise_together_than_alone_does_not_begin(tmp_path, change, words):
    run, _, error = await checked(tmp_path, differing(change))
    assert error is not None
    assert words in error.message
    assert "--pack-check off" in error.hint
    assert run.results == []
    assert run.summary.not_run == 16


async def test_a_model_that_chooses_other_words_of_about_the_same_length_may_share_jobs(tmp_path):
    run, said, error = await checked(tmp_path, differing(lambda choice, _: choice["message"].update(content="tw p 1")))
    assert error is None
    assert "not deterministic" in " ".join(said)
    assert len(run.results) == 16


async def test_the_check_falls_back_to_single_rows_if_the_route_is_missing(tmp_path):
    worker = Spoiling(has_batches=False)
    run, said, error = await checked(tmp_path, worker)
    assert error is None
    assert "each row gets a job of its own" in " ".join(said)
    assert sizes(worker).count(4) == 1
    assert_whole(tmp_path, run, 16)


async def test_rows_that_fail_together_and_alone_do_not_stop_the_check(tmp_path):
    run, said, error = await checked(tmp_path, Spoiling(poison="p"))
    assert "their answers were not compared" in " ".join(said)
    assert error is None or "--pack" not in error.message
    assert len(run.results) == 0


async def test_the_check_asks_for_one_short_answer_at_temperature_0(tmp_path):
    asked: list[dict] = []

    def answer(request: dict) -> Any:
        asked.append(packs.request_of(request)[1])
        return packs.right(request)

    request = RequestOptions(default={"max_tokens": 500, "n": 2, "temperature": 1})
    await checked(tmp_path, Answering(answer), request=request)
    assert [(body["max_tokens"], body["n"], body["temperature"]) for body in asked[:5]] == [(64, 1, 0)] * 5
