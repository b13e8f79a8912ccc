from __future__ import annotations

import time
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.endpoint.worker_errors import decode_error, find_hidden_error, is_empty_output, named_route

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


ANSWERS = {
    answer["case"]: answer["body"]["error"]
    for answer in map(orjson.loads, (Path(__file__).parent / "worker_answers.jsonl").read_bytes().splitlines())
}
"""What worker-vllm 2.25 gave in front of vLLM 0.32, by the request."""


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("p:seed-text", "seed: Input should be a valid integer (got 'eleven')"),
        ("p:seed-float", "seed: Input should be a valid integer, got a number with a fractional part (got 1.5)"),
        ("p:stop-number", "stop: Input should be a valid string (got 5) (and 1 more)"),
        ("m:logprobs-int", "logprobs: Input should be a valid boolean (got 2)"),
        ("m:tools-bad", "tools[0].function: Field required"),
        ("o:messages-no-role", "messages[0]: Field required (and 10 more)"),
        ("o:content-null", "messages[0].content: Input should be a valid string (got null) (and 18 more)"),
        ("o:token-ids-mixed", "prompt[1]: Input should be a valid integer (got 'a') (and 4 more)"),
        (
            "m:response_format-wrong",
            "response_format.type: Input should be 'text', 'json_object' or 'json_schema' (got 'xml') (and 5 more)",
        ),
        ("o:part-unknown", "[0].type: Input should be 'text' (got 'hologram') (and 7 more)"),
        ("p:max_tokens-0", "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)"),
        ("o:model-wrong", "The model `gpt-4o-mini` does not exist. Valid aliases: smollm2."),
    ],
)
def test_a_validation_error_names_the_field(case: str, message: str):
    error = decode_error(ANSWERS[case])
    assert error.message == message
    assert error.code in (400, 404)
    assert error.raw == ANSWERS[case]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        pytest.param(
            "vLLM returned HTTP 400: 1 validation error:\n  {'type': 'int_parsing', 'loc': ('body', 'n'), 'msg': 'Input"
            " should be a valid integer, unable to parse string as an integer', 'input': 'two'}",
            "n: Input should be a valid integer (got 'two')",
            id="vllm-0.27-with-a-tuple",
        ),
        pytest.param(
            {"detail": [{"type": "missing", "loc": ["body", "prompt"], "msg": "Field required", "input": {}}]},
            "prompt: Field required",
            id="fastapi",
        ),
        pytest.param(
            "handler: 2 validation errors for JobInput\nimage.width\n  Input should be a valid integer, unable to parse"
            " string as an integer [type=int_parsing, input_value='wide', input_type=str]\n    For further information"
            " visit https://errors.pydantic.dev/2.14/v/int_parsing\nprompt\n  Field required [type=missing,"
            " input_value={}, input_type=dict]\n    For further information visit"
            " https://errors.pydantic.dev/2.14/v/missing \ntraceback: Traceback (most recent call last):\n  x\n",
            "image.width: Input should be a valid integer (got 'wide') (and 1 more)",
            id="pydantic-itself",
        ),
        pytest.param("3 validation errors:\n  {'type': 'cut", "3 validation errors: {'type': 'cut", id="cut"),
        pytest.param(
            "Invalid job: 1 validation error for Job\nPrompt\n  Field required [type=missing, input_value={},"
            " input_type=dict]",
            "Invalid job: Prompt: Field required",
            id="with-words-before",
        ),
    ],
)
def test_every_way_to_write_a_validation_error_is_read(raw, message: str):
    assert decode_error(raw).message == message


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("Upload to the bucket failed: {'message': 'Access Denied'}", "Upload to the bucket failed: Access Denied"),
        ('step 3 of 7 {"error": {"message": "no face found"}}', "step 3 of 7: no face found"),
        ("ValueError: {'message': 'no face found'}", "no face found"),
        ("Error code: 429 - {'error': {'message': 'slow down'}}", "slow down"),
        ("the input was {}", "the input was {}"),
    ],
)
def test_the_text_before_an_embedded_object_stays(raw: str, message: str):
    assert decode_error(raw).message == message


@pytest.mark.parametrize("case", ["o:embeddings", "o:route-typo"])
def test_an_unknown_route_is_said_to_be_one_and_named_where_the_request_is_known(case: str):
    error = decode_error(ANSWERS[case])
    assert error.code == 404
    assert error.message.startswith("the worker has no such route (HTTP 404): it is misspelt, or")
    named = named_route(error.message, {"openai_route": "/v1/chat/completion", "openai_input": {}})
    assert named.startswith("the worker has no route /v1/chat/completion (HTTP 404): it is misspelt, or")
    assert named_route(error.message, None) == named_route(error.message, {"openai_route": 7}) == error.message
    assert named_route("boom", {"openai_route": "/v1/x"}) == "boom"


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("m:tools-auto", ("ENABLE_AUTO_TOOL_CHOICE", "TOOL_CALL_PARSER")),
        ("m:tools-required", ("ENABLE_AUTO_TOOL_CHOICE", "TOOL_CALL_PARSER")),
        ("i:route-get-on-post", ("Method Not Allowed", "openai_input")),
        ("worker REQUEST_TIMEOUT=3", ("TimeoutError", "REQUEST_TIMEOUT", "fewer tokens")),
    ],
)
def test_an_error_that_needs_another_setting_names_it(case: str, words: tuple[str, ...]):
    error = decode_error(ANSWERS[case])
    assert all(word in error.message for word in words)
    assert error.raw == ANSWERS[case]


def test_an_exception_of_several_lines_is_shown_from_its_first():
    raw = (
        'Traceback (most recent call last):\n  File "/h.py", line 3, in run\n    raise RuntimeError(text)\n'
        "RuntimeError: CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`.\n"
    )
    error = decode_error(raw)
    assert error.message.startswith("RuntimeError: CUDA error: device-side assert triggered Compile")
    assert error.error_type == "RuntimeError"


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
