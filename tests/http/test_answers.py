"""Runs whose jobs succeed with answers that are of no use: broken off, empty, filtered, cut off."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import orjson
import pytest
from click.testing import CliRunner

from batchrun.cli.app import main
from batchrun.commands import status as standing
from batchrun.config import GuardOptions
from batchrun.display.summary_text import render
from batchrun.local.echo import EchoWorker
from batchrun.results.completion import is_context_full, most_tokens
from batchrun.results.text import extract
from batchrun.runs.repair import repair_results
from batchrun.state.reader import StateReader
from batchrun.state.store import Store
from tests.support.rehearsal import Listener, options_for, read_lines, rehearse, serving, write_lines

if TYPE_CHECKING:
    from pathlib import Path


def said(content: str | None, reason: str = "stop", **more: object) -> list:
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **more}, "finish_reason": reason}
    return [{"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}]


ANSWERS = {
    "good": said("fine"),
    "abort": said("The answer is fo", "abort"),
    "error": said("", "error"),
    "empty": said(""),
    "reasoning": said(None, reasoning_content="hm"),
    "filtered": said("", "content_filter"),
    "tools": said(None, "tool_calls", tool_calls=[{"id": "c", "function": {"name": "f", "arguments": "{}"}}]),
    "cut": said("half of", "length"),
}
COUNTS = {"truncated": 2, "empty": 2, "filtered": 2, "reasoning_only": 2, "tool_calls": 2}


class Scripted(EchoWorker):
    """Answers by the prompt's first word; `heals` are given good answers when they come again."""

    def __init__(self, *heals: str) -> None:
        self.heals = set(heals)
        self.seen: list[str] = []

    def answer(self, request: dict) -> object:
        text = request["messages"][0]["content"] if "messages" in request else request["prompt"]
        word = text.split()[0]
        self.seen.append(word)
        return ANSWERS["good" if word in self.heals and self.seen.count(word) > 1 else word]


def rows(*words: str, **more: object) -> list[dict]:
    return [{"id": f"{word}-{n}", "prompt": f"{word} {n}", **more} for n in range(2) for word in words]


async def run(folder: Path, *words: str, worker: Scripted | None = None, **given: object):
    write_lines(folder, rows(*words, max_tokens=5))
    async with serving(worker=worker or Scripted()) as server:
        return await rehearse(folder, server.endpoint.base_url, **given)


async def test_a_generation_that_was_broken_off_is_tried_again_and_fails_at_last(tmp_path: Path):
    write_lines(tmp_path, [{"id": "a", "prompt": "abort 1"}, {"id": "b", "prompt": "error 1"}])
    async with serving(worker=(worker := Scripted("abort"))) as server:
        done = await rehearse(tmp_path, server.endpoint.base_url, scheduler={"max_retries": 1})
    assert (done.ids(), worker.seen.count("abort"), worker.seen.count("error")) == (["a"], 2, 2)
    (failed,) = done.errors
    assert (failed["status"], failed["error"]["kind"]) == ("FAILED", "worker_error")
    assert failed["error"]["message"] == "the server broke off the generation (finish_reason `error`)"
    assert orjson.loads(failed["error"]["raw"]) == ANSWERS["error"]


async def test_who_wants_no_look_into_outputs_gets_them_with_their_reason(tmp_path: Path):
    done = await run(tmp_path, "abort", inspect_output=False, format="openai")
    choices = [record["response"]["body"]["choices"][0] for record in done.results]
    assert [choice["finish_reason"] for choice in choices] == ["abort", "abort"]


async def test_answers_without_a_text_are_counted_wherever_a_run_is_looked_at(tmp_path: Path):
    done = await run(tmp_path, *(word for word in ANSWERS if word not in ("abort", "error")))
    assert (done.summary.succeeded, done.summary.exit_code) == (12, 0)
    state = tmp_path / "out.jsonl.state"
    manifest = orjson.loads((tmp_path / "out.manifest.json").read_bytes())["summary"]
    (variant,) = orjson.loads(CliRunner().invoke(main, ["report", str(state), "--json"]).stdout)["variants"]
    looks = [done.summary.to_json(), done.listener.snapshots[-1].to_json(), manifest, variant]
    looks.append(orjson.loads(CliRunner().invoke(main, ["status", str(state), "--json"]).stdout)["counters"])
    for look in looks:
        assert {mark: look[mark] for mark in COUNTS} == COUNTS
    for shown in (render(done.summary), standing.render(standing.read_status(state))):
        for name in ("cut off", "empty", "filtered", "reasoning only", "tool calls"):
            assert f"    {name} " in shown
    assert "answers without text: 4;" in render(done.summary)
    assert "reasoning only" in CliRunner().invoke(main, ["report", str(state)]).stdout


async def test_rows_that_share_an_answer_are_each_counted(tmp_path: Path):
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": "empty"} for n in range(5)])
    async with serving(worker=Scripted()) as server:
        done = await rehearse(tmp_path, server.endpoint.base_url, dedupe=True)
    assert (done.summary.shared, done.summary.empty, done.listener.snapshots[-1].empty) == (4, 5, 5)


async def test_a_repair_counts_the_answers_again(tmp_path: Path):
    await run(tmp_path, "empty", "cut", "good")
    state = tmp_path / "out.jsonl.state"
    with Store(state) as store, store.transaction() as db:
        db.execute("UPDATE counters SET value = 77 WHERE name IN ('empty', 'truncated')")
    options = options_for(tmp_path)
    with Store(state) as store:
        repair_results(store, options, round(time.time() * 1000), Listener())
    with StateReader(state) as store:
        assert [store.counters()[mark] for mark in COUNTS] == [2, 2, 0, 0, 0]


@pytest.mark.parametrize(
    ("request_", "limit"),
    [
        ({"messages": [], "sampling_params": {"max_tokens": 9}}, 9),
        ({"messages": []}, float("inf")),
        ({"prompt": "x"}, None),
        ({"prompt": "x", "sampling_params": {"max_tokens": "8"}}, None),
        ({"openai_route": "/v1/chat/completions", "openai_input": {"messages": [], "max_completion_tokens": 4}}, 4),
        ({"openai_route": "/v1/responses", "openai_input": {"input": "x", "max_output_tokens": 4}}, 4),
        ({"image": "x"}, None),
    ],
)
def test_the_limit_of_a_request_is_read_where_it_is(request_: dict, limit: float | None):
    assert most_tokens(request_) == limit


@pytest.mark.parametrize(
    ("reasons", "made", "limit", "full"),
    [
        (["length"], 23, 100, True),  # vLLM 0.32: 1,001 tokens in, 100 asked for, 23 out
        (["length"], 100, 100, False),
        (["length"], 800, float("inf"), True),
        (["length"], 16, None, False),
        (["stop"], 3, 100, False),
        (["length", "length"], 123, 100, True),
        (["length", "stop"], 123, 100, False),
    ],
)
def test_a_text_that_ends_before_its_limit_was_cut_off_by_the_context(reasons, made, limit, full: bool):
    choices = [{"index": n, "text": "a", "finish_reason": reason} for n, reason in enumerate(reasons)]
    text = extract([{"choices": choices, "usage": {"prompt_tokens": 1001, "completion_tokens": made}}])
    assert is_context_full(text, limit) is full


@pytest.mark.parametrize("limit", [100, 5])
@pytest.mark.parametrize("pad_bytes", [0, 5000])
async def test_where_the_context_was_full_nobody_is_told_to_raise_max_tokens(tmp_path: Path, limit, pad_bytes):
    write_lines(tmp_path, [{"id": "r", "prompt": f"cut {'x' * pad_bytes}", "max_tokens": limit}])
    async with serving(worker=Scripted()) as server:
        done = await rehearse(tmp_path, server.endpoint.base_url)
    shown = " ".join(render(done.summary).split())
    assert ("the model's context was full" in shown) is (limit == 100)
    assert ("cut off at max_tokens: 1; to run" in shown) is (limit == 5)


@pytest.mark.parametrize("words", [["empty"], ["cut"], ["empty", "cut"], ["reasoning", "filtered"]])
async def test_a_canary_without_a_whole_answer_keeps_the_others_back(tmp_path: Path, words: list[str]):
    write_lines(tmp_path, [*rows(*words), *({"id": f"g{n}", "prompt": f"good {n}"} for n in range(20))])
    async with serving(worker=Scripted()) as server:
        guards = GuardOptions(canary=2 * len(words))
        stopped = await rehearse(tmp_path, server.endpoint.base_url, guards=guards)
        assert server.seen["run"] == 2 * len(words)
    assert (stopped.summary.outcome, stopped.summary.exit_code) == ("stopped", 4)
    assert "no canary row has a complete answer" in stopped.summary.reason
    assert ("--canary-allow length" in stopped.summary.hint) is ("cut" in words)


@pytest.mark.parametrize(
    ("words", "allow"),
    [(["empty", "good"], None), (["tools"], None), (["cut"], "length"), (["empty", "cut"], "length")],
)
async def test_a_canary_with_one_whole_answer_lets_the_others_go(tmp_path: Path, words: list[str], allow):
    write_lines(tmp_path, [*rows(*words), *({"id": f"g{n}", "prompt": f"good {n}"} for n in range(20))])
    async with serving(worker=Scripted()) as server:
        guards = GuardOptions(canary=2 * len(words), canary_allow=allow)
        done = await rehearse(tmp_path, server.endpoint.base_url, guards=guards)
    assert (done.summary.outcome, done.summary.exit_code) == ("finished", 0)


def test_what_a_canary_may_be_is_an_option_that_is_kept(tmp_path: Path):
    write_lines(tmp_path, rows("good"))
    asked = ["run", str(tmp_path / "in.jsonl"), "-e", "local", "--worker", "echo", "--progress", "none"]
    asked += ["-o", str(tmp_path / "o.jsonl"), "--canary", "1", "--canary-allow", "length", "--set", "max_tokens=1"]
    assert CliRunner().invoke(main, asked).exit_code == 0
    assert [record["finish_reason"] for record in read_lines(tmp_path / "o.jsonl")] == ["length", "length"]
    with StateReader(tmp_path / "o.jsonl.state") as store:
        assert store.get_setting("options")["guards"]["canary_allow"] == "length"
