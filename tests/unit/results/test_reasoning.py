"""What a model thought, called and counted: in the record where the worker says it, and nowhere else."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.results.completion import RequestTarget
from batchrun.results.openai import batchrun_record, openai_line
from batchrun.results.record import JobInfo, read_record, result_line, shared_line
from batchrun.results.text import extract
from batchrun.results.thinking import split_think
from batchrun.results.written import write_line

JOB = JobInfo("j-u1", "abc", 2, 31.0, 1437.5, "w", 1_767_225_600.0, 1_767_225_602.25)
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def said(content: Any = None, **fields: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, **fields}
    return {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


def sse(*deltas: dict[str, Any]) -> str:
    chunks = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def record(output: Any, *, split: bool = False, **fields: Any) -> dict[str, Any]:
    text = split_think(extract(output)) if split else extract(output)
    return orjson.loads(
        result_line(row_id="r", text=text, output=output, carried={}, file="f", line=1, job=JOB, **fields)
    )


RESPONSE = {
    "object": "response",
    "output": [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "short"}], "content": None},
        {"type": "message", "content": [{"type": "output_text", "text": "4"}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'},
    ],
    "usage": {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 3},
        "output_tokens": 9,
        "output_tokens_details": {"reasoning_tokens": 7},
    },
}


@pytest.mark.parametrize(
    ("output", "text", "reasoning"),
    [
        ([said("4", reasoning="2+2")], "4", "2+2"),
        ([said("4", reasoning_content="2+2")], "4", "2+2"),
        ([said("4", reasoning="2+2", reasoning_content="2+2")], "4", "2+2"),
        ([said(None, reasoning="2+2")], None, "2+2"),
        ([said("4", reasoning={"effort": "low"})], "4", None),
        ([said("4", reasoning="")], "4", None),
        ([sse({"reasoning": "2+"}, {"reasoning": "2"}, {"content": "4"})], "4", "2+2"),
        (RESPONSE, "4", "short"),
        (
            {
                "object": "response",
                "output": [{"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]}],
            },
            None,
            "hm",
        ),
        (
            {"type": "message", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "4"}]},
            "4",
            "hm",
        ),
    ],
)
def test_reasoning_is_in_the_record_where_the_worker_says_it(output: Any, text: str | None, reasoning: str | None):
    made = record(output)
    assert (made["text"], made.get("reasoning")) == (text, reasoning)
    assert ("reasoning" in made) == (reasoning is not None)


@pytest.mark.parametrize(
    ("written", "text", "reasoning"),
    [
        ("<think>2+2</think>\n\n4", "4", "2+2"),
        ("\n<think>\n2+2\n</think>4", "4", "2+2"),
        ("2+2</think>4", "4", "2+2"),
        ("<think>2+", "", "2+"),
        ("<think>\n\n</think>\n\n4", "4", None),
        ("<think>a</think>x<think>b</think>y", "xy", "a\n\nb"),
        ("a</think>x<think>b</think>y", "xy", "a\n\nb"),
        ("4", "4", None),
        ("write <think> like this", "write <think> like this", None),
    ],
)
def test_think_blocks_leave_the_text_when_asked(written: str, text: str, reasoning: str | None):
    made = record([said(written)], split=True)
    assert (made["text"], made.get("reasoning")) == (text, reasoning)
    assert record([said(written)])["text"] == written


def test_an_answer_that_only_thinks_is_called_so():
    cut = split_think(extract([said("<think>2+")]))
    assert cut.marks == ("reasoning_only",)
    made = write_line(record([said("<think>2+")], split=True))
    assert read_record(made).marks == ("reasoning_only",)
    assert read_record(write_line(record([said("<think>2+")]))).marks == ()


@given(st.lists(st.sampled_from(["a", "b", " ", "\n", "<think>", "</think>"]), max_size=12))
def test_nothing_but_tags_and_white_space_is_lost_by_the_split(pieces: list[str]):
    made = split_think(extract([said("".join(pieces))]))
    kept = f"{made.reasoning or ''}{made.text or ''}".replace("<think>", "").replace("</think>", "")
    assert sorted("".join(kept.split())) == sorted("".join(each for each in pieces if each in "ab"))


def test_many_open_tags_take_no_time_at_all():
    assert split_think(extract([said("x" + "<think>" * 200_000)])).reasoning is None


@pytest.mark.parametrize(
    "output",
    [
        [said(None, tool_calls=[CALL])],
        RESPONSE,
        {"type": "message", "content": [{"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}]},
        [
            sse(
                {
                    "tool_calls": [
                        {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
                    ]
                },
                {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
                {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
            )
        ],
    ],
    ids=["chat", "responses", "messages", "stream"],
)
def test_tool_calls_have_one_form_whatever_the_api(output: Any):
    assert record(output)["tool_calls"] == [CALL]


def test_tool_calls_are_those_of_the_first_choice():
    two = said(None, tool_calls=[CALL])
    two["choices"].append({"index": 1, "message": {"role": "assistant", "tool_calls": [CALL, CALL]}})
    assert record([two])["tool_calls"] == [CALL]
    assert record([said(None, function_call={"name": "f", "arguments": "{}"})])["tool_calls"] == [
        {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    ]


def test_tokens_of_reasoning_and_of_the_cache_are_counted_where_they_are_told():
    chat = {
        **said("4"),
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 7},
        },
    }
    assert record(RESPONSE)["usage"] == {
        "input_tokens": 5,
        "output_tokens": 9,
        "reasoning_tokens": 7,
        "cached_tokens": 3,
    }
    assert record([chat])["usage"] == {"input_tokens": 5, "output_tokens": 9, "reasoning_tokens": 7, "cached_tokens": 0}
    chat["usage"] |= {"prompt_tokens_details": None, "completion_tokens_details": {"reasoning_tokens": "x"}}
    assert record([chat])["usage"] == {"input_tokens": 5, "output_tokens": 9}


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(
    "output",
    [
        [said("4", reasoning="2+2")],
        [said("<think>2+2</think>4")],
        [said("<think></think>4")],
        [said(None, tool_calls=[CALL])],
        [{"choices": [{"tokens": ["<think>a</think>", "b"]}, {"tokens": ["c"]}]}],
        RESPONSE,
        "<think>a</think>b",
    ],
)
def test_both_formats_become_each_other_without_loss(output: Any, split: bool):
    ours = record(output, split=split)
    theirs = openai_line(ours, RequestTarget)
    assert write_line(batchrun_record(orjson.loads(theirs))) == write_line(ours)
    assert read_record(theirs).marks == read_record(write_line(ours)).marks


def test_a_row_that_shares_an_answer_gets_all_of_it():
    ours = record([said("4", reasoning="2+2")])
    shared = orjson.loads(shared_line(ours, row_id="s", carried={}, file="f", line=2))
    assert (shared["text"], shared["reasoning"]) == ("4", "2+2")


def test_fields_of_the_line_with_these_names_are_kept_apart():
    known = {"row_id": "r", "text": extract("x"), "output": "x", "file": "f", "line": 1, "job": JOB}
    made = orjson.loads(result_line(**known, carried={"reasoning": "mine", "request": "mine"}, request={"prompt": "x"}))
    assert (made["carried"], made["request"]) == ({"reasoning": "mine", "request": "mine"}, {"prompt": "x"})
    made = orjson.loads(result_line(**known, carried={"request": "mine"}))
    assert made["request"] == "mine"


@pytest.mark.parametrize("value", [1, "x", [1], {"index": 0, "function": 1}, {"function": {"arguments": 1}}, None])
def test_tool_calls_of_any_form_raise_nothing(value: Any):
    extract([said(None, tool_calls=[value], function_call=value), said([value], tool_calls=value)])
