"""The local endpoint over HTTP, read with the client's own parser: the two share the wire format."""

from __future__ import annotations

import asyncio
import io
from contextlib import asynccontextmanager

import aiohttp
import orjson
import pytest

from batchrun.config import JobPolicy
from batchrun.endpoint.client import EndpointClient
from batchrun.endpoint.protocol import JobStatus, run_body
from batchrun.errors import DeniedError, NotFoundError, RejectedError, ThrottledError, UsageError
from batchrun.local.echo import EchoWorker
from batchrun.local.server import LocalEndpoint, LocalOptions


@asynccontextmanager
async def endpoint(key: str | None = None, **options):
    async with (
        LocalEndpoint(LocalOptions(**options), EchoWorker()) as server,
        EndpointClient(server.base_url, "abc", key, connections=8, timeout_s=10) as client,
    ):
        yield server, client


async def submit(client: EndpointClient, request: dict, **policy) -> str:
    answer = await client.run(run_body(request, JobPolicy(**policy)))
    assert answer.status is JobStatus.IN_QUEUE
    return answer.id


async def final(client: EndpointClient, job_id: str):
    for _ in range(500):
        answer = await client.status(job_id)
        if answer.status.is_final:
            return answer
        await asyncio.sleep(0.01)
    raise AssertionError("the job did not end")


async def test_a_job_goes_through_the_documented_states():
    async with endpoint(workers=1, latency_s=0.5) as (_, client):
        first, second = await submit(client, {"prompt": "a b"}), await submit(client, {"prompt": "c"})
        assert (await client.status(first)).status is JobStatus.IN_PROGRESS
        assert (await client.status(second)).status is JobStatus.IN_QUEUE
        answer = await final(client, second)
        assert answer.status is JobStatus.COMPLETED
        assert answer.output[0]["choices"][0]["text"] == "c"
        assert answer.delay_ms >= 400
        assert answer.execution_ms >= 400


async def test_health_counts_workers_and_jobs():
    async with endpoint(workers=2, latency_s=5) as (_, client):
        for _ in range(3):
            await submit(client, {"prompt": "x"})
        health = await client.health()
        assert (health.running, health.idle, health.in_queue, health.in_progress) == (2, 0, 1, 2)


async def test_an_unknown_job_or_endpoint_is_a_404_and_a_wrong_key_a_401():
    async with endpoint("good", api_key="good", endpoint_id="abc") as (server, client):
        with pytest.raises(NotFoundError):
            await client.status("nonsense")
        async with EndpointClient(server.base_url, "other", "good", connections=1, timeout_s=5) as other:
            with pytest.raises(NotFoundError, match="endpoint not found"):
                await other.health()
        async with EndpointClient(server.base_url, "abc", "bad", connections=1, timeout_s=5) as other:
            with pytest.raises(DeniedError) as caught:
                await other.health()
            assert caught.value.http_status == 401


@pytest.mark.parametrize("body", [b"nonsense", b"{}", b'{"input": 3}', b'{"input": "x"}', b"[]"])
async def test_a_body_without_an_input_object_is_rejected(body):
    async with endpoint() as (_, client):
        with pytest.raises(RejectedError):
            await client.run(body)


async def test_a_body_that_is_too_large_is_rejected():
    async with endpoint() as (_, client):
        with pytest.raises(RejectedError) as caught:
            await client.run(run_body({"x": "y" * 10_000_000}, JobPolicy()))
        assert caught.value.http_status == 413


async def test_an_empty_input_fails_as_on_the_platform():
    async with endpoint() as (_, client):
        answer = await final(client, await submit(client, {}))
        assert (answer.status, answer.error) == (JobStatus.FAILED, "job timed out after 1 retries")


async def test_an_execution_timeout_ends_the_job_and_frees_its_worker():
    async with endpoint(workers=1, latency_s=0.3) as (_, client):
        slow = await submit(client, {"prompt": "x"}, execution_timeout_s=0.05)
        assert (await final(client, slow)).status is JobStatus.TIMED_OUT
        assert (await final(client, await submit(client, {"prompt": "y"}))).status is JobStatus.COMPLETED


async def test_a_job_can_be_cancelled_queued_or_at_work_and_retried_only_after_a_failure():
    async with endpoint(workers=1, latency_s=5) as (server, client):
        first, second = await submit(client, {"prompt": "x"}), await submit(client, {"prompt": "y"})
        for job_id in (first, second):
            assert (await client.cancel(job_id)).status is JobStatus.CANCELLED
        assert (await client.health()).in_progress == 0
        url = f"{server.base_url}/abc/retry/{first}"
        async with aiohttp.ClientSession() as session, session.post(url) as response:
            assert orjson.loads(await response.read())["status"] == "CANCELLED"


async def test_the_limits_answer_429_with_a_retry_after_when_they_are_on():
    async with endpoint(limits=True) as (_, client):
        body = run_body({"prompt": "x"}, JobPolicy())
        for _ in range(1000):
            await client.run(body)
        with pytest.raises(ThrottledError) as caught:
            await client.run(body)
        assert 1 <= caught.value.retry_after_s <= 11


async def test_chance_is_the_seeds_and_makes_retryable_failures():
    async def outcomes(seed: int) -> list[str]:
        async with endpoint(fail_rate=0.5, seed=seed) as (_, client):
            ids = [await submit(client, {"prompt": "x"}) for _ in range(20)]
            return [(await client.status(job_id)).status.value for job_id in ids]

    first = await outcomes(1)
    assert first == await outcomes(1) != await outcomes(2)
    assert set(first) == {"COMPLETED", "FAILED"}


async def test_a_cold_start_keeps_jobs_in_the_queue():
    async with endpoint(cold_start_s=0.2) as (_, client):
        job_id = await submit(client, {"prompt": "x"})
        assert (await client.status(job_id)).status is JobStatus.IN_QUEUE
        assert (await final(client, job_id)).delay_ms >= 150


async def test_runsync_waits_stream_lists_and_purge_drops():
    async with endpoint(workers=1, latency_s=0.05) as (server, client), aiohttp.ClientSession() as session:
        async with session.post(f"{server.base_url}/abc/runsync", json={"input": {"prompt": "x"}}) as response:
            job = orjson.loads(await response.read())
        assert job["status"] == "COMPLETED"
        async with session.get(f"{server.base_url}/abc/stream/{job['id']}") as response:
            assert len(orjson.loads(await response.read())["stream"]) == 1
        for _ in range(3):
            await submit(client, {"prompt": "x"})
        async with session.post(f"{server.base_url}/abc/purge-queue") as response:
            assert orjson.loads(await response.read()) == {"removed": 2, "status": "completed"}


async def test_a_port_that_is_taken_is_said():
    async with endpoint() as (server, _):
        port = int(server.base_url.split(":")[2].split("/")[0])
        with pytest.raises(UsageError, match=f"--port {port}"):
            await LocalEndpoint(LocalOptions(port=port), EchoWorker()).start()


async def test_stopping_with_jobs_at_work_is_quick_and_leaves_nothing_running():
    started = asyncio.get_running_loop().time()
    async with endpoint(workers=4, latency_s=60) as (_, client):
        for _ in range(8):
            await submit(client, {"prompt": "x"}, execution_timeout_s=30)
    assert asyncio.get_running_loop().time() - started < 5
    assert len(asyncio.all_tasks()) == 1


class StubbornWorker:
    """Works until it is stopped, or raises what no worker should."""

    name = "stubborn"
    parallel = 1

    def __init__(self, defect: Exception | None = None) -> None:
        self._defect = defect

    async def start(self) -> None:
        """Nothing to get ready."""

    async def close(self) -> None:
        """Nothing to let go."""

    async def run(self, request: dict) -> object:
        if self._defect is not None:
            raise self._defect
        return await asyncio.Event().wait()


@asynccontextmanager
async def stubborn_endpoint(defect: Exception | None = None):
    async with (
        LocalEndpoint(LocalOptions(workers=1), StubbornWorker(defect)) as server,
        EndpointClient(server.base_url, "abc", None, connections=4, timeout_s=10) as client,
    ):
        yield server, client


@pytest.mark.parametrize(("size_bytes", "accepted"), [(2_000_000, True), (9_990_000, True), (10_000_000, False)])
async def test_a_body_may_be_as_large_as_documented(size_bytes, accepted):
    async with endpoint() as (server, _), aiohttp.ClientSession() as session:
        data = io.BytesIO(orjson.dumps({"input": {"prompt": "a" * size_bytes}}))
        async with session.post(f"{server.base_url}/abc/run", data=data) as response:
            assert response.status == (200 if accepted else 413)
            assert response.content_type == "application/json"


async def test_a_defect_of_a_worker_fails_its_job_and_frees_its_slot(caplog):
    async with stubborn_endpoint(KeyError("x")) as (_, client):
        first, second = await submit(client, {"prompt": "a"}), await submit(client, {"prompt": "b"})
        assert (await final(client, first)).error == "KeyError: 'x'"
        assert (await final(client, second)).status is JobStatus.FAILED
        assert (await client.health()).in_progress == 0
    assert first in caplog.text


async def test_the_end_of_a_ttl_stops_the_job_at_work_and_lets_the_next_one_start():
    async with stubborn_endpoint() as (_, client):
        mortal, heir = await submit(client, {"prompt": "a"}, ttl_s=0.1), await submit(client, {"prompt": "b"})
        for _ in range(300):
            if (await client.status(heir)).status is JobStatus.IN_PROGRESS:
                break
            await asyncio.sleep(0.01)
        assert (await client.status(heir)).status is JobStatus.IN_PROGRESS
        with pytest.raises(NotFoundError):
            await client.status(mortal)


async def test_runsync_returns_as_soon_as_its_job_is_cancelled():
    async with stubborn_endpoint() as (server, client), aiohttp.ClientSession() as session:
        url = f"{server.base_url}/abc/runsync?wait=60000"
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            waiting = group.create_task(session.post(url, json={"input": {"prompt": "a"}}))
            for _ in range(500):
                if len(server.queue):
                    break
                await asyncio.sleep(0.01)
            group.create_task(client.cancel(next(iter(server.queue._jobs))))
        assert orjson.loads(await waiting.result().read())["status"] == "CANCELLED"


async def test_workers_are_initializing_until_the_cold_start_is_over():
    async with endpoint(workers=3, cold_start_s=60) as (_, client):
        health = await client.health()
        assert (health.initializing, health.ready, health.idle) == (3, 0, 0)
