"""Runs that write OpenAI's format, and results that are left in input order: through the command, crashes included."""

from __future__ import annotations

import asyncio
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from batchrun.errors import OutputError, StateError
from batchrun.local.echo import EchoWorker
from batchrun.results.reader import LinesByPosition
from batchrun.results.record import read_record
from batchrun.runs.ordering import order_results
from batchrun.state.reader import StateReader
from batchrun.state.store import Store
from tests.support.claims import assert_adds_up
from tests.support.command import batchrun
from tests.support.crashes import ROWS, Nights, after_every
from tests.support.rehearsal import read_lines, rehearse, serving, write_lines

if TYPE_CHECKING:
    from pathlib import Path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    local = ("-e", "local", "--worker", "echo", "--progress", "none")
    return batchrun("run", "in.jsonl", "-o", "out.jsonl", *local, *arguments, cwd=folder)


def openai_lines(rows: int = 6) -> list[dict[str, Any]]:
    """Chat and completion requests in turn."""
    bodies = [
        ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "so it goes"}]}),
        ("/v1/completions", {"model": "m", "prompt": "so it goes"}),
    ]
    return [
        {"custom_id": f"r{n}", "method": "POST", "url": bodies[n % 2][0], "body": bodies[n % 2][1]} for n in range(rows)
    ]


def test_results_of_openai_batch_lines_are_openai_batch_results(tmp_path: Path):
    write_lines(tmp_path, openai_lines())
    assert run(tmp_path, "-j", "3").returncode == 0
    lines = read_lines(tmp_path / "out.jsonl")
    assert sorted(line["custom_id"] for line in lines) == [f"r{n}" for n in range(6)]
    for line in lines:
        response = line["response"]
        assert (line["error"], response["status_code"]) == (None, 200)
        assert line["id"] == f"batch_req_{response['request_id']}"
        if int(line["custom_id"][1:]) % 2:
            assert Completion.model_validate(response["body"], strict=True).choices[0].text == "so it goes"
        else:
            said = ChatCompletion.model_validate(response["body"], strict=True)
            assert said.choices[0].message.content == "so it goes"
    assert batchrun("verify", "out.jsonl.state", cwd=tmp_path).returncode == 0
    status = orjson.loads(batchrun("status", "out.jsonl.state", "--json", cwd=tmp_path).stdout)
    assert (status["succeeded"], status["failed"]) == (6, 0)
    assert len({line["id"] for line in lines}) == 6


@pytest.mark.parametrize(
    ("lines", "arguments", "is_openai"),
    [
        (openai_lines(2), (), True),
        (openai_lines(2), ("--format", "batchrun"), False),
        ([*openai_lines(2), {"prompt": "x"}], (), False),
        ([{"prompt": "x"}], (), False),
        ([{"prompt": "x"}, {"messages": [{"role": "user", "content": "y"}]}], ("--format", "openai"), True),
    ],
)
def test_the_format_follows_the_lines_unless_it_is_said(tmp_path: Path, lines: list, arguments: tuple, is_openai: bool):
    write_lines(tmp_path, lines)
    assert run(tmp_path, *arguments).returncode == 0
    assert all(("response" in line) == is_openai for line in read_lines(tmp_path / "out.jsonl"))


def test_what_was_decided_stays_and_another_format_is_refused_by_name(tmp_path: Path):
    write_lines(tmp_path, openai_lines(2))
    assert run(tmp_path).returncode == 0
    write_lines(tmp_path, [*openai_lines(2), {"id": "late", "prompt": "x"}])
    refused = run(tmp_path, "--format", "batchrun")
    assert refused.returncode == 2
    assert "was created with --format openai (now --format batchrun)" in refused.stderr
    assert run(tmp_path, "--format", "openai").returncode == 0
    assert batchrun("resume", "out.jsonl.state", "--worker", "echo", "--progress", "none", cwd=tmp_path).returncode == 0
    assert [line["custom_id"] for line in read_lines(tmp_path / "out.jsonl")][-1] == "late"
    assert_adds_up(tmp_path / "out.jsonl.state")


def test_the_rows_of_a_sweep_have_their_ids_and_values_in_the_format(tmp_path: Path):
    write_lines(tmp_path, openai_lines(2))
    assert run(tmp_path, "--sweep", "temperature=0,1", "--ordered").returncode == 0
    lines = read_lines(tmp_path / "out.jsonl")
    assert [(line["custom_id"], line["batchrun"]["variant"]) for line in lines] == [
        (f"r{n}/temperature={value}", {"temperature": value}) for n in range(2) for value in (0, 1)
    ]


def test_a_state_file_from_before_there_were_formats_continues_in_ours(tmp_path: Path):
    write_lines(tmp_path, openai_lines(2))
    assert run(tmp_path, "--format", "batchrun").returncode == 0
    with Store(tmp_path / "out.jsonl.state") as store:
        options = store.get_setting("options")
        del options["format"], options["ordered"]
        store.set_setting("options", options)
    write_lines(tmp_path, openai_lines(4))
    assert run(tmp_path).returncode == 0
    assert all(line["status"] == "COMPLETED" for line in read_lines(tmp_path / "out.jsonl"))


def test_rows_that_failed_stand_in_an_error_file_of_the_format_that_is_input_again(tmp_path: Path):
    bad = openai_lines(3)
    bad[1]["body"] = {**bad[1]["body"], "max_tokens": 0}
    write_lines(tmp_path, bad)
    assert run(tmp_path).returncode == 3
    (line,) = read_lines(tmp_path / "out.errors.jsonl")
    said = {"message": "max_tokens must be at least 1, got 0.", "type": "BadRequestError", "param": None, "code": 400}
    answered = {"status_code": 400, "request_id": line["batchrun"]["job"]["id"], "body": {"error": said}}
    assert (line["custom_id"], line["response"]) == ("r1", answered)
    assert line["error"] == {"code": "bad_request", "message": "max_tokens must be at least 1, got 0."}
    assert line["batchrun"]["request"] == bad[1]
    assert_adds_up(tmp_path / "out.jsonl.state")
    shown = batchrun("run", "out.errors.jsonl", "-e", "local", "--dry-run", cwd=tmp_path)
    assert orjson.loads(shown.stdout)["input"] == {"openai_route": bad[1]["url"], "openai_input": bad[1]["body"]}
    again = batchrun(
        "run", "out.errors.jsonl", "-e", "local", "--worker", "echo", "--set", "max_tokens=9", cwd=tmp_path
    )
    assert again.returncode == 0
    assert [line["custom_id"] for line in read_lines(tmp_path / "out.errors.results.jsonl")] == ["r1"]


class Older(EchoWorker):
    """Answers as worker-vllm before 2.24."""

    def answer(self, request: dict) -> object:
        return [{"choices": [{"tokens": ["so ", "it goes"]}], "usage": {"input": 4, "output": 3}}]


async def test_answers_of_the_older_worker_become_what_the_line_asked_for(tmp_path: Path):
    write_lines(tmp_path, openai_lines(2))
    async with serving(worker=Older()) as server:
        await rehearse(tmp_path, server.endpoint.base_url)
    bodies = {line["custom_id"]: line["response"]["body"] for line in read_lines(tmp_path / "out.jsonl")}
    chat = ChatCompletion.model_validate(bodies["r0"], strict=True)
    text = Completion.model_validate(bodies["r1"], strict=True)
    assert chat.choices[0].message.content == text.choices[0].text == "so it goes"
    assert (chat.model, chat.usage.total_tokens, text.model) == ("m", 7, "m")


@pytest.mark.parametrize("worker", [EchoWorker, Older])
@pytest.mark.parametrize("has_input", [True, False])
async def test_an_export_into_the_other_format_and_back_is_what_it_was(tmp_path: Path, worker: type, has_input: bool):
    exported = {}
    for form in ("openai", "batchrun"):
        folder = tmp_path / form
        folder.mkdir()
        write_lines(folder, openai_lines())
        async with serving(worker=worker()) as server:
            await rehearse(folder, server.endpoint.base_url, format=form)
        if not has_input:
            (folder / "in.jsonl").unlink()
        for target in ("openai", "batchrun"):
            done = batchrun("export", "out.jsonl.state", "-o", f"{target}.jsonl", "--format", target, cwd=folder)
            assert "6 of 6 rows exported" in done.stderr
            exported[form, target] = read_lines(folder / f"{target}.jsonl")
        assert batchrun("export", "out.jsonl.state", "-o", "x.jsonl", cwd=folder).returncode == 0
        assert (folder / "x.jsonl").read_bytes() == (folder / f"{form}.jsonl").read_bytes()
    ours, theirs = exported["openai", "batchrun"], exported["batchrun", "openai"]
    assert [(line["id"], line["text"], line["status"]) for line in ours] == [
        (f"r{n}", "so it goes", "COMPLETED") for n in range(6)
    ]
    assert [shape(line) for line in ours] == [shape(line) for line in exported["batchrun", "batchrun"]]
    if has_input or worker is EchoWorker:
        assert [shape(line) for line in theirs] == [shape(line) for line in exported["openai", "openai"]]
    for line in theirs:
        model = Completion if line["response"]["body"]["object"] == "text_completion" else ChatCompletion
        model.model_validate(line["response"]["body"], strict=True)


def shape(line: dict[str, Any]) -> Any:
    """A line without what differs from run to run: ids and times of jobs, and folders."""
    line = orjson.loads(orjson.dumps(line))
    facts = line.get("batchrun", line)
    facts["job"], facts["source"]["file"] = sorted(facts["job"]), None
    if "response" in line:
        body = line["response"]["body"]
        line["id"] = line["response"]["request_id"] = body["id"] = body["created"] = None
    return line


def ids(folder: Path) -> list[str]:
    """The rows of the results file, in its order."""
    return [read_record(line).id for line in (folder / "out.jsonl").read_bytes().splitlines()]


IN_ORDER = [f"r{n}" for n in range(8)]
BACK_TO_FRONT = [*IN_ORDER[4:], *IN_ORDER[:4]]


@pytest.fixture(params=["openai", "batchrun"])
def late(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A finished run of the last four rows; the first four have been put before them since."""
    write_lines(tmp_path, openai_lines(8)[4:])
    assert run(tmp_path, "--format", request.param, "-j", "1").returncode == 0
    write_lines(tmp_path, openai_lines(8))
    return tmp_path


def test_without_being_asked_results_stay_in_the_order_of_completion(late: Path):
    assert run(late, "-j", "1").returncode == 0
    assert ids(late) == BACK_TO_FRONT


def test_the_results_of_a_finished_run_are_left_in_input_order(late: Path):
    assert run(late, "-j", "1", "--ordered").returncode == 0
    assert ids(late) == IN_ORDER
    assert_adds_up(late / "out.jsonl.state")
    before = (late / "out.jsonl").stat()
    assert run(late, "--ordered").returncode == 0
    assert (late / "out.jsonl").stat() == before
    write_lines(late, [{**openai_lines(1)[0], "custom_id": "first"}, *openai_lines(8)])
    assert batchrun("resume", "out.jsonl.state", "--worker", "echo", "--progress", "none", cwd=late).returncode == 0
    assert ids(late) == ["first", *IN_ORDER]
    assert_adds_up(late / "out.jsonl.state")


def test_a_run_that_was_not_ordered_is_put_in_order_by_the_same_command(late: Path):
    assert run(late, "-j", "1").returncode == 0
    lines = sorted((late / "out.jsonl").read_bytes().splitlines())
    assert run(late, "--ordered").returncode == 0
    assert ids(late) == IN_ORDER
    assert sorted((late / "out.jsonl").read_bytes().splitlines()) == lines


class Hesitant(EchoWorker):
    """Takes longer for the first prompt than for all others."""

    async def run(self, request: dict) -> object:
        if request["prompt"] == "first":
            await asyncio.sleep(0.2)
        return EchoWorker.answer(self, request)

    answer = None


async def test_a_first_session_whose_jobs_end_out_of_order_leaves_its_results_in_order(tmp_path: Path):
    write_lines(tmp_path, [{"id": word, "prompt": word} for word in ("first", "second", "third")])
    async with serving(worker=Hesitant()) as server:
        done = await rehearse(tmp_path, server.endpoint.base_url, ordered=True)
    assert (done.summary.exit_code, done.ids()) == (0, ["first", "second", "third"])


def test_each_results_file_is_in_the_order_of_its_input(tmp_path: Path):
    (tmp_path / "in").mkdir()
    for first in (4, 0):
        for name in ("a", "b"):
            lines = [{**line, "custom_id": f"{name}{n}"} for n, line in enumerate(openai_lines(8))][first:]
            write_lines(tmp_path, lines)
            (tmp_path / "in.jsonl").rename(tmp_path / "in" / f"{name}.jsonl")
        local = ("-e", "local", "--worker", "echo", "--progress", "none")
        assert batchrun("run", "in", "-o", "out/", "--ordered", *local, cwd=tmp_path).returncode == 0
    for name in ("a", "b"):
        found = [line["custom_id"] for line in read_lines(tmp_path / "out" / f"{name}.results.jsonl")]
        assert found == [f"{name}{n}" for n in range(8)]
    assert_adds_up(tmp_path / "out" / "batchrun.state")


def test_a_run_that_is_stopped_early_is_left_in_the_order_of_completion(late: Path):
    bad = openai_lines(8)
    bad[1]["body"] = {**bad[1]["body"], "max_tokens": 0}
    write_lines(late, bad)
    assert run(late, "-j", "1", "--ordered", "--halt", "1").returncode == 4
    assert ids(late) == [*IN_ORDER[4:], "r0"]
    assert_adds_up(late / "out.jsonl.state")


def test_a_results_file_that_is_a_link_stays_one(late: Path):
    (late / "out.jsonl").rename(late / "there.jsonl")
    (late / "out.jsonl").symlink_to("there.jsonl")
    assert run(late, "-j", "1", "--ordered").returncode == 0
    assert ids(late) == IN_ORDER
    assert (late / "out.jsonl").is_symlink()


def test_results_that_nobody_else_may_read_stay_so(late: Path):
    (late / "out.jsonl").chmod(0o600)
    assert run(late, "-j", "1", "--ordered").returncode == 0
    assert ids(late) == IN_ORDER
    assert (late / "out.jsonl").stat().st_mode & 0o777 == 0o600


def test_what_somebody_else_has_written_into_the_results_is_not_lost(late: Path):
    assert run(late, "-j", "1").returncode == 0
    with (late / "out.jsonl").open("ab") as file:
        file.write(b"mine\n")
    before = (late / "out.jsonl").read_bytes()
    with pytest.raises(OutputError, match="has 5 bytes that this run did not write"):
        order_results(late / "out.jsonl.state")
    assert (late / "out.jsonl").read_bytes() == before


def part_of_results(folder: Path) -> Path:
    """The results while they are put in order, before they have their name."""
    with StateReader(folder / "out.jsonl.state") as store:
        return folder / f"out.jsonl.{store.token}.part"


def test_results_that_cannot_be_put_in_order_are_as_they_were_and_the_run_says_so(late: Path):
    assert run(late, "-j", "1").returncode == 0
    part = part_of_results(late)
    part.mkdir()
    stopped = run(late, "--ordered")
    assert stopped.returncode == 4
    assert "results cannot be written: Is a directory" in " ".join(stopped.stderr.split())
    assert ids(late) == BACK_TO_FRONT
    assert_adds_up(late / "out.jsonl.state")
    part.rmdir()
    assert run(late, "--ordered").returncode == 0
    assert ids(late) == IN_ORDER


@pytest.mark.parametrize("is_renamed", [True, False])
def test_a_crash_on_either_side_of_the_rename_leaves_a_whole_run_that_continues(late: Path, is_renamed: bool):
    assert run(late, "-j", "1").returncode == 0
    state = late / "out.jsonl.state"
    if is_renamed:
        order_results(state)
    else:
        part_of_results(late).write_bytes((late / "out.jsonl").read_bytes()[:100])
    with Store(state) as store, store.transaction() as db:
        db.execute("UPDATE sessions SET outcome = NULL")
    assert ids(late) == (IN_ORDER if is_renamed else BACK_TO_FRONT)
    assert_adds_up(state)
    assert run(late, "--ordered").returncode == 0
    assert ids(late) == IN_ORDER
    assert_adds_up(state)
    assert not part_of_results(late).exists()


def test_results_that_are_put_in_order_while_they_are_read_are_noticed(late: Path):
    assert run(late, "-j", "1").returncode == 0
    path = late / "out.jsonl"
    with LinesByPosition({1: path}) as placed:
        order_results(late / "out.jsonl.state")
        with pytest.raises(StateError, match="was changed while it was read"):
            placed.read(1, 0, path.read_bytes().index(b"\n") + 1)


@pytest.mark.parametrize("calls", [14, 20, 29])
async def test_a_run_in_openai_format_that_dies_again_and_again_is_whole_and_in_order(tmp_path: Path, calls: int):
    nights = Nights(tmp_path)
    nights.options = replace(nights.options, format="openai", ordered=True)
    await nights.until_it_is_over(after_every(calls))
    assert nights.crashes > 0
    assert_adds_up(nights.options.state)
    found = ids(tmp_path)
    assert found == sorted(found, key=lambda row_id: int(row_id[1:]))
    failed = [line["custom_id"] for line in read_lines(tmp_path / "out.errors.jsonl")]
    assert sorted([*found, *failed]) == sorted(f"r{n}" for n in range(ROWS))
