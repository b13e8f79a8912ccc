"""Whole runs over HTTP: what goes wrong at the server, and how each row ends."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import orjson
import pytest
from aiohttp import web

from batchrun.commands.verify import verify
from batchrun.config import RequestOptions, SweepOptions
from batchrun.errors import InputError, RefusedError, StateError, UsageError
from batchrun.local.workers import WorkerFailure
from tests.support.fault_server import FaultServer, body
from tests.support.rehearsal import read_lines, rehearse, serving, write_lines
from tests.support.workers import Answering, Picky

DEAD = "vLLM server process is not running; worker is unhealthy"
PROMPTS = [{"id": f"r{n}", "prompt": f"prompt {n}", "metadata": {"n": n}} for n in range(40)]


def scripted(answers: dict) -> Answering:
    """A worker that gives each prompt the answer that stands for it; one that begins with `!` fails the job."""

    def answer(request: dict) -> object:
        given = answers[request["prompt"]]
        return WorkerFailure(given[1:]) if isinstance(given, str) and given.startswith("!") else given

    return Answering(answer)


def assert_all_succeeded_once(rehearsal) -> None:
    assert sorted(rehearsal.ids()) == sorted(line["id"] for line in PROMPTS)
    assert rehearsal.summary.exit_code == 0
    assert rehearsal.errors == []


async def test_every_prompt_becomes_one_result_with_its_metadata_and_source(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    async with serving() as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url)
    assert_all_succeeded_once(rehearsal)
    record = next(record for record in rehearsal.results if record["id"] == "r3")
    assert (record["text"], record["metadata"]) == ("prompt 3", {"n": 3})
    assert record["source"] == {"file": str(tmp_path / "in.jsonl"), "line": 4}
    assert record["job"]["endpoint"] == "local"
    assert record["usage"] == {"input_tokens": 2, "output_tokens": 2}
    assert rehearsal.summary.input_tokens == 80
    assert rehearsal.summary.calls["run"] == server.seen["run"] == 40


async def test_the_same_run_again_asks_nothing_and_changes_nothing(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url)
        before = (tmp_path / "out.jsonl").read_bytes()
        server.seen.clear()
        again = await rehearse(tmp_path, server.endpoint.base_url)
    assert server.seen == {}
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert_all_succeeded_once(again)


async def test_lines_added_to_the_input_are_run_and_only_they(tmp_path: Path):
    write_lines(tmp_path, PROMPTS[:30])
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url)
        server.seen.clear()
        write_lines(tmp_path, [*reversed(PROMPTS[:30]), *PROMPTS[30:]])
        again = await rehearse(tmp_path, server.endpoint.base_url)
    assert server.seen["run"] == 10
    assert_all_succeeded_once(again)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, "oops"),
        (502, "<html><title>Bad gateway</title></html>"),
        (524, ""),
        (200, ""),
        (200, '{"id": "x'),
        (200, "[]"),
    ],
)
async def test_a_broken_answer_to_a_poll_is_asked_again_and_never_given_up(tmp_path: Path, status, body):
    broken = set()

    async def fault(request, operation):
        if operation == "status" and request.path not in broken:
            broken.add(request.path)
            return web.Response(status=status, text=body)
        return None

    write_lines(tmp_path, PROMPTS[:12])
    async with serving(fault) as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url)
    assert len(rehearsal.results) == server.seen["run"] == 12


async def test_a_reset_poll_is_asked_again(tmp_path: Path):
    broken = set()

    async def fault(request, operation):
        if operation == "status" and request.path not in broken:
            broken.add(request.path)
            request.transport.abort()

    write_lines(tmp_path, PROMPTS[:6])
    async with serving(fault) as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url)
    assert len(rehearsal.results) == server.seen["run"] == 6


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "0"}])
async def test_429_slows_down_and_counts_as_no_attempt(tmp_path: Path, headers):
    refused = {"run": 5, "status": 5}

    async def fault(request, operation):
        if refused.get(operation, 0) > 0:
            refused[operation] -= 1
            return web.Response(status=429, headers=headers)
        return None

    write_lines(tmp_path, PROMPTS)
    async with serving(fault) as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url, scheduler={"max_retries": 0})
    assert_all_succeeded_once(rehearsal)
    assert rehearsal.summary.throttled == 10
    assert {record["job"]["attempts"] for record in rehearsal.results} == {1}
    assert rehearsal.summary.unconfirmed == 0


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_submission_that_the_api_refuses_fails_alone_with_the_reason(tmp_path: Path, status):
    async def fault(request, operation):
        if operation == "run" and b'"prompt 3"' in await request.read():
            return web.json_response({"error": "not this one"}, status=status)
        return None

    write_lines(tmp_path, PROMPTS)
    async with serving(fault) as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url)
    (error,) = rehearsal.errors
    assert (error["id"], error["status"], error["error"]["kind"]) == ("r3", "REJECTED", "rejected")
    assert "not this one" in error["error"]["message"]
    assert error["request"] == PROMPTS[3]
    assert (rehearsal.summary.exit_code, len(rehearsal.results)) == (3, 39)


def lose_answer(times: int):
    """The server takes the job in, and the connection breaks before its answer, so many times."""
    lost = {"left": times}

    async def fault(request, operation):
        if operation == "run" and lost["left"] > 0:
            lost["left"] -= 1
            request.transport.abort()

    return fault


async def test_a_submission_without_an_answer_is_made_again_and_reported_as_a_possible_duplicate(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    async with serving(lose_answer(2)) as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url)
    assert_all_succeeded_once(rehearsal)
    assert rehearsal.summary.unconfirmed == 2
    marked = [record for record in rehearsal.results if record["job"].get("possible_duplicate")]
    assert [record["job"]["attempts"] for record in marked] == [2, 2]


async def test_a_submission_without_an_answer_is_kept_aside_on_request_and_submitted_on_another(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    async with serving(lose_answer(2)) as server:
        held = await rehearse(tmp_path, server.endpoint.base_url, scheduler={"unconfirmed": "hold"})
        assert (held.summary.held, held.summary.succeeded, held.summary.exit_code) == (2, 38, 3)
        again = await rehearse(tmp_path, server.endpoint.base_url)
    assert_all_succeeded_once(again)


async def test_rows_whose_submissions_are_never_answered_end_as_unconfirmed(tmp_path: Path):
    async def fault(request, operation):
        if operation == "run" and b'"prompt 3"' in await request.read():
            request.transport.abort()

    write_lines(tmp_path, PROMPTS[:6])
    async with serving(fault) as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url, scheduler={"max_retries": 1})
    (error,) = rehearsal.errors
    assert (error["id"], error["status"], error["error"]["kind"]) == ("r3", "UNCONFIRMED", "unconfirmed")
    assert error["job"]["attempts"] == 2
    assert rehearsal.summary.unconfirmed == 2


async def test_a_job_that_is_gone_is_submitted_again_and_counted(tmp_path: Path):
    gone = set()

    async def fault(request, operation):
        if operation == "status" and len(gone) < 2 and request.path not in gone:
            gone.add(request.path)
        if operation == "status" and request.path in gone:
            return web.json_response({"error": "job not found"}, status=404)
        return None

    write_lines(tmp_path, PROMPTS[:10])
    async with serving(fault) as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url)
    assert len(rehearsal.results) == 10
    assert server.seen["run"] == 12
    assert sorted(record["job"]["attempts"] for record in rehearsal.results) == [1] * 8 + [2] * 2
    assert rehearsal.summary.retries == 2


@pytest.mark.parametrize(
    ("answer", "kind", "message", "attempts"),
    [
        ("!job timed out after 1 retries", "platform", "job timed out after 1 retries", 3),
        ("!{'message': 'vLLM returned HTTP 503: busy', 'type': 'worker_error'}", "worker_error", "busy", 3),
        ('!{\'message\': \'vLLM returned HTTP 400: {"error": {"message": "no"}}\'}', "bad_request", "no", 1),
        ("!Unexpected keyword argument 'x'", "handler_error", "Unexpected keyword", 1),
        ("!executionTimeout exceeded", "timed_out", "raise --execution-timeout", 1),
        (f"!{{'message': '{DEAD}', 'type': 'worker_error', 'code': None}}", "worker_error", DEAD, 3),
        ([{"object": "error", "message": "hidden", "code": 400}], "bad_request", "hidden", 1),
        ([{"error": "hidden too"}], "handler_error", "hidden too", 1),
        ([], "no_output", "the job completed without output", 1),
        (None, "no_output", "the job completed without output", 1),
    ],
)
async def test_a_failed_job_says_why_and_is_retried_only_where_that_may_help(
    tmp_path: Path, answer, kind, message, attempts
):
    write_lines(tmp_path, [{"id": "x", "prompt": "p"}])
    async with serving(worker=scripted({"p": answer})) as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url, scheduler={"max_retries": 2})
    (error,) = rehearsal.errors
    assert (error["status"], error["error"]["kind"], error["job"]["attempts"]) == ("FAILED", kind, attempts)
    assert message in error["error"]["message"]
    assert server.seen["run"] == attempts


async def test_a_route_that_the_worker_does_not_know_is_named_in_the_error_file_and_in_the_summary(tmp_path: Path):
    async def fault(request, operation):
        said = """{'message': 'vLLM returned HTTP 404: {"detail":"Not Found"}', 'type': 'worker_error', 'code': None}"""
        answer = {"id": request.path.rpartition("/")[2], "status": "FAILED", "error": said}
        return web.json_response(answer) if operation == "status" else None

    asked = {"openai_route": "/v1/embeddings", "openai_input": {"input": "hello"}}
    write_lines(tmp_path, [{"id": "x", "input": asked}])
    async with serving(fault) as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url)
    (error,) = rehearsal.errors
    assert (error["error"]["kind"], error["job"]["attempts"]) == ("bad_request", 1)
    assert error["error"]["message"].startswith("the worker has no route /v1/embeddings (HTTP 404): it is misspelt")
    assert "/v1/embeddings" in rehearsal.summary.failures[0].example_message


@pytest.mark.parametrize(
    ("status", "kind", "attempts"),
    [("CANCELLED", "cancelled", 1), ("TIMED_OUT", "timed_out", 2), ("FAILED", "platform", 2)],
)
async def test_a_job_that_ends_without_a_word_is_judged_by_its_state(tmp_path: Path, status, kind, attempts):
    async def fault(request, operation):
        job_id = request.path.rpartition("/")[2]
        return web.json_response({"id": job_id, "status": status}) if operation == "status" else None

    write_lines(tmp_path, [{"id": "x", "prompt": "p"}])
    async with serving(fault) as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url, scheduler={"max_retries": 1})
    (error,) = rehearsal.errors
    assert (error["status"], error["error"]["kind"], error["job"]["attempts"]) == (status, kind, attempts)


async def test_an_error_field_is_data_when_outputs_are_not_inspected(tmp_path: Path):
    write_lines(tmp_path, [{"id": "x", "prompt": "p"}])
    async with serving(worker=scripted({"p": {"error": 0.03, "model": "fit"}})) as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url, inspect_output=False)
    assert rehearsal.results[0]["output"] == {"error": 0.03, "model": "fit"}


async def test_failed_rows_are_taken_up_again_and_leave_the_error_file(tmp_path: Path):
    answers = {"p": "!broken", "q": "fine"}
    write_lines(tmp_path, [{"id": "x", "prompt": "p"}, {"id": "y", "prompt": "q"}])
    async with serving(worker=scripted(answers)) as server:
        first = await rehearse(tmp_path, server.endpoint.base_url)
        assert (first.ids(), [error["id"] for error in first.errors]) == (["y"], ["x"])
        answers["p"] = "mended"
        kept = await rehearse(tmp_path, server.endpoint.base_url, retry=("timed_out",))
        assert [error["id"] for error in kept.errors] == ["x"]
        again = await rehearse(tmp_path, server.endpoint.base_url, retry=())
    assert (sorted(again.ids()), again.errors, again.summary.exit_code) == (["x", "y"], [], 0)
    assert not (tmp_path / "out.errors.jsonl").exists()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, "", "API key is not accepted"),
        (402, '{"error": "no funds"}', "no credit left"),
        (403, "", "may not use this endpoint"),
        (404, '{"message": "Not Found"}', "no such endpoint"),
        (302, "", "refuses every request"),
    ],
)
@pytest.mark.parametrize("operation", ["health", "run"])
async def test_a_refused_key_or_endpoint_stops_at_once_and_loses_nothing(
    tmp_path: Path, status, body, words, operation
):
    async def fault(request, asked):
        return web.Response(status=status, text=body) if asked == operation else None

    write_lines(tmp_path, PROMPTS)
    async with serving(fault) as server:
        stopped = await rehearse(tmp_path, server.endpoint.base_url)
        assert (stopped.summary.exit_code, stopped.summary.not_run) == (4, 40)
        assert words in stopped.summary.reason
        assert stopped.summary.hint
        assert stopped.summary.unconfirmed == 0
    async with serving() as server:
        assert_all_succeeded_once(await rehearse(tmp_path, server.endpoint.base_url))


async def test_the_preflight_stops_a_run_before_anything_is_submitted(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    async with serving(endpoint_id="another") as server:
        stopped = await rehearse(tmp_path, server.endpoint.base_url)
    assert stopped.summary.exit_code == 4
    assert server.seen == {"health": 1}


async def test_without_a_network_the_run_waits_says_so_and_continues_by_itself(tmp_path: Path, unused_tcp_port: int):
    write_lines(tmp_path, PROMPTS)
    waiting = asyncio.create_task(rehearse(tmp_path, f"http://127.0.0.1:{unused_tcp_port}/v2"))
    await asyncio.sleep(0.7)
    assert not waiting.done()
    async with serving(port=unused_tcp_port):
        rehearsal = await waiting
    assert_all_succeeded_once(rehearsal)
    assert rehearsal.summary.unconfirmed == 0
    assert any("waiting for the endpoint: no connection" in s.note for s in rehearsal.listener.snapshots)


async def test_a_line_that_changes_while_the_run_continues_fails_alone(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    changed = False

    async def fault(request, operation):
        nonlocal changed
        if operation == "health" and not changed:
            changed = True
            raw = (tmp_path / "in.jsonl").read_bytes()
            (tmp_path / "in.jsonl").write_bytes(raw.replace(b"prompt 7", b"PROMPT 7"))

    async with serving(fault) as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url)
    (error,) = rehearsal.errors
    assert (error["id"], error["status"], error["job"]) == ("r7", "INVALID", None)
    assert "in.jsonl:8 has changed" in error["error"]["message"]
    assert len(rehearsal.results) == 39


async def test_results_that_were_not_committed_are_taken_over_and_a_torn_one_is_made_again(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url, limit=21)
    *lines, last = (tmp_path / "out.jsonl").read_bytes().splitlines(keepends=True)
    with closing(sqlite3.connect(tmp_path / "out.jsonl.state")) as db, db:
        db.execute("UPDATE rows SET state = 2 WHERE id = ?", (orjson.loads(last)["id"],))
        db.execute("UPDATE outputs SET committed_bytes = committed_bytes - ?", (len(last),))
    with (tmp_path / "out.jsonl").open("ab") as file:
        file.write(lines[0][:100])
    async with serving() as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url)
        assert server.seen["run"] == 19
    assert_all_succeeded_once(rehearsal)
    assert any(
        "took over 1 uncommitted result" in message and "100 bytes" in message
        for message in rehearsal.listener.messages
    )


@pytest.mark.parametrize("line", [b'{"id": "stranger"}\n', b"nonsense\n"])
async def test_a_strange_line_in_the_results_is_refused_and_left_alone(tmp_path: Path, line: bytes):
    write_lines(tmp_path, PROMPTS)
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url)
        with (tmp_path / "out.jsonl").open("ab") as file:
            file.write(line)
        before = (tmp_path / "out.jsonl").read_bytes()
        with pytest.raises(StateError, match="a line that this run did not write"):
            await rehearse(tmp_path, server.endpoint.base_url)
    assert (tmp_path / "out.jsonl").read_bytes() == before


async def test_results_without_their_state_file_are_never_written_to(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    (tmp_path / "out.jsonl").write_text("precious\n")
    with pytest.raises(StateError, match="exists, but its state file"):
        await rehearse(tmp_path, "http://127.0.0.1:9/v2")
    assert (tmp_path / "out.jsonl").read_text() == "precious\n"
    assert not (tmp_path / "out.jsonl.state").exists()


async def test_wrong_lines_are_all_named_before_anything_is_sent_and_nothing_is_left_behind(tmp_path: Path):
    write_lines(tmp_path, [PROMPTS[0], {"text": 1}, PROMPTS[1], 7])
    async with serving() as server:
        with pytest.raises(InputError) as caught:
            await rehearse(tmp_path, server.endpoint.base_url)
    assert "in.jsonl:2: no prompt in the line" in caught.value.message
    assert "in.jsonl:4: expected an object or a string, found a number" in caught.value.message
    assert server.seen == {}
    assert os.listdir(tmp_path) == ["in.jsonl"]  # noqa: PTH208 - async code is not to touch a Path's I/O


@pytest.mark.parametrize(
    ("changed", "option"),
    [
        ({"endpoint": "other"}, r"--endpoint local \(now --endpoint other\)"),
        ({"request": {"override": {"temperature": 1}}}, r"no --set \(now --set temperature=1\)"),
        ({"request": {"system": "S"}}, r"no --system \(now --system S\)"),
    ],
)
async def test_other_options_for_the_same_state_file_are_refused_by_name(tmp_path: Path, changed, option):
    write_lines(tmp_path, PROMPTS)
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url)
        if "request" in changed:
            changed = {"request": RequestOptions(**changed["request"])}
        with pytest.raises(StateError, match=f"was created with {option}"):
            await rehearse(tmp_path, server.endpoint.base_url, **changed)


OTHERWISE = {
    "--set": {"request": RequestOptions(override={"max_tokens": 1})},
    "--sweep": {"sweep": SweepOptions((("temperature", (0, 1)),))},
    "--dedupe": {"dedupe": True},
    "--shard": {"shard": "1/1"},
    "--limit": {"limit": 2},
    "--format": {"format": "openai"},
}


@pytest.mark.parametrize("option", OTHERWISE)
async def test_options_may_change_while_nothing_was_submitted(tmp_path: Path, option: str):
    lines = [{"id": f"r{n}", "prompt": "one two"} for n in range(3)]
    write_lines(tmp_path, lines)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    write_lines(fresh, lines)
    async with FaultServer({}, health=(body({"error": "unauthorized"}, 401),)) as server:
        assert (await rehearse(tmp_path, server.base_url)).summary.exit_code == 4
    async with serving() as server:
        changed = await rehearse(tmp_path, server.endpoint.base_url, **OTHERWISE[option])
        wanted = await rehearse(fresh, server.endpoint.base_url, **OTHERWISE[option])
    assert changed.summary.exit_code == 0
    assert len(changed.results) == len(wanted.results) == changed.summary.total
    assert [sorted(record) for record in changed.results] == [sorted(record) for record in wanted.results]
    assert {record.get("text") for record in changed.results} == {record.get("text") for record in wanted.results}
    assert "nothing was submitted yet" in changed.listener.messages[0]
    assert verify(tmp_path / "out.jsonl.state").is_whole
    # From here on they are the run's.
    again = await rehearse(tmp_path, server.endpoint.base_url, **OTHERWISE[option])
    assert again.summary.total == changed.summary.total


async def test_another_output_while_nothing_was_submitted_is_still_not_written_over(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    async with FaultServer({}, health=(body({"error": "unauthorized"}, 401),)) as server:
        assert (await rehearse(tmp_path, server.base_url)).summary.exit_code == 4
    theirs = tmp_path / "theirs.jsonl"
    theirs.write_text('{"id": "somebody else"}\n')
    async with serving() as server:
        with pytest.raises(StateError, match=r"theirs.jsonl exists, but its state file"):
            await rehearse(tmp_path, server.endpoint.base_url, output=theirs)
        moved = await rehearse(tmp_path, server.endpoint.base_url, output=tmp_path / "new.jsonl")
    assert theirs.read_text() == '{"id": "somebody else"}\n'
    assert len(read_lines(tmp_path / "new.jsonl")) == len(PROMPTS) == moved.summary.succeeded


async def test_two_inputs_of_one_name_cannot_share_a_folder_of_results(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_lines(tmp_path / name, PROMPTS)
    inputs = tuple(str(tmp_path / name / "in.jsonl") for name in ("a", "b"))
    with pytest.raises(UsageError, match="would have the same results file"):
        await rehearse(tmp_path, "http://127.0.0.1:9/v2", inputs=inputs, output_is_folder=True)


async def test_a_folder_of_results_has_a_file_for_each_input(tmp_path: Path):
    for name, lines in (("a", PROMPTS[:3]), ("b", PROMPTS[3:5])):
        (tmp_path / name).mkdir()
        write_lines(tmp_path / name, lines)
        (tmp_path / name / "in.jsonl").rename(tmp_path / f"{name}.jsonl")
    async with serving() as server:
        await rehearse(
            tmp_path,
            server.endpoint.base_url,
            inputs=(str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")),
            output=tmp_path / "results",
            output_is_folder=True,
        )
    counts = {name: len(read_lines(tmp_path / "results" / f"{name}.results.jsonl")) for name in ("a", "b")}
    assert counts == {"a": 3, "b": 2}


def test_refused_is_a_kind_of_stopped():
    assert RefusedError("x").exit_code == 4


async def test_every_file_that_a_summary_names_is_named_by_its_absolute_path(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path, [{"prompt": "good"}, {"prompt": "bad"}])
    async with serving(worker=Picky()) as server:
        summary = (await rehearse(Path(), server.endpoint.base_url)).summary
    named = [*summary.results, *summary.errors, summary.state, summary.manifest]
    assert named == [tmp_path / f"out.{end}" for end in ("jsonl", "errors.jsonl", "jsonl.state", "manifest.json")]
