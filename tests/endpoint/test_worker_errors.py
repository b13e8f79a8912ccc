from __future__ import annotations

import time

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.endpoint.worker_errors import decode_error, find_hidden_error, is_empty_output

SDK_ERROR = orjson.dumps(
    {
        "error_type": "<class 'ValueError'>",
        "error_message": "prompt is required",
        "error_traceback": "Traceback (most recent call last):\n  File ...\nValueError: prompt is required\n",
        "hostname": "h",
        "worker_id": "w",
        "runpod_version": "1.12.0",
    }
).decode()
VLLM_400 = (
    '{\'message\': \'vLLM returned HTTP 400: {"error": {"message": "max_tokens must be at least 1",'
    ' "type": "BadRequestError", "param": null, "code": 400}}\', \'type\': \'worker_error\', \'code\': None}'
)
OLD_VLLM = "{'error': {'message': 'the prompt is too long', 'type': 'BadRequestError', 'param': None, 'code': 400}}"


@pytest.mark.parametrize(
    ("raw", "message", "code", "error_type"),
    [
        pytest.param("job timed out after 1 retries", "job timed out after 1 retries", None, None, id="plain"),
        pytest.param(SDK_ERROR, "prompt is required", None, "ValueError", id="sdk-json-in-a-string"),
        pytest.param(VLLM_400, "max_tokens must be at least 1", 400, "BadRequestError", id="vllm-proxy"),
        pytest.param(OLD_VLLM, "the prompt is too long", 400, "BadRequestError", id="vllm-engine-wrapped-twice"),
        pytest.param(
            "Unexpected keyword argument 'no_such'", "Unexpected keyword argument 'no_such'", None, None, id="bare"
        ),
        pytest.param(
            "handler: boom \ntraceback: Traceback (most recent call last):\n  x\nRuntimeError: boom",
            "boom",
            None,
            "RuntimeError",
            id="generator-that-raised",
        ),
        pytest.param({"m": 1}, '{"m":1}', None, None, id="object"),
        pytest.param({"error": {"message": "deep", "code": 503}}, "deep", 503, None, id="object-in-object"),
        pytest.param('{"error": "\\u00fcber"}', "über", None, None, id="escaped-text"),
        pytest.param("Request to vLLM failed: timeout", "Request to vLLM failed: timeout", None, None, id="lost"),
        pytest.param("", "the job failed without an error message", None, None, id="empty"),
        pytest.param(None, "the job failed without an error message", None, None, id="none"),
    ],
)
def test_every_known_wrapping_is_opened(raw, message, code, error_type):
    error = decode_error(raw)
    assert (error.message, error.code, error.error_type) == (message, code, error_type)
    if isinstance(raw, str):
        assert error.raw == raw


@pytest.mark.parametrize(
    ("output", "hidden"),
    [
        ([{"error": "x"}], True),
        ({"error": {"message": "x"}}, True),
        ([{"object": "error", "message": "x", "code": 400}], True),
        ({"type": "error", "message": "x"}, True),
        (['data: {"error": {"message": "x"}}\n\n'], True),
        (['data: {"err', 'or": {"message": "x"}}\n\n'], True),
        (['data: {"error": {"message": "x", "param": "a\u2028b"}}\r\n\r\n'], True),
        ([[{"error": "x"}]], True),
        (["Once ", 'data: {"error": {"message": "x"}}\n\n'], True),
        (["Once ", 'event: error\ndata: {"error"', ': {"message": "x"}}\n\n'], True),
        ([["Once ", 'data: {"error": "x"}']], True),
        (["Once ", 'he said data: {"error": "x"}'], False),
        ({"error": ""}, False),
        ({"error": None, "text": "fine"}, False),
        ([{"choices": [{"text": "error"}]}], False),
        ("error", False),
        (['data: {"choices": [{"delta": {"content": "\\"error\\""}}]}\n\n'], False),
        (None, False),
        (7, False),
    ],
)
def test_an_error_inside_a_completed_job_is_found(output, hidden):
    found = find_hidden_error(output)
    assert (found is not None) is hidden
    if hidden:
        assert decode_error(found).message == "x"


@pytest.mark.parametrize(
    ("output", "has_output", "empty"),
    [(None, False, True), (None, True, True), ([], True, True), (0, True, False), ("", True, False), ({}, True, False)],
)
def test_a_completed_job_without_data_is_noticed(output, has_output, empty):
    assert is_empty_output(output, has_output=has_output) is empty


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "message", "code", "type", "detail"]) | st.text(), inner, max_size=3
        )
        | inner.map(repr)
    ),
    max_leaves=10,
)


@given(json_values)
def test_nothing_that_a_worker_can_send_raises_and_a_message_is_one_line(raw):
    error = decode_error(raw)
    assert error.message
    assert len(error.message) <= 500
    assert "\n" not in error.message
    error.message.encode()
    hidden = find_hidden_error(raw)
    assert hidden is None or decode_error(hidden).message


@pytest.mark.parametrize(
    "raw", ["[" * 100_000, "{'a':" * 5000, "(" * 3000, '"' * 4001, "\\x" * 500, "{" * 99_000 + "}"]
)
def test_hostile_nesting_neither_raises_nor_hangs(raw):
    assert decode_error(raw).message


def test_a_message_has_none_of_the_colours_of_a_logger():
    raw = "\x1b[1;31mbo\x00om\x1b[0m\x07 \x1b]0;title\x07\x9b"
    assert (decode_error(raw).message, decode_error(raw).raw) == ("boom", raw)


@pytest.mark.parametrize("blanks", ["\n" * 50_000, " " * 100_000, "\n \t" * 30_000, "\ntraceback" * 10_000])
def test_a_desert_of_blanks_is_crossed_at_once(blanks):
    started_s = time.process_time()
    assert decode_error(f"start{blanks}end").message.startswith("start")
    assert time.process_time() - started_s < 1
