"""A run on a pool of endpoints, over HTTP."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter, defaultdict
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

import orjson
import pytest
from aiohttp import web

import batchrun
from batchrun.commands.arguments import RunArguments
from batchrun.commands.report import read as report
from batchrun.commands.run_options import run_options
from batchrun.commands.status import read_status, render
from batchrun.commands.verify import verify
from batchrun.config import GuardOptions
from batchrun.errors import StateError, UsageError
from batchrun.local.echo import EchoWorker
from batchrun.runs.driving import cancel_jobs
from batchrun.runs.opening import open_as_it_is
from batchrun.state.reader import StateReader
from tests.support.command import batchrun as command
from tests.support.crashes import Doom, Nights, after_every, at_random
from tests.support.rehearsal import Listener, hurried, options_for, read_lines, rehearse, serving, write_lines
from tests.support.workers import Picky

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

POOL = {"endpoint": "A", "pool": ("A", "B")}
UNAUTHORIZED = {"error": "unauthorized"}


def endpoint_of(request: web.BaseRequest) -> str:
    return request.path.split("/")[2]


class Front:
    """What a pool's endpoints are asked; each of them may be broken for a while."""

    def __init__(self) -> None:
        self.asked: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.polled: defaultdict[str, set[str]] = defaultdict(set)
        self.broken: dict[str, str] = {}
        """Endpoint -> `gone` (no answer), `401`, `404` or `stuck` (no job of it ends)."""

    async def __call__(self, request: web.BaseRequest, operation: str) -> web.StreamResponse | None:
        endpoint = endpoint_of(request)
        self.asked[endpoint][operation] += 1
        if operation == "status":
            self.polled[request.path.split("/")[4]].add(endpoint)
        match self.broken.get(endpoint):
            case "gone":
                request.transport.abort()
            case "401":
                return web.json_response(UNAUTHORIZED, status=401)
            case "404":
                return web.json_response({"error": "endpoint not found"}, status=404)
            case "stuck" if operation == "status":
                return web.json_response({"id": request.path.split("/")[4], "status": "IN_QUEUE"})
        return None

    def total(self, endpoint: str) -> int:
        return self.asked[endpoint].total()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - it looks at what another task counts
        await asyncio.sleep(0.01)


def lines(count: int) -> list[dict]:
    return [{"id": f"r{n}", "prompt": f"p {n}"} for n in range(count)]


def assert_each_once(folder: Path, count: int) -> list[dict]:
    records = read_lines(folder / "out.jsonl")
    assert sorted(record["id"] for record in records) == sorted(f"r{n}" for n in range(count))
    assert verify(folder / "out.jsonl.state").is_whole
    return records


async def test_each_row_is_done_at_one_endpoint_and_its_record_says_at_which(tmp_path: Path):
    write_lines(tmp_path, lines(200))
    front = Front()
    async with serving(front, workers=4, latency_s=0.02) as server:
        again = await rehearse(tmp_path, server.endpoint.base_url, **POOL, scheduler={"concurrency": 10})
    assert again.summary.exit_code == 0
    at = Counter(record["job"]["endpoint"] for record in assert_each_once(tmp_path, 200))
    assert min(at["A"], at["B"]) > 20
    assert front.asked["A"]["run"] + front.asked["B"]["run"] == 200
    for record in again.results:
        assert front.polled[record["job"]["id"]] <= {record["job"]["endpoint"]}, "a job is known at its endpoint only"


async def test_status_and_report_compare_the_endpoints(tmp_path: Path):
    write_lines(tmp_path, lines(60))
    guards = GuardOptions(prices={"A": 2.0, "B": 1.0})
    async with serving(latency_s=0.02) as server:
        await rehearse(tmp_path, server.endpoint.base_url, **POOL, guards=guards, scheduler={"concurrency": 5})
    state = tmp_path / "out.jsonl.state"
    at = Counter(record["job"]["endpoint"] for record in read_lines(tmp_path / "out.jsonl"))
    told = {each.endpoint: (each.succeeded, each.failed, each.in_flight) for each in read_status(state).endpoints}
    assert told == {name: (at[name], 0, 0) for name in "AB"}
    assert f"endpoint A: {at['A']} succeeded, 0 failed, 0 in flight" in render(read_status(state))
    table = report(state)
    assert [each.jobs for each in table.endpoints] == [at["A"], at["B"]]
    assert sum(each.cost for each in table.endpoints) == pytest.approx(read_status(state).cost.most)
    assert all(each.rows_per_s > 0 and each.execution_ms is not None for each in table.endpoints)


@pytest.mark.parametrize("how", ["gone", "401"])
async def test_an_endpoint_that_dies_under_load_and_comes_back_loses_and_doubles_nothing(tmp_path: Path, how: str):
    write_lines(tmp_path, lines(400))
    front = Front()

    async def kill() -> None:
        await until(lambda: front.asked["B"]["run"] > 40)
        front.broken["B"] = how
        seen = front.asked["A"]["run"]
        await until(lambda: front.asked["A"]["run"] > seen + 40)
        front.broken.clear()

    async with serving(front, workers=4, latency_s=0.02) as server:
        killing = asyncio.create_task(kill())
        again = await rehearse(tmp_path, server.endpoint.base_url, **POOL, scheduler={"concurrency": 10})
        await killing
    assert again.summary.exit_code == 0
    assert_each_once(tmp_path, 400)
    said = [message for message in again.listener.messages if "endpoint B" in message and "no more rows" in message]
    assert len(said) == (how == "401")
    assert not said or "the API key is not accepted" in said[0]


async def test_an_endpoint_that_does_not_exist_for_a_while_keeps_its_jobs(tmp_path: Path):
    write_lines(tmp_path, lines(200))
    front = Front()

    async def kill() -> None:
        await until(lambda: front.asked["B"]["run"] > 20)
        front.broken["B"] = "404"
        seen = Counter(front.asked["B"])
        await until(lambda: front.asked["B"]["status"] > seen["status"] + 20)
        await until(lambda: front.asked["B"]["health"] > seen["health"] + 1)
        front.broken.clear()

    async with serving(front, workers=4, latency_s=0.05) as server:
        killing = asyncio.create_task(kill())
        again = await rehearse(tmp_path, server.endpoint.base_url, **POOL, scheduler={"concurrency": 5})
        await killing
    assert again.summary.exit_code == 0
    assert {record["job"]["attempts"] for record in assert_each_once(tmp_path, 200)} == {1}


async def test_the_run_stops_with_the_first_reason_when_every_endpoint_refuses(tmp_path: Path):
    write_lines(tmp_path, lines(30))
    front = Front()
    front.broken = {"A": "401", "B": "401"}
    async with serving(front) as server:
        again = await rehearse(tmp_path, server.endpoint.base_url, **POOL)
    assert again.summary.outcome == "stopped"
    assert "the API key is not accepted" in again.summary.reason
    assert again.summary.not_run == 30


class Named(EchoWorker):
    """Answers as one of two models: the first job, or all others."""

    def __init__(self) -> None:
        self.count = 0

    def answer(self, request: dict) -> object:
        self.count += 1
        return [{**super().answer(request)[0], "model": "small" if self.count == 1 else "large"}]


@pytest.mark.parametrize("mixed", [False, True])
async def test_endpoints_with_different_models_are_refused_unless_they_are_accepted(tmp_path: Path, *, mixed: bool):
    write_lines(tmp_path, lines(100))
    async with serving(worker=Named(), latency_s=0.02) as server:
        again = await rehearse(tmp_path, server.endpoint.base_url, **POOL, mixed=mixed)
    assert again.summary.exit_code == (0 if mixed else 4)
    if not mixed:
        told = r"endpoint ([AB]) answers with model '(small|large)' in .*, and ([AB]) with model '(small|large)' in .*"
        assert set(re.fullmatch(told, again.summary.reason).groups()) == {"A", "B", "small", "large"}
        assert again.summary.hint.endswith("--mixed accepts these")
        assert again.summary.not_run > 50


async def test_answers_to_different_requests_may_differ(tmp_path: Path):
    inputs = [
        {"prompt": "p", "max_tokens": 4},
        {"openai_route": "/v1/completions", "openai_input": {"prompt": "p", "model": "adapter", "max_tokens": 4}},
    ]
    write_lines(tmp_path, [{"id": f"r{n}", "input": inputs[n % 2]} for n in range(40)])
    async with serving(latency_s=0.02) as server:
        again = await rehearse(tmp_path, server.endpoint.base_url, **POOL)
    assert again.summary.exit_code == 0


async def stopped_with_open_jobs(folder: Path, front: Front, base_url: str, pool: tuple[str, ...]) -> Counter[str]:
    """A run that has left jobs in flight; returns how many at each endpoint."""
    write_lines(folder, lines(40))
    front.broken = dict.fromkeys(pool, "stuck")
    guards = GuardOptions(deadline_s=60.0)  # two seconds: the clock is hurried
    options = {"endpoint": pool[0], "pool": pool if len(pool) > 1 else (), "mixed": len(pool) > 1}
    await rehearse(folder, base_url, guards=guards, **options, scheduler={"concurrency": 5})
    front.broken.clear()
    with StateReader(folder / "out.jsonl.state") as store:
        return Counter({name: store.count_jobs_at(number) for number, name in enumerate(pool)})


async def test_a_pool_that_grows_continues_and_the_jobs_in_flight_stay_where_they_are(tmp_path: Path):
    front = Front()
    async with serving(front, workers=4, latency_s=0.02) as server:
        open_jobs = await stopped_with_open_jobs(tmp_path, front, server.endpoint.base_url, ("A",))
        assert open_jobs["A"] == 5
        again = await rehearse(tmp_path, server.endpoint.base_url, endpoint="C", pool=("C", "A"), mixed=True)
    assert again.summary.exit_code == 0
    at = Counter(record["job"]["endpoint"] for record in assert_each_once(tmp_path, 40))
    assert at.keys() == {"A", "C"}
    assert front.asked["A"]["run"] + front.asked["C"]["run"] == 40


async def test_the_same_pool_in_another_order_is_the_same_pool(tmp_path: Path):
    front = Front()
    async with serving(front, workers=4, latency_s=0.02) as server:
        open_jobs = await stopped_with_open_jobs(tmp_path, front, server.endpoint.base_url, ("A", "B"))
        assert open_jobs == {"A": 5, "B": 5}
        again = await rehearse(tmp_path, server.endpoint.base_url, endpoint="B", pool=("B", "A"))
    assert again.summary.exit_code == 0
    assert_each_once(tmp_path, 40)
    assert front.asked["A"]["run"] + front.asked["B"]["run"] == 40
    assert all(len(endpoints) == 1 for endpoints in front.polled.values())


async def test_an_endpoint_with_open_jobs_is_taken_away_only_if_they_are_given_up(tmp_path: Path):
    front = Front()
    async with serving(front, workers=4, latency_s=0.02) as server:
        base_url = server.endpoint.base_url
        await stopped_with_open_jobs(tmp_path, front, base_url, ("A", "B"))
        with pytest.raises(StateError, match="endpoint B has 5 rows in flight, which only it can answer") as refused:
            await rehearse(tmp_path, base_url, endpoint="A")
        assert "--endpoint A,B" in refused.value.hint
        assert "--abandon" in refused.value.hint
        polls = front.asked["B"]["status"]
        again = await rehearse(tmp_path, base_url, endpoint="A", abandon=True)
        assert front.asked["B"]["status"] == polls
    assert again.summary.exit_code == 0
    records = assert_each_once(tmp_path, 40)
    assert {record["job"]["endpoint"] for record in records} == {"A"}
    assert sum(record["job"].get("possible_duplicate", False) for record in records) == 5
    assert any("endpoint B: 5 rows in flight there will run again" in text for text in again.listener.messages)


async def test_a_cancel_ends_although_an_endpoint_refuses_it(tmp_path: Path):
    front = Front()
    async with serving(front, workers=4, latency_s=0.02) as server:
        base_url = server.endpoint.base_url
        await stopped_with_open_jobs(tmp_path, front, base_url, ("A", "B"))
        front.broken["B"] = "401"
        options = options_for(tmp_path, **POOL)
        with open_as_it_is(options, Listener(), clock=hurried, wall=time.time, api_key="k") as run:
            outcome = await asyncio.wait_for(cancel_jobs(run, base_url, Random(0)), 30)
            assert [run.store.count_jobs_at(number) for number in range(2)] == [0, 5]
    assert (outcome.kind, outcome.error.message[:46]) == ("stopped", "endpoint B: the API key is not accepted (HTTP ")


async def test_an_endpoint_without_open_jobs_can_be_taken_away(tmp_path: Path):
    write_lines(tmp_path, lines(30))
    async with serving(latency_s=0.02) as server:
        await rehearse(tmp_path, server.endpoint.base_url, **POOL, scheduler={"concurrency": 5})
        write_lines(tmp_path, lines(40))
        again = await rehearse(tmp_path, server.endpoint.base_url, endpoint="B")
        with pytest.raises(StateError, match="--endpoint B"):
            await rehearse(tmp_path, server.endpoint.base_url, endpoint="C")
    assert again.summary.exit_code == 0
    records = {record["id"]: record["job"]["endpoint"] for record in assert_each_once(tmp_path, 40)}
    assert {records[f"r{n}"] for n in range(30, 40)} == {"B"}


async def test_a_failed_row_is_told_with_its_endpoint(tmp_path: Path):
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": f"bad {n}"} for n in range(8)])

    class Refusing(EchoWorker):
        def answer(self, request: dict) -> object:
            return {"error": "no such adapter"}

    front = Front()
    front.broken["A"] = "gone"
    async with serving(front, worker=Refusing()) as server:
        again = await rehearse(tmp_path, server.endpoint.base_url, **POOL, scheduler={"max_retries": 0})
    assert [record["job"]["endpoint"] for record in again.errors] == ["B"] * 8


class PooledNights(Nights):
    """A run on a pool that is started again until it is over."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.options = replace(self.options, **POOL)
        self.lost: dict[str, str] = {}
        """Prompt -> the endpoint at which its last submission was not answered."""

    async def fault(self, request: web.BaseRequest, operation: str) -> web.StreamResponse | None:
        if operation != "run":
            return await super().fault(request, operation)
        (prompt,) = self.prompts_of(orjson.loads(await request.read()))
        endpoint = endpoint_of(request)
        assert self.lost.pop(prompt, endpoint) == endpoint, f"{prompt} has moved, though its submission is unconfirmed"
        await super().fault(request, operation)
        if request.transport.is_closing():
            self.lost[prompt] = endpoint
        return None


@pytest.mark.parametrize("calls", range(3, 30, 3))
async def test_a_pool_that_dies_at_any_call_to_the_disk_loses_doubles_and_moves_nothing(tmp_path: Path, calls: int):
    nights = PooledNights(tmp_path)

    def dooms():
        yield from (Doom(calls, 10**9) for _ in range(3))
        while True:
            yield Doom(10**9, 10**9)

    await nights.until_it_is_over(dooms())
    nights.assert_whole()


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_pool_that_dies_again_and_again_loses_doubles_and_moves_nothing(tmp_path: Path, seed: int):
    nights = PooledNights(tmp_path)
    await nights.until_it_is_over(at_random(seed) if seed > 1 else after_every(20))
    nights.assert_whole()
    assert nights.crashes > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-e", "local,local"], "an endpoint is given twice"),
        (["-e", "A", "-e", "A"], "an endpoint is given twice"),
        (["-e", "A,local"], "the built-in endpoint `local` cannot be combined with others"),
        (["-e", "A,b c"], "is not an endpoint ID"),
        (["-e", "A", "--mixed"], "--mixed needs several endpoints"),
        (["-e", "A,B", "--price-per-hour", "A=2"], "B has no price"),
        (["-e", "A,B", "--price-per-hour", "A=2,B=1,C=1"], "C is not an endpoint of this run"),
        (["-e", "A,B", "--price-per-hour", "A=2,1"], "with a price for each endpoint"),
        (["-e", "A,B", "--sweep", "endpoint=C,D"], "both --endpoint and --sweep endpoint"),
    ],
)
def test_a_pool_that_makes_no_sense_is_refused_in_one_line(tmp_path: Path, options: list[str], said: str):
    write_lines(tmp_path, lines(1))
    done = command("run", "in.jsonl", *options, cwd=tmp_path, RUNPOD_API_KEY="k")
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "in.results.jsonl.state").exists()


async def test_an_id_that_does_not_exist_is_refused_at_the_start(tmp_path: Path):
    write_lines(tmp_path, lines(1))
    front = Front()
    front.broken["typo"] = "404"
    async with serving(front) as server:
        with pytest.raises(UsageError, match="--endpoint: there is no endpoint typo"):
            await asyncio.to_thread(
                batchrun.run,
                tmp_path / "in.jsonl",
                endpoint=["A", "typo"],
                output=tmp_path / "out.jsonl",
                base_url=server.endpoint.base_url,
                api_key="k",
            )
    assert not (tmp_path / "out.jsonl.state").exists()


@pytest.mark.parametrize("endpoint", ["A,B", ["A", "B"]])
async def test_a_program_gives_a_pool_as_a_list_or_with_commas(tmp_path: Path, endpoint: object):
    async with serving(latency_s=0.02) as server:
        summary = await asyncio.to_thread(
            batchrun.run,
            [{"id": f"r{n}", "prompt": "p"} for n in range(40)],
            endpoint=endpoint,
            output=tmp_path / "out.jsonl",
            base_url=server.endpoint.base_url,
            api_key="k",
            price_per_hour={"A": 2.0, "B": 1.0},
        )
    assert summary.succeeded == 40
    assert {record["job"]["endpoint"] for record in read_lines(tmp_path / "out.jsonl")} == {"A", "B"}


def test_a_stream_has_one_endpoint(tmp_path: Path):
    with pytest.raises(UsageError, match="a stream has one endpoint"):
        batchrun.stream([], endpoint="A,B", state=tmp_path / "s.state")


def test_the_options_of_a_pool_come_back_from_the_state_file(tmp_path: Path):
    given = RunArguments(
        inputs=("in.jsonl",), output=str(tmp_path / "o.jsonl"), endpoint=("A", "B"), price_per_hour={"A": 2.0, "B": 1.0}
    )
    options = run_options(given)
    assert options.endpoints == ("A", "B")
    read = type(options).from_json(orjson.loads(orjson.dumps(options.to_json())), options.state)
    assert (read.pool, read.guards) == (options.pool, options.guards)
    assert options_for(tmp_path).endpoints == ("local",)


async def test_packing_is_checked_at_whichever_endpoint_of_a_pool_answers(tmp_path: Path):
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": f"p {n}", "max_tokens": 4} for n in range(64)])
    front = Front()
    front.broken = {"A": "stuck", "B": "404", "C": ""}
    scheduler = {"concurrency": 4, "pack": 4}

    async def unlock() -> None:
        await until(lambda: front.asked["C"]["run"] > 8)
        front.broken["A"] = ""

    async with serving(front) as server:
        unlocking = asyncio.create_task(unlock())
        again = await rehearse(
            tmp_path, server.endpoint.base_url, endpoint="A", pool=("A", "B", "C"), scheduler=scheduler
        )
        await unlocking
    assert again.summary.exit_code == 0
    assert again.summary.packed_rows > 32
    assert any("the same answers together and alone" in message for message in again.listener.messages)


async def test_an_endpoint_whose_answer_to_a_submission_was_lost_is_removed_only_if_that_is_accepted(tmp_path: Path):
    write_lines(tmp_path, lines(40))
    front = Front()

    async def losing(request: web.BaseRequest, operation: str) -> web.StreamResponse | None:
        if operation == "run" and endpoint_of(request) == "B":
            front.asked["B"]["lost"] += 1
            await request.read()
            request.transport.abort()
        return await front(request, operation)

    async with serving(losing, workers=4, latency_s=0.02) as server:
        base_url, state = server.endpoint.base_url, tmp_path / "out.jsonl.state"
        guards = GuardOptions(deadline_s=15.0)
        front.broken["A"] = "stuck"
        await rehearse(tmp_path, base_url, **POOL, guards=guards, scheduler={"concurrency": 2, "max_retries": 50})
        front.broken.clear()
        with StateReader(state) as store:
            count = store.count_unconfirmed_at(1, is_held=False) + store.count_jobs_at(1)
        assert count > 0
        with pytest.raises(StateError, match=r"endpoint B has .* unconfirmed, which only it can confirm") as refused:
            await rehearse(tmp_path, base_url, endpoint="A")
        assert "--endpoint A,B; or add --abandon" in refused.value.hint
        front.broken["A"] = "stuck"
        stopped = await rehearse(tmp_path, base_url, endpoint="A", abandon=True, guards=guards)
        assert any(
            f"endpoint B: {count} row{'s' * (count > 1)} unconfirmed there will" in text
            for text in stopped.listener.messages
        )
        front.broken.clear()
        again = await rehearse(tmp_path, base_url, endpoint="A")
    assert again.summary.exit_code == 0, "what was given up stays given up"
    records = assert_each_once(tmp_path, 40)
    assert {record["job"]["endpoint"] for record in records} == {"A"}
    assert sum(record["job"].get("possible_duplicate", False) for record in records) == count


async def test_a_pool_says_once_why_it_stops_with_the_endpoints_and_all_jobs_in_flight(tmp_path: Path):
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": f"bad {n}"} for n in range(200)])
    async with serving(worker=Picky(), workers=4, latency_s=0.2) as server:
        done = await rehearse(
            tmp_path, server.endpoint.base_url, **POOL, guards=GuardOptions(canary=5), scheduler={"concurrency": 5}
        )
    assert done.summary.outcome == "stopped"
    said = [message for message in done.listener.messages if "stopping" in message]
    assert len(said) == 1
    assert re.match(r"endpoints [AB] and [AB]: stopping: .*; (nothing is|collecting the \d+ jobs) in flight", said[0])
