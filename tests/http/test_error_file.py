"""Every row that has ended is in the results or in the error file, with all that is known of its job."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import orjson
import pytest
from aiohttp import web

from batchrun.commands.export import Wanted, export
from batchrun.commands.findings import render
from batchrun.commands.verify import verify
from batchrun.config import SweepOptions
from batchrun.local.workers import WorkerFailure
from batchrun.prompts.shapes import parse_line
from batchrun.state.reader import StateReader
from tests.support.rehearsal import mixed_run, read_lines, rehearse, serving, write_lines
from tests.support.workers import Answering, Picky

if TYPE_CHECKING:
    from pathlib import Path

PROMPTS = [{"id": f"r{n}", "prompt": f"{'bad' if n == 2 else 'good'} {n}"} for n in range(5)]


def losing(*prompts: str):
    """Breaks the connections of submissions of these prompts, before or after they have made a job."""

    async def fault(request, operation):
        body = await request.read()
        if operation == "run" and any(prompt.encode() in body for prompt in prompts):
            request.transport.abort()

    return fault


async def held_run(folder: Path, **given: object):
    write_lines(folder, PROMPTS)
    async with serving(losing("good 1", "good 3"), worker=Picky()) as server:
        return await rehearse(folder, server.endpoint.base_url, scheduler={"unconfirmed": "hold"}, **given)


async def test_held_rows_are_in_the_error_file_as_unconfirmed(tmp_path: Path):
    done = await held_run(tmp_path)
    assert (sorted(done.ids()), done.summary.held, done.summary.failed) == (["r0", "r4"], 2, 1)
    assert [(record["id"], record["status"]) for record in done.errors] == [
        ("r1", "UNCONFIRMED"),
        ("r2", "FAILED"),
        ("r3", "UNCONFIRMED"),
    ]
    held = done.errors[0]
    assert (held["error"]["kind"], held["request"], held["job"]["attempts"]) == ("unconfirmed", PROMPTS[1], 1)
    assert parse_line(orjson.dumps(held)).id == "r1", "the line is valid input"
    assert done.summary.errors == [tmp_path / "out.errors.jsonl"]
    assert verify(tmp_path / "out.jsonl.state").is_whole


async def test_held_rows_leave_the_error_file_when_they_are_taken_up(tmp_path: Path):
    await held_run(tmp_path)
    async with serving(worker=Picky()) as server:
        again = await rehearse(tmp_path, server.endpoint.base_url)
    assert [record["id"] for record in again.errors] == ["r2"]
    assert sorted(again.ids()) == ["r0", "r1", "r3", "r4"]
    assert verify(tmp_path / "out.jsonl.state").is_whole


async def test_an_error_file_of_an_older_version_lacks_held_rows_and_that_is_noted(tmp_path: Path):
    await held_run(tmp_path)
    path = tmp_path / "out.errors.jsonl"
    path.write_bytes(
        b"".join(line for line in path.read_bytes().splitlines(keepends=True) if b"UNCONFIRMED" not in line)
    )
    found = verify(tmp_path / "out.jsonl.state")
    assert found.is_whole
    assert "held rows missing from the error files: 2" in render(found)


async def test_an_error_record_says_how_long_its_job_was_in_the_queue_and_at_work(tmp_path: Path):
    await mixed_run(tmp_path)
    with StateReader(tmp_path / "out.jsonl.state") as store:
        known = {row: times for row, *times in store.query("SELECT carried, delay_ms, execution_ms FROM jobs")}
    errors = read_lines(tmp_path / "out.errors.jsonl")
    assert [[record["job"]["delay_ms"], record["job"]["execution_ms"]] for record in errors] == [
        known[4],
        known[8],
        known[12],
    ]
    assert all(record["job"]["execution_ms"] is not None for record in errors)


async def test_an_export_of_all_rows_has_results_and_errors_in_input_order(tmp_path: Path):
    await held_run(tmp_path)
    state, target = tmp_path / "out.jsonl.state", tmp_path / "all.jsonl"
    told = str(export(state, target, io.BytesIO(), Wanted(with_errors=True)))
    assert told == f"5 of 5 rows exported to {target}, 3 of them as error records"
    records = read_lines(target)
    assert [record["id"] for record in records] == ["r0", "r1", "r2", "r3", "r4"]
    by_id = {
        record["id"]: record for name in ("out", "out.errors") for record in read_lines(tmp_path / f"{name}.jsonl")
    }
    assert records == [by_id[f"r{n}"] for n in range(5)]
    export(state, target, io.BytesIO(), Wanted("openai", with_errors=True))
    lines = read_lines(target)
    assert [(line["custom_id"], line["error"] is None) for line in lines] == [(f"r{n}", n in (0, 4)) for n in range(5)]
    export(state, target, io.BytesIO())
    assert len(read_lines(target)) == 2


async def test_an_export_of_all_rows_follows_an_input_that_was_reordered(tmp_path: Path):
    for lines in (PROMPTS, PROMPTS[::-1]):
        write_lines(tmp_path, lines)
        async with serving(worker=Picky()) as server:
            await rehearse(tmp_path, server.endpoint.base_url)
    stdout = io.BytesIO()
    export(tmp_path / "out.jsonl.state", None, stdout, Wanted(with_errors=True))
    assert [orjson.loads(line)["id"] for line in stdout.getvalue().splitlines()] == ["r4", "r3", "r2", "r1", "r0"]


VLLM_400 = (
    '{\'message\': \'vLLM returned HTTP 400: {"error":{"message":"max_tokens must be at least 1, got 0.",'
    '"type":"BadRequestError","param":"max_tokens","code":400}}\', \'type\': \'worker_error\', \'code\': None}'
)
"""As worker-vllm 2.25 gave it."""
FAILURES = {"vllm": VLLM_400, "platform": "job timed out after 1 retries"}


@pytest.mark.parametrize(("prompt", "code", "error_type"), [("vllm", 400, "BadRequestError"), ("platform", None, None)])
async def test_an_error_line_of_openais_format_has_the_answer_that_had_an_http_code(tmp_path, prompt, code, error_type):
    write_lines(tmp_path, [{"id": "a", "prompt": prompt}])
    async with serving(worker=Answering(lambda request: WorkerFailure(FAILURES[request["prompt"]]))) as server:
        done = await rehearse(tmp_path, server.endpoint.base_url, format="openai", scheduler={"max_retries": 0})
    (line,) = done.errors
    assert line["error"]["code"] in ("bad_request", "platform")
    if code is None:
        assert line["response"] is None
        return
    assert line["response"] == {
        "status_code": code,
        "request_id": line["batchrun"]["job"]["id"],
        "body": {"error": {"message": line["error"]["message"], "type": error_type, "param": None, "code": code}},
    }


async def test_a_submission_that_was_rejected_has_the_apis_code(tmp_path: Path):
    async def fault(request, operation):
        if operation == "run":
            return web.json_response({"error": "input is not what it should be"}, status=422)
        return None

    write_lines(tmp_path, [{"id": "a", "prompt": "x"}])
    async with serving(fault) as server:
        done = await rehearse(tmp_path, server.endpoint.base_url, format="openai")
    (line,) = done.errors
    assert (line["response"]["status_code"], line["error"]["code"]) == (422, "rejected")
    assert line["response"]["body"]["error"]["code"] == 422


async def test_the_error_file_of_a_sweep_is_valid_input_in_which_each_row_keeps_its_name(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    sweep = SweepOptions((("temperature", (0, 0.5)),), repeat=2)
    async with serving(worker=Picky()) as server:
        await rehearse(tmp_path, server.endpoint.base_url, sweep=sweep)
    lines = (tmp_path / "out.errors.jsonl").read_bytes().splitlines()
    names = [record["id"] for record in read_lines(tmp_path / "out.errors.jsonl")]
    assert len(set(names)) == 4
    assert [parse_line(line).id for line in lines] == names
    assert {parse_line(line, reading=2).id for line in lines} == {"r2"}
    again = tmp_path / "again"
    again.mkdir()
    (again / "in.jsonl").write_bytes(b"\n".join(lines))
    async with serving() as server:
        done = await rehearse(again, server.endpoint.base_url)
    assert sorted(done.ids()) == sorted(names)
