"""Jobs of several rows: which rows share one, what it asks for, and what each row gets of its answer.

`packed_answers.jsonl` has answers of vLLM 0.32 behind worker-vllm 2.25.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.config import MOST_ROWS_PER_JOB, JobPolicy
from batchrun.endpoint.packing import BATCH_ROUTE, Packing
from batchrun.endpoint.protocol import JobAnswer, JobStatus
from batchrun.files.exactjson import load
from batchrun.results.text import extract
from batchrun.scheduler.backlog import Backlog
from batchrun.scheduler.events import RowsLoaded, Ticket
from tests.support import packs

ANSWERS = {
    answer["case"]: answer
    for answer in map(orjson.loads, Path(__file__).with_name("packed_answers.jsonl").read_bytes().splitlines())
}
MB = 1_000_000


def packing(rows: int = MOST_ROWS_PER_JOB) -> Packing:
    return Packing(JobPolicy(), rows, "batchrun-abc")


def prompt(text: str = "a", **fields: Any) -> dict:
    return {"openai_route": "/v1/completions", "openai_input": {"prompt": text, "max_tokens": 9, **fields}}


def chat(text: str = "a", **fields: Any) -> dict:
    said = {"messages": [{"role": "user", "content": text}], "max_tokens": 9, **fields}
    return {"openai_route": "/v1/chat/completions", "openai_input": said}


def of_worker(text: str = "a", **fields: Any) -> dict:
    return {"prompt": text, "sampling_params": {"max_tokens": 9, **fields}}


def body(requests: list[dict], job: int = 7) -> dict:
    return orjson.loads(packing().body(requests, job))


def completed(output: Any, **fields: Any) -> JobAnswer:
    return JobAnswer("j", JobStatus.COMPLETED, output=output, has_output=True, **fields)


# which rows share a job


@pytest.mark.parametrize("make", [prompt, chat, of_worker])
def test_rows_share_a_job_if_they_differ_in_nothing_but_their_prompt(make):
    packs_ = packing()
    one, other = packs_.kind(make("a", seed=1)), packs_.kind(make("b", seed=1))
    assert one.number == other.number != 0
    for changed in (
        {"seed": 2},
        {"seed": 1, "temperature": 0.5},
        {"seed": 1, "max_tokens": 10},
        {"seed": 1, "stop": ["x"]},
        {"seed": 1, "metadata": {"user": "b"}},
        {"seed": 1.0},
        {"seed": 2**70},
        {},
    ):
        assert packs_.kind(make("c", **changed)).number not in (0, one.number)


def test_the_order_of_parameters_does_not_matter_but_that_of_a_schema_does():
    packs_ = packing()
    assert packs_.kind(prompt(seed=1, top_p=0.5)).number == packs_.kind(prompt(top_p=0.5, seed=1)).number
    schemas = [{"properties": {name: {} for name in names}} for names in ("ab", "ba")]
    ab, ba = (packs_.kind(chat(response_format={"json_schema": {"schema": each}})).number for each in schemas)
    assert ab != ba


def test_a_completion_in_the_form_of_the_worker_shares_a_job_with_one_in_that_of_openai():
    packs_ = packing()
    assert packs_.kind(prompt()).number == packs_.kind(of_worker()).number
    assert packs_.kind(prompt()).number != packs_.kind(chat()).number


LONERS = [
    chat(tools=[{"type": "function"}]),
    chat(tool_choice="none"),
    chat(stream=True),
    chat(n=2),
    chat(max_tokens=None),
    chat(max_tokens=0),
    chat(max_tokens=True),
    chat(max_tokens=9.5),
    chat(max_tokens=MB),
    chat(request_id="mine"),
    chat(use_beam_search=True),
    chat(messages=[]),
    prompt(stream=True),
    prompt(n=0),
    prompt(n=None),
    prompt(n="2"),
    prompt(""),
    prompt(prompt=["a", "b"]),
    prompt(prompt=[1, 2]),
    prompt(prompt_embeds="x"),
    prompt("a" * MB, prompt_logprobs=1),
    {"openai_route": "/v1/completions", "openai_input": {"prompt": "a"}},
    {"openai_route": "/v1/chat/completions", "openai_input": {"messages": [{}]}},
    {"openai_route": "/v1/responses", "openai_input": {"input": "a", "max_tokens": 9}},
    {"openai_route": "/v1/embeddings", "openai_input": {"input": "a", "max_tokens": 9}},
    {"openai_route": BATCH_ROUTE, "openai_input": {"messages": [[{}]], "max_tokens": 9}},
    {"openai_route": "/v1/completions", "openai_input": [1]},
    {"openai_route": ["/v1/completions"], "openai_input": {"prompt": "a", "max_tokens": 9}},
    {"openai_route": "/v1/completions", "openai_input": {"prompt": "a", "max_tokens": 9}, "batch_size": 1},
    {"openai_input": {"prompt": "a", "max_tokens": 9}},
    {"prompt": "a"},
    {"prompt": "a", "sampling_params": None},
    {"prompt": "a", "sampling_params": {"max_tokens": 9}, "apply_chat_template": True},
    {"prompt": "a", "messages": [{}], "sampling_params": {"max_tokens": 9}},
    {"sampling_params": {"max_tokens": 9}},
    {"anything": "of a worker of one's own", "max_tokens": 9},
]


@pytest.mark.parametrize("request_", LONERS, ids=lambda request: orjson.dumps(request)[:70].decode())
def test_a_row_that_may_not_share_a_job_has_one_of_its_own(request_):
    assert packing().kind(request_) == (0, 1, 0)


def test_samples_share_a_job_on_completions_only():
    assert packing().kind(prompt(n=3)).number
    assert not packing().kind(chat(n=3)).number


def test_without_packing_every_row_has_a_job_of_its_own():
    assert packing(1).kind(prompt()) == (0, 1, 0)


def test_a_run_with_very_many_kinds_of_rows_still_knows_those_that_it_has_seen():
    packs_ = packing()
    kinds = [packs_.kind(prompt(seed=seed)).number for seed in range(10_002)]
    assert kinds == [*range(1, 10_001), 0, 0]
    assert packs_.kind(prompt(seed=5)).number == 6


# how many rows share a job


@pytest.mark.parametrize(
    ("fields", "token_bytes"),
    [
        ({}, 6),
        ({"n": 2}, 12),
        ({"logprobs": 5}, 506),
        ({"top_logprobs": 2, "logprobs": True}, 206),
        ({"logprobs": True}, 106),
    ],
)
def test_the_answers_of_a_job_come_to_four_megabytes_at_the_most(fields, token_bytes):
    for limit in (100, 10_000, 100_000):
        most = packing().kind(prompt(max_tokens=limit, **fields)).most
        assert most == max(4 * MB // (limit * token_bytes), 1)


@pytest.mark.parametrize(("fields", "byte_for_byte"), [({"echo": True}, 1), ({"return_token_ids": True}, 7 / 4)])
def test_what_an_answer_repeats_of_its_prompt_counts_as_well(fields, byte_for_byte):
    for size in (100, 5_000, 260_000, 2_000_000):
        assert packing().kind(prompt("a" * size)).most > MOST_ROWS_PER_JOB
        most = packing().kind(prompt("a" * size, **fields)).most
        assert most == 1 or most * byte_for_byte * size <= 4 * MB
        assert (most > MOST_ROWS_PER_JOB) == (size <= 5_000)


def test_chats_are_bounded_by_either_name_of_the_limit():
    limits = {"max_tokens": 9, "max_completion_tokens": 100_000}
    assert packing().kind(chat(**limits)).most == 6
    assert packing().kind(chat(max_tokens=None, max_completion_tokens=9)).number


def test_rows_whose_prompts_differ_much_in_size_do_not_share_a_job():
    packs_ = packing()
    sizes = {size: packs_.kind(prompt("a" * size)).number for size in (100, 120, 5_000)}
    assert sizes[100] == sizes[120] != sizes[5_000]


@settings(max_examples=50)
@given(
    st.lists(st.sampled_from([1, 1_000, 300_000, 900_000, 4_000_000]), min_size=1, max_size=80), st.sampled_from("aé")
)
def test_the_body_of_a_job_is_smaller_than_runpod_takes_and_no_row_is_lost(sizes: list[int], letter: str):
    packs_, backlog = packing(), Backlog(100, MOST_ROWS_PER_JOB)
    requests = [prompt(letter * (size // len(letter.encode()))) for size in sizes]
    tickets = []
    for row, request in enumerate(requests):
        number, most, size_bytes = packs_.kind(request)
        tickets.append(Ticket(row, kind=number, most=most, size_bytes=size_bytes))
    backlog.loaded(RowsLoaded(tuple(tickets), exhausted=True))
    seen = []
    while rows := backlog.take(0.0, MOST_ROWS_PER_JOB, fresh=10**9):
        seen += [row.row for row in rows]
        assert len(packs_.body([requests[row.row] for row in rows], 1)) < 10 * MB
    assert sorted(seen) == list(range(len(sizes)))


# what a job asks for


def test_a_row_alone_is_sent_as_it_is():
    for request in (prompt(), chat(), of_worker(), {"input": 1}):
        assert body([request]) == {"input": request}


def test_chats_go_to_the_batch_route_and_prompts_into_a_list():
    assert body([chat("a", seed=3), chat("b", seed=3)])["input"] == {
        "openai_route": BATCH_ROUTE,
        "openai_input": {
            "messages": [[{"role": "user", "content": text}] for text in "ab"],
            "max_tokens": 9,
            "seed": 3,
            "request_id": "batchrun-abc-7-2x1",
        },
    }
    assert body([of_worker("a", n=2), prompt("ü\u2028", n=2), of_worker("c", n=2)])["input"] == {
        "openai_route": "/v1/completions",
        "openai_input": {
            "prompt": ["a", "ü\u2028", "c"],
            "max_tokens": 9,
            "n": 2,
            "request_id": "batchrun-abc-7-3x2",
        },
    }


def test_large_integers_stay_exact_in_a_shared_job():
    assert b'"seed":1180591620717411303424' in packing().body([prompt("a", seed=2**70), prompt("b", seed=2**70)], 1)


def test_a_job_of_more_rows_than_a_worker_runs_at_once_has_more_time_unless_the_user_has_set_it():
    def timeout_of(policy: JobPolicy, rows: int) -> int | None:
        made = orjson.loads(Packing(policy, 64, "t").body([prompt()] * rows, 1))
        return made.get("policy", {}).get("executionTimeout")

    assert [timeout_of(JobPolicy(), rows) for rows in (1, 8, 9, 64)] == [None, None, 1_200_000, 4_800_000]
    assert timeout_of(JobPolicy(execution_timeout_s=70), 64) == 70_000


# what each row gets of an answer


def recorded(case: str, rows: int, samples: int = 1, job: int = 7) -> dict:
    """An answer as it was recorded, to a job of ours."""
    answer = deepcopy(ANSWERS[case]["body"])
    answer["id"] = f"{answer['id'].split('-')[0]}-batchrun-abc-{job}-{rows}x{samples}"
    return answer


CASES = [
    ("list 2, different ends", 2, 1),
    ("list 64", 64, 1),
    ("list 64, n=2", 64, 2),
    ("chat batch 32", 32, 1),
    ("request_id completions list", 2, 1),
    ("request_id chat batch", 2, 1),
    ("chat batch, logprobs", 2, 1),
]


@pytest.mark.parametrize(("case", "rows", "samples"), CASES)
@pytest.mark.parametrize("is_list", [True, False])
@pytest.mark.parametrize("is_shuffled", [True, False])
def test_each_row_gets_its_own_choices_of_a_recorded_answer(case, rows, samples, is_list, is_shuffled):
    whole = recorded(case, rows, samples)
    expected = deepcopy(whole["choices"])
    if is_shuffled:
        Random(1).shuffle(whole["choices"])
    usage = whole["usage"]["prompt_tokens"], whole["usage"]["completion_tokens"]
    answer = completed([whole] if is_list else whole, held_bytes=1001, execution_ms=50.0)
    parts = packing().split(answer, rows, 7)
    assert not isinstance(parts, str)
    assert len(parts) == rows
    assert sum(part.held_bytes for part in parts) == 1001
    for row, part in enumerate(parts):
        own = part.output[0] if is_list else part.output
        assert isinstance(part.output, list) is is_list
        assert [choice["index"] for choice in own["choices"]] == list(range(samples))
        mine = expected[row * samples : (row + 1) * samples]
        assert [{**choice, "index": 0} for choice in own["choices"]] == [{**choice, "index": 0} for choice in mine]
        assert (part.status, part.execution_ms, part.pack) == (JobStatus.COMPLETED, 50.0, (rows, row, *usage))
        assert own["usage"] is None
        assert (own["model"], own["object"]) == (whole["model"], whole["object"])
    ids = {(part.output[0] if is_list else part.output)["id"] for part in parts}
    assert len(ids) == rows


def test_a_row_of_a_shared_answer_says_what_the_row_alone_would_have_said():
    whole = recorded("list 64", 64)
    parts = packing().split(completed([whole]), 64, 7)
    assert not isinstance(parts, str)
    texts = [extract(part.output) for part in parts]
    assert [text.text for text in texts] == [choice["text"] for choice in whole["choices"]]
    assert {text.finish_reason for text in texts} == {choice["finish_reason"] for choice in whole["choices"]}


def test_the_tokens_of_a_row_are_known_if_the_worker_gives_them():
    whole = recorded("list 64, n=2", 64, 2)
    for number, choice in enumerate(whole["choices"]):
        choice["token_ids"] = [1] * (number + 1)
        choice["prompt_token_ids"] = [1] * 5
    parts = packing().split(completed(whole), 64, 7)
    assert not isinstance(parts, str)
    assert parts[3].output["usage"] == {"prompt_tokens": 5, "completion_tokens": 15, "total_tokens": 20}
    whole["choices"][7]["token_ids"] = None
    parts = packing().split(completed(whole), 64, 7)
    assert not isinstance(parts, str)
    assert [parts[row].output["usage"] is None for row in (2, 3, 4)] == [False, True, False]


def test_no_row_gets_what_an_answer_says_of_one_prompt_of_several():
    whole = recorded("chat batch 32", 32) | {"prompt_token_ids": [1, 2], "prompt_text": "hidden", "prompt_logprobs": []}
    parts = packing().split(completed(whole), 32, 7)
    assert not isinstance(parts, str)
    for part in parts:
        assert [part.output[name] for name in ("prompt_token_ids", "prompt_text", "prompt_logprobs")] == [None] * 3


WRONG: list[tuple[str, Any]] = [
    ("one is missing", lambda choices: choices.pop()),
    ("one too many", lambda choices: choices.append({**choices[0], "index": 2})),
    (
        "twice as many",
        lambda choices: choices.extend({**choice, "index": i + 2} for i, choice in enumerate(choices[:])),
    ),
    ("an index twice", lambda choices: choices[1].update(index=0)),
    ("one more, twice", lambda choices: choices.append(dict(choices[0]))),
    ("a text as index", lambda choices: choices[1].update(index="1")),
    ("true as index", lambda choices: choices[1].update(index=True)),
    ("a float as index", lambda choices: choices[1].update(index=1.0)),
    ("no index", lambda choices: choices[1].pop("index")),
    ("from one", lambda choices: [choice.update(index=choice["index"] + 1) for choice in choices]),
    ("a choice that is none", lambda choices: choices.append("x")),
    ("none at all", lambda choices: choices.clear()),
]


@pytest.mark.parametrize(("change"), [change for _, change in WRONG], ids=[name for name, _ in WRONG])
def test_nothing_of_an_answer_is_used_unless_it_has_one_part_for_each_row(change):
    whole = recorded("request_id chat batch", 2)
    change(whole["choices"])
    said = packing().split(completed([whole]), 2, 7)
    assert isinstance(said, str)
    assert "2 rows" in said


@pytest.mark.parametrize(
    "said",
    [
        "chatcmpl-85e24a37a0a981ed",
        "chatcmpl-batchrun-abc-17-2x1",
        "chatcmpl-batchrun-abd-7-2x1",
        "chatcmpl-batchrun-abc-7-2x2",
        "chatcmpl-batchrun-abc-7-3x1",
        "chatcmpl-batchrun-abc-7-2x1-0",
        "batchrun-abc-7-2x1",
        None,
        7,
    ],
)
def test_nothing_of_an_answer_is_used_that_does_not_repeat_the_id_of_its_job(said):
    whole = recorded("request_id chat batch", 2) | {"id": said}
    assert "request_id" in packing().split(completed([whole]), 2, 7)


@pytest.mark.parametrize(
    "output", [None, [], {}, "text", [1], [{}, {}], {"choices": None}, {"choices": {"0": {}}}, [{"choices": "ab"}]]
)
def test_an_output_of_any_other_shape_is_no_answer_to_several_rows(output):
    assert "2 rows" in packing().split(completed(output), 2, 7)


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.TIMED_OUT, JobStatus.CANCELLED])
def test_a_job_that_failed_has_no_parts(status):
    whole = [recorded("request_id chat batch", 2)]
    assert packing().split(JobAnswer("j", status, output=whole, has_output=True), 2, 7) == ""


fields = st.fixed_dictionaries(
    {"max_tokens": st.sampled_from([1, 9])},
    optional={
        "seed": st.sampled_from([1, 2**66]),
        "temperature": st.sampled_from([0, 0.5]),
        "stop": st.just(["x"]),
        "stream": st.just(False),
        "n": st.sampled_from([1, 2]),
    },
)
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=5)
requests = st.builds(
    lambda make, text, given: make(text, **given), st.sampled_from([prompt, chat, of_worker]), texts, fields
)


@settings(max_examples=50)
@given(st.lists(requests, min_size=1, max_size=12), st.randoms())
def test_whatever_rows_share_a_job_each_gets_the_answer_to_its_own_prompt(rows: list[dict], rng: Random):
    packs_ = packing()
    kinds: dict[int, list[dict]] = {}
    for row in rows:
        if number := packs_.kind(row).number:
            kinds.setdefault(number, []).append(row)
    for number, same in kinds.items():
        asked = load(packs_.body(same, number))["input"]
        wanted = [packs.prompts_of(request)[0] for request in same]
        assert packs.prompts_of(asked) == wanted
        if len(same) == 1:
            continue
        sent = parameters(asked)
        assert all(parameters(request) == sent for request in same)
        samples = sent.get("n", 1)
        (whole,) = packs.right(asked)
        whole["choices"] = [
            {**choice, "index": choice["index"] * samples + sample}
            for choice in whole["choices"]
            for sample in range(samples)
        ]
        rng.shuffle(whole["choices"])
        parts = packs_.split(completed([whole]), len(same), number)
        assert not isinstance(parts, str)
        for text, part in zip(wanted, parts, strict=True):
            assert extract(part.output).texts == (f"to {text}",) * samples


def parameters(request: dict) -> dict:
    """What a job asks for, apart from its prompts."""
    _, asked = packs.request_of(request)
    return {name: asked[name] for name in asked if name not in ("prompt", "messages", "request_id")}
