"""Sweeps as whole runs over HTTP."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import orjson
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.commands.verify import verify
from batchrun.config import SweepOptions
from batchrun.errors import InputError, StateError, UsageError
from batchrun.prompts.sources import find_sources
from batchrun.runs.intake import take_in
from batchrun.state.reader import StateReader
from batchrun.state.store import Store
from tests.support.command import batchrun
from tests.support.rehearsal import Listener, options_for, read_lines, rehearse, serving, write_lines
from tests.support.workers import Picky

if TYPE_CHECKING:
    from pathlib import Path

LINES = [
    {"id": "a", "prompt": "one", "metadata": {"reference": "x"}},
    {"prompt": "two"},
    {"prompt": "two"},
    {"custom_id": "c", "method": "POST", "url": "/v1/completions", "body": {"model": "m", "prompt": "three"}},
]
TEMPERATURES = SweepOptions((("temperature", (0, 0.7)),), 2)
ENDPOINTS = SweepOptions((("endpoint", ("good", "dead")), ("temperature", (0, 0.7))))


def ids_in(state: Path) -> list[str]:
    with StateReader(state) as store:
        return [row_id for (row_id,) in store.query("SELECT id FROM rows ORDER BY row")]


async def test_every_line_is_run_once_with_each_combination_and_told_in_its_record(tmp_path: Path):
    write_lines(tmp_path, LINES)
    async with serving() as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url, sweep=TEMPERATURES)
    assert rehearsal.summary.exit_code == 0
    assert server.seen["run"] == len(rehearsal.results) == 16
    assert len(set(rehearsal.ids())) == 16
    seen = Counter(
        (r["source"]["line"], r["variant"]["temperature"], r["variant"]["repeat"]) for r in rehearsal.results
    )
    assert seen == Counter((line, t, k) for line in (1, 2, 3, 4) for t in (0, 0.7) for k in (1, 2))
    record = next(record for record in rehearsal.results if record["id"] == "a/temperature=0.7/2")
    assert (record["text"], record["metadata"]) == ("one", {"reference": "x"})
    assert verify(tmp_path / "out.jsonl.state").is_whole


async def test_a_sweep_that_is_cut_short_is_a_balanced_sample(tmp_path: Path):
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": "p"} for n in range(10)])
    async with serving() as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url, sweep=TEMPERATURES, limit=18)
    shares = Counter(orjson.dumps(record["variant"]) for record in rehearsal.results)
    assert len(rehearsal.results) == 18
    assert set(shares.values()) == {4, 5}


@settings(max_examples=15)
@given(st.permutations(LINES))
def test_ids_do_not_depend_on_the_order_of_the_lines(tmp_path_factory, order: list):
    def ids(lines: list) -> list[str]:
        folder = tmp_path_factory.mktemp("run")
        write_lines(folder, lines)
        _take_in(folder)
        return sorted(ids_in(folder / "out.jsonl.state"))

    assert ids(order) == ids(LINES)


def _take_in(folder: Path) -> None:
    options = options_for(folder, sweep=TEMPERATURES)
    with Store(options.state) as store:
        take_in(options, find_sources(options.inputs), store, Listener())


async def test_a_resumed_sweep_runs_what_is_left_and_no_other_sweep_continues_with_it(tmp_path: Path):
    write_lines(tmp_path, LINES[:2])
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url, sweep=TEMPERATURES)
        write_lines(tmp_path, LINES[:2] + LINES[3:])
        again = await rehearse(tmp_path, server.endpoint.base_url, sweep=TEMPERATURES)
        assert server.seen["run"] == 12
        assert len(set(again.ids())) == len(again.ids()) == 12
        other = SweepOptions((("temperature", (0, 0.8)),), 2)
        with pytest.raises(
            StateError, match=r"temperature \(0, 0\.7\) x 2 samples \(now --sweep temperature \(0, 0\.8\)"
        ):
            await rehearse(tmp_path, server.endpoint.base_url, sweep=other)


async def test_a_failed_row_says_what_it_was_and_its_error_line_asks_for_the_same_again(tmp_path: Path):
    write_lines(tmp_path, [{"id": "a", "prompt": "bad", "temperature": 0.1}, {"id": "b", "prompt": "good"}])
    sweep = SweepOptions((("temperature", (0, 0.7)),))
    async with serving(worker=Picky()) as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url, sweep=sweep)
    assert [error["id"] for error in rehearsal.errors] == ["a/temperature=0", "a/temperature=0.7"]
    assert [error["variant"] for error in rehearsal.errors] == [{"temperature": 0}, {"temperature": 0.7}]
    assert [error["request"]["temperature"] for error in rehearsal.errors] == [0, 0.7]


async def test_a_line_that_has_no_place_for_a_key_is_named_and_nothing_is_sent(tmp_path: Path):
    write_lines(tmp_path, LINES)
    async with serving() as server:
        with pytest.raises(InputError, match=r"in\.jsonl:1: --sweep input\.steps"):
            await rehearse(tmp_path, server.endpoint.base_url, sweep=SweepOptions((("input.steps", (1, 2)),)))
    assert server.seen == {}


async def test_more_than_ten_million_rows_are_refused_and_nothing_is_sent(tmp_path: Path):
    write_lines(tmp_path, [{"prompt": str(n)} for n in range(200)])
    huge = SweepOptions((("seed", tuple(range(100))), ("top_k", tuple(range(100)))), 10)
    with pytest.raises(UsageError, match="more than 10,000,000 in total"):
        await rehearse(tmp_path, "http://127.0.0.1:9/v2", sweep=huge)
    assert not (tmp_path / "out.jsonl.state").exists()


async def refuse_the_dead(request: web.BaseRequest, _: str) -> web.StreamResponse | None:
    if request.path.split("/")[2] == "dead":
        return web.json_response({"error": "the key may not use this endpoint"}, status=401)
    return None


async def test_an_endpoint_that_is_refused_stops_its_own_rows_alone(tmp_path: Path):
    write_lines(tmp_path, LINES)
    async with serving(refuse_the_dead) as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url, key="k", sweep=ENDPOINTS)
    summary = rehearsal.summary
    assert (summary.exit_code, summary.succeeded, summary.not_run) == (4, 8, 8)
    assert "endpoint dead:" in summary.reason
    assert "endpoint good:" not in summary.reason
    assert {record["job"]["endpoint"] for record in rehearsal.results} == {"good"}
    assert {record["variant"]["endpoint"] for record in rehearsal.results} == {"good"}


async def test_the_rows_of_an_endpoint_that_has_recovered_are_taken_up_again(tmp_path: Path):
    write_lines(tmp_path, LINES)
    async with serving(refuse_the_dead) as server:
        await rehearse(tmp_path, server.endpoint.base_url, key="k", sweep=ENDPOINTS)
    async with serving() as server:
        again = await rehearse(tmp_path, server.endpoint.base_url, key="k", sweep=ENDPOINTS)
        assert server.seen["run"] == 8
    assert again.summary.exit_code == 0
    assert Counter(record["job"]["endpoint"] for record in again.results) == {"good": 8, "dead": 8}
    assert len(set(again.ids())) == 16
    assert verify(tmp_path / "out.jsonl.state").is_whole


async def test_several_endpoints_share_one_picture_and_one_summary(tmp_path: Path):
    write_lines(tmp_path, LINES)
    async with serving(latency_s=0.3) as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url, sweep=ENDPOINTS)
    snapshots = rehearsal.listener.snapshots
    assert {snapshot.total for snapshot in snapshots} == {16}
    assert (snapshots[0].done, snapshots[-1].done) == (0, 16)
    assert rehearsal.summary.calls["run"] == server.seen["run"] == 16
    assert server.seen["health"] >= 2


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def no_such_endpoint(request: web.BaseRequest, _: str) -> web.StreamResponse | None:
    if request.path.split("/")[2] == "misspelt":
        return web.json_response({"error": "endpoint not found"}, status=404)
    return None


async def test_an_endpoint_that_does_not_exist_is_refused_before_anything_is_sent_or_made(tmp_path: Path):
    write_lines(tmp_path, LINES)
    async with serving(no_such_endpoint) as server:
        arguments = ["run", "in.jsonl", "--base-url", server.endpoint.base_url, "--sweep", "endpoint=good,misspelt"]
        done = await asyncio.to_thread(batchrun, *arguments, cwd=tmp_path)
        assert server.seen["run"] == 0
        assert done.returncode == 2, done.stderr
        assert "--sweep endpoint: there is no endpoint misspelt" in done.stderr
        assert files_in(tmp_path) == ["in.jsonl"]
        arguments[-1] = "endpoint=good,other"
        assert (await asyncio.to_thread(batchrun, *arguments, cwd=tmp_path)).returncode == 0


def test_a_dry_run_shows_the_matrix_and_the_rows_and_sends_nothing(tmp_path: Path):
    write_lines(tmp_path, LINES)
    done = batchrun(
        *[
            "run",
            "in.jsonl",
            "-e",
            "nowhere",
            "--sweep",
            "temperature=0,0.7",
            "--sweep",
            "top_p=0.5",
            "--repeat",
            "3",
            "--dry-run",
            "all",
        ],
        cwd=tmp_path,
    )
    assert done.returncode == 0
    assert "sweep: temperature (0, 0.7) x top_p (0.5) x 3 samples: 6 rows per line" in done.stderr
    assert "24 rows" in done.stderr
    bodies = [orjson.loads(line) for line in done.stdout.splitlines()]
    assert len(bodies) == 24
    assert bodies[0]["input"]["sampling_params"] == {"temperature": 0, "top_p": 0.5, "seed": 1}
    assert not list(tmp_path.glob("*.state"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("-e x --sweep temperature", "is not KEY=V1,V2"),
        ("-e x --sweep temperature=", "no value is given"),
        ("-e x --sweep temperature=[]", "no value is given"),
        ("-e x --sweep temperature=1,,2", "a value between commas is empty"),
        ("-e x --sweep temperature=1 --sweep temperature=2", "given twice"),
        ("-e x --sweep temperature=1 --set temperature=2", "--set temperature would override"),
        ("-e x --sweep tempo=1", "no such sampling parameter"),
        ("-e x --sweep endpoint=a,b", "both --endpoint and --sweep endpoint=... are given"),
        ("--sweep endpoint=local,b", "the built-in endpoint `local` cannot be combined"),
        ("--sweep endpoint=a/b", "is not an endpoint ID"),
        ("-e x --repeat 0", "--repeat"),
    ],
)
def test_a_wrong_sweep_is_one_clear_line_and_exit_2(tmp_path: Path, arguments: str, words: str):
    write_lines(tmp_path, LINES)
    done = batchrun("run", "in.jsonl", *arguments.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert read_lines(tmp_path / "in.results.jsonl") == []
