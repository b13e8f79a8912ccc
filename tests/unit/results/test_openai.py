"""Result lines in OpenAI's format: what the `openai` package's own models take, whatever the worker gave."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion

from batchrun.prompts.shapes import parse_line
from batchrun.results.completion import RequestTarget, target_of
from batchrun.results.error_record import error_line, read_error_id
from batchrun.results.openai import batchrun_record, openai_error_line, openai_line
from batchrun.results.record import (
    JobInfo,
    read_record,
    result_line,
    source_file,
    write_line,
)
from batchrun.results.text import extract

JOB = JobInfo("j-u1", "abc", 2, 31.0, 1437.5, "w", 1_767_225_600.0, 1_767_225_602.25)
CHAT, TEXT = RequestTarget(), RequestTarget("/v1/completions", "m1")
USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}


def lines(output: Any, target: RequestTarget = CHAT, **fields: Any) -> tuple[bytes, bytes]:
    """The same result in our own format and in OpenAI's."""
    known = {"row_id": "r", "text": extract(output), "output": output, "carried": {}, "file": "f", "line": 1}
    known |= {"job": JOB, **fields}
    return result_line(**known), result_line(**known, write=lambda record: openai_line(record, lambda: target))


def body(output: Any, target: RequestTarget = CHAT) -> dict[str, Any]:
    return orjson.loads(lines(output, target)[1])["response"]["body"]


def parsed(data: dict[str, Any]) -> ChatCompletion | Completion:
    """A body as the `openai` package reads it, in strict mode."""
    model = Completion if data["object"] == "text_completion" else ChatCompletion
    return model.model_validate(data, strict=True)


def own(**fields: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": "hi"}
    choices = [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
    known = {"id": "chatcmpl-1", "object": "chat.completion", "created": 5, "model": "m", "choices": choices}
    return {**known, "usage": USAGE, **fields}


def sse(*chunks: dict[str, Any]) -> str:
    return "".join(f"data: {orjson.dumps(chunk).decode()}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def test_a_line_has_the_fields_of_the_format_and_ours_apart():
    line = orjson.loads(lines([own()], carried={"metadata": {"topic": "rain"}}, variant={"temperature": 1})[1])
    assert list(line) == ["id", "custom_id", "response", "error", "batchrun"]
    assert (line["id"], line["custom_id"], line["error"]) == ("batch_req_j-u1", "r", None)
    assert line["response"] == {"status_code": 200, "request_id": "j-u1", "body": own()}
    ours = line["batchrun"]
    assert (ours["metadata"], ours["variant"], ours["job"]["id"]) == ({"topic": "rain"}, {"temperature": 1}, "j-u1")
    assert (ours["source"], ours["usage"]) == ({"file": "f", "line": 1}, {"input_tokens": 9, "output_tokens": 5})
    assert "output" not in ours


@pytest.mark.parametrize("output", [own(), [own()], own(extra={"kept": 1}, service_tier=None)])
def test_the_workers_own_object_is_the_body_untouched(output: Any):
    assert body(output) == (output[0] if isinstance(output, list) else output)
    assert isinstance(parsed(body(output)), ChatCompletion)


def test_what_the_worker_left_out_is_added():
    bare = {"choices": [{"index": 0, "text": "hi", "finish_reason": "length"}], "usage": USAGE}
    made = body([bare], TEXT)
    assert made == {
        **bare,
        "id": "cmpl-j-u1",
        "object": "text_completion",
        "created": 1_767_225_602,
        "model": "m1",
    }
    assert body([bare], CHAT)["model"] == "abc"
    assert isinstance(parsed(made), Completion)


def test_words_that_no_strict_reader_takes_are_put_right_and_what_came_is_kept():
    output = [own(choices=[{"message": {"role": "model", "content": [{"text": "a"}]}, "finish_reason": "end_turn"}])]
    line = orjson.loads(lines(output)[1])
    choice = parsed(line["response"]["body"]).choices[0]
    assert (choice.index, choice.finish_reason, choice.message.content) == (0, "stop", "a")
    assert (line["batchrun"]["output"], line["batchrun"]["finish_reason"]) == (output, "end_turn")


@pytest.mark.parametrize("word", ["abort", "error", "repetition"])
def test_a_reason_that_openai_has_no_word_for_is_never_called_stop(word: str):
    for output in (
        [own(choices=[{**own()["choices"][0], "finish_reason": word}])],
        [{"choices": [{"tokens": ["a"], "finish_reason": word}]}],
        [sse({"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": word}]})],
    ):
        assert [choice["finish_reason"] for choice in body(output)["choices"]] == [word]


def test_each_choice_keeps_its_own_reason():
    output = [{"choices": [{"tokens": ["a"], "finish_reason": "stop"}, {"tokens": ["b"], "finish_reason": "length"}]}]
    ours, theirs = (orjson.loads(line) for line in lines(output, TEXT))
    assert (ours["finish_reason"], ours["finish_reasons"]) == ("stop", ["stop", "length"])
    assert [choice["finish_reason"] for choice in theirs["response"]["body"]["choices"]] == ["stop", "length"]
    assert "finish_reasons" not in orjson.loads(lines([own()])[0])


def test_the_older_workers_pieces_become_what_was_asked_for():
    output = [
        {"choices": [{"tokens": ["a", "b"]}], "usage": {"input": 5, "output": 2}},
        {"choices": [{"tokens": ["c"]}], "usage": {"input": 5, "output": 3}},
    ]
    chat, text = parsed(body(output, CHAT)), parsed(body(output, TEXT))
    assert isinstance(chat, ChatCompletion)
    assert isinstance(text, Completion)
    assert chat.choices[0].message.content == text.choices[0].text == "abc"
    assert chat.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
    }
    assert (chat.id, text.id, chat.model, text.model) == ("chatcmpl-j-u1", "cmpl-j-u1", "abc", "m1")


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("hi", "hi"),
        (["hi"], "hi"),
        ({"text": "hi"}, "hi"),
        ({"image": "aGk="}, '{"image": "aGk="}'),
        ([1, 2], "[1, 2]"),
        (False, "false"),
        ([{"choices": [{"tokens": []}]}], ""),
    ],
)
def test_any_other_answer_is_the_text_of_one_choice(output: Any, said: str):
    made = parsed(body(output))
    assert [choice.message.content for choice in made.choices] == [said]
    assert made.usage.total_tokens == 0
    assert orjson.loads(lines(output)[1])["batchrun"]["usage"] == {"input_tokens": None, "output_tokens": None}


def test_several_texts_are_several_choices():
    output = [{"choices": [{"tokens": ["a"]}, {"tokens": ["b"]}]}]
    assert [choice.text for choice in parsed(body(output, TEXT)).choices] == ["a", "b"]


def test_an_answer_of_another_route_is_the_body_as_it_is():
    answer = {"object": "list", "data": [{"object": "embedding", "embedding": [0.5], "index": 0}], "model": "e"}
    assert body([answer], RequestTarget("/v1/embeddings")) == answer


CHUNKS = (
    {
        "id": "chatcmpl-7",
        "object": "chat.completion.chunk",
        "created": 3,
        "model": "m",
        "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hé"}, "finish_reason": None}],
    },
    {
        "choices": [
            {"index": 0, "delta": {"content": "llo"}},
            {
                "index": 1,
                "delta": {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "f", "arguments": "{"}}]},
            },
        ]
    },
    {
        "choices": [
            {"index": 0, "delta": {}, "finish_reason": "length"},
            {
                "index": 1,
                "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]},
                "finish_reason": "tool_calls",
            },
        ]
    },
    {"choices": [], "usage": USAGE},
)


@pytest.mark.parametrize(
    "output",
    [[sse(*CHUNKS)], [sse(*CHUNKS)[:100], sse(*CHUNKS)[100:]], sse(*CHUNKS), list(CHUNKS), [list(CHUNKS)]],
)
def test_streamed_chunks_are_one_completion(output: Any):
    line = orjson.loads(lines(output)[1])
    made = parsed(line["response"]["body"])
    assert (made.id, made.created, made.usage.total_tokens) == ("chatcmpl-7", 3, 14)
    first, second = made.choices
    assert (first.message.content, first.finish_reason) == ("Héllo", "length")
    assert (second.message.content, second.finish_reason) == (None, "tool_calls")
    assert [(call.id, call.function.name, call.function.arguments) for call in second.message.tool_calls] == [
        ("c1", "f", "{}")
    ]
    assert line["batchrun"]["output"] == output


def test_streamed_texts_are_one_completion():
    pieces = [
        {"choices": [{"index": 0, "text": text, "finish_reason": reason}]}
        for text, reason in (("a", None), ("b", "length"))
    ]
    made = parsed(body([sse(*pieces)], TEXT))
    assert [(choice.text, choice.finish_reason) for choice in made.choices] == [("ab", "length")]


def test_what_was_asked_for_stands_in_the_request():
    assert target_of({"openai_route": "/v1/embeddings", "openai_input": {"model": "e"}}) == ("/v1/embeddings", "e")
    assert target_of({"openai_input": {}}) == ("/v1/chat/completions", None)
    assert target_of({"prompt": "x", "sampling_params": {"model": "m"}}) == ("/v1/completions", "m")
    assert target_of({"messages": [], "prompt": "x"}) == ("/v1/chat/completions", None)
    assert target_of({"image": 1, "model": 5}) == ("/v1/chat/completions", None)


def test_an_output_nested_too_deep_for_a_reader_does_not_end_the_run():
    for depth in (300, 600, 1020):
        deep = orjson.loads(b"[" * depth + b"]" * depth)
        for output in (deep, [own(extra=deep)] if depth < 1000 else deep):
            ours, theirs = lines(output, carried={"deep": deep})
            assert read_record(ours) == read_record(theirs)
            assert isinstance(orjson.loads(theirs)["response"]["body"]["choices"], list)


COUNT = st.none() | st.integers(0, 10**6) | st.just("many")
WORDS = st.none() | st.sampled_from(["stop", "length", "content_filter", "max_tokens", "eos_token", 7])
SAID = st.none() | st.text(max_size=5) | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text()}))
INDEX = st.none() | st.integers(0, 3) | st.booleans()
MESSAGE = st.fixed_dictionaries({"content": SAID}, optional={"role": st.sampled_from(["assistant", "ai", None])})
SHARED = {"index": INDEX, "finish_reason": WORDS, "logprobs": st.none()}
CHAT_CHOICE = st.fixed_dictionaries({"message": MESSAGE}, optional=SHARED)
TEXT_CHOICE = st.fixed_dictionaries({"text": st.text(max_size=5)}, optional=SHARED)
TOKEN_CHOICE = st.fixed_dictionaries({"tokens": st.lists(st.text(max_size=3), max_size=3)}, optional=SHARED)
DELTA = st.fixed_dictionaries({}, optional={"role": st.just("assistant"), "content": st.none() | st.text(max_size=3)})
CHUNK_CHOICE = st.fixed_dictionaries({"delta": DELTA}, optional=SHARED)
USED = st.none() | st.dictionaries(
    st.sampled_from(["prompt_tokens", "completion_tokens", "total_tokens", "input", "output"]), COUNT
)
KNOWN = {
    "id": st.none() | st.text(max_size=5) | st.integers(-(2**60), 2**60),
    "object": st.sampled_from(["chat.completion", "text_completion", "x", None]),
    "created": st.none() | st.integers(0, 2**40) | st.just(1.5),
    "model": st.none() | st.just("m"),
    "usage": USED,
}


def objects(choice: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({"choices": st.lists(choice, max_size=3)}, optional=KNOWN)


ONE = objects(CHAT_CHOICE) | objects(TEXT_CHOICE) | objects(TOKEN_CHOICE) | objects(CHUNK_CHOICE)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
STREAM = st.lists(objects(CHUNK_CHOICE), min_size=1, max_size=4)
OUTPUT = (
    ONE
    | st.lists(ONE, min_size=1, max_size=3)
    | STREAM
    | STREAM.map(lambda chunks: [sse(*chunks)])
    | STREAM.map(lambda chunks: [chunks])
    | JSON
)


@given(OUTPUT, st.sampled_from([CHAT, TEXT]))
def test_whatever_the_worker_gave_the_body_is_what_the_openai_package_takes(output: Any, target: RequestTarget):
    assert parsed(body(output, target)).usage.prompt_tokens >= 0


@given(st.lists(objects(TOKEN_CHOICE), min_size=1, max_size=3))
def test_each_text_of_the_older_worker_is_a_choice(output: Any):
    said = [choice.message.content for choice in parsed(body(output, CHAT)).choices]
    assert said == [choice.text for choice in parsed(body(output, TEXT)).choices]
    assert said == [text or "" for text in extract(output).texts or ("",)]


@example(output=[{"choices": [{"text": ""}, {"text": ""}]}, {"choices": [{"delta": {}}]}], target=CHAT, carried={})
@given(
    OUTPUT, st.sampled_from([CHAT, TEXT, RequestTarget("/v1/responses")]), st.dictionaries(st.text(max_size=5), JSON)
)
def test_a_line_comes_back_as_it_was_from_either_format(output: Any, target: RequestTarget, carried: dict):
    ours, theirs = lines(output, target, carried=carried, variant={"repeat": 1}, possible_duplicate=True)
    back = batchrun_record(orjson.loads(theirs))
    assert write_line(back) == ours
    assert openai_line(back, lambda: target) == theirs


@given(OUTPUT)
def test_the_run_reads_the_same_from_either_format(output: Any):
    ours, theirs = lines(output)
    assert read_record(ours) == read_record(theirs) is not None
    assert source_file(ours) == source_file(theirs) == "f"


@pytest.mark.parametrize("job", [JOB, None])
def test_an_error_line_says_what_readers_expect_and_is_valid_input(job: JobInfo | None):
    request = {"custom_id": "x", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}}
    raw = error_line(
        row_id="x/2",
        status="FAILED",
        kind="platform",
        message="m",
        raw="r",
        request=request,
        file="f",
        line=3,
        job=job,
        write=openai_error_line,
    )
    line = orjson.loads(raw)
    assert list(line) == ["id", "custom_id", "response", "error", "batchrun"]
    assert (line["custom_id"], line["response"]) == ("x/2", None)
    assert line["error"] == {"code": "platform", "message": "m"}
    assert (line["batchrun"]["status"], line["batchrun"]["raw"]) == ("FAILED", "r")
    assert read_error_id(raw) == "x/2"
    again = parse_line(raw)
    assert (again.id, again.line, parse_line(raw, reading=2).id) == ("x/2", request, "x")
    request.pop("custom_id")
    assert parse_line(orjson.dumps(line | {"batchrun": {**line["batchrun"], "request": request}})).id == "x/2"
