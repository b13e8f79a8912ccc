"""Answers that are checked, over real HTTP: what is asked, what is refused, and what is asked again."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from batchrun.config import AnswerOptions, GuardOptions, HaltOptions, RequestOptions, SweepOptions
from batchrun.engine.signals import Leaving, Wish
from batchrun.errors import StateError
from batchrun.prompts.schemas import read_schema
from batchrun.results.conditions import Conditions
from batchrun.runs.choosing import Selection, choose
from batchrun.runs.closing import conclude
from batchrun.runs.driving import drive
from batchrun.runs.opening import open_run
from batchrun.runs.superseding import Redo
from batchrun.state.reader import StateReader
from tests.support.claims import assert_adds_up
from tests.support.rehearsal import Listener, hurried, options_for, read_lines, rehearse, serving, write_lines
from tests.support.workers import LOST, Answering

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = read_schema("name, age int")
RIGHT = '{"name": "Ada", "age": 36}'
WRONG = '{"name": "Ada", "age": "36"}'
FENCED = f"<think>36, I think.</think>Here it is:\n```json\n{RIGHT}\n```"
ASK = RequestOptions(schema=SCHEMA)


def chat(*texts: str, reason: str = "stop") -> Any:
    """An answer of worker-vllm, with a choice for each text."""
    choices = [
        {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        for index, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16}
    return [{"object": "chat.completion", "choices": choices, "usage": usage}]


def prompt_of(request: dict[str, Any]) -> str:
    """What a request is about: its prompt, or its first message."""
    body = request.get("openai_input", request)
    return body["prompt"] if "prompt" in body else body["messages"][0]["content"]


def sampling_of(request: dict[str, Any]) -> dict[str, Any]:
    return request.get("openai_input") or request.get("sampling_params", {})


@dataclass
class Learner:
    """A worker that answers each prompt with these outputs, one after the other; the last one again and again."""

    outputs: list[Any]
    requests: list[dict[str, Any]] = field(default_factory=list)
    turns: Counter[str] = field(default_factory=Counter)

    def worker(self) -> Answering:
        return Answering(self.answer)

    def answer(self, request: dict[str, Any]) -> Any:
        prompt = prompt_of(request)
        self.requests.append(request)
        self.turns[prompt] += 1
        return self.outputs[min(self.turns[prompt], len(self.outputs)) - 1]


def messages(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


async def run(folder: Path, learner: Learner, lines: list[Any], *, reask: int = 2, **given: Any) -> Any:
    write_lines(folder, lines)
    given = {"request": ASK, "scheduler": {"reask": reask}, **given}
    async with serving(worker=learner.worker()) as server:
        return await rehearse(folder, server.endpoint.base_url, **given)


# What is asked


LINES = {
    "a prompt": ({"prompt": "who?"}, lambda request: request["sampling_params"]["response_format"]),
    "messages": (messages("who?"), lambda request: request["sampling_params"]["response_format"]),
    "an input for vLLM": ({"input": {"prompt": "who?"}}, lambda request: request["sampling_params"]["response_format"]),
    "an OpenAI line": (
        {"custom_id": "a", "url": "/v1/chat/completions", "body": messages("who?")},
        lambda request: request["openai_input"]["response_format"],
    ),
}


@pytest.mark.parametrize("name", LINES)
async def test_each_request_asks_for_the_schema(tmp_path: Path, name: str):
    line, format_of = LINES[name]
    learner = Learner([chat(RIGHT)])
    done = await run(tmp_path, learner, [line])
    assert format_of(learner.requests[0]) == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": SCHEMA},
    }
    assert done.summary.succeeded == 1


async def test_a_line_with_a_format_of_its_own_keeps_it_and_is_checked_all_the_same(tmp_path: Path):
    learner = Learner([chat(WRONG)])
    own = {"type": "json_object"}
    done = await run(tmp_path, learner, [messages("who?", response_format=own)], reask=0)
    assert sampling_of(learner.requests[0])["response_format"] == own
    assert [record["error"]["kind"] for record in done.errors] == ["invalid_output"]


async def test_the_input_of_another_worker_is_sent_as_it_is_and_its_answer_checked(tmp_path: Path):
    requests = []

    def answer(request: dict[str, Any]) -> Any:
        requests.append(request)
        return RIGHT if len(requests) == 2 else "no"

    write_lines(tmp_path, [{"input": {"image": "a.png"}}])
    async with serving(worker=Answering(answer)) as server:
        done = await rehearse(tmp_path, server.endpoint.base_url, request=ASK, scheduler={"reask": 2})
    assert requests == [{"image": "a.png"}] * 2
    assert done.results[0]["parsed"] == {"name": "Ada", "age": 36}


# What comes of an answer


@pytest.mark.parametrize("text", [RIGHT, FENCED, f"```\n{RIGHT}\n```", f"  \n{RIGHT}\n"])
async def test_the_value_of_an_answer_is_in_its_result(tmp_path: Path, text: str):
    done = await run(tmp_path, Learner([chat(text)]), [messages("who?")])
    (record,) = done.results
    assert record["parsed"] == {"name": "Ada", "age": 36}
    assert record["text"] == text
    assert list(record)[:5] == ["id", "status", "text", "finish_reason", "parsed"]


async def test_a_result_without_a_schema_has_no_value(tmp_path: Path):
    done = await run(tmp_path, Learner([chat(RIGHT)]), [messages("who?")], request=RequestOptions())
    assert "parsed" not in done.results[0]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (chat(WRONG), '$.age: "36" is not of type "integer"'),
        (chat("{}"), '$: "name" is a required property; $: "age" is a required property'),
        (chat("Ada is 36."), "the answer is not JSON: "),
        (chat(""), "the answer is empty"),
        (
            chat('{"name": "Ada', reason="length"),
            "the answer was cut off, by max_tokens or by the end of the context; ",
        ),
        (chat(RIGHT, WRONG), 'choice 1: $.age: "36" is not of type "integer"'),
        ({"anything": "else"}, "the answer is empty"),
    ],
)
async def test_what_does_not_fit_fails_with_its_path_and_its_text(tmp_path: Path, output: Any, message: str):
    done = await run(tmp_path, Learner([output]), [messages("who?")], reask=0)
    (record,) = done.errors
    assert (record["status"], record["error"]["kind"]) == ("FAILED", "invalid_output")
    assert record["error"]["message"].startswith(message)
    assert record["output"] == output
    assert not done.results
    assert done.summary.exit_code == 3
    assert done.summary.failures[0].kind == "invalid_output"
    assert_adds_up(tmp_path / "out.jsonl.state")


async def test_in_openais_format_the_value_is_beside_the_body(tmp_path: Path):
    line = {"custom_id": "a", "url": "/v1/chat/completions", "body": messages("who?")}
    done = await run(tmp_path, Learner([chat(RIGHT)]), [line], format="auto")
    assert done.results[0]["batchrun"]["parsed"] == {"name": "Ada", "age": 36}


# What is asked again


async def test_a_worker_that_is_wrong_twice_and_then_right_is_asked_three_times(tmp_path: Path):
    learner = Learner([chat("Ada"), chat(WRONG), chat(FENCED)])
    done = await run(tmp_path, learner, [messages("who?")])
    first, second, third = learner.requests
    assert len(first["messages"]) == 1
    assert [turn["role"] for turn in second["messages"]] == ["user", "assistant", "user"]
    assert second["messages"][1]["content"] == "Ada"
    assert third["messages"][1]["content"] == WRONG, "only the last answer is repeated"
    assert '$.age: "36" is not of type "integer"' in third["messages"][2]["content"]
    seeds = [sampling_of(request).get("seed") for request in learner.requests]
    assert seeds[0] is None
    assert len(set(seeds)) == 3
    (record,) = done.results
    assert (record["parsed"]["age"], record["job"]["attempts"]) == (36, 3)
    summary = done.summary
    assert (summary.reasks, summary.retries, summary.tries) == (2, 0, {"1": 0, "3": 1})
    assert (summary.input_tokens, summary.output_tokens) == (9, 7)
    assert (summary.refused_input_tokens, summary.refused_output_tokens) == (18, 14), "they are paid for, too"
    with StateReader(tmp_path / "out.jsonl.state") as store:
        assert store.query("SELECT status FROM jobs ORDER BY job") == [("FAILED",), ("FAILED",), ("COMPLETED",)]
    assert_adds_up(tmp_path / "out.jsonl.state")


async def test_a_prompt_is_asked_again_with_another_seed_only(tmp_path: Path):
    learner = Learner([chat("Ada"), chat(RIGHT)])
    await run(tmp_path, learner, [{"prompt": "who?", "seed": 5, "max_tokens": 9}])
    first, second = learner.requests
    assert sampling_of(first)["seed"] == 5
    assert sampling_of(second)["seed"] != 5
    first["sampling_params"].pop("seed")
    second["sampling_params"].pop("seed")
    assert first == second


@pytest.mark.parametrize("output", [chat('{"name": ', reason="length"), chat("")])
async def test_an_answer_that_is_cut_off_or_empty_is_not_repeated_to_the_model(tmp_path: Path, output: Any):
    learner = Learner([output, chat(RIGHT)])
    done = await run(tmp_path, learner, [messages("who?")])
    assert [len(request["messages"]) for request in learner.requests] == [1, 1]
    assert done.summary.succeeded == 1


async def test_samples_of_a_sweep_that_are_asked_again_all_have_seeds_of_their_own(tmp_path: Path):
    requests: list[dict[str, Any]] = []

    def answer(request: dict[str, Any]) -> Any:
        requests.append(request)
        return chat("no")

    write_lines(tmp_path, [{"prompt": "who?"}])
    async with serving(worker=Answering(answer)) as server:
        await rehearse(
            tmp_path, server.endpoint.base_url, request=ASK, sweep=SweepOptions(repeat=6), scheduler={"reask": 3}
        )
    seeds = [sampling_of(request)["seed"] for request in requests]
    assert len(seeds) == len(set(seeds)) == 24


async def test_after_the_last_re_ask_the_row_fails_with_its_last_answer(tmp_path: Path):
    learner = Learner([chat("one"), chat("two"), chat("three"), chat(RIGHT)])
    done = await run(tmp_path, learner, [messages("who?")])
    (record,) = done.errors
    assert (record["error"]["raw"], record["job"]["attempts"]) == ("three", 3)
    assert (done.summary.input_tokens, done.summary.refused_input_tokens) == (0, 27)
    assert record["request"] == messages("who?"), "its line asks what it asked at first"


async def test_re_asks_and_retries_are_counted_apart(tmp_path: Path):
    learner = Learner([LOST, chat("no"), LOST, chat(WRONG), chat(RIGHT)])
    done = await run(tmp_path, learner, [messages("who?")])
    assert (done.summary.succeeded, done.summary.retries, done.summary.reasks) == (1, 2, 2)
    assert len(learner.requests[2]["messages"]) == 3, "a retry asks what the try before asked"


async def test_failed_rows_that_are_retried_start_afresh(tmp_path: Path):
    learner = Learner([chat("no")])
    await run(tmp_path, learner, [messages("who?")])
    learner.requests.clear()
    async with serving(worker=learner.worker()) as server:
        done = await rehearse(
            tmp_path, server.endpoint.base_url, retry=("invalid_output",), request=ASK, scheduler={"reask": 2}
        )
    assert [len(request["messages"]) for request in learner.requests] == [1, 3, 3]
    assert done.summary.failed == 1
    assert done.summary.reasks == 4


async def test_rows_that_share_an_answer_share_the_one_that_fits(tmp_path: Path):
    learner = Learner([chat(WRONG), chat(RIGHT)])
    lines = [messages("who?", id=f"r{number}") for number in range(4)]
    done = await run(tmp_path, learner, lines, dedupe=True)
    assert len(learner.requests) == 2
    assert [record["parsed"]["age"] for record in done.results] == [36] * 4
    assert done.summary.tries == {"1": 0, "2": 1}
    assert_adds_up(tmp_path / "out.jsonl.state")


async def test_rows_that_share_an_answer_fail_together_when_none_fits(tmp_path: Path):
    lines = [messages("who?", id=f"r{number}") for number in range(3)]
    done = await run(tmp_path, Learner([chat(WRONG)]), lines, dedupe=True)
    assert [record["error"]["kind"] for record in done.errors] == ["invalid_output"] * 3


async def test_a_canary_may_be_asked_again(tmp_path: Path):
    learner = Learner([chat(WRONG), chat(RIGHT)])
    lines = [messages(f"who {number}?") for number in range(6)]
    done = await run(tmp_path, learner, lines, guards=GuardOptions(canary=1))
    assert (done.summary.outcome, done.summary.succeeded) == ("finished", 6)
    assert [prompt_of(request) for request in learner.requests][:2] == ["who 0?"] * 2


async def test_only_rows_that_have_failed_for_good_stop_a_run(tmp_path: Path):
    learner = Learner([chat(WRONG), chat(WRONG), chat(RIGHT)])
    lines = [messages(f"who {number}?") for number in range(30)]
    done = await run(tmp_path, learner, lines, guards=GuardOptions(halt=HaltOptions(rows=1)))
    assert (done.summary.outcome, done.summary.succeeded, done.summary.reasks) == ("finished", 30, 60)


async def test_a_run_whose_answers_never_fit_is_stopped(tmp_path: Path):
    lines = [messages(f"who {number}?") for number in range(60)]
    done = await run(tmp_path, Learner([chat("no")]), lines, scheduler={"concurrency": 1, "reask": 1})
    assert done.summary.outcome == "stopped"
    assert "the first 20 finished rows all failed" in done.summary.reason


async def test_a_run_that_is_resumed_continues_with_the_next_try(tmp_path: Path):
    learner, leaving = Learner([chat("one"), chat("two"), chat("three"), chat(RIGHT)]), Leaving()

    def answer(request: dict[str, Any]) -> Any:
        if len(learner.requests) == 1:
            leaving.ask(Wish.LEAVE)
        return learner.answer(request)

    write_lines(tmp_path, [messages("who?")])
    options = options_for(tmp_path, request=ASK, scheduler={"reask": 2})
    async with serving(worker=Answering(answer)) as server:
        for _ in range(2):
            with open_run(options, Listener(), clock=hurried, wall=time.time) as opened:
                conclude(opened, await drive(opened, server.endpoint.base_url, Random(0), leaving=leaving))
            leaving = Leaving()
    (record,) = read_lines(tmp_path / "out.errors.jsonl")
    assert (record["error"]["raw"], record["job"]["attempts"]) == ("three", 3), "no more tries than in one session"
    assert learner.requests[2]["messages"][1]["content"] == "two"


async def test_a_resume_with_another_schema_is_refused_by_name(tmp_path: Path):
    await run(tmp_path, Learner([chat(RIGHT)]), [messages("who?")])
    other = RequestOptions(schema=read_schema("name"))
    with pytest.raises(StateError, match="--schema"):
        await run(tmp_path, Learner([chat(RIGHT)]), [messages("who?")], request=other)


# A text is required


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (chat("   "), "the answer is empty"),
        (chat("half a", reason="length"), "the answer was cut off"),
        (chat("no", reason="content_filter"), "the answer was filtered"),
    ],
)
async def test_where_a_text_is_required_its_lack_is_a_failure(tmp_path: Path, output: Any, message: str):
    given = {"request": RequestOptions(), "answers": AnswerOptions(require_text=True)}
    learner = Learner([output, chat("well")])
    done = await run(tmp_path, learner, [messages("who?"), messages("what?")], reask=0, **given)
    assert [record["error"]["kind"] for record in done.errors] == ["invalid_output"] * 2
    assert all(record["error"]["message"].startswith(message) for record in done.errors)
    async with serving(worker=Learner([output, chat("well")]).worker()) as server:
        done = await rehearse(tmp_path, server.endpoint.base_url, retry=(), scheduler={"reask": 1}, **given)
    assert [record["text"] for record in done.results] == ["well"] * 2


async def test_a_text_that_is_whole_is_enough(tmp_path: Path):
    given = {"request": RequestOptions(), "answers": AnswerOptions(require_text=True)}
    done = await run(tmp_path, Learner([chat("well")]), [messages("who?")], **given)
    assert done.summary.succeeded == 1
    assert json.loads((tmp_path / "out.jsonl").read_text())["text"] == "well"
    assert read_lines(tmp_path / "out.errors.jsonl") == []


async def test_a_row_that_was_asked_again_still_asks_for_what_an_equal_row_asks_for(tmp_path: Path):
    learner = Learner([chat(WRONG), chat(RIGHT)])
    lines = [messages("who?", id=f"r{number}") for number in range(4)]
    await run(tmp_path, learner, lines[:2], dedupe=True)
    done = await run(tmp_path, Learner([]), lines, dedupe=True)
    assert [record["parsed"]["age"] for record in done.results] == [36] * 4
    assert len(learner.requests) == 2


async def test_rows_that_are_run_again_with_other_parameters_keep_them_when_they_are_asked_again(tmp_path: Path):
    learner = Learner([chat(WRONG)])
    await run(tmp_path, learner, [messages("who?")])
    learner.requests.clear()
    learner.outputs.append(chat(RIGHT))
    learner.turns.clear()
    state = tmp_path / "out.jsonl.state"
    chosen = choose(state, Selection(Conditions(()), None, failed=True))
    options = options_for(tmp_path, request=ASK, scheduler={"reask": 2})
    redo = Redo(chosen, {"max_tokens": 99})
    async with serving(worker=learner.worker()) as server:
        with open_run(options, Listener(), clock=hurried, wall=time.time, redo=redo) as opened:
            conclude(opened, await drive(opened, server.endpoint.base_url, Random(0)))
    assert [len(request["messages"]) for request in learner.requests] == [1, 3]
    assert [sampling_of(request)["max_tokens"] for request in learner.requests] == [99, 99]
    assert "seed" not in sampling_of(learner.requests[0])
    assert read_lines(tmp_path / "out.jsonl")[0]["parsed"]["age"] == 36
    assert_adds_up(state)
