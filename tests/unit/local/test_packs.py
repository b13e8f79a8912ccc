"""Requests with several prompts, against what vLLM 0.32 behind worker-vllm 2.25 has answered to them."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.local.echo import EchoWorker
from batchrun.local.workers import BATCH_ROUTE, CHAT_ROUTE, COMPLETIONS_ROUTE, WorkerFailure
from tests.support.packs import POISONED

RECORDED = [orjson.loads(line) for line in Path(__file__).with_name("packing.jsonl").read_bytes().splitlines()]
GOOD = [each for each in RECORDED if each["status"] == 200]
REFUSED = [each for each in RECORDED if each["status"] != 200]
FROM_THE_MODEL = {"stop_reason", "system_fingerprint", "logprobs"}
"""Fields that hold null in the echo's answers, and may hold something else in a model's."""


def asked(route: str, body: dict[str, Any]) -> dict[str, Any]:
    (answer,) = EchoWorker().answer({"openai_route": route, "openai_input": body})
    return answer


def refusal(request: dict[str, Any]) -> dict[str, Any]:
    """The body with which vLLM refuses a job's input, as worker-vllm hands it on."""
    with pytest.raises(WorkerFailure) as caught:
        EchoWorker().answer(request)
    said = ast.literal_eval(str(caught.value))
    assert said == {"message": said["message"], "type": "worker_error", "code": None}
    head, _, body = said["message"].partition(": ")
    assert head == f"vLLM returned HTTP {orjson.loads(body)['error']['code']}"
    return orjson.loads(body)


def shape(value: Any, field: str = "") -> Any:
    """The fields of an answer in their order, with the types of their values."""
    if isinstance(value, dict):
        return [(key, shape(each, key)) for key, each in value.items()]
    if isinstance(value, list):
        return [shape(each) for each in value]
    return None if field in FROM_THE_MODEL else type(value).__name__


@pytest.mark.parametrize("recorded", GOOD, ids=lambda each: each["case"])
def test_an_answer_has_the_fields_of_the_recorded_one(recorded):
    answer = asked(recorded["route"], recorded["request"])
    assert shape(answer) == shape(recorded["body"])
    assert [each["index"] for each in answer["choices"]] == [each["index"] for each in recorded["body"]["choices"]]
    if "request_id" in recorded["request"]:
        assert answer["id"] == recorded["body"]["id"]


@pytest.mark.parametrize("recorded", REFUSED, ids=lambda each: each["case"])
def test_a_request_is_refused_in_the_recorded_words(recorded):
    said = refusal({"openai_route": recorded["route"], "openai_input": recorded["request"]})
    if recorded["case"] == "messages is a list of lists on chat":  # vLLM lists each kind of message that it is not
        said["error"], recorded["body"]["error"] = said["error"]["type"], recorded["body"]["error"]["type"]
    assert said == recorded["body"]


words = st.text(st.characters(codec="utf-8"), min_size=1)


@given(st.lists(words, min_size=1, max_size=8), st.integers(1, 3), st.integers(1, 5), st.booleans())
def test_a_row_gets_the_text_that_it_gets_alone(prompts, copies, most, has_ids):
    shared = {"max_tokens": most, "n": copies, "return_token_ids": has_ids}
    packed = asked(COMPLETIONS_ROUTE, {"prompt": prompts, "request_id": "p", **shared})
    alone = [asked(COMPLETIONS_ROUTE, {"prompt": prompt, **shared}) for prompt in prompts]
    assert packed["id"] == "cmpl-p"
    assert packed["choices"] == [
        {**choice, "index": row * copies + choice["index"]}
        for row, one in enumerate(alone)
        for choice in one["choices"]
    ]
    assert_sum(packed, alone)


@given(st.lists(words, min_size=1, max_size=8), st.integers(1, 5), st.booleans())
def test_a_chat_gets_the_text_that_it_gets_alone(prompts, most, has_ids):
    shared = {"max_tokens": most, "n": 1, "return_token_ids": has_ids, "tools": [{"any": 1}], "stream": True}
    chats = [[{"role": "system", "content": "Be kind."}, {"role": "user", "content": prompt}] for prompt in prompts]
    packed = asked(BATCH_ROUTE, {"messages": chats, "request_id": "p", **shared})
    alone = [asked(CHAT_ROUTE, {"messages": chat, **shared}) for chat in chats]
    assert (packed["id"], packed["prompt_token_ids"]) == ("chatcmpl-p", None)
    assert packed["choices"] == [{**one["choices"][0], "index": row} for row, one in enumerate(alone)]
    assert_sum(packed, alone)


def assert_sum(packed: dict, alone: list[dict]) -> None:
    for field in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert packed["usage"][field] == sum(one["usage"][field] for one in alone)
    made = [choice["token_ids"] for choice in packed["choices"]]
    assert None in made or sum(map(len, made)) == packed["usage"]["completion_tokens"]


@pytest.mark.parametrize(
    "bad",
    [
        {"openai_route": BATCH_ROUTE, "openai_input": {"messages": []}},
        {"openai_route": BATCH_ROUTE, "openai_input": {}},
        {"openai_route": BATCH_ROUTE, "openai_input": {"messages": [[{"role": "user"}], "x"]}},
        {"openai_route": BATCH_ROUTE, "openai_input": {"messages": [[{"role": "user"}], ["x"]]}},
        {"openai_route": COMPLETIONS_ROUTE, "openai_input": {"prompt": ["a", 1]}},
        {"openai_route": COMPLETIONS_ROUTE, "openai_input": {"prompt": ["a", None]}},
        {"openai_route": COMPLETIONS_ROUTE, "openai_input": {"prompt": 7}},
        {"prompt": ["a", ""]},
        {"prompt": []},
        {"prompt": "a", "sampling_params": {"request_id": 7}},
        {"messages": [], "sampling_params": {"request_id": ["x"]}},
    ],
    ids=str,
)
def test_one_bad_prompt_or_field_fails_the_whole_request(bad):
    assert refusal(bad)["error"]["code"] == 400


def test_the_worker_s_own_list_is_answered_as_the_route_s():
    own = EchoWorker().answer({"prompt": ["a b", "c"], "sampling_params": {"max_tokens": 1, "request_id": "x"}})
    assert own == [asked(COMPLETIONS_ROUTE, {"prompt": ["a b", "c"], "max_tokens": 1, "request_id": "x"})]


def test_token_numbers_are_one_prompt_and_a_list_of_them_several():
    assert len(asked(COMPLETIONS_ROUTE, {"prompt": [5, 6, 7]})["choices"]) == 1
    assert len(asked(COMPLETIONS_ROUTE, {"prompt": [[5, 6], [7]]})["choices"]) == 2


def test_a_prompt_beyond_the_context_fails_the_list_in_the_recorded_words():
    echo = EchoWorker(1024)
    with pytest.raises(WorkerFailure) as caught:
        echo.answer({"prompt": ["a", "word " * 1025]})
    assert str(caught.value) == POISONED
    (answer,) = echo.answer({"prompt": ["a", "word " * 1020], "sampling_params": {"max_tokens": 50}})
    assert [len(choice["text"].split()) for choice in answer["choices"]] == [1, 4]
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["stop", "length"]
