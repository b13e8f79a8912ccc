"""Answers from a cache: never those of another request, written and proven like all others, and paid for once."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

import orjson
import pytest

import batchrun as batchrun_api
from batchrun.commands.cache import inspect_cache
from batchrun.commands.report import read as report
from batchrun.commands.status import read_status
from batchrun.commands.status import render as render_status
from batchrun.commands.verify import verify
from batchrun.config import AnswerOptions, GuardOptions, RequestOptions, SweepOptions
from batchrun.display.summary_text import render
from batchrun.engine import cached as caching
from batchrun.errors import StateError
from batchrun.local.echo import EchoWorker
from batchrun.runs.caching import _name as name_in_cache
from batchrun.runs.closing import conclude
from batchrun.runs.driving import drive
from batchrun.runs.opening import open_run
from tests.support.claims import assert_adds_up
from tests.support.command import batchrun, invoke
from tests.support.crashes import Doom, Nights
from tests.support.disks import files_of_at_most
from tests.support.rehearsal import Listener, hurried, options_for, read_lines, rehearse, serving, write_lines
from tests.support.workers import Answering, Flaky, Picky, Spoiling

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.rehearsal import Rehearsal

SOBER = RequestOptions(override={"temperature": 0})
COUNTED: dict[str, Any] = {"prompt_tokens": 3, "completion_tokens": 5}


def lines_of(*prompts: str, **more: Any) -> list[dict]:
    return [{"id": f"r{n}", "prompt": prompt, **more} for n, prompt in enumerate(prompts)]


LINES = lines_of("one", "two", "three", metadata={"topic": "rain"})


class Numbered(EchoWorker):
    """Never gives the same answer twice."""

    def __init__(self, model: str | None = "m") -> None:
        self.given = 0
        self.model = model

    def answer(self, request: dict[str, Any]) -> Any:
        self.given += 1
        text = f"{request.get('prompt')} {self.given}"
        named = {} if self.model is None else {"model": self.model}
        return [{**named, "choices": [{"text": text, "finish_reason": "stop", "index": 0}], "usage": COUNTED}]


class Silent(Picky):
    """Has no answer to a prompt."""

    def answer(self, request: dict[str, Any]) -> Any:
        if request["prompt"] == "silence":
            return [{"choices": [{"text": "", "finish_reason": "stop", "index": 0}], "usage": COUNTED}]
        return super().answer(request)


class Runs:
    """Runs in folders of their own, with one cache and one worker."""

    def __init__(self, folder: Path, worker: object | None = None, **given: Any) -> None:
        self.folder = folder
        self.worker = worker or Numbered()
        self.given = {"request": SOBER, **given}
        self.jobs = 0
        """The submissions of the last run."""

    async def __call__(self, name: str, lines: list | None = None, **given: Any) -> Rehearsal:
        folder = self.folder / name
        if lines is not None or not folder.exists():
            folder.mkdir(exist_ok=True)
            write_lines(folder, LINES if lines is None else lines)
        cache = given.pop("cache", str(self.folder / "answers.cache"))
        answers = AnswerOptions(cache=cache, **given.pop("answers", {}))
        async with serving(worker=self.worker) as server:
            done = await rehearse(folder, server.endpoint.base_url, **{**self.given, "answers": answers, **given})
            self.jobs = server.seen["run"]
        assert_adds_up(folder / "out.jsonl.state")
        return done

    def state(self, name: str) -> Path:
        return self.folder / name / "out.jsonl.state"


def by_id(done: Rehearsal) -> dict[str, dict]:
    return {record["id"]: record for record in done.results}


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


async def test_an_answer_is_paid_for_once_and_its_line_says_where_it_came_from(runs: Runs):
    first = by_id(await runs("a"))
    second = await runs("b", [*LINES, {"id": "r3", "prompt": "four"}])
    assert runs.jobs == 1
    assert second.summary.cached == 3
    for row_id, record in by_id(second).items():
        if row_id == "r3":
            assert "cached" not in record
            assert record["job"]["attempts"] == 1
        else:
            job = {**first[row_id]["job"], "attempts": 0}
            assert record == {**first[row_id], "cached": True, "job": job, "source": record["source"]}
            assert list(record)[:3] == ["id", "status", "cached"]


async def test_answers_from_the_cache_cost_nothing_and_are_counted_apart(runs: Runs):
    guards = GuardOptions(price_per_hour=100.0)
    await runs("a", guards=guards)
    done = await runs("b", [*LINES, {"id": "r3", "prompt": "four"}], guards=guards)
    state = runs.state("b")
    assert (done.summary.input_tokens, done.summary.output_tokens) == (3, 5)
    assert "cached      3 rows with an answer from the cache" in render(done.summary)
    last = done.listener.snapshots[-1]
    assert (last.cached, last.succeeded, last.ended_in_session) == (3, 4, 1)
    seen = read_status(state)
    assert seen.cached == 3
    assert "rows with an answer from the cache: 3" in render_status(seen)
    assert seen.cost.most_per_1000 == pytest.approx(seen.cost.most * 1000)
    (variant,) = report(state).variants
    assert (variant.cached, variant.succeeded) == (3, 4)
    assert orjson.loads((state.parent / "out.manifest.json").read_bytes())["summary"]["cached"] == 3
    found = verify(state)
    assert (found.cached, found.results) == (3, 4)
    assert "results with an answer from the cache, without a job: 3" in found.notes


@pytest.mark.parametrize(
    ("fields", "is_taken"),
    [({}, False), ({"temperature": 0.7}, False), ({"temperature": 0.7, "seed": 1}, True), ({"temperature": 0}, True)],
)
async def test_answers_that_another_try_might_not_give_are_taken_only_on_demand(
    tmp_path: Path, fields: dict, is_taken: bool
):
    runs = Runs(tmp_path, request=RequestOptions(override=fields))
    await runs("a")
    done = await runs("b")
    assert (runs.jobs, done.summary.cached) == ((0, 3) if is_taken else (3, 0))
    done = await runs("c", answers={"cache_sampled": True})
    assert (runs.jobs, done.summary.cached) == (0, 3)


async def test_what_is_compared_is_the_whole_request_as_it_is_sent(runs: Runs):
    await runs("a", lines_of("p", max_tokens=5))
    for name, line, options in (
        ("b", {"prompt": "q", "max_tokens": 5}, SOBER),
        ("c", {"prompt": "p", "max_tokens": 6}, SOBER),
        ("d", {"prompt": "p", "max_tokens": 5}, replace(SOBER, chat=True)),
        ("e", {"prompt": "p", "max_tokens": 5}, replace(SOBER, override={"temperature": 0, "top_k": 1})),
    ):
        done = await runs(name, [line], request=options)
        assert (runs.jobs, done.summary.cached) == (1, 0), name
    line = {"max_tokens": 5, "metadata": 1, "prompt": "p", "temperature": 0}
    done = await runs("f", [line], request=RequestOptions())
    assert (runs.jobs, done.summary.cached) == (0, 1)


async def test_the_content_of_a_file_is_compared_and_not_its_name(tmp_path: Path):
    picture = tmp_path / "cat.png"
    runs = Runs(tmp_path, request=replace(SOBER, inline_files="anywhere"))
    content = [{"type": "image_url", "image_url": {"url": str(picture)}}]
    rows = [{"id": "r", "messages": [{"role": "user", "content": content}]}]
    picture.write_bytes(b"one")
    await runs("a", rows)
    await runs("b", rows)
    assert runs.jobs == 0
    picture.write_bytes(b"two")
    assert (await runs("c", rows)).summary.cached == 0
    assert runs.jobs == 1


async def test_each_sample_of_a_request_has_an_answer_of_its_own(runs: Runs):
    rows = [{"id": "image", "input": {"image": "a cat", "seed": 3}}, {"id": "p", "prompt": "p", "seed": 9}]
    given = {"sweep": SweepOptions((("endpoint", ("A",)),), repeat=3), "request": RequestOptions()}
    first = by_id(await runs("a", rows, **given))
    assert runs.jobs == 6
    again = by_id(await runs("b", rows, **given))
    assert runs.jobs == 0
    assert {row_id: record["text"] for row_id, record in again.items()} == {
        row_id: record["text"] for row_id, record in first.items()
    }
    assert len({record["text"] for record in again.values()}) == 6
    more = await runs("c", rows, **{**given, "sweep": replace(given["sweep"], repeat=5)})
    assert (runs.jobs, more.summary.cached) == (4, 6)


async def test_each_endpoint_has_its_own_answers_and_a_pool_takes_those_of_any(runs: Runs):
    await runs("a", endpoint="A")
    done = await runs("b", endpoint="B")
    assert (runs.jobs, done.summary.cached) == (3, 0)
    done = await runs("c", [*LINES, {"id": "x", "prompt": "x"}], endpoint="C", pool=("C", "A"))
    assert (runs.jobs, done.summary.cached) == (1, 3)
    assert {record["job"]["endpoint"] for record in done.results if "cached" in record} == {"A"}
    done = await runs("d", endpoint="B", sweep=SweepOptions((("endpoint", ("B", "D")),)))
    assert (runs.jobs, done.summary.cached) == (3, 3)


def test_the_same_endpoint_id_behind_another_url_is_another_endpoint_as_is_each_local_worker(tmp_path: Path):
    options = options_for(tmp_path, endpoint="A")
    others = [replace(options, base_url=url) for url in ("https://one/v2", "https://me:secret@two/v2")]
    local = options_for(tmp_path)
    assert name_in_cache(options, "A", None) == "A"
    assert [name_in_cache(other, "A", None) for other in others] == ["https://one/v2/A", "https://two/v2/A"]
    assert name_in_cache(local, "local", "echo") != name_in_cache(local, "local", "smollm2")


async def test_when_an_endpoint_answers_as_another_model_no_earlier_answer_is_taken_and_a_message_says_so(runs: Runs):
    await runs("a")
    runs.worker = Numbered("n")
    done = await runs("b", [*LINES, {"id": "x", "prompt": "x"}])
    assert (runs.jobs, done.summary.cached) == (1, 3)
    assert any("now answers as model n" in said for said in done.listener.messages)
    done = await runs("c", [*LINES, {"id": "x", "prompt": "x"}])
    assert (runs.jobs, done.summary.cached) == (3, 1)


async def test_what_failed_or_was_refused_is_never_stored_and_rules_hold_for_what_is_found(tmp_path: Path):
    runs = Runs(tmp_path, Silent())
    rows = lines_of("bad one", "good", "silence")
    await runs("a", rows)
    assert inspect_cache(tmp_path / "answers.cache").answers == 2
    done = await runs("b", rows, answers={"require_text": True})
    assert (runs.jobs, done.summary.cached) == (2, 1)
    assert {record["id"]: record["error"]["kind"] for record in done.errors} == {
        "r0": "bad_request",
        "r2": "invalid_output",
    }
    done = await runs("c", lines_of("new", "silence"), answers={"require_text": True}, endpoint="B")
    assert len(done.errors) == 1
    assert inspect_cache(tmp_path / "answers.cache").answers == 3


async def test_a_function_that_checks_answers_judges_those_of_the_cache(tmp_path: Path):
    (tmp_path / "rules.py").write_text(
        "def short(record):\n    return 'too long' if len(record['text']) > 3 else None\n"
    )
    runs = Runs(tmp_path, EchoWorker())
    await runs("a")
    done = await runs("b", answers={"check": f"{tmp_path / 'rules.py'}:short"})
    assert (runs.jobs, done.summary.cached, len(done.errors)) == (1, 2, 1)


async def test_rows_that_share_an_answer_share_that_of_the_cache(runs: Runs):
    rows = lines_of("p", "q", "p", "p")
    await runs("a", rows[:1])
    done = await runs("b", rows, dedupe=True)
    assert (runs.jobs, done.summary.cached, done.summary.shared) == (1, 1, 2)
    records = by_id(done)
    for row_id in ("r2", "r3"):
        assert records[row_id]["cached"] is True
        assert records[row_id]["job"] == {**records["r0"]["job"], "same_as": "r0"}
    assert verify(runs.state("b")).cached == 1


async def test_only_rows_that_need_a_job_join_a_pack(tmp_path: Path):
    worker = Spoiling()
    runs = Runs(tmp_path, worker, request=RequestOptions(override={"temperature": 0, "max_tokens": 64}))
    rows = lines_of(*(f"p {n}" for n in range(12)))
    packing = {"pack": 4, "concurrency": 4}
    first = by_id(await runs("a", rows[:6], scheduler={**packing, "pack_check": "off"}))
    worker.asked.clear()
    done = await runs("b", rows, scheduler=packing)
    assert {prompt for prompts in worker.asked for prompt in prompts} == {f"p {n}" for n in range(6, 12)}
    assert max(len(prompts) for prompts in worker.asked) == 4
    assert done.summary.cached == 6
    assert (done.summary.input_tokens, done.summary.output_tokens) == (12, 12)
    for row_id, record in by_id(done).items():
        assert record["text"] == f"p {row_id[1:]}"
        if "cached" in record:
            assert record["job"] == {**first[row_id]["job"], "attempts": 0}


async def test_a_row_that_is_run_again_gets_a_new_answer_which_replaces_the_old_one(tmp_path: Path):
    folder = tmp_path / "b"
    folder.mkdir()
    write_lines(folder, LINES)
    async with serving(worker=Numbered()) as server:
        url = server.endpoint.base_url.removesuffix("/v2")
        base = ("-e", "abc", "--base-url", f"{url}/v2", "--set", "temperature=0", "--cache", tmp_path / "c", "-q")
        env = {"RUNPOD_API_KEY": "rpa_x"}

        def run(name: str, *command: object) -> dict[str, str]:
            done = batchrun(*command, cwd=folder, **env)
            assert done.returncode == 0, done.stderr
            return {record["id"]: record["text"] for record in read_lines(folder / name)}

        at = asyncio.to_thread
        await at(run, "a.jsonl", "run", "in.jsonl", "-o", "a.jsonl", *base)
        old = await at(run, "b.jsonl", "run", "in.jsonl", "-o", "b.jsonl", *base)
        assert server.seen["run"] == 3
        redo = ("redo", "b.jsonl.state", "--where", "cached=true", "--yes", "-q")
        new = await at(run, "b.jsonl", *redo)
        assert server.seen["run"] == 6
        assert all(new[row_id] != old[row_id] for row_id in old)
        assert verify(folder / "b.jsonl.state").cached == 0
        assert await at(run, "c.jsonl", "run", "in.jsonl", "-o", "c.jsonl", *base) == new
        assert server.seen["run"] == 6


async def test_a_run_continues_with_without_and_again_with_a_cache(tmp_path: Path):
    runs = Runs(tmp_path)
    await runs("a", lines_of("one", "two", "three", "four"))
    for rows, cache, jobs in ((1, None, 1), (2, str(tmp_path / "answers.cache"), 0), (3, None, 1), (4, None, 1)):
        await runs("b", lines_of("one", "two", "three", "four")[:rows], cache=cache)
        assert runs.jobs == jobs
    assert verify(runs.state("b")).cached == read_status(runs.state("b")).cached == 1


async def test_results_in_the_format_of_openai_say_it_too_and_can_be_repaired(tmp_path: Path):
    runs = Runs(tmp_path)
    body = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0}
    rows = [{"custom_id": "x", "method": "POST", "url": "/v1/chat/completions", "body": body}]
    await runs("a", rows, format="openai")
    done = await runs("b", rows, format="openai")
    assert done.results[0]["batchrun"]["cached"] is True
    assert verify(runs.state("b")).cached == 1
    for suffix in ("", "-wal", "-shm"):
        runs.state("b").with_name(f"out.jsonl.state{suffix}").unlink(missing_ok=True)
    options = options_for(tmp_path / "b", request=SOBER, format="openai")
    with open_run(options, Listener(), clock=hurried, wall=time.time, repair=True) as run:
        conclude(run, await drive(run, "http://127.0.0.1:9/v2", Random(0)))
    found = verify(runs.state("b"))
    assert (found.is_whole, found.cached, found.results) == (True, 1, 1)
    assert read_status(runs.state("b")).cached == 1


async def test_a_field_of_a_line_that_is_called_so_stays_what_it_was(runs: Runs):
    rows = lines_of("p", cached=True)
    (first,) = (await runs("a", rows)).results
    assert first["cached"] is True
    assert first["job"]["attempts"] == 1
    assert verify(runs.state("a")).cached == 0
    (second,) = (await runs("b", rows)).results
    assert (second["cached"], second["carried"]) == (True, {"cached": True})
    assert verify(runs.state("b")).cached == 1


@pytest.mark.parametrize("at", [1, 30])
async def test_a_cache_that_is_damaged_during_a_run_costs_a_warning_and_nothing_else(tmp_path: Path, at: int):
    path = tmp_path / "answers.cache"

    def spoil(request: dict) -> Any:
        worker.given += 1
        if worker.given == at:
            path.write_bytes(os.urandom(max(path.stat().st_size, 40_000)))
        return [{"choices": [{"text": request["prompt"], "index": 0}]}]

    worker = Answering(spoil)
    worker.given = 0
    runs = Runs(tmp_path, worker, scheduler={"concurrency": 2})
    done = await runs("a", lines_of(*(f"p {n}" for n in range(300))))
    assert len(done.results) == 300
    warnings = [said for said in done.listener.messages if "--cache" in said]
    assert len(warnings) == (at == 1)  # later, SQLite has in memory what it needs
    assert all("the run continues without it" in said for said in warnings)
    with pytest.raises(StateError):
        inspect_cache(path)


async def test_a_cache_whose_disk_is_full_costs_a_warning_and_nothing_else(tmp_path: Path):
    runs = Runs(tmp_path, Answering(lambda _: [{"choices": [{"tokens": ["short"]}]}]))
    await runs("a")
    (tmp_path / "b").mkdir()
    write_lines(tmp_path / "b", lines_of(*(f"{'p' * 100_000} {n}" for n in range(30))))
    with files_of_at_most(2_000_000):  # the log of the cache needs more; the results, the state and its log do not
        done = await runs("b")
    assert len(done.results) == 30
    warnings = [said for said in done.listener.messages if "--cache" in said]
    assert len(warnings) == 1


async def test_a_locked_cache_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(caching, "_END_WAIT_S", 0.2)
    runs = Runs(tmp_path)
    await runs("a")
    with closing(sqlite3.connect(tmp_path / "answers.cache", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        done = await runs("b", [*LINES, {"id": "x", "prompt": "x"}])
        assert time.monotonic() - began < 4
        assert (runs.jobs, done.summary.cached) == (1, 3)
        assert any("is locked by another program" in said for said in done.listener.messages)


def test_a_cache_that_cannot_be_used_is_refused_before_anything_is_made(tmp_path: Path):
    write_lines(tmp_path, LINES)
    (tmp_path / "notes").write_text("not a cache\n" * 100)
    for cache, said in (
        ("notes", "is not a cache"),
        ("in.jsonl", "is not a cache"),
        ("out.jsonl", "both the cache and"),
    ):
        command = ("run", "in.jsonl", "-e", "local", "--worker", "echo", "-o", "out.jsonl", "--cache", cache)
        done = batchrun(*command, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "notes"]
    code, said = invoke("run", tmp_path / "in.jsonl", "-e", "local", "-o", tmp_path / "x", "--cache-sampled")
    assert (code, "--cache-sampled needs --cache" in said) == (2, True)


async def test_a_program_that_streams_requests_gets_records_from_the_cache_too(tmp_path: Path):
    asked = [{"id": f"q{n}", "prompt": f"p {n}", "temperature": 0} for n in range(120)]
    given = {"endpoint": "local", "worker": "echo", "cache": tmp_path / "answers.cache"}
    for number, cached in ((1, 0), (2, 120)):
        state = tmp_path / f"{number}.state"
        async with batchrun_api.stream(iter(asked), state=state, **given) as records:
            found = [record async for record in records]
        assert sorted(record["id"] for record in found) == sorted(each["id"] for each in asked)
        assert all(record["text"] == f"p {record['id'][1:]}" for record in found)
        assert sum("cached" in record for record in found) == cached
        assert verify(state).is_whole
    summary = batchrun_api.run(asked[:5], output=tmp_path / "out.jsonl", **given)
    assert summary.cached == 5


class CachedNights(Nights):
    """A run with a cache that has half of the answers, which is started again until it is over."""

    worker = Flaky

    def __init__(self, folder: Path, copies: int = 1) -> None:
        super().__init__(folder, copies)
        answers = AnswerOptions(cache=str(folder / "answers.cache"), cache_sampled=True)
        self.options = replace(self.options, answers=answers)

    async def fill(self) -> None:
        """Another run asks for every second prompt."""
        folder = self.folder / "before"
        folder.mkdir()
        write_lines(folder, [{"prompt": self.prompt_of(n)} for n in range(0, self.different, 2)])
        async with serving() as server:
            await rehearse(folder, server.endpoint.base_url, answers=self.options.answers)


@pytest.mark.parametrize("copies", [1, 4])
@pytest.mark.parametrize("calls", [*range(3, 30, 3), 40])
async def test_a_run_with_a_cache_that_dies_again_and_again_loses_and_doubles_nothing(
    tmp_path: Path, calls: int, copies: int
):
    nights = CachedNights(tmp_path, copies)
    await nights.fill()

    def dooms():
        yield from (Doom(calls, 10**9) for _ in range(3))
        while True:
            yield Doom(10**9, 10**9)

    await nights.until_it_is_over(dooms())
    nights.assert_whole()
    assert nights.crashes > 0
    found, seen = verify(nights.options.state), read_status(nights.options.state)
    assert found.cached == seen.cached > 0
    assert not any(nights.submitted[nights.prompt_of(n)] for n in range(0, nights.different, 2) if n % 11 != 5)
