"""Jobs with several prompts over HTTP: the local endpoint, another server behind it, and the servers that misbehave."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from batchrun.config import JobPolicy
from batchrun.endpoint.client import EndpointClient
from batchrun.endpoint.protocol import JobStatus, run_body
from batchrun.errors import NotFoundError
from batchrun.local.echo import EchoWorker
from batchrun.local.fleet import Scaling
from batchrun.local.server import LocalEndpoint, LocalOptions
from batchrun.local.smollm2 import SmolLM2Worker, missing, packaged_model
from batchrun.local.upstream import UpstreamWorker
from batchrun.local.workers import Worker, WorkerFailure
from tests.support import packs
from tests.support.fault_server import EXPIRED, KEY, FaultServer, Script, failed, packed
from tests.support.workers import LOST, Spoiling

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS = ["one", "two", "three"]
CHATS = {
    "openai_route": packs.BATCH_ROUTE,
    "openai_input": {"messages": [[{"role": "user", "content": row}] for row in ROWS], "request_id": "p-1"},
}
LIST = {"openai_route": "/v1/completions", "openai_input": {"prompt": ROWS, "request_id": "p-1"}}


@asynccontextmanager
async def answering(worker: Worker, **options: Any):
    """The way from a job's input to its answer, through the local endpoint."""
    async with (
        LocalEndpoint(LocalOptions(**options), worker) as server,
        EndpointClient(server.base_url, "abc", None, connections=8, timeout_s=10) as client,
    ):
        yield lambda request: final(client, request), client


async def final(client: EndpointClient, request: dict):
    job_id = (await client.run(run_body(request, JobPolicy()))).id
    for _ in range(2000):
        answer = await client.status(job_id)
        if answer.status.is_final:
            return answer
        await asyncio.sleep(0.01)
    raise AssertionError("the job did not end")


def indices(output: list[dict]) -> list[int]:
    return [choice["index"] for choice in output[0]["choices"]]


@pytest.mark.parametrize("request_", [CHATS, LIST], ids=["chats", "list"])
async def test_a_pack_comes_back_with_a_choice_for_each_row(request_):
    async with answering(EchoWorker()) as (answer_to, _):
        answer = await answer_to(request_)
    assert (answer.status, indices(answer.output)) == (JobStatus.COMPLETED, [0, 1, 2])
    assert answer.output[0]["id"].endswith("cmpl-p-1")


WRONG = {
    packs.one_short: [0, 1],
    packs.one_more: [0, 1, 2, 3],
    packs.repeated: [0, 1, 0],
    packs.shuffled: [2, 1, 0],
    packs.of_another: [0, 1, 2],
    packs.aborted: [0, 1, 2],
}


@pytest.mark.parametrize("spoil", WRONG)
async def test_an_answer_goes_wrong_in_the_same_way_on_both_servers(spoil):
    async with answering(Spoiling([spoil])) as (answer_to, _):
        spoiled, right = await answer_to(CHATS), await answer_to(CHATS)
    async with fault_server(Script(status=(packed(spoil), packed()))) as (client, server):
        job_id = (await client.run(run_body(CHATS, JobPolicy()))).id
        others = [await client.status(job_id) for _ in range(2)]
    assert server.complaints == []
    for first, second in ((spoiled, right), others):
        assert indices(first.output) == WRONG[spoil]
        assert indices(second.output) == [0, 1, 2]
        assert (first.output[0]["id"] == second.output[0]["id"]) is (spoil is not packs.of_another)
        ends = {choice["finish_reason"] for choice in first.output[0]["choices"]}
        assert ("abort" in ends) is (spoil is packs.aborted)


@asynccontextmanager
async def fault_server(script: Script):
    async with (
        FaultServer({"two": script, "": Script()}) as server,
        EndpointClient(server.base_url, "local", KEY, connections=2, timeout_s=5) as client,
    ):
        yield client, server


FAILURES = [packs.POISONED, packs.NO_ROUTE, packs.AFTER_THE_WORK, str(LOST)]


@pytest.mark.parametrize("error", FAILURES)
async def test_a_pack_fails_as_a_whole(error):
    async with answering(Spoiling([WorkerFailure(error)])) as (answer_to, _):
        assert [(await answer_to(CHATS)).error for _ in range(2)] == [error, None]
    async with fault_server(Script(status=(failed(error), EXPIRED))) as (client, _):
        job_id = (await client.run(run_body(LIST, JobPolicy()))).id
        assert (await client.status(job_id)).error == error
        with pytest.raises(NotFoundError):
            await client.status(job_id)


async def test_a_poisoned_row_fails_whatever_job_it_is_in_and_no_other():
    worker = Spoiling(poison="tw")
    async with answering(worker) as (answer_to, _):
        assert (await answer_to(CHATS)).error == packs.POISONED
        assert (await answer_to({"prompt": "two"})).error == packs.POISONED
        assert (await answer_to({"prompt": ["one", "three"]})).status is JobStatus.COMPLETED
    assert worker.asked == [ROWS, ["two"], ["one", "three"]]


async def test_a_server_without_the_route_says_so_and_answers_single_chats():
    async with answering(Spoiling(has_batches=False)) as (answer_to, _):
        assert (await answer_to(CHATS)).error == packs.NO_ROUTE
        single = {"messages": CHATS["openai_input"]["messages"][0]}
        assert (await answer_to(single)).status is JobStatus.COMPLETED


@asynccontextmanager
async def upstream(answer: Callable[[str, dict], web.Response]):
    """A worker that asks a server which answers by path and body; and what the server has seen."""
    seen: list[tuple[str, dict]] = []

    async def handle(request: web.BaseRequest) -> web.Response:
        if request.method == "GET":
            return web.json_response({"data": [{"id": "m"}]})
        body = await request.json()
        seen.append((request.path, body))
        return answer(request.path, body)

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    worker = UpstreamWorker(f"http://127.0.0.1:{runner.addresses[0][1]}")
    await worker.start()
    try:
        yield worker, seen
    finally:
        await worker.close()
        await runner.cleanup()


def echo_of(path: str, body: dict) -> web.Response:
    try:
        (answer,) = EchoWorker().answer({"openai_route": path, "openai_input": body})
    except WorkerFailure:
        return web.json_response({"error": {"message": "no good"}}, status=400)
    return web.json_response(answer)


async def test_a_pack_is_left_to_an_upstream_that_has_the_route():
    async with upstream(echo_of) as (worker, seen):
        (answer,) = await worker.run(CHATS)
    assert [path for path, _ in seen] == [packs.BATCH_ROUTE]
    assert answer == EchoWorker().answer({**CHATS, "openai_input": {**CHATS["openai_input"], "model": "m"}})[0]


def singly(path: str, body: dict) -> web.Response:
    """A server of single chats that ignores `request_id`."""
    if path == packs.BATCH_ROUTE:
        return web.json_response({"detail": "Not Found"}, status=404)
    return echo_of(path, {**body, "request_id": "ignored"})


async def test_an_upstream_without_the_route_is_asked_singly_and_found_out_once():
    async with upstream(singly) as (worker, seen):
        outputs = [await worker.run(CHATS), await worker.run(CHATS)]
    expected = EchoWorker().answer({**CHATS, "openai_input": {**CHATS["openai_input"], "model": "m"}})
    assert outputs == [expected, expected]
    assert [path for path, _ in seen].count(packs.BATCH_ROUTE) == 1
    assert sorted(body["messages"][0]["content"] for path, body in seen if path != packs.BATCH_ROUTE) == sorted(
        2 * ROWS
    )


async def test_one_chat_that_such_an_upstream_refuses_fails_the_pack():
    def answer(path: str, body: dict) -> web.Response:
        if path != packs.BATCH_ROUTE and body["messages"][0]["content"] == "two":
            return web.json_response({"error": {"message": "too long"}}, status=400)
        return singly(path, body)

    def nothing(path: str, body: dict) -> web.Response:
        return singly(path, body) if path == packs.BATCH_ROUTE else web.json_response({"choices": []})

    for served, said in ((answer, "HTTP 400: .*too long"), (nothing, "the answer has no choice")):
        async with upstream(served) as (worker, _):
            with pytest.raises(WorkerFailure, match=said):
                await worker.run(CHATS)
            with pytest.raises(WorkerFailure, match=r"HTTP 400: .*n > 1"):
                await worker.run({**CHATS, "openai_input": {**CHATS["openai_input"], "n": 2}})


async def test_health_shows_the_workers_that_the_autoscaler_starts_and_stops():
    scaling = Scaling("request-count", 2, idle_timeout_s=0.05)
    options = {"workers": 5, "latency_s": 0.3, "cold_start_s": 0.2, "scaling": scaling}
    async with answering(EchoWorker(), **options) as (_, client):

        async def soon(completed: int, *workers: int) -> None:
            """Wait until so many jobs have ended, and so many workers start, are ready and at work."""
            for _ in range(2000):
                health = await client.health()
                if (health.completed, health.initializing, health.ready, health.running) == (completed, *workers):
                    return
                await asyncio.sleep(0.01)
            raise AssertionError(health)

        await soon(0, 0, 0, 0)
        for _ in range(5):
            await client.run(run_body(LIST, JobPolicy()))
        await soon(0, 3, 0, 0)
        await soon(0, 0, 3, 3)
        await soon(5, 0, 0, 0)


@pytest.mark.slow
async def test_the_real_model_says_the_same_to_a_row_of_a_pack_as_to_the_row_alone():
    lack = missing(None)
    if lack:
        pytest.skip(f"{lack[0]}: {lack[1]}")
    worker = SmolLM2Worker(packaged_model())
    await worker.start()
    shared = {"max_tokens": 3, "temperature": 0, "return_token_ids": True}
    chats = [[{"role": "user", "content": f"What is {number} + 1?"}] for number in range(2)]
    prompts = [f"{number} + 1 =" for number in range(2)]
    try:
        for packed_, singles in (
            (
                {"openai_route": packs.BATCH_ROUTE, "openai_input": {"messages": chats, "request_id": "p", **shared}},
                [{"openai_input": {"messages": chat, **shared}} for chat in chats],
            ),
            (
                {"prompt": prompts, "sampling_params": {"request_id": "p", **shared}},
                [{"prompt": prompt, "sampling_params": shared} for prompt in prompts],
            ),
        ):
            (pack,) = await worker.run(packed_)
            alone = [(await worker.run(single))[0] for single in singles]
            assert pack["choices"] == [{**one["choices"][0], "index": row} for row, one in enumerate(alone)]
            assert pack["id"].endswith("cmpl-p")
            assert pack["usage"]["total_tokens"] == sum(one["usage"]["total_tokens"] for one in alone)
            made = sum(len(choice["token_ids"]) for choice in pack["choices"])
            assert made == pack["usage"]["completion_tokens"] == 6
        with pytest.raises(WorkerFailure, match="HTTP 400"):
            await worker.run({"prompt": [*prompts, "word " * 9000]})
    finally:
        await worker.close()
