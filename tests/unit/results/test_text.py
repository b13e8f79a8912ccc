from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.results.text import Text, broken_off, extract

CHAT = {
    "object": "chat.completion",
    "choices": [{"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2},
}


def chunk(index: int, content: str, **more) -> dict:
    return {"choices": [{"index": index, "delta": {"content": content}, **more}]}


@pytest.mark.parametrize(
    ("output", "text"),
    [
        pytest.param(
            [
                {
                    "object": "text_completion",
                    "choices": [{"index": 0, "text": "x", "finish_reason": "length"}],
                    "usage": {"prompt_tokens": 1, "completion_tokens": 16, "total_tokens": 17},
                }
            ],
            Text(("x",), "length", 1, 16),
            id="vllm-completion",
        ),
        pytest.param([CHAT], Text(("hi",), "stop", 9, 2), id="vllm-chat"),
        pytest.param(
            ["dat", 'a: {"choices": [{"delta": {"content": "a\u2028b\u0085c"}}]}\n', "\ndata: [DONE]\n\n"],
            Text(("a\u2028b\u0085c",)),
            id="events-cut-anywhere-with-line-separators",
        ),
        pytest.param(
            [{**CHAT, "usage": {"prompt_tokens": 2**63, "completion_tokens": -1}}],
            Text(("hi",), "stop"),
            id="counts-that-cannot-be",
        ),
        pytest.param(CHAT, Text(("hi",), "stop", 9, 2), id="without-the-list"),
        pytest.param(
            [{"choices": [{"index": 1, "text": "b"}, {"index": 0, "text": "a", "finish_reason": "stop"}]}],
            Text(("a", "b"), "stop"),
            id="choices-out-of-order",
        ),
        pytest.param(
            [{"choices": [{"tokens": ["full text"]}], "usage": {"input": 5, "output": 100}}],
            Text(("full text",), None, 5, 100),
            id="old-vllm-plain",
        ),
        pytest.param(
            [
                {"choices": [{"tokens": ["a", "b"]}], "usage": {"input": 5, "output": 2}},
                {"choices": [{"tokens": ["c"]}], "usage": {"input": 5, "output": 3}},
            ],
            Text(("abc",), None, 5, 3),
            id="old-vllm-in-batches",
        ),
        pytest.param(
            [
                (
                    'data: {"choices":[{"delta":{"content":"a"}}]}\n\ndata: {"choices":[{"delta":{"content":"b"},'
                    '"finish_reason":"stop"}]}\n\ndata: {"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
                    "data: {broken\n\ndata: [DONE]\n\n"
                )
            ],
            Text(("ab",), "stop", 3, 2),
            id="server-sent-events",
        ),
        pytest.param(
            ['data: {"choices":[{"del', 'ta":{"content":"a"}}]}\n', "\ndata: [DONE]\n\n"],
            Text(("a",)),
            id="events-cut-anywhere",
        ),
        pytest.param(["a", "b"], Text(("ab",)), id="strings-of-some-handler"),
        pytest.param(["only"], Text(("only",)), id="one-string-in-a-list"),
        pytest.param(
            [[chunk(0, "a"), chunk(1, "x")], [chunk(0, "b", finish_reason="stop")]],
            Text(("ab", "x"), "stop"),
            id="chunk-objects",
        ),
        pytest.param(
            {"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"type": "image"}]}}]},
            Text(("a",)),
            id="content-parts",
        ),
        pytest.param(
            {"choices": [{"message": {"content": None, "tool_calls": [{}]}, "finish_reason": "tool_calls"}]},
            Text((), "tool_calls"),
            id="tool-call",
        ),
        pytest.param(
            [
                {
                    "object": "response",
                    "output": [
                        {"type": "reasoning", "content": None},
                        {"type": "message", "content": [{"type": "output_text", "text": "r"}]},
                    ],
                    "usage": {"input_tokens": 4, "output_tokens": 1},
                }
            ],
            Text(("r",), None, 4, 1),
            id="responses-api",
        ),
        pytest.param(
            [{"type": "message", "content": [{"type": "text", "text": "m"}], "stop_reason": "max_tokens"}],
            Text(("m",), "length"),
            id="messages-api",
        ),
        pytest.param(
            [{"choices": [{"index": 0, "message": {"content": None}}, {"index": 1, "message": {"content": "b"}}]}],
            Text((None, "b")),
            id="first-of-two-choices-without-text",
        ),
        pytest.param(
            {
                "object": "response",
                "output": [
                    {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
                    {"type": "message", "content": [{"type": "output_text", "text": "r"}]},
                ],
                "incomplete_details": {"reason": "max_output_tokens"},
            },
            Text(("r",), "length"),
            id="responses-api-with-reasoning-cut-off",
        ),
        pytest.param("plain", Text(("plain",)), id="string"),
        pytest.param({"generated_text": "g"}, Text(("g",)), id="generated-text"),
        pytest.param({"image_url": "https://x"}, Text(), id="no-text"),
        pytest.param(None, Text(), id="null"),
        pytest.param([], Text(), id="empty"),
        pytest.param(7, Text(), id="number"),
    ],
)
def test_every_known_shape_gives_its_text_and_tokens(output, text):
    assert extract(output)[:4] == text[:4]


keys = st.sampled_from(
    [
        *("choices", "message", "delta", "content", "text", "tokens", "index", "usage", "finish_reason", "object"),
        *("output", "tool_calls", "type", "status"),
    ]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("data: {}") | st.just("response"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
def test_nothing_that_a_worker_can_send_raises(output):
    found = extract(output)
    broken_off(output)
    assert all(text is None or isinstance(text, str) for text in found.texts)


OUTPUTS = [orjson.loads(line) for line in (Path(__file__).parent / "outputs.jsonl").read_bytes().splitlines()]
"""What real workers gave: vLLM 0.32 behind worker-vllm 2.25, and what users and Runpod's own notes have recorded."""


@pytest.mark.parametrize("case", OUTPUTS, ids=lambda case: case["case"])
def test_what_real_workers_gave_is_read_as_a_person_reads_it(case: dict):
    found = extract(case["output"])
    assert list(found.texts) == case["texts"]
    assert list(found.finish_reasons) == case["finish_reasons"]
    assert [found.input_tokens, found.output_tokens] == case["tokens"]
    assert list(found.marks) == case["marks"]
    assert broken_off(case["output"]) is None


def said(content: str | None, reason: str | None = "stop", **more: object) -> dict:
    return {"choices": [{"index": 0, "message": {"content": content, **more}, "finish_reason": reason}]}


@pytest.mark.parametrize(
    ("output", "marks"),
    [
        ([said("hi")], ()),
        ([said("hi", None)], ()),
        ([said("")], ("empty",)),
        ([said(" \n")], ("empty",)),
        ([said(None)], ("empty",)),
        ([{"choices": [{"tokens": []}]}], ("empty",)),
        ([{"choices": []}], ("empty",)),
        ("", ("empty",)),
        ({"text": [""]}, ("empty",)),
        ({"object": "response", "output": []}, ("empty",)),
        ({"type": "message", "content": [], "stop_reason": "end_turn"}, ("empty",)),
        ([said(None, reasoning_content="hm")], ("reasoning_only",)),
        ([said("", "length", reasoning="hm")], ("truncated", "reasoning_only")),
        ({"object": "response", "output": [{"type": "reasoning", "content": None}]}, ("reasoning_only",)),
        ([said("4", reasoning="2+2")], ()),
        ([said(None, "tool_calls", tool_calls=[{"id": "a"}])], ("tool_calls",)),
        ([said("hi", tool_calls=[])], ()),
        ({"type": "message", "content": [{"type": "tool_use", "id": "a"}]}, ("tool_calls",)),
        ([said("", "content_filter")], ("filtered",)),
        ({"type": "message", "content": [], "stop_reason": "refusal"}, ("filtered",)),
        ([said(None, audio={"id": "a"})], ()),
        ([said("hi", "length")], ("truncated",)),
        ([said("hi", {"type": "length", "length": 8})], ("truncated",)),
        (
            [{"choices": [{"index": 1, "text": "b", "finish_reason": "length"}, {"index": 0, "text": ""}]}],
            ("truncated",),
        ),
        ({"image_url": "https://x"}, ()),
        ([{"data": [{"embedding": [0.5]}]}], ()),
        (None, ()),
        ([], ()),
    ],
)
def test_answers_without_a_text_or_without_all_of_it_are_told_apart(output: object, marks: tuple[str, ...]):
    assert extract(output).marks == marks


@pytest.mark.parametrize(
    ("output", "word"),
    [
        ([said("The answer is fo", "abort")], "abort"),
        ([said("", "error")], "error"),
        ({"choices": [{"text": "a", "finish_reason": "stop"}, {"text": "b", "finish_reason": "abort"}]}, "abort"),
        ({"choices": [{"text": "a", "finish_reason": ["abort"]}]}, "abort"),
        ({"choices": [{"text": "a", "finish_reason": [7, {}]}]}, None),
        ([[chunk(0, "a"), chunk(0, "b", finish_reason="abort")]], "abort"),
        (['data: {"choices":[{"delta":{},"finish_', 'reason":"abort"}]}\n\ndata: [DONE]\n\n'], "abort"),
        ([said("a", {"type": "abort", "message": "Aborted"})], "abort"),
        ({"object": "response", "status": "failed", "output": []}, "failed"),
        ([said("abort", "stop")], None),
        ({"status": "failed"}, None),
        ("abort", None),
        (None, None),
    ],
)
def test_a_generation_that_the_server_did_not_end_is_known_by_its_word(output: object, word: str | None):
    assert broken_off(output) == word


def test_the_text_lists_of_the_worker_of_2023_are_the_texts_of_its_choices():
    answer = {"input_tokens": 4, "output_tokens": 9, "text": ["a", "b"]}
    assert extract(answer)[:4] == (("a", "b"), None, 4, 9)
    stream = [{"text": ["Write an essay. Once"]}, {"text": ["Write an essay. Once upon"]}]
    assert extract(stream).texts == ("Write an essay. Once upon",), "each chunk repeats all before it"


@pytest.mark.parametrize(
    ("said", "reason", "marks"),
    [
        (["length"], "length", ("truncated",)),
        ({"type": "stop"}, "stop", ()),
        (7, None, ()),
        ([], None, ()),
        ({}, None, ()),
    ],
)
def test_a_finish_reason_that_is_not_a_text_is_read_as_what_it_holds(said: object, reason: str | None, marks: tuple):
    found = extract({"choices": [{"index": 0, "text": "x", "finish_reason": said}]})
    assert (found.finish_reason, found.marks) == (reason, marks)
